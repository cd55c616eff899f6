"""Merge models in memory: dicts of tensors in, a dict of tensors out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorsmerge_cli.checkpoint.reader import TIED
from lorsmerge_cli.checkpoint.safetensors_file import TensorSpec, parse_dtype
from lorsmerge_cli.core.low_rank_sparse import dense
from lorsmerge_cli.core.merging import Term, is_finite, merge_tensor
from lorsmerge_cli.core.parallel import default_threads, run_parallel
from lorsmerge_cli.core.pruning.budget import Budget, budget
from lorsmerge_cli.core.statistics import energy
from lorsmerge_cli.deltas.file import total_norm
from lorsmerge_cli.deltas.task_vector import check_names
from lorsmerge_cli.errors import LorsmergeError, Mismatch, non_finite, raise_all, zero_delta
from lorsmerge_cli.inputs import several
from lorsmerge_cli.operations.merge.faults import check_merged, not_finite
from lorsmerge_cli.operations.merge.inputs import select_factors, select_tensors
from lorsmerge_cli.recipe.coefficients import TensorFactors, takes_norms
from lorsmerge_cli.recipe.recipe import DeltaEntry, Recipe, statistics_refused

BASE = "the base"


def merge_state_dicts(
    base: Mapping[str, Tensor],
    deltas: Sequence[Mapping[str, Tensor]],
    *,
    svp: float | None = None,
    mp: float | None = None,
    scale: float | None = None,
    coef: Sequence[str] | str = (),
    method: str | None = None,
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    dtype: str | None = None,
    threads: int | None = None,
) -> dict[str, Tensor]:
    """Merge deltas into a base in memory, to the last bit as `merge` does it on disk.

    Settings hold for all deltas, and their defaults are those of `merge`.

    Args:
        base: the pretrained model's tensors by name, as of `model.state_dict()`. They are not
            changed.
        deltas: for each fine-tune its tensors less the base's, of the same names and shapes. Those
            of integer tensors are ignored: in the merge these are the base's.
        svp: share of the singular values of each matrix that is kept.
        mp: share of the elements of each matrix that is kept.
        scale: lambda.
        coef: rules of factors that lambda is multiplied by, such as `decoder=0.5`.
        method: as `lorsmerge methods` lists them, with parameters: `ties:k=0.3`, `lors+iso_c`.
        include: shell patterns of further tensors to prune.
        exclude: shell patterns of tensors to merge unpruned.
        dtype: of the merged float tensors; each one's own by default.
        threads: tensors in flight; one per core by default. The result does not depend on it.

    Returns:
        The merged tensors, in the base's order and each on the device of the base's.

    Raises:
        UsageFault: settings that are out of range, contradict one another or have no effect.
        Mismatch: a delta with other tensors than the base, or one that is zero throughout.
        NonFinite: a NaN or an infinity in an input, or an overflow in the merge.

    Example:
        >>> base = {"fc1.weight": torch.zeros(2, 2), "steps": torch.tensor(7)}
        >>> delta = {"fc1.weight": torch.tensor([[8.0, 1.0], [2.0, -4.0]])}
        >>> merge_state_dicts(base, [delta], mp=0.5, scale=0.5)
        {'fc1.weight': tensor([[ 4.,  0.],
                [ 0., -2.]]), 'steps': tensor(7)}
    """
    raise_all(statistics_refused(method))
    names = [f"delta {number}" for number in range(1, len(deltas) + 1)]
    recipe = Recipe(
        BASE, tuple(map(DeltaEntry, names)), method, svp, mp, scale, several(include),
        several(exclude), dtype, several(coef),
    ).resolved()  # fmt: skip
    wanted = parse_dtype(dtype) if dtype else None
    tied = _tied(base)
    specs = {name: _spec(t) for name, t in base.items() if name not in tied}
    floats = {name: spec for name, spec in specs.items() if spec.is_float}
    faults: list[LorsmergeError] = []
    pruned = select_tensors(recipe, floats, BASE, faults)
    factors = select_factors(recipe, floats, BASE, faults, warnings=[])
    for name, delta in zip(names, deltas, strict=True):
        own = {n: _spec(t) for n, t in delta.items() if n in floats or n not in base}
        faults += check_names(floats, own, base=BASE, where=name)
    raise_all(faults)
    if takes_norms(recipe.coef):
        recipe = recipe.weighed([_norm(*pair, floats) for pair in zip(names, deltas, strict=True)])
    run, threads = _Merge(base, deltas, recipe, pruned, factors), threads or default_threads()
    run.allotted = run.method.allot(pruned, run.finite_deltas, len(deltas), threads)
    # one thread per tensor, as on disk: BLAS rounds differently when threads share a product
    merged = dict(run_parallel(lambda name: run.tensor(name, wanted), specs, threads))
    for name, squares in zip(names, run.squares, strict=True):
        if not math.fsum(squares):
            raise zero_delta(name)
    return {name: merged[tied.get(name, name)] for name in base}


@dataclass
class _Merge:
    """A merge of checked inputs.

    Attributes:
        squares: the energy of each delta's tensors.
        allotted: what `Method.allot` returned.
    """

    base: Mapping[str, Tensor]
    deltas: Sequence[Mapping[str, Tensor]]
    recipe: Recipe
    pruned: frozenset[str]
    factors: TensorFactors

    def __post_init__(self) -> None:
        self.method = self.recipe.chosen_method
        self.squares: list[list[float]] = [[] for _ in self.deltas]
        self.allotted: Mapping[tuple[int, str], Budget] = {}

    def tensor(self, name: str, wanted: torch.dtype | None) -> Tensor:
        value = self.base[name].detach()
        if not value.is_floating_point():
            return value.clone()
        dtype = wanted or value.dtype
        terms, agreement = self._terms(name, dtype), self.factors.agreement
        result = merge_tensor(value.cpu(), terms, self.method, dtype, agreement).tensor
        check_merged(name, result, self._inputs(name))
        return result.to(value.device)

    def _terms(self, name: str, dtype: torch.dtype) -> Iterator[Term]:
        for number, entry in enumerate(self.recipe.deltas):
            delta = dense(self.deltas[number][name].detach())
            if not is_finite(delta):  # which pruning would not survive
                raise not_finite(name, dtype, self._inputs(name))
            self.squares[number].append(energy(delta))
            prunes = name in self.pruned and self.method.prunes(entry.svp, entry.mp)
            keep = self.allotted.get((number, name)) or budget(delta.shape, entry.svp, entry.mp)
            scale = self.method.scale if entry.scale is None else entry.scale
            yield Term(delta, scale * self.factors.of(name), keep if prunes else None)

    def finite_deltas(self, name: str) -> Iterator[Tensor]:
        """Yield a tensor of each delta."""
        for delta in self.deltas:
            value = dense(delta[name].detach())
            if not is_finite(value):
                raise not_finite(name, value.dtype, self._inputs(name))
            yield value
            del value  # before the next one is made

    def _inputs(self, name: str) -> Iterator[tuple[object, Tensor]]:
        yield BASE, self.base[name].detach()
        for entry, delta in zip(self.recipe.deltas, self.deltas, strict=True):
            yield entry.path, dense(delta[name].detach())


def _norm(name: str, delta: Mapping[str, Tensor], floats: Mapping[str, TensorSpec]) -> float:
    """Return the L2 norm of a delta, summed up as a delta file's is."""
    norms = {}
    for tensor in floats:
        norms[tensor] = math.sqrt(energy(dense(delta[tensor].detach())))
        if not math.isfinite(norms[tensor]):
            raise non_finite(name, tensor)
    if not any(norms.values()):
        raise zero_delta(name)
    return total_norm(norms)


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tuple(tensor.shape), tensor.dtype)


def _tied(base: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the names of repeated tensors, each with the name of the one that it repeats."""
    tied = {copy: name for copy, name in TIED.items() if copy in base and name in base}
    for copy, name in tied.items():
        if not torch.equal(base[copy], base[name]):
            raise Mismatch(
                f"{BASE}: {copy!r} differs from {name!r}, which Whisper ties to it.",
                "Remove the wrong one of the two.",
            )
    return tied
