"""What an encoding gets is what it gives back, to the last bit of the stored dtype."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorsmerge_cli.core.low_rank_sparse import Delta, LowRankSparse, zeros
from lorsmerge_cli.core.pruning import prune
from lorsmerge_cli.core.pruning.budget import budget
from lorsmerge_cli.deltas.encodings import ENCODINGS, TensorLayout

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PARTS = ("left", "right", "sparse", "mask")


def parts_of(delta: Delta) -> dict[str, torch.Tensor | None]:
    if isinstance(delta, LowRankSparse):
        return {part: getattr(delta, part) for part in PARTS}
    return {"dense": delta}


def bits(tensor: torch.Tensor | None) -> tuple[object, ...] | None:
    if tensor is None:
        return None
    flat = tensor.contiguous().reshape(-1)
    raw = flat.view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return tuple(tensor.shape), tensor.dtype, raw


def matrix_of(shape: tuple[int, int], seed: int) -> torch.Tensor:
    """Normal numbers with zeros of both signs and a few huge and tiny ones among them."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(shape, generator=generator)
    matrix[torch.rand(shape, generator=generator) < 0.1] = 0.0
    matrix[torch.rand(shape, generator=generator) < 0.05] = -0.0
    return matrix * 10.0 ** torch.randint(-3, 3, shape, generator=generator)


def deltas_for(encoding: str, matrix: torch.Tensor, svp: float | None, mp: float | None) -> Delta:
    """A delta that the encoding can hold."""
    if encoding == "dense":
        return matrix
    keep = budget(matrix.shape, svp, mp)
    pruner = "lors" if keep.rank and keep.kept else "svp" if keep.rank else "mp"
    return matrix if keep.whole else prune(matrix, pruner, keep)


ratios = st.one_of(st.none(), st.sampled_from([1e-6, 1 / 32, 0.5]), st.floats(0.001, 0.99))


@pytest.mark.parametrize("encoding", ENCODINGS)
@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    dtype=st.sampled_from(FLOATS),
    svp=ratios,
    mp=ratios,
    seed=st.integers(0, 2**16),
)
def test_round_trip(encoding, shape, dtype, svp, mp, seed) -> None:
    delta = deltas_for(encoding, matrix_of(shape, seed), svp, mp)
    if encoding == "lors" and not isinstance(delta, LowRankSparse):
        return  # the budget is the whole matrix, which `dense` stores
    rank, kept = budget(shape, svp, mp).rank, budget(shape, svp, mp).kept
    layout = TensorLayout(encoding, shape, dtype, rank, kept)
    module = ENCODINGS[encoding]
    stored = module.encode("x", delta, layout)
    specs = module.specs("x", layout)
    assert {name: (tuple(t.shape), t.dtype) for name, t in stored.items()} == {
        name: (spec.shape, spec.dtype) for name, spec in specs.items()
    }
    decoded = module.decode("x", layout, stored.__getitem__)
    wanted = delta.to(dtype)
    assert {part: bits(t) for part, t in parts_of(decoded).items()} == {
        part: bits(t) for part, t in parts_of(wanted).items()
    }
    again = module.encode("x", decoded, layout)
    assert {name: bits(t) for name, t in again.items()} == {n: bits(t) for n, t in stored.items()}


NOTHING = {
    "factors of rank 0": LowRankSparse(torch.empty(3, 0), torch.empty(0, 4)),
    "a mask of nothing": LowRankSparse(sparse=torch.zeros(3, 4), mask=torch.zeros(3, 4).bool()),
    "both": LowRankSparse(
        torch.empty(3, 0), torch.empty(0, 4), torch.zeros(3, 4), torch.zeros(3, 4).bool()
    ),
    "zeros": zeros((3, 4), torch.float32),
    "no part at all": LowRankSparse(),
}


@pytest.mark.parametrize("delta", NOTHING.values(), ids=NOTHING)
def test_nothing_in_whatever_form_is_stored_as_nothing(delta: LowRankSparse) -> None:
    layout = TensorLayout("lors", (3, 4), torch.float32)
    assert layout.is_zero
    stored = ENCODINGS["lors"].encode("x", delta, layout)
    assert {name: (tuple(t.shape), t.dtype) for name, t in stored.items()} == {
        "x.sparse.values": ((0,), torch.float32), "x.sparse.places": ((0,), torch.int32)
    }  # fmt: skip
    assert (
        ENCODINGS["lors"]
        .decode("x", layout, stored.__getitem__)
        .to_dense()
        .equal(torch.zeros(3, 4))
    )


OTHER_PARTS = {
    "another rank": (LowRankSparse(torch.ones(3, 2), torch.ones(2, 4)), 1, 0),
    "factors where there are none": (LowRankSparse(torch.ones(3, 2), torch.ones(2, 4)), 0, 0),
    "no factors": (LowRankSparse(), 1, 0),
    "elements where there are none": (LowRankSparse(sparse=torch.ones(3, 4), mask=torch.ones(3, 4).bool()), 0, 0),
    "fewer elements": (LowRankSparse(sparse=torch.ones(3, 4), mask=torch.ones(3, 4) > 2), 0, 5),
    "no elements": (LowRankSparse(), 0, 5),
}  # fmt: skip


@pytest.mark.parametrize(("delta", "rank", "kept"), OTHER_PARTS.values(), ids=OTHER_PARTS)
def test_other_parts_than_the_layouts(delta: LowRankSparse, rank: int, kept: int) -> None:
    layout = TensorLayout("lors", (3, 4), torch.float32, rank, kept)
    with pytest.raises(ValueError, match="does not have the parts of its layout"):
        ENCODINGS["lors"].encode("x", delta, layout)


