"""A task vector to be merged: a delta file, a LoRA adapter, or a fine-tune less its base."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lorsmerge_cli.checkpoint.fingerprint import Fingerprint, fingerprint
from lorsmerge_cli.checkpoint.model_files import is_adapter
from lorsmerge_cli.checkpoint.reader import (
    DELTA_MARK,
    TIED,
    Checkpoint,
    WeightFile,
    blocks_of,
    open_weights,
)
from lorsmerge_cli.checkpoint.references import local_path, pinned
from lorsmerge_cli.checkpoint.safetensors_file import (
    DTYPE_CODES,
    SafetensorsFile,
    TensorSpec,
    dtype_name,
)
from lorsmerge_cli.core.low_rank_sparse import Delta, LowRankSparse, accumulable
from lorsmerge_cli.core.statistics import BaseRounding, base_rounding
from lorsmerge_cli.deltas.adapter import AdapterTaskVector
from lorsmerge_cli.deltas.encodings import ENCODINGS, TensorLayout
from lorsmerge_cli.deltas.file import DeltaFile, total_norm
from lorsmerge_cli.errors import LorsmergeError, Mismatch, UnreadableFile, named
from lorsmerge_cli.inputs import FileIdentity
from lorsmerge_cli.quoting import command

HALF = ("F16", "BF16")
ROUNDING_WARNING = 0.5  # of a delta's energy

# Integers and flags that a model counts and numbers with: no weights, and the base's in every merge.
BUFFERS = ("num_batches_tracked", "position_ids", "token_type_ids", "relative_position_index")
ZERO3 = (
    "DeepSpeed's ZeRO-3 saves so what the processes hold in parts. Put them together with the script "
    "that it leaves in its checkpoints: `python zero_to_fp32.py CHECKPOINT_FOLDER OUT_FOLDER`."
)


class TaskVector(Protocol):
    """Deltas of all float tensors of a base.

    Attributes:
        path: what the user gave.
        files: the files, and folders, it is read from.
        finetuned_dtype: dtype code the fine-tune was stored in.
        identities: what tells whether a file changed since it was opened.
        stored: the numbers on disk, by their names in the files.
    """

    path: Path
    files: list[Path]
    finetuned_dtype: str

    @property
    def identities(self) -> Mapping[Path, FileIdentity]: ...

    @property
    def stored(self) -> Mapping[str, TensorSpec]: ...

    def stored_parts(self, name: str, start: int, stop: int) -> Iterator[tuple[str, int, Tensor]]:
        """Give what is stored of elements [start, stop) of a delta: name, first element, values.

        What has no elements of its own, such as a low-rank factor, comes with the first block.
        """

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> shape; only float tensors have deltas."""

    def read(self, name: str) -> Delta:
        """The delta of one tensor."""

    def read_block(self, name: str, start: int, stop: int) -> Tensor:
        """Entries [start, stop) of one delta in row-major order, float32 or float64."""

    def is_pruned(self, name: str) -> bool:
        """Whether the tensor is stored as low-rank and sparse parts that are not both empty."""

    def identity(self) -> str:
        """Fingerprint digest of what is stored."""


class StoredTaskVector:
    """A delta file as a task vector."""

    def __init__(self, file: DeltaFile) -> None:
        self.file = file
        self.path = file.path
        self.files = [file.local]
        self.finetuned_dtype = file.provenance.finetuned_dtype
        self.specs: Mapping[str, TensorSpec] = file.specs
        self.identities = file.identities
        self.stored = file.stored

    def stored_parts(self, name: str, start: int, stop: int) -> Iterator[tuple[str, int, Tensor]]:
        layout = self.file.layouts[name]
        if layout.encoding == "dense":
            yield name, start, self.file.read_stored(name).reshape(-1)[start:stop]
        elif start == 0:
            for part in ENCODINGS[layout.encoding].specs(name, layout):
                yield part, 0, self.file.read_stored(part)

    def read(self, name: str) -> Delta:
        return self.file.read(name)

    def read_block(self, name: str, start: int, stop: int) -> Tensor:
        layout = self.file.layouts[name]
        if layout.is_zero:
            return accumulable(torch.zeros(stop - start, dtype=layout.dtype))
        delta = self.file.read(name)
        if isinstance(delta, LowRankSparse):
            delta = delta.to_dense()
        return accumulable(delta.reshape(-1)[start:stop])

    def is_pruned(self, name: str) -> bool:
        layout = self.file.layouts[name]
        return layout.encoding != "dense" and not layout.is_zero

    def identity(self) -> str:
        return fingerprint(self.file.stored, self.file.read_stored).digest

    @property
    def norm(self) -> float:
        """L2 norm of the whole delta."""
        return total_norm(self.file.norms)


