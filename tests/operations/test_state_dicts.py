"""`merge_state_dicts`: the bits of `merge`, and its errors, without a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from operation_calls import FC1, SHAPES, Tensors, load, merged, same_bits, save, small_base, tuned
from safetensors.torch import load_file
from transformers import WhisperForConditionalGeneration

from lorsmerge_cli import delta, merge_state_dicts
from lorsmerge_cli.errors import LorsmergeError, Mismatch, NonFinite, UsageFault

SETTINGS: list[dict[str, Any]] = [
    {}, {"svp": 0.1}, {"mp": 0.3, "scale": 0.7}, {"svp": 0.05, "mp": 0.2, "dtype": "float32"},
    {"svp": 1.0, "mp": 0.2}, {"method": "wa"}, {"method": "ties", "dtype": "bfloat16"},
    {"method": "tsv_m"}, {"method": "iso_c", "scale": 0.5}, {"method": "model_stock"},
    {"svp": 0.2, "include": ["*embed_tokens*"], "exclude": "*fc2*"}, {"scale": -0.5},
    {"coef": ["decoder=0.5", "encoder.mlp=-2", "*=0"]}, {"coef": "equalise", "mp": 0.3},
    {"coef": ["metagpt", "model_stock", "conv=3"], "scale": 1.0},
    {"method": "localize:s=0.3"}, {"method": "localize:around=mean", "dtype": "float32"},
    {"method": "stitch"}, {"coef": ["model_stock", "mlp=0.1"], "method": "ties"}, {"coef": "mlp=2", "method": "wa"},
]  # fmt: skip
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def deltas_of(base: Tensors, *seeds: int) -> list[Tensors]:
    """Fine-tunes less their base."""
    found = []
    for seed in seeds:
        ft = tuned(base, seed)
        wide = {n: torch.promote_types(t.dtype, torch.float32) for n, t in base.items()}
        found.append({name: ft[name].to(wide[name]) - base[name].to(wide[name]) for name in SHAPES})
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_bits_of_a_merge_on_disk(
    tmp_path: Path, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    base = small_base(dtype)
    paths = []
    for seed in (1, 2):
        tune = save(tmp_path / f"{seed}", tuned(base, seed))
        paths.append(tmp_path / f"{seed}.delta")
        delta(save(tmp_path / "base", base), tune, paths[-1])
    wanted = merged(tmp_path / "base", list(paths), tmp_path / "m.safetensors", **settings)
    found = merge_state_dicts(base, [load_file(path) for path in paths], **settings)
    assert list(found) == list(base)
    assert same_bits(found, wanted)
    assert same_bits(merge_state_dicts(base, deltas_of(base, 1, 2), **settings), wanted)


def test_inputs_stay_as_they_are_and_lend_no_memory() -> None:
    base = small_base()
    deltas = deltas_of(base, 1)
    kept = [{name: t.clone() for name, t in tensors.items()} for tensors in (base, *deltas)]
    found = merge_state_dicts(base, deltas, svp=0.1, mp=0.2)
    for tensor in found.values():
        tensor.zero_()
    assert all(same_bits(now, before) for now, before in zip((base, *deltas), kept, strict=True))


def test_a_whisper_in_memory(models: Path, tmp_path: Path) -> None:
    """Its state dict repeats the embedding as `proj_out`, which a delta file does not."""
    delta(models / "base", models / "ca", tmp_path / "ca.delta")
    wanted = merged(models / "base", [tmp_path / "ca.delta"], tmp_path / "m", svp=0.05, mp=0.2)
    model = WhisperForConditionalGeneration.from_pretrained(models / "base")
    tuned = WhisperForConditionalGeneration.from_pretrained(models / "ca").state_dict()
    base = model.state_dict()
    for change in (load_file(tmp_path / "ca.delta"), {n: tuned[n] - base[n] for n in base}):
        found = merge_state_dicts(base, [change], svp=0.05, mp=0.2)
        assert found.keys() == base.keys()
        assert same_bits({n: t for n, t in found.items() if n in wanted}, wanted)
    model.load_state_dict(found)
    head, embedding = model.proj_out.weight, model.model.decoder.embed_tokens.weight
    assert torch.equal(head, embedding)
    assert torch.equal(
        embedding.detach(), load(tmp_path / "m")["model.decoder.embed_tokens.weight"]
    )


def test_parameters_that_are_trained() -> None:
    layer = torch.nn.Linear(6, 4)
    base = {f"fc1.{name}": value for name, value in layer.named_parameters()}
    change = {name: torch.ones_like(value) for name, value in base.items()}
    found = merge_state_dicts(base, [change], mp=0.5, scale=1.0)
    assert not any(value.requires_grad for value in found.values())
    assert torch.equal(found["fc1.bias"], layer.bias.detach() + 1)


def _without(base: Tensors, change: Tensors) -> None:
    del change[FC1]


def _with(base: Tensors, change: Tensors) -> None:
    change["another.weight"] = torch.ones(2)


def _reshaped(base: Tensors, change: Tensors) -> None:
    change[FC1] = change[FC1].T


def _nan(base: Tensors, change: Tensors) -> None:
    change[FC1][0, 0] = float("nan")


def _base_nan(base: Tensors, change: Tensors) -> None:
    base[FC1][0, 0] = float("inf")


def _zero(base: Tensors, change: Tensors) -> None:
    for tensor in change.values():
        tensor.zero_()


def _huge(base: Tensors, change: Tensors) -> None:
    change[FC1].fill_(3e38)
    base[FC1].fill_(3e38)


@pytest.mark.parametrize(
    "settings", [{"scale": 1.0}, {"svp": 0.1, "mp": 0.2, "scale": 1.0}], ids=str
)
@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (_without, Mismatch, f"delta 2 lacks 1 of the base's 5 float tensors: '{FC1}'"),
        (_with, Mismatch, "delta 2 has 1 tensors that the base lacks: 'another.weight'"),
        (_reshaped, Mismatch, r"delta 2 has 1 tensors of another shape .*\[32, 48\] for \[48, 32\]"),
        (_nan, NonFinite, f"delta 2: '{FC1}' holds a NaN"),
        (_base_nan, NonFinite, f"the base: '{FC1}' holds a NaN"),
        (_zero, Mismatch, "delta 2: its delta is zero throughout"),
    ],
)  # fmt: skip
def test_faults(
    spoil: Callable[[Tensors, Tensors], None],
    error: type[LorsmergeError],
    text: str,
    settings: dict[str, float],
) -> None:
    base = small_base()
    deltas = deltas_of(base, 1, 2)
    spoil(base, deltas[1])
    with pytest.raises(error, match=text):
        merge_state_dicts(base, deltas, **settings)


def test_an_overflow() -> None:
    base = small_base()
    deltas = deltas_of(base, 1)
    _huge(base, deltas[0])
    with pytest.raises(NonFinite, match="overflows float32 in the merge"):
        merge_state_dicts(base, deltas, scale=1.0)


def test_a_variance_below_zero() -> None:
    base = {"bn.running_var": torch.tensor([0.1, 1.0])}
    change = {"bn.running_var": torch.tensor([-0.2, 0.0])}
    with pytest.raises(
        NonFinite, match=r"delta 1: 'bn\.running_var' is a variance, and is negative"
    ):
        merge_state_dicts(base, [change], scale=1.0)


def test_a_head_that_is_not_the_embedding() -> None:
    base = {
        "proj_out.weight": torch.ones(2, 2),
        "model.decoder.embed_tokens.weight": torch.zeros(2, 2),
    }
    with pytest.raises(Mismatch, match="differs from"):
        merge_state_dicts(base, [base])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"svp": 2.0}, "not between 0 and 1"),
        ({"method": "lors"}, "needs svp and mp"),
        ({"method": "x"}, "Unknown method"),
        ({"include": ["*"]}, "prunes nothing"),
        ({"svp": 0.1, "include": ["nothing*"]}, "matches no 2-D tensor"),
        ({"svp": 0.1, "exclude": ["*"]}, "leaves no tensor to prune"),
        ({"dtype": "int8"}, "dtype"),
        ({"coef": "deocder=1"}, "matches no float tensor of the base. Did you mean decoder=1"),
        ({"coef": "lines:beta=nan"}, "not a finite number"),
    ],
    ids=str,
)
def test_settings(settings: dict[str, Any], text: str) -> None:
    base = small_base()
    with pytest.raises(UsageFault, match=text):
        merge_state_dicts(base, deltas_of(base, 1), **settings)


def test_no_deltas() -> None:
    with pytest.raises(UsageFault, match="no deltas"):
        merge_state_dicts(small_base(), [])
