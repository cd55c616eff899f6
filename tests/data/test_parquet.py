"""Parquet files with audio in a column, as Hugging Face writes them and as a stranger may."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import soundfile
import torch
from pyarrow import parquet
from test_damaged_audio import encoded, speechlike

from lorsmerge_cli.data.audio import load_audio
from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.dataset import check_complete, load_data
from lorsmerge_cli.data.digests import digests_of
from lorsmerge_cli.data.leakage import shared_with
from lorsmerge_cli.data.readers import manifest_splits, read_manifest
from lorsmerge_cli.data.readers import parquet as reader
from lorsmerge_cli.data.utterance import Drop, Utterance
from lorsmerge_cli.errors import LorsmergeError, UnreadableFile, UsageFault
from lorsmerge_cli.operations.data import data

CELL = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def wav(number: int, seconds: float = 0.3) -> bytes:
    """A short sound that is another one for each number."""
    import io

    file = io.BytesIO()
    time = np.arange(round(seconds * 16_000)) / 16_000
    samples = 0.3 * np.sin(2 * np.pi * (200 + 37 * number) * time)
    soundfile.write(file, samples, 16_000, format="WAV")
    return file.getvalue()


def cell(number: int, **about: Any) -> dict[str, Any]:
    """What a row has in its column `audio`."""
    return {"bytes": wav(number), "path": f"clip{number}.wav"} | about


def write(
    path: Path, rows: Sequence[dict[str, Any]], group: int = 100, types: dict[str, Any] | None = None,
    **options: Any,
) -> Path:  # fmt: skip
    """Write rows that have the same keys, `group` of them in a row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    types = {"audio": CELL} | (types or {})
    columns = {key: pyarrow.array([row[key] for row in rows], types.get(key)) for key in rows[0]}
    parquet.write_table(pyarrow.table(columns), path, row_group_size=group, **options)
    return path


def write_some(path: Path, count: int = 3, first: int = 0, **options: Any) -> Path:
    numbers = range(first, first + count)
    rows = [{"audio": cell(n), "text": f"text {n}", "locale": "ca"} for n in numbers]
    return write(path, rows, **options)


def texts(rows: Sequence[Utterance]) -> list[str]:
    return [row.text for row in rows]


def only(path: Path, **options: Any) -> Utterance | Drop:
    """The one row of a file."""
    utterances, drops = read_manifest(path, **options)
    (found,) = [*utterances, *drops]
    return found


# --- where the rows are ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"),
        ("data/train-00000-of-00002-0123456789abcdef", "data/train-00001-of-00002-fedcba9876543210",
         "data/dev-00000-of-00001-0123456789abcdef"),
        ("train/0000", "train/0001", "validation/0000"),
    ],
    ids=["folder", "data/", "folders of splits"],
)  # fmt: skip
def test_splits_are_those_of_the_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names):
        write_some(tmp_path / f"{name}.parquet", 2, first=2 * number)
    assert manifest_splits(tmp_path) == ("train", "dev")
    assert texts(read_manifest(tmp_path, split="train")[0]) == [f"text {n}" for n in range(4)]
    assert texts(read_manifest(tmp_path, split="validation")[0]) == ["text 4", "text 5"]
    with pytest.raises(UnreadableFile, match="has several splits"):
        read_manifest(tmp_path)


def test_a_file_and_files_of_no_split_are_one_split(tmp_path: Path) -> None:
    one = write_some(tmp_path / "ca" / "a.parquet", 2)
    write_some(tmp_path / "ca" / "b.parquet", 1, first=2)
    for split in (None, "train"):
        assert texts(read_manifest(one, split=split)[0]) == ["text 0", "text 1"]
        assert len(read_manifest(tmp_path / "ca", split=split)[0]) == 3
    assert manifest_splits(tmp_path / "ca") == manifest_splits(one) == ()


def test_a_file_that_was_not_fetched_is_an_error(tmp_path: Path) -> None:
    write_some(tmp_path / "test-00000-of-00003.parquet")
    write_some(tmp_path / "test-00002-of-00003.parquet")
    with pytest.raises(UnreadableFile, match=r"has 2 files of 'test', and by their names .* 3"):
        read_manifest(tmp_path, split="test")
    assert len(read_manifest(tmp_path / "test-00002-of-00003.parquet")[0]) == 3


