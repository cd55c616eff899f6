"""Eq. 8 for one tensor: prune each delta, combine, scale, add to the base, round once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorsmerge_cli.core.combining.mean import mean
from lorsmerge_cli.core.low_rank_sparse import Delta, LowRankSparse, accumulable, dense, weighted
from lorsmerge_cli.core.methods import Method
from lorsmerge_cli.core.pruning.budget import Budget
from lorsmerge_cli.core.statistics import energy

if TYPE_CHECKING:
    from lorsmerge_cli.core.coefficients import Agreement


@dataclass
class Term:
    """One delta's part in the merge of a tensor.

    Attributes:
        delta: tau_i, of the base's shape, float32 or float64; finite if it is pruned. Low-rank and
            sparse parts, of any float dtype, where the method `takes_factors`.
        scale: lambda_i.
        budget: what the method's pruner keeps of it, None for all.
        on_pruned: called with the delta after pruning, if it is pruned.
        parts: coefficients of the low-rank and of the sparse part that pruning leaves, in place of
            `scale`; None where that is of both.
    """

    delta: Delta
    scale: float
    budget: Budget | None = None
    on_pruned: Callable[[Delta], None] | None = None
    parts: tuple[float, float] | None = None


@dataclass(frozen=True)
class Rounding:
    """What rounding to the output's dtype did to an update.

    Attributes:
        updated: elements with an update that is not zero.
        lost: those of them that equal the base after rounding.
    """

    updated: int = 0
    lost: int = 0

    def __add__(self, other: Rounding) -> Rounding:
        return Rounding(self.updated + other.updated, self.lost + other.lost)


@dataclass(frozen=True)
class Merged:
    """A merged tensor.

    Attributes:
        tensor: of the base's shape, on the CPU.
        update: what was added to the base, float32 or float64.
        rounding: what rounding did to the update.
    """

    tensor: Tensor
    update: Tensor
    rounding: Rounding


def merge_tensor(
    base: Tensor,
    terms: Iterable[Term],
    method: Method,
    dtype: torch.dtype,
    agreement: Agreement | None = None,
    statistics: Sequence[Callable[[], Tensor]] = (),
) -> Merged:
    """Return theta_0 + combine_i(lambda_i * f(tau_i)) of one tensor, rounded once (Eq. 8).

    Args:
        base: theta_0, any shape and float dtype, on the CPU.
        terms: the deltas, all on one device; taken one by one, so that a combiner that keeps a
            running sum holds one of them at a time.
        method: its pruner is f, its combiner sums or averages.
        dtype: of the result.
        agreement: maps all pruned deltas and their lambdas to a factor of those lambdas; all deltas
            are then held at once.
        statistics: as in `Combiner.combine`.

    Raises:
        ValueError: there are no terms.

    Example:
        >>> from lorsmerge_cli.core.methods import METHODS
        >>> base, deltas = torch.zeros(2), [torch.ones(2), torch.tensor([1.0, -3.0])]
        >>> terms = [Term(delta, scale=0.5) for delta in deltas]
        >>> merge_tensor(base, terms, METHODS["ta"], torch.float32).tensor
        tensor([ 1., -1.])
    """
    pairs = _pruned(terms, method)
    if agreement is not None:
        pairs = _agreed([(dense(delta), scale) for delta, scale in pairs], agreement)
    update = method.combine(pairs, statistics).cpu()
    tensor, rounding = add_to_base(base, update, dtype)
    return Merged(tensor, update, rounding)


def _pruned(terms: Iterable[Term], method: Method) -> Iterator[tuple[Delta, float]]:
    center = None
    if method.centred:
        held = list(terms)
        if any(term.budget is not None for term in held):
            center = mean((dense(term.delta), 1.0) for term in held)
        terms = (held.pop(0) for _ in range(len(held)))
    for term in terms:
        if term.budget is not None and method.pruner is not None:
            _prune(term, term.budget, method, center)
        yield term.delta if method.combined.turns else dense(term.delta), term.scale
        del term  # before the next one is made


def _prune(term: Term, budget: Budget, method: Method, center: Tensor | None) -> None:
    """Prune a term's delta in place; where its parts have coefficients, apply them."""
    pruned = method.prune(term.delta, budget, center)
    term.delta = pruned if method.combined.turns else dense(pruned)
    if term.on_pruned is not None:
        term.on_pruned(term.delta)
    if term.parts is not None and isinstance(pruned, LowRankSparse):
        term.delta, term.scale = weighted(pruned, *term.parts), 1.0


def _agreed(
    pairs: list[tuple[Tensor, float]], agreement: Agreement
) -> Iterator[tuple[Delta, float]]:
    factor = agreement(pairs)
    while pairs:  # handed over one by one, so that a combiner can free them
        delta, scale = pairs.pop(0)
        yield delta, scale * factor
        del delta


def add_to_base(base: Tensor, update: Tensor, dtype: torch.dtype) -> tuple[Tensor, Rounding]:
    """Return base + update, summed in float32 or wider and rounded once to `dtype`.

    Args:
        base: any shape and float dtype.
        update: `base`'s shape, float32 or float64.
        dtype: of the result.

    Example:
        >>> add_to_base(torch.ones(2), torch.tensor([1e-4, 0.5]), torch.bfloat16)
        (tensor([1.0000, 1.5000], dtype=torch.bfloat16), Rounding(updated=2, lost=1))
    """
    merged = torch.add(accumulable(base), update).to(dtype)
    updated = int(torch.count_nonzero(update))
    moved = int(torch.count_nonzero(merged != base.to(dtype)))
    return merged, Rounding(updated, max(0, updated - moved))


def is_finite(tensor: Delta) -> bool:
    """Tell whether no element is NaN or infinite, in one pass without a temporary tensor.

    Example:
        >>> is_finite(torch.tensor([1.0, float("inf")]))
        False
    """
    if isinstance(tensor, LowRankSparse):
        # no element of a product is larger than its norm, which is not finite if a factor is not
        small = tensor.factors is not None and energy(tensor) < torch.finfo(torch.float32).max ** 2
        return small or is_finite(tensor.to_dense())
    if not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))
