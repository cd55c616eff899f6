"""A folder of audio with metadata.csv or metadata.jsonl, as Hugging Face's audiofolder has it."""

from __future__ import annotations

from pathlib import Path

from lorsmerge_cli.speech.manifests import jsonl
from lorsmerge_cli.speech.manifests.fields import (
    Defaults,
    language_and_task,
    read_csv,
    task_by_texts,
    text_keys,
    wrong_columns,
)
from lorsmerge_cli.speech.utterance import Utterance

NEEDS = "metadata.csv or metadata.jsonl with file_name and text, in the folder or in train/, ..."
NAMES = ("metadata.csv", "metadata.jsonl")
# Hugging Face's names of the three splits
FOLDERS = {"train": ("train",), "dev": ("dev", "validation", "valid"), "test": ("test",)}


def _table(folder: Path) -> Path | None:
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def _tables(path: Path) -> dict[str, Path]:
    found = {}
    for split, folders in FOLDERS.items():
        for folder in folders:
            table = _table(path / folder)
            if table is not None:
                found[split] = table
    return found


def detects(path: Path) -> bool:
    """Whether a path is of this format."""
    if path.is_file():
        return path.name == "metadata.csv"  # a metadata.jsonl is read as JSON lines
    return _table(path) is not None or bool(_tables(path))


def splits(path: Path) -> tuple[str, ...]:
    """Folders that hold a table of their own, or that the one table's files are in."""
    if not path.is_dir():
        return ()
    table = _table(path)
    if _tables(path) or table is None:
        return tuple(_tables(path))
    found = {_split(table.parent / name, table.parent) for name in _file_names(table)}
    return tuple(split for split in FOLDERS if split in found)


def _split(audio: Path, root: Path) -> str | None:
    """The split whose folder, right below the root, a file is in."""
    below = audio.relative_to(root).parts[:1] if audio.is_relative_to(root) else ()
    return next((s for s, folders in FOLDERS.items() if below and below[0] in folders), None)


def _file_names(table: Path) -> list[str]:
    if table.suffix == ".csv":
        return [row["file_name"] for _, row in read_csv(table, ("file_name",))]
    return [jsonl.first(row, jsonl.AUDIO) or "" for _, row in jsonl.objects(table)]


def read(path: Path, split: str | None, defaults: Defaults) -> list[Utterance]:
    """The rows of a table; those of the split alone where one table has all."""
    if path.is_file():
        return _read(path, defaults)
    table = _tables(path).get(split or "")
    if table is not None:
        return _read(table, defaults)
    table = _table(path)
    assert table is not None  # `detects` found one
    rows = _read(table, defaults)
    parts = [_split(row.audio, table.parent) for row in rows]
    if not any(parts):
        return rows
    return [row for row, part in zip(rows, parts, strict=True) if part == split]


def _read(table: Path, defaults: Defaults) -> list[Utterance]:
    if table.suffix == ".jsonl":
        return jsonl.read(table, None, defaults)
    utterances = []
    for number, row in read_csv(table, ("file_name",)):
        where = f"{table}, line {number}"
        said = next((row[key] for key in jsonl.LANGUAGE if row.get(key)), None)
        task = next((row[key] for key in jsonl.TASK if row.get(key)), None)
        task = task or task_by_texts(row, defaults.task, where)
        language, task = language_and_task(said, task, defaults, where)
        text = next((row[key] for key in text_keys(task) if key in row), None)
        if text is None:
            raise wrong_columns(table, list(row), ["text"])
        utterances.append(
            Utterance(
                id=Path(row["file_name"]).stem,
                audio=table.parent / row["file_name"],
                text=text,
                language=language,
                task=task,
                speaker=next((row[key] for key in jsonl.SPEAKER if row.get(key)), None),
            )
        )
    return utterances
