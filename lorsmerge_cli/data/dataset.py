"""Read data sets, drop the rows that cannot be used, and check what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorsmerge_cli.data.conditions import Condition
from lorsmerge_cli.data.hours import Given, Hours, parse_hours
from lorsmerge_cli.data.packing import cut as cut_row
from lorsmerge_cli.data.readers import NoSuchRows, manifest_origin, read_manifest
from lorsmerge_cli.data.report import DataReport
from lorsmerge_cli.data.selection import decode, select
from lorsmerge_cli.data.streaming import first_hours
from lorsmerge_cli.data.utterance import (
    LACKING,
    LONGER,
    MISSING,
    NOT_ASKED_FOR,
    SILENT,
    TOO_LONG,
    Drop,
    Utterance,
    listed,
    with_unique_ids,
)
from lorsmerge_cli.errors import LorsmergeError, named
from lorsmerge_cli.metrics.normalisation import normalisation_for, normalise

MANY_DROPPED = 0.05  # share of the rows from which on it is a warning
MOST = 0.5  # share of the rows above which parts of files, or rows without use, are a mistake


def load_data(
    paths: Sequence[Path],
    *,
    split: str | None = None,
    language: str | None = None,
    task: str | None = None,
    format: str | None = None,
    hours: Given = None,
    seed: int = 0,
    max_seconds: float = 30.0,
    empty_text: bool = False,
    allow_parts: bool = False,
    decoded: bool = False,
    checked: bool = False,
    labelled: bool = True,
    shared: bool = False,
    cut: bool = False,
    other_languages: bool = False,
    conditions: Sequence[Condition] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DataReport:
    """Read data sets and check their audio's headers.

    Args:
        paths: manifests, folders or references to the Hub, read one after the other.
        split: as in `read_manifest`.
        language: as in `read_manifest`.
        task: as in `read_manifest`.
        format: as in `read_manifest`.
        hours: about how much of each data set, or of a language in it, to take, reproducibly; all by
            default.
        seed: of that subset alone.
        max_seconds: the model's window; longer rows are dropped.
        empty_text: keep rows without text.
        allow_parts: accept data sets most rows of which are shorter than their files and give no
            start.
        decoded: decode the audio of the rows that are taken, and drop those with damaged audio.
        checked: as `decoded`, and also drop rows with silent audio and, unless `allow_parts`, parts
            of files; a data set without usable rows is no error then.
        labelled: as in `read_manifest`; False takes rows without a text, and no row's text.
        shared: whether data sets without a row of the language and task are skipped, unless all are;
            they are an error by default.
        cut: cut longer rows at the bounds of their segments, where they have some.
        other_languages: whether a language that has hours of its own may be in no row.
        conditions: that rows have to meet, as `parse_conditions` returns them.
        progress: told the rows just decoded and those in all.

    Raises:
        LorsmergeError: a manifest cannot be read, none of its rows can be used, or most of them are
            parts of their files.
    """
    sets, read, others, told = [], list[Path](), list[NoSuchRows](), list[str]()
    asked, languages = parse_hours(hours), dict[str, None]()
    for path in paths:
        try:
            rows, skipped = read_manifest(
                path, split=split, language=language, task=task, format=format, labelled=labelled,
                conditions=conditions, notes=told,
            )  # fmt: skip
        except NoSuchRows as fault:
            if not shared:
                raise
            others.append(fault)
            continue
        read.append(path)
        languages |= dict.fromkeys(row.language for row in rows)
        chosen = _further(asked, path)
        found = select(
            rows, max_seconds=max_seconds, hours=chosen, seed=seed,
            empty_text=empty_text or not labelled, cut=cut, conditions=conditions, place=str(path),
        )  # fmt: skip
        told += _left_out(rows, found, path) if chosen else []
        found = replace(found, drops=(*skipped, *found.drops))
        sets.append(_cut(found, max_seconds) if cut else found)
    if others and not sets:
        raise others[0]
    if asked and not other_languages:
        asked.check_languages(languages, ", ".join(map(str, read)))
    if decoded or checked:
        total = sum(len(found.utterances) for found in sets)
        sets = [_decoded(found, labelled, lambda: progress(1, total)) for found in sets]
    if checked:
        sets = [_without_odd_ones(found, allow_parts) for found in sets]
    else:
        for path, report in zip(read, sets, strict=True):
            _check_usable(report, path)
            if not allow_parts:
                _check_parts(report, path)
    joined = DataReport.joined([_with_segments(found) for found in sets] if allow_parts else sets)
    joined = replace(joined, notes=tuple(told), selected=_chosen_by(conditions, read))
    return _with_origins(joined, paths, split=split, task=task, labelled=labelled)


def _further(asked: Hours | None, path: Path) -> Hours | None:
    """Return the hours to choose of a data set's rows: None where no more than those were read."""
    return None if asked == Hours(first_hours(path)) else asked


