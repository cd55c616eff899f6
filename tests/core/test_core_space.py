"""Deltas of low rank, combined in the space of their factors, against their dense products."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import gaussian

from lorsmerge_cli.core import core_space as module
from lorsmerge_cli.core.combining import COMBINERS
from lorsmerge_cli.core.core_space import core_space
from lorsmerge_cli.core.low_rank_sparse import LowRankSparse, dense, is_low_rank, zeros
from lorsmerge_cli.core.merging import Term, is_finite, merge_tensor
from lorsmerge_cli.core.methods import find_method
from lorsmerge_cli.core.pruning import PRUNERS, prune
from lorsmerge_cli.core.pruning.budget import Budget
from lorsmerge_cli.core.statistics import energy

EXPECTED = {
    "iso_c": reference.iso_c, "tsv_m": reference.tsv_m, "boost": reference.boost,
    "tsv_m:beta=0.3": partial(reference.tsv_m, beta=0.3), "boost:beta=0.5": partial(reference.boost, beta=0.5),
}  # fmt: skip
SHAPES = [(40, 24), (24, 40), (32, 32), (200, 16), (7, 300)]


def low_rank(d: int, k: int, rank: int, seed: int = 0) -> LowRankSparse:
    return LowRankSparse(
        gaussian(d, rank, 2 * seed + 100).float(), gaussian(rank, k, 2 * seed + 101).float()
    )


def repeated(d: int, k: int, rank: int, seed: int = 0) -> LowRankSparse:
    """Factors whose columns and rows depend on one another."""
    one = low_rank(d, k, 1, seed)
    return LowRankSparse(one.left.repeat(1, rank), one.right.repeat(rank, 1))


def no_factor(d: int, k: int, rank: int) -> LowRankSparse:
    """As an adapter is before it is trained: B is zero."""
    return LowRankSparse(torch.zeros(d, rank), gaussian(rank, k, 5).float())


def cases(d: int, k: int):
    """Yield a name and deltas that hurt."""
    yield "rank 1", [low_rank(d, k, 1, seed) for seed in range(3)]
    yield "one delta", [low_rank(d, k, 3)]
    yield "different ranks", [low_rank(d, k, rank, rank) for rank in (1, 2)]
    yield "duplicates", [low_rank(d, k, 1, 4)] * 2 + [low_rank(d, k, 1, 5)]
    yield "opposites", [low_rank(d, k, 1), replace_left(low_rank(d, k, 1), -1.0)]
    yield "dependent factors", [repeated(d, k, 2, 1), low_rank(d, k, 1, 2)]
    yield "a factor of zeros", [no_factor(d, k, 2), low_rank(d, k, 1, 7)]
    yield "nothing in one", [zeros((d, k), torch.float32), low_rank(d, k, 2, 3)]
    yield "nothing in any", [zeros((d, k), torch.float32)] * 2
    yield "factors of zeros in all", [no_factor(d, k, 1)] * 2
    yield "half precision", [low_rank(d, k, 1, s).to(torch.bfloat16) for s in range(2)]
    yield "double precision", [low_rank(d, k, 1, s).to(torch.float64) for s in range(2)]
    yield "tiny", [replace_left(low_rank(d, k, 1, s), 1e-12) for s in range(2)]
    yield (
        "more triplets than TSV-M takes",
        [low_rank(d, k, r, r) for r in (1, 1, 1, min(d, k) // 2 - 3)],
    )


def replace_left(delta: LowRankSparse, factor: float) -> LowRankSparse:
    return LowRankSparse(delta.left * factor, delta.right)


NAMES = [name for name, _ in cases(24, 40)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", NAMES)
@pytest.mark.parametrize("name", EXPECTED)
def test_both_routes_give_the_same(name: str, case: str, shape: tuple[int, int]) -> None:
    deltas = dict(cases(*shape))[case]
    scales = [(-1) ** i * (0.3 + 0.1 * i) for i in range(len(deltas))]
    combine = find_method(name).combine
    assert core_space(deltas) is not None
    got = combine(zip(deltas, scales, strict=True))
    products = [dense(delta) for delta in deltas]
    plain = combine(zip(products, scales, strict=True))
    assert got.dtype == plain.dtype
    assert got.shape == plain.shape == shape
    size = sum(abs(s) * float(w.norm()) for w, s in zip(products, scales, strict=True))
    # a direction of a small value is known to rounding errors over its value
    assert float((got - plain).norm()) <= 2e-5 * size
    wide = [w.double().numpy() for w in products]
    expected = EXPECTED[name](wide, scales, torch.finfo(got.dtype).eps)
    assert np.linalg.norm(got.double().numpy() - expected) <= 2e-4 * size


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.sampled_from(sorted(EXPECTED)),
    st.lists(st.integers(0, 4), min_size=1, max_size=5),
    st.integers(8, 30),
    st.integers(8, 30),
    st.randoms(use_true_random=False),
)
def test_any_ranks(name: str, ranks: list[int], d: int, k: int, random) -> None:
    """Whichever route they lead to, and in any order."""
    deltas = [low_rank(d, k, rank, seed) for seed, rank in enumerate(ranks)]
    combine = find_method(name).combine
    plain = combine([(dense(delta), 0.5) for delta in deltas])
    pairs = [(delta, 0.5) for delta in deltas]
    random.shuffle(pairs)
    size = sum(float(dense(delta).norm()) for delta in deltas)
    assert float((combine(pairs) - plain).norm()) <= 1e-3 * size


@pytest.mark.parametrize(
    "deltas",
    [
        [low_rank(12, 20, 3, seed) for seed in range(3)],  # 9 of 12
        [low_rank(12, 20, 1), dense(low_rank(12, 20, 1, 1))],
        [LowRankSparse(torch.ones(12, 1), torch.ones(1, 20), torch.zeros(12, 20), torch.zeros(12, 20).bool())],
        [LowRankSparse(sparse=torch.zeros(12, 20), mask=torch.zeros(12, 20).bool())],
    ],
    ids=["many ranks", "one is dense", "one has both parts", "one is sparse"],
)  # fmt: skip
@pytest.mark.parametrize("name", EXPECTED)
def test_what_else_is_combined_as_tensors(name: str, deltas: list) -> None:
    assert core_space(deltas) is None
    combine = find_method(name).combine
    got = combine([(delta, 0.5) for delta in deltas])
    assert torch.equal(got, combine([(dense(delta), 0.5) for delta in deltas]))


@pytest.mark.parametrize("shape", [(9,), (4, 3, 5), (0, 4), (3, 0)], ids=str)
@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_no_matrix_and_zero(name: str, shape: tuple[int, ...]) -> None:
    got = find_method(name).combine([(zeros(shape, torch.float32), 0.5)] * 2)
    assert got.shape == shape
    assert not got.any()


@pytest.mark.parametrize("name", [n for n, c in COMBINERS.items() if c.turns])
def test_combiners_that_turn_do(name: str) -> None:
    """Into a larger space too, where they are told of the smaller one's short side."""
    combiner, small = COMBINERS[name], [gaussian(8, 10, seed) for seed in range(3)]
    left, right = (torch.linalg.qr(gaussian(n, m, n))[0] for n, m in ((30, 8), (40, 10)))
    large = combiner.combine([(left @ delta @ right.T, 0.5) for delta in small])
    sizes = {"short_side": 30} if combiner.sized else {}
    turned = left @ combiner.combine([(delta, 0.5) for delta in small], **sizes) @ right.T
    torch.testing.assert_close(large, turned)


