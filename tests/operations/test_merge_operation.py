"""base + sum of scaled, pruned deltas: its numbers, its refusals and its files."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from operation_calls import (
    BIAS,
    CONV,
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
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration

from lorsmerge_cli import delta, merge, prune
from lorsmerge_cli.checkpoint import content
from lorsmerge_cli.checkpoint.reader import BLOCK
from lorsmerge_cli.core.combining import COMBINERS
from lorsmerge_cli.errors import (
    Faults,
    LorsmergeError,
    Mismatch,
    NonFinite,
    OutputFault,
    UnreadableFile,
    UsageFault,
)
from lorsmerge_cli.operations.merge import plan as merge_plan
from lorsmerge_cli.operations.merge import plan_merge, run_merge
from lorsmerge_cli.outputs import MANIFEST
from lorsmerge_cli.recipe.recipe import DeltaEntry, load_recipe

HALF = [torch.float16, torch.bfloat16]
NEEDING_ALL = [name for name, combiner in COMBINERS.items() if combiner.needs_all]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with a small model `base`, its fine-tunes `ca` and `de`, and their deltas."""
    folder = tmp_path / "small"
    folder.mkdir()
    base = small_base()
    save(folder / "base", base)
    for seed, name in enumerate(("ca", "de"), 1):
        save(folder / name, tuned(base, seed))
        delta(folder / "base", folder / name, folder / f"{name}.delta", language=name)
    return folder


def out(folder: Path) -> Path:
    return folder / "out.safetensors"


def both(folder: Path, **settings: Any) -> list[Path | DeltaEntry]:
    return [DeltaEntry(str(folder / f"{name}.delta"), **settings) for name in ("ca", "de")]


