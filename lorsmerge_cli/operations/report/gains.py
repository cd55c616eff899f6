"""What merging bought: differences, equal-energy controls, gain kept, and what was forgotten."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from lorsmerge_cli.data.languages import TASKS
from lorsmerge_cli.operations.report.entries import OWN, Key, Row
from lorsmerge_cli.operations.report.numbers import (
    NONE,
    change,
    number,
    percent,
    percents,
    span,
)
from lorsmerge_cli.operations.report.scores import (
    Difference,
    Runs,
    average_score,
    cell_score,
    matched,
    metric_of_key,
    partners,
)
from lorsmerge_cli.operations.report.tables import (
    BETTER,
    WORSE,
    Cell,
    Table,
    Tables,
    difference_cell,
    marked,
    score_cell,
)

REFUSED = "refused"


def bought(tables: Tables) -> list[Table]:
    """Every table here that the results have something for."""
    found = [differences(tables), controls(tables), *gains(tables), retention(tables)]
    return [marked(table) for table in found if table is not None and table.rows]


def differences(tables: Tables) -> Table | None:
    """Each system's average less the base's, and less that of the system compared against."""
    others = [name for name in (tables.roles.base, tables.roles.against) if name is not None]
    others = list(dict.fromkeys(others))
    heads = [(f"less {tables.name(other)}", tables.block(task))
             for task in tables.tasks for other in others]  # fmt: skip
    rows = []
    for row in tables.rows:
        cells = []
        for task in tables.tasks:
            runs, keys = tables.made_for(row, task), tables.columns(task)
            for other in others:
                same = row.system == other
                found = (
                    None
                    if same
                    else tables.tests.difference(runs, tables.results.runs(other), keys)
                )
                cells.append(difference_cell(found))
        if any(cell.text != NONE for cell in cells):
            rows.append((tables.label(row), tables.is_control(row), tuple(cells)))
    note = (
        "Average over the languages that both have, ± the standard error of the paired difference "
        f"over speakers, of one run (and the standard deviation over runs). {BETTER} better, {WORSE} worse"
        f"{tables.marks_note()}"
    )
    return Table(
        "differences", "Against the base and the baseline", note, tuple(heads), tuple(rows)
    )


def controls(tables: Tables) -> Table | None:
    """Each pruned system less task arithmetic of the same norm: what the pruning itself brought."""
    rows = []
    for row in tables.rows:
        control = tables.roles.controls.get(row.system)
        if control is None:
            continue
        paired = partners(row.runs, tables.results.runs(control))
        if not paired:
            continue
        cells = [Cell(scales_of(paired))]
        for task in tables.tasks:
            keys = tables.columns(task)
            pruned, shrunk = matched(tables.made_for(row, task), paired)
            cells += [
                score_cell(average_score(pruned, keys)), score_cell(average_score(shrunk, keys)),
                difference_cell(tables.tests.difference(pruned, shrunk, keys)),
            ]  # fmt: skip
        rows.append((tables.label(row), False, tuple(cells)))
    heads = [("control's lambda", "")]
    heads += [(head, tables.block(task)) for task in tables.tasks
              for head in ("pruned", "control", "difference")]  # fmt: skip
    note = (
        "Pruning also shrinks the step that a merge takes. A control is task arithmetic with the "
        "lambda that takes a step of the same L2 norm; only a difference from it is the pruning's "
        f"own. {BETTER} better, {WORSE} worse than the control{tables.marks_note()}"
    )
    return Table("controls", "Pruning against shrinking", note, tuple(heads), tuple(rows))


def scales_of(runs: Runs) -> str:
    """Lambda of models, or from the least to the largest."""
    scales = {e.origin.scale for entries in runs.values() for e in entries.values()} - {None}
    numbers = sorted(scale for scale in scales if isinstance(scale, float | int))
    if OWN in scales or not numbers:
        return OWN if OWN in scales else NONE
    return span(numbers[0], numbers[-1])


def gains(tables: Tables) -> Iterable[Table]:
    """(merged - base) / (fine-tuned - base) by language, and the gap between languages."""
    base, finetuned = tables.roles.base, tables.roles.finetuned
    if base is None or finetuned is None:
        return
    for task in tables.tasks:
        keys = tables.columns(task)
        rows: list[tuple[str, bool, tuple[Cell, ...]]] = []
        for row in tables.rows:
            if row.system == finetuned:
                whole = _divisors(tables, tables.made_for(row, task), keys)
                cells = [Cell(NONE if d is None else change(d.value, d.error)) for d in whole]
                label = f"{tables.label(row)} less {tables.name(base)}"
                rows.append((label, False, (*cells, Cell(""))))
        denominators = len(rows)
        for row in tables.rows:
            shown = _gain_cells(tables, row, task, keys)
            if any(cell.text not in ("", NONE) for cell in shown):
                rows.append((tables.label(row), tables.is_control(row), shown))
        if all(cell.text == NONE for row in rows[denominators:] for cell in row[2][:-1]):
            continue
        heads = [(name, tables.block(task)) for name in [*tables.heads(keys), "Avg.", "gap"]]
        note = (
            f"Share of the fine-tunes' gain that a system keeps: (system - {tables.name(base)}) / "
            f"({tables.name(finetuned)} - {tables.name(base)}), in percent; the first row is the "
            "denominator ± its standard error. In brackets: the 95 % interval over speakers. "
            f"{REFUSED}: fine-tuning gained less than two standard errors. The gap is the worst language's score less the best one's."
        )
        yield Table(f"gain_{task}", f"Gain kept, {task.upper()}", note, tuple(heads), tuple(rows))


def _divisors(tables: Tables, finetuned: Runs, keys: Sequence[Key]) -> list[Difference | None]:
    """What fine-tuning changed, by language and on average."""
    base = tables.results.runs(tables.roles.base or "")
    return _tests(tables, finetuned, base, keys)


def _gain_cells(tables: Tables, row: Row, task: str, keys: Sequence[Key]) -> tuple[Cell, ...]:
    runs, roles = tables.made_for(row, task), tables.roles
    scores = [score.value for key in keys if (score := cell_score(runs, key)) is not None]
    gap = Cell(number(max(scores) - min(scores)) if len(scores) > 1 else "")
    if row.system in (roles.base, roles.finetuned):
        return (*(Cell(NONE) for _ in [*keys, "average"]), gap)
    base = tables.results.runs(roles.base or "")
    finetuned = partners(runs, tables.results.runs(roles.finetuned or ""))
    runs = {run: entries for run, entries in runs.items() if run in finetuned}
    tests = _tests(tables, runs, base, keys)
    divisors = _divisors(tables, finetuned, keys)
    cells = [
        _gain(tables, (runs, base, finetuned), test, divisor, own)
        for test, divisor, own in zip(
            tests, divisors, [*([key] for key in keys), keys], strict=True
        )
    ]
    return (*cells, gap)


def _tests(tables: Tables, runs: Runs, base: Runs, keys: Sequence[Key]) -> list[Difference | None]:
    """Less the base, by language, and on average where there is none missing."""
    tests = [tables.tests.difference(runs, base, [key]) for key in keys]
    return [*tests, None if None in tests else tables.tests.difference(runs, base, keys)]


def _gain(
    tables: Tables,
    systems: tuple[Runs, Runs, Runs],
    test: Difference | None,
    divisor: Difference | None,
    keys: Sequence[Key],
) -> Cell:
    """The share of the fine-tunes' gain, and its interval."""
    if test is None or divisor is None:
        return Cell(NONE)
    gain = metric_of_key(keys[0]).gain(divisor.value)
    if not (gain > 0 and gain >= 2 * divisor.error):  # of less a share means nothing; nor of NaN
        return Cell(REFUSED)
    share = test.value / divisor.value
    found = tables.tests.share(*systems, keys, share, divisor.value)
    known = found is not None and not math.isnan(found.standard_error)
    beside = percents(found.low, found.high) if found and known else ""
    return Cell(percent(share), beside=beside)


