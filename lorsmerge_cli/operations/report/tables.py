"""The tables of a report: scores, equal-energy controls, gain kept, what was forgotten."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lorsmerge_cli.data.languages import TASKS
from lorsmerge_cli.metrics.significance import TOO_FEW, holm
from lorsmerge_cli.operations.report.entries import Entry, Key, Row, Runs
from lorsmerge_cli.operations.report.numbers import DECIMALS, NONE, change, number
from lorsmerge_cli.operations.report.results import Results
from lorsmerge_cli.operations.report.roles import AVERAGE, Paper, Roles
from lorsmerge_cli.operations.report.scores import (
    Difference,
    PairedTests,
    average_score,
    metric_of_key,
    restricted,
)
from lorsmerge_cli.results.records import blocks_in_words, comparable_group, set_names
from lorsmerge_cli.results.suite import PUBLISHED, published_in_words

BETTER, WORSE, PARTIAL, CUT = "†", "‡", "*", "§"
LEVEL = 0.05  # of the paired tests of a table together


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: a number, mostly.
        best: whether it is bold.
        mark: of a paired test, or of a partial average.
        beside: the paper's number or an interval, for brackets.
        test: the paired test that a mark comes from; None for none.
        p_value: of the test, corrected for all tests of the table.
        blocks: speakers that the test is over.
    """

    text: str
    best: bool = False
    mark: str = ""
    beside: str = ""
    test: Difference | None = None
    p_value: float | None = None
    blocks: int | None = None


TableRow = tuple[str, bool, tuple[Cell, ...]]


@dataclass(frozen=True)
class Table:
    """A table, for every format.

    Attributes:
        name: for references.
        title, note: above and below it.
        heads: of the columns after the first, each with the block it belongs to.
        rows: label, whether it is indented below the row above, and a cell for each head.
    """

    name: str
    title: str
    note: str
    heads: tuple[tuple[str, str], ...]
    rows: tuple[TableRow, ...]


def marked(table: Table) -> Table:
    """Return a table with marks on the differences that are more than chance.

    p-values are corrected for the table's tests by Holm's method; a test of under 6 speakers
    bears no mark, and does not count.
    """
    tests = [cell.test for _, _, row in table.rows for cell in row]
    counted = [math.nan if t is None or t.blocks < TOO_FEW else t.p_value for t in tests]
    p_values = iter(holm(counted))
    rows = tuple(
        (name, indented, tuple(_marked(cell, next(p_values)) for cell in row))
        for name, indented, row in table.rows
    )
    return replace(table, rows=rows)


def _marked(cell: Cell, p_value: float) -> Cell:
    test = cell.test
    if test is None:
        return cell
    mark = (BETTER if test.better else WORSE) if p_value < LEVEL else ""
    corrected = None if math.isnan(p_value) else p_value
    return replace(cell, mark=cell.mark + mark, test=None, blocks=test.blocks, p_value=corrected)


