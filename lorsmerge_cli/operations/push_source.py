"""What can be pushed: a model folder, one checkpoint file, or a delta."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lorsmerge_cli.checkpoint.delta_file import DeltaFile, Provenance
from lorsmerge_cli.checkpoint.model_files import is_adapter
from lorsmerge_cli.checkpoint.model_writer import CONFIG, RUN, TRAINING_STATE
from lorsmerge_cli.checkpoint.reader import DELTA_MARK, Checkpoint
from lorsmerge_cli.checkpoint.safetensors_file import SafetensorsFile
from lorsmerge_cli.checkpoint.task_vector import base_fingerprint
from lorsmerge_cli.errors import UnreadableFile

CARD = "README.md"
MERGE = "lorsmerge.json"
WHISPERS_OWN = {"model.encoder.embed_positions.weight", "model.encoder.conv1.weight",
                "model.decoder.embed_positions.weight"}  # fmt: skip
LEFT_OUT = (*(pattern for pattern in TRAINING_STATE if pattern != RUN), ".*", "__pycache__")


@dataclass(frozen=True)
class Source:
    """A checked source, and what its files say of how it was made.

    Attributes:
        path: as given.
        kind: `model`, `checkpoint` or `delta`.
        files: path in a repository -> file.
        identity: start of the weights' fingerprint, as `eval` records it.
        merge: the contents of `lorsmerge.json`; empty for what is no merge.
        run: the contents of `run.json`, which `finetune` writes.
        delta: where a delta comes from.
        is_whisper: whether it is, or belongs to, a Whisper.
    """

    path: Path
    kind: str
    files: Mapping[str, Path]
    identity: str
    merge: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    delta: Provenance | None = None
    is_whisper: bool = False

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files.values())


def find_source(path: Path) -> Source:
    """Find out what is to be pushed, from headers.

    Raises:
        UnreadableFile: it is neither a model folder nor a checkpoint nor a delta.
    """
    if not path.exists():
        raise UnreadableFile(f"{path}: no such file or folder.", "Check the path.")
    if path.is_file() and path.suffix not in (".safetensors", ".delta"):
        raise UnreadableFile(
            f"{path} is no model folder, no .safetensors file and no .delta.",
            "Push one of the three; `hf upload` takes any file.",
        )
    if path.is_file() and DELTA_MARK in SafetensorsFile(path).metadata:
        delta = DeltaFile(path)
        return Source(
            path, "delta", {path.name: path}, "",
            delta=delta.provenance, is_whisper=delta.specs.keys() >= WHISPERS_OWN,
        )  # fmt: skip
    if is_adapter(path):
        raise UnreadableFile(
            f"{path} is a PEFT adapter.", f"`hf upload ORG/NAME {path}` puts it on the Hub."
        )
    checkpoint = Checkpoint(path)
    identity = base_fingerprint(checkpoint).digest[:16]
    is_whisper = checkpoint.specs.keys() >= WHISPERS_OWN
    if path.is_file():
        merge = _table(SafetensorsFile(path).metadata.get("lorsmerge", "{}"))
        return Source(path, "checkpoint", {path.name: path}, identity, merge, is_whisper=is_whisper)
    if not (path / CONFIG).is_file():
        raise UnreadableFile(
            f"{path} has weights but no {CONFIG}, so nothing could open it as a model.",
            "Push the .safetensors file itself, or add the base's config and tokenizer.",
        )
    merge, run = (_table(_text(path / name)) for name in (MERGE, RUN))
    return Source(path, "model", _files(path), identity, merge, run, is_whisper=is_whisper)


def _files(folder: Path) -> dict[str, Path]:
    """Everything but hidden files and the state of a training."""
    found = {}
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        left_out = any(fnmatchcase(part, pattern) for part in parts for pattern in LEFT_OUT)
        if file.is_file() and not left_out:
            found["/".join(parts)] = file
    return found


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else "{}"


def _table(text: str) -> dict[str, Any]:
    """A JSON object, empty for anything else: a card is written with what is known."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
