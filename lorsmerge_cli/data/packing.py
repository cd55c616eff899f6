"""Make windows of a data set's rows: cut recordings that are too long, and join short rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from lorsmerge_cli.data.languages import joined_text, text_language
from lorsmerge_cli.data.selection import rank
from lorsmerge_cli.data.utterance import Drop, Segment, Utterance, segments_of, with_unique_ids

LONG_SEGMENT = "segment longer than the window"
PAUSE = 1.0  # seconds between two rows of a recording that are kept; what is longer is left out


def cut(row: Utterance, longest: float) -> tuple[list[Utterance], list[Drop]]:
    """Cut a row at the bounds of its segments, into windows as long as can be.

    Args:
        row: with segments and a duration.
        longest: seconds of a window.

    Returns:
        The windows, each from the start of a segment to the end of one, and the segments that are
        longer than a window.

    Example:
        >>> from pathlib import Path
        >>> from lorsmerge_cli.data.audio_source import AudioFile
        >>> parts = (Segment(0.5, 3.0, "bon dia"), Segment(3.5, 6.0, "a tothom"))
        >>> talk = Utterance(
        ...     "talk", AudioFile(Path("talk.wav")), "bon dia a tothom", "ca", "asr", 7.0, segments=parts
        ... )
        >>> [(window.id, window.start, window.duration) for window in cut(talk, 4.0)[0]]
        [('talk@0.50', 0.5, 2.5), ('talk@3.50', 3.5, 2.5)]
    """
    drops = [
        Drop(f"{row.id}@{part.start:.2f}", row.audio, LONG_SEGMENT, f"{row.audio} from "
             f"{row.start + part.start:.2f} to {row.start + part.end:.2f} s")
        for part in row.segments if part.end - part.start > longest
    ]  # fmt: skip
    fitting = [part for part in row.segments if part.end - part.start <= longest]
    groups: list[list[Segment]] = []
    for part in fitting:
        if groups and part.end - groups[-1][0].start <= longest:
            groups[-1].append(part)
        else:
            groups.append([part])
    return [_window(row, group) for group in groups], drops


def _window(row: Utterance, parts: Sequence[Segment]) -> Utterance:
    begin, end = parts[0].start, parts[-1].end
    return replace(
        row,
        id=f"{row.id}@{begin:.2f}",
        text=_joined(row, [part.text for part in parts]),
        start=row.start + begin,
        duration=end - begin,
        segment=True,
        whole=False,
        source_text=None,  # of the whole row
        segments=tuple(_moved(part, -begin) for part in parts),
    )


def pack(
    rows: Sequence[Utterance],
    seconds: float,
    fits: Callable[[Utterance], bool] = lambda row: True,
    seed: int = 0,
) -> list[Utterance]:
    """Join rows of one language and task into windows, for a model to learn from more than clips.

    Rows that are pieces of one recording follow one another as they do there, with pauses of up to a
    second between them; longer gaps are left out. Other rows are joined with those of their speaker,
    or at random where speakers are not known.

    Args:
        rows: with durations.
        seconds: the longest window.
        fits: whether the text of a window is short enough.
        seed: of the random order.

    Returns:
        Windows with segments, one for each row of a data set; a row that is joined with none is as it
        was.
    """
    groups: dict[tuple[str, ...], list[Utterance]] = defaultdict(list)
    for row in rows:
        place = ("recording", str(row.audio)) if row.segment else ("speaker", row.speaker or "")
        groups[row.language, row.task, *place].append(row)
    packed = []
    for (_, _, kind, speaker), group in groups.items():
        if kind == "recording":
            group.sort(key=lambda row: row.start)
        elif not speaker:
            group.sort(key=lambda row: rank(row.id, seed))
        packed += list(_windows(group, seconds, fits))
    return with_unique_ids(packed)


def _windows(
    rows: Sequence[Utterance], seconds: float, fits: Callable[[Utterance], bool]
) -> Iterator[Utterance]:
    held: list[Utterance] = []
    for row in rows:
        longer = [*held, row]
        if held and not (_length(longer) <= seconds and fits(_packed(longer))):
            yield _packed(held)
            longer = [row]
        held = longer
    if held:
        yield _packed(held)


def _length(rows: Sequence[Utterance]) -> float:
    return sum(piece.duration or 0.0 for piece in _with_pauses(rows))


def _with_pauses(rows: Sequence[Utterance]) -> list[Utterance]:
    """Return the rows, each with the pause between it and the next one of its recording."""
    pieces = []
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        duration = row.duration or 0.0
        if after is not None and row.segment and after.audio == row.audio:
            gap = after.start - (row.start + duration)
            if 0 < gap <= PAUSE:
                duration += gap
        pieces.append(replace(row, duration=duration))
    return pieces


def _packed(rows: Sequence[Utterance]) -> Utterance:
    if len(rows) == 1:
        return rows[0]
    segments: list[Segment] = []
    begin = 0.0
    pieces = _with_pauses(rows)
    for row, piece in zip(rows, pieces, strict=True):
        for part in segments_of(row):
            segments.append(_moved(part, begin))
        begin += piece.duration or 0.0
    first = rows[0]
    return replace(
        first,
        id=f"{first.id}+{len(rows) - 1}",
        text=_joined(first, [row.text for row in rows]),
        duration=begin,
        speaker=first.speaker if len({row.speaker for row in rows}) == 1 else None,
        source_text=None,
        segments=tuple(segments),
        pieces=tuple(pieces),
    )


def with_previous(rows: Sequence[Utterance]) -> list[Utterance]:
    """Return the rows with what was said before each of them in its recording, if that is known.

    Args:
        rows: pieces of recordings know their start; others follow nothing.
    """
    before: dict[Utterance, Utterance] = {}
    last: dict[tuple[str, str, str], Utterance] = {}
    for row in sorted((row for row in rows if row.segment), key=lambda row: row.start):
        key = (str(row.audio), row.language, row.task)
        if key in last:
            before[row] = last[key]
        last[key] = row
    return [
        replace(row, previous=before[row].text, before=segments_of(before[row]))
        if row in before
        else row
        for row in rows
    ]


def _moved(part: Segment, seconds: float) -> Segment:
    return part._replace(start=part.start + seconds, end=part.end + seconds)


def _joined(row: Utterance, texts: Sequence[str]) -> str:
    return joined_text(texts, text_language(row.language, row.task))
