"""`dense`: the tensor as it is, under its own name."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lorsmerge_cli.checkpoint.safetensors_file import TensorSpec
from lorsmerge_cli.core.low_rank_sparse import Delta, dense
from lorsmerge_cli.deltas.encodings.layout import TensorLayout


def specs(name: str, layout: TensorLayout) -> dict[str, TensorSpec]:
    """The stored tensors of one delta."""
    return {name: TensorSpec(layout.shape, layout.dtype)}


def encode(name: str, delta: Delta, layout: TensorLayout) -> dict[str, Tensor]:
    """The delta's stored tensors."""
    return {name: dense(delta).to(layout.dtype)}


def decode(name: str, layout: TensorLayout, read: Callable[[str], Tensor]) -> Tensor:
    """The delta from its stored tensors."""
    return read(name)
