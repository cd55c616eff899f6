"""The source of a push: a model folder, one checkpoint file, or a delta."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from lorsmerge_cli.checkpoint.companions import find_companions, real_file, with_processor_of
from lorsmerge_cli.checkpoint.model_files import CONFIG, DELTA, inherited_files, is_adapter
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
    run_record,
    training_rows,
)
from lorsmerge_cli.usage import check_push

Parsed = TypeVar("Parsed")
CARD = "README.md"
OWN_CARD = f"Write a {CARD} of your own into it, or restore its {MERGE}."
LARGEST_SCANNED = 1 << 20  # bytes: configs are smaller, and vocabularies larger
SKIPPED = (*(pattern for pattern in TRAINING_STATE if pattern != RUN), ".*", "__pycache__")


@dataclass(frozen=True)
class Source:
    """A checked source, and its records of how it was made.

    Attributes:
        path: as given.
        kind: `model`, `checkpoint` or `delta`.
        files: path in a repository -> file.
        identity: first 16 digits of the weights' fingerprint, as `eval` records it.
        merge: content of `lorsmerge.json`; None if it is not a merge.
        run: content of `run.json`, which `finetune` writes; None if there is none.
        delta: provenance of a delta; None for others.
        is_whisper: whether it is a Whisper or the delta of one.
        published: path in a repository -> what is uploaded instead of the file, because the file
            names local paths.
        notes: what the user should know, such as files with local paths.
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
        """Total size of the files in bytes."""
        return sum(file.stat().st_size for file in self.files.values())


def find_source(path: Path, config_dir: Path | None = None) -> Source:
    """Check what is pushed, from headers and records.

    Args:
        path: a model folder, a .safetensors file or a .delta.
        config_dir: model whose tokenizer and feature extractor a folder is pushed with; by default
            its own or, of a Trainer's `checkpoint-N`, those of its parent.

    Raises:
        UnreadableFile: it is neither a model folder nor a checkpoint nor a delta, a link leads out
            of it, or a record of how it was made is damaged.
    """
    raise_all(check_push(path, ()))
    if not path.is_dir() and path.suffix not in (".safetensors", DELTA):
        raise UnreadableFile(
            f"{path} is not a model folder, a .safetensors file or a .delta.",
            "Push one of the three; `hf upload` takes any file.",
        )
    if config_dir is not None and not path.is_dir():
        raise UsageFault(f"--config {config_dir} has no effect on a single file.", "Omit it.")
    if is_adapter(path):
        line = command("hf", "upload", "ORG/NAME", path)
        raise UnreadableFile(f"{path} is a PEFT adapter.", f"`{line}` puts it on the Hub.")
    if not path.is_dir():
        return _file(path)
    checkpoint = Checkpoint(path)
    if not (path / CONFIG).is_file():
        raise UnreadableFile(
            f"{path} has weights but no {CONFIG}, so it cannot be opened as a model.",
            "Push the .safetensors file itself, or add the base's config and tokenizer.",
        )
    files, notes = _model_files(checkpoint, path, config_dir)
    documents = {
        name: _record(path, json_object, read_document(files[name]))
        for name in (MERGE, RUN)
        if name in files
    }
    merge = _record(path, merge_record, documents[MERGE]) if documents.get(MERGE) else None
    run = _record(path, run_record, documents[RUN]) if documents.get(RUN) else None
    published = dict(_published(path, documents))
    notes += [
        f"{name} is uploaded with names of files instead of their local paths."
        for name in published
    ]
    notes += _notes({name: file for name, file in files.items() if name not in published})
    return Source(
        path, "model", files, _identity(checkpoint), merge, run,
        is_whisper=checkpoint.specs.keys() >= WHISPERS_OWN, published=published, notes=tuple(notes),
    )  # fmt: skip


def _file(path: Path) -> Source:
    """Check a delta or a checkpoint in one file."""
    weights = SafetensorsFile(path)
    files, notes = {path.name: path}, tuple(_notes({path.name: path}))
    if DELTA_MARK in weights.metadata:
        delta = DeltaFile(path, weights)
        made, is_whisper = delta.provenance, delta.specs.keys() >= WHISPERS_OWN
        # stricter than the delta format, which takes any code for a language
        _record(path, lambda _: check_labels(made.language, made.task), made)
        _record(path, training_rows, made.training)
        return Source(path, "delta", files, "", delta=made, is_whisper=is_whisper, notes=notes)
    checkpoint = Checkpoint(path, weights)
    is_whisper = checkpoint.specs.keys() >= WHISPERS_OWN
    document = _record(path, json_object, weights.metadata.get("lorsmerge", "{}"))
    merge = _record(path, merge_record, document) if document else None
    identity = _identity(checkpoint)
    return Source(path, "checkpoint", files, identity, merge, is_whisper=is_whisper, notes=notes)


