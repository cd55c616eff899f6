"""Localize: the largest elements of a whole delta, against a sort of all of them in float64."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ALL, gaussian, spiked
from torch import Tensor

from lorsmerge_cli.core.combining import COMBINERS
from lorsmerge_cli.core.low_rank_sparse import LowRankSparse, dense, zeros
from lorsmerge_cli.core.merging import Term, merge_tensor
from lorsmerge_cli.core.methods import METHODS, Method, find_method
from lorsmerge_cli.core.pruning import PRUNERS, localize, prune
from lorsmerge_cli.core.pruning.localize import READS, allot

Delta = dict[str, Tensor]


def budgets(deltas: list[Delta], share: float, threads: int = 1):
    return allot(
        deltas[0], lambda name: (d[name] for d in deltas), len(deltas), share, threads=threads
    )


def kept(deltas: list[Delta], share: float) -> list[Delta]:
    """What is left of each delta."""
    found = budgets(deltas, share)
    return [
        {n: dense(prune(t, "localize", found[number, n])) for n, t in delta.items()}
        for number, delta in enumerate(deltas)
    ]


def check(deltas: list[Delta], share: float) -> None:
    for delta, left in zip(deltas, kept(deltas, share), strict=True):
        wanted = reference.localize({n: t.double().numpy() for n, t in delta.items()}, share)
        for name, values in left.items():
            np.testing.assert_array_equal(values.double().numpy(), wanted[name], err_msg=name)


def layers(seed: int = 0, dtype: torch.dtype = torch.float32) -> Delta:
    """Matrices of very different size and scale."""
    return {
        "fc2.weight": (gaussian(7, 31, seed) * 1e-3).to(dtype),
        "fc1.weight": (gaussian(31, 7, seed + 1) * 3e-3).to(dtype),
        "q.weight": (spiked(12, 12, 300) * 1e-5).to(dtype),
        "k.weight": gaussian(1, 40, seed + 2).mul(1e-4).to(dtype),
        "v.weight": gaussian(40, 1, seed + 3).mul(1e-4).to(dtype),
        "o.weight": torch.zeros(5, 8, dtype=dtype),
    }


SHARES = [0.05, 0.3, 0.5, 0.999, 1.0, 1e-9]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("count", [1, 3, 10])
def test_against_a_sort(count: int, share: float, dtype: torch.dtype) -> None:
    """Elements in half precision, among which there are many ties, are read as float32."""
    deltas = [layers(10 * number, dtype) for number in range(count)]
    check([{n: dense(t) for n, t in delta.items()} for delta in deltas], share)


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_every_matrix_that_hurts_at_once(share: float) -> None:
    """From 1e-20 to 1e12, and zeros: the largest ones take all that there is to take."""
    delta = {matrix.name: matrix.make() for matrix in ALL}
    check([delta], share)
    check([{name: value.float() for name, value in delta.items()}], share)


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_float32_beside_float64(share: float) -> None:
    """A float64 delta, or one tensor of it, does not change how others are cut."""
    narrow, wide = layers(1), layers(2, torch.float64)
    mixed = {n: t if n.startswith("f") else t.double() for n, t in layers(3).items()}
    close = {"a": torch.tensor([[1.0]]), "b": torch.tensor([[1.0 + 2**-40, 1.0 - 2**-40]]).double()}
    check([narrow, wide, mixed], share)
    check([close], share)
    check([close, {n: t.flip(0, 1) for n, t in close.items()}], 0.34)


EXTREMES = {
    "all equal": [[0.5, -0.5], [0.5, 0.5]],
    "zeros of both signs": [[0.0, -0.0], [-0.0, 0.0]],
    "one that is not zero": [[0.0, -0.0], [0.0, -1e-30]],
    "subnormal": [[1e-45, -3e-45], [1e-40, 0.0]],
    "largest": [[3.4e38, -3.4028234e38], [1e-45, 1.0]],
    "neighbours": [[1.0, 1.0 + 2**-23], [1.0 - 2**-24, -1.0]],
}


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("values", EXTREMES.values(), ids=EXTREMES)
def test_extremes(values: list[list[float]], share: float) -> None:
    tensor = torch.tensor(values)
    check([{"b": tensor, "a": tensor.clone(), "c": tensor.double()}], share)
    check([{"b": tensor, "a": tensor.T}], share)


def test_ties_are_taken_by_name_and_by_row() -> None:
    delta = {"b": torch.full((2, 2), -1.0), "a": torch.tensor([[1.0, 9.0], [0.5, 1.0]])}
    (left,) = kept([delta], 0.5)
    assert left["a"].tolist() == [[1.0, 9.0], [0.0, 1.0]]
    assert left["b"].tolist() == [[-1.0, 0.0], [0.0, 0.0]]
    again = dict(reversed(delta.items()))
    assert budgets([again], 0.5) == budgets([delta], 0.5)


def test_exactly_the_share_is_kept() -> None:
    deltas = [layers(seed) for seed in range(3)]
    total = sum(t.numel() for t in deltas[0].values())
    for share in SHARES:
        found = budgets(deltas, share)
        for number in range(3):
            count = sum(found[number, name].kept for name in deltas[0])
            assert count == max(1, reference.share(share, total))


def test_all_of_a_delta_is_whole() -> None:
    delta = layers()
    assert all(found.whole for found in budgets([delta], 1.0).values())
    found = budgets([delta | {"o.weight": torch.full((5, 8), 1e3)}], 0.1)
    assert [name for (_, name), keep in found.items() if keep.whole] == ["o.weight"]


def test_tensors_without_elements() -> None:
    empty = {"a": torch.empty(0, 4), "b": torch.empty(3, 0)}
    assert all(found.kept == 0 for found in budgets([empty], 0.5).values())
    check([empty | {"c": gaussian(2, 3).float()}], 0.5)


def test_more_elements_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = budgets([layers()], 0.2)
    monkeypatch.setattr(localize, "BLOCK", 5)
    assert budgets([layers()], 0.2) == wanted


def test_layouts_in_memory_do_not_matter() -> None:
    delta = layers()
    turned = {n: t.T.contiguous().T for n, t in delta.items()}
    assert budgets([turned], 0.2) == budgets([delta], 0.2)
    expanded = delta | {"o.weight": dense(zeros((5, 8), torch.float32))}
    assert budgets([expanded], 0.2) == budgets([delta], 0.2)


def test_inputs_stay_as_they_are() -> None:
    for dtype in (torch.float32, torch.float64):
        delta = layers(4, dtype)
        before = {n: t.clone() for n, t in delta.items()}
        kept([delta], 0.1)
        assert all(torch.equal(delta[n], t) for n, t in before.items())


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_matter(threads: int) -> None:
    deltas = [layers(seed) for seed in range(4)]
    assert budgets(deltas, 0.1, threads) == budgets(deltas, 0.1)


@pytest.mark.parametrize("wide", [False, True])
def test_one_tensor_is_held_at_a_time(wide: bool) -> None:
    alive: list[weakref.ref] = []
    names, reads = [f"{n}" for n in range(5)], []

    def values(name: str) -> Iterator[Tensor]:
        for seed in range(4):
            assert sum(found() is not None for found in alive) == 0
            tensor = gaussian(6, 8, seed)
            tensor = tensor if wide else tensor.float()
            alive.append(weakref.ref(tensor))
            yield tensor
            del tensor

    allot(names, values, 4, 0.3, threads=1, on_read=reads.append)
    assert len(alive) == 4 * 5 * (5 if wide else 3)
    assert sorted(reads) == sorted(names * READS)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    values=st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=6), min_size=1, max_size=4),
    share=st.floats(0.01, 1),
)
def test_any_number_of_ties(values: list[list[int]], share: float) -> None:
    check([{f"{n}": torch.tensor([row]).float() for n, row in enumerate(values)}], share)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(order=st.permutations(range(4)), factor=st.floats(1e-3, 1e3), sign=st.sampled_from([-1, 1]))
def test_order_and_scale_do_not_matter(order, factor: float, sign: int) -> None:
    deltas = [layers(seed, torch.float64) for seed in range(4)]
    first = budgets(deltas, 0.2)
    shuffled = budgets([deltas[i] for i in order], 0.2)
    names = deltas[0]
    assert all(shuffled[n, name] == first[i, name] for n, i in enumerate(order) for name in names)
    scaled = [{n: sign * factor * t for n, t in delta.items()} for delta in deltas]
    assert budgets(scaled, 0.2) == first


# --- as a pruner -----------------------------------------------------------------------------


def test_only_pruners_of_a_whole_delta_are_allotted_to() -> None:
    for name, method in METHODS.items():
        found = method.allot(["a"], lambda name: [torch.ones(2, 2)], 1, threads=1)
        assert bool(found) == (method.overall is not None), name
    assert find_method("localize").overall == PRUNERS["localize"].parameters[0].default == 0.05
    assert find_method("localize:s=0.3+sum").overall == 0.3
    assert find_method("lors+stitch").overall is None


def test_a_stack_is_cut_as_one_tensor() -> None:
    delta = {"experts": torch.stack([gaussian(4, 6, n) * 1e4**n for n in range(3)]).float()}
    (left,) = kept([delta], 0.334)
    assert not left["experts"][:2].any()
    assert torch.equal(left["experts"][2], delta["experts"][2])
    found = prune(delta["experts"], "localize", budgets([delta], 0.1)[0, "experts"])
    assert isinstance(found, LowRankSparse)
    assert int(found.mask.sum()) == 7


def merged(method: Method, deltas: list[Delta], scales: list[float], name: str) -> Tensor:
    found = method.allot(deltas[0], lambda n: (d[n] for d in deltas), len(deltas), threads=1)
    terms = (
        Term(delta[name].clone(), scale, found[number, name])
        for number, (delta, scale) in enumerate(zip(deltas, scales, strict=True))
    )
    base = torch.zeros_like(deltas[0][name])
    return merge_tensor(base, terms, method, base.dtype).update


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 10])
@pytest.mark.parametrize("method", ["localize", "localize:s=0.4", "localize:s=0.4+sum"])
def test_localize_and_stitch(method: str, count: int, dtype: torch.dtype) -> None:
    chosen = find_method(method)
    deltas = [layers(7 * seed, dtype) for seed in range(count)]
    scales = [0.5 - 0.3 * seed for seed in range(count)]
    wide = [{n: t.double().numpy() for n, t in delta.items()} for delta in deltas]
    left = [reference.localize(delta, chosen.overall) for delta in wide]
    for name in deltas[0]:
        parts = [delta[name] for delta in left]
        total = np.tensordot(scales, np.stack(parts), axes=1)
        expected = total if "+sum" in method else reference.stitch(parts, scales)
        got = merged(chosen, deltas, scales, name).double().numpy()
        tolerance = 1e-6 if dtype == torch.float32 else 1e-14
        size = np.tensordot(np.abs(scales), np.abs(np.stack(parts)), axes=1)
        assert (np.abs(got - expected) <= tolerance * size).all()


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_around_the_mean(share: float) -> None:
    """One threshold for all that a delta has beside the mean."""
    deltas = [layers(7 * seed, torch.float64) for seed in range(3)]
    method = find_method(f"localize:s={share},around=mean+sum")
    means = {n: sum(delta[n] for delta in deltas) / 3 for n in deltas[0]}
    rests = [{n: (d[n] - means[n]).numpy() for n in d} for d in deltas]
    left = [reference.localize(rest, share) for rest in rests]
    for name, mean in means.items():
        expected = 3 * mean.numpy() + sum(delta[name] for delta in left)
        got = merged(method, deltas, [1.0] * 3, name).numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15)


# --- stitch ----------------------------------------------------------------------------------


def test_stitch_counts_deltas_not_what_is_left_of_them() -> None:
    a, b = torch.tensor([[2.0, 3.0, 0.0]]), torch.tensor([[4.0, 0.0, 0.0]])
    combine = COMBINERS["stitch"].combine
    assert combine([(a, 1.0), (b, 0.0)]).tolist() == [[1.0, 3.0, 0.0]]
    assert combine([(a, -1.0), (b, 1.0)]).tolist() == [[1.0, -3.0, 0.0]]
    assert combine([(a, 1e-40), (b.sign() * 1e-30, 1.0)])[0, 0] == pytest.approx(5e-31)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.integers(1, 6), st.floats(-3, 3), st.integers(0, 99))
def test_stitch_is_the_mean_of_what_overlaps(count: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    deltas = [
        torch.from_numpy(rng.standard_normal((4, 9)) * (rng.random((4, 9)) < 0.4))
        for _ in range(count)
    ]
    scales = list(rng.standard_normal(count))
    combine = COMBINERS["stitch"].combine
    got = combine(zip(deltas, scales, strict=True))
    expected = reference.stitch([delta.numpy() for delta in deltas], scales)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-14)
    larger = combine((delta, own * scale) for delta, own in zip(deltas, scales, strict=True))
    np.testing.assert_allclose(larger.numpy(), scale * expected, atol=1e-13)
    alone = sum(delta != 0 for delta in deltas) <= 1
    total = sum(own * delta for own, delta in zip(scales, deltas, strict=True))
    assert torch.equal(got[alone], total[alone])
