"""A matrix as the sum of a low-rank and a sparse part, W ~ L + S (Eq. 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRankSparse:
    """L + S with L = left @ right, or one of the two.

    Attributes:
        left: (d, r), or None if the matrix has no low-rank part.
        right: (r, k), or None with `left`.
        sparse: (d, k), zero wherever `mask` is False; None if there is no sparse part.
        mask: (d, k) bool, the elements that were kept (a kept one may be zero); None with `sparse`.

    Example:
        >>> LowRankSparse(left=torch.ones(2, 1), right=torch.ones(1, 3)).to_dense()
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
    """

    left: Tensor | None = None
    right: Tensor | None = None
    sparse: Tensor | None = None
    mask: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """Of the whole: (d, k) where there are factors."""
        if self.left is None or self.right is None:
            return torch.Size() if self.sparse is None else self.sparse.shape
        return torch.Size((self.left.shape[0], self.right.shape[1]))

    @property
    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Left and right, if that is all of a matrix; without columns and rows if it is `zeros`.

        Example:
            >>> [tuple(factor.shape) for factor in zeros((2, 3), torch.float32).factors]
            [(2, 0), (0, 3)]
        """
        if self.left is not None and self.right is not None:
            return None if self.sparse is not None else (self.left, self.right)
        zero = self.sparse
        if zero is None or zero.dim() != 2 or not _is_expanded(zero) or bool(zero[0, 0]):
            return None
        return zero.new_empty(len(zero), 0), zero.new_empty(0, zero.shape[1])

    def to_dense(self) -> Tensor:
        """Return L + S as a (d, k) tensor in float32, or in float64 if the parts are.

        Raises:
            ValueError: there is neither a low-rank nor a sparse part.
        """
        if self.left is None or self.right is None:
            if self.sparse is None:
                raise ValueError("neither a low-rank nor a sparse part")
            return _converted(self.sparse, accumulable)
        left, right = accumulable(self.left), accumulable(self.right)
        if self.sparse is None:
            return left @ right
        return torch.addmm(accumulable(self.sparse), left, right)

    def to(self, target: torch.device | torch.dtype) -> LowRankSparse:
        """Return all parts moved to a device, or with their numbers rounded to a dtype."""
        mask = self.mask
        if mask is not None and isinstance(target, torch.device):
            mask = _converted(mask, lambda part: part.to(target))
        left, right, sparse = (
            part if part is None else _converted(part, lambda part: part.to(target))
            for part in (self.left, self.right, self.sparse)
        )
        return LowRankSparse(left, right, sparse, mask)


def zeros(shape: Sequence[int], dtype: torch.dtype) -> LowRankSparse:
    """Return a delta of zeros that takes no memory: one zero, expanded to the shape.

    What `to` and `to_dense` make of it is expanded too, and must not be written to.

    Args:
        shape: of the delta.
        dtype: of its zero.

    Example:
        >>> zeros((1000, 1000), torch.float32).to_dense().untyped_storage().nbytes()
        4
    """
    zero, none = torch.zeros((), dtype=dtype), torch.zeros((), dtype=torch.bool)
    return LowRankSparse(sparse=zero.expand(*shape), mask=none.expand(*shape))


def _converted(part: Tensor, convert: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `convert(part)`; of an expanded element, convert that one and expand it again."""
    if _is_expanded(part):
        return convert(part.as_strided((), ())).expand(part.shape)
    return convert(part)


def _is_expanded(part: Tensor) -> bool:
    return bool(part.numel()) and not any(part.stride())


Delta = Tensor | LowRankSparse


def accumulable(tensor: Tensor) -> Tensor:
    """Return the tensor in the dtype that its sums are kept in: float64, or float32 for all others.

    Example:
        >>> accumulable(torch.ones(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


def weighted(delta: Delta, low_rank: float, sparse: float) -> Tensor:
    """Return low_rank * L + sparse * S, in float32 or float64.

    Args:
        delta: L + S; a plain tensor counts as S.
        low_rank: coefficient of L.
        sparse: coefficient of S.

    Example:
        >>> both = LowRankSparse(torch.ones(1, 1), torch.ones(1, 1), torch.full((1, 1), 10.0))
        >>> weighted(both, 0.5, 2.0)
        tensor([[20.5000]])
    """
    if not isinstance(delta, LowRankSparse):
        return accumulable(delta) * sparse
    if delta.left is None or delta.right is None:
        return delta.to_dense() * sparse
    left, right = accumulable(delta.left), accumulable(delta.right)
    if delta.sparse is None:
        return (left @ right) * low_rank
    return torch.addmm(accumulable(delta.sparse), left, right, beta=sparse, alpha=low_rank)


def add_scaled(total: Tensor, delta: Delta, factor: float) -> None:
    """Add factor * delta to a tensor in place, without making a low-rank delta dense.

    Example:
        >>> total = torch.zeros(1, 2)
        >>> add_scaled(total, LowRankSparse(torch.ones(1, 1), torch.ones(1, 2)), 0.5)
        >>> total
        tensor([[0.5000, 0.5000]])
    """
    if isinstance(delta, LowRankSparse) and delta.left is not None and delta.right is not None:
        total.addmm_(delta.left.to(total.dtype), delta.right.to(total.dtype), alpha=factor)
        delta = LowRankSparse(sparse=delta.sparse, mask=delta.mask)
    if not isinstance(delta, LowRankSparse) or delta.sparse is not None:
        total.add_(dense(delta), alpha=factor)


def inner_product(matrix: Tensor, delta: Delta) -> float:
    """Return the sum of the products of elements, without making a low-rank delta dense.

    Args:
        matrix: of the delta's shape, float32 or float64.
        delta: L + S; a plain tensor counts as S.

    Example:
        >>> inner_product(torch.ones(1, 2), LowRankSparse(torch.ones(1, 1), torch.ones(1, 2)))
        2.0
    """
    found = 0.0
    if isinstance(delta, LowRankSparse) and delta.left is not None and delta.right is not None:
        right = matrix @ delta.right.to(matrix.dtype).T
        found = float((right * delta.left).double().sum())
        delta = LowRankSparse(sparse=delta.sparse, mask=delta.mask)
    if not isinstance(delta, LowRankSparse) or delta.sparse is not None:
        found += float((matrix * dense(delta)).double().sum())
    return found


def dense(delta: Delta) -> Tensor:
    """Return the delta as a plain tensor in float32 or float64.

    Example:
        >>> dense(torch.ones(1, dtype=torch.float16))
        tensor([1.])
    """
    return delta.to_dense() if isinstance(delta, LowRankSparse) else accumulable(delta)


def is_low_rank(delta: Delta) -> bool:
    """Tell whether a delta is nothing but low-rank factors.

    Example:
        >>> is_low_rank(zeros((2, 3), torch.float32)), is_low_rank(torch.zeros(2, 3))
        (True, False)
    """
    return isinstance(delta, LowRankSparse) and delta.factors is not None
