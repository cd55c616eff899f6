"""Small delta files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from lorsmerge_cli.checkpoint.fingerprint import Fingerprint
from lorsmerge_cli.core.low_rank_sparse import Delta, LowRankSparse, dense
from lorsmerge_cli.deltas.encodings import TensorLayout
from lorsmerge_cli.deltas.file import DeltaWriter, Provenance

BASE = Fingerprint("0f" * 32, "F32", (0.5, -0.25))
PROVENANCE = Provenance(
    base_name="whisper-größe",
    base=BASE,
    finetuned_dtype="F32",
    task="asr",
    language="ca",
    pruning={"method": "lors", "svp": 0.03, "mp": 0.4},
    history=("lorsmerge delta base ca -o ca.delta", 'lorsmerge prune "ca.delta"'),
)


def layout_of(delta: Delta, dtype: torch.dtype) -> TensorLayout:
    """The layout that a delta has of itself."""
    if not isinstance(delta, LowRankSparse):
        return TensorLayout("dense", tuple(delta.shape), dtype)
    rank = 0 if delta.left is None else delta.left.shape[1]
    kept = 0 if delta.mask is None else int(delta.mask.sum())
    shape = (
        tuple(delta.mask.shape)
        if delta.mask is not None
        else (delta.left.shape[0], delta.right.shape[1])
    )
    return TensorLayout("lors", shape, dtype, rank, kept)


@pytest.fixture
def write_delta() -> Callable[..., Path]:
    """`write_delta(path, deltas, dtype)` writes a delta file and returns its path."""

    def write(path: Path, deltas: Mapping[str, Delta], dtype: torch.dtype = torch.float32) -> Path:
        layouts = {name: layout_of(delta, dtype) for name, delta in deltas.items()}
        with DeltaWriter(path, layouts, PROVENANCE) as writer:
            for name, delta in deltas.items():
                writer.write(name, delta)
            writer.finish({name: float(dense(d).norm()) for name, d in deltas.items()})
        return path

    return write


@pytest.fixture
def provenance() -> Provenance:
    """What `write_delta` writes into a header."""
    return PROVENANCE
