"""Plan a search: check all that options, headers and manifests tell before a weight is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from lorsmerge_cli.data.dataset import drop_warnings, empty_groups, load_data
from lorsmerge_cli.data.digests import digests_of
from lorsmerge_cli.data.leakage import repeated, shared_with, shared_with_training
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.deltas.file import DeltaFile
from lorsmerge_cli.errors import LorsmergeError, UsageFault, raise_all
from lorsmerge_cli.operations.merge import MergeInputs, open_inputs
from lorsmerge_cli.operations.search.scores import (
    PARTS,
    Goal,
    Speakers,
    halves_of,
    parts_of,
    small_sets,
    speakers_of,
)
from lorsmerge_cli.recipe.published import published_name
from lorsmerge_cli.recipe.recipe import RATIOS
from lorsmerge_cli.recipe.record import trained_digests, vector_digests
from lorsmerge_cli.recipe.search_settings import (
    CLIPS,
    OBJECTIVES,
    RATE,
    STEPS,
    TRIALS,
    SearchSettings,
    check_search_outputs,
    check_settings,
    check_space,
    shown,
    study_of,
)
from lorsmerge_cli.recipe.space import Point, Space
from lorsmerge_cli.speech.settings import full_dtype
from lorsmerge_cli.speech.source import ModelSource, compute_dtype, find_model


@dataclass(frozen=True)
class SearchPlan:
    """A checked search.

    Attributes:
        space, settings: as given.
        study: a file, or a database URL.
        goal: the objectives.
        inputs: base and deltas, open.
        source: the base as a model.
        rows: the dev set, of the tasks that count.
        parts: growing parts of it, the last one all of it.
        test: a test set for the best recipe alone; empty without one.
        halves: of the dev set, to learn lambdas from and to stop by; empty where they are drawn.
        points: what is tried first; for a grid all of it.
        trials: in all.
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
    halves: tuple[tuple[Utterance, ...], ...]
    points: tuple[Point, ...]
    trials: int
    warnings: tuple[str, ...]

    @property
    def rate(self) -> float:
        """What a step changes a learned lambda by, as a share of the one that it begins at."""
        return self.settings.rate or RATE

    @property
    def clips(self) -> int:
        """Utterances that a step learns from."""
        return self.settings.clips or CLIPS

    @property
    def study_shown(self) -> str:
        """The study without a password."""
        return shown(self.study)

    @property
    def seconds(self) -> float:
        """Length of the dev set."""
        return sum(row.duration or 0.0 for row in self.rows)

    @property
    def model_size(self) -> int:
        """Bytes of the model's weights in memory."""
        size = getattr(torch, full_dtype(self.settings.dtype)).itemsize
        return sum(spec.numel * int(size) for spec in self.inputs.base.float_specs.values())

    @property
    def speakers(self) -> Speakers:
        """Of the dev set, in the order of a trial's statistics."""
        return speakers_of(self.parts[-1])

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """All that a trial's result depends on, by the name that messages give it."""
        space, goal, settings = self.space, self.goal, self.settings
        texts = [[r.id, r.audio.name, r.start, r.text, r.language, r.task] for r in self.rows]
        generation = self.source.folder / "generation_config.json"
        decoding = [
            settings.dtype, settings.max_tokens and {"new": settings.max_tokens},
            settings.beam if goal.rank_by == "beam" else None,
            generation.read_text(encoding="utf-8") if generation.is_file() else "",
        ]  # fmt: skip
        steps = {
            "--scale": str(space.start), "--rate": str(self.rate), "--clips": str(self.clips),
        }  # fmt: skip
        return {
            "the base": self.inputs.identity.digest,
            "the deltas": _digest(self.inputs.vector_identities),
            "the dev set": _digest(texts),
            "what may be chosen": ", ".join(
                f"{kind} {values.choices or (values.low, values.high, values.step)}"
                for kind, values in space.values.items()
            )
            + f" {sorted(space.per_delta)} {space.include} {space.exclude}"
            + (f" by {space.by} {space.groups}" if space.by else "")
            + (f" {space.method or space.methods}" if space.method or space.methods else "")
            + (f" {space.parted}" if space.parted else ""),
            "the objective": f"{'+'.join(goal.tasks)} by {goal.rank_by}",
            "decoding": _digest(decoding),
            "--normalise": settings.normalisation,
            "--sampler": settings.sampler,
            "--seed": str(settings.seed),
            "--pruner": f"{settings.pruner}, {len(self.parts)} parts",
        } | (steps if settings.learns else {})


