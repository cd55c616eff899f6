"""The matched-pairs test over segments, against its description and its definition."""

from __future__ import annotations

import math
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from lorsmerge_cli.metrics.mapsswe import GOOD, matched_pairs, segment_errors

REFERENCE = [
    "it",
    "was",
    "the",
    "best",
    "of",
    "times",
    "it",
    "was",
    "the",
    "worst",
    "of",
    "times",
    "it",
    "was",
]
A = [
    "ITS",
    "the",
    "best",
    "of",
    "times",
    "it",
    "IS",
    "the",
    "worst",
    "of",
    "times",
    "OR",
    "it",
    "was",
]
B = ["it", "was", "the", "best", "times", "it", "WON", "the", "TEST", "of", "times", "it", "was"]


def test_the_worked_example_of_its_description() -> None:
    """Segments `it was`, `of`, `was the worst` and an insertion, as NIST draws them."""
    assert segment_errors(REFERENCE, A, B) == [(2, 0), (0, 1), (1, 2), (1, 0)]
    assert segment_errors(REFERENCE, B, A) == [(0, 2), (1, 0), (2, 1), (0, 1)]


def by_definition(reference: list[str], a: list[str], b: list[str]) -> list[tuple[int, int]]:
    """Cut the utterance at every stretch of two words or more that both systems have right."""
    places = slots(reference, a), slots(reference, b)
    line = [(number % 2, pair) for number, pair in enumerate(zip(*places, strict=True))]
    good = "".join("." if pair == (0, 0) else "x" for _, pair in line)
    found, start = [], None
    for right, group in groupby(range(len(line)), key=lambda n: good[n] == "."):
        numbers = list(group)
        words = sum(line[n][0] for n in numbers)
        if right and words >= GOOD:
            start = None
        elif not right:
            errors = np.sum([line[n][1] for n in numbers], axis=0)
            if start is None:
                found.append(np.zeros(2, dtype=int))
                start = numbers[0]
            found[-1] += errors
    return [(int(x), int(y)) for x, y in found]


def slots(reference: list[str], hypothesis: list[str]) -> list[int]:
    """Errors at each place, by the cheapest alignment at sclite's costs."""
    import kaldialign

    errors, place = [0] * (2 * len(reference) + 1), 0
    for word, said in kaldialign.align(reference, hypothesis, "*", sclite_mode=True):
        if word == "*":
            errors[2 * place] += 1
        else:
            errors[2 * place + 1] = int(word != said)
            place += 1
    return errors


WORDS = st.lists(st.sampled_from("abcde"), max_size=12)


@given(WORDS, WORDS, WORDS)
def test_segments(reference: list[str], a: list[str], b: list[str]) -> None:
    found = segment_errors(reference, a, b)
    assert found == by_definition(reference, a, b)
    for number, said in enumerate((a, b)):  # no error is lost or counted twice
        assert sum(pair[number] for pair in found) == sum(slots(reference, said))


@pytest.mark.parametrize(
    "segments",
    [[(2, 0), (0, 1), (1, 2), (1, 0)], [(1, 0)] * 5 + [(0, 1)], [(3, 1), (2, 2), (0, 4)]],
)
def test_z_and_p_are_those_of_the_formula(segments: list[tuple[int, int]]) -> None:
    differences = np.array([b - a for a, b in segments], dtype=np.float64)
    z = differences.mean() / (differences.std(ddof=1) / math.sqrt(len(differences)))
    found = matched_pairs(segments)
    assert found.z == pytest.approx(z)
    assert found.p_value == pytest.approx(2 * norm.sf(abs(z)))
    assert found.difference == pytest.approx(differences.mean())


def test_ends_of_what_can_be_tested() -> None:
    assert matched_pairs([]).segments == 0
    assert math.isnan(matched_pairs([(1, 0)]).p_value)
    assert matched_pairs([(1, 1)] * 3).p_value == 1
    assert matched_pairs([(1, 0)] * 3).p_value == 0
    assert segment_errors([], [], []) == []
    assert segment_errors([], ["a"], []) == [(1, 0)]
    assert segment_errors(["a"], ["a"], ["a"]) == []
