"""A file of TALL masks: one sum of deltas, and for each task which of its elements are its own.

docs/delta-format.md describes the format for readers that do not use this package.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorsmerge_cli.checkpoint.fingerprint import fingerprint, is_number
from lorsmerge_cli.checkpoint.reader import DELTA_MARK, TALL
from lorsmerge_cli.checkpoint.references import local_path
from lorsmerge_cli.checkpoint.safetensors_file import (
    SafetensorsFile,
    SafetensorsWriter,
    TensorSpec,
    metadata_size,
    shown,
)
from lorsmerge_cli.core.low_rank_sparse import accumulable
from lorsmerge_cli.core.sketch import parse_sketches, sketches_document, union
from lorsmerge_cli.deltas.encodings import TensorLayout
from lorsmerge_cli.deltas.file import PREFIX, Provenance, parse_provenance
from lorsmerge_cli.errors import UnreadableFile, UsageFault, did_you_mean, named
from lorsmerge_cli.inputs import json_object

VERSION = f"{TALL}1"
DESCRIPTION = f"{PREFIX}tall"
MASKS = "masks"
LONGEST = 100  # characters of a task's name
WIDE = (torch.float32, torch.float64)
ANEW = "Make it again with `lorsmerge merge BASE DELTA... --masks THRESHOLD`."


@dataclass(frozen=True)
class TallTask:
    """One of the deltas whose sum a file of TALL masks holds.

    Attributes:
        name: what `--for` calls it.
        scale: its coefficient in the sum.
        fingerprint: of its numbers.
        content: hash of all of its bytes.
        provenance: where it comes from, as its own file said.
    """

    name: str
    scale: float
    fingerprint: str
    content: str
    provenance: Provenance


@dataclass(frozen=True)
class TallOrigin:
    """What a file of TALL masks says of itself.

    Attributes:
        provenance: its base, the coarsest dtype of the fine-tunes, and the command that made it.
        threshold: of the masks.
        coef: rules that the coefficients were multiplied by, tensor by tensor.
        tasks: one for each mask, in the order of the masks.
    """

    provenance: Provenance
    threshold: float
    coef: tuple[str, ...]
    tasks: tuple[TallTask, ...]

    def metadata(self) -> dict[str, str]:
        """Return the `lorsmerge.*` strings of the header."""
        tasks = [
            {
                "name": task.name, "scale": task.scale, "fingerprint": task.fingerprint,
                "content": task.content, "header": task.provenance.metadata(),
            }
            for task in self.tasks
        ]  # fmt: skip
        found = {"threshold": self.threshold, "coef": list(self.coef), "tasks": tasks}
        return self.provenance.metadata() | {DELTA_MARK: VERSION, DESCRIPTION: json.dumps(found)}


def check_task_name(name: object) -> str:
    """Return the name of a task, of which lorsmerge prints and compares nothing but the letters.

    Raises:
        ValueError: it is no text, empty, too long, or has control characters or parts of a path.

    Example:
        >>> check_task_name("ca_asr")
        'ca_asr'
    """
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST:
        raise ValueError(f"the name of a task is {shown(name)}")
    if not name.isprintable() or name != name.strip() or not name.strip(".") or {*"/\\"} & {*name}:
        raise ValueError(f"{shown(name)} is no name of a task")
    return name


def mask_specs(specs: Mapping[str, TensorSpec], tasks: int) -> dict[str, TensorSpec]:
    """Return entry -> shape and dtype of the masks: a row of bits for each task.

    Args:
        specs: the tensors of the sum.
        tasks: number of masks.

    Example:
        >>> mask_specs({"fc1.bias": TensorSpec((12,), torch.float32)}, 5)
        {'fc1.bias.masks': TensorSpec(shape=(5, 2), dtype=torch.uint8)}
    """
    return {
        f"{name}.{MASKS}": TensorSpec((tasks, -(-spec.numel // 8)), torch.uint8)
        for name, spec in specs.items()
    }


class TallFile:
    """A file of TALL masks open for reading.

    Args:
        path: a file or a Hub id.
        opened: the file, if it is open already.

    Attributes:
        path: what the user gave.
        local: the file itself.
        identities: identity of the file, to detect that it changed since it was opened.
        size: bytes of the file.
        origin: what it says of itself.
        specs: tensor -> shape and dtype of the sum.

    Raises:
        UnreadableFile: it is no such file, has a later format, or contradicts itself.
    """

    def __init__(self, path: Path, opened: SafetensorsFile | None = None) -> None:
        self.path = path
        self.local = opened.path if opened else local_path(path, "delta")
        self._file = opened or SafetensorsFile(self.local)
        self.identities = {self.local: self._file.identity}
        self.size = self._file.size
        version = self._file.metadata.get(DELTA_MARK, "")
        if version != VERSION:
            later = version.startswith(TALL)
            raise UnreadableFile(
                f"{path} has TALL masks of format {shown(version)}, and this lorsmerge reads {VERSION!r}."
                if later
                else f"{path} is not a file of TALL masks.",
                "Update lorsmerge."
                if later
                else "`lorsmerge merge BASE DELTA... --masks 0.6` makes one.",
            )
        try:
            self.origin = _origin(self._file.metadata)
            self.specs = _sum_specs(self._file.specs, len(self.origin.tasks))
        except (KeyError, ValueError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise UnreadableFile(
                f"{path}: the header of the TALL masks is damaged ({reason}).", ANEW
            ) from error

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks."""
        return [task.name for task in self.origin.tasks]

    def read(self, name: str) -> Tensor:
        """Return one tensor of the sum, mapped from the file."""
        return self._file.read(name)

    def masks(self, name: str) -> Tensor:
        """Return the packed masks of one tensor, (T, ceil(numel / 8)) in uint8, mapped from the file."""
        return self._file.read(f"{name}.{MASKS}")

    def vector(self, task: str) -> TallVector:
        """Return what a task's mask keeps of the sum.

        Raises:
            UsageFault: there is no such task.
        """
        if task not in self.tasks:
            near = did_you_mean(task, self.tasks)
            raise UsageFault(
                f"{self.path} has no task {task!r}.{near if 'Did' in near else ''}",
                f"Its tasks: {', '.join(self.tasks)}.",
            )
        return TallVector(self, self.tasks.index(task))


