"""Prune: make a dense delta small, and measure the share of its energy that is kept."""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import torch

from lorsmerge_cli.checkpoint.names import (
    idle_patterns,
    nothing_to_prune,
    pruned_share,
    select_pruned,
    share_warning,
    tensor_type,
)
from lorsmerge_cli.checkpoint.references import with_commits
from lorsmerge_cli.checkpoint.safetensors_file import dtype_name, parse_dtype
from lorsmerge_cli.core.device import resolve_device
from lorsmerge_cli.core.low_rank_sparse import Delta, dense
from lorsmerge_cli.core.merging import is_finite
from lorsmerge_cli.core.methods import find_method
from lorsmerge_cli.core.parallel import default_threads, run_parallel
from lorsmerge_cli.core.pruning import prune as prune_tensor
from lorsmerge_cli.core.pruning.budget import Budget, budget
from lorsmerge_cli.core.statistics import energy
from lorsmerge_cli.deltas.encodings import TensorLayout, stored_size
from lorsmerge_cli.deltas.file import DeltaFile, DeltaWriter, total_norm
from lorsmerge_cli.errors import LorsmergeError, NonFinite, named, non_finite, raise_all, zero_delta
from lorsmerge_cli.inputs import FilePath, several
from lorsmerge_cli.operations.prune.lora import check_low_rank
from lorsmerge_cli.outputs import atomic_file, check_output, check_unchanged, leftovers
from lorsmerge_cli.recipe.published import recorded_call
from lorsmerge_cli.recipe.recipe import pruning_method
from lorsmerge_cli.recipe.record import pruning_text

ROUNDING_WARNING = 0.01  # of the pruned delta's norm
ROUNDING_LIMIT = 0.1


@dataclass(frozen=True)
class PruningStats:
    """What pruning kept of a group of tensors.

    Attributes:
        tensors: number of tensors.
        entries: number of elements of all of them.
        energy: squared L2 norm before pruning.
        kept: squared L2 norm after pruning.
        stored: squared L2 norm of the stored numbers, which are rounded to their dtype.
        rounding: squared L2 norm of that rounding's error.
        nbytes: stored size after pruning.
    """

    tensors: int = 0
    entries: int = 0
    energy: float = 0.0
    kept: float = 0.0
    stored: float = 0.0
    rounding: float = 0.0
    nbytes: int = 0

    def __add__(self, other: PruningStats) -> PruningStats:
        return PruningStats(*map(operator.add, astuple(self), astuple(other)))

    @property
    def share(self) -> float:
        """Share of the energy that pruning keeps, ||f(tau)||^2 / ||tau||^2."""
        return self.kept / self.energy if self.energy else 1.0

    @property
    def rounding_error(self) -> float:
        """Error of rounding to the stored dtype, ||round(f(tau)) - f(tau)|| / ||f(tau)||."""
        return (self.rounding / self.kept) ** 0.5 if self.kept else 0.0


@dataclass(frozen=True)
class PruneReport:
    """What was written.

    Attributes:
        output: the pruned delta.
        method: as `find_method` reads it.
        kinds: tensor type -> what was kept of the pruned tensors of that type.
        pruned: all pruned tensors together.
        unpruned: all others.
        share: share of the parameters that is pruned.
        warnings: what the user should know.
    """

    output: Path
    method: str
    kinds: Mapping[str, PruningStats]
    pruned: PruningStats
    unpruned: PruningStats
    share: float
    warnings: tuple[str, ...]


