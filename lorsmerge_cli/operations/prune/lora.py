"""The low-rank part of a pruned delta as a PEFT adapter, and its share of the delta."""

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
from lorsmerge_cli.checkpoint.safetensors_file import SafetensorsWriter, TensorSpec, metadata_size
from lorsmerge_cli.core.low_rank_sparse import LowRankSparse, accumulable
from lorsmerge_cli.core.merging import is_finite
from lorsmerge_cli.core.statistics import energy
from lorsmerge_cli.deltas.adapter import PREFIX
from lorsmerge_cli.deltas.conv1d import conv1d_weights
from lorsmerge_cli.deltas.encodings import TensorLayout
from lorsmerge_cli.deltas.file import DeltaFile
from lorsmerge_cli.errors import UsageFault, named, non_finite, raise_all
from lorsmerge_cli.outputs import atomic_folder, check_output, check_unchanged, write_json
from lorsmerge_cli.quoting import command

METADATA = {"format": "pt"}


@dataclass(frozen=True)
class LoraReport:
    """The parts of a delta that an adapter holds and skips.

    Attributes:
        output: the adapter's folder.
        modules: number of modules in the adapter, which have a low-rank part.
        rank: the largest rank.
        low_rank: share of the delta's energy (squared norm) in the low-rank parts.
        sparse: share of the energy in the sparse parts, which are skipped.
        sparse_entries: number of elements of the sparse parts.
        others: share of the energy in all other tensors, which are skipped.
        other_tensors: number of those that are not zero.
        nbytes: size of the weights file.
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
        UsageFault: it has none, or one in a layer that may be a Conv1D or a Linear.
    """
    file = DeltaFile(source)
    check_low_rank(source, file.layouts)
    unknown = [name for name, is_conv1d in _adapted(file.layouts).items() if is_conv1d is None]
    if unknown:
        raise UsageFault(
            f"{source}: these square weights may be of a Conv1D, like GPT-2's, or of a Linear, and an "
            f"adapter's factors depend on that: {named(unknown)}.",
            f"Exclude them: prune with {command('--exclude', unknown[0])}.",
        )
    return file


def check_low_rank(source: Path, layouts: Mapping[str, TensorLayout]) -> None:
    """Raise UsageFault if the layouts of a delta have no low-rank part for an adapter."""
    if not _adapted(layouts):
        raise UsageFault(
            f"{source} has no low-rank part for an adapter.",
            "Prune it as well: add --svp 0.05 -o pruned.delta to --as-lora.",
        )


def _adapted(layouts: Mapping[str, TensorLayout]) -> dict[str, bool | None]:
    """Return for each linear weight with a low-rank part whether it is a Conv1D's; None if unknown.

    Embeddings are skipped, because PEFT ties them.
    """
    specs = {name: layout.spec for name, layout in layouts.items()}
    linear, conv1d = linear_weights(specs), conv1d_weights(specs)
    return {name: conv1d[name] for name in specs if name in linear and layouts[name].rank}


def check_adapter(output: Path, inputs: list[Path], force: bool) -> None:
    """Raise OutputFault if the adapter's folder cannot be written."""
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

    The adapter's scaling is 1, so that a model with it has the weights base + L. PEFT transposes
    B @ A for a Conv1D, whose factors are therefore B = right^T and A = left^T.

    Args:
        file: from `open_low_rank`.
        output: the adapter's folder.
        force: replace an existing folder.
        progress: called with the bytes just read and the bytes in all.
        whole: energy of the delta before pruning, which the report's shares refer to; the file's
            own by default.

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
        delta = file.read(name) if name in adapted else None
        if not isinstance(delta, LowRankSparse) or delta.left is None or delta.right is None:
            others.append(file.norms[name] ** 2)
            continue
        module = name.removesuffix(".weight")
        ranks[module] = layout.rank
        left, right = delta.left, delta.right
        a, b = (left.T, right.T) if adapted[name] else (right, left)
        stored[f"{PREFIX}{module}.lora_A.weight"] = a.contiguous()
        stored[f"{PREFIX}{module}.lora_B.weight"] = b.contiguous()
        product = accumulable(left) @ accumulable(right)
        if not is_finite(product):
            raise non_finite(file.path, name)
        low_rank.append(energy(product))
        sparse.append(0.0 if delta.sparse is None else energy(accumulable(delta.sparse)))
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


def _config(file: DeltaFile, ranks: dict[str, int], has_conv1d: bool) -> dict[str, Any]:
    """Return PEFT's adapter_config.json, with the scaling lora_alpha / r = 1 in every module."""
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
        # one setting for all modules; PEFT corrects it for each module of the other type
        "fan_in_fan_out": has_conv1d,
        "inference_mode": True,
        "target_modules": _targets(ranks, exact),
    }


def _exact(ranks: Mapping[str, int], names: Iterable[str]) -> dict[str, str]:
    """Return for each module a pattern that PEFT matches with no other module.

    PEFT compares a pattern with the end of a name, so that `layers.0.fc1` matches
    `decoder.layers.0.fc1` as well. If a model has both, the pattern begins with `^`.
    """
    modules = {name.rpartition(".")[0] for name in names}
    ends = {module[i + 1 :] for module in modules for i, c in enumerate(module) if c == "."}
    return {module: f"^{module}" if module in ends else module for module in ranks}


def _targets(ranks: Mapping[str, int], exact: Mapping[str, str]) -> list[str] | str:
    """Return `target_modules`: names, or a regular expression if one name ends another module's."""
    if all(exact[module] == module for module in ranks):
        return sorted(ranks)
    return "|".join(re.escape(module) for module in sorted(ranks))
