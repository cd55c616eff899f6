"""Consensus TA: the sum of deltas where at least two of them count (Wang et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lorsmerge_cli.core.tall import each_mask, scaled_sum

NEEDED = 2  # deltas that an element has to matter to


def consensus(deltas: Iterable[tuple[Tensor, float]], threshold: float = 0.4) -> Tensor:
    """Return the elements of the sum that matter to two deltas or more (arXiv:2405.07813).

    An element matters to delta i where |t_i| > threshold * |sum_j t_j - t_i| (its TALL mask), t_i
    being the scaled delta. All others are 0: they are one delta's own, or none's. Of a single delta
    all is kept.

    Args:
        deltas: pairs of a delta (float32 or float64, one shape for all, finite) and its
            coefficient.
        threshold: 0 or above; the larger, the fewer elements are kept.

    Raises:
        ValueError: there are no deltas.

    Example:
        >>> a, b = torch.tensor([3.0, 1.0, 0.0]), torch.tensor([2.0, -9.0, 5.0])
        >>> consensus([(a, 1.0), (b, 1.0)])
        tensor([5., 0., 0.])
    """
    pairs = list(deltas)
    if not pairs:
        raise ValueError("no deltas to combine")
    total = scaled_sum(pairs)
    count = torch.zeros_like(total, dtype=torch.int16)
    for mask in each_mask(pairs, total, threshold):
        count += mask
    dtype = max((delta.dtype for delta, _ in pairs), key=lambda dtype: dtype.itemsize)
    return total.mul_(count >= min(NEEDED, len(pairs))).add_(0.0).to(dtype)
