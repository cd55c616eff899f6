"""Error counts equal jiwer's, and normalisation keeps what it says."""

from __future__ import annotations

import math
import unicodedata

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.metrics.normalisation import NORMALISATIONS, normalise
from lorsmerge_cli.metrics.wer import ErrorCounts, count_errors, total, wer_signature

WORDS = st.lists(st.sampled_from(["a", "b", "casa", "ñu", "é"]), max_size=8).map(" ".join)
PAIRS = [
    ("the cat sat", "the cat sat"),
    ("the cat sat", "a dog"),
    ("the cat sat", ""),
    ("one", "one one one one"),
    ("नमस्ते दुनिया", "नमसते दुनिया"),
    ("你好 世界", "你好 世 界"),
]


def distance(reference: list[str], hypothesis: list[str]) -> int:
    """Levenshtein by the textbook recurrence."""
    row = list(range(len(hypothesis) + 1))
    for i, word in enumerate(reference, 1):
        previous, row[0] = row[0], i
        for j, other in enumerate(hypothesis, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (word != other))
    return row[-1]


@pytest.mark.parametrize(("reference", "hypothesis"), PAIRS)
def test_counts_are_jiwers(reference: str, hypothesis: str) -> None:
    words = jiwer.process_words(reference, hypothesis)
    found = count_errors(reference, hypothesis)
    assert found == ErrorCounts(words.hits, words.substitutions, words.deletions, words.insertions)
    assert found.rate == words.wer
    characters = [text.replace(" ", "") for text in (reference, hypothesis)]
    assert count_errors(reference, hypothesis, "char").rate == jiwer.cer(*characters)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_counts_add_up(pairs: list[tuple[str, str]]) -> None:
    counts = [count_errors(*pair) for pair in pairs]
    for (reference, hypothesis), count in zip(pairs, counts, strict=True):
        assert count.errors == distance(reference.split(), hypothesis.split())
        assert count.reference_length == len(reference.split())
    assert total(counts).errors == sum(count.errors for count in counts)


def test_empty_reference_counts_insertions() -> None:
    found = count_errors("", "hello there")
    assert found == ErrorCounts(0, 0, 0, 2)
    assert math.isnan(found.rate)
    assert (found + count_errors("a b", "a b")).rate == 1.0


def test_unknown_unit_and_normalisation() -> None:
    with pytest.raises(UsageFault, match="word, char"):
        count_errors("a", "a", "phone")
    with pytest.raises(UsageFault, match="raw, basic, marks"):
        normalise("a", "anglish")


@pytest.mark.parametrize(
    ("text", "how", "expected"),
    [
        ("  Hola,\tMón! ", "raw", "Hola, Món!"),
        ("  Hola,\tMón! [riu] (fluix)", "basic", "hola món"),
        ("L'escola — és", "marks", "l escola és"),
        ("नमस्ते", "marks", "नमस्ते"),
        ("नमस्ते", "basic", "नमस त"),
        (unicodedata.normalize("NFD", "café"), "marks", "café"),
    ],
)
def test_normalise(text: str, how: str, expected: str) -> None:
    assert normalise(text, how).replace("  ", " ") == expected


@given(st.text(max_size=30), st.sampled_from(NORMALISATIONS))
def test_normalising_again_changes_no_spaces(text: str, how: str) -> None:
    once = normalise(text, how)
    assert once == " ".join(once.split())


def test_signature() -> None:
    raw = wer_signature(normalisation="raw", unit="word")
    assert raw == f"unit:word|norm:raw|jiwer:{jiwer_version()}"
    assert "transformers:" in wer_signature(normalisation="basic", unit="char")


def jiwer_version() -> str:
    from importlib.metadata import version

    return version("jiwer")
