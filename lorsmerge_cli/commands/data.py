"""`lorsmerge data`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorsmerge_cli import console, options
from lorsmerge_cli.errors import raise_all

if TYPE_CHECKING:
    from lorsmerge_cli.data.dataset import DataReport


def data(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="DATA", help="Manifests or data folders."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="JSONL", rich_help_panel=options.OUTPUT,
                     help="Write the rows that can be used as JSON lines."),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option("--split", metavar="NAME", rich_help_panel=options.DATA,
                     help="train, dev, test or another that the data has (may be repeated, and what "
                     "they share is told)."),
    ] = None,
    language: options.Language = None,
    task: options.Task = None,
    hours: options.Hours = None,
    data_seed: options.DataSeed = 0,
    format: options.Format = None,
    max_seconds: Annotated[
        float,
        typer.Option("--max-seconds", metavar="S", min=0.001, help="Drop what is longer: the model's window."),
    ] = 30.0,
    check_audio: Annotated[
        bool,
        typer.Option("--check-audio",
                     help="Decode everything, and list and drop what is damaged, silent or of another "
                     "length than its header or row says; exit code 1 where there is some."),
    ] = False,
    allow_parts: options.AllowParts = False,
    verbose: options.Verbose = False,
    force: options.Force = False,
) -> None:  # fmt: skip
    """Show what is in speech data, and what of it can be used.

    Reads JSON lines (NeMo's keys), Common Voice folders, CoVoST 2 tables, Hugging Face audio
    folders with metadata, and Kaldi folders; which one it is, is found out. Tells what is in a data
    set twice, and what several share: utterances, sentences and speakers.

    Example: lorsmerge data cv-corpus-21/ca --split train --hours 5 -o ca.train.jsonl
    """
    from lorsmerge_cli import usage

    raise_all(
        usage.check_inputs(
            [], paths, format=format, language=language, task=task,
            numbers={"--hours": hours, "--max-seconds": max_seconds},
        )
        + usage.check_outputs([output], inputs=paths, force=force)
    )  # fmt: skip
    from lorsmerge_cli.data.dataset import check_sound, drop_warnings
    from lorsmerge_cli.operations.data import data as operation

    with console.progress("check", "utterances") as progress:
        report = operation(
            paths, split=split, language=language, task=task, format=format, hours=hours,
            seed=data_seed, max_seconds=max_seconds, output=output, force=force,
            allow_parts=allow_parts, checked=check_audio, progress=progress,
        )  # fmt: skip
    for text in [*drop_warnings(report), *report.warnings]:
        console.warning(text)
    if verbose:
        console.notes(report.drop_notes)
    console.result(_document(report, check_audio), lambda: _show(report, check_audio))
    if check_audio:
        check_sound(report)


def _document(report: DataReport, checked: bool) -> dict[str, object]:
    bad = [
        {"id": drop.id, "audio": str(drop.audio), "reason": drop.reason, "detail": drop.detail}
        for drop in report.bad
    ]
    return {
        "groups": [asdict(group) for group in report.groups],
        "utterances": len(report.utterances),
        "hours": report.hours,
        "dropped": report.reasons,
        "output": None if report.output is None else str(report.output),
    } | ({"bad": bad} if checked else {})


def _show(report: DataReport, checked: bool) -> None:
    rows = [
        [group.language, group.task, str(group.utterances), f"{group.hours:.2f}", str(group.speakers)]
        for group in report.groups
    ]  # fmt: skip
    if len(rows) > 1:
        rows.append(["all", "", str(len(report.utterances)), f"{report.hours:.2f}", ""])
    console.table(["language", "task", "utterances", "hours", "speakers"], rows)
    for reason, count in report.reasons.items():
        console.line(f"dropped, {reason}: {count}")
    for drop in report.bad if checked else ():
        console.line(f"{drop.id}: {drop.reason} ({drop.detail or drop.audio})")
    if report.output is not None:
        console.line(f"{report.output}: {len(report.utterances)} rows")
