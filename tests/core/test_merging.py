"""The last stage, and whole merges of one tensor against Eq. 8."""

from __future__ import annotations

import math
import struct
import weakref

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import gaussian, spiked

from lorsmerge_cli.core.low_rank_sparse import dense
from lorsmerge_cli.core.merging import Rounding, Term, add_to_base, is_finite, merge_tensor
from lorsmerge_cli.core.methods import METHODS
from lorsmerge_cli.core.pruning.budget import budget

FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def rounded(value: np.float32, dtype: torch.dtype) -> float:
    """Round a float32 to the nearest number of a dtype, ties to even, without torch."""
    if dtype == torch.float32:
        return float(value)
    if dtype == torch.float16:
        return float(np.float16(value))
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def brute_force(base: torch.Tensor, update: torch.Tensor, dtype: torch.dtype):
    """Return the sum, the number of updated elements, and of those that did not change, one by one."""
    merged, updated, lost = [], 0, 0
    pairs = zip(base.reshape(-1).tolist(), update.reshape(-1).tolist(), strict=True)
    for before, step in pairs:
        after = rounded(np.float32(before) + np.float32(step), dtype)
        merged.append(after)
        if step != 0:
            updated += 1
            lost += after == rounded(np.float32(before), dtype)
    return torch.tensor(merged, dtype=dtype).reshape(base.shape), Rounding(updated, lost)


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-5, 1e-3, 1.0])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("base_dtype", FLOATS)
def test_counts_against_a_brute_force_count(base_dtype, dtype, size: float) -> None:
    base = (gaussian(19, 23, seed=1) * 0.05).to(base_dtype)
    update = (gaussian(19, 23, seed=2) * size).float()
    update[::3] = 0
    base_before, update_before = base.clone(), update.clone()
    merged, rounding = add_to_base(base, update, dtype)
    expected, counts = brute_force(base, update, dtype)
    assert merged.dtype == dtype
    assert torch.equal(merged, expected)
    assert rounding == counts
    assert torch.equal(base, base_before)
    assert torch.equal(update, update_before)


@pytest.mark.parametrize("dtype", FLOATS)
def test_updates_of_exactly_half_a_step(dtype: torch.dtype) -> None:
    """A tie rounds to the even neighbour: lost above 1, not lost above 1 + step."""
    step = torch.finfo(dtype).eps
    base = torch.tensor([1, 1, 1, 1, 1 + step, 1 + step, 1, -1], dtype=dtype)
    update = torch.tensor([step / 2, step, step / 4, 0, step / 2, step / 4, -step / 4, -step / 2])
    merged, rounding = add_to_base(base, update.double(), dtype)
    expected = [1, 1 + step, 1, 1, 1 + 2 * step, 1 + step, 1, -1]
    assert merged.tolist() == expected
    # below 1 the steps are half as long, so -step / 4 is a tie that goes to 1
    assert rounding == Rounding(updated=7, lost=5)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_zero_update_changes_no_bit(dtype: torch.dtype) -> None:
    base = torch.tensor([0.0, -0.0, 1e-7, -0.05, 3.0], dtype=dtype)
    merged, rounding = add_to_base(base, torch.zeros(5), dtype)
    assert torch.equal(merged, base)
    assert rounding == Rounding(0, 0)


def test_the_sum_is_rounded_once() -> None:
    """Slightly more than half a step: lost if the update alone were rounded to float16."""
    base = torch.tensor([1.0], dtype=torch.float16)
    merged, rounding = add_to_base(base, torch.tensor([2**-11 + 2**-23]), torch.float16)
    assert merged.item() == 1 + 2**-10
    assert rounding == Rounding(1, 0)


def test_a_base_in_float32_is_rounded_with_its_update() -> None:
    base = torch.tensor([1 + 2**-11 - 2**-20])  # below half a step: 1 by itself
    merged, rounding = add_to_base(base, torch.tensor([2**-19]), torch.float16)
    assert merged.item() == 1 + 2**-10
    assert rounding == Rounding(1, 0)


