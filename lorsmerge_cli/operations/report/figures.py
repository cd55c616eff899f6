"""The paper's figures, drawn where the results have more than one point of an axis."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lorsmerge_cli.operations.report.entries import Row, Runs, Settings
from lorsmerge_cli.operations.report.gains import balance_of
from lorsmerge_cli.operations.report.numbers import number, setting
from lorsmerge_cli.operations.report.pages import Picture
from lorsmerge_cli.operations.report.scores import average_score, partners
from lorsmerge_cli.pictures import legible

if TYPE_CHECKING:
    from lorsmerge_cli.operations.report.tables import Tables

# Okabe and Ito's colours, which the colour-blind tell apart, and a marker for each
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"),
          ("#56B4E9", "P"), ("#000000", "X"))  # fmt: skip
LEVELS = ("-.", ":")  # of the base and the fine-tunes
LEVEL_COLOUR = "#6b7280"
INCHES = (4.6, 3.7)  # a panel
COLUMNS = 4  # of the legend, where its names are short
LETTER, MARK = 0.065, 0.65  # inches of a letter in it, and of the mark before a name
RATIOS = ("svp", "mp")


@dataclass(frozen=True)
class Point:
    """A row on an axis: where, and the score of every run, a mean over languages."""

    x: float
    each: tuple[float, ...]

    @property
    def y(self) -> float:
        """Mean over runs."""
        return fmean(self.each)


@dataclass(frozen=True)
class Line:
    """A system over an axis; a control is drawn in the colour of the system it belongs to."""

    name: str
    points: tuple[Point, ...]
    control_of: str = ""


@dataclass(frozen=True)
class Dot:
    """A system at one point of a plane, with the standard errors of both numbers.

    `style` is the index of its colour, the same in all panels.
    """

    name: str
    style: int
    x: float
    y: float
    x_error: float
    y_error: float
    control_of: str = ""


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        x_label, y_label: of the axes.
        lines: with two points or more.
        levels: name -> a score that is drawn as a horizontal line.
        ratios: whether the axis is of ratios retained.
        dots: systems at one point each, in place of lines.
    """

    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    levels: dict[str, float]
    ratios: bool
    dots: tuple[Dot, ...] = ()


@dataclass(frozen=True)
class Figure:
    """What is to be drawn, panel by panel."""

    name: str
    title: str
    note: str
    panels: tuple[Panel, ...]


def figures_of(tables: Tables) -> list[Figure]:
    """Return the figures that the results have points for."""
    planned = (
        (
            "languages", "Score against the number of languages",
            "Averaged over the languages that a model was made for and over all combinations of as "
            "many; small marks are single models. The paper's Figure 3.",
            (("languages merged", "languages"),),
        ),
        (
            "hours", "Score against hours of training data",
            "Hours of each language, averaged over languages. The paper's Figure 4.",
            (("hours of training data of each language", "hours"),),
        ),
        (
            "retain", "Score against the ratio retained",
            "Share that pruning keeps; at 1, the fine-tunes themselves. Averaged over languages. "
            "Dashed: shrunk to the same norm, unpruned. The paper's Figure 5.",
            (("singular values retained (SVP)", "svp"), ("elements retained (MP)", "mp")),
        ),
    )  # fmt: skip
    figures = []
    for name, title, note, axes in planned:
        every = [_panel(tables, task, label, axis) for task in tables.tasks for label, axis in axes]
        panels = tuple(panel for panel in every if panel.lines)
        if panels:
            figures.append(Figure(name, title, note, panels))
    dotted = tuple(panel for task in tables.groups if (panel := _balance(tables, task)))
    if dotted:
        note = (
            "One point a system: right is better on what it was made for, up is worse elsewhere. The "
            f"lines cross where {tables.name(tables.roles.base or '')} is; bars are standard errors."
        )
        figures.append(
            Figure("balance", "Gain on what was merged against loss elsewhere", note, dotted)
        )
    return figures


