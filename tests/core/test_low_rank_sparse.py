"""L + S as a dense tensor."""

from __future__ import annotations

import pytest
import torch
from reference import gaussian

from lorsmerge_cli.core.low_rank_sparse import LowRankSparse, accumulable, dense

LEFT, RIGHT = gaussian(6, 2, 1), gaussian(2, 9, 2)
MASK = gaussian(6, 9, 3) > 0.5
SPARSE = gaussian(6, 9, 4).masked_fill(~MASK, 0.0)
EXACT = {"low-rank": LEFT @ RIGHT, "sparse": SPARSE, "both": LEFT @ RIGHT + SPARSE}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def parts(kind: str) -> LowRankSparse:
    low_rank = (None, None) if kind == "sparse" else (LEFT, RIGHT)
    sparse = (None, None) if kind == "low-rank" else (SPARSE, MASK)
    return LowRankSparse(*low_rank, *sparse)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", EXACT)
def test_to_dense(kind: str, dtype: torch.dtype) -> None:
    matrix = parts(kind).to(dtype)
    before = [None if part is None else part.clone() for part in vars(matrix).values()]
    got = matrix.to_dense()
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = 8 * torch.finfo(dtype).eps
    assert torch.allclose(got.double(), EXACT[kind], rtol=tolerance, atol=tolerance)
    assert torch.equal(dense(matrix), got)
    for part, copy in zip(vars(matrix).values(), before, strict=True):
        assert part is copy is None or torch.equal(part, copy)


@pytest.mark.parametrize("kind", EXACT)
def test_half_precision_parts_are_multiplied_in_float32(kind: str) -> None:
    matrix = parts(kind).to(torch.bfloat16)
    wide = parts(kind).to(torch.bfloat16).to(torch.float64)
    assert torch.allclose(matrix.to_dense().double(), wide.to_dense(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", EXACT)
def test_moving_keeps_the_parts(kind: str) -> None:
    matrix = parts(kind).to(torch.device("cpu"))
    for name, part in vars(parts(kind)).items():
        moved = getattr(matrix, name)
        assert (moved is None) == (part is None)
        assert part is None or (torch.equal(moved, part) and moved.dtype == part.dtype)
    halves = parts(kind).to(torch.float16)
    assert halves.mask is None or halves.mask.dtype == torch.bool


def test_no_parts() -> None:
    with pytest.raises(ValueError, match="neither"):
        LowRankSparse().to_dense()


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_kept_in_float32_or_wider(dtype: torch.dtype) -> None:
    tensor = gaussian(3, 4).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert accumulable(tensor).dtype == dense(tensor).dtype == wide
    assert torch.equal(accumulable(tensor), tensor.to(wide))
