"""Read a folder of audio with metadata.csv or metadata.jsonl, Hugging Face's `audiofolder`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorsmerge_cli.data.readers import jsonl
from lorsmerge_cli.data.readers.fields import SPLIT_NAMES, Defaults, read_csv
from lorsmerge_cli.data.readers.values import Skip, Values, read_audio
from lorsmerge_cli.data.utterance import NO_SPLIT, Drop, Utterance
from lorsmerge_cli.errors import LorsmergeError, UnreadableFile

NEEDS = "metadata.csv or metadata.jsonl with file_name and text, in the folder or in train/, ..."
NAMES = ("metadata.csv", "metadata.jsonl")
NOT_TAKEN = ("file_name", "id", "duration", "offset")  # columns of a CSV that mean something else


def _table(folder: Path) -> Path | None:
    return _only([folder / name for name in NAMES if (folder / name).is_file()])


def _only(tables: list[Path]) -> Path | None:
    """Return the table among those that were found; None if there is none.

    Raises:
        UnreadableFile: there are several, of which all but one would be passed over.
    """
    if len(tables) > 1:
        raise UnreadableFile(
            f"Both {tables[0]} and {tables[1]} are there, for the same rows.",
            "Remove or rename one, or give the one that you mean.",
        )
    return tables[0] if tables else None


def _tables(path: Path) -> dict[str, Path]:
    """Return the table of each split, from the split's folder in the root or in `data`."""
    found: dict[str, Path] = {}
    for split, names in SPLIT_NAMES.items():
        folders = [root / name for root in (path, path / "data") for name in names]
        table = _only([table for folder in folders if (table := _table(folder))])
        if table is not None:
            found[split] = table
    return found


def _common_table(path: Path) -> Path | None:
    """Return the one table of all splits, if there is one."""
    return _only([table for folder in (path, path / "data") if (table := _table(folder))])


def detects(path: Path) -> bool:
    """Return whether a path is of this format."""
    if path.is_file():
        return path.name == "metadata.csv"  # a metadata.jsonl is read as JSON lines
    return _common_table(path) is not None or bool(_tables(path))


def splits(path: Path) -> tuple[str, ...]:
    """Return the splits with a table of their own, or those of the files in the one table."""
    if not path.is_dir():
        return ()
    table = _common_table(path)
    if _tables(path) or table is None:
        return tuple(_tables(path))
    found = {_split(row, table) for _, row in _rows(table)}
    return tuple(split for split in SPLIT_NAMES if split in found)


def _split(row: Values, table: Path) -> str | None:
    """Return the split of a row's file, by its folder directly below the table's."""
    try:
        audio = table.parent / read_audio(row, jsonl.AUDIO, "")
    except (Skip, LorsmergeError):
        return None
    below = audio.relative_to(table.parent).parts if audio.is_relative_to(table.parent) else ()
    return next((s for s, folders in SPLIT_NAMES.items() if below and below[0] in folders), None)


def _rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if table.suffix == ".jsonl":
        yield from jsonl.objects(table)
        return
    for number, row in read_csv(table, ("file_name",)):
        kept = {key: value for key, value in row.items() if key not in NOT_TAKEN}
        others = {key: value for key, value in kept.items() if key not in jsonl.AUDIO}
        yield number, {"audio_filepath": row["file_name"]} | others


def read(path: Path, split: str | None, defaults: Defaults) -> list[Utterance | Drop]:
    """Read the rows of a split's table, or those of the split in the common table."""
    table = path if path.is_file() else _tables(path).get(split or "")
    if table is not None:
        return [jsonl.read_row(row, table, number, defaults) for number, row in _rows(table)]
    table = _common_table(path)
    assert table is not None  # `detects` found one
    rows = [(number, row, _split(row, table)) for number, row in _rows(table)]
    several = any(part for _, _, part in rows)
    found: list[Utterance | Drop] = []
    for number, row, part in rows:
        if not several or part == split:
            found.append(jsonl.read_row(row, table, number, defaults))
        elif part is None:
            where = f"{table}, line {number} names no file in a folder of a split"
            found.append(Drop(f"line {number}", table, NO_SPLIT, where))
    return found
