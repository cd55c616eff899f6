"""Localize-and-Stitch from files and in memory: one threshold for a whole delta, whatever holds it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from operation_calls import (
    EMBEDDING,
    FC1,
    FC2,
    SHAPES,
    Tensors,
    load,
    merged,
    plan,
    same_bits,
    save,
    small_base,
    tuned,
)
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration

from lorsmerge_cli import delta, merge, merge_state_dicts, prune
from lorsmerge_cli.core.low_rank_sparse import dense
from lorsmerge_cli.core.methods import find_method
from lorsmerge_cli.core.pruning import localize
from lorsmerge_cli.core.pruning.localize import READS
from lorsmerge_cli.deltas.file import DeltaFile
from lorsmerge_cli.errors import LorsmergeError, NonFinite
from lorsmerge_cli.operations.merge import plan_merge, run_merge
from lorsmerge_cli.operations.merge.inputs import open_inputs
from lorsmerge_cli.operations.search.merges import RepeatedMerge
from lorsmerge_cli.recipe.recipe import DeltaEntry, Recipe, load_recipe
from lorsmerge_cli.speech.source import find_model

NAMES = ("ca", "de", "es")
PRUNED = (FC1, FC2)


def uneven(base: Tensors, seed: int) -> Tensors:
    """A fine-tune that moves some tensors by far more than others, and each by its own step."""
    steps = {FC1: 1e-4, FC2: 1e-3}
    found = tuned(base, seed)
    for name, step in steps.items():
        found[name] = tuned(base, seed, step=step)[name]
    return found


def files(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    folder.mkdir(exist_ok=True)
    base = small_base(dtype)
    save(folder / "base", base)
    for seed, name in enumerate(NAMES, 1):
        save(folder / name, uneven(base, seed))
        delta(folder / "base", folder / name, folder / f"{name}.delta")
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with a small model `base`, three fine-tunes, and their deltas."""
    return files(tmp_path / "small")


def deltas_of(folder: Path, names: tuple[str, ...] = NAMES) -> list[Path | DeltaEntry]:
    return [folder / f"{name}.delta" for name in names]


def expected(
    base: Tensors, deltas: list[dict[str, np.ndarray]], scales: list[float], share: float,
    pruned: tuple[str, ...] = PRUNED,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """The merged model in float64."""
    left = [
        delta | reference.localize({name: delta[name] for name in pruned}, share)
        for delta in deltas
    ]
    return {
        name: base[name].double() + torch.from_numpy(
            reference.stitch([delta[name] for delta in left], scales)
        )
        for name in SHAPES
    }  # fmt: skip


def in_float64(path: Path) -> dict[str, np.ndarray]:
    file = DeltaFile(path)
    return {name: dense(file.read(name)).double().numpy() for name in file.specs}


def close(found: Tensors, wanted: dict[str, torch.Tensor]) -> None:
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].double(), value, rtol=3e-7, atol=1e-9)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 1.0, 1e-9])
@pytest.mark.parametrize("names", [("ca",), NAMES], ids=len)
def test_on_disk_against_float64(small: Path, tmp_path: Path, names, share: float) -> None:
    entries = [DeltaEntry(str(small / f"{name}.delta"), scale=0.3 + n / 2)
               for n, name in enumerate(names)]  # fmt: skip
    found = merged(
        small / "base", entries, tmp_path / "m.safetensors", method=f"localize:s={share}"
    )
    deltas = [in_float64(small / f"{name}.delta") for name in names]
    scales = [entry.scale for entry in entries]
    close(found, expected(load(small / "base"), deltas, scales, share))


def test_the_threshold_is_of_the_whole_model(small: Path, tmp_path: Path) -> None:
    """The tensor of small steps is left with almost nothing, the other with twice the share."""
    merged_ = merged(
        small / "base", [small / "ca.delta"], tmp_path / "m.safetensors", method="localize:s=0.2"
    )
    base = load(small / "base")
    moved = [int((merged_[name] != base[name]).sum()) for name in PRUNED]
    assert sum(moved) == pytest.approx(0.2 * 2 * 48 * 32, abs=2)
    assert moved[0] < 0.02 * 48 * 32


