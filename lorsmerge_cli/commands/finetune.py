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

_training = options.panel("Training")
_choice = options.panel("Choice of epochs")


def _apply_recipe(context: typer.Context, path: Path | None) -> Path | None:
    """Make a TOML file's settings the defaults of the command's options."""
    if path is None:
        return None
    try:
        settings: dict[str, Any] = read_toml(path)
    except (OSError, ValueError, LorsmergeError) as error:
        raise typer.BadParameter(f"{path} cannot be read as TOML ({error}).") from None
    names, off = {}, set[str]()
    for item in context.command.params:
        for spelling in [*item.opts, *item.secondary_opts]:
            names[spelling.lstrip("-").replace("-", "_")] = item.name
        off |= {spelling.lstrip("-").replace("-", "_") for spelling in item.secondary_opts}
    for key in settings:
        if names.get(key.replace("-", "_")) in (None, "recipe", "help"):
            close = difflib.get_close_matches(key.replace("-", "_"), names, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise typer.BadParameter(f"{path}: there is no setting {key!r}.{hint}")
    chosen = {
        names[key.replace("-", "_")]: not value if key.replace("-", "_") in off else value
        for key, value in settings.items()
    }
    many = {item.name for item in context.command.params if getattr(item, "multiple", False)}
    context.default_map = {
        key: [value] if key in many and not isinstance(value, list) else value
        for key, value in chosen.items()
    }
    return path


def finetune(
    base: Annotated[Path, typer.Argument(
        help="The pretrained Whisper: a model folder or a Hub id.")],
    datasets: Annotated[list[Path], options.data(
        "--data", metavar="DATA", help="Manifest or data folder to learn from, or "
        "hub:ORG/NAME:CONFIG on the Hub (may be repeated).")],
    output: Annotated[Path, options.output(
        "--output", "-o", metavar="FOLDER",
        help="Model folder to write; FOLDER.training holds the run until then. losses.jsonl, in "
        "the one and then in the other, has the loss of each step.")],
    dev: Annotated[list[Path] | None, options.data(
        "--dev", metavar="DATA", help="Data to choose the epoch by (may be repeated); by default "
        "the dev split of DATA, if it has one.")] = None,
    retain: Annotated[list[Path] | None, options.data(
        "--retain", metavar="DATA", help="Data to mix in so that what the base can do with it is "
        "kept: of other languages, tasks or kinds, which each row has to name (may be repeated).",
    )] = None,
    retain_share: Annotated[float, options.data(
        "--retain-share", metavar="X", help="Share of the hours that are --retain's.")] = 0.1,
    split: Annotated[str, options.data(
        "--split", metavar="NAME", help="Split of DATA to learn from.")] = "train",
    language: options.Language = None,
    task: options.Task = None,
    only: options.Only = None,
    where: options.Where = None,
    hours: options.Hours = None,
    streaming: options.Streaming = False,
    data_seed: options.DataSeed = 0,
    dev_hours: Annotated[float | None, options.data(
        "--dev-hours", metavar="H", min=0.001,
        help="Take about this much of each dev set.")] = None,
    allow_parts: options.AllowParts = False,
    format: options.Format = None,
    learning_rate: Annotated[float, _training(
        "--learning-rate", "--lr", metavar="X", help="Learning rate of Adam. The paper's are 2e-8 "
        "to 1e-5, by language and task: see examples/recipes/finetune.")] = 1e-6,
    schedule: Annotated[str, _training(
        "--schedule", metavar="NAME",
        help="constant, linear or cosine decay of the learning rate.")] = "constant",
    warmup: Annotated[float, _training(
        "--warmup", metavar="N", min=0.0,
        help="Steps in which the learning rate rises; below 1, a share of all steps.")] = 0.0,
    clip: Annotated[float, _training(
        "--clip", metavar="X", min=0.0, help="Largest norm of a gradient; 0 for no limit.")] = 1.0,
    epochs: Annotated[float, _training(
        "--epochs", metavar="N", min=0.0, help="Passes over the data.")] = 10.0,
    steps: Annotated[int | None, _training(
        "--steps", metavar="N", min=1, help="Steps of Adam, in place of --epochs.")] = None,
    effective_batch: Annotated[int, _training(
        "--effective-batch", metavar="N", min=1, help="Utterances of each step, over all devices. "
        "The paper's is 8 x 4.")] = 32,
    language_temperature: Annotated[float | None, _training(
        "--language-temperature", metavar="T", help="In joint training, take each language by its "
        "utterances to the power of 1/T, in as many steps: 1 is as they are, 100 all equally. By "
        "default 1, every row once an epoch.")] = None,
    batch_size: Annotated[int | None, options.machine(
        "--batch-size", metavar="N", min=1, help="Utterances in memory at a time; by default up to "
        "8. Gradients are accumulated to the effective batch.")] = None,
    freeze_encoder: Annotated[bool, _training(
        "--freeze-encoder", help="Train the decoder alone.")] = False,
    spec_augment: Annotated[bool, _training(
        "--spec-augment", help="Mask parts of the clips, not of their padding: by default 5% of "
        "the frames, in pieces of 10, and 5% of the mel bins.")] = False,
    masks: Annotated[str | None, _training(
        "--masks", metavar="SIZES", help="SpecAugment with Park et al.'s masks: LB, LD, SM or SS, or "
        "F=27,mF=2,T=100,mT=2,p=1 (bins, masks of bins, frames, masks of frames, share).")] = None,
    label_space: Annotated[str, _training(
        "--label-space", metavar="HOW",
        help="auto begins texts with a space, as Whisper does, in languages that write spaces; "
        "none never does, as in early versions of lorsmerge.")] = "auto",
    pack: Annotated[float | None, _training(
        "--pack", metavar="S", help="Join rows into windows of up to S seconds (30 is Whisper's): "
        "neighbours of a recording, else clips of a speaker.")] = None,
    timestamps: Annotated[float | None, _training(
        "--timestamps", metavar="X", help="Share of the rows whose text has timestamps: of its "
        "segments, or of its beginning and end.")] = None,
    condition: Annotated[float | None, _training(
        "--condition", metavar="X", help="Share of the rows that have what was said before them in "
        "their recording as context.")] = None,
    keep_language: Annotated[bool | None, _training(
        "--keep-language/--learn-language", help="Whether the language token is not learnt, so that "
        "the model still detects other languages; by default where all rows have one language.",
        show_default=False)] = None,
    dtype: Annotated[str, options.machine(
        "--dtype", metavar="DTYPE", help="float32, float16 or bfloat16 to compute in (autocast); "
        "weights are float32.")] = "float32",
    eval_steps: Annotated[int | None, _choice(
        "--eval-steps", metavar="N", min=1, help="Decode the dev set every N steps and after the last "
        "one, in place of after each epoch.")] = None,
    patience: Annotated[int | None, _choice(
        "--patience", metavar="K", min=1,
        help="End the training after K decodings of the dev set without a better score.")] = None,
    average_best: Annotated[int | None, _choice(
        "--average-best", metavar="N", min=1,
        help="Mean of the N best epochs; by default the best one.")] = None,
    average_last: Annotated[int | None, _choice(
        "--average-last", metavar="N", min=1, help="Mean of the last N epochs.")] = None,
    dev_beam: Annotated[int, _choice(
        "--dev-beam", metavar="N", min=1, help="Beam for the dev set; greedy decoding ranks epochs "
        "as well and is faster.")] = 1,
    normalisation: options.Normalise = "auto",
    delta: Annotated[Path | None, options.output(
        "--delta", metavar="FILE", help="Also write the fine-tune's delta.")] = None,
    no_digests: Annotated[bool, options.output(
        "--no-digests", help="Do not record hashes of the training data's audio, sentences and "
        "speakers, by which eval finds them in a test set.")] = False,
    save_steps: Annotated[int | None, options.output(
        "--save-steps", metavar="N", min=1,
        help="Write a checkpoint every N steps as well as after each epoch.")] = None,
    keep: Annotated[int, options.output(
        "--keep", metavar="N", min=1, help="Checkpoints kept while training.")] = 2,
    report_to: Annotated[str | None, options.output(
        "--report-to", metavar="NAME", help="Also show losses and scores in tensorboard "
        "(FOLDER.tensorboard, unless TENSORBOARD_LOGGING_DIR is set) or wandb.")] = None,
    resume: Annotated[bool, options.output(
        "--resume", help="Resume the run that was interrupted, if there is one.")] = False,
    dry_run: options.DryRun = False,
    recipe: Annotated[Path | None, _training(
        "--recipe", metavar="TOML", is_eager=True, callback=_apply_recipe,
        help="Settings by the names of these options; the command line overrides them.")] = None,
    workers: Annotated[int | None, options.machine(
        "--workers", metavar="N", min=0,
        help="Processes that read audio ahead; by default 4 with a GPU, 0 without.")] = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    verbose: options.Verbose = False,
    force: options.Force = False,
) -> None:  # fmt: skip
    """Fine-tune a Whisper on one language and task, or on several at once.

    All weights are trained. Language and task come from each row of the data, or from --language
    and --task. The best epoch on the dev set is kept. torchrun distributes the work over processes
    without changing the result.

    Example: lorsmerge finetune openai-whisper-small/ --data cv-corpus/ca --language ca --task asr -o ft/ca_asr
    """
    if average_best and average_last:
        raise typer.BadParameter("Give --average-best or --average-last, not both.")
    from lorsmerge_cli import usage
    from lorsmerge_cli.data.conditions import parse_conditions

    settings = usage.settings_of(
        learning_rate=learning_rate, schedule=schedule, warmup=warmup, clip=clip, epochs=epochs,
        steps=steps, batch_size=batch_size, effective_batch=effective_batch,
        language_temperature=language_temperature, freeze_encoder=freeze_encoder,
        spec_augment=spec_augment, masks=masks, label_space=label_space, pack=pack,
        timestamps=timestamps, condition=condition, keep_language=keep_language, dtype=dtype,
        save_steps=save_steps, eval_steps=eval_steps, patience=patience, keep=keep, seed=seed,
    )  # fmt: skip
    conditions = parse_conditions(only or (), where or ())
    datasets = usage.streamed(datasets, hours, streaming)
    retain = usage.streamed(retain, hours, streaming, needed=False)
    dev = usage.streamed(dev, dev_hours, streaming and dev_hours is not None, needed=False)
    data = [*datasets, *(dev or ()), *(retain or ())]
    raise_all(
        usage.check_training(settings, device)
        + usage.check_share("--retain-share", retain_share)
        + usage.check_reporter(report_to)
        + usage.check_inputs(
            [base], data, format=format, hours=hours, language=language, task=task,
            normalise=normalisation, numbers={"--dev-hours": dev_hours},
        )
        + usage.check_outputs([delta], [output], inputs=[base, *data], force=force)
        + (check_not_inside(delta, output) if delta else [])
        + usage.check_training_folder(output, [base, *data, *([delta] if delta else [])])
        + usage.check_run(output, resume=resume, force=force)
    )  # fmt: skip
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or forked workers print a warning
    from lorsmerge_cli.operations.finetune import (
        Averaging,
        data_sources,
        plan_finetune,
        readers,
        retained_source,
    )

    train, held_out = data_sources(
        datasets, dev or (), split=split, dev_hours=dev_hours, language=language, task=task,
        format=format, hours=hours, seed=data_seed, allow_parts=allow_parts,
        conditions=conditions,
    )  # fmt: skip
    settings = replace(settings, workers=readers(workers, device))
    plan = plan_finetune(
        base, output, train=train, dev=held_out, settings=settings,
        retain=retained_source(train, retain or ()), retain_share=retain_share,
        averaging=Averaging(average_last or average_best or 1, best=not average_last),
        dev_beam=dev_beam, normalisation=normalisation, device=device, delta=delta, resume=resume,
        force=force, digests=not no_digests, report_to=report_to,
    )  # fmt: skip
    console.warning(*plan.warnings)
    if verbose:
        console.note(*plan.train.drop_notes)
    if dry_run:
        console.result(_plan_document(plan), lambda: _show_plan(plan))
    else:
        _carry_out(plan)


def _carry_out(plan: FinetunePlan) -> None:
    from lorsmerge_cli.operations.finetune import run_finetune
    from lorsmerge_cli.recipe.published import recorded_command

    with console.progress("finetune", "steps") as progress:
        report = run_finetune(
            plan, command=recorded_command(sys.argv[1:]), progress=progress, on_scores=_tell,
            on_skip=console.warning, on_step=lambda record: progress.detail(_learnt(record)),
        )  # fmt: skip
    if report.main:
        console.warning(*report.warnings)
        console.result(asdict(report), lambda: _show(report))


def _scores_in_words(scores: dict[str, float]) -> str:
    from lorsmerge_cli.metrics import metrics_of

    named = {k: v for k, v in scores.items() if k not in ("epoch", "step", "score")}
    return ", ".join(f"{k} {metrics_of(*k.split('_'))[0].name} {v:.2f}" for k, v in named.items())


def _learnt(record: dict[str, Any]) -> str:
    """Return a step's loss and speed, to be shown beside the progress."""
    loss, speed = record["loss"], record.get("utterances_per_second")  # which older runs lack
    return f"loss {loss:.4f}" + (f", {console.pace(speed, 'utterances')}" if speed else "")


def _tell(scores: dict[str, float]) -> None:
    when = f"epoch {scores['epoch']:g}" if scores["epoch"] else "before"
    console.note(f"{when}: {_scores_in_words(scores)}")


def _plan_document(plan: FinetunePlan) -> dict[str, Any]:
    return plan.describe() | {"steps": plan.steps, "memory": plan.memory}


def _show_plan(plan: FinetunePlan) -> None:
    size, accumulation = plan.settings.batches(plan.processes)
    learnt = "windows" if plan.settings.pack else "utterances"
    for name, report in (("train", plan.train), ("dev", plan.dev)):
        if report is not None:
            groups = ", ".join(f"{group.language} {group.task}" for group in report.groups)
            rows = f"{len(report.utterances)} {learnt if name == 'train' else 'utterances'}"
            console.line(f"{name}: {rows}, {report.hours:.2f} hours ({groups})")
    if plan.epoch_counts:
        counts = ", ".join(f"{count} {name}" for name, count in plan.epoch_counts.items())
        console.line(f"in an epoch, by --language-temperature: {counts}")
    console.line(
        f"steps: {plan.steps} of {plan.settings.effective_batch} {learnt} ({size} at a time x "
        f"{accumulation} x {plan.processes} processes)"
    )
    console.line(
        f"memory: {console.size(plan.memory)} for weights, gradients and Adam; activations on top"
    )
    console.line(f"would write {plan.output}" + (f" and {plan.delta}" if plan.delta else ""))


def _show(report: FinetuneReport) -> None:
    if report.before:
        console.line(f"before: {_scores_in_words(report.before)}")
        console.line(f"after:  {_scores_in_words(report.after)}")
    if report.steps < report.planned:
        console.line(
            f"ended after step {report.steps} of {report.planned}: --patience ran out, the last scores "
            "were no better"
        )
    listed = ", ".join(f"{epoch:g}" for epoch in report.chosen)
    what = "epoch" if len(report.chosen) == 1 else "mean of epochs"
    console.line(f"{report.output}: {what} {listed}, {report.steps} steps")
    if report.delta is not None:
        console.line(f"{report.delta}: its delta")
