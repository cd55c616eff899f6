"""Figures that describe a delta: norm, density, spectrum, and how two of them agree."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lorsmerge_cli.core.eigen import gram
from lorsmerge_cli.core.low_rank_sparse import accumulable
from lorsmerge_cli.core.pruning.budget import budget

BLOCK = 1 << 20  # entries
DECADES = (-10, 0)  # of magnitudes in a histogram
BINS = 80
SAMPLE = 1 << 16  # elements of a block that its rounding is estimated from


def energy(tensor: Tensor) -> float:
    """Squared L2 norm, in float64."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2


def nonzeros(tensor: Tensor) -> int:
    """Entries that are not zero."""
    return int(torch.count_nonzero(tensor))


def spectrum(matrix: Tensor) -> Tensor:
    """Squared singular values (min(d, k),) of a matrix (d, k), in descending order.

    From the Gram matrix of the short side, which is exact enough for shares of energy.
    """
    rows = accumulable(matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T)
    squares: Tensor = torch.linalg.eigvalsh(gram(rows, rows.dtype))
    return squares.flip(0).clamp_(min=0)


def top_energy(squared_singular_values: Tensor, ratio: float) -> float:
    """Energy in the triplets that SVP keeps at a ratio."""
    short_side = len(squared_singular_values)
    rank = budget((short_side, short_side), ratio, None).rank
    return float(squared_singular_values[:rank].sum(dtype=torch.float64))


def magnitude_histogram(tensor: Tensor) -> Tensor:
    """Numbers (BINS,) of nonzero entries by log10 |entry| over DECADES, float64."""
    return torch.histc(tensor[tensor != 0].abs().log10(), BINS, *DECADES).double()


def agreement(a: Tensor, b: Tensor) -> tuple[float, int, int]:
    """How two deltas of one tensor agree.

    Args:
        a, b: one shape, float32 or float64.

    Returns:
        Their inner product, the number of entries where both are nonzero, and the number of
        those where their signs differ.
    """
    product, shared, opposed = 0.0, 0, 0
    for x, y in zip(a.reshape(-1).split(BLOCK), b.reshape(-1).split(BLOCK), strict=True):
        product += float(torch.dot(x.double(), y.double()))
        signs = x.sign() * y.sign()
        shared += int(torch.count_nonzero(signs))
        opposed += int(torch.count_nonzero(signs < 0))
    return product, shared, opposed


@dataclass(frozen=True)
class BaseRounding:
    """How much of a delta is the rounding error of the base it was taken from.

    A base in half precision may be the rounded copy of the weights that a fine-tune started from.
    The delta then is the update plus an error that is spread evenly over half a rounding step u to
    either side, of variance u^2 / 12 whatever the update is. Over elements of different steps,
    the squared delta d^2 then grows with u^2 by a slope of 1/12. An update from the very base
    knows nothing of u, and has no such slope, however small it is: a plain comparison of d with
    u / 2 would take every small update for an error.

    Attributes:
        steps: sum of u^2 over elements.
        squares: sum of d^2.
        covariance: of d^2 and u^2, summed over the elements of each block about its means.
        variance: of u^2, likewise.
    """

    steps: float = 0.0
    squares: float = 0.0
    covariance: float = 0.0
    variance: float = 0.0

    def __add__(self, other: BaseRounding) -> BaseRounding:
        return BaseRounding(
            self.steps + other.steps,
            self.squares + other.squares,
            self.covariance + other.covariance,
            self.variance + other.variance,
        )

    @property
    def share(self) -> float:
        """Share of the delta's energy, 0 to 1; 0 where the slope is nearer to 0 than to 1/12."""
        if not self.squares or 12 * self.covariance <= self.variance / 2:
            return 0.0
        return min(1.0, self.steps / 12 / self.squares)


def base_rounding(base: Tensor, delta: Tensor) -> BaseRounding:
    """Compare a block of a delta with the rounding steps of its base.

    Args:
        base: as stored, any float dtype.
        delta: `base`'s number of elements in the same order, float32 or float64. Of more than
            SAMPLE elements every n-th is taken.
    """
    stride = max(1, base.numel() // SAMPLE)
    numbers, info = base.reshape(-1)[::stride].double(), torch.finfo(base.dtype)
    if not len(numbers):
        return BaseRounding()
    exponents = torch.frexp(numbers).exponent - 1
    steps = torch.ldexp(torch.full_like(numbers, info.eps), exponents).mul_(numbers != 0)
    steps = steps.clamp_(min=info.smallest_normal * info.eps).square_()
    squares = delta.reshape(-1)[::stride].cpu().double().square()
    spread, weight = steps - steps.mean(), base.numel() / len(numbers)
    return BaseRounding(
        weight * float(steps.sum()),
        weight * float(squares.sum()),
        weight * float(torch.dot(spread, squares)),
        weight * float(torch.dot(spread, spread)),
    )
