"""`lorsmerge stats`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorsmerge_cli import console, options
from lorsmerge_cli.errors import raise_all

if TYPE_CHECKING:
    from lorsmerge_cli.operations.stats import StatsPlan, StatsReport


def stats(
    model: Annotated[Path, typer.Argument(
        help="The fine-tune: a model folder, a file of weights, or a Hub id.")],
    datasets: Annotated[list[Path], options.data(
        "--data", metavar="DATA", help="Manifest, data folder, or hub:ORG/NAME:CONFIG on the Hub, of "
        "audio in the fine-tune's language (may be repeated). Texts are needed for --labels data alone.")],
    output: Annotated[Path, options.output(
        "--output", "-o", metavar="FILE", help="File of statistics to write, such as ca.stats.")],
    kind: Annotated[str, options.data(
        "--kind", metavar="KIND", help="gram: inputs of the linear layers, for regmean; fisher: "
        "squared gradients, for fisher; or both.")] = "gram",
    labels: Annotated[str, options.data(
        "--labels", metavar="WHOSE", help="Texts that the decoder is given: own, the fine-tune's "
        "greedy transcripts, or data, those of the data.")] = "own",
    half: Annotated[str, options.data(
        "--half", metavar="HALF", help="Half of the model that is weighed: encoder, for which the "
        "fine-tune need not transcribe; decoder; or all. Merges average the rest.")] = "all",
    split: Annotated[str, options.data(
        "--split", metavar="NAME", help="Split of DATA to hear.")] = "train",
    language: options.Language = None,
    task: options.Task = None,
    only: options.Only = None,
    where: options.Where = None,
    hours: options.Hours = None,
    streaming: options.Streaming = False,
    data_seed: options.DataSeed = 0,
    allow_parts: options.AllowParts = False,
    format: options.Format = None,
    batch_size: options.BatchSize = None,
    dtype: options.ComputeDtype = "float32",
    device: options.Device = "auto",
    config_dir: options.ConfigDir = None,
    verbose: options.Verbose = False,
    dry_run: options.DryRun = False,
    force: options.Force = False,
) -> None:  # fmt: skip
    """Write what a fine-tune's layers do on audio, for merges that weigh deltas by it.

    No texts are needed: by default the fine-tune transcribes the audio first. A quarter of an hour
    is plenty. Audio that the merge will be tested on does not belong here.

    Example: lorsmerge stats ft/ca_asr --data ca.jsonl --hours 0.1 -o ca.stats
    """
    from lorsmerge_cli import usage
    from lorsmerge_cli.data.conditions import parse_conditions

    datasets = usage.streamed(datasets, hours, streaming)
    inputs = [model, *datasets]
    conditions = parse_conditions(only or (), where or ())
    raise_all(
        usage.check_statistics(kind, labels, half)
        + usage.check_inputs(
            [model], datasets, format=format, hours=hours, language=language, task=task, dtype=dtype,
            device=device,
        )
        + usage.check_paths([config_dir])
        + usage.check_outputs([output], inputs=inputs, force=force)
    )  # fmt: skip
    from lorsmerge_cli.operations.stats import plan_stats, run_stats
    from lorsmerge_cli.recipe.published import recorded_command

    plan = plan_stats(
        model, datasets, output, kind=kind, labels=labels, half=half, split=split,
        language=language, task=task, conditions=conditions, hours=hours, seed=data_seed, allow_parts=allow_parts,
        format=format, batch_size=batch_size, dtype=dtype, device=device, config_dir=config_dir,
        force=force,
    )  # fmt: skip
    console.warning(*plan.warnings)
    if verbose:
        console.note(*plan.drop_notes)
    if dry_run:
        console.result(_plan_document(plan), lambda: _show_plan(plan))
        return
    with console.progress("stats", "utterances") as progress:
        report = run_stats(plan, recorded_command(sys.argv[1:]), progress)
    console.warning(*report.warnings)
    console.result(_document(report), lambda: console.line(_in_words(report)))


def _plan_document(plan: StatsPlan) -> dict[str, object]:
    return {
        "output": str(plan.output),
        "kinds": list(plan.layout.kinds),
        "utterances": len(plan.utterances),
        "seconds": plan.seconds,
        "bytes": plan.layout.nbytes,
        "memory_bytes": plan.memory,
    }


def _show_plan(plan: StatsPlan) -> None:
    console.line(f"{plan.source.name} would hear {_heard(len(plan.utterances), plan.seconds)}")
    console.line(
        f"would write {plan.output}: {console.size(plan.layout.nbytes)} of {' and '.join(plan.layout.kinds)}"
    )
    console.line(f"memory: {console.size(plan.memory)} for weights and sums; activations on top")


def _document(report: StatsReport) -> dict[str, object]:
    found = asdict(report) | {"output": str(report.output), "bytes": report.nbytes}
    return {key: found[key] for key in found if key not in ("nbytes", "warnings")}


def _in_words(report: StatsReport) -> str:
    heard = _heard(report.utterances, report.seconds)
    return (
        f"{report.output}: {' and '.join(report.kinds)} over {heard}, {console.size(report.nbytes)}"
    )


def _heard(utterances: int, seconds: float) -> str:
    return f"{utterances} utterances, {seconds / 60:.1f} minutes"
