"""What a search will do, found out and checked before a weight is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorsmerge_cli.core.parallel import default_threads
from lorsmerge_cli.data.dataset import drop_warnings, empty_groups, load_data
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import LorsmergeError, UsageFault, raise_all
from lorsmerge_cli.metrics.normalisation import AUTO, check_choice
from lorsmerge_cli.operations.merge import MergeInputs, open_inputs
from lorsmerge_cli.operations.search.scores import (
    OBJECTIVES,
    PARTS,
    RANKINGS,
    Goal,
    Speakers,
    parts_of,
    small_sets,
    speakers_of,
)
from lorsmerge_cli.operations.search.storage import is_url
from lorsmerge_cli.operations.search.study import PRUNERS, SAMPLERS
from lorsmerge_cli.outputs import check_output
from lorsmerge_cli.pictures import check_picture
from lorsmerge_cli.recipe.space import Point, Space
from lorsmerge_cli.speech.decoding import DecodingSettings
from lorsmerge_cli.speech.source import ModelSource, find_model, parse_speech_dtype

TRIALS = 60


@dataclass(frozen=True)
class SearchSettings:
    """How to search.

    Attributes:
        study: a file, or a database URL; None for a file beside the output.
        name: of the study in it.
        worker: take part in a study that another process has begun.
        trials: in all; None for the whole grid, or 60.
        sampler: of SAMPLERS.
        seed: of everything random.
        pruner: of PRUNERS.
        objective: of OBJECTIVES; None for what the data has.
        rank_by: of RANKINGS.
        finalists: trials that are scored by beam search on the whole dev set.
        beam, batch_size, max_tokens: of their decoding, as in `DecodingSettings`.
        normalisation: of error rates, one of `CHOICES`.
        dtype: the model computes in.
        device: as in `resolve_device`.
        threads: tensors in flight; None for one per core.
        output, csv, plot: to be written.
        best: write the best trial's recipe, not the simplest of those as good.
        force: replace outputs that exist.
        allow_other_base: take deltas of another base.
        companions: model folder of a base that is a bare file.
    """

    study: str | None = None
    name: str = "search"
    worker: bool = False
    trials: int | None = None
    sampler: str = "tpe"
    seed: int = 0
    pruner: str = "paired"
    objective: str | None = None
    rank_by: str = "greedy"
    finalists: int = 5
    beam: int = 20
    batch_size: int | None = None
    max_tokens: int | None = None
    normalisation: str = AUTO
    dtype: str = "float32"
    device: str = "auto"
    threads: int | None = None
    output: Path | None = None
    csv: Path | None = None
    plot: Path | None = None
    best: bool = False
    force: bool = False
    allow_other_base: bool = False
    companions: Path | None = None

    @property
    def decoding(self) -> DecodingSettings:
        """Of the finalists, and of trials ranked by `beam`."""
        return DecodingSettings(self.beam, self.batch_size, self.max_tokens)


@dataclass(frozen=True)
class DataSettings:
    """How data sets are read, as in `load_data`."""

    language: str | None = None
    task: str | None = None
    format: str | None = None
    hours: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class SearchPlan:
    """A checked search.

    Attributes:
        space, settings: as given.
        study: a file, or a database URL.
        goal: what is to become better.
        inputs: base and deltas, open.
        source: the base as a model.
        rows: the dev set, of the tasks that count.
        parts: growing parts of it, the last one all of it.
        test: a test set for the best recipe alone; empty without one.
        points: what is tried first, all there is for a grid.
        trials: in all.
        threads: tensors in flight.
        fingerprint: all that a trial's result depends on, by what it is called.
        warnings: what the user should know before the work.
    """

    space: Space
    settings: SearchSettings
    study: str
    goal: Goal
    inputs: MergeInputs
    source: ModelSource
    rows: tuple[Utterance, ...]
    parts: tuple[tuple[Utterance, ...], ...]
    test: tuple[Utterance, ...]
    points: tuple[Point, ...]
    trials: int
    threads: int
    fingerprint: dict[str, str]
    warnings: tuple[str, ...]

    @property
    def speakers(self) -> Speakers:
        """Of the dev set, in the order of a trial's statistics."""
        return speakers_of(self.parts[-1])


