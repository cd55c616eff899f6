"""What a search will do, found out and checked before a weight is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorsmerge_cli.core.parallel import default_threads
from lorsmerge_cli.data.dataset import drop_warnings, empty_groups, load_data
from lorsmerge_cli.data.digests import digests_of
from lorsmerge_cli.data.leakage import repeated, shared_with, shared_with_training
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import LorsmergeError, UsageFault, raise_all
from lorsmerge_cli.operations.merge import MergeInputs, open_inputs
from lorsmerge_cli.operations.search.scores import (
    PARTS,
    Goal,
    Speakers,
    parts_of,
    small_sets,
    speakers_of,
)
from lorsmerge_cli.recipe.published import published_name
from lorsmerge_cli.recipe.record import trained_digests, vector_digests
from lorsmerge_cli.recipe.search_settings import (
    OBJECTIVES,
    TRIALS,
    DataSettings,
    SearchSettings,
    check_search_outputs,
    check_settings,
    check_space,
    study_of,
)
from lorsmerge_cli.recipe.space import Point, Space
from lorsmerge_cli.speech.settings import full_dtype
from lorsmerge_cli.speech.source import ModelSource, find_model


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
    raise_all(check_settings(settings) + check_space(space, settings))
    full_dtype(settings.dtype)
    points = space.grid() if settings.sampler == "grid" else list(space.first_points().values())
    recipe = space.largest_recipe().resolved()
    inputs = open_inputs(recipe, allow_other_base=settings.allow_other_base)
    source = find_model(Path(space.base), name="the merge", companions=settings.companions)
    notes: list[str] = []
    rows = _load(data, "dev", reading, source.window, notes)
    goal = Goal(_tasks(settings.objective, rows), settings.rank_by)
    files = [*inputs.files, *data, *test]
    raise_all(check_search_outputs(settings, files, front=len(goal.tasks) > 1))
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
            *_leaks(inputs, rows, tested),
            *small_sets(goal.tasks, rows),
        ),
    )


def _load(
    paths: Sequence[Path], split: str, reading: DataSettings, window: float, notes: list[str]
) -> tuple[Utterance, ...]:
    found = load_data(
        paths, split=split, language=reading.language, task=reading.task, format=reading.format,
        hours=reading.hours, seed=reading.seed, max_seconds=window, empty_text=True,
        decoded=True,
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


def _leaks(inputs: MergeInputs, dev: Sequence[Utterance], test: Sequence[Utterance]) -> list[str]:
    """Warnings of what the sets share with one another, and with what the inputs were trained on."""
    trained = [*trained_digests(inputs.base, published_name(str(inputs.base.path)))]
    for vector in inputs.vectors:
        trained += vector_digests(vector)
    held_out, tested = digests_of(dev), digests_of(test)
    warnings = [
        shared.warning("the dev set too", role="test")
        for shared in shared_with(tested, held_out.sketches)
    ]
    for role, digests in (("dev", held_out), ("test", tested)):
        warnings += repeated(digests, role=role)
        warnings += [found.warning(role=role) for found in shared_with_training(digests, trained)]
    return warnings


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