def gaussian_like(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def exact(base: Tensors, parts: list[tuple[float, Tensors]]) -> dict[str, torch.Tensor]:
    """base + sum of scale * (fine-tune - base), in float64."""
    return {
        name: t.double() + sum(scale * (ft[name].double() - t.double()) for scale, ft in parts)
        for name, t in base.items()
        if t.is_floating_point()
    }


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


class TestNumbers:
    """What is written, against arithmetic in float64."""

    @pytest.mark.parametrize("name", ["ca", "de"])
    def test_scale_one_gives_the_fine_tune_back(
        self, models: Path, deltas: Path, tmp_path: Path, name: str
    ) -> None:
        base, wanted = load(models / "base"), load(models / name)
        found = merged(models / "base", [deltas / f"{name}.delta"], tmp_path / "merged", scale=1.0)
        assert found.keys() == wanted.keys()
        for key, tensor in wanted.items():
            # one rounding of the delta and one of the sum
            step = 2.0**-24 * (2 * tensor.abs().double() + base[key].abs().double())
            assert ((found[key].double() - tensor.double()).abs() <= step).all()

    @pytest.mark.parametrize("scale", [0.15, 1.0, -0.5, 3.0])
    def test_task_arithmetic(self, small: Path, scale: float) -> None:
        base, tunes = load(small / "base"), [load(small / name) for name in ("ca", "de")]
        found = merged(small / "base", both(small), out(small), scale=scale)
        for name, wanted in exact(base, [(scale, ft) for ft in tunes]).items():
            torch.testing.assert_close(found[name].double(), wanted, rtol=3e-7, atol=1e-9)

    def test_the_default_scale_is_the_papers(self, small: Path) -> None:
        default = merged(small / "base", both(small), out(small))
        stated = merged(small / "base", both(small), out(small), scale=0.15, force=True)
        assert same_bits(default, stated)

    def test_scale_zero_is_the_base(self, small: Path) -> None:
        found = merged(small / "base", both(small), out(small), scale=0.0)
        assert all(torch.equal(t, found[name]) for name, t in load(small / "base").items())

    def test_a_scale_for_each_delta(self, small: Path) -> None:
        base, ca, de = (load(small / name) for name in ("base", "ca", "de"))
        entries = [DeltaEntry(str(small / "ca.delta"), scale=0.5),
                   DeltaEntry(str(small / "de.delta"), scale=0.0)]  # fmt: skip
        found = merged(small / "base", entries, out(small), scale=9.0)
        for name, wanted in exact(base, [(0.5, ca), (0.0, de)]).items():
            torch.testing.assert_close(found[name].double(), wanted, rtol=3e-7, atol=1e-9)

    def test_the_mean_of_the_fine_tunes(self, models: Path, deltas: Path, tmp_path: Path) -> None:
        tunes = [load(models / name) for name in ("ca", "de")]
        found = merged(
            models / "base",
            [deltas / "ca.delta", deltas / "de.delta"],
            tmp_path / "merged",
            method="wa",
        )
        for name, tensor in found.items():
            mean = torch.stack([ft[name].double() for ft in tunes]).mean(0)
            torch.testing.assert_close(tensor.double(), mean, rtol=3e-7, atol=1e-9)

    @pytest.mark.parametrize("method", NEEDING_ALL)
    def test_combiners_that_need_all_deltas(self, small: Path, method: str) -> None:
        base, *tunes = (load(small / name) for name in ("base", "ca", "de"))
        found = merged(small / "base", both(small), out(small), method=method, scale=0.7)
        for name, before in exact(base, []).items():
            deltas = [(tune[name].double() - before).numpy() for tune in tunes]
            step = torch.from_numpy(getattr(reference, method)(deltas, [0.7, 0.7]))
            torch.testing.assert_close(found[name].double(), before + step, rtol=3e-7, atol=1e-9)

    @pytest.mark.parametrize("combiner", [n for n, c in COMBINERS.items() if not c.statistics])
    def test_any_combiner_of_pruned_deltas(
        self, small: Path, tmp_path: Path, combiner: str
    ) -> None:
        ratios = {"svp": 0.1, "mp": 0.2}
        for name in ("ca", "de"):
            prune(small / f"{name}.delta", tmp_path / f"{name}.delta", **ratios)
        wanted = merged(
            small / "base", both(tmp_path), tmp_path / "a.safetensors", combine=combiner
        )
        found = merged(
            small / "base", both(small), tmp_path / "b.safetensors", method=f"lors+{combiner}",
            **ratios,
        )  # fmt: skip
        assert same_bits(found, wanted)
        found = merged(
            small / "base", both(small), tmp_path / "c.safetensors",
            prune="lors:svp=0.1,mp=0.2", combine=combiner,
        )  # fmt: skip
        assert same_bits(found, wanted)

    def test_a_parameter_counts_and_is_recorded(self, small: Path, tmp_path: Path) -> None:
        found = [
            merged(small / "base", both(small), tmp_path / f"{k}.safetensors", method=f"ties:k={k}")
            for k in (0.2, 0.5)
        ]
        plain = merged(small / "base", both(small), tmp_path / "plain.safetensors", method="ties")
        assert [same_bits(each, plain) for each in found] == [True, False]
        with safe_open(tmp_path / "0.5.safetensors", framework="pt") as file:
            record = json.loads(file.metadata()["lorsmerge"])
        assert record["recipe"]["method"] == "ties:k=0.5"

    @pytest.mark.parametrize("method", ["dare", "dare:keep=0.2,around=mean+ties", "star+iso_c"])
    def test_neither_order_nor_threads_matter(
        self, small: Path, tmp_path: Path, method: str
    ) -> None:
        one, other = (
            merged(small / "base", given, tmp_path / f"{n}.safetensors", method=method, threads=n)
            for n, given in ((1, both(small)), (4, both(small)[::-1]))
        )
        for name, tensor in one.items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-6, atol=1e-9)

    def test_what_is_drawn_at_random_stays_within_the_patterns(
        self, small: Path, tmp_path: Path
    ) -> None:
        """A delta is kept whole where it is not pruned, and half of it, doubled, where it is."""
        entries = [DeltaEntry(str(small / "ca.delta"), scale=1.0)]
        plain = merged(small / "base", entries, tmp_path / "plain.safetensors")
        found = merged(
            small / "base",
            entries,
            tmp_path / "dare.safetensors",
            method="dare",
            exclude=("*fc1*",),
        )
        base = load(small / "base")
        assert torch.equal(found[FC1], plain[FC1])
        kept = found[FC2] != base[FC2]
        assert 0.4 < float(kept.float().mean()) < 0.6
        step = 2 * (plain[FC2] - base[FC2])
        torch.testing.assert_close((found[FC2] - base[FC2])[kept], step[kept], rtol=1e-3, atol=1e-7)

    def test_ties_takes_tensors_whole(self, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(merge_plan, "BLOCK", 7)
        planned = plan(small / "base", both(small), out(small), method="ties")
        assert all(unit.whole for unit in planned.units() if planned.base.specs[unit.name].is_float)
        summed = plan(small / "base", both(small), out(small))
        assert not any(unit.whole for unit in summed.units())
        assert planned.memory > summed.memory

    @pytest.mark.parametrize(
        "settings",
        [{}, {"svp": 0.1, "mp": 0.2}, {"mp": 0.2}, {"svp": 0.1}, {"method": "wa"},
         *({"method": name} for name in NEEDING_ALL)],
        ids=["ta", "lors", "mp", "svp", "wa", *NEEDING_ALL],
    )  # fmt: skip
    def test_checkpoints_merge_as_their_deltas_do(
        self, models: Path, deltas: Path, tmp_path: Path, settings: dict[str, Any]
    ) -> None:
        base = models / "base"
        on_the_fly = [models / "ca", models / "de"]
        stored = [deltas / "ca.delta", deltas / "de.delta"]
        wanted = merged(base, stored, tmp_path / "a.safetensors", **settings)
        assert same_bits(merged(base, on_the_fly, tmp_path / "b.safetensors", **settings), wanted)
        mixed = [stored[0], on_the_fly[1]]
        assert same_bits(merged(base, mixed, tmp_path / "c.safetensors", **settings), wanted)

    @pytest.mark.parametrize(
        "ratios",
        [
            {"svp": 0.05, "mp": 0.2},
            {"svp": 0.3},
            {"mp": 0.4},
            {"svp": 0.05, "mp": 0.01},
            {"mp": 1.0},
            {"mp": 0.1, "include": ("*embed_tokens*",), "exclude": ("*fc1*",)},
        ],
        ids=["lors", "svp", "mp", "places", "whole", "patterns"],
    )
    @pytest.mark.parametrize("threads", [1, 4])
    def test_prune_then_merge_is_merge_with_ratios(
        self, models: Path, deltas: Path, tmp_path: Path, ratios: dict[str, Any], threads: int
    ) -> None:
        base = models / "base"
        for name in ("ca", "de"):
            prune(deltas / f"{name}.delta", tmp_path / f"{name}.delta", **ratios)
        at_once = merged(base, both(deltas), tmp_path / "a.safetensors", threads=threads, **ratios)
        in_two = merged(base, both(tmp_path), tmp_path / "b.safetensors", threads=5 - threads)
        assert same_bits(at_once, in_two)

    def test_ratios_for_each_delta(self, models: Path, deltas: Path, tmp_path: Path) -> None:
        """One pruned by LoRS, one by MP alone, as in Tables 5 and 6, equals each pruned first."""
        ratios = {"ca": {"svp": 0.05, "mp": 0.2}, "de": {"svp": 0.0, "mp": 0.5}}
        entries = []
        for name, both_ratios in ratios.items():
            prune(deltas / f"{name}.delta", tmp_path / f"{name}.delta", **both_ratios)
            entries.append(DeltaEntry(str(deltas / f"{name}.delta"), **both_ratios))
        at_once = merged(models / "base", entries, tmp_path / "a.safetensors")
        in_two = merged(models / "base", both(tmp_path), tmp_path / "b.safetensors")
        assert same_bits(at_once, in_two)

    def test_a_delta_without_ratios_beside_one_with(
        self, models: Path, deltas: Path, tmp_path: Path
    ) -> None:
        prune(deltas / "ca.delta", tmp_path / "ca.delta", svp=0.05, mp=0.2)
        entries = [DeltaEntry(str(deltas / "ca.delta"), svp=0.05, mp=0.2), deltas / "de.delta"]
        at_once = merged(models / "base", entries, tmp_path / "a.safetensors")
        in_two = merged(
            models / "base",
            [tmp_path / "ca.delta", deltas / "de.delta"],
            tmp_path / "b.safetensors",
        )
        assert same_bits(at_once, in_two)

    @pytest.mark.parametrize("threads", [1, 2, 6])
    @pytest.mark.parametrize("block", [64, BLOCK])
    def test_bytes_do_not_depend_on_threads_or_blocks(
        self, small: Path, monkeypatch: pytest.MonkeyPatch, threads: int, block: int
    ) -> None:
        settings = {"svp": 0.1, "mp": 0.2, "scale": 0.7}
        merge(small / "base", both(small), out(small), threads=1, **settings)
        wanted, tensors = out(small).read_bytes(), load(out(small))
        monkeypatch.setattr(merge_plan, "BLOCK", block)
        monkeypatch.setattr(content, "BLOCK", block)  # the record's hash is one of blocks
        merge(small / "base", both(small), out(small), threads=threads, force=True,
                  allow_other_base=True, **settings)  # fmt: skip
        assert same_bits(load(out(small)), tensors)
        assert (out(small).read_bytes() == wanted) == (block == BLOCK)

    def test_an_excluded_tensor_is_merged_unpruned(self, small: Path) -> None:
        plain = merged(small / "base", both(small), out(small))
        found = merged(
            small / "base", both(small), out(small), force=True, mp=0.1, exclude=("*fc1*",)
        )
        assert torch.equal(found[FC1], plain[FC1])
        assert not torch.equal(found[FC2], plain[FC2])
        assert all(torch.equal(found[name], plain[name]) for name in (BIAS, CONV, EMBEDDING))

    def test_an_included_tensor_is_pruned(self, small: Path) -> None:
        base, ca = load(small / "base"), load(small / "ca")
        found = merged(
            small / "base", [small / "ca.delta"], out(small),
            mp=0.1, scale=1.0, include=("*embed_tokens*",),
        )  # fmt: skip
        moved = (found[EMBEDDING] != base[EMBEDDING]).sum()
        assert moved <= math.floor(0.1 * base[EMBEDDING].numel())
        largest = (ca[EMBEDDING] - base[EMBEDDING]).abs().argmax()
        assert found[EMBEDDING].view(-1)[largest] != base[EMBEDDING].view(-1)[largest]

    def test_integers_and_flags_are_the_bases(self, small: Path) -> None:
        found, base = merged(small / "base", both(small), out(small)), load(small / "base")
        for name in ("positions", "mask"):
            assert torch.equal(found[name], base[name])
            assert found[name].dtype == base[name].dtype
        assert found.keys() == base.keys()

    def test_float64_is_summed_in_float64(self, tmp_path: Path) -> None:
        base = small_base(torch.float64)
        paths = save(tmp_path / "base", base), save(tmp_path / "ca", finetuned := tuned(base))
        found = merged(paths[0], [paths[1]], out(tmp_path), scale=0.3)
        for name, wanted in exact(base, [(0.3, finetuned)]).items():
            torch.testing.assert_close(found[name], wanted, rtol=1e-15, atol=1e-17)

    def test_counts_of_the_report(self, small: Path) -> None:
        report = merge(small / "base", both(small), out(small), mp=0.1)
        assert (report.pruned, report.unpruned, report.copied) == (2, 3, 2)
        norms = [
            math.sqrt(sum(float(t.double().square().sum()) for t in load_file(path).values()))
            for path in (small / "ca.delta", small / "de.delta")
        ]
        assert report.norms == pytest.approx(norms, rel=1e-9)
        fly = merge(small / "base", [small / "ca", small / "de"], out(small), force=True)
        assert fly.norms == fly.kept == pytest.approx(norms, rel=1e-9)

    @pytest.mark.parametrize("stored", [True, False])
    def test_norms_after_pruning(self, small: Path, stored: bool) -> None:
        wanted = []
        for name in ("ca", "de"):
            base, finetuned = load(small / "base"), load(small / name)
            deltas = {n: finetuned[n].double() - base[n].double() for n in (FC1, FC2)}
            whole = sum(
                float((finetuned[n].double() - t.double()).square().sum())
                for n, t in base.items()
                if t.is_floating_point()
            )
            dropped = sum(
                float(d.abs().flatten().sort().values[: d.numel() - math.floor(0.1 * d.numel())]
                      .square().sum())
                for d in deltas.values()
            )  # fmt: skip
            wanted.append(math.sqrt(whole - dropped))
        paths = both(small) if stored else [small / "ca", small / "de"]
        report = merge(small / "base", paths, out(small), mp=0.1)
        assert report.kept == pytest.approx(wanted, rel=1e-6)
        assert all(kept < norm for kept, norm in zip(report.kept, report.norms, strict=True))

    @pytest.mark.parametrize("settings", [{"method": "wa"}, {"svp": 0.1, "mp": 0.2}])
    def test_the_step_is_as_long_as_it_is(self, small: Path, settings: dict[str, Any]) -> None:
        report = merge(small / "base", both(small), out(small), dtype="float32", **settings)
        base, found = load(small / "base"), load(out(small))
        squares = [
            (found[name].double() - tensor.double()).square().sum().item()
            for name, tensor in base.items()
            if tensor.is_floating_point()
        ]
        assert report.step == pytest.approx(sum(squares) ** 0.5, rel=1e-4)


def ulp(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Distance of neighbours in `dtype` at values in float64."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(values.abs().clamp(min=info.tiny)).exponent - 1
    return info.eps * torch.exp2(exponent.double())


class TestDtypes:
    """The sum is taken in float32 and rounded once."""

    @pytest.mark.parametrize("dtype", HALF, ids=str)
    @pytest.mark.parametrize("settings", [{"scale": 0.5}, {"method": "wa"}], ids=["ta", "wa"])
    def test_a_half_precision_base_is_rounded_once(
        self, tmp_path: Path, dtype: torch.dtype, settings: dict[str, Any]
    ) -> None:
        base = small_base(dtype)
        wide = {n: t.float() if t.is_floating_point() else t for n, t in base.items()}
        tunes = [tuned(wide, seed) for seed in (1, 2)]
        paths = [save(tmp_path / str(i), tensors) for i, tensors in enumerate(tunes)]
        found = merged(save(tmp_path / "base", base), paths, out(tmp_path), **settings)
        for name, wanted in exact(base, [(0.5, ft) for ft in tunes]).items():
            assert found[name].dtype == dtype
            error = (found[name].double() - wanted).abs()
            assert (error <= 0.501 * ulp(wanted, dtype)).all()

    @pytest.mark.parametrize("base_dtype", [torch.float32, *HALF], ids=str)
    @pytest.mark.parametrize("target", [torch.float32, *HALF], ids=str)
    def test_dtype_asked_for(
        self, tmp_path: Path, base_dtype: torch.dtype, target: torch.dtype
    ) -> None:
        base = small_base(base_dtype)
        finetuned = tuned({n: t.float() if t.is_floating_point() else t for n, t in base.items()})
        name = str(target).removeprefix("torch.")
        found = merged(
            save(tmp_path / "base", base), [save(tmp_path / "ca", finetuned)], out(tmp_path),
            scale=1.0, dtype=name,
        )  # fmt: skip
        for key, wanted in exact(base, [(1.0, finetuned)]).items():
            assert found[key].dtype == target
            error = (found[key].double() - wanted).abs()
            moved = (finetuned[key].double() - base[key].double()).abs()
            in_float32 = 2.0**-24 * (moved + wanted.abs())  # the delta's rounding and the sum's
            assert (error <= in_float32 + 0.5 * ulp(wanted, target)).all()
        assert found["positions"].dtype == torch.int64
        assert found["mask"].dtype == torch.bool

    def test_the_config_says_the_dtype(self, models: Path, deltas: Path, tmp_path: Path) -> None:
        merge(models / "base", both(deltas), tmp_path / "m", dtype="bfloat16")
        config = json.loads((tmp_path / "m" / "config.json").read_text())
        assert config["dtype"] == "bfloat16"
        assert "dtype" in json.loads((models / "base" / "config.json").read_text())

    def test_each_tensor_keeps_its_own_dtype(self, tmp_path: Path) -> None:
        base = small_base() | {FC1: small_base()[FC1].half(), BIAS: small_base()[BIAS].bfloat16()}
        found = merged(save(tmp_path / "base", base), [save(tmp_path / "ca", tuned(base))],
                       out(tmp_path), scale=1.0)  # fmt: skip
        assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in base.items()}

    @pytest.mark.parametrize(("dtype", "warned"), [(None, False), ("bfloat16", True)])
    def test_updates_that_rounding_loses_are_counted(
        self, small: Path, dtype: str | None, warned: bool
    ) -> None:
        base, ca = load(small / "base"), load(small / "ca")
        report = merge(small / "base", [small / "ca.delta"], out(small), scale=0.02, dtype=dtype)
        found = load(out(small))
        updated = lost = 0
        for name in SHAPES:
            update = (ca[name] - base[name]) * 0.02 != 0
            updated += int(update.sum())
            lost += int((update & (found[name] == base[name].to(found[name].dtype))).sum())
        assert (report.rounding.updated, report.rounding.lost) == (updated, lost)
        assert any("--dtype float32" in text for text in report.warnings) == warned

    def test_an_overflow_names_the_tensor(self, tmp_path: Path) -> None:
        base = small_base(torch.float16)
        finetuned = {n: t.float() if t.is_floating_point() else t for n, t in base.items()}
        finetuned[FC2] = finetuned[FC2] + 60000.0
        with pytest.raises(NonFinite, match="float16") as caught:
            merge(
                save(tmp_path / "base", base), [save(tmp_path / "ca", finetuned)], out(tmp_path),
                scale=2.0,
            )  # fmt: skip
        assert FC2 in str(caught.value)
        assert not out(tmp_path).exists()

    def test_an_unknown_dtype(self, small: Path) -> None:
        with pytest.raises(LorsmergeError, match="int8"):
            plan(small / "base", both(small), out(small), dtype="int8")


class TestAncestry:
    """Deltas are taken of one base and no other."""

    def test_of_another_model(self, small: Path) -> None:
        save(small / "other", small_base(seed=5))
        with pytest.raises(Faults, match="another model") as caught:
            plan(small / "other", both(small), out(small))
        for word in ("ca.delta", "de.delta", "other", "--allow-other-base"):
            assert word in str(caught.value)

    @pytest.mark.parametrize("dtype", HALF, ids=str)
    def test_of_the_same_model_in_another_dtype(self, small: Path, dtype: torch.dtype) -> None:
        copy = {n: t.to(dtype) if t.is_floating_point() else t
                for n, t in load(small / "base").items()}  # fmt: skip
        with pytest.raises(Mismatch, match="same model in") as caught:
            plan(save(small / "copy", copy), [small / "ca.delta"], out(small))
        assert "another model" not in str(caught.value)
        assert "--allow-other-base" in str(caught.value)

    def test_allowed(self, small: Path) -> None:
        other = small_base(seed=5)
        made = plan(
            save(small / "other", other), [small / "ca.delta"], out(small),
            allow_other_base=True, scale=1.0,
        )  # fmt: skip
        assert any("another model" in text for text in made.warnings)
        run_merge(made)
        found, delta = load(out(small)), load_file(small / "ca.delta")
        for name in SHAPES:
            assert torch.equal(found[name], other[name] + delta[name])

    def test_the_right_base_in_another_file(self, small: Path) -> None:
        base = load(small / "base")
        moved = save(small / "moved", dict(reversed(base.items())))
        assert plan(moved, both(small), out(small)).warnings == ()


Edit = Callable[[Tensors], None]


def poison(name: str, value: float) -> Edit:
    def edit(tensors: Tensors) -> None:
        tensors[name].view(-1)[-1] = value

    return edit


def edit_file(path: Path, edit: Edit) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata=metadata)


