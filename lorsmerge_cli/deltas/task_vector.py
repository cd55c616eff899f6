"""Task vectors to merge: delta files, LoRA adapters, and fine-tunes minus their base."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    equal,
    is_tall,
    open_weights,
)
from lorsmerge_cli.checkpoint.references import local_path, pinned
from lorsmerge_cli.checkpoint.safetensors_file import (
    DTYPE_CODES,
    SafetensorsFile,
    TensorSpec,
    dtype_name,
)
from lorsmerge_cli.core.low_rank_sparse import Delta, accumulable, dense
from lorsmerge_cli.core.statistics import BaseRounding, base_rounding, energy
from lorsmerge_cli.deltas.adapter import AdapterTaskVector
from lorsmerge_cli.deltas.encodings import TensorLayout
from lorsmerge_cli.deltas.file import DeltaFile
from lorsmerge_cli.deltas.tall import TallFile, TallVector
from lorsmerge_cli.errors import (
    LorsmergeError,
    Mismatch,
    UnreadableFile,
    UsageFault,
    named,
    non_finite,
    zero_delta,
)
from lorsmerge_cli.inputs import FileIdentity
from lorsmerge_cli.quoting import command

HALF = ("F16", "BF16")
ROUNDING_WARNING = 0.5  # of a delta's energy

# Integers and flags that count or index. They are not weights: every merge keeps the base's.
BUFFERS = ("num_batches_tracked", "position_ids", "token_type_ids", "relative_position_index")
ZERO3 = (
    "DeepSpeed's ZeRO-3 saves partitioned weights like this. Consolidate them with the script in its "
    "checkpoints: `python zero_to_fp32.py CHECKPOINT_FOLDER OUT_FOLDER`."
)


class TaskVector(Protocol):
    """Deltas of all float tensors of a base.

    Attributes:
        path: what the user gave.
        files: the files and folders it is read from.
        finetuned_dtype: dtype code the fine-tune was stored in.
    """

    path: Path
    files: list[Path]
    finetuned_dtype: str

    @property
    def identities(self) -> Mapping[Path, FileIdentity]:
        """Identity of each file, to detect that it changed since it was opened."""

    @property
    def stored(self) -> Mapping[str, TensorSpec]:
        """Shape and dtype of the tensors on disk, by their names in the files."""

    def stored_parts(self, name: str, start: int, stop: int) -> Iterator[tuple[str, int, Tensor]]:
        """Yield name, first element and values of what is stored of elements [start, stop).

        A part without elements of its own, such as a low-rank factor, comes with the first block.
        """

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> shape; only float tensors have deltas."""

    @property
    def layouts(self) -> Mapping[str, TensorLayout]:
        """Name -> how a delta file stores the tensor's delta."""

    def read(self, name: str) -> Delta:
        """Return the delta of one tensor."""

    def read_block(self, name: str, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of one delta, row-major, in float32 or float64."""

    def is_pruned(self, name: str) -> bool:
        """Tell whether a tensor is stored as low-rank and sparse parts that are not both empty."""

    def identity(self) -> str:
        """Return the fingerprint digest of what is stored."""


class FinetunedTaskVector:
    """theta_i - theta_0, computed as it is read; see `TaskVector`."""

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
        """Yield the fine-tune's elements [start, stop), with name and first element."""
        yield name, start, self.finetuned.read(name).reshape(-1)[start:stop]

    @property
    def layouts(self) -> dict[str, TensorLayout]:
        """How a delta file stores each of the base's tensors: dense, in float32 or float64."""
        layouts = {}
        for name, spec in self.base.float_specs.items():
            wide = torch.float64 in (spec.dtype, self.specs.get(name, spec).dtype)
            dtype = torch.float64 if wide else torch.float32
            layouts[name] = TensorLayout("dense", spec.shape, dtype)
        return layouts

    def read(self, name: str) -> Tensor:
        """Return the delta of one tensor, in float32 or float64."""
        shape = self.specs[name].shape
        return accumulable(self.finetuned.read(name)) - accumulable(self.base.read(name)).view(
            shape
        )

    def read_block(self, name: str, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of one delta, row-major, in float32 or float64."""
        finetuned = self.finetuned.read(name).reshape(-1)[start:stop]
        base = self.base.read(name).reshape(-1)[start:stop]
        return accumulable(finetuned) - accumulable(base)

    def base_rounding(self, name: str, base: Tensor, delta: Tensor) -> BaseRounding:
        """Measure a block's delta against the base's rounding; zero where the base is no coarser.

        Args:
            name: the tensor.
            base: the block as the base stores it.
            delta: the block's delta.
        """
        finetuned = self.specs[name].dtype
        if torch.finfo(base.dtype).eps <= torch.finfo(finetuned).eps:
            return BaseRounding()
        return base_rounding(base, delta)

    def is_pruned(self, name: str) -> bool:
        """Return False."""
        return False

    def identity(self) -> str:
        """Return the fine-tune's fingerprint digest."""
        return base_fingerprint(self.finetuned).digest


def open_file(path: Path) -> DeltaFile | TallFile | Checkpoint:
    """Open a delta, a file of TALL masks or a checkpoint, whichever a path or a Hub id names.

    Raises:
        LorsmergeError: it is none of them.
    """
    weights = _open_weights(path)
    if isinstance(weights, SafetensorsFile) and is_tall(weights.metadata):
        return TallFile(path, weights)
    if isinstance(weights, SafetensorsFile) and DELTA_MARK in weights.metadata:
        return DeltaFile(path, weights)
    return Checkpoint(path, weights)


def open_task_vector(
    path: Path, base: Checkpoint | None, strip_prefix: str = "", for_task: str | None = None
) -> TaskVector:
    """Open a delta file or, with `base`, a fine-tune: a whole checkpoint or a LoRA adapter.

    `check_vector` compares its shapes with the base's, and has to be called before it is read.

    Args:
        path: a file, a folder or a Hub id.
        base: the model that fine-tunes are compared with; None to accept only delta files.
        strip_prefix: as in `finetuned_vector`.
        for_task: what a file of TALL masks keeps for this task is opened; None where it is a delta.

    Raises:
        UnreadableFile: it cannot be read, or it is a fine-tune and there is no base.
        Mismatch: an adapter of another base, or of another type than LoRA.
        UsageFault: a task that a file of TALL masks lacks.
    """
    weights = _open_weights(path)
    if for_task is not None:
        return _open_tall(path, weights).vector(for_task)
    if isinstance(weights, SafetensorsFile) and DELTA_MARK in weights.metadata:
        return DeltaFile(path, weights, has_base=base is not None)
    if base is None:
        raise UnreadableFile(
            f"{path} is not a delta, and there is no base to compute its delta with.",
            "Compute it first with `lorsmerge delta BASE FINETUNED -o x.delta`.",
        )
    return finetuned_vector(path, base, strip_prefix, weights)


def _open_tall(path: Path, weights: WeightFile | None) -> TallFile:
    if isinstance(weights, SafetensorsFile) and is_tall(weights.metadata):
        return TallFile(path, weights)
    raise UsageFault(
        f"{path} is not a file of TALL masks, so the model of one task cannot be made from it.",
        f"Merge it as a delta, {command('lorsmerge', 'merge', 'BASE', path)}, or give --from a file "
        "that `lorsmerge merge --masks` wrote.",
    )


def finetuned_vector(
    path: Path, base: Checkpoint, strip_prefix: str = "", opened: WeightFile | None = None
) -> FinetunedTaskVector | AdapterTaskVector:
    """Open a fine-tune, a whole checkpoint or a LoRA adapter, as a task vector.

    Args:
        path: a file, a folder or a Hub id.
        base: the model it was fine-tuned from.
        strip_prefix: names of either side that differ only by this prefix are matched.
        opened: the file, if it is open already.

    Raises:
        LorsmergeError: as `Checkpoint` and `AdapterTaskVector`.
    """
    if is_adapter(local_path(path)):
        return AdapterTaskVector(path, base)
    like = base.specs.keys() | base.tied.keys() | TIED.keys()
    return FinetunedTaskVector(base, Checkpoint(path, opened, strip_prefix, like))


def _open_weights(path: Path) -> WeightFile | None:
    """Open the file of weights at a path; return None for a folder."""
    local = local_path(path)
    return None if os.path.isdir(local) else open_weights(local)


def check_vector(base: Checkpoint, vector: TaskVector) -> list[LorsmergeError]:
    """Return every fault that keeps a delta or a fine-tune from fitting the base."""
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
    """Return a fault each for missing, extra and differently shaped float tensors.

    Args:
        wanted: the base's float tensors.
        specs: the delta's or the fine-tune's.
        base: name of the base in messages.
        where: name of the other in messages.
    """
    missing = sorted(wanted.keys() - specs.keys())
    extra = sorted(specs.keys() - wanted.keys())
    reshaped = [
        f"{name} {list(specs[name].shape)} for {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & specs.keys())
        if specs[name].shape != wanted[name].shape
    ]
    return _mismatches(
        where,
        {
            f"lacks {len(missing)} of the base's {len(wanted)} float tensors": missing,
            f"has {len(extra)} tensors that {base} lacks": extra,
            f"has {len(reshaped)} tensors of another shape than the base's": reshaped,
        },
        "Both have to be the same model; compare them with `lorsmerge inspect`.",
    )


def _mismatches(
    where: object, problems: Mapping[str, Sequence[str]], remedy: str
) -> list[LorsmergeError]:
    """Return a fault for each problem that some tensors have."""
    return [
        Mismatch(f"{where} {problem}: {named(names)}.", remedy)
        for problem, names in problems.items()
        if names
    ]


def _wrapped(base: Checkpoint, vector: TaskVector) -> LorsmergeError | None:
    """Return the fault if the names of the two sides differ only by a prefix, else None."""
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
        remedy = "Give the base it was taken from, or rename this one's tensors."
    return Mismatch(what, remedy)


def _prefix_of(longer: set[str], shorter: set[str]) -> str:
    """Return the prefix before all names of `shorter` in `longer`; empty if there is none."""
    one = max(shorter, key=len)
    found = (name.removesuffix(one) for name in sorted(longer) if name.endswith(f".{one}"))
    return next((prefix for prefix in found if all(prefix + n in longer for n in shorter)), "")


def _empty(base: Checkpoint, vector: TaskVector) -> list[LorsmergeError]:
    """Return a fault for tensors that are empty on one side only."""
    both = [(name, spec, vector.specs.get(name, spec)) for name, spec in base.float_specs.items()]
    theirs = [name for name, own, other in both if own.numel and not other.numel]
    ours = [name for name, own, other in both if other.numel and not own.numel]
    return [
        *_mismatches(vector.path, {f"has {len(theirs)} empty tensors": theirs}, ZERO3),
        *_mismatches(base.path, {f"has {len(ours)} empty tensors": ours}, ZERO3),
    ]


def _is_buffer(name: str, spec: TensorSpec) -> bool:
    is_index = spec.dtype in (torch.int64, torch.int32, torch.bool) and len(spec.shape) <= 1
    return is_index or name.rpartition(".")[2] in BUFFERS


def _check_others(base: Checkpoint, finetuned: Checkpoint) -> list[LorsmergeError]:
    """Return faults for weights and masks that are not floats, which have to equal the base's."""
    ours, theirs = (
        {n: s for n, s in model.specs.items() if not s.is_float and not _is_buffer(n, s)}
        for model in (base, finetuned)
    )

    def listed(names: Iterable[str]) -> list[str]:
        return [f"{name} ({dtype_name((ours | theirs)[name].dtype)})" for name in sorted(names)]

    differing = [name for name in ours.keys() & theirs.keys() if _differ(name, base, finetuned)]
    return _mismatches(
        finetuned.path,
        {
            f"lacks tensors of the base {base.path}": listed(ours.keys() - theirs.keys()),
            f"has tensors that the base {base.path} lacks": listed(theirs.keys() - ours.keys()),
            "differs from the base in tensors that are not floats and have no delta": listed(
                differing
            ),
        },
        "Save both models in float32 or bfloat16, dequantised if they are quantised.",
    )


def _differ(name: str, base: Checkpoint, finetuned: Checkpoint) -> bool:
    same_layout = base.specs[name] == finetuned.specs[name]
    return not same_layout or not equal(base.read(name), finetuned.read(name))


StoredVector = DeltaFile | TallVector  # task vectors that record their base


def check_base(
    file: StoredVector, base: Checkpoint, identity: Fingerprint
) -> LorsmergeError | None:
    """Return the fault if a delta was taken from another base than this one, else None."""
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
    """Return the fault if a delta's base differs from this one in bytes the fingerprint skips.

    Args:
        vector: a delta; only a file of deltas records its base's content.
        base: the base that was read.
        identity: its fingerprint; if that differs, `check_base` has reported it.
        content: hash of all of its float tensors.
    """
    if not isinstance(vector, StoredVector):
        return None
    recorded = vector.provenance.base
    if not recorded.content or recorded.digest != identity.digest or recorded.content == content:
        return None
    return Mismatch(
        f"{vector.path} was taken from another model ({vector.provenance.base_name!r}) than "
        f"{base.path}: their fingerprints agree, but other elements differ.",
        "Give the base it was taken from, or --allow-other-base to apply it to this one.",
    )


def base_fingerprint(base: Checkpoint) -> Fingerprint:
    """Return the fingerprint of a checkpoint's float tensors."""
    return fingerprint(base.float_specs, base.read)


def vector_norm(vector: TaskVector) -> float:
    """Return the L2 norm of a whole delta.

    A delta file has it in its header. A fine-tune in a delta's place is read for it.

    Raises:
        NonFinite: a NaN or an infinity in a fine-tune.
        Mismatch: it is zero throughout.
    """
    if isinstance(vector, DeltaFile):
        norm = vector.norm
    else:
        squares = []
        for name in vector.specs:
            squares.append(energy(dense(vector.read(name))))
            if not math.isfinite(squares[-1]):
                raise non_finite(vector.path, name)
        norm = math.sqrt(math.fsum(squares))
    if not norm:
        raise zero_delta(vector.path)
    return norm


def precision_warnings(vector: TaskVector, base: Checkpoint) -> list[str]:
    """Return warnings of updates rounded in a half-precision fine-tune, or of a base that may be wrong."""
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
            f"According to its config, {vector.path} was trained on {trained_on}, not on {base.path}."
        )
    return notes


def _buffer_notes(base: Checkpoint, finetuned: Checkpoint) -> list[str]:
    shared = (name for name in base.specs if name in finetuned.specs)
    buffers = (n for n in shared if not base.specs[n].is_float and _is_buffer(n, base.specs[n]))
    differing = [name for name in buffers if _differ(name, base, finetuned)]
    if not differing:
        return []
    return [
        f"{finetuned.path} differs from the base in {named(differing)}, which count or index and are "
        "not weights: the base's are kept."
    ]


def rounded_base(vector: TaskVector, base: Checkpoint, rounding: BaseRounding) -> list[str]:
    """Return a warning if most of a delta is the rounding error of its base."""
    if rounding.share < ROUNDING_WARNING:
        return []
    return [
        f"{vector.path}: about {rounding.share:.0%} of its delta's energy is the rounding error of "
        f"{base.path}, which is stored in {dtype_name(base.dtype)}: the fine-tune started from "
        "the same weights in a wider dtype. Give that base, in float32 as a rule."
    ]
