"""A language's folder of a Common Voice release: clips/ beside train.tsv, dev.tsv, test.tsv."""

from __future__ import annotations

from pathlib import Path

from lorsmerge_cli.errors import LorsmergeError
from lorsmerge_cli.speech.languages import parse_language
from lorsmerge_cli.speech.manifests.fields import Defaults, language_and_task, read_tsv
from lorsmerge_cli.speech.utterance import Utterance

NEEDS = "clips/ and train.tsv, dev.tsv, test.tsv (a language's folder of a release)"
TABLES = ("train", "dev", "test", "validated", "invalidated", "other")


def _folder(path: Path) -> Path:
    return path.parent if path.is_file() else path


def detects(path: Path) -> bool:
    """Whether a path is of this format: such a folder, or one of its tables."""
    if path.name.startswith("covost"):
        return False
    here = path.stem in TABLES and path.suffix == ".tsv" if path.is_file() else bool(splits(path))
    return here and (_folder(path) / "clips").is_dir()


def splits(path: Path) -> tuple[str, ...]:
    """The tables that are there."""
    if path.is_file():
        return ()
    return tuple(name for name in TABLES if (path / f"{name}.tsv").is_file())


def read(path: Path, split: str | None, defaults: Defaults) -> list[Utterance]:
    """The clips of one table; the language is the `locale` column's, or the folder's name."""
    folder = _folder(path)
    table = path if path.is_file() else folder / f"{split}.tsv"
    try:
        folder_language = parse_language(folder.resolve().name)
    except LorsmergeError:
        folder_language = None
    utterances = []
    for number, row in read_tsv(table, ("path", "sentence")):
        said = row.get("locale") or (None if defaults.language else folder_language)
        language, task = language_and_task(said, "asr", defaults, f"{table}, line {number}")
        name = row["path"] if Path(row["path"]).suffix else f"{row['path']}.mp3"
        utterances.append(
            Utterance(
                id=Path(name).stem,
                audio=folder / "clips" / name,
                text=row["sentence"],
                language=language,
                task=task,
                speaker=row.get("client_id") or None,
            )
        )
    return utterances
