"""Combiners that weigh deltas by statistics over audio: RegMean and Fisher merging."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import gaussian

from lorsmerge_cli.core.combining import COMBINERS
from lorsmerge_cli.core.combining.fisher import fisher
from lorsmerge_cli.core.combining.regmean import regmean
from lorsmerge_cli.core.methods import METHODS

SHAPES = [(5, 7), (1, 9), (9, 1), (1, 1), (12, 3), (24, 40)]
WEIGHING = {"regmean": regmean, "fisher": fisher}


def heard(rows: int, k: int, seed: int) -> torch.Tensor:
    """The Gram matrix of inputs that lean one way, as a layer's do."""
    inputs = gaussian(rows, k, seed) * torch.logspace(0, -2, k).double() + 0.3
    return inputs.T @ inputs / rows


GRAMS = {
    "many inputs": lambda k: [heard(4 * k + 3, k, seed) for seed in (1, 2, 3)],
    "fewer inputs than columns": lambda k: [heard(max(1, k // 3), k, seed) for seed in (1, 2, 3)],
    "one input": lambda k: [heard(1, k, seed) for seed in (1, 2, 3)],
    "one silent": lambda k: [heard(40, k, 1), torch.zeros(k, k).double(), heard(40, k, 3)],
    "all silent": lambda k: [torch.zeros(k, k).double()] * 3,
    "of very different size": lambda k: [1e-6 * heard(40, k, 1), heard(40, k, 2), heard(9, k, 3)],
    "dead columns": lambda k: [
        heard(40, k, seed) * torch.outer(*[(torch.arange(k) % 2).double()] * 2)
        for seed in (1, 2, 3)
    ],
}


def terms_of(deltas, scales, statistics, dtype=torch.float32):
    return [
        (delta.to(dtype), scale, statistic.to(dtype))
        for delta, scale, statistic in zip(deltas, scales, statistics, strict=True)
    ]


def close(got: torch.Tensor, expected: np.ndarray, tolerance: float, size: float) -> bool:
    return bool((np.abs(got.double().numpy() - expected) <= tolerance * size).all())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize(
    ("off_diagonal", "ridge"), [(1.0, 1e-3), (0.9, 1e-3), (0.0, 1e-2), (1.0, 1.0)]
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("grams", GRAMS)
def test_regmean_against_least_squares(grams, shape, off_diagonal, ridge, dtype, tolerance) -> None:
    deltas, scales = [gaussian(*shape, seed) * 1e-3 for seed in (4, 5, 6)], [1.0, 0.7, -0.2]
    terms = terms_of(deltas, scales, GRAMS[grams](shape[1]), dtype)
    before = [(delta.clone(), statistic.clone()) for delta, _, statistic in terms]
    got = regmean(iter(terms), off_diagonal=off_diagonal, ridge=ridge)
    assert got.dtype == dtype
    expected = reference.regmean(
        *zip(*((d.double().numpy(), s, g.double().numpy()) for d, s, g in terms), strict=True),
        off_diagonal, ridge,
    )  # fmt: skip
    # an update may be longer than the deltas in directions that few inputs have
    assert close(got, expected, tolerance, max(4e-3, np.abs(expected).max()))
    for (delta, _, statistic), (old, seen) in zip(terms, before, strict=True):
        assert torch.equal(delta, old)
        assert torch.equal(statistic, seen)


@pytest.mark.parametrize("ridge", [1e-6, 1e-3, 10.0])
@pytest.mark.parametrize("grams", GRAMS)
def test_regmean_of_one_delta_is_the_delta(grams: str, ridge: float) -> None:
    delta = gaussian(6, 9, 1).float()
    for gram in GRAMS[grams](9):
        got = regmean([(delta, 1.0, gram.float())], ridge=ridge)
        torch.testing.assert_close(got, delta, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grams", GRAMS)
def test_regmean_of_equal_deltas_is_the_delta(grams: str) -> None:
    delta = gaussian(6, 9, 1).float()
    got = regmean([(delta, 1.0, gram.float()) for gram in GRAMS[grams](9)])
    torch.testing.assert_close(got, delta, rtol=1e-5, atol=1e-5)


def test_regmean_of_equal_inputs_is_the_mean() -> None:
    gram, deltas = heard(40, 9, 1).float(), [gaussian(6, 9, seed).float() for seed in range(10)]
    got = regmean([(delta, 1.0, gram) for delta in deltas])
    torch.testing.assert_close(got, torch.stack(deltas).mean(0), rtol=1e-4, atol=1e-5)


def test_a_matrix_that_rounding_made_indefinite() -> None:
    """The eigenvalues below zero count as zero."""
    gram = heard(2, 9, 1).float().double()
    gram -= 1e-6 * gram.diagonal().mean() * torch.eye(9)
    deltas = [gaussian(6, 9, seed) for seed in (1, 2)]
    terms = [(delta, 1.0, gram) for delta in deltas]
    got = regmean(terms, ridge=1e-6)
    assert bool(torch.isfinite(got).all())
    unheard = torch.linalg.eigh(gram)[1][:, :5]  # there the update is near the mean
    assert float((got @ unheard).norm()) < 10 * float(sum(deltas).norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [*SHAPES, (7,), (2, 3, 4), (0, 4)], ids=str)
def test_fisher_against_its_formula(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    deltas = [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]
    information = [torch.rand(shape, generator=generator).to(dtype) ** 8 * 10 for _ in range(3)]
    information[1] = torch.zeros(shape, dtype=dtype)
    scales = [1.0, 0.7, -0.2]
    got = fisher(iter(zip(deltas, scales, information, strict=True)))
    assert got.dtype == dtype
    expected = reference.fisher(
        [d.numpy() for d in deltas], scales, [f.numpy() for f in information]
    )
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_fisher_where_no_gradient_reaches_is_the_mean() -> None:
    deltas = [gaussian(5, 7, seed).float() for seed in range(10)]
    got = fisher([(delta, 1.0, torch.zeros(5, 7)) for delta in deltas])
    torch.testing.assert_close(got, torch.stack(deltas).mean(0))


@pytest.mark.parametrize("name", WEIGHING)
def test_one_wide_delta_widens_the_update(name: str) -> None:
    for order in ([torch.float64, torch.float32], [torch.float32, torch.float64]):
        terms = [(gaussian(5, 5, s).to(d), 1.0, torch.eye(5)) for s, d in enumerate(order)]
        assert WEIGHING[name](terms).dtype == torch.float64


@pytest.mark.parametrize("name", WEIGHING)
def test_no_deltas(name: str) -> None:
    with pytest.raises(ValueError, match="no deltas"):
        WEIGHING[name](iter(()))


@pytest.mark.parametrize("name", WEIGHING)
@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.lists(st.floats(-2, 2), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_order_does_not_matter_and_scale_passes_through(name: str, scales, random) -> None:
    deltas = [gaussian(3, 5, seed) for seed in range(len(scales))]
    square = name == "regmean"
    statistics = [heard(7, 5, s) if square else gaussian(3, 5, s).abs() for s in range(len(scales))]
    terms = terms_of(deltas, scales, statistics, torch.float64)
    shuffled = terms.copy()
    random.shuffle(shuffled)
    once = WEIGHING[name](terms)
    size = max(
        1e-300,
        float(sum(delta.abs() * abs(s) for delta, s in zip(deltas, scales, strict=True)).max()),
    )
    assert float((WEIGHING[name](shuffled) - once).abs().max()) <= 1e-9 * size
    tripled = WEIGHING[name]([(d, 3 * s, f) for d, s, f in terms])
    assert float((tripled - 3 * once).abs().max()) <= 1e-9 * size


@pytest.mark.parametrize("name", WEIGHING)
def test_deltas_and_statistics_are_not_held(name: str) -> None:
    references: list[weakref.ref] = []

    def terms():
        for seed in range(6):
            assert sum(reference() is not None for reference in references) <= 2
            delta, statistic = gaussian(4, 4, seed), torch.eye(4)
            references.extend([weakref.ref(delta), weakref.ref(statistic)])
            yield delta, 0.5, statistic
            del delta, statistic

    WEIGHING[name](terms())
    assert len(references) == 12


@pytest.mark.parametrize("name", WEIGHING)
def test_a_tensor_without_statistics_is_averaged(name: str) -> None:
    deltas = [gaussian(5, 7, seed).float() for seed in range(3)]
    got = COMBINERS[name].combine((delta, 1.0) for delta in deltas)
    torch.testing.assert_close(got, torch.stack(deltas).mean(0))
    read = [lambda: torch.eye(7) if name == "regmean" else torch.ones(5, 7)] * 3
    weighed = COMBINERS[name].combine(((delta, 1.0) for delta in deltas), read)
    torch.testing.assert_close(weighed, got, rtol=1e-5, atol=1e-5)


def test_the_table_of_methods_says_what_their_combiners_need() -> None:
    for method in METHODS.values():
        combiner = COMBINERS[method.combiner]
        assert method.statistics == combiner.statistics
        assert method.statistics in ("", "gram", "fisher")
        if method.statistics:
            assert COMBINERS[combiner.rest].averages == combiner.averages
