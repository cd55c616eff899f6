"""Iso-C, TSV-M, subspace boosting and Model Stock against their papers' formulas by plain SVDs in float64."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ALL, Matrix, gaussian, with_spectrum

from lorsmerge_cli.core.combining.iso_c import iso_c
from lorsmerge_cli.core.combining.model_stock import model_stock
from lorsmerge_cli.core.combining.tsv_m import tsv_m
from lorsmerge_cli.core.methods import find_method
from lorsmerge_cli.core.spectrum import between_polars, polar, singular_triplets

EXPECTED = {
    "iso_c": reference.iso_c, "tsv_m": reference.tsv_m, "boost": reference.boost,
    "tsv_m:beta=0.3": partial(reference.tsv_m, beta=0.3), "boost:beta=0.5": partial(reference.boost, beta=0.5),
    "model_stock": reference.model_stock,
}  # fmt: skip
SHAPES = [(1, 1), (1, 50), (50, 1), (40, 24), (24, 40), (32, 32), (200, 16), (7, 300)]


def check(name: str, deltas: list[torch.Tensor], scales: list[float]) -> None:
    """Hold an update against the reference, as a share of the deltas' size."""
    before = [delta.clone() for delta in deltas]
    got = find_method(name).combine(zip(deltas, scales, strict=True))
    assert got.dtype == max((delta.dtype for delta in deltas), key=lambda dtype: dtype.itemsize)
    assert all(torch.equal(delta, copy) for delta, copy in zip(deltas, before, strict=True))
    wide = [delta.double().numpy() for delta in deltas]
    eps = torch.finfo(got.dtype).eps
    expected = EXPECTED[name](wide, scales, *([] if name == "model_stock" else [eps]))
    size = sum(abs(s) * np.linalg.norm(w) for w, s in zip(wide, scales, strict=True))
    tolerance = 2e-4 if got.dtype == torch.float32 else 1e-8  # of singular vectors 1e-4 apart
    assert np.linalg.norm(got.double().numpy() - expected) <= tolerance * size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 5, 10])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", EXPECTED)
def test_shapes_and_numbers_of_deltas(name: str, shape, count: int, dtype: torch.dtype) -> None:
    scales = [(-1) ** i * (0.3 + 0.1 * i) for i in range(count)]
    check(name, [gaussian(*shape, seed).to(dtype) for seed in range(count)], scales)


@pytest.mark.parametrize("shape", [(9,), (4, 3, 5), (), (0, 4), (3, 0)], ids=str)
@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_no_matrix(name: str, shape: tuple[int, ...]) -> None:
    numel = int(np.prod(shape))
    if not numel:
        assert find_method(name).combine([(torch.zeros(shape), 1.0)]).shape == shape
        return
    check(name, [gaussian(1, numel, seed).reshape(shape) for seed in range(4)], [0.5] * 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("matrix", ALL, ids=lambda matrix: matrix.name)
@pytest.mark.parametrize("name", EXPECTED)
def test_matrices_that_hurt(name: str, matrix: Matrix, dtype: torch.dtype) -> None:
    """Beside an ordinary one of their size."""
    if name.startswith("tsv_m") and matrix.name == "identity":
        pytest.skip("which half of its equal singular values leads is not determined")
    hurts = matrix.make().to(dtype)
    other = gaussian(*hurts.shape, 11).to(dtype) * hurts.abs().max().clamp(min=1e-30)
    check(name, [hurts, other], [1.0, 0.5])


@pytest.mark.parametrize("name", EXPECTED)
def test_deltas_in_bfloat16(name: str) -> None:
    check(name, [gaussian(20, 30, seed).bfloat16().float() for seed in range(3)], [1.0] * 3)


@pytest.mark.parametrize("name", EXPECTED)
def test_zeros_stay_zeros(name: str) -> None:
    zero = torch.zeros(6, 9)
    combine = find_method(name).combine
    assert not combine([(zero, 1.0), (zero, 1.0)]).any()
    assert not combine([(gaussian(6, 9), 0.0)]).any()


@pytest.mark.parametrize("name", ["tsv_m", "model_stock"])
def test_one_delta_is_only_scaled(name: str) -> None:
    delta = gaussian(12, 20)
    torch.testing.assert_close(find_method(name).combine([(delta, 0.5)]), 0.5 * delta)


@pytest.mark.parametrize("name", EXPECTED)
def test_an_update_is_as_long_as_its_coefficients_say(name: str) -> None:
    deltas = [gaussian(12, 20, seed) for seed in range(3)]
    combine = find_method(name).combine
    torch.testing.assert_close(
        combine((delta, 0.3) for delta in deltas), 0.3 * combine((delta, 1.0) for delta in deltas)
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_a_turned_space_turns_the_update(name: str) -> None:
    """None of them knows the elements of a matrix, only its directions."""
    turn, other = (torch.linalg.qr(gaussian(n, n, n))[0] for n in (12, 20))
    deltas = [gaussian(12, 20, seed) for seed in range(3)]
    combine = find_method(name).combine
    turned = combine((turn @ delta @ other, 1.0) for delta in deltas)
    torch.testing.assert_close(turned, turn @ combine((delta, 1.0) for delta in deltas) @ other)


def test_iso_c_makes_the_spectrum_flat() -> None:
    deltas = [with_spectrum(30, 20, [2.0 / (i + 1) for i in range(20)], seed) for seed in (1, 2)]
    values = torch.linalg.svdvals(iso_c([(delta, 1.0) for delta in deltas]))
    mean = torch.linalg.svdvals(deltas[0] + deltas[1]).mean()
    torch.testing.assert_close(values, mean.expand(20))


def test_iso_c_gives_nothing_to_directions_that_no_delta_has() -> None:
    deltas = [gaussian(40, 3, seed).float() @ gaussian(3, 30, seed + 9).float() for seed in (1, 2)]
    values = torch.linalg.svdvals(iso_c([(delta, 1.0) for delta in deltas]).double())
    assert (values[:6] > 1).all()
    assert (values[6:] < 1e-4).all()


def test_tsv_m_leaves_deltas_that_share_nothing_as_they_are() -> None:
    """Their triplets are orthogonal already."""
    a, b = torch.zeros(12, 8).double(), torch.zeros(12, 8).double()
    a[:6, :4], b[6:, 4:] = gaussian(6, 4, 1), gaussian(6, 4, 2)
    torch.testing.assert_close(tsv_m([(a, 1.0), (b, 0.5)]), a + 0.5 * b)


def test_tsv_m_counts_equal_deltas_once() -> None:
    """At half of the rank each, by the mean of their coefficients."""
    delta = gaussian(10, 6)
    u, s, vt = torch.linalg.svd(delta, full_matrices=False)
    expected = (u[:, :3] * s[:3]) @ vt[:3]
    torch.testing.assert_close(tsv_m([(delta, 0.5), (delta, 1.5)]), expected)


def test_tsv_m_of_more_deltas_than_rows() -> None:
    """Each gives one direction, though they cannot be orthogonal."""
    check("tsv_m", [gaussian(3, 40, seed) for seed in range(7)], [1.0] * 7)


def test_model_stock_between_deltas_that_agree_and_deltas_that_do_not() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])
    torch.testing.assert_close(model_stock([(a, 1.0), (a, 2.0)]), 1.5 * a)
    assert not model_stock([(a, 1.0), (b, 1.0)]).any()
    assert not model_stock([(a, 1.0), (-a, 1.0)]).any()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**31))
