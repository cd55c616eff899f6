"""Scores equal sacreBLEU's."""

from __future__ import annotations

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU

from lorsmerge_cli.errors import Mismatch
from lorsmerge_cli.metrics.bleu import bleu, chrf, corpus_scores, sentence_statistics
from lorsmerge_cli.metrics.language import share_not_english

REFERENCES = ["The teacher buys three houses.", "On Monday the girl sees six birds", "", "Yes"]
HYPOTHESES = ["The teacher sells three houses .", "on monday the girl sees six birds", "a b", ""]


def test_scores_are_sacrebleus() -> None:
    found = bleu(HYPOTHESES, REFERENCES)
    assert found.score == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert "tok:13a" in found.signature
    assert "case:mixed" in found.signature
    assert (
        chrf(HYPOTHESES, REFERENCES).score == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    )


def test_chinese_has_its_tokenizer() -> None:
    found = bleu(["我们 学校 很大"], ["我们学校很大。"], "zh-CN")
    assert (
        found.score
        == sacrebleu.corpus_bleu(["我们 学校 很大"], [["我们学校很大。"]], tokenize="zh").score
    )
    assert "tok:zh" in found.signature


def test_statistics_sum_to_the_corpus_score() -> None:
    statistics = sentence_statistics(HYPOTHESES, REFERENCES)
    some = [[0, 1, 2, 3], [0, 1, 1], [2], [3], [0]]
    found = corpus_scores(np.array([statistics[chosen].sum(axis=0) for chosen in some]))
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
    wanted = BLEU.compute_bleu(counts, totals, said, meant, smooth_method="exp").score
    assert float(found) == pytest.approx(wanted, abs=1e-9)


def test_numbers_must_fit() -> None:
    with pytest.raises(Mismatch, match="2 hypotheses"):
        bleu(["a", "b"], ["a"])
    with pytest.raises(Mismatch, match="0 hypotheses"):
        chrf([], [])


def test_language() -> None:
    texts = ["the girl sees six birds", "la nena veu sis ocells al jardí", "今日は", "three", ""]
    assert share_not_english(texts) == 2 / 4
    assert share_not_english(["", "..."]) is None
    assert share_not_english(["My sister wants six yellow hats at the market."]) == 0
