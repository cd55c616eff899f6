"""Sketches compared with Python sets."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest

from lorsmerge_cli.core.sketch import LIMIT, Sketch, parse_sketches, sketches_document, union


def hashes(count: int, seed: int = 0) -> set[int]:
    chosen = random.Random(seed)
    return {chosen.getrandbits(64) for _ in range(count)}


def as_set(sketch: Sketch) -> set[int]:
    return {int(value) for value in sketch.hashes}


def array(values: Any) -> np.ndarray:
    return np.array(list(values), np.uint64)


@pytest.mark.parametrize("count", [0, 1, 5, 300])
def test_a_small_set_is_whole(count: int) -> None:
    members, others = hashes(count), hashes(50, seed=1)
    sketch = Sketch.of([*members, *members]).bounded(300)
    assert sketch.complete
    assert as_set(sketch) == members
    asked = array([*members, *others])
    assert sketch.tells_of(asked).all()
    assert sketch.has_within(asked, asked).tolist() == [True] * count + [False] * 50


def test_of_a_large_set_the_smallest_are_kept() -> None:
    members = hashes(1000)
    sketch = Sketch.of(members).bounded(100)
    assert not sketch.complete
    assert as_set(sketch) == set(sorted(members)[:100])
    asked = array(members)
    assert sketch.tells_of(asked).sum() == 100
    assert (sketch.has_within(asked, asked) == sketch.tells_of(asked)).all()


def test_the_share_of_a_sample_is_that_of_the_set() -> None:
    members = hashes(20_000)
    known, strange = random.Random(3).sample(sorted(members), 3000), hashes(7000, seed=4)
    sketch = Sketch.of(members).bounded(4000)
    asked = array([*known, *strange])
    told = sketch.tells_of(asked)
    found = sketch.has_within(asked, asked) & told
    assert 1700 < told.sum() < 2300
    assert found.sum() / told.sum() == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("limits", [(1000, 1000), (50, 1000), (1000, 50), (50, 80)])
def test_a_union_knows_what_both_know(limits: tuple[int, int]) -> None:
    sets = hashes(200, seed=1) | hashes(50, seed=3), hashes(200, seed=2) | hashes(50, seed=3)
    first, second = (
        Sketch.of(members).bounded(limit) for members, limit in zip(sets, limits, strict=True)
    )
    both = first | second
    assert both.complete == (first.complete and second.complete)
    last = min([max(as_set(part)) for part in (first, second) if not part.complete] or [2**64])
    assert as_set(both) == {member for member in sets[0] | sets[1] if member <= last}
    asked = array(sets[0] | sets[1] | hashes(200, seed=9))
    told = both.tells_of(asked)
    right = [int(value) in sets[0] | sets[1] for value in asked]
    assert all(a == b for a, b, t in zip(both.has_within(asked, asked), right, told, strict=True) if t)  # fmt: skip


def test_an_empty_set_shares_nothing_with_an_incomplete_one() -> None:
    both = Sketch.of([]) | Sketch.of(hashes(300)).bounded(10)
    assert len(both.hashes) == 10
    assert not both.complete


def test_ranges_have_both_ends() -> None:
    sketch = Sketch.of([10, 20])
    asked = [(0, 9), (0, 10), (11, 19), (20, 30), (21, 30), (5, 25), (9, 8)]
    low, high = zip(*asked, strict=True)
    assert sketch.has_within(array(low), array(high)).tolist() == [
        any(a <= value <= b for value in (10, 20)) for a, b in asked
    ]


@pytest.mark.parametrize("count", [0, 3, LIMIT, LIMIT + 1, 30_000])
def test_as_text_they_read_the_same_and_stay_small(count: int) -> None:
    sketches = {"audio": Sketch.of(hashes(count)), "speakers": Sketch.of([2**64 - 1, 0])}
    text = json.dumps(sketches_document(sketches))
    assert len(text) < 90_000
    assert "/" not in text  # what looks for paths of this machine takes none for one
    read = parse_sketches(json.loads(text))
    assert as_set(read["speakers"]) == {0, 2**64 - 1}
    assert read["audio"].complete == (count <= LIMIT)
    assert as_set(read["audio"]) == set(sorted(hashes(count))[:LIMIT])


def test_sketches_of_one_kind_are_put_together() -> None:
    found = union([("a", {"x": Sketch.of([1])}), ("b", {"x": Sketch.of([2]), "y": Sketch.of([3])})])
    assert {kind: as_set(sketch) for kind, sketch in found.items()} == {"x": {1, 2}, "y": {3}}
    assert union([]) == {}


def test_those_of_a_later_version_are_left_alone() -> None:
    assert parse_sketches({"version": 2, "audio": "other"}) == {}
    assert parse_sketches({}) == {}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (3, "not a table"),
        ([], "not a table"),
        ({"version": 1, "audio": 3}, "audio. is not a table"),
        ({"version": 1, "audio": {}}, "lacks"),
        ({"version": 1, "audio": {"complete": 1, "hashes": ""}}, "lacks"),
        ({"version": 1, "audio": {"complete": True, "hashes": 5}}, "lacks"),
        ({"version": 1, "audio": {"complete": True, "hashes": "AAAA"}}, "invalid hashes"),
        ({"version": 1, "audio": {"complete": True, "hashes": "a"}}, "invalid hashes"),
        ({"version": 1, "audio": {"complete": True, "hashes": "a/aaaaaaaaa="}}, "invalid hashes"),
        ({"version": 1, "audio": {"complete": True, "hashes": "é" * 12}}, "invalid hashes"),
        (
            {"version": 1, "audio": {"complete": True, "hashes": "AAAAAAAAAAAAAAAAAAAAAA=="}},
            "order",
        ),
    ],
)
def test_what_is_no_sketch_is_refused(document: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_sketches(document)