METHODS = {
    "ta": {}, "lors": {"svp": 0.1, "mp": 0.2}, "mp": {"mp": 0.2}, "wa": {"method": "wa"},
    **{name: {"method": name} for name in NEEDING_ALL},
}  # fmt: skip


class TestRefusals:
    """What stands in the way is said, by name, and nothing is written."""

    @pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS)
    @pytest.mark.parametrize("name", [FC1, BIAS])
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize(
        ("bad", "inputs"),
        [("de.delta", "delta"), ("de", "checkpoint"), ("base", "checkpoint"), ("base", "delta")],
        ids=["delta", "fine-tune", "base of fine-tunes", "base of deltas"],
    )
    def test_what_is_not_finite_is_named(
        self, small: Path, settings: dict[str, Any], name: str, value: float, bad: str, inputs: str
    ) -> None:
        edit_file(small / bad, poison(name, value))
        names = ("ca.delta", "de.delta") if inputs == "delta" else ("ca", "de")
        with pytest.raises(NonFinite) as caught:
            merge(
                small / "base", [small / each for each in names], out(small),
                allow_other_base=True, **settings,
            )  # fmt: skip
        assert f"{small / bad}:" in str(caught.value)
        assert name in str(caught.value)
        assert not out(small).exists()

    @pytest.mark.parametrize("settings", [{}, {"mp": 0.1}], ids=["ta", "mp"])
    def test_a_delta_of_zeros(self, small: Path, settings: dict[str, Any]) -> None:
        save(small / "same", load(small / "base"))
        with pytest.raises(Mismatch, match="zero throughout") as caught:
            merge(small / "base", [small / "ca", small / "same"], out(small), **settings)
        assert str(small / "same") in str(caught.value)
        assert not out(small).exists()

    def test_missing_extra_and_reshaped_tensors_of_all_inputs_together(self, small: Path) -> None:
        def spoil_ca(tensors: Tensors) -> None:
            del tensors[BIAS]
            tensors["model.extra.weight"] = torch.ones(2)

        def spoil_de(tensors: Tensors) -> None:
            tensors[FC1] = tensors[FC1].reshape(32, 48)

        edit_file(small / "ca", spoil_ca)
        edit_file(small / "de", spoil_de)
        out(small).write_text("mine")
        with pytest.raises(Faults) as caught:
            plan(small / "base", [small / "ca", small / "de"], out(small), mp=0.1,
                 exclude=("*nothing*",))  # fmt: skip
        for word in (BIAS, "model.extra.weight", FC1, "nothing", "--force", str(small / "ca"),
                     str(small / "de")):  # fmt: skip
            assert word in str(caught.value)
        assert len(caught.value.errors) == 5

    def test_everything_that_cannot_be_opened_together(self, small: Path) -> None:
        (small / "broken.delta").write_bytes(b"broken")
        with pytest.raises(Faults) as caught:
            plan(small / "absent", [small / "gone.delta", small / "broken.delta"], out(small))
        for word in ("absent", "gone.delta", "broken.delta"):
            assert word in str(caught.value)

    def test_a_delta_as_the_base(self, small: Path) -> None:
        with pytest.raises(UnreadableFile, match="is a delta"):
            plan(small / "ca.delta", [small / "de.delta"], out(small))

    @pytest.mark.parametrize("output", ["base", "ca.delta", "de"])
    def test_an_input_is_never_the_output(self, small: Path, output: str) -> None:
        link = small / "link.safetensors"
        link.symlink_to(small / output)
        before = digests(small)
        with pytest.raises(LorsmergeError) as caught:
            plan(small / "base", [small / "ca.delta", small / "de"], link, force=True)
        assert "input" in str(caught.value)
        assert digests(small) == before

    def test_a_base_folder_is_never_the_output(self, models: Path, deltas: Path) -> None:
        with pytest.raises(OutputFault, match="input"):
            plan(models / "base", both(deltas), models / "base", force=True)

    def test_a_base_folder_of_links_is_never_the_output(
        self, models: Path, deltas: Path, tmp_path: Path
    ) -> None:
        """As the Hub's cache has them."""
        cached = tmp_path / "models--org--base"
        snapshot = cached / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        shutil.copytree(models / "base", cached / "blobs")
        for file in (cached / "blobs").iterdir():
            (snapshot / file.name).symlink_to(file)
        with pytest.raises(OutputFault, match="input"):
            plan(snapshot, both(deltas), snapshot, force=True)

    @pytest.mark.parametrize("suffix", [".delta", ".bin", ".pt", ".pth", ".ckpt"])
    def test_other_formats_are_not_written(self, small: Path, suffix: str) -> None:
        with pytest.raises(OutputFault, match="safetensors"):
            plan(small / "base", both(small), small / f"merged{suffix}")

    def test_a_bare_file_makes_no_model_folder(self, small: Path) -> None:
        with pytest.raises(OutputFault, match="bare file"):
            plan(small / "base", both(small), small / "merged")

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"include": ("*fc1*",)}, "no use"),
            ({"mp": 0.1, "exclude": ("*",)}, "no tensor to prune"),
            ({"mp": 0.1, "include": ("nothing",)}, "nothing"),
            ({"mp": 2.0}, "between 0 and 1"),
        ],
    )
    def test_wrong_usage(self, small: Path, settings: dict[str, Any], words: str) -> None:
        with pytest.raises(UsageFault, match=words):
            plan(small / "base", both(small), out(small), **settings)

    def test_no_deltas(self, small: Path) -> None:
        with pytest.raises(UsageFault, match="no deltas"):
            plan(small / "base", [], out(small))


