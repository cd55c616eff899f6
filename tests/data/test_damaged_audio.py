"""Audio files that are cut, damaged, joined or of no stated length, in each format."""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lorsmerge_cli.data.audio import UnreadableAudio, audio_seconds, ends_early, load_audio
from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.dataset import check_complete, check_sound, load_data
from lorsmerge_cli.data.ogg import OggScan, scan_ogg
from lorsmerge_cli.data.report import DataReport
from lorsmerge_cli.errors import LorsmergeError

RATE, SECONDS = 16_000, 10
KINDS = {  # suffix -> how soundfile writes it
    "wav": {"subtype": "PCM_16"},
    "float.wav": {"subtype": "FLOAT"},
    "extensible.wav": {"format": "WAVEX"},
    "mulaw.wav": {"subtype": "ULAW"},
    "flac": {},
    "mp3": {},
    "variable.mp3": {"bitrate_mode": "VARIABLE", "compression_level": 0.3},
    "ogg": {},
    "opus": {"format": "OGG", "subtype": "OPUS"},
}
OGG = ["ogg", "opus"]
WHOLE = OggScan(cut=False, damaged=False, joined=False)


def speechlike(seconds: float = SECONDS, rate: int = RATE, channels: int = 1) -> np.ndarray:
    random = np.random.default_rng(0)
    time = np.arange(round(seconds * rate)) / rate
    sweep = 0.2 * np.sin(2 * np.pi * (300 * time + 20 * time**2)) * np.sin(3 * np.pi * time) ** 2
    return sweep[:, None] + 0.01 * random.standard_normal((len(time), channels))


def encoded(folder: Path, kind: str, samples: np.ndarray | None = None, rate: int = RATE) -> bytes:
    path = folder / f"encoded.{kind}"
    soundfile.write(path, speechlike() if samples is None else samples, rate, **KINDS[kind])
    return path.read_bytes()


def cut(raw: bytes, share: float) -> bytes:
    return raw[: int(share * len(raw))]


def spoilt(raw: bytes, block: bytes) -> bytes:
    middle = len(raw) // 2
    return raw[:middle] + block + raw[middle + len(block) :]


def report_of(folder: Path, *rows: dict[str, object], **options: bool) -> DataReport:
    manifest = folder / "m.jsonl"
    manifest.write_text("".join(json.dumps({"text": "a"} | row) + "\n" for row in rows))
    return load_data([manifest], language="ca", **options)