class FinetunedTaskVector:
    """theta_i - theta_0, taken as it is read."""

    def __init__(self, base: Checkpoint, finetuned: Checkpoint) -> None:
        self.base = base
        self.finetuned = finetuned
        self.path = finetuned.path
        self.files = finetuned.sources
        self.finetuned_dtype = DTYPE_CODES[finetuned.dtype]
        self.specs: Mapping[str, TensorSpec] = finetuned.float_specs
        self.identities = finetuned.identities
        self.stored = self.specs

    def stored_parts(self, name: str, start: int, stop: int) -> Iterator[tuple[str, int, Tensor]]:
        yield name, start, self.finetuned.read(name).reshape(-1)[start:stop]

    @property
    def layouts(self) -> dict[str, TensorLayout]:
        """How a delta file holds each of the base's tensors: whole."""
        layouts = {}
        for name, spec in self.base.float_specs.items():
            wide = torch.float64 in (spec.dtype, self.specs.get(name, spec).dtype)
            dtype = torch.float64 if wide else torch.float32
            layouts[name] = TensorLayout("dense", spec.shape, dtype)
        return layouts

    def read(self, name: str) -> Tensor:
        shape = self.specs[name].shape
        return accumulable(self.finetuned.read(name)) - accumulable(self.base.read(name)).view(
            shape
        )

    def read_block(self, name: str, start: int, stop: int) -> Tensor:
        finetuned = self.finetuned.read(name).reshape(-1)[start:stop]
        base = self.base.read(name).reshape(-1)[start:stop]
        return accumulable(finetuned) - accumulable(base)

    def base_rounding(self, name: str, base: Tensor, delta: Tensor) -> BaseRounding:
        """Measure a block's delta against the base's rounding, where the base is the coarser one.

        Args:
            name: of the tensor.
            base: the block as the base stores it.
            delta: of the block.
        """
        finetuned = self.specs[name].dtype
        if torch.finfo(base.dtype).eps <= torch.finfo(finetuned).eps:
            return BaseRounding()
        return base_rounding(base, delta)

    def is_pruned(self, name: str) -> bool:
        return False

    def identity(self) -> str:
        return base_fingerprint(self.finetuned).digest


def open_file(path: Path) -> DeltaFile | Checkpoint:
    """Open a delta file or a checkpoint, whichever a path or a Hub id leads to.

    Raises:
        LorsmergeError: it is neither.
    """
    weights = _open_weights(path)
    if isinstance(weights, SafetensorsFile) and DELTA_MARK in weights.metadata:
        return DeltaFile(path, weights)
    return Checkpoint(path, weights)


def open_task_vector(path: Path, base: Checkpoint | None, strip_prefix: str = "") -> TaskVector:
    """Open a delta file or, with `base`, a fine-tune: a whole checkpoint or a LoRA adapter.

    Its shapes are not compared with the base's yet: `check_vector` does that, before it is read.

    Args:
        path: a file, a folder or a Hub id.
        base: what fine-tunes are compared with.
        strip_prefix: as in `finetuned_vector`.

    Raises:
        UnreadableFile: neither can be read there, or a fine-tune stands there without a base.
        Mismatch: an adapter that is not the base's, or of another kind than LoRA.
    """
    weights = _open_weights(path)
    if isinstance(weights, SafetensorsFile) and DELTA_MARK in weights.metadata:
        return StoredTaskVector(DeltaFile(path, weights, has_base=base is not None))
    if base is None:
        raise UnreadableFile(
            f"{path} is no delta, and without its base it has none.",
            "Take its delta first with `lorsmerge delta BASE FINETUNED -o x.delta`.",
        )
    return finetuned_vector(path, base, strip_prefix, weights)


def finetuned_vector(
    path: Path, base: Checkpoint, strip_prefix: str = "", opened: WeightFile | None = None
) -> FinetunedTaskVector | AdapterTaskVector:
    """What a fine-tune changed, by itself or as a LoRA adapter.

    Args:
        path: a file, a folder or a Hub id.
        base: what it is a fine-tune of.
        strip_prefix: names that differ from the base's by this alone, before either, are the base's.
        opened: the file, where it is open already.

    Raises:
        LorsmergeError: as `Checkpoint` and `AdapterTaskVector`.
    """
    if is_adapter(local_path(path)):
        return AdapterTaskVector(path, base)
    like = base.specs.keys() | base.tied.keys() | TIED.keys()
    return FinetunedTaskVector(base, Checkpoint(path, opened, strip_prefix, like))


def _open_weights(path: Path) -> WeightFile | None:
    """The file of weights that a path leads to; None for a folder."""
    local = local_path(path)
    return None if os.path.isdir(local) else open_weights(local)


