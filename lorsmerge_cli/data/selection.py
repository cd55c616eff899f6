"""Which rows of a data set can be used, and which of those are taken."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from lorsmerge_cli.data.audio import UnreadableAudio, audio_seconds, ends_early, is_silent
from lorsmerge_cli.data.utterance import (
    CUT,
    EMPTY,
    MISSING,
    SHORT,
    SILENT,
    UNREADABLE,
    Drop,
    Utterance,
)
from lorsmerge_cli.errors import LorsmergeError

READERS = 16  # threads that wait for file headers
SLACK = 0.1  # seconds by which a segment's duration may be off that of the whole file
END_SLACK = 0.25  # seconds by which a row may end after its file
PART_SLACK = 0.05  # share of its file, but no less than that, by which a row that is all of it may end before


class Part(NamedTuple):
    """A row that gives a shorter duration than its file has, and no start: the rest is not heard.

    Attributes:
        row: that is used.
        whole: seconds of its file.
    """

    row: Utterance
    whole: float


@dataclass(frozen=True)
class Selection:
    """Rows that were taken, in the manifest's order and with durations, and those that cannot be.

    Attributes:
        parts: of the rows that were taken, those of which nobody said that they are pieces.
    """

    utterances: tuple[Utterance, ...]
    drops: tuple[Drop, ...]
    parts: tuple[Part, ...] = ()

    @property
    def seconds(self) -> float:
        """Of all utterances."""
        return sum(utterance.duration or 0.0 for utterance in self.utterances)


def select(
    utterances: Sequence[Utterance],
    *,
    max_seconds: float,
    hours: float | None = None,
    seed: int = 0,
    empty_text: bool = False,
) -> Selection:
    """Drop rows that no model could use, then take a subset of some duration.

    Args:
        utterances: rows of a manifest.
        max_seconds: the model's window; longer rows are dropped.
        hours: about how much to take; the order of a hash of id and seed decides, so that the
            subset is the same everywhere and changes little when rows are added.
        seed: of the subset.
        empty_text: whether rows without text are kept.
    """
    with ThreadPoolExecutor(READERS) as pool:
        checked = list(pool.map(lambda row: _check(row, max_seconds, empty_text), utterances))
    kept = [(row, whole) for row, whole in checked if isinstance(row, Utterance)]
    drops = tuple(row for row, _ in checked if isinstance(row, Drop))
    if hours is not None:
        taken: set[str] = set()
        seconds = 0.0
        for row, _ in sorted(kept, key=lambda pair: _rank(pair[0].id, seed)):
            if seconds >= 3600 * hours:
                break
            taken.add(row.id)
            seconds += row.duration or 0.0
        kept = [(row, whole) for row, whole in kept if row.id in taken]
    parts = tuple(Part(row, whole) for row, whole in kept if _is_part(row, whole))
    return Selection(tuple(row for row, _ in kept), drops, parts)


def _is_part(row: Utterance, whole: float) -> bool:
    return not row.segment and (row.duration or whole) < whole - _part_slack(whole)


def _part_slack(whole: float) -> float:
    return max(END_SLACK, PART_SLACK * whole)


def decode(utterances: Sequence[Utterance]) -> Iterator[tuple[Utterance, Drop | None]]:
    """Decode the audio of rows with durations, several at a time.

    Yields:
        Each row in order, and what is wrong with its audio: damaged, or with a text and no sound.
    """
    with ThreadPoolExecutor(READERS) as pool:
        yield from zip(utterances, pool.map(_fault, utterances), strict=True)


def _fault(row: Utterance) -> Drop | None:
    try:
        silent = is_silent(row.audio, row.start, row.duration)
    except UnreadableAudio as error:
        return Drop(row.id, row.audio, error.reason, error.what)
    return Drop(row.id, row.audio, SILENT) if silent and row.text.strip() else None


def _rank(name: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system
        return False


def _check(row: Utterance, max_seconds: float, empty_text: bool) -> tuple[Utterance | Drop, float]:
    """Return a row with its duration, or why it is dropped, and the seconds of its file."""
    if not _is_file(row.audio):
        return Drop(row.id, row.audio, MISSING), 0.0
    try:
        whole, cut = audio_seconds(row.audio), ends_early(row.audio)
    except LorsmergeError as error:
        return Drop(row.id, row.audio, UNREADABLE, error.what), 0.0
    if cut:
        return Drop(row.id, row.audio, CUT), whole
    if 0 < whole < (end := row.start + (row.duration or 0.0)) - END_SLACK and row.start < whole:
        told = f"{row.audio} has {whole:.2f} s, and the row goes to {end:.2f} s"
        return Drop(row.id, row.audio, SHORT, told), whole
    # elsewhere the header knows better than the manifest, which rounds
    slack = SLACK if row.segment else _part_slack(whole)
    piece = bool(row.start) or (row.duration or whole) < whole - slack
    duration = min(row.duration or whole, whole - row.start) if piece else whole
    if duration <= 0:
        return Drop(row.id, row.audio, EMPTY), whole
    if duration > max_seconds:
        return Drop(row.id, row.audio, "longer than the window"), whole
    if not row.text.strip() and not empty_text:
        return Drop(row.id, row.audio, "empty text"), whole
    return replace(row, duration=duration, whole=not piece), whole
