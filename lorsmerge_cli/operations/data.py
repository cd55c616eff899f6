"""Report on data sets, and write them as one JSON-lines manifest."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lorsmerge_cli.data.audio import audio_suffix
from lorsmerge_cli.data.audio_source import AudioSource
from lorsmerge_cli.data.dataset import load_data
from lorsmerge_cli.data.digests import DataDigests, digests_of
from lorsmerge_cli.data.languages import text_language
from lorsmerge_cli.data.leakage import repeated, shared_with
from lorsmerge_cli.data.readers import manifest_splits
from lorsmerge_cli.data.report import DataReport
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import LorsmergeError, raise_all
from lorsmerge_cli.outputs import atomic_file, atomic_folder, check_output

NAME = 40  # characters of an id in the name of an audio file


def data(
    paths: Sequence[Path],
    *,
    output: Path | None = None,
    split: Sequence[str] | None = None,
    language: str | None = None,
    task: str | None = None,
    format: str | None = None,
    hours: float | None = None,
    seed: int = 0,
    max_seconds: float = 30.0,
    force: bool = False,
    allow_parts: bool = False,
    checked: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DataReport:
    """Return what data sets hold and, with `output`, write them as JSON lines with NeMo's keys.

    Nothing is written if no row can be used. Recordings that are no files of their own are written
    into a folder beside the manifest, `ca.jsonl.audio/` for `ca.jsonl`, as they are encoded.

    Args:
        paths: manifests or folders.
        output: the manifest to write; none by default.
        split: names of the splits to read of each data set that has several.
        language: as in `load_data`.
        task: as in `load_data`.
        format: as in `load_data`.
        hours: as in `load_data`.
        seed: as in `load_data`.
        max_seconds: as in `load_data`.
        force: replace outputs that exist.
        allow_parts: as in `load_data`.
        checked: as in `load_data`.
        progress: as in `load_data`.

    Raises:
        LorsmergeError: see the subclasses; nothing is written then.
    """
    if output is not None:
        raise_all(check_output(output, inputs=paths, size=0, force=force))
    sets: list[tuple[str, DataReport]] = []
    for path in paths:
        wanted: list[str | None] = [*split] if split else [None]
        several = len(wanted) > 1 and bool(manifest_splits(path, format))
        for name in wanted if several else wanted[:1]:
            found = load_data(
                [path], split=name, language=language, task=task, format=format, hours=hours,
                seed=seed, max_seconds=max_seconds, allow_parts=allow_parts, checked=checked,
                progress=progress,
            )  # fmt: skip
            sets.append((f"{path} ({name})" if several else str(path), found))
    warnings = _shared_warnings([(name, found.utterances) for name, found in sets])
    report = replace(DataReport.joined([found for _, found in sets]), warnings=tuple(warnings))
    if output is None or not report.utterances:
        return report
    folder = output.with_name(f"{output.name}.audio")
    names = _audio_names(report.utterances)
    if names:
        raise_all(_audio_faults(report.utterances, folder, inputs=paths, force=force))
    files = {source: folder / name for source, name in names.items()}
    lines = [
        json.dumps(
            _row(row, files.get(row.audio, row.audio.file), output.parent), ensure_ascii=False
        )
        for row in report.utterances
    ]
    with atomic_file(output, force=force) as partial:
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        if names:  # appears just before the manifest, so that neither is long without the other
            _write_audio(names, folder, force=force)
    return replace(report, output=output, audio=folder if names else None)


def _audio_names(rows: Sequence[Utterance]) -> dict[AudioSource, str]:
    """Return a file name for each recording that is no file of its own."""
    sources = {row.audio: row.id for row in rows if row.audio.path is None}
    names = {}
    for number, (source, name) in enumerate(sources.items(), 1):
        safe = re.sub(r"[^\w.-]", "_", name)[:NAME]
        names[source] = f"{number:06d}-{safe}{audio_suffix(source)}"
    return names


def _audio_faults(
    rows: Sequence[Utterance], folder: Path, *, inputs: Sequence[Path], force: bool
) -> list[LorsmergeError]:
    """Return the faults of a folder for the recordings that are no files of their own."""
    inputs = [*inputs, *(row.audio.path for row in rows if row.audio.path is not None)]
    holders = {row.audio.file for row in rows if row.audio.path is None}
    size = sum(file.stat().st_size for file in holders)
    return check_output(folder, inputs=inputs, size=size, force=force, folder=True)


def _write_audio(names: Mapping[AudioSource, str], folder: Path, *, force: bool) -> None:
    with atomic_folder(folder, force=force) as partial:
        for source, name in names.items():
            with source.open() as encoded, (partial / name).open("wb") as copy:
                shutil.copyfileobj(encoded, copy)


def _shared_warnings(sets: Iterable[tuple[str, Sequence[Utterance]]]) -> list[str]:
    """Return warnings of what each set repeats, and shares with those before it."""
    warnings: list[str] = []
    before: list[tuple[str, DataDigests]] = []
    for name, rows in sets:
        digests = digests_of(rows)
        warnings += repeated(digests, name=name)
        for other, theirs in before:
            for shared in shared_with(digests, theirs.sketches):
                warnings.append(f"{shared.in_words(f'{other} too', name=name)}.")
        before.append((name, digests))
    return warnings


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
    if utterance.speaker:
        row["speaker"] = utterance.speaker
    return row
