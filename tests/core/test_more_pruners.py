"""DARE, STAR and pruning around the mean against plain float64 versions."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ALL, Matrix, gaussian, with_spectrum

from lorsmerge_cli.core.combining import COMBINERS
from lorsmerge_cli.core.low_rank_sparse import dense
from lorsmerge_cli.core.merging import Term, merge_tensor
from lorsmerge_cli.core.methods import Method, find_method
from lorsmerge_cli.core.pruning import PRUNERS, prune
from lorsmerge_cli.core.pruning.budget import Budget, budget

NOTHING = Budget(rank=0, kept=0)
WITHOUT_RATIOS = [name for name, p in PRUNERS.items() if not (p.ratios or p.overall)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("settings", [{}, {"keep": 0.1, "seed": 3}, {"keep": 1.0}], ids=str)
@pytest.mark.parametrize("matrix", ALL, ids=lambda m: m.name)
def test_dare(matrix: Matrix, settings, dtype: torch.dtype) -> None:
    w = matrix.make().to(dtype)
    if not torch.isfinite(w).all():
        pytest.skip("out of the dtype's range")
    before = w.clone()
    got = prune(w, "dare", NOTHING, **settings)
    assert torch.equal(w, before)
    assert not got.sparse[~got.mask].any()
    assert not torch.signbit(got.sparse[~got.mask]).any()
    expected = reference.dare(w.double().numpy(), **settings)
    wide = dtype == torch.float64
    assert dense(got).dtype == (torch.float64 if wide else torch.float32)
    np.testing.assert_allclose(dense(got).numpy(), expected, rtol=1e-15 if wide else 1e-6)


def test_dare_keeps_its_share_and_the_mean() -> None:
    w = gaussian(300, 400).float() + 1.0
    for keep in (0.1, 0.5, 0.9):
        pruned = prune(w, "dare", NOTHING, keep=keep)
        count = w.numel()
        spread = (keep * (1 - keep) * count) ** 0.5
        assert abs(int(pruned.mask.sum()) - keep * count) < 5 * spread
        assert float(dense(pruned).mean()) == pytest.approx(float(w.mean()), rel=0.05)


def test_dare_draws_by_seed_and_delta_alone() -> None:
    w, other = gaussian(40, 50, 1).float(), gaussian(40, 50, 2).float()
    mask = prune(w, "dare", NOTHING).mask
    assert torch.equal(prune(w.double(), "dare", NOTHING).mask, mask)
    assert torch.equal(prune(w.T.contiguous().T, "dare", NOTHING).mask, mask)
    assert torch.equal(prune(3.5 * w, "dare", NOTHING).mask, mask)
    for drawn in (prune(w, "dare", NOTHING, seed=1), prune(other, "dare", NOTHING)):
        same = float((drawn.mask == mask).float().mean())
        assert same == pytest.approx(0.5, abs=0.06)  # as two that know nothing of each other


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("eta", [0.4, 0.05, 1.0])
@pytest.mark.parametrize("matrix", ALL, ids=lambda m: m.name)
def test_star(matrix: Matrix, eta: float, dtype: torch.dtype) -> None:
    w = matrix.make().to(dtype)
    wide = w.double().numpy()
    s = np.linalg.svd(wide, compute_uv=False)
    share = s.cumsum() / s.sum() if s.any() else np.ones_like(s)
    rank = int((share < eta * (1 - 1e-6)).sum()) + 1
    if eta < 1 and abs(share[rank - 1] - eta) < 1e-5:
        pytest.skip("rounding decides the rank")
    if rank < s.size and s[rank - 1] - s[rank] <= 1e-2 * s[rank - 1]:
        pytest.skip("rounding decides the vectors")
    got = dense(prune(w, "star", NOTHING, eta=eta)).double().numpy()
    floor = 2e-4 if dtype != torch.float64 else 1e-7
    assert np.linalg.norm(got - reference.star(wide, eta)) <= floor * np.linalg.norm(wide)


def test_star_keeps_the_nuclear_norm() -> None:
    w = with_spectrum(20, 30, [5.0, 3.0, 1.0, 0.5]).float()
    pruned = prune(w, "star", NOTHING, eta=0.6)
    assert pruned.left.shape[1] == 2
    values = torch.linalg.svdvals(dense(pruned))[:2]
    torch.testing.assert_close(values, torch.tensor([5.0, 3.0]) * 9.5 / 8)


@pytest.mark.parametrize("pruner", WITHOUT_RATIOS)
def test_a_stack_is_pruned_matrix_by_matrix(pruner: str) -> None:
    stack = torch.stack([gaussian(6, 9, seed).float() for seed in range(3)])
    pruned = prune(stack, pruner, NOTHING)
    for matrix, wanted in zip(pruned, stack, strict=True):
        assert torch.equal(matrix, dense(prune(wanted, pruner, NOTHING)))


@pytest.mark.parametrize("pruner", WITHOUT_RATIOS)
def test_zeros_stay_zeros(pruner: str) -> None:
    assert not dense(prune(torch.zeros(5, 8), pruner, NOTHING)).any()


# --- around the mean -------------------------------------------------------------------------

RATIOS = {"svp": (0.2, None), "mp": (None, 0.2), "lors": (0.1, 0.2)}


def update(method: Method, deltas, scales, ratios) -> torch.Tensor:
    keep = budget(deltas[0].shape, *ratios)
    kept = method.allot(["w"], lambda name: iter(deltas), len(deltas), threads=1)
    terms = (
        Term(delta.clone(), scale, kept.get((number, "w"), keep))
        for number, (delta, scale) in enumerate(zip(deltas, scales, strict=True))
    )
    return merge_tensor(torch.zeros_like(deltas[0]), terms, method, deltas[0].dtype).update


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (1, 50)], ids=str)
@pytest.mark.parametrize("pruner", PRUNERS)
def test_around_the_mean(pruner: str, shape, count: int, dtype: torch.dtype) -> None:
    deltas = [gaussian(*shape, seed).to(dtype) for seed in range(count)]
    scales = [0.3 + 0.1 * i for i in range(count)]
    ratios = RATIOS.get(pruner, (None, None))
    wide = [delta.double().numpy() for delta in deltas]
    mean = sum(wide) / count
    if pruner == "dare":  # the signs of a rounded difference are those of the difference
        rest = [(delta - sum(deltas) / count).double().numpy() for delta in deltas]
    else:
        rest = [delta - mean for delta in wide]
    if count == 1:
        expected = [mean]
    else:
        expected = [mean + reference.prune(pruner, each, *ratios) for each in rest]
    expected = sum(s * e for s, e in zip(scales, expected, strict=True))
    got = update(find_method(f"{pruner}:around=mean+sum"), deltas, scales, ratios)
    floor = 1e-4 if dtype == torch.float32 else 1e-7
    size = sum(s * np.linalg.norm(w) for s, w in zip(scales, wide, strict=True))
    assert np.linalg.norm(got.double().numpy() - expected) <= floor * size


def test_the_mean_of_parts_around_the_mean_is_cart() -> None:
    """mean + (1 / T) sum_i SVP(t_i - mean), by weight averaging."""
    deltas = [gaussian(24, 40, seed) for seed in range(4)]
    mean = sum(deltas) / 4
    keep = budget((24, 40), 0.2, None)
    parts = [dense(prune(delta - mean, "svp", keep)) for delta in deltas]
    got = update(find_method("svp:around=mean+mean"), deltas, [1.0] * 4, (0.2, None))
    torch.testing.assert_close(got, mean + sum(parts) / 4)


@pytest.mark.parametrize("combiner", COMBINERS)
def test_equal_deltas_around_their_mean_are_whole(combiner: str) -> None:
    delta = gaussian(12, 20)
    method = find_method(f"lors:around=mean+{combiner}")
    got = update(method, [delta, delta.clone()], [1.0, 1.0], (0.1, 0.2))
    pairs = [(delta, 1.0), (delta, 1.0)]
    torch.testing.assert_close(got, COMBINERS[combiner].combine(pairs))


def test_a_delta_without_ratios_counts_in_the_mean() -> None:
    a, b = gaussian(12, 20, 1), gaussian(12, 20, 2)
    terms = [Term(a.clone(), 1.0, budget((12, 20), None, 0.1)), Term(b.clone(), 1.0)]
    got = merge_tensor(torch.zeros(12, 20), terms, find_method("mp:around=mean"), torch.float64)
    mean = (a + b) / 2
    wanted = mean + dense(prune(a - mean, "mp", budget((12, 20), None, 0.1))) + b
    torch.testing.assert_close(got.update, wanted)


def test_a_budget_of_all_leaves_a_delta_as_it_is() -> None:
    deltas = [gaussian(12, 20, seed).float() for seed in range(3)]
    got = update(find_method("mp:around=mean"), deltas, [1.0] * 3, (None, 1.0))
    assert torch.equal(got, deltas[0] + deltas[1] + deltas[2])


@settings(deadline=None, max_examples=30, derandomize=True)
@given(order=st.permutations(range(4)), pruner=st.sampled_from(sorted(PRUNERS)))
def test_order_does_not_matter(order, pruner: str) -> None:
    deltas = [gaussian(10, 14, seed) for seed in range(4)]
    method = find_method(f"{pruner}:around=mean")
    ratios = RATIOS.get(pruner, (None, None))
    first = update(method, deltas, [0.5] * 4, ratios)
    again = update(method, [deltas[i] for i in order], [0.5] * 4, ratios)
    torch.testing.assert_close(first, again, rtol=0, atol=1e-9)
