"""Results files of systems that make a given share of errors, without a model."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lorsmerge_cli.metrics.metric import Scoring
from lorsmerge_cli.results.document import VERSION, record_document
from lorsmerge_cli.results.records import Hypothesis, Record, score

WORDS = [
    "the",
    "girl",
    "sees",
    "six",
    "red",
    "birds",
    "and",
    "a",
    "boy",
    "buys",
    "old",
    "yellow",
    "hats",
    "today",
]
SCORING = Scoring(samples=100)
COUNT = 30  # utterances of a test set
SPEAKERS = 15

Cell = tuple[str, str, str]  # dataset, language, task


def hypotheses(model: str, cell: Cell, wrong: float, *, count: int = COUNT) -> list[Hypothesis]:
    """Answers to one test set, a share of whose words is another; the same for the same model."""
    dataset, language, task = cell
    said, rows = random.Random(f"{model}/{cell}"), []
    for number in range(count):
        meant = random.Random(f"{cell}/{number}").choices(WORDS, k=9)
        words = [said.choice(WORDS) if said.random() < wrong else word for word in meant]
        rows.append(
            Hypothesis(
                model, dataset, f"u{number:03d}", language, task, " ".join(meant), " ".join(words),
                1.5, f"s{number % SPEAKERS}",
            )
        )  # fmt: skip
    return rows


def answers(said: Sequence[str], meant: Sequence[str], **more: Any) -> list[Hypothesis]:
    """Hypotheses beside their references, and nothing else of note."""
    pairs = enumerate(zip(said, meant, strict=True))
    return [
        Hypothesis("m", "d", str(n), "ca", "st", ref, hyp, 1.0, **more) for n, (hyp, ref) in pairs
    ]


def reported(record: dict[str, Any]) -> dict[str, Any]:
    """The reported score of a record of a results file."""
    found: dict[str, Any] = record["scores"][record["metric"]]
    return found


@cache
def record(model: str, cell: Cell, wrong: float, **changes: Any) -> Record:
    return score(hypotheses(model, cell, wrong, **changes), SCORING)


def delta(*groups: str, **settings: Any) -> dict[str, Any]:
    """A delta of a merge, trained on `ca_asr`, say."""
    hours = settings.pop("hours", 5.0)
    trained_on = [
        {"language": group.split("_")[0], "task": group.split("_")[1], "hours": hours}
        for group in groups
    ]
    return {"fingerprint": "+".join(groups), "trained_on": trained_on, "scale": 0.2} | settings


def merge(method: str, *deltas: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "merge", "method": method, "base": "0", "deltas": list(deltas)}


def finetune(*groups: str, hours: float = 5.0) -> dict[str, Any]:
    return {
        "kind": "finetune",
        "base": "0",
        "trained_on": delta(*groups, hours=hours)["trained_on"],
    }


def write_results(
    path: Path,
    records: list[Record],
    made_from: dict[str, dict[str, Any]] | None = None,
    *,
    beam: int = 1,
    normalisation: str = "basic",
    version: str = "0.1.0",
) -> Path:
    """A results file as `eval -o` writes it; without `made_from` as it did at first."""
    document: dict[str, Any] = {
        "version": VERSION,
        "lorsmerge": version,
        "settings": {
            "scoring": {"normalisation": normalisation, "samples": SCORING.samples, "seed": 0},
            "versions": {"jiwer": "4.0.0"},
            "decoding": {"beam": beam, "batch_size": 8, "max_tokens": None, "suppress": [],
                         "begin_suppress": [], "dtype": "float32"},
        },
        "speed": {},
        "records": [record_document(entry) for entry in records],
        "comparisons": [],
    }  # fmt: skip
    if made_from is not None:
        document["models"] = {
            name: {"identity": f"id of {name}", "made_from": made}
            for name, made in made_from.items()
        }
    path.write_text(json.dumps(document))
    return path
