"""Sums and means of scaled deltas against NumPy."""

from __future__ import annotations

import itertools
import weakref

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import gaussian

from lorsmerge_cli.core.combining import COMBINERS

EXPECTED = {
    "sum": lambda deltas, scales: np.tensordot(scales, deltas, axes=1),
    "mean": lambda deltas, scales: np.tensordot(scales, deltas, axes=1) / len(deltas),
    "ties": reference.ties,
    "iso_c": reference.iso_c,
    "tsv_m": reference.tsv_m,
    "boost": reference.boost,
    "consensus": reference.consensus,
    "stitch": reference.stitch,
    "model_stock": reference.model_stock,
    # tensors without statistics
    "regmean": lambda deltas, scales: np.tensordot(scales, deltas, axes=1) / len(deltas),
    "fisher": lambda deltas, scales: np.tensordot(scales, deltas, axes=1) / len(deltas),
}
SPECTRAL = ("iso_c", "tsv_m", "boost")  # rounding errors of theirs are spread over a whole matrix
RUNNING = [name for name, combiner in COMBINERS.items() if not combiner.needs_all]


def test_every_combiner_is_known_here() -> None:
    assert set(COMBINERS) == set(EXPECTED)


@pytest.mark.parametrize("scales", [
    [0.15], [1.0], [-1.0], [0.0], [1.0, 1.0], [0.15] * 5, [0.1, -0.2, 0.3], [0.0, 0.0, 2.0],
    [1e-8, 1e8],
], ids=str)  # fmt: skip
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("combiner", COMBINERS)
def test_against_numpy(combiner: str, scales, dtype: torch.dtype, tolerance: float) -> None:
    deltas = [gaussian(5, 7, seed).to(dtype) for seed in range(len(scales))]
    before = [delta.clone() for delta in deltas]
    got = COMBINERS[combiner].combine(zip(deltas, scales, strict=True))
    assert got.dtype == dtype
    stacked = np.stack([delta.double().numpy() for delta in deltas])
    expected = EXPECTED[combiner](stacked, scales)
    size = np.tensordot(np.abs(scales), np.abs(stacked), axes=1)
    if combiner in SPECTRAL:
        tolerance, size = 200 * tolerance, size.max()
    assert (np.abs(got.double().numpy() - expected) <= tolerance * size).all()
    for delta, copy in zip(deltas, before, strict=True):
        assert torch.equal(delta, copy)
        assert got.data_ptr() != delta.data_ptr()


@pytest.mark.parametrize(
    "order", list(itertools.permutations([torch.float32] * 2 + [torch.float64]))
)
@pytest.mark.parametrize("combiner", COMBINERS)
def test_one_wide_delta_widens_the_sum(combiner: str, order) -> None:
    deltas = [gaussian(5, 7, seed).to(dtype) for seed, dtype in enumerate(order)]
    before = [delta.clone() for delta in deltas]
    got = COMBINERS[combiner].combine((delta, 0.5) for delta in deltas)
    assert got.dtype == torch.float64
    expected = EXPECTED[combiner](np.stack([d.double().numpy() for d in deltas]), [0.5] * 3)
    assert got.numpy() == pytest.approx(expected, rel=1e-6, abs=2e-6)
    assert all(torch.equal(delta, copy) for delta, copy in zip(deltas, before, strict=True))


@pytest.mark.parametrize("combiner", COMBINERS)
def test_no_deltas(combiner: str) -> None:
    with pytest.raises(ValueError, match="no deltas"):
        COMBINERS[combiner].combine(iter(()))


@pytest.mark.parametrize("combiner", RUNNING)
def test_deltas_are_not_held(combiner: str) -> None:
    """A merge of many models takes the memory of a few tensors."""
    references: list[weakref.ref] = []

    def pairs():
        for seed in range(6):
            alive = sum(reference() is not None for reference in references)
            assert alive <= 1  # the one that was added last
            delta = gaussian(4, 4, seed)
            references.append(weakref.ref(delta))
            yield delta, 0.5
            del delta

    COMBINERS[combiner].combine(pairs())
    assert len(references) == 6


@pytest.mark.parametrize("combiner", [n for n, c in COMBINERS.items() if not c.statistics])
def test_only_linear_combiners_say_so(combiner: str) -> None:
    """A common coefficient may be factored out, and a single delta is only scaled."""
    deltas = [gaussian(5, 7, seed) for seed in range(3)]
    combine = COMBINERS[combiner].combine
    halves = (
        combine((delta[:, :4], 1.0) for delta in deltas),
        combine((d[:, 4:], 1.0) for d in deltas),
    )
    whole = combine((delta, 1.0) for delta in deltas)
    assert torch.equal(torch.cat(halves, dim=1), whole) or COMBINERS[combiner].needs_all
    once = combine([(deltas[0] + deltas[1], 1.0), (deltas[2], 1.0)])
    twice = combine([(deltas[0], 1.0), (deltas[2], 1.0)]) + combine(
        [(deltas[1], 1.0), (0 * deltas[2], 1.0)]
    )
    assert torch.allclose(once, twice) == COMBINERS[combiner].linear


@pytest.mark.parametrize("combiner", COMBINERS)
@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.lists(st.floats(-2, 2), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_order_does_not_matter(combiner: str, scales: list[float], random) -> None:
    pairs = [(gaussian(3, 5, seed).float(), scale) for seed, scale in enumerate(scales)]
    shuffled = pairs.copy()
    random.shuffle(shuffled)
    difference = (COMBINERS[combiner].combine(pairs) - COMBINERS[combiner].combine(shuffled)).abs()
    size = sum(delta.abs() * abs(scale) for delta, scale in pairs)
    if combiner in SPECTRAL:
        assert float(difference.max()) <= 1e-3 * float(size.max()) + 1e-44
    else:
        assert (difference <= 2 * len(pairs) * 2**-24 * size + 1e-44).all()


class OnMetal(torch.Tensor):
    """A tensor that says it is on Apple's GPU, and that no arithmetic is done with."""

    @property
    def device(self) -> torch.device:
        return torch.device("mps")

    def cpu(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize("combiner", COMBINERS)
def test_what_takes_float64_is_not_done_where_there_is_none(combiner: str) -> None:
    deltas = [torch.eye(4), torch.ones(4, 4)]
    statistics = [torch.eye(4).as_subclass(OnMetal)] * 2 if COMBINERS[combiner].statistics else []
    read = [lambda found=found: found for found in statistics]
    pairs = [(delta.clone().as_subclass(OnMetal), 1.0) for delta in deltas]
    got = COMBINERS[combiner].combine(pairs, read)
    needs = COMBINERS[combiner].needs_all or bool(statistics)
    assert (type(got) is torch.Tensor) == needs
    plain = [lambda: torch.eye(4)] * len(statistics)
    wanted = COMBINERS[combiner].combine([(delta, 1.0) for delta in deltas], plain)
    assert torch.equal(got.as_subclass(torch.Tensor), wanted)