@pytest.mark.parametrize("base_dtype", [torch.float32, torch.float64])
def test_float64_updates_are_summed_in_float64(base_dtype: torch.dtype) -> None:
    base = torch.tensor([1.0, 1e8], dtype=base_dtype)
    update = torch.tensor([2**-24 + 2**-50, 1e-3], dtype=torch.float64)
    merged, _ = add_to_base(base, update, torch.float64)
    assert merged.tolist() == [1 + 2**-24 + 2**-50, 1e8 + 1e-3]
    merged, rounding = add_to_base(base, update, torch.float32)
    assert merged.tolist() == [1 + 2**-23, 1e8]
    assert rounding == Rounding(2, 1)


def test_overflow_is_left_to_be_seen() -> None:
    merged, _ = add_to_base(torch.tensor([6e4]), torch.tensor([6e4]), torch.float16)
    assert not is_finite(merged)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.floats(-100, 100, width=16),
            st.one_of(
                st.just(0.0), st.floats(-1, 1, width=32), st.floats(-(2**-10), 2**-10, width=16)
            ),
        ),
        min_size=1,
        max_size=20,
    ),
    st.sampled_from(FLOATS),
    st.sampled_from(FLOATS),
)
def test_any_counts(entries, base_dtype: torch.dtype, dtype: torch.dtype) -> None:
    base = torch.tensor([before for before, _ in entries]).to(base_dtype)
    update = torch.tensor([step for _, step in entries])
    merged, rounding = add_to_base(base, update, dtype)
    expected, counts = brute_force(base, update, dtype)
    assert torch.equal(merged, expected)
    assert rounding == counts


def test_roundings_add_up() -> None:
    assert Rounding(3, 1) + Rounding(4, 4) == Rounding(7, 5)
    assert Rounding() == Rounding(0, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 7, 14])
@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64])
def test_is_finite(dtype: torch.dtype, place: int, bad: float) -> None:
    tensor = gaussian(3, 5).to(dtype)
    assert is_finite(tensor)
    assert is_finite(tensor.T)
    tensor.view(-1)[place] = bad
    assert not is_finite(tensor)
    assert not is_finite(tensor.T)


def test_nothing_is_finite() -> None:
    assert is_finite(torch.empty(0))
    assert is_finite(torch.empty(0, 4))


def test_a_sum_holds_one_delta_at_a_time() -> None:
    references: list[weakref.ref] = []

    def terms():
        for seed in range(6):
            assert sum(reference() is not None for reference in references) <= 1
            delta = gaussian(24, 40, seed).float()
            references.append(weakref.ref(delta))
            term = Term(delta, 0.5, budget(delta.shape, 0.1, 0.2) if seed % 2 else None)
            del delta
            yield term
            del term

    merge_tensor(torch.zeros(24, 40), terms(), METHODS["lors"], torch.float32)
    assert len(references) == 6


def test_pruned_deltas_are_told_and_others_are_not() -> None:
    deltas, seen = [gaussian(6, 9, seed).float() for seed in (1, 2)], []
    terms = [
        Term(deltas[0], 1.0, None, seen.append),
        Term(deltas[1], 1.0, budget((6, 9), 0.2, None), seen.append),
    ]
    merged = merge_tensor(torch.zeros(6, 9), terms, METHODS["svp"], torch.float32)
    assert len(seen) == 1
    assert torch.equal(merged.update, deltas[0] + seen[0])


def test_no_terms() -> None:
    with pytest.raises(ValueError, match="no deltas"):
        merge_tensor(torch.zeros(2), [], METHODS["ta"], torch.float32)


# --- whole merges ----------------------------------------------------------------------------


def merged_tensor(base, deltas, scales, method: str, svp, mp) -> torch.Tensor:
    """Merge one tensor; every delta is pruned by the ratios that the method takes."""
    told = {name: {"svp": svp, "mp": mp}[name] for name in METHODS[method].ratios}
    keep = budget(base.shape, told.get("svp"), told.get("mp")) if METHODS[method].pruner else None
    kept = METHODS[method].allot(["w"], lambda name: map(dense, deltas), len(deltas), threads=1)
    terms = (
        Term(dense(delta), scale, kept.get((number, "w"), keep))
        for number, (delta, scale) in enumerate(zip(deltas, scales, strict=True))
    )
    return merge_tensor(base, terms, METHODS[method], base.dtype).tensor


