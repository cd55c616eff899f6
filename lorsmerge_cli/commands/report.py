"""`lorsmerge report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorsmerge_cli import console, options
from lorsmerge_cli.errors import raise_all

if TYPE_CHECKING:
    from lorsmerge_cli.operations.report import Report, Table

SYSTEMS = "Systems"
SHOWN = ("scores", "controls", "gain_asr", "gain_st", "retention")  # of the tables, on stdout


def report(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULTS", help="Results files of `eval -o`, of one or many models each."),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", rich_help_panel=options.OUTPUT,
                     help="Folder to write: report.html, report.md, tables.tex, report.json, figures/."),
    ],
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="NAME", rich_help_panel=SYSTEMS,
                     help="System that paired tests compare with; task arithmetic by default."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="NAME", rich_help_panel=SYSTEMS,
                     help="The pretrained model; `pretrained` or `base` by default."),
    ] = None,
    finetuned: Annotated[
        str | None,
        typer.Option("--finetuned", metavar="NAME", rich_help_panel=SYSTEMS,
                     help="The fine-tunes, each scored on its own data; `finetuned` by default."),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option("--control", metavar="NAME=CONTROL", rich_help_panel=SYSTEMS,
                     help="Task arithmetic with the step of the same norm as a pruned merge NAME's "
                     "(may be repeated); `ta_as_NAME` by default."),
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option("--held-out", metavar="DATASET", rich_help_panel=SYSTEMS,
                     help="Test set that no delta was made for, for the table of what was forgotten "
                     "(may be repeated). Languages and tasks of that sort are found out."),
    ] = None,
    runs: Annotated[
        bool,
        typer.Option("--runs", rich_help_panel=SYSTEMS,
                     help="Average over what follows the last colon of any name, as in lors:ca+de; "
                     "without, over NAME:seedN alone."),
    ] = False,
    tuned: Annotated[
        list[str] | None,
        typer.Option("--tuned", metavar="NAME", rich_help_panel=SYSTEMS,
                     help="System whose lambda was chosen for each run (may be repeated)."),
    ] = None,
    paper: Annotated[
        Path | None,
        typer.Option("--paper", metavar="TOML", rich_help_panel=options.OUTPUT,
                     help="Published numbers to print beside the measured ones: examples/paper/paper.toml."),
    ] = None,
    title: Annotated[
        str, typer.Option("--title", metavar="TEXT", rich_help_panel=options.OUTPUT,
                          help="Of the report."),
    ] = "Merged models",
    force: options.Force = False,
) -> None:  # fmt: skip
    """Tables and figures of results: HTML, Markdown, LaTeX, JSON, PNG and SVG.

    Systems are told apart by the names that eval gave them. One system may be several models:
    `finetuned` on each language in a file of its own, or runs to be averaged, which are named
    lors:seed0, lors:seed1 and so on. Marks are of paired tests by speaker.

    Example: lorsmerge report results/base.json results/merged.json -o report/
    """
    from lorsmerge_cli import usage

    controls = _controls(control or [])
    inputs = [*results, *([paper] if paper else [])]
    faults = usage.check_report(results, paper)
    if not (force and output.is_dir()):
        faults += usage.check_outputs([], [output], inputs=inputs, force=force)
    raise_all(faults)
    from lorsmerge_cli.operations.report import report as operation

    found = operation(
        results, output, title=title, base=base, finetuned=finetuned, against=against,
        controls=controls, held_out=held_out or [], paper=paper, force=force,
        runs=runs, tuned=tuned or [],
    )  # fmt: skip
    for note in found.notes:
        console.note(note)
    for warning in found.warnings:
        console.warning(warning)
    console.result(found.document, lambda: _show(found))


def _controls(texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    wrong = [
        text for text, (name, _, other) in zip(texts, pairs, strict=True) if not (name and other)
    ]
    if wrong:
        raise typer.BadParameter(f"--control {wrong[0]}: write NAME=CONTROL, lors=ta_at_0.18 say.")
    return {name: other for name, _, other in pairs}


def _show(found: Report) -> None:
    for table in found.tables:
        if table.name in SHOWN:
            _table(table)
    console.line(f"{found.output}: {', '.join(found.files)}")


def _table(table: Table) -> None:
    blocks = list(dict.fromkeys(block for _, block in table.heads if block))
    heads = [f"{head} {block.split()[0]}" if len(blocks) > 1 and block else head
             for head, block in table.heads]  # fmt: skip
    rows = [
        [("  " if indented else "") + label, *(cell.text + cell.mark + (f" ({cell.beside})" if cell.beside else "")
                                               for cell in cells)]
        for label, indented, cells in table.rows
    ]  # fmt: skip
    title = f"{table.title}, {blocks[0]}" if len(blocks) == 1 else table.title
    console.table(["", *heads], rows, title=title)
    console.line(f"{table.note}\n")
