"""Scores on a model card: from `eval`'s results file to the card's model-index and a table."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from lorsmerge_cli.errors import Mismatch, UnreadableFile, named

TASKS = {"asr": ("automatic-speech-recognition", "Speech Recognition"),
         "st": ("translation", "Speech Translation into English")}  # fmt: skip
AGAIN = "Make one with `lorsmerge eval MODEL --data DATA -o results.json`."


def read_results(path: Path, identity: str, model: Path) -> list[dict[str, Any]]:
    """The records of a results file that are about one model.

    Args:
        path: what `eval -o` wrote.
        identity: start of the fingerprint of the model's weights.
        model: for messages.

    Raises:
        UnreadableFile: it is no results file.
        Mismatch: it is about other weights.
    """
    try:
        document = json.loads(path.read_bytes())
        weights = {name: str(about["identity"]) for name, about in document["models"].items()}
        records = [
            dict(record) | {"split": document["settings"].get("splits", {}).get(record["dataset"])}
            for record in document["records"]
        ]
        names = [name for name, found in weights.items() if found == identity]
        own = [record for record in records if record["model"] in names]
        for record in own:
            float(record["score"]), TASKS[record["task"]], record["metric"], record["language"]
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
    return own


def model_index(records: list[dict[str, Any]]) -> list[EvalResult]:
    """The records as the Hub reads them."""
    results = []
    for record in records:
        task, task_name = TASKS[record["task"]]
        results.append(
            EvalResult(
                task_type=task,
                task_name=task_name,
                dataset_type=re.sub(r"[^\w./-]+", "-", record["dataset"]),
                dataset_name=record["dataset"],
                dataset_config=record["language"],
                dataset_split=record["split"],
                dataset_args={"language": record["language"]},
                metric_type=record["metric"].lower(),
                metric_name=record["metric"],
                metric_value=round(record["score"], 2),
                metric_args={"signature": record["signature"]},
            )
        )
    return results


def score_table(records: list[dict[str, Any]]) -> str:
    """The records as Markdown, with their signatures below."""
    rows = ["| task | language | data | split | metric | score | 95 % interval |",
            "| --- | --- | --- | --- | --- | ---: | ---: |"]  # fmt: skip
    rows += [
        f"| {record['task']} | {record['language']} | {record['dataset']} | {record['split'] or ''} "
        f"| {record['metric']} | {record['score']:.2f} | {_interval(record)} |"
        for record in records
    ]
    signatures = dict.fromkeys(str(record["signature"]) for record in records)
    return "\n".join([*rows, "", *(f"    {signature}" for signature in signatures)])


def _interval(record: Mapping[str, Any]) -> str:
    low, high = record.get("low"), record.get("high")
    return "" if low is None or high is None else f"{low:.2f} to {high:.2f}"