class Tables:
    """The tables of results under their roles."""

    def __init__(self, results: Results, roles: Roles, paper: Paper) -> None:
        self.results, self.roles, self.paper = results, roles, paper
        self.tests = PairedTests(results.scoring)
        self.rows = _ordered(results, roles, paper)
        self.every_key = list(dict.fromkeys(entry.key for entry in results.entries))
        known = {
            e.key for e in results.entries if not self.is_elsewhere(e) and e.system != roles.base
        }
        self.keys = [k for k in self.every_key if k[0] not in roles.held_out
                     and (k in known or len(results.systems) == 1)]  # fmt: skip
        self.groups = _by_task(map(self.group, self.every_key))
        self.tasks = _by_task(map(self.group, self.keys))

    def is_elsewhere(self, entry: Entry) -> bool:
        """Return whether a model was not made for what it was scored on, as far as that is known.

        Of test sets for retention it has to be known that it was.
        """
        dataset = entry.key[0]
        if not entry.covered or dataset in self.roles.held_out:
            return True
        unknown = entry.origin.covers is None and entry.system != self.roles.base
        return unknown and dataset in self.roles.retention

    def group(self, key: Key) -> str:
        """Return the name of the columns that may be averaged, as `comparable_group` has it."""
        return comparable_group(*key, self.results.scoring, self.results.heard[key[0]])

    @property
    def of_the_base_alone(self) -> list[Key]:
        """Test sets that only the base was scored on, which are in no table."""
        others = {e.key for e in self.results.entries if e.system != self.roles.base}
        return [key for key in self.every_key if key not in others and key not in self.keys]

    def columns(self, task: str) -> list[Key]:
        """Return the data sets and languages of a group, by language."""
        return sorted((k for k in self.keys if self.group(k) == task), key=lambda k: (k[1], k[0]))

    def name(self, system: str) -> str:
        """Return a system's name: the paper's where it has one, and what a recorded control is."""
        if system in self.paper.names or not self.roles.is_recorded(system):
            return self.paper.names.get(system, system)
        merges = [self.name(merge) for merge, own in self.roles.controls.items() if own == system]
        return f"TA, same norm as {', '.join(merges)}"

    def line(self, row: Row, cells: Sequence[Cell]) -> TableRow:
        """Return a line of a table: a row's cells under its label, indented for a control."""
        return self.label(row), self.roles.is_beside(row.system), tuple(cells)

    def label(self, row: Row) -> str:
        """Return a row's label, with the paper's name where it has one."""
        return row.label.replace(row.system, self.name(row.system), 1)

    def made_for(self, row: Row, task: str) -> Runs:
        """Return a row's records on languages of a task that the model was made for."""
        keys = self.columns(task)
        return restricted(row, lambda entry: not self.is_elsewhere(entry) and entry.key in keys)

    def not_made_for(self, row: Row) -> Runs:
        """Return a row's records on languages, tasks and test sets the model was not made for."""
        return restricted(row, self.is_elsewhere)

    def scores(self) -> Table:
        """Return systems x languages with the plain average, as the paper has them."""
        many = any(len(row.runs) > 1 for row in self.rows)
        heads: list[tuple[str, str]] = []
        columns: list[list[Cell]] = []
        for task in self.tasks:
            keys = self.columns(task)
            heads += self.heads(task, keys, "Avg.", "±", *(["runs ±"] if many else []))
            columns += [self._column(task, [key], key[1]) for key in keys]
            columns.append(self._column(task, keys, AVERAGE))
            means = [average_score(self.made_for(row, task), keys) for row in self.rows]
            columns.append([Cell(number(mean.error)) for mean in means])
            if many:
                columns.append([
                    Cell("" if math.isnan(m.spread) else f"{number(m.spread)} ({m.runs})")
                    for m in means
                ])  # fmt: skip
        rows = [
            self.line(row, [column[n] for column in columns]) for n, row in enumerate(self.rows)
        ]
        partial = any(PARTIAL in cell.mark for column in columns for cell in column)
        rows += self._published(many)
        note = self._scores_note(many, partial)
        return marked(Table("scores", "Scores", note, tuple(heads), tuple(rows)))

    def _published(self, many: bool) -> list[TableRow]:
        """Return published figures below the scores: no system's, so that no test has them."""
        rows: list[TableRow] = []
        figures = self.results.published[0]
        for model in dict.fromkeys(figure.model for figure in figures):
            own = {figure.key: figure.score for figure in figures if figure.model == model}
            cells: list[Cell] = []
            for task in self.tasks:
                keys = self.columns(task)
                cells += [Cell(f"{own[key]}" if key in own else NONE) for key in keys]
                whole = all(key in own for key in keys)
                mean = number(sum(own[key] for key in keys) / len(keys)) if whole else NONE
                cells += [Cell(mean), Cell(""), *([Cell("")] if many else [])]
            if any(key in own for key in self.keys):
                rows.append((f"{model} {PUBLISHED}", False, tuple(cells)))
        return rows

    def block(self, task: str) -> str:
        """Return `WER % ↓`, or `WER / CER % ↓`, or `BLEU ↑`, and a normalisation of its own."""
        keys = [key for key in self.every_key if self.group(key) == task]
        names = dict.fromkeys(metric_of_key(key).name for key in keys)
        apart = "".join(f", {how}" for how in task.split(" ")[1:])
        return f"{' / '.join(names)} {metric_of_key(keys[0]).sign}{apart}"

    def unit(self, task: str) -> str:
        """Return the block without its arrow, for what is a gain or a loss already."""
        return self.block(task).replace(" ↓", "").replace(" ↑", "")

    def heads(self, task: str, keys: Sequence[Key], *more: str) -> list[tuple[str, str]]:
        """Return heads: of languages, with the data set where a language has several, and more."""
        called = set_names([key[:2] for key in keys])
        names = [
            name + (CUT if data in self.results.partial else "")
            for name, (data, *_) in zip(called, keys, strict=True)
        ]
        return [(name, self.block(task)) for name in (*names, *more)]

    def _column(self, task: str, keys: Sequence[Key], name: str) -> list[Cell]:
        """Return the column of a language or the average, with the best of the complete ones in bold."""
        scored: list[tuple[float, bool, Difference | None]] = []
        for row in self.rows:
            runs, others = self.made_for(row, task), self.others(row)
            whole = name != AVERAGE or _is_whole(runs, keys)
            tested = name != AVERAGE or (whole and _is_whole(others, keys))
            test = self.tests.difference(runs, others, keys) if tested else None
            scored.append((round(average_score(runs, keys).value, DECIMALS), whole, test))
        complete = [value for value, whole, _ in scored if whole and not math.isnan(value)]
        best = max(complete, key=metric_of_key(keys[0]).gain, default=math.nan)
        cells = []
        for row, (value, whole, test) in zip(self.rows, scored, strict=True):
            beside = self.paper.beside(row, task, name)
            if math.isnan(value):
                cells.append(Cell(NONE, beside=beside))
                continue
            bold = whole and value == best and len(complete) > 1
            cells.append(Cell(number(value), bold, "" if whole else PARTIAL, beside, test))
        return cells

    def others(self, row: Row) -> Runs:
        """Return the runs that a row is tested against; none for those runs themselves."""
        against = self.roles.against
        return {} if against in (None, row.system) else self.results.runs[against]

    def _scores_note(self, many: bool, partial: bool) -> str:
        parts = [
            "Avg. is the plain mean over the columns of its block, ± its standard error over speakers."
        ]
        if partial:
            parts.append(f"{PARTIAL} over the row's own languages only, so not comparable.")
        if many:
            parts.append("Rows of several runs (seeds, or combinations of languages) are means, and ± "
                         "is that of one run; runs ± is their standard deviation (and their number).")  # fmt: skip
        if self.roles.against:
            parts.append(self.marks_note(self.name(self.roles.against)))
        if cut := [f"{name}: {words}" for name, words in self.results.partial.items()]:
            parts.append(f"{CUT} not the whole set ({'; '.join(cut)}).")
        parts.append("Bold: the best of a column.")
        if self.roles.controls:
            parts.append("Indented below a merge: its control, task arithmetic with a step of the "
                         "same norm.")  # fmt: skip
        shown = [[f for f in part if f.key in self.keys] for part in self.results.published]
        parts += [f"{words}." for words in published_in_words(*shown)]
        if self.paper.scores:
            parts.append(f"In brackets: {self.paper.about}.")
        return " ".join(parts)

    def marks_note(self, than: str = "") -> str:
        """Return what a mark means, of differences from the system that `than` names."""
        blocks = blocks_in_words([entry.record for entry in self.results.entries])
        several = ", in every run" if any(len(row.runs) > 1 for row in self.rows) else ""
        return (
            f"{BETTER} better and {WORSE} worse{than and f' than {than}'} by a paired sign-flip test "
            f"over speakers ({blocks}), p < {LEVEL} after Holm's correction for the tests of the "
            f"table{several}. Under {TOO_FEW} speakers there is no mark."
        )


