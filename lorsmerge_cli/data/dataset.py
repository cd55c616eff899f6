"""Read data sets: their utterances, what of them cannot be used, and figures by language and task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorsmerge_cli.data.readers import manifest_splits, read_manifest
from lorsmerge_cli.data.selection import Part, decode, select
from lorsmerge_cli.data.utterance import (
    LACKING,
    LONGER,
    MISSING,
    NOT_ASKED_FOR,
    SILENT,
    Drop,
    Utterance,
    listed,
    reasons,
    with_unique_ids,
)
from lorsmerge_cli.errors import LorsmergeError
from lorsmerge_cli.metrics.normalisation import normalisation_for, normalise

MANY_DROPPED = 0.05  # share of the rows from which on it is a warning
MOST = 0.5  # share of the rows above which parts of files are more likely a mistake
BAD_AUDIO = LACKING | {SILENT, LONGER}


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
        warnings: what of the data sets is repeated or shared.
        parts: of the utterances, those that are shorter than their file and give no start.
        silent: of the utterances, those that have a text and no sound, as far as they were decoded.
    """

    utterances: tuple[Utterance, ...]
    drops: tuple[Drop, ...]
    output: Path | None = None
    warnings: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    silent: tuple[Utterance, ...] = ()

    @property
    def bad(self) -> list[Drop]:
        """Rows that were dropped for their audio."""
        return [drop for drop in self.drops if drop.reason in BAD_AUDIO]

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
    allow_parts: bool = False,
    decoded: bool = False,
    checked: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DataReport:
    """Read data sets and check their audio's headers.

    Args:
        paths: manifests or folders, read one after the other.
        split, language, task, format: as in `read_manifest`, for all of them.
        hours: about how much of each to take, reproducibly.
        seed: of that subset, and of nothing else.
        max_seconds: the model's window.
        empty_text: whether rows without text are kept.
        allow_parts: whether most rows may be shorter than their files without giving a start.
        decoded: whether to decode the audio of the rows that were taken, and drop what is damaged.
        checked: whether to do so and to drop what is silent or, unless that is allowed, a part of
            its file as well; then a data set of which nothing is left is no error.
        progress: told the rows just decoded and those in all.

    Raises:
        LorsmergeError: a manifest is no such thing, no row of it can be used, or most of its rows
            are parts of their files.
    """
    sets = []
    for path in paths:
        rows, skipped = read_manifest(
            path, split=split, language=language, task=task, format=format
        )
        found = select(rows, max_seconds=max_seconds, hours=hours, seed=seed, empty_text=empty_text)
        sets.append(DataReport(found.utterances, (*skipped, *found.drops), parts=found.parts))
    if decoded or checked:
        total = sum(len(found.utterances) for found in sets)
        sets = [_decoded(found, lambda: progress(1, total)) for found in sets]
    if checked:
        sets = [_without_odd_ones(found, allow_parts) for found in sets]
    else:
        for path, report in zip(paths, sets, strict=True):
            _check_usable(report, path)
            if not allow_parts:
                _check_parts(report, path)
    rows = [row for report in sets for row in report.utterances]
    parts = tuple(part for report in sets for part in report.parts)
    if allow_parts:  # then they are segments, as those with a start
        meant = {part.row for part in parts}
        rows = [replace(row, segment=True) if row in meant else row for row in rows]
    return DataReport(
        tuple(with_unique_ids(rows)),
        tuple(drop for report in sets for drop in report.drops),
        parts=parts,
        silent=tuple(row for report in sets for row in report.silent),
    )


def _decoded(report: DataReport, progress: Callable[[], None]) -> DataReport:
    """Return the rows whose audio decodes; those with a text and no sound are noted."""
    kept, silent, drops = [], [], list(report.drops)
    for row, fault in decode(report.utterances):
        progress()
        if fault is None or fault.reason == SILENT:
            kept.append(row)
            silent += [row] if fault else []
        else:
            drops.append(fault)
    rows = set(kept)
    parts = tuple(part for part in report.parts if part.row in rows)
    return DataReport(tuple(kept), tuple(drops), parts=parts, silent=tuple(silent))


