"""TALL masks: where a delta counts beside the others of a sum (Wang et al. 2024, arXiv:2405.07813)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Scaled = Sequence[tuple[Tensor, float]]  # deltas of one tensor, each with its coefficient


def scaled_sum(deltas: Scaled) -> Tensor:
    """Return sum_i t_i in float64, t_i being the scaled delta.

    In float64, so that rounding, which differs with the order and the size of coefficients, does not
    decide what a mask keeps.

    Args:
        deltas: pairs of a delta (float32 or float64, one shape for all, finite) and its
            coefficient; at least one.

    Example:
        >>> scaled_sum([(torch.tensor([3.0, 1.0]), 1.0), (torch.tensor([2.0, -9.0]), 0.5)])
        tensor([ 4.0000, -3.5000], dtype=torch.float64)
    """
    total = torch.zeros_like(deltas[0][0], dtype=torch.float64)
    for delta, scale in deltas:
        total.add_(delta.double(), alpha=scale)
    return total


def each_mask(deltas: Scaled, total: Tensor, threshold: float) -> Iterator[Tensor]:
    """Yield the mask of each delta: |t_i| > threshold * |total - t_i|.

    Args:
        deltas: as in `scaled_sum`.
        total: their sum, by `scaled_sum`.
        threshold: 0 or above; the larger, the fewer elements are kept. At 0 a mask keeps all
            elements of its delta that are not zero.

    Returns:
        Booleans of the deltas' shape.

    Example:
        >>> deltas = [(torch.tensor([3.0, 1.0, 0.0]), 1.0), (torch.tensor([2.0, -9.0, 5.0]), 1.0)]
        >>> for mask in each_mask(deltas, scaled_sum(deltas), 0.4):
        ...     print(mask)
        tensor([ True, False, False])
        tensor([True, True, True])
    """
    for delta, scale in deltas:
        scaled = delta.double() * scale
        yield scaled.abs() > (total - scaled).abs_().mul_(threshold)
