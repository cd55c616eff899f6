"""JSON lines with NeMo's keys: one object per utterance."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorsmerge_cli.errors import UnreadableFile
from lorsmerge_cli.speech.languages import parse_language
from lorsmerge_cli.speech.manifests.fields import (
    Defaults,
    into_english,
    language_and_task,
    task_by_texts,
    text_keys,
    unreadable,
    wrong_columns,
)
from lorsmerge_cli.speech.utterance import Utterance

NEEDS = "a .jsonl or .json file with audio_filepath and text in every line"
AUDIO = ("audio_filepath", "audio", "file_name", "path")
LANGUAGE = ("source_lang", "language", "lang", "locale")
TASK = ("taskname", "task")
SPEAKER = ("speaker", "client_id", "speaker_id")


def detects(path: Path) -> bool:
    """Whether a path is of this format."""
    return path.is_file() and path.suffix in (".jsonl", ".json", ".ndjson")


def splits(path: Path) -> tuple[str, ...]:
    """None: a file is one split."""
    return ()


def read(path: Path, split: str | None, defaults: Defaults) -> list[Utterance]:
    """The utterances of a file; relative audio paths start at the file's folder."""
    return [_utterance(row, path, number, defaults) for number, row in objects(path)]


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line.

    Raises:
        UnreadableFile: a line is no JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # a text may hold other line ends
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("an object is needed")
        except ValueError as error:
            raise UnreadableFile(
                f"{path}, line {number} is no JSON object ({error}).",
                "A JSON-lines manifest has one {...} per line.",
            ) from None
        yield number, row


def first(row: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    """The value of the first of some keys that a row has."""
    value = next((row[key] for key in keys if row.get(key) is not None), None)
    return None if value is None else str(value)


def _lacks(row: dict[str, Any], path: Path, where: str, wanted: list[str]) -> UnreadableFile:
    error = wrong_columns(path, list(row), wanted)
    return UnreadableFile(f"{where}: {error.what}", error.remedy)


def _utterance(row: dict[str, Any], path: Path, number: int, defaults: Defaults) -> Utterance:
    where = f"{path}, line {number}"
    audio, some_text = first(row, AUDIO), first(row, text_keys("st"))
    if audio is None or some_text is None:
        found = ((AUDIO[0], audio), ("text", some_text))
        raise _lacks(row, path, where, [name for name, value in found if value is None])
    source, target, task = first(row, LANGUAGE), first(row, ("target_lang",)), first(row, TASK)
    if task is None and source and target:
        task = "asr" if parse_language(source) == parse_language(target) else "st"
    task = task or task_by_texts(row, defaults.task, where)
    language, task = language_and_task(source, task, defaults, where)
    text = first(row, text_keys(task))
    if text is None:
        raise _lacks(row, path, where, ["text"])
    if task == "st":
        into_english(target, where)
    try:
        start = float(row.get("offset") or 0)
        duration = None if row.get("duration") is None else float(row["duration"])
    except (TypeError, ValueError):
        raise UnreadableFile(
            f"{where}: offset and duration have to be numbers of seconds.", "Correct the line."
        ) from None
    return Utterance(
        id=str(row.get("id") or Path(audio).stem),
        audio=path.parent / audio,
        text=text,
        language=language,
        task=task,
        duration=duration,
        start=start,
        speaker=first(row, SPEAKER),
    )
