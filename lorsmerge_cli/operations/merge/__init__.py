"""Merge: base + sum of scaled, pruned deltas, streamed tensor by tensor (Eq. 8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from lorsmerge_cli.inputs import FilePath, path_of
from lorsmerge_cli.operations.merge.calibrate import (
    calibrated,
    plan_calibration,
    statistics_folder,
)
from lorsmerge_cli.operations.merge.control import (
    add_control,
    control_path,
    measure_control,
    plan_control,
    stale_control,
)
from lorsmerge_cli.operations.merge.faults import faulty_input
from lorsmerge_cli.operations.merge.inputs import MergeInputs, open_inputs, pinned_recipe
from lorsmerge_cli.operations.merge.masks import (
    MasksPlan,
    MasksReport,
    plan_masks,
    run_masks,
    tall_masks,
)
from lorsmerge_cli.operations.merge.plan import MergePlan, plan_merge
from lorsmerge_cli.operations.merge.run import MergeReport, run_merge
from lorsmerge_cli.operations.merge.state_dicts import merge_state_dicts
from lorsmerge_cli.operations.merge.step_norm import recorded_norm, scaled_plan, wanted_norm
from lorsmerge_cli.recipe.calibration import Calibration, Heard, wanted_calibration
from lorsmerge_cli.recipe.published import recorded_call
from lorsmerge_cli.recipe.recipe import DeltaEntry, wanted_recipe

__all__ = [
    "MasksPlan",
    "MasksReport",
    "MergeInputs",
    "MergePlan",
    "MergeReport",
    "add_control",
    "calibrated",
    "control_path",
    "faulty_input",
    "measure_control",
    "merge",
    "merge_state_dicts",
    "open_inputs",
    "pinned_recipe",
    "plan_calibration",
    "plan_control",
    "plan_masks",
    "plan_merge",
    "recorded_norm",
    "run_masks",
    "run_merge",
    "scaled_plan",
    "stale_control",
    "statistics_folder",
    "tall_masks",
    "wanted_norm",
]


def merge(
    base: FilePath | None = None,
    deltas: Sequence[FilePath | DeltaEntry] | FilePath = (),
    output: FilePath | None = None,
    *,
    svp: float | None = None,
    mp: float | None = None,
    scale: float | None = None,
    coef: Sequence[str] | str = (),
    step_norm: float | None = None,
    step_norm_of: FilePath | None = None,
    control: bool = False,
    method: str | None = None,
    prune: str | None = None,
    combine: str | None = None,
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    stats: Sequence[FilePath] | FilePath = (),
    calibrate: Heard = (),
    half: str = "all",
    hours: float | None = None,
    from_masks: FilePath | None = None,
    for_task: str | None = None,
    recipe: FilePath | None = None,
    save_recipe: FilePath | None = None,
    config_dir: FilePath | None = None,
    dtype: str | None = None,
    max_shard_size: int = 5 * 10**9,
    allow_other_base: bool = False,
    strip_prefix: str = "",
    force: bool = False,
    device: str = "auto",
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MergeReport:
    """Add pruned deltas to a base, and write the merged model.

    Args:
        base: the pretrained checkpoint: a file, a folder or a Hub id.
        deltas: deltas, or fine-tunes whose delta is then taken. Settings of one follow a colon:
            `ca.delta:svp=0.05,mp=0.4,scale=0.2`.
        output: `x.safetensors` for one file, anything else for a model folder; by default
            `merged.safetensors`, or `merged` where the base is a folder.
        svp: share of the singular values of each matrix that is kept, 0 to 1.
        mp: share of the elements of each matrix that is kept, 0 to 1.
        scale: lambda, the coefficient of each delta; by default the method's, 0.15 for most.
        coef: rules of factors that lambda is multiplied by, by tensor (`decoder=0.5`,
            `decoder.cross_attn=0.5`, `*.fc1.*=0.5`: the first that matches a tensor counts;
            `lines:beta=0.4`, `model_stock`) or by delta (`equalise`, `metagpt`).
        step_norm: multiply all coefficients so that the step from the base has this L2 norm.
        step_norm_of: as `step_norm`, with that of another merge: a merged model, or a recipe.
        method: a name that `lorsmerge methods` lists, or PRUNER+COMBINER, with parameters after a
            colon: `ties:k=0.3`, `lors+iso_c`. By default what the ratios say.
        prune: a pruner, in place of a method: `lors`, `lors:svp=0.05,mp=0.2`.
        combine: a combiner, in place of a method; by default that of the pruner's own method.
        control: write task arithmetic of the same deltas beside the merge, as `OUTPUT-control`, with
            a step of the same norm. Takes a pass over the inputs before the merge and one after.
        include: shell patterns of further tensors to prune.
        exclude: shell patterns of tensors to merge unpruned.
        stats: files that `stats` wrote, of the deltas' fine-tunes and in any order, for a method
            that weighs deltas by them.
        calibrate: data sets to take such statistics over first, kept in `OUTPUT-stats`: a fine-tune
            hears rows of its delta's language and task; `NAME=DATA`, or a mapping, is for one alone.
        half: of the model that these are taken of: `encoder`, `decoder` or `all`.
        hours: about how much of each data set a fine-tune hears; all by default.
        from_masks: a file that `tall_masks` wrote, in place of deltas; its scale is 1 by default.
        for_task: the task whose model is made from it.
        recipe: a TOML recipe, a model card or a `lorsmerge.json`, in place of base, deltas and
            settings.
        save_recipe: a TOML file to write the recipe to.
        config_dir: model folder or Hub id to take config and tokenizer from, for a base that is a
            bare file.
        dtype: of the output, the base's by default.
        max_shard_size: bytes in one file of a folder.
        allow_other_base: apply deltas to another checkpoint than they were taken from.
        strip_prefix: that the tensor names of only the base, or only a fine-tune, begin with, such
            as `module.`.
        force: replace an output that exists.
        device: where matrices are pruned: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        threads: tensors in flight; one per core by default. The result does not depend on it.
        progress: called with the bytes just merged and the bytes in all; while statistics are taken,
            with utterances.

    Raises:
        LorsmergeError: see the subclasses. All faults that headers tell are raised first, at once.

    Example:
        >>> report = merge("base", ["ca.delta", "de.delta:scale=0.2"], "merged", svp=0.03, mp=0.4)
        >>> report.output, report.pruned > 0
        (PosixPath('merged'), True)
    """
    wanted = wanted_recipe(
        base, deltas, file=recipe, method=method, svp=svp, mp=mp, scale=scale, include=include,
        exclude=exclude, dtype=dtype, coef=coef, prune=prune, combine=combine, stats=stats,
        from_masks=from_masks, for_task=for_task,
    )  # fmt: skip
    audio = wanted_calibration(wanted, calibrate, half=half, hours=hours)
    plan = plan_merge(
        wanted, path_of(output), calibrated=audio is not None, config_dir=path_of(config_dir),
        save_recipe=path_of(save_recipe), device=device, threads=threads, max_shard_size=max_shard_size,
        force=force, allow_other_base=allow_other_base, strip_prefix=strip_prefix,
    )  # fmt: skip
    plan = plan_calibration(plan, audio, path_of(config_dir))
    line = _call(plan, audio) if audio else ""
    return _carried_out(plan, line, control, step_norm, path_of(step_norm_of), progress)


def _carried_out(
    plan: MergePlan,
    command: str,
    control: bool,
    step_norm: float | None,
    step_norm_of: Path | None,
    progress: Callable[[int, int], None],
) -> MergeReport:
    beside = plan_control(plan) if control else None
    warnings = (*plan.warnings, *stale_control(plan, beside))
    norm = wanted_norm(plan, step_norm, step_norm_of, progress)  # fails before the long work
    plan = scaled_plan(calibrated(plan, command, progress), norm, progress=progress)
    own = 0.0 if beside is None else measure_control(beside, progress)
    report = run_merge(plan, progress)
    if beside is not None:
        report = add_control(report, beside, own, progress)
    return replace(report, warnings=(*warnings, *report.warnings))


def _call(plan: MergePlan, audio: Calibration) -> str:
    """Return the call for the record of the statistics that a merge makes."""
    heard = [f"{name}={path}" for name, paths in audio.data.items() for path in paths]
    return recorded_call(
        "merge", plan.recipe.base, [entry.path for entry in plan.recipe.deltas], plan.output,
        method=plan.method, calibrate=heard, half=audio.half, hours=audio.hours,
    )  # fmt: skip
