"""Counts of hypotheses that went wrong in ways that explain a score. A new one is a line in `FLAWS`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lorsmerge_cli.metrics import written
from lorsmerge_cli.metrics.looping import is_looping, most_repeats
from lorsmerge_cli.metrics.normalisation import CHARACTER_LANGUAGES
from lorsmerge_cli.metrics.scripts import other_script

REPEATS = 5  # times in a row from which on words are a repetition
ENGLISH = "en"
NO_WORD = re.compile(r"[^\w\s]")  # what two words may differ in and yet be a repetition


class Answered(Protocol):
    """A hypothesis beside its reference, as a count of flaws needs it."""

    @property
    def language(self) -> str:
        """Whisper's code of the spoken language."""

    @property
    def task(self) -> str:
        """The task."""

    @property
    def reference(self) -> str:
        """The right answer; without words where nothing is said."""

    @property
    def hypothesis(self) -> str:
        """The model's answer."""

    @property
    def seconds(self) -> float:
        """Seconds of audio."""

    @property
    def cut(self) -> bool | None:
        """Whether the limit of tokens ended it; None if that is not known."""

    @property
    def unheard(self) -> tuple[int, int] | None:
        """Of a recording's windows that have sound, those without a text, and all; None for a clip."""


@dataclass(frozen=True)
class Flaw:
    """An entry of `FLAWS`.

    Attributes:
        title: which hypotheses are counted, after `hypotheses`.
        note: the same after a number of hypotheses.
        count: hypotheses that have it; None where that was not recorded.
    """

    title: str
    note: str
    count: Callable[[Sequence[Answered]], int | None]


def _cut(rows: Sequence[Answered]) -> int | None:
    return None if any(row.cut is None for row in rows) else sum(bool(row.cut) for row in rows)


def _each(has: Callable[[Answered], bool]) -> Callable[[Sequence[Answered]], int]:
    return lambda rows: sum(map(has, rows))


def repeats_words(row: Answered) -> bool:
    """Return whether some words follow each other five times or more, and more often than they should."""
    spaced = _written(row) not in CHARACTER_LANGUAGES
    said, meant = (
        most_repeats(text.split() if spaced else list("".join(text.split())))
        for text in (NO_WORD.sub("", text.lower()) for text in (row.hypothesis, row.reference))
    )
    return said >= REPEATS and said > meant


def invents(row: Answered) -> bool:
    """Return whether there are words where nothing is said."""
    return not row.reference.strip() and bool(row.hypothesis.strip())


@dataclass(frozen=True)
class Invented:
    """What was written where nothing is said.

    Attributes:
        utterances: in which nothing is said.
        seconds: of their audio.
        invented: those whose hypothesis has words.
        words: in these, split at white space.
    """

    utterances: int = 0
    seconds: float = 0.0
    invented: int = 0
    words: int = 0

    @classmethod
    def of(cls, rows: Iterable[Answered]) -> Invented:
        """Count over rows whose references have no words."""
        found = [(row.seconds, len(row.hypothesis.split())) for row in rows]
        words = [count for _, count in found]
        seconds = sum(seconds for seconds, _ in found)
        return cls(len(found), seconds, sum(map(bool, words)), sum(words))

    def __add__(self, other: Invented) -> Invented:
        return Invented(
            self.utterances + other.utterances, self.seconds + other.seconds,
            self.invented + other.invented, self.words + other.words,
        )  # fmt: skip

    @property
    def rate(self) -> float:
        """Words a minute; NaN without audio."""
        return 60 * self.words / self.seconds if self.seconds else math.nan


def _written(row: Answered) -> str:
    """Return the language that the answer should be in."""
    return ENGLISH if row.task == "st" else row.language


def is_in_other_script(row: Answered) -> bool:
    """Return whether most letters are of a script that the language is not written in.

    Not where those of the reference are of that script too.
    """
    language = _written(row)
    script = other_script(row.hypothesis, language)
    return bool(script) and script != other_script(row.reference, language)


def _in_other_language(rows: Sequence[Answered]) -> int | None:
    """Count answers in another language, as a model that translates what it should write down gives."""
    if not written.is_installed():
        return None
    return sum(
        written.is_in_other_language(row.hypothesis, row.reference, _written(row)) for row in rows
    )


def is_unheard(row: Answered) -> bool:
    """Return whether more than half of a recording's windows that have sound got no text.

    Not where nothing is said: no text is right there, and words would be `invents`.
    """
    without, sounding = row.unheard or (0, 0)
    return 2 * without > sounding and bool(row.reference.strip())


FLAWS: dict[str, Flaw] = {
    "cut": Flaw("that reached the limit of tokens", "were ended by the limit of tokens", _cut),
    "looping": Flaw(
        "that repeat themselves (zlib compresses them to less than 1/2.4, and not the reference)",
        "repeat themselves",
        _each(lambda row: is_looping(row.hypothesis) and not is_looping(row.reference)),
    ),
    "repeats": Flaw(
        f"with words {REPEATS} times in a row or more, which the reference has not",
        f"have words {REPEATS} times in a row or more", _each(repeats_words),
    ),
    "invented": Flaw(
        "with words where nothing is said (no reference)", "have words where nothing is said",
        _each(invents),
    ),
    "script": Flaw(
        "mostly in a script that the language is not written in", "are in a script of another language",
        _each(is_in_other_script),
    ),
    "language": Flaw(
        "in another language than their references (identified by py3langid)",
        "are in another language", _in_other_language,
    ),
    "unheard": Flaw(
        "of recordings with words, most of whose windows with sound got no text",
        "have no text for most of the windows with sound", _each(is_unheard),
    ),
}  # fmt: skip
