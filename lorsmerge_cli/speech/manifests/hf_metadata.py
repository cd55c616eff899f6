"""A folder of audio with metadata.csv or metadata.jsonl, as Hugging Face's audiofolder has it."""

from __future__ import annotations

from pathlib import Path

from lorsmerge_cli.speech.manifests import jsonl
from lorsmerge_cli.speech.manifests.fields import (
    Defaults,
    language_and_task,
    read_csv,
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
    """Folders that hold a table of their own."""
    return tuple(_tables(path)) if path.is_dir() else ()


def read(path: Path, split: str | None, defaults: Defaults) -> list[Utterance]:
    """The rows of a table."""
    tables = _tables(path) if path.is_dir() else {}
    table = path if path.is_file() else (tables.get(split or "") or _table(path))
    assert table is not None  # `detects` found one
    if table.suffix == ".jsonl":
        return jsonl.read(table, None, defaults)
    utterances = []
    for number, row in read_csv(table, ("file_name",)):
        text = next((row[key] for key in jsonl.TEXT if key in row), None)
        if text is None:
            raise wrong_columns(table, list(row), ["text"])
        said = next((row[key] for key in jsonl.LANGUAGE if row.get(key)), None)
        task = next((row[key] for key in jsonl.TASK if row.get(key)), None)
        if task is None and "translation" in row and "text" not in row and "sentence" not in row:
            task = defaults.task or "st"
        language, task = language_and_task(said, task, defaults, f"{table}, line {number}")
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