def checked(folder: Path, name: str, raw: bytes) -> DataReport:
    """What becomes of a file of which the manifest says nothing."""
    (folder / name).write_bytes(raw)
    return report_of(folder, {"audio_filepath": name, "id": "x"}, checked=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_file_is_used(tmp_path: Path, kind: str) -> None:
    report = checked(tmp_path, f"x.{kind}", encoded(tmp_path, kind))
    assert not report.drops
    assert report.utterances[0].duration == pytest.approx(SECONDS, abs=0.1)
    check_sound(report)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_is_dropped(tmp_path: Path, kind: str, share: float) -> None:
    report = checked(tmp_path, f"x.{kind}", cut(encoded(tmp_path, kind), share))
    assert report.reasons == {"audio file is cut short": 1}
    with pytest.raises(LorsmergeError, match=r"of 1 rows is not .*\(1 audio file is cut short\)"):
        check_sound(report)


@pytest.mark.parametrize("block", ["noise", "zeros", "nothing"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "wav" not in kind])
def test_a_file_that_is_damaged_in_its_middle_is_dropped(
    tmp_path: Path, kind: str, block: str
) -> None:
    raw = encoded(tmp_path, kind)
    size = len(raw) // 10
    if block == "nothing":
        middle = len(raw) // 2
        damaged = raw[:middle] + raw[middle + size :]
    else:
        damaged = spoilt(
            raw, np.random.default_rng(0).bytes(size) if block == "noise" else bytes(size)
        )
    assert not checked(tmp_path, f"x.{kind}", damaged).utterances


def test_floats_that_are_noise_or_no_numbers_are_dropped(tmp_path: Path) -> None:
    raw = encoded(tmp_path, "float.wav")
    report = checked(tmp_path, "x.wav", spoilt(raw, np.random.default_rng(0).bytes(256)))
    assert report.reasons == {"audio with samples that are no numbers": 1}
    for value in (np.nan, np.inf, 1e20):
        samples = speechlike(1)
        samples[100] = value
        report = checked(tmp_path, "y.wav", encoded(tmp_path, "float.wav", samples))
        assert report.reasons == {"audio with samples that are no numbers": 1}
    loud = 2.0**31 * speechlike(1)  # integers that somebody wrote as floats
    assert not checked(tmp_path, "z.wav", encoded(tmp_path, "float.wav", loud)).drops


@pytest.mark.parametrize("kind", OGG)
def test_a_piece_over_a_hole_is_not_what_comes_after_it(tmp_path: Path, kind: str) -> None:
    raw = encoded(tmp_path, kind)
    (tmp_path / "x.ogg").write_bytes(spoilt(raw, bytes(64)))
    with pytest.raises(UnreadableAudio, match="damaged pages"):
        load_audio(AudioFile(tmp_path / "x.ogg"), start=3.0, duration=4.0)


# --- headers of other formats ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["AIFF", "AU", "RF64"])
def test_other_headers_that_tell_of_more(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.audio"
    soundfile.write(path, speechlike(), RATE, format=kind)
    assert not ends_early(AudioFile(path))
    path.write_bytes(cut(path.read_bytes(), 0.5))
    assert ends_early(AudioFile(path))


@pytest.mark.parametrize("lost", [1, 8, 6000])
def test_a_header_that_is_off_by_less_than_the_slack(tmp_path: Path, lost: int) -> None:
    """Some writers count the first eight bytes as well."""
    path = tmp_path / "x.wav"
    raw = encoded(tmp_path, "wav")
    path.write_bytes(raw[:4] + struct.pack("<I", len(raw) - 8 + lost) + raw[8:])
    assert not ends_early(AudioFile(path))


def test_a_flac_that_was_written_into_a_pipe(tmp_path: Path) -> None:
    raw = bytearray(encoded(tmp_path, "flac"))
    raw[21] &= 0xF0  # 36 bits of STREAMINFO: the number of samples
    raw[22:26] = bytes(4)
    (tmp_path / "x.flac").write_bytes(raw)
    with pytest.raises(LorsmergeError, match=r"does not say how long it is.*ffmpeg -i .*x\.flac"):
        audio_seconds(AudioFile(tmp_path / "x.flac"))
    with pytest.raises(LorsmergeError, match="does not say how long it is"):
        load_audio(AudioFile(tmp_path / "x.flac"))


@pytest.mark.parametrize("variable", [True, False])
def test_an_mp3_without_a_header_that_ends_within_a_frame(tmp_path: Path, variable: bool) -> None:
    kind = "variable.mp3" if variable else "mp3"
    raw = encoded(tmp_path, kind)
    raw = raw[raw.find(raw[:2], 4) :]
    path = tmp_path / "x.mp3"
    for whole in (
        raw,
        raw + b"TAG" + bytes(125),
        raw + b"APETAGEX" + bytes(60),
        raw + b"\0\xff\xff",
    ):
        path.write_bytes(whole)
        assert not ends_early(AudioFile(path))
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(cut(raw, share))
        assert ends_early(AudioFile(path))
        room = bytes(len(raw) - len(cut(raw, share)))  # as a download that was broken off leaves it
        for tag in (b"", b"TAG" + b"a" * 125):
            path.write_bytes(cut(raw, share) + room + tag)
            assert ends_early(AudioFile(path))


# --- pages of Ogg ---------------------------------------------------------------------------------


def plain_checksum(page: bytes) -> int:
    """A bit at a time, as RFC 3533 describes it."""
    register = 0
    for byte in page[:22] + bytes(4) + page[26:]:
        register ^= byte << 24
        for _ in range(8):
            register = register << 1 ^ (0x04C11DB7 if register >> 31 else 0)
            register &= 0xFFFFFFFF
    return register


def pages(raw: bytes) -> list[bytes]:
    starts = [*(n for n in range(len(raw)) if raw.startswith(b"OggS\0", n)), len(raw)]
    return [raw[a:b] for a, b in pairwise(starts)]


def renumbered(page: bytes, *, flags: int | None = None) -> bytes:
    """A page with other flags, and the checksum for them."""
    page = page[:5] + bytes([page[5] if flags is None else flags]) + page[6:]
    return page[:22] + struct.pack("<I", plain_checksum(page)) + page[26:]


@pytest.mark.parametrize("kind", OGG)
@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (16_000, 2), (48_000, 1)])
def test_pages_as_they_were_written(tmp_path: Path, kind: str, rate: int, channels: int) -> None:
    raw = encoded(tmp_path, kind, speechlike(4, rate, channels), rate)
    for whole in (raw, raw + b"TAG" + bytes(125), b"ID3\x04\0\0\0\0\0\0" + raw):
        assert scan_ogg(whole) == WHOLE


