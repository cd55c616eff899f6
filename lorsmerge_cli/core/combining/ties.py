"""TIES: trim, elect a sign, and average the elements that have it (Yadav et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lorsmerge_cli.core.pruning.budget import budget
from lorsmerge_cli.core.pruning.mp import largest_entries, mask_

KEPT = 0.2  # share of a tensor's elements that trimming keeps, the authors' choice


def ties(deltas: Iterable[tuple[Tensor, float]], k: float = KEPT) -> Tensor:
    """Return the mean of the trimmed elements whose sign is that of their sum.

    With t_i = lambda_i * top_k(tau_i) and gamma = sgn(sum_i t_i), an element of the update is the
    mean of those t_i that have the sign gamma. Where the t_i cancel out, gamma and the update are
    0. Trimming is by tensor (the authors trim over all tensors of a model together).

    Args:
        deltas: pairs of a delta (float32 or float64, one shape for all, finite) and its
            coefficient.
        k: share of each delta's elements that trimming keeps, at least one element.

    Raises:
        ValueError: there are no deltas.

    Example:
        >>> a, b = torch.tensor([3.0, 1.0, -2.0]), torch.tensor([1.0, -4.0, -4.0])
        >>> ties([(a, 1.0), (b, 1.0)], k=1.0)
        tensor([ 2., -4., -3.])
    """
    trimmed = [_trimmed(delta, k) * scale for delta, scale in deltas]
    if not trimmed:
        raise ValueError("no deltas to combine")
    # In float64, where a sum of float32 is exact: the sign must not depend on the order of deltas.
    total = torch.zeros_like(trimmed[0], dtype=torch.float64)
    for delta in trimmed:
        total += delta
    elected = total.sign_().to(torch.int8)
    update = torch.zeros_like(max(trimmed, key=lambda delta: delta.itemsize))
    count = torch.zeros_like(elected, dtype=torch.int16)
    for delta in trimmed:
        agrees = (delta.sign() == elected) & (elected != 0)
        update += delta * agrees
        count += agrees
    return update.div_(count.clamp_(min=1))


def _trimmed(delta: Tensor, kept: float) -> Tensor:
    count = min(delta.numel(), max(1, budget((1, delta.numel()), None, kept).kept))
    return mask_(delta.clone(), largest_entries(delta, count))
