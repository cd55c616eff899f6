"""Scores by length, gender and speaker: of whom and of what a system's errors are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from lorsmerge_cli.metrics.metric import Metric
from lorsmerge_cli.metrics.significance import Floats, block_sums, interval
from lorsmerge_cli.operations.report.entries import Entry, Key, Row
from lorsmerge_cli.operations.report.numbers import NONE, number
from lorsmerge_cli.operations.report.scores import Score, metric_of_key, score_of
from lorsmerge_cli.operations.report.tables import PARTIAL, Cell, Table, Tables
from lorsmerge_cli.results.records import Hypothesis

BANDS = (5.0, 10.0, 20.0)  # seconds at which a band of lengths ends
FEW_ROWS, FEW_SPEAKERS = 20, 6  # utterances and speakers under which a group says little
LEAST = 5  # utterances of a speaker for a score of its own

Speaker = tuple[Key, str]


@dataclass(frozen=True, eq=False)
class Group:
    """Utterances that are scored together.

    Attributes:
        by: `length`, `gender` or `speaker`.
        name: within these.
        rows: data set, language and task -> ids of the utterances.
        speakers: how many, as far as they are known.
    """

    by: str
    name: str
    rows: Mapping[Key, frozenset[str]]
    speakers: int

    @property
    def count(self) -> int:
        """Utterances."""
        return sum(map(len, self.rows.values()))

    @property
    def few(self) -> bool:
        """Whether it is too small to say much."""
        return self.count < FEW_ROWS or 0 < self.speakers < FEW_SPEAKERS

    @property
    def head(self) -> str:
        """Its name and size."""
        return f"{self.name} ({self.count}){PARTIAL if self.few else ''}"


def group_tables(tables: Tables) -> tuple[list[Table], list[dict[str, Any]]]:
    """Return the table of scores by group, if there is more than one group, and its numbers."""
    heads: list[tuple[str, str]] = []
    cells: dict[Row, list[Cell]] = {row: [] for row in tables.rows}
    numbers: list[dict[str, Any]] = []
    few = False
    for task, metric, keys in _pooled(tables):
        block = ", ".join([f"{metric.name} {metric.sign}", *task.split(" ")[1:]])
        groups = list(_groups(tables, keys))
        shown = [group for group in groups if group.by != "speaker"]
        speakers = [
            g for g in groups if g.by == "speaker" and g.count >= LEAST and metric.normalised
        ]
        spread = (("best", min), ("median", median), ("worst", max)) if len(speakers) > 1 else ()
        if not (shown or spread):
            continue
        heads += [(group.head, block) for group in shown]
        heads += [(f"{name} of {len(speakers)} speakers", block) for name, _ in spread]
        few |= any(group.few for group in shown)
        for row in tables.rows:
            found = {
                group: _score(tables, row, metric, task, keys, group)
                for group in (*shown, *speakers)
            }
            cells[row] += [_cell(found[group]) for group in shown]
            own = [found[group].value for group in speakers if found[group].runs]
            cells[row] += [Cell(number(float(of(own))) if own else NONE) for _, of in spread]
            numbers += [
                _numbers(row, task, metric, group, score)
                for group, score in found.items()
                if score.runs
            ]
    rows = [tables.line(row, own) for row, own in cells.items() if any(c.text != NONE for c in own)]
    if not (heads and rows):
        return [], []
    note = _note(few, any("speakers" in head for head, _ in heads))
    return [
        Table("groups", "By length, gender and speaker", note, tuple(heads), tuple(rows))
    ], numbers


def _note(few: bool, spread: bool) -> str:
    parts = [
        "All errors of a group by all its words, over the languages of the column's metric together, ± the "
        "standard error over speakers. In brackets: utterances."
    ]
    if few:
        parts.append(
            f"{PARTIAL} under {FEW_ROWS} utterances or {FEW_SPEAKERS} speakers: too few to say much."
        )
    if spread:
        parts.append(f"Speakers are those with {LEAST} utterances or more.")
    return " ".join(parts)


def _pooled(tables: Tables) -> Iterator[tuple[str, Metric, list[Key]]]:
    """Yield the test sets whose errors can be added up: of one task, normalisation and metric."""
    for task in tables.tasks:
        keys = tables.columns(task)
        for metric in dict.fromkeys(map(metric_of_key, keys)):
            yield task, metric, [key for key in keys if metric_of_key(key) is metric]


def _groups(tables: Tables, keys: Sequence[Key]) -> Iterator[Group]:
    """Yield bands of lengths and genders where there are two or more, and speakers."""
    about: dict[tuple[Key, str], Hypothesis] = {}
    genders: dict[tuple[Key, str], str] = {}  # an older file of the same set may have none
    for entry in tables.results.entries:
        for row in entry.record.rows if entry.key in keys else ():
            about.setdefault((entry.key, row.id), row)
            if row.gender:
                genders.setdefault((entry.key, row.id), row.gender)
    by: tuple[tuple[str, Callable[[tuple[Key, str]], tuple[Any, str] | None]], ...] = (
        ("length", lambda place: _band(about[place].seconds)),
        ("gender", lambda place: (genders[place],) * 2 if place in genders else None),
        (
            "speaker",
            lambda place: ((place[0], name), name) if (name := about[place].speaker) else None,
        ),
    )
    for what, group_of in by:
        places: dict[tuple[Any, str], list[tuple[Key, str]]] = {}
        for place in about:
            if (group := group_of(place)) is not None:
                places.setdefault(group, []).append(place)
        if len(places) > 1:
            for group in sorted(places):
                yield _group(what, group[1], places[group], about)


def _group(
    by: str,
    name: str,
    places: Sequence[tuple[Key, str]],
    about: Mapping[tuple[Key, str], Hypothesis],
) -> Group:
    ids: dict[Key, set[str]] = {}
    for key, row in places:
        ids.setdefault(key, set()).add(row)
    speakers = {
        (key[:2], about[key, row].speaker) for key, row in places if about[key, row].speaker
    }
    return Group(by, name, {key: frozenset(rows) for key, rows in ids.items()}, len(speakers))


def _band(seconds: float) -> tuple[float, str]:
    """Return where a band of lengths ends, and its name."""
    for start, end in zip((0.0, *BANDS), BANDS, strict=False):
        if seconds < end:
            return end, f"{start:g} to {end:g} s" if start else f"under {end:g} s"
    return float("inf"), f"{BANDS[-1]:g} s or more"


def _score(
    tables: Tables, row: Row, metric: Metric, task: str, keys: Sequence[Key], group: Group
) -> Score:
    """Return a row's score on a group; of no run, where it was not scored on all of the test sets."""
    found = []
    for entries in tables.made_for(row, task).values():
        if all(key in entries for key in keys):
            blocks = _blocks(tables, metric, [entries[key] for key in group.rows], group)
            found.append(
                (float(metric.score(blocks.sum(axis=0))), interval(blocks, metric).standard_error)
            )
    return score_of([value for value, _ in found], [error for _, error in found])


def _blocks(tables: Tables, metric: Metric, entries: Sequence[Entry], group: Group) -> Floats:
    """Return the statistics of each speaker of a group."""
    parts = []
    for entry in entries:
        rows = [row for row in entry.record.rows if row.id in group.rows[entry.key]]
        statistics = metric.statistics(rows, tables.tests.scoring.of(entry.key[0]))
        parts.append(block_sums(statistics, [row.speaker for row in rows]))
    return np.concatenate(parts)


def _cell(score: Score) -> Cell:
    return Cell(f"{number(score.value)} ± {number(score.error)}" if score.runs else NONE)


def _numbers(row: Row, task: str, metric: Metric, group: Group, score: Score) -> dict[str, Any]:
    return {
        "system": row.label, "task": task, "metric": metric.name, "by": group.by, "group": group.name,
        "sets": [" ".join(key[:2]) for key in group.rows], "utterances": group.count,
        "speakers": group.speakers, "few": group.few, "value": score.value, "error": score.error,
    }  # fmt: skip
