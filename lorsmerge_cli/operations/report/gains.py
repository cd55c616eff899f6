"""Tables of what merging gained: differences, controls, gain kept, and what was forgotten."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from lorsmerge_cli.operations.report.entries import OWN, Key, Row, Runs
from lorsmerge_cli.operations.report.numbers import NONE, change, number, percent
from lorsmerge_cli.operations.report.scores import (
    Difference,
    average_score,
    matched,
    metric_of_key,
    partners,
)
from lorsmerge_cli.operations.report.tables import (
    Cell,
    Table,
    TableRow,
    Tables,
    difference_cell,
    marked,
)

REFUSED = "refused"


def gain_tables(tables: Tables) -> list[Table]:
    """Return every table here that the results have something for."""
    made = [
        differences(tables),
        controls(tables),
        *gains(tables),
        *balance(tables),
        *retention(tables),
    ]
    return [marked(table) for table in made if table.rows]


def differences(tables: Tables) -> Table:
    """Return each system's average less the base's, and less that of the system compared against."""
    others = [name for name in (tables.roles.base, tables.roles.against) if name is not None]
    others = list(dict.fromkeys(others))
    heads = [(f"minus {tables.name(other)}", tables.block(task))
             for task in tables.tasks for other in others]  # fmt: skip
    rows = []
    for row in tables.rows:
        cells = []
        for task in tables.tasks:
            runs, keys = tables.made_for(row, task), tables.columns(task)
            for other in others:
                partner = {} if other == row.system else tables.results.runs[other]
                cells.append(difference_cell(tables.tests.difference(runs, partner, keys)))
        if any(cell.text != NONE for cell in cells):
            rows.append(tables.line(row, cells))
    note = (
        "Average over the languages that both have, ± the standard error of the paired difference "
        "over speakers, of one run (and the standard deviation over runs). " + tables.marks_note()
    )
    title = "Against the base and the baseline"
    return Table("differences", title, note, tuple(heads), tuple(rows))


def controls(tables: Tables) -> Table:
    """Return each system less task arithmetic of the same step norm: what its method brought."""
    rows = []
    for row in tables.rows:
        control = tables.roles.controls.get(row.system)
        paired = {} if control is None else partners(row.runs, tables.results.runs[control])
        if not paired:
            continue
        cells = [Cell(scales_of(paired))]
        for task in tables.tasks:
            keys = tables.columns(task)
            merges, others = matched(tables.made_for(row, task), paired)
            cells += [Cell(number(average_score(runs, keys).value)) for runs in (merges, others)]
            cells.append(difference_cell(tables.tests.difference(merges, others, keys)))
        rows.append((tables.label(row), False, tuple(cells)))
    heads = [("control's lambda", "")]
    heads += [(head, tables.block(task)) for task in tables.tasks
              for head in ("merge", "control", "difference")]  # fmt: skip
    note = (
        "Methods take steps of different length, and pruning shortens a step. A control is task "
        "arithmetic of the same deltas with the lambda that takes a step of the same L2 norm; only a "
        f"difference from it is the method's own. {tables.marks_note('the control')}"
    )
    title = "Against task arithmetic of the same step norm"
    return Table("controls", title, note, tuple(heads), tuple(rows))


def scales_of(runs: Runs) -> str:
    """Return lambda of models, or from the least to the largest."""
    scales = {e.origin.scale for entries in runs.values() for e in entries.values()} - {None}
    numbers = sorted(scale for scale in scales if isinstance(scale, float | int))
    if OWN in scales or not numbers:
        return OWN if OWN in scales else NONE
    return " to ".join(dict.fromkeys(f"{scale:.3g}" for scale in (numbers[0], numbers[-1])))


def gains(tables: Tables) -> Iterator[Table]:
    """Yield (merged - base) / (fine-tuned - base) by language, and the gap between languages."""
    base, finetuned = tables.roles.base, tables.roles.finetuned
    if base is None or finetuned is None:
        return
    for task in tables.tasks:
        keys = tables.columns(task)
        divisors: list[TableRow] = []
        for row in tables.rows:
            if row.system == finetuned:
                gained = _less_base(tables, tables.made_for(row, task), keys)
                cells = [Cell(NONE if d is None else change(d.value, d.error)) for d in gained]
                label = f"{tables.label(row)} minus {tables.name(base)}"
                divisors.append((label, False, (*cells, Cell(""))))
        shown = [(row, _gain_cells(tables, row, task, keys)) for row in tables.rows]
        rows = [tables.line(row, cells) for row, cells in shown
                if any(cell.text not in ("", NONE) for cell in cells)]  # fmt: skip
        if all(cell.text == NONE for _, _, cells in rows for cell in cells[:-1]):
            continue
        heads = tables.heads(task, keys, "Avg.", "gap")
        note = (
            f"Share of the fine-tunes' gain that a system keeps: (system - {tables.name(base)}) / "
            f"({tables.name(finetuned)} - {tables.name(base)}), in percent; the first row is the "
            "denominator ± its standard error. In brackets: the 95 % interval over speakers. "
            f"{REFUSED}: fine-tuning gained less than two standard errors. The gap is the worst "
            "language's score minus the best one's."
        )
        title = f"Gain kept, {task.upper()}"
        yield Table(f"gain_{task.replace(' ', '_')}", title, note, tuple(heads), (*divisors, *rows))


def _gain_cells(tables: Tables, row: Row, task: str, keys: Sequence[Key]) -> list[Cell]:
    """Return the shares of a row by language and on average, and its gap."""
    runs, roles = tables.made_for(row, task), tables.roles
    means = [average_score(runs, [key]) for key in keys]
    scores = [mean.value for mean in means if mean.runs]
    gap = Cell(number(max(scores) - min(scores)) if len(scores) > 1 else "")
    if row.system in (roles.base, roles.finetuned):
        return [*(Cell(NONE) for _ in [*keys, "average"]), gap]
    finetuned = partners(runs, tables.results.runs.get(roles.finetuned or "", {}))
    runs = {run: entries for run, entries in runs.items() if run in finetuned}
    columns = zip(
        _less_base(tables, runs, keys),
        _less_base(tables, finetuned, keys),
        [*([key] for key in keys), keys],
        strict=True,
    )
    return [*(_gain(tables, runs, finetuned, *column) for column in columns), gap]


def _less_base(tables: Tables, runs: Runs, keys: Sequence[Key]) -> list[Difference | None]:
    """Return runs less the base by language, and on average where no language is missing."""
    base = tables.results.runs.get(tables.roles.base or "", {})
    tests = [tables.tests.difference(runs, base, [key]) for key in keys]
    return [*tests, None if None in tests else tables.tests.difference(runs, base, keys)]


def _gain(
    tables: Tables,
    runs: Runs,
    finetuned: Runs,
    test: Difference | None,
    divisor: Difference | None,
    keys: Sequence[Key],
) -> Cell:
    """Return the share of the fine-tunes' gain, and its interval."""
    if test is None or divisor is None:
        return Cell(NONE)
    gain = metric_of_key(keys[0]).gain(divisor.value)
    if not (gain > 0 and gain >= 2 * divisor.error):  # a share of a smaller one means nothing
        return Cell(REFUSED)
    share = test.value / divisor.value
    base = tables.results.runs.get(tables.roles.base or "", {})
    interval = tables.tests.share(runs, base, finetuned, keys, share, divisor.value)
    if interval is None or math.isnan(interval.standard_error):
        return Cell(percent(share))
    return Cell(percent(share), beside=percent(interval.low, interval.high))


