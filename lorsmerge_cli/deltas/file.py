"""The `.delta` file: a task vector, dense or pruned, in a self-describing safetensors file.

docs/delta-format.md describes the format for readers that do not use this package.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorsmerge_cli.checkpoint.fingerprint import MAX_NUMBER, Fingerprint, fingerprint, is_number
from lorsmerge_cli.checkpoint.reader import DELTA_MARK, is_tall, tall_refused
from lorsmerge_cli.checkpoint.references import local_path
from lorsmerge_cli.checkpoint.safetensors_file import (
    DTYPE_CODES,
    DTYPES,
    SafetensorsFile,
    SafetensorsWriter,
    TensorSpec,
    check_utf8,
    metadata_size,
    parse_shape,
    shown,
)
from lorsmerge_cli.core.low_rank_sparse import Delta, LowRankSparse, accumulable, zeros
from lorsmerge_cli.core.sketch import parse_sketches
from lorsmerge_cli.deltas.encodings import ENCODINGS, TensorLayout
from lorsmerge_cli.errors import UnreadableFile, named
from lorsmerge_cli.inputs import json_object, parse_json

FORMAT_VERSION = "1"
PREFIX = "lorsmerge."
NORM_PLACEHOLDER = 1.2345678901234567e-300  # as long as a float gets in JSON
MAX_NORM = 1e150  # whose square is still a float
SAMPLE = 1024  # elements

TASKS = ("", "asr", "st")
LANGUAGE = re.compile(r"([A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*)?")  # a code, or empty
WORD = re.compile(r"[\w.-]{1,64}", re.ASCII)  # a method's name

# How far a file's tensors may expand where no base confirms their shapes. The factors of a rank-4
# adapter of Llama's largest matrix are a thousandth of it, and unchanged tensors take no bytes.
EXPANSION = 1024  # bytes in float32 of one tensor, per byte of the file
EXPANDED = 256 << 20  # bytes of one tensor that any file may have
UNSTORED = 2**32  # elements of a tensor that is zero throughout


@dataclass(frozen=True)
class Provenance:
    """Where a delta comes from.

    Attributes:
        base_name: the base's path or id, as given when the delta was made.
        base: the base's fingerprint.
        finetuned_dtype: dtype code the fine-tune was stored in.
        task: `asr`, `st`, or empty.
        language: code such as `ca`, or empty.
        pruning: the ratios applied and the energy they kept; empty for a dense delta.
        history: one line per command that made it, oldest first.
        training: data, learning rate and seed of the fine-tune, as far as they are known.
    """

    base_name: str
    base: Fingerprint
    finetuned_dtype: str
    task: str = ""
    language: str = ""
    pruning: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)

    def metadata(self) -> dict[str, str]:
        """Return the `lorsmerge.*` strings, except those that describe tensors."""
        return {
            "format": "pt",
            DELTA_MARK: FORMAT_VERSION,
            f"{PREFIX}base.name": _utf8(self.base_name),
            f"{PREFIX}base.fingerprint": self.base.to_json(),
            f"{PREFIX}finetuned_dtype": self.finetuned_dtype,
            f"{PREFIX}task": self.task,
            f"{PREFIX}language": self.language,
            f"{PREFIX}pruning": json.dumps(dict(self.pruning)),
            f"{PREFIX}history": json.dumps([_utf8(line) for line in self.history]),
            f"{PREFIX}training": json.dumps(dict(self.training)),
        }


class DeltaFile:
    """A delta file open for reading, which is a `TaskVector`.

    Args:
        path: a file or a Hub id.
        opened: the file, if it is open already.
        has_base: whether the caller compares the shapes with a base's before it reads a tensor. If
            not, a file may not claim tensors that are out of proportion to its size.

    Attributes:
        path: what the user gave, which may be a Hub id.
        local: the file itself.
        files: `local` alone.
        identities: identity of the file, to detect that it changed since it was opened.
        layouts: tensor name -> how it is stored.
        specs: tensor name -> shape, and the dtype its numbers are stored in.
        stored: name of a safetensors entry -> its shape and dtype.
        norms: tensor name -> L2 norm of the stored delta.
        provenance: where it comes from.
        finetuned_dtype: dtype code the fine-tune was stored in.

    Raises:
        UnreadableFile: it is not a delta file, has a later format, or contradicts itself.
    """

    def __init__(
        self, path: Path, opened: SafetensorsFile | None = None, *, has_base: bool = False
    ) -> None:
        self.path = path
        self.local = opened.path if opened else local_path(path, "delta")
        self._file = opened or SafetensorsFile(self.local)
        self.files = [self.local]
        self.identities = {self.local: self._file.identity}
        self.stored: Mapping[str, TensorSpec] = self._file.specs
        metadata = self._file.metadata
        version = metadata.get(DELTA_MARK)
        if is_tall(metadata):
            raise tall_refused(path)
        if version != FORMAT_VERSION:
            raise UnreadableFile(
                f"{path} is a delta of format {version}, and this lorsmerge reads {FORMAT_VERSION}."
                if version
                else f"{path} is no lorsmerge delta: its header has no {PREFIX}format_version.",
                "Update lorsmerge." if version else "Make one with `lorsmerge delta`.",
            )
        try:
            tensors = _object(metadata[f"{PREFIX}tensors"], "tensors")
            check_utf8(*tensors)
            self.layouts = {name: _layout(name, entry) for name, entry in tensors.items()}
            self.provenance = parse_provenance(metadata)
            self._check_parts()
            self.norms = {
                name: _norm(name, tensors[name], item) for name, item in self.layouts.items()
            }
            self._check_zeros()
        except (KeyError, ValueError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise UnreadableFile(
                f"{path}: the delta's header is damaged ({reason}).",
                "Make it again with `lorsmerge delta`.",
            ) from error
        self.finetuned_dtype = self.provenance.finetuned_dtype
        self.specs = {name: layout.spec for name, layout in self.layouts.items()}
        if not has_base:
            self._check_sizes()

    def read(self, name: str) -> Delta:
        """Return one tensor's delta: mapped from the file if it is dense, its parts if pruned.

        Raises:
            UnreadableFile: the stored parts contradict one another.
        """
        layout = self.layouts[name]
        if layout.is_zero:
            return zeros(layout.shape, layout.dtype)
        try:
            return ENCODINGS[layout.encoding].decode(name, layout, self._file.read)
        except ValueError as error:
            raise UnreadableFile(f"{self.path}: {error}.", "Make it again.") from error

    def read_block(self, name: str, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of one delta, row-major, in float32 or float64."""
        layout = self.layouts[name]
        if layout.is_zero:
            return accumulable(torch.zeros(stop - start, dtype=layout.dtype))
        delta = self.read(name)
        if isinstance(delta, LowRankSparse):
            delta = delta.to_dense()
        return accumulable(delta.reshape(-1)[start:stop])

    def stored_parts(self, name: str, start: int, stop: int) -> Iterator[tuple[str, int, Tensor]]:
        """Yield what is stored of elements [start, stop), as `TaskVector.stored_parts`."""
        layout = self.layouts[name]
        if layout.encoding == "dense":
            yield name, start, self._file.read(name).reshape(-1)[start:stop]
        elif start == 0:
            for part in ENCODINGS[layout.encoding].specs(name, layout):
                yield part, 0, self._file.read(part)

    def is_pruned(self, name: str) -> bool:
        """Tell whether a tensor is stored as low-rank and sparse parts that are not both empty."""
        layout = self.layouts[name]
        return layout.encoding != "dense" and not layout.is_zero

    def identity(self) -> str:
        """Return the fingerprint digest of what is stored."""
        return fingerprint(self.stored, self._file.read).digest

    @property
    def norm(self) -> float:
        """L2 norm of the whole delta."""
        return total_norm(self.norms)

    def _check_zeros(self) -> None:
        """Raise ValueError where a tensor of norm 0 does not begin with zeros."""
        for name, norm in self.norms.items():
            if norm == 0 and self.layouts[name].encoding == "dense":
                beginning = self._file.read(name).reshape(-1)[:SAMPLE]
                if torch.linalg.vector_norm(beginning, dtype=torch.float64) != 0:
                    raise ValueError(f"the norm of {name!r} is 0, and its elements are not")

    def _check_sizes(self) -> None:
        limit = max(EXPANDED, EXPANSION * self._file.size)
        for name, spec in self.specs.items():
            layout = self.layouts[name]
            nbytes = spec.numel * max(spec.dtype.itemsize, torch.float32.itemsize)
            if spec.numel > UNSTORED if layout.is_zero else nbytes > limit:
                raise UnreadableFile(
                    f"{self.path} has {self._file.size:,} bytes, and {name!r} in it is said to be "
                    f"{' x '.join(map(str, spec.shape))}: {nbytes:,} bytes.",
                    "It is damaged or made to fill the memory; `merge` takes it if its base has such "
                    "a tensor.",
                )

    def _check_parts(self) -> None:
        wanted: dict[str, TensorSpec] = {}
        for name, layout in self.layouts.items():
            if layout.encoding not in ENCODINGS:
                raise UnreadableFile(
                    f"{self.path}: {name!r} is encoded as {layout.encoding!r}, and this lorsmerge "
                    f"knows {', '.join(ENCODINGS)}.",
                    "Update lorsmerge.",
                )
            wanted |= ENCODINGS[layout.encoding].specs(name, layout)
        wrong = [name for name in wanted if self._file.specs.get(name) != wanted[name]]
        wrong += [name for name in self._file.specs if name not in wanted]
        if wrong:
            raise UnreadableFile(
                f"{self.path}: the stored tensors are not those of its header: {named(wrong)}.",
                "Make it again with `lorsmerge delta`.",
            )


