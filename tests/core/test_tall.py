"""TALL masks of one tensor, against a plain float64 implementation."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorsmerge_cli.core.tall import each_mask, scaled_sum

SHAPES = [(5, 7), (1, 9), (9, 1), (1, 1), (), (3, 4, 5), (0, 4)]
THRESHOLDS = [0.0, 0.2, 0.4, 1.0, 3.0]


def drawn(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CASES = {
    "one": lambda shape: [drawn(shape, 1)],
    "three": lambda shape: [drawn(shape, seed) for seed in (1, 2, 3)],
    "ten": lambda shape: [drawn(shape, seed) for seed in range(10)],
    "of rank one": lambda shape: [torch.full(shape, float(seed)).double() for seed in (1, -2, 3)],
    "one of zeros": lambda shape: [drawn(shape, 1), torch.zeros(shape).double()],
    "equal": lambda shape: [drawn(shape, 1)] * 2,
    "opposite": lambda shape: [drawn(shape, 1), -drawn(shape, 1)],
    "of very different size": lambda shape: [1e-9 * drawn(shape, 1), drawn(shape, 2)],
}


def kept_by(deltas: list[torch.Tensor], scales: list[float], threshold: float) -> list[np.ndarray]:
    pairs = list(zip(deltas, scales, strict=True))
    total = scaled_sum(pairs)
    return [(total * mask).numpy() for mask in each_mask(pairs, total, threshold)]


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_against_the_reference(case: str, shape: tuple[int, ...], threshold: float) -> None:
    deltas = CASES[case](shape)
    scales = [1.0 + 0.25 * number for number in range(len(deltas))]
    wanted = reference.tall([delta.numpy() for delta in deltas], scales, threshold)
    for found, other in zip(kept_by(deltas, scales, threshold), wanted, strict=True):
        np.testing.assert_allclose(found, other, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("case", CASES)
def test_at_a_threshold_of_zero_all_that_is_not_zero_is_kept(case: str) -> None:
    pairs = [(delta, 1.0) for delta in CASES[case]((5, 7))]
    for (delta, _), mask in zip(pairs, each_mask(pairs, scaled_sum(pairs), 0.0), strict=True):
        assert torch.equal(mask, delta != 0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), power=st.integers(-8, 8), order=st.permutations(range(4)))
def test_neither_order_nor_a_common_scale_changes_a_mask(
    seed: int, power: int, order: list[int]
) -> None:
    pairs = [(drawn((4, 6), seed + number).float(), 0.5) for number in range(4)]
    masks = list(each_mask(pairs, scaled_sum(pairs), 0.4))
    other = [(pairs[number][0], 0.5 * 2.0**power) for number in order]
    moved = list(each_mask(other, scaled_sum(other), 0.4))
    assert all(torch.equal(masks[number], mask) for number, mask in zip(order, moved, strict=True))
