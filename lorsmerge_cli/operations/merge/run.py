"""Merge: base + sum of scaled, pruned deltas, streamed tensor by tensor (Eq. 8)."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorsmerge_cli.checkpoint.content import ContentHash
from lorsmerge_cli.checkpoint.model_writer import ModelWriter, copy_companions
from lorsmerge_cli.core.low_rank_sparse import Delta, dense, is_low_rank, weighted
from lorsmerge_cli.core.merging import Merged, Rounding, Term, is_finite, merge_tensor
from lorsmerge_cli.core.parallel import run_parallel
from lorsmerge_cli.core.pruning.budget import Budget, budget
from lorsmerge_cli.core.sketch import digests_entry, union
from lorsmerge_cli.core.statistics import BaseRounding, energy
from lorsmerge_cli.deltas.file import DeltaFile
from lorsmerge_cli.deltas.task_vector import (
    FinetunedTaskVector,
    TaskVector,
    check_base_content,
    rounded_base,
)
from lorsmerge_cli.errors import LorsmergeError, raise_all, zero_delta
from lorsmerge_cli.operations.merge.faults import check_merged, not_finite
from lorsmerge_cli.operations.merge.inputs import pinned_recipe
from lorsmerge_cli.operations.merge.plan import MergePlan, Unit, other_input
from lorsmerge_cli.outputs import atomic_file, atomic_folder, check_unchanged, write_json
from lorsmerge_cli.recipe.recipe import save
from lorsmerge_cli.recipe.record import header_of, trained_digests, training_of
from lorsmerge_cli.version import __version__

LOST_WARNING = 0.03  # of the updates
LONGEST = 1.2345678901234567e-123  # as text, of the positive floats
NORM_SPREAD = 10.0  # between the largest and the smallest delta
LONG_STEP = 2.0  # times the longest delta
MISSED = 1e-3  # of a step norm: rounding alone errs by less
CANCELLED = 1e-6  # of the longest step that scaled deltas can make: a sum in float32 errs by less


@dataclass(frozen=True)
class Control:
    """Task arithmetic of a merge's deltas, written beside it with a step of the same norm.

    Attributes:
        output: what was written.
        scales: lambda of each delta, in the recipe's order.
        step: L2 norm of the step from the base.
    """

    output: Path
    scales: tuple[float, ...]
    step: float


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        output: what was written.
        pruned, unpruned, copied: tensors by what was done with them.
        rounding: updates, and how many of them the output's dtype lost.
        norms: L2 norm of each delta as read, in the recipe's order.
        kept: L2 norm of each after pruning.
        step: L2 norm of the step from the base, lambda included; an unpruned merge of the same step
            norm is the control for what pruning does beside shrinking.
        warnings: what the user should know.
        control: what was written beside the merge; None for nothing.
    """

    output: Path
    pruned: int
    unpruned: int
    copied: int
    rounding: Rounding
    norms: tuple[float, ...]
    kept: tuple[float, ...]
    step: float
    warnings: tuple[str, ...] = ()
    control: Control | None = None


def run_merge(
    plan: MergePlan, progress: Callable[[int, int], None] = lambda done, total: None
) -> MergeReport:
    """Carry out a plan.

    Args:
        plan: a checked merge.
        progress: called with the bytes of the base just done and the bytes in all, each pass over a
            tensor that comes before its merge counted.

    Raises:
        NonFinite: a NaN or an infinity in an input, or an overflow of the output's dtype.
        Mismatch: a delta that is zero throughout.
        OutputFault: the disk filled up.
    """
    run, advance = _begun(plan, progress)
    if plan.as_folder:
        with atomic_folder(plan.output, force=plan.force) as folder:
            if plan.config_dir is not None:
                copy_companions(plan.config_dir, folder, plan.dtype)
            run.write_weights(folder, advance)
            write_json(folder / "lorsmerge.json", run.record)
    else:
        with atomic_file(plan.output, force=plan.force) as file:
            run.write_weights(file, advance)
    if plan.save_recipe is not None:
        save(pinned_recipe(plan.recipe), plan.save_recipe, force=plan.force)
    return MergeReport(
        output=plan.output,
        pruned=len(plan.pruned),
        unpruned=len(plan.base.float_specs) - len(plan.pruned),
        copied=len(plan.base.specs) - len(plan.base.float_specs),
        rounding=run.rounding,
        norms=run.norms(),
        kept=run.kept(),
        step=run.step,
        warnings=tuple(run.warnings()),
    )


