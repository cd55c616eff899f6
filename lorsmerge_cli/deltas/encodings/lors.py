"""`lors`: low-rank factors and a sparse part, each stored in as few bytes as it needs.

    NAME.low_rank.left    (d, r)
    NAME.low_rank.right   (r, k)
    NAME.sparse.values    (kept,)           in row-major order
    NAME.sparse.bitmask   (ceil(d*k/8),)    uint8, lowest bit first: 1 for each element in `values`
    NAME.sparse.places    (kept,)           int32, or int64 from 2^31 elements on: their flat indices

Parts that the delta lacks are absent. Without factors the tensor may have any shape, and a tensor that
a LoRA adapter does not change takes no bytes. The smaller one of bitmask and indices is stored, which
is the bitmask if at least one element in 32 is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lorsmerge_cli.checkpoint.safetensors_file import TensorSpec
from lorsmerge_cli.core.low_rank_sparse import Delta, LowRankSparse
from lorsmerge_cli.deltas.encodings.layout import TensorLayout

LEFT, RIGHT = "low_rank.left", "low_rank.right"
VALUES, BITMASK, INDICES = "sparse.values", "sparse.bitmask", "sparse.places"


def specs(name: str, layout: TensorLayout) -> dict[str, TensorSpec]:
    """Return the specs of the stored tensors.

    Raises:
        ValueError: factors of a tensor that is not a matrix.
    """
    parts: dict[str, TensorSpec] = {}
    if layout.rank:
        if len(layout.shape) != 2:
            raise ValueError(f"{name!r} has the shape {list(layout.shape)} and a matrix's factors")
        d, k = layout.shape
        parts[LEFT] = TensorSpec((d, layout.rank), layout.dtype)
        parts[RIGHT] = TensorSpec((layout.rank, k), layout.dtype)
    if layout.kept or not layout.rank:
        parts[VALUES] = TensorSpec((layout.kept,), layout.dtype)
        numel = math.prod(layout.shape)
        indices = TensorSpec((layout.kept,), torch.int32 if numel < 2**31 else torch.int64)
        bitmask = TensorSpec((-(-numel // 8),), torch.uint8)
        if bitmask.nbytes <= indices.nbytes:
            parts[BITMASK] = bitmask
        else:
            parts[INDICES] = indices
    return {f"{name}.{part}": spec for part, spec in parts.items()}


def encode(name: str, delta: Delta, layout: TensorLayout) -> dict[str, Tensor]:
    """Return the delta's stored tensors.

    Raises:
        ValueError: the delta is dense, or does not have the parts of its layout.
    """
    if not isinstance(delta, LowRankSparse):
        raise ValueError(f"{name}: a dense delta in the lors encoding")
    wanted = specs(name, layout)
    parts: dict[str, Tensor] = {}
    # a part without elements may be None or empty
    if layout.rank and delta.left is not None and delta.right is not None:
        parts[LEFT], parts[RIGHT] = delta.left.to(layout.dtype), delta.right.to(layout.dtype)
    if layout.kept and delta.sparse is not None and delta.mask is not None:
        mask = delta.mask.numpy()
        parts[VALUES] = delta.sparse.masked_select(delta.mask).to(layout.dtype)
        if f"{name}.{BITMASK}" in wanted:
            parts[BITMASK] = torch.from_numpy(np.packbits(mask.reshape(-1), bitorder="little"))
        else:
            indices = torch.from_numpy(np.flatnonzero(mask))
            parts[INDICES] = indices.to(wanted[f"{name}.{INDICES}"].dtype)
    stored = {f"{name}.{part}": tensor for part, tensor in parts.items()}
    for part, spec in wanted.items():
        if not spec.numel:
            stored.setdefault(part, torch.empty(spec.shape, dtype=spec.dtype))
    lost = not layout.rank and delta.left is not None and delta.left.numel()
    lost = lost or (not layout.kept and delta.mask is not None and bool(delta.mask.any()))
    found = {part: TensorSpec(tuple(t.shape), t.dtype) for part, t in stored.items()}
    if lost or found != wanted:
        raise ValueError(f"{name}: the delta does not have the parts of its layout")
    return stored


def decode(name: str, layout: TensorLayout, read: Callable[[str], Tensor]) -> LowRankSparse:
    """Read the delta from its stored tensors.

    Raises:
        ValueError: bitmask or indices do not fit the values.
    """
    stored = specs(name, layout)

    def part(suffix: str) -> Tensor | None:
        return read(f"{name}.{suffix}") if f"{name}.{suffix}" in stored else None

    left, right, values = part(LEFT), part(RIGHT), part(VALUES)
    if values is None:
        return LowRankSparse(left, right)
    mask = _mask(name, layout, part(BITMASK), part(INDICES))
    sparse = torch.zeros(layout.shape, dtype=layout.dtype).masked_scatter_(mask, values)
    return LowRankSparse(left, right, sparse, mask)


def _mask(
    name: str, layout: TensorLayout, bitmask: Tensor | None, indices: Tensor | None
) -> Tensor:
    numel = math.prod(layout.shape)
    if bitmask is not None:
        bits = np.unpackbits(bitmask.numpy(), count=numel, bitorder="little").view(np.bool_)
        if np.count_nonzero(bits) != layout.kept:
            raise ValueError(
                f"{name!r} marks {np.count_nonzero(bits)} elements for {layout.kept} values"
            )
        return torch.from_numpy(bits).view(layout.shape)
    mask = torch.zeros(numel, dtype=torch.bool)
    if indices is not None and indices.numel():
        ascending = bool((indices[1:] > indices[:-1]).all())
        if not ascending or indices[0] < 0 or indices[-1] >= numel:
            raise ValueError(f"{name!r} has indices that are not ascending or out of range")
        mask[indices.long()] = True
    return mask.view(layout.shape)
