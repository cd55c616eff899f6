"""Figures that describe a delta: norm, density, spectrum, and how two of them agree."""

from __future__ import annotations

import torch
from torch import Tensor

from lorsmerge_cli.core.eigen import gram
from lorsmerge_cli.core.low_rank_sparse import accumulable
from lorsmerge_cli.core.pruning.budget import budget

BLOCK = 1 << 20  # entries
DECADES = (-10, 0)  # of magnitudes in a histogram
BINS = 80


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
