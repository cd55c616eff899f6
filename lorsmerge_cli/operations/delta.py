"""Delta: a fine-tune minus its base, as a file (tau = theta_i - theta_0)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorsmerge_cli.checkpoint.content import ContentHash
from lorsmerge_cli.checkpoint.model_files import is_adapter
from lorsmerge_cli.checkpoint.model_writer import RUN
from lorsmerge_cli.checkpoint.reader import BLOCK, Checkpoint
from lorsmerge_cli.checkpoint.references import check_hub_ids, local_path, pinned, with_commits
from lorsmerge_cli.core.merging import is_finite
from lorsmerge_cli.core.parallel import default_threads, run_parallel
from lorsmerge_cli.core.statistics import BaseRounding, energy
from lorsmerge_cli.data.languages import parse_language, parse_task
from lorsmerge_cli.deltas.adapter import AdapterTaskVector
from lorsmerge_cli.deltas.encodings import stored_size
from lorsmerge_cli.deltas.file import DeltaWriter, Provenance, check_training, total_norm
from lorsmerge_cli.deltas.task_vector import (
    FinetunedTaskVector,
    base_fingerprint,
    check_vector,
    finetuned_vector,
    precision_warnings,
    rounded_base,
)
from lorsmerge_cli.errors import (
    LorsmergeError,
    UnreadableFile,
    UsageFault,
    non_finite,
    raise_all,
    zero_delta,
)
from lorsmerge_cli.inputs import FilePath, read_json
from lorsmerge_cli.outputs import atomic_file, check_output, check_unchanged, leftovers
from lorsmerge_cli.recipe.published import recorded_call
from lorsmerge_cli.recipe.record import training_of

Vector = FinetunedTaskVector | AdapterTaskVector


@dataclass(frozen=True)
class DeltaReport:
    """What was written.

    Attributes:
        output: the delta file.
        tensors: number of deltas in it.
        norm: L2 norm of all of them together.
        base_norm: L2 norm of the base's tensors, for comparison.
        nbytes: size of the stored deltas.
        warnings: what the user should know.
    """

    output: Path
    tensors: int
    norm: float
    base_norm: float
    nbytes: int
    warnings: tuple[str, ...]


def delta(
    base: FilePath,
    finetuned: FilePath,
    output: FilePath,
    *,
    task: str = "",
    language: str = "",
    strip_prefix: str = "",
    force: bool = False,
    threads: int | None = None,
    command: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DeltaReport:
    """Write the delta of a fine-tune: its weights minus the base's, in float32 or wider.

    Args:
        base: the pretrained checkpoint: a file, a folder or a Hub id.
        finetuned: a fine-tune of it or a LoRA adapter: a file, a folder or a Hub id.
        output: the delta file.
        task: the task it was tuned for, `asr` or `st`; not recorded by default.
        language: its language, a code such as `ca`; not recorded by default.
        strip_prefix: prefix to ignore before the names of either model, such as `module.`.
        force: replace an existing output.
        threads: blocks in flight; one per core by default.
        command: the line for the file's history; this call by default.
        progress: called with the bytes just written and the bytes in all.

    Raises:
        LorsmergeError: see the subclasses; nothing is written then.

    Example:
        >>> report = delta("base", "ca", "new.delta", task="asr", language="ca")
        >>> report.output, report.norm > 0
        (PosixPath('new.delta'), True)
    """
    base_path, finetuned_path, output = Path(base), Path(finetuned), Path(output)
    command = command or recorded_call(
        "delta", base_path, finetuned_path, output, task=task, language=language,
        strip_prefix=strip_prefix,
    )  # fmt: skip
    faults: list[LorsmergeError] = []
    try:
        task = parse_task(task) if task else ""
        language = parse_language(language) if language else ""
    except UsageFault as fault:
        faults.append(fault)
    checkpoint, vector = _open_both(base_path, finetuned_path, strip_prefix, faults)
    faults += _check_order(checkpoint, vector)
    faults += check_vector(checkpoint, vector)
    layouts = vector.layouts
    nbytes = sum(stored_size(name, layout) for name, layout in layouts.items())
    inputs = [*checkpoint.sources, *vector.files]
    faults += check_output(output, inputs=inputs, size=nbytes, force=force)
    raise_all(faults)
    warnings = [*leftovers(output), *checkpoint.notes, *precision_warnings(vector, checkpoint)]
    provenance = Provenance(
        base_name=pinned(base_path) or base_path.name or str(base_path),
        base=base_fingerprint(checkpoint),
        finetuned_dtype=vector.finetuned_dtype,
        task=task,
        language=language,
        history=(with_commits(command, [base_path, finetuned_path]),),
        training=_training(vector, warnings),
    )
    with (
        atomic_file(output, force=force) as partial,
        DeltaWriter(partial, layouts, provenance) as writer,
    ):
        norms, content, base_norm, rounding = _write(
            vector, writer, threads or default_threads(), progress
        )
        fingerprint = replace(provenance.base, content=content)
        writer.finish(norms, replace(provenance, base=fingerprint))
        check_unchanged(checkpoint.identities | vector.identities)
    warnings += rounded_base(vector, checkpoint, rounding)
    return DeltaReport(output, len(layouts), total_norm(norms), base_norm, nbytes, tuple(warnings))


def _open_both(
    base_path: Path, finetuned_path: Path, strip_prefix: str, faults: list[LorsmergeError]
) -> tuple[Checkpoint, Vector]:
    if missing := check_hub_ids([base_path, finetuned_path]):
        raise_all(faults + missing)
    base = None
    try:
        base = Checkpoint(base_path)
    except LorsmergeError as error:
        faults.append(error)
    try:
        if base is not None:
            return base, finetuned_vector(finetuned_path, base, strip_prefix)
        if not is_adapter(local_path(finetuned_path)):
            Checkpoint(finetuned_path)  # to report its faults as well
    except LorsmergeError as error:
        faults.append(error)
    raise_all(faults)
    raise ValueError("a file that failed to open left no fault")


def _check_order(base: Checkpoint, vector: Vector) -> list[LorsmergeError]:
    """Return a fault if the base's own record says that it was fine-tuned from the fine-tune."""
    if base.folder is None or isinstance(vector, AdapterTaskVector):
        return []
    finetuned = vector.finetuned
    try:
        parent = read_json(base.folder / RUN)["base"]
    except (OSError, ValueError, KeyError, TypeError, UnreadableFile):
        return []
    if parent != base_fingerprint(finetuned).digest[:16]:
        return []
    what = f"{base.path} is a fine-tune of {finetuned.path}, according to its {RUN}."
    return [UsageFault(what, "Give the base first and the fine-tune second.")]


