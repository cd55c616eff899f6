"""`lorsmerge finetune`."""

from __future__ import annotations

import difflib
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorsmerge_cli import console, options
from lorsmerge_cli.errors import LorsmergeError, raise_all
from lorsmerge_cli.inputs import read_toml
from lorsmerge_cli.outputs import check_not_inside

if TYPE_CHECKING:
    from lorsmerge_cli.operations.finetune import FinetunePlan, FinetuneReport

TRAINING = "Training"
CHOICE = "Choice of epochs"


def _apply_recipe(context: typer.Context, path: Path | None) -> Path | None:
    """Make a TOML file's settings the defaults of the command's options."""
    if path is None:
        return None
    try:
        settings: dict[str, Any] = read_toml(path)
    except (OSError, ValueError, LorsmergeError) as error:
        raise typer.BadParameter(f"{path} is no TOML file that can be read ({error}).") from None
    names = {}
    for item in context.command.params:
        for spelling in [*item.opts, *item.secondary_opts]:
            names[spelling.lstrip("-").replace("-", "_")] = item.name
    for key in settings:
        if names.get(key.replace("-", "_")) in (None, "recipe", "help"):
            close = difflib.get_close_matches(key.replace("-", "_"), names, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise typer.BadParameter(f"{path} has no setting {key!r} to give.{hint}")
    chosen = {names[key.replace("-", "_")]: value for key, value in settings.items()}
    many = {item.name for item in context.command.params if getattr(item, "multiple", False)}
    context.default_map = {
        key: [value] if key in many and not isinstance(value, list) else value
        for key, value in chosen.items()
    }
    return path


def finetune(
    base: Annotated[Path, typer.Argument(help="The pretrained Whisper: a model folder or a Hub id.")],
    datasets: Annotated[
        list[Path],
        typer.Option("--data", metavar="DATA", rich_help_panel=options.DATA,
                     help="Manifest or data folder to learn from (may be repeated)."),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", rich_help_panel=options.OUTPUT,
                     help="Model folder to write; FOLDER.training holds the run until then. The loss of "
                     "each step is in losses.jsonl, first of that and then of the model folder."),
    ],
    dev: Annotated[
        list[Path] | None,
        typer.Option("--dev", metavar="DATA", rich_help_panel=options.DATA,
                     help="Data to choose the epoch by (may be repeated); where DATA is a folder "
                     "with a dev split, that one."),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", metavar="NAME", rich_help_panel=options.DATA,
                          help="Split of DATA to learn from."),
    ] = "train",
    language: options.Language = None,
    task: options.Task = None,
    hours: options.Hours = None,
    data_seed: options.DataSeed = 0,
    dev_hours: Annotated[
        float | None,
        typer.Option("--dev-hours", metavar="H", min=0.001, rich_help_panel=options.DATA,
                     help="The same for each dev set."),
    ] = None,
    allow_parts: options.AllowParts = False,
    format: options.Format = None,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", "--lr", metavar="X", rich_help_panel=TRAINING,
                            help="Of Adam. The paper's are 2e-8 to 1e-5, by language and task: see "
                            "examples/recipes/finetune."),
    ] = 1e-6,
    schedule: Annotated[
        str, typer.Option("--schedule", metavar="NAME", rich_help_panel=TRAINING,
                          help="constant, linear or cosine decay of the learning rate."),
    ] = "constant",
    warmup: Annotated[
        float, typer.Option("--warmup", metavar="N", min=0.0, rich_help_panel=TRAINING,
                            help="Steps in which the rate rises; below 1, a share of all."),
    ] = 0.0,
    clip: Annotated[
        float, typer.Option("--clip", metavar="X", min=0.0, rich_help_panel=TRAINING,
                            help="Largest norm of a gradient; 0 for any."),
    ] = 1.0,
    epochs: Annotated[
        float, typer.Option("--epochs", metavar="N", min=0.0, rich_help_panel=TRAINING,
                            help="Passes over the data."),
    ] = 10.0,
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="N", min=1, rich_help_panel=TRAINING,
                     help="Steps of Adam, in place of --epochs."),
    ] = None,
    effective_batch: Annotated[
        int, typer.Option("--effective-batch", metavar="N", min=1, rich_help_panel=TRAINING,
                          help="Utterances for each step, over all devices. The paper: 8 x 4."),
    ] = 32,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", metavar="N", min=1, rich_help_panel=options.MACHINE,
                     help="Utterances in memory at a time; up to 8 by default. Gradients add up to "
                     "the effective batch."),
    ] = None,
    freeze_encoder: Annotated[
        bool, typer.Option("--freeze-encoder", rich_help_panel=TRAINING,
                           help="Train the decoder alone."),
    ] = False,
    spec_augment: Annotated[
        bool, typer.Option("--spec-augment", rich_help_panel=TRAINING,
                           help="Mask parts of the input in time and frequency."),
    ] = False,
    label_space: Annotated[
        str, typer.Option("--label-space", metavar="HOW", rich_help_panel=TRAINING,
                          help="auto begins texts with a space, as Whisper does, in languages that "
                          "write spaces; none does not, as lorsmerge once did."),
    ] = "auto",
    dtype: options.ComputeDtype = "float32",
    average_best: Annotated[
        int | None,
        typer.Option("--average-best", metavar="N", min=1, rich_help_panel=CHOICE,
                     help="Mean of the N best epochs; the one best by default."),
    ] = None,
    average_last: Annotated[
        int | None,
        typer.Option("--average-last", metavar="N", min=1, rich_help_panel=CHOICE,
                     help="Mean of the last N epochs."),
    ] = None,
    dev_beam: Annotated[
        int, typer.Option("--dev-beam", metavar="N", min=1, rich_help_panel=CHOICE,
                          help="Beam for the dev set; greedy ranks epochs as well and is quicker."),
    ] = 1,
    normalisation: options.Normalise = "auto",
    delta: Annotated[
        Path | None,
        typer.Option("--delta", metavar="FILE", rich_help_panel=options.OUTPUT,
                     help="Write the fine-tune's delta too."),
    ] = None,
    no_digests: Annotated[
        bool, typer.Option("--no-digests", rich_help_panel=options.OUTPUT,
                           help="Record no hashes of the training data's audio, sentences and "
                           "speakers, by which eval finds them in a test set.")
    ] = False,
    save_steps: Annotated[
        int | None,
        typer.Option("--save-steps", metavar="N", min=1, rich_help_panel=options.OUTPUT,
                     help="A checkpoint every N steps beside those of each epoch."),
    ] = None,
    keep: Annotated[
        int, typer.Option("--keep", metavar="N", min=1, rich_help_panel=options.OUTPUT,
                          help="Checkpoints that are kept while it runs."),
    ] = 2,
    resume: Annotated[
        bool, typer.Option("--resume", rich_help_panel=options.OUTPUT,
                           help="Go on with the run that was interrupted, if there is one."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", rich_help_panel=options.OUTPUT,
                           help="Check everything, say what would be done, and stop."),
    ] = False,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", metavar="TOML", is_eager=True, callback=_apply_recipe,
                     rich_help_panel=TRAINING,
                     help="Settings by the names of these options; the command line wins."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", min=0, rich_help_panel=options.MACHINE,
                     help="Processes that read audio ahead; 4 for a GPU, none without."),
    ] = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    verbose: options.Verbose = False,
    force: options.Force = False,
) -> None:  # fmt: skip
    """Fine-tune a Whisper on one language and task, or on several at once.

    All weights are trained. Language and task come from each row of the data, or from --language
    and --task. The best epoch on the dev set is kept. Under torchrun the work is shared out, with
    the same result.

    Example: lorsmerge finetune openai-whisper-small/ --data cv-corpus/ca --language ca --task asr -o ft/ca_asr
    """
    if average_best and average_last:
        raise typer.BadParameter("Give --average-best or --average-last, not both.")
    from lorsmerge_cli import usage

    settings = usage.settings_of(
        learning_rate=learning_rate, schedule=schedule, warmup=warmup, clip=clip, epochs=epochs,
        steps=steps, batch_size=batch_size, effective_batch=effective_batch,
        freeze_encoder=freeze_encoder, spec_augment=spec_augment, label_space=label_space,
        dtype=dtype, save_steps=save_steps, keep=keep, seed=seed,
    )  # fmt: skip
    data = [*datasets, *(dev or ())]
    raise_all(
        usage.check_training(settings, device)
        + usage.check_inputs(
            [base], data, format=format, language=language, task=task,
            normalise=normalisation, numbers={"--hours": hours, "--dev-hours": dev_hours},
        )
        + usage.check_outputs([delta], [output], inputs=[base, *data], force=force)
        + (check_not_inside(delta, output) if delta else [])
        + usage.check_training_folder(output, [base, *data, *([delta] if delta else [])])
        + usage.check_run(output, resume=resume, force=force)
    )  # fmt: skip
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked workers would warn of it
    from lorsmerge_cli.operations.finetune import (
        Averaging,
        data_sources,
        plan_finetune,
        readers,
        run_finetune,
    )
    from lorsmerge_cli.recipe.published import recorded_command

    train, held_out = data_sources(
        datasets, dev or (), split=split, dev_hours=dev_hours, language=language, task=task,
        format=format, hours=hours, seed=data_seed, allow_parts=allow_parts,
    )  # fmt: skip
    settings = replace(settings, workers=readers(workers, device))
    plan = plan_finetune(
        base, output, train=train, dev=held_out, settings=settings,
        averaging=Averaging(average_last or average_best or 1, best=not average_last),
        dev_beam=dev_beam, normalisation=normalisation, device=device, delta=delta, resume=resume,
        force=force, digests=not no_digests,
    )  # fmt: skip
    for text in plan.warnings:
        console.warning(text)
    if verbose:
        console.notes(plan.train.drop_notes)
    if dry_run:
        console.result(_plan_document(plan), lambda: _show_plan(plan))
        return
    with console.progress("finetune", "steps") as progress:
        report = run_finetune(
            plan, command=recorded_command(sys.argv[1:]), progress=progress, told=_tell,
            missed=console.warning, learnt=lambda record: progress.detail(_learnt(record)),
        )  # fmt: skip
    if report.main:
        for text in report.warnings:
            console.warning(text)
        console.result(asdict(report), lambda: _show(report))


