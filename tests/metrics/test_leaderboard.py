"""The Open ASR Leaderboard's rules, beside the libraries that it calls."""

# ruff: noqa: RUF001  letters that look alike are what it is about

from __future__ import annotations

import re
import unicodedata
from difflib import SequenceMatcher

import jiwer
import kaldialign
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from num2words import num2words

from lorsmerge_cli.metrics import METRICS
from lorsmerge_cli.metrics.leaderboard import joined, word_errors
from lorsmerge_cli.metrics.metric import Scoring
from lorsmerge_cli.metrics.normalisation import CHOICES, LEADERBOARD, normalisation_for, normalise
from lorsmerge_cli.metrics.wer import count_rows
from lorsmerge_cli.results.records import Hypothesis


def make_hypothesis(name: str, reference: str, said: str, language: str = "en") -> Hypothesis:
    return Hypothesis("m", "d", name, language, "asr", reference, said, 1.0)


CASES = [
    ("en", "Uh, the U.S.A. isn't... e.g. twenty-one colours (laughs)", "the usa is not eg 21 colors"),
    ("de", "Ich zahlte 10 000 € für 21 Äpfel – gell?", "ich zahlte zehntausend für einundzwanzig äpfel gell"),
    ("fr", "C'est l'été [rires], 71 œufs", "c est l été soixante et onze œufs"),
    ("es", "¿Cómo estás? (suspiro) Son 22", "cómo estás son veintidós"),
    ("it", "Perché no? 23 città", "perché no ventitré città"),
    ("pt", "Não há 100 pães.", "não há cem pães"),
    ("nl", "Zij ging 's avonds, om 8", "zij ging s avonds om acht"),
    ("ca", "L'àvia té 92 anys; col·laboren", "l àvia té noranta-dos anys col laboren"),
    ("hi", "किताब की क़ीमत 5!", "किताब की क़ीमत 5"),
    ("pl", "Żółw ma 3 łapy", "żółw ma trzy łapy"),
    ("eu", "12 etxe", "12 etxe"),  # num2words has no Basque
    ("ko", "사과 3개", "사과 삼개"),
]  # fmt: skip


@pytest.mark.parametrize(("language", "text", "expected"), CASES)
def test_texts(language: str, text: str, expected: str) -> None:
    assert normalise(text, normalisation_for(language, LEADERBOARD)) == unicodedata.normalize(
        "NFKC", expected
    )


def independently(text: str, language: str) -> str:
    """The rules again, by the library of regular expressions that the leaderboard uses."""
    text = re.sub(r"[<\[][^>\]]*[>\]]", "", text.lower())
    text = re.sub(r"\(([^)]+?)\)", "", text)
    text = unicodedata.normalize("NFKC", text)
    text = regex.sub(r"[\p{S}\p{P}]", " ", text).lower()
    text = regex.sub(r"[\p{C}--\s]", "", text, flags=regex.V1)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"(\d)\s+(\d{3})\b", r"\1\2", text)

    def spelled(match: re.Match[str]) -> str:
        try:
            return num2words(int(match.group()), lang=language)
        except Exception:
            return match.group()

    return re.sub(r"\d+", spelled, text)


# characters that Python's tables lack may be words in newer ones
TEXTS = st.text(
    st.characters(exclude_categories=["Cn", "Cs"], exclude_characters="\x1c\x1d\x1e\x1f"),
    max_size=40,
)


@given(TEXTS, st.sampled_from(["de", "fr", "hi", "th", "pt", "eu"]))
def test_any_text_is_normalised_as_by_other_means(text: str, language: str) -> None:
    assert normalise(text, f"leaderboard:{language}") == independently(text, language)


def test_numbers_too_long_to_spell_stay_digits() -> None:
    digits = "9" * 5000
    assert normalise(f"a {digits}", "leaderboard:de") == f"a {digits}"
    for how in ("english", "leaderboard:en"):  # whose rules would read it as a number
        assert normalise(f"The colour {digits}, isn't it?", how) == f"the color {digits} is not it"


def test_compounds() -> None:
    assert joined("im haus meister raum", "im hausmeister raum") == ("im hausmeister raum",) * 2
    assert joined("a b c x", "abc x") == ("abc x", "abc x")
    assert joined("", "a") == ("", "a")
    assert word_errors("a b c x", "abc x", "de") == (0, 0, 0)
    assert word_errors("white paper", "whitepaper", "en") == (0, 0, 0)
    assert word_errors("", "a", "de") == (0, 0, 1)
    assert word_errors("a", "", "en") == (0, 1, 0)


WORDS = st.lists(st.sampled_from(["a", "b", "ab", "abc", "c"]), max_size=7).map(" ".join)


@given(WORDS, WORDS, st.sampled_from(["en", "de"]))
def test_errors_are_those_of_the_libraries(reference: str, hypothesis: str, language: str) -> None:
    pair = [reference.split(), hypothesis.split()]
    if language != "en":
        sides: list[list[str]] = [[], []]
        for tag, *at in SequenceMatcher(None, *pair).get_opcodes():
            parts = [pair[0][at[0] : at[1]], pair[1][at[2] : at[3]]]
            if tag != "equal" and "".join(parts[0]) == "".join(parts[1]):
                parts = [["".join(part)] for part in parts]
            sides = [side + part for side, part in zip(sides, parts, strict=True)]
        pair = sides
    found = kaldialign.batch_error_rate([pair[0]], [pair[1]], merge_compounds=True)
    assert word_errors(reference, hypothesis, language) == (
        found["sub"],
        found["del"],
        found["ins"],
    )


def test_score_and_signature() -> None:
    rows = [
        make_hypothesis("a", "der Hausmeister kam um 8", "der Haus Meister kommt um acht", language="de"),
        make_hypothesis("b", "ja", "ja doch", language="de"),
    ]  # fmt: skip
    counts = count_rows(rows, "leaderboard:de", "word")
    assert [(c.hits, c.substitutions, c.deletions, c.insertions) for c in counts] == [
        (4, 1, 0, 0), (1, 0, 0, 1),
    ]  # fmt: skip
    scoring, wer = Scoring(LEADERBOARD), METRICS["wer"]
    assert wer.score(wer.statistics(rows, scoring).sum(axis=0)) == pytest.approx(100 * 2 / 6)
    signature = wer.signature("de", scoring)
    assert "|norm:leaderboard:de|kaldialign:" in signature
    assert "num2words:" in signature
    assert "num2words:" not in wer.signature("en", scoring)
    assert "jiwer:" in METRICS["cer"].signature("de", scoring)
    assert LEADERBOARD in CHOICES


def test_match_error_rate_is_jiwers() -> None:
    rows = [
        make_hypothesis("a", "one two three four", "one too three and four"),
        make_hypothesis("b", "five six", "five six"),
        make_hypothesis("c", "", "uh"),
    ]
    scoring, mer = Scoring("raw"), METRICS["mer"]
    found = mer.score(mer.statistics(rows, scoring).sum(axis=0))
    references, hypotheses = ([getattr(row, key) for row in rows] for key in ("reference", "hypothesis"))  # fmt: skip
    assert found == pytest.approx(100 * jiwer.process_words(references, hypotheses).mer)
