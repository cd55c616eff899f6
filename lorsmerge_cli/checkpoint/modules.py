"""Where in a model a tensor lies, by its name: its half, its module, its block."""

from __future__ import annotations

import re
from collections.abc import Iterable

# names of embeddings in transformers' models
EMBEDDING = re.compile(
    r"embed|(^|_)emb(_|$)|_tokens?$|quer(y|ies)_feat"
    r"|^(wte|wpe|w|shared|codebook|relative_attention_bias|bias_values|pe_k|reference_points|scale|shift)$",
    re.IGNORECASE,
)
# linear layers whose names mention a neighbouring embedding
PROJECTION = re.compile(r"proj|dense|mapping|transform|linear")

HALVES = ("encoder", "decoder")
EXTENTS = ("all", *HALVES)  # of the model that there are statistics of
# A module of a transformer, and what the layers of it are called; the first that fits is it. Norms,
# convolutions and embeddings are told by the layer itself, attention and MLP by what it lies in.
OWN = {
    "norm": re.compile(r"norm|^ln(_|\d|$)|^bn\d*$", re.IGNORECASE),
    "conv": re.compile(r"conv", re.IGNORECASE),
}
WITHIN = {
    "cross_attn": re.compile(
        r"(encoder|cross)_?(attn|attention)|enc_?dec_?attention", re.IGNORECASE
    ),
    "self_attn": re.compile(r"attn|attention", re.IGNORECASE),
    "mlp": re.compile(
        r"^fc_?\d|mlp|ffn|feed_?forward|dense|intermediate|expert|moe|^linear_?\d", re.IGNORECASE
    ),
}
MODULES = ("self_attn", "cross_attn", "mlp", "norm", "embed", "conv")
ALIASES = {"encoder_attn": "cross_attn"}  # transformers' name


def half_of(name: str) -> str:
    """Return `encoder` or `decoder`; empty for a tensor of neither.

    Example:
        >>> half_of("model.encoder.conv1.weight"), half_of("model.shared.weight")
        ('encoder', '')
    """
    for part in name.split("."):
        for half in HALVES:
            if part == half or part.endswith(f"_{half}"):
                return half
    return ""


def module_of(name: str) -> str:
    """Return which of `MODULES` a tensor belongs to; empty for none of them.

    Example:
        >>> module_of("model.decoder.layers.0.encoder_attn.q_proj.weight")
        'cross_attn'
        >>> module_of("model.decoder.layers.0.encoder_attn_layer_norm.weight")
        'norm'
    """
    words = [part for part in name.split(".") if not part.isdigit()]
    *outer, last = words[:-1] or words
    for module, pattern in OWN.items():
        if pattern.search(last):
            return module
    for word in (last, words[-1]):  # the latter of a parameter without a layer of its own
        if EMBEDDING.search(word) and not PROJECTION.search(word):
            return "embed"
    for module, pattern in WITHIN.items():
        if any(pattern.search(word) for word in (*outer, last)):
            return module
    return ""


def depths(names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return block and number of blocks of each tensor that lies in a stack of blocks.

    A stack is what has numbered parts with attention in them. Encoder and decoder are two.

    Example:
        >>> names = [f"model.encoder.layers.{n}.self_attn.q_proj.weight" for n in range(2)]
        >>> depths([*names, "model.encoder.conv1.weight"])[names[1]]
        (1, 2)
    """
    found = {name: place for name in names if (place := _block(name))}
    blocks: dict[str, int] = {}
    for name, (stack, block) in found.items():
        if module_of(name) in ("self_attn", "cross_attn"):
            blocks[stack] = max(blocks.get(stack, 0), block + 1)
    return {
        name: (block, max(blocks[stack], block + 1))
        for name, (stack, block) in found.items()
        if stack in blocks
    }


def _block(name: str) -> tuple[str, int] | None:
    """Return the part of a name before its first number, and that number."""
    match = re.search(r"\.(\d+)\.", name)
    return (name[: match.start()], int(match[1])) if match else None
