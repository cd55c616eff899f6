"""`lorsmerge merge`."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorsmerge_cli import console, options
from lorsmerge_cli.errors import HubFault, Interrupted, LorsmergeError, UsageFault, named, raise_all
from lorsmerge_cli.quoting import command

if TYPE_CHECKING:
    from lorsmerge_cli.hub.target import Target
    from lorsmerge_cli.operations.merge import MasksPlan, MasksReport, MergePlan, MergeReport
    from lorsmerge_cli.operations.push import PushReport
    from lorsmerge_cli.recipe.coefficients import GroupFactors
    from lorsmerge_cli.recipe.recipe import Recipe

COMMIT = re.compile(r"@([0-9a-f]{10})[0-9a-f]{30}")
AS_GIVEN = "lambda is shown as given; the merge multiplies it to reach the step norm."
_recipe, _masks = options.panel("Recipe"), options.panel("TALL masks")
OF_MASKS = {  # parameters that --masks uses
    "base", "deltas", "scale", "coef", "masks", "output", "allow_other_base", "strip_prefix",
    "dry_run", "force", "threads", "quiet", "as_json", "debug",
}  # fmt: skip


def merge(
    context: typer.Context,
    base: Annotated[str | None, typer.Argument(
        metavar="BASE", help="The pretrained checkpoint: file, folder or Hub id.")] = None,
    deltas: Annotated[list[str] | None, typer.Argument(
        metavar="DELTA", help="Deltas, or fine-tunes (checkpoints, LoRA adapters) whose delta is "
        "then taken: files, folders or Hub ids. Settings of one follow a colon: "
        "ca.delta:svp=0.05,mp=0.4,scale=0.2")] = None,
    svp: options.Svp = None,
    mp: options.Mp = None,
    scale: Annotated[float | None, options.pruning(
        "--scale", metavar="LAMBDA", help=f"Coefficient of each delta: {options.SCALES}.")] = None,
    coef: Annotated[list[str] | None, options.pruning(
        "--coef", metavar="RULE", help="Multiply lambda by tensor: decoder=0.5, "
        "decoder.cross_attn=0.5, '*.fc1.*=0.5' (the first that matches counts), lines:beta=0.4 "
        "(grows with depth), model_stock (by the deltas' agreement); or by delta: equalise, "
        "metagpt. May be repeated; docs/merging.md has all rules.")] = None,
    step_norm: Annotated[float | None, options.pruning(
        "--step-norm", metavar="X", help="Multiply all coefficients so that the step from the base "
        "has this L2 norm. Takes a pass over the inputs.")] = None,
    step_norm_of: Annotated[Path | None, options.pruning(
        "--step-norm-of", metavar="MERGE", help="As --step-norm, with the norm of another merge's "
        "step: a merged model or a recipe.")] = None,
    control: Annotated[bool, options.pruning(
        "--control", help="Also write OUTPUT-control: task arithmetic of the same deltas with a step "
        "of the same norm. What the merge does better than it is not due to the length of its step. "
        "Not pushed.")] = False,
    method: Annotated[str | None, options.pruning(
        "--method", metavar="NAME", help=f"{options.METHOD_NAMES}. Parameters follow a colon: "
        "ties:k=0.3; `lorsmerge methods` lists them. By default the method that the ratios imply; "
        "without ratios, task arithmetic.")] = None,
    prune: Annotated[str | None, options.pruning(
        "--prune", metavar="NAME", help="In place of --method: how each delta is pruned, its ratios "
        f"and parameters after a colon (lors:svp=0.05,mp=0.2). One of {options.PRUNER_NAMES}; by "
        "default the one that the ratios imply.")] = None,
    combine: Annotated[str | None, options.pruning(
        "--combine", metavar="NAME", help="In place of --method: how the pruned deltas are combined, "
        f"parameters after a colon (ties:k=0.3). One of {options.COMBINER_NAMES}; by default that of "
        "the pruner's own method.")] = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    stats: Annotated[list[Path] | None, options.pruning(
        "--stats", metavar="FILE", help="Statistics of the deltas' fine-tunes over audio, which "
        "`lorsmerge stats` writes, for a method that needs them; one file for each delta, in any "
        "order.")] = None,
    calibrate: Annotated[list[str] | None, options.data(
        "--calibrate", metavar="DATA", help="In place of --stats: let each delta's fine-tune hear audio "
        "first, and keep its statistics in OUTPUT-stats/NAME.stats. A manifest or data folder, of "
        "which it hears the rows of its language and task; NAME=DATA is for the delta NAME.delta "
        "alone. May be repeated.")] = None,
    half: Annotated[str, options.data(
        "--half", metavar="HALF", help="Half of the model that --calibrate weighs: encoder, for which "
        "nothing is transcribed; decoder; or all. The rest is averaged.")] = "all",
    hours: options.HoursEach = None,
    masks: Annotated[float | None, _masks(
        "--masks", metavar="THRESHOLD", help="Write no model, but one file from which the model of "
        "each delta's task can be made: the sum of the deltas, and for each which of its elements "
        "are its own (abs(t) > THRESHOLD * abs(sum - t); paper: 0.2 to 0.6). Lambda is 1 by "
        "default.")] = None,
    from_masks: Annotated[Path | None, _masks(
        "--from", metavar="FILE", help="In place of deltas: make the model of one task from a file "
        "that --masks wrote. Lambda is 1 by default.")] = None,
    for_task: Annotated[str | None, _masks(
        "--for", metavar="TASK", help="The task, by the name of its delta's file (ca_asr); "
        "`lorsmerge inspect FILE` lists them.")] = None,
    recipe: Annotated[Path | None, _recipe(
        "--recipe", metavar="FILE",
        help="Take base, deltas and settings from a TOML recipe, from a model card that holds one "
        "(.md), or from the lorsmerge.json of an earlier merge.")] = None,
    save_recipe: Annotated[Path | None, _recipe(
        "--save-recipe", metavar="FILE", help="Write the recipe of this merge, every default "
        "written out, as TOML.")] = None,
    output: Annotated[Path | None, options.output(
        "--output", "-o", metavar="PATH",
        help="x.safetensors for one file, anything else for a model folder; by default "
        "merged.safetensors, or merged/ where the base is a folder.")] = None,
    config_dir: options.ConfigDir = None,
    dtype: options.Dtype = None,
    max_shard_size: Annotated[str, options.output(
        "--max-shard-size", metavar="SIZE", help="Largest weight file of a model folder.")] = "5GB",
    allow_other_base: options.AllowOtherBase = False,
    strip_prefix: options.StripPrefix = "",
    push: Annotated[str | None, options.output(
        "--push", metavar="ORG/NAME",
        help="Upload the output to the Hub; `lorsmerge push` has more options.")] = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    device: options.Device = "auto",
    threads: options.Threads = None,
) -> None:  # fmt: skip
    """Add deltas to a base: base + lambda * sum of LoRS(delta), or by another method.

    --svp and --mp prune each delta first; deltas that `prune` wrote are merged without them. The
    step from the base grows with the number of deltas: the default lambda was chosen for five.

    Where the language of each clip is known, `--masks 0.6 -o tall.delta` keeps the models of all
    deltas' tasks in one file, and `--from tall.delta --for ca_asr` makes one of them.

    Example: lorsmerge merge base.safetensors ca_asr.delta de_st.delta --svp 0.03 --mp 0.4
    """
    from lorsmerge_cli.recipe.calibration import wanted_calibration
    from lorsmerge_cli.recipe.recipe import wanted_recipe

    if masks is not None:
        _refuse_others(context)
        wanted = wanted_recipe(base, deltas, scale=scale, coef=coef)
        _make_masks(
            wanted, masks, output, threads=threads, force=force, allow_other_base=allow_other_base,
            strip_prefix=strip_prefix, dry_run=dry_run,
        )  # fmt: skip
        return
    given = wanted_recipe(
        base, deltas, file=recipe, method=method, svp=svp, mp=mp, scale=scale, include=include,
        exclude=exclude, dtype=dtype, coef=coef, prune=prune, combine=combine, stats=stats,
        from_masks=from_masks, for_task=for_task,
    )  # fmt: skip
    shard_size = options.parse_size("--max-shard-size", max_shard_size)
    audio = wanted_calibration(given, calibrate, half=half, hours=hours)
    given.resolved(calibrated=audio is not None)  # reports wrong settings before PyTorch is loaded
    from lorsmerge_cli.usage import check_inputs, check_merge, check_step_norm

    raise_all(
        check_step_norm(step_norm, step_norm_of)
        + check_inputs([], audio.sets if audio else (), numbers={"--hours": hours})
        + check_merge(
            Path(given.base), [Path(entry.path) for entry in given.deltas], output,
            stats=[Path(path) for path in given.stats],
            config_dir=config_dir, save_recipe=save_recipe, dtype=given.dtype, device=device,
            force=force,
        )
    )  # fmt: skip
    target = None
    if push is not None:
        from lorsmerge_cli.hub.target import open_target

        target = open_target(push)  # fails now, not after the work, if it may not be written
    from lorsmerge_cli.operations.merge import plan_calibration, plan_merge, stale_control

    plan = plan_merge(
        given, output, calibrated=audio is not None, config_dir=config_dir, save_recipe=save_recipe,
        device=device, threads=threads, max_shard_size=shard_size, force=force,
        allow_other_base=allow_other_base, strip_prefix=strip_prefix,
    )  # fmt: skip
    if target is not None:
        raise_all(plan.lacking)  # files that push would miss after the work
    plan = plan_calibration(plan, audio, config_dir)
    console.warning(*plan.warnings)
    beside = _planned_control(plan) if control else None
    console.warning(*(stale := stale_control(plan, beside)))
    plan = replace(plan, warnings=(*plan.warnings, *stale))
    if dry_run:
        _show_what_would_be(plan, beside, step_norm, step_norm_of)
    else:
        _make(plan, beside, step_norm, step_norm_of, target)


def _show_what_would_be(
    plan: MergePlan, beside: MergePlan | None, step_norm: float | None, step_norm_of: Path | None
) -> None:
    """Show a plan, once it is known that the step norm can be had."""
    from lorsmerge_cli.operations.merge import recorded_norm

    if step_norm_of is not None:
        recorded_norm(step_norm_of)  # is an error where no merge made it
    if step_norm is not None or step_norm_of is not None:
        console.note(AS_GIVEN)
    console.result(_plan_document(plan, beside), lambda: _show_plan(plan, beside))


def _make(
    plan: MergePlan,
    beside: MergePlan | None,
    step_norm: float | None,
    step_norm_of: Path | None,
    target: Target | None,
) -> None:
    """Merge as planned, push what was asked for, and show what was done."""
    from lorsmerge_cli.operations.merge import wanted_norm

    if step_norm is not None or step_norm_of is not None:
        with console.progress("measure the step") as progress:  # fails before long work
            step_norm = wanted_norm(plan, step_norm, step_norm_of, progress)
    if plan.calibration:
        plan = _calibrated(plan)
    if step_norm is not None:
        plan = _scaled(plan, step_norm, step_norm_of)
    report = _run(plan, beside)
    console.warning(*report.warnings)
    document = _report_document(plan, report)
    pushed = None if target is None else _push(plan.output, target)
    if pushed is not None:
        document["push"] = asdict(pushed)
    console.result(document, lambda: _show_report(plan, report, target, pushed))


def _calibrated(plan: MergePlan) -> MergePlan:
    from lorsmerge_cli.operations.merge import calibrated
    from lorsmerge_cli.recipe.published import recorded_command

    there = [str(each.output) for each in plan.calibration if each.made]
    if there:
        console.note(f"made of this audio before, and used again: {named(there, len(there))}")
    with console.progress("calibrate", "utterances") as progress:
        done = calibrated(plan, recorded_command(sys.argv[1:]), progress)
    folder = Path(done.recipe.stats[0]).parent
    console.note(f"statistics are kept in {folder}, for other merges: --stats {folder}/NAME.stats")
    return done


def _refuse_others(context: typer.Context) -> None:
    """Refuse options on the command line that --masks does not use."""
    others = options.others_given(context, OF_MASKS)
    if others:
        raise UsageFault(
            f"--masks writes the sum of whole deltas and a mask for each, and {', '.join(others)} "
            f"{'has' if len(others) == 1 else 'have'} no use beside it.",
            "Prune deltas before, with `lorsmerge prune`; give what is of a model to `merge --from`.",
        )


def _make_masks(
    wanted: Recipe,
    threshold: float,
    output: Path | None,
    *,
    threads: int | None,
    force: bool,
    allow_other_base: bool,
    strip_prefix: str,
    dry_run: bool,
) -> None:
    """Write a file of TALL masks, or show the plan of it."""
    from lorsmerge_cli.usage import check_outputs, check_together

    paths = [Path(wanted.base), *(Path(entry.path) for entry in wanted.deltas)]
    raise_all(check_together(paths) + check_outputs([output], inputs=paths, force=force))
    from lorsmerge_cli.operations.merge import plan_masks, run_masks
    from lorsmerge_cli.recipe.published import recorded_command

    plan = plan_masks(
        wanted, threshold, output, command=recorded_command(sys.argv[1:]), threads=threads,
        force=force, allow_other_base=allow_other_base, strip_prefix=strip_prefix,
    )  # fmt: skip
    console.warning(*plan.warnings)
    if dry_run:
        console.result(_masks_document(plan), lambda: _show_masks(plan))
        return
    with console.progress("masks") as progress:
        report = run_masks(plan, progress)
    console.warning(*report.warnings)
    console.result(_masks_document(plan, report), lambda: _show_masks(plan, report))


def _masks_document(plan: MasksPlan, report: MasksReport | None = None) -> dict[str, Any]:
    tasks: list[dict[str, Any]] = [
        {"name": name, "path": entry.path, "scale": entry.scale}
        for name, entry in zip(plan.tasks, plan.recipe.deltas, strict=True)
    ]
    document = {
        "output": str(plan.output), "threshold": plan.threshold, "tasks": tasks,
        "coef": list(plan.recipe.coef), "output_bytes": plan.nbytes, "delta_bytes": plan.sum_nbytes,
        "memory_bytes": plan.memory, "threads": plan.threads,
    }  # fmt: skip
    if report is None:
        return document
    for row, kept, norm in zip(tasks, report.kept, report.norms, strict=True):
        row |= {"kept": kept, "norm": norm}
    return document | {"norm": report.norm, "warnings": [*plan.warnings, *report.warnings]}


def _show_masks(plan: MasksPlan, report: MasksReport | None = None) -> None:
    rows = [
        [name, COMMIT.sub(r"@\1", entry.path), f"{entry.scale:g}"]
        for name, entry in zip(plan.tasks, plan.recipe.deltas, strict=True)
    ]
    heads = ["task", "delta", "lambda"]
    if report is not None:
        heads += ["norm", "kept"]
        for row, norm, kept in zip(rows, report.norms, report.kept, strict=True):
            row += [f"{norm:.4g}", f"{kept:.1%}"]
    console.table(heads, rows, left=(0, 1))
    if plan.recipe.coef:
        console.line(f"lambda is multiplied by {', '.join(plan.recipe.coef)}")
    size = (
        f"{console.size(plan.nbytes)}, {plan.nbytes / plan.sum_nbytes:.2f} times one whole delta "
        f"({console.size(plan.sum_nbytes)})"
    )
    if report is None:
        console.line(
            f"would write {plan.output}: {size}, with {plan.threads} threads, in "
            f"{console.size(plan.memory)} of working memory"
        )
        return
    console.line(f"{plan.output}: TALL masks at threshold {plan.threshold:g}, {size}")
    made = command(
        "lorsmerge", "merge", plan.recipe.base, "--from", plan.output, "--for", plan.tasks[0],
        "-o", f"{plan.tasks[0]}/",
    )  # fmt: skip
    console.line(f"the model of one task: {made}")


def _scaled(plan: MergePlan, step_norm: float, step_norm_of: Path | None) -> MergePlan:
    from lorsmerge_cli.operations.merge import scaled_plan

    with console.progress("measure the step") as progress:
        scaled = scaled_plan(plan, step_norm, progress=progress)
    factor = scaled.largest_scale / plan.largest_scale
    aim = "" if step_norm_of is None else f" of {step_norm_of}"
    console.note(f"lambda is multiplied by {factor:.4g} to reach the step norm{aim}.")
    return scaled


def _planned_control(plan: MergePlan) -> MergePlan | None:
    from lorsmerge_cli.operations.merge import plan_control

    beside = plan_control(plan)
    if beside is None:
        console.note(f"{plan.method} adds the deltas up as they are: it is its own control.")
    else:
        console.warning(*beside.warnings)
    return beside


def _run(plan: MergePlan, beside: MergePlan | None) -> MergeReport:
    """Carry out a merge, and write its control beside it if one is planned."""
    from lorsmerge_cli.operations.merge import add_control, measure_control, run_merge

    own = 0.0
    if beside is not None:
        with console.progress("measure the control's step") as progress:
            own = measure_control(beside, progress)
    with console.progress("merge") as progress:
        report = run_merge(plan, progress)
    if beside is None:
        return report
    with console.progress("control") as progress:
        return add_control(report, beside, own, progress)


def _report_document(plan: MergePlan, report: MergeReport) -> dict[str, Any]:
    return (
        _plan_document(plan)
        | {
            "norms": list(report.norms),
            "norms_kept": list(report.kept),
            "step_norm": report.step,
            "updated": report.rounding.updated,
            "lost_to_rounding": report.rounding.lost,
            "warnings": [*plan.warnings, *report.warnings],
        }
        | _control_document(report)
    )


def _control_document(report: MergeReport) -> dict[str, Any]:
    if report.control is None:
        return {}
    found = report.control
    return {
        "control": {
            "output": str(found.output), "scales": list(found.scales), "step_norm": found.step,
        }
    }  # fmt: skip


def _push(output: Path, target: Target) -> PushReport:
    from lorsmerge_cli.operations.push import plan_push, run_push

    try:
        plan = plan_push(output, target)
        console.note(*plan.notes)
        return run_push(plan)
    except LorsmergeError as error:
        error_type = Interrupted if isinstance(error, Interrupted) else HubFault
        raise error_type(
            f"{output} is written, but not uploaded. {error.what}",
            f"{error.remedy} `{command('lorsmerge', 'push', output, target.repo)}` sends it.",
        ) from error


def _plan_document(plan: MergePlan, beside: MergePlan | None = None) -> dict[str, Any]:
    from lorsmerge_cli.operations.merge import pinned_recipe

    control = {} if beside is None else {"control": {"output": str(beside.output)}}
    floats = len(plan.base.float_specs)
    return (
        {
            "output": str(plan.output),
            "recipe": pinned_recipe(plan.recipe).to_dict(),
            "scale_total": plan.total_scale,
            "rest": plan.combiner.rest or plan.chosen_method.combiner,
            "tensors": {
                "pruned": len(plan.pruned),
                "unpruned": floats - len(plan.pruned),
                "copied": len(plan.base.specs) - floats,
            },
            "pruned_share_of_parameters": plan.pruned_share,
            "output_bytes": plan.output_size,
            "memory_bytes": plan.memory,
            "device": str(plan.device),
            "threads": plan.threads,
        }
        | ({"coefficients": [asdict(row) for row in _factors(plan)]} if plan.recipe.coef else {})
        | ({"calibration": _calibration(plan)} if plan.calibration else {})
        | control
    )


def _calibration(plan: MergePlan) -> list[dict[str, Any]]:
    return [
        {
            "delta": each.source.name,
            "output": str(each.output),
            "there": each.made,
            "utterances": len(each.utterances),
            "seconds": each.seconds,
            "bytes": each.layout.nbytes,
            "memory_bytes": each.memory,
        }
        for each in plan.calibration
    ]


def _factors(plan: MergePlan) -> list[GroupFactors]:
    from lorsmerge_cli.recipe.coefficients import group_factors

    return group_factors(plan.factors, list(plan.base.float_specs))


def _show_deltas(plan: MergePlan, report: MergeReport | None = None) -> None:
    """Show each delta's settings; ratios that it was pruned by before are in parentheses."""

    def ratio(value: float | None, stored: float | None) -> str:
        if value is not None:
            return f"{value:g}"
        return "-" if stored is None else f"({stored:g})"

    columns = {"norm": report.norms} if report else {}
    if report and plan.pruned:
        columns["norm kept"] = report.kept
    rows = []
    for number, (entry, vector) in enumerate(zip(plan.recipe.deltas, plan.vectors, strict=True)):
        provenance = getattr(vector, "provenance", None)
        stored = provenance.pruning if provenance else {}
        row = [
            COMMIT.sub(r"@\1", entry.label),
            *(ratio(getattr(entry, k), stored.get(k)) for k in ("svp", "mp")),
        ]
        row.append(f"{entry.scale:g}" if entry.scale is not None else "-")
        row += [f"{norms[number]:.4g}" for norms in columns.values()]
        rows.append(row)
    rows.append(["total", "", "", f"{plan.total_scale:g}", *("" for _ in columns)])
    scale = "lambda, before factors" if plan.recipe.rules else "lambda"
    console.table(["delta", "svp", "mp", scale, *columns], rows)


