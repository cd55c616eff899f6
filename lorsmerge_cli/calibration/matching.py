"""Find out whose statistics are in which file, so that the order of files does not matter."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lorsmerge_cli.calibration.file import ANEW, StatisticsFile
from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.core.combining.fisher import FISHER
from lorsmerge_cli.core.low_rank_sparse import accumulable
from lorsmerge_cli.deltas.file import DeltaFile
from lorsmerge_cli.deltas.task_vector import TaskVector
from lorsmerge_cli.errors import LorsmergeError, Mismatch, UsageFault, named
from lorsmerge_cli.quoting import command

ROUNDINGS = 4  # to float32: of the difference, of the sum, of a LoRA's product


def matched(
    files: Sequence[StatisticsFile],
    base: Checkpoint,
    vectors: Sequence[TaskVector],
    faults: list[LorsmergeError],
) -> tuple[StatisticsFile, ...]:
    """Return the statistics of each delta's fine-tune, in the deltas' order.

    A file has one element of each of its model's tensors. It belongs to the delta that leads from
    the base to these elements.

    Args:
        files: in any order.
        base: the model that the deltas were taken from.
        vectors: the deltas; their names and shapes are the base's.
        faults: gets an error for each delta without a file, and each file without a delta.
    """
    fitting = [[file for file in files if _is_of(file, base, vector)] for vector in vectors]
    for number, (vector, found) in enumerate(zip(vectors, fitting, strict=True)):
        if len(found) > 1:  # two prunings of one fine-tune, and statistics of both
            whole = [file for file in found if _is_of(file, base, vector, pruned=False)]
            fitting[number] = whole or found
    for vector, found in zip(vectors, fitting, strict=True):
        if len(found) > 1:
            first, second, *_ = (file.path for file in found)
            what = f"{first} and {second} are both statistics of the fine-tune of {vector.path}."
            faults.append(UsageFault(what, "Give one of them."))
        elif not found:
            line = command("lorsmerge", "stats", "FINETUNE", "--data", "AUDIO", "-o", "x.stats")
            faults.append(
                Mismatch(
                    f"None of the statistics are of the fine-tune that {vector.path} was taken from.",
                    f"Make them with `{line}`.",
                )
            )
    used = [id(file) for found in fitting for file in found]
    for file in files:
        if id(file) not in used:
            faults.append(
                Mismatch(
                    f"{file.path} has statistics of {file.origin.model!r}, which none of the deltas "
                    "was taken from.",
                    "Omit it, or add that fine-tune's delta.",
                )
            )
    return tuple(found[0] for found in fitting if found)


def check_fit(files: Sequence[StatisticsFile], kind: str, base: Checkpoint) -> list[LorsmergeError]:
    """Return the faults of statistics that a merge cannot weigh deltas by.

    Args:
        files: of fine-tunes of the base.
        kind: `gram` or `fisher`.
        base: the model that is merged onto.
    """
    faults: list[LorsmergeError] = []
    first = next((file for file in files if kind in file.layout.kinds), None)
    for file in files:
        if first is None or kind not in file.layout.kinds:
            what = (
                f"{file.path} has the kind {' and '.join(file.layout.kinds)}, and {kind} is needed."
            )
            faults.append(Mismatch(what, f"Make it again with `lorsmerge stats --kind {kind}`."))
            continue
        if wrong := [
            name for name in sorted(file.names(kind)) if not _fits(file, kind, name, base)
        ]:
            what = f"{file.path}: its statistics of {named(wrong)} do not fit the weights' shapes."
            faults.append(Mismatch(what, ANEW))
        if others := file.names(kind) ^ first.names(kind):
            what = f"Of {first.path} and {file.path} one alone has statistics of {named(sorted(others))}."
            faults.append(
                Mismatch(what, "Make both with the same --half, by the same version of lorsmerge.")
            )
    return faults


def _fits(file: StatisticsFile, kind: str, name: str, base: Checkpoint) -> bool:
    if name not in base.float_specs:
        return False
    shape = base.float_specs[name].shape
    if kind == FISHER:
        return file.layout.shapes[name] == shape
    return len(shape) == 2 and file.layout.widths[file.layout.inputs[name]] == shape[1]


def _is_of(
    file: StatisticsFile, base: Checkpoint, vector: TaskVector, *, pruned: bool = True
) -> bool:
    """Tell whether a delta leads from the base to the model that statistics are of.

    With `pruned`, tensors that were pruned may differ: the statistics are of the whole fine-tune.
    """
    if file.origin.sample.keys() != base.float_specs.keys():
        return False
    pruned = pruned and isinstance(vector, DeltaFile) and bool(vector.provenance.pruning)
    moved = False
    for name, wanted in file.origin.sample.items():
        middle = base.float_specs[name].numel // 2
        if not base.float_specs[name].numel or (pruned and vector.is_pruned(name)):
            continue
        before = float(accumulable(base.read(name).reshape(-1)[middle]))
        change = float(vector.read_block(name, middle, middle + 1))
        step = torch.finfo(torch.float32).eps * max(abs(before), abs(change), abs(wanted))
        if not abs(before + change - wanted) <= ROUNDINGS * step:
            return False
        moved = moved or abs(change) > ROUNDINGS * step
    return moved  # else the base's own statistics would fit any delta of zeros
