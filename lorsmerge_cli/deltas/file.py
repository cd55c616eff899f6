"""The `.delta` file: a task vector, dense or pruned, in a safetensors file that says what it is.

docs/delta-format.md describes the format for whoever wants to read it without this package.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from lorsmerge_cli.checkpoint.fingerprint import Fingerprint
from lorsmerge_cli.checkpoint.references import local_path
from lorsmerge_cli.checkpoint.safetensors_file import (
    DTYPE_CODES,
    DTYPES,
    SafetensorsFile,
    SafetensorsWriter,
    TensorSpec,
    encodable,
    metadata_size,
    parse_shape,
    shown,
)
from lorsmerge_cli.core.low_rank_sparse import Delta, zeros
from lorsmerge_cli.core.sketch import parse_sketches
from lorsmerge_cli.deltas.encodings import ENCODINGS, TensorLayout
from lorsmerge_cli.errors import UnreadableFile, named
from lorsmerge_cli.inputs import json_object, parse_json

FORMAT_VERSION = "1"
PREFIX = "lorsmerge."
NORM_PLACEHOLDER = 1.2345678901234567e-300  # as long as a float gets in JSON
MAX_NORM = 1e150  # whose square is still a float
MAX_NUMBER = 1e300
SAMPLE = 1024  # elements

TASKS = ("", "asr", "st")
LANGUAGE = re.compile(r"([A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*)?")  # a code, or none
WORD = re.compile(r"[\w.-]{1,64}", re.ASCII)  # a method's name

# What a file may make of its tensors without a base whose shapes they must have. Factors of a rank-4
# adapter of Llama's largest matrix are a thousandth of it, and what it leaves alone takes no bytes.
EXPANSION = 1024  # bytes in float32 of one tensor, per byte of the file
EXPANDED = 256 << 20  # bytes of one tensor that any file may have
UNSTORED = 2**32  # elements of a tensor that is zero throughout


@dataclass(frozen=True)
class Provenance:
    """Where a delta comes from.

    Attributes:
        base_name: what its maker called the base.
        base: the base's fingerprint.
        finetuned_dtype: dtype code the fine-tune was stored in.
        task: `asr`, `st`, or empty.
        language: code such as `ca`, or empty.
        pruning: the ratios applied and the energy they kept; empty for a dense delta.
        history: one line per command that made it, oldest first.
        training: data, rate and seed of the fine-tune, as far as they are known.
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
        """The `lorsmerge.*` strings, less those that describe tensors."""
        return {
            "format": "pt",
            f"{PREFIX}format_version": FORMAT_VERSION,
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
    """A delta file open for reading.

    Args:
        path: a file or a Hub id.
        opened: the file, where it is open already.
        has_base: the shapes are compared with a base's before a tensor is read. Without one, a
            file may not claim tensors that are out of proportion to its size.

    Attributes:
        path: what the user gave, which may be a Hub id.
        local: the file itself.
        identities: what tells whether the file changed since it was opened.
        layouts: tensor name -> how it is stored.
        norms: tensor name -> L2 norm of the stored delta.
        provenance: where it comes from.

    Raises:
        UnreadableFile: no delta file, one of a later format, or one whose parts do not add up.
    """

    def __init__(
        self, path: Path, opened: SafetensorsFile | None = None, *, has_base: bool = False
    ) -> None:
        self.path = path
        self.local = opened.path if opened else local_path(path, "delta")
        self._file = opened or SafetensorsFile(self.local)
        self.identities = {self.local: self._file.identity}
        metadata = self._file.metadata
        version = metadata.get(f"{PREFIX}format_version")
        if version != FORMAT_VERSION:
            raise UnreadableFile(
                f"{path} is a delta of format {version}, and this lorsmerge reads {FORMAT_VERSION}."
                if version
                else f"{path} is no lorsmerge delta: its header has no {PREFIX}format_version.",
                "Update lorsmerge." if version else "Make one with `lorsmerge delta`.",
            )
        try:
            tensors = _object(metadata[f"{PREFIX}tensors"], "tensors")
            encodable(*tensors)
            self.layouts = {name: _layout(name, entry) for name, entry in tensors.items()}
            self.provenance = _provenance(metadata)
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
        self._specs = {name: TensorSpec(i.shape, i.dtype) for name, i in self.layouts.items()}
        if not has_base:
            self._check_sizes()

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Shape of every tensor, and the dtype its numbers are stored in."""
        return self._specs

    @property
    def stored(self) -> Mapping[str, TensorSpec]:
        """The safetensors entries that the tensors are stored in."""
        return self._file.specs

    def read(self, name: str) -> Delta:
        """One tensor's delta: mapped if it is dense, its parts if it is pruned.

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

    def read_stored(self, part: str) -> torch.Tensor:
        """One safetensors entry as it is."""
        return self._file.read(part)

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
                f"{self.path}: what is stored is not what the header lists: {named(wrong)}.",
                "Make it again with `lorsmerge delta`.",
            )


