"""Choose lambda so that a merge takes a step of a given length."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lorsmerge_cli.checkpoint.model_files import DELTA
from lorsmerge_cli.errors import UnreadableFile, UsageFault, raise_all
from lorsmerge_cli.operations.merge.plan import MergePlan, plan_merge
from lorsmerge_cli.operations.merge.run import measure_step
from lorsmerge_cli.recipe.recipe import load_recipe
from lorsmerge_cli.recipe.record import recorded_step_norm
from lorsmerge_cli.usage import check_step_norm

LARGEST_SCALE = 1e30  # beyond it a product with a float32 overflows
RECIPES = (".toml", ".md", ".json")  # what `load_recipe` reads


def scaled_plan(
    plan: MergePlan,
    norm: float | None = None,
    other: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MergePlan:
    """Return the plan with every lambda multiplied by one factor, so that its step has a norm.

    Every method's step grows in proportion to lambda, so one pass over the inputs finds the factor.
    Without a norm the plan stays as it is.

    Args:
        plan: a checked merge.
        norm: L2 norm of the step from the base, over all tensors, before rounding.
        other: a merged model or a recipe, whose step's norm is taken in its place.
        progress: called with the bytes just read and the bytes in all.

    Raises:
        UsageFault: both are given, the norm is not positive, or the merge takes no step at all,
            whatever lambda is.
        UnreadableFile: no merge made `other`.
    """
    norm = wanted_norm(plan, norm, other, progress)
    return plan if norm is None else multiplied(plan, measure_step(plan, progress), norm)


def wanted_norm(
    plan: MergePlan,
    norm: float | None = None,
    other: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> float | None:
    """Return the step norm that a merge is to have, as `scaled_plan` takes it; None for none.

    Raises:
        UsageFault: both are given, or the norm is not positive.
        UnreadableFile: no merge made `other`.
    """
    raise_all(check_step_norm(norm, other))
    if other is None:
        return norm
    found = step_norm_of(other, plan, progress)
    if not 0 < found < math.inf:
        raise UsageFault(
            f"The step norm of {other} is {found:g}.", "Give a merge that takes a step."
        )
    return found


def multiplied(plan: MergePlan, own: float, norm: float) -> MergePlan:
    """Return the plan with every lambda multiplied by one factor, so that its step has a norm.

    Args:
        plan: a checked merge.
        own: L2 norm of its step as it is.
        norm: L2 norm of the step that is wanted, positive.

    Raises:
        UsageFault: it takes no step at all, whatever lambda is, or lambda would overflow.
    """
    if not 0 < own < math.inf:
        what = f"A step of norm {norm:g} cannot be reached: with these settings it is {own:g}."
        raise UsageFault(what, "Set a lambda other than 0, or merge other deltas.")
    if not plan.largest_scale * (norm / own) < LARGEST_SCALE:
        raise UsageFault(
            f"A step of norm {norm:g} takes a lambda of {plan.largest_scale * (norm / own):g}, which is too "
            f"large: with these settings its norm is {own:g}.",
            "Give a smaller norm.",
        )
    deltas = tuple(
        replace(entry, scale=(entry.scale or 0.0) * (norm / own)) for entry in plan.recipe.deltas
    )
    return replace(plan, recipe=replace(plan.recipe, deltas=deltas), aim=norm)


def recorded_norm(source: Path) -> float | None:
    """Return the norm of the step that a merge recorded; None for a recipe, whose step is measured.

    Args:
        source: as in `step_norm_of`.

    Raises:
        UnreadableFile: no merge made it.
    """
    if source.suffix == DELTA:
        raise UnreadableFile(
            f"{source} is a delta, and takes no step.", "Give a merge, or a recipe."
        )
    recorded = None if source.suffix in (".toml", ".md") else recorded_step_norm(source)
    if recorded is None and source.suffix not in RECIPES:
        raise UnreadableFile(
            f"{source} has no record of its step norm: it is not a merge, or an older lorsmerge wrote it.",
            "Give a merge, or a recipe: the lorsmerge.json of an older one.",
        )
    return recorded


def step_norm_of(
    source: Path, plan: MergePlan, progress: Callable[[int, int], None] = lambda done, total: None
) -> float:
    """Return the norm of the step of an earlier merge, or of the one that a recipe describes.

    Merges record it. It is measured, by a pass over all inputs, for a recipe.

    Args:
        source: a merged model (folder or file), its `lorsmerge.json`, a TOML recipe or a model card.
        plan: the merge that needs it, whose device and threads a measurement takes.
        progress: called with the bytes just read and the bytes in all.

    Raises:
        UnreadableFile: no merge made it.
    """
    recorded = recorded_norm(source)
    if recorded is not None:
        return recorded
    unwritten = plan.output.with_name(f"{plan.output.name}.measured.safetensors")
    other = plan_merge(  # of one file, which needs no config
        load_recipe(source), unwritten, device=str(plan.device), threads=plan.threads,
        force=plan.force, allow_other_base=plan.allow_other_base,
    )  # fmt: skip
    return measure_step(other, progress)
