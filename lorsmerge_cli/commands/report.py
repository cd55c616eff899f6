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

_systems = options.panel("Systems")
SHOWN = (
    "scores",
    "controls",
    "gain_asr",
    "gain_st",
    "balance",
    "retention",
    "timestamps",
    "languages",
)  # tables printed on stdout


def report(
    results: Annotated[list[Path], typer.Argument(
        metavar="RESULTS", help="Results files of `eval -o`, of one or many models each.")],
    output: Annotated[Path, options.output(
        "--output", "-o", metavar="FOLDER", help="Folder to write: report.html, report.md, "
        "tables.tex, report.json, figures/.")],
    against: Annotated[str | None, _systems(
        "--against", metavar="NAME",
        help="System that paired tests compare with; task arithmetic by default.")] = None,
    base: Annotated[str | None, _systems(
        "--base", metavar="NAME",
        help="The pretrained model; `pretrained` or `base` by default.")] = None,
    finetuned: Annotated[str | None, _systems(
        "--finetuned", metavar="NAME", help="The fine-tunes, each scored on its own data; "
        "`finetuned` by default.")] = None,
    control: Annotated[list[str] | None, _systems(
        "--control", metavar="NAME=CONTROL", help="Control of a merge NAME: task arithmetic of the "
        "same step norm (may be repeated). By default `ta_as_NAME`, or a system that eval recorded "
        "as task arithmetic of the same deltas and step norm, such as `merge --control` writes.")] = None,
    held_out: Annotated[list[str] | None, _systems(
        "--held-out", metavar="DATASET",
        help="Test set that no delta was made for, for the table of forgetting (may be repeated). "
        "Languages and tasks that no delta was made for are detected.")] = None,
    retention: Annotated[list[str] | None, _systems(
        "--retention", metavar="A,B",
        help="Test sets that tell what was forgotten, in languages and tasks that a model was not made "
        "for (may be repeated); a suite's, or all such sets, by default.")] = None,
    runs: Annotated[bool, _systems(
        "--runs", help="Average over the part of a name behind its last colon, as in lors:ca+de; "
        "by default only over NAME:seedN.")] = False,
    tuned: Annotated[list[str] | None, _systems(
        "--tuned", metavar="NAME",
        help="System whose lambda was chosen for each run (may be repeated).")] = None,
    paper: Annotated[Path | None, options.output(
        "--paper", metavar="TOML", help="Published numbers to print beside the measured ones, as "
        "in examples/paper/paper.toml.")] = None,
    between: Annotated[tuple[str, str] | None, options.output(
        "--between", metavar="A B", help="Also write between.html: what got better and worse from "
        "model A to model B, utterance by utterance.")] = None,
    data: Annotated[list[str] | None, options.output(
        "--data", metavar="DATA", help="Test set as eval had it, for --between: its audio is linked to "
        "(may be repeated; NAME=PATH).")] = None,
    title: Annotated[str, options.output(
        "--title", metavar="TEXT", help="Title of the report.")] = "Merged models",
    force: options.Force = False,
) -> None:  # fmt: skip
    """Write tables and figures of results: HTML, Markdown, LaTeX, JSON, PNG and SVG.

    Systems are identified by the model names given to eval. One system may be several models:
    `finetuned` with a results file for each language, or runs to be averaged, which are named
    lors:seed0, lors:seed1 and so on. Marks show paired tests by speaker.

    Example: lorsmerge report results/base.json results/merged.json -o report/
    """
    from lorsmerge_cli import usage

    if data and not between:
        raise typer.BadParameter("--data is the audio of --between: give two models with that.")
    if between and any(name.startswith("--") for name in between):
        raise typer.BadParameter("--between takes two names of models: --between base merged.")
    controls = _controls(control or [])
    inputs = [*results, *([paper] if paper else [])]
    faults = usage.check_report(results, paper)
    if not (force and output.is_dir()):
        faults += usage.check_outputs([], [output], inputs=inputs, force=force)
    raise_all(faults)
    from lorsmerge_cli.operations.report import report as operation

    written = operation(
        results, output, title=title, base=base, finetuned=finetuned, against=against,
        controls=controls, held_out=held_out or [],
        retention=retention or [], paper=paper, force=force,
        runs=runs, tuned=tuned or [], between=between, data=data or (),
    )  # fmt: skip
    console.note(*written.notes)
    console.warning(*written.warnings)
    console.result(written.document, lambda: _show(written))


def _controls(texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    wrong = [
        text for text, (name, _, other) in zip(texts, pairs, strict=True) if not (name and other)
    ]
    if wrong:
        raise typer.BadParameter(
            f"--control {wrong[0]}: write NAME=CONTROL, such as lors=ta_at_0.18."
        )
    return {name: other for name, _, other in pairs}


def _show(written: Report) -> None:
    for table in written.tables:
        if table.name in SHOWN:
            _table(table)
    console.line(f"{written.output}: {', '.join(written.files)}")


def _table(table: Table) -> None:
    blocks = list(dict.fromkeys(block for _, block in table.heads if block))
    short = {block: " ".join([*block.split()[:1], *block.split(", ")[1:]]) for block in blocks}
    heads = [f"{head} {short[block]}" if len(blocks) > 1 and block else head
             for head, block in table.heads]  # fmt: skip
    rows = [
        [("  " if indented else "") + label, *(cell.text + cell.mark + (f" ({cell.beside})" if cell.beside else "")
                                               for cell in cells)]
        for label, indented, cells in table.rows
    ]  # fmt: skip
    title = f"{table.title}, {blocks[0]}" if len(blocks) == 1 else table.title
    console.table(["", *heads], rows, title=title)
    console.line(f"{table.note}\n")