def test_the_dense_deltas_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: LowRankSparse) -> torch.Tensor:
        raise AssertionError("a product was made")

    monkeypatch.setattr(LowRankSparse, "to_dense", refused)
    terms = [Term(low_rank(24, 40, 2, seed), 0.5) for seed in range(3)]
    for name in EXPECTED:
        merge_tensor(torch.zeros(24, 40), terms, find_method(name), torch.float32)
    pruned = [Term(gaussian(24, 40, seed).float(), 0.5, Budget(2, 0)) for seed in range(3)]
    merge_tensor(torch.zeros(24, 40), pruned, find_method("svp+iso_c"), torch.float32)


@pytest.mark.parametrize("spec", ["svp+iso_c", "svp+tsv_m", "lors+tsv_m", "lors+boost", "mp+iso_c"])
def test_pruned_deltas_are_combined_as_they_were(
    spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def update() -> torch.Tensor:
        keep = Budget(0 if spec.startswith("mp") else 2, 0 if spec.startswith("svp") else 50)
        terms = [Term(gaussian(24, 40, seed).float(), 0.5, keep) for seed in range(3)]
        return merge_tensor(torch.zeros(24, 40), terms, find_method(spec), torch.float32).update

    in_core = update()
    monkeypatch.setattr(module, "LARGEST", -1)
    torch.testing.assert_close(in_core, update(), rtol=1e-4, atol=1e-4)


def test_star_prunes_the_product_of_factors() -> None:
    assert [name for name, pruner in PRUNERS.items() if pruner.turns] == ["star"]
    for delta in (low_rank(24, 40, 6), repeated(40, 24, 3), low_rank(30, 30, 1)):
        got = prune(delta, "star", Budget(0, 0), eta=0.5)
        assert is_low_rank(got)
        plain = prune(dense(delta), "star", Budget(0, 0), eta=0.5)
        torch.testing.assert_close(dense(got), dense(plain), rtol=1e-4, atol=1e-5)
    nothing = zeros((24, 40), torch.float32)
    assert not dense(prune(nothing, "star", Budget(0, 0))).any()


@pytest.mark.parametrize("name", ["svp", "lors", "mp", "dare"])
def test_other_pruners_take_parts_as_the_tensor_they_are(name: str) -> None:
    delta, budget = (
        low_rank(24, 40, 6),
        Budget(int(name != "mp"), 30 if name in ("mp", "lors") else 0),
    )
    got = prune(delta, name, budget)
    assert torch.equal(dense(got), dense(prune(dense(delta), name, budget)))


def test_around_the_mean_and_agreement_take_parts_too() -> None:
    def update(deltas: list, spec: str, agreement=None) -> torch.Tensor:
        terms = [Term(delta, 0.5, Budget(2, 0)) for delta in deltas]
        method = find_method(spec)
        return merge_tensor(torch.zeros(24, 40), terms, method, torch.float32, agreement).update

    deltas = [low_rank(24, 40, 3, seed) for seed in range(3)]
    products = [dense(delta) for delta in deltas]
    assert not find_method("svp:around=mean+iso_c").takes_factors
    for spec, agreement in (("svp:around=mean+iso_c", None), ("svp+tsv_m", lambda pairs: 0.3)):
        assert torch.equal(update(deltas, spec, agreement), update(products, spec, agreement))


def test_norms_and_finiteness_of_factors() -> None:
    for delta in (low_rank(24, 40, 3), repeated(24, 40, 4), zeros((24, 40), torch.float32)):
        assert energy(delta) == pytest.approx(energy(dense(delta)), rel=1e-5)
        assert is_finite(delta)
    assert energy(no_factor(24, 40, 2)) == 0
    huge = LowRankSparse(torch.full((3, 1), 1e20), torch.full((1, 4), 1e20))
    assert not is_finite(huge)  # each factor is, and the product overflows float32
    fits = LowRankSparse(torch.full((3, 1), 1e19), torch.full((1, 4), 3e19))
    assert is_finite(fits)
    for bad in (float("nan"), float("inf")):
        assert not is_finite(LowRankSparse(torch.full((3, 1), bad), torch.ones(1, 4)))
        assert not is_finite(LowRankSparse(torch.full((3, 1), bad), torch.zeros(1, 4)))


def test_nothing_to_combine() -> None:
    for name in EXPECTED:
        with pytest.raises(ValueError, match="no deltas"):
            find_method(name).combine(iter(()))


def test_a_core_that_is_no_product_has_no_factors_outside() -> None:
    space = core_space([low_rank(12, 20, 2)])
    sparse = LowRankSparse(sparse=torch.zeros(2, 2), mask=torch.zeros(2, 2).bool())
    with pytest.raises(ValueError, match="sparse"):
        space.factors_outside(sparse)


@pytest.mark.gpu
@pytest.mark.parametrize("name", EXPECTED)
def test_cuda_agrees(name: str) -> None:
    deltas = [low_rank(40, 24, 2, seed) for seed in range(3)]
    combine = find_method(name).combine
    there = combine([(delta.to(torch.device("cuda")), 0.5) for delta in deltas]).cpu()
    torch.testing.assert_close(
        there, combine([(delta, 0.5) for delta in deltas]), rtol=1e-4, atol=1e-4
    )
