"""The tables of a report: scores, equal-energy controls, gain kept, what was forgotten."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lorsmerge_cli.data.languages import TASKS
from lorsmerge_cli.metrics.significance import TOO_FEW, holm
from lorsmerge_cli.operations.report.entries import Key, Row
from lorsmerge_cli.operations.report.numbers import NONE, change, number, rounded
from lorsmerge_cli.operations.report.results import Results
from lorsmerge_cli.operations.report.roles import AVERAGE, Paper, Roles
from lorsmerge_cli.operations.report.scores import (
    Difference,
    Runs,
    Score,
    Tests,
    average_score,
    cell_score,
    metric_of_key,
    restricted,
)
from lorsmerge_cli.results.records import blocks_in_words

BETTER, WORSE, PARTIAL, CUT = "†", "‡", "*", "§"
LEVEL = 0.05  # of the paired tests of a table together


@dataclass(frozen=True)
class Cell:
    """What stands in a table.

    Attributes:
        text: a number, mostly.
        best: whether it is bold.
        mark: of a paired test, of a partial average.
        beside: in brackets: the paper's number, or an interval.
        test: what a mark may come from; None for a cell that is not tested.
        p_value: of the test, corrected for all tests of the table.
        blocks: speakers that the test is of.
    """

    text: str
    best: bool = False
    mark: str = ""
    beside: str = ""
    test: Difference | None = None
    p_value: float | None = None
    blocks: int | None = None


@dataclass(frozen=True)
class Table:
    """A table to be drawn in several formats.

    Attributes:
        name: for file names and references.
        title, note: above and below it.
        heads: of the columns after the first, each with the block it belongs to.
        rows: label, whether it stands indented below the row above, and a cell for each head.
    """

    name: str
    title: str
    note: str
    heads: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, bool, tuple[Cell, ...]], ...]


def marked(table: Table) -> Table:
    """Return a table with marks on the differences that are more than chance.

    p-values are corrected for the table's tests by Holm's method; a test of under 6 speakers
    bears no mark, and does not count.
    """
    cells = [cell for _, _, row in table.rows for cell in row]
    told = [cell.test for cell in cells]
    counted = [math.nan if t is None or t.blocks < TOO_FEW else t.p_value for t in told]
    marks = []
    for cell, test, p_value in zip(cells, told, holm(counted), strict=True):
        mark = (BETTER if test.better else WORSE) if test and p_value < LEVEL else ""
        marks.append(
            replace(
                cell, mark=cell.mark + mark, test=None, blocks=test.blocks if test else None,
                p_value=None if math.isnan(p_value) else p_value,
            )
        )  # fmt: skip
    left = iter(marks)
    rows = tuple((name, below, tuple(next(left) for _ in row)) for name, below, row in table.rows)
    return replace(table, rows=rows)


class Tables:
    """The tables of results under their roles."""

    def __init__(self, results: Results, roles: Roles, paper: Paper) -> None:
        self.results, self.roles, self.paper = results, roles, paper
        self.tests = Tests(results)
        self.rows = _ordered(results, roles, paper)
        self.every_key = list(dict.fromkeys(entry.key for entry in results.entries))
        known = {e.key for e in results.entries if e.covered and e.system != roles.base}
        self.keys = [k for k in self.every_key if k[0] not in roles.held_out
                     and (k in known or len(results.systems) == 1)]  # fmt: skip
        self.tasks = [t for t in TASKS if any(key[2] == t for key in self.keys)]

    @property
    def of_the_base_alone(self) -> list[Key]:
        """What no other system was scored on, and so no table has."""
        others = {e.key for e in self.results.entries if e.system != self.roles.base}
        return [key for key in self.every_key if key not in others and key not in self.keys]

    def columns(self, task: str) -> list[Key]:
        """Data sets and languages of a task, by language."""
        return sorted((k for k in self.keys if k[2] == task), key=lambda k: (k[1], k[0]))

    def label(self, row: Row) -> str:
        """A row's name: the paper's where it has one."""
        name = self.paper.names.get(row.system)
        return row.label if name is None else row.label.replace(row.system, name, 1)

    def made_for(self, row: Row, task: str) -> Runs:
        """A row's records on what the model was made for."""
        keys = self.columns(task)
        return restricted(row, lambda entry: entry.covered and entry.key in keys)

    def not_made_for(self, row: Row) -> Runs:
        """A row's records on languages, tasks and test sets that the model was not made for."""
        held_out = self.roles.held_out
        return restricted(row, lambda entry: not entry.covered or entry.key[0] in held_out)

    def scores(self) -> Table:
        """Systems x languages with the plain average, as the paper has them."""
        many = any(len(row.runs) > 1 for row in self.rows)
        heads: list[tuple[str, str]] = []
        columns: list[list[Cell]] = []
        for task in self.tasks:
            keys = self.columns(task)
            names = [*self.heads(keys), "Avg.", "±", *(["runs ±"] if many else [])]
            heads += [(name, self.block(task)) for name in names]
            columns += [self._score_column(task, key) for key in keys]
            columns += self._average_columns(task, keys, many)
        rows = [
            (self.label(row), self.is_control(row), tuple(column[n] for column in columns))
            for n, row in enumerate(self.rows)
        ]
        partial = any(PARTIAL in cell.mark for column in columns for cell in column)
        note = self._scores_note(many, partial)
        return marked(Table("scores", "Scores", note, tuple(heads), tuple(rows)))

    def block(self, task: str) -> str:
        """Return `WER % ↓`, or `WER / CER % ↓`, or `BLEU ↑`."""
        keys = [entry.key for entry in self.results.entries if entry.key[2] == task]
        names = dict.fromkeys(metric_of_key(key).name for key in keys)
        return f"{' / '.join(names)} {metric_of_key(keys[0]).sign}"

    def heads(self, keys: Sequence[Key]) -> list[str]:
        """Languages, with the data set where a language has several."""
        languages = [language for _, language, _ in keys]
        return [
            (lang if languages.count(lang) == 1 else f"{lang} {data}")
            + (CUT if data in self.results.partial else "")
            for data, lang, _ in keys
        ]

    def _score_column(self, task: str, key: Key) -> list[Cell]:
        runs = [self.made_for(row, task) for row in self.rows]
        scores = [cell_score(each, key) for each in runs]
        tests = [
            self.tests.difference(each, self.others(row), [key])
            for each, row in zip(runs, self.rows, strict=True)
        ]
        beside = [self.paper.beside(row, task, key[1]) for row in self.rows]
        return _column(scores, tests, beside, [True] * len(scores), key)

    def _average_columns(self, task: str, keys: Sequence[Key], many: bool) -> list[list[Cell]]:
        scores, tests, whole, errors, spreads = [], [], [], [], []
        for row in self.rows:
            runs = self.made_for(row, task)
            score = average_score(runs, keys)
            scores.append(score)
            whole.append(_is_whole(runs, keys))
            others = self.others(row)
            tested = whole[-1] and _is_whole(others, keys)
            tests.append(self.tests.difference(runs, others, keys) if tested else None)
            errors.append(Cell(NONE if score is None else number(score.error)))
            spreads.append(Cell("" if score is None or math.isnan(score.spread) else
                                f"{number(score.spread)} ({score.runs})"))  # fmt: skip
        beside = [self.paper.beside(row, task, AVERAGE) for row in self.rows]
        averages = _column(scores, tests, beside, whole, keys[0])
        return [averages, errors, *([spreads] if many else [])]

    def others(self, row: Row) -> Runs:
        """The runs that a row is tested against; none for those runs themselves."""
        against = self.roles.against
        return {} if against in (None, row.system) else self.results.runs(against)

    def is_control(self, row: Row) -> bool:
        return row.system in self.roles.controls.values()

    def _scores_note(self, many: bool, partial: bool) -> str:
        parts = ["Avg. is the plain mean over languages, ± its standard error over speakers."]
        if partial:
            parts.append(f"{PARTIAL} over the row's own languages alone, and not to be compared.")
        if many:
            parts.append("Rows of several runs (seeds, or combinations of languages) are means, and ± "
                         "is that of one run; runs ± is their standard deviation (and their number).")  # fmt: skip
        if self.roles.against:
            parts.append(f"{BETTER} better and {WORSE} worse than {self.name(self.roles.against)}"
                         f"{self.marks_note()}")  # fmt: skip
        parts += self.cut_note()
        parts.append("Bold: the best of a column.")
        if self.roles.controls:
            parts.append("Indented below a pruned merge: its control, task arithmetic with the step "
                         "of the same norm.")  # fmt: skip
        if self.paper.scores:
            parts.append(f"In brackets: {self.paper.about}.")
        return " ".join(parts)

    def marks_note(self) -> str:
        """What a mark means, after `better than the base`."""
        blocks = blocks_in_words([entry.record for entry in self.results.entries])
        several = ", in every run" if any(len(row.runs) > 1 for row in self.rows) else ""
        return (
            f" by a paired sign-flip test over speakers ({blocks}), p < {LEVEL} after Holm's correction "
            f"for the tests of the table{several}. Under {TOO_FEW} speakers there is no mark."
        )

    def cut_note(self) -> list[str]:
        """What the mark of a partial test set means, where there is one."""
        cut = [f"{name}: {words}" for name, words in self.results.partial.items()]
        return [f"{CUT} not the whole set ({'; '.join(cut)})."] if cut else []

    def name(self, system: str) -> str:
        """A system's name: the paper's where it has one."""
        return self.paper.names.get(system, system)


