"""Scores on a model card, from `eval`'s results file to the card's model-index."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult

from lorsmerge_cli.errors import LorsmergeError, Mismatch, UnreadableFile, named, raise_all
from lorsmerge_cli.metrics import METRICS
from lorsmerge_cli.quoting import printable
from lorsmerge_cli.recipe.published import published_names
from lorsmerge_cli.results import document

TASKS = {"asr": ("automatic-speech-recognition", "Speech Recognition"),
         "st": ("translation", "Speech Translation into English")}  # fmt: skip

KEYS = {metric.name: key for key, metric in METRICS.items()}  # the keys are the Hub's names
ASKED = {metric.name for metric in METRICS.values() if metric.only_asked}  # shown if present


@dataclass(frozen=True)
class Scored:
    """A score on a model card.

    Attributes:
        dataset: its name; the last part of a path.
        split: split of the data set, None if unknown.
        language: a code such as `ca`.
        task: `asr` or `st`.
        metric: the metric's name.
        score: in the metric's unit.
        interval: the 95 % interval, None if none was estimated.
        signature: the settings that the score depends on.
        heard: how, in words, where it was not as clips in a language that was given.
    """

    dataset: str
    split: str | None
    language: str
    task: str
    metric: str
    score: float
    interval: tuple[float, float] | None
    signature: str
    heard: tuple[str, ...] = ()


HEARD = {"recordings": "whole recordings", "language-auto": "language identified"}


def scores_of(paths: Sequence[Path], identity: str, model: Path) -> list[Scored]:
    """Read one model's scores from several results files, which have to score different things.

    The other parameters are those of `read_results`.

    Raises:
        UnreadableFile, Mismatch: as `read_results`.
        Mismatch: two files have a score of the same test set, heard in the same way.
    """
    found: dict[tuple[object, ...], tuple[Path, Scored]] = {}
    faults: list[LorsmergeError] = []
    for path in dict.fromkeys(paths):
        try:
            scores = read_results(path, identity, model)
        except LorsmergeError as fault:
            faults.append(fault)
            continue
        for row in scores:
            key = (row.dataset, row.split, row.language, row.task, row.metric, row.heard)
            other, known = found.setdefault(key, (path, row))
            if known != row:
                faults.append(
                    Mismatch(
                        f"{other} and {path} both have a {row.metric} of {row.language} {row.task} on "
                        f"{row.dataset}, and not the same one.",
                        "Give one of the files, or name the test sets apart: eval --data NAME=PATH.",
                    )
                )
    raise_all(faults)
    return [row for _, row in found.values()]


def read_results(path: Path, identity: str, model: Path) -> list[Scored]:
    """Read one model's scores from a results file.

    Args:
        path: the file that `eval -o` wrote.
        identity: first 16 digits of the fingerprint of the model's weights.
        model: the model's path, for messages.

    Raises:
        UnreadableFile: it is not a results file, or a score in it is not a number.
        Mismatch: it has scores of other weights only.
    """
    stored = document.read_results(path)
    of_model = [r for r in stored.records if stored.identities.get(r.model) == identity]
    own = [record for record in of_model if not record.silent]  # a card has scores alone
    if of_model and not own:
        raise UnreadableFile(
            f"{path} has no score for a card: nothing is said in its test sets.",
            "Give results of speech.",
        )
    if not own:
        others = named(sorted(stored.identities.values())) or "none"
        raise Mismatch(
            f"{path} has no score of {model}: its scores are of other weights ({others}).",
            "Give the results of this model; a merge that was made again has to be scored again.",
        )
    called = published_names([record.dataset for record in own])
    found = []
    for record in own:
        split = stored.splits.get(record.dataset)
        for name in (n for n in record.scores if n == record.metric or n in ASKED):
            score = record.scores[name]
            if math.isnan(score.score):
                raise UnreadableFile(
                    f"{path} cannot be shown on a card: the {name} of {record.language} "
                    f"{record.task} on {record.dataset} is not a number.",
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
                    heard=tuple(HEARD[way] for way in stored.heard.split()),
                )
            )
    return found


def model_index(scores: Sequence[Scored]) -> list[EvalResult]:
    """Return the scores in the Hub's format."""
    results = []
    for row in scores:
        task, task_name = TASKS[row.task]
        called = " ".join([row.dataset, *(f"({way})" for way in row.heard)])
        results.append(
            EvalResult(
                task_type=task,
                task_name=task_name,
                dataset_type=re.sub(r"[^\w./-]+", "-", called),  # the Hub joins rows of one type
                dataset_name=called,
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
