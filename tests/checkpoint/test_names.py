"""Which tensors are pruned, and what their names say."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from lorsmerge_cli.checkpoint.names import (
    is_linear_weight,
    kind,
    room,
    select_pruned,
    without_layer,
)
from lorsmerge_cli.checkpoint.safetensors_file import TensorSpec
from lorsmerge_cli.errors import UsageFault


@pytest.fixture(scope="module")
def whisper() -> dict[str, TensorSpec]:
    config = WhisperConfig(
        vocab_size=60, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, pad_token_id=0,
        bos_token_id=0, eos_token_id=0, decoder_start_token_id=1,
    )  # fmt: skip
    state = WhisperForConditionalGeneration(config).state_dict()
    return {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in state.items()}


def matrix(name: str) -> dict[str, TensorSpec]:
    return {name: TensorSpec((8, 8), torch.float32)}


def test_of_whisper_exactly_the_attention_and_mlp_weights(whisper: dict[str, TensorSpec]) -> None:
    rule = re.compile(
        r"model\.(encoder\.layers\.\d\.self_attn|decoder\.layers\.\d\.(self|encoder)_attn)"
        r"\.[qkv]_proj\.weight"
        r"|.*\.(self|encoder)_attn\.out_proj\.weight|.*\.fc[12]\.weight"
    )
    wanted = {name for name in whisper if rule.fullmatch(name)}
    assert len(wanted) == 2 * (4 + 2) + 2 * (8 + 2)
    assert select_pruned(whisper) == wanted


LINEAR = {
    "wav2vec2": (
        "wav2vec2.encoder.layers.0.attention.q_proj.weight",
        "wav2vec2.encoder.layers.11.feed_forward.intermediate_dense.weight",
        "wav2vec2.encoder.layers.11.feed_forward.output_dense.weight",
        "wav2vec2.feature_projection.projection.weight",
    ),
    "llama": (
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.31.mlp.gate_proj.weight",
        "model.layers.31.mlp.down_proj.weight",
    ),
    "t5": (
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
    ),
    "gpt2": ("transformer.h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight"),
}
OTHER = {
    "wav2vec2": (
        "lm_head.weight",
        "wav2vec2.encoder.pos_conv_embed.conv.weight",
        "classifier.weight",
        "wav2vec2.encoder.layers.0.attention.rel_attn_embed.weight",
    ),
    "llama": ("model.embed_tokens.weight", "lm_head.weight"),
    "t5": (
        "shared.weight",
        "encoder.embed_tokens.weight",
        # an embedding of distances, 32 of them, into one value per head
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    "gpt2": ("transformer.wte.weight", "wpe.weight"),
    "whisper": (
        "model.decoder.embed_tokens.weight",
        "model.decoder.embed_positions.weight",
        "model.encoder.embed_positions.weight",
        "proj_out.weight",
    ),
    "bert": ("bert.embeddings.word_embeddings.weight", "embeddings.token_type_embeddings.weight"),
    "no weight": ("model.layers.0.fc1.lora_A", "model.layers.0.fc1.scale", "weights"),
}


def flat(table: dict[str, tuple[str, ...]]) -> list[str]:
    return [name for names in table.values() for name in names]


@pytest.mark.parametrize("name", flat(LINEAR))
def test_a_linear_weight(name: str) -> None:
    assert is_linear_weight(name, TensorSpec((8, 8), torch.bfloat16))


@pytest.mark.parametrize("name", flat(OTHER))
def test_no_linear_weight(name: str) -> None:
    assert not is_linear_weight(name, TensorSpec((8, 8), torch.float32))


@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec((8,), torch.float32),
        TensorSpec((8, 8, 3), torch.float32),
        TensorSpec((), torch.float32),
        TensorSpec((8, 8), torch.int8),
    ],
    ids=["norm", "convolution", "scalar", "integers"],
)
def test_only_float_matrices(spec: TensorSpec) -> None:
    assert not is_linear_weight("model.layers.0.fc1.weight", spec)


PATTERNS = {
    "include adds": (("*embed_tokens*",), (), {"model.decoder.embed_tokens.weight"}, 0),
    "exclude takes away": ((), ("model.decoder.*",), set(), 20),
    "exclude wins": (("*embed_tokens*",), ("*.embed_tokens.*",), set(), 0),
    "one layer": ((), ("*.layers.0.fc?.weight",), set(), 4),
    "a set of letters": ((), ("*[qk]_proj.weight",), set(), 12),
    "all but none": ((), ("*",), set(), 32),
}


@pytest.mark.parametrize(("include", "exclude", "more", "fewer"), PATTERNS.values(), ids=PATTERNS)
def test_patterns(whisper, include, exclude, more: set[str], fewer: int) -> None:
    plain, chosen = select_pruned(whisper), select_pruned(whisper, include, exclude)
    assert chosen - plain == more
    assert len(plain - chosen) == fewer


@pytest.mark.parametrize(
    "pattern",
    [
        "encoder.layers.*",
        "*.fc3.weight",
        "",
        "model.encoder.conv1.weight",
        "*.fc1.bias",
        "*.FC1.weight",
    ],
    ids=["not from the start", "nothing", "empty", "3-D", "1-D", "case"],
)
@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_an_error(whisper, pattern: str, option: str) -> None:
    with pytest.raises(UsageFault, match=re.escape(repr(pattern))):
        select_pruned(whisper, **{option: ("*.fc1.weight", pattern)})


def test_an_integer_matrix_cannot_be_included() -> None:
    specs = matrix("fc1.weight") | {"codes": TensorSpec((8, 8), torch.int8)}
    with pytest.raises(UsageFault, match="codes"):
        select_pruned(specs, include=("codes",))


SAYINGS = [
    # name, without its layer, kind, room
    ("model.encoder.layers.11.self_attn.q_proj.weight",
     "model.encoder.layers.*.self_attn.q_proj.weight", "self_attn.q_proj.weight", "encoder"),
    ("model.decoder.embed_tokens.weight",
     "model.decoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "decoder"),
    ("model.encoder.conv1.bias", "model.encoder.conv1.bias", "model.encoder.conv1.bias", "encoder"),
    ("encoder.block.0.layer.1.wi.weight", "encoder.block.*.layer.*.wi.weight", "wi.weight",
     "encoder"),
    ("model.layers.3.mlp.up_proj.weight", "model.layers.*.mlp.up_proj.weight",
     "mlp.up_proj.weight", "layers"),
    ("proj_out.weight", "proj_out.weight", "proj_out.weight", "proj_out"),
    ("scale", "scale", "scale", "scale"),
    ("blocks.7", "blocks.*", "blocks.7", "blocks"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "layerless", "what", "where"), SAYINGS)
def test_what_a_name_says(name: str, layerless: str, what: str, where: str) -> None:
    assert (without_layer(name), kind(name), room(name)) == (layerless, what, where)
