"""BLEU of a corpus by sacreBLEU, one reference per hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from lorsmerge_cli.metrics.metric import Metric, Scored, Scoring, sacrebleu_signature

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU as Sacrebleu

    from lorsmerge_cli.metrics.metric import Floats

ORDERS = 4  # n-grams up to this length, sacreBLEU's default


def statistics(rows: Sequence[Scored], scoring: Scoring) -> Floats:
    """Return what corpus BLEU needs of each row: the score of any subset is that of the sum.

    Returns:
        (rows, 10): the length of the hypothesis and of the reference in tokens, the matching
        n-grams and the hypothesis's n-grams of orders 1 to 4. Integers, for `corpus_scores`.
    """
    import numpy as np

    found = [_counts(row.hypothesis, row.reference) for row in rows]
    return np.array(found, dtype=np.float64).reshape(-1, 2 + 2 * ORDERS)


@lru_cache(maxsize=1 << 16)  # a report compares one system with several
def _counts(hypothesis: str, reference: str) -> tuple[int, ...]:
    # An effective order changes a sentence's score, which is not used here, and no counts;
    # without it sacreBLEU logs a warning per sentence.
    found = _sacrebleu(effective_order=True).sentence_score(hypothesis, [reference])
    return found.sys_len, found.ref_len, *found.counts, *found.totals


def corpus_scores(sums: Floats) -> Floats:
    """Return BLEUs from 0 to 100 of summed `statistics`, (...) of (..., 10).

    Cased BLEU of raw text (Papineni et al. 2002; Post 2018) with sacreBLEU's default smoothing
    (`exp`), for many sums at once.
    """
    import numpy as np

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


@cache
def _sacrebleu(effective_order: bool = False) -> Sacrebleu:
    from sacrebleu.metrics.bleu import BLEU as Sacrebleu

    # `force` leaves out a log line about tokenized hypotheses, and changes no score.
    return Sacrebleu(effective_order=effective_order, force=True)


@cache
def _signature() -> str:
    return sacrebleu_signature(_sacrebleu())


BLEU = Metric(
    name="BLEU", task="st", unit="points", higher_is_better=True, highest=100.0,
    statistics=statistics, score=corpus_scores, signature=lambda language, scoring: _signature(),
    columns=2 + 2 * ORDERS,
)  # fmt: skip