class DeltaWriter:
    """A delta file being written; tensors arrive in any order, from any thread.

    Args:
        path: where to write; the caller renames the file once the `with` block has succeeded.
        layouts: how each tensor is stored.
        provenance: where the delta comes from.
    """

    def __init__(
        self, path: Path, layouts: Mapping[str, TensorLayout], provenance: Provenance
    ) -> None:
        self._layouts = dict(layouts)
        self._provenance = provenance
        specs: dict[str, TensorSpec] = {}
        for name, layout in layouts.items():
            specs |= ENCODINGS[layout.encoding].specs(name, layout)
        placeholder = dict.fromkeys(layouts, NORM_PLACEHOLDER)
        # 1 kB more for the provenance given to `finish`
        reserve = metadata_size(self._metadata(placeholder, provenance)) + 1024
        self._writer = SafetensorsWriter(path, specs, reserve)

    def write(self, name: str, delta: Delta) -> None:
        """Write a whole tensor, encoded as its layout says."""
        layout = self._layouts[name]
        for part, tensor in ENCODINGS[layout.encoding].encode(name, delta, layout).items():
            self._writer.write(part, tensor)

    def write_block(self, name: str, values: Tensor, start: int) -> None:
        """Write elements of a dense tensor from `start` on, in row-major order."""
        self._writer.write(name, values.to(self._layouts[name].dtype), start)

    def finish(self, norms: Mapping[str, float], provenance: Provenance | None = None) -> None:
        """Write the header.

        Args:
            norms: L2 norm of every tensor.
            provenance: replaces the one given before, and may be 1 kB longer.
        """
        self._writer.finish(self._metadata(norms, provenance or self._provenance))

    def _metadata(self, norms: Mapping[str, float], provenance: Provenance) -> dict[str, str]:
        entries = {
            name: {
                "encoding": layout.encoding,
                "shape": list(layout.shape),
                "dtype": DTYPE_CODES[layout.dtype],
                "norm": norms[name],
            }
            | ({"rank": layout.rank, "kept": layout.kept} if layout.encoding != "dense" else {})
            for name, layout in self._layouts.items()
        }
        tensors = json.dumps(entries, separators=(",", ":"))
        return provenance.metadata() | {f"{PREFIX}tensors": tensors}

    def __enter__(self) -> DeltaWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.__exit__(*error)


