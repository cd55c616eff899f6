"""BLEU and chrF of a corpus by sacreBLEU, one reference per hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from lorsmerge_cli.errors import LorsmergeError, Mismatch
from lorsmerge_cli.metrics.significance import Floats, Metric

ORDERS = 4  # n-grams up to this length, sacreBLEU's default


@dataclass(frozen=True)
class CorpusScore:
    """A score from 0 to 100 and sacreBLEU's signature of how it was computed."""

    score: float
    signature: str


def bleu(
    hypotheses: Sequence[str], references: Sequence[str], target_language: str = "en"
) -> CorpusScore:
    """Cased corpus BLEU (Papineni et al. 2002; Post 2018) of raw text.

    Args:
        hypotheses, references: (n,) texts, pair by pair.
        target_language: picks the tokenizer: `zh` for Chinese, MeCab for `ja` and `ko`,
            and `13a` for every other language.

    Raises:
        Mismatch: the numbers of hypotheses and references differ, or are zero.
        LorsmergeError: the tokenizer of Japanese or Korean is not installed.
    """
    _check_pairs(hypotheses, references)
    metric = _metric(target_language)
    score = metric.corpus_score(hypotheses, [references])
    return CorpusScore(score.score, str(metric.get_signature()))


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> CorpusScore:
    """Corpus chrF2 (Popović 2015): character n-grams up to 6, recall weighing twice precision.

    Args:
        hypotheses, references: (n,) texts, pair by pair.

    Raises:
        Mismatch: the numbers of hypotheses and references differ, or are zero.
    """
    _check_pairs(hypotheses, references)
    metric = CHRF()
    score = metric.corpus_score(hypotheses, [references])
    return CorpusScore(score.score, str(metric.get_signature()))


def sentence_statistics(
    hypotheses: Sequence[str], references: Sequence[str], target_language: str = "en"
) -> Floats:
    """What corpus BLEU needs of each sentence: sums of rows give the score of any subset.

    Returns:
        (n, 10): the length of the hypothesis and of the reference in tokens, the matching
        n-grams and the hypothesis's n-grams of orders 1 to 4. Integers, for `corpus_scores`.

    Raises:
        As `bleu` does.
    """
    _check_pairs(hypotheses, references)
    pairs = zip(hypotheses, references, strict=True)
    rows = [_statistics(*pair, target_language) for pair in pairs]
    return np.array(rows, dtype=np.float64)


@lru_cache(maxsize=1 << 16)  # a report compares one system with several
def _statistics(hypothesis: str, reference: str, target_language: str) -> tuple[int, ...]:
    # An effective order changes a sentence's score, which is not used here, and no counts;
    # without it sacreBLEU logs a warning per sentence.
    found = _metric(target_language, effective_order=True).sentence_score(hypothesis, [reference])
    return found.sys_len, found.ref_len, *found.counts, *found.totals


def corpus_scores(sums: Floats) -> Floats:
    """Return BLEUs from 0 to 100 of summed `sentence_statistics`, (...) of (..., 10).

    sacreBLEU's formula with its default smoothing (`exp`), for many sums at once.
    """
    lengths, references = sums[..., 0], sums[..., 1]
    counts, totals = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    missing = (counts == 0) & (totals > 0)
    halved = 0.5 ** np.cumsum(missing, axis=-1)  # each order without a match counts half the last
    with np.errstate(divide="ignore", invalid="ignore"):
        precisions = np.where(missing, halved, counts) / totals
        brevity = np.exp(np.minimum(0.0, 1 - references / lengths))
        scores = 100 * brevity * np.exp(np.log(precisions).mean(axis=-1))
    told = (counts > 0).any(axis=-1) & (totals > 0).all(axis=-1) & (lengths > 0)
    return np.where(told, scores, 0.0)


BLEU_METRIC = Metric(corpus_scores, columns=2 + 2 * ORDERS, size=1, highest=100.0)


@lru_cache
def _metric(target_language: str, effective_order: bool = False) -> BLEU:
    language = target_language.partition("-")[0].lower()  # zh-CN is zh
    try:
        # `force` leaves out a log line about tokenized hypotheses, and changes no score.
        return BLEU(trg_lang=language, effective_order=effective_order, force=True)
    except RuntimeError as error:
        raise LorsmergeError(
            f"BLEU of {target_language!r} needs a tokenizer that is not installed.",
            f"Run: pip install 'sacrebleu[{language}]'",
        ) from error


def _check_pairs(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """sacreBLEU would cut the longer of the two without a word."""
    if len(hypotheses) != len(references) or not hypotheses:
        raise Mismatch(
            f"{len(hypotheses)} hypotheses cannot be scored against {len(references)} references.",
            "Give one reference for each hypothesis, and one pair at least.",
        )