def _identity(checkpoint: Checkpoint) -> str:
    return base_fingerprint(checkpoint).digest[:16]


def _record(path: Path, parse: Callable[[Any], Parsed], found: Any) -> Parsed:
    """Parse a record of how a source was made, which anyone may have written."""
    try:
        return parse(found)
    except ValueError as error:
        raise UnreadableFile(
            f"{path}: the record of how it was made is damaged ({error}).",
            "Make it again with `lorsmerge delta`." if path.suffix == DELTA else OWN_CARD,
        ) from None


def _published(path: Path, documents: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, bytes]]:
    """Yield the records that name local paths, with names of files instead."""
    for name, document in documents.items():
        try:
            found = published_record(document) if document else document
            text = json_escaped(json.dumps(found, indent=2, ensure_ascii=False))
        except RecursionError:
            raise UnreadableFile(f"{path}: {name} is nested too deeply.", OWN_CARD) from None
        if found != document:
            yield name, f"{text}\n".encode()


def _model_files(
    checkpoint: Checkpoint, folder: Path, config_dir: Path | None
) -> tuple[dict[str, Path], list[str]]:
    """Choose the files of a model folder to push; return them and notes.

    Raises:
        LorsmergeError: a file that must not be, or cannot be, uploaded.
    """
    files, notes = _files(folder), list(checkpoint.notes)
    if config_dir is not None:
        base = local_path(config_dir, "companions")
        raise_all(config_faults(checkpoint, base))
        own = find_companions(folder)
        found = with_processor_of(own, find_companions(base))
        raise_all(found.faults)
        return {n: f for n, f in files.items() if n not in own.files} | found.files, notes
    above = inherited_files(folder)
    if above:
        files |= {file.name: real_file(file, file.parent) for file in above}
        names = named([file.name for file in above], len(above))
        notes.append(f"{names} are taken from {above[0].parent}, its parent folder.")
    return files, notes


def _files(folder: Path) -> dict[str, Path]:
    """List all files but hidden ones and those of a training's state.

    Raises:
        UnreadableFile: a link that leads out of the folder, or something other than a file.
    """
    found: dict[str, Path] = {}
    faults: list[LorsmergeError] = []
    for place, folders, files in os.walk(folder):
        kept = sorted(name for name in folders if not _is_skipped(name))
        folders[:] = [name for name in kept if not Path(place, name).is_symlink()]
        for link in (Path(place, name) for name in kept if name not in folders):
            if not link.resolve().is_relative_to(folder.resolve()):
                what = f"{link} is a link to a folder elsewhere."
                faults.append(
                    UnreadableFile(what, "Remove it; only files in the folder are pushed.")
                )
        for name in sorted(name for name in files if not _is_skipped(name)):
            path = Path(place, name)
            try:
                found[path.relative_to(folder).as_posix()] = real_file(path, folder)
            except UnreadableFile as fault:
                faults.append(fault)
    raise_all(faults)
    return dict(sorted(found.items()))


def _is_skipped(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in SKIPPED)


def _notes(files: Mapping[str, Path]) -> Iterator[str]:
    """Yield a note for each file with local paths in its header or, if JSON, in a value."""
    for name, file in files.items():
        try:
            values = _values(file)
        except (OSError, ValueError, LorsmergeError):
            continue
        words = [word for text in _texts(values) for word in re.split(r"[\s'\"=]+", text)]
        paths = [word for word in words if is_local(word) and len(re.findall(r"[/\\]", word)) > 1]
        if paths:
            yield (
                f"{name} contains local paths, and is uploaded with them: {named(paths)}. "
                "Files made from relative paths have none."
            )


def _values(file: Path) -> Any:
    """Read a small JSON file, or the metadata of a safetensors file; others give nothing."""
    if file.suffix in (".safetensors", DELTA):
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
    """Yield every string among nested values."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
