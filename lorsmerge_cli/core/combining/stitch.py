"""Stitching: the mean of the deltas that are not zero, element by element (He et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from lorsmerge_cli.core.combining.sum import sum_


def stitch(deltas: Iterable[tuple[Tensor, float]]) -> Tensor:
    """Return the sum of scaled deltas over the number of deltas that are not 0 (arXiv:2408.13656).

    Where one delta alone is not 0 it is taken whole, and where several overlap their mean. It is the
    deltas that are counted, not what their coefficients leave of them: one with a coefficient of 0
    still counts.

    Args:
        deltas: pairs of a delta (float32 or float64, one shape for all) and its coefficient.

    Raises:
        ValueError: there are no deltas.

    Example:
        >>> a, b = torch.tensor([3.0, 1.0, 0.0]), torch.tensor([0.0, -4.0, 0.0])
        >>> stitch([(a, 1.0), (b, 1.0)])
        tensor([ 3.0000, -1.5000,  0.0000])
    """
    counts: list[Tensor] = []  # one running sum

    def counted() -> Iterator[tuple[Tensor, float]]:
        for delta, scale in deltas:
            there = (delta != 0).to(torch.int16)
            if counts:
                counts[0] += there
            else:
                counts.append(there)
            yield delta, scale
            del delta, there  # before the next one is made

    total = sum_(counted())
    return total.div_(counts[0].clamp_(min=1))
