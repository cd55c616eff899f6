"""Statistics of a delta against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import DEGENERATE, SHAPES, SPECTRA, Matrix, gaussian

from lorsmerge_cli.core import statistics
from lorsmerge_cli.core.statistics import (
    BaseRounding,
    agreement,
    base_rounding,
    energy,
    nonzeros,
    spectrum,
    top_energy,
)

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
    """Signs are multiplied, not numbers, whose product may underflow."""
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


WEIGHTS = {
    "normal": lambda g: torch.randn(300, 200, generator=g) * 0.05,
    "uniform": lambda g: (torch.rand(300, 200, generator=g) - 0.5) * 0.1,
    "laplace": lambda g: (
        torch.empty(300, 200).exponential_(30, generator=g)
        * torch.randn(300, 200, generator=g).sign()
    ),
    "about one": lambda g: 1 + 0.1 * torch.randn(300, 200, generator=g),
}
UPDATES = {
    "normal": lambda g: torch.randn(300, 200, generator=g),
    "signs": lambda g: torch.randn(300, 200, generator=g).sign(),  # the first steps of Adam
    "sparse": lambda g: torch.randn(300, 200, generator=g)
    * (torch.rand(300, 200, generator=g) < 0.05) * 4.5,
}  # fmt: skip


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("updates", UPDATES)
@pytest.mark.parametrize("size", [0.01, 0.3, 1.0, 2.0])  # of the rounding error's
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_share_of_a_rounded_base(
    weights: str, updates: str, size: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(1)
    true = WEIGHTS[weights](generator).double()
    base = true.to(dtype)
    error = true - base.double()
    update = UPDATES[updates](generator).double() * size * float(error.square().mean()) ** 0.5
    # a fine-tune of the weights that the base was rounded from
    delta = (error + update).float()
    wanted = float(error.square().sum() / delta.double().square().sum())
    assert base_rounding(base, delta).share == pytest.approx(wanted, abs=0.06)
    # a fine-tune of the base itself has the same update and no such error
    assert base_rounding(base, update.float()).share == 0


def test_blocks_add_up_and_large_ones_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    true = torch.randn(1000, 100, generator=generator)
    base = true.half()
    delta = true - base.float()
    whole = base_rounding(base, delta)
    monkeypatch.setattr(statistics, "SAMPLE", 1 << 12)
    sampled = base_rounding(base, delta)
    parts = sum(map(base_rounding, base.split(130), delta.split(130)), BaseRounding())
    for found in (sampled, parts):
        assert found.steps == pytest.approx(whole.steps, rel=0.05)
        assert found.squares == pytest.approx(whole.squares, rel=0.05)
        assert found.share == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounding_steps(dtype: torch.dtype) -> None:
    """Steps equal NumPy's spacing, also of subnormal numbers, zero and powers of two."""
    info = torch.finfo(dtype)
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 1.5, 0.05, -3e4, info.tiny, info.tiny / 4])
    base = values.to(dtype)
    if dtype == torch.bfloat16:
        steps = [
            2.0 ** max(-133, np.floor(np.log2(abs(v))) - 7 if v else -133)
            for v in base.float().tolist()
        ]
    else:
        steps = np.spacing(base.abs().numpy()).astype(float).tolist()
    wanted = sum(step**2 for step in steps)
    assert base_rounding(base, torch.zeros(9)).steps == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_delta_is_not_changed_by_looking_at_it(dtype: torch.dtype) -> None:
    base, delta = gaussian(20, 30, 1).half(), gaussian(20, 30, 2).to(dtype)
    before = base.clone(), delta.clone()
    base_rounding(base, delta)
    assert torch.equal(base, before[0])
    assert torch.equal(delta, before[1])


@pytest.mark.parametrize("shape", [(0,), (1,), (5, 0), ()])
def test_too_little_to_tell(shape: tuple[int, ...]) -> None:
    assert base_rounding(torch.zeros(shape).half(), torch.ones(shape)).share == 0
    assert BaseRounding().share == 0
