"""Read data sets in the formats that people have, each found by its files.

A reader has `detects(path)`, `splits(path)`, `read(path, split, defaults)` and `NEEDS`, which describes
its files in messages. A new one is a file here and a line in `READERS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from lorsmerge_cli.data.conditions import Condition, Wanted
from lorsmerge_cli.data.languages import parse_language, parse_task
from lorsmerge_cli.data.readers import (
    common_voice,
    covost,
    hf_metadata,
    hub,
    jsonl,
    kaldi,
    parquet,
)
from lorsmerge_cli.data.readers.fields import SPLIT_NAMES, Defaults
from lorsmerge_cli.data.utterance import (
    OTHER_LANGUAGE,
    OTHER_TASK,
    UNWANTED,
    Drop,
    Utterance,
    listed,
    with_unique_ids,
)
from lorsmerge_cli.errors import UnreadableFile, UsageFault

READERS: dict[str, ModuleType] = {
    "jsonl": jsonl,
    "covost": covost,  # before Common Voice, whose folder it is unpacked into
    "common-voice": common_voice,
    "hf": hf_metadata,
    "kaldi": kaldi,
    "parquet": parquet,
    "hub": hub,
}


OTHERS = (OTHER_LANGUAGE, OTHER_TASK)


class NoSuchRows(UsageFault):
    """No row of a data set has the language and the task that were asked for."""


def read_manifest(
    path: Path,
    *,
    split: str | None = None,
    language: str | None = None,
    task: str | None = None,
    format: str | None = None,
    labelled: bool = True,
    conditions: Sequence[Condition] = (),
    notes: list[str] | None = None,
) -> tuple[list[Utterance], list[Drop]]:
    """Read the utterances of a data set and the rows that are dropped; no audio is opened.

    Args:
        path: file or folder, or a reference to a data set on the Hub (`hub:org/name:config:split`).
        split: `train`, `dev`, `test` or another that the data set has; ignored for one without
            splits.
        language: for rows that do not name theirs; rows of another one are skipped.
        task: for rows that do not name theirs; rows of another one are skipped.
        format: a name in `READERS`; found out by default.
        labelled: whether rows need a text. Those of data that is to be transcribed need none, and
            none is read: their texts are empty, whatever the data set has.
        conditions: that rows have to meet, but for those on durations, which no manifest is believed.
        notes: gets a note for each alternative of a condition that no row has.

    Raises:
        UnreadableFile: the format is unknown, the data set malformed, or the split missing.
        UsageFault: language or task are unknown or missing, or every row has another one (NoSuchRows);
            or a condition is of a column that there is not, or met by no row.
    """
    language = parse_language(language) if language else None
    task = parse_task(task) if task else None
    if language and task == "st" and language == "en":
        raise UsageFault("English is not translated into English.", "Give the spoken language.")
    reader = _reader(path, format, task)
    there = reader.splits(path)
    if split is None and len(there) == 1:
        split = there[0]
    if there and split not in there:
        split = next((ours for ours, names in SPLIT_NAMES.items() if split in names), split)
    if there and split not in there:
        asked = f"has no split {split!r}" if split else "has several splits"
        raise UnreadableFile(f"{path} {asked}.", f"Give --split with one of: {', '.join(there)}.")
    wanted = Wanted(conditions, str(path))
    rows = reader.read(path, split, Defaults(language, task, labelled, wanted))
    wanted.check_columns(labelled)
    rows = [_wanted(row, wanted) for row in rows] if conditions else rows
    utterances = [row for row in rows if isinstance(row, Utterance)]
    if not labelled:
        utterances = [replace(row, text="", source_text=None, label=None) for row in utterances]
    drops = [row for row in rows if isinstance(row, Drop)]
    others = [drop for drop in drops if drop.reason in OTHERS]
    if others and len(others) == len(rows):
        option = "language" if others[0].reason == OTHER_LANGUAGE else "task"
        raise NoSuchRows(
            f"No row of {path} is what was asked for: {others[0].detail}.",
            f"Leave out --{option} or choose other data.",
        )
    told = wanted.check_met()
    if notes is not None:
        notes += told
    if drops and all(drop.reason in (*OTHERS, UNWANTED) for drop in drops) and not utterances:
        raise NoSuchRows(
            f"No row of {path} is all that was asked for: {listed(drops)}.",
            f"Each of {', '.join(map(str, conditions))} is met by some row, and no row meets all.",
        )
    return with_unique_ids(utterances), drops


def _wanted(row: Utterance | Drop, wanted: Wanted) -> Utterance | Drop:
    """Return a row, or it as dropped where it does not meet a condition on what every row has."""
    if isinstance(row, Drop):
        return row
    lacks = wanted.lacks_fields(
        {
            "id": row.id,
            "text": row.text,
            "text_length": len(row.text.strip()),
            "speaker": row.speaker,
        }
    )
    return Drop(row.id, row.audio, UNWANTED, f"{row.id} has not {lacks}") if lacks else row


def manifest_splits(path: Path, format: str | None = None) -> tuple[str, ...]:
    """Return the splits of a data set; nothing if it is not divided."""
    splits: tuple[str, ...] = _reader(path, format, None).splits(path)
    return splits


def manifest_origin(
    path: Path,
    *,
    split: str | None = None,
    task: str | None = None,
    labelled: bool = True,
) -> hub.Origin | None:
    """Return where the rows of a data set on the Hub come from; None for one that is here.

    Args:
        path: as in `read_manifest`.
        split: as in `read_manifest`.
        task: as in `read_manifest`.
        labelled: as in `read_manifest`.
    """
    if not hub.detects(path):
        return None
    return hub.origin(path, split, Defaults(None, parse_task(task) if task else None, labelled))


def _reader(path: Path, format: str | None, task: str | None) -> ModuleType:
    if hub.detects(path):
        if format not in (None, "hub"):
            raise UsageFault(f"--format {format} is for data that is here, and {path} is not.")
        return hub
    if not path.exists():
        raise UnreadableFile(f"There is no data set {path}.", _where_it_is(path))
    if format is not None:
        if format not in READERS:
            raise UsageFault(f"There is no format {format!r}.", f"Use {', '.join(READERS)}.")
        return READERS[format]
    found = [name for name, reader in READERS.items() if reader.detects(path)]
    if found == ["covost", "common-voice"]:  # transcripts and translations of the same clips
        return READERS["common-voice" if task == "asr" else "covost"]
    if len(found) > 1:
        raise UsageFault(f"{path} looks like {' and '.join(found)}.", "Choose one with --format.")
    inside = sorted(path.glob("*.jsonl")) if path.is_dir() else []
    if inside and not found:
        names = ", ".join(file.name for file in inside[:5]) + (", ..." if inside[5:] else "")
        raise UnreadableFile(
            f"{path} holds {len(inside)} JSON-lines manifests.", f"Give those you mean: {names}."
        )
    if not found:
        known = "; ".join(f"{name}: {reader.NEEDS}" for name, reader in READERS.items())
        raise UnreadableFile(f"{path} is no data set that is known.", f"The formats are {known}.")
    return READERS[found[0]]


def _where_it_is(path: Path) -> str:
    """Return a remedy for a data set that is missing."""
    name, _, rest = str(path).partition("=")
    if rest and Path(rest).exists():
        return f"Only eval's sets have names: write {rest} without {name}=."
    if hub.REPO.fullmatch(str(path)):
        return f"Check the path. A data set on the Hub is {hub.PREFIX}{path}."
    return "Check the path."
