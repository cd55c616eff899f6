"""What a tensor's name says: whether it is pruned, what kind it is, where in the model it sits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from lorsmerge_cli.checkpoint.safetensors_file import TensorSpec
from lorsmerge_cli.errors import UsageFault

# Embeddings and output layers, by the names transformers gives them.
NOT_LINEAR = re.compile(
    r"embed|^(wte|wpe|lm_head|proj_out|shared|score|classifier|lm_proj|relative_attention_bias)$"
)


def is_linear_weight(name: str, spec: TensorSpec) -> bool:
    """Whether it is the 2-D weight of a linear layer, which in Whisper means attention and MLP.

    Everything else (embeddings, the LM head, norms, biases, convolutions) is merged unpruned,
    as the paper's authors do.
    """
    parts = name.split(".")
    return (
        spec.is_float
        and len(spec.shape) == 2
        and parts[-1] == "weight"
        and not any(NOT_LINEAR.search(part) for part in parts[:-1])
    )


def select_pruned(
    specs: Mapping[str, TensorSpec], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> frozenset[str]:
    """Names of the tensors to prune: linear weights, plus `include`, less `exclude`.

    Args:
        specs: all float tensors.
        include: shell patterns of further 2-D tensors to prune.
        exclude: shell patterns of tensors to merge unpruned.

    Raises:
        UsageFault: a pattern that changes nothing because it matches no 2-D tensor.
    """
    matrices = [name for name, spec in specs.items() if spec.is_float and len(spec.shape) == 2]
    chosen = {name for name in matrices if is_linear_weight(name, specs[name])}
    for pattern in (*include, *exclude):
        if not _matching(matrices, pattern):
            raise UsageFault(
                f"The pattern {pattern!r} matches no 2-D tensor of the base.",
                "`lorsmerge inspect BASE` lists the names; quote patterns to keep them from the shell.",
            )
    for pattern in include:
        chosen |= _matching(matrices, pattern)
    for pattern in exclude:
        chosen -= _matching(matrices, pattern)
    return frozenset(chosen)


def _matching(names: Iterable[str], pattern: str) -> set[str]:
    return {name for name in names if fnmatchcase(name, pattern)}


def without_layer(name: str) -> str:
    """The name with every layer number replaced by `*`: what the layers of a model share."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def kind(name: str) -> str:
    """What a tensor is, wherever it sits: `self_attn.q_proj.weight`, `fc1.weight`."""
    parts = name.split(".")
    last_number = max((i for i, part in enumerate(parts) if part.isdigit()), default=-1)
    return ".".join(parts[last_number + 1 :] if last_number + 1 < len(parts) else parts)


def room(name: str) -> str:
    """The part of the model a tensor belongs to: `encoder`, `decoder`, else its outermost module."""
    parts = name.split(".")
    for part in parts:
        if part in ("encoder", "decoder"):
            return part
    return parts[0] if parts[0] != "model" or len(parts) == 1 else parts[1]
