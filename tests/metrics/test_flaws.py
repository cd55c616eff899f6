"""Counts of hypotheses that went wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorsmerge_cli.metrics import written
from lorsmerge_cli.metrics.flaws import FLAWS
from lorsmerge_cli.metrics.looping import LONGEST, is_looping, most_repeats
from lorsmerge_cli.metrics.metric import Scoring
from lorsmerge_cli.results.records import Hypothesis, score

ROW = Hypothesis("m", "d", "1", "ca", "asr", "bon dia", "bon dia", 1.0, cut=False)


def counted(key: str, said: str, meant: str = "bon dia", **more: object) -> int | None:
    row = replace(ROW, hypothesis=said, reference=meant, **more)  # type: ignore[arg-type]
    return FLAWS[key].count([row, replace(row, hypothesis=row.reference)])


def plain_repeats(words: list[str]) -> int:
    """By its definition: every piece of every length at every place."""
    most = 0
    for start in range(len(words)):
        for size in range(1, LONGEST + 1):
            times, piece = 0, words[start : start + size]
            while len(piece) == size and words[start + times * size : start + (times + 1) * size] == piece:  # fmt: skip
                times += 1
            most = max(most, times)
    return most


@given(st.lists(st.sampled_from("ab"), max_size=30))
def test_repeats_are_those_of_the_definition(words: list[str]) -> None:
    assert most_repeats(words) == plain_repeats(words)


@pytest.mark.parametrize(
    ("said", "meant", "language", "task", "count"),
    [
        ("no no no no no", "no", "ca", "asr", 1),
        ("No, no, NO: no. no", "no", "ca", "asr", 1),
        ("no no no no", "no", "ca", "asr", 0),
        ("no no no no no", "no no no no no", "ca", "asr", 0),  # it is what was said
        ("a b a b a b a b a b", "a b", "ca", "asr", 1),
        ("哈哈哈哈哈", "哈", "zh", "asr", 1),
        ("哈哈哈哈哈", "ha", "zh", "st", 0),  # one word of an English text
        ("", "no", "ca", "asr", 0),
    ],
)
def test_words_that_follow_each_other(
    said: str, meant: str, language: str, task: str, count: int
) -> None:
    assert counted("repeats", said, meant, language=language, task=task) == count


@pytest.mark.parametrize(
    ("said", "meant", "count"), [("thank you", "", 1), (" ", "", 0), ("a", " \n", 1), ("a", "b", 0)]
)
def test_words_where_nothing_is_said(said: str, meant: str, count: int) -> None:
    assert counted("invented", said, meant) == count


@pytest.mark.parametrize(
    ("said", "meant", "language", "task", "count"),
    [
        ("добрый день", "bon dia", "ca", "asr", 1),
        ("добрый день", "добрый день", "ru", "asr", 0),
        ("dobry den", "добрый день", "ru", "asr", 1),
        ("Dobar dan", "добар дан", "sr", "asr", 0),  # both are in use
        ("добрый день", "good day", "ru", "st", 1),
        ("NASA", "NASA", "ru", "asr", 0),  # so has the reference
        ("\N{FULLWIDTH DIGIT ONE}", "bon dia", "ca", "asr", 0),
        ("こんにちは世界", "世界", "ja", "asr", 0),
        ("안녕하세요", "世界", "ja", "asr", 1),
        (
            "\N{FULLWIDTH LATIN SMALL LETTER B}",
            "bon dia",
            "ca",
            "asr",
            0,
        ),  # wide letters are Latin ones
    ],
)
def test_letters_of_another_script(
    said: str, meant: str, language: str, task: str, count: int
) -> None:
    assert counted("script", said, meant, language=language, task=task) == count


@pytest.mark.parametrize(
    ("said", "meant", "language", "task", "count"),
    [
        ("the meeting starts at nine in the morning", "la reunió comença a les nou del matí", "ca", "asr", 1),
        ("la reunión comienza a las nueve de la mañana", "la reunió comença a les nou del matí", "ca", "asr", 1),
        ("la reunio comenca a les nou del mati i", "la reunió comença a les nou del matí", "ca", "asr", 0),
        ("la reunió comença a les nou del matí", "the meeting starts at nine in the morning", "ca", "st", 1),
        ("the meetings start at nine", "the meeting starts at nine in the morning", "ca", "st", 0),
        ("Die Sitzung beginnt um neun Uhr", "la riunione inizia alle nove", "it", "asr", 1),
        ("ARRIBA A LES NOU EN PUNT", "the meeting starts at nine in the morning", "ca", "st", 1),
        ("会議は九時に始まります", "the meeting starts at nine in the morning", "ja", "st", 1),
        ("house", "casa", "ca", "asr", 0),  # one word says little
        (5000 * "Die Sitzung beginnt um neun Uhr. ", 5000 * "The meeting starts at nine. ", "ca", "st", 1),
        (5000 * "The meeting begins at nine. ", 5000 * "The meeting starts at nine. ", "ca", "st", 0),
        ("", "la reunió comença a les nou del matí", "ca", "asr", 0),
        ("the meeting starts at nine in the morning", "", "ca", "asr", 0),
        ("the meeting starts at nine in the morning", "Johann Sebastian Bach", "ca", "asr", 0),
    ],
)  # fmt: skip
def test_texts_in_another_language(
    said: str, meant: str, language: str, task: str, count: int
) -> None:
    assert counted("language", said, meant, language=language, task=task) == count


def test_languages_are_not_told_without_py3langid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "find_spec", lambda name: None)
    assert counted("language", "the meeting starts at nine", "la reunió comença a les nou") is None


def test_a_record_has_them_all_and_its_score_as_before() -> None:
    rows = [ROW, replace(ROW, id="2", reference="", hypothesis="gràcies"), replace(ROW, id="3", hypothesis="да")]  # fmt: skip
    found = score(rows, Scoring())
    counts = {key: found.details[key] for key in FLAWS}
    assert counts == {
        "cut": 0,
        "looping": 0,
        "repeats": 0,
        "invented": 1,
        "script": 1,
        "language": 0,
        "unheard": 0,
    }
    assert found.score == pytest.approx(100 * (1 + 2) / 4)
    assert score([replace(rows[1], cut=None)], Scoring()).details["cut"] is None


@pytest.mark.parametrize(
    ("windows", "count"), [(None, 0), ((0, 0), 0), ((1, 2), 0), ((2, 3), 2), ((5, 5), 2)]
)
def test_recordings_that_are_mostly_without_a_text(
    windows: tuple[int, int] | None, count: int
) -> None:
    assert counted("unheard", "bon dia", unheard=windows) == count


def test_a_recording_in_which_nothing_is_said_is_right_without_a_text() -> None:
    silent = replace(ROW, reference=" ", hypothesis="", unheard=(5, 5))
    assert FLAWS["unheard"].count([silent]) == FLAWS["invented"].count([silent]) == 0


def test_a_long_text_that_is_right_does_not_loop() -> None:
    words = "the meeting starts at nine and ends when the last of us has gone to the station "
    text = "".join(f"{number} {words}" for number in range(30))
    assert is_looping(text)
    assert counted("looping", text, text) == 0
    assert counted("looping", text, "the meeting starts at nine") > 0
