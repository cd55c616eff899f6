"""The `.stats` file: a fine-tune's statistics over audio, in a self-describing safetensors file.

docs/audio-methods.md describes the format for readers that do not use this package.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorsmerge_cli.checkpoint.fingerprint import MAX_NUMBER, Fingerprint, is_number
from lorsmerge_cli.checkpoint.reader import DELTA_MARK, STATISTICS_MARK
from lorsmerge_cli.checkpoint.references import local_path
from lorsmerge_cli.checkpoint.safetensors_file import (
    SafetensorsFile,
    SafetensorsWriter,
    TensorSpec,
    check_utf8,
    metadata_size,
    shown,
)
from lorsmerge_cli.core.combining.fisher import FISHER
from lorsmerge_cli.core.combining.regmean import GRAM
from lorsmerge_cli.core.merging import is_finite
from lorsmerge_cli.core.sketch import Sketch, digests_entry, recorded_digests
from lorsmerge_cli.errors import UnreadableFile, named, non_finite
from lorsmerge_cli.inputs import json_object

FORMAT_VERSION = "1"
PREFIX = "lorsmerge.statistics."
ANEW = "Make it again with `lorsmerge stats`."


@dataclass(frozen=True)
class Origin:
    """What statistics are of.

    Attributes:
        model: the fine-tune's path or id, as given when they were made.
        fingerprint: of the fine-tune.
        base: first digits of its base's fingerprint, empty where the fine-tune does not record it.
        sample: one element, by name, of each of the fine-tune's float tensors: the middle one.
        labels: what the decoder was given: `own` for the fine-tune's own transcripts, `data` for
            the references.
        utterances: how many were heard.
        seconds: their length.
        data: SHA-256 over their audio and labels.
        languages: pairs of language and task.
        settings: what else the numbers depend on.
        made_by: the command.
        version: of lorsmerge.
        digests: of what it heard, by kind; empty where it was not recorded.
    """

    model: str
    fingerprint: Fingerprint
    base: str
    sample: Mapping[str, float]
    labels: str
    utterances: int
    seconds: float
    data: str
    languages: tuple[tuple[str, str], ...]
    settings: Mapping[str, Any]
    made_by: str
    version: str
    digests: Mapping[str, Sketch] = field(default_factory=dict, compare=False)  # as `data` tells

    def metadata(self) -> dict[str, str]:
        """Return the strings of the header, except those that describe tensors."""
        data = {
            "labels": self.labels,
            "utterances": self.utterances,
            "seconds": self.seconds,
            "sha256": self.data,
            "languages": [list(pair) for pair in self.languages],
        }
        data |= digests_entry(self.digests)
        return {
            "format": "pt",
            STATISTICS_MARK: FORMAT_VERSION,
            f"{PREFIX}model": _utf8(self.model),
            f"{PREFIX}fingerprint": self.fingerprint.to_json(),
            f"{PREFIX}base": self.base,
            f"{PREFIX}sample": json.dumps(dict(self.sample)),
            f"{PREFIX}data": json.dumps(data),
            f"{PREFIX}settings": json.dumps(dict(self.settings)),
            f"{PREFIX}made_by": _utf8(self.made_by),
            f"{PREFIX}lorsmerge": self.version,
        }


@dataclass(frozen=True)
class Layout:
    """What a statistics file holds of which tensors.

    Attributes:
        inputs: weight of a linear layer -> the weight under whose name the Gram matrix of its
            inputs is stored; several layers may have the same inputs.
        widths: weight that a Gram matrix is stored under -> its rows.
        shapes: tensor -> the shape of its Fisher information.
    """

    inputs: Mapping[str, str]
    widths: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Every entry of the file."""
        grams = {
            f"{name}.{GRAM}": TensorSpec((width * (width + 1) // 2,), torch.float32)
            for name, width in self.widths.items()
        }
        return grams | {
            f"{name}.{FISHER}": TensorSpec(shape, torch.float32)
            for name, shape in self.shapes.items()
        }

    @property
    def kinds(self) -> tuple[str, ...]:
        """What there is: `gram`, `fisher` or both."""
        found = {GRAM: self.widths, FISHER: self.shapes}
        return tuple(kind for kind, entries in found.items() if entries)

    def names(self, kind: str) -> frozenset[str]:
        """Return the tensors that there is a statistic of."""
        return frozenset(self.inputs if kind == GRAM else self.shapes)

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return sum(spec.nbytes for spec in self.specs.values())


def write_statistics(
    path: Path,
    layout: Layout,
    origin: Origin,
    tensors: Mapping[str, Tensor],
    rows: Mapping[str, int],
) -> None:
    """Write a statistics file; the caller renames it once it is whole.

    Args:
        path: where to write.
        layout: of what.
        origin: of the numbers.
        tensors: entry -> values, as `Layout.specs` lists them: mean of x x^T (k, k), or mean square
            of the gradient.
        rows: weight that a Gram matrix is stored under -> the inputs that it is the mean of.
    """
    grams = {name: {"width": width, "rows": rows[name]} for name, width in layout.widths.items()}
    total = math.fsum(float(tensors[f"{n}.{FISHER}"].double().sum()) for n in layout.shapes)
    count = sum(math.prod(shape) for shape in layout.shapes.values())
    metadata = origin.metadata() | {
        f"{PREFIX}inputs": json.dumps(dict(layout.inputs)),
        f"{PREFIX}grams": json.dumps(grams),
        f"{PREFIX}fisher": json.dumps({"mean": total / count} if count else {}),
    }
    with SafetensorsWriter(path, layout.specs, metadata_size(metadata)) as writer:
        for entry, values in tensors.items():
            packed = packed_triangle(values) if entry.endswith(f".{GRAM}") else values
            writer.write(entry, packed.to(torch.float32).cpu())
        writer.finish(metadata)


def packed_triangle(matrix: Tensor) -> Tensor:
    """Return the lower triangle of a matrix with its diagonal, row by row.

    Example:
        >>> packed_triangle(torch.tensor([[1, 2], [2, 3]]))
        tensor([1, 2, 3])
    """
    return torch.cat([row[: number + 1] for number, row in enumerate(matrix)])


def unpacked_triangle(packed: Tensor, width: int) -> Tensor:
    """Return the symmetric matrix of a packed lower triangle.

    Example:
        >>> unpacked_triangle(torch.tensor([1, 2, 3]), 2)
        tensor([[1, 2],
                [2, 3]])
    """
    matrix = torch.zeros(width, width, dtype=packed.dtype)
    start = 0
    for row in range(width):
        part = packed[start : start + row + 1]
        matrix[row, : row + 1] = part
        matrix[: row + 1, row] = part
        start += row + 1
    return matrix


class StatisticsFile:
    """A statistics file open for reading.

    Args:
        path: a file or a Hub id.

    Attributes:
        path: what the user gave.
        local: the file itself.
        origin: what the statistics are of.
        layout: what there is.
        identities: identity of the file, to detect that it changed since it was opened.

    Raises:
        UnreadableFile: it is no statistics file, has a later format, or contradicts itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.local = local_path(path)
        self._file = SafetensorsFile(self.local)
        self.identities = {self.local: self._file.identity}
        metadata = self._file.metadata
        version = metadata.get(STATISTICS_MARK)
        if version != FORMAT_VERSION:
            raise _other_file(path, metadata)
        try:
            self.origin = _origin(metadata)
            self.layout, self._mean = _layout(metadata, self._file.specs)
        except (KeyError, ValueError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise UnreadableFile(
                f"{path}: the statistics' header is damaged ({reason}).", ANEW
            ) from error
        if self._file.specs != self.layout.specs:
            wrong = sorted(
                name
                for name in self._file.specs.keys() | self.layout.specs.keys()
                if self._file.specs.get(name) != self.layout.specs.get(name)
            )
            raise UnreadableFile(
                f"{path}: the stored tensors are not those of its header: {named(wrong)}.", ANEW
            )

    def names(self, kind: str) -> frozenset[str]:
        """Return the tensors that there is a statistic of."""
        return self.layout.names(kind)

    def read(self, kind: str, name: str) -> Tensor:
        """Return a statistic of one tensor, in float32.

        Args:
            kind: `gram` for the mean of x x^T over the layer's inputs x (k, k); `fisher` for the
                mean square of the gradient, divided by its mean over the model.
            name: the tensor.

        Raises:
            NonFinite: a NaN or an infinity.
            UnreadableFile: a square that is negative.
        """
        if kind == FISHER:
            values = self._file.read(f"{name}.{FISHER}")
            squares = values
        else:
            stored = self.layout.inputs[name]
            width = self.layout.widths[stored]
            values = unpacked_triangle(self._file.read(f"{stored}.{GRAM}"), width)
            squares = torch.diagonal(values)
        if not is_finite(values):
            raise non_finite(self.path, name)
        if bool((squares < 0).any()):
            raise UnreadableFile(f"{self.path}: a mean square of {name!r} is negative.", ANEW)
        return values / self._mean if kind == FISHER else values

    @cached_property
    def identity(self) -> str:
        """A hash of every byte of the file: its description counts too."""
        with self.local.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _other_file(path: Path, metadata: Mapping[str, str]) -> UnreadableFile:
    """Return the error for a file that holds no statistics of this version."""
    version = metadata.get(STATISTICS_MARK)
    if version is not None:
        what = f"{path} has statistics of format {shown(version)}, and this lorsmerge reads {FORMAT_VERSION}."
        return UnreadableFile(what, "Update lorsmerge.")
    actual = "a delta" if DELTA_MARK in metadata else "not a file of statistics"
    return UnreadableFile(
        f"{path} is {actual}, and statistics are needed here.",
        "Make them with `lorsmerge stats FINETUNE --data AUDIO -o x.stats`.",
    )


def _utf8(text: str) -> str:
    """Replace the lone surrogates that a file name may hold, which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode()


def _origin(metadata: Mapping[str, str]) -> Origin:
    data = json_object(metadata[f"{PREFIX}data"])
    sample = json_object(metadata[f"{PREFIX}sample"])
    if not all(map(is_number, sample.values())):
        raise ValueError("the sample of its model is not of finite numbers")
    check_utf8(*sample)
    labels, utterances, seconds = data["labels"], data["utterances"], data["seconds"]
    if not isinstance(labels, str):
        raise ValueError(f"its labels are {shown(labels)}")
    if type(utterances) is not int or not 0 < utterances <= MAX_NUMBER:
        raise ValueError(f"its number of utterances is {shown(utterances)}")
    if not is_number(seconds) or seconds < 0:
        raise ValueError(f"its seconds are {shown(seconds)}")
    if not isinstance(data["sha256"], str) or not re.fullmatch("[0-9a-f]{64}", data["sha256"]):
        raise ValueError(f"the hash of its data is {shown(data['sha256'])}")
    return Origin(
        metadata[f"{PREFIX}model"],
        Fingerprint.from_json(metadata[f"{PREFIX}fingerprint"]),
        metadata.get(f"{PREFIX}base", ""),
        {name: float(value) for name, value in sample.items()},
        labels, utterances, float(seconds), data["sha256"],
        tuple(_pairs(data.get("languages", []))),
        json_object(metadata.get(f"{PREFIX}settings", "{}")),
        metadata.get(f"{PREFIX}made_by", ""),
        metadata.get(f"{PREFIX}lorsmerge", ""),
        recorded_digests(data),
    )  # fmt: skip


def _pairs(found: object) -> list[tuple[str, str]]:
    pairs = []
    for row in found if isinstance(found, list) else [found]:
        match row:
            case [str(language), str(task)]:
                pairs.append((language, task))
            case _:
                raise ValueError(f"a language and task of its data are {shown(row)}")
    return pairs


def _layout(metadata: Mapping[str, str], stored: Mapping[str, TensorSpec]) -> tuple[Layout, float]:
    """Return what the file holds, and the mean of all its Fisher information."""
    inputs = json_object(metadata[f"{PREFIX}inputs"])
    grams = json_object(metadata[f"{PREFIX}grams"])
    check_utf8(*inputs, *grams)
    widths = {}
    for name, entry in grams.items():
        width = entry.get("width") if isinstance(entry, dict) else None
        rows = entry.get("rows") if isinstance(entry, dict) else None
        if type(width) is not int or width < 1 or type(rows) is not int or rows < 0:
            raise ValueError(f"the Gram matrix of {name!r} is {shown(entry)}")
        widths[name] = width
    lost = [name for name, at in inputs.items() if not isinstance(at, str) or at not in widths]
    if lost:
        raise ValueError(f"the Gram matrix of {named(sorted(lost))} is not there")
    ending = f".{FISHER}"
    shapes = {n.removesuffix(ending): s.shape for n, s in stored.items() if n.endswith(ending)}
    mean = json_object(metadata[f"{PREFIX}fisher"]).get("mean", 0.0)
    if not is_number(mean) or mean < 0 or (shapes and not mean):
        raise ValueError(f"the mean of its Fisher information is {shown(mean)}")
    return Layout(inputs, widths, shapes), float(mean)
