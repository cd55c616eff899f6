"""Which tensors are pruned, and what their names say."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from lorsmerge_cli.checkpoint.names import (
    is_expert_stack,
    is_linear_weight,
    linear_weights,
    module,
    pruned_share,
    select_pruned,
    share_warning,
    tensor_type,
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
    "bert": (
        "bert.encoder.layer.0.attention.self.query.weight",
        "bert.encoder.layer.0.output.dense.weight",
        "encoder.layer.0.attention.output.dense.weight",
        "bert.pooler.dense.weight",
        "cls.predictions.transform.dense.weight",
    ),
    "mixtures": (
        "model.layers.0.block_sparse_moe.experts.7.w1.weight",
        "model.layers.0.mlp.shared_expert.gate_proj.weight",
        "decoder.layers.0.gateway.gate.weight",  # square: no router
    ),
    "beside embeddings": (
        "albert.encoder.embedding_hidden_mapping_in.weight",
        "electra.embeddings_project.weight",
        "model.embed_tokens_extend.audio_embed.encoder.encoders.0.self_attn.q_proj.weight",
        "flow_head.timestep_embeddings.0.fc1.weight",
    ),
    "inside a head": ("vision_model.head.mlp.fc1.weight", "vision_model.head.q_proj.weight"),
    "names of heads in layers": (
        "blocks.3.mlp.proj_out.weight",
        "layers.0.self_attn.output_projection.o_proj.weight",
        "encoder.block.0.output.weight",
    ),
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
    "bert": (
        "bert.embeddings.word_embeddings.weight",
        "embeddings.token_type_embeddings.weight",
        "cls.predictions.decoder.weight",
    ),
    "other output layers": (
        "vocab_projector.weight",
        "decoder.cls.predictions.decoder.weight",
        "pred_layer.proj.weight",
        "model.decoder.output_projection.weight",
        "output_projection.weight",
        "output.weight",
        "lm_loss.weight",
        "embed_out.weight",
        "ctc_head.weight",
        "decoder.lm_heads.3.weight",
        "logits_dense.weight",
        "talker.codec_head.weight",
        "classifier.out_proj.weight",
        "qa_outputs.weight",
        "lm_head.dense.weight",
    ),
    "other embeddings": (
        "transformer.w.weight",
        "model.decoder.pos_emb.weight",
        "encoder.layers.0.self_attn.rel_pos_emb.weight",
        "audio_tower.audio_bos_eos_token.weight",
        "quantizers.0.codebook.weight",
        "canine.char_embeddings.HashBucketCodepointEmbedder_0.weight",
    ),
    "routers": (
        "model.layers.0.mlp.router.weight",
        "decoder.block.0.layer.2.mlp.router.classifier.weight",
    ),
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


def test_a_gate_to_fewer_experts_than_the_width_is_a_router() -> None:
    name = "model.layers.0.mlp.gate.weight"
    assert not is_linear_weight(name, TensorSpec((8, 64), torch.float32))
    assert is_linear_weight(name, TensorSpec((64, 64), torch.float32))


def floats(**shapes: tuple[int, ...]) -> dict[str, TensorSpec]:
    return {
        name.replace("__", "."): TensorSpec(shape, torch.float32) for name, shape in shapes.items()
    }


def test_a_layer_as_tall_as_the_vocabulary_is_an_output_layer() -> None:
    specs = floats(
        tokens__embed__weight=(500, 16),
        positions__embed_positions__weight=(64, 16),
        generator__weight=(500, 16),  # of a name that nothing is known about
        adapter__weight=(64, 16),  # as tall as there are positions
        layers__0__up__weight=(500, 16),  # inside of the model
        wide__weight=(16, 500),
    )
    assert linear_weights(specs) == {
        "adapter.weight", "layers.0.up.weight", "wide.weight",
    }  # fmt: skip
    assert is_linear_weight("generator.weight", specs["generator.weight"])  # by its name alone
    few = floats(embed__weight=(50, 16), generator__weight=(50, 16))
    assert linear_weights(few) == {"generator.weight"}


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


MIXTURE = floats(
    model__embed_tokens__weight=(300, 16),
    model__layers__0__mlp__experts__gate_up_proj=(4, 16, 24),
    model__layers__0__mlp__experts__down_proj=(4, 12, 16),
    model__layers__0__mlp__experts__down_proj_bias=(4, 16),
    model__layers__0__mlp__gate__weight=(4, 16),
    model__layers__0__q_proj__weight=(16, 16),
    model__layers__0__conv__weight=(16, 16, 3),
    model__layers__0__block_sparse_moe__input_linear__weight=(4, 8, 16),
)
STACKS = {name for name, spec in MIXTURE.items() if len(spec.shape) == 3 and "conv" not in name}


def test_experts_are_pruned_on_request() -> None:
    assert {name for name, spec in MIXTURE.items() if is_expert_stack(name, spec)} == STACKS
    q_proj = "model.layers.0.q_proj.weight"
    assert select_pruned(MIXTURE) == {q_proj}
    found = select_pruned(MIXTURE, include=("*experts*", "*moe*"))
    assert found == STACKS | {q_proj}  # and not the experts' biases, which are 2-D
    assert select_pruned(MIXTURE, ("*experts*",), ("*down_proj*", "*q_proj*")) == {
        "model.layers.0.mlp.experts.gate_up_proj"
    }


@pytest.mark.parametrize("pattern", ["*conv*", "*down_proj_bias", "*.experts.up_proj"])
def test_a_pattern_without_a_matrix_or_experts_is_an_error(pattern: str) -> None:
    with pytest.raises(UsageFault, match="no 3-D tensor of experts"):
        select_pruned(MIXTURE, include=(pattern,))


def test_integer_experts_cannot_be_included() -> None:
    specs = MIXTURE | {"experts.codes": TensorSpec((4, 8, 8), torch.int8)}
    with pytest.raises(UsageFault, match=r"experts\.codes"):
        select_pruned(specs, include=("experts.codes",))


def test_the_share_of_the_parameters() -> None:
    specs = floats(a__weight=(10, 10), b__weight=(10, 20), c=(100,))
    assert pruned_share(specs, ["a.weight"]) == 0.25
    assert pruned_share(specs, []) == 0
    assert pruned_share({}, []) == 0


def test_a_share_below_a_half_is_told_with_what_holds_the_rest() -> None:
    (told,) = share_warning(MIXTURE, select_pruned(MIXTURE))
    total = sum(spec.numel for spec in MIXTURE.values())
    assert f"{256 / total:.0%} of the parameters are pruned" in told
    embedding = f"model.embed_tokens.weight ({4800 / total:.0%})"
    assert f"{embedding}, model.layers.*.mlp.experts.gate_up_proj ({1536 / total:.0%})" in told
    assert (
        "--include model.embed_tokens.weight --include 'model.layers.*.mlp.experts.gate_up_proj'"
        in told
    )
    everything = select_pruned(MIXTURE, include=("*",))
    assert pruned_share(MIXTURE, everything) > 0.5
    assert share_warning(MIXTURE, everything) == []


def test_no_advice_to_include_what_cannot_be_or_was_excluded() -> None:
    specs = floats(
        conv__weight=(9, 9, 9), layers__0__fc1__weight=(8, 8), layers__0__q__weight=(2, 2)
    )
    (told,) = share_warning(specs, select_pruned(specs, exclude=("*fc1*",)))
    assert "conv.weight" in told
    assert "fc1" in told
    assert "--include" not in told


SAYINGS = [
    # name, without its layer, type, module
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
    assert (without_layer(name), tensor_type(name), module(name)) == (layerless, what, where)