def _show_factors(plan: MergePlan) -> None:
    """Show what the rules multiply lambda by, modules in rows and halves in columns."""
    _show_own_rules(plan)
    if not plan.recipe.coef:
        return
    rows = _factors(plan)
    cells = {(row.module, row.half): _range(row.low, row.high) for row in rows}
    halves, modules = (list(dict.fromkeys(key[n] for key in cells)) for n in (1, 0))
    console.table(
        ["factor of lambda", *(half or "neither" for half in halves)],
        [
            [module or "other", *(cells.get((module, half), "") for half in halves)]
            for module in modules
        ],
    )
    if plan.factors.agreement is not None:
        console.line("and, in each tensor, by how its deltas agree: known when they are merged")


def _show_own_rules(plan: MergePlan) -> None:
    for entry, rules in zip(plan.recipe.deltas, plan.recipe.own_rules, strict=True):
        for kind, texts in rules.by_kind.items():
            if texts:
                of = "" if kind == "coef" else f" of its {kind.replace('_', '-')} part"
                path = COMMIT.sub(r"@\1", entry.path)
                console.line(f"{path}: lambda{of} is multiplied by {', '.join(texts)}")


def _range(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:.4g} to {high:.4g}"


def _show_plan(plan: MergePlan, beside: MergePlan | None) -> None:
    console.line(f"{plan.recipe.base} + {len(plan.vectors)} deltas by {plan.method}")
    _show_deltas(plan)
    _show_factors(plan)
    _show_calibration(plan)
    console.line(_tensor_line(plan))
    console.line(
        f"would write {plan.output}: {console.size(plan.output_size)} with {plan.threads} threads "
        f"on {plan.device}, in {console.size(plan.memory)} of working memory"
    )
    if beside is not None:
        console.line(f"and its control {beside.output}: {console.size(beside.output_size)}")


