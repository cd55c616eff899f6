"""Merges with rules of coefficients: their numbers, their record, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from operation_calls import load, merged, plan, same_bits, small_base, tuned
from safetensors.torch import load_file, save_file

from lorsmerge_cli import delta, merge, merge_state_dicts
from lorsmerge_cli.core.combining import COMBINERS
from lorsmerge_cli.core.methods import METHODS
from lorsmerge_cli.errors import Faults, LorsmergeError, Mismatch, NonFinite, UsageFault
from lorsmerge_cli.recipe.recipe import DeltaEntry, load_recipe

PLAIN = [name for name, m in METHODS.items() if m.pruner is None and not m.statistics]
RULES = ["decoder.cross_attn=0.25", "decoder=0.5", "*.fc1.*=-1", "lines:alpha=0.5,beta=1"]


def factor(name: str) -> float:
    """What RULES give a tensor of the nano model, worked out by hand: 2 blocks in each half."""
    first = 1.0
    if ".encoder_attn." in name:
        first = 0.25
    elif ".decoder." in name:
        first = 0.5
    elif ".fc1." in name:
        first = -1.0
    block = int(name.split(".layers.")[1].split(".")[0]) if ".layers." in name else None
    return first * reference.lines(block, 2, 0.5, 1.0)


def both(deltas: Path, **settings: Any) -> list[Path | DeltaEntry]:
    return [DeltaEntry(str(deltas / f"{name}.delta"), **settings) for name in ("ca", "de")]


def wide(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


def check(found: dict[str, torch.Tensor], base: dict, updates: dict, tolerance: float) -> None:
    for name, update in updates.items():
        step = found[name].double().numpy() - base[name]
        size = np.abs(update).max() if update.size else 0.0
        rounding = 2.0**-22 * np.abs(base[name])
        assert (np.abs(step - update) <= tolerance * size + rounding).all(), name


def test_task_arithmetic_by_tensor(models: Path, deltas: Path, tmp_path: Path) -> None:
    base = wide(load(models / "base"))
    parts = [wide(load_file(deltas / f"{name}.delta")) for name in ("ca", "de")]
    entries = [
        DeltaEntry(str(deltas / "ca.delta"), scale=0.2),
        DeltaEntry(str(deltas / "de.delta")),
    ]
    found = merged(models / "base", entries, tmp_path / "m", coef=RULES, scale=-0.4,
                   dtype="float32")  # fmt: skip
    updates = {
        name: factor(name) * (0.2 * parts[0][name] - 0.4 * parts[1][name]) for name in parts[0]
    }
    assert len({factor(name) for name in updates}) > 5
    check(found, base, updates, 1e-6)


@pytest.mark.parametrize("method", PLAIN)
def test_every_method_takes_them_before_combining(
    models: Path, deltas: Path, tmp_path: Path, method: str
) -> None:
    base = wide(load(models / "base"))
    parts = [wide(load_file(deltas / f"{name}.delta")) for name in ("ca", "de")]
    found = merged(models / "base", both(deltas), tmp_path / "m", coef=RULES, method=method,
                   scale=0.6, dtype="float32")  # fmt: skip
    combine = COMBINERS[METHODS[method].combiner].combine
    updates = {
        name: combine(
            [(torch.from_numpy(part[name].copy()), 0.6 * factor(name)) for part in parts]
        ).numpy()
        for name in parts[0]
    }
    check(found, base, updates, 1e-3)


def test_by_norm_and_by_agreement(models: Path, deltas: Path, tmp_path: Path) -> None:
    base = wide(load(models / "base"))
    parts = [wide(load_file(deltas / f"{name}.delta")) for name in ("ca", "de")]
    parts[1] = {name: 3 * values for name, values in parts[1].items()}
    long = {n: torch.from_numpy(base[n] + v).float() for n, v in parts[1].items()}
    save_file(long, tmp_path / "long.safetensors")
    entries = [deltas / "ca.delta", tmp_path / "long.safetensors"]  # a fine-tune has no header
    for rule, shares in (("metagpt", reference.metagpt), ("equalise", reference.equalise)):
        out = tmp_path / rule
        found = merged(models / "base", entries, out, coef=["model_stock", rule], scale=0.5)
        scales = [0.5 * share for share in shares(parts)]
        updates = {
            name: reference.agreement([part[name] for part in parts], scales)
            * sum(scale * part[name] for scale, part in zip(scales, parts, strict=True))
            for name in parts[0]
        }
        check(found, base, updates, 1e-4)
        recipe = json.loads((out / "lorsmerge.json").read_text())["recipe"]
        assert [entry["scale"] for entry in recipe["deltas"]] == pytest.approx(scales, rel=1e-5)
        assert recipe["coef"] == ["model_stock"]  # of the norms the numbers are kept


@pytest.mark.parametrize("rules", [RULES, ["equalise", "mlp=2"], ["model_stock"]], ids=str)
def test_a_recipe_keeps_them(models: Path, deltas: Path, tmp_path: Path, rules: list[str]) -> None:
    base = models / "base"
    done = merge(base, both(deltas), tmp_path / "a", coef=rules, save_recipe=tmp_path / "r.toml")
    assert load_recipe(tmp_path / "r.toml").coef == tuple(r for r in rules if r != "equalise")
    for source in (tmp_path / "r.toml", tmp_path / "a" / "lorsmerge.json"):
        again = merge(recipe=source, output=tmp_path / "b", force=True)
        assert again.step == done.step
        weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
        assert weights[0][-1000:] == weights[1][-1000:]
        assert same_bits(load(tmp_path / "a"), load(tmp_path / "b"))


@pytest.mark.parametrize("rules", [RULES, ["model_stock", "mlp=0.5"]], ids=str)
def test_threads_and_files_do_not_matter(
    models: Path, deltas: Path, tmp_path: Path, rules: list[str]
) -> None:
    found = [
        merged(models / "base", both(deltas), tmp_path / f"{n}", coef=rules, threads=n)
        for n in (1, 3)
    ]
    assert same_bits(*found)
    tensors = [load_file(deltas / f"{name}.delta") for name in ("ca", "de")]
    assert same_bits(merge_state_dicts(load(models / "base"), tensors, coef=rules), found[0])


def test_factors_of_one_change_nothing(models: Path, deltas: Path, tmp_path: Path) -> None:
    wanted = merged(models / "base", both(deltas), tmp_path / "a", svp=0.1, mp=0.2)
    rules = ["encoder=1", "lines:beta=0"]
    found = merged(models / "base", both(deltas), tmp_path / "b", svp=0.1, mp=0.2, coef=rules)
    assert same_bits(found, wanted)


def test_a_factor_of_zero_leaves_the_base(models: Path, deltas: Path, tmp_path: Path) -> None:
    base = load(models / "base")
    for method in METHODS:
        if METHODS[method].statistics:
            continue
        ratios = dict.fromkeys(METHODS[method].ratios, 0.2)
        found = merged(models / "base", both(deltas), tmp_path / method, coef="decoder=0",
                       method=method, **ratios)  # fmt: skip
        moved = {name for name in base if not torch.equal(base[name], found[name])}
        assert moved
        assert not any(".decoder." in name for name in moved)


def test_one_step_norm(models: Path, deltas: Path, tmp_path: Path) -> None:
    """The factor that reaches it multiplies lambda, and the rules stay as they are."""
    done = merge(models / "base", both(deltas), tmp_path / "a", coef=RULES, step_norm=0.1)
    assert done.step == pytest.approx(0.1)
    control = merge(models / "base", both(deltas), tmp_path / "b", step_norm_of=tmp_path / "a")
    assert control.step == pytest.approx(0.1, rel=1e-5)
    assert load_recipe(tmp_path / "a" / "lorsmerge.json").coef == tuple(RULES)


@pytest.mark.parametrize("rules", [RULES, ["decoder=0.2"], ["model_stock"]], ids=str)
def test_the_control_has_one_lambda(
    models: Path, deltas: Path, tmp_path: Path, rules: list[str]
) -> None:
    done = merge(models / "base", both(deltas), tmp_path / "m", coef=rules, control=True)
    record = json.loads((tmp_path / "m-control" / "lorsmerge.json").read_text())
    assert "coef" not in record["recipe"]
    assert record["step_norm"] == pytest.approx(done.step, rel=1e-5)
    scales = [entry["scale"] for entry in record["recipe"]["deltas"]]
    plain = merged(models / "base", both(deltas), tmp_path / "plain", scale=scales[0])
    assert same_bits(load(tmp_path / "m-control"), plain)


@pytest.mark.parametrize(
    "rules",
    [["*=1e39"], ["lines:alpha=-1e300,beta=1e300"], ["*=1e308", "lines:beta=1e308"]],
    ids=str,
)
def test_a_factor_that_would_overflow_is_refused(
    models: Path, deltas: Path, tmp_path: Path, rules: list[str]
) -> None:
    with pytest.raises(UsageFault, match=r"--coef makes lambda .* in '.*', which is too large"):
        merge(models / "base", both(deltas), tmp_path / "m", coef=rules, scale=1.0)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("scale", [1e39, -3.5e38, math.inf, math.nan])
def test_a_lambda_that_would_overflow_is_refused(
    models: Path, deltas: Path, tmp_path: Path, scale: float
) -> None:
    with pytest.raises(UsageFault, match=r"scale = .* is (too large|not a finite number)"):
        merge(models / "base", both(deltas), tmp_path / "m", scale=scale)


def test_what_is_held(models: Path, deltas: Path, tmp_path: Path) -> None:
    """A factor costs no memory; agreement needs all deltas of a tensor."""
    plans = {
        rule: plan(models / "base", both(deltas), tmp_path / "m", coef=rule, threads=1)
        for rule in ((), "mlp=2", "equalise", "model_stock")
    }
    assert plans["mlp=2"].memory == plans["equalise"].memory == plans[()].memory
    assert plans["model_stock"].memory > plans[()].memory
    assert not any(unit.whole for unit in plans["mlp=2"].units())
    assert all(unit.whole for unit in plans["model_stock"].units())


def test_a_pattern_without_effect_is_a_warning(models: Path, deltas: Path, tmp_path: Path) -> None:
    report = merge(
        models / "base", both(deltas), tmp_path / "m", coef=["decoder=1", "cross_attn=2"]
    )
    assert any("'cross_attn=2' has no effect" in text for text in report.warnings)


def test_the_numbers_of_metagpt_are_lambdas(models: Path, deltas: Path, tmp_path: Path) -> None:
    """They sum up to 1, whatever the default of the method is."""

    def scales(name: str, **settings: Any) -> list[float]:
        merge(models / "base", both(deltas), tmp_path / name, **settings)
        recipe = json.loads((tmp_path / name / "lorsmerge.json").read_text())["recipe"]
        return [entry["scale"] for entry in recipe["deltas"]]

    assert sum(scales("plain", coef="metagpt")) == pytest.approx(1)
    assert sum(scales("half", coef="metagpt", scale=0.5)) == pytest.approx(0.5)
    assert scales("other", coef="decoder=0.5") == [0.15, 0.15]


def test_rules_between_deltas_that_say_nothing_are_told(
    models: Path, deltas: Path, tmp_path: Path
) -> None:
    one = merge(models / "base", both(deltas)[:1], tmp_path / "one", coef=["metagpt", "decoder=2"])
    assert "--coef metagpt has no effect on a single delta." in one.warnings
    twice = merge(
        models / "base", both(deltas), tmp_path / "twice", method="model_stock", coef="model_stock"
    )
    assert any("model_stock is in the method itself, too" in text for text in twice.warnings)
    fine = merge(models / "base", both(deltas), tmp_path / "fine", coef="model_stock")
    assert not any("--coef" in text for text in fine.warnings)


def test_a_step_much_longer_than_any_delta_is_told(
    models: Path, deltas: Path, tmp_path: Path
) -> None:
    long = merge(models / "base", both(deltas), tmp_path / "long", scale=3)
    assert any("times as long as the longest delta" in text for text in long.warnings)
    same = merge(models / "base", both(deltas), tmp_path / "same", step_norm=long.step)
    assert not any("times as long" in text for text in same.warnings)  # it was asked for
    short = merge(models / "base", both(deltas), tmp_path / "short", scale=1)
    assert not any("times as long" in text for text in short.warnings)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (["deocder=0.5"], "Did you mean decoder=0.5?"),
        (["decoder=0.5", "decoder=0.6"], "given twice"),
        (["encoder.cross_attn=1"], "matches no float tensor"),
        (["lines:beta=x"], "not a finite number"),
        (["alpha"], "no rule 'alpha'"),
    ],
)
def test_wrong_rules(
    models: Path, deltas: Path, tmp_path: Path, rules: list[str], words: str
) -> None:
    with pytest.raises(UsageFault, match=words.replace("?", r"\?")):
        merge(models / "base", both(deltas), tmp_path / "m", coef=rules)
    assert not (tmp_path / "m").exists()


def test_faults_of_files_and_rules_at_once(models: Path, deltas: Path, tmp_path: Path) -> None:
    with pytest.raises(Faults) as caught:
        merge(models / "base", both(deltas), tmp_path / "m", coef=["zzz=1", "decoder.conv=2"],
              svp=0.1, include="nothing*")  # fmt: skip
    assert len(caught.value.errors) == 3


def _model(folder: Path, name: str, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, folder / name)
    return folder / name


@pytest.mark.parametrize("rule", ["equalise", "metagpt", "model_stock"])
def test_inputs_that_are_no_numbers(tmp_path: Path, rule: str) -> None:
    base = small_base()
    wrong = tuned(base)
    next(iter(wrong.values()))[0, 0] = torch.nan
    paths = [
        _model(tmp_path, f"{n}.safetensors", t) for n, t in enumerate((base, tuned(base), wrong))
    ]
    with pytest.raises(NonFinite, match=r"2\.safetensors: .*NaN"):
        merge(paths[0], paths[1:], tmp_path / "m.safetensors", coef=rule)
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize("rule", ["equalise", "metagpt", "model_stock"])
def test_a_delta_of_zeros(tmp_path: Path, rule: str) -> None:
    base = small_base()
    paths = [
        _model(tmp_path, f"{n}.safetensors", t) for n, t in enumerate((base, tuned(base), base))
    ]
    with pytest.raises(Mismatch, match=r"2\.safetensors: its delta is zero throughout"):
        merge(paths[0], paths[1:], tmp_path / "m.safetensors", coef=rule)
    with pytest.raises(LorsmergeError, match="zero throughout"):
        delta(paths[0], paths[2], tmp_path / "x.delta")


def test_the_files_stay_as_they_are(models: Path, deltas: Path, tmp_path: Path) -> None:
    before = (deltas / "ca.delta").read_bytes()
    merge(models / "base", both(deltas), tmp_path / "m", coef=["model_stock", "equalise"])
    assert (deltas / "ca.delta").read_bytes() == before