def test_without_pyarrow_its_installation_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_some(tmp_path / "train-00000-of-00001.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for call in (lambda: manifest_splits(tmp_path), lambda: read_manifest(tmp_path, split="train")):
        with pytest.raises(LorsmergeError, match=r"pip install 'lorsmerge\[parquet\]'"):
            call()


# --- what the rows say ----------------------------------------------------------------------------


def test_columns_are_those_of_json_lines(tmp_path: Path) -> None:
    rows = [
        {"audio": cell(0), "sentence": "l'avi", "language": "Catalan", "client_id": "s", "extra": b"x"},
        {"audio": cell(1, path=None), "sentence": "la nena", "language": "ca", "client_id": None,
         "extra": b""},
    ]  # fmt: skip
    first, second = read_manifest(write(tmp_path / "x.parquet", rows))[0]
    assert (first.id, first.text, first.language, first.task) == ("clip0", "l'avi", "ca", "asr")
    assert (first.speaker, second.speaker, second.id) == ("s", None, "row 1")
    translated = {"audio": cell(0), "sentence": "hola", "translation": "hello", "locale": "ca"}
    path = write(tmp_path / "st.parquet", [translated])
    found = only(path, task="st")
    assert (found.text, found.source_text, found.task) == ("hello", "hola", "st")
    assert only(path, task="asr").text == "hola"
    with pytest.raises(UsageFault, match="row 0 has a sentence and a translation"):
        read_manifest(path)


def test_the_name_of_a_label_stands_for_its_number(tmp_path: Path) -> None:
    features = {
        "language": {"names": ["en", "ca"], "_type": "ClassLabel"},
        "audio": {"_type": "Audio"},
    }
    table = pyarrow.table(
        {"audio": pyarrow.array([cell(0), cell(1)], CELL), "text": ["a", "b"], "language": [1, 0]}
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, tmp_path / "x.parquet")
    assert [row.language for row in read_manifest(tmp_path / "x.parquet")[0]] == ["ca", "en"]


@pytest.mark.parametrize(
    "metadata",
    [
        b"{",
        b"[]",
        b'{"info": 1}',
        b'{"info": {"features": {"language": {"names": [1]}}}}',
        b'{"info": {"features": {"language": {"names": {"ca": 0}}}}}',
        b'{"info": {"features": {"language": {"names": "ca"}}}}',
    ],
)
def test_labels_that_are_none_are_not_used(tmp_path: Path, metadata: bytes) -> None:
    table = pyarrow.table(
        {"audio": pyarrow.array([cell(0)], CELL), "text": ["a"], "language": [0]}
    ).replace_schema_metadata({"huggingface": metadata})
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UnreadableFile, match="row 0: language is 0, and a string is needed"):
        read_manifest(tmp_path / "x.parquet")


def test_a_duration_counts_beside_an_offset_alone(tmp_path: Path) -> None:
    milliseconds = {"audio": cell(0), "text": "a", "duration": 300.0}
    piece = {"audio": cell(0), "text": "a", "duration": 0.1, "offset": 0.15}
    (row,) = load_data([write(tmp_path / "x.parquet", [milliseconds])], language="ca").utterances
    assert (row.start, row.duration, row.whole) == (0.0, 0.3, True)
    (row,) = load_data([write(tmp_path / "x.parquet", [piece])], language="ca").utterances
    assert (row.start, row.duration, row.whole) == (0.15, 0.1, False)
    assert len(load_audio(row.audio, start=row.start, duration=row.duration)) == 1600