def total_norm(norms: Mapping[str, float]) -> float:
    """Return the L2 norm of all tensors together from the norm of each."""
    return math.sqrt(sum(norm**2 for norm in norms.values()))


def _utf8(text: str) -> str:
    """Replace the lone surrogates that a file name may hold, which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode()


def _layout(name: str, entry: Mapping[str, Any]) -> TensorLayout:
    if not isinstance(entry, dict):
        raise ValueError(f"{name!r} is {shown(entry)}")
    for key in ("encoding", "dtype"):
        if not isinstance(entry[key], str):
            raise ValueError(f"the {key} of {name!r} is {shown(entry[key])}")
    for key in ("rank", "kept"):
        count = entry.get(key, 0)
        if type(count) is not int or count < 0:
            raise ValueError(f"the {key} of {name!r} is {shown(count)}")
    dtype = DTYPES.get(entry["dtype"], torch.bool)
    if not dtype.is_floating_point:
        raise ValueError(f"the dtype of {name!r} is {shown(entry['dtype'])}")
    layout = TensorLayout(
        encoding=entry["encoding"],
        shape=parse_shape(name, entry["shape"]),
        dtype=dtype,
        rank=entry.get("rank", 0),
        kept=entry.get("kept", 0),
    )
    if layout.encoding == "dense" and layout.rank + layout.kept:
        raise ValueError(f"{name!r} is dense and has a rank or a number of kept elements")
    return layout


def _norm(name: str, entry: Mapping[str, Any], layout: TensorLayout) -> float:
    norm, numel = entry["norm"], math.prod(layout.shape)
    largest = 0.0 if layout.is_zero or not numel else MAX_NORM
    if layout.encoding == "dense":  # no element exceeds the largest of its dtype
        largest = min(largest, math.sqrt(numel) * torch.finfo(layout.dtype).max)
    if type(norm) not in (int, float) or not 0 <= norm <= largest:
        raise ValueError(f"the norm of {name!r} is {shown(norm)}")
    return float(norm)


def parse_provenance(metadata: Mapping[str, str]) -> Provenance:
    """Read what `Provenance.metadata` made, from a file that anyone may have written.

    Raises:
        ValueError: a value is none that it makes.
        KeyError: one is missing.
    """
    provenance = Provenance(
        base_name=metadata[f"{PREFIX}base.name"],
        base=Fingerprint.from_json(metadata[f"{PREFIX}base.fingerprint"]),
        finetuned_dtype=metadata[f"{PREFIX}finetuned_dtype"],
        task=metadata.get(f"{PREFIX}task", ""),
        language=metadata.get(f"{PREFIX}language", ""),
        pruning=_object(metadata.get(f"{PREFIX}pruning", "{}"), "pruning"),
        history=tuple(_history(metadata.get(f"{PREFIX}history", "[]"))),
        training=_object(metadata.get(f"{PREFIX}training", "{}"), "training"),
    )
    if provenance.finetuned_dtype not in DTYPES:
        raise ValueError(f"finetuned_dtype is {shown(provenance.finetuned_dtype)}")
    _check_language(provenance.task, provenance.language)
    _check_pruning(provenance.pruning)
    check_training(provenance.training)
    return provenance


def _object(text: str, key: str) -> dict[str, Any]:
    try:
        return json_object(text)
    except ValueError as error:
        raise ValueError(f"{PREFIX}{key}: {error}") from None


def _history(text: str) -> list[str]:
    found = parse_json(text)
    if not isinstance(found, list) or not all(isinstance(line, str) for line in found):
        raise ValueError(f"{PREFIX}history is not a list of strings")
    check_utf8(*found)
    return found


def _check_language(task: object, language: object) -> None:
    if task not in TASKS:
        raise ValueError(f"the task is {shown(task)}")
    if not isinstance(language, str) or not LANGUAGE.fullmatch(language):
        raise ValueError(f"the language is {shown(language)}")


def _check_pruning(found: Mapping[str, Any]) -> None:
    _check_plain(found, "pruning")
    for key, largest in (("svp", 1.0), ("mp", 1.0), ("energy_kept", MAX_NUMBER)):
        value = found.get(key)
        if value is not None and (not is_number(value) or not 0 <= value <= largest):
            raise ValueError(f"{key} of its pruning is {shown(value)}")
    method = found.get("method", "none")
    if not isinstance(method, str) or not WORD.fullmatch(method):
        raise ValueError(f"the method of its pruning is {shown(method)}")


def check_training(found: Mapping[str, Any]) -> None:
    """Check the record of a fine-tune's training, which anyone may have written.

    Raises:
        ValueError: a value has the wrong type.
    """
    _check_plain(found, "training")
    for key in ("learning_rate", "seed"):
        if found.get(key) is not None and not is_number(found[key]):
            raise ValueError(f"the {key} of its training is {shown(found[key])}")
    if not isinstance(found.get("base", ""), str):
        raise ValueError(f"the base of its training is {shown(found['base'])}")
    if "digests" in found:
        parse_sketches(found["digests"])
    parts = found.get("trained_on", [])
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ValueError("trained_on of its training is not a list of tables")
    for part in parts:
        if "task" not in part or "language" not in part:
            raise ValueError("trained_on of its training has no task or no language")
        _check_language(part["task"], part["language"])
        if not is_number(part.get("hours", 0)):
            raise ValueError(f"the hours of its training are {shown(part['hours'])}")


def _check_plain(found: Mapping[str, Any], key: str) -> None:
    """Check that it can be written as UTF-8 and JSON, as a merge's records repeat it."""
    try:
        check_utf8(json.dumps(found, ensure_ascii=False, allow_nan=False))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{PREFIX}{key}: {error}") from None