class TestWarnings:
    """What is odd and yet allowed."""

    def test_the_same_delta_twice(self, small: Path) -> None:
        copy = small / "copy.delta"
        copy.write_bytes((small / "ca.delta").read_bytes())
        made = plan(small / "base", [small / "ca.delta", small / "de.delta", copy], out(small))
        (text,) = made.warnings
        assert "copy.delta" in text
        assert "ca.delta" in text

    def test_the_same_fine_tune_twice(self, small: Path) -> None:
        made = plan(small / "base", [small / "ca", small / "ca"], out(small))
        assert len([text for text in made.warnings if "counts twice" in text]) == 1

    @pytest.mark.parametrize("stored", [True, False], ids=["deltas", "checkpoints"])
    @pytest.mark.parametrize(("factor", "warned"), [(2.0, False), (9.0, False), (11.0, True)])
    def test_norms_far_apart(self, small: Path, stored: bool, factor: float, warned: bool) -> None:
        base = load(small / "base")
        save(small / "far", tuned(base, 3, step=1e-3 * factor))
        paths = [small / "ca", small / "far"]
        if stored:
            delta(small / "base", small / "far", small / "far.delta")
            paths = [small / "ca.delta", small / "far.delta"]
        report = merge(small / "base", paths, out(small), scale=1.0)
        found = [text for text in report.warnings if "dominate" in text]
        assert len(found) == warned
        if warned:
            assert str(paths[1]) in found[0].split("times as large as")[0]

    def test_a_fine_tune_in_half_precision(self, small: Path) -> None:
        half = {n: t.half() if t.is_floating_point() else t for n, t in load(small / "ca").items()}
        made = plan(small / "base", [save(small / "half", half)], out(small))
        assert "F16" in made.warnings[0]

    @pytest.mark.parametrize("settings", [{"svp": 0.1}, {"svp": 0.1, "mp": 0.2}, {"mp": 0.1}])
    def test_a_pruned_delta_pruned_again(self, small: Path, settings: dict[str, Any]) -> None:
        prune(small / "ca.delta", small / "pruned.delta", svp=0.2, mp=0.3)
        (text,) = plan(small / "base", [small / "pruned.delta"], out(small), **settings).warnings
        assert f"{small / 'pruned.delta'} was pruned before (svp 0.2, mp 0.3)" in text
        assert plan(small / "base", [small / "pruned.delta"], out(small)).warnings == ()

    def test_the_mean_of_pruned_deltas(self, small: Path) -> None:
        prune(small / "ca.delta", small / "pruned.delta", svp=0.2)
        paths = [small / "pruned.delta", small / "de.delta"]
        texts = plan(small / "base", paths, out(small), method="wa").warnings
        (text,) = [text for text in texts if "not the mean" in text]
        assert "pruned.delta" in text
        assert "de.delta" not in text
        assert plan(small / "base", both(small), out(small), method="wa").warnings == ()

    def test_a_mean_with_scales_that_differ(self, small: Path) -> None:
        entries = [
            DeltaEntry(str(small / f"{name}.delta"), scale=scale)
            for name, scale in (("ca", 2.0), ("de", -1.0))
        ]
        (text,) = plan(small / "base", entries, out(small), method="wa").warnings
        assert "count 1, -0.5, and 0.5 in all" in text
        same = plan(small / "base", both(small, scale=0.5), out(small), method="wa")
        assert same.warnings == ()
        assert plan(small / "base", entries, out(small)).warnings == ()  # of a sum

    @pytest.mark.parametrize("stored", [True, False], ids=["deltas", "checkpoints"])
    @pytest.mark.parametrize("method", [None, "svp"])
    def test_one_delta_with_ratios_and_one_without(
        self, small: Path, stored: bool, method: str | None
    ) -> None:
        end = ".delta" if stored else ""
        entries = [DeltaEntry(str(small / f"ca{end}"), svp=0.1), small / f"de{end}"]
        warnings = plan(small / "base", entries, out(small), method=method).warnings
        (text,) = [text for text in warnings if "merged whole, beside" in text]
        assert text.startswith(f"{small / f'de{end}'} is merged whole")

    def test_one_delta_pruned_before_and_one_not(self, small: Path) -> None:
        prune(small / "ca.delta", small / "pruned.delta", svp=0.2)
        paths = [small / "pruned.delta", small / "de.delta"]
        (text,) = plan(small / "base", paths, out(small)).warnings
        assert text.startswith(f"{small / 'de.delta'} is merged whole")
        entries = [small / "pruned.delta", DeltaEntry(str(small / "de.delta"), svp=0.2)]
        assert plan(small / "base", entries, out(small)).warnings == ()

    def test_a_delta_without_one_of_the_ratios(self, small: Path) -> None:
        entries = [
            DeltaEntry(str(small / "ca.delta"), svp=0.1),
            DeltaEntry(str(small / "de.delta"), svp=0.1, mp=0.2),
        ]
        (text,) = plan(small / "base", entries, out(small)).warnings
        assert text.startswith(f"{small / 'ca.delta'} is pruned by svp alone")
        # a ratio of 0 says that this is meant
        entries[0] = DeltaEntry(str(small / "ca.delta"), svp=0.1, mp=0.0)
        assert plan(small / "base", entries, out(small)).warnings == ()

    @pytest.mark.parametrize(
        ("patterns", "idle"),
        [
            ({"include": ("*embed*",), "exclude": ("*embed*",)}, "--include '*embed*'"),
            ({"exclude": ("*embed*",)}, "--exclude '*embed*'"),
            ({"include": ("*fc1*",)}, "--include '*fc1*'"),
        ],
    )
    def test_a_pattern_that_changes_nothing(
        self, small: Path, patterns: dict[str, Any], idle: str
    ) -> None:
        (text,) = plan(small / "base", both(small), out(small), svp=0.1, **patterns).warnings
        assert text.startswith(f"{idle} has no effect")

    @pytest.mark.parametrize(("scale", "warned"), [(11.0, True), (-1e38, True), (3.0, False)])
    def test_a_scale_far_off(self, small: Path, scale: float, warned: bool) -> None:
        texts = plan(small / "base", [small / "ca.delta"], out(small), scale=scale).warnings
        assert len(texts) == warned
        assert all(f"{scale:g}" in text for text in texts)

    @pytest.mark.parametrize(
        "entries",
        [
            [("ca", 1e-320)],
            [("ca", 0.5), ("ca", -0.5)],
        ],
    )
    @pytest.mark.parametrize("settings", [{}, {"svp": 0.1}, {"dtype": "bfloat16"}])
    def test_a_merge_that_equals_its_base(
        self, small: Path, entries: list[tuple[str, float]], settings: dict[str, Any]
    ) -> None:
        deltas = [DeltaEntry(str(small / f"{n}.delta"), scale=scale) for n, scale in entries]
        report = merge(small / "base", deltas, out(small), **settings)
        assert any("equals its base" in text for text in report.warnings)
        found, base = load(out(small)), load(small / "base")
        assert all(torch.equal(found[n], base[n].to(found[n].dtype)) for n in SHAPES)

    @pytest.mark.parametrize("scale", [0.0, -0.0])
    def test_a_scale_of_zero_is_asked_for(self, small: Path, scale: float) -> None:
        report = merge(small / "base", both(small), out(small), scale=scale)
        assert (report.step, report.warnings) == (0.0, ())

    @pytest.mark.parametrize(
        ("dtype", "remedy"), [(None, "larger --scale"), ("bfloat16", "--dtype float32")]
    )
    def test_updates_that_float32_loses_too(
        self, small: Path, dtype: str | None, remedy: str
    ) -> None:
        report = run_merge(
            plan(small / "base", [small / "ca"], out(small), scale=1e-5, dtype=dtype)
        )
        (text,) = report.warnings
        assert "lost" in text
        assert remedy in text

    def test_nothing_odd(self, small: Path) -> None:
        made = plan(small / "base", both(small), out(small))
        assert made.warnings == run_merge(made).warnings == ()


