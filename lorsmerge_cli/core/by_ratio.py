"""Prune one matrix by ratios: what a notebook calls."""

from __future__ import annotations

from torch import Tensor

from lorsmerge_cli.core.low_rank_sparse import Delta, accumulable
from lorsmerge_cli.core.merging import is_finite
from lorsmerge_cli.core.pruning import prune
from lorsmerge_cli.core.pruning.budget import budget
from lorsmerge_cli.errors import UsageFault, non_finite


def lors(matrix: Tensor, svp: float = 0.05, mp: float = 0.4) -> Delta:
    """Return the low-rank and the sparse part of a matrix: L = SVP(W), S = MP(W - L) (Eq. 5-7).

    Args:
        matrix: W (d, k), of any float dtype, on any device; it is not changed. Of a stack
            (E, d, k) every matrix is pruned by itself.
        svp: share of the singular values that L keeps, 0 to 1: the largest
            max(1, floor(svp * min(d, k))); 0 for no low-rank part.
        mp: share of the elements that S keeps, 0 to 1: the largest floor(mp * d * k) of W - L by
            magnitude; 0 for no sparse part.

    Returns:
        `LowRankSparse`, in float32, or in float64 if W is; its `to_dense()` is L + S. A tensor if
        all of W is kept, and for a stack.

    Raises:
        UsageFault: a ratio out of range, both of them 0, or no matrix of floats.
        NonFinite: a NaN or an infinity in W.

    Example:
        >>> matrix = torch.ones(2, 4) + torch.tensor([0.0, 0.0, 0.0, 9.0])
        >>> lors(matrix, svp=0.5, mp=0.25).left.shape
        torch.Size([2, 1])
        >>> lors(torch.diag(torch.tensor([3.0, 2.0, 1.0])), svp=0.34, mp=0.12).to_dense()
        tensor([[3., 0., 0.],
                [0., 2., 0.],
                [0., 0., 0.]])
    """
    for name, ratio in (("svp", svp), ("mp", mp)):
        if not 0 <= ratio <= 1:
            raise UsageFault(
                f"{name} = {ratio} is not between 0 and 1.",
                "It is the share that is kept: 0.03 keeps 3%.",
            )
    if not svp and not mp:
        raise UsageFault("svp and mp of 0 keep nothing of the matrix.", "Give one of them.")
    if not matrix.is_floating_point() or matrix.dim() not in (2, 3):
        raise UsageFault(
            f"A tensor of shape {list(matrix.shape)} and {matrix.dtype} is not a matrix of floats.",
            "Give one of shape (d, k), or a stack of them (E, d, k).",
        )
    matrix = matrix.detach()
    if not is_finite(accumulable(matrix)):
        raise non_finite("the matrix", "W")
    pruned = prune(matrix, "lors", budget(matrix.shape, svp, mp))
    # a pruned tensor may be the caller's own matrix
    return pruned.clone() if isinstance(pruned, Tensor) else pruned


def svp(matrix: Tensor, ratio: float = 0.05) -> Delta:
    """Return the low-rank part of a matrix: its largest singular values (Eq. 3-4).

    Args:
        matrix: as in `lors`.
        ratio: share of the singular values that is kept, 0 to 1.

    Returns:
        As `lors`.

    Raises:
        UsageFault, NonFinite: as `lors`.

    Example:
        >>> svp(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 0.34).to_dense()
        tensor([[3., 0., 0.],
                [0., 0., 0.],
                [0., 0., 0.]])
    """
    return lors(matrix, svp=ratio, mp=0.0)


def mp(matrix: Tensor, ratio: float = 0.4) -> Delta:
    """Return the sparse part of a matrix: its elements of largest magnitude (Eq. 1-2).

    Args:
        matrix: as in `lors`.
        ratio: share of the elements that is kept, 0 to 1.

    Returns:
        As `lors`.

    Raises:
        UsageFault, NonFinite: as `lors`.

    Example:
        >>> mp(torch.tensor([[1.0, -5.0], [4.0, 2.0]]), 0.5).to_dense()
        tensor([[ 0., -5.],
                [ 4.,  0.]])
    """
    return lors(matrix, svp=0.0, mp=ratio)