def measure_step(
    plan: MergePlan, progress: Callable[[int, int], None] = lambda done, total: None
) -> float:
    """Return the L2 norm of the step that a merge takes from its base, before it is rounded.

    All inputs are read and pruned as in the merge itself, and nothing is written.

    Args:
        plan: a checked merge.
        progress: called with the bytes of the base just read and the bytes in all.

    Returns:
        The norm; 0 where what is left of deltas that cancel out may be rounding errors alone.

    Raises:
        NonFinite: a NaN or an infinity in an input.
    """
    run, advance = _begun(plan, progress)
    for unit, _ in run_parallel(run.measure_unit, plan.units(), plan.threads):
        advance(unit.nbytes)
    longest = math.fsum(
        abs(entry.scale or 0.0) * norm
        for entry, norm in zip(plan.recipe.deltas, run.norms(), strict=True)
    )
    return run.step if run.step > CANCELLED * longest else 0.0


def _begun(
    plan: MergePlan, progress: Callable[[int, int], None]
) -> tuple[_Run, Callable[[int], None]]:
    """Return a run that knows what is kept of each tensor, and what to call with bytes just done."""
    method = plan.chosen_method
    total = plan.allotting(method) + sum(unit.nbytes for unit in plan.units())

    def advance(done: int) -> None:
        progress(done, total)

    return _Run(plan, plan.allot(method, plan.threads, advance)), advance


