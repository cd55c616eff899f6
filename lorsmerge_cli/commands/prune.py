"""`lorsmerge prune`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorsmerge_cli import console, options
from lorsmerge_cli.commands.delta import command_line

if TYPE_CHECKING:
    from lorsmerge_cli.operations.prune import Kept, PruneReport


def prune(
    source: Annotated[Path, typer.Argument(metavar="DELTA", help="A delta file.")],
    output: options.Output,
    svp: options.Svp = None,
    mp: options.Mp = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help="svp, mp or lors; the ratios say it too.",
            rich_help_panel=options.PRUNING,
        ),
    ] = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    dtype: options.Dtype = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    force: options.Force = False,
) -> None:
    """Prune a delta to a low-rank part plus a sparse part.

    L keeps the top singular triplets of each attention and MLP matrix, S the largest entries of
    what L leaves; other tensors are kept whole. The file is smaller for it. The table shows the
    share of the energy (squared norm) that is kept: pruning also shrinks.

    Example: lorsmerge prune ca_asr.delta -o ca_asr.lors.delta --svp 0.05 --mp 0.4
    """  # fmt: skip
    from lorsmerge_cli.operations.prune import prune as operation

    with console.progress("prune") as progress:
        report = operation(
            source,
            output,
            svp=svp,
            mp=mp,
            method=method,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            dtype=dtype,
            device=device,
            command=command_line(),
            force=force,
            threads=threads,
            progress=progress,
        )
    for text in report.warnings:
        console.warning(text)
    console.result(_document(report), lambda: _show(report))


def _document(report: PruneReport) -> dict[str, object]:
    def group(kept: Kept) -> dict[str, object]:
        return {**asdict(kept), "energy_kept": kept.share}

    return {
        "output": str(report.output),
        "method": report.method,
        "all": group(report.pruned + report.unpruned),
        "pruned": group(report.pruned),
        "unpruned": group(report.unpruned),
        "kinds": {name: group(kept) for name, kept in report.kinds.items()},
    }


def _show(report: PruneReport) -> None:
    def row(label: str, kept: Kept) -> list[str]:
        share = kept.nbytes / (4 * kept.entries) if kept.entries else 0.0
        return [
            label, str(kept.tensors), f"{kept.share:.1%}", console.size(kept.nbytes), f"{share:.1%}",
        ]  # fmt: skip

    rows = [row(name, kept) for name, kept in sorted(report.kinds.items())]
    rows += [
        row("all pruned", report.pruned),
        row("not pruned", report.unpruned),
        row("all", report.pruned + report.unpruned),
    ]
    console.table(["tensors", "count", "energy kept", "size", "of dense float32"], rows)
    console.line(f"{report.output}: method {report.method}")
