"""Merges in memory are those that `merge` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from operation_calls import merged, plan
from safetensors.torch import load_file, save_file

from lorsmerge_cli import merge
from lorsmerge_cli.core.methods import METHODS
from lorsmerge_cli.core.pruning import repeated
from lorsmerge_cli.errors import NonFinite
from lorsmerge_cli.operations.merge.inputs import open_inputs
from lorsmerge_cli.operations.search.merges import RepeatedMerge
from lorsmerge_cli.recipe.recipe import DeltaEntry, Recipe

# of the largest update of a tensor: the decomposition is of a larger rank
CLOSE = 1e-5
STEP = torch.finfo(torch.float32).eps  # of a value: the sum is in another order, and rounded once
SHARED = [
    {"svp": 0.05, "mp": 0.4, "scale": 0.15},
    {"svp": 0.3, "mp": 0.1, "scale": 0.5},
    {"svp": 0.05, "mp": 0.4, "scale": -0.7},
    {"mp": 0.2, "scale": 0.3},
    {"svp": 0.1, "scale": 0.3},
    {"scale": 0.2},
    {"svp": 0.3, "mp": 0.1, "scale": 0.0},
]
WITHOUT_RATIOS = [
    name for name, method in METHODS.items() if not (method.ratios or method.statistics)
]
PAIRS = ["lors:around=mean", "lors", "lors+model_stock", "lors:around=mean+ties:k=0.5"]
OWN = [
    ({"svp": 0.05, "mp": 0.4, "scale": 0.1}, {"svp": 0.3, "mp": 0.2, "scale": 0.6}),
    ({"svp": 0.05, "mp": 0.4, "scale": 0.1}, {"scale": 0.6}),
]


def recipe_of(models: Path, deltas: Path, *own: dict[str, float], **shared: Any) -> Recipe:
    entries = [
        DeltaEntry(str(deltas / f"{name}.delta"), **settings)
        for name, settings in zip(("ca", "de"), own or ({}, {}), strict=True)
    ]
    return Recipe(str(models / "base"), tuple(entries), **shared)


@pytest.fixture(params=[0, 1 << 30], ids=["nothing kept", "all kept"])
def repeated_merge(models: Path, deltas: Path, request: pytest.FixtureRequest) -> RepeatedMerge:
    inputs = open_inputs(recipe_of(models, deltas, svp=0.3, mp=0.4).resolved())
    return RepeatedMerge(inputs, 0.3, torch.device("cpu"), 2, request.param)


def test_every_recipe_comes_out_as_from_merge(
    repeated_merge: RepeatedMerge, models: Path, deltas: Path, tmp_path: Path
) -> None:
    base = load_file(models / "base" / "model.safetensors")
    recipes = [recipe_of(models, deltas, **settings) for settings in SHARED]
    recipes += [recipe_of(models, deltas, *own) for own in OWN]
    for method in WITHOUT_RATIOS:
        recipes += [recipe_of(models, deltas, method=method, scale=x) for x in (0.5, -0.2)]
        recipes += [recipe_of(models, deltas, {"scale": 0.1}, {"scale": 0.6}, method=method)]
    recipes += [
        recipe_of(models, deltas, method=method, svp=0.05, mp=0.4, scale=0.5) for method in PAIRS
    ]
    recipes += [recipe_of(models, deltas, method="dare:keep=0.2,seed=2,around=mean", scale=0.5)]
    for number, recipe in enumerate(recipes):
        expected = merged(
            models / "base", list(recipe.resolved().deltas), tmp_path / f"{number}.safetensors",
            method=recipe.resolved().method,
        )  # fmt: skip
        found = dict(repeated_merge.weights(recipe))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            largest = float((value - base[name]).abs().max()) if value.is_floating_point() else 0
            error = (found[name].double() - value.double()).abs()
            assert bool((error <= CLOSE * largest + STEP * value.abs()).all()), (recipe, name)
            assert found[name].dtype == value.dtype


def test_the_step_is_as_long_as_merge_says(
    repeated_merge: RepeatedMerge, models: Path, deltas: Path, tmp_path: Path
) -> None:
    recipes = [recipe_of(models, deltas, **settings) for settings in SHARED]
    recipes += [recipe_of(models, deltas, *own) for own in OWN]
    for method in WITHOUT_RATIOS:
        recipes += [recipe_of(models, deltas, method=method, scale=x) for x in (0.5, -0.2)]
        recipes += [recipe_of(models, deltas, {"scale": 0.1}, {"scale": 0.6}, method=method)]
    for number, recipe in enumerate(recipes):
        resolved = recipe.resolved()
        wanted = merge(
            models / "base", list(resolved.deltas), tmp_path / f"{number}.safetensors",
            method=resolved.method,
        ).step  # fmt: skip
        assert repeated_merge.step_norm(recipe) == pytest.approx(wanted, rel=1e-4, abs=1e-12)


def test_another_lambda_prunes_nothing_again(
    models: Path, deltas: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    real = repeated.RepeatedPruning.prune

    def record(self: repeated.RepeatedPruning, *arguments: object) -> object:
        counted.append(1)
        return real(self, *arguments)

    monkeypatch.setattr(repeated.RepeatedPruning, "prune", record)
    inputs = open_inputs(recipe_of(models, deltas, svp=0.3, mp=0.4).resolved())
    merge = RepeatedMerge(inputs, 0.3, torch.device("cpu"), 1, 1 << 30)
    numbers = []
    for settings in ((0.3, 0.4, 0.1), (0.3, 0.4, 0.2), (0.1, 0.4, 0.2), (0.3, 0.4, 0.3)):
        recipe = recipe_of(
            models, deltas, **dict(zip(("svp", "mp", "scale"), settings, strict=True))
        )
        list(merge.weights(recipe))
        numbers.append(len(counted))
    each = 2 * len(inputs.pruned)
    assert numbers == [each, each, 2 * each, 2 * each]


def test_what_is_kept_stays_within_the_limit(models: Path, deltas: Path) -> None:
    inputs = open_inputs(recipe_of(models, deltas, svp=0.3, mp=0.4).resolved())
    limit = 200_000
    merge = RepeatedMerge(inputs, 0.3, torch.device("cpu"), 2, limit)
    for svp in (0.1, 0.2, 0.3):
        list(merge.weights(recipe_of(models, deltas, svp=svp, mp=0.4, scale=0.1)))
        held = [value.numel() * value.element_size() for value in merge.cache._held.values()]
        assert held
        assert sum(held) == merge.cache._used <= limit


def test_a_smaller_limit_holds_at_once(models: Path, deltas: Path) -> None:
    recipe = recipe_of(models, deltas, svp=0.3, mp=0.4, scale=0.1)
    inputs = open_inputs(recipe.resolved())
    merge = RepeatedMerge(inputs, 0.3, torch.device("cpu"), 2, 1 << 30)
    expected = dict(merge.weights(recipe))
    for limit in (200_000, 0):
        merge.cache.resize(limit)
        assert merge.cache._used <= limit == merge.cache.size
        assert all(torch.equal(value, expected[name]) for name, value in merge.weights(recipe))


@pytest.mark.parametrize("settings", [{"svp": 0.1}, *({"method": m} for m in WITHOUT_RATIOS)])
def test_a_tensor_that_is_no_number_is_named(
    models: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    tensors = load_file(models / "ca" / "model.safetensors")
    name = next(name for name in tensors if name.endswith("fc1.weight"))
    tensors[name][0, 0] = torch.nan
    save_file(tensors, tmp_path / "nan.safetensors")
    entry = DeltaEntry(str(tmp_path / "nan.safetensors"))
    wanted = Recipe(str(models / "base"), (entry,), scale=0.1, **settings)
    merge = RepeatedMerge(open_inputs(wanted.resolved()), 0.1, torch.device("cpu"), 1, 0)
    with pytest.raises(NonFinite, match=rf"nan.safetensors: '{name}'"):
        list(merge.weights(wanted))


def test_the_plan_of_a_merge_takes_the_same_tensors(
    models: Path, deltas: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(models, deltas, svp=0.3, mp=0.4)
    found = plan(models / "base", list(recipe.deltas), tmp_path / "x", svp=0.3, mp=0.4)
    assert open_inputs(recipe.resolved()).pruned == found.pruned
