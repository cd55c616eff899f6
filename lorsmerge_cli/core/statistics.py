"""Statistics of a delta (norm, density, spectrum) and of the agreement of two."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from operator import add

import torch
from torch import Tensor

from lorsmerge_cli.core.eigen import gram
from lorsmerge_cli.core.low_rank_sparse import Delta, LowRankSparse, accumulable
from lorsmerge_cli.core.pruning.budget import budget

BLOCK = 1 << 20  # elements
DECADES = (-10, 0)  # of magnitudes in a histogram
BINS = 80
SAMPLE = 1 << 16  # elements of a block that its rounding is estimated from


def energy(tensor: Delta) -> float:
    """Return the squared L2 norm, computed in float64; of low-rank factors without their product.

    Example:
        >>> energy(torch.tensor([3.0, 4.0])), energy(LowRankSparse(torch.ones(9, 1), torch.ones(1, 2)))
        (25.0, 18.0)
    """
    if isinstance(tensor, LowRankSparse):
        if tensor.factors is None:
            return energy(tensor.to_dense())
        left, right = (part.double() for part in tensor.factors)
        # the squared norm of L R is the trace of R^T (L^T L) R
        found = float(((left.T @ left) * (right @ right.T)).sum())
        return 0.0 if found < 0 else found  # by rounding; a NaN stays one
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2


def nonzeros(tensor: Tensor) -> int:
    """Return the number of elements that are not zero.

    Example:
        >>> nonzeros(torch.tensor([3.0, 0.0]))
        1
    """
    return int(torch.count_nonzero(tensor))


def spectrum(matrix: Tensor) -> Tensor:
    """Return the squared singular values (min(d, k),) of a matrix (d, k), in descending order.

    They are the eigenvalues of the short side's Gram matrix, exact enough for shares of energy.

    Example:
        >>> spectrum(torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]]))
        tensor([9., 4.])
    """
    rows = accumulable(matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T)
    squares: Tensor = torch.linalg.eigvalsh(gram(rows, rows.dtype))
    return squares.flip(0).clamp_(min=0)


def top_energy(squared_singular_values: Tensor, ratio: float) -> float:
    """Return the energy of the singular triplets that SVP keeps at a ratio.

    Args:
        squared_singular_values: of a matrix, in descending order, as `spectrum` returns them.
        ratio: singular value ratio kept, 0 to 1.

    Example:
        >>> top_energy(torch.tensor([9.0, 4.0]), 0.5)
        9.0
    """
    short_side = len(squared_singular_values)
    rank = budget((short_side, short_side), ratio, None).rank
    return float(squared_singular_values[:rank].sum(dtype=torch.float64))


def rank_for_energy(squared_singular_values: Tensor, share: float) -> int:
    """Return how many of the largest singular triplets hold a share of a matrix's energy.

    Args:
        squared_singular_values: of a matrix, in descending order, as `spectrum` returns them.
        share: of the energy, above 0 and below 1.

    Returns:
        The least number whose energy is not below the share; 0 for a matrix of zeros.

    Example:
        >>> rank_for_energy(torch.tensor([9.0, 4.0, 1.0]), 0.9)
        2
    """
    sums = squared_singular_values.double().cumsum(0)
    if not len(sums) or not sums[-1]:
        return 0
    return 1 + int(torch.count_nonzero(sums < share * sums[-1]))


def magnitude_histogram(tensor: Tensor) -> Tensor:
    """Return counts (BINS,) of nonzero elements x by log10 |x| over DECADES, in float64.

    Example:
        >>> magnitude_histogram(torch.tensor([0.5, 0.0, -1e-9])).nonzero().squeeze(1)
        tensor([ 8, 77])
    """
    return torch.histc(tensor[tensor != 0].abs().log10(), BINS, *DECADES).double()


def agreement(a: Tensor, b: Tensor) -> tuple[float, int, int]:
    """Measure how two deltas of one tensor agree.

    Args:
        a: float32 or float64.
        b: of the same shape, float32 or float64.

    Returns:
        Their inner product, the number of elements where both are nonzero, and the number of
        those where their signs differ.

    Example:
        >>> agreement(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, -1.0, 5.0]))
        (1.0, 2, 1)
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
    """Sums from which `share` estimates how much of a delta is the rounding error of its base.

    A base in half precision may be a rounded copy of the weights that a fine-tune started from.
    The delta is then the update plus an error that is uniform over half a rounding step u to
    either side, of variance u^2 / 12 whatever the update is. Over elements of different steps, a
    regression of the squared delta d^2 on u^2 then has a slope of 1/12. An update of the stored
    base itself does not depend on u and has no such slope, however small it is: a plain comparison
    of d with u / 2 would take every small update for an error.

    Attributes:
        steps: sum of u^2 over elements.
        squares: sum of d^2.
        covariance: of d^2 and u^2 within each block, summed over elements, not divided by them.
        variance: of u^2, in the same way.
    """

    steps: float = 0.0
    squares: float = 0.0
    covariance: float = 0.0
    variance: float = 0.0

    def __add__(self, other: BaseRounding) -> BaseRounding:
        return BaseRounding(*map(add, astuple(self), astuple(other)))

    @property
    def share(self) -> float:
        """Share of the delta's energy, 0 to 1; 0 if the slope is nearer to 0 than to 1/12."""
        if not self.squares or 12 * self.covariance <= self.variance / 2:
            return 0.0
        return min(1.0, self.steps / 12 / self.squares)


def base_rounding(base: Tensor, delta: Tensor) -> BaseRounding:
    """Compare a block of a delta with the rounding steps of its base.

    Args:
        base: as stored, any float dtype.
        delta: `base`'s number of elements in the same order, float32 or float64. Of more than
            SAMPLE elements every n-th is taken.

    Example:
        >>> original = torch.randn(4096, generator=torch.Generator().manual_seed(0))
        >>> base_rounding(original.half(), original - original.half()).share > 0.9
        True
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
