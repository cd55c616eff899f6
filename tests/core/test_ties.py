"""TIES against the algorithm of its paper, element by element in float64."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import gaussian, spiked

from lorsmerge_cli.core.combining.ties import ties

SHAPES = [(1,), (3,), (50,), (1, 50), (40, 24), (24, 40), (4, 3, 5), (2, 8, 6)]


def check(deltas: list[torch.Tensor], scales: list[float], kept: float = 0.2) -> None:
    before = [delta.clone() for delta in deltas]
    got = ties(zip(deltas, scales, strict=True), kept).double().numpy()
    expected = reference.ties([delta.double().numpy() for delta in deltas], scales, kept)
    assert np.allclose(got, expected, rtol=1e-6, atol=1e-30)
    assert all(torch.equal(delta, copy) for delta, copy in zip(deltas, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kept", [0.2, 0.5, 1.0, 0.001])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_shares(shape: tuple[int, ...], kept: float, dtype: torch.dtype) -> None:
    numel = int(np.prod(shape))
    check([gaussian(1, numel, seed).reshape(shape).to(dtype) for seed in range(5)], [0.3] * 5, kept)


@pytest.mark.parametrize("scales", [[1.0, 1.0], [-1.0, -1.0], [0.5, -2.0], [0.0, 1.0], [0.0, 0.0]])
def test_coefficients(scales: list[float]) -> None:
    check([gaussian(12, 9, 1), spiked(12, 9, 5)], scales)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    st.lists(
        st.lists(st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]), min_size=7, max_size=7),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([0.2, 0.3, 0.5, 1.0]),
)
def test_equal_magnitudes_and_sums_of_zero(rows: list[list[float]], kept: float) -> None:
    check([torch.tensor(row) for row in rows], [1.0] * len(rows), kept)


def test_the_sign_does_not_hang_on_the_order() -> None:
    """0.1 + 0.2 - 0.3 is not zero in float32, and its sign depends on the order."""
    values = [torch.tensor([x]) for x in (0.1, 0.2, -0.3, 1e6, -1e6)]
    found = {
        float(ties(((values[i], 1.0) for i in order), 1.0))
        for order in ((0, 1, 2, 3, 4), (3, 0, 1, 2, 4), (4, 2, 3, 1, 0))
    }
    assert len(found) == 1


def test_deltas_that_cancel_out_leave_nothing() -> None:
    delta = gaussian(6, 9)
    assert not ties([(delta, 1.0), (-delta, 1.0)]).any()


def test_one_delta_is_trimmed_and_scaled() -> None:
    delta = torch.tensor([1.0, -5.0, 2.0, 3.0, -4.0])
    assert torch.equal(ties([(delta, 0.5)]), torch.tensor([0.0, -2.5, 0.0, 0.0, 0.0]))
