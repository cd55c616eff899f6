"""Budgets: ratios as a rank and a number of elements."""

from __future__ import annotations

import pytest

from lorsmerge_cli.core.pruning.budget import Budget, budget


@pytest.mark.parametrize(
    ("shape", "svp", "mp", "expected"),
    [
        ((768, 768), 0.01, None, Budget(7, 0, whole=False)),
        ((3072, 768), 0.05, 0.4, Budget(38, 943718, whole=False)),
        ((768, 3072), 0.05, 0.4, Budget(38, 943718, whole=False)),
        ((10, 20), 1e-9, None, Budget(1, 0, whole=False)),
        ((10, 20), 0.0999, None, Budget(1, 0, whole=False)),
        ((10, 20), 0.1999, None, Budget(1, 0, whole=False)),
        ((10, 20), 0.2, None, Budget(2, 0, whole=False)),
        ((10, 20), 0.999, None, Budget(9, 0, whole=False)),
        ((10, 20), 1, None, Budget(10, 0, whole=True)),
        ((10, 20), None, 1e-9, Budget(0, 0, whole=False)),
        ((10, 20), None, 0.0051, Budget(0, 1, whole=False)),
        ((10, 20), None, 0.9999, Budget(0, 199, whole=False)),
        ((10, 20), None, 1.0, Budget(0, 200, whole=True)),
        ((10, 20), 0.5, 1.0, Budget(5, 200, whole=True)),
        ((10, 20), 1.0, 0.5, Budget(10, 100, whole=True)),
        ((10, 20), 0, 0, Budget(0, 0, whole=False)),
        ((10, 20), 0.0, 0.5, Budget(0, 100, whole=False)),
        ((10, 20), None, None, Budget(0, 0, whole=False)),
        # a vector has one singular triplet, and the least that SVP keeps is one
        ((1, 20), 0.1, None, Budget(1, 0, whole=True)),
        ((20, 1), 0.1, 0.1, Budget(1, 2, whole=True)),
        ((1, 1), 0.1, None, Budget(1, 0, whole=True)),
        ((1, 1), None, 0.5, Budget(0, 0, whole=False)),
    ],
)
def test_budgets(shape, svp, mp, expected) -> None:
    assert budget(shape, svp, mp) == expected


@pytest.mark.parametrize("shape", [(100, 100), (384, 1536), (512, 512), (768, 3072), (1280, 5120)])
def test_a_ratio_means_the_decimal_that_was_typed(shape: tuple[int, int]) -> None:
    """0.29 of 100 is 29, though 0.29 * 100 is 28.999999999999996 in floating point."""
    for percent in range(1, 100):
        keep = budget(shape, percent / 100, percent / 100)
        assert keep.rank == max(1, percent * min(shape) // 100), f"svp={percent}%"
        assert keep.kept == percent * shape[0] * shape[1] // 100, f"mp={percent}%"
