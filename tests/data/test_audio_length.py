"""Lengths that a header, a manifest and the audio itself do not agree on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lorsmerge_cli.data.audio import audio_seconds, ends_early, load_audio
from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.dataset import check_complete, load_data
from lorsmerge_cli.errors import LorsmergeError

RATES = [8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000]  # of MPEG 2.5, 2 and 1


def sound(seconds: float, rate: int, channels: int, loudness: float = 0.2) -> np.ndarray:
    random = np.random.default_rng(0)
    return loudness * random.standard_normal((round(seconds * rate), channels))


def encoded(folder: Path, samples: np.ndarray, rate: int, variable: bool = True) -> bytes:
    path = folder / "encoded.mp3"
    kind = "VARIABLE" if variable else "CONSTANT"
    soundfile.write(path, samples, rate, bitrate_mode=kind, compression_level=0.3)
    return path.read_bytes()


def without_first_frame(raw: bytes) -> bytes:
    """Leave out the Xing frame, as an encoder does that writes into a pipe."""
    return raw[raw.find(raw[:2], 4) :]


def with_id3(raw: bytes) -> bytes:
    """Put a tag before and after, the first with bytes that look like a frame's header."""
    return b"ID3\x04\0\0\0\0\1\0" + raw[:2] * 64 + raw + b"TAG" + bytes(125)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(
    "make",
    [
        lambda loud, quiet: loud + quiet,
        lambda loud, quiet: without_first_frame(loud) + without_first_frame(quiet),
        lambda loud, quiet: without_first_frame(quiet) + without_first_frame(loud),
        lambda loud, quiet: with_id3(without_first_frame(quiet) + loud),
    ],
    ids=["two files", "loud first", "quiet first", "tagged"],
)
def test_all_of_an_mp3_is_read_whatever_its_header_says(
    tmp_path: Path, make: Callable[[bytes, bytes], bytes], rate: int, channels: int
) -> None:
    loud = encoded(tmp_path, sound(3, rate, channels), rate)
    quiet = encoded(tmp_path, sound(2, rate, channels, 0.0), rate)
    path = tmp_path / "x.mp3"
    path.write_bytes(make(loud, quiet))
    assert audio_seconds(AudioFile(path)) == pytest.approx(
        5, abs=0.45
    )  # each encoder pads up to 0.2 s
    wave = load_audio(AudioFile(path))
    assert len(wave) / 16_000 == pytest.approx(5, abs=0.45)
    energy = float((wave**2).sum())
    whole = load_audio_of(tmp_path / "whole.mp3", loud)
    assert energy == pytest.approx(float((whole**2).sum()), rel=0.03)


def load_audio_of(path: Path, raw: bytes) -> np.ndarray:
    path.write_bytes(raw)
    return load_audio(AudioFile(path))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("variable", [True, False])
def test_an_mp3_whose_header_is_right_is_read_as_soundfile_does(
    tmp_path: Path, rate: int, variable: bool
) -> None:
    path = tmp_path / "x.mp3"
    path.write_bytes(encoded(tmp_path, sound(3, rate, 1), rate, variable))
    info = soundfile.info(str(path))
    assert audio_seconds(AudioFile(path)) == info.frames / info.samplerate
    assert not ends_early(AudioFile(path))


# --- files that were cut short --------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_file_that_was_cut_is_not_used(tmp_path: Path, suffix: str, share: float) -> None:
    for name in ("cut", "whole"):
        path = tmp_path / f"{name}.{suffix}"
        soundfile.write(path, sound(10, 16_000, 1), 16_000)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(cut.read_bytes()[: int(share * cut.stat().st_size)])
    rows = [{"audio_filepath": f"{name}.{suffix}", "text": "a"} for name in ("whole", "cut")]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = load_data([manifest], language="ca")  # no durations: the file alone tells
    assert [row.id for row in report.utterances] == ["whole"]
    assert report.reasons == {"audio file is cut short": 1}
    with pytest.raises(LorsmergeError, match="1 of 2 rows cannot be scored"):
        check_complete(report, manifest)


def test_an_ogg_that_was_cut_is_shorter_than_its_row(tmp_path: Path) -> None:
    path = tmp_path / "cut.ogg"
    soundfile.write(path, sound(10, 16_000, 1), 16_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    row = {"audio_filepath": "cut.ogg", "text": "a", "duration": 10.0}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    with pytest.raises(LorsmergeError, match="can be used: 1 audio "):
        load_data([tmp_path / "m.jsonl"], language="ca")


def test_a_wav_that_was_written_into_a_pipe_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, sound(1, 16_000, 1), 16_000)
    raw = bytearray(path.read_bytes())
    raw[4:8] = raw[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(raw)
    assert not ends_early(AudioFile(path))
    assert audio_seconds(AudioFile(path)) == 1.0


# --- rows that end after their file ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "used"),
    [
        ({"duration": 10.0}, None),
        ({"duration": 5.5}, None),
        ({"offset": 4.0, "duration": 8.0}, None),
        ({"duration": 5.2}, 5.0),
        ({"offset": 4.0, "duration": 1.1}, 1.0),
        ({"offset": 4.9, "duration": 0.2}, None),
        ({"offset": 4.6, "duration": 0.5}, 0.4),
        ({"offset": 1.0, "duration": 2.0}, 2.0),
    ],
)
def test_a_row_that_ends_after_its_file(
    tmp_path: Path, row: dict[str, float], used: float | None
) -> None:
    soundfile.write(tmp_path / "x.wav", sound(5, 16_000, 1), 16_000)
    values = {"audio_filepath": "x.wav", "text": "a"} | row
    (tmp_path / "m.jsonl").write_text(json.dumps(values))
    if used is None:
        with pytest.raises(
            LorsmergeError,
            match=r"1 audio ends before the row does, the first .*x.wav has 5.00 s, and the row goes",
        ):
            load_data([tmp_path / "m.jsonl"], language="ca")
    else:
        (found,) = load_data([tmp_path / "m.jsonl"], language="ca").utterances
        assert found.duration == pytest.approx(used)


def test_a_kaldi_segment_past_the_end(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", sound(5, 16_000, 1), 16_000)
    (tmp_path / "wav.scp").write_text(f"rec {tmp_path / 'x.wav'}\n")
    (tmp_path / "text").write_text("a one\nb two\n")
    (tmp_path / "segments").write_text("a rec 0 4\nb rec 4 12\n")
    report = load_data([tmp_path], language="ca")
    assert [row.id for row in report.utterances] == ["a"]
    assert report.reasons == {"audio ends before the row does": 1}


def test_a_file_that_became_shorter_is_an_error_when_it_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", sound(5, 16_000, 1), 16_000)
    assert len(load_audio(AudioFile(tmp_path / "x.wav"), start=4.0, duration=1.2)) == 16_000
    with pytest.raises(LorsmergeError, match=r"ends after 5\.00 s, and it is read to 6\.00 s"):
        load_audio(AudioFile(tmp_path / "x.wav"), start=4.0, duration=2.0)
