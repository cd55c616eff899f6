"""`dense`: the tensor as it is, under its own name."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lorsmerge_cli.checkpoint.safetensors_file import TensorSpec
from lorsmerge_cli.core.low_rank_sparse import Delta, dense
from lorsmerge_cli.deltas.encodings.layout import TensorLayout


def specs(name: str, layout: TensorLayout) -> dict[str, TensorSpec]:
    """Return the spec of the stored tensor."""
    return {name: layout.spec}


def encode(name: str, delta: Delta, layout: TensorLayout) -> dict[str, Tensor]:
    """Return the delta as a dense tensor."""
    return {name: dense(delta).to(layout.dtype)}


def decode(name: str, layout: TensorLayout, read: Callable[[str], Tensor]) -> Tensor:
    """Read the stored tensor."""
    return read(name)
