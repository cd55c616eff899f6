"""Write what a search found: recipes, the table of its trials, its report as a document."""

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
from lorsmerge_cli.recipe.recipe import Recipe, save
from lorsmerge_cli.recipe.search_settings import recipe_files, shown
from lorsmerge_cli.results.records import finite

HEADING = "# lorsmerge search:"


def write_report(report: SearchReport) -> list[Path]:
    """Write the recipes, and the table and the picture if they are named; return the files.

    Raises:
        OutputFault: one of them cannot be written.
    """
    written = []
    settings = report.plan.settings
    for path, finalist in zip(recipe_files(settings), report.written, strict=False):
        heading = _heading(report, finalist)
        save(_recipe(report, finalist), path, force=settings.force, heading=heading)
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
    """Return the recipes of an earlier, larger front beside those that were written."""
    if len(report.plan.goal.tasks) == 1:
        return []
    later = recipe_files(report.plan.settings)[len(report.written) :]
    return [path for path in later if _is_of_a_search(path)]


def _is_of_a_search(path: Path) -> bool:
    """Return whether a file begins like a recipe that `search` wrote."""
    if not path.is_file():
        return False
    with open_regular(path) as file:
        return file.read(len(HEADING)) == HEADING.encode()


def _recipe(report: SearchReport, finalist: Finalist) -> Recipe:
    return pinned_recipe(report.plan.space.recipe(finalist.trial.point).resolved())


def _heading(report: SearchReport, finalist: Finalist) -> str:
    """Describe a recipe in a comment for its first line."""
    names = report.plan.goal.names(ranking=False)
    found = ", ".join(
        f"{name} {value:.2f}" for name, value in zip(names, finalist.values, strict=True)
    )
    return (
        f"{HEADING} {finalist.trial.name} of {len(report.trials)}, {found} on "
        f"{len(report.plan.rows)} utterances (beam {report.plan.settings.beam})\n"
    )


def trials_csv(report: SearchReport) -> str:
    """Return a line per trial: what was tried, its scores, and a finalist's by beam search."""
    goal, beam = report.plan.goal, f"beam {report.plan.settings.beam}"
    how = beam if goal.rank_by == "beam" else goal.rank_by
    ranked = goal.names(ranking=True)
    if goal.rank_by != "loss":  # whose name says how it was scored
        ranked = tuple(f"{name} ({how})" for name in ranked)
    final = [f"{name} ({beam})" for name in goal.names(ranking=False)] if how != beam else []
    finals = {finalist.trial.number: finalist.values for finalist in report.finalists}
    groups = dict.fromkeys(key for row in report.trials for key in row.scores)
    scored = [*ranked, *groups]
    # a column of its own, as a part's score does not compare with the whole set's
    of_part = {name: f"{name} of the part" for name in scored}
    some_stopped = any(row.stopped for row in report.trials)
    heads = ["trial", "title", "state", "part", "same as", *report.plan.space.parameters]
    heads += [*scored, *(of_part.values() if some_stopped else ()), *final]
    text = io.StringIO()
    table = csv.DictWriter(text, heads, restval="", lineterminator="\n")
    table.writeheader()
    for row in report.trials:
        cells: dict[str, Any] = dict(zip(ranked, row.values, strict=True)) | row.scores
        if row.stopped:
            cells = {of_part[name]: value for name, value in cells.items()}
        cells |= {name: "none" if value is None else value for name, value in row.point.items()}
        cells |= {"trial": row.number, "title": row.title, "state": _state(row)}
        cells |= {"part": f"{row.part:.4g}", "same as": row.same_as or ""}
        cells |= zip(final, finals.get(row.number, ()), strict=False)
        table.writerow(cells)
    return text.getvalue()


def _state(row: TrialRow) -> str:
    return "stopped" if row.stopped else "finished"


def document(report: SearchReport) -> dict[str, Any]:
    """Return the report for --json."""
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
        **({"selected": list(map(str, settings.conditions))} if settings.conditions else {}),
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
