"""Read Parquet files with the audio in a column, as data sets on the Hugging Face Hub.

Recordings stay in their files: a row group is decoded, in batches, when one of its recordings is needed.
"""

from __future__ import annotations

import atexit
import os
import re
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from lorsmerge_cli.data.audio_source import AudioFile, AudioSource
from lorsmerge_cli.data.readers import jsonl
from lorsmerge_cli.data.readers.fields import (
    SOURCE,
    SPLIT_NAMES,
    TRANSCRIPT,
    TRANSLATION,
    Defaults,
    wrong_columns,
)
from lorsmerge_cli.data.readers.values import Skip, read_audio
from lorsmerge_cli.data.utterance import Drop, Utterance
from lorsmerge_cli.errors import LorsmergeError, UnreadableFile
from lorsmerge_cli.inputs import FileIdentity, open_regular, parse_json

NEEDS = "*.parquet with columns audio and text, in the folder, in data/ or in train/, ..."
# train-00000-of-00002.parquet, and before 2023 with a hash behind it
SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-(?P<count>\d{5})(-[0-9a-f]{16})?")
OUTSIDE = "audio outside of the data set"
_OURS = {name: ours for ours, names in SPLIT_NAMES.items() for name in names}
TEXTS = (*TRANSCRIPT, TRANSLATION)
COLUMNS = frozenset(
    {*jsonl.AUDIO, *jsonl.LANGUAGE, *jsonl.TASK, *jsonl.SPEAKER, *jsonl.GENDER, *TEXTS, *SOURCE}
    | {"id", "target_lang", "offset", "duration"}
)
BATCH = 16  # recordings that are decoded together
ROWS = 1024  # rows whose texts are decoded together
KEPT = 128 << 20  # bytes of recordings that stay decoded
BUFFER = 1 << 20  # bytes of a column that are read ahead


def detects(path: Path) -> bool:
    """Return whether a path is of this format."""
    return path.suffix == ".parquet" if path.is_file() else bool(_files(path))


def splits(path: Path) -> tuple[str, ...]:
    """Return what the files are named after; nothing if that is no split, or for a single file."""
    _pyarrow()
    names = () if path.is_file() else tuple(_files(path))
    return names if set(names) & set(SPLIT_NAMES) else ()


def read(path: Path, split: str | None, defaults: Defaults) -> list[Utterance | Drop]:
    """Read the rows of a file, or of all files of a split.

    Raises:
        UnreadableFile: a file is missing, damaged, or without one of the columns.
    """
    files = [path] if path.is_file() else _files_of(path, split if splits(path) else None)
    return [row for file in files for row in _read_file(file, defaults)]


