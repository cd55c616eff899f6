"""What can be pushed: a model folder, one checkpoint file, or a delta."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lorsmerge_cli.checkpoint.companions import find_companions, real_file, with_processor_of
from lorsmerge_cli.checkpoint.model_files import (
    CONFIG,
    inherited_files,
    is_adapter,
)
from lorsmerge_cli.checkpoint.model_writer import RUN, TRAINING_STATE
from lorsmerge_cli.checkpoint.reader import DELTA_MARK, Checkpoint
from lorsmerge_cli.checkpoint.references import local_path
from lorsmerge_cli.checkpoint.safetensors_file import SafetensorsFile
from lorsmerge_cli.checkpoint.whisper_config import WHISPERS_OWN, config_faults
from lorsmerge_cli.data.languages import check_labels
from lorsmerge_cli.deltas.file import DeltaFile, Provenance
from lorsmerge_cli.deltas.task_vector import base_fingerprint
from lorsmerge_cli.errors import LorsmergeError, UnreadableFile, UsageFault, named, raise_all
from lorsmerge_cli.inputs import json_object, parse_json, read_document
from lorsmerge_cli.quoting import command, json_escaped
from lorsmerge_cli.recipe.published import is_local, published_record
from lorsmerge_cli.recipe.record import (
    MERGE,
    MergeRecord,
    RunRecord,
    merge_record,
    ratios_of,
    run_record,
    training_rows,
)
from lorsmerge_cli.usage import check_push

CARD = "README.md"
OWN_CARD = f"Write a {CARD} of your own into it, or restore its {MERGE}."
LARGEST_SCANNED = 1 << 20  # bytes: configs are smaller, and vocabularies larger
LEFT_OUT = (*(pattern for pattern in TRAINING_STATE if pattern != RUN), ".*", "__pycache__")


@dataclass(frozen=True)
class Source:
    """A checked source, and what its files say of how it was made.

    Attributes:
        path: as given.
        kind: `model`, `checkpoint` or `delta`.
        files: path in a repository -> file.
        identity: start of the weights' fingerprint, as `eval` records it.
        merge: what `lorsmerge.json` says; None for what is no merge.
        run: what `run.json` says, which `finetune` writes.
        delta: where a delta comes from.
        is_whisper: whether it is, or belongs to, a Whisper.
        published: path in a repository -> what is uploaded in place of the file, because that names
            paths of this machine.
        notes: what is uploaded with such paths in it.
    """

    path: Path
    kind: str
    files: Mapping[str, Path]
    identity: str
    merge: MergeRecord | None = None
    run: RunRecord | None = None
    delta: Provenance | None = None
    is_whisper: bool = False
    published: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files.values())


def find_source(path: Path, companions: Path | None = None) -> Source:
    """Find out what is to be pushed, from headers and records.

    Args:
        path: what is pushed.
        companions: a model whose tokenizer and feature extractor go with a folder; by default its
            own or, of a Trainer's `checkpoint-N`, those of the folder it lies in.

    Raises:
        UnreadableFile: it is neither a model folder nor a checkpoint nor a delta, a link in it leads
            out of it, or what it says of its making is what nothing writes.
    """
    raise_all(check_push(path, None))
    if not path.is_dir() and path.suffix not in (".safetensors", ".delta"):
        raise UnreadableFile(
            f"{path} is no model folder, no .safetensors file and no .delta.",
            "Push one of the three; `hf upload` takes any file.",
        )
    if companions is not None and not path.is_dir():
        raise UsageFault(
            f"--config {companions} has no use where one file is pushed.", "Leave it out."
        )
    if not path.is_dir() and DELTA_MARK in SafetensorsFile(path).metadata:
        return _delta(path)
    if is_adapter(path):
        line = command("hf", "upload", "ORG/NAME", path)
        raise UnreadableFile(f"{path} is a PEFT adapter.", f"`{line}` puts it on the Hub.")
    checkpoint = Checkpoint(path)
    identity = base_fingerprint(checkpoint).digest[:16]
    is_whisper = checkpoint.specs.keys() >= WHISPERS_OWN
    if not path.is_dir():
        document = _document(path, SafetensorsFile(path).metadata.get("lorsmerge", "{}"))
        merge = _merge(path, document)
        return Source(
            path, "checkpoint", {path.name: path}, identity, merge,
            is_whisper=is_whisper, notes=tuple(_notes({path.name: path})),
        )  # fmt: skip
    if not (path / CONFIG).is_file():
        raise UnreadableFile(
            f"{path} has weights but no {CONFIG}, so nothing could open it as a model.",
            "Push the .safetensors file itself, or add the base's config and tokenizer.",
        )
    files, notes = _model_files(checkpoint, path, companions)
    documents = {
        name: _document(path, read_document(files[name])) for name in (MERGE, RUN) if name in files
    }
    merge, run = _merge(path, documents.get(MERGE, {})), _run(path, documents.get(RUN, {}))
    published = dict(_published(path, documents))
    notes += [
        f"{name} is uploaded with names of files in place of their paths on this machine."
        for name in published
    ]
    notes += _notes({name: file for name, file in files.items() if name not in published})
    return Source(
        path, "model", files, identity, merge, run,
        is_whisper=is_whisper, published=published, notes=tuple(notes),
    )  # fmt: skip


def _delta(path: Path) -> Source:
    delta = DeltaFile(path)
    made = delta.provenance
    try:
        check_labels(made.language, made.task)
        ratios_of(made.pruning)
        training_rows(made.training)
        if not all(isinstance(line, str) for line in made.history):
            raise ValueError("`history` is no list of strings")
    except ValueError as error:
        raise _unlike_ours(path, error, "Make it again with `lorsmerge delta`.") from None
    return Source(
        path, "delta", {path.name: path}, "", delta=made,
        is_whisper=delta.specs.keys() >= WHISPERS_OWN, notes=tuple(_notes({path.name: path})),
    )  # fmt: skip


def _unlike_ours(path: Path, error: ValueError, remedy: str) -> UnreadableFile:
    return UnreadableFile(f"{path} says of its making what no merge writes ({error}).", remedy)


def _document(path: Path, text: str | bytes) -> dict[str, Any]:
    try:
        return json_object(text)
    except ValueError as error:
        raise _unlike_ours(path, error, OWN_CARD) from None


def _merge(path: Path, document: Mapping[str, Any]) -> MergeRecord | None:
    try:
        return merge_record(document) if document else None
    except ValueError as error:
        raise _unlike_ours(path, error, OWN_CARD) from None


def _run(path: Path, document: Mapping[str, Any]) -> RunRecord | None:
    try:
        return run_record(document) if document else None
    except ValueError as error:
        raise _unlike_ours(path, error, OWN_CARD) from None


def _published(path: Path, documents: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, bytes]]:
    """The records that name paths of this machine, without them."""
    for name, document in documents.items():
        try:
            found = published_record(document) if document else document
            text = json_escaped(json.dumps(found, indent=2, ensure_ascii=False))
        except RecursionError:
            raise _unlike_ours(path, ValueError("it is nested too deeply"), OWN_CARD) from None
        if found != document:
            yield name, f"{text}\n".encode()


def _model_files(
    checkpoint: Checkpoint, folder: Path, companions: Path | None
) -> tuple[dict[str, Path], list[str]]:
    """What of a model folder is pushed, and what there is to say of it.

    Raises:
        LorsmergeError: files that must not be, or cannot be, uploaded.
    """
    files, notes = _files(folder), list(checkpoint.notes)
    if companions is not None:
        base = local_path(companions, "companions")
        raise_all(config_faults(checkpoint, base))
        own = find_companions(folder)
        found = with_processor_of(own, find_companions(base))
        raise_all(found.faults)
        return {n: f for n, f in files.items() if n not in own.files} | found.files, notes
    above = inherited_files(folder)
    if above:
        files |= {file.name: real_file(file, file.parent) for file in above}
        names = named([file.name for file in above], len(above))
        notes.append(f"{names} are taken from {above[0].parent}, the folder that it lies in.")
    return files, notes


def _files(folder: Path) -> dict[str, Path]:
    """Everything but hidden files and the state of a training.

    Raises:
        UnreadableFile: a link that leads out of the folder, or what is no file.
    """
    found: dict[str, Path] = {}
    faults: list[LorsmergeError] = []
    for place, folders, files in os.walk(folder):
        kept = sorted(name for name in folders if not _is_left_out(name))
        folders[:] = [name for name in kept if not Path(place, name).is_symlink()]
        links = [Path(place, name) for name in kept if name not in folders]
        faults += [_link_out(path) for path in links if _leads_out(path, folder)]
        for name in sorted(name for name in files if not _is_left_out(name)):
            path = Path(place, name)
            try:
                found[path.relative_to(folder).as_posix()] = real_file(path, folder)
            except UnreadableFile as fault:
                faults.append(fault)
    raise_all(faults)
    return dict(sorted(found.items()))


def _is_left_out(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in LEFT_OUT)


def _leads_out(link: Path, folder: Path) -> bool:
    return not link.resolve().is_relative_to(folder.resolve())


def _link_out(path: Path) -> UnreadableFile:
    return UnreadableFile(
        f"{path} is a link to a folder elsewhere.", "Remove it; what is pushed lies in one folder."
    )


def _notes(files: Mapping[str, Path]) -> Iterator[str]:
    """Which files have paths of this machine in their header or, of JSON, in a value."""
    for name, file in files.items():
        try:
            values = _values(file)
        except (OSError, ValueError, LorsmergeError):
            continue
        words = [word for text in _texts(values) for word in re.split(r"[\s'\"=]+", text)]
        paths = [word for word in words if is_local(word) and len(re.findall(r"[/\\]", word)) > 1]
        if paths:
            yield (
                f"{name} names paths of this machine, and is uploaded with them: {named(paths)}. "
                "Made from relative paths it has none."
            )


def _values(file: Path) -> Any:
    """What a small JSON file, or the metadata of a safetensors file, holds."""
    if file.suffix in (".safetensors", ".delta"):
        return [_json(value) for value in SafetensorsFile(file).metadata.values()]
    if file.suffix == ".json" and file.stat().st_size <= LARGEST_SCANNED:
        return parse_json(read_document(file))
    return []


def _json(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return text


def _texts(value: Any) -> Iterator[str]:
    """Every string among plain values, however deep."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
