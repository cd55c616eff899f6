"""Write utterances as JSON lines with NeMo's keys, and recordings that are no files of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorsmerge_cli.data.audio import audio_suffix
from lorsmerge_cli.data.audio_source import AudioSource
from lorsmerge_cli.data.languages import text_language
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import LorsmergeError
from lorsmerge_cli.outputs import atomic_file, atomic_folder, check_output

NAME = 40  # characters of an id in the name of an audio file


def audio_faults(
    rows: Sequence[Utterance], output: Path, *, inputs: Sequence[Path], force: bool
) -> list[LorsmergeError]:
    """Return the faults of the folder beside a manifest, if one is needed.

    Args:
        rows: of the manifest.
        output: the manifest.
        inputs: every file and folder that is read beside the rows' recordings.
        force: replace a folder that exists.
    """
    if not _audio_names(rows):
        return []
    inputs = [*inputs, *(row.audio.path for row in rows if row.audio.path is not None)]
    holders = {row.audio.file for row in rows if row.audio.path is None}
    size = sum(file.stat().st_size for file in holders)
    return check_output(_folder_of(output), inputs=inputs, size=size, force=force, folder=True)


def write_manifest(
    output: Path,
    rows: Sequence[Utterance],
    *,
    force: bool,
    more: Mapping[str, Mapping[str, Any]] | None = None,
    beside: Callable[[], None] = lambda: None,
) -> Path | None:
    """Write a manifest, and a folder of the recordings that are no files of their own.

    Args:
        output: the manifest; paths of audio below its folder are relative to it.
        rows: to be written, in their order.
        force: replace outputs that exist.
        more: id of a row -> further keys of its line.
        beside: called just before the manifest appears, to write what belongs to it.

    Returns:
        The folder, `ca.jsonl.audio/` for `ca.jsonl`; None if none was needed.

    Raises:
        OutputFault: see `atomic_file` and `atomic_folder`.
    """
    folder, names = _folder_of(output), _audio_names(rows)
    files = {source: folder / name for source, name in names.items()}
    lines = [
        json.dumps(
            _row(row, files.get(row.audio, row.audio.file), output.parent)
            | dict((more or {}).get(row.id, {})),
            ensure_ascii=False,
        )
        for row in rows
    ]
    with atomic_file(output, force=force) as partial:
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        if names:  # appears just before the manifest, so that neither is long without the other
            _write_audio(names, folder, force=force)
        beside()
    return folder if names else None


def _folder_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.audio")


def _audio_names(rows: Sequence[Utterance]) -> dict[AudioSource, str]:
    """Return a file name for each recording that is no file of its own."""
    sources = {row.audio: row.id for row in rows if row.audio.path is None}
    names = {}
    for number, (source, name) in enumerate(sources.items(), 1):
        safe = re.sub(r"[^\w.-]", "_", name)[:NAME]
        names[source] = f"{number:06d}-{safe}{audio_suffix(source)}"
    return names


def _write_audio(names: Mapping[AudioSource, str], folder: Path, *, force: bool) -> None:
    with atomic_folder(folder, force=force) as partial:
        for source, name in names.items():
            with source.open() as encoded, (partial / name).open("wb") as copy:
                shutil.copyfileobj(encoded, copy)


def _row(utterance: Utterance, audio: Path, folder: Path) -> dict[str, object]:
    audio, root = audio.resolve(), folder.resolve()
    inside = audio.is_relative_to(root)
    row: dict[str, object] = {
        "id": utterance.id,
        "audio_filepath": os.fspath(audio.relative_to(root) if inside else audio),
        "duration": utterance.duration,
        "text": utterance.text,
        "source_lang": utterance.language,
        "target_lang": text_language(utterance.language, utterance.task),
        "taskname": utterance.task,
    }
    if utterance.start or utterance.segment:
        row["offset"] = utterance.start
    if utterance.source_text is not None:
        row["source_text"] = utterance.source_text
    if utterance.segments:
        row["segments"] = [part._asdict() for part in utterance.segments]
    if utterance.speaker:
        row["speaker"] = utterance.speaker
    if utterance.gender:
        row["gender"] = utterance.gender
    if utterance.label is not None:
        row["teacher"], row["teacher_id"] = utterance.label.teacher, utterance.label.identity
        row["confidence"] = utterance.label.confidence
    return row
