"""Scores on a model card: from `eval`'s results file to the card's model-index."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from lorsmerge_cli.errors import Mismatch, UnreadableFile, named
from lorsmerge_cli.inputs import json_object, read_document
from lorsmerge_cli.quoting import printable
from lorsmerge_cli.recipe.published import published_names
from lorsmerge_cli.recipe.recipe import LARGEST
from lorsmerge_cli.recipe.record import check_labels

TASKS = {"asr": ("automatic-speech-recognition", "Speech Recognition"),
         "st": ("translation", "Speech Translation into English")}  # fmt: skip
AGAIN = "Make one with `lorsmerge eval MODEL --data DATA -o results.json`."


@dataclass(frozen=True)
class Scored:
    """A score of the model that a card is written about.

    Attributes:
        dataset: its name; of a path the last part.
        split: of the data set, None where it has none or it is not known.
        language, task, metric: what was scored, and by what.
        score: in percent, or BLEU's points.
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
        UnreadableFile: it is no results file.
        Mismatch: it is about other weights.
    """
    try:
        document = json_object(read_document(path))
        weights = {name: str(about["identity"]) for name, about in document["models"].items()}
        splits = document["settings"].get("splits", {})
        names = [name for name, found in weights.items() if found == identity]
        own = [_scored(row, splits) for row in document["records"] if row["model"] in names]
        called = published_names([row.dataset for row in own])
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror}.", "Check the path.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableFile(
            f"{path} is no results file of `lorsmerge eval` with the fingerprints of its models "
            f"({type(error).__name__}: {error}).",
            AGAIN,
        ) from None
    if not own:
        raise Mismatch(
            f"{path} holds no score of {model}: it is about other weights "
            f"({named(sorted(weights)) or 'none'}).",
            "Give the results of this very model; a merge that was made anew has to be scored anew.",
        )
    return [replace(row, dataset=printable(called[row.dataset])) for row in own]


def _scored(row: Mapping[str, Any], splits: Mapping[str, Any]) -> Scored:
    """A record, as strings of one line and finite numbers.

    Raises:
        ValueError, KeyError, TypeError: it is none of `eval`'s.
    """
    text = {key: row[key] for key in ("dataset", "language", "task", "metric", "signature")}
    split = splits.get(text["dataset"])
    wrong = [key for key, value in text.items() if not isinstance(value, str)]
    if wrong or not isinstance(split, str | None):
        raise TypeError(f"{', '.join(wrong) or 'split'}: no string")
    check_labels(text["language"], text["task"])
    ends = [row.get("low"), row.get("high")]
    return Scored(
        **text | {key: printable(text[key]) for key in ("metric", "signature")},
        split=printable(split) if split else None,
        score=_finite(row["score"]),
        interval=None if None in ends else (_finite(ends[0]), _finite(ends[1])),
    )


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no score")
    if not abs(value) <= LARGEST:  # nor is NaN
        raise ValueError("a score is no finite number")
    return value


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
                metric_type=row.metric.lower(),
                metric_name=row.metric,
                metric_value=round(row.score, 2),
                metric_args={"signature": row.signature},
            )
        )
    return results
