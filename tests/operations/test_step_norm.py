"""Merges of a given step norm: the factor, where the norm comes from, and what has none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from operation_calls import load
from safetensors import safe_open
from safetensors.torch import save_file

from lorsmerge_cli import merge
from lorsmerge_cli.core.methods import METHODS
from lorsmerge_cli.errors import LorsmergeError, UnreadableFile, UsageFault

RATIOS = {"svp": 0.1, "mp": 0.2}


def step_of(base: Path, model: Path) -> float:
    """The norm of a merge's step, from its weights."""
    before, after = load(base), load(model)
    return math.sqrt(
        sum(float((after[name].double() - before[name].double()).square().sum()) for name in after)
    )


@pytest.mark.parametrize("method", [name for name in METHODS if not METHODS[name].statistics])
def test_every_method_reaches_it(models: Path, deltas: Path, tmp_path: Path, method: str) -> None:
    ratios = {name: RATIOS[name] for name in METHODS[method].ratios}
    report = merge(
        models / "base", [deltas / "ca.delta:scale=0.3", deltas / "de.delta"], tmp_path / "m",
        method=method, step_norm=0.125, dtype="float32", **ratios,
    )  # fmt: skip
    assert report.step == pytest.approx(0.125, rel=1e-6)
    assert step_of(models / "base", tmp_path / "m") == pytest.approx(0.125, rel=1e-4)
    first, second = json.loads((tmp_path / "m/lorsmerge.json").read_text())["recipe"]["deltas"]
    share = 0.3 / METHODS[method].scale  # coefficients keep their proportion
    assert first["scale"] == pytest.approx(share * second["scale"])


@pytest.mark.parametrize("source", ["folder", "file", "record", "old record", "recipe"])
def test_the_norm_of_another_merge(models: Path, deltas: Path, tmp_path: Path, source: str) -> None:
    base, both = models / "base", [deltas / "ca.delta", deltas / "de.delta"]
    output = tmp_path / ("other.safetensors" if source == "file" else "other")
    other = merge(base, both, output, save_recipe=tmp_path / "r.toml", **RATIOS)
    record = output / "lorsmerge.json"
    if source == "old record":
        document = json.loads(record.read_text())
        del document["step_norm"]
        record.write_text(json.dumps(document))
    path = {"recipe": tmp_path / "r.toml", "record": record, "old record": record}
    control = merge(base, both, tmp_path / "control", step_norm_of=path.get(source, output))
    assert control.step == pytest.approx(other.step, rel=1e-6)
    assert control.norms == control.kept  # it is not pruned


def test_merges_record_it(models: Path, deltas: Path, tmp_path: Path) -> None:
    both = [deltas / "ca.delta", deltas / "de.delta"]
    report = merge(models / "base", both, tmp_path / "folder")
    merge(models / "base", both, tmp_path / "x.safetensors")
    assert json.loads((tmp_path / "folder/lorsmerge.json").read_text())["step_norm"] == report.step
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["lorsmerge"])["step_norm"] == report.step


def test_a_merge_of_that_record_is_the_same(models: Path, deltas: Path, tmp_path: Path) -> None:
    both = [deltas / "ca.delta", deltas / "de.delta"]
    merge(models / "base", both, tmp_path / "a", step_norm=0.5)
    merge(recipe=tmp_path / "a/lorsmerge.json", output=tmp_path / "b")
    one, again = load(tmp_path / "a"), load(tmp_path / "b")
    assert all(torch.equal(one[name], again[name]) for name in one)


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"step_norm": 0.0}, UsageFault, "not a positive number"),
        ({"step_norm": -1.0}, UsageFault, "not a positive number"),
        ({"step_norm": math.nan}, UsageFault, "not a positive number"),
        ({"step_norm": math.inf}, UsageFault, "not a positive number"),
        ({"step_norm": 1.0, "step_norm_of": "x"}, UsageFault, "Give one of them"),
        ({"step_norm": 1.0, "scale": 0.0}, UsageFault, "cannot be reached"),
        ({"step_norm": 1e300}, UsageFault, "takes a lambda of .*, which is too large"),
        ({"step_norm_of": "nowhere"}, LorsmergeError, "nowhere"),
        ({"step_norm_of": "nowhere.toml"}, LorsmergeError, "nowhere.toml"),
    ],
    ids=str,
)
def test_what_cannot_be_reached(
    models: Path, deltas: Path, tmp_path: Path, settings, kind: type, words: str
) -> None:
    with pytest.raises(kind, match=words):
        merge(models / "base", [deltas / "ca.delta"], tmp_path / "m", **settings)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("recorded", [0, 0.0, -0.5])
