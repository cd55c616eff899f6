"""The bootstrap against plain loops over the same draws, and against simulated truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sacrebleu

from lorsmerge_cli.errors import Mismatch
from lorsmerge_cli.metrics.bootstrap import (
    bleu_interval,
    compare_bleu,
    compare_wer,
    wer_interval,
)
from lorsmerge_cli.metrics.wer import ErrorCounts

ALONE: list[str | None] = [None]


def simulated(rate: float, n: int, seed: int) -> list[ErrorCounts]:
    errors = np.random.default_rng(seed).binomial(10, rate, n)
    return [ErrorCounts(10 - int(e), int(e), 0, 0) for e in errors]


def test_interval_is_a_plain_loops() -> None:
    counts = simulated(0.2, 12, 1)
    speakers = ["a", "b", "a", "c", "b", "a", "c", "d", "d", "a", "e", "e"]
    names = ["a", "b", "c", "d", "e"]
    random = np.random.default_rng(3)
    rates = []
    for _ in range(50):
        drawn = [names[i] for i in random.integers(5, size=5)]
        chosen = [c for name in drawn for c, s in zip(counts, speakers, strict=True) if s == name]
        rates.append(sum(c.errors for c in chosen) / sum(c.reference_length for c in chosen))
    found = wer_interval(counts, speakers, samples=50, seed=3)
    assert found.standard_error == pytest.approx(np.std(rates, ddof=1), rel=1e-12)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(rates, [2.5, 97.5])))


def test_interval_covers_the_truth() -> None:
    inside = 0
    for seed in range(100):
        found = wer_interval(simulated(0.2, 60, seed), ALONE * 60, samples=200, seed=seed)
        inside += found.low <= 0.2 <= found.high
    assert 85 <= inside <= 100


def test_clustered_errors_widen_it() -> None:
    counts = [ErrorCounts(10, 0, 0, 0)] * 20 + [ErrorCounts(0, 10, 0, 0)] * 20
    apart = wer_interval(counts, ALONE * 40)
    blocked = wer_interval(counts, [f"s{n // 10}" for n in range(40)])
    assert blocked.standard_error > 2 * apart.standard_error


def test_one_block_has_no_interval() -> None:
    assert math.isnan(wer_interval(simulated(0.2, 9, 0), ["one"] * 9).standard_error)


def test_comparisons() -> None:
    a, b = simulated(0.3, 80, 0), simulated(0.15, 80, 1)
    same = compare_wer(a, a, ALONE * 80)
    assert (same.difference, same.p_value, same.probability_b_better) == (0, 1, 0)
    found = compare_wer(a, b, ALONE * 80)
    rate = [sum(c.errors for c in side) / 800 for side in (a, b)]
    assert found.difference == pytest.approx(rate[1] - rate[0])
    assert found.p_value < 0.01
    assert found.probability_b_better == 1
    back = compare_wer(b, a, ALONE * 80)
    assert back.difference == -found.difference
    assert back.probability_b_better == 0
    with pytest.raises(Mismatch, match="Utterance 1"):
        compare_wer([ErrorCounts(1, 0, 0, 0)], [ErrorCounts(2, 0, 0, 0)], ALONE)
    with pytest.raises(Mismatch, match="80 and 79"):
        wer_interval(a, ALONE * 79)


def test_bleu() -> None:
    references = [
        f"the {w} buys three houses on {d}" for w in ("girl", "cat", "man") for d in "xyz"
    ]
    worse = [text.replace("three", "two") if n % 2 else text for n, text in enumerate(references)]
    found = bleu_interval(worse, references, samples=40, seed=5)
    random = np.random.default_rng(5)
    scores = []
    for _ in range(40):
        drawn = random.integers(9, size=9)
        chosen = [worse[i] for i in drawn], [[references[i] for i in drawn]]
        scores.append(sacrebleu.corpus_bleu(*chosen).score)
    assert found.standard_error == pytest.approx(np.std(scores, ddof=1))
    comparison = compare_bleu(worse, references, references, samples=200)
    assert comparison.difference == pytest.approx(
        100 - sacrebleu.corpus_bleu(worse, [references]).score
    )
    assert comparison.probability_b_better > 0.9
    assert compare_bleu(worse, worse, references).p_value == 1
