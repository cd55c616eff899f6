"""`lorsmerge data`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorsmerge_cli import console, options
from lorsmerge_cli.errors import raise_all

if TYPE_CHECKING:
    from lorsmerge_cli.data.report import DataReport


def data(
    paths: Annotated[list[Path], typer.Argument(
        metavar="DATA", help="Manifests, data folders, or hub:ORG/NAME:CONFIG:SPLIT on the Hub.")],
    output: Annotated[Path | None, options.output(
        "--output", "-o", metavar="JSONL", help="Write the usable rows as JSON lines.")] = None,
    plot: Annotated[Path | None, options.output(
        "--plot", metavar="PNG", help="Draw durations, hours by language, and rows in another script "
        "than their language's (needs matplotlib).")] = None,
    tokenizer: Annotated[Path | None, options.output(
        "--tokenizer", metavar="MODEL", help="With --plot, also draw the share of characters that this "
        "model's tokenizer spells out in bytes.")] = None,
    split: Annotated[list[str] | None, options.data(
        "--split", metavar="NAME", help="train, dev, test or another that the data has (may be "
        "repeated; what the splits share is reported).")] = None,
    language: options.Language = None,
    task: options.Task = None,
    only: options.Only = None,
    where: options.Where = None,
    hours: options.Hours = None,
    streaming: options.Streaming = False,
    data_seed: options.DataSeed = 0,
    format: options.Format = None,
    max_seconds: Annotated[float, typer.Option(
        "--max-seconds", metavar="S", min=0.001,
        help="Drop utterances longer than this; 30 is Whisper's window.")] = 30.0,
    check_audio: Annotated[bool, typer.Option(
        "--check-audio", help="Decode all audio; list and drop what is damaged, silent or not as "
        "long as its header or row says, with exit code 1 if there is any.")] = False,
    allow_parts: options.AllowParts = False,
    verbose: options.Verbose = False,
    force: options.Force = False,
) -> None:  # fmt: skip
    """Show what speech data contains, and how much of it is usable.

    Reads JSON lines, Common Voice, CoVoST 2, Kaldi, folders or Parquet files of the Hugging Face
    Hub, and data sets there by their names (docs/data.md); the format is detected. Reports
    duplicates within a data set, and utterances, sentences and speakers that several share.

    Example: lorsmerge data cv-corpus-21/ca --split train --hours 5 -o ca.train.jsonl
    """
    from lorsmerge_cli import usage
    from lorsmerge_cli.data.conditions import parse_conditions

    if tokenizer and not plot:
        raise typer.BadParameter("--tokenizer is for --plot: give that as well.")
    if plot and plot == output:
        raise typer.BadParameter("--plot and --output are one file: give two.")
    conditions = parse_conditions(only or (), where or ())
    paths = usage.streamed(paths, hours, streaming)
    raise_all(
        usage.check_inputs(
            [tokenizer] if tokenizer else [], paths, format=format, hours=hours, language=language, task=task,
            numbers={"--max-seconds": max_seconds},
        )
        + usage.check_outputs([output, plot], inputs=paths, force=force)
    )  # fmt: skip
    from lorsmerge_cli.data.dataset import check_sound, drop_warnings
    from lorsmerge_cli.operations.data import data as operation

    with console.progress("check", "utterances") as progress:
        report = operation(
            paths, split=split, language=language, task=task, format=format, hours=hours,
            conditions=conditions,
            seed=data_seed, max_seconds=max_seconds, output=output, force=force,
            allow_parts=allow_parts, checked=check_audio, plot=plot,
            tokenizer=tokenizer, progress=progress,
        )  # fmt: skip
    console.warning(*drop_warnings(report), *report.warnings)
    if verbose:
        console.note(
            *report.drop_notes,
            *(f"{row.id}: {row.language}, in {script}" for row, script in report.other_scripts),
        )
    console.result(_document(report, check_audio), lambda: _show(report, check_audio))
    if plot is not None and report.utterances:
        console.note(f"wrote {plot}")
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
        "not_looked_at": report.unseen,
        "other_scripts": len(report.other_scripts),
        "output": None if report.output is None else str(report.output),
        "audio": None if report.audio is None else str(report.audio),
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
    if report.other_scripts:
        row, script = report.other_scripts[0]
        console.line(
            f"texts in another script than their language's: {len(report.other_scripts)}, the first {row.id} "
            f"({row.language}, in {script})"
        )
    if report.unseen:
        console.line(f"not looked at, as --hours is reached before: {report.unseen}")
    for drop in report.bad if checked else ():
        console.line(f"{drop.id}: {drop.reason} ({drop.shown})")
    if report.output is not None:
        console.line(f"{report.output}: {len(report.utterances)} rows")
    if report.audio is not None:
        console.line(f"{report.audio}: the audio, extracted into files")
