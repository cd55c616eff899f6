"""`merge(control=True)`: task arithmetic of the same deltas and the same step norm, beside the merge."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from operation_calls import load, same_bits, save
from safetensors import safe_open

from lorsmerge_cli import delta, merge, prune
from lorsmerge_cli.core.methods import METHODS
from lorsmerge_cli.deltas.file import DeltaFile
from lorsmerge_cli.errors import Faults, LorsmergeError, OutputFault, UsageFault
from lorsmerge_cli.operations.merge import control_path

RATIOS = {"svp": 0.1, "mp": 0.2}
SUMS = ("ta", "wa")  # which add the deltas up as they are
# those of statistics have theirs in test_stats_operation.py
OTHERS = [name for name in METHODS if name not in SUMS and not METHODS[name].statistics]


def step_of(base: Path, model: Path) -> float:
    before, after = load(base), load(model)
    return math.sqrt(
        sum(float((after[name].double() - before[name].double()).square().sum()) for name in after)
    )


@pytest.mark.parametrize("method", OTHERS)
@pytest.mark.parametrize("form", ["folder", "file"])
def test_every_method_gets_a_control(
    models: Path, deltas: Path, tmp_path: Path, method: str, form: str
) -> None:
    """Its numbers are base + sum of lambda * delta, its step is as long, its record is complete."""
    ratios = {name: RATIOS[name] for name in METHODS[method].ratios}
    both = [deltas / "ca.delta:scale=0.3", deltas / "de.delta:scale=0.2"]
    output = tmp_path / ("m.safetensors" if form == "file" else "m")
    settings = {"method": method, "dtype": "float32", **ratios}
    report = merge(models / "base", both, output, control=True, **settings)
    control = report.control
    assert control.output == control_path(output)
    assert control.step == pytest.approx(report.step, rel=1e-6)
    found = step_of(models / "base", control.output)
    assert found == pytest.approx(report.step, rel=1e-4, abs=2e-6)  # rounded to float32
    assert control.scales[0] == pytest.approx(1.5 * control.scales[1])
    base, found = load(models / "base"), load(control.output)
    files = [DeltaFile(deltas / f"{name}.delta") for name in ("ca", "de")]
    for name, tensor in base.items():
        step = sum(
            scale * file.read(name).double()
            for scale, file in zip(control.scales, files, strict=True)
        )
        torch.testing.assert_close(found[name], (tensor.double() + step).float())
    recipe = record_of(control.output)["recipe"]
    assert recipe["method"] == "ta"
    assert [set(entry) for entry in recipe["deltas"]] == [{"path", "scale"}] * 2
    assert record_of(control.output)["step_norm"] == control.step


def record_of(output: Path) -> dict:
    if output.is_dir():
        return json.loads((output / "lorsmerge.json").read_text())
    with safe_open(output, framework="pt") as file:
        return json.loads(file.metadata()["lorsmerge"])


def test_the_merge_itself_is_the_same(models: Path, deltas: Path, tmp_path: Path) -> None:
    both = [deltas / "ca.delta", deltas / "de.delta"]
    for name, control in (("with", True), ("without", False)):
        merge(models / "base", both, tmp_path / f"{name}.safetensors", control=control, **RATIOS)
    first, second = (
        (tmp_path / f"{name}.safetensors").read_bytes() for name in ("with", "without")
    )
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "with-control.safetensors", "with.safetensors", "without.safetensors",
    ]  # fmt: skip


def test_it_is_the_merge_that_step_norm_of_makes(
    models: Path, deltas: Path, tmp_path: Path
) -> None:
    both = [deltas / "ca.delta", deltas / "de.delta"]
    merge(models / "base", both, tmp_path / "m", method="ties", control=True)
    merge(models / "base", both, tmp_path / "again", step_norm_of=tmp_path / "m")
    for (name, one), two in zip(
        load(tmp_path / "m-control").items(), load(tmp_path / "again").values(), strict=True
    ):
        torch.testing.assert_close(one, two, msg=name)


def test_its_own_recipe_makes_it_again(models: Path, deltas: Path, tmp_path: Path) -> None:
    both = [deltas / "ca.delta", deltas / "de.delta"]
    merge(models / "base", both, tmp_path / "m", method="tsv_m", control=True)
    merge(recipe=tmp_path / "m-control/lorsmerge.json", output=tmp_path / "again")
    first, second = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("m-control", "again")
    )
    assert first == second


@pytest.mark.parametrize("threads", [1, 3])
def test_a_merge_of_a_given_step_norm_has_a_control_of_it(
    models: Path, deltas: Path, tmp_path: Path, threads: int
) -> None:
    both = [deltas / "ca.delta", deltas / "de.delta"]
    report = merge(
        models / "base",
        both,
        tmp_path / "m",
        step_norm=0.25,
        control=True,
        threads=threads,
        **RATIOS,
    )
    assert report.control.step == pytest.approx(0.25, rel=1e-6)


def test_a_record_is_merged_again_with_a_control(
    models: Path, deltas: Path, tmp_path: Path
) -> None:
    both = [deltas / "ca.delta", deltas / "de.delta"]
    merge(models / "base", both, tmp_path / "m", **RATIOS)
    report = merge(recipe=tmp_path / "m/lorsmerge.json", output=tmp_path / "again", control=True)
    assert report.control.step == pytest.approx(report.step, rel=1e-6)


@pytest.mark.parametrize("method", SUMS)
def test_a_sum_is_its_own_control(models: Path, deltas: Path, tmp_path: Path, method: str) -> None:
    both = [deltas / "ca.delta", deltas / "de.delta"]
    report = merge(models / "base", both, tmp_path / "m", method=method, control=True)
    assert report.control is None
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("method", SUMS)
def test_deltas_pruned_before_have_their_control_elsewhere(
    models: Path, deltas: Path, tmp_path: Path, method: str
) -> None:
    prune(deltas / "ca.delta", tmp_path / "ca.delta", **RATIOS)
    both = [tmp_path / "ca.delta", deltas / "de.delta"]
    with pytest.raises(UsageFault, match=r"was pruned before.*--step-norm-of"):
        merge(models / "base", both, tmp_path / "m", method=method, control=True)
    assert not (tmp_path / "m").exists()


def test_a_control_that_exists_is_found_before_the_work(
    models: Path, deltas: Path, tmp_path: Path
) -> None:
    both = [deltas / "ca.delta", deltas / "de.delta"]
    control = tmp_path / "m-control.safetensors"
    control.write_text("mine")
    settings = {"control": True, **RATIOS}
    with pytest.raises(OutputFault, match=r"m-control.safetensors exists. Give --force"):
        merge(models / "base", both, tmp_path / "m.safetensors", **settings)
    assert not (tmp_path / "m.safetensors").exists()
    report = merge(models / "base", both, tmp_path / "m.safetensors", force=True, **settings)
    assert load(report.control.output)


def test_an_input_in_the_place_of_the_control(models: Path, deltas: Path, tmp_path: Path) -> None:
    base = tmp_path / "m-control.safetensors"
    base.write_bytes((models / "base/model.safetensors").read_bytes())
    with pytest.raises(OutputFault, match="is or holds the input"):
        merge(
            base,
            deltas / "ca.delta",
            tmp_path / "m.safetensors",
            control=True,
            force=True,
            **RATIOS,
        )
    assert load(base)


@pytest.mark.parametrize("name", ["m-control.safetensors", "m-control/r.toml"])
def test_a_recipe_in_the_place_of_the_control(
    models: Path, deltas: Path, tmp_path: Path, name: str
) -> None:
    output = tmp_path / ("m.safetensors" if name.endswith("safetensors") else "m")
    with pytest.raises((OutputFault, Faults)):
        merge(
            models / "base", deltas / "ca.delta", output, control=True, save_recipe=tmp_path / name,
            **RATIOS,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_deltas_that_cancel_out_are_refused_before_the_work(tmp_path: Path) -> None:
    base = {"model.encoder.layers.0.fc1.weight": torch.zeros(8, 8)}
    save(tmp_path / "base.safetensors", base)
    ones = torch.arange(64.0).reshape(8, 8)
    for name, sign in (("plus", 1), ("minus", -1)):
        save(tmp_path / "ft.safetensors", dict.fromkeys(base, sign * ones))
        delta(
            tmp_path / "base.safetensors", tmp_path / "ft.safetensors", tmp_path / f"{name}.delta"
        )
    both = [tmp_path / "plus.delta:mp=0.5", tmp_path / "minus.delta:mp=0.3"]
    with pytest.raises(UsageFault, match=r"--control: .* a step of norm 0"):
        merge(tmp_path / "base.safetensors", both, tmp_path / "m.safetensors", control=True)
    assert not (tmp_path / "m.safetensors").exists()


def test_a_merge_without_a_step_has_no_control(tmp_path: Path) -> None:
    """Model Stock leaves the base as it is where deltas point away from one another."""
    names = ("model.encoder.layers.0.fc1.weight", "model.encoder.layers.0.fc2.weight")
    base = {name: torch.zeros(8, 8) for name in names}
    save(tmp_path / "base.safetensors", base)
    for name in names:
        save(tmp_path / "ft.safetensors", base | {name: torch.ones(8, 8)})
        delta(
            tmp_path / "base.safetensors", tmp_path / "ft.safetensors", tmp_path / f"{name}.delta"
        )
    both = [tmp_path / f"{name}.delta" for name in names]
    report = merge(
        tmp_path / "base.safetensors", both, tmp_path / "m.safetensors", method="model_stock",
        control=True,
    )  # fmt: skip
    assert (report.step, report.control) == (0.0, None)
    assert "it has no control" in report.warnings[-1]
    assert not (tmp_path / "m-control.safetensors").exists()


def test_what_goes_wrong_with_the_control_leaves_the_merge(
    models: Path, deltas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorsmerge_cli.operations.merge import control as module

    def full(*arguments: object) -> None:
        raise OutputFault("The disk is full.", "Free some space.")

    monkeypatch.setattr(module, "run_merge", full)
    both = [deltas / "ca.delta", deltas / "de.delta"]
    with pytest.raises(LorsmergeError, match="full"):
        merge(models / "base", both, tmp_path / "m.safetensors", control=True, **RATIOS)
    assert load(tmp_path / "m.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_in_half_precision_it_is_rounded_once(models: Path, deltas: Path, tmp_path: Path) -> None:
    both = [deltas / "ca.delta", deltas / "de.delta"]
    report = merge(
        models / "base", both, tmp_path / "m.safetensors", dtype="bfloat16", control=True, **RATIOS
    )
    found = load(report.control.output)
    assert {tensor.dtype for tensor in found.values() if tensor.is_floating_point()} == {
        torch.bfloat16
    }
    assert any(str(report.control.output) in text for text in report.warnings)
    plain = merge(
        models / "base",
        [f"{path}:scale={scale!r}" for path, scale in zip(both, report.control.scales, strict=True)],
        tmp_path / "plain.safetensors", dtype="bfloat16",
    )  # fmt: skip
    assert same_bits(load(plain.output), found)


@pytest.mark.parametrize(
    ("output", "beside"),
    [("m", "m-control"), ("a/m", "a/m-control"), ("m.v1", "m.v1-control"),
     ("m.safetensors", "m-control.safetensors"), ("m.SAFETENSORS", "m-control.SAFETENSORS"),
     ("m.safetensors.safetensors", "m.safetensors-control.safetensors")],
)  # fmt: skip
def test_where_it_is(output: str, beside: str) -> None:
    assert control_path(Path(output)) == Path(beside)


def test_one_of_an_earlier_merge_is_told(models: Path, deltas: Path, tmp_path: Path) -> None:
    both = [deltas / "ca.delta", deltas / "de.delta"]
    words = "m-control is there from before, and is not the control of this merge"
    first = merge(models / "base", both, tmp_path / "m", svp=0.1, control=True)
    again = merge(models / "base", both, tmp_path / "m", svp=0.1, control=True, force=True)
    for report in (first, again):
        assert not any(words in text for text in report.warnings)
    other = merge(models / "base", both, tmp_path / "m", svp=0.2, force=True)
    assert any(words in text for text in other.warnings)
    own = merge(models / "base", both, tmp_path / "m", control=True, force=True)  # has none
    assert any(words in text for text in own.warnings)