def expected_tensor(base, deltas, scales, method: str, svp, mp):
    pruner = METHODS[method].pruner
    exact = [delta.double().numpy() for delta in deltas]
    if pruner is not None:
        exact = [reference.prune(pruner, delta, svp, mp) for delta in exact]
    combiner = "mean" if METHODS[method].statistics else METHODS[method].combiner
    if combiner == "mean":
        scales = [scale / len(scales) for scale in scales]
    if combiner not in ("sum", "mean"):
        update = getattr(reference, combiner)(exact, scales)
        exact, scales = [update], [1.0]
    return reference.merge(base.double().numpy(), exact, scales)


DELTAS = {
    "gaussian": lambda d, k: [gaussian(d, k, seed) * 1e-3 for seed in (1, 2, 3)],
    "spiked": lambda d, k: [spiked(d, k, 30) * 1e-4, spiked(d, k, 300).flip(0) * 1e-5],
    "of very different size": lambda d, k: [gaussian(d, k, 4) * 1e-7, gaussian(d, k, 5)],
    "one": lambda d, k: [gaussian(d, k, 6)],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.15, 1.0, -0.5, 0.0])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32), (1, 50)])
@pytest.mark.parametrize("deltas", DELTAS)
@pytest.mark.parametrize("method", METHODS)
def test_methods_against_the_paper(method, deltas, shape, scale: float, dtype) -> None:
    base = (gaussian(*shape, seed=9) * 0.05).to(dtype)
    taus = [delta.to(dtype) for delta in DELTAS[deltas](*shape)]
    scales = [scale * (1 + i) for i in range(len(taus))]
    got = merged_tensor(base, taus, scales, method, 0.1, 0.2).double().numpy()
    expected = expected_tensor(base, taus, scales, method, 0.1, 0.2)
    step = sum(abs(s) * float(tau.norm()) for s, tau in zip(scales, taus, strict=True))
    eps = torch.finfo(dtype).eps
    floor = 2e-5 if dtype == torch.float32 else 1e-7
    assert np.linalg.norm(got - expected) <= floor * step + eps * np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_bases_are_half_a_step_off_at_most(method, dtype: torch.dtype) -> None:
    base = (gaussian(24, 40, seed=9) * 0.05).to(dtype)
    taus = [gaussian(24, 40, seed).float() * 1e-2 for seed in (1, 2, 3)]
    got = merged_tensor(base, taus, [0.15] * 3, method, 0.1, 0.2).double().numpy()
    expected = expected_tensor(base, taus, [0.15] * 3, method, 0.1, 0.2)
    half_step = np.abs(expected) * torch.finfo(dtype).eps / 2
    assert (np.abs(got - expected) <= half_step * 1.001 + 1e-6).all()


def test_weight_averaging_is_the_mean_of_the_fine_tunes() -> None:
    base = gaussian(6, 9, seed=0).float()
    tuned = [base + gaussian(6, 9, seed).float() * 0.01 for seed in (1, 2, 3)]
    got = merged_tensor(base, [model - base for model in tuned], [1.0] * 3, "wa", None, None)
    assert torch.allclose(got, torch.stack(tuned).mean(dim=0), atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None, max_examples=20, derandomize=True)
@given(
    order=st.permutations(range(4)),
    scales=st.lists(st.floats(-1, 1), min_size=4, max_size=4),
)
def test_order_of_the_deltas_does_not_matter(method: str, order, scales) -> None:
    base = gaussian(10, 14, seed=9).float()
    taus = [gaussian(10, 14, seed).float() * 0.01 for seed in range(4)]
    first = merged_tensor(base, taus, scales, method, 0.3, 0.2)
    shuffled = [taus[i] for i in order], [scales[i] for i in order]
    assert torch.allclose(first, merged_tensor(base, *shuffled, method, 0.3, 0.2), atol=1e-6)
