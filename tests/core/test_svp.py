"""Singular value pruning against a full SVD in float64."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch
from reference import (
    ALL,
    SPECTRA,
    Matrix,
    best_distance,
    gaussian,
    plain_svp,
    rank_of,
    separated,
    spiked,
    svp,
)
from torch import Tensor

from lorsmerge_cli.core.eigen import EigenError, gram
from lorsmerge_cli.core.pruning import prune
from lorsmerge_cli.core.pruning.budget import budget
from lorsmerge_cli.core.pruning.svp import truncated_svd

# Largest error where the plain implementation's own is smaller, as a share of the norm
FLOOR = {torch.float32: 2e-5, torch.float64: 1e-7}
svp_module = import_module("lorsmerge_cli.core.pruning.svp")  # the name is the function too


def check_low_rank(matrix: Tensor, left: Tensor, right: Tensor, rank: int) -> None:
    """Check that left @ right is the best approximation of that rank, and equals it where it is unique."""
    d, k = matrix.shape
    assert left.shape == (d, rank)
    assert right.shape == (rank, k)
    assert left.dtype == right.dtype == matrix.dtype
    w, got = matrix.double().numpy(), (left.double() @ right.double()).numpy()
    norm = float(np.linalg.norm(w))
    floor = FLOOR[matrix.dtype] * norm
    assert np.linalg.norm(w - got) <= best_distance(w, rank) + floor
    if norm and separated(w, rank):
        expected = svp(w, rank)
        plain = float(np.linalg.norm(plain_svp(matrix, rank).double().numpy() - expected))
        assert np.linalg.norm(got - expected) <= max(2 * plain, floor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [0.0001, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("matrix", ALL, ids=lambda m: m.name)
def test_truncated_svd_is_the_best_approximation(
    matrix: Matrix, ratio: float, dtype: torch.dtype
) -> None:
    w = matrix.make().to(dtype)
    rank = rank_of(ratio, w.shape)
    check_low_rank(w, *truncated_svd(w, rank), rank)


@pytest.mark.parametrize("matrix", SPECTRA, ids=lambda m: m.name)
def test_factors_are_orthonormal_and_in_descending_order(matrix: Matrix) -> None:
    w = matrix.make().float()
    left, right = truncated_svd(w, 6)
    basis, other = (left, right.T) if w.shape[0] <= w.shape[1] else (right.T, left)
    assert torch.allclose(basis.T @ basis, torch.eye(6), atol=1e-5)
    expected = np.linalg.svd(w.double().numpy(), compute_uv=False)[:6]
    assert other.norm(dim=0).numpy() == pytest.approx(expected, rel=1e-4, abs=1e-5 * expected[0])


@pytest.mark.parametrize("factor", [30, 300, 3000])
@pytest.mark.parametrize("rank", [3, 5, 20])
def test_wide_spectra_are_as_exact_as_an_svd(factor: float, rank: int) -> None:
    """The tail of a spiked matrix is below the noise of a float32 Gram matrix."""
    w = spiked(96, 128, factor).float()
    left, right = truncated_svd(w, rank)
    tail = best_distance(w.double().numpy(), rank)
    lost = float((w.double() - left.double() @ right.double()).norm())
    assert lost <= tail * (1 + 1e-4) + 2e-6 * float(w.norm())


@pytest.mark.parametrize("rank", [3, 5, 20])
def test_wide_spectra_in_float64(rank: int) -> None:
    """If a float64 Gram matrix is not precise enough either, the SVD itself is taken."""
    w = spiked(96, 128, 1e9)
    left, right = truncated_svd(w, rank)
    lost = float((w - left @ right).norm())
    assert lost <= best_distance(w.numpy(), rank) * (1 + 1e-4) + 1e-14 * float(w.norm())


def test_a_float32_gram_matrix_alone_would_not_do() -> None:
    """Without the guard the test above would fail."""
    w = spiked(96, 128, 3000).float()
    vectors = torch.linalg.eigh(w @ w.T).eigenvectors[:, -20:]
    lost = float((w.double() - vectors.double() @ (vectors.double().T @ w.double())).norm())
    assert lost > best_distance(w.double().numpy(), 20) * (1 + 1e-4) + 2e-6 * float(w.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(20, 33), (33, 20), (12, 12), (1, 8), (8, 1), (1, 1)])
def test_the_svd_is_the_last_resort(
    shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def refuse(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
        calls.append(matrix.dtype)
        raise EigenError("no convergence")

    monkeypatch.setattr(svp_module, "largest_eigenpairs", refuse)
    w = gaussian(*shape, seed=8).to(dtype)
    rank = max(1, min(shape) // 3)
    check_low_rank(w, *truncated_svd(w, rank), rank)
    assert calls == list(dict.fromkeys([dtype, torch.float64]))


def test_float64_takes_over_where_float32_does_not_converge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = svp_module.largest_eigenpairs

    def refuse_float32(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
        if matrix.dtype == torch.float32:
            raise EigenError("no convergence")
        return real(matrix, count)

    monkeypatch.setattr(svp_module, "largest_eigenpairs", refuse_float32)
    w = gaussian(20, 33, seed=8).float()
    check_low_rank(w, *truncated_svd(w, 5), 5)


@pytest.mark.parametrize("exponent", [-38, -30, -25, -23, 18, 20, 30, 35])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_squares_beyond_the_range_of_float32(exponent: int, shape: tuple[int, int]) -> None:
    """Elements whose squares overflow or underflow in float32."""
    w = (gaussian(*shape, seed=6) * 10.0**exponent).float()
    check_low_rank(w, *truncated_svd(w, 5), 5)


@pytest.mark.parametrize("exponent", [-300, -200, -160, 150, 160, 200, 300])
def test_squares_beyond_the_range_of_float64(exponent: int) -> None:
    w = gaussian(24, 40, seed=6)
    left, right = truncated_svd(w * 10.0**exponent, 5)
    got = (left @ (right * 10.0**-exponent)).numpy()  # a norm would under- or overflow itself
    assert np.linalg.norm(got - svp(w.numpy(), 5)) <= 1e-7 * np.linalg.norm(w.numpy())


# A Gram matrix of these has, once it is tridiagonal, off-diagonals far below its norm
WEAKLY_COUPLED = {
    "3x3": [[0, 1, 1], [1, 2**-9, 1], [1, 1, 1]],
    "7x6": [
        *([[-24, 0, -24, -24, -24, -24]] * 2),
        [-24, -24, -24, -24, -24, -24],
        [-24, -24, 0, -24, -24, -24],
        [-24, -24, 1, -24, -24, -24],
        *([[-24, -24, -24, -24, -24, -24]] * 2),
    ],
}


@pytest.mark.parametrize("exponent", [0, -20, -27, -32, -40])
@pytest.mark.parametrize("rows", WEAKLY_COUPLED)
def test_small_deltas_are_as_exact_as_large_ones(rows: str, exponent: int) -> None:
    """LAPACK drops off-diagonals whose squares underflow, below 1e-19 in float32.

    At entries of 1e-8, which small learning rates give, that is 1e-4 of a Gram matrix's norm.
    """
    w = torch.tensor(WEAKLY_COUPLED[rows], dtype=torch.float32) * 2.0**exponent
    for rank in range(1, min(w.shape)):
        check_low_rank(w, *truncated_svd(w, rank), rank)


@pytest.mark.parametrize("pruner", ["svp", "lors"])
def test_nothing_kept_is_zero_and_silent(pruner: str, capfd: pytest.CaptureFixture[str]) -> None:
    """LAPACK prints to the terminal if no eigenpair is asked for."""
    w = gaussian(10, 14).float()
    pruned = prune(w, pruner, budget(w.shape, 0.0, 0.0))
    assert torch.equal(pruned.to_dense(), torch.zeros_like(w))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("make", [
    lambda w: w.T.contiguous().T,
    lambda w: torch.stack([w, w], dim=2)[..., 0],
    lambda w: torch.cat([w, w], dim=1)[:, : w.shape[1]],
], ids=["transposed", "strided", "sliced"])  # fmt: skip
@pytest.mark.parametrize("shape", [(20, 33), (33, 20), (20, 20)])
def test_strides_do_not_matter(make, shape: tuple[int, int]) -> None:
    w = gaussian(*shape, seed=9).float()
    view = make(w)
    assert torch.equal(view, w)
    assert not view.is_contiguous()
    check_low_rank(view, *truncated_svd(view, 4), 4)
    assert torch.equal(view, w)


@pytest.mark.parametrize("columns", [1, 1023, 1024, 1025, 2500])
def test_gram_is_widened_in_blocks(columns: int) -> None:
    rows = gaussian(5, columns, seed=columns).float()
    wide = gram(rows, torch.float64)
    assert wide.dtype == torch.float64
    assert wide.numpy() == pytest.approx(rows.double().numpy() @ rows.double().numpy().T, rel=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(96, 128), (128, 96), (1, 9), (64, 64)])
def test_cuda_agrees_with_the_cpu(shape: tuple[int, int]) -> None:
    w = gaussian(*shape, seed=10).float()
    rank = max(1, min(shape) // 8)
    left, right = truncated_svd(w.cuda(), rank)
    assert left.device.type == right.device.type == "cuda"
    check_low_rank(w, left.cpu(), right.cpu(), rank)


@pytest.mark.gpu
@pytest.mark.parametrize("matrix", SPECTRA, ids=lambda m: m.name)
def test_cuda_on_wide_spectra(matrix: Matrix) -> None:
    w = matrix.make().float()
    left, right = truncated_svd(w.cuda(), 8)
    check_low_rank(w, left.cpu(), right.cpu(), 8)
