"""Intervals and paired tests against plain loops, scipy, and simulated truth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import sacrebleu
from results_files import answers
from scipy.stats import permutation_test
from scipy.stats import t as student
from speakers import LOGIT, SPREAD, Floats, bleu_blocks, error_blocks, utterances, wrong

from lorsmerge_cli.errors import Mismatch
from lorsmerge_cli.metrics.bleu import BLEU, statistics
from lorsmerge_cli.metrics.metric import Metric, Scoring, ratio
from lorsmerge_cli.metrics.significance import (
    block_sums,
    compare,
    holm,
    interval,
)
from lorsmerge_cli.metrics.wer import WER, ErrorCounts, error_statistics

WER_METRIC = replace(WER, score=ratio)  # in errors per word, not in percent
MAKERS = {"wer": (error_blocks, WER_METRIC), "bleu": (bleu_blocks, BLEU)}


def errors(*wrong: int, words: int = 10) -> Floats:
    """(n, 2): blocks of one size."""
    return np.array([(count, words) for count in wrong], dtype=np.float64)


# --- blocks ---------------------------------------------------------------------------------------


def test_blocks_are_speakers_and_utterances_without_one() -> None:
    counts = [ErrorCounts(5 - n % 3, n % 3, 0, n) for n in range(7)]
    table = error_statistics(counts)
    found = block_sums(table, ["a", None, "a", "b", None, "b", "a"])
    wanted = [[0, 2, 6], [1], [3, 5], [4]]
    assert found.tolist() == [
        [sum(counts[n].errors for n in block), sum(counts[n].reference_length for n in block)]
        for block in wanted
    ]
    with pytest.raises(Mismatch, match="7 utterances and speakers of 6"):
        block_sums(table, ["a"] * 6)


# --- intervals ------------------------------------------------------------------------------------


def test_blocks_of_one_size_have_the_textbook_interval_of_their_rates() -> None:
    rates = np.array([1, 4, 2, 6, 3]) / 10
    found = interval(errors(1, 4, 2, 6, 3), WER_METRIC)
    assert found.standard_error == pytest.approx(rates.std(ddof=1) / math.sqrt(5))
    reach = student.ppf(0.975, 4) * found.standard_error / (2 * math.sqrt(rates.mean()))
    assert found.low == pytest.approx((math.sqrt(rates.mean()) - reach) ** 2)
    assert found.high == pytest.approx((math.sqrt(rates.mean()) + reach) ** 2)
    assert found.blocks == 5


@pytest.mark.parametrize("kind", MAKERS)
def test_the_error_is_a_plain_loop_s_over_what_is_left_without_a_block(kind: str) -> None:
    make, metric = MAKERS[kind]
    random = np.random.default_rng(1)
    blocks = make(LOGIT + random.standard_normal(8), utterances(8, random), random)
    whole, total = float(metric.score(blocks.sum(axis=0))), blocks[:, metric.size].sum()
    squares = 0.0
    for left_out in range(8):
        rest = np.delete(blocks, left_out, axis=0).sum(axis=0)
        share = blocks[left_out, metric.size] / total
        squares += (float(metric.score(rest)) - whole) ** 2 * (1 - share)
    assert interval(blocks, metric).standard_error == pytest.approx(math.sqrt(squares), rel=1e-9)


def test_degrees_of_freedom_are_those_of_the_quadratic_form_and_fewer_for_uneven_blocks() -> None:
    sizes = np.array([30.0, 5.0, 5.0, 8.0, 12.0])
    blocks = np.stack([sizes * [0.1, 0.2, 0.4, 0.25, 0.5], sizes], axis=1)
    share = sizes / sizes.sum()
    centre = np.eye(5) - np.outer(share, np.ones(5))
    form = centre.T @ np.diag(1 / (1 - share)) @ centre @ np.diag(share**1.5)
    freedom = np.trace(form) ** 2 / np.trace(form @ form)
    found = compare([(blocks * [0, 1], blocks)], WER_METRIC).interval
    assert (found.high - found.low) / 2 == pytest.approx(
        student.ppf(0.975, freedom) * found.standard_error, rel=1e-9
    )
    assert 1 < freedom < 3


def test_what_has_no_interval() -> None:
    for blocks in (errors(3), np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 9.0], [1.0, 0]])):
        found = interval(blocks, WER_METRIC)
        assert all(map(math.isnan, (found.low, found.high, found.standard_error)))
        assert found.blocks == len(blocks)
    perfect = interval(errors(0, 0, 0), WER_METRIC)
    assert (perfect.low, perfect.high, perfect.standard_error) == (0, 0, 0)


def test_a_bleu_s_interval_stays_below_100() -> None:
    references = [f"the girl buys {n} houses on this day" for n in range(6)]
    said = [*references[:5], "a girl sells no houses now"]
    found = interval(statistics(answers(said, references), Scoring()), BLEU)
    assert found.high == 100
    assert 0 < found.low < sacrebleu.corpus_bleu(said, [references]).score


# --- paired tests ---------------------------------------------------------------------------------


def plain_p_value(a: Floats, b: Floats, metric: Metric) -> float:
    """Every exchange of blocks in a loop."""
    found = []
    for swapped in itertools.product((False, True), repeat=len(a)):
        mine = sum(y if swap else x for x, y, swap in zip(a, b, swapped, strict=True))
        theirs = sum(x if swap else y for x, y, swap in zip(a, b, swapped, strict=True))
        found.append(float(metric.score(theirs) - metric.score(mine)))
    return sum(abs(x) >= abs(found[0]) - 1e-9 for x in found) / len(found)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("blocks", [2, 3, 6, 9])
def test_few_blocks_are_tested_exactly(kind: str, blocks: int) -> None:
    make, metric = MAKERS[kind]
    random = np.random.default_rng(blocks)
    counts = utterances(blocks, random)
    a = make(np.full(blocks, LOGIT), counts, random)
    b = a.copy()
    b[:, 2 * (kind == "bleu")] += random.integers(-4, 2, blocks)  # errors, or matching words
    found = compare([(a, b)], metric)
    assert found.p_value == plain_p_value(a, b, metric)
    assert found.difference == float(metric.score(b.sum(0)) - metric.score(a.sum(0)))
    assert found.blocks == blocks
    back = compare([(b, a)], metric)
    assert (back.difference, back.p_value) == (-found.difference, found.p_value)


def test_many_blocks_are_tested_by_random_exchanges_and_p_is_never_zero() -> None:
    random = np.random.default_rng(4)
    a, b = errors(*random.integers(0, 6, 60)), errors(*random.integers(0, 6, 60))
    found = compare([(a, b)], WER_METRIC)
    wanted = permutation_test(
        (b[:, 0], a[:, 0]), lambda x, y, axis: x.sum(axis=axis) - y.sum(axis=axis),
        permutation_type="samples", n_resamples=20_000, random_state=np.random.default_rng(5),
    ).pvalue  # fmt: skip
    assert found.p_value == pytest.approx(wanted, abs=0.01)
    assert 0.05 < wanted < 0.9
    assert compare([(a, b)], WER_METRIC) == found  # seeded
    assert compare([(a, b)], WER_METRIC, seed=1).p_value != found.p_value
    assert compare([(a, a * [0, 1])], WER_METRIC, flips=99).p_value == 1 / 100


def test_systems_that_are_equal_in_all_but_few_blocks_are_tested_exactly() -> None:
    a = errors(*[2] * 50)
    b = a.copy()
    b[:5, 0] = 0
    assert compare([(a, b)], WER_METRIC).p_value == 2 / 2**5
    assert compare([(a, b)], WER_METRIC).blocks == 50
    same = compare([(a, a)], WER_METRIC)
    assert (same.difference, same.p_value) == (0, 1)
    assert (same.interval.low, same.interval.high) == (0, 0)


def test_a_mean_over_test_sets_exchanges_blocks_within_each() -> None:
    random = np.random.default_rng(2)
    pairs = [
        (errors(*random.integers(2, 9, n), words=words), errors(*random.integers(0, 9, n), words=words))
        for n, words in ((3, 10), (4, 30))
    ]  # fmt: skip
    found = compare(pairs, WER_METRIC)
    singles = [compare([pair], WER_METRIC) for pair in pairs]
    assert found.difference == pytest.approx(np.mean([one.difference for one in singles]))
    squares = [one.interval.standard_error**2 for one in singles]
    assert found.interval.standard_error == pytest.approx(math.sqrt(sum(squares)) / 2)
    freedom = sum(squares) ** 2 / (squares[0] ** 2 / 2 + squares[1] ** 2 / 3)
    assert (found.interval.high - found.difference) == pytest.approx(
        student.ppf(0.975, freedom) * found.interval.standard_error
    )
    values = []
    for signs in itertools.product((1, -1), repeat=7):
        change = [(b - a)[:, 0] for a, b in pairs]
        values.append(
            np.dot(signs[:3], change[0]) / 30 / 2 + np.dot(signs[3:], change[1]) / 120 / 2
        )
    assert found.p_value == np.mean(np.abs(values) >= abs(values[0]) - 1e-9)
    assert found.blocks == 7


def test_one_block_tells_nothing() -> None:
    found = compare([(errors(5), errors(2))], WER_METRIC)
    assert found.difference == pytest.approx(-0.3)
    assert math.isnan(found.p_value)
    assert math.isnan(found.interval.standard_error)


def test_other_references_are_refused() -> None:
    for other in (errors(1, 2, words=9), errors(1, 2, 3)):
        with pytest.raises(Mismatch, match="not scored on the same references"):
            compare([(errors(1, 2), other)], WER_METRIC)


def test_holm_is_the_step_down_of_the_definition() -> None:
    p = [0.01, 0.04, math.nan, 0.03, 0.005]
    found = holm(p)
    assert found[:2] + found[3:] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert math.isnan(found[2])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


# --- validity -------------------------------------------------------------------------------------


def truth(kind: str) -> float:
    """The score of very many speakers."""
    make, metric = MAKERS[kind]
    random = np.random.default_rng(7)
    sums = sum(
        make(LOGIT + SPREAD * random.standard_normal(1000), np.full(1000, 20), random).sum(axis=0)
        for _ in range(20)
    )
    return float(metric.score(np.asarray(sums)))


def coverage(kind: str, speakers: int, times: int) -> float:
    """How often the interval of a set by some speakers holds the score of all of them."""
    make, metric = MAKERS[kind]
    random = np.random.default_rng(speakers)
    wanted, inside = truth(kind), 0
    for _ in range(times):
        logits = LOGIT + SPREAD * random.standard_normal(speakers)
        found = interval(make(logits, utterances(speakers, random), random), metric)
        inside += found.low <= wanted <= found.high
    return inside / times


def equal_systems(kind: str, random: np.random.Generator, speakers: int) -> tuple[Floats, Floats]:
    """Two systems as good as one another, each better for some of the speakers."""
    make, metric = MAKERS[kind]
    counts = utterances(speakers, random)
    middle = LOGIT + SPREAD * random.standard_normal(speakers)
    favours = 0.3 * random.standard_normal(speakers)
    a = make(middle + favours, counts, random)
    if kind == "wer":  # of the same words
        said = random.binomial(a[:, 1].astype(int), wrong(middle - favours))
        return a, np.stack([said, a[:, 1]], axis=1).astype(np.float64)
    b = make(middle - favours, counts, random)
    b[:, metric.size] = a[:, metric.size]
    return a, b


def false_positives(
    times: int, make: Callable[[np.random.Generator], list[tuple[Floats, Floats]]], metric: Metric
) -> float:
    random = np.random.default_rng(3)
    found = (compare(make(random), metric, flips=300, seed=n).p_value for n in range(times))
    return sum(p < 0.05 for p in found) / times


@pytest.mark.parametrize("kind", MAKERS)
def test_intervals_cover_the_truth_roughly(kind: str) -> None:
    assert 0.9 <= coverage(kind, 6, 300) <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("speakers", [3, 6, 20, 100])
@pytest.mark.parametrize("kind", MAKERS)
def test_intervals_cover_the_truth_in_93_to_97_of_100(kind: str, speakers: int) -> None:
    assert 0.93 <= coverage(kind, speakers, 2000) <= 0.97


@pytest.mark.parametrize("speakers", [2, 3, 6])
def test_equal_systems_are_rarely_told_apart_by_few_speakers(speakers: int) -> None:
    found = false_positives(
        300, lambda random: [equal_systems("wer", random, speakers)], WER_METRIC
    )
    assert found <= (0.06 if speakers > 5 else 0)  # an exact p cannot be below 2 / 2**5


@pytest.mark.slow
@pytest.mark.parametrize("speakers", [2, 3, 6, 20])
@pytest.mark.parametrize("kind", MAKERS)
def test_equal_systems_are_told_apart_in_5_of_100(kind: str, speakers: int) -> None:
    metric = MAKERS[kind][1]
    found = false_positives(
        1500, lambda random: [equal_systems(kind, random, speakers)], metric
    )  # fmt: skip
    assert found <= 0.062


@pytest.mark.slow
@pytest.mark.parametrize("speakers", [3, 6, 20])
def test_averages_over_languages_of_equal_systems_are_told_apart_in_5_of_100(speakers: int) -> None:
    found = false_positives(
        800, lambda random: [equal_systems("wer", random, speakers) for _ in range(5)], WER_METRIC
    )
    assert 0.03 <= found <= 0.065


def test_a_difference_is_found() -> None:
    random = np.random.default_rng(0)
    middle = LOGIT + SPREAD * random.standard_normal(20)
    counts = utterances(20, random)
    a = error_blocks(middle, counts, random)
    better = random.binomial(a[:, 1].astype(int), wrong(middle - 0.5))
    found = compare([(a, np.stack([better, a[:, 1]], axis=1).astype(float))], WER_METRIC)
    assert found.difference < 0
    assert found.p_value < 0.001
    assert found.interval.high < 0
