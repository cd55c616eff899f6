"""`lorsmerge prune`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorsmerge_cli import console, options
from lorsmerge_cli.errors import raise_all

if TYPE_CHECKING:
    from lorsmerge_cli.operations.prune import LoraReport, PruneReport, PruningStats


def prune(
    source: Annotated[Path, typer.Argument(metavar="DELTA", help="A delta: a file, or a Hub id.")],
    output: Annotated[Path | None, options.output(
        "--output", "-o", metavar="PATH",
        help="The pruned delta; optional with --as-lora.")] = None,
    svp: options.Svp = None,
    mp: options.Mp = None,
    method: Annotated[str | None, options.pruning(
        "--method", metavar="NAME",
        help="svp, mp or lors; by default the one that the ratios imply.")] = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    dtype: options.Dtype = None,
    as_lora: Annotated[Path | None, options.output(
        "--as-lora", metavar="FOLDER",
        help="Also write the low-rank part as a PEFT adapter.")] = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    force: options.Force = False,
) -> None:  # fmt: skip
    """Prune a delta to a low-rank part plus a sparse part.

    L keeps the top singular triplets of each attention and MLP matrix, S the largest elements of
    the residual; other tensors are kept unpruned. The table shows the share of the energy (squared
    norm) that is kept, as pruning shortens a delta, and the size of the smaller file.

    Example: lorsmerge prune ca_asr.delta -o ca_asr.lors.delta --svp 0.05 --mp 0.4
    """  # fmt: skip
    ratios = (svp, mp) != (None, None)
    if output is None and (as_lora is None or ratios):
        raise typer.BadParameter(
            "Give -o for the pruned delta. Without -o, --as-lora takes a DELTA that is already pruned, "
            "and no ratios."
        )
    if as_lora is not None and output is not None and svp is None:
        raise typer.BadParameter("--as-lora writes the low-rank part: give --svp as well.")
    from lorsmerge_cli import usage
    from lorsmerge_cli.recipe.recipe import pruning_method

    if output is not None:
        pruning_method(source, svp, mp, method)
    raise_all(
        usage.check_paths([source])
        + usage.check_stored_dtype(dtype)
        + usage.check_device(device)
        + usage.check_outputs([output], inputs=[source], force=force)
    )
    from lorsmerge_cli.operations.prune import check_adapter, open_low_rank, write_lora
    from lorsmerge_cli.operations.prune import prune as operation
    from lorsmerge_cli.recipe.published import recorded_command

    document: dict[str, object] = {}
    whole = None
    shows: list[Callable[[], None]] = []
    if as_lora is not None:
        check_adapter(as_lora, [source, *([output] if output else [])], force)
    if output is not None:
        with console.progress("prune") as progress:
            report = operation(
                source, output, svp=svp, mp=mp, method=method, include=include or (),
                exclude=exclude or (), dtype=dtype, device=device,
                command=recorded_command(sys.argv[1:]), force=force, threads=threads,
                progress=progress, as_lora=as_lora is not None,
            )  # fmt: skip
        console.warning(*report.warnings)
        document |= _document(report)
        whole = (report.pruned + report.unpruned).energy
        shows.append(lambda: _show(report))
    if as_lora is not None:
        file = open_low_rank(output or source)
        with console.progress("adapter") as progress:
            adapter = write_lora(file, as_lora, force=force, progress=progress, whole=whole)
        document["adapter"] = asdict(adapter)
        shows.append(lambda: _show_adapter(adapter))

    def show() -> None:
        for part in shows:
            part()

    console.result(document, show)


def _document(report: PruneReport) -> dict[str, object]:
    def group(kept: PruningStats) -> dict[str, object]:
        return {
            **asdict(kept),
            "energy_kept": kept.share,
            "rounding_error": kept.rounding_error,
        }

    return {
        "output": str(report.output),
        "method": report.method,
        "all": group(report.pruned + report.unpruned),
        "pruned": group(report.pruned),
        "unpruned": group(report.unpruned),
        "pruned_share_of_parameters": report.share,
        "kinds": {name: group(kept) for name, kept in report.kinds.items()},
    }


def _show(report: PruneReport) -> None:
    whole = report.pruned + report.unpruned

    def row(label: str, kept: PruningStats) -> list[str]:
        share = kept.nbytes / (4 * kept.entries) if kept.entries else 0.0
        rounding = [f"{kept.rounding_error:.2%}"] if whole.rounding else []
        return [
            label, str(kept.tensors), f"{kept.share:.1%}", *rounding, console.size(kept.nbytes),
            f"{share:.1%}",
        ]  # fmt: skip

    rows = [row(name, kept) for name, kept in sorted(report.kinds.items())]
    rows += [
        row("all pruned", report.pruned),
        row("not pruned", report.unpruned),
        row("all", whole),
    ]
    rounding = ["rounding error"] if whole.rounding else []
    console.table(["tensors", "count", "energy kept", *rounding, "size", "of dense float32"], rows)
    console.line(
        f"{report.output}: method {report.method}, {report.pruned.tensors} tensors pruned "
        f"({report.share:.0%} of the parameters)"
    )


def _show_adapter(report: LoraReport) -> None:
    console.line(
        f"{report.output}: a PEFT adapter of rank {report.rank} for {report.modules} modules, "
        f"{console.size(report.nbytes)}, with {report.low_rank:.1%} of the delta's energy"
    )
    omitted = []
    if report.sparse_entries:
        omitted.append(
            f"{report.sparse_entries:,} elements of the sparse part ({report.sparse:.1%} of the energy)"
        )
    if report.other_tensors:
        omitted.append(f"{report.other_tensors} other tensors ({report.others:.1%})")
    if omitted:
        console.line(f"omitted: {' and '.join(omitted)}")
