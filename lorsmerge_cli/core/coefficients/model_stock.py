"""Model Stock's factor, the smaller the less deltas agree (Jang et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def model_stock(deltas: Sequence[tuple[Tensor, float]]) -> float:
    """Return t = T c / (1 + (T - 1) c), with c the mean cosine of T scaled deltas of one tensor.

    The combiner of the same name is the mean with this factor; here any other may have it.

    Args:
        deltas: pairs of a delta (float32 or float64, one shape for all) and its coefficient.

    Example:
        >>> a, b = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.7320508])
        >>> round(model_stock([(a, 1.0), (b, 1.0)]), 6)  # at 60 degrees
        0.666667
    """
    from lorsmerge_cli.core.combining.model_stock import share  # rules are parsed without PyTorch

    return share(deltas)
