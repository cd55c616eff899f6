"""Read CoVoST 2: `covost_v2.<src>_<tgt>.tsv`, joined with the Common Voice clips it translates."""

from __future__ import annotations

import re
from pathlib import Path

from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.readers.fields import (
    SPLITS,
    Defaults,
    Row,
    into_english,
    language_and_task,
    read_tsv,
)
from lorsmerge_cli.data.readers.values import Skip, read_gender
from lorsmerge_cli.data.utterance import MISSING, Drop, Utterance
from lorsmerge_cli.errors import UnreadableFile

NEEDS = "covost_v2.<language>_en.tsv (or .train.tsv, ...) in a Common Voice language folder"
NAME = re.compile(r"covost_v2\.([\w-]+)_([\w-]+?)(?:\.(train|dev|test))?\.tsv")


def _tables(path: Path) -> dict[str | None, Path]:
    """Return the table of each split; under None one of all splits."""
    files = [path] if path.is_file() else sorted(path.glob("covost_v2.*.tsv"))
    return {match[3]: file for file in files if (match := NAME.fullmatch(file.name))}


def detects(path: Path) -> bool:
    """Return whether a path is such a table, or a folder that holds one."""
    return bool(_tables(path))


def splits(path: Path) -> tuple[str, ...]:
    """Return the splits that the tables are named after."""
    tables = _tables(path)
    return SPLITS if None in tables else () if path.is_file() else tuple(map(str, tables))


def read(path: Path, split: str | None, defaults: Defaults) -> list[Utterance | Drop]:
    """Read the translations into English, or with `--task asr` the transcripts, of one split."""
    tables = _tables(path)
    pairs = {NAME.fullmatch(file.name).groups()[:2] for file in tables.values()}  # type: ignore[union-attr]
    if len(pairs) > 1:
        raise UnreadableFile(
            f"{path} holds CoVoST tables of several pairs of languages.", "Name one of the files."
        )
    table = tables.get(split) or tables.get(None) or next(iter(tables.values()))
    source, target = next(iter(pairs))
    folder = table.parent if (table.parent / "clips").is_dir() else table.parent.parent
    clips = _validated(table.parent)
    asked = defaults.task or "st"
    column = "sentence" if asked == "asr" else "translation"

    found: list[Utterance | Drop] = []
    for number, row in read_tsv(table, ("path", column)):
        name = Path(row["path"]).name
        if row.get("split", split) not in (split, f"{split}_covost") and split is not None:
            continue
        audio = AudioFile(folder / "clips" / (name if Path(name).suffix else f"{name}.mp3"))
        where = f"{table}, line {number}"
        if clips is not None and name not in clips:
            lacking = f"{where}: {name} is not in {table.parent / 'validated.tsv'}"
            found.append(Drop(audio.file.stem, audio, MISSING, lacking))
            continue
        clip = (clips or {}).get(name, {})
        try:
            language, task = language_and_task(source, asked, defaults, where, {**clip, **row})
        except Skip as skip:
            found.append(skip.drop(audio.file.stem, audio))
            continue
        if task == "st":
            into_english(target, where)
        speaker = row.get("client_id") or clip.get("client_id") or None
        transcript = row.get("sentence") or clip.get("sentence")  # not every release repeats it
        text = _unescape(row[column])
        found.append(
            Utterance(
                Path(name).stem, audio, text, language, task, speaker=speaker,
                source_text=_unescape(transcript) if transcript and task == "st" else None,
                gender=read_gender(clip, ("gender",)),
            )
        )  # fmt: skip
    return found


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)  # the tables escape by a backslash


def _validated(folder: Path) -> dict[str, Row] | None:
    """Return Common Voice's validated.tsv by file name, which the translations are joined with."""
    table = folder / "validated.tsv"
    if not table.is_file():
        return None
    return {Path(row["path"]).name: row for _, row in read_tsv(table, ("path",))}
