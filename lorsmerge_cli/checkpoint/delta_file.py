"""The `.delta` file: a task vector, dense or pruned, in a safetensors file that says what it is.

docs/delta-format.md describes the format for whoever wants to read it without this package.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from lorsmerge_cli.checkpoint.encodings import ENCODINGS, TensorLayout
from lorsmerge_cli.checkpoint.fingerprint import Fingerprint
from lorsmerge_cli.checkpoint.references import local_path
from lorsmerge_cli.checkpoint.safetensors_file import (
    DTYPE_CODES,
    DTYPES,
    SafetensorsFile,
    SafetensorsWriter,
    TensorSpec,
    metadata_size,
)
from lorsmerge_cli.core.low_rank_sparse import Delta
from lorsmerge_cli.errors import UnreadableFile, named

FORMAT_VERSION = "1"
PREFIX = "lorsmerge."
NORM_PLACEHOLDER = 1.2345678901234567e-300  # as long as a float gets in JSON


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
            f"{PREFIX}base.name": self.base_name,
            f"{PREFIX}base.fingerprint": self.base.to_json(),
            f"{PREFIX}finetuned_dtype": self.finetuned_dtype,
            f"{PREFIX}task": self.task,
            f"{PREFIX}language": self.language,
            f"{PREFIX}pruning": json.dumps(dict(self.pruning)),
            f"{PREFIX}history": json.dumps(list(self.history)),
            f"{PREFIX}training": json.dumps(dict(self.training)),
        }


class DeltaFile:
    """A delta file open for reading.

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

    def __init__(self, path: Path) -> None:
        self.path = path
        self.local = local_path(path, "delta")
        self._file = SafetensorsFile(self.local)
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
            tensors = json.loads(metadata[f"{PREFIX}tensors"])
            self.layouts = {name: _layout(entry) for name, entry in tensors.items()}
            self.norms = {name: float(entry["norm"]) for name, entry in tensors.items()}
            self.provenance = _provenance(metadata)
            self._check_parts()
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise UnreadableFile(
                f"{path}: the delta's header is damaged ({type(error).__name__}: {error}).",
                "Make it again with `lorsmerge delta`.",
            ) from error

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Shape of every tensor, and the dtype its numbers are stored in."""
        return {name: TensorSpec(item.shape, item.dtype) for name, item in self.layouts.items()}

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
        try:
            return ENCODINGS[layout.encoding].decode(name, layout, self._file.read)
        except ValueError as error:
            raise UnreadableFile(f"{self.path}: {error}.", "Make it again.") from error

    def read_stored(self, part: str) -> torch.Tensor:
        """One safetensors entry as it is."""
        return self._file.read(part)

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


def _layout(entry: Mapping[str, Any]) -> TensorLayout:
    return TensorLayout(
        encoding=str(entry["encoding"]),
        shape=tuple(int(size) for size in entry["shape"]),
        dtype=DTYPES[entry["dtype"]],
        rank=int(entry.get("rank", 0)),
        kept=int(entry.get("kept", 0)),
    )


def _provenance(metadata: Mapping[str, str]) -> Provenance:
    return Provenance(
        base_name=metadata[f"{PREFIX}base.name"],
        base=Fingerprint.from_json(metadata[f"{PREFIX}base.fingerprint"]),
        finetuned_dtype=metadata[f"{PREFIX}finetuned_dtype"],
        task=metadata.get(f"{PREFIX}task", ""),
        language=metadata.get(f"{PREFIX}language", ""),
        pruning=dict(json.loads(metadata.get(f"{PREFIX}pruning", "{}"))),
        history=tuple(json.loads(metadata.get(f"{PREFIX}history", "[]"))),
        training=dict(json.loads(metadata.get(f"{PREFIX}training", "{}"))),
    )
