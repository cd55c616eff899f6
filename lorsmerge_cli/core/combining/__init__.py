"""Combiners of the deltas of one tensor. A new one is a file here and a line in `COMBINERS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from lorsmerge_cli.core.combining.iso_c import iso_c
from lorsmerge_cli.core.combining.mean import mean
from lorsmerge_cli.core.combining.model_stock import model_stock
from lorsmerge_cli.core.combining.sum import sum_
from lorsmerge_cli.core.combining.ties import ties
from lorsmerge_cli.core.combining.tsv_m import tsv_m


@dataclass(frozen=True)
class Combiner:
    """A way to combine deltas, and what its callers need to know of it.

    Attributes:
        combine: maps pairs of a delta and its coefficient to the update, float32 or float64, of
            the deltas' shape. Pairs are made one by one as it iterates.
        needs_all: whether it holds all deltas of a whole tensor at once. Others keep one running
            sum, and take a tensor in blocks.
        linear: whether the update is a linear function of the deltas, so that a coefficient common
            to all may be applied after combining.
        averages: whether the update has the size of one delta, not of their sum.
        copies: tensors in float32 that decompositions hold at most, beside the deltas.

    Example:
        >>> COMBINERS["sum"].combine([(torch.ones(2), 0.5), (torch.ones(2), 0.25)])
        tensor([0.7500, 0.7500])
    """

    combine: Callable[[Iterable[tuple[Tensor, float]]], Tensor]
    needs_all: bool = False
    linear: bool = True
    averages: bool = False
    copies: int = 0


COMBINERS = {
    "sum": Combiner(sum_),
    "mean": Combiner(mean, averages=True),
    "ties": Combiner(ties, needs_all=True, linear=False, averages=True),
    "iso_c": Combiner(iso_c, needs_all=True, linear=False, copies=6),
    "tsv_m": Combiner(tsv_m, needs_all=True, linear=False, copies=6),
    "model_stock": Combiner(model_stock, needs_all=True, linear=False, averages=True),
}