@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dense_takes_any_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    layout = TensorLayout("dense", shape, dtype)
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stored = ENCODINGS["dense"].encode("x", tensor.to(dtype), layout)
    decoded = ENCODINGS["dense"].decode("x", layout, stored.__getitem__)
    assert bits(decoded) == bits(tensor.to(dtype))


PLACES_OR_BITMASK = [
    # shape, kept, what marks the places: a bitmask takes ceil(d * k / 8) bytes, a place 4
    ((8, 32), 7, "places"),
    ((8, 32), 8, "bitmask"),
    ((8, 32), 9, "bitmask"),
    ((1, 9), 0, "places"),
    ((1, 9), 1, "bitmask"),
    ((3, 11), 1, "places"),
    ((3, 11), 2, "bitmask"),
    ((100, 100), 312, "places"),
    ((100, 100), 313, "bitmask"),
]


@pytest.mark.parametrize(("shape", "kept", "wanted"), PLACES_OR_BITMASK)
def test_the_smaller_of_places_and_bitmask(shape: tuple[int, int], kept: int, wanted: str) -> None:
    layout = TensorLayout("lors", shape, torch.float32, kept=kept)
    specs = ENCODINGS["lors"].specs("x", layout)
    assert specs.keys() == {"x.sparse.values", f"x.sparse.{wanted}"}
    other = {"places": math.ceil(shape[0] * shape[1] / 8), "bitmask": 4 * kept}[wanted]
    assert specs[f"x.sparse.{wanted}"].nbytes <= other


@pytest.mark.parametrize(("shape", "kept", "wanted"), PLACES_OR_BITMASK)
def test_round_trip_on_both_sides_of_the_boundary(
    shape: tuple[int, int], kept: int, wanted: str
) -> None:
    matrix = matrix_of(shape, kept)
    delta = prune(matrix, "mp", budget(shape, None, (kept + 0.5) / matrix.numel()))
    layout = TensorLayout("lors", shape, torch.float32, kept=kept)
    stored = ENCODINGS["lors"].encode("x", delta, layout)
    assert f"x.sparse.{wanted}" in stored
    decoded = ENCODINGS["lors"].decode("x", layout, stored.__getitem__)
    assert bits(decoded.sparse) == bits(delta.sparse)
    assert bits(decoded.mask) == bits(delta.mask)


def test_places_past_two_to_the_31_are_wide() -> None:
    wide = TensorLayout("lors", (2**16, 2**15), torch.float32, kept=1)
    narrow = TensorLayout("lors", (2**16, 2**15 - 1), torch.float32, kept=1)
    assert ENCODINGS["lors"].specs("x", wide)["x.sparse.places"].dtype is torch.int64
    assert ENCODINGS["lors"].specs("x", narrow)["x.sparse.places"].dtype is torch.int32


def test_the_bytes_are_those_of_the_format() -> None:
    """Row-major places, lowest bit first, values in the order of their places."""
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 0] = mask[0, 3] = mask[1, 4] = True
    sparse = torch.tensor([[1.0, 0, 0, 2.0, 0], [0, 0, 0, 0, 3.0]])
    layout = TensorLayout("lors", (2, 5), torch.float32, kept=3)
    stored = ENCODINGS["lors"].encode("x", LowRankSparse(sparse=sparse, mask=mask), layout)
    assert stored["x.sparse.values"].tolist() == [1.0, 2.0, 3.0]
    assert stored["x.sparse.bitmask"].tolist() == [0b00001001, 0b00000010]
    few = TensorLayout("lors", (20, 50), torch.float32, kept=2)
    big = torch.zeros(20, 50)
    big[0, 7], big[19, 49] = -1.0, 5.0
    stored = ENCODINGS["lors"].encode("x", LowRankSparse(sparse=big, mask=big != 0), few)
    assert stored["x.sparse.places"].tolist() == [7, 999]
    assert stored["x.sparse.values"].tolist() == [-1.0, 5.0]


def test_a_kept_zero_stays_kept() -> None:
    mask = torch.tensor([[True, False], [False, True]])
    delta = LowRankSparse(sparse=torch.zeros(2, 2), mask=mask)
    layout = TensorLayout("lors", (2, 2), torch.float32, kept=2)
    stored = ENCODINGS["lors"].encode("x", delta, layout)
    assert torch.equal(ENCODINGS["lors"].decode("x", layout, stored.__getitem__).mask, mask)


def test_a_dense_delta_in_lors_is_refused() -> None:
    with pytest.raises(ValueError, match="x"):
        ENCODINGS["lors"].encode("x", torch.ones(2, 2), TensorLayout("lors", (2, 2), torch.float32))


@pytest.mark.parametrize(("svp", "mp"), [(0.05, 0.1), (0.05, None), (None, 0.1), (0.02, 0.01)])
def test_a_pruned_matrix_takes_the_bytes_that_its_budget_says(svp, mp) -> None:
    shape = (256, 64)
    delta = prune(matrix_of(shape, 0), "lors" if svp and mp else "svp" if svp else "mp",
                  keep := budget(shape, svp, mp))  # fmt: skip
    layout = TensorLayout("lors", shape, torch.float32, keep.rank, keep.kept)
    stored = ENCODINGS["lors"].encode("x", delta, layout)
    marks = min(4 * keep.kept, 256 * 64 // 8) if keep.kept else 0
    wanted = 4 * (keep.rank * (256 + 64) + keep.kept) + marks
    assert sum(t.nbytes for t in stored.values()) == wanted
