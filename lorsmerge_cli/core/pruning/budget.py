"""How much of a matrix the two ratios keep, as a rank and a number of elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Budget:
    """What is kept of one matrix.

    Attributes:
        rank: of the low-rank part, 0 for none.
        kept: elements of the sparse part, 0 for none.
        whole: whether the matrix is kept unchanged, because one part alone is all of it.
    """

    rank: int
    kept: int
    whole: bool = False


def budget(shape: Sequence[int], svp: float | None, mp: float | None) -> Budget:
    """Return a rank of max(1, floor(svp * min(d, k))) and floor(mp * d * k) elements.

    Args:
        shape: (d, k), or (E, d, k) for the budget of each of E matrices.
        svp: singular value ratio kept, in [0, 1]; None or 0 for no low-rank part.
        mp: magnitude ratio kept, in [0, 1]; None or 0 for no sparse part.

    Example:
        >>> budget((512, 2048), svp=0.03, mp=0.4)
        Budget(rank=15, kept=419430, whole=False)
    """
    short_side, numel = min(shape[-2:]), math.prod(shape[-2:])
    rank = min(short_side, max(1, _share(svp, short_side))) if svp else 0
    kept = _share(mp, numel) if mp else 0
    return Budget(rank, kept, whole=rank >= short_side or kept >= numel)


def _share(ratio: float, count: int) -> int:
    """Return floor(ratio * count) for the decimal ratio: 0.29 of 100 is 29, in floats 28."""
    return math.floor(Fraction(repr(float(ratio))) * count)
