"""The low-rank part of a pruned delta as a PEFT adapter, and how much of the delta that is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lorsmerge_cli.checkpoint.model_files import ADAPTER_CONFIG, ADAPTER_FILES
from lorsmerge_cli.checkpoint.names import linear_weights
from lorsmerge_cli.checkpoint.references import pinned_parts
from lorsmerge_cli.checkpoint.safetensors_file import (
    SafetensorsWriter,
    TensorSpec,
    metadata_size,
)
from lorsmerge_cli.core.low_rank_sparse import Delta, LowRankSparse, accumulable
from lorsmerge_cli.core.merging import is_finite
from lorsmerge_cli.core.statistics import energy
from lorsmerge_cli.deltas.conv1d import conv1d_weights
from lorsmerge_cli.deltas.encodings import TensorLayout
from lorsmerge_cli.deltas.file import DeltaFile
from lorsmerge_cli.errors import UsageFault, named, non_finite, raise_all
from lorsmerge_cli.outputs import atomic_folder, check_output, check_unchanged, write_json
from lorsmerge_cli.quoting import command

PREFIX = "base_model.model."  # what PEFT puts before a module's name
METADATA = {"format": "pt"}


@dataclass(frozen=True)
class LoraReport:
    """What an adapter holds of a delta.

    Attributes:
        output: the adapter's folder.
        modules: with a low-rank part, which is in the adapter.
        rank: the largest.
        low_rank: share of the delta's energy (squared norm) that the low-rank parts have.
        sparse: the same of the sparse parts, which are left out.
        sparse_entries: in all sparse parts.
        others: the same of all other tensors, which are left out.
        other_tensors: how many of those change anything.
        nbytes: of the weights file.
    """

    output: Path
    modules: int
    rank: int
    low_rank: float
    sparse: float
    sparse_entries: int
    others: float
    other_tensors: int
    nbytes: int


def open_low_rank(source: Path) -> DeltaFile:
    """Open a delta with low-rank parts.

    Raises:
        UsageFault: it has none, or one of a layer whose type its shape does not tell.
    """
    file = DeltaFile(source)
    check_low_rank(source, file.layouts)
    unknown = [name for name, is_conv1d in _adapted(file.layouts).items() if is_conv1d is None]
    if unknown:
        raise UsageFault(
            f"{source}: nothing tells whether these square weights are of a Conv1D, as GPT-2's are, or "
            f"of a Linear, and an adapter's factors depend on it: {named(unknown)}.",
            f"Leave them out of it: prune with {command('--exclude', unknown[0])}.",
        )
    return file


def check_low_rank(source: Path, layouts: Mapping[str, TensorLayout]) -> None:
    """Raise UsageFault where a delta has, or will have, no low-rank part for an adapter."""
    if not _adapted(layouts):
        raise UsageFault(
            f"{source} has no low-rank part for an adapter.",
            "Prune it on the way: --svp 0.05 -o pruned.delta beside --as-lora.",
        )


def _adapted(layouts: Mapping[str, TensorLayout]) -> dict[str, bool | None]:
    """Tell of every weight that an adapter can hold a part of whether it is a Conv1D's.

    That is each linear weight with a low-rank part; PEFT ties embeddings.
    """
    specs = {name: TensorSpec(layout.shape, layout.dtype) for name, layout in layouts.items()}
    linear, conv1d = linear_weights(specs), conv1d_weights(specs)
    return {name: conv1d[name] for name in specs if name in linear and layouts[name].rank}


def check_adapter(output: Path, inputs: list[Path], force: bool) -> None:
    """Raise OutputFault where the adapter's folder cannot be written."""
    raise_all(check_output(output, inputs=inputs, size=0, force=force, folder=True))


