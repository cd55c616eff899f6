"""Metrics of transcripts and translations. A new one is a file here and a line in `METRICS`."""

from __future__ import annotations

from collections.abc import Sequence

from lorsmerge_cli.errors import LorsmergeError, UsageFault
from lorsmerge_cli.metrics.bleu import BLEU
from lorsmerge_cli.metrics.chrf import CHRF
from lorsmerge_cli.metrics.comet import COMET
from lorsmerge_cli.metrics.metric import Metric
from lorsmerge_cli.metrics.wer import CER, MER, WER

METRICS: dict[str, Metric] = {  # the first of a task is the reported one, but for `first_for`
    "wer": WER,
    "cer": CER,
    "mer": MER,
    "bleu": BLEU,
    "chrf": CHRF,
    "comet": COMET,
}


def metrics_of(language: str, task: str, asked: Sequence[str] = ()) -> list[Metric]:
    """Return the metrics of a language and task, the reported one first.

    Args:
        language: Whisper's code.
        task: `asr` or `st`.
        asked: keys of additional metrics, which are computed only on request.

    Example:
        >>> [metric.name for metric in metrics_of("ca", "asr")]
        ['WER', 'CER']
        >>> [metric.name for metric in metrics_of("ja", "asr")]
        ['CER', 'WER']
    """
    metrics = [
        metric
        for key, metric in METRICS.items()
        if metric.task == task and (key in asked or not metric.only_asked)
    ]
    return sorted(metrics, key=lambda metric: language not in metric.first_for)


def check_metrics(asked: Sequence[str]) -> list[LorsmergeError]:
    """Return the faults of additional metrics, each `NAME` or `NAME=OPTION`."""
    faults: list[LorsmergeError] = []
    for text in asked:
        key, equals, _ = text.partition("=")
        metric = METRICS.get(key)
        if metric is None or (equals and not metric.option):
            known = [f"{k}[={m.option}]" if m.option else k for k, m in METRICS.items()]
            faults.append(UsageFault(f"There is no metric {text!r}.", f"Use {', '.join(known)}."))
        else:
            faults += metric.faults()
    return faults
