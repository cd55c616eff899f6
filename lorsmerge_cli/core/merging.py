"""The last stage of a merge: an update onto its base, rounded once (Eq. 8)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lorsmerge_cli.core.low_rank_sparse import accumulable


@dataclass(frozen=True)
class Rounding:
    """What rounding to the output's dtype did to an update.

    Attributes:
        updated: entries with an update that is not zero.
        lost: those of them that came out as if there had been none.
    """

    updated: int = 0
    lost: int = 0

    def __add__(self, other: Rounding) -> Rounding:
        return Rounding(self.updated + other.updated, self.lost + other.lost)


def add_to_base(base: Tensor, update: Tensor, dtype: torch.dtype) -> tuple[Tensor, Rounding]:
    """base + update, summed in float32 or wider and rounded once to `dtype`.

    Args:
        base: any shape and float dtype.
        update: `base`'s shape, float32 or float64.
        dtype: of the result.
    """
    merged = torch.add(accumulable(base), update).to(dtype)
    updated = int(torch.count_nonzero(update))
    moved = int(torch.count_nonzero(merged != base.to(dtype)))
    return merged, Rounding(updated, max(0, updated - moved))


def is_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite; one pass, no temporary."""
    if not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))