def _left_out(rows: Sequence[Utterance], found: DataReport, path: Path) -> list[str]:
    """Return a note on languages of which the choice of some hours has no row at all."""
    looked_at = {row.id for row in found.utterances} | {drop.id for drop in found.drops}
    seen = {row.language for row in rows if row.id in looked_at}
    lost = [name for name in dict.fromkeys(row.language for row in rows) if name not in seen]
    if not lost:
        return []
    return [
        f"{path}: the rows that --hours takes have none of {named(lost)}. Give more, or hours for each "
        f"language: --hours {lost[0]}=0.1."
    ]


def _chosen_by(conditions: Sequence[Condition], paths: Sequence[Path]) -> tuple[str, ...]:
    """Return in words what rows had to meet, a place among a split's first hours included."""
    first = (hours for path in paths if (hours := first_hours(path)) is not None)
    places = (f"a place in the first {hours:g} hours of the split" for hours in first)
    return tuple(dict.fromkeys([*map(str, conditions), *places]))


def _with_origins(report: DataReport, paths: Sequence[Path], **reading: Any) -> DataReport:
    """Return the rows of data sets with where they come from, of those that are on the Hub."""
    found = [manifest_origin(path, **reading) for path in paths]
    origins = [origin for origin in found if origin]
    notes = [note for origin in origins for note in origin.notes]
    return replace(
        report,
        hub=tuple(origin.pinned for origin in origins),
        notes=tuple(dict.fromkeys([*notes, *report.notes])),
    )


def _cut(report: DataReport, longest: float) -> DataReport:
    """Cut the rows that are longer than the window."""
    rows, drops = list[Utterance](), list(report.drops)
    for row in report.utterances:
        if (row.duration or 0.0) <= longest:
            rows.append(row)
        else:
            windows, lost = cut_row(row, longest)
            rows += windows
            drops += lost
    return replace(report, utterances=tuple(with_unique_ids(rows)), drops=tuple(drops))


def _with_segments(report: DataReport) -> DataReport:
    """Return the parts of files as segments, like those with a start."""
    parts = {part.row for part in report.parts}
    rows = [replace(row, segment=True) if row in parts else row for row in report.utterances]
    return replace(report, utterances=tuple(rows))


def _decoded(report: DataReport, labelled: bool, progress: Callable[[], None]) -> DataReport:
    """Decode all audio, drop the rows with damaged audio, and record those with text and no sound.

    What is not labelled is dropped if it is silent: a Whisper hears words in silence.
    """
    kept, silent, drops = [], [], list(report.drops)
    for row, fault in decode(report.utterances, labelled):
        progress()
        if fault is None or (fault.reason == SILENT and labelled):
            kept.append(row)
            silent += [row] if fault else []
        else:
            drops.append(fault)
    rows = set(kept)
    parts = tuple(part for part in report.parts if part.row in rows)
    return replace(
        report, utterances=tuple(kept), drops=tuple(drops), parts=parts, silent=tuple(silent)
    )


def _without_odd_ones(report: DataReport, allow_parts: bool) -> DataReport:
    """Drop rows that can be used, but whose audio is silent or longer than the row."""
    odd = {row: Drop(row.id, row.audio, SILENT) for row in report.silent}
    parts = {part.row: part for part in report.parts}
    for row, part in {} if allow_parts else parts.items():
        told = f"{row.audio} has {part.whole:.2f} s, and the row {row.duration:.2f} s"
        odd.setdefault(row, Drop(row.id, row.audio, LONGER, told))
    return replace(
        report,
        utterances=tuple(row for row in report.utterances if row not in odd),
        drops=(*report.drops, *(odd[row] for row in report.utterances if row in odd)),
        parts=tuple(part for row, part in parts.items() if row not in odd),
        silent=(),
    )


