"""Merges of deltas that are low-rank factors, which stay factors where the method allows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from operation_calls import (
    BIAS,
    CONV,
    EMBEDDING,
    FC1,
    FC2,
    SHAPES,
    load,
    plan,
    save,
    small_base,
    tuned,
)

from lorsmerge_cli import delta, merge
from lorsmerge_cli.core import core_space as module
from lorsmerge_cli.core.low_rank_sparse import LowRankSparse
from lorsmerge_cli.core.merging import is_finite
from lorsmerge_cli.deltas.encodings import TensorLayout
from lorsmerge_cli.deltas.file import DeltaFile, DeltaWriter
from lorsmerge_cli.errors import NonFinite
from lorsmerge_cli.operations.merge import run_merge
from lorsmerge_cli.operations.merge.inputs import open_inputs
from lorsmerge_cli.operations.search.merges import RepeatedMerge
from lorsmerge_cli.recipe.recipe import DeltaEntry, Recipe

METHODS = ["tsv_m", "tsv_m:beta=0.3", "iso_c", "boost", "star", "star+iso_c"]
RANKS = {FC1: 2, FC2: 1, EMBEDDING: 3}  # and nothing in convolution and bias


def factors_delta(
    folder: Path, seed: int, dtype: torch.dtype = torch.float32, size: float = 0.01
) -> Path:
    """A delta file as an adapter becomes one: factors of some matrices, and nothing of the rest."""
    generator = torch.Generator().manual_seed(seed)
    layouts, parts, norms = {}, {}, {}
    for name, shape in SHAPES.items():
        rank = RANKS.get(name, 0)
        layouts[name] = TensorLayout("lors", shape, dtype, rank)
        norms[name] = 0.0
        if rank:
            left, right = (
                (torch.randn(s, generator=generator) * size**0.5).to(dtype)
                for s in ((shape[0], rank), (rank, shape[1]))
            )
            parts[name] = LowRankSparse(left, right)
            norms[name] = float((left.double() @ right.double()).norm())
    path = folder / f"{seed}.delta"
    with DeltaWriter(path, layouts, DeltaFile(folder / "dense.delta").provenance) as writer:
        for name, part in parts.items():
            writer.write(name, part)
        writer.finish(norms)
    return path


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a base and a dense delta of it."""
    base = small_base()
    save(tmp_path / "base", base)
    save(tmp_path / "tuned", tuned(base))
    delta(tmp_path / "base", tmp_path / "tuned", tmp_path / "dense.delta")
    return tmp_path


def entries(paths: Sequence[Path]) -> list[DeltaEntry]:
    return [DeltaEntry(str(path), scale=0.5) for path in paths]


def without_core_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST", -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_the_merge_is_that_of_the_products(
    here: Path, method: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = entries([factors_delta(here, seed, dtype) for seed in (1, 2, 3)])
    found = merge(here / "base", given, here / "core.safetensors", method=method)
    without_core_space(monkeypatch)
    plain = merge(here / "base", given, here / "plain.safetensors", method=method)
    assert found.step == pytest.approx(plain.step, rel=1e-5)
    assert found.norms == pytest.approx(plain.norms, rel=1e-5)
    assert found.kept == pytest.approx(plain.kept, rel=1e-5)
    base = load(here / "base")
    for name, value in load(here / "plain.safetensors").items():
        got = load(here / "core.safetensors")[name]
        torch.testing.assert_close(got, value, rtol=1e-6, atol=1e-8)
        if name in (CONV, BIAS, "positions", "mask"):
            assert torch.equal(got, base[name])
        else:
            assert not torch.equal(got, base[name])


@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "boost"])
def test_no_product_is_made(here: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.Size] = []
    real = LowRankSparse.to_dense
    monkeypatch.setattr(
        LowRankSparse, "to_dense", lambda self: made.append(self.shape) or real(self)
    )
    given = entries([factors_delta(here, seed) for seed in (1, 2)])
    merge(here / "base", given, here / "out.safetensors", method=method)
    assert {tuple(shape) for shape in made} == {SHAPES[CONV], SHAPES[BIAS]}  # zeros of one element


@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "boost"])
def test_beside_a_dense_delta_all_are_dense(
    here: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = entries([factors_delta(here, 1), here / "dense.delta"])
    merge(here / "base", given, here / "mixed.safetensors", method=method)
    without_core_space(monkeypatch)
    merge(here / "base", given, here / "plain.safetensors", method=method)
    for name, value in load(here / "plain.safetensors").items():
        assert torch.equal(load(here / "mixed.safetensors")[name], value)


@pytest.mark.parametrize("method", ["ta", "wa", "ties", "model_stock"])
def test_other_methods_do_what_they_did(
    here: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "core_space", None)  # which would fail
    given = entries([factors_delta(here, seed) for seed in (1, 2)])
    merge(here / "base", given, here / "out.safetensors", method=method)


def test_the_plan_knows_that_factors_are_small(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorsmerge_cli.operations.merge.plan.BLOCK", 1)
    small = entries([factors_delta(here, seed) for seed in range(1, 5)])

    def memory(given: list[DeltaEntry], **settings: object) -> int:
        return plan(here / "base", given, here / "out.safetensors", **settings).memory

    factors = memory(small, method="tsv_m")
    mixed = memory([*small[:-1], *entries([here / "dense.delta"])], method="tsv_m")
    assert factors < mixed
    # a rule that looks at all deltas, pruning around their mean, and other methods need the products
    assert memory(small, method="tsv_m", coef=["model_stock"]) == mixed
    assert memory(small, method="star:around=mean+tsv_m") >= mixed
    assert memory(small, method="ties") > factors
    without_core_space(monkeypatch)
    assert memory(small, method="tsv_m") == mixed


@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "boost"])
def test_a_search_merges_them_alike(here: Path, method: str) -> None:
    given = entries([factors_delta(here, seed) for seed in (1, 2)])
    recipe = Recipe(str(here / "base"), tuple(given), method=method)
    inputs = open_inputs(recipe.resolved())
    repeated = RepeatedMerge(inputs, None, torch.device("cpu"), 1, 1 << 30)
    found = dict(repeated.weights(recipe))
    merge(here / "base", given, here / "out.safetensors", method=method)
    for name, value in load(here / "out.safetensors").items():
        assert torch.equal(found[name], value)


@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "boost", "star"])
def test_factors_that_are_not_finite_are_named(here: Path, method: str) -> None:
    path = factors_delta(here, 1)
    raw = bytearray(path.read_bytes())
    raw[-4:] = b"\x00\x00\xc0\x7f"  # NaN
    path.write_bytes(raw)
    given = entries([path, factors_delta(here, 2)])
    assert not all(is_finite(DeltaFile(path).read(name)) for name in RANKS)
    with pytest.raises(NonFinite, match=r"1\.delta"):
        merge(here / "base", given, here / "out.safetensors", method=method)


@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "boost"])
def test_threads_change_nothing(here: Path, method: str) -> None:
    given = entries([factors_delta(here, seed) for seed in (1, 2, 3)])
    one, two = (here / f"{threads}.safetensors" for threads in (1, 2))
    for path, threads in ((one, 1), (two, 2)):
        run_merge(replace(plan(here / "base", given, path, method=method), threads=threads))
    for name, value in load(one).items():
        assert torch.equal(load(two)[name], value)
