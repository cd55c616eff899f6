"""Names of a Whisper's tensors: OpenAI's, and transformers'."""

from __future__ import annotations

from collections.abc import Iterable

MARK = "decoder.token_embedding.weight"  # every state dict of OpenAI's code has it
PREFIX = "model."

# OpenAI's part of a name -> Hugging Face's. In this order each is unambiguous in both directions.
RENAMED = {
    "encoder.ln_post.": "encoder.layer_norm.",
    "decoder.ln.": "decoder.layer_norm.",
    ".token_embedding.": ".embed_tokens.",
    ".positional_embedding": ".embed_positions.weight",
    ".blocks.": ".layers.",
    ".cross_attn_ln.": ".encoder_attn_layer_norm.",
    ".cross_attn.": ".encoder_attn.",
    ".attn_ln.": ".self_attn_layer_norm.",
    ".attn.": ".self_attn.",
    ".mlp_ln.": ".final_layer_norm.",
    ".mlp.0.": ".fc1.",
    ".mlp.2.": ".fc2.",
    ".query.": ".q_proj.",
    ".key.": ".k_proj.",
    ".value.": ".v_proj.",
    ".out.": ".out_proj.",
}


def is_openai(names: Iterable[str]) -> bool:
    """Tell whether tensors have OpenAI's names."""
    return MARK in names


def from_openai(name: str) -> str:
    """Translate a name of OpenAI's to transformers'.

    Example:
        >>> from_openai("encoder.blocks.0.attn.query.weight")
        'model.encoder.layers.0.self_attn.q_proj.weight'
    """
    for theirs, ours in RENAMED.items():
        name = name.replace(theirs, ours)
    return PREFIX + name


def to_openai(name: str) -> str:
    """Translate a name of transformers' to OpenAI's.

    Example:
        >>> to_openai("model.encoder.layers.0.self_attn.q_proj.weight")
        'encoder.blocks.0.attn.query.weight'
    """
    name = name.removeprefix(PREFIX)
    for theirs, ours in RENAMED.items():
        name = name.replace(ours, theirs)
    return name
