"""Rows become windows: cut at their segments' bounds, or joined, to the sample and with true times."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.dataset import load_data
from lorsmerge_cli.data.packing import cut, pack, with_previous
from lorsmerge_cli.data.utterance import Segment, Utterance
from lorsmerge_cli.errors import UnreadableFile
from lorsmerge_cli.speech.model import audio_of

RATE = 16_000
PARTS = [(0.5, 2.0, "bon dia"), (2.0, 3.5, "a tothom"), (4.0, 6.5, "com va"), (6.5, 7.0, "bé")]


def recording(path: Path, seconds: float, seed: int = 0) -> np.ndarray[Any, Any]:
    """Noise of 16 bits, so that what is read again is what was written."""
    noise = (
        np.random.default_rng(seed).integers(-3000, 3000, round(seconds * RATE)).astype(np.int16)
    )
    soundfile.write(path, noise, RATE)
    return (noise / 32768).astype(np.float32)


def talk(**values: Any) -> Utterance:
    segments = tuple(Segment(*part) for part in PARTS)
    text = " ".join(part.text for part in segments)
    row = Utterance("talk", AudioFile(Path("talk.wav")), text, "ca", "asr", 8.0, segments=segments)
    return replace(row, **values)


def write(path: Path, *rows: dict[str, Any]) -> Path:
    given = {"audio_filepath": "talk.wav", "source_lang": "ca"}
    path.write_text("".join(json.dumps(given | row) + "\n" for row in rows))
    return path


def named(*parts: tuple[float, float, str]) -> list[dict[str, Any]]:
    return [{"start": start, "end": end, "text": text} for start, end, text in parts]


# --- cutting ----------------------------------------------------------------------------------------


def test_windows_begin_and_end_with_segments() -> None:
    windows, lost = cut(talk(start=10.0), 4.0)
    assert [(w.id, w.start, w.duration, w.text) for w in windows] == [
        ("talk@0.50", 10.5, 3.0, "bon dia a tothom"), ("talk@4.00", 14.0, 3.0, "com va bé"),
    ]  # fmt: skip
    assert windows[1].segments == ((0.0, 2.5, "com va"), (2.5, 3.0, "bé"))
    assert not lost


def test_a_segment_longer_than_the_window_is_dropped_alone() -> None:
    windows, lost = cut(talk(), 2.0)
    assert [w.text for w in windows] == ["bon dia", "a tothom", "bé"]
    assert [(drop.reason, drop.detail) for drop in lost] == [
        ("segment longer than the window", "talk.wav from 4.00 to 6.50 s")
    ]


def test_no_window_is_longer_and_none_could_be() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        edges = np.cumsum(rng.uniform(0.1, 3.0, 2 * rng.integers(1, 20)))
        parts = tuple(Segment(a, b, "x") for a, b in zip(edges[::2], edges[1::2], strict=True))
        windows, lost = cut(talk(segments=parts, duration=float(edges[-1])), 5.0)
        assert not lost
        assert sum(len(w.segments) for w in windows) == len(parts)
        for window, after in zip(windows, [*windows[1:], None], strict=True):
            assert window.duration is not None
            assert window.duration <= 5.0
            if after is not None:
                assert after.start + after.segments[0].end - window.start > 5.0


def test_a_long_recording_is_learnt_from_in_windows(tmp_path: Path) -> None:
    samples = recording(tmp_path / "talk.wav", 8.0)
    manifest = write(tmp_path / "talks.jsonl", {"segments": named(*PARTS)})
    report = load_data([manifest], max_seconds=4.0, cut=True)
    assert [row.text for row in report.utterances] == ["bon dia a tothom", "com va bé"]
    for row, (begin, end) in zip(report.utterances, [(0.5, 3.5), (4.0, 7.0)], strict=True):
        expected = samples[round(begin * RATE) : round(end * RATE)]
        np.testing.assert_array_equal(audio_of(row), expected)
    with pytest.raises(Exception, match="longer than the window") as caught:
        load_data([manifest], max_seconds=4.0)
    assert "finetune itself cuts those that have segments" in str(caught.value)


def test_a_long_row_without_segments_is_still_dropped(tmp_path: Path) -> None:
    recording(tmp_path / "talk.wav", 8.0)
    rows = [{"text": "bon dia"}, {"segments": named(*PARTS[:2])}]
    report = load_data([write(tmp_path / "t.jsonl", *rows)], max_seconds=4.0, cut=True)
    assert report.reasons == {"longer than the window": 1}
    assert [row.text for row in report.utterances] == ["bon dia a tothom"]


# --- packing ----------------------------------------------------------------------------------------


def test_neighbours_keep_their_pause_and_other_gaps_are_left_out(tmp_path: Path) -> None:
    samples = recording(tmp_path / "talk.wav", 12.0)
    times = [(0.0, 2.0), (2.75, 4.0), (8.0, 9.0)]  # a pause of 0.75 s, and a gap of 4 s
    rows = [
        {"text": f"t{n}", "offset": begin, "duration": end - begin, "id": f"r{n}"}
        for n, (begin, end) in enumerate(times)
    ]
    report = load_data([write(tmp_path / "t.jsonl", *reversed(rows))], max_seconds=30.0)
    (window,) = pack(report.utterances, 30.0)
    assert (window.id, window.text, window.duration) == ("r0+2", "t0 t1 t2", 5.0)
    assert window.segments == ((0.0, 2.0, "t0"), (2.75, 4.0, "t1"), (4.0, 5.0, "t2"))
    expected = np.concatenate([samples[: 4 * RATE], samples[8 * RATE : 9 * RATE]])
    np.testing.assert_array_equal(audio_of(window), expected)


@pytest.mark.parametrize("speakers", [("a", "b"), (None,)])
def test_clips_are_joined_by_speaker_or_at_random(
    tmp_path: Path, speakers: tuple[str | None, ...]
) -> None:
    rows, waves = [], {}
    for number in range(12):
        path = tmp_path / f"{number}.wav"
        seconds = 0.5 + 0.25 * (number % 3)
        waves[str(number)] = recording(path, seconds, number)
        speaker = speakers[number % len(speakers)]
        rows.append(
            Utterance(str(number), AudioFile(path), f"t{number}", "ca", "asr", seconds,
                      speaker=speaker)
        )  # fmt: skip
    packed = pack(rows, 2.0)
    assert sorted(t for row in packed for t in row.text.split()) == sorted(r.text for r in rows)
    for row in packed:
        numbers = [part.text[1:] for part in row.segments] or [row.text[1:]]
        joined = np.concatenate([waves[number] for number in numbers])
        np.testing.assert_array_equal(audio_of(row), joined)
        assert row.duration == len(joined) / RATE <= 2.0
        ends = np.cumsum([len(waves[number]) for number in numbers]) / RATE
        assert [part.end for part in row.segments or [Segment(0, ends[0], "")]] == list(ends)
        assert row.speaker in speakers
    assert packed == pack(rows, 2.0)
    assert (packed != pack(rows, 2.0, seed=1)) is (speakers == (None,))


def test_only_one_language_and_task_is_joined_and_texts_of_a_length_that_fits() -> None:
    rows = [
        Utterance(f"{n}", AudioFile(Path(f"{n}.wav")), "a b", language, task, 1.0)
        for n, (language, task) in enumerate([("ca", "asr"), ("zh", "asr"), ("ca", "st")] * 4)
    ]
    packed = pack(rows, 30.0)
    assert {(row.language, row.task, row.duration) for row in packed} == {
        ("ca", "asr", 4.0), ("zh", "asr", 4.0), ("ca", "st", 4.0),
    }  # fmt: skip
    assert {row.language: row.text for row in packed}["zh"] == "a ba ba ba b"  # writes no spaces
    short = pack(rows, 30.0, lambda row: len(row.text.split()) <= 4)
    assert max(row.duration or 0 for row in short if row.language == "ca") == 2.0
    assert pack(rows[:1], 30.0) == rows[:1]


def test_what_was_said_before_is_the_row_before_in_the_recording() -> None:
    windows, _ = cut(talk(), 4.0)
    clip = Utterance("clip", AudioFile(Path("clip.wav")), "hola", "ca", "asr", 1.0)
    found = with_previous([windows[1], clip, windows[0]])
    assert [row.previous for row in found] == ["bon dia a tothom", "", ""]
    assert [row.before for row in found] == [windows[0].segments, (), ()]


# --- segments of a manifest -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("segments", "reason"),
    [
        (named((0, 2, "a"), (1, 3, "b")), "segments out of order or overlapping"),
        (named((2, 3, "a"), (0, 1, "b")), "segments out of order or overlapping"),
        (named((2, 2, "a")), "segments out of order or overlapping"),
        (named((0, 9.0, "a")), "segments outside the audio"),
        (named((0, 1.0, "a"), (8.01, 8.04, "b")), "segments outside the audio"),
        (named((-1, 2, "a")), "start is negative, NaN or infinite"),
        (named((0, float("nan"), "a")), "end is negative, NaN or infinite"),
        ([{"start": 0, "end": 1, "text": 3}], "text is no string"),
        ([{"start": 0, "end": 1, "text": None}], "empty text"),
    ],
)
def test_rows_with_wrong_segments_are_counted_and_skipped(
    tmp_path: Path, segments: list[dict[str, Any]], reason: str
) -> None:
    recording(tmp_path / "talk.wav", 8.0)
    rows = [
        {"segments": segments},
        {"segments": named(*PARTS), "text": "bon dia a tothom com va bé"},
    ]
    report = load_data([write(tmp_path / "t.jsonl", *rows)], max_seconds=30.0)
    assert report.reasons == {reason: 1}
    assert len(report.utterances[0].segments) == 4


def test_a_text_beside_segments_has_their_words(tmp_path: Path) -> None:
    recording(tmp_path / "talk.wav", 8.0)
    rows = [
        {"segments": named(*PARTS), "text": text}
        for text in ("bon dia", "bon dia a tothom com va bé")
    ]
    report = load_data([write(tmp_path / "t.jsonl", *rows)], max_seconds=30.0)
    assert report.reasons == {"segments of another text": 1}


@pytest.mark.parametrize("segments", ["soon", [1], {"start": 0}, [{"end": 1, "text": "a"}]])
def test_segments_of_another_type_are_an_error(tmp_path: Path, segments: Any) -> None:
    recording(tmp_path / "talk.wav", 8.0)
    with pytest.raises(UnreadableFile, match=r"line 1.*(list of objects|no start)"):
        load_data([write(tmp_path / "t.jsonl", {"segments": segments})], max_seconds=30.0)


def test_rounded_times_may_overlap_a_little_and_silent_segments_say_nothing(tmp_path: Path) -> None:
    recording(tmp_path / "talk.wav", 2.0)
    parts = named((0, 1.02, "a"), (1.0, 1.5, ""), (1.5, 2.1, "b"))
    (row,) = load_data(
        [write(tmp_path / "t.jsonl", {"segments": parts})], max_seconds=30.0
    ).utterances
    assert row.segments == ((0, 1.02, "a"), (1.5, 2.0, "b"))
