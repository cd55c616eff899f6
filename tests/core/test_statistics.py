"""Figures of a delta against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import DEGENERATE, SHAPES, SPECTRA, Matrix, gaussian

from lorsmerge_cli.core import statistics
from lorsmerge_cli.core.statistics import agreement, energy, nonzeros, spectrum, top_energy

MATRICES = [*SHAPES, *DEGENERATE, *SPECTRA]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("matrix", MATRICES, ids=lambda m: m.name)
def test_spectrum(matrix: Matrix, dtype: torch.dtype) -> None:
    w = matrix.make().to(dtype)
    before = w.clone()
    squares = spectrum(w)
    expected = np.linalg.svd(w.double().numpy(), compute_uv=False) ** 2
    assert squares.shape == expected.shape
    assert squares.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (squares >= 0).all()
    assert (squares[:-1] >= squares[1:]).all()
    tolerance = (1e-13 if dtype == torch.float64 else 1e-5) * expected.sum()
    assert np.abs(squares.double().numpy() - expected).max() <= tolerance
    assert float(squares.sum()) == pytest.approx(energy(w), rel=1e-5, abs=1e-30)
    assert torch.equal(w, before)


@pytest.mark.parametrize(("ratio", "rank"), [
    (0.0, 0), (1e-9, 1), (0.1, 3), (0.5, 16), (0.99, 32), (1.0, 33),
])  # fmt: skip
def test_top_energy(ratio: float, rank: int) -> None:
    w = gaussian(33, 50)
    expected = (np.linalg.svd(w.numpy(), compute_uv=False)[:rank] ** 2).sum()
    assert top_energy(spectrum(w), ratio) == pytest.approx(expected, rel=1e-12)
    assert top_energy(spectrum(w.float()), ratio) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("block", [1, 7, 240, 1 << 20])
@pytest.mark.parametrize("transposed", [False, True])
def test_agreement(
    block: int, dtype: torch.dtype, transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "BLOCK", block)
    a, b = gaussian(12, 20, 1).to(dtype), gaussian(12, 20, 2).to(dtype)
    a[::2, :5] = 0
    b[1::3] = 0
    b[0, 0], a[1, 2] = -0.0, -0.0
    x, y = a.double().numpy(), b.double().numpy()
    both = (x != 0) & (y != 0)
    product, shared, opposed = agreement(a.T.contiguous().T if transposed else a, b)
    assert product == pytest.approx((x * y).sum(), rel=1e-12)
    assert shared == both.sum()
    assert opposed == (both & (np.sign(x) != np.sign(y))).sum()


def test_agreement_of_tiny_entries() -> None:
    """The product of two signs, not of two numbers: that one underflows."""
    tiny = torch.full((3, 3), 1e-30)
    assert agreement(tiny, -tiny) == (pytest.approx(-9e-60), 9, 9)
    assert agreement(tiny, tiny) == (pytest.approx(9e-60), 9, 0)
    assert agreement(tiny, torch.zeros(3, 3)) == (0.0, 0, 0)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_energy_is_summed_in_float64(scale: float) -> None:
    w = (gaussian(20, 30) * scale).float()
    assert energy(w) == pytest.approx((w.double().numpy() ** 2).sum(), rel=1e-12)
    assert energy(torch.ones(1000, dtype=torch.bfloat16)) == pytest.approx(1000)
    assert energy(torch.full((3,), 6e4, dtype=torch.float16)) == pytest.approx(3 * 6e4**2)


def test_nonzeros() -> None:
    assert nonzeros(torch.tensor([[0.0, -0.0, 1e-45], [-1.0, 2.0, 0.0]])) == 3
    assert nonzeros(torch.zeros(4, 4)) == 0