def _is_whole(runs: Runs, keys: Sequence[Key]) -> bool:
    """Whether a row's average is over all columns, in each run or, of models that were made for
    some of them each, over the runs together."""
    if not set(keys) <= {key for entries in runs.values() for key in entries}:
        return False
    single = all(len({e.identity for e in entries.values()}) == 1 for entries in runs.values())
    for entries in runs.values():
        covers = next(iter(entries.values())).origin.covers if single else None
        if any(key not in entries for key in keys if covers is None or key[1:] in covers):
            return False
    return True


def _ordered(results: Results, roles: Roles, paper: Paper) -> list[Row]:
    """The base, the fine-tunes, the others as the paper has them or else as they came, each
    system's rows by their settings and followed by its control's.

    Where a pruned system has several rows, its control has a model for each, and no row of its own.
    """
    known = list(paper.names)
    controls = {
        control: system for system, control in roles.controls.items() if control != roles.against
    }

    def place(system: str) -> tuple[int, int]:
        rank = {roles.base: 0, roles.finetuned: 1}.get(system, 2)
        return rank, known.index(system) if system in known else len(known)

    systems = sorted((name for name in results.systems if name not in controls), key=place)
    ordered = []
    for name in systems:
        ordered += [name, *(control for control, system in controls.items() if system == name)]
    many = {row.system for row in results.rows if row.label != row.system}
    shown = [row for row in results.rows if controls.get(row.system) not in many]
    return sorted(shown, key=lambda row: (ordered.index(row.system), row.order))


def _column(
    scores: Sequence[Score | None],
    tests: Sequence[Difference | None],
    beside: Sequence[str],
    whole: Sequence[bool],
    key: Key,
) -> list[Cell]:
    """Return a column of scores by the metric of `key`, the best of the complete ones in bold."""
    shown = [math.nan if score is None else rounded(score.value) for score in scores]
    known = [v for v, all_of in zip(shown, whole, strict=True) if all_of and not math.isnan(v)]
    best = max(known, key=metric_of_key(key).gain, default=math.nan)
    return [
        Cell(NONE, beside=paper)
        if math.isnan(value)
        else Cell(
            number(value), all_of and value == best and len(known) > 1, "" if all_of else PARTIAL,
            paper, test,
        )
        for value, test, paper, all_of in zip(shown, tests, beside, whole, strict=True)
    ]  # fmt: skip


def score_cell(score: Score | None) -> Cell:
    return Cell(NONE if score is None else number(score.value))


def difference_cell(found: Difference | None) -> Cell:
    if found is None or math.isnan(found.value):
        return Cell(NONE)
    spread = f" ({number(found.spread)})" if found.runs > 1 else ""
    return Cell(change(found.value, found.error) + spread, test=found)
