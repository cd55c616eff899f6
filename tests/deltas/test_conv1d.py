"""Which weights are stored as (in, out)."""

from __future__ import annotations

import pytest
import torch

from lorsmerge_cli.checkpoint.safetensors_file import TensorSpec
from lorsmerge_cli.deltas.conv1d import conv1d_weights

H = "transformer.h.0"


def told(**shapes: tuple[int, ...]) -> dict[str, bool | None]:
    """By the last word of the module, for `attn_c_proj=(8, 8), attn_c_proj_bias=(8,)` of one layer."""
    specs = {}
    for key, shape in shapes.items():
        module = key.removesuffix("_bias").replace("_", ".", 1)
        end = "bias" if key.endswith("_bias") else "weight"
        specs[f"{H}.{module}.{end}"] = TensorSpec(shape, torch.float32)
    found = conv1d_weights(specs)
    return {name.split(".")[-2]: answer for name, answer in found.items()}


CASES = {
    "gpt2": (
        {"attn_c_attn": (8, 24), "attn_c_attn_bias": (24,), "attn_c_proj": (8, 8),
         "attn_c_proj_bias": (8,), "mlp_c_fc": (8, 32), "mlp_c_fc_bias": (32,)},
        {"c_attn": True, "c_proj": True, "c_fc": True},
    ),
    "gpt_bigcode, which is linear under the same names": (
        {"attn_c_attn": (24, 8), "attn_c_attn_bias": (24,), "attn_c_proj": (8, 8),
         "attn_c_proj_bias": (8,)},
        {"c_attn": False, "c_proj": False},
    ),
    "without biases": ({"attn_c_attn": (24, 8), "attn_c_proj": (8, 8)},
                       {"c_attn": False, "c_proj": False}),
    "llama": ({"attn_q_proj": (8, 8), "mlp_up_proj": (32, 8)}, {"q_proj": False, "up_proj": False}),
    "both types in a layer": (
        {"mlp_c_fc": (8, 32), "mlp_c_fc_bias": (32,), "attn_q_proj": (8, 8),
         "attn_out_proj": (8, 8), "attn_out_proj_bias": (8,)},
        {"c_fc": True, "q_proj": False, "out_proj": False},
    ),
    "another's conv1d": (
        {"mlp_up": (8, 32), "mlp_up_bias": (32,), "mlp_square": (8, 8), "mlp_square_bias": (8,)},
        {"up": True, "square": True},
    ),
    "all square": ({"attn_q_proj": (8, 8), "attn_q_proj_bias": (8,)}, {"q_proj": False}),
    "nothing tells": ({"attn_c_proj": (8, 8), "attn_c_proj_bias": (8,)}, {"c_proj": None}),
    "two answers": (
        {"attn_c_attn": (24, 8), "attn_c_attn_bias": (24,), "mlp_c_fc": (8, 32),
         "mlp_c_fc_bias": (32,), "attn_c_proj": (8, 8), "attn_c_proj_bias": (8,)},
        {"c_attn": False, "c_fc": True, "c_proj": None},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("shapes", "expected"), CASES.values(), ids=CASES)
def test_of_a_layer(shapes: dict, expected: dict) -> None:
    assert told(**shapes) == expected


def test_another_layer_says_nothing() -> None:
    shapes = {
        "h.0.c_fc.weight": (8, 32), "h.0.c_fc.bias": (32,),
        "h.10.c_proj.weight": (8, 8), "h.10.c_proj.bias": (8,),
        "score.weight": (8, 8), "score.bias": (8,), "0.c_fc.weight": (8, 8), "norm.weight": (8,),
    }  # fmt: skip
    specs = {name: TensorSpec(shape, torch.float32) for name, shape in shapes.items()}
    assert conv1d_weights(specs) == {
        "h.0.c_fc.weight": True, "h.10.c_proj.weight": None, "score.weight": False,
        "0.c_fc.weight": False,
    }  # fmt: skip
