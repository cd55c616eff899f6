"""Which weights are stored as (in, out): those of transformers' Conv1D, which GPT-2 has for linear layers.

PEFT's factors make the transpose of such a weight, and the `fan_in_fan_out` of an adapter is no
evidence: it is one word for modules of both types. A delta has no config, so shapes tell.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from lorsmerge_cli.checkpoint.safetensors_file import TensorSpec

WEIGHT, BIAS = ".weight", ".bias"
LAYER = re.compile(r".*\.\d+(?=\.)|^\d+(?=\.)")  # up to the last number
NAMES = re.compile(r"(^|\.)(c_attn|q_attn|c_proj|c_fc)\.weight")  # of every Conv1D in transformers


def conv1d_weights(specs: Mapping[str, TensorSpec]) -> dict[str, bool | None]:
    """Tell of every 2-D weight whether a Conv1D holds it, as (in, out); None where nothing tells.

    A Conv1D has a bias, as long as its output is wide, which settles all but square weights. Those
    are what the others of their layer are, of the same sort of names.

    Args:
        specs: all float tensors of a model.
    """
    found = {
        name: _by_bias(spec.shape, specs.get(_bias(name)))
        for name, spec in specs.items()
        if len(spec.shape) == 2 and name.endswith(WEIGHT)
    }
    seen: dict[tuple[str, bool], set[bool]] = defaultdict(set)
    for name, answer in found.items():
        if answer is not None and _bias(name) in specs:
            seen[_group(name)].add(answer)
    return {
        name: _by_others(seen[_group(name)], name) if answer is None else answer
        for name, answer in found.items()
    }


def _by_bias(shape: tuple[int, ...], bias: TensorSpec | None) -> bool | None:
    """What the bias tells: nothing of a square weight."""
    if bias is None:
        return False
    if shape[0] == shape[1]:
        return None
    return bias.shape == shape[1:]


def _by_others(answers: set[bool], name: str) -> bool | None:
    """What is known of a square weight by the others of its group."""
    if len(answers) == 1:
        return next(iter(answers))
    return None if answers or NAMES.search(name) else False


def _group(name: str) -> tuple[str, bool]:
    """The layer, `transformer.h.0`, or outside of layers the name itself; and whether it has a name of NAMES."""
    match = LAYER.match(name)
    return match[0] if match else name, bool(NAMES.search(name))


def _bias(name: str) -> str:
    return name.removesuffix(WEIGHT) + BIAS
