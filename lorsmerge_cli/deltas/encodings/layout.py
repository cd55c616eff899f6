"""What a delta file's header says of one tensor, and what an encoding needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TensorLayout:
    """One tensor of a delta file, as its `lorsmerge.tensors` metadata lists it.

    Attributes:
        encoding: a name in `ENCODINGS`.
        shape: of the tensor itself.
        dtype: of the stored numbers.
        rank: triplets in the low-rank part, 0 for none.
        kept: entries in the sparse part, 0 for none.
    """

    encoding: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    rank: int = 0
    kept: int = 0

    @property
    def is_zero(self) -> bool:
        """Whether the tensor is zero throughout and takes no bytes, as what an adapter leaves alone."""
        return self.encoding != "dense" and self.rank == self.kept == 0
