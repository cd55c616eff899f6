"""`lorsmerge merge`."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorsmerge_cli import console, options
from lorsmerge_cli.errors import HubFault, Interrupted, LorsmergeError, raise_all
from lorsmerge_cli.quoting import command

if TYPE_CHECKING:
    from lorsmerge_cli.hub.target import Target
    from lorsmerge_cli.operations.merge import MergePlan, MergeReport
    from lorsmerge_cli.operations.push import PushReport
    from lorsmerge_cli.recipe.recipe import Recipe

COMMIT = re.compile(r"@([0-9a-f]{10})[0-9a-f]{30}")


Base = Annotated[
    str | None,
    typer.Argument(metavar="BASE", help="The pretrained checkpoint: file, folder or Hub id."),
]
Deltas = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="DELTA",
        help="Deltas, or fine-tunes (checkpoints, LoRA adapters) whose delta is then taken: files, "
        "folders or Hub ids. Settings of one follow a colon: ca.delta:svp=0.05,mp=0.4,scale=0.2",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        rich_help_panel=options.OUTPUT,
        help="x.safetensors for one file, anything else for a model folder; by default "
        "merged.safetensors, or merged/ where the base is a folder.",
    ),
]
Scale = Annotated[
    float | None,
    typer.Option(
        "--scale",
        metavar="LAMBDA",
        rich_help_panel=options.PRUNING,
        help=f"Coefficient of each delta: {options.SCALES}.",
    ),
]
MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="NAME",
        rich_help_panel=options.PRUNING,
        help=f"{options.METHOD_NAMES}. By default what the ratios say, task arithmetic "
        "without any.",
    ),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        metavar="FILE",
        rich_help_panel="Recipe",
        help="Take base, deltas and settings from a TOML recipe, from a model card that holds one "
        "(.md), or from the lorsmerge.json of an earlier merge.",
    ),
]
SaveRecipe = Annotated[
    Path | None,
    typer.Option(
        "--save-recipe",
        metavar="FILE",
        rich_help_panel="Recipe",
        help="Write the recipe of this merge, every default spelled out, as TOML.",
    ),
]
ShardSize = Annotated[
    str,
    typer.Option(
        "--max-shard-size",
        metavar="SIZE",
        rich_help_panel=options.OUTPUT,
        help="Largest weight file of a model folder.",
    ),
]
AllowOtherBase = Annotated[
    bool,
    typer.Option(
        "--allow-other-base",
        rich_help_panel=options.OUTPUT,
        help="Apply deltas to another checkpoint than they were taken from.",
    ),
]
Push = Annotated[
    str | None,
    typer.Option(
        "--push",
        metavar="ORG/NAME",
        rich_help_panel=options.OUTPUT,
        help="Upload what was written to the Hub; `lorsmerge push` has more options.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        "-n",
        rich_help_panel=options.OUTPUT,
        help="Check everything and print the plan; write nothing.",
    ),
]


def merge(
    base: Base = None,
    deltas: Deltas = None,
    svp: options.Svp = None,
    mp: options.Mp = None,
    scale: Scale = None,
    method: MethodName = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    recipe: RecipeFile = None,
    save_recipe: SaveRecipe = None,
    output: Output = None,
    companions: options.Companions = None,
    dtype: options.Dtype = None,
    max_shard_size: ShardSize = "5GB",
    allow_other_base: AllowOtherBase = False,
    strip_prefix: options.StripPrefix = "",
    push: Push = None,
    dry_run: DryRun = False,
    force: options.Force = False,
    device: options.Device = "auto",
    threads: options.Threads = None,
) -> None:
    """Add pruned deltas to a base: base + lambda * sum of LoRS(delta).

    Example: lorsmerge merge base.safetensors ca_asr.delta de_st.delta --svp 0.03 --mp 0.4
    """
    from lorsmerge_cli.recipe.recipe import wanted_recipe

    wanted = wanted_recipe(
        base, deltas, file=recipe, method=method, svp=svp, mp=mp, scale=scale, include=include,
        exclude=exclude, dtype=dtype,
    )  # fmt: skip
    shard_size = options.parse_size("--max-shard-size", max_shard_size)
    wanted.resolved()  # a mistake in the settings shows before PyTorch is loaded
    from lorsmerge_cli.usage import check_merge

    raise_all(
        check_merge(
            Path(wanted.base), [Path(entry.path) for entry in wanted.deltas], output,
            companions=companions, save_recipe=save_recipe, dtype=wanted.dtype, device=device,
            force=force,
        )
    )  # fmt: skip
    if push is not None:
        from lorsmerge_cli.hub.target import check_id

        check_id(push)
    _run(
        wanted, output, push, dry_run, config_dir=companions, save_recipe=save_recipe, device=device,
        threads=threads, max_shard_size=shard_size, force=force, allow_other_base=allow_other_base,
        strip_prefix=strip_prefix,
    )  # fmt: skip


def _run(
    recipe: Recipe, output: Path | None, repo: str | None, dry_run: bool, **settings: Any
) -> None:
    from lorsmerge_cli.operations.merge import plan_merge, run_merge

    target = None if repo is None else _target(repo)
    plan = plan_merge(recipe, output, **settings)
    if target is not None:
        raise_all(plan.lacking)  # which a push refuses when the work is done
    for text in plan.warnings:
        console.warning(text)
    if dry_run:
        console.result(_plan_document(plan), lambda: _show_plan(plan))
        return
    with console.progress("merge") as progress:
        report = run_merge(plan, progress)
    for text in report.warnings:
        console.warning(text)
    document = _plan_document(plan) | {
        "norms": list(report.norms),
        "norms_kept": list(report.kept),
        "step_norm": report.step,
        "updated": report.rounding.updated,
        "lost_to_rounding": report.rounding.lost,
    }
    pushed = None if target is None else _push(plan.output, target)
    if pushed is not None:
        document["push"] = asdict(pushed)
    console.result(document, lambda: _show_report(plan, report, target, pushed))


def _target(repo: str) -> Target:
    """The repository, if it may be written: found out before the work is done."""
    from lorsmerge_cli.hub.target import open_target

    return open_target(repo)


def _push(output: Path, target: Target) -> PushReport:
    from lorsmerge_cli.operations.push import plan_push, run_push

    try:
        plan = plan_push(output, target)
        for text in plan.notes:
            console.note(text)
        return run_push(plan)
    except LorsmergeError as error:
        kind = Interrupted if isinstance(error, Interrupted) else HubFault
        raise kind(
            f"{output} is written, but not uploaded. {error.what}",
            f"{error.remedy} `{command('lorsmerge', 'push', output, target.repo)}` sends it.",
        ) from error


def _plan_document(plan: MergePlan) -> dict[str, Any]:
    from lorsmerge_cli.operations.merge import pinned_recipe

    floats = len(plan.base.float_specs)
    return {
        "output": str(plan.output),
        "recipe": pinned_recipe(plan.recipe).to_dict(),
        "scale_total": plan.total_scale,
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


def _show_deltas(plan: MergePlan, report: MergeReport | None = None) -> None:
    """What is done with each delta; in parentheses the ratios it was pruned by before."""

    def ratio(value: float | None, stored: float | None) -> str:
        if value is not None:
            return f"{value:g}"
        return "-" if stored is None else f"({stored:g})"

    rows = []
    for number, (entry, vector) in enumerate(zip(plan.recipe.deltas, plan.vectors, strict=True)):
        file = getattr(vector, "file", None)
        stored = file.provenance.pruning if file else {}
        row = [
            COMMIT.sub(r"@\1", entry.path),
            *(ratio(getattr(entry, k), stored.get(k)) for k in ("svp", "mp")),
        ]
        row.append(f"{entry.scale:g}" if entry.scale is not None else "-")
        if report:
            row += [f"{report.norms[number]:.4g}", f"{report.kept[number]:.4g}"]
        rows.append(row)
    norms = ["norm", "norm kept"] if report else []
    rows.append(["total", "", "", f"{plan.total_scale:g}", *("" for _ in norms)])
    console.table(["delta", "svp", "mp", "lambda", *norms], rows)


def _show_plan(plan: MergePlan) -> None:
    console.line(f"{plan.recipe.base} + {len(plan.vectors)} deltas by {plan.method}")
    _show_deltas(plan)
    console.line(_tensor_line(plan))
    console.line(
        f"would write {plan.output}: {console.size(plan.output_size)} with {plan.threads} threads "
        f"on {plan.device}, in {console.size(plan.memory)} of working memory"
    )


def _show_report(
    plan: MergePlan, report: MergeReport, target: Target | None, pushed: PushReport | None
) -> None:
    _show_deltas(plan, report)
    console.line(_tensor_line(plan))
    equal = "" if report.step else ", which the merge equals"
    console.line(f"a step of norm {report.step:.4g} from the base{equal}")
    updated, lost = report.rounding.updated, report.rounding.lost
    share = lost / updated if updated else 0.0
    console.line(
        f"{report.output}: {console.size(plan.output_size)}, method {plan.method}; "
        f"{share:.2%} of {updated:,} updates lost to rounding"
    )
    if target is not None and pushed is not None:
        console.lines(pushed.in_words(target))


def _tensor_line(plan: MergePlan) -> str:
    floats = len(plan.base.float_specs)
    share = f" ({plan.pruned_share:.0%} of the parameters)" if plan.pruned else ""
    return (
        f"{len(plan.pruned)} tensors pruned{share}, {floats - len(plan.pruned)} merged unpruned, "
        f"{len(plan.base.specs) - floats} copied"
    )
