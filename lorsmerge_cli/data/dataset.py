"""Read data sets: their utterances, what of them cannot be used, and figures by language and task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorsmerge_cli.data.readers import manifest_splits, read_manifest
from lorsmerge_cli.data.selection import select
from lorsmerge_cli.data.utterance import (
    LACKING,
    NOT_ASKED_FOR,
    Drop,
    Utterance,
    listed,
    reasons,
    with_unique_ids,
)
from lorsmerge_cli.errors import LorsmergeError
from lorsmerge_cli.metrics.normalisation import normalisation_for, normalise

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
    def drop_notes(self) -> list[str]:
        """What was dropped and why, a line for each row."""
        return [
            f"dropped {drop.id}: {drop.reason} ({drop.detail or drop.audio})" for drop in self.drops
        ]

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


def empty_groups(rows: Iterable[Utterance]) -> list[str]:
    """Languages whose references have no word between them, and so no error rate."""
    words: dict[str, bool] = {}
    for row in rows:
        if row.task == "asr":
            said = bool(normalise(row.text, normalisation_for(row.language)))
            words[row.language] = words.get(row.language, False) or said
    return [language for language, found in words.items() if not found]
