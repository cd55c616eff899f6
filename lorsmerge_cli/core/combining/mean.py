"""The mean of scaled deltas: with all scales 1, the average of the fine-tunes (WA)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from lorsmerge_cli.core.combining.sum import sum_


def mean(deltas: Iterable[tuple[Tensor, float]]) -> Tensor:
    """Return (1/n) sum_i lambda_i * delta_i, as one running sum.

    Args:
        deltas: pairs of a delta (float32 or float64, one shape for all) and its coefficient.

    Raises:
        ValueError: there are no deltas.

    Example:
        >>> mean([(torch.tensor([1.0, 2.0]), 1.0), (torch.tensor([3.0, 0.0]), 1.0)])
        tensor([2., 1.])
    """
    count = 0

    def counted() -> Iterator[tuple[Tensor, float]]:
        nonlocal count
        for pair in deltas:
            count += 1
            yield pair
            del pair  # before the next one is made

    return sum_(counted()).div_(count)