@pytest.mark.parametrize("kind", OGG)
def test_any_byte_of_a_page_counts(tmp_path: Path, kind: str) -> None:
    raw = encoded(tmp_path, kind, speechlike(2))
    for position in np.random.default_rng(0).integers(0, len(raw), 200):
        changed = bytearray(raw)
        changed[position] ^= 1 << position % 8
        found = scan_ogg(bytes(changed))
        # a changed mark at the very start is taken for a tag before the file
        assert found.cut or found.damaged or position < 4


@pytest.mark.parametrize("kind", OGG)
def test_every_length_but_whole_pages_is_cut(tmp_path: Path, kind: str) -> None:
    raw = encoded(tmp_path, kind, speechlike(2))
    ends = set(np.cumsum([len(page) for page in pages(raw)]))
    for length in range(len(pages(raw)[0]) + 1, len(raw), 37):
        assert scan_ogg(raw[:length]).cut == (length not in ends)


@pytest.mark.parametrize("kind", OGG)
def test_pages_lost_unended_or_joined(tmp_path: Path, kind: str) -> None:
    raw = encoded(tmp_path, kind)
    own = pages(raw)
    assert len(own) > 6
    lost = scan_ogg(b"".join(own[:5] + own[6:]))
    assert lost.damaged
    assert not lost.cut
    unended = [*own[:-1], renumbered(own[-1], flags=0)]  # as recorders leave it that are stopped
    assert scan_ogg(b"".join(unended)) == WHOLE
    assert scan_ogg(raw + raw).joined
    (tmp_path / "x.ogg").write_bytes(raw + raw)
    with pytest.raises(UnreadableAudio, match="one after the other"):
        audio_seconds(AudioFile(tmp_path / "x.ogg"))


# --- what decoding alone finds --------------------------------------------------------------------


def damaged_flac(folder: Path, name: str = "damaged.flac") -> Path:
    """A file whose header and last frame are as they should be."""
    path = folder / name
    path.write_bytes(spoilt(encoded(folder, "flac"), bytes(4096)))
    assert audio_seconds(AudioFile(path)) == SECONDS
    assert not ends_early(AudioFile(path))
    return path


def test_what_headers_do_not_tell_is_found_by_decoding(tmp_path: Path) -> None:
    damaged_flac(tmp_path)
    soundfile.write(tmp_path / "good.wav", speechlike(1), RATE)
    rows = [{"audio_filepath": name, "id": name} for name in ("damaged.flac", "good.wav")]
    assert len(report_of(tmp_path, *rows).utterances) == 2
    report = report_of(tmp_path, *rows, decoded=True)
    assert [row.id for row in report.utterances] == ["good.wav"]
    assert report.reasons == {"unreadable audio": 1}
    with pytest.raises(LorsmergeError, match=r"1 of 2 rows cannot be scored .*--allow-missing"):
        check_complete(report, tmp_path / "m.jsonl")


def test_progress_counts_every_row_that_is_decoded(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        soundfile.write(tmp_path / f"{name}.wav", speechlike(1), RATE)
    text = "".join(json.dumps({"audio_filepath": f"{n}.wav", "text": "a"}) + "\n" for n in "abc")
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text(text)
    told: list[tuple[int, int]] = []
    sets = [tmp_path / f"{name}.jsonl" for name in ("one", "two")]
    load_data(sets, language="ca", decoded=True, progress=lambda *counts: told.append(counts))
    assert told == 6 * [(1, 6)]


def test_silence_with_a_text(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    dither = 2e-5 * np.random.default_rng(0).standard_normal(RATE)
    soundfile.write(tmp_path / "dither.wav", dither, RATE, subtype="PCM_24")
    soundfile.write(tmp_path / "soft.wav", 1e-3 * speechlike(1) / 0.2, RATE)
    names = ("silent", "dither", "soft")
    rows = [{"audio_filepath": f"{name}.wav", "id": name} for name in names]
    rows.append({"audio_filepath": "silent.wav", "id": "empty", "text": ""})
    report = report_of(tmp_path, *rows, decoded=True, empty_text=True)
    assert not report.drops  # a test set may have them
    assert [row.id for row in report.silent] == ["silent", "dither"]
    report = report_of(tmp_path, *rows, checked=True, empty_text=True)
    assert report.reasons == {"silent audio": 2}
    assert [row.id for row in report.utterances] == ["soft", "empty"]