class TallVector:
    """What one task's mask keeps of the sum of all, which is a `TaskVector`.

    Args:
        file: the file.
        index: of the task in it.

    Attributes:
        provenance: of the task's own delta, with the base of the file and digests of the training
            data of all tasks, as the sum has learnt from all of it. Without that delta's pruning:
            what the mask keeps has the other deltas' elements too.
    """

    def __init__(self, file: TallFile, index: int) -> None:
        self._tall, self._index = file, index
        self.path, self.files = file.path, [file.local]
        self.identities = file.identities
        self.specs = file.specs
        masks = mask_specs(file.specs, 1)
        self.stored: Mapping[str, TensorSpec] = self.specs | {
            entry: TensorSpec(spec.shape[1:], spec.dtype) for entry, spec in masks.items()
        }
        own = file.origin.tasks[index].provenance
        trained = [
            (task.name, parse_sketches(task.provenance.training["digests"]))
            for task in file.origin.tasks
            if "digests" in task.provenance.training
        ]
        digests = {"digests": sketches_document(union(trained))} if trained else {}
        origin = file.origin.provenance
        self.provenance = replace(
            own, base_name=origin.base_name, base=origin.base, pruning={},
            history=(*own.history, *origin.history), training=dict(own.training) | digests,
        )  # fmt: skip
        self.finetuned_dtype = own.finetuned_dtype

    @property
    def layouts(self) -> dict[str, TensorLayout]:
        """How a delta file would store each tensor: dense."""
        return {
            name: TensorLayout("dense", spec.shape, spec.dtype) for name, spec in self.specs.items()
        }

    def stored_parts(self, name: str, start: int, stop: int) -> Iterator[tuple[str, int, Tensor]]:
        """Yield what is stored of elements [start, stop), as `TaskVector.stored_parts`."""
        yield name, start, self._tall.read(name).reshape(-1)[start:stop]
        if start == 0:
            yield f"{name}.{MASKS}", 0, self._mask(name)

    def read(self, name: str) -> Tensor:
        """Return what the mask keeps of one tensor, in float32 or float64; 0 elsewhere."""
        spec = self.specs[name]
        return self.read_block(name, 0, spec.numel).view(spec.shape)

    def read_block(self, name: str, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of it, row-major."""
        first = start // 8
        packed = self._mask(name)[first : -(-stop // 8)].numpy()
        bits = np.unpackbits(packed, count=stop - 8 * first, bitorder="little")[start - 8 * first :]
        # a product, which a NaN survives, so that whoever reads it finds it
        return accumulable(self._tall.read(name).reshape(-1)[start:stop]) * torch.from_numpy(bits)

    def is_pruned(self, name: str) -> bool:
        """Return False: what is stored is dense."""
        return False

    def identity(self) -> str:
        """Return the fingerprint digest of the sum and the mask."""
        return fingerprint(self.stored, self._entry).digest

    def _entry(self, entry: str) -> Tensor:
        if entry in self.specs:
            return self._tall.read(entry)
        return self._mask(entry.removesuffix(f".{MASKS}"))

    def _mask(self, name: str) -> Tensor:
        return self._tall.masks(name)[self._index]


class TallWriter:
    """A file of TALL masks being written; blocks arrive in any order, from any thread.

    Args:
        path: where to write; the caller renames the file once the `with` block has succeeded.
        specs: tensor -> shape and dtype of the sum, float32 or float64.
        origin: as given to `finish`, with hashes of the same length.
    """

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec], origin: TallOrigin) -> None:
        self._widths = {name: -(-spec.numel // 8) for name, spec in specs.items()}
        entries = {**specs, **mask_specs(specs, len(origin.tasks))}
        self._writer = SafetensorsWriter(path, entries, metadata_size(origin.metadata()))

    def write(self, name: str, total: Tensor, masks: Sequence[Tensor], start: int = 0) -> None:
        """Write elements from `start` on, in row-major order.

        Args:
            name: the tensor.
            total: elements of the sum, in the dtype of its spec.
            masks: of each task, booleans of `total`'s shape.
            start: index of the first one, a multiple of 8.
        """
        self._writer.write(name, total, start)
        for row, mask in enumerate(masks):
            packed = np.packbits(mask.reshape(-1).numpy(), bitorder="little")
            at = row * self._widths[name] + start // 8
            self._writer.write(f"{name}.{MASKS}", torch.from_numpy(packed), at)

    def finish(self, origin: TallOrigin) -> None:
        """Write the header, and sync the file."""
        self._writer.finish(origin.metadata())

    def __enter__(self) -> TallWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.__exit__(*error)


def _sum_specs(stored: Mapping[str, TensorSpec], tasks: int) -> dict[str, TensorSpec]:
    """Return the specs of the sum among all entries of a file.

    Raises:
        ValueError: the entries are not a sum and its masks.
    """
    sums = {name: spec for name, spec in stored.items() if spec.dtype in WIDE}
    wanted = {**sums, **mask_specs(sums, tasks)}
    wrong = [name for name in wanted.keys() | stored.keys() if wanted.get(name) != stored.get(name)]
    if wrong or not sums:
        raise ValueError(f"no sum and {tasks} masks: {named(sorted(wrong))}" if sums else "no sum")
    return sums


def _origin(metadata: Mapping[str, str]) -> TallOrigin:
    found = json_object(metadata[DESCRIPTION])
    threshold, coef, tasks = found["threshold"], found.get("coef", []), found["tasks"]
    if not is_number(threshold) or threshold < 0:
        raise ValueError(f"the threshold is {shown(threshold)}")
    if not isinstance(coef, list) or not all(isinstance(rule, str) for rule in coef):
        raise ValueError(f"its coef is {shown(coef)}")
    if not isinstance(tasks, list) or not tasks:
        raise ValueError(f"the tasks are {shown(tasks)}")
    parsed = tuple(map(_task, tasks))
    names = [task.name for task in parsed]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two tasks are called {twice[0]!r}")
    return TallOrigin(parse_provenance(metadata), float(threshold), tuple(coef), parsed)


def _task(found: Any) -> TallTask:
    if not isinstance(found, dict):
        raise ValueError(f"a task is {shown(found)}")
    name = check_task_name(found["name"])
    scale, header = found["scale"], found["header"]
    if not is_number(scale):
        raise ValueError(f"the scale of {name!r} is {shown(scale)}")
    if not isinstance(header, dict) or not all(isinstance(text, str) for text in header.values()):
        raise ValueError(f"the header of {name!r} is {shown(header)}")
    identity, content = found["fingerprint"], found["content"]
    if not isinstance(identity, str) or not isinstance(content, str):
        raise ValueError(f"the fingerprint of {name!r} is {shown(identity)}")
    return TallTask(name, float(scale), identity, content, parse_provenance(header))
