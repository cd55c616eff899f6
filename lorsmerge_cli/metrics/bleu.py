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
    """Return the counts of each row that add up to corpus BLEU's.

    Returns:
        (rows, 10): the length of the hypothesis and of the reference in tokens, the matching
        n-grams and the hypothesis's n-grams of orders 1 to 4.
    """
    import numpy as np

    counts = [_counts(row.hypothesis, row.reference) for row in rows]
    return np.array(counts, dtype=np.float64).reshape(-1, 2 + 2 * ORDERS)


@lru_cache(maxsize=1 << 16)  # a report compares one system with several
def _counts(hypothesis: str, reference: str) -> tuple[int, ...]:
    score = _sacrebleu().sentence_score(hypothesis, [reference])
    return score.sys_len, score.ref_len, *score.counts, *score.totals


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
    defined = (counts > 0).any(axis=-1) & (totals > 0).all(axis=-1) & (lengths > 0)
    return np.where(defined, scores, 0.0)


@cache
def _sacrebleu() -> Sacrebleu:
    from sacrebleu.metrics.bleu import BLEU as Sacrebleu

    # An effective order changes a sentence's score, which is not used here, but no counts.
    # Without it sacreBLEU logs a warning for each sentence, and without `force` one for
    # tokenized hypotheses.
    return Sacrebleu(effective_order=True, force=True)


BLEU = Metric(
    name="BLEU", task="st", unit="points", higher_is_better=True, highest=100.0,
    statistics=statistics, score=corpus_scores, columns=2 + 2 * ORDERS,
    signature=lambda language, scoring: sacrebleu_signature("BLEU"),
)  # fmt: skip