@dataclass(frozen=True)
class Balance:
    """What a row gained on what it was made for, and lost elsewhere: both positive, if so."""

    gain: Difference | None
    loss: Difference | None

    @property
    def whole(self) -> bool:
        """Whether both are known."""
        return not any(part is None or math.isnan(part.value) for part in (self.gain, self.loss))


def balance_of(tables: Tables, row: Row, task: str) -> Balance:
    """Return a row's gain over the base on the languages of a task that it was made for, and its loss elsewhere.

    Elsewhere are the test sets for retention, or all that it was not made for where none are named.
    """
    base, wanted = tables.results.runs.get(tables.roles.base or "", {}), tables.roles.retention
    if row.system == tables.roles.base:
        return Balance(None, None)
    made_for, others = tables.made_for(row, task), tables.not_made_for(row)
    keys = sorted({key for entries in others.values() for key in entries})
    keys = [k for k in keys if tables.group(k) == task and (not wanted or k[0] in wanted)]
    gain = tables.tests.difference(made_for, base, tables.columns(task))
    loss = tables.tests.difference(others, base, keys)
    return Balance(_oriented(gain, tables, task, 1), _oriented(loss, tables, task, -1))


def _oriented(found: Difference | None, tables: Tables, task: str, sign: int) -> Difference | None:
    """Return a difference as a gain (sign 1) or a loss (sign -1)."""
    if found is None:
        return None
    key = next(key for key in tables.every_key if tables.group(key) == task)
    return replace(found, value=sign * metric_of_key(key).gain(found.value))


