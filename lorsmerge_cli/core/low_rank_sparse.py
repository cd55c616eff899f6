"""A matrix as the sum of a low-rank and a sparse part, W ~ L + S (Eq. 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRankSparse:
    """L + S, with L = left @ right; at least one part is there.

    Attributes:
        left: (d, r), or None where the matrix has no low-rank part.
        right: (r, k), or None with `left`.
        sparse: (d, k), zero wherever `mask` is False; None where there is no sparse part.
        mask: (d, k) bool, the entries that were kept (a kept entry may be zero); None with `sparse`.
    """

    left: Tensor | None = None
    right: Tensor | None = None
    sparse: Tensor | None = None
    mask: Tensor | None = None

    def to_dense(self) -> Tensor:
        """L + S as a (d, k) tensor in float32, or float64 where the parts are."""
        if self.left is None or self.right is None:
            if self.sparse is None:
                raise ValueError("neither a low-rank nor a sparse part")
            return _converted(self.sparse, accumulable)
        left, right = accumulable(self.left), accumulable(self.right)
        if self.sparse is None:
            return left @ right
        return torch.addmm(accumulable(self.sparse), left, right)

    def to(self, target: torch.device | torch.dtype) -> LowRankSparse:
        """Every part moved to a device, or the numbers of every part rounded to a dtype."""
        mask = self.mask
        if mask is not None and isinstance(target, torch.device):
            mask = _converted(mask, lambda part: part.to(target))
        left, right, sparse = (
            part if part is None else _converted(part, lambda part: part.to(target))
            for part in (self.left, self.right, self.sparse)
        )
        return LowRankSparse(left, right, sparse, mask)


def zeros(shape: Sequence[int], dtype: torch.dtype) -> LowRankSparse:
    """A delta that is zero throughout: one zero, seen in every element, which takes no memory.

    What is made of it by `to` and `to_dense` takes none either, and must not be written to.
    """
    zero, none = torch.zeros((), dtype=dtype), torch.zeros((), dtype=torch.bool)
    return LowRankSparse(sparse=zero.expand(*shape), mask=none.expand(*shape))


def _converted(part: Tensor, convert: Callable[[Tensor], Tensor]) -> Tensor:
    """`convert(part)`; of one element that is seen in all, that element alone is converted."""
    if part.numel() and not any(part.stride()):
        return convert(part.as_strided((), ())).expand(part.shape)
    return convert(part)


Delta = Tensor | LowRankSparse


def accumulable(tensor: Tensor) -> Tensor:
    """The tensor in a dtype that sums are kept in: float64 stays, any other float becomes float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


def dense(delta: Delta) -> Tensor:
    """The delta as a plain tensor in float32 or float64."""
    return delta.to_dense() if isinstance(delta, LowRankSparse) else accumulable(delta)