class _Run:
    """The state that the worker threads share."""

    def __init__(self, plan: MergePlan, allotted: Mapping[tuple[int, str], Budget]) -> None:
        if plan.chosen_method.statistics and not plan.statistics:
            raise ValueError("the statistics that the plan needs have not been made")
        self.plan = plan
        self.method = plan.chosen_method
        self.allotted = allotted
        self.rounding = Rounding()
        self.steps: list[float] = []  # energy of each unit's update
        self._squares: list[list[float]] = [[] for _ in plan.vectors]
        self._dropped: list[list[float]] = [[] for _ in plan.vectors]  # energy lost by pruning
        self._base_content = ContentHash(plan.base.specs)
        self._contents = [ContentHash(vector.stored) for vector in plan.vectors]
        self._other_bases: list[str] = []
        self._base_roundings: list[list[BaseRounding]] = [[] for _ in plan.vectors]

    def write_weights(self, target: Path, progress: Callable[[int], None]) -> None:
        plan = self.plan
        announced = json.dumps(made_from(plan), ensure_ascii=False)  # no shorter than `record`
        with ModelWriter(
            target,
            plan.output_specs,
            plan.base.tied,
            {"lorsmerge": announced},
            plan.max_shard_size if plan.as_folder else None,
        ) as writer:
            for unit, rounding in run_parallel(
                lambda unit: self._merge_unit(unit, writer), plan.units(), plan.threads
            ):
                self.rounding += rounding
                progress(unit.nbytes)
            for vector, norm in zip(plan.vectors, self.norms(), strict=True):
                if norm == 0:
                    raise zero_delta(vector.path)
            self._check_contents()
            check_unchanged(plan.identities | dict(plan.copied))
            record = json.dumps(self.record, ensure_ascii=False)
            writer.finish({"lorsmerge": record.ljust(len(announced))})

    @cached_property
    def record(self) -> dict[str, Any]:
        """How the output was made; complete when all inputs have been read."""
        return made_from(self.plan, self._hexdigests, self.step)

    @property
    def step(self) -> float:
        """The L2 norm of the updates so far."""
        return math.sqrt(math.fsum(self.steps))

    @cached_property
    def _hexdigests(self) -> list[str]:
        """Content hashes of the base and each delta; complete when all of them have been read."""
        return [content.hexdigest() for content in (self._base_content, *self._contents)]

    def _check_contents(self) -> None:
        """Check the inputs' content hashes against those in deltas and in a recipe's record.

        Raises:
            Mismatch: another base than a delta's, or other inputs than the record's.
        """
        plan, faults = self.plan, list[LorsmergeError]()
        floats = self._base_content.hexdigest(plan.base.float_specs)
        for vector in plan.vectors:
            fault = check_base_content(vector, plan.base, plan.identity, floats)
            if fault is not None and plan.allow_other_base:
                self._other_bases.append(fault.what)
            elif fault is not None:
                faults.append(fault)
        paths = [plan.base.path, *(vector.path for vector in plan.vectors)]
        recorded = plan.recipe.expected_contents
        for path, found, wanted in zip(paths, self._hexdigests, recorded, strict=False):
            if wanted and found != wanted:
                faults.append(other_input(path, found, wanted))
        raise_all(faults)

    def _merge_unit(self, unit: Unit, writer: ModelWriter) -> Rounding:
        base = self._base_of(unit)
        self._base_content.add(unit.name, base, unit.start)
        if not self.plan.base.specs[unit.name].is_float:
            writer.write(unit.name, base, unit.start)
            return Rounding()
        merged = self._merged(unit, base)
        check_merged(unit.name, merged.tensor, self.plan.tensors(unit.name))
        writer.write(unit.name, merged.tensor, unit.start)
        return merged.rounding

    def measure_unit(self, unit: Unit) -> None:
        """Add the energy of a unit's update to `steps`."""
        if self.plan.base.specs[unit.name].is_float:
            self._merged(unit, self._base_of(unit))

    def _base_of(self, unit: Unit) -> Tensor:
        base = self.plan.base.read(unit.name)
        return base if unit.whole else base.reshape(-1)[unit.start : unit.stop]

    def _merged(self, unit: Unit, base: Tensor) -> Merged:
        dtype = self.plan.output_specs[unit.name].dtype
        agreement = self.plan.factors.agreement
        merged = merge_tensor(
            base, self._terms(unit, base), self.method, dtype, agreement,
            self._statistics(unit.name),
        )  # fmt: skip
        self.steps.append(energy(merged.update))
        return merged

    def _statistics(self, name: str) -> list[Callable[[], Tensor]]:
        """Return what reads the statistics of a tensor in each delta's fine-tune, if there are any."""
        if name not in self.plan.weighed:
            return []
        kind, device = self.method.statistics, self.plan.device
        return [
            lambda file=file: file.read(kind, name).to(device)  # type: ignore[misc]
            for file in self.plan.statistics
        ]

    def _terms(self, unit: Unit, base: Tensor) -> Iterator[Term]:
        factors = self.plan.factors
        for number, (vector, entry) in enumerate(
            zip(self.plan.vectors, self.plan.recipe.deltas, strict=True)
        ):
            for part, start, values in vector.stored_parts(unit.name, unit.start, unit.stop):
                self._contents[number].add(part, values, start)
            prunes = unit.name in self.plan.pruned and self.method.prunes(entry.svp, entry.mp)
            scale = entry.scale if entry.scale is not None else self.method.scale
            of_parts = factors.of_parts(unit.name, number)
            parts = None if of_parts is None else (scale * of_parts[0], scale * of_parts[1])
            delta = self._delta(unit, vector)
            if (prunes or self.plan.holds_all) and not is_finite(delta):
                dtype = self.plan.output_specs[unit.name].dtype
                raise not_finite(unit.name, dtype, self.plan.tensors(unit.name))
            if isinstance(vector, DeltaFile):
                before = vector.norms[unit.name] ** 2 if prunes else 0.0
            else:
                before = energy(delta)
                self._squares[number].append(before)  # list.append is atomic
            if isinstance(vector, FinetunedTaskVector) and isinstance(delta, Tensor):
                self._base_roundings[number].append(vector.base_rounding(unit.name, base, delta))
            term = Term(
                delta,
                scale * factors.of_delta(unit.name, number),
                self._budget(number, unit.name) if prunes else None,
                partial(self._count_dropped, number, before),
                parts if prunes else None,
            )
            if parts is not None and not prunes and vector.is_pruned(unit.name):
                stored = vector.read(unit.name).to(self.plan.device)
                term.delta, term.scale = weighted(stored, *parts), 1.0
            del delta  # the term's alone, so that pruning can free it
            yield term
            del term  # before the next one is made

    def _budget(self, number: int, name: str) -> Budget:
        shape, entry = self.plan.base.specs[name].shape, self.plan.recipe.deltas[number]
        return self.allotted.get((number, name)) or budget(shape, entry.svp, entry.mp)

    def _count_dropped(self, number: int, before: float, pruned: Delta) -> None:
        self._dropped[number].append(before - energy(pruned))

    def _delta(self, unit: Unit, vector: TaskVector) -> Delta:
        if unit.whole:
            delta = vector.read(unit.name).to(self.plan.device)
            return delta if self.plan.takes_factors and is_low_rank(delta) else dense(delta)
        return vector.read_block(unit.name, unit.start, unit.stop)

    def norms(self) -> tuple[float, ...]:
        return tuple(
            vector.norm if isinstance(vector, DeltaFile) else math.fsum(squares) ** 0.5
            for vector, squares in zip(self.plan.vectors, self._squares, strict=True)
        )

    def kept(self) -> tuple[float, ...]:
        return tuple(
            max(0.0, norm**2 - math.fsum(dropped)) ** 0.5 if dropped else norm
            for norm, dropped in zip(self.norms(), self._dropped, strict=True)
        )

    def warnings(self) -> Iterator[str]:
        yield from self._other_bases
        for vector, roundings in zip(self.plan.vectors, self._base_roundings, strict=True):
            yield from rounded_base(vector, self.plan.base, sum(roundings, BaseRounding()))
        norms = self.norms()
        if max(norms) > NORM_SPREAD * min(norms):
            largest = self.plan.vectors[norms.index(max(norms))].path
            smallest = self.plan.vectors[norms.index(min(norms))].path
            yield (
                f"{largest} is {max(norms) / min(norms):.0f} times as large as {smallest} "
                f"({max(norms):.3g} and {min(norms):.3g} in L2 norm) and will dominate the merge; "
                "a scale per delta (DELTA:scale=...) evens them out."
            )
        aim = self.plan.aim
        if aim is None and self.step > LONG_STEP * max(norms):
            yield (
                f"The step from the base is {self.step / max(norms):.1f} times as long as the longest "
                f"delta ({self.step:.3g} and {max(norms):.3g}): a smaller --scale is usual, and `lorsmerge "
                "search` finds one."
            )
        if aim and abs(self.step - aim) > MISSED * aim:
            yield (
                f"The step has the norm {self.step:.4g}, and {aim:.4g} was asked for: where deltas cancel "
                "out, their last bits decide what is left, and another lambda has others."
            )
        lost, updated = self.rounding.lost, self.rounding.updated
        half = self.plan.dtype.itemsize < torch.float32.itemsize
        remedy = "--dtype float32" if half else "a larger --scale"
        if lost == updated and any(entry.scale for entry in self.plan.recipe.deltas):
            yield (
                "The merge equals its base: scaled and summed up, the deltas are zero, or smaller "
                f"than half a rounding step of the output's dtype. Give {remedy}, or deltas that do "
                "not cancel out."
            )
        elif updated and lost > LOST_WARNING * updated:
            yield (
                f"{lost / updated:.1%} of the updates were smaller than half a rounding step of "
                f"the output's dtype and are lost; {remedy} keeps them."
            )


