"""Boundary errors of segments, beside cases by hand and a search of every matching."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from math import isnan
from statistics import stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorsmerge_cli.data.utterance import Segment
from lorsmerge_cli.metrics.metric import Scoring
from lorsmerge_cli.metrics.timestamps import Boundaries, boundaries, intervals, matched
from lorsmerge_cli.results.records import Hypothesis, score

ROW = Hypothesis("m", "d", "1", "ca", "asr", "bon dia", "bon dia", 9.0)


def segments(*times: tuple[float, float]) -> tuple[Segment, ...]:
    return tuple(Segment(start, end, "x") for start, end in times)


def of(said: Sequence[tuple[float, float]], heard: Sequence[tuple[float, float]]) -> Boundaries:
    return boundaries([replace(ROW, segments=segments(*said), heard_segments=segments(*heard))])


@pytest.mark.parametrize(
    ("said", "heard", "matches", "within", "seconds"),
    [
        ([(0, 2), (3, 5)], [(0, 2), (3, 5)], 2, 2, 0.0),
        ([(0, 2), (3, 5)], [(0.2, 2), (3, 4.8)], 2, 2, 0.4),  # 0.2 is within
        ([(0, 2), (3, 5)], [(0.21, 2), (3, 5.5)], 2, 0, 0.71),
        ([(0, 2), (3, 5)], [(0, 5)], 1, 0, 3.0),  # two heard as one: of the same overlap, the first
        ([(0, 4)], [(0, 1), (1, 4)], 1, 0, 1.0),  # one heard as two: the longer
        ([(0, 2), (3, 5)], [], 0, 0, 0.0),  # silent
        ([(0, 2), (3, 5)], [(2.1, 2.9)], 0, 0, 0.0),  # in the pause between
        ([(3, 5)], [(0, 2), (3.1, 5.1), (6, 8)], 1, 1, 0.2),  # more than was said
        ([(0, 2), (2, 4), (4, 6)], [(0, 2), (4, 6)], 2, 2, 0.0),  # one is not heard
        ([(0, 2)], [(1, 1)], 0, 0, 0.0),
        ([(0, 2)], [(2, 0)], 0, 0, 0.0),  # of a stranger's file
    ],
)
def test_cases_by_hand(
    said: list[tuple[float, float]],
    heard: list[tuple[float, float]],
    matches: int,
    within: int,
    seconds: float,
) -> None:
    found = of(said, heard)
    assert (found.recordings, found.segments, found.heard) == (1, len(said), len(heard))
    assert (found.matched, found.within) == (matches, within)
    assert found.seconds == pytest.approx(seconds)
    assert found.error == (pytest.approx(seconds / 2 / matches) if matches else None)
    assert found.share == pytest.approx(100 * within / len(said))


def overlap(a: Segment, b: Segment) -> float:
    """In steps of a tenth: those of both by those of either."""
    one, other = (set(range(round(10 * s.start), round(10 * s.end))) for s in (a, b))
    return len(one & other) / len(one | other) if one & other else 0.0


def every_matching(n: int, m: int) -> Iterator[list[tuple[int, int]]]:
    for size in range(min(n, m) + 1):
        for ours in combinations(range(n), size):
            for theirs in combinations(range(m), size):
                yield list(zip(ours, theirs, strict=True))


@st.composite
def recordings(draw: st.DrawFn) -> tuple[Segment, ...]:
    """Up to four segments, in order, that do not overlap."""
    bounds = sorted(draw(st.sets(st.integers(0, 40), max_size=8)))
    return segments(*((a / 10, b / 10) for a, b in zip(bounds[::2], bounds[1::2], strict=False)))


@given(recordings(), recordings())
def test_no_other_matching_overlaps_more(
    said: tuple[Segment, ...], heard: tuple[Segment, ...]
) -> None:
    def total(pairs: list[tuple[int, int]]) -> float:
        return sum(overlap(said[i], heard[j]) for i, j in pairs)

    found = matched(said, heard)
    best = max(map(total, every_matching(len(said), len(heard))))
    assert total(found) == pytest.approx(best)
    assert all(overlap(said[i], heard[j]) for i, j in found)
    assert found == sorted(found)
    assert len({i for i, _ in found}) == len({j for _, j in found}) == len(found)
    back = [(i, j) for j, i in matched(heard, said)]
    assert total(back) == pytest.approx(best)


@given(st.lists(st.tuples(recordings(), recordings()), min_size=1, max_size=4))
def test_counts_add_up_over_recordings(
    pairs: list[tuple[tuple[Segment, ...], tuple[Segment, ...]]],
) -> None:
    rows = [replace(ROW, segments=said, heard_segments=heard) for said, heard in pairs]
    total = Boundaries()
    for row in rows:
        total += boundaries([row])
    whole = boundaries(rows)
    assert replace(whole, seconds=0.0) == replace(total, seconds=0.0)
    assert whole.seconds == pytest.approx(total.seconds)


def test_only_rows_with_times_on_both_sides_count() -> None:
    timed = replace(ROW, segments=segments((0, 2)), heard_segments=segments((0, 2.1)))
    rows = [
        timed,
        replace(ROW, id="2", segments=segments((0, 2))),
        replace(ROW, id="3", heard_segments=segments((0, 2))),
        replace(ROW, id="4", segments=(), heard_segments=()),
    ]
    found = score(rows, Scoring()).details["timestamps"]
    assert found == {
        "recordings": 1, "segments": 1, "heard": 1, "matched": 1, "within": 1, "seconds": 0.1,
    }  # fmt: skip
    assert "timestamps" not in score(rows[1:], Scoring()).details


def test_intervals_are_over_speakers_with_all_their_runs() -> None:
    """Equal blocks: the standard error is that of a mean of the blocks' values."""
    said, late = segments((0, 2), (3, 5)), {"a": 0.1, "b": 0.3, "c": 0.8}
    rows = [
        replace(ROW, id=f"{speaker}{n}", speaker=speaker, segments=said,
                heard_segments=segments((delay, 2 + delay), (3 + delay, 5 + delay)))
        for speaker, delay in late.items() for n in range(2)
    ]  # fmt: skip
    error, share = intervals(rows)
    spread = stdev(late.values()) / 3**0.5
    assert (error.blocks, error.standard_error) == (3, pytest.approx(spread))
    assert error.low < 0.4 < error.high
    assert share.standard_error == pytest.approx(stdev([100, 0, 0]) / 3**0.5)
    again = [replace(row, model="m:seed1") for row in rows]
    assert intervals(rows + again)[0].standard_error == pytest.approx(spread)
    alone, _ = intervals([replace(row, speaker=None) for row in rows])
    assert alone.blocks == 6  # recordings
    one, _ = intervals(rows[:2])
    assert isnan(one.standard_error)
    silent, _ = intervals([replace(row, heard_segments=()) for row in rows])
    assert isnan(silent.standard_error)


def test_equal_names_of_two_test_sets_are_two_blocks() -> None:
    row = replace(ROW, segments=segments((0, 2)), heard_segments=segments((0, 1)))
    for change in ({"dataset": "other"}, {"language": "de"}, {"task": "st"}, {"speaker": "1"}):
        assert intervals([row, replace(row, **change)])[0].blocks == 2  # type: ignore[arg-type]


def test_recordings_of_hours_are_matched_in_a_moment() -> None:
    said = segments(*((2 * n, 2 * n + 1.5) for n in range(4000)))
    late = segments(*((2 * n + 0.1, 2 * n + 1.6) for n in range(4000)))
    assert matched(said, late) == [(n, n) for n in range(4000)]
