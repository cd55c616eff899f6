"""Draw the picture of `data --plot`: durations, hours and texts of data sets by language."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorsmerge_cli.data.report import DataReport
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.pictures import legible, save_picture

WIDTH, HEIGHT = 4.6, 3.4  # inches of a panel
BAR = 0.28  # inches of a language
BINS = 40
COLOURS = {"asr": "#3b6ea5", "st": "#d98c3f"}
RED, GREY = "#c0392b", "#8a8a8a"


def plot_data(
    report: DataReport, output: Path, *, force: bool, spelled: Mapping[str, float] | None = None
) -> None:
    """Draw three panels: durations, hours by language, and what is odd in the texts.

    Args:
        report: with at least one utterance.
        output: a picture that passed `check_picture`.
        force: whether a file that exists is replaced.
        spelled: language -> share of characters that a tokenizer spells out in bytes; None without
            a tokenizer.

    Raises:
        OutputFault: the disk filled up.
    """
    from matplotlib.figure import Figure

    rows = report.utterances
    languages = _by_hours(rows)
    height = max(HEIGHT, 1.2 + BAR * len(languages))
    figure = Figure((3 * WIDTH, height), layout="constrained")
    durations, hours, texts = figure.subplots(1, 3)
    _durations(durations, rows)
    _hours(hours, rows, languages)
    _texts(texts, report, languages, spelled)
    save_picture(figure, output, force=force)


def _by_hours(rows: Sequence[Utterance]) -> list[str]:
    """Return the languages, that with the most audio last, which is drawn on top."""
    seconds: dict[str, float] = {}
    for row in rows:
        seconds[row.language] = seconds.get(row.language, 0.0) + (row.duration or 0.0)
    return sorted(seconds, key=lambda language: (seconds[language], language))


def _durations(axes: Any, rows: Sequence[Utterance]) -> None:
    tasks = [task for task in COLOURS if any(row.task == task for row in rows)]
    lengths = [[row.duration or 0.0 for row in rows if row.task == task] for task in tasks]
    axes.hist(
        lengths, bins=BINS, stacked=True, color=[COLOURS[task] for task in tasks], label=tasks
    )
    every = sorted(length for part in lengths for length in part)
    axes.axvline(every[len(every) // 2], color=GREY, linestyle="--", label="median")
    axes.set(title="Durations", xlabel="seconds", ylabel="utterances")
    axes.legend(fontsize="small")


def _hours(axes: Any, rows: Sequence[Utterance], languages: Sequence[str]) -> None:
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    for row in rows:
        seconds[row.language, row.task] += row.duration or 0.0
    left = [0.0] * len(languages)
    for task, colour in COLOURS.items():
        sizes = [seconds[language, task] / 3600 for language in languages]
        if any(sizes):
            axes.barh(range(len(languages)), sizes, left=left, color=colour, label=task)
        left = [one + other for one, other in zip(left, sizes, strict=True)]
    axes.set(title="Hours by language", xlabel="hours")
    axes.set_yticks(range(len(languages)), [legible(name) for name in languages])
    axes.legend(fontsize="small")


def _texts(
    axes: Any,
    report: DataReport,
    languages: Sequence[str],
    spelled: Mapping[str, float] | None,
) -> None:
    """Draw the share of rows in another script and, with a tokenizer, of characters spelled out."""
    rows = Counter(row.language for row in report.utterances)
    others = Counter(row.language for row, _ in report.other_scripts)
    odd = [100 * others[name] / rows[name] for name in languages]
    bars = [("rows in another script", odd, RED)]
    if spelled is not None:
        shares = [100 * spelled[name] for name in languages]
        bars.append(("characters that the tokenizer spells out in bytes", shares, GREY))
    thick = 0.8 / len(bars)
    for number, (label, values, colour) in enumerate(bars):
        places = [place + (number - (len(bars) - 1) / 2) * thick for place in range(len(languages))]
        axes.barh(places, values, height=thick, color=colour, label=label)
    largest = max(value for _, values, _ in bars for value in values)
    axes.set(title="Texts", xlabel="%", xlim=(0, 1.1 * largest or 1))
    axes.set_yticks(range(len(languages)), [legible(name) for name in languages])
    axes.legend(fontsize="small")