@pytest.mark.parametrize(
    "settings", [{"include": ("*embed_tokens*",)}, {"exclude": ("*fc2*",)}], ids=str
)
def test_patterns_decide_what_counts(small: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    found = merged(
        small / "base", deltas_of(small), tmp_path / "m.safetensors", method="localize:s=0.1",
        **settings,
    )  # fmt: skip
    pruned = (*PRUNED, EMBEDDING) if "include" in settings else (FC1,)
    deltas = [in_float64(path) for path in deltas_of(small)]
    close(found, expected(load(small / "base"), deltas, [1.0] * 3, 0.1, pruned))


@pytest.mark.parametrize("method", ["localize", "localize:s=0.4", "localize:around=mean+sum"])
def test_what_holds_the_deltas_does_not_matter(small: Path, tmp_path: Path, method: str) -> None:
    """Delta files, fine-tunes, tensors in memory, any order of tensors and number of threads."""
    base = load_file(small / "base")
    wanted = merged(small / "base", deltas_of(small), tmp_path / "a.safetensors", method=method)
    tunes = [small / name for name in NAMES]
    for threads in (1, 3):
        output = tmp_path / f"{threads}.safetensors"
        found = merged(small / "base", list(tunes), output, method=method, threads=threads)
        assert same_bits(found, wanted)
    held = [load_file(path) for path in deltas_of(small)]
    assert same_bits(merge_state_dicts(base, held, method=method), wanted)
    turned = merge_state_dicts(
        dict(reversed(base.items())), [dict(reversed(d.items())) for d in held], method=method
    )
    assert same_bits(turned, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    """Updates of a half-precision model are multiples of its steps, and many of them equal."""
    small = files(tmp_path / "half", dtype)
    deltas = [in_float64(path) for path in deltas_of(small)]
    sizes = np.abs(np.concatenate([deltas[0][name].ravel() for name in PRUNED]))
    assert (len(np.unique(sizes)) < len(sizes) / 2) == (dtype != torch.float64)
    found = merged(
        small / "base", deltas_of(small), tmp_path / "m.safetensors", method="localize:s=0.2",
        dtype="float32",
    )  # fmt: skip
    wanted = expected(load(small / "base"), deltas, [1.0] * 3, 0.2)
    close(found, {name: value.float().double() for name, value in wanted.items()})
    base = load_file(small / "base")
    in_memory = merge_state_dicts(
        base, [load_file(p) for p in deltas_of(small)], method="localize:s=0.2"
    )
    on_disk = merged(
        small / "base", deltas_of(small), tmp_path / "d.safetensors", method="localize:s=0.2"
    )
    assert same_bits(in_memory, on_disk)


def test_a_delta_whose_matrices_are_zero(small: Path, tmp_path: Path) -> None:
    base = load_file(small / "base")
    still = tuned(base, 9) | {name: base[name].clone() for name in PRUNED}
    save(small / "still", still)
    delta(small / "base", small / "still", small / "still.delta")
    for given in (small / "still.delta", small / "still"):
        found = merged(
            small / "base", [small / "ca.delta", given],
            tmp_path / f"{given.name}.safetensors", method="localize:s=0.1",
        )  # fmt: skip
        deltas = [in_float64(small / f"{name}.delta") for name in ("ca", "still")]
        close(found, expected(base, deltas, [1.0, 1.0], 0.1))


def test_a_delta_that_is_zero_throughout_is_refused(small: Path, tmp_path: Path) -> None:
    base = load_file(small / "base")
    save(small / "same", base)
    with pytest.raises(LorsmergeError, match="zero throughout"):
        merge(small / "base", [small / "same"], tmp_path / "m.safetensors", method="localize")
    nothing = {name: torch.zeros_like(base[name]) for name in SHAPES}
    with pytest.raises(LorsmergeError, match="zero throughout"):
        merge_state_dicts(base, [nothing], method="localize")
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize("ratios", [{"mp": 0.3}, {"svp": 0.1}, {"svp": 0.1, "mp": 0.01}], ids=str)
def test_deltas_that_were_pruned_before(
    small: Path, tmp_path: Path, ratios: dict[str, float]
) -> None:
    pruned = []
    for name in NAMES:
        pruned.append(tmp_path / f"{name}.delta")
        prune(small / f"{name}.delta", pruned[-1], **ratios)
    report = merge(small / "base", pruned, tmp_path / "m.safetensors", method="localize:s=0.1")
    assert sum("this prunes it again" in text for text in report.warnings) == 3
    deltas = [in_float64(path) for path in pruned]
    close(load(tmp_path / "m.safetensors"), expected(load(small / "base"), deltas, [1.0] * 3, 0.1))


def test_shards_do_not_matter(models: Path, deltas: Path, tmp_path: Path) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(models / "base")
    model.save_pretrained(tmp_path / "base", max_shard_size="500KB")
    both = [deltas / "ca.delta", deltas / "de.delta"]
    sharded = merged(tmp_path / "base", list(both), tmp_path / "a.safetensors", method="localize")
    whole = merged(models / "base", list(both), tmp_path / "b.safetensors", method="localize")
    assert same_bits(sharded, whole)


def test_a_search_merges_the_same(small: Path, tmp_path: Path) -> None:
    entries = tuple(DeltaEntry(str(path)) for path in deltas_of(small))
    specs = ["localize", "localize:s=0.3", "localize:s=0.3+sum", "localize:around=mean"]
    recipe = Recipe(str(small / "base"), entries, "localize", include=("*embed_tokens*",))
    inputs = open_inputs(recipe.resolved())
    repeated = RepeatedMerge(inputs, None, torch.device("cpu"), 2, 1 << 30)
    for number, method in enumerate((*specs, *specs)):
        wanted = merged(
            small / "base", list(entries), tmp_path / f"{number}.safetensors", method=method,
            include=recipe.include,
        )  # fmt: skip
        found = dict(repeated.weights(Recipe(recipe.base, entries, method)))
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", ["localize", "stitch", "localize+sum", "lors+stitch"])
def test_a_control_a_step_norm_and_a_record(small: Path, tmp_path: Path, method: str) -> None:
    ratios = {"svp": 0.1, "mp": 0.2} if "lors" in method else {}
    report = merge(
        small / "base", deltas_of(small), tmp_path / "m.safetensors", method=method, control=True,
        step_norm=0.05, save_recipe=tmp_path / "r.toml", dtype="float32", **ratios,
    )  # fmt: skip
    assert report.step == pytest.approx(0.05)
    assert report.control is not None
    assert report.control.step == pytest.approx(report.step)
    assert f'method = "{find_method(method).full_spec}"' in (tmp_path / "r.toml").read_text()
    again = merge(recipe=tmp_path / "r.toml", output=tmp_path / "again.safetensors")
    assert again.step == report.step
    assert same_bits(load(tmp_path / "again.safetensors"), load(tmp_path / "m.safetensors"))


def test_it_is_counted_once_and_not_by_a_plan(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = localize.allot
    monkeypatch.setattr(localize, "allot", lambda *given: calls.append(1) or real(*given))
    made = plan(small / "base", deltas_of(small), tmp_path / "m.safetensors", method="localize")
    assert (calls, os.listdir(tmp_path)) == ([], ["small"])
    plain = plan(small / "base", deltas_of(small), tmp_path / "n.safetensors", mp=0.05)
    assert made.memory <= plain.memory + made.threads * 2 * 4 * (1 << 20)  # one copy more
    told: list[tuple[int, int]] = []
    merge(
        small / "base", deltas_of(small), tmp_path / "m.safetensors", method="localize",
        step_norm=0.1, control=True, progress=lambda *t: told.append(t),
    )  # fmt: skip
    assert len(calls) == 1
    size = sum(tensor.nbytes for tensor in load_file(small / "base").values())
    reading = READS * 4 * 2 * 48 * 32
    # the step, the control's step, the merge, the control
    assert sum(done for done, _ in told) == 2 * (size + reading) + 2 * size
    assert {total for _, total in told} == {size + reading, size}


@pytest.mark.parametrize("after", [1, 4, 7])
def test_an_interrupt_leaves_nothing(small: Path, tmp_path: Path, after: int) -> None:
    told = []

    def interrupt(done: int, total: int) -> None:
        told.append(done)
        if len(told) == after:
            raise KeyboardInterrupt

    made = plan(small / "base", deltas_of(small), tmp_path / "m.safetensors", method="localize")
    with pytest.raises(KeyboardInterrupt):
        run_merge(made, interrupt)
    assert os.listdir(tmp_path) == ["small"]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_named(small: Path, tmp_path: Path, bad: float) -> None:
    base = load_file(small / "base")
    for where in ("ca", "base"):
        faulty = load_file(small / where)
        faulty[FC2][3, 4] = bad
        save(small / where, faulty)
        with pytest.raises(NonFinite, match=rf"small/{where}: '{FC2}'"):
            merge(small / "base", [small / "ca"], tmp_path / "m.safetensors", method="localize")
    held = {name: torch.ones_like(base[name]) for name in SHAPES}
    held[FC1][0, 0] = bad
    with pytest.raises(NonFinite, match=f"delta 1: '{FC1}'"):
        merge_state_dicts(base, [held], method="localize")
    assert os.listdir(tmp_path) == ["small"]


@pytest.mark.parametrize("where", ["ca", "base"])
def test_what_is_not_finite_is_named_by_eval_too(models: Path, tmp_path: Path, where: str) -> None:
    for name in ("base", "ca"):
        shutil.copytree(models / name, tmp_path / name)
    file = tmp_path / where / "model.safetensors"
    faulty = load_file(file)
    last = max(name for name in faulty if name.endswith("fc2.weight"))
    faulty[last][0, 0] = torch.nan
    save_file(faulty, file, metadata={"format": "pt"})
    source = find_model(tmp_path / "base", deltas=[tmp_path / "ca"], method="localize")
    with pytest.raises(NonFinite, match=rf"{where}: '{last}'"):
        source.open(torch.float32, "cpu")


def test_an_input_that_changes_meanwhile_is_an_error(small: Path, tmp_path: Path) -> None:
    made = plan(small / "base", deltas_of(small), tmp_path / "m.safetensors", method="localize")

    def change(done: int, total: int) -> None:
        os.utime(small / "ca.delta", ns=(1, 1))

    with pytest.raises(LorsmergeError, match=r"ca\.delta"):
        run_merge(made, change)


def test_the_record_makes_it_again(models: Path, deltas: Path, tmp_path: Path) -> None:
    both = [deltas / "ca.delta", deltas / "de.delta"]
    merge(models / "base", both, tmp_path / "m", method="localize:s=0.2", scale=0.7)
    record = json.loads((tmp_path / "m/lorsmerge.json").read_text())
    assert record["recipe"]["method"] == "localize:s=0.2"
    run_merge(plan_merge(load_recipe(tmp_path / "m/lorsmerge.json"), tmp_path / "n", threads=1))
    first, second = ((tmp_path / f"{x}/model.safetensors").read_bytes() for x in "mn")
    assert first == second
