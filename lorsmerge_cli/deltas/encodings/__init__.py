"""Encodings of a delta's tensors. A new one is a file here and a line in `ENCODINGS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from lorsmerge_cli.checkpoint.safetensors_file import TensorSpec
from lorsmerge_cli.core.low_rank_sparse import Delta
from lorsmerge_cli.deltas.encodings import dense, lors
from lorsmerge_cli.deltas.encodings.layout import TensorLayout

__all__ = ["ENCODINGS", "Encoding", "TensorLayout", "stored_size"]


class Encoding(Protocol):
    """A module with these three functions."""

    def specs(self, name: str, layout: TensorLayout) -> dict[str, TensorSpec]:
        """Return stored name -> shape and dtype, which the layout determines."""

    def encode(self, name: str, delta: Delta, layout: TensorLayout) -> dict[str, Tensor]:
        """Return stored name -> tensor."""

    def decode(self, name: str, layout: TensorLayout, read: Callable[[str], Tensor]) -> Delta:
        """Return the delta that was encoded, bit for bit in its stored dtype.

        Raises:
            ValueError: the stored tensors contradict one another.
        """


ENCODINGS: dict[str, Encoding] = {"dense": dense, "lors": lors}


def stored_size(name: str, layout: TensorLayout) -> int:
    """Return the bytes that a tensor takes in a delta file."""
    return sum(spec.nbytes for spec in ENCODINGS[layout.encoding].specs(name, layout).values())
