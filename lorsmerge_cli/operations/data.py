"""Look at data sets, and write them as one JSON-lines manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorsmerge_cli.errors import LorsmergeError, raise_all
from lorsmerge_cli.metrics.normalisation import normalisation_for, normalise
from lorsmerge_cli.outputs import atomic_file, check_output
from lorsmerge_cli.speech.manifests import manifest_splits, read_manifest
from lorsmerge_cli.speech.selection import select
from lorsmerge_cli.speech.utterance import (
    LACKING,
    NOT_ASKED_FOR,
    Drop,
    Utterance,
    listed,
    reasons,
    with_unique_ids,
)

MANY_DROPPED = 0.05  # share of the rows from which on it is a warning


@dataclass(frozen=True)
class GroupFigures:
    """One language and task of a data set; `hours` of audio, `speakers` that are named."""

    language: str
    task: str
    utterances: int
    hours: float
    speakers: int


@dataclass(frozen=True)
class DataReport:
    """What data sets hold, and what was written.

    Attributes:
        utterances: that can be used, in the order of the manifests.
        drops: rows that cannot.
        output: the manifest that was written, if any.
    """

    utterances: tuple[Utterance, ...]
    drops: tuple[Drop, ...]
    output: Path | None = None

    @property
    def groups(self) -> list[GroupFigures]:
        """Figures by language and task."""
        pairs = dict.fromkeys((row.language, row.task) for row in self.utterances)
        return [self._figures(*pair) for pair in pairs]

    @property
    def reasons(self) -> dict[str, int]:
        """Rows dropped, by reason."""
        return reasons(self.drops)

    @property
    def hours(self) -> float:
        """Of all utterances."""
        return sum(row.duration or 0.0 for row in self.utterances) / 3600

    def _figures(self, language: str, task: str) -> GroupFigures:
        rows = [row for row in self.utterances if (row.language, row.task) == (language, task)]
        hours = sum(row.duration or 0.0 for row in rows) / 3600
        speakers = len({row.speaker for row in rows if row.speaker})
        return GroupFigures(language, task, len(rows), hours, speakers)


def load_data(
    paths: Sequence[Path],
    *,
    split: str | None = None,
    language: str | None = None,
    task: str | None = None,
    format: str | None = None,
    hours: float | None = None,
    seed: int = 0,
    max_seconds: float = 30.0,
    empty_text: bool = False,
) -> DataReport:
    """Read data sets and check their audio's headers.

    Args:
        paths: manifests or folders, read one after the other.
        split, language, task, format: as in `read_manifest`, for all of them.
        hours: about how much of each to take, reproducibly.
        seed: of that subset, and of nothing else.
        max_seconds: the model's window.
        empty_text: whether rows without text are kept.

    Raises:
        LorsmergeError: a manifest is no such thing, or no row of it can be used.
    """
    utterances: list[Utterance] = []
    drops: list[Drop] = []
    for path in paths:
        rows, skipped = read_manifest(
            path, split=split, language=language, task=task, format=format
        )
        found = select(rows, max_seconds=max_seconds, hours=hours, seed=seed, empty_text=empty_text)
        lost = [*skipped, *found.drops]
        if not found.utterances:
            first = next((drop for drop in lost if drop.reason not in NOT_ASKED_FOR), None)
            example = f", the first {first.detail or first.audio}" if first else ""
            raise LorsmergeError(
                f"No row of {path} can be used: {listed(lost) or 'it has none'}{example}.",
                "Check the manifest's paths and texts.",
            )
        utterances += found.utterances
        drops += lost
    return DataReport(tuple(with_unique_ids(utterances)), tuple(drops))


def has_splits(path: Path, format: str | None) -> bool:
    """Whether a data set has several, rather than being one file of one split."""
    return bool(manifest_splits(path, format))


def drop_warnings(report: DataReport, share: float = MANY_DROPPED) -> list[str]:
    """Warn where more than a share of the rows asked for was dropped, and tell what was not asked for."""
    others = [drop for drop in report.drops if drop.reason in NOT_ASKED_FOR]
    dropped = [drop for drop in report.drops if drop.reason not in NOT_ASKED_FOR]
    count = len(dropped) + len(report.utterances)
    warnings = []
    if len(dropped) > share * count:
        warnings.append(
            f"{len(dropped)} of {count} rows are dropped ({listed(dropped)}); --verbose lists "
            "them, or `lorsmerge data`."
        )
    if others:
        warnings.append(
            f"{len(others)} of {len(others) + count} rows are skipped ({listed(others)}), and the "
            "others are used."
        )
    return warnings


def check_complete(report: DataReport, path: Path) -> None:
    """Refuse a test set that lacks the audio of more than 5% of its rows.

    Raises:
        LorsmergeError: a score would be one of the rest.
    """
    lost = [drop for drop in report.drops if drop.reason in LACKING]
    count = len(lost) + len(report.utterances)
    if len(lost) > MANY_DROPPED * count:
        raise LorsmergeError(
            f"{path}: {len(lost)} of {count} rows cannot be scored ({listed(lost)}), the first "
            f"{lost[0].detail or lost[0].audio}.",
            "Complete the data, or give --allow-missing for a score of the others.",
        )


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


def empty_groups(rows: Iterable[Utterance]) -> list[str]:
    """Languages whose references have no word between them, and so no error rate."""
    words: dict[str, bool] = {}
    for row in rows:
        if row.task == "asr":
            said = bool(normalise(row.text, normalisation_for(row.language)))
            words[row.language] = words.get(row.language, False) or said
    return [language for language, found in words.items() if not found]
