"""The rows of a data set: utterances, and rows that are dropped."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from lorsmerge_cli.data.audio_source import AudioSource

# Reasons to skip a row without a fault, which was not asked for
OTHER_LANGUAGE = "of another language"
OTHER_TASK = "of another task"
NO_SPLIT = "in no split's folder"
UNWANTED = "not asked for"  # by --only and --where
NOT_ASKED_FOR = frozenset({OTHER_LANGUAGE, OTHER_TASK, NO_SPLIT, UNWANTED})
# Reasons to drop a row for its audio: it is not there, or not whole
MISSING, UNREADABLE, EMPTY = "missing audio", "unreadable audio", "empty audio"
CUT, SHORT = "audio file is cut short", "audio ends before the row does"
NO_NUMBERS = "audio with samples that are no numbers"
LACKING = frozenset({MISSING, UNREADABLE, EMPTY, CUT, SHORT, NO_NUMBERS})
REMOVED = "audio that was removed"  # after a training skipped it, and before that is resumed
TOO_LONG = "longer than the window"
# Reasons to drop a row for its segments
TANGLED, OUTSIDE = "segments out of order or overlapping", "segments outside the audio"
OTHER_TEXT = "segments of another text"
INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})  # Unicode's categories
# Further reasons, which only decoding finds
SILENT, LONGER = "silent audio", "audio is longer than its row"


class Segment(NamedTuple):
    """What is said in a part of an utterance.

    Attributes:
        start: seconds from the utterance's beginning.
        end: seconds from the utterance's beginning.
        text: what is said in between.
    """

    start: float
    end: float
    text: str


class PseudoLabel(NamedTuple):
    """The model that made the text of an utterance which no person wrote.

    Attributes:
        teacher: the model, by its path or Hub id.
        identity: digest of its weights.
        confidence: mean log-probability of a token of the text, by the teacher; 0 is certain, None
            if it is not known.
    """

    teacher: str
    identity: str
    confidence: float | None = None


@dataclass(frozen=True)
class Utterance:
    """A piece of audio and what is said in it.

    Attributes:
        id: unique within its data set.
        audio: the recording that it is a piece of, or all of.
        text: the reference: a transcript, or an English translation.
        language: the one spoken, by Whisper's code (`ca`).
        task: `asr` or `st`.
        duration: seconds of the piece; None until the header was read.
        start: seconds into the recording.
        speaker: who speaks, for confidence intervals; None if that is not known.
        whole: whether the piece is known to be all of its recording.
        segment: whether the manifest gives a start, be it 0, and with it a piece of the recording.
        source_text: transcript beside a translation; None if it is not known.
        label: who made the text; None if it is taken for a person's.
        segments: when the parts of its text are said, in order and without overlap; empty if that is
            not known.
        pieces: the utterances that this one was packed of, whose audio, one after the other, is its
            own; empty for an utterance of a data set.
        previous: what was said just before it in its recording; empty if that is not known.
        before: the segments of that, from the beginning of the window that it was heard in.
        gender: of the speaker, as the data has it; None if it is not known.
    """

    id: str
    audio: AudioSource
    text: str
    language: str
    task: str
    duration: float | None = None
    start: float = 0.0
    speaker: str | None = None
    whole: bool = False
    segment: bool = False
    source_text: str | None = None
    label: PseudoLabel | None = None
    segments: tuple[Segment, ...] = ()
    pieces: tuple[Utterance, ...] = ()
    previous: str = ""
    before: tuple[Segment, ...] = ()
    gender: str | None = None


class Answer(NamedTuple):
    """A model's text for an utterance.

    Attributes:
        text: without special tokens and outer white space.
        cut: whether it reached the limit of tokens before its end; None if that is not known.
        confidence: mean log-probability of its tokens, the end included, as Whisper's
            `avg_logprob`: 0 is certain; None if it was not asked for, or is no number.
        language: code of the one that the model identified; None if it was told.
        unheard: of a recording's windows that have sound, those that got no text, and all; None for
            a clip.
        segments: of a recording; None where the model has no times.
    """

    text: str
    cut: bool | None
    confidence: float | None = None
    language: str | None = None
    unheard: tuple[int, int] | None = None
    segments: tuple[Segment, ...] | None = None


@dataclass(frozen=True)
class Drop:
    """A row that is not used, and why.

    Attributes:
        id: of the row, or its line if it has no valid id.
        audio: the recording, or the manifest if the row names no valid one.
        reason: one of few, by which rows are counted.
        detail: file, line and value that are at fault.
    """

    id: str
    audio: AudioSource | Path
    reason: str
    detail: str = ""

    @property
    def shown(self) -> str:
        """What is at fault, within a sentence."""
        return self.detail.rstrip(".") or str(self.audio)


def segments_of(row: Utterance) -> tuple[Segment, ...]:
    """Return the segments of a row; without any, its text from its beginning to its end."""
    return row.segments or (Segment(0.0, row.duration or 0.0, row.text),)


def has_text(text: str) -> bool:
    """Return whether anything of a text can be seen: not blanks and control characters alone."""
    return any(unicodedata.category(character) not in INVISIBLE for character in text)


def reasons(drops: Iterable[Drop]) -> dict[str, int]:
    """Count the rows that are dropped, by reason."""
    return dict(Counter(drop.reason for drop in drops))


def listed(drops: Iterable[Drop]) -> str:
    """Return the counts of reasons in words: `3 missing audio, 1 empty text`."""
    return ", ".join(f"{count} {reason}" for reason, count in reasons(drops).items())


def with_unique_ids(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Return the utterances with unique ids: a repeated one gets the next free of `#2`, `#3`, ..."""
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
