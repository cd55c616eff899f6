"""chrF2 (Popović 2015): F-score of character n-grams up to 6, recall weighing twice precision."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from lorsmerge_cli.metrics.metric import Metric, Scored, Scoring, sacrebleu_signature

if TYPE_CHECKING:
    from lorsmerge_cli.metrics.metric import Floats

ORDER = 6  # n-grams up to this length, sacreBLEU's default
RECALL = 2  # times the weight of precision


def statistics(rows: Sequence[Scored], scoring: Scoring) -> Floats:
    """Return how many n-grams each row's hypothesis has, its reference, and both.

    Returns:
        (rows, 18): three counts for each order from 1 to 6.
    """
    import numpy as np

    counts = [_counts(row.hypothesis, row.reference) for row in rows]
    return np.array(counts, dtype=np.float64).reshape(-1, 3 * ORDER)


@lru_cache(maxsize=1 << 16)  # a report compares one system with several
def _counts(hypothesis: str, reference: str) -> tuple[int, ...]:
    from sacrebleu.metrics.helpers import extract_all_char_ngrams

    texts = (extract_all_char_ngrams(text.rstrip(), ORDER) for text in (hypothesis, reference))
    counts: list[int] = []
    for said, meant in zip(*texts, strict=True):
        # as in sacreBLEU, an order for which the reference is too short does not count
        counts += [said.total() if meant else 0, meant.total(), (said & meant).total()]
    return tuple(counts)


def corpus_scores(sums: Floats) -> Floats:
    """Return chrF2s from 0 to 100 of summed statistics, (...) of (..., 18).

    sacreBLEU's formula: precision and recall are means over the orders that both texts have.
    """
    import numpy as np

    said, meant, both = (sums[..., part::3] for part in range(3))
    counted = (said > 0) & (meant > 0)
    orders = np.maximum(counted.sum(axis=-1), 1)
    precision, recall = (
        np.divide(both, length, out=np.zeros_like(both), where=counted).sum(axis=-1) / orders
        for length in (said, meant)
    )
    weight = RECALL**2
    below = weight * precision + recall
    above = 100 * (1 + weight) * precision * recall
    scores: Floats = np.divide(above, below, out=np.zeros_like(below), where=below > 0)
    return scores


CHRF = Metric(
    name="chrF2", task="st", unit="points", higher_is_better=True, highest=100.0,
    statistics=statistics, score=corpus_scores, columns=3 * ORDER,
    signature=lambda language, scoring: sacrebleu_signature("CHRF"),
)  # fmt: skip
