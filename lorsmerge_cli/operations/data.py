"""Look at data sets, and write them as one JSON-lines manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from lorsmerge_cli.data.dataset import DataReport, load_data
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import raise_all
from lorsmerge_cli.outputs import atomic_file, check_output


def data(
    paths: Sequence[Path],
    *,
    split: str | None,
    language: str | None,
    task: str | None,
    format: str | None,
    hours: float | None,
    seed: int,
    max_seconds: float,
    output: Path | None,
    force: bool,
) -> DataReport:
    """Figures of data sets and, with `output`, their JSON-lines form (NeMo's keys).

    Raises:
        LorsmergeError: see the subclasses; nothing is written then.
    """
    if output is not None:
        raise_all(check_output(output, inputs=paths, size=0, force=force))
    report = load_data(
        paths, split=split, language=language, task=task, format=format, hours=hours, seed=seed,
        max_seconds=max_seconds,
    )  # fmt: skip
    if output is None:
        return report
    lines = [json.dumps(_row(row, output.parent), ensure_ascii=False) for row in report.utterances]
    with atomic_file(output, force=force) as partial:
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return DataReport(report.utterances, report.drops, output)


def _row(utterance: Utterance, folder: Path) -> dict[str, object]:
    audio, root = utterance.audio.resolve(), folder.resolve()
    inside = audio.is_relative_to(root)
    row: dict[str, object] = {
        "id": utterance.id,
        "audio_filepath": os.fspath(audio.relative_to(root) if inside else audio),
        "duration": utterance.duration,
        "text": utterance.text,
        "source_lang": utterance.language,
        "target_lang": "en" if utterance.task == "st" else utterance.language,
        "taskname": utterance.task,
    }
    if utterance.start:
        row["offset"] = utterance.start
    if utterance.speaker:
        row["speaker"] = utterance.speaker
    return row