def _scores(scores: dict[str, float]) -> str:
    from lorsmerge_cli.metrics import metrics_of

    named = {k: v for k, v in scores.items() if k not in ("epoch", "step", "score")}
    return ", ".join(f"{k} {metrics_of(*k.split('_'))[0].name} {v:.2f}" for k, v in named.items())


def _learnt(record: dict[str, Any]) -> str:
    """A step, beside the progress: its loss and speed."""
    loss, speed = record["loss"], record.get("utterances_per_second")  # not of an older run
    return f"loss {loss:.4f}" + (f", {console.pace(speed, 'utterances')}" if speed else "")


def _tell(scores: dict[str, float]) -> None:
    when = f"epoch {scores['epoch']:g}" if scores["epoch"] else "before"
    console.note(f"{when}: {_scores(scores)}")


def _plan_document(plan: FinetunePlan) -> dict[str, Any]:
    return plan.describe() | {"steps": plan.steps, "memory": plan.memory}


def _show_plan(plan: FinetunePlan) -> None:
    size, accumulation = plan.settings.batches(plan.processes)
    for name, report in (("train", plan.train), ("dev", plan.dev)):
        if report is not None:
            groups = ", ".join(f"{group.language} {group.task}" for group in report.groups)
            console.line(
                f"{name}: {len(report.utterances)} utterances, {report.hours:.2f} hours ({groups})"
            )
    console.line(
        f"steps: {plan.steps} of {plan.settings.effective_batch} utterances ({size} at a time x "
        f"{accumulation} x {plan.processes} processes)"
    )
    console.line(
        f"memory: {console.size(plan.memory)} for weights, gradients and Adam; activations on top"
    )
    console.line(f"would write {plan.output}" + (f" and {plan.delta}" if plan.delta else ""))


def _show(report: FinetuneReport) -> None:
    if report.before:
        console.line(f"before: {_scores(report.before)}")
        console.line(f"after:  {_scores(report.after)}")
    listed = ", ".join(f"{epoch:g}" for epoch in report.chosen)
    what = "epoch" if len(report.chosen) == 1 else "mean of epochs"
    console.line(f"{report.output}: {what} {listed}, {report.steps} steps")
    if report.delta is not None:
        console.line(f"{report.delta}: its delta")
