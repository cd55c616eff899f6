"""The control of a merge: task arithmetic of the same deltas, with a step of the same norm."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lorsmerge_cli.core.methods import method_of
from lorsmerge_cli.deltas.file import DeltaFile
from lorsmerge_cli.errors import UsageFault, named, raise_all
from lorsmerge_cli.operations.merge.plan import MergePlan
from lorsmerge_cli.operations.merge.run import Control, MergeReport, measure_step, run_merge
from lorsmerge_cli.operations.merge.step_norm import multiplied
from lorsmerge_cli.outputs import check_not_inside, check_output, leftovers
from lorsmerge_cli.recipe.coefficients import TensorFactors
from lorsmerge_cli.recipe.recipe import DeltaEntry, Recipe


def control_path(output: Path) -> Path:
    """Return where the control of a merge is written: beside it.

    Example:
        >>> control_path(Path("runs/lors")), control_path(Path("lors.safetensors"))
        (PosixPath('runs/lors-control'), PosixPath('lors-control.safetensors'))
    """
    suffix = output.suffix if output.suffix.lower() == ".safetensors" else ""
    return output.with_name(f"{output.name.removesuffix(suffix)}-control{suffix}")


def stale_control(plan: MergePlan, beside: MergePlan | None) -> list[str]:
    """Return a warning of a control that an earlier merge left where this one's would be.

    Args:
        plan: of the merge.
        beside: of its control; None where none is written.
    """
    path = control_path(plan.output)
    if beside is not None or not os.path.lexists(path):
        return []
    return [
        f"{path} is there from before, and is not the control of this merge: remove it, or replace it "
        "with --control --force."
    ]


def plan_control(plan: MergePlan) -> MergePlan | None:
    """Plan the control of a merge: its deltas as they are, added up.

    Their lambdas are those of the merge; once it is made, `add_control` multiplies them by one
    factor, so that the control's step has the norm of the merge's.

    Args:
        plan: of the merge, checked.

    Returns:
        None where the merge only adds the deltas up and so is its own control.

    Raises:
        UsageFault: the deltas were pruned before, so their sum is this merge and not its control; or
            they are in a file of TALL masks, which has no more than their sum.
        OutputFault: the control cannot be written.
    """
    masked = [entry.path for entry in plan.recipe.deltas if entry.for_task is not None]
    if masked:
        raise UsageFault(
            f"--control: {masked[0]} holds no deltas that could be added up.",
            f"Make this merge, and then merge the deltas with --step-norm-of {plan.output}.",
        )
    if plan.chosen_method.adds_up and not plan.recipe.rules:
        _check_not_pruned(plan)
        return None
    output, recipe = control_path(plan.output), plan.recipe
    read = [path for path in (recipe.source, plan.config_dir) if path is not None]
    faults = check_output(
        output, inputs=[*plan.files, *read, plan.output], size=2 * plan.output_size,
        force=plan.force, folder=plan.as_folder,
    )  # fmt: skip
    if plan.save_recipe is not None:
        faults += check_output(
            plan.save_recipe, inputs=[output], size=0, force=plan.force
        ) + check_not_inside(plan.save_recipe, output)
    raise_all(faults)
    added_up = Recipe(  # what else a recipe may hold, such as patterns, is the merge's alone
        recipe.base,
        tuple(DeltaEntry(entry.path, scale=entry.scale) for entry in recipe.deltas),
        method=method_of(()),
        dtype=recipe.dtype,
        expected=recipe.expected,
        expected_contents=recipe.expected_contents,
        source=recipe.source,
    )
    return replace(
        plan, recipe=added_up.resolved(), output=output, pruned=frozenset(),
        factors=TensorFactors({}), statistics=(), calibration=(), save_recipe=None,
        warnings=tuple(leftovers(output)),
    )  # fmt: skip


def _check_not_pruned(plan: MergePlan) -> None:
    pruned = [
        str(vector.path)
        for vector in plan.vectors
        if isinstance(vector, DeltaFile) and vector.provenance.pruning
    ]
    if pruned:
        raise UsageFault(
            f"--control: {named(pruned)} {'was' if len(pruned) == 1 else 'were'} pruned before, so "
            "task arithmetic of these deltas is this merge itself.",
            "Merge the deltas that they were pruned from, with --svp and --mp; or make this merge, and "
            f"then merge those with --step-norm-of {plan.output}.",
        )


def measure_control(
    control: MergePlan, progress: Callable[[int, int], None] = lambda done, total: None
) -> float:
    """Return the norm of the step that a control takes with the merge's own lambdas.

    Args:
        control: by `plan_control`.
        progress: called with the bytes of the base just read and the bytes in all.

    Raises:
        UsageFault: it takes none, so that no factor of the lambdas gives it the merge's step norm.
    """
    own = measure_step(control, progress)
    if not 0 < own < math.inf:
        raise UsageFault(
            f"--control: with these lambdas the deltas add up to a step of norm {own:g}, and no factor "
            "makes it as long as the merge's.",
            "Omit --control, or change the lambdas.",
        )
    return own


def add_control(
    report: MergeReport,
    control: MergePlan,
    own: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MergeReport:
    """Write the control of a merge, and return the merge's report with it.

    A merge that takes no step equals its base, and gets no control.

    Args:
        report: of the merge.
        control: by `plan_control`.
        own: what `measure_control` returned.
        progress: called with the bytes of the base just merged and the bytes in all.

    Raises:
        LorsmergeError: as `run_merge`; the merge itself is in place then.
    """
    if not report.step:
        what = f"{report.output} takes no step from its base, so it has no control."
        return replace(report, warnings=(*report.warnings, what))
    scaled = multiplied(control, own, report.step)
    made = run_merge(scaled, progress)
    scales = tuple(entry.scale or 0.0 for entry in scaled.recipe.deltas)
    more = [f"{made.output}: {text}" for text in made.warnings if text not in report.warnings]
    return replace(
        report,
        control=Control(made.output, scales, made.step),
        warnings=(*report.warnings, *more),
    )