def _without_odd_ones(report: DataReport, allow_parts: bool) -> DataReport:
    """Drop what can be used, and may not be what the manifest means."""
    odd = {row: Drop(row.id, row.audio, SILENT) for row in report.silent}
    parts = {part.row: part for part in report.parts}
    for row, part in {} if allow_parts else parts.items():
        told = f"{row.audio} has {part.whole:.2f} s, and the row {row.duration:.2f} s"
        odd.setdefault(row, Drop(row.id, row.audio, LONGER, told))
    return DataReport(
        tuple(row for row in report.utterances if row not in odd),
        (*report.drops, *(odd[row] for row in report.utterances if row in odd)),
        parts=tuple(part for row, part in parts.items() if row not in odd),
    )


def _check_usable(report: DataReport, path: Path) -> None:
    if report.utterances:
        return
    lost = report.drops
    first = next((drop for drop in lost if drop.reason not in NOT_ASKED_FOR), None)
    example = f", the first {first.detail or first.audio}" if first else ""
    raise LorsmergeError(
        f"No row of {path} can be used: {listed(lost) or 'it has none'}{example}.",
        "Check the manifest's paths and texts.",
    )


def _check_parts(report: DataReport, path: Path) -> None:
    """Refuse a data set most rows of which are shorter than their files and give no start."""
    if len(report.parts) <= MOST * len(report.utterances):
        return
    first = report.parts[0]
    raise LorsmergeError(
        f"{path}: {_parts(report)}, the first {first.row.duration:.2f} of the {first.whole:.2f} s of "
        f"{first.row.audio}. Their durations may be in another unit or column.",
        "Give seconds, or leave the durations out. If the parts are meant, give an offset as well, be it "
        "0, which `lorsmerge data --allow-parts -o FILE` does; finetune and eval take --allow-parts too.",
    )


def _parts(report: DataReport) -> str:
    """`60 of 200 rows use a part of their file, 37% of the audio`."""
    used = sum(part.row.duration or 0.0 for part in report.parts)
    share = used / sum(part.whole for part in report.parts)
    return (
        f"{len(report.parts)} of {len(report.utterances)} rows use a part of their file, "
        f"{share:.{0 if share > 0.01 else 2}%} of the audio"
    )


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
    if report.parts:
        warnings.append(f"{_parts(report)}: they give a shorter duration and no offset.")
    if report.silent:
        first = report.silent[0]
        warnings.append(
            f"{len(report.silent)} of {len(report.utterances)} rows have a text and no sound, the "
            f"first {first.audio}."
        )
    return warnings


def check_complete(report: DataReport, path: Path) -> None:
    """Refuse a test set that has damaged audio, or lacks that of more than 5% of its rows.

    Raises:
        LorsmergeError: a score would be one of the rest.
    """
    lost = [drop for drop in report.drops if drop.reason in LACKING]
    damaged = any(drop.reason != MISSING for drop in lost)
    count = len(lost) + len(report.utterances)
    if damaged or len(lost) > MANY_DROPPED * count:
        raise LorsmergeError(
            f"{path}: {len(lost)} of {count} rows cannot be scored ({listed(lost)}), the first "
            f"{lost[0].detail or lost[0].audio}.",
            "Mend or complete the data, or give --allow-missing for a score of the others.",
        )


def check_sound(report: DataReport) -> None:
    """Refuse data of which some was dropped for its audio.

    Raises:
        LorsmergeError: it was; how many rows for what reason.
    """
    if report.bad:
        raise LorsmergeError(
            f"The audio of {len(report.bad)} rows is not as it should be ({listed(report.bad)}).",
            "Make or fetch it again, or use the other rows, which -o FILE writes.",
        )


def empty_groups(rows: Iterable[Utterance]) -> list[str]:
    """Languages whose references have no word between them, and so no error rate."""
    words: dict[str, bool] = {}
    for row in rows:
        if row.task == "asr":
            said = bool(normalise(row.text, normalisation_for(row.language)))
            words[row.language] = words.get(row.language, False) or said
    return [language for language, found in words.items() if not found]
