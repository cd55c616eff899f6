"""What one row of a data set says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

# Reasons for leaving out a row that nothing is wrong with: it was not asked for.
OTHER_LANGUAGE = "of another language"
OTHER_TASK = "of another task"
NO_SPLIT = "in no split's folder"
NOT_ASKED_FOR = frozenset({OTHER_LANGUAGE, OTHER_TASK, NO_SPLIT})
# Reasons that lie in audio which should be there, and is not or not whole
MISSING, UNREADABLE, EMPTY = "missing audio", "unreadable audio", "empty audio"
CUT, SHORT = "audio file is cut short", "audio ends before the row does"
NO_NUMBERS = "audio with samples that are no numbers"
LACKING = frozenset({MISSING, UNREADABLE, EMPTY, CUT, SHORT, NO_NUMBERS})
REMOVED = "audio that was removed"  # of a training that had skipped it, and was resumed
# Reasons that a close look at the audio has beside those
SILENT, LONGER = "silent audio", "audio is longer than its row"


@dataclass(frozen=True)
class Utterance:
    """A piece of audio and what is said in it.

    Attributes:
        id: unique within its data set.
        audio: the file.
        text: what a model should answer: a transcript, or an English translation.
        language: spoken, as Whisper's code (`ca`).
        task: `asr` or `st`.
        duration: seconds of the piece; None until the file's header was read.
        start: seconds into the file.
        speaker: for confidence intervals.
        whole: whether the piece is known to be all of its file.
        segment: whether it is a piece of its file, and no whole one. A manifest says so by giving a
            start, be it 0.
        source_text: transcript of what a translation's text is of; None where it is not known.
    """

    id: str
    audio: Path
    text: str
    language: str
    task: str
    duration: float | None = None
    start: float = 0.0
    speaker: str | None = None
    whole: bool = False
    segment: bool = False
    source_text: str | None = None


class Answer(NamedTuple):
    """What a model said to an utterance.

    Attributes:
        text: without special tokens and outer white space.
        cut: whether it reached the limit of tokens before its end; None where that is not known.
    """

    text: str
    cut: bool | None


@dataclass(frozen=True)
class Drop:
    """A row that is left out, and why.

    Attributes:
        id: of the row, or its line where it has none that can be read.
        audio: the file, or the manifest where the row names none that can be read.
        reason: one of few, by which rows are counted.
        detail: which row of what file it is, and what it has in place of what is needed.
    """

    id: str
    audio: Path
    reason: str
    detail: str = ""


def reasons(drops: Iterable[Drop]) -> dict[str, int]:
    """How many rows were left out for each reason."""
    return dict(Counter(drop.reason for drop in drops))


def listed(drops: Iterable[Drop]) -> str:
    """`3 missing audio, 1 empty text`."""
    return ", ".join(f"{count} {reason}" for reason, count in reasons(drops).items())


def with_unique_ids(utterances: Sequence[Utterance]) -> list[Utterance]:
    """The same utterances; an id that came before gets the next free of `#2`, `#3`, ..."""
    taken: set[str] = set()
    counts: dict[str, int] = {}
    unique = []
    for utterance in utterances:
        name, count = utterance.id, counts.get(utterance.id, 1)
        while name in taken:
            count += 1
            name = f"{utterance.id}#{count}"
        counts[utterance.id] = count
        taken.add(name)
        unique.append(utterance if name == utterance.id else replace(utterance, id=name))
    return unique
