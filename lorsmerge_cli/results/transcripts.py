"""Transcripts of recordings as files: texts, subtitles, tables and JSON, as openai-whisper's are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorsmerge_cli.data.heard import HeardSegment


@dataclass(frozen=True)
class Writer:
    """A format of transcripts.

    Attributes:
        write: returns the content of a file.
        timed: whether it is of no use without the times of segments.
        title: for help.
    """

    write: Callable[[Sequence[HeardSegment], str], str]
    timed: bool
    title: str


def clock(seconds: float, *, hours: bool, point: str) -> str:
    """Return a time to the millisecond.

    Args:
        seconds: from the start.
        hours: whether they are written when there are none.
        point: between seconds and milliseconds.

    Example:
        >>> clock(3661.0254, hours=False, point="."), clock(1.5, hours=True, point=",")
        ('01:01:01.025', '00:00:01,500')
    """
    rest, milliseconds = divmod(round(1000 * seconds), 1000)
    rest, secs = divmod(rest, 60)
    whole, minutes = divmod(rest, 60)
    before = f"{whole:02d}:" if hours or whole else ""
    return f"{before}{minutes:02d}:{secs:02d}{point}{milliseconds:03d}"


def _line(segment: HeardSegment) -> str:
    """Return a segment's text in one line: an empty one would end a cue."""
    return " ".join(segment.text.split())


def _txt(segments: Sequence[HeardSegment], language: str) -> str:
    return "".join(f"{_line(segment)}\n" for segment in segments)


def _cues(segments: Sequence[HeardSegment], *, hours: bool, point: str) -> Iterator[str]:
    for segment in segments:
        start, end = segment.start, segment.end
        if segment.words:
            start, end = segment.words[0].start, segment.words[-1].end
        times = [clock(value, hours=hours, point=point) for value in (start, end)]
        yield f"{' --> '.join(times)}\n{_line(segment).replace('-->', '->')}\n\n"


def _srt(segments: Sequence[HeardSegment], language: str) -> str:
    cues = _cues(segments, hours=True, point=",")
    return "".join(f"{number}\n{cue}" for number, cue in enumerate(cues, 1))


def _vtt(segments: Sequence[HeardSegment], language: str) -> str:
    return "WEBVTT\n\n" + "".join(_cues(segments, hours=False, point="."))


def _tsv(segments: Sequence[HeardSegment], language: str) -> str:
    rows = (
        f"{round(1000 * segment.start)}\t{round(1000 * segment.end)}\t{_line(segment)}\n"
        for segment in segments
    )
    return "start\tend\ttext\n" + "".join(rows)


def _json(segments: Sequence[HeardSegment], language: str) -> str:
    document = {
        "text": "".join(segment.text for segment in segments),
        "segments": [_entry(number, segment) for number, segment in enumerate(segments)],
        "language": language,
    }
    text = json.dumps(document, ensure_ascii=False, indent=1) + "\n"
    return text.encode("utf-8", "backslashreplace").decode()


def _entry(number: int, segment: HeardSegment) -> dict[str, object]:
    """Return a segment under the keys that openai-whisper gives its own."""
    names = ("seek", "start", "end", "text", "tokens", "temperature", "avg_logprob",
             "compression_ratio", "no_speech_prob")  # fmt: skip
    entry: dict[str, object] = {"id": number} | {name: getattr(segment, name) for name in names}
    if segment.words is not None:
        entry["words"] = [
            {
                "word": word.word,
                "start": word.start,
                "end": word.end,
                "probability": word.probability,
            }
            for word in segment.words
        ]
    return entry


WRITERS: dict[str, Writer] = {
    "txt": Writer(_txt, False, "one segment a line"),
    "srt": Writer(_srt, True, "subtitles"),
    "vtt": Writer(_vtt, True, "subtitles of the web"),
    "tsv": Writer(_tsv, True, "a table of start and end in milliseconds and text"),
    "json": Writer(_json, True, "all that is known of each segment"),
}


def write_transcript(
    path: Path, format: str, segments: Sequence[HeardSegment], language: str
) -> None:
    """Write a transcript in UTF-8, with a newline at each line's end.

    Args:
        path: of the file.
        format: a name in WRITERS.
        segments: in order.
        language: code of the spoken one.
    """
    text = WRITERS[format].write(segments, language)
    path.write_bytes(text.encode("utf-8", "replace"))
