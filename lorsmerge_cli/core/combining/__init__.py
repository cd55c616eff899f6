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

Combine = Callable[[Iterable[tuple[Tensor, float]]], Tensor]


@dataclass(frozen=True)
class Combiner:
    """A way to combine deltas, and what its callers need to know of it.

    Attributes:
        function: maps pairs of a delta and its coefficient to the update, float32 or float64, of
            the deltas' shape. Pairs are made one by one as it iterates.
        needs_all: whether it holds all deltas of a whole tensor at once. Others keep one running
            sum, and take a tensor in blocks.
        linear: whether the update is a linear function of the deltas, so that a coefficient common
            to all may be applied after combining.
        averages: whether the update has the size of one delta, not of their sum.
        copies: tensors in float32 that decompositions hold at most, beside the deltas.
        rest: what combines tensors that are not matrices; None if `function` takes any tensor.

    Example:
        >>> COMBINERS["sum"].combine([(torch.ones(2), 0.5), (torch.ones(2), 0.25)])
        tensor([0.7500, 0.7500])
    """

    function: Combine
    needs_all: bool = False
    linear: bool = True
    averages: bool = False
    copies: int = 0
    rest: Combine | None = None

    def combine(self, deltas: Iterable[tuple[Tensor, float]]) -> Tensor:
        """Return the update of one tensor.

        Args:
            deltas: pairs of a delta (float32 or float64, one shape for all) and its coefficient.

        Raises:
            ValueError: there are no deltas.

        Example:
            >>> COMBINERS["iso_c"].combine([(torch.tensor([2.0, 4.0]), 1.0)] * 2)  # no matrix
            tensor([2., 4.])
        """
        if self.rest is None:
            return self.function(deltas)
        pairs = list(deltas)
        is_matrix = bool(pairs) and pairs[0][0].dim() == 2 and pairs[0][0].numel() > 0
        # handed over one by one, so that the function can free them
        return (self.function if is_matrix else self.rest)(pairs.pop(0) for _ in range(len(pairs)))


COMBINERS = {
    "sum": Combiner(sum_),
    "mean": Combiner(mean, averages=True),
    "ties": Combiner(ties, needs_all=True, linear=False, averages=True),
    "iso_c": Combiner(iso_c, needs_all=True, linear=False, copies=6, rest=mean),
    "tsv_m": Combiner(tsv_m, needs_all=True, linear=False, copies=6, rest=mean),
    "model_stock": Combiner(model_stock, needs_all=True, linear=False, averages=True),
}
