"""Deltas that `eval --apply` adds by rules of coefficients: the weights of `merge`, and their record."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from operation_calls import load

from lorsmerge_cli import merge
from lorsmerge_cli.errors import Faults, UsageFault
from lorsmerge_cli.operations.eval.inputs import open_models
from lorsmerge_cli.recipe.record import made_from
from lorsmerge_cli.speech.source import ModelSource

RULES = [
    ["decoder=0.5", "mlp=-1", "lines:beta=0.4"],
    ["equalise"],
    ["metagpt", "model_stock", "conv=0"],
]


def opened(models: Path, deltas: Path, coef: list[str], **settings) -> ModelSource:
    both = [deltas / "ca.delta", models / "de"]  # a fine-tune has no header with its norm
    (source,) = open_models([models / "base"], None, both, coef=coef, **settings)
    return source


@pytest.mark.parametrize("method", ["ta", "ties", "localize:s=0.2"])
@pytest.mark.parametrize("coef", RULES, ids=str)
def test_the_weights_are_those_of_merge(
    models: Path, deltas: Path, tmp_path: Path, coef: list[str], method: str
) -> None:
    source = opened(models, deltas, coef, scale=0.4, method=method)
    merge(models / "base", [deltas / "ca.delta", models / "de"], tmp_path / "m", coef=coef,
          scale=0.4, method=method)  # fmt: skip
    for name, value in load(tmp_path / "m").items():
        assert torch.equal(source.read(name), value), name


def test_rules_are_in_its_name_its_identity_and_its_record(models: Path, deltas: Path) -> None:
    plain, ruled = (opened(models, deltas, coef) for coef in ([], ["decoder=0.5", "equalise"]))
    assert plain.name == "base+ca+de@0.15"
    assert ruled.name == "base+ca+de@0.15,decoder=0.5,equalise"
    assert (
        plain.identity() != ruled.identity() != opened(models, deltas, ["decoder=0.5"]).identity()
    )
    made = made_from(ruled.checkpoint, ruled.applied, ruled.method, ruled.coef)
    assert made["coef"] == ["decoder=0.5"]
    assert all(entry["scale"] != 0.15 for entry in made["deltas"])
    assert "coef" not in made_from(plain.checkpoint, plain.applied, plain.method, plain.coef)


def test_wrong_rules(models: Path, deltas: Path) -> None:
    with pytest.raises(UsageFault, match="Did you mean decoder=1"):
        opened(models, deltas, ["deocder=1"])
    with pytest.raises(Faults) as caught:
        opened(models, deltas, ["decoder", "lines:beta=x"])
    assert len(caught.value.errors) == 2
    with pytest.raises(UsageFault, match="--coef needs --apply"):
        open_models([models / "base"], coef=["decoder=0.5"])
