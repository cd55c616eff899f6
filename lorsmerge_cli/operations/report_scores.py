"""Averages over languages and runs, paired differences, and what of them is more than chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from lorsmerge_cli.metrics.bootstrap import Comparison
from lorsmerge_cli.operations.eval_scores import average, compare
from lorsmerge_cli.operations.report_entries import Entry, Key, Row
from lorsmerge_cli.operations.report_results import Results

LEVEL = 0.05  # of the paired tests
NORMAL_TAIL = 1.96  # standard errors, at that level

Runs = Mapping[str, Mapping[Key, Entry]]


@dataclass(frozen=True)
class Score:
    """A score over runs.

    Attributes:
        value: mean over runs.
        error: standard error that the test set brings (root mean square over runs).
        spread: standard deviation over runs; NaN for one.
        runs: how many.
    """

    value: float
    error: float
    spread: float
    runs: int


@dataclass(frozen=True)
class Difference(Score):
    """A score less another system's, run by run on the same utterances.

    Attributes:
        better, worse: by the paired test, in every run.
    """

    better: bool
    worse: bool


class Tests:
    """Paired bootstrap tests between the results' systems, each made once."""

    __test__ = False  # not one of pytest's

    def __init__(self, results: Results) -> None:
        self.results = results
        self._made: dict[tuple[int, int], Comparison] = {}

    def compare(self, other: Entry, entry: Entry) -> Comparison:
        """An entry against another's on the same utterances, in units of the score's table."""
        key = (id(other), id(entry))
        if key not in self._made:
            self._made[key] = compare(other.record, entry.record, self.results.scoring)
        return self._made[key]

    def cell(self, runs: Runs, other: Runs, key: Key) -> Difference | None:
        """A system against another on one data set, language and task; None where either has none."""
        found = [
            self.compare(partner[key], entries[key])
            for entries, partner in pairs(runs, other)
            if key in entries and key in partner
        ]
        if not found:
            return None
        unit = 1.0 if key[2] == "st" else 100.0
        sign = 1 if key[2] == "st" else -1
        significant = all(test.p_value < LEVEL for test in found)
        return _over_runs(
            [unit * test.difference for test in found],
            [unit * test.interval.standard_error for test in found],
            lambda value: significant and sign * value > 0,
            lambda value: significant and sign * value < 0,
        )

    def average(self, runs: Runs, other: Runs, keys: Sequence[Key]) -> Difference | None:
        """The same for the mean over those of `keys` that both have, by the normal distribution.

        Languages' test sets being independent, the errors add up in squares.
        """
        if not keys:
            return None
        values, errors = [], []
        for entries, partner in pairs(runs, other):
            cells = [self.cell({"": entries}, {"": partner}, key) for key in keys]
            known = [cell for cell in cells if cell is not None]
            if known:
                values.append(fmean(cell.value for cell in known))
                errors.append(math.sqrt(sum(cell.error**2 for cell in known)) / len(known))
        if not values:
            return None
        sign = 1 if keys[0][2] == "st" else -1
        clear = all(
            abs(value) > NORMAL_TAIL * error for value, error in zip(values, errors, strict=True)
        )
        return _over_runs(
            values, errors, lambda v: clear and sign * v > 0, lambda v: clear and sign * v < 0
        )


def pairs(runs: Runs, other: Runs) -> Iterator[tuple[Mapping[Key, Entry], Mapping[Key, Entry]]]:
    """The runs of two systems that are compared with one another.

    Those of one name, or of a name that the other goes on from (`seed0` and `seed0-ca+de`). A
    system of one run without a name, such as the base, is compared with every one.
    """
    for run, entries in runs.items():
        partner = partner_of(run, other)
        if partner:
            yield entries, partner
        elif list(runs) == [""]:
            yield from ((entries, each) for each in other.values())


def partner_of(run: str, other: Runs) -> Mapping[Key, Entry]:
    """The run of another system that a run is paired with; empty for none."""
    near = [name for name in other if name in ("", run) or run.startswith(f"{name}-")]
    if near:
        return other[max(near, key=len)]
    return next(iter(other.values())) if run == "" and len(other) == 1 else {}


def partners(runs: Runs, other: Runs) -> Runs:
    """The runs of another system that some runs are paired with, under the names of the latter."""
    return {run: partner for run in runs if (partner := partner_of(run, other))}


def matched(runs: Runs, other: Runs) -> tuple[Runs, Runs]:
    """The runs of two systems that are paired, each with what both were scored on."""
    paired = partners(runs, other)
    keys = {run: runs[run].keys() & paired[run].keys() for run in paired}
    mine = {run: {k: runs[run][k] for k in runs[run] if k in keys[run]} for run in paired}
    theirs = {run: {k: paired[run][k] for k in mine[run]} for run in paired}
    return mine, theirs


def cell_score(runs: Runs, key: Key) -> Score | None:
    """A system's score on one data set, language and task."""
    found = [entries[key].record for entries in runs.values() if key in entries]
    if not found:
        return None
    return score_of([r.score for r in found], [r.standard_error for r in found])


def average_score(runs: Runs, keys: Sequence[Key]) -> Score | None:
    """The plain mean over those of `keys` that a run has, then over runs."""
    pairs = [
        average([entries[key].record for key in keys if key in entries])
        for entries in runs.values()
        if any(key in entries for key in keys)
    ]
    return score_of([mean for mean, _ in pairs], [error for _, error in pairs]) if pairs else None


def score_of(values: Sequence[float], errors: Sequence[float]) -> Score:
    """Mean, root mean square error and spread of runs."""
    spread = stdev(values) if len(values) > 1 and not any(map(math.isnan, values)) else math.nan
    return Score(fmean(values), math.sqrt(fmean(e * e for e in errors)), spread, len(values))


def _over_runs(
    values: Sequence[float],
    errors: Sequence[float],
    better: Callable[[float], bool],
    worse: Callable[[float], bool],
) -> Difference:
    whole = score_of(values, errors)
    return Difference(
        whole.value, whole.error, whole.spread, whole.runs,
        all(map(better, values)), all(map(worse, values)),
    )  # fmt: skip


def restricted(row: Row, wanted: Callable[[Entry], bool]) -> dict[str, dict[Key, Entry]]:
    """A row's runs with the entries that are wanted, less the runs that have none."""
    found = {
        run: {key: entry for key, entry in entries.items() if wanted(entry)}
        for run, entries in row.runs.items()
    }
    return {run: entries for run, entries in found.items() if entries}