def check_vector(base: Checkpoint, vector: TaskVector) -> list[LorsmergeError]:
    """Everything in which a delta or a fine-tune is not one of the base."""
    if fault := _wrapped(base, vector):
        return [fault]
    faults = _empty(base, vector)
    faults = faults or check_names(
        base.float_specs, vector.specs, base=f"the base {base.path}", where=vector.path
    )
    if isinstance(vector, FinetunedTaskVector):
        faults += _check_others(base, vector.finetuned)
    return faults


def check_names(
    wanted: Mapping[str, TensorSpec],
    specs: Mapping[str, TensorSpec],
    *,
    base: object,
    where: object,
) -> list[LorsmergeError]:
    """Return everything in which a delta or a fine-tune has other float tensors than the base.

    Args:
        wanted: the base's float tensors.
        specs: the delta's, or the fine-tune's.
        base, where: what messages call the two.
    """
    missing = sorted(wanted.keys() - specs.keys())
    extra = sorted(specs.keys() - wanted.keys())
    reshaped = [
        f"{name} {list(specs[name].shape)} for {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & specs.keys())
        if specs[name].shape != wanted[name].shape
    ]
    faults: list[LorsmergeError] = []
    for problem, names in (
        (f"lacks {len(missing)} of the base's {len(wanted)} float tensors:", missing),
        (f"has {len(extra)} tensors that {base} lacks:", extra),
        (f"has {len(reshaped)} tensors of another shape than the base's:", reshaped),
    ):
        if names:
            faults.append(
                Mismatch(
                    f"{where} {problem} {named(names)}.",
                    "Both have to be the same model; compare them with `lorsmerge inspect`.",
                )
            )
    return faults


def _wrapped(base: Checkpoint, vector: TaskVector) -> LorsmergeError | None:
    """The fault where a prefix before the names of one side is all that tells them apart."""
    ours, theirs = set(base.float_specs), set(vector.specs)
    if not ours or not theirs or ours == theirs:
        return None
    if prefix := _prefix_of(theirs, ours):
        what = f"{vector.path} has the base's tensors with {prefix!r} before their names."
    elif prefix := _prefix_of(ours, theirs):
        what = f"{vector.path} has the tensors of {base.path} without the {prefix!r} before their names."
    else:
        return None
    option = command("--strip-prefix", prefix)
    if isinstance(vector, FinetunedTaskVector):
        output = Path(f"{vector.path.stem or 'x'}.delta")
        line = command("lorsmerge", "delta", base.path, vector.path, "-o", output)
        remedy = f"Give `{option}` as well, or take the delta by itself: `{line} {option}`."
    else:
        remedy = "Give the base that it was made of, or a copy with the names of that one."
    return Mismatch(what, remedy)


def _prefix_of(longer: set[str], shorter: set[str]) -> str:
    """What stands before all names of `shorter` in `longer`, empty if nothing does."""
    one = max(shorter, key=len)
    found = (name.removesuffix(one) for name in sorted(longer) if name.endswith(f".{one}"))
    return next((prefix for prefix in found if all(prefix + n in longer for n in shorter)), "")


def _empty(base: Checkpoint, vector: TaskVector) -> list[LorsmergeError]:
    """Tensors that hold nothing on one side and something on the other."""
    wanted, there = base.float_specs, vector.specs
    both = [name for name in wanted if name in there]
    return [
        Mismatch(f"{where} has {len(names)} tensors with nothing in them: {named(names)}.", ZERO3)
        for where, names in (
            (vector.path, [n for n in both if wanted[n].numel and not there[n].numel]),
            (base.path, [n for n in both if there[n].numel and not wanted[n].numel]),
        )
        if names
    ]


def _is_buffer(name: str, spec: TensorSpec) -> bool:
    is_index = spec.dtype in (torch.int64, torch.int32, torch.bool) and len(spec.shape) <= 1
    return is_index or name.rpartition(".")[2] in BUFFERS


def _others_of(checkpoint: Checkpoint) -> dict[str, TensorSpec]:
    """Tensors that are no floats and no buffers: quantised or complex weights, masks."""
    return {
        name: spec
        for name, spec in checkpoint.specs.items()
        if not spec.is_float and not _is_buffer(name, spec)
    }


def _check_others(base: Checkpoint, finetuned: Checkpoint) -> list[LorsmergeError]:
    """Tensors that are no floats, have no delta, and have to be the base's for that reason."""
    ours, theirs = _others_of(base), _others_of(finetuned)
    faults: list[LorsmergeError] = []
    for problem, names in (
        (f"lacks tensors of the base {base.path}", ours.keys() - theirs.keys()),
        (f"has tensors that the base {base.path} lacks", theirs.keys() - ours.keys()),
        (
            "has other numbers than the base in tensors that are no floats and have no delta",
            {name for name in ours.keys() & theirs.keys() if _differ(name, base, finetuned)},
        ),
    ):
        if names:
            listed = [
                f"{n} ({(ours | theirs)[n].dtype})".replace("torch.", "") for n in sorted(names)
            ]
            faults.append(
                Mismatch(
                    f"{finetuned.path} {problem}: {named(listed)}.",
                    "Save both models in float32 or bfloat16, dequantised if they are quantised.",
                )
            )
    return faults


