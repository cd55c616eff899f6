"""What data sets hold: the rows that can be used, those that are dropped, and figures of both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from lorsmerge_cli.data.languages import text_language
from lorsmerge_cli.data.utterance import (
    LACKING,
    LONGER,
    SILENT,
    Drop,
    Utterance,
    reasons,
    with_unique_ids,
)
from lorsmerge_cli.metrics.scripts import other_script

BAD_AUDIO = LACKING | {SILENT, LONGER}


class Part(NamedTuple):
    """A row that is shorter than its recording and gives no start: the rest of it is not used.

    Attributes:
        row: the utterance.
        whole: seconds of its recording.
    """

    row: Utterance
    whole: float


@dataclass(frozen=True)
class GroupFigures:
    """Figures of one language and task of a data set: `hours` of audio, and named `speakers`."""

    language: str
    task: str
    utterances: int
    hours: float
    speakers: int


@dataclass(frozen=True)
class DataReport:
    """What data sets hold, and what was written.

    Attributes:
        utterances: rows that can be used, with durations, in the order of the manifests.
        drops: rows that cannot.
        output: the manifest that was written, if any.
        audio: the folder of recordings that were written beside it, if any.
        warnings: what of the data sets is repeated or shared.
        parts: of the utterances, those that are shorter than their file and give no start.
        silent: of the utterances, those with a text and no sound; empty unless audio was decoded.
        hub: references with a commit of the data sets that are on the Hub.
        notes: choices that were made in reading them.
        unseen: rows that were not looked at, because enough were taken before.
        selected: the conditions that rows had to meet, in words.
    """

    utterances: tuple[Utterance, ...]
    drops: tuple[Drop, ...]
    output: Path | None = None
    audio: Path | None = None
    warnings: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    silent: tuple[Utterance, ...] = ()
    hub: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    selected: tuple[str, ...] = ()
    unseen: int = 0

    @staticmethod
    def joined(reports: Sequence[DataReport]) -> DataReport:
        """Return several data sets as one, with unique ids."""
        return DataReport(
            tuple(with_unique_ids([row for report in reports for row in report.utterances])),
            tuple(drop for report in reports for drop in report.drops),
            parts=tuple(part for report in reports for part in report.parts),
            silent=tuple(row for report in reports for row in report.silent),
            hub=tuple(dict.fromkeys(name for report in reports for name in report.hub)),
            notes=tuple(dict.fromkeys(note for report in reports for note in report.notes)),
            unseen=sum(report.unseen for report in reports),
            selected=tuple(dict.fromkeys(text for report in reports for text in report.selected)),
        )

    @property
    def bad(self) -> list[Drop]:
        """Rows that were dropped for their audio."""
        return [drop for drop in self.drops if drop.reason in BAD_AUDIO]

    @property
    def groups(self) -> list[GroupFigures]:
        """Figures by language and task."""
        groups: dict[tuple[str, str], list[Utterance]] = {}
        for row in self.utterances:
            groups.setdefault((row.language, row.task), []).append(row)
        return [
            GroupFigures(
                *pair, len(rows), hours(rows), len({row.speaker for row in rows} - {None, ""})
            )
            for pair, rows in groups.items()
        ]

    @cached_property
    def other_scripts(self) -> list[tuple[Utterance, str]]:
        """Rows most of whose letters are of a script that is none of their language's, and which it is."""
        found = [(row, other_script(row.text, text_language(row.language, row.task)))
                 for row in self.utterances]  # fmt: skip
        return [(row, script) for row, script in found if script]

    @property
    def reasons(self) -> dict[str, int]:
        """Rows dropped, by reason."""
        return reasons(self.drops)

    @property
    def drop_notes(self) -> list[str]:
        """A line for each row that was dropped, with its reason."""
        return [f"dropped {drop.id}: {drop.reason} ({drop.shown})" for drop in self.drops]

    @property
    def hours(self) -> float:
        """Hours of all utterances."""
        return hours(self.utterances)


def hours(rows: Iterable[Utterance]) -> float:
    """Return the hours of all rows."""
    return sum(row.duration or 0.0 for row in rows) / 3600
