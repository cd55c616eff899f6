"""TALL masks: write one file from which the model of any of its tasks can be made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lorsmerge_cli.checkpoint.content import ContentHash
from lorsmerge_cli.checkpoint.fingerprint import Fingerprint
from lorsmerge_cli.checkpoint.model_files import DELTA
from lorsmerge_cli.checkpoint.reader import BLOCK
from lorsmerge_cli.checkpoint.references import pinned, short_name, with_commits
from lorsmerge_cli.checkpoint.safetensors_file import DTYPES, TensorSpec, dtype_name
from lorsmerge_cli.core.low_rank_sparse import dense
from lorsmerge_cli.core.merging import is_finite
from lorsmerge_cli.core.parallel import default_threads, run_parallel
from lorsmerge_cli.core.statistics import BaseRounding, energy
from lorsmerge_cli.core.tall import each_mask, scaled_sum
from lorsmerge_cli.deltas.file import DeltaFile, Provenance, check_training
from lorsmerge_cli.deltas.tall import (
    TallOrigin,
    TallTask,
    TallWriter,
    check_task_name,
    mask_specs,
)
from lorsmerge_cli.deltas.task_vector import (
    FinetunedTaskVector,
    StoredVector,
    TaskVector,
    check_base_content,
    rounded_base,
    vector_norm,
)
from lorsmerge_cli.errors import (
    LorsmergeError,
    NonFinite,
    UsageFault,
    non_finite,
    raise_all,
    zero_delta,
)
from lorsmerge_cli.inputs import FilePath
from lorsmerge_cli.operations.merge.inputs import MergeInputs, check_inputs
from lorsmerge_cli.operations.merge.plan import HEAP_SLACK, THREAD_OVERHEAD, Unit
from lorsmerge_cli.outputs import atomic_file, check_output, check_unchanged, leftovers
from lorsmerge_cli.quoting import command
from lorsmerge_cli.recipe.coefficients import takes_norms
from lorsmerge_cli.recipe.published import recorded_call
from lorsmerge_cli.recipe.recipe import DeltaEntry, Recipe, wanted_recipe
from lorsmerge_cli.recipe.record import training_of

LONG_STEP = 2.0  # times its own delta's, from which on a task's step is mostly the others'
SCALE = 1.0  # of each delta
HELD = 6  # float64 tensors in the work on one, beside the deltas: sum, products, masks
UNHASHED = "0" * 64  # in place of hashes that are not known yet


@dataclass(frozen=True)
class MasksPlan(MergeInputs):
    """A checked file of TALL masks, ready to be written.

    Attributes:
        recipe: with each delta's coefficient.
        threshold: of the masks.
        tasks: name of each delta's task.
        output: the file.
        specs: tensor -> shape and dtype of the sum.
        threads, allow_other_base, force: as in `tall_masks`.
        command: the line for the file's history.
    """

    recipe: Recipe
    threshold: float
    tasks: tuple[str, ...]
    output: Path
    specs: Mapping[str, TensorSpec]
    threads: int
    allow_other_base: bool
    force: bool
    command: str

    @property
    def sum_nbytes(self) -> int:
        """Bytes of the sum alone, which is what one whole delta takes."""
        return sum(spec.nbytes for spec in self.specs.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the sum and the masks."""
        masks = mask_specs(self.specs, len(self.tasks))
        return self.sum_nbytes + sum(spec.nbytes for spec in masks.values())

    @property
    def memory(self) -> int:
        """Upper bound on working memory in bytes, excluding PyTorch and memory-mapped inputs."""
        largest = max(unit.stop - unit.start for unit in self.units())
        held = (len(self.tasks) * 4 + HELD * 8) * largest
        return self.threads * (HEAP_SLACK * held + THREAD_OVERHEAD)

    def units(self) -> Iterator[Unit]:
        """Yield the work: blocks, and whole tensors where a delta or a rule needs them."""
        for name, spec in self.specs.items():
            whole = self.factors.agreement is not None
            whole = whole or any(vector.is_pruned(name) for vector in self.vectors)
            step = max(1, spec.numel) if whole else BLOCK
            for start in range(0, spec.numel, step):
                stop = min(start + step, spec.numel)
                yield Unit(name, start, stop, whole, (stop - start) * spec.dtype.itemsize)


@dataclass(frozen=True)
class MasksReport:
    """What was written.

    Attributes:
        output: the file.
        tasks: names of the tasks, as `merge --for` takes them.
        kept: of each task, the share of all elements that its mask keeps.
        norms: L2 norm of each delta as read, without its coefficient.
        norm: L2 norm of the sum.
        nbytes: bytes of sum and masks.
        warnings: what the user should know.
    """

    output: Path
    tasks: tuple[str, ...]
    kept: tuple[float, ...]
    norms: tuple[float, ...]
    norm: float
    nbytes: int
    warnings: tuple[str, ...]


