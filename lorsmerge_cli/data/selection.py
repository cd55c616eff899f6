"""Choose the rows of a data set: those that can be used, and a subset of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from lorsmerge_cli.data.audio import UnreadableAudio, audio_seconds, ends_early, is_silent
from lorsmerge_cli.data.conditions import Condition, Wanted
from lorsmerge_cli.data.hours import Given, Hours, parse_hours
from lorsmerge_cli.data.report import DataReport, Part
from lorsmerge_cli.data.utterance import (
    CUT,
    EMPTY,
    MISSING,
    OUTSIDE,
    SHORT,
    SILENT,
    TOO_LONG,
    UNREADABLE,
    UNWANTED,
    Drop,
    Utterance,
    has_text,
)
from lorsmerge_cli.errors import LorsmergeError

THREADS = 16  # that wait for files
SLACK = 0.1  # seconds by which a segment may differ from its whole file
END_SLACK = 0.25  # seconds by which a row may end after its file
LACKING_SHARE = 0.25  # share of itself by which it may, if that is less
# share of its file by which a row without a start may be shorter, if that is more than END_SLACK
PART_SLACK = 0.05


def select(
    utterances: Sequence[Utterance],
    *,
    max_seconds: float,
    hours: Given = None,
    seed: int = 0,
    empty_text: bool = False,
    cut: bool = False,
    conditions: Sequence[Condition] = (),
    place: str = "",
) -> DataReport:
    """Take rows that can be used, all of them or a subset of some duration.

    Of a subset, only the audio of the rows that are taken, and of those that are dropped before it is
    complete, is looked at.

    Args:
        utterances: rows of a manifest.
        max_seconds: the model's window; longer rows are dropped.
        hours: about how much to take, in all or of a language. Rows are taken in the order of a hash
            of id and seed, so that the subset is the same everywhere and changes little when rows are
            added.
        seed: of the subset.
        empty_text: keep rows without text.
        cut: keep longer rows with segments, which can be cut.
        conditions: those on durations have to be met.
        place: the data set in messages.

    Raises:
        UsageFault: no row's duration meets a condition.
    """
    wanted = Wanted(conditions, place)
    checked: dict[int, tuple[Utterance | Drop, float]] = {}
    asked = parse_hours(hours)
    ends = [row.segments[-1].end for row in utterances if cut and row.segments]
    longest = max([max_seconds, *ends])
    limits = (asked or Hours()).limits([row.language for row in utterances])
    with ThreadPoolExecutor(THREADS) as pool:

        def look(indices: Sequence[int]) -> list[Utterance | Drop]:
            """Check rows, and return them as they can be used or are dropped."""
            for index, (row, whole) in zip(
                indices, pool.map(_measured, [utterances[n] for n in indices]), strict=True
            ):
                if isinstance(row, Utterance):
                    most = math.inf if cut and row.segments else max_seconds
                    row = _usable(row, most, empty_text, wanted)
                checked[index] = row, whole
            return [checked[index][0] for index in indices]

        for limit, indices in limits:
            if limit is None:
                look(indices)
            else:
                indices.sort(key=lambda index: rank(utterances[index].id, seed))
                _take(indices, limit, longest, look)
    wanted.check_met()
    found = [checked[index] for index in sorted(checked)]
    kept = [(row, whole) for row, whole in found if isinstance(row, Utterance)]
    parts = tuple(Part(row, whole) for row, whole in kept if _is_part(row, whole))
    drops = tuple(row for row, _ in found if isinstance(row, Drop))
    unseen = len(utterances) - len(checked)
    return DataReport(tuple(row for row, _ in kept), drops, parts=parts, unseen=unseen)


def _take(
    indices: Sequence[int],
    limit: float,
    longest: float,
    look: Callable[[Sequence[int]], list[Utterance | Drop]],
) -> None:
    """Look at rows in an order, until those that can be used last some seconds together.

    Several are looked at together, but no more than are needed even if each is as long as can be.
    """
    seconds, done = 0.0, 0
    while seconds < limit and done < len(indices):
        count = max(1, math.floor((limit - seconds) / longest))
        for row in look(indices[done : done + count]):
            seconds += (row.duration or 0.0) if isinstance(row, Utterance) else 0.0
        done += count


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
    if any(part.end <= part.start for part in segments):
        return Drop(row.id, row.audio, OUTSIDE, f"{row.audio} has {duration:.2f} s"), whole
    return replace(row, duration=duration, whole=not piece, segments=segments), whole


def _usable(
    row: Utterance, max_seconds: float, empty_text: bool, wanted: Wanted
) -> Utterance | Drop:
    """Return a row with a duration, or as dropped where that or its text is not as it has to be."""
    seconds = row.duration or 0.0
    if lacks := wanted.lacks_length(seconds):
        return Drop(row.id, row.audio, UNWANTED, f"{row.id} lasts {seconds:.2f} s, not {lacks}")
    if seconds > max_seconds:
        return Drop(row.id, row.audio, TOO_LONG)
    if not has_text(row.text) and not empty_text:
        return Drop(row.id, row.audio, "empty text")
    return row