def _training(vector: Vector, warnings: list[str]) -> dict[str, Any]:
    """Return what `finetune` recorded of the fine-tune, if a delta file can hold it."""
    if isinstance(vector, AdapterTaskVector):
        return {}
    training = training_of(vector.finetuned.folder)
    try:
        check_training(training)
    except ValueError as error:
        warnings.append(f"{vector.path}: its {RUN} is not copied into the delta, because {error}.")
        return {}
    return training


def _write(
    vector: Vector,
    writer: DeltaWriter,
    threads: int,
    progress: Callable[[int, int], None],
) -> tuple[dict[str, float], str, float, BaseRounding]:
    """Write all deltas; return their norms, and content hash, norm and rounding of the base."""

    def write_block(block: tuple[str, int, int]) -> tuple[float, float, BaseRounding, int]:
        name, start, stop = block
        values = vector.read_block(name, start, stop)
        base = vector.base.read(name).reshape(-1)[start:stop]
        content.add(name, base, start)
        for path, part in ((vector.base.path, base), (vector.path, values)):
            if not is_finite(part):
                raise non_finite(path, name)
        if vector.is_pruned(name):
            writer.write(name, vector.read(name))
        elif layouts[name].encoding == "dense":  # else zero: an adapter does not change it
            writer.write_block(name, values, start)
        rounding = (
            vector.base_rounding(name, base, values)
            if isinstance(vector, FinetunedTaskVector)
            else BaseRounding()
        )
        return energy(values), energy(base), rounding, values.numel() * values.element_size()

    layouts = vector.layouts
    total = sum(layout.spec.nbytes for layout in layouts.values())
    blocks = (
        (name, start, min(start + step, spec.numel))
        for name, spec in vector.base.float_specs.items()
        for step in [max(1, spec.numel) if vector.is_pruned(name) else BLOCK]
        for start in range(0, spec.numel, step)
    )
    content = ContentHash(vector.base.float_specs)
    squares: dict[str, list[float]] = {name: [] for name in vector.base.float_specs}
    base_squares: list[float] = []
    rounding = BaseRounding()
    for (name, _, _), (square, base_square, rounded, nbytes) in run_parallel(
        write_block, blocks, threads
    ):
        squares[name].append(square)
        base_squares.append(base_square)
        rounding += rounded
        progress(nbytes, total)
    # fsum is exact, so that sums do not depend on the order in which the threads finish
    norms = {name: math.fsum(parts) ** 0.5 for name, parts in squares.items()}
    if total_norm(norms) == 0:
        raise zero_delta(vector.path)
    return norms, content.hexdigest(), math.fsum(base_squares) ** 0.5, rounding
