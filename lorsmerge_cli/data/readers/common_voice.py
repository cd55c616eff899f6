"""Read a language's folder of Common Voice: clips/ beside train.tsv, dev.tsv, test.tsv."""

from __future__ import annotations

from pathlib import Path

from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.languages import find_language
from lorsmerge_cli.data.readers.fields import (
    Defaults,
    language_and_task,
    read_tsv,
)
from lorsmerge_cli.data.readers.values import Skip, read_gender
from lorsmerge_cli.data.utterance import Drop, Utterance

NEEDS = "clips/ and train.tsv, dev.tsv, test.tsv (a language's folder of a release)"
TABLES = ("train", "dev", "test", "validated", "invalidated", "other")
# Locales of Common Voice with a region; a folder with another hyphen is named by a person: `my-voices`
LOCALES = frozenset(
    {"hy-am", "nan-tw", "ne-np", "nn-no", "pa-in", "sv-se", "zh-cn", "zh-hk", "zh-tw"}
)


def _folder(path: Path) -> Path:
    return path.parent if path.is_file() else path


def detects(path: Path) -> bool:
    """Return whether a path is such a folder, or one of its tables."""
    if path.name.startswith("covost"):
        return False
    here = path.stem in TABLES and path.suffix == ".tsv" if path.is_file() else bool(splits(path))
    return here and (_folder(path) / "clips").is_dir()


def splits(path: Path) -> tuple[str, ...]:
    """Return the names of the tables that exist."""
    if path.is_file():
        return ()
    return tuple(name for name in TABLES if (path / f"{name}.tsv").is_file())


def read(path: Path, split: str | None, defaults: Defaults) -> list[Utterance | Drop]:
    """Read the clips of one table; the language is the `locale` column's, or the folder's name."""
    folder = _folder(path)
    table = path if path.is_file() else folder / f"{split}.tsv"
    durations = _durations(folder)
    folder_language = None if defaults.language else _language_of(folder)

    found: list[Utterance | Drop] = []
    for number, row in read_tsv(table, ("path", "sentence")):
        name = row["path"] if Path(row["path"]).suffix else f"{row['path']}.mp3"
        audio, stem = AudioFile(folder / "clips" / name), Path(name).stem
        named = row.get("locale") or folder_language
        try:
            language, task = language_and_task(
                named, "asr", defaults, f"{table}, line {number}", row
            )
        except Skip as skip:
            found.append(skip.drop(stem, audio))
            continue
        speaker = row.get("client_id") or None
        gender = read_gender(row, ("gender",))
        found.append(
            Utterance(
                stem, audio, row["sentence"], language, task, durations.get(name), speaker=speaker,
                gender=gender,
            )
        )  # fmt: skip
    return found


def _durations(folder: Path) -> dict[str, float]:
    """Return the seconds of clips by their names, of a release that has a table of them."""
    table = folder / "clip_durations.tsv"
    found: dict[str, float] = {}
    for _, row in read_tsv(table) if table.is_file() else ():
        milliseconds = row.get("duration[ms]", "")
        if milliseconds.isdecimal() and int(milliseconds):
            found[row.get("clip") or row.get("filename") or ""] = int(milliseconds) / 1000
    return found


def _language_of(folder: Path) -> str | None:
    """Return the language that a folder is named after, or None."""
    name = folder.resolve().name.lower()
    return find_language(name) if name.isalpha() or name in LOCALES else None