class TestBaseInHalfPrecision:
    """A delta may be the rounding error of its base; one that is merely small is not."""

    @staticmethod
    def files(folder: Path, dtype: torch.dtype, step: float, *, own: bool) -> tuple[Path, Path]:
        """The half copy of a base, and a fine-tune of that copy (`own`) or of the base itself."""
        base = small_base()
        half = {n: t.to(dtype) if t.is_floating_point() else t for n, t in base.items()}
        wide = {n: t.float() if t.is_floating_point() else t for n, t in half.items()}
        finetuned = tuned(wide if own else base, step=step)
        return save(folder / "half", half), save(folder / "ft", finetuned)

    @pytest.mark.parametrize("settings", [{}, {"svp": 0.1, "mp": 0.3}, {"method": "wa"}])
    @pytest.mark.parametrize(
        ("dtype", "step"),
        [(torch.float16, 1e-6), (torch.float16, 1e-7), (torch.bfloat16, 1e-5)],
    )
    def test_the_rounding_error_of_the_base_is_told(
        self, tmp_path: Path, dtype: torch.dtype, step: float, settings: dict[str, Any]
    ) -> None:
        base, finetuned = self.files(tmp_path, dtype, step, own=False)
        report = merge(base, [finetuned], out(tmp_path), dtype="float32", **settings)
        (text,) = [text for text in report.warnings if "rounding error" in text]
        assert str(finetuned) in text
        assert str(base) in text
        told = delta(base, finetuned, tmp_path / "x.delta").warnings
        assert [found for found in told if "rounding error" in found] == [text]

    @pytest.mark.parametrize("dtype", HALF)
    @pytest.mark.parametrize("step", [1e-3, 1e-5, 1e-7])
    def test_a_small_update_of_the_half_base_itself_is_none(
        self, tmp_path: Path, dtype: torch.dtype, step: float
    ) -> None:
        base, finetuned = self.files(tmp_path, dtype, step, own=True)
        report = merge(base, [finetuned], out(tmp_path), dtype="float32", scale=1.0)
        assert not any("rounding error" in text for text in report.warnings)
        assert not any(
            "rounding error" in text
            for text in delta(base, finetuned, tmp_path / "x.delta").warnings
        )

    @pytest.mark.parametrize("dtype", HALF)
    def test_an_update_well_above_the_steps(self, tmp_path: Path, dtype: torch.dtype) -> None:
        base, finetuned = self.files(tmp_path, dtype, 1e-2, own=False)
        assert not any(
            "rounding error" in text
            for text in delta(base, finetuned, tmp_path / "x.delta").warnings
        )

    def test_a_half_copy_of_a_float64_model(self, tmp_path: Path) -> None:
        """The rule holds of any narrower base."""
        base = tuned(small_base(torch.float64), 5)
        narrow = {n: t.float() if t.is_floating_point() else t for n, t in base.items()}
        paths = save(tmp_path / "b", narrow), save(tmp_path / "f", tuned(base, step=1e-12))
        (text,) = [
            text
            for text in delta(*paths, tmp_path / "x.delta").warnings
            if "rounding error" in text
        ]
        assert "float32" in text


