"""How far a score, or a difference of two, could be chance: the percentile bootstrap.

Blocks of utterances are drawn with replacement, as many as there are, and the corpus score of
each draw is a sample of what another test set would have given. Blocks, since the utterances of
one speaker are not independent. To compare two systems, each draw scores both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorsmerge_cli.errors import Mismatch
from lorsmerge_cli.metrics.bleu import score_of, sentence_statistics
from lorsmerge_cli.metrics.wer import ErrorCounts

TAILS = (2.5, 97.5)  # percentiles of a 95 % interval

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A 95 % interval and the standard error, in units of the score.

    All NaN where there are fewer than two blocks to draw from, or nothing was said at all.
    """

    low: float
    high: float
    standard_error: float


@dataclass(frozen=True)
class Comparison:
    """System b against system a on the same utterances.

    Attributes:
        difference: score of b less score of a, in units of the score.
        interval: of the difference.
        p_value: two-sided; 2 / (samples + 1) at the least, 1 for equal systems.
        probability_b_better: share of draws in which b is strictly better (Bisani & Ney's
            probability of improvement).
    """

    difference: float
    interval: Interval
    p_value: float
    probability_b_better: float


def wer_interval(
    counts: Sequence[ErrorCounts],
    speakers: Sequence[str | None],
    *,
    samples: int = 1000,
    seed: int = 0,
) -> Interval:
    """The interval of an error rate (Bisani & Ney 2004).

    Args:
        counts: (n,) one per utterance.
        speakers: (n,) the blocks; an utterance without a speaker is a block of its own.
        samples: draws.
        seed: of the draws.

    Returns:
        In units of `ErrorCounts.rate`.

    Raises:
        Mismatch: the numbers of utterances differ.
    """
    _check_lengths(counts, speakers)
    sums = _resampled_sums(_speaker_sums(_errors_and_lengths(counts), speakers), samples, seed)
    return _interval(_rates(sums[:, 0], sums[:, 1]))