def tall_masks(
    base: FilePath,
    deltas: Sequence[FilePath | DeltaEntry] | FilePath,
    output: FilePath,
    threshold: float = 0.4,
    *,
    scale: float | None = None,
    coef: Sequence[str] | str = (),
    allow_other_base: bool = False,
    strip_prefix: str = "",
    force: bool = False,
    threads: int | None = None,
    command: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MasksReport:
    """Write the sum of several deltas, and for each task a mask of its elements that are its own.

    `merge(base, from_masks=output, for_task=TASK)` makes the model of a task from it. The file takes
    one delta and a bit for each element and task (arXiv:2405.07813).

    Args:
        base: the pretrained checkpoint: a file, a folder or a Hub id.
        deltas: deltas, or fine-tunes whose delta is then taken, with or without a scale of their
            own (`ca.delta:scale=0.5`). Tasks are called as their files.
        output: the file, `x.delta`.
        threshold: an element is a task's own where |t_i| > threshold * |sum_j t_j - t_i|, t_i being
            the scaled delta; 0.2 to 0.6 in the paper.
        scale: coefficient of each delta, 1 by default.
        coef: rules of factors that it is multiplied by, as in `merge`.
        allow_other_base: take deltas of another checkpoint.
        strip_prefix: prefix to ignore before the tensor names of a fine-tune, such as `module.`.
        force: replace an output that exists.
        threads: blocks in flight; one per core by default. The result does not depend on it.
        command: the line for the file's history; this call by default.
        progress: called with the bytes of the sum just written and the bytes in all.

    Raises:
        LorsmergeError: see the subclasses; nothing is written then.

    Example:
        >>> report = tall_masks("base", ["ca.delta", "de.delta"], "tall.delta", threshold=0.4)
        >>> report.tasks, all(0 < share < 1 for share in report.kept)
        (('ca', 'de'), True)
    """
    recipe = wanted_recipe(base, deltas, scale=scale, coef=coef)
    paths = [entry.path for entry in recipe.deltas]
    line = command or recorded_call(
        "tall_masks", base, paths, output, threshold=threshold, scale=scale, coef=tuple(recipe.coef)
    )
    plan = plan_masks(
        recipe, threshold, Path(output), command=line, threads=threads, force=force,
        allow_other_base=allow_other_base, strip_prefix=strip_prefix,
    )  # fmt: skip
    report = run_masks(plan, progress)
    return replace(report, warnings=(*plan.warnings, *report.warnings))


def plan_masks(
    recipe: Recipe,
    threshold: float,
    output: Path | None,
    *,
    command: str,
    threads: int | None = None,
    force: bool = False,
    allow_other_base: bool = False,
    strip_prefix: str = "",
) -> MasksPlan:
    """Check everything that headers and the file system tell, and plan a file of TALL masks.

    Raises:
        LorsmergeError: all faults, at once.
    """
    resolved, names, output = _checked(recipe, threshold, output)
    faults: list[LorsmergeError] = []
    found = check_inputs(resolved, allow_other_base, faults, strip_prefix)
    specs = {
        name: TensorSpec(spec.shape, _wide(name, spec, found.vectors))
        for name, spec in found.base.float_specs.items()
    }
    size = sum(spec.nbytes for spec in (*specs.values(), *mask_specs(specs, len(names)).values()))
    faults += check_output(output, inputs=found.files, size=size, force=force)
    raise_all(faults)
    if takes_norms(resolved.coef):
        resolved = resolved.weighed(list(map(vector_norm, found.vectors)))
    inputs = [found.base.path, *(vector.path for vector in found.vectors)]
    return MasksPlan(
        **vars(found) | {"warnings": (*found.warnings, *leftovers(output))},
        recipe=resolved, threshold=threshold, tasks=names, output=output, specs=specs,
        threads=threads or default_threads(), allow_other_base=allow_other_base, force=force,
        command=with_commits(command, inputs),
    )  # fmt: skip


def _checked(
    recipe: Recipe, threshold: float, output: Path | None
) -> tuple[Recipe, tuple[str, ...], Path]:
    """Return the resolved recipe of a sum, the names of its tasks, and the output.

    Raises:
        UsageFault: a threshold, an output, a name or a ratio that is none.
    """
    faults: list[LorsmergeError] = []
    if not 0 <= threshold < math.inf:
        what = f"--masks {threshold:g} is not a threshold of at least 0."
        faults.append(UsageFault(what, "Give 0.4, say; the paper chose from 0.2 to 0.6."))
    target = Path() if output is None else output
    if target.suffix != DELTA:
        shown = "There is no -o" if output is None else f"{output} does not end in {DELTA}"
        example = command("-o", target.with_suffix(DELTA) if target.name else f"tall{DELTA}")
        what = f"{shown}, and --masks writes one file that is no model."
        faults.append(UsageFault(what, f"Write {example}."))
    recipe = replace(recipe, scale=SCALE if recipe.scale is None else recipe.scale).resolved()
    if recipe.chosen_method.pruner is not None:
        faults.append(
            UsageFault(
                "--masks takes deltas as they are, and a ratio is given.",
                "Prune them before, with `lorsmerge prune`.",
            )
        )
    names: list[str] = []
    for entry in recipe.deltas:
        name = entry.for_task or short_name(entry.path)
        try:
            check_task_name(name)
        except ValueError as error:
            faults.append(UsageFault(f"{entry.path}: {error}.", "Rename the file."))
        if name in names:
            other = recipe.deltas[names.index(name)].label
            what = f"{other} and {entry.label} would both be called {name!r} by --for."
            faults.append(UsageFault(what, "Copy or link one of them under another name."))
        names.append(name)
    raise_all(faults)
    return recipe, tuple(names), target


def _wide(name: str, spec: TensorSpec, vectors: Sequence[TaskVector]) -> torch.dtype:
    """Return the dtype of a tensor's sum: float32, or float64 where an input has it."""
    dtypes = [spec.dtype, *(vector.specs.get(name, spec).dtype for vector in vectors)]
    return torch.float64 if torch.float64 in dtypes else torch.float32


def run_masks(
    plan: MasksPlan, progress: Callable[[int, int], None] = lambda done, total: None
) -> MasksReport:
    """Write a file of TALL masks as planned.

    Args:
        plan: checked.
        progress: called with the bytes of the sum just written and the bytes in all.

    Raises:
        NonFinite: a NaN or an infinity in an input, or an overflow of the sum.
        Mismatch: a delta that is zero throughout, or one of another base.
        LorsmergeError: a mask that keeps nothing.
        OutputFault: the disk filled up.
    """
    counts = [0] * len(plan.tasks)
    with (
        atomic_file(plan.output, force=plan.force) as partial,
        TallWriter(partial, plan.specs, _origin(plan)) as writer,
    ):
        run = _Run(plan, writer)
        for unit, kept in run_parallel(run.write_unit, plan.units(), plan.threads):
            counts = [before + more for before, more in zip(counts, kept, strict=True)]
            progress(unit.nbytes, plan.sum_nbytes)
        run.check(counts)
        check_unchanged(plan.identities)
        writer.finish(_origin(plan, run.contents()))
    elements = sum(spec.numel for spec in plan.specs.values())
    return MasksReport(
        plan.output, plan.tasks, tuple(count / elements for count in counts), run.norms(),
        math.fsum(run.squares) ** 0.5, plan.nbytes, tuple(run.warnings()),
    )  # fmt: skip


def _origin(plan: MasksPlan, contents: Sequence[str] = ()) -> TallOrigin:
    """Return what a file says of itself.

    Args:
        plan: of the file.
        contents: hashes of the base's float tensors and of each delta; by default placeholders.
    """
    contents = contents or [UNHASHED] * (1 + len(plan.vectors))
    base_name = pinned(plan.base.path) or plan.base.path.name or str(plan.base.path)
    base = replace(plan.identity, content=contents[0])
    coarsest = min(
        (vector.finetuned_dtype for vector in plan.vectors), key=lambda code: DTYPES[code].itemsize
    )
    return TallOrigin(
        Provenance(base_name, base, coarsest, history=(plan.command,)),
        plan.threshold,
        plan.recipe.coef,
        tuple(
            TallTask(
                name, SCALE if entry.scale is None else entry.scale, identity, content,
                _provenance(vector, base_name, base),
            )
            for name, entry, identity, content, vector in zip(
                plan.tasks, plan.recipe.deltas, plan.vector_identities, contents[1:], plan.vectors,
                strict=True,
            )
        ),
    )  # fmt: skip


def _provenance(vector: TaskVector, base_name: str, base: Fingerprint) -> Provenance:
    """Return what is known of a delta, or of a fine-tune in its place."""
    if isinstance(vector, StoredVector):
        return vector.provenance
    training = {}
    if isinstance(vector, FinetunedTaskVector):
        training = training_of(vector.finetuned.folder)
        try:
            check_training(training)
        except ValueError:
            training = {}
    return Provenance(base_name, base, vector.finetuned_dtype, training=training)


class _Run:
    """The state that the worker threads share.

    Attributes:
        squares: energy of each unit's sum.
    """

    def __init__(self, plan: MasksPlan, writer: TallWriter) -> None:
        self.plan, self._writer = plan, writer
        self.squares: list[float] = []
        self._energies: list[list[float]] = [[] for _ in plan.vectors]
        # of what each mask takes from the sum, and of the delta times its coefficient
        self._steps: list[list[tuple[float, float]]] = [[] for _ in plan.vectors]
        self._base_content = ContentHash(plan.base.float_specs)
        self._contents = [ContentHash(vector.stored) for vector in plan.vectors]
        self._roundings: list[list[BaseRounding]] = [[] for _ in plan.vectors]
        self._other_bases: list[str] = []

    def write_unit(self, unit: Unit) -> list[int]:
        """Write the sum and the masks of a unit; return how many elements each mask keeps."""
        deltas = self._deltas(unit)
        agreement = self.plan.factors.agreement
        if agreement is not None:
            factor = agreement(deltas)
            deltas = [(delta, scale * factor) for delta, scale in deltas]
        total = scaled_sum(deltas)
        dtype = self.plan.specs[unit.name].dtype
        rounded = total.to(dtype)
        if not is_finite(rounded):
            what = f"{unit.name!r} overflows {dtype_name(dtype)} in the sum."
            raise NonFinite(what, "Lower --scale.")
        masks = list(each_mask(deltas, total, self.plan.threshold))
        self._writer.write(unit.name, rounded, masks, unit.start)
        self.squares.append(energy(rounded))  # list.append is atomic
        for steps, mask, (delta, scale) in zip(self._steps, masks, deltas, strict=True):
            steps.append((energy(rounded[mask]), energy(delta) * scale**2))
        return [int(torch.count_nonzero(mask)) for mask in masks]

    def _deltas(self, unit: Unit) -> list[tuple[Tensor, float]]:
        base = self.plan.base.read(unit.name).reshape(-1)[unit.start : unit.stop]
        self._base_content.add(unit.name, base, unit.start)
        factor = self.plan.factors.of(unit.name)
        deltas = []
        for number, (vector, entry) in enumerate(
            zip(self.plan.vectors, self.plan.recipe.deltas, strict=True)
        ):
            for part, start, values in vector.stored_parts(unit.name, unit.start, unit.stop):
                self._contents[number].add(part, values, start)
            if unit.whole:
                delta = dense(vector.read(unit.name)).reshape(-1)
            else:
                delta = vector.read_block(unit.name, unit.start, unit.stop)
            for path, values in ((self.plan.base.path, base), (vector.path, delta)):
                if not is_finite(values):  # of which a fine-tune's delta inherits the base's
                    raise non_finite(path, unit.name)
            self._energies[number].append(energy(delta))
            if isinstance(vector, FinetunedTaskVector):
                self._roundings[number].append(vector.base_rounding(unit.name, base, delta))
            deltas.append((delta, (SCALE if entry.scale is None else entry.scale) * factor))
        return deltas

    def norms(self) -> tuple[float, ...]:
        """Return the norm of each delta; complete when all have been read."""
        return tuple(
            vector.norm if isinstance(vector, DeltaFile) else math.fsum(energies) ** 0.5
            for vector, energies in zip(self.plan.vectors, self._energies, strict=True)
        )

    def contents(self) -> list[str]:
        """Return hashes of the base's float tensors and of each delta, once all have been read."""
        return [content.hexdigest() for content in (self._base_content, *self._contents)]

    def check(self, counts: Sequence[int]) -> None:
        """Check what is known once all has been read.

        Args:
            counts: elements that each mask keeps.

        Raises:
            Mismatch: a delta of zeros, or one of another base.
            LorsmergeError: a mask that keeps nothing.
        """
        faults: list[LorsmergeError] = []
        content = self._base_content.hexdigest()
        for vector, norm, count, task in zip(
            self.plan.vectors, self.norms(), counts, self.plan.tasks, strict=True
        ):
            fault = check_base_content(vector, self.plan.base, self.plan.identity, content)
            if fault is not None and self.plan.allow_other_base:
                self._other_bases.append(fault.what)
            elif fault is not None:
                faults.append(fault)
            if not norm:
                faults.append(zero_delta(vector.path))
            elif not count:
                what = f"{vector.path}: the mask of {task!r} keeps nothing at a threshold of {self.plan.threshold:g}."
                faults.append(
                    LorsmergeError(what, "Give a lower --masks, or this delta a larger scale.")
                )
        raise_all(faults)

    def warnings(self) -> Iterator[str]:
        """Yield what became known of the inputs while they were read."""
        yield from self._other_bases
        for task, steps in zip(self.plan.tasks, self._steps, strict=True):
            step, own = (math.fsum(column) ** 0.5 for column in zip(*steps, strict=True))
            if step > LONG_STEP * own:
                yield (
                    f"{task}: with its mask the step from the base is {step / own:.1f} times as long as "
                    "its own delta's, and much of it is the other deltas'. A higher --masks keeps "
                    "less of them, and `merge --for` takes a --scale below 1."
                )
        for vector, roundings in zip(self.plan.vectors, self._roundings, strict=True):
            yield from rounded_base(vector, self.plan.base, sum(roundings, BaseRounding()))