def _pyarrow() -> Any:
    """Return the library, which only these data sets need."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise LorsmergeError(
            "Parquet data sets need pyarrow.", "Install it with `pip install 'lorsmerge[parquet]'`."
        ) from None
    return pyarrow


def _files(path: Path) -> dict[str, list[Path]]:
    """Return the files below a folder by the split that they, or the folder they are in, name."""
    roots = [root for root in (path, path / "data") if root.is_dir()]
    found: dict[str, list[Path]] = {ours: [] for ours in SPLIT_NAMES}
    for file in sorted(file for root in roots for file in root.glob("*.parquet")):
        shard = SHARD.fullmatch(file.stem)
        name = shard["split"] if shard else file.stem
        found.setdefault(_OURS.get(name, name), []).append(file)
    for name, ours in _OURS.items():
        found[ours] += sorted(file for root in roots for file in (root / name).glob("*.parquet"))
    return {name: files for name, files in found.items() if files}


def _files_of(path: Path, split: str | None) -> list[Path]:
    """Return the files of a split, or all of them, which have to be complete by their names."""
    found = _files(path)
    files = found[split] if split else [file for files in found.values() for file in files]
    shards = [shard for file in files if (shard := SHARD.fullmatch(file.stem))]
    counts = Counter((shard["split"], int(shard["count"])) for shard in shards)
    for (name, count), there in counts.items():
        if there != count:
            raise UnreadableFile(
                f"{path} has {there} files of {name!r}, and by their names there are {count}.",
                "Fetch the others, or give one file to read it alone.",
            )
    return files


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a Parquet file, and turn what pyarrow raises in the block into an error in words.

    Raises:
        UnreadableFile: it is no Parquet file, or damaged.
    """
    arrow = _pyarrow()
    try:
        open_regular(path).close()  # pyarrow would wait for a FIFO
        with arrow.parquet.ParquetFile(path, buffer_size=BUFFER) as file:
            yield file
    except (arrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise UnreadableFile(
            f"{path} cannot be read as Parquet ({reason}).", "Fetch or write it again."
        ) from None


def _read_file(path: Path, defaults: Defaults) -> list[Utterance | Drop]:
    with _opened(path) as file:
        ours = COLUMNS.union(defaults.wanted.columns)
        leaves = _leaves(path, file, defaults.labelled, ours)
        column, leaf = _bytes_column(file.schema_arrow)
        defaults.wanted.add_columns(file.schema_arrow.names, column)
        others = [name for name in leaves if name.split(".")[0] in ours and name != leaf]
        labels = class_labels(file.schema_arrow)
        found: list[Utterance | Drop] = []
        for group in range(file.metadata.num_row_groups):
            rows = _rows(file, group, others, labels)
            held = _with_bytes(file, group, leaf)
            for index, (row, has_bytes) in enumerate(zip(rows, held, strict=True)):
                audio = ParquetAudio(path, group, index, leaf, len(found)) if has_bytes else None
                found.append(_row(row, column, audio, path, len(found), defaults))
    return found


def _leaves(path: Path, file: Any, labelled: bool, ours: Collection[str]) -> list[str]:
    """Return the names of the stored columns, as `audio.bytes` of a struct, after these checks.

    Raises:
        UnreadableFile: the file has more rows than bytes, no column for audio or (where rows have to
            be labelled) for text, or two columns of one name.
    """
    rows, size, names = file.metadata.num_rows, path.stat().st_size, file.schema_arrow.names
    if rows > size:  # a column of one value takes no byte for a row
        raise UnreadableFile(
            f"{path} has {rows:,} rows in {size:,} bytes, which can hold no audio.",
            "Check where it comes from.",
        )
    leaves = [file.schema.column(number).path for number in range(file.metadata.num_columns)]
    counts = Counter(name for name in leaves if name.split(".")[0] in ours)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise UnreadableFile(
            f"{path} has several columns named {twice[0]!r}.",
            "Remove or rename all but one of them.",
        )
    needed = {"audio": jsonl.AUDIO} | ({"text": TEXTS} if labelled else {})
    missing = [name for name, keys in needed.items() if not any(key in names for key in keys)]
    if missing:
        raise wrong_columns(path, names, missing)
    return leaves


def _rows(
    file: Any, group: int, columns: list[str], labels: dict[str, list[str]]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a group without the audio, labels by their names."""
    for batch in file.iter_batches(ROWS, row_groups=[group], columns=columns, use_threads=False):
        for row in batch.to_pylist():
            for key, names in labels.items():
                if type(number := row.get(key)) is int and 0 <= number < len(names):
                    row[key] = names[number]
            yield row


def _row(
    row: dict[str, Any],
    column: str,
    audio: AudioSource | None,
    path: Path,
    number: int,
    defaults: Defaults,
) -> Utterance | Drop:
    """Read a row: its recording is `audio`, or a file of the data set that it names."""
    where = f"{path}, row {number}"
    name = f"row {number}"
    if audio is not None:
        cell = row.pop(column, None)
        named = cell.get("path") if isinstance(cell, dict) else None
        if isinstance(named, str) and (stem := Path(named).stem):
            name = stem
        if row.get("offset") is None:
            row.pop("duration", None)  # of the whole recording, whose header knows better
        return jsonl.read_values(row, audio, name, path, where, defaults)
    try:
        relative = Path(read_audio(row, jsonl.AUDIO, where))
    except Skip as skip:
        return skip.drop(name, path)
    if relative.is_absolute() or ".." in relative.parts:
        return Drop(name, path, OUTSIDE, f"{where} names {relative}")
    audio = AudioFile(path.parent / relative)
    return jsonl.read_values(row, audio, relative.stem, path, where, defaults)


def _bytes_column(schema: Any) -> tuple[str, str]:
    """Return the column with the audio and the path of its bytes in Parquet's schema; or "" twice."""
    types = _pyarrow().types
    for name in (name for name in jsonl.AUDIO if name in schema.names):
        leaf, kind = name, schema.field(name).type
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            leaf, kind = f"{name}.bytes", kind.field("bytes").type
        if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
            return name, leaf
    return "", ""


def class_labels(schema: Any) -> dict[str, list[str]]:
    """Return the names of columns of numbers that Hugging Face's `ClassLabel` writes."""
    try:
        features = parse_json(schema.metadata[b"huggingface"])["info"]["features"]
        labels = {key: feature["names"] for key, feature in features.items() if "names" in feature}
        return {
            key: names
            for key, names in labels.items()
            if key in schema.names
            and isinstance(names, list)
            and all(isinstance(name, str) for name in names)
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _with_bytes(file: Any, group: int, leaf: str) -> Iterator[bool]:
    """Yield for each row of a group whether it has bytes, which are read only if some may be null."""
    metadata = file.metadata.row_group(group)
    columns = [metadata.column(number) for number in range(metadata.num_columns)]
    statistics = next(
        (column.statistics for column in columns if column.path_in_schema == leaf), None
    )
    if not leaf or (statistics is not None and statistics.null_count == 0):
        yield from [bool(leaf)] * metadata.num_rows
        return
    for batch in file.iter_batches(BATCH, row_groups=[group], columns=[leaf], use_threads=False):
        yield from _leaf_values(batch).is_valid().to_pylist()


def _leaf_values(batch: Any) -> Any:
    """Return the bytes of a batch with that one column, which may be a struct."""
    values = batch.column(0)
    return values.flatten()[0] if values.type.num_fields else values


@dataclass(frozen=True)
class ParquetAudio(AudioSource):
    """A recording in a row of a Parquet file.

    Attributes:
        group: row group.
        index: of the row within the group.
        leaf: column of the bytes.
        row: of the file, from 0 on, for messages.
    """

    group: int
    index: int
    leaf: str
    row: int

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}"

    def open(self) -> BinaryIO:
        """Decode the row.

        Raises:
            OSError: the file cannot be read.
            UnreadableFile: it is damaged.
        """
        return BytesIO(_decoded.recording(self))


class _Decoded:
    """The batches of recordings that were used last, up to a number of bytes.

    Rows are mostly read in order, so the file stays open after the last batch.
    """

    def __init__(self, limit: int = KEPT) -> None:
        self._limit, self._lock = limit, Lock()
        self._batches: OrderedDict[tuple[object, ...], Any] = OrderedDict()
        self._bytes = 0
        self._group: tuple[object, ...] = ()  # that is being read
        self._next = 0  # batch of it
        self._reading: Iterator[Any] = iter(())

    def recording(self, source: ParquetAudio) -> bytes:
        """Return the bytes of a recording."""
        group = (source.file, FileIdentity.of(source.file), source.group, source.leaf)
        number, index = divmod(source.index, BATCH)
        with self._lock:
            if (*group, number) not in self._batches:
                self._read(source, group, number)
            self._batches.move_to_end((*group, number))
            batch = self._batches[*group, number]
            value = batch[index].as_py() if index < len(batch) else None
        if value is None:
            raise UnreadableFile(f"{source} has no audio.", "The file has changed: run it again.")
        return bytes(value)

    def _read(self, source: ParquetAudio, group: tuple[object, ...], number: int) -> None:
        """Read up to a batch of a row group, from the group's first one if it is already behind."""
        if group != self._group or number < self._next:
            self._group, self._next, self._reading = group, 0, _batches(source)
        self._group = ()  # unless it is read without an error
        for found, batch in enumerate(self._reading, self._next):
            if (*group, found) not in self._batches:
                self._batches[*group, found] = batch
                self._bytes += batch.nbytes
            while self._bytes > self._limit and len(self._batches) > 1:
                self._bytes -= self._batches.popitem(last=False)[1].nbytes
            if found == number:
                self._group, self._next = group, found + 1
                return
        raise UnreadableFile(f"{source} is not there.", "The file has changed: run it again.")


def _batches(source: ParquetAudio) -> Iterator[Any]:
    with _opened(source.file) as file:
        for batch in file.iter_batches(
            BATCH, row_groups=[source.group], columns=[source.leaf], use_threads=False
        ):
            yield _leaf_values(batch)


_decoded = _Decoded()


def _forget() -> None:
    """Close the file that is being read, and forget what was decoded."""
    global _decoded
    _decoded = _Decoded()


atexit.register(_forget)  # while pyarrow can still close it
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)  # a thread of the parent may have held the lock
