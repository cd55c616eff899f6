"""Look at data sets, and write them as one JSON-lines manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from lorsmerge_cli.data.dataset import DataReport, has_splits, load_data
from lorsmerge_cli.data.digests import DataDigests, digests_of
from lorsmerge_cli.data.languages import text_language
from lorsmerge_cli.data.leakage import repeated, shared_with
from lorsmerge_cli.data.utterance import Utterance, with_unique_ids
from lorsmerge_cli.errors import raise_all
from lorsmerge_cli.outputs import atomic_file, check_output


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

    Nothing is written where no row can be used.

    Args:
        output, force: what to write, and whether it may replace a file.
        split: those that are read of each data set that has several.
        paths, language, task, format, hours, seed, max_seconds, allow_parts, checked, progress: as
            in `load_data`.

    Raises:
        LorsmergeError: see the subclasses; nothing is written then.
    """
    if output is not None:
        raise_all(check_output(output, inputs=paths, size=0, force=force))
    sets: list[tuple[str, DataReport]] = []
    for path in paths:
        wanted: list[str | None] = [*split] if split else [None]
        several = len(wanted) > 1 and has_splits(path, format)
        for name in wanted if several else wanted[:1]:
            found = load_data(
                [path], split=name, language=language, task=task, format=format, hours=hours,
                seed=seed, max_seconds=max_seconds, allow_parts=allow_parts, checked=checked,
                progress=progress,
            )  # fmt: skip
            sets.append((f"{path} ({name})" if several else str(path), found))
    report = DataReport(
        tuple(with_unique_ids([row for _, found in sets for row in found.utterances])),
        tuple(drop for _, found in sets for drop in found.drops),
        parts=tuple(part for _, found in sets for part in found.parts),
        silent=tuple(row for _, found in sets for row in found.silent),
        warnings=tuple(_shared_warnings([(name, found.utterances) for name, found in sets])),
    )
    if output is None or not report.utterances:
        return report
    lines = [json.dumps(_row(row, output.parent), ensure_ascii=False) for row in report.utterances]
    with atomic_file(output, force=force) as partial:
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return replace(report, output=output)


def _shared_warnings(sets: Iterable[tuple[str, Sequence[Utterance]]]) -> list[str]:
    """Warnings of what each set repeats, and of what it shares with those before it."""
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


def _row(utterance: Utterance, folder: Path) -> dict[str, object]:
    audio, root = utterance.audio.resolve(), folder.resolve()
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
