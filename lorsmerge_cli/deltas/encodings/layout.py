"""The layout of one tensor in a delta file."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lorsmerge_cli.checkpoint.safetensors_file import TensorSpec


@dataclass(frozen=True)
class TensorLayout:
    """The header's description of one tensor, in the `lorsmerge.tensors` metadata.

    Attributes:
        encoding: a name in `ENCODINGS`.
        shape: of the tensor itself.
        dtype: of the stored numbers.
        rank: rank of the low-rank part, 0 for none.
        kept: number of elements in the sparse part, 0 for none.
    """

    encoding: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    rank: int = 0
    kept: int = 0

    @property
    def spec(self) -> TensorSpec:
        """Shape of the tensor, and dtype of the stored numbers."""
        return TensorSpec(self.shape, self.dtype)

    @property
    def is_zero(self) -> bool:
        """Whether the tensor is zero and takes no bytes, like those that an adapter does not change."""
        return self.encoding != "dense" and self.rank == self.kept == 0

    @property
    def low_rank(self) -> int | None:
        """The rank of a matrix that is nothing but low-rank factors, 0 if it is zero; None of others."""
        factors = self.encoding != "dense" and not self.kept and len(self.shape) == 2
        return self.rank if factors else None
