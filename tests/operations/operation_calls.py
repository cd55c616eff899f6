"""Small models to call the operations on, and what the operations make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lorsmerge_cli import merge
from lorsmerge_cli.checkpoint.fingerprint import fingerprint
from lorsmerge_cli.core.low_rank_sparse import LowRankSparse, dense
from lorsmerge_cli.deltas.encodings import TensorLayout
from lorsmerge_cli.deltas.file import DeltaWriter, Provenance
from lorsmerge_cli.operations.merge import MergePlan, plan_merge
from lorsmerge_cli.recipe.recipe import DeltaEntry, wanted_recipe

FC1 = "model.encoder.layers.0.fc1.weight"
FC2 = "model.encoder.layers.0.fc2.weight"
BIAS = "model.encoder.layers.0.fc1.bias"
EMBEDDING = "model.decoder.embed_tokens.weight"
CONV = "model.encoder.conv1.weight"
SHAPES = {FC1: (48, 32), FC2: (32, 48), BIAS: (48,), EMBEDDING: (20, 32), CONV: (8, 4, 3)}

Tensors = dict[str, torch.Tensor]


def small_base(dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensors:
    """A model with one tensor of each sort, integers and flags among them."""
    generator = torch.Generator().manual_seed(seed)
    floats = {
        name: (torch.randn(shape, generator=generator) * 0.05).to(dtype)
        for name, shape in SHAPES.items()
    }
    return floats | {"positions": torch.arange(9), "mask": torch.tensor([True, False, True])}


def tuned(base: Tensors, seed: int = 1, step: float = 1e-3) -> Tensors:
    """A fine-tune: every float moved, integers changed as well."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (t.double() + step * torch.randn(t.shape, generator=generator).double()).to(t.dtype)
        if t.is_floating_point()
        else (t + 1 if t.dtype != torch.bool else ~t)
        for name, t in base.items()
    }


def save(path: Path, tensors: Tensors) -> Path:
    save_file(tensors, path)
    return path


def load(path: Path) -> Tensors:
    """Every tensor of a file or a model folder."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def same_bits(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and a[name].shape == b[name].shape
        and a[name].reshape(-1).view(torch.uint8).equal(b[name].reshape(-1).view(torch.uint8))
        for name in a
    )


PLANNING = ("threads", "max_shard_size", "force", "allow_other_base")


def plan(base: Path, deltas: list[Path | DeltaEntry], output: Path, **changes: Any) -> MergePlan:
    """A plan; `changes` go to the recipe, those of PLANNING to the planning."""
    planning = {key: changes.pop(key) for key in PLANNING if key in changes}
    return plan_merge(wanted_recipe(base, deltas, **changes), output, **planning)


def merged(base: Path, deltas: list[Path | DeltaEntry], output: Path, **changes: Any) -> Tensors:
    """The tensors of a merge."""
    merge(base, deltas, output, **changes)
    return load(output)


def write_delta(path: Path, tensors: dict[str, torch.Tensor | LowRankSparse]) -> Path:
    """A delta file that no command would write."""
    layouts = {}
    for name, item in tensors.items():
        if isinstance(item, LowRankSparse):
            rank = 0 if item.left is None else item.left.shape[1]
            kept = 0 if item.mask is None else int(item.mask.sum())
            layouts[name] = TensorLayout(
                "lors", tuple(dense(item).shape), torch.float32, rank, kept
            )
        else:
            layouts[name] = TensorLayout("dense", tuple(item.shape), item.dtype)
    provenance = Provenance("base", fingerprint({}, lambda name: torch.zeros(0)), "F32")
    with DeltaWriter(path, layouts, provenance) as writer:
        for name, item in tensors.items():
            writer.write(name, item)
        # an inspection does not take its word for it, but that nothing is stored
        writer.finish({name: float(dense(item).any()) for name, item in tensors.items()})
    return path