VARIANCE = "encoder.conv.batch_norm.running_var"


class TestVariances:
    """A BatchNorm takes the square root of its running variance."""

    @staticmethod
    def model(folder: Path, name: str, variance: float, seed: int) -> Path:
        return save(folder / name, {
            VARIANCE: torch.tensor([0.1, variance]),
            "encoder.conv.batch_norm.running_mean": torch.tensor([-1.0, -2.0]),
            "encoder.fc.weight": gaussian_like((8, 8), seed),
        })  # fmt: skip

    @pytest.mark.parametrize("stored", [True, False], ids=["deltas", "checkpoints"])
    @pytest.mark.parametrize("settings", [{}, {"mp": 0.5}])
    def test_a_negative_one_is_refused(
        self, tmp_path: Path, settings: dict[str, Any], stored: bool
    ) -> None:
        base = self.model(tmp_path, "base", 0.1, 0)
        paths = [self.model(tmp_path, f"ft{n}", 0.02, n) for n in (1, 2)]
        if stored:
            for path in paths:
                delta(base, path, path.with_suffix(".delta"))
            paths = [path.with_suffix(".delta") for path in paths]
        with pytest.raises(NonFinite, match=r"negative \(-0\.06\)") as caught:
            merge(base, paths, out(tmp_path), scale=1.0, **settings)
        assert VARIANCE in str(caught.value)
        assert "--method wa" in caught.value.remedy
        assert not out(tmp_path).exists()
        for sound in ({"method": "wa"}, {"scale": 0.5}):
            found = merged(base, paths, out(tmp_path), force=True, **sound)
            assert (found[VARIANCE] >= 0).all()

    @pytest.mark.parametrize("bad", ["base", "ft1"])
    def test_that_of_an_input_is_named(self, tmp_path: Path, bad: str) -> None:
        for seed, name in enumerate(("base", "ft1", "ft2")):
            self.model(tmp_path, name, -3.0 if name == bad else 0.1, seed)
        paths = [tmp_path / "ft2", tmp_path / "ft1"]
        with pytest.raises(NonFinite, match="negative") as caught:
            merge(tmp_path / "base", paths, out(tmp_path), scale=0.3)
        assert str(caught.value).startswith(f"{tmp_path / bad}: '{VARIANCE}'")

    def test_a_variance_of_zero_is_sound(self, tmp_path: Path) -> None:
        base = self.model(tmp_path, "base", 0.3, 0)
        finetuned = self.model(tmp_path, "ft", 0.0, 1)
        found = merged(base, [finetuned], out(tmp_path), scale=1.0)
        assert (found[VARIANCE] >= 0).all()

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_one_that_is_not_finite_is_named(self, tmp_path: Path, value: float) -> None:
        base = self.model(tmp_path, "base", 0.3, 0)
        finetuned = self.model(tmp_path, "ft", value, 1)
        with pytest.raises(NonFinite, match="NaN or an infinity") as caught:
            merge(base, [finetuned], out(tmp_path))
        assert VARIANCE in str(caught.value)


