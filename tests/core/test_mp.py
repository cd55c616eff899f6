"""Magnitude pruning: exact counts, and ties in row-major order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from reference import ALL, Matrix, gaussian, kept_of, mp, mp_mask

from lorsmerge_cli.core.pruning import prune
from lorsmerge_cli.core.pruning.budget import Budget, budget
from lorsmerge_cli.core.pruning.mp import largest_entries
from lorsmerge_cli.core.pruning.mp import mp as mp_pruner

RATIOS = [0.0001, 0.1, 0.4, 0.5, 0.99]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("matrix", ALL, ids=lambda m: m.name)
def test_mp_is_the_reference_to_the_last_bit(
    matrix: Matrix, ratio: float, dtype: torch.dtype
) -> None:
    """A selection involves no arithmetic, so nothing may differ. Halves have many ties."""
    w = matrix.make().to(dtype)
    if not torch.isfinite(w).all():
        pytest.skip("out of the dtype's range")
    keep = budget(w.shape, None, ratio)
    assert keep.kept == kept_of(ratio, w.shape)
    pruned = prune(w, "mp", keep)
    assert pruned.left is None
    assert pruned.right is None
    assert int(pruned.mask.sum()) == keep.kept
    exact = w.double().numpy()
    assert np.array_equal(pruned.mask.numpy(), mp_mask(exact, keep.kept))
    assert np.array_equal(pruned.to_dense().double().numpy(), mp(exact, keep.kept))


@pytest.mark.parametrize(
    ("rows", "count", "expected"),
    [
        ([[1, 1], [1, 1]], 1, [[1, 0], [0, 0]]),
        ([[1, 1], [1, 1]], 3, [[1, 1], [1, 0]]),
        ([[1, -1], [-1, 1]], 2, [[1, 1], [0, 0]]),
        ([[-1, 1], [2, 1]], 2, [[1, 0], [1, 0]]),
        ([[1, 2], [1, 2]], 3, [[1, 1], [0, 1]]),
        ([[0, 0], [0, 0]], 2, [[1, 1], [0, 0]]),
        ([[0, -0.0], [3, 0]], 3, [[1, 1], [1, 0]]),
        ([[1, 2], [3, 4]], 0, [[0, 0], [0, 0]]),
        ([[1, 2], [3, 4]], 4, [[1, 1], [1, 1]]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_go_to_the_earliest_in_row_major_order(rows, count, expected, dtype) -> None:
    mask = largest_entries(torch.tensor(rows, dtype=dtype), count)
    assert torch.equal(mask, torch.tensor(expected, dtype=torch.bool))


def test_a_threshold_that_float32_cannot_hold() -> None:
    w = torch.tensor([[1.0, 1.0 + 2**-40], [1.0 + 2**-41, 1.0 - 2**-50]], dtype=torch.float64)
    assert largest_entries(w, 2).tolist() == [[False, True], [True, False]]


VIEWS = {
    "transposed": lambda w: w.T.contiguous().T,
    "strided": lambda w: torch.stack([w, w + 1], dim=2)[..., 0],
    "sliced": lambda w: torch.cat([w, w + 1], dim=1)[:, : w.shape[1]],
    "expanded": lambda w: w[:1].expand(w.shape),
}


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("view", VIEWS)
def test_strides_do_not_matter(view: str, ties: bool) -> None:
    w = gaussian(12, 20, seed=2).float()
    if ties:
        w = (2 * w).round()
    given_ = VIEWS[view](w)
    copy = given_.clone(memory_format=torch.contiguous_format)
    assert not given_.is_contiguous()
    assert torch.equal(largest_entries(given_, 75), largest_entries(copy, 75))
    pruned = prune(given_, "mp", Budget(0, 75, whole=False))
    assert torch.equal(pruned.to_dense(), prune(copy, "mp", Budget(0, 75, whole=False)).to_dense())
    assert torch.equal(given_, copy)


@pytest.mark.parametrize("shape", [(7,), (2, 3, 4), (2, 2, 2, 3)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    w = torch.from_numpy(np.random.default_rng(0).standard_normal(shape)).float()
    mask = largest_entries(w, 4)
    assert np.array_equal(mask.numpy(), mp_mask(w.double().numpy(), 4))


# Few distinct values, so that the threshold is nearly always a tie
TIED = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.sampled_from([-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0, 1e-45, 3e38]),
)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(TIED, st.floats(0, 1), st.booleans())
def test_any_ties(w, share: float, transposed: bool) -> None:
    count = round(share * w.size)
    tensor = torch.from_numpy(w.copy())
    if transposed:
        tensor = tensor.T.contiguous().T
    mask = largest_entries(tensor, count)
    assert np.array_equal(mask.numpy(), mp_mask(w.astype(np.float64), count))
    assert torch.equal(tensor, torch.from_numpy(w))


@settings(deadline=None, max_examples=50, derandomize=True)
@given(TIED, st.floats(0, 1), st.integers(-8, 0))
def test_powers_of_two_commute(w, ratio: float, exponent: int) -> None:
    w[np.abs(w) < 1e-30] = 0.25  # halving a denormal rounds
    tensor, keep = torch.from_numpy(w), budget(w.shape, None, ratio)
    if keep.whole:
        return
    scaled = prune(tensor * 2.0**exponent, "mp", keep).to_dense()
    assert torch.equal(scaled, prune(tensor, "mp", keep).to_dense() * 2.0**exponent)


@pytest.mark.slow
def test_forty_million_entries() -> None:
    """Whisper's embedding has more elements than torch.quantile accepts."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(51865, 768, generator=generator).mul_(1e-4)
    w[::50] = w[::50].bfloat16()  # ties in plenty
    keep = budget(w.shape, None, 0.4)
    pruned = mp_pruner(w, keep)
    assert keep.kept == 51865 * 768 * 4 // 10
    assert int(torch.count_nonzero(pruned.mask)) == keep.kept
    kept = w.abs()[pruned.mask].min()
    assert w.abs()[~pruned.mask].max() <= kept
    assert torch.equal(pruned.sparse[pruned.mask], w[pruned.mask])
    assert not pruned.sparse[~pruned.mask].any()


@pytest.mark.gpu
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("count", [0, 1, 700, 1536])
def test_cuda_marks_the_same_entries(count: int, ties: bool) -> None:
    w = gaussian(32, 48, seed=2).float()
    if ties:
        w = (2 * w).round()
    mask = largest_entries(w.cuda(), count)
    assert mask.device.type == "cuda"
    assert torch.equal(mask.cpu(), largest_entries(w, count))
