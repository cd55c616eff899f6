"""`lorsmerge inspect`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorsmerge_cli import console, options
from lorsmerge_cli.errors import raise_all
from lorsmerge_cli.quoting import command

if TYPE_CHECKING:
    from lorsmerge_cli.operations.inspect import (
        CheckpointReport,
        DeltaFileReport,
        InspectReport,
        KindFigures,
        TallReport,
    )


def inspect_files(
    files: Annotated[list[Path], typer.Argument(
        metavar="FILE", help="Checkpoints, deltas and files of TALL masks: files, folders or Hub "
        "ids.")],
    plot: Annotated[Path | None, options.output(
        "--plot", metavar="PNG",
        help="Draw the deltas' spectra and magnitudes (needs matplotlib).")] = None,
    no_spectra: Annotated[bool, typer.Option(
        "--no-spectra",
        help="Skip the spectra, which need a decomposition of every matrix.")] = False,
    force: options.Force = False,
    threads: options.Threads = None,
) -> None:  # fmt: skip
    """Show sizes, norms and spectra of checkpoints and deltas, and what follows for a merge.

    For several deltas, also the cosine and the share of sign conflicts of each pair, and in a line
    each: whether an election of signs can work, whether one delta dominates, how long a step Model
    Stock takes, and how much of the deltas SVP and TSV-Merging keep. For a file of TALL masks, its
    tasks, and what each mask keeps.

    Example: lorsmerge inspect ca_asr.delta de_st.delta --plot deltas.png
    """
    from lorsmerge_cli.pictures import check_picture
    from lorsmerge_cli.usage import check_together

    drawn = [] if plot is None else check_picture(plot, files, force=force)
    raise_all(check_together(files) + drawn)
    from lorsmerge_cli.operations.inspect import inspect as operation

    with console.progress("inspect") as progress:
        report = operation(
            files, spectra=not no_spectra, plot=plot, force=force, threads=threads,
            progress=progress,
        )  # fmt: skip
    for item in report.files:
        console.warning(*getattr(item, "notes", ()))
    console.warning(*report.warnings)
    if plot is not None:
        console.note(f"wrote {plot}")
    console.result(_document(report), lambda: _show(report))


def _show(report: InspectReport) -> None:
    from lorsmerge_cli.operations.inspect import CheckpointReport, TallReport

    for item in report.files:
        if isinstance(item, CheckpointReport):
            _show_checkpoint(item)
        elif isinstance(item, TallReport):
            _show_tall(item)
        else:
            _show_delta(item)
    if report.pairs:
        rows = [
            [f"{pair.first} / {pair.second}", f"{pair.cosine:+.4f}", f"{pair.sign_conflict:.1%}"]
            for pair in report.pairs
        ]
        console.table(["pair", "cosine", "sign conflicts"], rows)
    for line in report.advice:
        console.line(f"- {line}")


def _show_checkpoint(report: CheckpointReport) -> None:
    console.line(
        f"{report.path}: checkpoint, {report.tensors} tensors, {report.parameters:,} parameters, "
        f"{console.size(report.nbytes)}"
    )
    modules: dict[str, list[int]] = {}
    for group in report.groups:
        total = modules.setdefault(group.module, [0, 0])
        total[0] += group.count
        total[1] += group.nbytes
    rows = [[name, str(count), console.size(size)] for name, (count, size) in modules.items()]
    console.table(["part", "tensors", "size"], rows)
    console.table(
        ["tensor", "count", "shape", "dtype", "size"],
        [
            [g.name, str(g.count), " x ".join(map(str, g.shape)) or "scalar", g.dtype,
             console.size(g.nbytes)]
            for g in report.groups
        ],
    )  # fmt: skip
    for copy, original in report.tied.items():
        console.line(f"{copy} is tied to {original}")
    console.line(f"fingerprint {report.fingerprint.digest[:16]}")


def _show_delta(report: DeltaFileReport) -> None:
    source = report.provenance
    about = " ".join(part for part in (source.language, source.task) if part) or "task not recorded"
    stored = ", ".join(f"{count} {name}" for name, count in report.encodings.items())
    console.line(
        f"{report.path}: delta ({about}) of {source.base_name!r} "
        f"[{source.base.dtype}, {source.base.digest[:16]}]; fine-tune stored in "
        f"{source.finetuned_dtype}"
    )
    console.line(
        f"encoding: {stored}, in {', '.join(report.dtypes)}, {console.size(report.total.nbytes)}"
    )
    if source.pruning:
        settings = ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{value}"
                             for key, value in source.pruning.items())  # fmt: skip
        console.line(f"pruned: {settings}")
    for entry in source.history:
        console.line(f"made by: {entry}")
    from lorsmerge_cli.operations.inspect import MOST, TOP_RATIOS

    def row(name: str, figures: KindFigures) -> list[str]:
        shares = [figures.top_share(ratio) for ratio in TOP_RATIOS]
        return [
            name, str(figures.tensors), f"{figures.energy**0.5:.4g}",
            f"{figures.nonzero / max(figures.entries, 1):.1%}",
            *("" if share is None else f"{share:.1%}" for share in (*shares, figures.rank)),
        ]  # fmt: skip

    rows = [row(name, figures) for name, figures in sorted(report.kinds.items())]
    rows.append(row("all", report.total))
    heads = [f"top {ratio:.0%}" for ratio in TOP_RATIOS]
    console.table(["kind", "tensors", "norm", "density", *heads, f"rank for {MOST:.0%}"], rows)
    for name in report.total.non_finite:
        console.line(f"NaN or infinity in {name}")


def _show_tall(report: TallReport) -> None:
    origin, source = report.origin, report.origin.provenance
    console.line(
        f"{report.path}: TALL masks of {len(origin.tasks)} tasks at threshold {origin.threshold:g}, "
        f"of {source.base_name!r} [{source.base.dtype}, {source.base.digest[:16]}]"
    )
    console.line(
        f"{report.tensors} tensors, {report.entries:,} elements, sum in {', '.join(report.dtypes)}, "
        f"{console.size(report.nbytes)}"
    )
    for entry in source.history:
        console.line(f"made by: {entry}")
    if origin.coef:
        console.line(f"lambda is multiplied by {', '.join(origin.coef)}")
    rows = [
        [
            task.name,
            task.provenance.language,
            task.provenance.task,
            f"{task.scale:g}",
            f"{kept:.1%}",
        ]
        for task, kept in zip(origin.tasks, report.kept, strict=True)
    ]
    console.table(["--for", "language", "task", "lambda", "kept"], rows, left=(0, 1, 2))
    console.line(f"{report.unkept:.1%} of the elements are kept by no mask")
    base, task = source.base_name, origin.tasks[0].name
    made = command(
        "lorsmerge", "merge", base, "--from", report.path, "--for", task, "-o", f"{task}/"
    )
    console.line(f"the model of one task: {made}")


def _document(report: InspectReport) -> dict[str, Any]:
    return {
        "files": list(map(_file_document, report.files)),
        "pairs": [
            {**asdict(pair), "first": str(pair.first), "second": str(pair.second)}
            for pair in report.pairs
        ],
        "together": None if report.together is None else asdict(report.together),
        "advice": list(report.advice),
    }


def _file_document(item: CheckpointReport | DeltaFileReport | TallReport) -> dict[str, Any]:
    from lorsmerge_cli.operations.inspect import CheckpointReport, TallReport

    if isinstance(item, CheckpointReport):
        return _checkpoint_document(item)
    return _tall_document(item) if isinstance(item, TallReport) else _delta_document(item)


def _tall_document(report: TallReport) -> dict[str, Any]:
    origin, source = report.origin, report.origin.provenance
    return {
        "path": str(report.path),
        "type": "tall",
        "tensors": report.tensors,
        "entries": report.entries,
        "bytes": report.nbytes,
        "dtypes": list(report.dtypes),
        "base": {"name": source.base_name, "fingerprint": source.base.digest},
        "threshold": origin.threshold,
        "coef": list(origin.coef),
        "history": list(source.history),
        "tasks": [
            {
                "name": task.name, "language": task.provenance.language,
                "task": task.provenance.task, "scale": task.scale,
                "fingerprint": task.fingerprint, "kept": kept,
            }
            for task, kept in zip(origin.tasks, report.kept, strict=True)
        ],
        "unkept": report.unkept,
    }  # fmt: skip


def _checkpoint_document(report: CheckpointReport) -> dict[str, Any]:
    return {
        "path": str(report.path),
        "type": "checkpoint",
        "tensors": report.tensors,
        "parameters": report.parameters,
        "bytes": report.nbytes,
        "fingerprint": report.fingerprint.digest,
        "tied": dict(report.tied),
        "groups": [asdict(group) for group in report.groups],
    }


def _delta_document(report: DeltaFileReport) -> dict[str, Any]:
    def figures(item: KindFigures) -> dict[str, Any]:
        return {
            "tensors": item.tensors,
            "entries": item.entries,
            "density": item.nonzero / max(item.entries, 1),
            "norm": item.energy**0.5,
            "bytes": item.nbytes,
            "non_finite": item.non_finite,
            "top_energy": {str(ratio): item.top_share(ratio) for ratio in item.top},
            "leading_energy": item.leading_share,
            "rank_share": item.rank,
        }

    source = report.provenance
    return {
        "path": str(report.path),
        "type": "delta",
        "encodings": dict(report.encodings),
        "dtypes": list(report.dtypes),
        "base": {"name": source.base_name, "fingerprint": source.base.digest},
        "finetuned_dtype": source.finetuned_dtype,
        "task": source.task,
        "language": source.language,
        "pruning": dict(source.pruning),
        "history": list(source.history),
        "all": figures(report.total),
        "kinds": {name: figures(item) for name, item in report.kinds.items()},
    }
