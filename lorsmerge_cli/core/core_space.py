"""Deltas of low rank in the space that their factors span, where they are small matrices.

Of deltas L_i R_i of ranks r_i, with r the sum of these, let U (d, r) be an orthonormal basis of the
columns of all L_i and V (k, r) one of the rows of all R_i. Then L_i R_i = U M_i V^T with M_i (r, r),
and what a function does to singular values and vectors of matrices it does to those of the M_i:
f(L_1 R_1, ...) = U f(M_1, ...) V^T. That takes r^3 operations where f of the deltas takes d k min(d, k).
For adapters: Panariello et al. 2025, arXiv:2509.17786.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorsmerge_cli.core.low_rank_sparse import Delta, LowRankSparse, accumulable

LARGEST = (
    0.5  # rank of all deltas together, as a share of min(d, k): above, bases cost what they save
)


@dataclass(frozen=True)
class CoreSpace:
    """Matrices of one shape in common bases.

    Attributes:
        left: U (d, r), with orthonormal columns, float64.
        right: V (k, r), as U.
        cores: M_i (r, r), float32, or float64 where the delta is.
    """

    left: Tensor
    right: Tensor
    cores: tuple[Tensor, ...]

    def outside(self, core: Tensor) -> Tensor:
        """Return U M V^T (d, k) in M's dtype, M being float32 or float64.

        Example:
            >>> delta = LowRankSparse(torch.ones(4, 1), torch.ones(1, 3))
            >>> space = core_space([delta])
            >>> space.outside(-space.cores[0])[0]
            tensor([-1., -1., -1.])
        """
        return (self.left @ (core.double() @ self.right.T)).to(core.dtype)

    def factors_outside(self, core: LowRankSparse) -> LowRankSparse:
        """Return U M V^T as factors, of an M that has factors.

        Raises:
            ValueError: it has more than these.
        """
        if core.factors is None:
            raise ValueError("a core with a sparse part")
        left, right = core.factors
        return LowRankSparse(
            (self.left @ left.double()).to(left.dtype),
            (right.double() @ self.right.T).to(right.dtype),
        )


def core_space(deltas: Sequence[Delta]) -> CoreSpace | None:
    """Return the space of deltas of one matrix; None if it does not pay.

    That is where a delta has more than low-rank factors, or where all ranks together are more than
    half of the short side.

    Args:
        deltas: of one shape; at least one.

    Example:
        >>> core_space([LowRankSparse(torch.ones(5, 1), torch.ones(1, 4))] * 2).cores[0].shape
        torch.Size([2, 2])
    """
    pairs = []
    for delta in deltas:
        if not isinstance(delta, LowRankSparse) or (factors := delta.factors) is None:
            return None
        # Metal has no float64
        pairs.append(tuple(part.cpu() if part.device.type == "mps" else part for part in factors))
    lefts, rights = [left for left, _ in pairs], [right.T for _, right in pairs]
    ranks = [left.shape[1] for left in lefts]
    if not pays(ranks, deltas[0].shape):
        return None
    left, columns = _basis(lefts)
    right, rows = _basis(rights)
    cores = [
        (a @ b.T).to(accumulable(factor.new_empty(0)).dtype)
        for a, b, factor in zip(columns.split(ranks, 1), rows.split(ranks, 1), lefts, strict=True)
    ]
    return CoreSpace(left, right, tuple(cores))


def pays(ranks: Sequence[int], shape: Sequence[int]) -> bool:
    """Tell whether deltas of these ranks are better combined in the space of their factors.

    Example:
        >>> pays([32, 32], (768, 768)), pays([300, 300], (768, 768)), pays([1], (9,))
        (True, False, False)
    """
    return len(shape) == 2 and sum(ranks) <= LARGEST * min(shape)


def _basis(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return an orthonormal basis of the columns of all parts, and the parts in it, side by side."""
    return torch.linalg.qr(torch.cat([part.double() for part in parts], dim=1))  # type: ignore[no-any-return]
