"""Recordings that are no files of their own are read, and found to be damaged, as files are."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from test_damaged_audio import KINDS, cut, encoded, speechlike, spoilt

from lorsmerge_cli.data import manifest as module
from lorsmerge_cli.data import selection
from lorsmerge_cli.data.audio import (
    audio_channels,
    audio_seconds,
    audio_suffix,
    ends_early,
    is_silent,
    load_audio,
)
from lorsmerge_cli.data.audio_source import AudioFile, AudioSource
from lorsmerge_cli.data.readers import read_manifest
from lorsmerge_cli.data.report import DataReport
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import LorsmergeError, OutputFault
from lorsmerge_cli.operations.data import data
from lorsmerge_cli.results.hypotheses import audio_digest


@dataclass(frozen=True)
class Slice(AudioSource):
    """A recording in the middle of a file."""

    start: int
    size: int

    def __str__(self) -> str:
        return f"{self.file}, byte {self.start}"

    def open(self) -> BinaryIO:
        return io.BytesIO(self.file.read_bytes()[self.start : self.start + self.size])


def both(folder: Path, raw: bytes) -> tuple[AudioFile, Slice]:
    """The same bytes as a file and within one."""
    (folder / "clip.wav").write_bytes(raw)
    (folder / "many.bin").write_bytes(b"before" + raw + b"behind")
    return AudioFile(folder / "clip.wav"), Slice(folder / "many.bin", 6, len(raw))


def outcome(call: Callable[[AudioSource], object], source: AudioSource) -> object:
    try:
        found = call(source)
    except LorsmergeError as error:
        return type(error), error.what.replace(str(source), "X")
    return found.tobytes() if isinstance(found, np.ndarray) else found


def utterance(source: AudioSource) -> Utterance:
    return Utterance("u", source, "a", "ca", "asr")


CALLS: dict[str, Callable[[AudioSource], object]] = {
    "seconds": audio_seconds,
    "channels": audio_channels,
    "cut": ends_early,
    "samples": load_audio,
    "piece": lambda source: load_audio(source, start=2.5, duration=1.5),
    "past the end": lambda source: load_audio(source, start=8.0, duration=5.0),
    "silent": lambda source: is_silent(source, 0.0, None),
    "digest": lambda source: source.digest(),
    "heard": lambda source: audio_digest(utterance(source)),
    "selected": lambda source: [
        (row.duration, row.whole)
        for row in selection.select([utterance(source)], max_seconds=30).utterances
    ],
}
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "whole": lambda raw: raw,
    "cut": lambda raw: cut(raw, 0.6),
    "spoilt": lambda raw: spoilt(raw, bytes(400)),
    "twice": lambda raw: raw + raw,
    "without its first frame": lambda raw: raw[raw.find(raw[:2], 4) :],
    "empty": lambda raw: b"",
    "no audio": lambda raw: b"<html>404</html>" * 50,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_read_as_a_file_is(tmp_path: Path, kind: str, damage: str) -> None:
    file, within = both(tmp_path, DAMAGES[damage](encoded(tmp_path, kind)))
    for name, call in CALLS.items():
        assert outcome(call, within) == outcome(call, file), name


def test_a_source_is_the_same_in_another_process(tmp_path: Path) -> None:
    for source in both(tmp_path, encoded(tmp_path, "flac")):
        again = pickle.loads(pickle.dumps(source))
        assert (again, hash(again), again.digest()) == (source, hash(source), source.digest())
    assert AudioFile(tmp_path / "a.wav").name == "a.wav"
    assert Slice(tmp_path / "many.bin", 6, 1).name == "many.bin, byte 6"


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [("wav", ".wav"), ("extensible.wav", ".wav"), ("mp3", ".mp3"), ("flac", ".flac"), ("opus", ".ogg")],
)  # fmt: skip
def test_the_suffix_is_that_of_the_content(tmp_path: Path, kind: str, suffix: str) -> None:
    assert audio_suffix(both(tmp_path, encoded(tmp_path, kind))[1]) == suffix


# --- `lorsmerge data -o` --------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manifest of four rows, two of which are then within a file."""
    (tmp_path / "many.bin").write_bytes(
        (wav := encoded(tmp_path, "wav", speechlike(1))) + (mp3 := encoded(tmp_path, "mp3"))
    )
    (tmp_path / "clip.flac").write_bytes(encoded(tmp_path, "flac", speechlike(1.5)))
    rows = [{"audio_filepath": "clip.flac", "text": f"t{n}", "id": f"../l'/{n}"} for n in range(4)]
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    within = {
        "../l'/1": Slice(tmp_path / "many.bin", 0, len(wav)),
        "../l'/3": Slice(tmp_path / "many.bin", len(wav), len(mp3)),
    }

    def select(rows: list[Utterance], **options: object) -> DataReport:
        rows = [Utterance(r.id, within.get(r.id, r.audio), r.text, "ca", "asr") for r in rows]
        return selection.select(rows, **options)

    monkeypatch.setattr("lorsmerge_cli.data.dataset.select", select)
    return tmp_path / "in.jsonl"


def test_what_is_no_file_is_written_beside_the_manifest(mixed: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "ca.jsonl"
    report = data([mixed], output=output, language="ca")
    assert report.audio == tmp_path / "out" / "ca.jsonl.audio"
    names = [json.loads(line)["audio_filepath"] for line in output.read_text().splitlines()]
    assert names == [
        str(tmp_path / "clip.flac"), "ca.jsonl.audio/000001-.._l__1.wav",
        str(tmp_path / "clip.flac"), "ca.jsonl.audio/000002-.._l__3.mp3",
    ]  # fmt: skip
    again, _ = read_manifest(output)
    assert [(row.id, row.audio.digest()) for row in again] == [
        (row.id, row.audio.digest()) for row in report.utterances
    ]
    assert all(row.audio.path is not None for row in again)


def test_audio_of_somebody_else_is_never_replaced(mixed: Path, tmp_path: Path) -> None:
    output, folder = tmp_path / "ca.jsonl", tmp_path / "ca.jsonl.audio"
    folder.mkdir()
    (folder / "mine.wav").write_bytes(b"mine")
    for force in (False, True):
        with pytest.raises(OutputFault, match="holds files that lorsmerge did not write"):
            data([mixed], output=output, language="ca", force=force)
        assert [path.name for path in folder.iterdir()] == ["mine.wav"]
        assert not output.exists()


def test_force_replaces_audio_that_was_written_before(mixed: Path, tmp_path: Path) -> None:
    output, folder = tmp_path / "ca.jsonl", tmp_path / "ca.jsonl.audio"
    data([mixed], output=output, language="ca")
    output.unlink()
    with pytest.raises(OutputFault, match=r"ca.jsonl.audio exists"):
        data([mixed], output=output, language="ca")
    assert not output.exists()
    data([mixed], output=output, language="ca", force=True)
    assert output.is_file()
    assert len([*folder.glob("0*")]) == 2


def test_files_alone_need_no_folder(tmp_path: Path) -> None:
    (tmp_path / "clip.flac").write_bytes(encoded(tmp_path, "flac", speechlike(1)))
    (tmp_path / "in.jsonl").write_text('{"audio_filepath": "clip.flac", "text": "a"}\n')
    report = data([tmp_path / "in.jsonl"], output=tmp_path / "out.jsonl", language="ca")
    assert report.audio is None
    assert not (tmp_path / "out.jsonl.audio").exists()
    assert module.NAME * 4 + 20 < 255  # bytes of a name in UTF-8
