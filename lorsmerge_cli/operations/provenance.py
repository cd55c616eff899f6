"""How a model was made, in the few figures that a report has use for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorsmerge_cli.checkpoint.model_writer import RUN
from lorsmerge_cli.checkpoint.safetensors_file import SafetensorsFile
from lorsmerge_cli.checkpoint.task_vector import StoredTaskVector

if TYPE_CHECKING:
    from lorsmerge_cli.operations.data import DataReport
    from lorsmerge_cli.operations.speech_model import ModelSource

SHOWN = 16  # characters of a fingerprint
MERGE = "lorsmerge.json"


def trained_on(data: DataReport) -> list[dict[str, Any]]:
    """Language, task and hours of each part of a fine-tune's training data."""
    return [
        {"language": group.language, "task": group.task, "hours": round(group.hours, 4)}
        for group in data.groups
    ]


def training_of(folder: Path | None) -> dict[str, Any]:
    """What `finetune` says of a model folder: base, data by language and task, rate, seed.

    Empty for a folder that it did not write.
    """
    run = {} if folder is None else _read(folder / RUN)
    try:
        found = {"base": run["base"], "trained_on": run["trained_on"]}
        return found | {key: run["settings"].get(key) for key in ("learning_rate", "seed")}
    except (KeyError, TypeError, AttributeError):
        return {}


def made_from(source: ModelSource) -> dict[str, Any]:
    """Where a model's weights come from.

    Returns:
        `kind` is `merge` (with `method`, `base` and `deltas`, each with its ratios, scale and what
        it was trained on) or `finetune` (as `training_of`); empty for any other model.
    """
    if source.applied:
        deltas = [
            _delta(
                vector.file.provenance.training if isinstance(vector, StoredTaskVector) else {},
                vector.file.provenance.language if isinstance(vector, StoredTaskVector) else "",
                vector.file.provenance.task if isinstance(vector, StoredTaskVector) else "",
                vector.file.provenance.pruning if isinstance(vector, StoredTaskVector) else {},
                vector.identity(),
                {"scale": scale},
            )
            for vector, scale in source.applied
        ]
        return {"kind": "merge", "method": _method(deltas), "deltas": deltas}
    merge = _merge_record(source)
    if merge:
        return _merged(merge)
    training = training_of(source.checkpoint.folder)
    return {"kind": "finetune", **training} if training else {}


def _merge_record(source: ModelSource) -> dict[str, Any]:
    """`lorsmerge.json` of a folder, or its copy in the header of a file."""
    if source.checkpoint.folder is not None:
        return _read(source.checkpoint.folder / MERGE)
    try:
        found = json.loads(SafetensorsFile(source.checkpoint.path).metadata.get("lorsmerge", "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _merged(record: Mapping[str, Any]) -> dict[str, Any]:
    try:
        recipe = record["recipe"]
        deltas = [
            _delta(
                found.get("training", {}),
                found.get("language", ""),
                found.get("task", ""),
                found.get("pruning", {}),
                found["fingerprint"],
                entry,
            )
            for found, entry in zip(record["deltas"], recipe["deltas"], strict=True)
        ]
        method = recipe["method"]
        return {
            "kind": "merge",
            "method": _method(deltas) if method == "ta" else method,
            "base": record["base"]["fingerprint"][:SHOWN],
            "deltas": deltas,
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _delta(
    training: Mapping[str, Any],
    language: str,
    task: str,
    pruning: Mapping[str, Any],
    fingerprint: str,
    entry: Mapping[str, Any],
) -> dict[str, Any]:
    """A delta of a merge; ratios are the merge's own or else those of the file."""
    known = training.get("trained_on") or (
        [{"language": language, "task": task}] if language and task else []
    )
    found = {
        "fingerprint": fingerprint[:SHOWN],
        "trained_on": known,
        "seed": training.get("seed"),
        "scale": entry.get("scale"),
    }
    ratios = entry if {"svp", "mp"} & entry.keys() else pruning
    found |= {key: ratios[key] for key in ("svp", "mp") if ratios.get(key) is not None}
    return {key: value for key, value in found.items() if value is not None}


def _method(deltas: Sequence[Mapping[str, Any]]) -> str:
    """The method that a sum of deltas amounts to, some of which `prune` has pruned."""
    ratios = {key for delta in deltas for key in ("svp", "mp") if key in delta}
    return {0: "ta", 1: next(iter(ratios), ""), 2: "lors"}[len(ratios)]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
