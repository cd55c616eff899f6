"""Averages over languages and runs, paired differences, and what of them is more than chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from lorsmerge_cli.metrics import metrics_of
from lorsmerge_cli.metrics.metric import Metric
from lorsmerge_cli.metrics.significance import Comparison, Interval
from lorsmerge_cli.operations.report.entries import Entry, Key, Row
from lorsmerge_cli.operations.report.results import Results
from lorsmerge_cli.results.records import average, compare, share_interval

Runs = Mapping[str, Mapping[Key, Entry]]


def metric_of_key(key: Key) -> Metric:
    """Return the reported metric of a data set, language and task."""
    return metrics_of(*key[1:])[0]


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
        p_value: of the paired test, the largest of the runs'; 1 where runs differ in sign.
        better: whether it is for the better, in every run.
        blocks: speakers (or utterances) that it is judged from.
    """

    p_value: float
    better: bool
    blocks: int


class Tests:
    """Paired tests between the results' systems, each made once."""

    __test__ = False  # not one of pytest's

    def __init__(self, results: Results) -> None:
        self.results = results
        self._made: dict[tuple[tuple[int, int], ...], Comparison] = {}

    def compare(self, entries: Sequence[tuple[Entry, Entry]]) -> Comparison:
        """Return second entries against the first on the same utterances, in the metric's unit."""
        key = tuple((id(other), id(entry)) for other, entry in entries)
        if key not in self._made:
            pairs = [(other.record, entry.record) for other, entry in entries]
            self._made[key] = compare(pairs, self.results.scoring)
        return self._made[key]

    def difference(self, runs: Runs, other: Runs, keys: Sequence[Key]) -> Difference | None:
        """Return a system less another, on average over those of `keys` that both have.

        Args:
            keys: data sets, languages and one task; a single one for a cell of a table.

        Returns:
            In the metric's unit; None where there is nothing to compare.
        """
        found = []
        for entries, partner in pairs(runs, other):
            both = [
                (partner[key], entries[key]) for key in keys if key in entries and key in partner
            ]
            if both:
                found.append(self.compare(both))
        if not found:
            return None
        whole = score_of(
            [test.difference for test in found],
            [test.interval.standard_error for test in found],
        )
        gains = [metric_of_key(keys[0]).gain(test.difference) for test in found]
        better = all(gain > 0 for gain in gains)
        one_sign = better or all(gain < 0 for gain in gains)
        p_values = [test.p_value for test in found]
        p_value = math.nan if any(map(math.isnan, p_values)) else max(p_values)
        blocks = min(test.blocks for test in found)
        return Difference(
            whole.value, whole.error, whole.spread, whole.runs,
            p_value if one_sign else 1.0, better, blocks,
        )  # fmt: skip

    def share(
        self,
        runs: Runs,
        base: Runs,
        finetuned: Runs,
        keys: Sequence[Key],
        share: float,
        gain: float,
    ) -> Interval | None:
        """Return the interval of the share of the fine-tunes' gain that a system keeps.

        Of runs, the one in the middle of their standard errors.

        Args:
            keys: data sets and languages of one task, which all three systems have.
            share, gain: as they are over all runs: of 1, and in the metric's unit.
        """
        found = []
        for run, entries in runs.items():
            others = partner_of(run, base), partner_of(run, finetuned)
            if all(key in each for key in keys for each in (entries, *others)):
                triples = [tuple(each[key].record for each in (*others, entries)) for key in keys]
                scoring = self.results.scoring
                found.append(share_interval(triples, share, gain, scoring))
        found.sort(key=lambda interval: interval.standard_error)
        return found[len(found) // 2] if found else None


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


def restricted(row: Row, wanted: Callable[[Entry], bool]) -> dict[str, dict[Key, Entry]]:
    """A row's runs with the entries that are wanted, less the runs that have none."""
    found = {
        run: {key: entry for key, entry in entries.items() if wanted(entry)}
        for run, entries in row.runs.items()
    }
    return {run: entries for run, entries in found.items() if entries}
