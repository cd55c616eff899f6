"""Averages over languages and runs, and paired differences with their p-values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev

from lorsmerge_cli.metrics import metrics_of
from lorsmerge_cli.metrics.metric import Metric, Scoring
from lorsmerge_cli.metrics.significance import Comparison, Interval
from lorsmerge_cli.operations.report.entries import Entry, Key, Row, Runs
from lorsmerge_cli.results.records import average, compare, share_interval


def metric_of_key(key: Key) -> Metric:
    """Return the reported metric of a data set, language and task."""
    return metrics_of(*key[1:])[0]


@dataclass(frozen=True)
class Score:
    """A score over runs.

    Attributes:
        value: mean over runs; NaN for none.
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
        better: whether it is an improvement in every run.
        blocks: speakers (or utterances) that the test is over.
    """

    p_value: float
    better: bool
    blocks: int


class PairedTests:
    """Paired tests between systems, each made once."""

    def __init__(self, scoring: Scoring) -> None:
        self.scoring = scoring
        self._made: dict[tuple[tuple[int, int], ...], Comparison] = {}

    def compare(self, entries: Sequence[tuple[Entry, Entry]]) -> Comparison:
        """Return the second entries less the first on the same utterances, in the metric's unit."""
        key = tuple((id(other), id(entry)) for other, entry in entries)
        if key not in self._made:
            pairs = [(other.record, entry.record) for other, entry in entries]
            self._made[key] = compare(pairs, self.scoring)
        return self._made[key]

    def difference(self, runs: Runs, other: Runs, keys: Sequence[Key]) -> Difference | None:
        """Return a system less another, on average over those of `keys` that both have.

        A run is compared with its partner; a single run without a name that has none, such as the
        base, with every run of the other system.

        Args:
            runs: of the system.
            other: runs of the system it is compared with.
            keys: data sets, languages and one task; a single one for a cell of a table.

        Returns:
            In the metric's unit; None where there is nothing to compare.
        """
        pairs = [(runs[run], partner) for run, partner in partners(runs, other).items()]
        if not pairs and list(runs) == [""]:
            pairs = [(runs[""], each) for each in other.values()]
        tests = [
            self.compare(both)
            for mine, theirs in pairs
            if (both := [(theirs[key], mine[key]) for key in keys if key in mine and key in theirs])
        ]
        if not tests:
            return None
        whole = score_of(
            [test.difference for test in tests], [test.interval.standard_error for test in tests]
        )
        gains = [metric_of_key(keys[0]).gain(test.difference) for test in tests]
        better = all(gain > 0 for gain in gains)
        p_values = [test.p_value for test in tests]
        p_value = math.nan if any(map(math.isnan, p_values)) else max(p_values)
        if not better and not all(gain < 0 for gain in gains):
            p_value = 1.0
        blocks = min(test.blocks for test in tests)
        return Difference(**asdict(whole), p_value=p_value, better=better, blocks=blocks)

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
            runs: of the system.
            base: runs of the base.
            finetuned: runs of the fine-tunes.
            keys: data sets and languages of one task, which all three systems have.
            share: the share over all runs, of 1.
            gain: of the fine-tunes over the base, over all runs, in the metric's unit.
        """
        intervals = []
        for run, entries in runs.items():
            three = partner_of(run, base), partner_of(run, finetuned), entries
            if all(key in each for key in keys for each in three):
                triples = [[each[key].record for each in three] for key in keys]
                intervals.append(share_interval(triples, share, gain, self.scoring))
        intervals.sort(key=lambda interval: interval.standard_error)
        return intervals[len(intervals) // 2] if intervals else None


def partner_of(run: str, other: Runs) -> Mapping[Key, Entry]:
    """Return the run of another system that a run is paired with; empty for none.

    It has the same name, none, or one that the run's begins with (`seed0` of `seed0-ca+de`). A run
    without a name is paired with the only one that there is.
    """
    near = [name for name in other if name in ("", run) or run.startswith(f"{name}-")]
    if near:
        return other[max(near, key=len)]
    return next(iter(other.values())) if run == "" and len(other) == 1 else {}


def partners(runs: Runs, other: Runs) -> Runs:
    """Return the partners of runs in another system, under the names of the former."""
    return {run: partner for run in runs if (partner := partner_of(run, other))}


def matched(runs: Runs, other: Runs) -> tuple[Runs, Runs]:
    """Return the runs of two systems that are paired, each with what both were scored on."""
    paired = partners(runs, other)
    shared = {run: runs[run].keys() & paired[run].keys() for run in paired}
    mine, theirs = (
        {run: {key: side[run][key] for key in keys} for run, keys in shared.items()}
        for side in (runs, paired)
    )
    return mine, theirs


def average_score(runs: Runs, keys: Sequence[Key]) -> Score:
    """Return the plain mean over those of `keys` that a run has, then over the runs that have any."""
    scored = [
        average(records)
        for entries in runs.values()
        if (records := [entries[key].record for key in keys if key in entries])
    ]
    return score_of([mean for mean, _ in scored], [error for _, error in scored])


def score_of(values: Sequence[float], errors: Sequence[float]) -> Score:
    """Return the mean, the root mean square error and the spread of runs."""
    if not values:
        return Score(math.nan, math.nan, math.nan, 0)
    spread = stdev(values) if len(values) > 1 and not any(map(math.isnan, values)) else math.nan
    return Score(fmean(values), math.sqrt(fmean(e * e for e in errors)), spread, len(values))


def restricted(row: Row, keep: Callable[[Entry], bool]) -> Runs:
    """Return a row's runs with some of their entries, without the runs that have none of them."""
    kept = {
        run: {key: entry for key, entry in entries.items() if keep(entry)}
        for run, entries in row.runs.items()
    }
    return {run: entries for run, entries in kept.items() if entries}