def test_a_polar_factor_is_as_orthonormal_as_can_be(n: int, m: int, seed: int) -> None:
    factor = polar(gaussian(n, m, seed))
    short = factor.T @ factor if n >= m else factor @ factor.T
    torch.testing.assert_close(short, torch.eye(min(n, m)).double(), rtol=0, atol=1e-6)


def test_triplets_are_those_of_the_svd() -> None:
    for shape in ((20, 30), (30, 20)):
        matrix = gaussian(*shape)
        u, s, v = singular_triplets(matrix, 5)
        torch.testing.assert_close(s, torch.linalg.svdvals(matrix)[:5])
        torch.testing.assert_close(u.T @ u, torch.eye(5).double())
        torch.testing.assert_close(v.T @ v, torch.eye(5).double())
        torch.testing.assert_close(u.T @ matrix @ v, torch.diag(s))


@pytest.mark.parametrize("count", [1, 2, 5, 10])
@pytest.mark.parametrize("shape", [(96, 96), (200, 64), (64, 200)], ids=str)
@pytest.mark.parametrize("name", ["iso_c", "tsv_m"])
def test_float32_deltas_lose_nothing(name: str, shape: tuple[int, int], count: int) -> None:
    """They are combined in float64, and rounded once."""
    deltas = [gaussian(*shape, seed).float() for seed in range(count)]
    combine = find_method(name).combine
    got = combine((delta, 1.0) for delta in deltas).double()
    exact = combine((delta.double(), 1.0) for delta in deltas)
    size = sum(float(torch.linalg.vector_norm(delta)) for delta in deltas)
    assert float(torch.linalg.vector_norm(got - exact)) <= 1e-7 * size


@pytest.mark.parametrize("decades", [2, 4, 6, 9])
def test_iso_c_of_a_wide_spectrum_needs_no_svd(
    decades: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Gram matrix in float64 tells all directions of a float32 matrix from its rounding errors."""

    def refused(*arguments: object, **settings: object) -> None:
        raise AssertionError("the SVD was taken")

    matrix = with_spectrum(40, 60, list(np.logspace(0, -decades, 40))).float()
    expected = reference.iso_c([matrix.double().numpy()], [1.0])
    monkeypatch.setattr(torch.linalg, "svd", refused)
    got = iso_c([(matrix, 1.0)]).double().numpy()
    assert np.linalg.norm(got - expected) <= 2e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("left", "right", "count"),
    [(30, 20, 7), (20, 30, 7), (9, 30, 12), (30, 9, 12), (9, 9, 12), (5, 7, 0)],
)
def test_the_order_of_the_products_does_not_matter(left: int, right: int, count: int) -> None:
    u, v = gaussian(left, count, 1), gaussian(right, count, 2)
    values = torch.arange(1.0, count + 1).double()
    got = between_polars(u, values, v)
    assert got.is_contiguous()
    torch.testing.assert_close(got, polar(u) @ (values * polar(v)).T)