def made_from(
    plan: MergePlan, contents: Sequence[str] = (), step: float = LONGEST
) -> dict[str, Any]:
    """Return the record of a merge: enough to repeat it to the last byte, or to see what changed.

    Args:
        plan: of the merge.
        contents: hashes of the base and of each delta; placeholders of their length by default.
        step: L2 norm of the step from the base; by default a placeholder, no shorter than any.
    """
    contents = contents or ["0" * 64] * (1 + len(plan.vectors))
    of_base = union(trained_digests(plan.base, plan.recipe.base))
    statistics = [
        {"fingerprint": file.identity} | digests_entry(file.origin.digests)
        for file in plan.statistics
    ]
    return {
        "lorsmerge": __version__,
        "recipe": pinned_recipe(plan.recipe).to_dict(),
        "base": {"fingerprint": plan.identity.digest, "content": contents[0]}
        | digests_entry(of_base),
        "deltas": [
            {"fingerprint": vector_identity, "content": content} | _about(vector)
            for vector, vector_identity, content in zip(
                plan.vectors, plan.vector_identities, contents[1:], strict=True
            )
        ],
        "step_norm": step,
        **({"statistics": statistics} if statistics else {}),
        "device": plan.device.type,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "scipy", "safetensors")},
        },
    }


def _about(vector: TaskVector) -> dict[str, Any]:
    """Return what is known of a delta beside its values."""
    if not isinstance(vector, FinetunedTaskVector):
        return header_of(vector)
    training = training_of(vector.finetuned.folder)
    return {"training": training} if training else {}
