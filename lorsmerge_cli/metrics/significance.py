"""Intervals of scores, and paired tests of two systems, by speaker.

The utterances of one speaker are not independent, so the sampling unit is a block: a speaker, or an
utterance where no speaker is known. A metric is a function of statistics that add up over
utterances (errors and words; n-grams and lengths), so one interval and one paired test serve all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorsmerge_cli.errors import Mismatch
from lorsmerge_cli.metrics.metric import FLIPS, CorpusScore

Floats = NDArray[np.float64]

EXACT = 12  # blocks up to which all 2 ** blocks assignments are tried
FEW, TOO_FEW = 10, 6  # blocks: fewer than FEW get a note, fewer than TOO_FEW no mark
CHUNK = 1 << 22  # assignments times blocks in memory at a time


@dataclass(frozen=True)
class Interval:
    """A 95 % interval and the standard error, in units of the score.

    All NaN where there are fewer than two blocks, or all references are empty.
    """

    low: float
    high: float
    standard_error: float
    blocks: int


@dataclass(frozen=True)
class Comparison:
    """System b against system a on the same utterances.

    Attributes:
        difference: score of b less score of a, in units of the score.
        interval: of the difference.
        p_value: two-sided, of the sign-flip test; never 0, and 1 for equal systems. With n
            blocks it is at least 2 / 2 ** n; NaN for a single one.
    """

    difference: float
    interval: Interval
    p_value: float

    @property
    def blocks(self) -> int:
        """Speakers (or utterances) that the test is over."""
        return self.interval.blocks


def block_sums(statistics: Floats, speakers: Sequence[str | None]) -> Floats:
    """Return the statistics of each block, (blocks, columns) of (utterances, columns).

    Args:
        statistics: (n, columns), one row per utterance.
        speakers: (n,); an utterance without a speaker is a block of its own.

    Raises:
        Mismatch: the numbers of utterances differ.
    """
    if len(statistics) != len(speakers):
        raise Mismatch(
            f"There are statistics of {len(statistics)} utterances and speakers of "
            f"{len(speakers)}.",
            "Give one of each for every utterance.",
        )
    numbers: dict[str | int, int] = {}
    blocks = [numbers.setdefault(s or n, len(numbers)) for n, s in enumerate(speakers)]
    sums = np.zeros((len(numbers), statistics.shape[1]))
    np.add.at(sums, np.array(blocks, dtype=np.intp), statistics)
    return sums


def interval(blocks: Floats, metric: CorpusScore) -> Interval:
    """Return the interval of a corpus score: by Student's t, on the scale of its square root.

    The square root removes most of the skew that a few bad speakers give an error rate. A score
    that may be negative has no root, so its interval is by t on its own scale.

    Args:
        blocks: (n, columns), of `block_sums`.
        metric: the score.
    """
    score = float(metric.score(blocks.sum(axis=0)))
    error, reach = _uncertainty([[blocks]], metric, (1.0,))
    if math.isnan(score) or math.isnan(reach):
        return Interval(math.nan, math.nan, math.nan, len(blocks))
    if metric.lowest < 0:
        return Interval(score - reach, score + reach, error, len(blocks))
    root = math.sqrt(score)
    step = reach / (2 * root) if score else 0.0
    high = min((root + step) ** 2, metric.highest)
    return Interval(max(0.0, root - step) ** 2, high, error, len(blocks))


def combination(
    test_sets: Sequence[Sequence[Floats]], metric: CorpusScore, weights: Sequence[float]
) -> Interval:
    """Return the interval, by Student's t, of a weighted sum of scores, on average over test sets.

    Args:
        test_sets: of each, the blocks (n, columns) of every system, in one order.
        metric: the score.
        weights: of the systems.
    """
    middle = float(np.mean([_weighted(systems, metric, weights) for systems in test_sets]))
    error, reach = _uncertainty(test_sets, metric, weights)
    blocks = sum(len(systems[0]) for systems in test_sets)
    return Interval(middle - reach, middle + reach, error, blocks)


def compare(
    test_sets: Sequence[tuple[Floats, Floats]],
    metric: CorpusScore,
    *,
    flips: int = FLIPS,
    seed: int = 0,
) -> Comparison:
    """Return the mean difference of two systems over test sets, with its interval and p-value.

    p is of a sign-flip test: if two systems are equally good, either could have given the other's
    answers to a speaker, so exchanging the two within blocks gives differences that were as likely
    as the one observed. All exchanges are tried where 12 blocks or fewer differ, else `flips`
    random ones. The interval is by Student's t around the difference.

    Args:
        test_sets: of each, the blocks (n, columns) of system a and of system b, in one order.
        metric: the score.
        flips: random exchanges.
        seed: of the exchanges.

    Raises:
        Mismatch: the systems differ in the number of blocks, or the lengths of references.
    """
    for a, b in test_sets:
        if a.shape != b.shape or not np.array_equal(a[:, metric.size], b[:, metric.size]):
            raise Mismatch(
                "Two systems were not scored on the same references.",
                "Score both systems on one dataset in one order, with one normalisation and unit.",
            )
    weights = (-1.0, 1.0)
    difference = float(np.mean([_weighted(pair, metric, weights) for pair in test_sets]))
    around = combination(test_sets, metric, weights)
    p_value = math.nan if around.blocks < 2 else _p_value(test_sets, metric, flips, seed)
    return Comparison(difference, around, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979), in the order given.

    NaN counts as no test and stays NaN.
    """
    order = sorted((p, n) for n, p in enumerate(p_values) if not math.isnan(p))
    corrected, largest = list(p_values), 0.0
    for rank, (p, n) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        corrected[n] = largest
    return corrected


