"""Transcripts on file: accepted by parsers that nobody here wrote, and equal to openai-whisper's."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pysrt
import pytest
import webvtt
from openai_algorithm import whisper_package

from lorsmerge_cli.data.heard import HeardSegment, Word
from lorsmerge_cli.results.transcripts import WRITERS, clock, write_transcript

SEGMENTS = (
    HeardSegment(0.0, 2.4804, " Bon dia, com va?", 0, (50364, 11, 50488), 0.0, -0.25, 1.1, 0.01),
    HeardSegment(2.5, 59.9996, " a --> b\tç 你好", 0, (50488, 12, 50500), 0.2, -0.5, 1.2, 0.02),
    HeardSegment(3599.5, 36_005.25, " l'última", 300_000, (50364, 13, 50500), 0.0, -0.1, 0.9, 0.0),
)


def written(folder: Path, format: str, segments: tuple[HeardSegment, ...] = SEGMENTS) -> Path:
    path = folder / f"talk.{format}"
    write_transcript(path, format, segments, "ca")
    return path


def test_srt_is_read_by_pysrt(tmp_path: Path) -> None:
    cues = pysrt.open(str(written(tmp_path, "srt")), encoding="utf-8")
    assert [cue.index for cue in cues] == [1, 2, 3]
    assert [cue.text for cue in cues] == ["Bon dia, com va?", "a -> b ç 你好", "l'última"]
    assert [(cue.start.ordinal, cue.end.ordinal) for cue in cues] == [
        (0, 2480), (2500, 60_000), (3_599_500, 36_005_250),
    ]  # fmt: skip


def test_vtt_is_read_by_webvtt(tmp_path: Path) -> None:
    cues = webvtt.read(str(written(tmp_path, "vtt")))
    assert [cue.text for cue in cues] == ["Bon dia, com va?", "a -> b ç 你好", "l'última"]
    assert [(cue.start, cue.end) for cue in cues][1:] == [
        ("00:00:02.500", "00:01:00.000"), ("00:59:59.500", "10:00:05.250"),
    ]  # fmt: skip


@pytest.mark.parametrize("format", ["txt", "srt", "vtt", "tsv"])
def test_files_are_those_of_openai_whisper(tmp_path: Path, format: str) -> None:
    plain = tuple(s for s in SEGMENTS if "\t" not in s.text)
    writer: Any = (
        __import__("whisper.utils", fromlist=["get_writer"]) if whisper_package() else None
    )
    buffer = io.StringIO()
    writer.get_writer(format, ".").write_result(
        {"segments": [{"start": s.start, "end": s.end, "text": s.text} for s in plain]}, buffer
    )
    assert written(tmp_path, format, plain).read_text(encoding="utf-8") == buffer.getvalue()


def test_json_has_the_keys_of_openai_whisper(tmp_path: Path) -> None:
    document = json.loads(written(tmp_path, "json").read_text(encoding="utf-8"))
    assert document["language"] == "ca"
    assert document["text"] == "".join(s.text for s in SEGMENTS)
    for number, (entry, segment) in enumerate(zip(document["segments"], SEGMENTS, strict=True)):
        expected = {k: list(v) if k == "tokens" else v for k, v in asdict(segment).items()}
        assert entry == {"id": number} | {k: v for k, v in expected.items() if k != "words"}


def test_words_are_in_the_json_and_bound_the_cues(tmp_path: Path) -> None:
    words = (Word(" Bon", 0.2, 0.4, 0.9), Word(" dia", 0.4, 0.9, 0.8))
    segment = HeardSegment(0.0, 2.0, " Bon dia", words=words)
    document = json.loads(written(tmp_path, "json", (segment,)).read_text())
    assert document["segments"][0]["words"] == [asdict(word) for word in words]
    (cue,) = pysrt.open(str(written(tmp_path, "srt", (segment,))))
    assert (cue.start.ordinal, cue.end.ordinal) == (200, 900)


@pytest.mark.parametrize("format", WRITERS)
def test_nothing_said_is_a_valid_file(tmp_path: Path, format: str) -> None:
    path = written(tmp_path, format, ())
    assert len(pysrt.open(str(path))) == 0 or format != "srt"
    if format == "vtt":
        assert len(webvtt.read(str(path))) == 0
    if format == "json":
        assert json.loads(path.read_text()) == {"text": "", "segments": [], "language": "ca"}


def test_a_text_with_line_ends_stays_one_cue(tmp_path: Path) -> None:
    path = written(
        tmp_path, "srt", (HeardSegment(0, 1, " a\n\n2\n00:00:09,000 --> 00:00:10,000\nb"),)
    )
    (cue,) = pysrt.open(str(path))
    assert cue.text == "a 2 00:00:09,000 -> 00:00:10,000 b"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "00:00.000"), (59.9996, "01:00.000"), (3600, "01:00:00.000")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds, hours=False, point=".") == text
