"""`lorsmerge data`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorsmerge_cli import console, options

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
    split: options.Split = None,
    language: options.Language = None,
    task: options.Task = None,
    hours: options.Hours = None,
    data_seed: options.DataSeed = 0,
    format: options.Format = None,
    max_seconds: Annotated[
        float,
        typer.Option("--max-seconds", metavar="S", help="Drop what is longer: the model's window."),
    ] = 30.0,
    verbose: options.Verbose = False,
    force: options.Force = False,
) -> None:  # fmt: skip
    """Show what is in speech data, and what of it can be used.

    Reads JSON lines (NeMo's keys), Common Voice folders, CoVoST 2 tables, Hugging Face audio
    folders with metadata, and Kaldi folders; which one it is, is found out.

    Example: lorsmerge data cv-corpus-21/ca --split train --hours 5 -o ca.train.jsonl
    """
    from lorsmerge_cli.data.dataset import drop_warnings
    from lorsmerge_cli.operations.data import data as operation

    report = operation(
        paths, split=split, language=language, task=task, format=format, hours=hours, seed=data_seed,
        max_seconds=max_seconds, output=output, force=force,
    )  # fmt: skip
    for text in drop_warnings(report):
        console.warning(text)
    if verbose:
        console.notes(report.drop_notes)
    console.result(_document(report), lambda: _show(report))


def _document(report: DataReport) -> dict[str, object]:
    return {
        "groups": [asdict(group) for group in report.groups],
        "utterances": len(report.utterances),
        "hours": report.hours,
        "dropped": report.reasons,
        "output": None if report.output is None else str(report.output),
    }


def _show(report: DataReport) -> None:
    rows = [
        [group.language, group.task, str(group.utterances), f"{group.hours:.2f}", str(group.speakers)]
        for group in report.groups
    ]  # fmt: skip
    if len(rows) > 1:
        rows.append(["all", "", str(len(report.utterances)), f"{report.hours:.2f}", ""])
    console.table(["language", "task", "utterances", "hours", "speakers"], rows)
    for reason, count in report.reasons.items():
        console.line(f"dropped, {reason}: {count}")
    if report.output is not None:
        console.line(f"{report.output}: {len(report.utterances)} rows")