class TestFiles:
    """Model folders, shards, and making the same bytes again."""

    def test_a_folder_opens_with_transformers(
        self, models: Path, deltas: Path, tmp_path: Path
    ) -> None:
        merge(models / "base", both(deltas), tmp_path / "merged", svp=0.05, mp=0.2)
        state = WhisperForConditionalGeneration.from_pretrained(tmp_path / "merged").state_dict()
        for name, tensor in load(tmp_path / "merged").items():
            assert torch.equal(state[name], tensor)
        companions = {file.name for file in (models / "base").iterdir()}
        assert {f.name for f in (tmp_path / "merged").iterdir()} == companions | {
            "lorsmerge.json",
            MANIFEST,
        }

    def test_shards_open_with_transformers_and_equal_one_file(
        self, models: Path, deltas: Path, tmp_path: Path
    ) -> None:
        whole = merged(models / "base", both(deltas), tmp_path / "whole")
        shards = merged(models / "base", both(deltas), tmp_path / "shards", max_shard_size=500_000)
        assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
        assert same_bits(whole, shards)
        model = WhisperForConditionalGeneration.from_pretrained(tmp_path / "shards")
        assert all(torch.equal(model.state_dict()[name], t) for name, t in whole.items())

    def test_a_sharded_base_merges_as_one_file_does(
        self, models: Path, deltas: Path, tmp_path: Path
    ) -> None:
        WhisperForConditionalGeneration.from_pretrained(models / "base").save_pretrained(
            tmp_path / "base", max_shard_size="500KB"
        )
        assert len(list((tmp_path / "base").glob("*.safetensors"))) > 3
        settings = {"svp": 0.05, "mp": 0.2}
        sharded = merged(tmp_path / "base", both(deltas), tmp_path / "a.safetensors", **settings)
        whole = merged(models / "base", both(deltas), tmp_path / "b.safetensors", **settings)
        assert same_bits(sharded, whole)

    def test_a_tied_copy_is_written_where_the_base_has_one(self, tmp_path: Path) -> None:
        base, finetuned = small_base(), tuned(small_base())
        base["proj_out.weight"] = base[EMBEDDING].clone()
        found = merged(
            save(tmp_path / "base", base), [save(tmp_path / "ca", finetuned)], out(tmp_path),
            scale=1.0,
        )  # fmt: skip
        assert found.keys() == base.keys()
        assert torch.equal(found["proj_out.weight"], found[EMBEDDING])
        assert not torch.equal(found[EMBEDDING], base[EMBEDDING])

    def test_inputs_are_left_as_they_were(self, models: Path, deltas: Path, tmp_path: Path) -> None:
        before = digests(models), digests(deltas)
        merge(models / "base", [deltas / "ca.delta", models / "de"], tmp_path / "m", mp=0.1)
        assert (digests(models), digests(deltas)) == before

    def test_force_leaves_no_stale_shard_and_refuses_what_is_the_users(
        self, models: Path, deltas: Path, tmp_path: Path
    ) -> None:
        target = tmp_path / "merged"
        merge(models / "base", both(deltas), target, max_shard_size=500_000)
        with pytest.raises(OutputFault, match="--force"):
            plan(models / "base", both(deltas), target)
        merge(models / "base", both(deltas), target, force=True)
        assert [file.name for file in target.glob("*.safetensors*")] == ["model.safetensors"]
        (target / "notes.txt").write_text("mine")
        with pytest.raises(OutputFault, match=r"notes\.txt"):
            plan(models / "base", both(deltas), target, force=True)

    @pytest.mark.parametrize("output", ["merged", "merged.safetensors"])
    def test_an_interrupt_leaves_nothing(
        self, models: Path, deltas: Path, tmp_path: Path, output: str
    ) -> None:
        def interrupt(done: int, total: int) -> None:
            raise KeyboardInterrupt

        made = plan(models / "base", both(deltas), tmp_path / output)
        with pytest.raises(KeyboardInterrupt):
            run_merge(made, interrupt)
        assert os.listdir(tmp_path) == []

    def test_a_plan_writes_nothing(self, models: Path, deltas: Path, tmp_path: Path) -> None:
        made = plan(models / "base", both(deltas), tmp_path / "merged", svp=0.1, mp=0.1)
        assert os.listdir(tmp_path) == []
        assert made.output_size == sum(t.nbytes for t in load(models / "base").values())
        assert sum(unit.nbytes for unit in made.units()) == made.output_size

    def test_progress_reaches_the_bases_size(
        self, models: Path, deltas: Path, tmp_path: Path
    ) -> None:
        told: list[tuple[int, int]] = []
        merge(
            models / "base",
            both(deltas),
            tmp_path / "m",
            mp=0.1,
            progress=lambda *t: told.append(t),
        )
        size = sum(t.nbytes for t in load(models / "base").values())
        assert sum(done for done, _ in told) == size
        assert {total for _, total in told} == {size}