def _differ(name: str, base: Checkpoint, finetuned: Checkpoint) -> bool:
    if base.specs[name] != finetuned.specs[name]:
        return True
    pairs = zip(blocks_of(base.read(name)), blocks_of(finetuned.read(name)), strict=True)
    return not all(torch.equal(ours, theirs) for ours, theirs in pairs)


def check_base(file: DeltaFile, base: Checkpoint, identity: Fingerprint) -> LorsmergeError | None:
    """What is wrong where a delta was taken from another base than this one."""
    recorded = file.provenance.base
    if recorded.digest == identity.digest:
        return None
    if recorded.is_rounding_of(identity):
        what = (
            f"{file.path} was taken from this model in {recorded.dtype} "
            f"({file.provenance.base_name!r}), and {base.path} is the same model in {identity.dtype}."
        )
        remedy = (
            f"Merge onto the {recorded.dtype} base, or give --allow-other-base to use this copy."
        )
    else:
        what = (
            f"{file.path} was taken from another model ({file.provenance.base_name!r}) "
            f"than {base.path}."
        )
        remedy = "Give the base it was taken from, or --allow-other-base to apply it to this one."
    return Mismatch(what, remedy)


def check_base_content(
    vector: TaskVector, base: Checkpoint, identity: Fingerprint, content: str
) -> LorsmergeError | None:
    """Return what is wrong where a delta's base differs from this one in bytes not sampled.

    Args:
        vector: a delta; only a file says what its base held.
        base: the base that was read.
        identity: its fingerprint; where that differs `check_base` has said so.
        content: hash of all of its float tensors.
    """
    if not isinstance(vector, StoredTaskVector):
        return None
    recorded = vector.file.provenance.base
    if not recorded.content or recorded.digest != identity.digest or recorded.content == content:
        return None
    return Mismatch(
        f"{vector.path} was taken from another model ({vector.file.provenance.base_name!r}) than "
        f"{base.path}: the two agree in the numbers that are compared first, and differ in others.",
        "Give the base it was taken from, or --allow-other-base to apply it to this one.",
    )


def base_fingerprint(base: Checkpoint) -> Fingerprint:
    """Identity of a checkpoint's float tensors."""
    return fingerprint(base.float_specs, base.read)


def notes_on(vector: TaskVector, base: Checkpoint) -> list[str]:
    """Warnings: updates that were rounded when a fine-tune was saved, an adapter of another base."""
    notes = []
    if vector.finetuned_dtype in HALF:
        notes.append(
            f"{vector.path} is a fine-tune stored in {vector.finetuned_dtype}: updates smaller than "
            "half of its rounding step were lost when it was saved. Fine-tune in float32 and save in "
            "float32 if you can."
        )
    if isinstance(vector, FinetunedTaskVector):
        notes += vector.finetuned.notes
        notes += _buffer_notes(base, vector.finetuned)
    given = pinned(base.path)
    trained_on = vector.config.trained_on if isinstance(vector, AdapterTaskVector) else ""
    if given and trained_on and trained_on != given.partition("@")[0]:  # their shapes may agree
        notes.append(
            f"{vector.path} was trained on {trained_on}, says its config, and not on {base.path}."
        )
    return notes


def _buffer_notes(base: Checkpoint, finetuned: Checkpoint) -> list[str]:
    shared = (name for name in base.specs if name in finetuned.specs)
    buffers = (n for n in shared if not base.specs[n].is_float and _is_buffer(n, base.specs[n]))
    differing = [name for name in buffers if _differ(name, base, finetuned)]
    if not differing:
        return []
    return [
        f"{finetuned.path} has other numbers than the base in {named(differing)}, which count or "
        "index and are no weights: the base's are kept."
    ]


def rounded_base(vector: TaskVector, base: Checkpoint, rounding: BaseRounding) -> list[str]:
    """Return a warning where most of a delta is the rounding error of its base."""
    if rounding.share < ROUNDING_WARNING:
        return []
    return [
        f"{vector.path}: about {rounding.share:.0%} of its delta's energy is the rounding error of "
        f"{base.path}, which is stored in {dtype_name(base.dtype)}: the fine-tune started from "
        "the same weights in a wider dtype. Give that base, in float32 as a rule."
    ]