def compare_wer(
    a: Sequence[ErrorCounts],
    b: Sequence[ErrorCounts],
    speakers: Sequence[str | None],
    *,
    samples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Two error rates on the same utterances (Bisani & Ney 2004); lower is better.

    Args:
        a, b: (n,) one per utterance, scored against the same references.
        speakers, samples, seed: as in `wer_interval`.

    Raises:
        Mismatch: the numbers of utterances or the lengths of their references differ.
    """
    _check_lengths(a, b, speakers)
    for n, (one, other) in enumerate(zip(a, b, strict=True), 1):
        if one.reference_length != other.reference_length:
            raise Mismatch(
                f"Utterance {n} has {one.reference_length} units in one reference and"
                f" {other.reference_length} in the other.",
                "Score both systems on one dataset in one order, with one normalisation and unit.",
            )
    errors_b = [[count.errors] for count in b]
    table = np.hstack([_errors_and_lengths(a), np.array(errors_b, np.float64).reshape(-1, 1)])
    whole = table.sum(axis=0, keepdims=True)
    sums = np.vstack([whole, _resampled_sums(_speaker_sums(table, speakers), samples, seed)])
    differences = _rates(sums[:, 2], sums[:, 1]) - _rates(sums[:, 0], sums[:, 1])
    return _comparison(float(differences[0]), differences[1:], better=-1)


def bleu_interval(
    hypotheses: Sequence[str],
    references: Sequence[str],
    target_language: str = "en",
    *,
    samples: int = 1000,
    seed: int = 0,
) -> Interval:
    """The interval of a corpus BLEU, drawing sentences (Koehn 2004).

    Args:
        hypotheses, references, target_language: as for `bleu`.
        samples: draws.
        seed: of the draws.

    Returns:
        On BLEU's scale of 0 to 100.

    Raises:
        As `bleu` does.
    """
    table = sentence_statistics(hypotheses, references, target_language)
    return _interval(_bleu_scores(_resampled_sums(table, samples, seed)))


def compare_bleu(
    a_hyps: Sequence[str],
    b_hyps: Sequence[str],
    references: Sequence[str],
    target_language: str = "en",
    *,
    samples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Two corpus BLEUs by the paired bootstrap (Koehn 2004); higher is better.

    Args:
        a_hyps, b_hyps: (n,) translations of the same sentences.
        references, target_language: as for `bleu`.
        samples, seed: as in `bleu_interval`.

    Raises:
        As `bleu` does.
    """
    a = sentence_statistics(a_hyps, references, target_language)
    b = sentence_statistics(b_hyps, references, target_language)
    difference = score_of(b.sum(axis=0)) - score_of(a.sum(axis=0))
    sums = _resampled_sums(np.hstack([a, b]), samples, seed)
    width = a.shape[1]
    differences = _bleu_scores(sums[:, width:]) - _bleu_scores(sums[:, :width])
    return _comparison(difference, differences, better=1)


def _errors_and_lengths(counts: Sequence[ErrorCounts]) -> Floats:
    """(n, 2): errors and reference lengths."""
    rows = [(count.errors, count.reference_length) for count in counts]
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def _speaker_sums(table: Floats, speakers: Sequence[str | None]) -> Floats:
    """(blocks, columns) of (n, columns): the rows of each speaker added up."""
    numbers: dict[str | int, int] = {}
    blocks = [numbers.setdefault(s or n, len(numbers)) for n, s in enumerate(speakers)]
    sums = np.zeros((len(numbers), table.shape[1]))
    np.add.at(sums, np.array(blocks, dtype=np.intp), table)
    return sums


def _resampled_sums(table: Floats, samples: int, seed: int) -> Floats:
    """(samples, columns): sums of as many rows of a table as it has, drawn with replacement.

    One draw is held at a time. The table's entries are integers, so that the sums are exact.
    NaN for a table of fewer than two rows, of which every draw is the same.
    """
    blocks, columns = table.shape
    if blocks < 2:
        return np.full((samples, columns), np.nan)
    random = np.random.default_rng(seed)
    sums = np.empty((samples, columns))
    for row in sums:
        drawn = random.integers(blocks, size=blocks)
        row[:] = np.bincount(drawn, minlength=blocks).astype(np.float64) @ table
    return sums


def _rates(errors: Floats, lengths: Floats) -> Floats:
    """Errors per unit of reference, NaN where a draw has only empty references."""
    return np.divide(errors, lengths, out=np.full_like(errors, np.nan), where=lengths > 0)


def _bleu_scores(sums: Floats) -> Floats:
    """(samples,) BLEUs of (samples, 10) statistics, NaN where they are."""
    return np.array([math.nan if np.isnan(row[0]) else score_of(row) for row in sums])


def _interval(scores: Floats) -> Interval:
    known = scores[~np.isnan(scores)]
    if len(known) < 2:
        return Interval(math.nan, math.nan, math.nan)
    low, high = np.percentile(known, TAILS)
    return Interval(float(low), float(high), float(known.std(ddof=1)))


def _comparison(difference: float, differences: Floats, better: int) -> Comparison:
    """Sum up drawn differences, of which those with the sign of `better` favour b."""
    known = differences[~np.isnan(differences)]
    if len(known) < 2:
        return Comparison(difference, _interval(known), math.nan, math.nan)
    # The smaller tail, twice; the observed test set counts as one more draw, which keeps a
    # p-value from being zero (Davison & Hinkley 1997).
    tail = min(int((known <= 0).sum()), int((known >= 0).sum()))
    p_value = min(1.0, 2 * (tail + 1) / (len(known) + 1))
    return Comparison(difference, _interval(known), p_value, float((known * better > 0).mean()))


def _check_lengths(*columns: Sequence[object]) -> None:
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        raise Mismatch(
            f"Counts and speakers are of {' and '.join(map(str, lengths))} utterances.",
            "Give one of each for every utterance.",
        )
