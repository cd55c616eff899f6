"""Searches for a lambda of each half, module or depth: recipes, controls, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from search_calls import folder, plan, quick_disk, run

from lorsmerge_cli import merge
from lorsmerge_cli.errors import LorsmergeError, Mismatch, UsageFault
from lorsmerge_cli.operations.merge import open_inputs
from lorsmerge_cli.operations.search.files import document, write_report
from lorsmerge_cli.operations.search.finalists import complexity
from lorsmerge_cli.operations.search.merges import RepeatedMerge
from lorsmerge_cli.operations.search.report import SearchReport
from lorsmerge_cli.recipe.recipe import DeltaEntry, Recipe, load_recipe

__all__ = ["folder", "quick_disk"]
pytestmark = pytest.mark.usefixtures("quick_disk")
HALVES = {"texts": {"scale": "0.1,0.4,0.9"}, "by": "half", "sampler": "grid", "trials": None}


def recipe(folder: Path, *coef: str, **settings) -> Recipe:
    entries = tuple(DeltaEntry(str(folder / f"{name}.delta")) for name in ("ca", "de"))
    return Recipe(str(folder / "base"), entries, coef=coef, **settings)


@pytest.mark.parametrize("method", [None, "ties", "tsv_m", "wa"])
@pytest.mark.parametrize(
    "coef", [("encoder=0.3", "decoder=0.1"), ("decoder.mlp=2", "*=0.5", "lines:beta=-0.5"),
             ("model_stock", "mlp=0.2")],
)  # fmt: skip
def test_weights_and_steps_are_those_of_merge(
    folder: Path, tmp_path: Path, method: str | None, coef: tuple[str, ...]
) -> None:
    wanted = recipe(folder, *coef, method=method, scale=0.8)
    inputs = open_inputs(wanted.resolved())
    repeated = RepeatedMerge(inputs, None, torch.device("cpu"), 2, 1 << 30)
    done = merge(
        folder / "base", list(wanted.deltas), tmp_path / "m.safetensors", method=method, scale=0.8,
        coef=coef,
    )  # fmt: skip
    assert repeated.step_norm(wanted) == pytest.approx(done.step, rel=1e-5)
    found = dict(repeated.weights(wanted))
    for name, value in load_file(tmp_path / "m.safetensors").items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)


def test_another_lambda_of_a_half_sums_nothing_up_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    real = RepeatedMerge._pruned

    def record(self: RepeatedMerge, name: str, number: int, *others: Any) -> torch.Tensor:
        read.append(number)
        return real(self, name, number, *others)

    monkeypatch.setattr(RepeatedMerge, "_pruned", record)
    inputs = open_inputs(recipe(folder).resolved())
    repeated = RepeatedMerge(inputs, None, torch.device("cpu"), 1, 1 << 30)
    for coef in (("encoder=0.3", "decoder=0.1"), ("encoder=0.2", "decoder=0.4"), ("lines:beta=1",)):
        list(repeated.weights(recipe(folder, *coef, scale=1.0)))
        assert len(read) == 2 * len(inputs.base.float_specs)


def test_a_grid_over_both_halves(folder: Path, tmp_path: Path) -> None:
    report = run(folder, tmp_path / "s.journal", finalists=2, **HALVES)
    assert len(report.trials) == 9
    points = {tuple(row.point.values()) for row in report.trials}
    assert len(points) == 9
    assert report.trials[0].title == "near paper"
    assert set(report.trials[0].point.values()) == {0.1}
    write_report(report)
    written = load_recipe(tmp_path / "s.toml")
    done = merge(recipe=tmp_path / "s.toml", output=tmp_path / "merged")
    assert done.step > 0
    chosen = report.chosen.trial.point
    if len(set(chosen.values())) > 1:
        assert written.coef == tuple(f"{k[6:-1]}={v:g}" for k, v in chosen.items())
    assert json.loads(json.dumps(document(report)))["recipe"] == written.resolved().to_dict()


def test_the_control_has_one_lambda_and_the_same_step_norm(folder: Path, tmp_path: Path) -> None:
    report = run(folder, tmp_path / "s.journal", finalists=9, **HALVES)
    space = report.plan.space
    best = next(found for found in report.finalists if found.trial.number)
    controls = [found.trial for found in report.finalists if not found.trial.number]
    if len(set(best.trial.point.values())) == 1:
        assert controls == []
        return
    (control,) = controls
    assert control.title.startswith("control of trial")
    uniform = space.recipe(control.point)
    assert uniform.coef == ()
    of = int(control.title.rpartition(" ")[2])
    wanted = space.recipe(next(row.point for row in report.trials if row.number == of))
    steps = []
    for number, one in enumerate((wanted.resolved(), uniform.resolved())):
        done = merge(
            folder / "base", list(one.deltas), tmp_path / f"{number}.safetensors", coef=one.coef
        )
        steps.append(done.step)
    assert steps[0] == pytest.approx(steps[1], rel=1e-3)


def test_by_depth_and_module_with_tpe_and_a_plot(folder: Path, tmp_path: Path) -> None:
    report = run(
        folder, tmp_path / "s.journal", texts={"scale": "0.1:0.9", "mp": "0.2,0.6"},
        by="module,depth", trials=6, finalists=1, csv=tmp_path / "t.csv", plot=tmp_path / "p.png",
    )  # fmt: skip
    names = ["mp", "scale[self_attn]", "scale[cross_attn]", "scale[mlp]", "scale[*]", "beta"]
    assert list(report.trials[0].point) == names
    assert {path.name for path in write_report(report)} == {"s.toml", "t.csv", "p.png"}
    assert (tmp_path / "t.csv").read_text().startswith("trial,title,state,part,same as,mp,scale[")
    assert any(row.point["beta"] for row in report.trials)


def test_cmaes_takes_two_groups(folder: Path, tmp_path: Path) -> None:
    report = run(
        folder, tmp_path / "s.journal", texts={"scale": "0.1:0.9"}, by="half", sampler="cmaes",
        objective="wer", trials=4, finalists=1,
    )  # fmt: skip
    assert len(report.trials) == 4


def test_a_study_is_of_its_groups(folder: Path, tmp_path: Path) -> None:
    changes = {"texts": {"scale": "0.1:0.9"}, "trials": 1, "finalists": 1, "force": True}
    run(folder, tmp_path / "s.journal", **changes)
    with pytest.raises(Mismatch, match="what may be chosen"):
        run(folder, tmp_path / "s.journal", by="half", **changes)


def test_a_search_by_nothing_known(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match="--by layer: unknown"):
        plan(folder, tmp_path / "s.journal", by="layer")


# --- several methods ------------------------------------------------------------------------------

METHODS = {"method": "ta,ties:k=0.5,tsv_m,wa", "texts": {"scale": "0.2,0.5"}, "sampler": "grid",
           "trials": None}  # fmt: skip


def step_of(report: SearchReport, point: dict[str, Any], output: Path) -> float:
    """The step norm of the merge that the recipe of a point makes."""
    one = report.plan.space.recipe(point).resolved()
    return merge(
        one.base, list(one.deltas), output, coef=one.coef, method=one.method, dtype="float32",
        force=True,
    ).step  # fmt: skip


def test_one_lambda_is_one_length_of_step_for_all_methods(folder: Path, tmp_path: Path) -> None:
    report = run(folder, tmp_path / "s.journal", finalists=1, **METHODS)
    space = report.plan.space
    assert space.methods == ("ta", "ties:k=0.5", "tsv_m", "wa")
    assert len(report.trials) == 8
    assert [row.title for row in report.trials[:4]] == [f"near {name}" for name in space.methods]
    assert space.units["ta"] == 1.0
    assert space.units["wa"] == pytest.approx(2.0, rel=1e-3)
    steps: dict[float, list[float]] = {}
    for row in report.trials:
        assert space.recipe(row.point).method == row.point["method"]
        step = step_of(report, row.point, tmp_path / "m.safetensors")
        steps.setdefault(row.point["scale"], []).append(step)
    for found in steps.values():
        assert found == pytest.approx([found[0]] * 4, rel=1e-3)


def test_ratios_are_of_the_methods_that_take_them(folder: Path, tmp_path: Path) -> None:
    texts = {"scale": "0.3", "svp": "0.1,0.3", "mp": "0.2"}
    report = run(
        folder, tmp_path / "s.journal", method=["lors,tsv_m", "svp+ties"], texts=texts,
        sampler="grid", trials=None, finalists=1,
    )  # fmt: skip
    points = [tuple(row.point.values()) for row in report.trials]
    assert sorted(points, key=str) == sorted([
        ("lors", 0.1, 0.2, 0.3), ("lors", 0.3, 0.2, 0.3), ("svp+ties", 0.1, None, 0.3),
        ("svp+ties", 0.3, None, 0.3), ("tsv_m", None, None, 0.3),
    ], key=str)  # fmt: skip
    assert all(row.same_as is None for row in report.trials)
    for row in report.trials:
        recipe = report.plan.space.recipe(row.point).resolved()
        assert (recipe.deltas[0].svp, recipe.deltas[0].mp) == (row.point["svp"], row.point["mp"])


def test_tpe_over_methods_halves_and_ratios_can_be_resumed(folder: Path, tmp_path: Path) -> None:
    changes = {
        "method": "lors,tsv_m", "by": "half", "finalists": 2,
        "texts": {"scale": "0.1:0.9", "svp": "0.1:0.5", "mp": "0.2,0.4"},
    }  # fmt: skip
    run(folder, tmp_path / "s.journal", trials=4, **changes)
    report = run(folder, tmp_path / "s.journal", trials=8, force=True, **changes)
    assert report.own == 4
    assert {row.point["method"] for row in report.trials} == {"lors", "tsv_m"}
    for row in report.trials:
        assert (row.point["svp"] is None) == (row.point["method"] == "tsv_m")
    written = write_report(report)
    done = merge(recipe=written[0], output=tmp_path / "merged")
    assert done.step > 0
    assert json.loads(json.dumps(document(report)))["trials"][0]["point"]["method"] == "lors"


@pytest.mark.parametrize(
    ("method", "by", "texts"),
    [
        ("tsv_m", "", {"scale": "0.3,0.9"}),
        ("tsv_m", "half", {"scale": "0.3,0.9"}),
        ("lors+iso_c", "", {"scale": "0.3,0.9", "svp": "0.3", "mp": "0.4"}),
        ("lors+iso_c", "half", {"scale": "0.3,0.9", "svp": "0.3", "mp": "0.4"}),
        ("tsv_m,iso_c", "half", {"scale": "0.3,0.9"}),
        (None, "half", {"scale": "0.3,0.9", "svp": "0.3"}),
        (None, "", {"scale": "0.3,0.9", "svp": "0.3"}),
    ],
    ids=str,
)
def test_what_has_to_be_beaten(
    folder: Path, tmp_path: Path, method: str | None, by: str, texts: dict[str, str]
) -> None:
    report = run(folder, tmp_path / "s.journal", method=method, by=by, texts=texts, trials=None,
                 sampler="grid", finalists=20)  # fmt: skip
    rows = {row.number: row for row in report.trials}
    beside = [found.trial for found in report.finalists if not found.trial.number]
    assert [row.title for row in beside if row.title.startswith("control of trial")]
    for row in beside:
        recipe = report.plan.space.recipe(row.point).resolved()
        of = rows[int(row.title.rpartition(" ")[2])]
        best = report.plan.space.recipe(of.point).resolved()
        if row.title.startswith("task arithmetic"):
            assert (recipe.method, recipe.coef) == ("ta", best.coef)
            continue
        assert recipe.coef == ()
        assert recipe.method == ("ta" if row.title.startswith("control") else best.method)
        steps = [step_of(report, one.point, tmp_path / "m.safetensors") for one in (row, of)]
        assert steps[0] == pytest.approx(steps[1], rel=2e-3)


def test_a_method_that_does_more_than_add_up_is_no_simpler_than_it(folder: Path) -> None:
    simplest_first = [
        recipe(folder, method="ta"), recipe(folder, "decoder=2", method="wa"),
        recipe(folder, method="ties"), recipe(folder, "mlp=1", "conv=2", method="tsv_m"),
        recipe(folder, method="svp+ties", svp=0.1),
    ]  # fmt: skip
    found = [complexity(one) for one in simplest_first]
    assert found == sorted(found)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("method", ["tsv_m", "ties,tsv_m"])
def test_the_control_of_one_method_that_was_asked_for_is_not_written(
    folder: Path, tmp_path: Path, method: str
) -> None:
    report = run(folder, tmp_path / "s.journal", method=method, texts={"scale": "0.3,0.9"},
                 trials=None, sampler="grid", finalists=4)  # fmt: skip
    control = next(found for found in report.finalists if not found.trial.number)
    if method == "tsv_m":
        assert report.chosen.trial.number
        assert report.plan.space.recipe(report.chosen.trial.point).method == "tsv_m"
    elif control.as_good:
        assert report.chosen is control


def test_the_mean_and_task_arithmetic_have_nothing_to_beat(folder: Path, tmp_path: Path) -> None:
    for number, method in enumerate(("wa", "ta,wa")):
        report = run(folder, tmp_path / f"{number}.journal", method=method, trials=None,
                     texts={"scale": "0.3"}, sampler="grid", finalists=2)  # fmt: skip
        assert all(found.trial.number for found in report.finalists)


@pytest.mark.parametrize(
    ("method", "texts", "said"),
    [
        ("ta,tsv", {}, "Unknown method 'tsv'. Did you mean 'tsv_m'"),
        ("ta,,wa", {}, "Unknown method ''"),
        ("ta,lors", {"svp": "0.1,none", "mp": "0.2"}, "needs a number for --svp"),
        ("ta,tsv_m", {"mp": "0.2"}, "--method ta,tsv_m takes no --mp"),
    ],
)
def test_methods_that_contradict_the_ratios(
    folder: Path, tmp_path: Path, method: str, texts: dict[str, str], said: str
) -> None:
    with pytest.raises(LorsmergeError) as caught:
        plan(folder, tmp_path / "s.journal", method=method, texts={"scale": "0.3"} | texts)
    assert said in str(caught.value)


def test_cmaes_takes_one_method(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match="--sampler cmaes"):
        plan(folder, tmp_path / "s.journal", method="ta,ties", by="half", sampler="cmaes",
             objective="wer", texts={"scale": "0.1:0.5"})  # fmt: skip


@pytest.mark.parametrize("method", ["ties,ties", "ties,ties:k=0.2"])  # 0.2 is the default
def test_a_method_that_is_named_twice_is_an_error(
    folder: Path, tmp_path: Path, method: str
) -> None:
    with pytest.raises(UsageFault, match="--method names ties twice"):
        plan(folder, tmp_path / "s.journal", method=method, texts={"scale": "0.3"})


def test_lambdas_of_parts_and_deltas_are_drawn_too(folder: Path, tmp_path: Path) -> None:
    report = run(
        folder, tmp_path / "s.journal", texts={"scale": "0.1:0.9", "svp": "0.2", "mp": "0.3"},
        by="half,part", per_delta="scale", trials=4, finalists=1, best=True,
    )  # fmt: skip
    assert len(report.trials[0].point) == 2 + 2 * 2 * 3
    (path, *_) = write_report(report)
    written = load_recipe(path)
    assert all(entry.low_rank and entry.sparse for entry in written.deltas) or not written.rules
    done = merge(recipe=path, output=tmp_path / "merged")
    chosen = report.plan.space.recipe(report.chosen.trial.point)
    inputs = open_inputs(chosen.resolved())
    repeated = RepeatedMerge(inputs, 0.2, torch.device("cpu"), 1, 1 << 30)
    assert repeated.step_norm(chosen) == pytest.approx(done.step, rel=1e-4)