def _balance(tables: Tables, task: str) -> Panel | None:
    """Return the systems with a gain and a loss; None for under two."""
    dots = []
    for style, row in enumerate(r for r in tables.rows if r.system != tables.roles.base):
        found = balance_of(tables, row, task)
        if found.gain and found.loss and found.whole:
            names = [n for n, own in tables.roles.controls.items() if own == row.system]
            dots.append(
                Dot(
                    tables.label(row), style, found.gain.value, found.loss.value,
                    found.gain.error, found.loss.error, tables.name(names[0]) if names else "",
                )
            )  # fmt: skip
    if len(dots) < 2:
        return None
    unit = tables.unit(task)
    return Panel(
        f"gain on what was merged, {unit}",
        f"loss elsewhere, {unit}",
        (),
        {},
        False,
        tuple(dots),
    )


def _panel(tables: Tables, task: str, label: str, axis: str) -> Panel:
    """Return the lines of the systems that have two points on an axis."""
    ratios = axis in RATIOS
    lines: dict[tuple[str, str], list[Point]] = {}  # of a name, and whose control it is
    levels: dict[str, float] = {}
    for row in tables.rows:
        runs = tables.made_for(row, task)
        level = average_score(runs, tables.columns(task))
        if level.runs and row.system in (tables.roles.base, tables.roles.finetuned):
            levels[tables.label(row)] = level.value
        x = _position(tables, row, axis)
        if not level.runs or x is None:
            continue
        several = ratios and _varies(tables, row, "hours")
        size = f", {setting(row.settings.hours)} h" if several else ""
        name = tables.name(row.system) + size
        points = lines.setdefault((name, ""), [])
        points += _points(tables, task, x, runs)
        if not ratios:
            continue
        if _is_whole(runs) and 1.0 not in [point.x for point in points]:
            whole = partners(runs, tables.results.runs.get(tables.roles.finetuned or "", {}))
            points += _points(tables, task, 1.0, whole)
        control = tables.roles.controls.get(row.system)
        if control is not None and (paired := partners(runs, tables.results.runs[control])):
            own = tables.name(control) + size
            lines.setdefault((own, name), []).extend(_points(tables, task, x, paired))
    long = {key: points for key, points in lines.items() if len({point.x for point in points}) > 1}
    drawn = tuple(
        Line(name, tuple(sorted(points, key=lambda p: p.x)), system)
        for (name, system), points in long.items()
        if not system or (system, "") in long
    )
    if any(line.points[-1].x == 1 for line in drawn) or axis == "hours":
        base = tables.name(tables.roles.base or "")
        levels = {name: y for name, y in levels.items() if name == base}
    return Panel(label, tables.block(task), drawn, levels, ratios)


def _position(tables: Tables, row: Row, axis: str) -> float | None:
    """Return where a row is on an axis; None where it is not.

    A system whose rows differ in something else is on none, but for hours on an axis of ratios.
    """
    value = getattr(row.settings, axis)
    pruned = [key for key in RATIOS if getattr(row.settings, key) is not None]
    if not isinstance(value, float | int) or (axis in RATIOS and pruned != [axis]):
        return None
    free = {axis, "hours"} if axis in RATIOS else {axis}
    others = set(Settings._fields) - free
    if row.system == tables.roles.base or any(_varies(tables, row, other) for other in others):
        return None
    return float(value)


def _varies(tables: Tables, row: Row, name: str) -> bool:
    rows = [other.settings for other in tables.rows if other.system == row.system]
    return len({getattr(settings, name) for settings in rows}) > 1


def _is_whole(runs: Runs) -> bool:
    """Return whether these are single deltas at lambda 1, which unpruned would be the fine-tunes."""
    origins = [entry.origin for entries in runs.values() for entry in entries.values()]
    return all(len(origin.deltas) == 1 and origin.scale == 1 for origin in origins)


def _points(tables: Tables, task: str, x: float, runs: Runs) -> list[Point]:
    """Return the one point of some runs; none where they were not scored on the task."""
    keys = tables.columns(task)
    scores = [average_score({run: entries}, keys) for run, entries in runs.items()]
    values = tuple(score.value for score in scores if score.runs)
    return [Point(x, values)] if values else []


