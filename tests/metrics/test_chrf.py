"""Scores equal sacreBLEU's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from results_files import answers
from sacrebleu.metrics.chrf import CHRF as Sacrebleu

from lorsmerge_cli.metrics.chrf import CHRF
from lorsmerge_cli.metrics.metric import Scoring

WORDS = st.text("ab c.é", max_size=12)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_scores_of_sums_are_sacrebleus(pairs: list[tuple[str, str]]) -> None:
    said, meant = zip(*pairs, strict=True)
    statistics = CHRF.statistics(answers(said, meant), Scoring())
    assert statistics.shape == (len(pairs), CHRF.columns)
    found = CHRF.score(np.array([statistics.sum(axis=0), statistics[0]]))
    wanted = (
        Sacrebleu().corpus_score(said, [meant]).score,
        *(Sacrebleu().corpus_score(said[:1], [meant[:1]]).score,),
    )
    assert found == pytest.approx(wanted, abs=1e-9)


def test_blocks_weigh_as_their_references_do() -> None:
    statistics = CHRF.statistics(answers(["abc", "x"], ["ab cd ", ""]), Scoring())
    assert statistics[:, CHRF.size].tolist() == [4, 0]  # characters without white space


def test_the_signature_is_sacrebleus() -> None:
    metric = Sacrebleu()
    metric.corpus_score(["a b"], [["a"]])
    assert CHRF.signature("ca", Scoring()) == str(metric.get_signature())