class DeltaWriter:
    """A delta file under construction; tensors arrive in any order, from any thread."""

    def __init__(
        self, path: Path, layouts: Mapping[str, TensorLayout], provenance: Provenance
    ) -> None:
        self._layouts = dict(layouts)
        self._provenance = provenance
        specs: dict[str, TensorSpec] = {}
        for name, layout in layouts.items():
            specs |= ENCODINGS[layout.encoding].specs(name, layout)
        placeholder = dict.fromkeys(layouts, NORM_PLACEHOLDER)
        reserve = metadata_size(self._metadata(placeholder)) + 1024  # room for `pruning`'s figures
        self._writer = SafetensorsWriter(path, specs, reserve)

    def write(self, name: str, delta: Delta) -> None:
        """A whole tensor, encoded as its layout says."""
        layout = self._layouts[name]
        for part, tensor in ENCODINGS[layout.encoding].encode(name, delta, layout).items():
            self._writer.write(part, tensor)

    def write_block(self, name: str, values: torch.Tensor, start: int) -> None:
        """Entries of a dense tensor, from the `start`-th on in row-major order."""
        self._writer.write(name, values.to(self._layouts[name].dtype), start)

    def finish(
        self,
        norms: Mapping[str, float],
        pruning: Mapping[str, Any] | None = None,
        base_content: str | None = None,
    ) -> None:
        """Write the header.

        Args:
            norms: L2 norm of every tensor.
            pruning: figures to add to the provenance's `pruning`.
            base_content: hash of all of the base's float tensors; None to keep the provenance's.
        """
        if base_content is not None:
            base = replace(self._provenance.base, content=base_content)
            self._provenance = replace(self._provenance, base=base)
        self._writer.finish(self._metadata(norms, pruning or {}))

    def _metadata(
        self, norms: Mapping[str, float], pruning: Mapping[str, Any] | None = None
    ) -> dict[str, str]:
        metadata = self._provenance.metadata()
        if pruning:
            metadata[f"{PREFIX}pruning"] = json.dumps({**self._provenance.pruning, **pruning})
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
        return metadata | {f"{PREFIX}tensors": json.dumps(entries, separators=(",", ":"))}

    def __enter__(self) -> DeltaWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.__exit__(kind, error, traceback)


def total_norm(norms: Mapping[str, float]) -> float:
    """L2 norm of all tensors together, from the norm of each."""
    return math.sqrt(sum(norm**2 for norm in norms.values()))


def _utf8(text: str) -> str:
    """The text without what a file name may have and UTF-8 has not."""
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
    if layout.encoding == "dense":  # of which no element is larger than its dtype allows
        largest = min(largest, math.sqrt(numel) * torch.finfo(layout.dtype).max)
    if type(norm) not in (int, float) or not 0 <= norm <= largest:
        raise ValueError(f"the norm of {name!r} is {shown(norm)}")
    return float(norm)


def _provenance(metadata: Mapping[str, str]) -> Provenance:
    fingerprint = metadata[f"{PREFIX}base.fingerprint"]
    _check_fingerprint(json_object(fingerprint))
    provenance = Provenance(
        base_name=metadata[f"{PREFIX}base.name"],
        base=Fingerprint.from_json(fingerprint),
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
        raise ValueError(f"{PREFIX}history is no list of strings")
    encodable(*found)
    return found


def _check_fingerprint(found: Mapping[str, Any]) -> None:
    digest, dtype, sample = found["digest"], found["dtype"], found["sample"]
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError(f"the digest of the base's fingerprint is {shown(digest)}")
    if not isinstance(dtype, str) or not set(dtype.split("+")) <= DTYPES.keys() | {""}:
        raise ValueError(f"the dtype of the base's fingerprint is {shown(dtype)}")
    if not isinstance(sample, list) or not all(_is_number(value) for value in sample):
        raise ValueError("the sample of the base's fingerprint is no list of finite numbers")


def _check_language(task: object, language: object) -> None:
    if task not in TASKS:
        raise ValueError(f"the task is {shown(task)}")
    if not isinstance(language, str) or not LANGUAGE.fullmatch(language):
        raise ValueError(f"the language is {shown(language)}")


def _check_pruning(found: Mapping[str, Any]) -> None:
    _check_plain(found, "pruning")
    for key, largest in (("svp", 1.0), ("mp", 1.0), ("energy_kept", MAX_NUMBER)):
        value = found.get(key)
        if value is not None and (not _is_number(value) or not 0 <= value <= largest):
            raise ValueError(f"{key} of its pruning is {shown(value)}")
    method = found.get("method", "none")
    if not isinstance(method, str) or not WORD.fullmatch(method):
        raise ValueError(f"the method of its pruning is {shown(method)}")


def check_training(found: Mapping[str, Any]) -> None:
    """Check what is said of a fine-tune's training, which anyone may have written.

    Raises:
        ValueError: a value of a type that its key has not.
    """
    _check_plain(found, "training")
    for key in ("learning_rate", "seed"):
        if found.get(key) is not None and not _is_number(found[key]):
            raise ValueError(f"the {key} of its training is {shown(found[key])}")
    if not isinstance(found.get("base", ""), str):
        raise ValueError(f"the base of its training is {shown(found['base'])}")
    if "digests" in found:
        parse_sketches(found["digests"])
    parts = found.get("trained_on", [])
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ValueError("trained_on of its training is no list of tables")
    for part in parts:
        if "task" not in part or "language" not in part:
            raise ValueError("trained_on of its training has no task or no language")
        _check_language(part["task"], part["language"])
        if not _is_number(part.get("hours", 0)):
            raise ValueError(f"the hours of its training are {shown(part['hours'])}")


def _check_plain(found: Mapping[str, Any], key: str) -> None:
    """Nothing that the records of a merge, which repeat it, could not hold as UTF-8 and JSON."""
    try:
        encodable(json.dumps(found, ensure_ascii=False, allow_nan=False))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{PREFIX}{key}: {error}") from None


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and -MAX_NUMBER <= value <= MAX_NUMBER  # type: ignore[operator]
