"""The largest eigenpairs against NumPy's full decomposition."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from reference import gaussian, with_spectrum

from lorsmerge_cli.core.eigen import largest_eigenpairs

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}


def symmetric(kind: str, n: int) -> torch.Tensor:
    if kind == "gram":
        w = gaussian(n, 2 * n, seed=n)
        return w @ w.T
    if kind == "indefinite":
        w = gaussian(n, n, seed=n)
        return w + w.T
    if kind == "wide":
        w = with_spectrum(n, n, [10.0**-i for i in range(n)], seed=n)
        return w @ w.T
    if kind == "coupled":  # with off-diagonals of 1e-4 of the norm
        beside = torch.diag(torch.full((n - 1,), 1e-4), 1)
        return (torch.eye(n) + beside + beside.T).double()
    return {
        "zero": torch.zeros(n, n),
        "identity": torch.eye(n),
        "ones": torch.ones(n, n),
        "diagonal": torch.diag(torch.arange(n, 0, -1) - n / 2),
    }[kind].double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "kind", ["gram", "indefinite", "wide", "zero", "identity", "ones", "diagonal"]
)
@pytest.mark.parametrize(
    ("n", "count"), [(1, 1), (2, 1), (2, 2), (7, 1), (7, 4), (7, 7), (60, 1), (60, 13), (60, 60)]
)
def test_against_numpy(n: int, count: int, kind: str, dtype: torch.dtype) -> None:
    exact = symmetric(kind, n)
    values, vectors = largest_eigenpairs(exact.to(dtype, copy=True), count)
    assert values.shape == (count,)
    assert vectors.shape == (n, count)
    assert values.dtype == vectors.dtype == dtype
    expected = np.linalg.eigh(exact.numpy())[0][::-1][:count]
    size = float(np.linalg.norm(exact.numpy(), 2)) or 1.0
    assert np.abs(values.double().numpy() - expected).max() <= TOLERANCE[dtype] * size
    assert (values[:-1] >= values[1:]).all()
    wide = vectors.double()
    error = (exact @ wide - wide * values.double()).norm(dim=0).max()
    assert float(error) <= 2 * TOLERANCE[dtype] * size
    assert torch.allclose(wide.T @ wide, torch.eye(count).double(), atol=50 * TOLERANCE[dtype])


@pytest.mark.parametrize("exponent", [-110, -80, -54, 0, 54, 110])
@pytest.mark.parametrize("kind", ["gram", "indefinite", "coupled"])
def test_any_magnitude(kind: str, exponent: int) -> None:
    """float32's smallest squares are of 1e-19: LAPACK takes an off-diagonal below that for zero."""
    exact = symmetric(kind, 8) * 2.0**exponent
    values, vectors = largest_eigenpairs(exact.float(), 3)
    wide, size = vectors.double(), float(exact.norm())
    error = (exact @ wide - wide * values.double()).norm(dim=0).max()
    assert float(error) <= 2 * TOLERANCE[torch.float32] * size
    expected = np.linalg.eigvalsh(exact.numpy())[::-1][:3]
    assert np.abs(values.double().numpy() - expected).max() <= TOLERANCE[torch.float32] * size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_transposed_storage(dtype: torch.dtype) -> None:
    exact = symmetric("gram", 9)
    transposed = exact.to(dtype).T.contiguous().T
    values, _ = largest_eigenpairs(transposed, 3)
    assert values.double().numpy() == pytest.approx(np.linalg.eigvalsh(exact)[::-1][:3], rel=1e-5)


def test_calls_run_beside_each_other() -> None:
    """No state is shared between the threads of a pool."""
    matrices = [symmetric("gram", 40 + i) for i in range(8)]
    alone = [largest_eigenpairs(matrix.clone(), 6) for matrix in matrices]
    together: list = [None] * len(matrices)

    def work(i: int) -> None:
        together[i] = largest_eigenpairs(matrices[i].clone(), 6)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(matrices))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (values, vectors), (values_too, vectors_too) in zip(alone, together, strict=True):
        assert values_too.numpy() == pytest.approx(values.numpy(), rel=1e-12)
        cosines = (vectors * vectors_too).sum(dim=0).abs()
        assert cosines.numpy() == pytest.approx(1, abs=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "count"), [(1, 1), (60, 1), (60, 13), (60, 60)])
def test_cuda_agrees_with_the_cpu(n: int, count: int, dtype: torch.dtype) -> None:
    matrix = symmetric("gram", n).to(dtype)
    values, vectors = largest_eigenpairs(matrix.cuda(), count)
    assert values.device.type == vectors.device.type == "cuda"
    expected, _ = largest_eigenpairs(matrix.clone(), count)
    assert values.cpu().numpy() == pytest.approx(expected.numpy(), rel=1e-4)
    error = (matrix.cuda() @ vectors - vectors * values).norm() / matrix.norm()
    assert float(error) < 10 * TOLERANCE[dtype]
