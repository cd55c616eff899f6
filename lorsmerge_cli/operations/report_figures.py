"""The paper's figures, drawn where the results have more than one point of an axis."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lorsmerge_cli.operations.report_entries import Key, Row
from lorsmerge_cli.operations.report_pages import Picture
from lorsmerge_cli.operations.report_scores import Runs, average_score, partner_of

if TYPE_CHECKING:
    from lorsmerge_cli.operations.report_tables import Tables

# Okabe and Ito's colours, which the colour-blind tell apart, and a marker for each
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"),
          ("#56B4E9", "P"), ("#000000", "X"))  # fmt: skip
LEVELS = ("#6b7280", "--"), ("#6b7280", ":")  # of the base and the fine-tunes
INCHES = (4.6, 3.5)  # a panel


@dataclass(frozen=True)
class Point:
    """A row on an axis.

    Attributes:
        x: its place.
        y: its score, the mean over languages and runs.
        each: the score of every run.
    """

    x: float
    y: float
    each: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        x_label, y_label: of the axes.
        lines: name -> points.
        levels: name -> a score that has no place on the axis.
    """

    x_label: str
    y_label: str
    lines: dict[str, tuple[Point, ...]]
    levels: dict[str, float]


@dataclass(frozen=True)
class Figure:
    """What is to be drawn, panel by panel."""

    name: str
    title: str
    note: str
    panels: tuple[Panel, ...]


def figures_of(tables: Tables) -> list[Figure]:
    """The figures that the results have points for."""
    wanted = (
        (
            "languages", "Score against the number of languages",
            "Averaged over the languages that a model was made for and over all combinations of as "
            "many; small marks are single models. The paper's Figure 3.",
            (("languages merged", lambda row: row.languages),),
        ),
        (
            "hours", "Score against hours of training data",
            "Hours of each language, averaged over languages. The paper's Figure 4.",
            (("hours of training data of each language", lambda row: row.hours),),
        ),
        (
            "retain", "Score against the ratio retained",
            "Share that pruning keeps; 1 is unpruned. Averaged over languages. The paper's Figure 5.",
            (
                ("singular values retained (SVP)", lambda row: _ratio(row, "svp", "mp")),
                ("entries retained (MP)", lambda row: _ratio(row, "mp", "svp")),
            ),
        ),
    )  # fmt: skip
    found = []
    for name, title, note, axes in wanted:
        panels = [
            panel
            for task in tables.tasks
            for label, place in axes
            if (panel := _panel(tables, task, label, place)) is not None
        ]
        if panels:
            found.append(Figure(name, title, note, tuple(panels)))
    return found


def _ratio(row: Row, own: str, other: str) -> float | None:
    """A row's place on an axis of ratios, if it was pruned by that one alone."""
    ratio, second = getattr(row, own), getattr(row, other)
    return ratio if isinstance(ratio, float) and second is None else None


def _panel(
    tables: Tables, task: str, label: str, place: Callable[[Row], float | None]
) -> Panel | None:
    """Lines of the systems that have two places on an axis; None where there is none."""
    keys = tables.columns(task)
    places: dict[str, list[Point]] = {}
    flat: dict[str, float] = {}
    for row in tables.rows:
        runs, x = tables.made_for(row, task), place(row)
        score = average_score(runs, keys)
        if score is None:
            continue
        if row.system in (tables.roles.base, tables.roles.finetuned):
            flat[tables.label(row)] = score.value
        if x is None or row.system == tables.roles.base:
            continue
        several = "retained" in label and _varies(tables.rows, row.system)
        size = f", {row.hours:g} h" if several else ""
        places.setdefault(tables.name(row.system) + size, []).append(_point(x, runs, keys))
        control = tables.roles.controls.get(row.system)
        if "retained" in label and control is not None:
            own = tables.results.runs(control)
            paired = {run: found for run in runs if (found := partner_of(run, own))}
            if paired:
                name = tables.name(control) + size
                places.setdefault(name, []).append(_point(x, paired, keys))
    lines = {
        name: tuple(sorted(points, key=lambda point: point.x))
        for name, points in places.items()
        if len({point.x for point in points}) > 1
    }
    drawn = {tables.name(tables.roles.finetuned or "")} & lines.keys()
    levels = {name: level for name, level in flat.items() if not name.startswith(tuple(drawn))}
    return Panel(label, tables.block(task), lines, levels) if lines else None


def _point(x: float, runs: Runs, keys: Sequence[Key]) -> Point:
    each = [average_score({run: entries}, keys) for run, entries in runs.items()]
    known = [score.value for score in each if score is not None]
    return Point(float(x), fmean(known), tuple(known))


def _varies(rows: Sequence[Row], system: str) -> bool:
    return len({row.hours for row in rows if row.system == system}) > 1


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw(figure: Figure) -> tuple[Picture, list[tuple[str, bytes]]]:
    """Draw a figure as SVG and PNG; its files by name."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    settings: Any = {
        "font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False,
        "axes.edgecolor": "#5a6675", "axes.grid": True, "grid.color": "#e3e8ee",
        "axes.axisbelow": True, "svg.hashsalt": "lorsmerge", "svg.fonttype": "path",
        "legend.frameon": False,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        canvas = Canvas((INCHES[0] * len(figure.panels), INCHES[1]), layout="constrained")
        axes = canvas.subplots(1, len(figure.panels), squeeze=False)[0]
        for panel, axis in zip(figure.panels, axes, strict=True):
            _draw_panel(panel, axis)
        files = []
        for suffix, extra in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 200})):
            buffer = io.BytesIO()
            canvas.savefig(buffer, format=suffix, **extra)
            files.append((f"{figure.name}.{suffix}", buffer.getvalue()))
    picture = Picture(figure.name, figure.title, figure.note, _words(figure), files[0][1])
    return picture, files


def _draw_panel(panel: Panel, axis: Any) -> None:
    for (name, level), (colour, dashes) in zip(panel.levels.items(), LEVELS * 4, strict=False):
        axis.axhline(level, color=colour, linestyle=dashes, linewidth=1.2, label=name)
    for number, (name, points) in enumerate(panel.lines.items()):
        colour, marker = STYLES[number % len(STYLES)]
        xs = [point.x for point in points]
        axis.plot(xs, [point.y for point in points], color=colour, marker=marker, markersize=5.5,
                  linewidth=1.6, label=name)  # fmt: skip
        singles = [(p.x, y) for p in points if len(p.each) > 1 for y in p.each]
        if singles:
            axis.plot(*zip(*singles, strict=True), color=colour, marker=marker, linestyle="none",
                      markersize=2.5, alpha=0.35)  # fmt: skip
    axis.set_xlabel(panel.x_label)
    axis.set_ylabel(panel.y_label)
    places = sorted({point.x for points in panel.lines.values() for point in points})
    if "retained" in panel.x_label:
        axis.set_xscale("log")
    axis.set_xticks(places, [f"{x:g}" for x in places])
    axis.minorticks_off()
    axis.legend(fontsize="small")


def _words(figure: Figure) -> str:
    """The figure's numbers in words, for whoever cannot see it."""
    parts = []
    for panel in figure.panels:
        lines = [
            f"{name}: " + ", ".join(f"{point.y:.2f} at {point.x:g}" for point in points)
            for name, points in panel.lines.items()
        ]
        lines += [f"{name}: {level:.2f}" for name, level in panel.levels.items()]
        parts.append(f"{panel.y_label} against {panel.x_label}. " + "; ".join(lines) + ".")
    return " ".join(parts)
