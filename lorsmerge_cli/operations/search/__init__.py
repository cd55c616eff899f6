"""Search the ratios and scales of a merge: many merges in memory, scored on a dev set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lorsmerge_cli.errors import raise_all
from lorsmerge_cli.inputs import FilePath, path_of, several
from lorsmerge_cli.operations.search.files import document, of_earlier_fronts, write_report
from lorsmerge_cli.operations.search.plan import plan_search
from lorsmerge_cli.operations.search.report import SearchReport, TrialRow
from lorsmerge_cli.operations.search.run import run_search
from lorsmerge_cli.operations.search.scores import Goal
from lorsmerge_cli.recipe.search_settings import (
    SCALES,
    DataSettings,
    SearchSettings,
    check_settings,
    check_space,
)
from lorsmerge_cli.recipe.space import make_space

__all__ = [
    "Goal",
    "SearchReport",
    "TrialRow",
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
    scale: str | float = SCALES,
    method: str | None = None,
    per_delta: str = "",
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    test: Sequence[FilePath] | FilePath = (),
    language: str | None = None,
    task: str | None = None,
    hours: float | None = None,
    data_seed: int = 0,
    format: str | None = None,
    study: FilePath | None = None,
    csv: FilePath | None = None,
    plot: FilePath | None = None,
    config_dir: FilePath | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **settings: Any,
) -> SearchReport:
    """Search the ratios and scales of a merge that score best on a dev set.

    Trials are kept in a study as they end, so that the same call resumes a search that was stopped.

    Args:
        base: the pretrained model: a folder or a file.
        deltas: delta files, or fine-tuned checkpoints.
        data: dev sets that merges are scored on.
        output: the recipe for `merge(recipe=...)`, a `.toml`: the simplest of those as good as the
            best.
        svp, mp: ratios that may be chosen: a list (`"0.01,0.03,none"`), `"LOW:HIGH"` or
            `"LOW:HIGH:STEP"`; by default nothing is pruned.
        scale: lambdas that may be chosen, likewise.
        method: how deltas are merged where none is pruned; task arithmetic by default.
        per_delta: of svp, mp and scale, separated by commas: what each delta has its own of.
        include, exclude: shell patterns of tensors to prune as well, or not to prune.
        test: test sets to score the written recipe on, once, against the base.
        language, task: of data that does not say; rows that say another are skipped.
        hours: about how much of each data set to take; all by default.
        data_seed: another one takes other rows for `hours`.
        format: of the data, found out by default.
        study: where trials are kept: a file, or a database URL; beside the output by default.
        csv: a table of trials to write.
        plot: a picture of the objectives to draw; needs matplotlib.
        config_dir: model folder with config and tokenizer, for a base that is a bare file.
        progress: told the trials newly finished and those in all.
        settings: the other attributes of `SearchSettings` by name: `trials=60`, `sampler="tpe"`,
            `beam=20`, `seed=0`, `force=False` and so on.

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
    wanted = SearchSettings(
        study=None if study is None else str(study), output=path_of(output), csv=path_of(csv), plot=path_of(plot),
        companions=path_of(config_dir), **settings,
    )  # fmt: skip
    texts = {
        key: None if value is None else str(value)
        for key, value in (("svp", svp), ("mp", mp), ("scale", scale))
    }
    space = make_space(
        str(base), list(map(str, several(deltas))), texts, per_delta, several(include),
        several(exclude), method,
    )  # fmt: skip
    raise_all(check_settings(wanted) + check_space(space, wanted))
    reading = DataSettings(language, task, format, hours, data_seed)
    plan = plan_search(
        space, list(map(Path, several(data))), list(map(Path, several(test))), reading, wanted
    )
    report = run_search(plan, progress=progress)
    if not wanted.worker:
        write_report(report)
    return report