# --- the recordings -------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [1, 7, 16, 17, 200])
@pytest.mark.parametrize("options", [{}, {"compression": "zstd", "use_dictionary": False}])
def test_recordings_are_those_of_their_rows(
    tmp_path: Path, group: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_some(tmp_path / "x.parquet", 70, group=group, **options)
    for limit in (1, 100_000, reader.KEPT):
        monkeypatch.setattr(reader, "_decoded", reader._Decoded(limit))
        rows, drops = read_manifest(path)
        assert not drops
        numbered = [(number, row) for number, row in enumerate(rows)]
        random.Random(0).shuffle(numbered)
        for number, row in [*enumerate(rows), *numbered]:
            assert row.audio.open().read() == wav(number)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda pair: pair[1].audio.open().read(), numbered))
        assert found == [wav(number) for number, _ in numbered]
        assert reader._decoded._bytes == sum(b.nbytes for b in reader._decoded._batches.values())
        assert reader._decoded._bytes <= limit or len(reader._decoded._batches) == 1


def test_rows_in_order_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = read_manifest(write_some(tmp_path / "x.parquet", 64, group=32))
    monkeypatch.setattr(reader, "_decoded", reader._Decoded(1))  # nothing but the last batch
    opened = []
    real = reader._batches
    monkeypatch.setattr(
        reader, "_batches", lambda source: opened.append(source.group) or real(source)
    )
    for row in rows:
        row.audio.open()
    assert opened == [0, 1]


@pytest.mark.parametrize("kind", [pyarrow.binary(), pyarrow.large_binary()])
def test_bare_bytes_are_read_too(tmp_path: Path, kind: pyarrow.DataType) -> None:
    rows = [{"audio": wav(n), "text": f"{n}"} for n in range(20)]
    path = write(tmp_path / "x.parquet", rows, types={"audio": kind})
    found, _ = read_manifest(path, language="ca")
    assert [row.audio.open().read() for row in found] == [wav(n) for n in range(20)]


def test_the_same_bytes_are_found_again(tmp_path: Path) -> None:
    (tmp_path / "clip.wav").write_bytes(wav(1))
    rows = load_data([write_some(tmp_path / "x.parquet")], language="ca").utterances
    file = Utterance("u", AudioFile(tmp_path / "clip.wav"), "other", "ca", "asr", 0.3, whole=True)
    (shared,) = shared_with(digests_of([file]), digests_of(rows).sketches)
    assert (shared.kind, shared.count) == ("audio", 1)