def _show_calibration(plan: MergePlan) -> None:
    """Show what each fine-tune would hear, and what that takes."""
    made = {each.output: each for each in plan.calibration}
    if not made:
        return
    rows = []
    for each in made.values():
        pairs = dict.fromkeys(f"{row.language} {row.task}" for row in each.utterances)
        rows.append(
            [
                COMMIT.sub(r"@\1", each.source.name), ", ".join(pairs), str(len(each.utterances)),
                f"{each.seconds / 60:.1f}",
                "is there already" if each.made else console.size(each.layout.nbytes),
            ]
        )  # fmt: skip
    console.table(["fine-tune", "would hear", "utterances", "minutes", "statistics"], rows)
    folder = next(iter(made)).parent
    console.line(
        f"would first write those statistics into {folder}, one fine-tune after the other, each in "
        f"{console.size(max(each.memory for each in made.values()))} for weights and sums; activations "
        "on top"
    )


def _show_report(
    plan: MergePlan, report: MergeReport, target: Target | None, pushed: PushReport | None
) -> None:
    _show_deltas(plan, report)
    console.line(_tensor_line(plan))
    if plan.recipe.coef:
        console.line(f"lambda is multiplied by {', '.join(plan.recipe.coef)}")
    _show_own_rules(plan)
    equal = "" if report.step else ", which the merge equals"
    console.line(f"a step of norm {report.step:.4g} from the base{equal}")
    updated, lost = report.rounding.updated, report.rounding.lost
    share = lost / updated if updated else 0.0
    console.line(
        f"{report.output}: {console.size(plan.output_size)}, method {plan.method}; "
        f"{share:.2%} of {updated:,} updates lost to rounding"
    )
    if report.control is not None:
        lowest, highest = min(report.control.scales), max(report.control.scales)
        scale = f"{lowest:.4g}" if lowest == highest else f"{lowest:.4g} to {highest:.4g}"
        console.line(
            f"{report.control.output}: its control, task arithmetic at lambda {scale} with a step of "
            f"norm {report.control.step:.4g}"
        )
    if target is not None and pushed is not None:
        console.line(*pushed.in_words(target))


def _tensor_line(plan: MergePlan) -> str:
    floats = len(plan.base.float_specs)
    share = f" ({plan.pruned_share:.0%} of the parameters)" if plan.pruned else ""
    others = "without statistics" if plan.combiner.statistics else "that are no matrices"
    rest = f"; those {others} by their {plan.combiner.rest}" if plan.combiner.rest else ""
    copied = f"{len(plan.base.specs) - floats} copied{rest}"
    if plan.chosen_method.pruner is None:
        return f"{floats} tensors merged, {copied}"
    unpruned = floats - len(plan.pruned)
    return f"{len(plan.pruned)} tensors pruned{share}, {unpruned} merged unpruned, {copied}"
