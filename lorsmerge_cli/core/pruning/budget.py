"""How much of a matrix the two ratios keep, in whole triplets and entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Budget:
    """What is kept of one matrix.

    Attributes:
        rank: singular triplets in the low-rank part, 0 for none.
        kept: entries in the sparse part, 0 for none.
        whole: the matrix is kept as it is, because one part alone already is all of it.
    """

    rank: int
    kept: int
    whole: bool


def budget(shape: Sequence[int], svp: float | None, mp: float | None) -> Budget:
    """Rank max(1, floor(svp * min(d, k))) and floor(mp * d * k) entries; None or 0 for no part.

    Args:
        shape: (d, k), or (E, d, k) for what is kept of each of E matrices.
        svp: singular value ratio kept, in [0, 1].
        mp: magnitude ratio kept, in [0, 1].
    """
    short_side, numel = min(shape[-2:]), math.prod(shape[-2:])
    rank = min(short_side, max(1, _share(svp, short_side))) if svp else 0
    kept = _share(mp, numel) if mp else 0
    return Budget(rank, kept, whole=rank >= short_side or kept >= numel)


def _share(ratio: float, count: int) -> int:
    """floor(ratio * count), of the ratio as it is written: 0.29 of 100 is 29, in floats 28."""
    return math.floor(Fraction(repr(float(ratio))) * count)
