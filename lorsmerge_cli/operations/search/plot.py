"""Draw the picture of `search --plot`: the objectives against the points, and each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorsmerge_cli.operations.search.report import SearchReport, TrialRow
from lorsmerge_cli.pictures import legible, save_picture
from lorsmerge_cli.recipe.space import BETA

INCHES = (4.2, 3.6)  # a panel
LABELS = {
    "scale": "lambda", "svp": "SVP ratio r", "mp": "MP ratio p", BETA: "beta, growth with depth",
}  # fmt: skip
BLUE, GREY, RED = "#3b6ea5", "#b5b5b5", "#c0392b"
NONE = "none"


def plot_search(report: SearchReport, output: Path, *, force: bool) -> None:
    """Draw a row of panels for each objective: its value against lambda, r and p.

    With two objectives one more row has one against the other, and the Pareto front.

    Args:
        report: with at least one finalist.
        output: a picture that passed `check_picture`.
        force: whether a file that exists is replaced.

    Raises:
        OutputFault: the disk filled up.
    """
    from matplotlib.figure import Figure

    space, goal = report.plan.space, report.plan.goal
    names = goal.names(ranking=True)
    kinds = [kind for kind in LABELS if kind in space.values or kind in space.parameters]
    rows = len(names) + (len(names) == 2)
    figure = Figure((INCHES[0] * max(len(kinds), 1 + (len(names) == 2)), INCHES[1] * rows),
                    layout="constrained")  # fmt: skip
    grid = figure.add_gridspec(rows, len(kinds))
    how = "" if goal.rank_by == "loss" else f", {goal.rank_by}"
    for objective, name in enumerate(names):
        for column, kind in enumerate(kinds):
            axes = figure.add_subplot(grid[objective, column])
            _against(axes, report, objective, kind)
            axes.set(xlabel=LABELS[kind], ylabel=f"{name} (average{how})")
            if not objective and not column:
                axes.legend(fontsize="small")
    if len(names) == 2:
        _front(figure.add_subplot(grid[rows - 1, :]), report)
    save_picture(figure, output, force=force)


def _against(axes: Any, report: SearchReport, objective: int, kind: str) -> None:
    """Draw trials by the value of one kind of parameter, each delta's in a colour of its own."""
    names = report.plan.space.names(kind)
    whole = [row for row in report.trials if not row.stopped]
    stopped = [row for row in report.trials if row.stopped]
    left = _x_of_none(report, kind)

    def xs_of(rows: list[TrialRow], name: str) -> list[float]:
        return [left if row.point[name] is None else float(row.point[name] or 0) for row in rows]

    for number, name in enumerate(names):
        colour = BLUE if len(names) == 1 else f"C{number % 10}"
        label = "trial" if len(names) == 1 else _label(report, kind, number)
        ys = [row.values[objective] for row in whole]
        axes.plot(xs_of(whole, name), ys, "o", color=colour, markersize=5, alpha=0.75, label=label)
    if len(names) == 1:
        if stopped:
            ys = [row.values[objective] for row in stopped]
            axes.plot(xs_of(stopped, names[0]), ys, "o", markerfacecolor="none", color=GREY,
                      markersize=5, label="stopped, on a part")  # fmt: skip
        best = next(found.trial for found in report.finalists if found.trial.number)
        axes.plot(xs_of([best], names[0]), [best.values[objective]], "*", color=RED,
                  markersize=14, label=f"best: trial {best.number}")  # fmt: skip
    if any(row.point[name] is None for row in report.trials for name in names):
        ticks = sorted({left, *(v for n in names for v in xs_of(list(report.trials), n))})
        if len(ticks) <= 8:
            axes.set_xticks(ticks, [NONE if tick == left else f"{tick:g}" for tick in ticks])


def _label(report: SearchReport, kind: str, number: int) -> str:
    """Return what one of several parameters of a kind is for: a delta's name, or a group."""
    space = report.plan.space
    if kind in space.per_delta and len(space.names(kind)) == len(space.deltas):
        return legible(Path(space.deltas[number]).stem)
    return space.labels(kind)[number]


def _x_of_none(report: SearchReport, kind: str) -> float:
    """Return where `none` is drawn: left of every number."""
    names = report.plan.space.names(kind)
    found = [row.point[name] for row in report.trials for name in names]
    numbers = [value for value in found if isinstance(value, float)] or [1.0]
    return min(numbers) - 0.15 * ((max(numbers) - min(numbers)) or 1.0)


def _front(axes: Any, report: SearchReport) -> None:
    """Draw finalists by both objectives, their Pareto front joined."""
    names = report.plan.goal.names(ranking=False)
    for found in report.finalists:
        style = {"color": RED} if found.on_front else {"color": BLUE}
        axes.plot(*([value] for value in found.values), "o", **style)
        axes.annotate(str(found.trial.number or found.trial.title), found.values, xytext=(5, 4),
                      textcoords="offset points", fontsize="small")  # fmt: skip
    front = sorted(found.values for found in report.front)
    axes.plot([x for x, _ in front], [y for _, y in front], "-", color=RED, label="Pareto front")
    axes.plot([], [], "o", color=BLUE, label="other finalist")
    axes.set(
        xlabel=f"{names[0]} (average, lower is better)",
        ylabel=f"{names[1]} (average, higher is better)",
        title=f"finalists, beam {report.plan.settings.beam}",
    )
    axes.legend(fontsize="small")