def prune(
    source: FilePath,
    output: FilePath,
    *,
    svp: float | None = None,
    mp: float | None = None,
    method: str | None = None,
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    dtype: str | None = None,
    as_lora: bool = False,
    device: str = "auto",
    force: bool = False,
    threads: int | None = None,
    command: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PruneReport:
    """Write a pruned delta: of each matrix a low-rank part, a sparse part or both.

    Args:
        source: a delta: a file, or a Hub id.
        output: the pruned delta file.
        svp: share of the singular values to keep, 0 to 1; no low-rank part by default.
        mp: share of the elements to keep, 0 to 1; no sparse part by default.
        method: `svp`, `mp` or `lors`; follows from the ratios by default.
        include: shell patterns of further tensors to prune.
        exclude: shell patterns of tensors not to prune.
        dtype: of the stored numbers, whose rounding may change at most 10% of the pruned delta; the
            delta's own by default.
        as_lora: refuse an output without a low-rank part, from which `write_lora` makes an adapter.
        device: where matrices are pruned: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        force: replace an existing output.
        threads: tensors in flight; one per core by default.
        command: the line for the file's history; this call by default.
        progress: called with the bytes just pruned and the bytes in all.

    Raises:
        LorsmergeError: see the subclasses; nothing is written then.

    Example:
        >>> report = prune("ca.delta", "ca.lors.delta", svp=0.05, mp=0.4)
        >>> report.method, 0 < report.pruned.share < 1  # share of the energy that is kept
        ('lors', True)
    """
    source, output = Path(source), Path(output)
    include, exclude = several(include), several(exclude)
    command = command or recorded_call(
        "prune", source, output, svp=svp, mp=mp, method=method, include=include, exclude=exclude,
        dtype=dtype,
    )  # fmt: skip
    method = pruning_method(source, svp, mp, method)
    target = resolve_device(device)
    stored = parse_dtype(dtype) if dtype else None
    file = DeltaFile(source)
    chosen = select_pruned(file.specs, include, exclude)
    if not chosen:
        raise nothing_to_prune(source, exclude)
    run = _Run(file, method, svp, mp, chosen, stored, target)
    if as_lora:
        check_low_rank(output, run.layouts)
    raise_all(check_output(output, inputs=[file.local], size=run.size, force=force))
    ratios = {key: value for key, value in (("svp", svp), ("mp", mp)) if value is not None}
    old, made_by = file.provenance, with_commits(command, [source])
    provenance = replace(old, pruning={"method": method, **ratios}, history=(*old.history, made_by))
    warnings = leftovers(output) + idle_patterns(file.specs, include, exclude)
    if old.pruning:
        warnings.append(
            f"{source} was pruned before ({pruning_text(old.pruning)}); this pruned it again."
        )
    with (
        atomic_file(output, force=force) as partial,
        DeltaWriter(partial, run.layouts, provenance) as writer,
    ):
        kept = run.write(writer, threads or default_threads(), progress)
        warnings += run.check_rounding(kept)
        pruned, unpruned, kinds = _totals(kept, chosen)
        check_unchanged(file.identities)
        pruning = {**provenance.pruning, "energy_kept": pruned.share}
        norms = {name: item.stored**0.5 for name, item in kept.items()}
        writer.finish(norms, replace(provenance, pruning=pruning))
    warnings += share_warning(file.specs, chosen)
    share = pruned_share(file.specs, chosen)
    return PruneReport(output, method, kinds, pruned, unpruned, share, tuple(warnings))


def _totals(
    kept: Mapping[str, PruningStats], chosen: frozenset[str]
) -> tuple[PruningStats, PruningStats, dict[str, PruningStats]]:
    """Sum up what pruning did to the pruned tensors, to the others, and by tensor type."""
    pruned, unpruned = PruningStats(), PruningStats()
    kinds: dict[str, PruningStats] = defaultdict(PruningStats)
    for name, item in kept.items():
        if name in chosen:
            pruned += item
            kinds[tensor_type(name)] += item
        else:
            unpruned += item
    return pruned, unpruned, dict(kinds)


class _Run:
    """A checked pruning: the layout of each pruned tensor, and the work of the threads."""

    def __init__(
        self,
        file: DeltaFile,
        method: str,
        svp: float | None,
        mp: float | None,
        chosen: frozenset[str],
        stored: torch.dtype | None,
        device: torch.device,
    ) -> None:
        self.file = file
        self.pruner = find_method(method).pruner or ""
        self.device = device
        self.budgets = {
            name: budget(file.layouts[name].shape, svp, mp)
            for name in chosen
            if not file.layouts[name].is_zero
        }
        self.layouts = {
            name: _pruned_layout(layout, self.budgets[name], stored or layout.dtype)
            if name in self.budgets
            else replace(layout, dtype=stored or layout.dtype)
            for name, layout in file.layouts.items()
        }
        self.nbytes = {name: stored_size(name, item) for name, item in self.layouts.items()}

    @property
    def size(self) -> int:
        """Bytes of the output's tensors."""
        return sum(self.nbytes.values())

    def write(
        self, writer: DeltaWriter, threads: int, progress: Callable[[int, int], None]
    ) -> dict[str, PruningStats]:
        """Prune the chosen tensors and write all; return what was kept of each."""
        total = sum(spec.nbytes for spec in self.file.specs.values())
        kept: dict[str, PruningStats] = {}
        for name, item in run_parallel(
            lambda name: self._write_tensor(writer, name), self.file.specs, threads
        ):
            kept[name] = item
            progress(self.file.specs[name].nbytes, total)
        if total_norm(self.file.norms) == 0:
            raise zero_delta(self.file.path)
        return {name: kept[name] for name in self.layouts}  # in an order independent of threads

    def _write_tensor(self, writer: DeltaWriter, name: str) -> PruningStats:
        before, numel = self.file.norms[name] ** 2, self.file.specs[name].numel
        if self.layouts[name].is_zero:  # the header describes it completely
            return PruningStats(1, numel, before)
        delta: Delta = self.file.read(name)
        if name in self.budgets:
            matrix = dense(delta.to(self.device))
            if not is_finite(matrix):
                raise non_finite(self.file.path, name)
            pruned = prune_tensor(matrix, self.pruner, self.budgets[name])
            delta = pruned.to(torch.device("cpu"))
        rounded = delta.to(self.layouts[name].dtype)
        numbers = dense(rounded)
        stored = kept = energy(numbers)
        rounding = 0.0
        if not math.isfinite(stored):
            raise self._non_finite(name)
        writer.write(name, rounded)
        if self._rounds(name):
            exact = dense(delta)
            kept, rounding = energy(exact), energy(numbers - exact)
        return PruningStats(1, numel, before, kept, stored, rounding, self.nbytes[name])

    def _rounds(self, name: str) -> bool:
        """Tell whether a tensor is stored in another dtype than it was computed in."""
        dtype = self.file.layouts[name].dtype
        if name in self.budgets and dtype != torch.float64:
            dtype = torch.float32
        return self.layouts[name].dtype != dtype

    def check_rounding(self, kept: Mapping[str, PruningStats]) -> list[str]:
        """Return warnings if rounding to the stored dtype changed the pruned delta.

        Raises:
            LorsmergeError: the rounding error exceeds a tenth of the norm.
        """
        error = sum(kept.values(), PruningStats()).rounding_error
        rounded = [name for name in kept if self._rounds(name)]
        if not rounded:
            return []
        dtype = self.layouts[rounded[0]].dtype
        what = f"{self.file.path}: rounding to {dtype_name(dtype)} changes {error:.1%} of the pruned delta"
        if error >= ROUNDING_LIMIT:
            raise LorsmergeError(f"{what}, whose values are too small for it.", _wider(dtype))
        warnings = [f"{what}. {_wider(dtype)}"] if error >= ROUNDING_WARNING else []
        bad = [name for name in rounded if kept[name].rounding_error >= ROUNDING_LIMIT]
        if bad:
            warnings.append(
                f"{self.file.path}: rounding to {dtype_name(dtype)} changes {len(bad)} tensors of "
                f"small values by {ROUNDING_LIMIT:.0%} or more: {named(bad)}. {_wider(dtype)}"
            )
        return warnings

    def _non_finite(self, name: str) -> NonFinite:
        if not is_finite(dense(self.file.read(name))):
            return non_finite(self.file.path, name)
        return NonFinite(
            f"{self.file.path}: {name!r} overflows {dtype_name(self.layouts[name].dtype)}.",
            _wider(self.layouts[name].dtype),
        )


def _wider(dtype: torch.dtype) -> str:
    """Return the remedy for a delta that does not fit a dtype."""
    if dtype == torch.float16:
        return "Store it with --dtype bfloat16, which has the range of float32, or with --dtype float32."
    if dtype == torch.bfloat16:
        return "Store it with --dtype float32."
    return "Leave --dtype out, to store it in float64."


def _pruned_layout(source: TensorLayout, keep: Budget, dtype: torch.dtype) -> TensorLayout:
    if keep.whole or len(source.shape) == 3:  # the lors encoding has no stacks of factors
        return TensorLayout("dense", source.shape, dtype)
    return TensorLayout("lors", source.shape, dtype, keep.rank, keep.kept)
