"""Read tables, and the language, task and texts of a row, for all readers of manifests."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorsmerge_cli.data.conditions import Wanted
from lorsmerge_cli.data.languages import find_language, parse_language, parse_task
from lorsmerge_cli.data.readers.values import Skip, in_language, is_missing, is_text
from lorsmerge_cli.data.utterance import OTHER_LANGUAGE, OTHER_TASK, UNWANTED
from lorsmerge_cli.errors import LorsmergeError, UnreadableFile, UsageFault
from lorsmerge_cli.inputs import open_text

SPLITS = ("train", "dev", "test")
# Names of the three splits in data sets, ours first
SPLIT_NAMES = {
    "train": ("train", "training"),
    "dev": ("dev", "validation", "valid", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
Row = Mapping[str, str]


@dataclass(frozen=True)
class Defaults:
    """Language and task from the command line, for rows that do not name theirs.

    Attributes:
        language: as in `read_manifest`.
        task: as in `read_manifest`.
        labelled: as in `read_manifest`; False where rows need no text.
        wanted: the conditions that rows have to meet.
    """

    language: str | None = None
    task: str | None = None
    labelled: bool = True
    wanted: Wanted = field(default_factory=Wanted, compare=False)


def read_tsv(path: Path, needed: Sequence[str] = ()) -> Iterator[tuple[int, Row]]:
    """Yield line number and row of a table with tabs and a header; quotes are plain characters.

    Raises:
        UnreadableFile: it is no such table, lacks a needed column, or a row is cut short.
    """
    yield from _read_table(path, needed, delimiter="\t", quoting=csv.QUOTE_NONE)


def read_csv(path: Path, needed: Sequence[str] = ()) -> Iterator[tuple[int, Row]]:
    """Yield line number and row of a table with commas, quoted as spreadsheets do it."""
    yield from _read_table(path, needed, delimiter=",", quoting=csv.QUOTE_MINIMAL)


def _read_table(
    path: Path, needed: Sequence[str], delimiter: str, quoting: int
) -> Iterator[tuple[int, Row]]:
    try:
        with open_text(path, newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
            try:
                yield from _rows(path, reader, needed)
            except csv.Error as error:
                raise UnreadableFile(
                    f"{path}, line {reader.line_num} is no row of a table ({error}).",
                    'A cell with quotes has to be quoted, and its quotes doubled: "he said ""yes""".',
                ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from None


def _rows(path: Path, reader: Any, needed: Sequence[str]) -> Iterator[tuple[int, Row]]:
    header = [name.strip() for name in next(reader, [])]
    missing = [name for name in needed if name not in header]
    if missing:
        raise wrong_columns(path, header, missing)
    twice = [name for name, count in Counter(filter(None, header)).items() if count > 1]
    if twice:
        raise UnreadableFile(
            f"{path} has several columns {' and '.join(map(repr, twice))}.",
            "Rename or remove all but one of each name.",
        )
    for cells in reader:
        if not any(cells):
            continue
        if len(cells) < len(header):
            raise UnreadableFile(
                f"{path}, line {reader.line_num}: {len(cells)} columns, and the header has "
                f"{len(header)}.",
                "The file was cut short, or a cell holds a line break.",
            )
        if any(cells[len(header) :]):
            raise UnreadableFile(
                f"{path}, line {reader.line_num}: {len(cells)} columns, and the header has "
                f"{len(header)}.",
                "A cell with a comma in it has to be quoted."
                if reader.dialect.delimiter == ","
                else "A cell may hold no tab.",
            )
        yield reader.line_num, dict(zip(header, cells, strict=False))


def unreadable(path: Path, error: Exception) -> UnreadableFile:
    """Return the error for a manifest that is no text, or missing."""
    return UnreadableFile(f"{path} cannot be read ({error}).", "A table in UTF-8 is needed.")


def wrong_columns(path: Path, found: Sequence[str], wanted: Sequence[str]) -> UnreadableFile:
    """Return the error for columns or keys that are missing."""
    return UnreadableFile(
        f"{path} has no {' and no '.join(wanted)}.", f"It has: {', '.join(found) or 'nothing'}."
    )


