"""Halves, modules and blocks by the names of tensors, of Whisper and of other architectures."""

from __future__ import annotations

import pytest

from lorsmerge_cli.checkpoint.modules import MODULES, depths, half_of, module_of

PLACES = {  # half and module
    "model.encoder.conv1.weight": ("encoder", "conv"),
    "model.encoder.conv2.bias": ("encoder", "conv"),
    "model.encoder.embed_positions.weight": ("encoder", "embed"),
    "model.encoder.layers.0.self_attn.q_proj.weight": ("encoder", "self_attn"),
    "model.encoder.layers.11.self_attn.out_proj.bias": ("encoder", "self_attn"),
    "model.encoder.layers.0.self_attn_layer_norm.weight": ("encoder", "norm"),
    "model.encoder.layers.0.fc1.weight": ("encoder", "mlp"),
    "model.encoder.layers.0.final_layer_norm.bias": ("encoder", "norm"),
    "model.encoder.layer_norm.weight": ("encoder", "norm"),
    "model.decoder.embed_tokens.weight": ("decoder", "embed"),
    "model.decoder.layers.3.encoder_attn.k_proj.weight": ("decoder", "cross_attn"),
    "model.decoder.layers.3.encoder_attn_layer_norm.weight": ("decoder", "norm"),
    "model.decoder.layers.3.self_attn.k_proj.weight": ("decoder", "self_attn"),
    "model.decoder.layers.3.fc2.bias": ("decoder", "mlp"),
    "proj_out.weight": ("", ""),
    # MBart
    "model.shared.weight": ("", "embed"),
    "model.decoder.layernorm_embedding.weight": ("decoder", "norm"),
    "lm_head.weight": ("", ""),
    # T5
    "decoder.block.1.layer.1.EncDecAttention.q.weight": ("decoder", "cross_attn"),
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": ("encoder", "embed"),
    "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": ("encoder", "mlp"),
    # wav2vec 2.0 and conformers
    "wav2vec2.encoder.layers.0.attention.k_proj.weight": ("encoder", "self_attn"),
    "wav2vec2.encoder.layers.0.feed_forward.intermediate_dense.weight": ("encoder", "mlp"),
    "wav2vec2.encoder.layers.0.conv_module.pointwise_conv1.weight": ("encoder", "conv"),
    "wav2vec2.encoder.layers.0.conv_module.batch_norm.running_var": ("encoder", "norm"),
    "wav2vec2.feature_extractor.conv_layers.0.layer_norm.weight": ("", "norm"),
    "wav2vec2.feature_extractor.conv_layers.0.conv.weight": ("", "conv"),
    "wav2vec2.masked_spec_embed": ("", "embed"),
    # SeamlessM4T, BERT, a decoder without an encoder
    "speech_encoder.encoder.layers.0.ffn1.output_dense.weight": ("encoder", "mlp"),
    "text_decoder.layers.0.cross_attention.q_proj.weight": ("decoder", "cross_attn"),
    "bert.encoder.layer.0.attention.output.dense.weight": ("encoder", "self_attn"),
    "bert.encoder.layer.0.output.dense.weight": ("encoder", "mlp"),
    "model.layers.0.mlp.gate_proj.weight": ("", "mlp"),
    "model.layers.0.input_layernorm.weight": ("", "norm"),
    "weight": ("", ""),
}  # fmt: skip


@pytest.mark.parametrize(("name", "place"), PLACES.items(), ids=PLACES)
def test_half_and_module(name: str, place: tuple[str, str]) -> None:
    assert (half_of(name), module_of(name)) == place
    assert module_of(name) in (*MODULES, "")


def test_blocks_are_numbered_within_their_stack() -> None:
    names = [
        "model.encoder.conv1.weight",
        *(f"model.encoder.layers.{n}.self_attn.q_proj.weight" for n in range(4)),
        *(f"model.encoder.layers.{n}.fc1.weight" for n in range(4)),
        *(f"model.decoder.layers.{n}.encoder_attn.q_proj.weight" for n in range(2)),
        "model.decoder.layers.1.final_layer_norm.weight",
        "wav2vec2.feature_extractor.conv_layers.3.conv.weight",
        "classifier.2.weight",
    ]
    found = depths(names)
    assert found["model.encoder.layers.3.fc1.weight"] == (3, 4)
    assert found["model.decoder.layers.1.final_layer_norm.weight"] == (1, 2)
    assert found["model.decoder.layers.0.encoder_attn.q_proj.weight"] == (0, 2)
    assert {name for name in names if name not in found} == {names[0], names[-1], names[-2]}


def test_a_block_of_a_block() -> None:
    """T5 numbers the sublayers too; the outer number is the block's."""
    names = [f"encoder.block.{n}.layer.{m}.SelfAttention.q.weight" for n in (0, 5) for m in (0, 1)]
    assert [depths(names)[name] for name in names] == [(0, 6), (0, 6), (5, 6), (5, 6)]
