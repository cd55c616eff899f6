"""Scores equal sacreBLEU's."""

from __future__ import annotations

import pytest
import sacrebleu

from lorsmerge_cli.errors import Mismatch
from lorsmerge_cli.metrics.bleu import bleu, chrf, score_of, sentence_statistics
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
    assert score_of(statistics.sum(axis=0)) == bleu(HYPOTHESES, REFERENCES).score
    some = statistics[[0, 1, 1]].sum(axis=0)
    chosen = [HYPOTHESES[i] for i in (0, 1, 1)], [[REFERENCES[i] for i in (0, 1, 1)]]
    assert score_of(some) == sacrebleu.corpus_bleu(*chosen).score


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
