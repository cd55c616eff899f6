"""Fisher merging: a mean of deltas, each element weighted by how sure its fine-tune is of it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

FISHER = "fisher"  # the statistic that it takes
FLOOR = 1e-6  # of F_i, whose mean over a model is 1


def fisher(terms: Iterable[tuple[Tensor, float, Tensor]]) -> Tensor:
    """Return sum_i (F_i + c) t_i / sum_i (F_i + c), element by element, with a small c.

    t_i is lambda_i * delta_i and F_i the diagonal of the Fisher information of fine-tune i
    (arXiv:2111.09832): the mean square of the gradient of the texts' log-likelihood. Where no
    gradient reaches, the update is the mean of the t_i.

    Args:
        terms: a delta (float32 or float64, finite), its coefficient, and F_i, of its shape and not
            negative, divided by its mean over the model.

    Raises:
        ValueError: there are no deltas.

    Example:
        >>> a, b = torch.tensor([2.0, 2.0]), torch.tensor([4.0, 4.0])
        >>> fisher([(a, 1.0, torch.tensor([3.0, 0.0])), (b, 1.0, torch.tensor([1.0, 0.0]))])
        tensor([2.5000, 3.0000])
    """
    total: Tensor | None = None
    weights = torch.zeros(())
    for delta, scale, information in terms:
        weight = information.to(delta.dtype) + FLOOR
        if total is None:
            total, weights = delta * scale * weight, weight
        else:
            # out of place where a wider dtype comes later
            total, weights = total + delta * scale * weight, weights + weight
        del delta, information, weight  # before the next ones are made
    if total is None:
        raise ValueError("no deltas to combine")
    return total.div_(weights)