def balance(tables: Tables) -> Iterator[Table]:
    """Yield each system's gain on what was merged beside its loss elsewhere."""
    wanted = tables.roles.retention  # of other tasks or normalisations than the gains, maybe
    tasks = [
        task
        for task in tables.groups
        if any(
            found.whole or (wanted and (found.gain or found.loss))
            for found in (balance_of(tables, row, task) for row in tables.rows)
        )
    ]
    rows = []
    for row in tables.rows:
        found = [balance_of(tables, row, task) for task in tasks]
        if any(each.gain or each.loss for each in found):
            cells = [difference_cell(part) for each in found for part in (each.gain, each.loss)]
            rows.append(tables.line(row, cells))
    if not (tasks and rows):
        return
    elsewhere = f"the test sets {', '.join(wanted)}" if wanted else "all other test sets"
    note = (
        f"Gain: how much better than {tables.name(tables.roles.base or '')} on the languages that a model was "
        f"made for. Loss: how much worse on {elsewhere}, where it was not made for their language and "
        "task; a negative one is a gain there too. Both are averages, ± the standard error of the "
        f"paired difference, in the unit of the column. {tables.marks_note()}"
    )
    heads = [
        (head, tables.unit(task)) for task in tasks for head in ("gain, merged", "loss, elsewhere")
    ]
    yield Table(
        "balance",
        "Retention: gain on what was merged, loss elsewhere",
        note,
        tuple(heads),
        tuple(rows),
    )


def retention(tables: Tables) -> Iterator[Table]:
    """Yield what no delta of a merge was made for, against the base."""
    if tables.roles.base is None:
        return
    base = tables.results.runs[tables.roles.base]
    kept = {row: row.runs if row.system == tables.roles.base else tables.not_made_for(row)
            for row in tables.rows}  # fmt: skip
    shown = {key for row, runs in kept.items() if row.system != tables.roles.base
             for entries in runs.values() for key in entries}  # fmt: skip
    keys = sorted(shown & {key for entries in base.values() for key in entries},
                  key=lambda key: (tables.group(key), key[1], key[0]))  # fmt: skip
    by_task = {task: list(columns) for task, columns in groupby(keys, key=tables.group)}
    rows = []
    for row, runs in kept.items():
        if not any(key in entries for entries in runs.values() for key in keys):
            continue
        partner = {} if row.system == tables.roles.base else base
        cells: list[Cell] = []
        for columns in by_task.values():
            for key in columns:
                score = average_score(runs, [key])
                test = tables.tests.difference(runs, partner, [key])
                cells.append(Cell(number(score.value), test=test))
            cells.append(difference_cell(tables.tests.difference(runs, partner, columns)))
        rows.append(tables.line(row, cells))
    heads = [head for task in by_task for head in tables.heads(task, by_task[task], "change")]
    note = (
        "Languages, tasks and test sets that none of a model's deltas was made for. "
        "Change: the average minus the base's, ± its standard error. "
        + tables.marks_note(tables.name(tables.roles.base))
    )
    title = "Where no delta was made for it: forgotten or gained"
    yield Table("retention", title, note, tuple(heads), tuple(rows))