def draw(figure: Figure) -> Picture:
    """Draw a figure as SVG and PNG."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    settings: Any = {
        "font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False,
        "axes.edgecolor": "#5a6675", "axes.grid": True, "grid.color": "#e3e8ee",
        "axes.axisbelow": True, "svg.hashsalt": "lorsmerge", "svg.fonttype": "path",
        "legend.frameon": False, "text.parse_math": False,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        canvas = Canvas((INCHES[0] * len(figure.panels), INCHES[1]), layout="constrained")
        axes = canvas.subplots(1, len(figure.panels), squeeze=False)[0]
        handles: dict[str, Any] = {}
        for panel, axis in zip(figure.panels, axes, strict=True):
            _draw_panel(panel, axis)
            drawn, names = axis.get_legend_handles_labels()
            handles |= {n: h for n, h in zip(names, drawn, strict=True) if n not in handles}
        widest = MARK + LETTER * max(map(len, handles))
        columns = min(COLUMNS, max(1, int(canvas.get_figwidth() / widest)))
        canvas.legend(
            list(handles.values()), list(handles), loc="outside lower center", ncols=columns,
            fontsize="small",
        )  # fmt: skip
        svg, png = io.BytesIO(), io.BytesIO()
        canvas.savefig(svg, format="svg", metadata={"Date": None})
        canvas.savefig(png, format="png", dpi=200)
    alt = _in_words(figure)
    return Picture(figure.name, figure.title, figure.note, alt, svg.getvalue(), png.getvalue())


def _draw_panel(panel: Panel, axis: Any) -> None:
    for (name, level), dashes in zip(panel.levels.items(), LEVELS * 4, strict=False):
        axis.axhline(
            level, color=LEVEL_COLOUR, linestyle=dashes, linewidth=1.2, label=legible(name)
        )
    if panel.dots:
        _draw_dots(panel, axis)
        return
    systems = [line.name for line in panel.lines if not line.control_of]
    for line in panel.lines:
        control = bool(line.control_of)
        colour, marker = STYLES[systems.index(line.control_of or line.name) % len(STYLES)]
        xs = [point.x for point in line.points]
        axis.plot(xs, [point.y for point in line.points], color=colour, marker=marker, markersize=5.5,
                  linewidth=1.6, linestyle="--" if control else "-", label=legible(line.name),
                  markerfacecolor="white" if control else colour)  # fmt: skip
        singles = [(p.x, y) for p in line.points if len(p.each) > 1 for y in p.each]
        if singles and not panel.ratios:
            axis.plot(*zip(*singles, strict=True), color=colour, marker=marker, linestyle="none",
                      markersize=2.5, alpha=0.35)  # fmt: skip
    axis.set_xlabel(legible(panel.x_label))
    axis.set_ylabel(legible(panel.y_label))
    positions = sorted({point.x for line in panel.lines for point in line.points})
    if panel.ratios:
        axis.set_xscale("log")
    axis.set_xticks(positions, [setting(x) for x in positions])
    axis.minorticks_off()


def _draw_dots(panel: Panel, axis: Any) -> None:
    """Draw systems as points with bars, and lines where nothing is gained or lost."""
    for line in (axis.axhline, axis.axvline):
        line(0, color=LEVEL_COLOUR, linewidth=1)
    for dot in panel.dots:
        colour, marker = STYLES[dot.style % len(STYLES)]
        errors = [None if math.isnan(error) else error for error in (dot.x_error, dot.y_error)]
        axis.errorbar(
            dot.x, dot.y, xerr=errors[0], yerr=errors[1], color=colour, marker=marker, markersize=6.5,
            elinewidth=1, capsize=2.5, linestyle="none", label=legible(dot.name),
            markerfacecolor="white" if dot.control_of else colour,
        )  # fmt: skip
    axis.set_xlabel(legible(panel.x_label))
    axis.set_ylabel(legible(panel.y_label))


def _in_words(figure: Figure) -> str:
    """Return the figure's numbers in words, for readers who cannot see it."""
    parts = []
    for panel in figure.panels:
        lines = [
            f"{line.name}: " + ", ".join(f"{number(p.y)} at {setting(p.x)}" for p in line.points)
            for line in panel.lines
        ]
        lines += [f"{name}: {number(level)}" for name, level in panel.levels.items()]
        lines += [f"{dot.name}: {number(dot.y)} at {number(dot.x)}" for dot in panel.dots]
        parts.append(f"{panel.y_label} against {panel.x_label}. " + "; ".join(lines) + ".")
    return " ".join(parts)