def _by_task(groups: Iterable[str]) -> list[str]:
    return sorted(dict.fromkeys(groups), key=lambda group: TASKS.index(group.split(" ")[0]))


def _is_whole(runs: Runs, keys: Sequence[Key]) -> bool:
    """Return whether a row's average is over all columns.

    It is so in each run or, of models that were made for some of the columns each, over the runs
    together.
    """
    if not set(keys) <= {key for entries in runs.values() for key in entries}:
        return False
    single = all(len({e.identity for e in entries.values()}) == 1 for entries in runs.values())
    for entries in runs.values():
        covers = next(iter(entries.values())).origin.covers if single else None
        if any(key not in entries for key in keys if covers is None or key[1:] in covers):
            return False
    return True


def _ordered(results: Results, roles: Roles, paper: Paper) -> list[Row]:
    """Return the base, the fine-tunes, and the others as the paper has them or else as they came.

    Each system's rows are by their settings, and its control's follow; those of a control of
    several systems follow the last. Where a system with a control has several rows, its control has
    a model for each, and no row of its own.
    """
    published = list(paper.names)
    controls = {
        control: system for system, control in roles.controls.items() if roles.is_beside(control)
    }

    def position(system: str) -> tuple[int, int]:
        rank = {roles.base: 0, roles.finetuned: 1}.get(system, 2)
        return rank, published.index(system) if system in published else len(published)

    systems = sorted((name for name in results.systems if name not in controls), key=position)
    ordered = []
    for name in systems:
        ordered += [name, *(control for control, system in controls.items() if system == name)]
    many = {row.system for row in results.rows if row.label != row.system}
    shown = [row for row in results.rows if controls.get(row.system) not in many]
    return sorted(shown, key=lambda row: (ordered.index(row.system), row.order))


def difference_cell(found: Difference | None) -> Cell:
    """Return a difference with its error, and the spread of several runs."""
    if found is None or math.isnan(found.value):
        return Cell(NONE)
    spread = f" ({number(found.spread)})" if found.runs > 1 else ""
    return Cell(change(found.value, found.error) + spread, test=found)