class Lengths(torch.utils.data.Dataset[int]):
    def __init__(self, rows: Sequence[Utterance]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> int:
        return len(load_audio(self.rows[index].audio))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system forks no processes")
def test_other_processes_read_them(tmp_path: Path) -> None:
    rows = load_data([write_some(tmp_path / "x.parquet", 40, group=10)]).utterances
    assert pickle.loads(pickle.dumps(rows[7])).audio.open().read() == wav(7)
    with reader._decoded._lock:  # as another thread may have it
        loader = torch.utils.data.DataLoader(
            Lengths(rows), batch_size=8, num_workers=2, multiprocessing_context="fork"
        )
        iterator = iter(loader)
    assert torch.cat(list(iterator)).tolist() == [4800] * 40


def test_a_file_is_closed_before_python_ends(tmp_path: Path) -> None:
    path = write_some(tmp_path / "x.parquet", 40, group=40)
    code = (
        "import sys; from pathlib import Path; from lorsmerge_cli.data.readers import read_manifest\n"
        "read_manifest(Path(sys.argv[1]))[0][0].audio.open()"
    )
    ended = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("kind", ["mp3", "opus", "flac"])
def test_data_writes_them_as_files(tmp_path: Path, kind: str) -> None:
    raw = encoded(tmp_path, kind, speechlike(1.5))
    rows = [
        {"audio": cell(0, bytes=raw, path=f"../{n}.x"), "text": "a", "locale": "ca"} for n in "ab"
    ]
    write(tmp_path / "in" / "train-00000-of-00001.parquet", rows)
    report = data([tmp_path / "in"], split=["train"], output=tmp_path / "out.jsonl")
    assert len(report.utterances) == 2
    again, _ = read_manifest(tmp_path / "out.jsonl")
    assert [row.id for row in again] == ["a", "b"]
    for row in again:
        assert row.audio.path.parent == tmp_path / "out.jsonl.audio"
        assert row.audio.path.read_bytes() == raw


def test_audio_that_a_row_uses_is_never_replaced(tmp_path: Path) -> None:
    write_some(tmp_path / "one.parquet", 3)
    write_some(tmp_path / "two.parquet", 2, first=9)
    data([tmp_path / "one.parquet"], output=tmp_path / "out.jsonl")
    again = tmp_path / "again.jsonl"
    again.write_text((tmp_path / "out.jsonl").read_text())
    before = sorted((tmp_path / "out.jsonl.audio").iterdir())
    with pytest.raises(
        LorsmergeError, match=r"out\.jsonl\.audio is or holds the input .*out\.jsonl\.audio/000001"
    ):
        data([again, tmp_path / "two.parquet"], output=tmp_path / "out.jsonl", force=True)
    assert sorted((tmp_path / "out.jsonl.audio").iterdir()) == before
    assert len(read_manifest(again)[0]) == 3


def test_audio_that_cannot_be_written_leaves_manifest_and_audio_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest of one data set beside the audio of another would be read without an error."""
    write_some(tmp_path / "one.parquet", 3)
    write_some(tmp_path / "two.parquet", 3, first=9)
    out = tmp_path / "out.jsonl"
    data([tmp_path / "one.parquet"], output=out)

    def state() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in [out, *Path(f"{out}.audio").iterdir()]}

    before = state()

    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lorsmerge_cli.data.manifest.shutil.copyfileobj", fail)
    with pytest.raises((OSError, LorsmergeError)):
        data([tmp_path / "two.parquet"], output=out, force=True)
    assert state() == before
    assert {path.name for path in tmp_path.iterdir()} == {
        "one.parquet", "two.parquet", "out.jsonl", "out.jsonl.audio",
    }  # fmt: skip


# --- a stranger's ---------------------------------------------------------------------------------


def test_rows_without_usable_audio_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "there.wav").write_bytes(wav(5))
    (tmp_path / "secret.wav").write_bytes(wav(6))
    cells = [
        cell(0),
        None,
        cell(1, bytes=None, path="there.wav"),
        cell(1, bytes=None, path="gone.wav"),
        cell(1, bytes=None, path="../secret.wav"),
        cell(1, bytes=None, path=str(tmp_path / "secret.wav")),
        cell(1, bytes=None, path=None),
        cell(1, bytes=b""),
        cell(1, bytes=b"<html>not found</html>"),
        cell(1, bytes=wav(2, 2.0)[:20_000]),
        cell(1, bytes=None, path="nul\0.wav"),
        cell(3, path="/etc/../x/clip3.wav"),
    ]
    rows = [{"audio": found, "text": "a", "locale": "ca"} for found in cells]
    path = write(tmp_path / "in" / "x.parquet", rows, group=4)
    report = load_data([path])
    assert [row.id for row in report.utterances] == ["clip0", "there", "clip3"]
    assert [row.audio.path for row in report.utterances] == [None, tmp_path / "in/there.wav", None]
    assert report.reasons == {
        "missing audio": 4,
        "audio outside of the data set": 2,
        "unreadable audio": 2,
        "audio file is cut short": 1,
    }
    assert load_data([path], checked=True).reasons == report.reasons
    with pytest.raises(LorsmergeError, match="rows cannot be scored"):
        check_complete(report, path)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ({"text": [5]}, "text is no string"),
        ({"text": [None]}, "empty text"),
        ({"text": [{"a": "b"}]}, "empty text"),
        ({"client_id": [[1]]}, "client_id is no string"),
        ({"id": [1.5]}, "id is no string"),
        ({"offset": [float("nan")]}, "offset is negative, NaN or infinite"),
    ],
)
def test_a_value_of_another_type_drops_its_row(
    tmp_path: Path, column: dict[str, Any], words: str
) -> None:
    columns = {"audio": pyarrow.array([cell(0)], CELL), "text": ["a"]} | column
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    found = only(tmp_path / "x.parquet", language="ca")
    assert isinstance(found, Drop)
    assert found.reason == words


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"audio": pyarrow.array([cell(0)], CELL)}, "has no text"),
        ({"text": ["a"]}, "has no audio"),
        ({"audio": [{"array": [0.0, 0.1]}], "text": ["a"]}, "audio holds array and no path"),
        ({"audio": pyarrow.array([cell(0)], CELL), "text": [["a", "b"]]}, "list of 2"),
        ({"audio": pyarrow.array([cell(0)], CELL), "text": ["a"], "locale": [7]}, "locale is 7"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_error(
    tmp_path: Path, columns: dict[str, Any], words: str
) -> None:
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    with pytest.raises(LorsmergeError, match=words):
        read_manifest(tmp_path / "x.parquet", language=None if "locale" in columns else "ca")


@pytest.mark.parametrize(
    "names",
    [("audio", "audio", "text"), ("audio", "text", "text"), ("audio", "audio.bytes", "text")],
)
def test_two_columns_of_one_name_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    kinds = {"audio": pyarrow.array([cell(0)], CELL), "text": pyarrow.array(["a"])}
    arrays = [kinds.get(name, pyarrow.array([b"x"])) for name in names]
    parquet.write_table(pyarrow.Table.from_arrays(arrays, list(names)), tmp_path / "x.parquet")
    with pytest.raises(UnreadableFile, match="several columns named"):
        read_manifest(tmp_path / "x.parquet", language="ca")


def test_a_damaged_file_is_an_error_in_words(tmp_path: Path) -> None:
    whole = write_some(tmp_path / "whole.parquet", 40, group=10).read_bytes()
    path = tmp_path / "x.parquet"
    chance = random.Random(0)
    cases = [whole[: len(whole) * share // 20] for share in range(20)]
    for _ in range(60):
        damaged = bytearray(whole)
        area = chance.choice([len(whole), 3000])  # anywhere, or in the footer
        for _ in range(chance.choice([1, 4, 30])):
            damaged[-1 - chance.randrange(area)] = chance.randrange(256)
        cases.append(bytes(damaged))
    outcomes = set()
    for case in cases:
        path.write_bytes(case)
        try:
            report = load_data([path], decoded=True)
            digests_of(report.utterances)
            outcomes.add("read")
        except LorsmergeError as error:
            outcomes.add("error" if str(path) in str(error) else str(error))
    assert outcomes == {"read", "error"}


def test_a_damaged_row_group_leaves_the_others(tmp_path: Path) -> None:
    path = write_some(
        tmp_path / "x.parquet", 30, group=10, compression="none", use_dictionary=False
    )
    offset = parquet.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    raw = bytearray(path.read_bytes())
    raw[offset : offset + 16] = bytes(16)
    path.write_bytes(raw)
    report = load_data([path])
    assert [row.id for row in report.utterances] == [
        f"clip{n}" for n in (*range(10), *range(20, 30))
    ]
    assert report.reasons == {"unreadable audio": 10}
    assert all("cannot be read as Parquet" in drop.detail for drop in report.drops)


def test_more_rows_than_bytes_are_refused(tmp_path: Path) -> None:
    table = pyarrow.table(
        {"file_name": pyarrow.nulls(1_000_000, pyarrow.string()), "text": ["a"] * 1_000_000}
    )
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UnreadableFile, match="1,000,000 rows in"):
        read_manifest(tmp_path / "x.parquet", language="ca")


def test_a_text_that_is_no_unicode_is_an_error(tmp_path: Path) -> None:
    text = pyarrow.array([b"\xff\xfe"], pyarrow.binary()).cast(pyarrow.string(), safe=False)
    columns = {"audio": pyarrow.array([cell(0)], CELL), "text": text}
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    with pytest.raises(UnreadableFile, match=r"x\.parquet cannot be read as Parquet"):
        read_manifest(tmp_path / "x.parquet", language="ca")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.parquet")
    with pytest.raises(LorsmergeError):
        read_manifest(tmp_path, language="ca")


def test_a_file_that_is_replaced_is_read_anew(tmp_path: Path) -> None:
    path = write_some(tmp_path / "x.parquet", 3)
    rows, _ = read_manifest(path)
    assert rows[2].audio.open().read() == wav(2)
    write_some(path, 2, first=7)
    assert rows[1].audio.open().read() == wav(8)
    with pytest.raises(LorsmergeError, match="The file has changed"):
        rows[2].audio.open()
    assert rows[2].audio.digest() is None