def plan_search(
    space: Space,
    data: Sequence[Path],
    test: Sequence[Path],
    reading: DataSettings,
    settings: SearchSettings,
) -> SearchPlan:
    """Check everything that options, headers and manifests tell.

    Args:
        space: what may be chosen.
        data: the dev sets.
        test: sets for the best recipe alone.
        reading: of both.
        settings: how to search.

    Raises:
        LorsmergeError: everything that stands in the way, at once where it can be.
    """
    raise_all(_setting_faults(space, settings))
    points = space.grid() if settings.sampler == "grid" else list(space.first_points().values())
    recipe = space.largest_recipe().resolved()
    inputs = open_inputs(recipe, allow_other_base=settings.allow_other_base)
    source = find_model(Path(space.base), name="the merge", companions=settings.companions)
    notes: list[str] = []
    rows = _load(data, "dev", reading, source.window, notes)
    goal = Goal(_tasks(settings.objective, rows), settings.rank_by)
    raise_all(_output_faults(settings, goal, [*inputs.files, *data, *test]))
    rows = tuple(row for row in rows if row.task in goal.tasks)
    without = empty_groups(rows)
    if without:
        raise LorsmergeError(
            f"The dev set's {without[0]} references hold no words, so they have no error rate.",
            "Check their texts.",
        )
    tested = _load(test, "test", reading, source.window, notes) if test else ()
    tested = tuple(row for row in tested if row.task in goal.tasks)
    shares = PARTS if settings.pruner != "none" else PARTS[-1:]
    parts = [tuple(part) for part in parts_of(rows, shares)]
    parts = [p for p, after in zip(parts, [*parts[1:], ()], strict=True) if len(p) != len(after)]
    trials = settings.trials or TRIALS
    if settings.sampler == "grid":
        trials = min(settings.trials or len(points), len(points))
        if trials < len(points):
            notes.append(f"{trials} of the grid's {len(points)} points are tried.")
    return SearchPlan(
        space=space,
        settings=settings,
        study=study_of(settings),
        goal=goal,
        inputs=inputs,
        source=source,
        rows=rows,
        parts=tuple(parts),
        test=tested,
        points=tuple(points),
        trials=trials,
        threads=settings.threads or default_threads(),
        fingerprint=_fingerprint(space, inputs, source, rows, len(parts), goal, settings),
        warnings=(
            *inputs.warnings,
            *notes,
            *_overlap(rows, tested),
            *small_sets(goal.tasks, rows),
        ),
    )


def _setting_faults(space: Space, settings: SearchSettings) -> list[LorsmergeError]:
    faults: list[LorsmergeError] = [*check_choice(settings.normalisation)]
    for option, value, known in (
        ("--sampler", settings.sampler, SAMPLERS),
        ("--pruner", settings.pruner, PRUNERS),
        ("--objective", settings.objective, tuple(OBJECTIVES)),
        ("--rank-by", settings.rank_by, RANKINGS),
    ):
        if value is not None and value not in known:
            faults.append(UsageFault(f"{option} {value}: unknown.", f"Use {', '.join(known)}."))
    if not space.values:
        faults.append(
            UsageFault("There is nothing to search.", "Give --scale 0.05:0.5, say, --svp or --mp.")
        )
    ranges = [values for values in space.parameters.values() if not values.choices]
    if settings.sampler == "cmaes" and (
        len(ranges) < len(space.parameters) or len(ranges) < 2 or settings.objective == "both"
    ):
        faults.append(
            UsageFault(
                "--sampler cmaes takes one objective, and two or more parameters that are ranges.",
                "Write --svp 0.01:0.05 --mp 0.1:0.6 --scale 0.05:0.5, say, or use --sampler tpe.",
            )
        )
    written = [settings.output, settings.csv, settings.plot]
    if settings.worker and any(written):
        faults.append(
            UsageFault(
                "A --worker writes nothing.", "Leave out -o, --csv and --plot: the search has them."
            )
        )
    if settings.worker and settings.study is None:
        faults.append(UsageFault("A --worker needs --study, the database that it takes part in."))
    if not settings.worker and settings.output is None:
        faults.append(UsageFault("There is no output.", "Write -o best.toml."))
    if settings.output is not None and settings.output.suffix != ".toml":
        faults.append(
            UsageFault(
                f"{settings.output}: a recipe is written as .toml.",
                f"Write -o {settings.output.with_suffix('.toml')}.",
            )
        )
    parse_speech_dtype(settings.dtype)
    return faults


