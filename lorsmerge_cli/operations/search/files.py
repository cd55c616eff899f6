"""What a search writes: recipes, the table of its trials, its report as a document."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lorsmerge_cli.inputs import open_regular
from lorsmerge_cli.metrics.significance import Comparison
from lorsmerge_cli.operations.merge import pinned_recipe
from lorsmerge_cli.operations.search.plot import plot_search
from lorsmerge_cli.operations.search.report import Finalist, SearchReport, TrialRow
from lorsmerge_cli.outputs import atomic_file
from lorsmerge_cli.recipe.recipe import Recipe
from lorsmerge_cli.recipe.search_settings import recipe_files, shown
from lorsmerge_cli.results.records import finite

HEADING = "# lorsmerge search:"


def write_report(report: SearchReport) -> list[Path]:
    """Write the recipes, and the table and the picture where they are asked for.

    Returns:
        The files.

    Raises:
        OutputFault: one of them cannot be written.
    """
    written = []
    settings = report.plan.settings
    for path, finalist in zip(recipe_files(settings), report.written, strict=False):
        text = _heading(report, finalist) + _recipe(report, finalist).to_toml()
        with atomic_file(path, force=settings.force) as partial:
            partial.write_text(text, encoding="utf-8")
        written.append(path)
    if settings.csv is not None:
        with atomic_file(settings.csv, force=settings.force) as partial:
            partial.write_text(trials_csv(report), encoding="utf-8", newline="")
        written.append(settings.csv)
    if settings.plot is not None:
        plot_search(report, settings.plot, force=settings.force)
        written.append(settings.plot)
    return written


def of_earlier_fronts(report: SearchReport) -> list[Path]:
    """List the recipes of an earlier, larger front beside those that were written."""
    if len(report.plan.goal.tasks) == 1:
        return []
    later = recipe_files(report.plan.settings)[len(report.written) :]
    return [path for path in later if _is_of_a_search(path)]


def _is_of_a_search(path: Path) -> bool:
    """Whether a file begins as the recipes do that `search` writes."""
    if not path.is_file():
        return False
    with open_regular(path) as file:
        return file.read(len(HEADING)) == HEADING.encode()


def _recipe(report: SearchReport, finalist: Finalist) -> Recipe:
    return pinned_recipe(report.plan.space.recipe(finalist.trial.point).resolved())


def _heading(report: SearchReport, finalist: Finalist) -> str:
    """What a recipe is, as a comment above it."""
    names = report.plan.goal.names(ranking=False)
    found = ", ".join(
        f"{name} {value:.2f}" for name, value in zip(names, finalist.values, strict=True)
    )
    return (
        f"{HEADING} {finalist.trial.name} of {len(report.trials)}, {found} on "
        f"{len(report.plan.rows)} utterances (beam {report.plan.settings.beam})\n"
    )


def trials_csv(report: SearchReport) -> str:
    """One line a trial: what was tried, its scores, and those of the finalists by beam search."""
    goal = report.plan.goal
    ranked, final = goal.names(ranking=True), goal.names(ranking=False)
    groups = list(dict.fromkeys(key for row in report.trials for key in row.scores))
    beam = f"beam {report.plan.settings.beam}"
    how = goal.rank_by if goal.rank_by != "beam" else beam
    heads = ["trial", "title", "state", "part", "same as", *report.plan.space.parameters]
    # a loss says so itself
    ranked = tuple(name if goal.rank_by == "loss" else f"{name} ({how})" for name in ranked)
    heads += [*ranked, *groups]
    heads += [f"{name} of the part" for name in (*ranked, *groups)] if _stopped(report) else []
    if goal.rank_by != "beam":
        heads += [f"{name} ({beam})" for name in final]
    finals = {finalist.trial.number: finalist.values for finalist in report.finalists}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(heads)
    for row in report.trials:
        line: list[Any] = [row.number, row.title, _state(row), f"{row.part:.4g}", row.same_as or ""]
        line += ["none" if value is None else value for value in row.point.values()]
        scores = [*row.values, *(row.scores.get(group, "") for group in groups)]
        none = [""] * len(scores)  # a score of a part is not to be sorted among those of the whole
        line += none if row.stopped else scores
        if _stopped(report):
            line += scores if row.stopped else none
        if goal.rank_by != "beam":
            line += finals.get(row.number, [""] * len(final))
        table.writerow(line)
    return text.getvalue()


def _stopped(report: SearchReport) -> bool:
    return any(row.stopped for row in report.trials)


def _state(row: TrialRow) -> str:
    return "stopped" if row.stopped else "finished"


def document(report: SearchReport) -> dict[str, Any]:
    """The report for --json."""
    plan = report.plan
    settings, goal = plan.settings, plan.goal
    best = report.finalists[0] if report.finalists else None
    return {
        "study": shown(plan.study),
        "name": settings.name,
        "sampler": settings.sampler,
        "seed": settings.seed,
        "rank_by": goal.rank_by,
        "beam": settings.beam,
        "normalisation": settings.normalisation,
        "objectives": list(goal.names(ranking=False)),
        "utterances": len(plan.rows),
        "trials": [_trial(row) for row in report.trials],
        "finalists": [
            {**_trial(found.trial), "values": list(found.values), "scores": finite(found.scores),
             "on_front": found.on_front, "as_good_as_the_best": found.as_good,
             "from_the_best": [_difference(difference) for difference in found.differences]}
            for found in report.finalists
        ],
        "best": best and _recipe(report, best).to_dict(),
        "chosen": report.chosen and report.chosen.trial.name,
        "recipe": report.chosen and _recipe(report, report.chosen).to_dict(),
        "base": finite(report.base) if report.base else None,
        "test": finite(report.test) if report.test else None,
        "base_test": finite(report.base_test) if report.base_test else None,
        "test_less_base": [
            _difference(found) | {"p_value": finite(found.p_value)} for found in report.tested
        ],
        "own_trials": report.own,
    }  # fmt: skip


def _difference(found: Comparison) -> dict[str, Any]:
    interval = found.interval
    return {
        "difference": finite(found.difference), "standard_error": finite(interval.standard_error),
        "low": finite(interval.low), "high": finite(interval.high), "blocks": found.blocks,
    }  # fmt: skip


def _trial(row: TrialRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "trial": row.number or None,
        "title": row.title,
        "state": _state(row),
        "part": row.part,
        "point": row.point,
        "values": [finite(value) for value in row.values],
        "scores": finite(row.scores),
        "same_as": row.same_as,
    }
