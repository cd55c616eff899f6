"""Experts in 3-D tensors: whole by default, matrix by matrix on request, and the same everywhere."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import reference
import torch
from operation_calls import Tensors, merged, plan, same_bits, save, tuned
from safetensors.torch import load_file

from lorsmerge_cli import delta, merge, merge_state_dicts, prune
from lorsmerge_cli.core.low_rank_sparse import dense
from lorsmerge_cli.deltas.file import DeltaFile
from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.operations.merge.inputs import open_inputs
from lorsmerge_cli.operations.search.merges import RepeatedMerge
from lorsmerge_cli.recipe.recipe import DeltaEntry, Recipe

UP, DOWN = "model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"
Q = "model.layers.0.self_attn.q_proj.weight"
SHAPES = {
    "model.embed_tokens.weight": (40, 16),
    Q: (16, 16),
    "model.layers.0.mlp.gate.weight": (4, 16),
    UP: (4, 16, 24),
    DOWN: (4, 12, 16),
    f"{DOWN}_bias": (4, 16),
    "model.layers.0.conv.weight": (16, 1, 3),
}
EXPERTS = ("*experts*",)
RATIOS = [(0.2, 0.1), (0.2, None), (None, 0.1)]


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    """A folder with a small mixture `base`, its fine-tunes `ca` and `de`, and their deltas."""
    generator = torch.Generator().manual_seed(0)
    base: Tensors = {n: torch.randn(s, generator=generator) * 0.05 for n, s in SHAPES.items()}
    save(tmp_path / "base", base)
    for seed, name in enumerate(("ca", "de"), 1):
        save(tmp_path / name, tuned(base, seed, step=1e-2))
        delta(tmp_path / "base", tmp_path / name, tmp_path / f"{name}.delta")
    return tmp_path


def expected(stack: torch.Tensor, svp: float | None, mp: float | None) -> torch.Tensor:
    """Eq. 5-7 of each matrix, in float64."""
    done = []
    for matrix in stack.double():
        low_rank = torch.zeros_like(matrix)
        if svp:
            u, s, v = torch.linalg.svd(matrix, full_matrices=False)
            rank = max(1, math.floor(svp * min(matrix.shape)))
            low_rank = (u[:, :rank] * s[:rank]) @ v[:rank]
        residual = (matrix - low_rank).reshape(-1)
        kept = residual.abs().argsort(descending=True)[: math.floor((mp or 0) * matrix.numel())]
        sparse = torch.zeros_like(residual)
        sparse[kept] = residual[kept]
        done.append(low_rank + sparse.reshape(matrix.shape))
    return torch.stack(done)


@pytest.mark.parametrize(("svp", "mp"), RATIOS)
def test_merge_and_prune_give_the_same_bits(
    mixture: Path, svp: float | None, mp: float | None
) -> None:
    names = ("ca", "de")
    at_once = merged(
        mixture / "base", [mixture / f"{name}.delta" for name in names], mixture / "a.safetensors",
        svp=svp, mp=mp, scale=0.5, include=EXPERTS,
    )  # fmt: skip
    for name in names:
        prune(
            mixture / f"{name}.delta", mixture / f"{name}.p.delta", svp=svp, mp=mp, include=EXPERTS
        )
    after = merged(
        mixture / "base", [mixture / f"{name}.p.delta" for name in names],
        mixture / "b.safetensors", scale=0.5,
    )  # fmt: skip
    assert same_bits(at_once, after)
    base = load_file(mixture / "base")
    deltas = [load_file(mixture / f"{name}.delta") for name in names]
    for name in (UP, DOWN, Q):
        stacks = [delta[name].reshape(-1, *delta[name].shape[-2:]) for delta in deltas]
        total = sum(expected(stack, svp, mp) for stack in stacks)
        wanted = base[name].double() + 0.5 * total.reshape(base[name].shape)
        assert (at_once[name].double() - wanted).abs().gt(1e-6).sum() <= 2  # of MP's threshold
    pruned = DeltaFile(mixture / "ca.p.delta")
    assert pruned.layouts[UP].encoding == "dense"
    assert dense(pruned.read(UP)).shape == SHAPES[UP]


def test_by_default_they_are_merged_whole(mixture: Path) -> None:
    found = merged(
        mixture / "base", [mixture / "ca.delta"], mixture / "a.safetensors", svp=0.2, scale=1.0
    )
    torch.testing.assert_close(found[UP], load_file(mixture / "ca")[UP], rtol=0, atol=1e-7)
    assert plan(
        mixture / "base", [mixture / "ca.delta"], mixture / "b.safetensors", svp=0.2
    ).pruned == {Q}


@pytest.mark.parametrize(("svp", "mp"), RATIOS)
def test_a_search_merges_the_same(mixture: Path, svp: float | None, mp: float | None) -> None:
    entries = tuple(DeltaEntry(str(mixture / f"{name}.delta")) for name in ("ca", "de"))
    recipe = Recipe(str(mixture / "base"), entries, svp=svp, mp=mp, scale=0.3, include=EXPERTS)
    inputs = open_inputs(recipe.resolved())
    repeated = RepeatedMerge(inputs, 0.3, torch.device("cpu"), 2, 1 << 30)
    wanted = merged(
        mixture / "base", list(entries), mixture / "a.safetensors", svp=svp, mp=mp, scale=0.3,
        include=EXPERTS,
    )  # fmt: skip
    for _ in range(2):
        found = dict(repeated.weights(recipe))
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


def test_a_threshold_of_the_whole_model_is_one_for_all_experts(mixture: Path) -> None:
    entries = tuple(DeltaEntry(str(mixture / f"{name}.delta")) for name in ("ca", "de"))
    settings = {"method": "localize:s=0.1+sum", "scale": 1.0, "include": EXPERTS}
    found = merged(mixture / "base", list(entries), mixture / "a.safetensors", **settings)
    base, deltas = load_file(mixture / "base"), [load_file(Path(e.path)) for e in entries]
    pruned = (UP, DOWN, Q)
    left = [
        reference.localize({name: delta[name].double().numpy() for name in pruned}, 0.1)
        for delta in deltas
    ]
    for name in pruned:
        wanted = base[name].double() + sum(torch.from_numpy(delta[name]) for delta in left)
        torch.testing.assert_close(found[name].double(), wanted, rtol=1e-6, atol=1e-9)
    assert same_bits(merge_state_dicts(base, deltas, **settings), found)
    recipe = Recipe(str(mixture / "base"), entries, **settings)
    repeated = RepeatedMerge(open_inputs(recipe.resolved()), None, torch.device("cpu"), 2, 0)
    for name, value in repeated.weights(recipe):
        torch.testing.assert_close(value, found[name], rtol=1e-6, atol=1e-9)


def test_what_is_pruned_and_what_it_takes_is_told(mixture: Path) -> None:
    made = plan(
        mixture / "base",
        [mixture / "ca.delta"],
        mixture / "a.safetensors",
        svp=0.2,
        include=EXPERTS,
    )
    total = sum(math.prod(shape) for shape in SHAPES.values())
    assert made.pruned == {UP, DOWN, Q}
    assert made.pruned_share == pytest.approx((4 * 16 * 24 + 4 * 12 * 16 + 256) / total)
    assert [unit.whole for unit in made.units() if unit.name == UP] == [True]
    assert not any("% of the parameters" in text for text in made.warnings)
    few = plan(mixture / "base", [mixture / "ca.delta"], mixture / "a.safetensors", svp=0.2)
    assert any(
        f"--include {UP.replace('.0.', '.*.')}" in text.replace("'", "") for text in few.warnings
    )
    report = prune(mixture / "ca.delta", mixture / "p.delta", svp=0.2, include=EXPERTS)
    assert report.share == made.pruned_share
    assert report.pruned.tensors == 3
    assert not report.warnings


def test_plain_task_arithmetic_says_nothing_of_shares(mixture: Path) -> None:
    made = plan(mixture / "base", [mixture / "ca.delta"], mixture / "a.safetensors")
    assert not any("of the parameters" in text for text in made.warnings)


@pytest.mark.parametrize("pattern", ["*conv*", "*down_proj_bias"])
def test_a_pattern_without_experts_is_an_error(mixture: Path, pattern: str) -> None:
    with pytest.raises(UsageFault, match="no 3-D tensor of experts"):
        merge(
            mixture / "base", [mixture / "ca.delta"], mixture / "a.safetensors", svp=0.2,
            include=(pattern,),
        )  # fmt: skip
    with pytest.raises(UsageFault, match="no 3-D tensor of experts"):
        prune(mixture / "ca.delta", mixture / "p.delta", svp=0.2, include=(pattern,))
