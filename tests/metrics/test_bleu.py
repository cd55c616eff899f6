"""Scores equal sacreBLEU's."""

from __future__ import annotations

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from results_files import answers
from sacrebleu.metrics.bleu import BLEU as Sacrebleu

from lorsmerge_cli.metrics.bleu import BLEU, corpus_scores
from lorsmerge_cli.metrics.metric import Scoring

REFERENCES = ["The teacher buys three houses.", "On Monday the girl sees six birds", "", "Yes"]
HYPOTHESES = ["The teacher sells three houses .", "on monday the girl sees six birds", "a b", ""]


def test_statistics_sum_to_the_corpus_score() -> None:
    statistics = BLEU.statistics(answers(HYPOTHESES, REFERENCES), Scoring())
    assert statistics.shape == (4, BLEU.columns)
    some = [[0, 1, 2, 3], [0, 1, 1], [2], [3], [0]]
    found = BLEU.score(np.array([statistics[chosen].sum(axis=0) for chosen in some]))
    for chosen, score in zip(some, found, strict=True):
        said = [HYPOTHESES[i] for i in chosen], [[REFERENCES[i] for i in chosen]]
        assert score == pytest.approx(sacrebleu.corpus_bleu(*said).score, abs=1e-9)
    assert found[0] > found[1] / 2 > 0


@given(
    st.integers(0, 12), st.integers(0, 12),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
)  # fmt: skip
def test_scores_of_sums_are_sacrebleus(said: int, meant: int, matched: list[float]) -> None:
    totals = [max(0, said - order) for order in range(4)]
    counts = [int(share * total) for share, total in zip(matched, totals, strict=True)]
    found = corpus_scores(np.array([said, meant, *counts, *totals], dtype=np.float64))
    wanted = Sacrebleu.compute_bleu(counts, totals, said, meant, smooth_method="exp").score
    assert float(found) == pytest.approx(wanted, abs=1e-9)


def test_the_signature_is_sacrebleus() -> None:
    metric = Sacrebleu()
    metric.corpus_score(HYPOTHESES, [REFERENCES])
    assert BLEU.signature("ca", Scoring()) == str(metric.get_signature())
