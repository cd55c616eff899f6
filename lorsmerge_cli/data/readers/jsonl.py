"""Read JSON lines with NeMo's keys: one object per utterance."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lorsmerge_cli.data.audio_source import AudioFile, AudioSource
from lorsmerge_cli.data.languages import find_language, joined_text, text_language
from lorsmerge_cli.data.readers.fields import (
    TRANSLATION,
    Defaults,
    into_english,
    language_and_task,
    read_source,
    task_by_texts,
    text_keys,
    unreadable,
    wrong_columns,
)
from lorsmerge_cli.data.readers.values import (
    Skip,
    Values,
    is_missing,
    is_text,
    read_audio,
    read_gender,
    read_label,
    read_name,
    read_seconds,
    read_segments,
    read_text,
)
from lorsmerge_cli.data.utterance import (
    EMPTY,
    OTHER_TEXT,
    Drop,
    PseudoLabel,
    Segment,
    Utterance,
)
from lorsmerge_cli.errors import UnreadableFile, UsageFault
from lorsmerge_cli.inputs import json_object, open_text

NEEDS = "a .jsonl or .json file with audio_filepath and text in every line"
AUDIO = ("audio_filepath", "audio", "file_name", "path")
LANGUAGE = ("source_lang", "language", "lang", "locale")
TASK = ("taskname", "task")
SPEAKER = ("speaker", "client_id", "speaker_id")
GENDER = ("gender", "sex")
LABEL = ("teacher", "teacher_id", "confidence")  # of a text that no person wrote
IDENTITY = re.compile(r"[0-9a-f]{16}")


def detects(path: Path) -> bool:
    """Return whether a path is of this format."""
    return path.is_file() and path.suffix in (".jsonl", ".json", ".ndjson")


def splits(path: Path) -> tuple[str, ...]:
    """Return no names: a file is one split."""
    return ()


def read(path: Path, split: str | None, defaults: Defaults) -> list[Utterance | Drop]:
    """Read the rows of a file; relative audio paths start at the file's folder."""
    return [read_row(row, path, number, defaults) for number, row in objects(path)]


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and object of each line.

    Raises:
        UnreadableFile: a line is no JSON object.
    """
    try:
        with open_text(path) as file:
            lines = file.read().split("\n")  # a text may hold other line ends
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json_object(line, unique=True)
        except ValueError as error:
            raise UnreadableFile(
                f"{path}, line {number} is no JSON object ({error}).",
                "A JSON-lines manifest has one {...} per line, with each key once.",
            ) from None
        yield number, row


def read_row(row: Values, path: Path, number: int, defaults: Defaults) -> Utterance | Drop:
    """Read one line of the manifest at `path`, or return why it is dropped.

    Raises:
        LorsmergeError: the row lacks a key that the format needs, or has a value of another type.
    """
    where = f"{path}, line {number}"
    wanted = [("audio_filepath", AUDIO), ("text", (*text_keys("st"), "segments"))]
    _has(row, path, where, *wanted[: 1 + defaults.labelled])
    try:
        audio = AudioFile(path.parent / read_audio(row, AUDIO, where))
    except Skip as skip:
        return skip.drop(f"line {number}", path)
    return read_values(row, audio, audio.file.stem, path, where, defaults)


def read_values(
    row: Values,
    audio: AudioSource,
    name: str,
    path: Path,
    where: str,
    defaults: Defaults,
    cells: Values | None = None,
) -> Utterance | Drop:
    """Read what a row has beside its audio, or return why it is dropped.

    Args:
        row: of a manifest.
        audio: of the row.
        name: the row's id if it gives none.
        path: of the manifest.
        where: the row, in a message.
        defaults: for a row that does not name its language or task.
        cells: the row by the names of its columns, where `row` has other names.

    Raises:
        LorsmergeError: the row lacks a key that the format needs, or has a value of another type.
    """
    try:
        name = read_label(row, ("id",), where) or name
        return _utterance(row, name, audio, path, where, defaults, row if cells is None else cells)
    except Skip as skip:
        return skip.drop(name, audio)


def _has(row: Values, path: Path, where: str, *wanted: tuple[str, tuple[str, ...]]) -> None:
    missing = [name for name, keys in wanted if not any(key in row for key in keys)]
    if missing:
        error = wrong_columns(path, list(row), missing)
        raise UnreadableFile(f"{where}: {error.what}", error.remedy)


def _utterance(
    row: Values,
    name: str,
    audio: AudioSource,
    path: Path,
    where: str,
    defaults: Defaults,
    cells: Values,
) -> Utterance:
    source, target = read_name(row, LANGUAGE, where), read_name(row, ("target_lang",), where)
    task = read_name(row, TASK, where)
    if task is None and source and target:
        task = "asr" if _same_language(source, target) else "st"
    task = task or task_by_texts(row, defaults.task, where)
    language, task = language_and_task(source, task, defaults, where, cells)
    if task == "st":
        into_english(target, where)
    elif target and is_missing(row.get(TRANSLATION)) and not _same_language(language, target):
        raise UsageFault(
            f"{where} is a transcript of {language} by its task, and its target_lang is {target!r}.",
            "If the text is a translation, its taskname is st; else remove target_lang.",
        )
    segments = read_segments(row, where) if defaults.labelled else ()
    if defaults.labelled and not segments:
        _has(row, path, where, ("text", text_keys(task)))
    duration = read_seconds(row, "duration", where)
    if duration == 0:
        raise Skip(EMPTY, f"{where}: duration is 0")
    start = read_seconds(row, "offset", where)
    return Utterance(
        id=name,
        audio=audio,
        text=_text(row, language, task, segments, where) if defaults.labelled else "",
        language=language,
        task=task,
        duration=duration,
        start=start or 0.0,
        speaker=read_label(row, SPEAKER, where),
        segment=start is not None,
        source_text=read_source(row, language, task),
        label=_pseudo_label(row),
        segments=segments,
        gender=read_gender(row, GENDER),
    )


def _text(row: Values, language: str, task: str, segments: Sequence[Segment], where: str) -> str:
    """Read the text of a row, that of its segments if it has no other.

    Raises:
        Skip: as `read_text`, or the segments have other words.
    """
    keys, spoken = text_keys(task), text_language(language, task)
    joined = joined_text([part.text for part in segments], spoken)
    if segments and all(is_missing(row.get(key)) for key in keys):
        return joined
    text = read_text(row, keys, spoken, where)
    if segments and "".join(text.split()) != "".join(joined.split()):
        raise Skip(OTHER_TEXT, f"{where}: its text is not that of its segments")
    return text


def _pseudo_label(row: Values) -> PseudoLabel | None:
    """Return what `transcribe` wrote of the model that made the text; None for any other row.

    The digest tells such a row from one of a data set that has teachers of its own.
    """
    teacher, identity, sure = (row.get(key) for key in LABEL)
    if not (isinstance(teacher, str) and is_text(teacher) and isinstance(identity, str)):
        return None
    if not IDENTITY.fullmatch(identity):
        return None
    known = isinstance(sure, float) and math.isfinite(sure)
    return PseudoLabel(teacher, identity, sure if known else None)


def _same_language(source: str, target: str) -> bool:
    ours, theirs = find_language(source), find_language(target)
    # an unknown one is an error where it is read next
    return ours == theirs if ours and theirs else source == target
