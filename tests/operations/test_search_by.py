"""Searches for a lambda of each half, module or depth: recipes, controls, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from search_calls import plan, quick_disk, run
from speech_models import make_test_set, make_tuned, make_whisper

from lorsmerge_cli import delta, merge
from lorsmerge_cli.errors import Mismatch, UsageFault
from lorsmerge_cli.operations.merge import open_inputs
from lorsmerge_cli.operations.search.files import document, write_report
from lorsmerge_cli.operations.search.merges import RepeatedMerge
from lorsmerge_cli.recipe.recipe import DeltaEntry, Recipe, load_recipe

__all__ = ["quick_disk"]
pytestmark = pytest.mark.usefixtures("quick_disk")
HALVES = {"texts": {"scale": "0.1,0.4,0.9"}, "by": "half", "sampler": "grid", "trials": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, ca/, de/, their deltas, and data/test.jsonl. Read only."""
    folder = tmp_path_factory.mktemp("search by")
    make_whisper(folder / "base")
    for seed, name in enumerate(("ca", "de"), 1):
        make_tuned(folder / "base", folder / name, seed=seed, step=0.5)
        delta(folder / "base", folder / name, folder / f"{name}.delta", language=name)
    make_test_set(folder / "data", count=20)
    return folder


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

    def record(self: RepeatedMerge, name: str, number: int, keep: object) -> torch.Tensor:
        read.append(number)
        return real(self, name, number, keep)

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
    assert json.loads(json.dumps(document(report)))["recipe"] == written.to_dict()


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
