"""Which rows of a data set can be used, and which of those are taken."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from lorsmerge_cli.data.audio import audio_seconds, ends_early
from lorsmerge_cli.data.utterance import CUT, EMPTY, MISSING, SHORT, UNREADABLE, Drop, Utterance
from lorsmerge_cli.errors import LorsmergeError

READERS = 16  # threads that wait for file headers
SLACK = 0.1  # seconds by which a manifest's duration of a whole file may be off
END_SLACK = 0.25  # seconds by which a row may end after its file


@dataclass(frozen=True)
class Selection:
    """Rows that were taken, in the manifest's order and with durations, and those that cannot be."""

    utterances: tuple[Utterance, ...]
    drops: tuple[Drop, ...]

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
    kept = [row for row in checked if isinstance(row, Utterance)]
    drops = tuple(row for row in checked if isinstance(row, Drop))
    if hours is not None:
        taken: set[str] = set()
        seconds = 0.0
        for row in sorted(kept, key=lambda row: _rank(row.id, seed)):
            if seconds >= 3600 * hours:
                break
            taken.add(row.id)
            seconds += row.duration or 0.0
        kept = [row for row in kept if row.id in taken]
    return Selection(tuple(kept), drops)


def _rank(name: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system
        return False


def _check(row: Utterance, max_seconds: float, empty_text: bool) -> Utterance | Drop:
    if not _is_file(row.audio):
        return Drop(row.id, row.audio, MISSING)
    try:
        whole, cut = audio_seconds(row.audio), ends_early(row.audio)
    except LorsmergeError:
        return Drop(row.id, row.audio, UNREADABLE)
    if cut:
        return Drop(row.id, row.audio, CUT)
    if 0 < whole < (end := row.start + (row.duration or 0.0)) - END_SLACK and row.start < whole:
        told = f"{row.audio} has {whole:.2f} s, and the row goes to {end:.2f} s"
        return Drop(row.id, row.audio, SHORT, told)
    piece = bool(row.start)
    if row.duration is not None and row.duration + row.start < whole - SLACK:
        piece = True  # a segment; elsewhere the header knows better than the manifest
    duration = min(row.duration or whole, whole - row.start) if piece else whole
    if duration <= 0:
        return Drop(row.id, row.audio, EMPTY)
    if duration > max_seconds:
        return Drop(row.id, row.audio, "longer than the window")
    if not row.text.strip() and not empty_text:
        return Drop(row.id, row.audio, "empty text")
    return replace(row, duration=duration)