class TestRerun:
    """`lorsmerge.json` makes the same bytes again, or says why it cannot."""

    @pytest.fixture
    def first(self, models: Path, deltas: Path, tmp_path: Path) -> Path:
        entries = [DeltaEntry(str(deltas / "ca.delta"), scale=0.3), models / "de"]
        merge(models / "base", entries, tmp_path / "first", svp=0.05, mp=0.2,
                  exclude=("*fc1*",), dtype="bfloat16")  # fmt: skip
        return tmp_path / "first"

    def again(self, recipe_file: Path, output: Path) -> None:
        made = plan_merge(load_recipe(recipe_file), output, device="cpu", threads=3)
        run_merge(made)

    def test_the_same_bytes(self, first: Path, tmp_path: Path) -> None:
        self.again(first / "lorsmerge.json", tmp_path / "second")
        assert digests(tmp_path / "second") == digests(first)

    def test_the_same_bytes_from_toml(self, first: Path, tmp_path: Path) -> None:
        (tmp_path / "r.toml").write_text(load_recipe(first / "lorsmerge.json").to_toml())
        self.again(tmp_path / "r.toml", tmp_path / "second")
        assert digests(tmp_path / "second") == digests(first)

    def test_the_weights_carry_it_as_well(self, first: Path) -> None:
        with safe_open(first / "model.safetensors", framework="pt") as file:
            metadata = file.metadata()
        assert json.loads(metadata["lorsmerge"]) == json.loads(
            (first / "lorsmerge.json").read_text()
        )

    @pytest.mark.parametrize("changed", ["base", "ca.delta", "de"])
    def test_an_input_that_has_changed(self, small: Path, changed: str) -> None:
        merge(small / "base", [small / "ca.delta", small / "de"], out(small))
        with safe_open(out(small), framework="pt") as file:
            (small / "lorsmerge.json").write_text(file.metadata()["lorsmerge"])
        edit_file(small / changed, lambda tensors: tensors[BIAS].add_(1e-3))
        with pytest.raises(LorsmergeError) as caught:
            self.again(small / "lorsmerge.json", small / "second.safetensors")
        assert str(small / changed) in str(caught.value)

    @pytest.mark.parametrize("changed", ["base", "ca.delta", "de"])
    def test_a_byte_that_no_fingerprint_looks_at(self, tmp_path: Path, changed: str) -> None:
        """Between the windows of a tensor that is longer than they are together."""
        base = small_base() | {"long": torch.zeros(50_000)}
        for name, tensors in (("base", base), ("ca", tuned(base, 1)), ("de", tuned(base, 2))):
            save(tmp_path / name, tensors)
        delta(tmp_path / "base", tmp_path / "ca", tmp_path / "ca.delta")
        inputs = [tmp_path / "ca.delta", tmp_path / "de"]
        merge(tmp_path / "base", inputs, tmp_path / "first.safetensors")
        with safe_open(tmp_path / "first.safetensors", framework="pt") as file:
            (tmp_path / "lorsmerge.json").write_text(file.metadata()["lorsmerge"])
        self.again(tmp_path / "lorsmerge.json", tmp_path / "second.safetensors")
        assert digests(tmp_path / "second.safetensors") == digests(tmp_path / "first.safetensors")
        edit_file(tmp_path / changed, lambda tensors: tensors["long"][300:310].add_(1))
        with pytest.raises(LorsmergeError, match=rf"{changed} ") as caught:
            self.again(tmp_path / "lorsmerge.json", tmp_path / "third.safetensors")
        assert "is not the file that the recipe was made with" in str(caught.value)
        assert not (tmp_path / "third.safetensors").exists()

    @pytest.mark.parametrize("allowed", [False, True])
    def test_a_base_that_differs_where_no_fingerprint_looks(
        self, tmp_path: Path, allowed: bool
    ) -> None:
        base = small_base() | {"long": torch.zeros(50_000)}
        for name, tensors in (("base", base), ("ca", tuned(base, 1))):
            save(tmp_path / name, tensors)
        delta(tmp_path / "base", tmp_path / "ca", tmp_path / "ca.delta")
        prune(tmp_path / "ca.delta", tmp_path / "pruned.delta", mp=0.5)
        base["long"][300:310] = 1  # a few rows that its owner trained
        save(tmp_path / "other", base)
        for name in ("ca.delta", "pruned.delta"):
            output = tmp_path / f"{name}.safetensors"
            if allowed:
                report = merge(tmp_path / "other", [tmp_path / name], output,
                                   allow_other_base=True)  # fmt: skip
                assert any("taken from another model" in text for text in report.warnings)
                continue
            with pytest.raises(Mismatch, match=r"taken from another model.*--allow-other-base"):
                merge(tmp_path / "other", [tmp_path / name], output)
            assert not output.exists()

    def test_a_record_without_hashes_is_still_checked_by_fingerprints(self, small: Path) -> None:
        merge(small / "base", [small / "ca.delta", small / "de"], out(small))
        with safe_open(out(small), framework="pt") as file:
            record = json.loads(file.metadata()["lorsmerge"])
        for about in (record["base"], *record["deltas"]):
            del about["content"]
        (small / "lorsmerge.json").write_text(json.dumps(record))
        self.again(small / "lorsmerge.json", small / "second.safetensors")
        assert same_bits(load(small / "second.safetensors"), load(out(small)))

    @pytest.mark.parametrize("changed", ["base", "ca.delta", "de"])
    @pytest.mark.parametrize("how", ["rewritten", "replaced", "removed"])
    def test_an_input_that_changes_during_the_merge(
        self, small: Path, changed: str, how: str
    ) -> None:
        made = plan(small / "base", [small / "ca.delta", small / "de"], out(small))
        file = small / changed

        def change(done: int, total: int) -> None:
            if how == "rewritten":
                os.utime(file, ns=(1, 1))
            elif how == "replaced" and not (small / "moved").exists():
                shutil.copy2(file, small / "copy")
                file.rename(small / "moved")
                (small / "copy").rename(file)
            elif how == "removed":
                file.unlink(missing_ok=True)

        with pytest.raises(UnreadableFile, match=rf"{changed}' changed while being read"):
            run_merge(made, change)
        assert not out(small).exists()

    def test_a_config_that_changes_during_the_merge(
        self, models: Path, deltas: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(models / "base", tmp_path / "base")
        made = plan(tmp_path / "base", both(deltas), tmp_path / "merged")
        config = tmp_path / "base" / "config.json"
        with pytest.raises(UnreadableFile, match=r"config\.json' changed while being read"):
            run_merge(made, lambda done, total: os.utime(config, ns=(1, 1)))
        assert not (tmp_path / "merged").exists()

    @pytest.mark.parametrize("change", ["one less", "one more"])
    def test_a_json_whose_deltas_were_edited(
        self, first: Path, tmp_path: Path, change: str
    ) -> None:
        document = json.loads((first / "lorsmerge.json").read_text())
        deltas = document["recipe"]["deltas"]
        deltas.append(deltas[0]) if change == "one more" else deltas.pop()
        (tmp_path / "edited.json").write_text(json.dumps(document))
        with pytest.raises(LorsmergeError):
            self.again(tmp_path / "edited.json", tmp_path / "second")