def plan_search(
    space: Space, data: Sequence[Path], test: Sequence[Path], settings: SearchSettings
) -> SearchPlan:
    """Check everything that options, headers and manifests tell.

    Args:
        space: what may be chosen.
        data: the dev sets.
        test: sets for the best recipe alone.
        settings: how to search, and how to read the sets.

    Raises:
        LorsmergeError: all faults, at once where they can be.
    """
    raise_all(check_settings(settings) + check_space(space, settings))
    settings = replace(settings, dtype=compute_dtype(settings.dtype, settings.device))
    recipe = replace(space.largest_recipe().resolved(), coef=())  # whose groups are not known yet
    inputs = open_inputs(recipe, allow_other_base=settings.allow_other_base)
    parted = _parted(space, inputs) if "part" in space.by else ()
    space = space.grouped(list(inputs.base.float_specs), inputs.base.path, parted)
    raise_all(check_space(space, settings))
    points = space.grid() if settings.sampler == "grid" else list(space.first_points().values())
    points = [] if settings.learns else points  # each follows from the one before
    source = find_model(Path(space.base), name="the merge", config_dir=settings.config_dir)
    notes: list[str] = []
    rows = _load(data, "dev", settings, source.window, notes)
    goal = Goal(_tasks(settings.objective, rows), settings.ranking)
    files = [*inputs.files, *data, *test]
    raise_all(check_search_outputs(settings, files, front=len(goal.tasks) > 1))
    rows = tuple(row for row in rows if row.task in goal.tasks)
    without = empty_groups(rows)
    if without:
        raise LorsmergeError(
            f"The dev set's {without[0]} references hold no words, so they have no error rate.",
            "Check their texts.",
        )
    tested = _load(test, "test", settings, source.window, notes) if test else ()
    tested = tuple(row for row in tested if row.task in goal.tasks)
    halves = halves_of(rows) if settings.learns else ()
    stops_early = settings.pruner != "none" and not settings.learns
    shares = PARTS if stops_early else PARTS[-1:]
    # of parts of one size, as a small set has them, the last
    parts = {len(part): tuple(part) for part in parts_of(rows, shares)}
    trials = settings.trials or (STEPS if settings.learns else TRIALS)
    if settings.sampler == "grid":
        trials = min(settings.trials or len(points), len(points))
        if trials < len(points):
            notes.append(f"{trials} of the grid's {len(points)} points are tried.")
    warnings = (*inputs.warnings, *notes, *_leaks(inputs, rows, tested))
    return SearchPlan(
        space, settings, study_of(settings), goal, inputs, source, rows, tuple(parts.values()), tested,
        halves, tuple(points), trials, (*warnings, *small_sets(goal.tasks, rows)),
    )  # fmt: skip


def _parted(space: Space, inputs: MergeInputs) -> list[str]:
    """Return the tensors of which every delta has a low-rank and a sparse part.

    Raises:
        UsageFault: there are none.
    """
    largest = space.largest_recipe().resolved()
    method = largest.chosen_method
    found: list[str] = []
    if not method.centred and {*RATIOS} <= {*method.ratios}:
        found = sorted(inputs.pruned)
    elif method.pruner is None:
        both = [
            isinstance(vector, DeltaFile) and {*RATIOS} <= vector.provenance.pruning.keys()
            for vector in inputs.vectors
        ]
        if all(both):
            names = inputs.base.float_specs
            found = [n for n in names if all(v.is_pruned(n) for v in inputs.vectors)]
    if not found:
        raise UsageFault(
            "--by part: not all of these deltas have a low-rank and a sparse part.",
            "Give --svp and --mp, or deltas that `lorsmerge prune` made with both.",
        )
    return found


def _load(
    paths: Sequence[Path], split: str, settings: SearchSettings, window: float, notes: list[str]
) -> tuple[Utterance, ...]:
    found = load_data(
        paths, split=split, language=settings.language, task=settings.task, format=settings.format,
        conditions=settings.conditions, hours=settings.hours, seed=settings.data_seed, max_seconds=window, empty_text=True,
        decoded=True,
    )  # fmt: skip
    notes += drop_warnings(found)
    return found.utterances


def _tasks(objective: str | None, rows: Sequence[Utterance]) -> tuple[str, ...]:
    """Return the tasks of an objective; without one those of the data."""
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
    """Return warnings of what the sets share with each other and with the training data."""
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


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