def write_lora(
    file: DeltaFile,
    output: Path,
    *,
    force: bool,
    progress: Callable[[int, int], None],
    whole: float | None = None,
) -> LoraReport:
    """Write the low-rank parts L = left @ right as LoRA factors B = left, A = right.

    The adapter's scaling is 1: with it a model's weights are base + L. Of a Conv1D, whose weight is
    the transpose of what PEFT takes B @ A for, the factors are B = right^T and A = left^T.

    Args:
        file: of `open_low_rank`.
        output: the adapter's folder.
        force: replace one that exists.
        progress: told the bytes done and the bytes in all.
        whole: energy that the report's shares are of, where the file was pruned from a delta that
            had more; the file's own by default.

    Raises:
        LorsmergeError: see the subclasses; nothing is written then.
    """
    check_adapter(output, [file.local], force)
    stored: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    low_rank, sparse, others = [], [], []
    file_specs, adapted = file.specs, _adapted(file.layouts)
    total = sum(spec.nbytes for spec in file_specs.values())
    for name, layout in file.layouts.items():
        progress(file_specs[name].nbytes, total)
        factors = _factors(file.read(name)) if name in adapted else None
        if factors is None:
            others.append(file.norms[name] ** 2)
            continue
        module = name.removesuffix(".weight")
        ranks[module] = layout.rank
        left, right, rest = factors
        a, b = (left.T, right.T) if adapted[name] else (right, left)
        stored[f"{PREFIX}{module}.lora_A.weight"] = a.contiguous()
        stored[f"{PREFIX}{module}.lora_B.weight"] = b.contiguous()
        product = accumulable(left) @ accumulable(right)
        if not is_finite(product):
            raise non_finite(file.path, name)
        low_rank.append(energy(product))
        sparse.append(0.0 if rest is None else energy(accumulable(rest)))
    with atomic_folder(output, force=force) as partial:
        specs = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in stored.items()}
        size = metadata_size(METADATA)
        with SafetensorsWriter(partial / ADAPTER_FILES[0], specs, size) as writer:
            for name, factor in stored.items():
                writer.write(name, factor)
            writer.finish(METADATA)
        write_json(partial / ADAPTER_CONFIG, _config(file, ranks, any(adapted.values())))
        check_unchanged(file.identities)
    whole = whole or math.fsum(norm**2 for norm in file.norms.values()) or 1.0
    return LoraReport(
        output=output,
        modules=len(ranks),
        rank=max(ranks.values()),
        low_rank=math.fsum(low_rank) / whole,
        sparse=math.fsum(sparse) / whole,
        sparse_entries=sum(file.layouts[f"{module}.weight"].kept for module in ranks),
        others=math.fsum(others) / whole,
        other_tensors=sum(value > 0 for value in others),
        nbytes=(output / ADAPTER_FILES[0]).stat().st_size,
    )


def _factors(delta: Delta) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """L's two factors and S; None where there is no L."""
    if not isinstance(delta, LowRankSparse) or delta.left is None or delta.right is None:
        return None
    return delta.left, delta.right, delta.sparse


def _config(file: DeltaFile, ranks: dict[str, int], has_conv1d: bool) -> dict[str, Any]:
    """PEFT's adapter_config.json: scaling is lora_alpha / r, 1 in every module."""
    rank = max(ranks.values())
    exact = _exact(ranks, file.specs)
    others = {exact[module]: value for module, value in ranks.items() if value != rank}
    name = file.provenance.base_name
    base, revision = pinned_parts(name) or (name, None)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "revision": revision,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "lora_dropout": 0.0,
        "bias": "none",
        # a word for all modules: PEFT itself sets it right for each that is of the other type
        "fan_in_fan_out": has_conv1d,
        "inference_mode": True,
        "target_modules": _targets(ranks, exact),
    }


def _exact(ranks: Mapping[str, int], names: Iterable[str]) -> dict[str, str]:
    """Each module's name as a pattern that PEFT finds in no other name.

    PEFT compares the end of a module's name with the pattern, so that `layers.0.fc1` would be
    `decoder.layers.0.fc1` as well. Where a model has both, the beginning is marked.
    """
    modules = {name.rpartition(".")[0] for name in names}
    ends = {module[i + 1 :] for module in modules for i, c in enumerate(module) if c == "."}
    return {module: f"^{module}" if module in ends else module for module in ranks}


def _targets(ranks: Mapping[str, int], exact: Mapping[str, str]) -> list[str] | str:
    """`target_modules`: names or, where one of them is the end of another module's, a regular expression."""
    if all(exact[module] == module for module in ranks):
        return sorted(ranks)
    return "|".join(re.escape(module) for module in sorted(ranks))