def retention(tables: Tables) -> Table | None:
    """What no delta of a merge was made for, against the base."""
    if tables.roles.base is None:
        return None
    base = tables.results.runs(tables.roles.base)
    kept = {row: tables.not_made_for(row) for row in tables.rows}
    shown = {key for row, runs in kept.items() if row.system != tables.roles.base
             for entries in runs.values() for key in entries}  # fmt: skip
    keys = sorted(shown & {key for entries in base.values() for key in entries},
                  key=lambda key: (key[2], key[1], key[0]))  # fmt: skip
    rows = []
    for row in tables.rows:
        runs = row.runs if row.system == tables.roles.base else kept[row]
        if not any(key in entries for entries in runs.values() for key in keys):
            continue
        cells: list[Cell] = []
        for task in TASKS:
            own = [key for key in keys if key[2] == task]
            cells += [_retained(tables, row, runs, base, key) for key in own]
            if own:
                change = tables.tests.difference(runs, base, own)
                cells.append(
                    Cell(NONE) if row.system == tables.roles.base else difference_cell(change)
                )
        rows.append((tables.label(row), tables.is_control(row), tuple(cells)))
    heads = []
    for task in TASKS:
        own = [key for key in keys if key[2] == task]
        heads += [(head, tables.block(task)) for head in tables.heads(own)]
        heads += [("change", tables.block(task))] if own else []
    note = (
        "Languages, tasks and test sets that none of a model's deltas was made for. "
        f"Change: the average less the base's, ± its standard error. {BETTER} better, {WORSE} worse than "
        f"{tables.name(tables.roles.base)}{tables.marks_note()}"
    )
    return (
        Table(
            "retention",
            "Where no delta was made for it: forgotten or gained",
            note,
            tuple(heads),
            tuple(rows),
        )
        if keys
        else None
    )


def _retained(tables: Tables, row: Row, runs: Runs, base: Runs, key: Key) -> Cell:
    score = cell_score(runs, key)
    own = row.system == tables.roles.base
    test = None if own else tables.tests.difference(runs, base, [key])
    return Cell(NONE) if score is None else Cell(number(score.value), test=test)