def _weighted(systems: Sequence[Floats], metric: CorpusScore, weights: Sequence[float]) -> float:
    scores = [float(metric.score(blocks.sum(axis=0))) for blocks in systems]
    return math.fsum(weight * score for weight, score in zip(weights, scores, strict=True))


def _uncertainty(
    test_sets: Sequence[Sequence[Floats]], metric: CorpusScore, weights: Sequence[float]
) -> tuple[float, float]:
    """Return the standard error of a mean over independent test sets, and half its interval."""
    from scipy.special import stdtrit  # Student's quantiles, in half the time of scipy.stats

    parts = [_jackknife(systems, metric, weights) for systems in test_sets]
    square = math.fsum(error**2 for error, _ in parts)
    below = math.fsum(error**4 / freedom for error, freedom in parts)  # Welch-Satterthwaite
    freedom = square**2 / below if below else math.inf
    error = math.sqrt(square) / len(parts)
    return error, float(stdtrit(freedom, 0.975)) * error


def _jackknife(
    systems: Sequence[Floats], metric: CorpusScore, weights: Sequence[float]
) -> tuple[float, float]:
    """Return the standard error of a weighted sum of scores, and its degrees of freedom.

    The squared changes of the sum without each block are weighted by the blocks' sizes so that the
    error is unbiased where speakers differ ("CR2", Bell & McCaffrey 2002). Degrees of freedom are
    Satterthwaite's: n - 1 for n blocks of one size, and fewer the more their sizes differ. They
    assume that the variance of a block's errors grows with its size ** 1.5, between independent
    words (exponent 1) and words that all depend on the speaker (2).
    """
    size = systems[0][:, metric.size]
    if len(size) < 2 or size.max() >= size.sum():  # a single block with references
        return math.nan, math.nan
    changes: Floats = np.zeros(len(size))
    for weight, blocks in zip(weights, systems, strict=True):
        whole = blocks.sum(axis=0)
        changes += weight * (metric.score(whole - blocks) - metric.score(whole))
    share = size / size.sum()
    error = math.sqrt(float((changes**2 * (1 - share)).sum()))
    # the traces of QV and (QV)^2: Q the quadratic form of the squared error, V = diag(variance)
    variance, leverage = share**1.5, 1 / (1 - share)
    g, c = leverage * share, float((leverage * share**2).sum())
    v0, v1, v2 = (float((variance * g**power).sum()) for power in range(3))
    trace = float((variance * (leverage - 2 * g + c)).sum())
    diagonal = (variance**2 * ((leverage + c - 2 * g) ** 2 - (c - 2 * g) ** 2)).sum()
    square = c**2 * v0**2 + 2 * v0 * v2 - 4 * c * v0 * v1 + 2 * v1**2 + float(diagonal)
    return error, trace**2 / square


def _p_value(
    test_sets: Sequence[tuple[Floats, Floats]], metric: CorpusScore, flips: int, seed: int
) -> float:
    # a block in which the systems do not differ is the same either way
    moved = [(b - a)[(a != b).any(axis=1)] for a, b in test_sets]
    count = sum(map(len, moved))
    sums = [(a.sum(axis=0), b.sum(axis=0)) for a, b in test_sets]

    def differences(swapped: NDArray[np.int8]) -> Floats:
        """Return (assignments,) of (assignments, blocks): 1 exchanges the systems' blocks."""
        total, start = np.zeros(len(swapped)), 0
        for (a, b), moves in zip(sums, moved, strict=True):
            change = swapped[:, start : start + len(moves)].astype(np.float64) @ moves
            total += metric.score(b - change) - metric.score(a + change)
            start += len(moves)
        return total / len(sums)

    observed = abs(float(differences(np.zeros((1, count), dtype=np.int8))[0]))
    if math.isnan(observed):
        return math.nan
    threshold = observed * (1 - 1e-9) - 1e-12  # equal sums may differ in their last bits
    exact = count <= EXACT
    chunks = _every(count) if exact else _random(count, flips, np.random.default_rng(seed))
    extreme = sum(int((np.abs(differences(chunk)) >= threshold).sum()) for chunk in chunks)
    # the observed assignment is counted with the random ones, so that p is never zero
    return extreme / 2**count if exact else (extreme + 1) / (flips + 1)


def _every(count: int) -> Iterator[NDArray[np.int8]]:
    numbers = np.arange(2**count)[:, None]
    yield (numbers >> np.arange(count) & 1).astype(np.int8)


def _random(count: int, flips: int, random: np.random.Generator) -> Iterator[NDArray[np.int8]]:
    step = max(1, CHUNK // count)
    for start in range(0, flips, step):
        yield random.integers(0, 2, (min(step, flips - start), count), dtype=np.int8)
