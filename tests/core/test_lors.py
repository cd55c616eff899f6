"""LoRS, and every pruner, against Eq. 1-7 in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from reference import (
    ALL,
    DEGENERATE,
    SHAPES,
    SPECTRA,
    Matrix,
    best_distance,
    gaussian,
    kept_of,
    lors_error,
    mp_mask,
    plain_lors,
    rank_of,
    separated,
    with_spectrum,
)
from torch import Tensor

from lorsmerge_cli.core.low_rank_sparse import LowRankSparse, dense
from lorsmerge_cli.core.pruning import PRUNERS, prune
from lorsmerge_cli.core.pruning.budget import budget

RATIOS = {"svp": [(0.05, None), (0.4, None)], "mp": [(None, 0.05), (None, 0.4)]}
LORS_RATIOS = [
    (0.0001, 0.4),
    (0.01, 0.0001),
    (0.1, 0.1),
    (0.4, 0.2),
    (0.9, 0.9),
    (0.1, 0),
    (0, 0.1),
]
BY_RATIOS = [name for name, pruner in PRUNERS.items() if pruner.ratios]
EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}
FLOOR = {torch.float32: 2e-5, torch.float64: 1e-7}


def check_pruned(
    matrix: Tensor, svp: float | None, mp: float | None, pruned: LowRankSparse
) -> None:
    """Check the parts of `pruned` against Eq. 5-7, up to float error and undetermined choices."""
    computed_in = torch.float64 if matrix.dtype == torch.float64 else torch.float32
    rank = rank_of(svp, matrix.shape) if svp else 0
    kept = kept_of(mp, matrix.shape) if mp else 0
    w = matrix.double().numpy()
    norm, size = float(np.linalg.norm(w)), float(np.abs(w).max())
    got = pruned.to_dense()
    assert got.dtype == computed_in
    assert got.shape == matrix.shape
    low_rank = np.zeros_like(w)
    if rank:
        assert pruned.left.shape == (matrix.shape[0], rank)
        low_rank = (pruned.left.double() @ pruned.right.double()).numpy()
        lost = np.linalg.norm(w - low_rank)
        assert lost <= best_distance(w, rank) + FLOOR[computed_in] * norm
    if kept:
        # given L, the rest is determined: S = MP(W - L)
        mask, sparse = pruned.mask.numpy(), pruned.sparse.double().numpy()
        slack = 2 * (rank + 2) * EPS[computed_in] * size
        residual = w - low_rank
        assert mask.sum() == kept
        assert not sparse[~mask].any()
        assert np.abs(sparse - residual)[mask].max() <= slack
        threshold = np.abs(residual)[mp_mask(residual, kept)].min()
        assert np.abs(residual)[mask].min() >= threshold - 2 * slack
        if not mask.all():
            assert np.abs(residual)[~mask].max() <= threshold + 2 * slack
    if norm and (not rank or separated(w, rank)):
        plain = plain_lors(matrix.to(computed_in), rank, kept).double().numpy()
        slack = 1e-5 * size if computed_in == torch.float32 else 1e-8 * size
        bound = max(2 * lors_error(plain, w, rank, kept, slack), FLOOR[computed_in])
        assert lors_error(got.double().numpy(), w, rank, kept, slack) <= bound


CASES = [
    *((pruner, svp, mp) for pruner, ratios in RATIOS.items() for svp, mp in ratios),
    *(("lors", svp, mp) for svp, mp in LORS_RATIOS),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("pruner", "svp", "mp"), CASES)
@pytest.mark.parametrize("matrix", ALL, ids=lambda m: m.name)
def test_pruners_against_the_paper(
    matrix: Matrix, pruner: str, svp: float | None, mp: float | None, dtype: torch.dtype
) -> None:
    w = matrix.make().to(dtype)
    if not torch.isfinite(w).all():
        pytest.skip("out of the dtype's range")
    before = w.clone()
    keep = budget(w.shape, svp, mp)
    pruned = prune(w, pruner, keep)
    assert torch.equal(w, before)
    if keep.whole:
        assert torch.equal(pruned, w.to(pruned.dtype))
    else:
        check_pruned(w, svp, mp, pruned)


def test_every_pruner_is_in_the_cases() -> None:
    assert {case[0] for case in CASES} == set(BY_RATIOS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("pruner", "svp", "mp"),
    [("svp", 1.0, None), ("mp", None, 1.0), ("lors", 1.0, 0.1), ("lors", 0.1, 1.0), ("lors", 1, 1)],
)
@pytest.mark.parametrize("matrix", [*SHAPES, *DEGENERATE, *SPECTRA], ids=lambda m: m.name)
def test_all_of_it_is_the_delta_itself(matrix: Matrix, pruner, svp, mp, dtype) -> None:
    w = matrix.make().to(dtype)
    keep = budget(w.shape, svp, mp)
    assert keep.whole
    pruned = prune(w, pruner, keep)
    assert isinstance(pruned, Tensor)
    assert pruned.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(pruned, w.to(pruned.dtype))


@pytest.mark.parametrize("pruner", BY_RATIOS)
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (14, 14)])
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_transposed_storage(pruner: str, shape: tuple[int, int], ties: bool) -> None:
    """A view is pruned like its contiguous copy, and is not changed."""
    w = gaussian(*shape, seed=3).float()
    if ties:
        w = (2 * w).round()
    view = w.T.contiguous().T
    keep = budget(shape, 0.3, 0.3)
    got, expected = dense(prune(view, pruner, keep)), dense(prune(w, pruner, keep))
    if pruner == "mp":
        assert torch.equal(got, expected)
    else:
        # another stride is another BLAS kernel: equal up to float error, as is the threshold
        difference = (got - expected).abs()
        assert int((difference > 1e-5).sum()) <= (0 if not ties else 2)
    assert torch.equal(view, w)


@pytest.mark.parametrize("pruner", BY_RATIOS)
def test_a_planted_matrix_is_found(pruner: str) -> None:
    """LoRS recovers low rank plus a few large elements, which neither part does alone."""
    w = with_spectrum(60, 80, [40.0, 30.0, 20.0], seed=4).float()
    sparse = torch.zeros(60, 80)
    sparse.view(-1)[torch.arange(0, 4800, 160)] = 0.5
    whole = w + sparse
    left = dense(prune(whole, pruner, budget((60, 80), 0.05, 30 / 4800)))
    lost = float((left - whole).norm() / sparse.norm())
    assert lost < 0.4 if pruner == "lors" else lost > 0.9


@pytest.mark.parametrize("factor", [-1.0, 2.0**-10, 0.5, 2.0**10, 0.15, 3.0, 1e-6, 1e-15, 1e15])
@pytest.mark.parametrize("pruner", BY_RATIOS)
def test_scaling_commutes(pruner: str, factor: float) -> None:
    w = gaussian(30, 44, seed=5).float()
    keep = budget(w.shape, 0.2, 0.3)
    expected = prune(w, pruner, keep).to_dense()
    got = prune(w * factor, pruner, keep).to_dense() / factor
    if pruner == "mp" and abs(np.frexp(factor)[0]) == 0.5:
        assert torch.equal(got, expected)  # a power of two; LAPACK's own thresholds are no such
    assert float((got - expected).norm() / expected.norm()) < 2e-5


# Ties and zeros in plenty, and no magnitude whose square float32 does not hold
VALUES = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 0.5]),
    st.floats(2**-10, 2**10, width=32),
    st.floats(-(2**10), -(2**-10), width=32),
)
MATRICES = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=VALUES)
RATIO = st.floats(0, 1)
property_test = settings(deadline=None, max_examples=50, derandomize=True)


@property_test
@given(MATRICES, RATIO, st.sampled_from(["svp", "mp"]))
def test_lors_at_a_ratio_of_one_is_the_identity(w, ratio: float, full: str) -> None:
    svp, mp = (1.0, ratio) if full == "svp" else (ratio, 1.0)
    tensor = torch.from_numpy(w)
    assert torch.equal(dense(prune(tensor, "lors", budget(w.shape, svp, mp))), tensor)


@property_test
@given(MATRICES, RATIO.filter(bool), RATIO.filter(bool))
def test_density_is_exact(w, svp: float, mp: float) -> None:
    keep = budget(w.shape, svp, mp)
    if keep.whole:
        return
    pruned = prune(torch.from_numpy(w), "lors", keep)
    assert pruned.left.shape[1] == rank_of(svp, w.shape)
    kept = kept_of(mp, w.shape)
    assert (0 if pruned.mask is None else int(pruned.mask.sum())) == kept


@property_test
@given(MATRICES, RATIO, RATIO, st.sampled_from(sorted(BY_RATIOS)))
def test_any_matrix_against_the_paper(w, svp: float, mp: float, pruner: str) -> None:
    svp_ratio, mp_ratio = (None if pruner == "mp" else svp), (None if pruner == "svp" else mp)
    keep = budget(w.shape, svp_ratio, mp_ratio)
    tensor = torch.from_numpy(w.copy())
    if keep.whole or not (keep.rank or keep.kept):
        return
    check_pruned(tensor, svp_ratio, mp_ratio, prune(tensor, pruner, keep))
    assert torch.equal(tensor, torch.from_numpy(w))


@property_test
@given(MATRICES, RATIO, RATIO, st.integers(-60, 60), st.sampled_from(sorted(BY_RATIOS)))
def test_any_magnitude_against_the_paper(w, svp: float, mp: float, exponent: int, pruner) -> None:
    svp_ratio, mp_ratio = (None if pruner == "mp" else svp), (None if pruner == "svp" else mp)
    keep = budget(w.shape, svp_ratio, mp_ratio)
    if keep.whole or not (keep.rank or keep.kept):
        return
    tensor = torch.from_numpy(w) * 2.0**exponent
    check_pruned(tensor, svp_ratio, mp_ratio, prune(tensor, pruner, keep))


@property_test
@given(MATRICES, RATIO, RATIO)
def test_lors_loses_no_more_than_its_low_rank_part(w, svp: float, mp: float) -> None:
    keep = budget(w.shape, svp, mp)
    if keep.whole or not (keep.rank and keep.kept):
        return
    tensor = torch.from_numpy(w)
    lost = float((dense(prune(tensor, "lors", keep)) - tensor).norm())
    low_rank = dense(prune(tensor, "svp", keep))
    assert lost <= float((low_rank - tensor).norm()) + 1e-5 * float(tensor.norm())


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["svp", "lors"])
def test_forty_million_entries(pruner: str) -> None:
    """Whisper's embedding, with three planted directions over noise."""
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(51865, 3, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(768, 3, generator=generator)).Q
    planted = (left * torch.tensor([3.0, 2.0, 1.0])) @ right.T
    w = torch.randn(51865, 768, generator=generator).mul_(1e-5).add_(planted)
    keep = budget(w.shape, 0.004, 0.1)
    assert keep.rank == 3
    pruned = prune(w, pruner, keep)
    found = pruned.left @ pruned.right
    assert float((found - planted).norm() / planted.norm()) < 5e-3  # the noise of 3 directions
    if pruner == "lors":
        assert keep.kept == 51865 * 768 // 10
        assert int(torch.count_nonzero(pruned.mask)) == keep.kept
        residual = (w - found).abs_()
        assert float(residual[pruned.mask].min()) >= float(residual[~pruned.mask].max()) - 1e-9
