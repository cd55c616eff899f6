"""Scores on a model card: from `eval`'s results file to the card's model-index."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult

from lorsmerge_cli.errors import Mismatch, UnreadableFile, named
from lorsmerge_cli.metrics import METRICS
from lorsmerge_cli.quoting import printable
from lorsmerge_cli.recipe.published import published_names
from lorsmerge_cli.results import document

TASKS = {"asr": ("automatic-speech-recognition", "Speech Recognition"),
         "st": ("translation", "Speech Translation into English")}  # fmt: skip

KEYS = {metric.name: key for key, metric in METRICS.items()}  # which are the Hub's names too
ASKED = {metric.name for metric in METRICS.values() if metric.only_asked}  # shown where they are


@dataclass(frozen=True)
class Scored:
    """A score of the model that a card is written about.

    Attributes:
        dataset: its name; of a path the last part.
        split: of the data set, None where it has none or it is not known.
        language, task, metric: what was scored, and by what.
        score: in the metric's unit.
        interval: the 95 % interval, None where none was estimated.
        signature: the settings that a score depends on.
    """

    dataset: str
    split: str | None
    language: str
    task: str
    metric: str
    score: float
    interval: tuple[float, float] | None
    signature: str


def read_results(path: Path, identity: str, model: Path) -> list[Scored]:
    """Read the scores in a results file that are about one model.

    Args:
        path: what `eval -o` wrote.
        identity: start of the fingerprint of the model's weights.
        model: for messages.

    Raises:
        UnreadableFile: it is no results file, or a score in it is no number.
        Mismatch: it is about other weights.
    """
    stored = document.read_results(path)
    own = [r for r in stored.records if stored.identities.get(r.model) == identity]
    if not own:
        others = named(sorted(stored.identities.values())) or "none"
        raise Mismatch(
            f"{path} holds no score of {model}: it is about other weights ({others}).",
            "Give the results of this very model; a merge that was made anew has to be scored anew.",
        )
    called = published_names([record.dataset for record in own])
    found = []
    for record in own:
        split = stored.splits.get(record.dataset)
        for name in (n for n in record.scores if n == record.metric or n in ASKED):
            score = record.scores[name]
            if math.isnan(score.score):
                raise UnreadableFile(
                    f"{path} is no results file of `lorsmerge eval` that a card can show: the {name} "
                    f"of {record.language} {record.task} on {record.dataset} is no number.",
                    document.AGAIN,
                )
            known = not math.isnan(score.low + score.high)
            found.append(
                Scored(
                    dataset=printable(called[record.dataset]),
                    split=printable(split) if split else None,
                    language=record.language,
                    task=record.task,
                    metric=printable(name),
                    score=score.score,
                    interval=(score.low, score.high) if known else None,
                    signature=printable(score.signature),
                )
            )
    return found


def model_index(scores: Sequence[Scored]) -> list[EvalResult]:
    """The scores as the Hub reads them."""
    results = []
    for row in scores:
        task, task_name = TASKS[row.task]
        results.append(
            EvalResult(
                task_type=task,
                task_name=task_name,
                dataset_type=re.sub(r"[^\w./-]+", "-", row.dataset),
                dataset_name=row.dataset,
                dataset_config=row.language,
                dataset_split=row.split,
                dataset_args={"language": row.language},
                metric_type=KEYS.get(row.metric, row.metric.lower()),
                metric_name=row.metric,
                metric_value=round(row.score, 2),
                metric_args={"signature": row.signature},
            )
        )
    return results
