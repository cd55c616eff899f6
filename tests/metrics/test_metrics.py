"""The entries of METRICS, and what is asked of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from results_files import answers

from lorsmerge_cli.data.languages import TASKS
from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.metrics import METRICS, check_metrics, metrics_of
from lorsmerge_cli.metrics.metric import Metric, Scored, Scoring, ratio
from lorsmerge_cli.metrics.normalisation import CHARACTER_LANGUAGES


@pytest.mark.parametrize("key", METRICS)
def test_an_entry_is_whole(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = METRICS[key]
    assert metric.task in TASKS
    assert metric.unit in ("%", "points")
    assert metric.name.lower().startswith(key)
    if metric.only_asked:
        return
    meant = ["the boy sees a hat", "the girl buys six red hats", "six birds"]
    rows = answers([meant[0], "the girl buys six red birds", ""], meant)
    statistics = metric.statistics(rows, Scoring())
    assert statistics.shape == (3, metric.columns)
    assert statistics[:, metric.size].min() > 0
    right, wrong = (float(metric.score(statistics[n : n + 1].sum(axis=0))) for n in (0, 1))
    assert metric.gain(right - wrong) > 0
    assert metric.lowest <= min(right, wrong) <= max(right, wrong) <= metric.highest
    assert metric.signature("ca", Scoring())


def test_the_first_metric_of_a_language_and_task_is_the_reported_one() -> None:
    for language in ("ca", "en", *CHARACTER_LANGUAGES):
        spaceless = language in CHARACTER_LANGUAGES
        names = [metric.name for metric in metrics_of(language, "asr")]
        assert names == (["CER", "WER"] if spaceless else ["WER", "CER"])
        assert [metric.name for metric in metrics_of(language, "st")] == ["BLEU", "chrF2"]


def test_what_is_asked_for_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def statistics(rows: Sequence[Scored], scoring: Scoring) -> np.ndarray:
        return np.array([[len(row.hypothesis), 1] for row in rows], dtype=np.float64)

    length = Metric(
        name="length", task="asr", unit="points", higher_is_better=True, score=ratio,
        statistics=statistics, signature=lambda language, scoring: "", only_asked=True,
        option="KIND", faults=lambda: [UsageFault("It is not installed.")],
    )  # fmt: skip
    monkeypatch.setitem(METRICS, "length", length)
    assert metrics_of("ca", "asr") == metrics_of("ca", "asr", ["bleu"])
    assert metrics_of("ca", "asr", ["length"])[-1] is length
    assert Scoring(metrics=("length=a=b", "chrf")).asked == {"length": "a=b", "chrf": ""}
    assert check_metrics(["chrf", "wer"]) == []
    for text in ("ter", "chrf=2", "WER"):
        (fault,) = check_metrics([text])
        assert f"There is no metric {text!r}" in str(fault)
        assert "wer, cer, mer, bleu, chrf" in str(fault)
        assert "length[=KIND]" in str(fault)
    assert [str(fault) for fault in check_metrics(["length=x"])] == ["It is not installed."]