def study_of(settings: SearchSettings) -> str:
    """Return the database of the trials: the one asked for, or one beside the output."""
    return settings.study or str((settings.output or Path("search")).with_suffix(".db"))


def recipe_files(settings: SearchSettings) -> list[Path]:
    """The best recipe's, and those that the others of a Pareto front would be written to."""
    if settings.output is None:
        return []
    stem, suffix = settings.output.stem, settings.output.suffix
    others = [f"{stem}.{n}{suffix}" for n in range(2, settings.finalists + 1)]
    return [settings.output, *(settings.output.with_name(name) for name in others)]


def _output_faults(
    settings: SearchSettings, goal: Goal, inputs: Sequence[Path]
) -> list[LorsmergeError]:
    faults: list[LorsmergeError] = []
    inputs = list(inputs)
    study = study_of(settings)
    if not is_url(study):
        inputs.append(Path(study))
    if settings.csv is not None and settings.csv in recipe_files(settings):
        faults.append(UsageFault(f"--csv {settings.csv} is the recipe's file.", "Name another."))
    written = recipe_files(settings)[: None if len(goal.tasks) > 1 else 1]
    for path in [*written, *([settings.csv] if settings.csv else [])]:
        faults += check_output(path, inputs=inputs, size=0, force=settings.force)
    if settings.plot is not None:
        faults += check_picture(settings.plot, inputs, force=settings.force)
    return faults


def _load(
    paths: Sequence[Path], split: str, reading: DataSettings, window: float, notes: list[str]
) -> tuple[Utterance, ...]:
    found = load_data(
        paths, split=split, language=reading.language, task=reading.task, format=reading.format,
        hours=reading.hours, seed=reading.seed, max_seconds=window, empty_text=True,
    )  # fmt: skip
    notes += drop_warnings(found)
    return found.utterances


def _tasks(objective: str | None, rows: Sequence[Utterance]) -> tuple[str, ...]:
    """The tasks that count: those of the data, unless an objective is given."""
    found = {row.task for row in rows}
    if objective is None:
        return tuple(task for task in OBJECTIVES["both"] if task in found)
    missing = [task for task in OBJECTIVES[objective] if task not in found]
    if missing:
        raise UsageFault(
            f"--objective {objective}: the dev set has no {missing[0]} utterances.",
            "Add data of that task, or choose another objective.",
        )
    return OBJECTIVES[objective]


def _overlap(dev: Sequence[Utterance], test: Sequence[Utterance]) -> list[str]:
    heard = {(row.audio.resolve(), row.start) for row in dev}
    count = sum((row.audio.resolve(), row.start) in heard for row in test)
    if not count:
        return []
    return [
        f"{count} of the {len(test)} test utterances are in the dev set too: a score on them says "
        "nothing about new data."
    ]


def _fingerprint(
    space: Space,
    inputs: MergeInputs,
    source: ModelSource,
    rows: Sequence[Utterance],
    parts: int,
    goal: Goal,
    settings: SearchSettings,
) -> dict[str, str]:
    said = [[r.id, r.audio.name, r.start, r.text, r.language, r.task] for r in rows]
    generation = source.folder / "generation_config.json"
    decoding = [
        settings.dtype, settings.max_tokens and {"new": settings.max_tokens},
        settings.beam if goal.rank_by == "beam" else None,
        generation.read_text(encoding="utf-8") if generation.is_file() else "",
    ]  # fmt: skip
    return {
        "the base": inputs.identity.digest,
        "the deltas": _digest(inputs.vector_identities),
        "the dev set": _digest(said),
        "what may be chosen": ", ".join(
            f"{kind} {values.choices or (values.low, values.high, values.step)}"
            for kind, values in space.values.items()
        )
        + f" {sorted(space.per_delta)} {space.include} {space.exclude}"
        + (f" {space.method}" if space.method else ""),
        "the objective": f"{'+'.join(goal.tasks)} by {goal.rank_by}",
        "decoding": _digest(decoding),
        "--normalise": settings.normalisation,
        "--sampler": settings.sampler,
        "--seed": str(settings.seed),
        "--pruner": f"{settings.pruner}, {parts} parts",
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