def language_and_task(
    language: str | None,
    task: str | None,
    defaults: Defaults,
    where: str,
    cells: Mapping[str, Any],
) -> tuple[str, str]:
    """Return language and task of a row: its own, or else those of the command line.

    Args:
        language: that the row names.
        task: that the row names.
        defaults: those of the command line.
        where: the row, in a message.
        cells: the row by the names of its columns, for the conditions that it has to meet.

    Raises:
        Skip: the row has another language or task than the command line, or does not meet a condition.
        UsageFault: neither names the language, or the row's is unknown; `where` names the row.
    """
    wanted_language = parse_language(defaults.language) if defaults.language else None
    wanted_task = parse_task(defaults.task) if defaults.task else None
    try:
        said_task = parse_task(task) if task else None
        said_language = parse_language(language) if language else None
    except LorsmergeError as error:
        if language and wanted_language and find_language(language) is None:
            raise _other("language", repr(language), wanted_language, where) from None
        raise UsageFault(f"{where}: {error.what}", error.remedy) from None
    if said_language and wanted_language and said_language != wanted_language:
        raise _other("language", said_language, wanted_language, where)
    if said_task and wanted_task and said_task != wanted_task:
        raise _other("task", said_task, wanted_task, where)
    chosen_language = said_language or wanted_language
    if chosen_language is None:
        raise UsageFault(f"{where} does not say which language is spoken.", "Give --language.")
    found = chosen_language, said_task or wanted_task or "asr"
    if lacks := defaults.wanted.lacks(cells, *found):
        raise Skip(UNWANTED, f"{where} has not {lacks}")
    return found


def _other(kind: str, said: str, wanted: str, where: str) -> Skip:
    return Skip(
        OTHER_LANGUAGE if kind == "language" else OTHER_TASK,
        f"{where} has the {kind} {said}, and --{kind} {wanted} was given",
    )


TRANSCRIPT = ("text", "sentence", "transcription", "answer")
TRANSLATION = "translation"
SOURCE = ("source_text", "transcript")  # beside a translation


def task_by_texts(row: Mapping[str, object], default: str | None, where: str) -> str | None:
    """Return the task of a row that names none: `st` if it has a translation alone.

    Raises:
        UsageFault: it has a transcript and a translation, and no default is given.
    """
    if default is not None or is_missing(row.get(TRANSLATION)):
        return default
    transcripts = [key for key in TRANSCRIPT if not is_missing(row.get(key))]
    if transcripts:
        raise UsageFault(
            f"{where} has a {transcripts[0]} and a translation.", "Give --task asr or --task st."
        )
    return "st"


def text_keys(task: str) -> tuple[str, ...]:
    """Return the keys that may have the text of a task, the most specific first."""
    return TRANSCRIPT if task == "asr" else (TRANSLATION, *TRANSCRIPT)


def read_source(row: Mapping[str, object], language: str, task: str) -> str | None:
    """Return the transcript beside a translation; None if the row has none.

    Args:
        row: of a manifest.
        language: whose text is taken from `{"ca": ..., "en": ...}`.
        task: of the row; only `st` has a transcript beside its text.
    """
    named = SOURCE if is_missing(row.get(TRANSLATION)) else (*SOURCE, *TRANSCRIPT)
    found = next((row[key] for key in named if not is_missing(row.get(key))), None)
    if isinstance(found, Mapping):
        found = in_language(found, language)
    known = text_keys(task) != TRANSCRIPT and isinstance(found, str) and is_text(found)
    return str(found) if known else None


def into_english(target: str | None, where: str) -> None:
    """Check that a translation is into English, the only one that Whisper makes.

    Raises:
        UsageFault: the target is another language than English.
    """
    if target and find_language(target) != "en":
        raise UsageFault(
            f"{where} is to be translated into {target!r}.", "Whisper translates into English only."
        )
