"""Detection of weights stored as (in, out): transformers' Conv1D, the linear layer of GPT-2.

The product of PEFT's factors is the transpose of such a weight. An adapter's `fan_in_fan_out` is no
evidence, because it is one setting for modules of both types. A delta has no config, so shapes decide.
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
    """Return for every 2-D weight whether it is a Conv1D's, as (in, out); None if unknown.

    A Conv1D has a bias as long as its output, which decides for all but square weights. Those are
    assumed to be of the same type as the others in their layer with similar names.

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
    """Decide by the bias; return None for a square weight."""
    if bias is None:
        return False
    if shape[0] == shape[1]:
        return None
    return bias.shape == shape[1:]


def _by_others(answers: set[bool], name: str) -> bool | None:
    """Decide for a square weight by the answers of its group."""
    if len(answers) == 1:
        return next(iter(answers))
    return None if answers or NAMES.search(name) else False


def _group(name: str) -> tuple[str, bool]:
    """Return a name's layer, or outside layers the name itself, and whether NAMES matches it."""
    match = LAYER.match(name)
    return match[0] if match else name, bool(NAMES.search(name))


def _bias(name: str) -> str:
    return name.removesuffix(WEIGHT) + BIAS