def test_a_recorded_norm_that_is_none(
    models: Path, deltas: Path, tmp_path: Path, recorded: float
) -> None:
    """It would turn the step about, or take none."""
    both = [deltas / "ca.delta", deltas / "de.delta"]
    merge(models / "base", both, tmp_path / "other")
    record = tmp_path / "other/lorsmerge.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"step_norm": recorded}))
    with pytest.raises(UsageFault, match="Give a merge that takes a step"):
        merge(models / "base", both, tmp_path / "m", step_norm_of=record)
    assert not (tmp_path / "m").exists()


def test_a_recipe_whose_base_is_a_bare_file(models: Path, deltas: Path, tmp_path: Path) -> None:
    """What the recipe's own output would lack does not matter: it is not written."""
    bare = models / "base/model.safetensors"
    other = merge(
        bare, deltas / "ca.delta", tmp_path / "o.safetensors", save_recipe=tmp_path / "r.toml"
    )
    report = merge(
        models / "base", deltas / "de.delta", tmp_path / "m", step_norm_of=tmp_path / "r.toml"
    )
    assert report.step == pytest.approx(other.step, rel=1e-6)


def test_a_model_that_no_merge_made(models: Path, deltas: Path, tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="no record of its step norm"):
        merge(models / "base", [deltas / "ca.delta"], tmp_path / "m", step_norm_of=models / "base")


@pytest.mark.parametrize("source", ["m", "m/lorsmerge.json", "m-control", "r.toml"])
def test_the_norm_of_what_force_replaces(
    models: Path, deltas: Path, tmp_path: Path, source: str
) -> None:
    """It is read before anything is written."""
    both = [deltas / "ca.delta", deltas / "de.delta"]
    files = {"save_recipe": tmp_path / "r.toml", "control": True, "force": True}
    first = merge(models / "base", both, tmp_path / "m", **RATIOS, **files)
    again = merge(
        models / "base",
        both,
        tmp_path / "m",
        method="ties",
        step_norm_of=tmp_path / source,
        **files,
    )
    assert again.step == pytest.approx(first.step, rel=1e-6)
    assert again.control.step == pytest.approx(first.step, rel=1e-6)


def test_a_merge_that_cannot_be_replaced_is_not_lost(
    models: Path, deltas: Path, tmp_path: Path
) -> None:
    both = [deltas / "ca.delta", deltas / "de.delta"]
    merge(models / "base", both, tmp_path / "m", **RATIOS)
    before = (tmp_path / "m/model.safetensors").read_bytes()
    with pytest.raises(UsageFault, match="Set a lambda other than 0"):
        merge(
            models / "base",
            both,
            tmp_path / "m",
            step_norm_of=tmp_path / "m",
            scale=0.0,
            force=True,
        )
    assert (tmp_path / "m/model.safetensors").read_bytes() == before


def test_a_step_that_rounding_decides_is_told(models: Path, tmp_path: Path) -> None:
    """Of two opposite deltas TIES keeps what the last bits of their sum say."""
    base, tuned = load(models / "base"), load(models / "ca")
    (tmp_path / "neg").mkdir()
    opposite = {name: 2 * value - tuned[name] for name, value in base.items()}
    save_file(opposite, tmp_path / "neg/model.safetensors", metadata={"format": "pt"})
    report = merge(
        models / "base", [models / "ca", tmp_path / "neg"], tmp_path / "m", method="ties",
        step_norm=1.0, dtype="float32",
    )  # fmt: skip
    missed = abs(report.step - 1) > 1e-3
    assert (
        any("and 1 was asked for: where deltas cancel" in text for text in report.warnings)
        == missed
    )
