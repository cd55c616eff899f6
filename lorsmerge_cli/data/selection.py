"""Choose the rows of a data set: those that can be used, and a subset of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from lorsmerge_cli.data.audio import UnreadableAudio, audio_seconds, ends_early, is_silent
from lorsmerge_cli.data.conditions import Condition, Wanted
from lorsmerge_cli.data.report import DataReport, Part
from lorsmerge_cli.data.utterance import (
    CUT,
    EMPTY,
    MISSING,
    OUTSIDE,
    SHORT,
    SILENT,
    UNREADABLE,
    UNWANTED,
    Drop,
    Utterance,
    has_text,
)
from lorsmerge_cli.errors import LorsmergeError

THREADS = 16  # that wait for files
SLACK = 0.1  # seconds by which a segment may differ from its whole file
END_SLACK = 0.25  # seconds by which a row may end after its file, and the share of itself
LACKING_SHARE = 0.25
PART_SLACK = (
    0.05  # share of its file by which a row without a start may be shorter, if that is more
)


def select(
    utterances: Sequence[Utterance],
    *,
    max_seconds: float,
    hours: float | None = None,
    seed: int = 0,
    empty_text: bool = False,
    cut: bool = False,
    conditions: Sequence[Condition] = (),
    place: str = "",
) -> DataReport:
    """Drop rows that cannot be used, then take a subset of some duration.

    Args:
        utterances: rows of a manifest.
        max_seconds: the model's window; longer rows are dropped.
        hours: about how much to take. Rows are taken in the order of a hash of id and seed, so that
            the subset is the same everywhere and changes little when rows are added.
        seed: of the subset.
        empty_text: keep rows without text.
        cut: keep longer rows with segments, which can be cut.
        conditions: those on durations have to be met.
        place: the data set in messages.

    Raises:
        UsageFault: no row's duration meets a condition.
    """
    wanted = Wanted(conditions, place)
    with ThreadPoolExecutor(THREADS) as pool:
        measured = list(pool.map(_measured, utterances))
    limit = math.inf if cut else max_seconds
    checked = [
        (_usable(row, limit if row.segments else max_seconds, empty_text, wanted), whole)
        if isinstance(row, Utterance)
        else (row, whole)
        for row, whole in measured
    ]
    wanted.check_met()
    kept = [(row, whole) for row, whole in checked if isinstance(row, Utterance)]
    drops = tuple(row for row, _ in checked if isinstance(row, Drop))
    if hours is not None:
        taken: set[str] = set()
        seconds = 0.0
        for row, _ in sorted(kept, key=lambda pair: rank(pair[0].id, seed)):
            if seconds >= 3600 * hours:
                break
            taken.add(row.id)
            seconds += row.duration or 0.0
        kept = [(row, whole) for row, whole in kept if row.id in taken]
    parts = tuple(Part(row, whole) for row, whole in kept if _is_part(row, whole))
    return DataReport(tuple(row for row, _ in kept), drops, parts=parts)


def _is_part(row: Utterance, whole: float) -> bool:
    return not row.segment and (row.duration or whole) < whole - _part_slack(whole)


def _part_slack(whole: float) -> float:
    return max(END_SLACK, PART_SLACK * whole)


def decode(
    utterances: Sequence[Utterance], labelled: bool = True
) -> Iterator[tuple[Utterance, Drop | None]]:
    """Decode the audio of rows with durations, several at a time.

    Args:
        utterances: rows.
        labelled: whether they have texts, or are to be given some.

    Yields:
        Each row in order, and None or its fault: damaged audio, or no sound although there is, or is
        to be, a text.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        faults = pool.map(lambda row: _fault(row, labelled), utterances)
        yield from zip(utterances, faults, strict=True)


def _fault(row: Utterance, labelled: bool) -> Drop | None:
    try:
        silent = is_silent(row.audio, row.start, row.duration)
    except UnreadableAudio as error:
        return Drop(row.id, row.audio, error.reason, error.what)
    spoken = has_text(row.text) or not labelled
    return Drop(row.id, row.audio, SILENT) if silent and spoken else None


def rank(name: str, seed: int) -> bytes:
    """Return what a random, reproducible order of names goes by: a hash of the name and a seed."""
    return hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest()


def _measured(row: Utterance) -> tuple[Utterance | Drop, float]:
    """Return a row with its duration, or as dropped for its audio, and the seconds of its recording."""
    if not row.audio.exists():
        return Drop(row.id, row.audio, MISSING), 0.0
    try:
        whole, cut = audio_seconds(row.audio), ends_early(row.audio)
    except LorsmergeError as error:
        return Drop(row.id, row.audio, UNREADABLE, error.what), 0.0
    if cut:
        return Drop(row.id, row.audio, CUT), whole
    end = row.start + (row.duration or 0.0)
    lacking = min(END_SLACK, LACKING_SHARE * (row.duration or 0.0))
    if 0 < whole < end - lacking and row.start < whole:
        told = f"{row.audio} has {whole:.2f} s, and the row goes to {end:.2f} s"
        return Drop(row.id, row.audio, SHORT, told), whole
    # elsewhere the header knows better than the manifest, which rounds
    slack = SLACK if row.segment else _part_slack(whole)
    piece = bool(row.start) or (row.duration or whole) < whole - slack
    duration = min(row.duration or whole, whole - row.start) if piece else whole
    if duration <= 0:
        return Drop(row.id, row.audio, EMPTY), whole
    if row.segments and row.segments[-1].end > duration + END_SLACK:
        told = (
            f"{row.audio} has {duration:.2f} s, and a segment goes to {row.segments[-1].end:.2f} s"
        )
        return Drop(row.id, row.audio, OUTSIDE, told), whole
    segments = tuple(
        part._replace(start=min(part.start, duration), end=min(part.end, duration))
        for part in row.segments
    )
    return replace(row, duration=duration, whole=not piece, segments=segments), whole


def _usable(
    row: Utterance, max_seconds: float, empty_text: bool, wanted: Wanted
) -> Utterance | Drop:
    """Return a row with a duration, or as dropped where that or its text is not as it has to be."""
    seconds = row.duration or 0.0
    if lacks := wanted.lacks_length(seconds):
        return Drop(row.id, row.audio, UNWANTED, f"{row.id} lasts {seconds:.2f} s, not {lacks}")
    if seconds > max_seconds:
        return Drop(row.id, row.audio, "longer than the window")
    if not has_text(row.text) and not empty_text:
        return Drop(row.id, row.audio, "empty text")
    return row
