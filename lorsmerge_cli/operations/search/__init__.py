"""Search the ratios and scales of a merge: many merges in memory, scored on a dev set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lorsmerge_cli.inputs import FilePath, path_of, several
from lorsmerge_cli.operations.search.files import document, of_earlier_fronts, write_report
from lorsmerge_cli.operations.search.gradient import at_an_end
from lorsmerge_cli.operations.search.plan import SearchPlan, plan_search
from lorsmerge_cli.operations.search.report import SearchReport, TrialRow
from lorsmerge_cli.operations.search.run import run_search
from lorsmerge_cli.operations.search.scores import Goal
from lorsmerge_cli.recipe.search_settings import SearchSettings
from lorsmerge_cli.recipe.space import default_scales, make_space

__all__ = [
    "Goal",
    "SearchPlan",
    "SearchReport",
    "TrialRow",
    "at_an_end",
    "document",
    "of_earlier_fronts",
    "plan_search",
    "run_search",
    "search",
    "write_report",
]


def search(
    base: FilePath,
    deltas: Sequence[FilePath] | FilePath,
    data: Sequence[FilePath] | FilePath,
    output: FilePath | None = None,
    *,
    svp: str | float | None = None,
    mp: str | float | None = None,
    scale: str | float | None = None,
    method: str | Sequence[str] | None = None,
    per_delta: str = "",
    by: str = "",
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    test: Sequence[FilePath] | FilePath = (),
    study: FilePath | None = None,
    only: Sequence[str] | str = (),
    where: Sequence[str] | str = (),
    csv: FilePath | None = None,
    plot: FilePath | None = None,
    config_dir: FilePath | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **settings: Any,
) -> SearchReport:
    """Search the ratios and scales of a merge that score best on a dev set.

    Finished trials are kept in a study, so that the same call resumes a search that was stopped.

    Args:
        base: the pretrained model: a folder or a file.
        deltas: delta files, or fine-tuned checkpoints.
        data: dev sets that merges are scored on.
        output: the recipe for `merge(recipe=...)`, a `.toml`: the simplest of those as good as the
            best.
        svp: singular value ratios that may be chosen: a list (`"0.01,0.03,none"`), `"LOW:HIGH"` or
            `"LOW:HIGH:STEP"`; by default no matrix is pruned by SVP, and by a method that takes a
            ratio with one of `"0.01,0.02,0.05"`.
        mp: magnitude ratios that may be chosen, written likewise (`"0.1,0.2,0.4"`).
        scale: lambdas that may be chosen, written likewise; by default from a third of the method's
            own lambda to ten thirds of it. With `sampler="gradient"` a number that they begin at, by
            default the method's own, or the range that they stay in.
        method: of all merges; by default what each trial's ratios imply. Of several, separated by
            commas or as a sequence, each trial takes one, and `scale` is task arithmetic's: the
            others get the lambda whose step is as long.
        per_delta: of svp, mp and scale, separated by commas: what each delta has its own of.
        by: of half, module, depth and part (of a delta that LoRS prunes: low-rank, sparse),
            separated by commas: what lambda differs by. The recipe then has rules of coefficients.
        include: shell patterns of further tensors to prune.
        exclude: shell patterns of tensors to merge unpruned.
        test: test sets to score the written recipe on, once, against the base.
        study: where trials are kept: a file, or a database URL; beside the output by default.
        only: `COLUMN=VALUE` of the rows to use of both, as `--only`.
        where: comparisons such as `duration<15` that are true of them, as `--where`.
        csv: a table of trials to write.
        plot: a picture of the objectives to draw; needs matplotlib.
        config_dir: model folder with config and tokenizer, for a base that is a bare file.
        progress: called with the trials newly finished and the trials in all.
        **settings: the other attributes of `SearchSettings` by name: `trials=60`, `sampler="tpe"`,
            `language="ca"`, `hours=1.0`, `beam=20`, `seed=0`, `force=False` and so on.

    Raises:
        LorsmergeError: see the subclasses; finished trials stay in the study.

    Example:
        >>> report = search(
        ...     "base", ["ca.delta", "de.delta"], "test.jsonl", "best.toml", scale="0.2,0.4", beam=1,
        ...     sampler="grid", finalists=1,
        ... )
        >>> sorted(trial.point["scale"] for trial in report.trials)[-2:], Path("best.toml").exists()
        ([0.2, 0.4], True)
    """
    chosen = SearchSettings(
        study=None if study is None else str(study), output=path_of(output), csv=path_of(csv),
        plot=path_of(plot), config_dir=path_of(config_dir),
        only=tuple(several(only)), where=tuple(several(where)), **settings,
    )  # fmt: skip
    space = make_space(
        str(base), list(map(str, several(deltas))),
        {"svp": svp, "mp": mp, "scale": default_scales(method, chosen.sampler) if scale is None else scale},
        per_delta, several(include), several(exclude), method, by, chosen.sampler,
    )  # fmt: skip
    dev, held_out = ([Path(path) for path in several(sets)] for sets in (data, test))
    plan = plan_search(space, dev, held_out, chosen)
    report = run_search(plan, progress=progress)
    if not chosen.worker:
        write_report(report)
    return report