def _check_usable(report: DataReport, path: Path) -> None:
    if report.utterances:
        return
    lost = report.drops
    first = next((drop for drop in lost if drop.reason not in NOT_ASKED_FOR), None)
    example = f", the first {first.shown}" if first else ""
    raise LorsmergeError(
        f"No row of {path} can be used: {listed(lost) or 'it has none'}{example}.",
        "Give shorter rows; finetune itself cuts those that have segments, and eval --long hears any."
        if {drop.reason for drop in lost} - NOT_ASKED_FOR == {TOO_LONG}
        else "Check the manifest's paths and texts.",
    )


def _check_parts(report: DataReport, path: Path) -> None:
    """Check that no more than half of the rows are shorter than their files without giving a start."""
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
    """Return the share of parts in words: `60 of 200 rows use a part of their file, 37% of the audio`."""
    used = sum(part.row.duration or 0.0 for part in report.parts)
    share = used / sum(part.whole for part in report.parts)
    return (
        f"{len(report.parts)} of {len(report.utterances)} rows use a part of their file, "
        f"{share:.{0 if share > 0.01 else 2}%} of the audio"
    )


def drop_warnings(
    report: DataReport, share: float = MANY_DROPPED, *, skipped: bool = True
) -> list[str]:
    """Return warnings of rows that were dropped (more than a share of them), short or silent.

    Choices that were made in reading a data set of the Hub come first. With `skipped`, rows of
    another language or task than was asked for are one too.
    """
    others = [drop for drop in report.drops if drop.reason in NOT_ASKED_FOR]
    dropped = [drop for drop in report.drops if drop.reason not in NOT_ASKED_FOR]
    count = len(dropped) + len(report.utterances)
    warnings = [*report.notes]
    if len(dropped) > share * count:
        warnings.append(
            f"{len(dropped)} of {count} rows are dropped ({listed(dropped)}); --verbose lists "
            "them, or `lorsmerge data`."
            + (f" {report.unseen:,} rows were not looked at." if report.unseen else "")
        )
    if others and skipped:
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
    """Check that a test set has no damaged audio, that of at least 95% of its rows, and use for half.

    Raises:
        LorsmergeError: it has not: a score would be one of the other rows.
    """
    lost = [drop for drop in report.drops if drop.reason in LACKING]
    damaged = any(drop.reason != MISSING for drop in lost)
    lacking = damaged or len(lost) > MANY_DROPPED * (len(lost) + len(report.utterances))
    if not lacking:  # then few rows, or those for other reasons, such as their texts
        lost = [drop for drop in report.drops if drop.reason not in NOT_ASKED_FOR]
    count = len(lost) + len(report.utterances)
    long = any(drop.reason == TOO_LONG for drop in lost)
    if lacking or len(lost) > MOST * count:
        raise LorsmergeError(
            f"{path}: {len(lost)} of {count} rows cannot be scored ({listed(lost)}), the first "
            f"{lost[0].shown}.",
            "Mend or complete the data, "
            + ("hear rows of any length with --long, " if long else "")
            + "or give --allow-missing for a score of the others.",
        )


def check_sound(report: DataReport) -> None:
    """Check that no row was dropped for its audio.

    Raises:
        LorsmergeError: some were; it gives their number by reason.
    """
    if report.bad:
        raise LorsmergeError(
            f"The audio of {len(report.bad)} rows is not as it should be ({listed(report.bad)}).",
            "Make or fetch it again, or use the other rows, which -o FILE writes.",
        )


def empty_groups(rows: Iterable[Utterance]) -> list[str]:
    """Return the languages whose references have no words, and so no error rate."""
    words: dict[str, bool] = {}
    for row in rows:
        if row.task == "asr":
            said = bool(normalise(row.text, normalisation_for(row.language)))
            words[row.language] = words.get(row.language, False) or said
    return [language for language, found in words.items() if not found]
