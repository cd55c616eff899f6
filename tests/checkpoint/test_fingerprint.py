"""Fingerprints: equal for one model whatever its files, different for any other."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lorsmerge_cli.checkpoint.fingerprint import Fingerprint, fingerprint
from lorsmerge_cli.checkpoint.model_writer import ModelWriter
from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.checkpoint.safetensors_file import TensorSpec
from lorsmerge_cli.deltas.task_vector import base_fingerprint

SHAPES = {
    "embed.weight": (40, 32), "fc1.weight": (64, 32), "fc1.bias": (64,), "fc2.weight": (32, 64),
    "norm.weight": (32,), "scalar": (), "empty": (0, 4), "long": (50_000,),
}  # fmt: skip


def model(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: (torch.randn(s, generator=generator) * 0.05).to(dtype) for n, s in SHAPES.items()}


def of(tensors: dict[str, torch.Tensor]) -> Fingerprint:
    specs = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    return fingerprint(specs, tensors.__getitem__)


def test_independent_of_order_and_files(tmp_path: Path) -> None:
    tensors = model()
    save_file(tensors, tmp_path / "one.safetensors")
    backwards = dict(reversed(tensors.items()))
    specs = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in backwards.items()}
    (tmp_path / "sharded").mkdir()
    with ModelWriter(tmp_path / "sharded", specs, {}, {"note": "other"}, 9000) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
        writer.finish()
    one = base_fingerprint(Checkpoint(tmp_path / "one.safetensors"))
    sharded = Checkpoint(tmp_path / "sharded")
    assert len(sharded.files) > 2
    assert one == base_fingerprint(sharded) == of(tensors) == of(backwards)


def test_tied_copies_and_integers_do_not_count(tmp_path: Path) -> None:
    embedding = {"model.decoder.embed_tokens.weight": torch.rand(5, 4)}
    save_file(embedding, tmp_path / "a")
    save_file(
        embedding
        | {
            "proj_out.weight": embedding["model.decoder.embed_tokens.weight"].clone(),
            "positions": torch.arange(7),
        },
        tmp_path / "b",
    )
    a, b = (base_fingerprint(Checkpoint(tmp_path / name)) for name in "ab")
    assert a == b


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "empty"])
@pytest.mark.parametrize("step", [1e-2, 2e-8], ids=["large", "the paper's smallest rate"])
def test_any_one_tensor_that_was_trained_changes_it(name: str, step: float) -> None:
    tensors = model()
    moved = tensors | {name: tensors[name].double().add(step).float()}
    assert not torch.equal(moved[name], tensors[name])
    assert of(moved).digest != of(tensors).digest


def renamed() -> dict[str, torch.Tensor]:
    tensors = model()
    tensors["fc3.weight"] = tensors.pop("fc2.weight")
    return tensors


def swapped() -> dict[str, torch.Tensor]:
    tensors = model()
    tensors["fc1.bias"], tensors["fc4.bias"] = torch.zeros(64), tensors["fc1.bias"]
    return tensors


OTHERS = {
    "another model": lambda: model(seed=1),
    "a dtype": lambda: model() | {"fc1.bias": model()["fc1.bias"].half()},
    "a dtype of the same bytes": lambda: (
        model() | {"fc1.bias": model()["fc1.bias"].view(torch.int32)}
    ),
    "a shape of the same bytes": lambda: (
        model() | {"fc1.weight": model()["fc1.weight"].reshape(32, 64)}
    ),
    "the shape of an empty tensor": lambda: model() | {"empty": torch.zeros(4, 0)},
    "a name": renamed,
    "values under another name": swapped,
    "a tensor less": lambda: {n: t for n, t in model().items() if n != "scalar"},
    "a tensor more": lambda: model() | {"zero": torch.zeros(1)},
    "the last element of a large tensor": lambda: (
        model() | {"long": torch.cat([model()["long"][:-1], torch.ones(1)])}
    ),
    "the first element of a large tensor": lambda: (
        model() | {"long": torch.cat([torch.ones(1), model()["long"][1:]])}
    ),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_what_makes_another_digest(other) -> None:
    assert of(other()).digest != of(model()).digest


def test_json_round_trip() -> None:
    for tensors in (model(), model(dtype=torch.bfloat16), {}, model() | {"i": torch.arange(3)}):
        identity = of(tensors)
        assert Fingerprint.from_json(identity.to_json()) == identity
        json.loads(identity.to_json(), parse_constant=pytest.fail)


def test_the_sample_is_float32() -> None:
    assert all(value == torch.tensor(value).item() for value in of(model()).sample)


def test_at_most_256_tensors_are_sampled() -> None:
    many = {f"t{i:04d}": torch.full((3,), float(i)) for i in range(700)}
    assert 128 <= len(of(many).sample) <= 256


@pytest.mark.parametrize("value", [1e300, -1e39, math.pi])
def test_a_float64_value_beyond_float32(value: float) -> None:
    identity = of({"a": torch.full((3,), value, dtype=torch.float64)})
    assert Fingerprint.from_json(identity.to_json()) == identity


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_rounded_copy_is_known_as_one(dtype: torch.dtype) -> None:
    whole, copy = of(model()), of(model(dtype=dtype))
    assert copy.digest != whole.digest
    assert copy.is_rounding_of(whole)
    assert whole.is_rounding_of(copy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_another_model_is_no_rounded_copy(dtype: torch.dtype) -> None:
    assert not of(model(seed=1, dtype=dtype)).is_rounding_of(of(model()))
    fewer = {name: t for name, t in model(dtype=dtype).items() if name != "scalar"}
    assert not of(fewer).is_rounding_of(of(model()))


def test_fp16_and_bf16_copies_are_roundings_of_each_other() -> None:
    a, b = of(model(dtype=torch.float16)), of(model(dtype=torch.bfloat16))
    assert a.is_rounding_of(b)
    assert not a.is_rounding_of(a)


def test_dtypes_are_listed() -> None:
    assert of(model()).dtype == "F32"
    assert of(model() | {"h": torch.ones(2).half()}).dtype == "F16+F32"
