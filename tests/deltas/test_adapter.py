"""LoRA adapters give the deltas that peft itself merges, without a merged model."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from speech_models import make_whisper
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    WhisperForConditionalGeneration,
)

from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.core.low_rank_sparse import LowRankSparse, dense
from lorsmerge_cli.deltas.adapter import AdapterTaskVector
from lorsmerge_cli.deltas.task_vector import finetuned_vector, open_task_vector
from lorsmerge_cli.errors import LorsmergeError, Mismatch, UnreadableFile

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning",  # peft calls what transformers renamed
    "ignore::UserWarning:peft",
)
Q_PROJ = "model.encoder.layers.0.self_attn.q_proj.weight"
FC1 = "model.decoder.layers.1.fc1.weight"
EMBEDDING = "model.decoder.embed_tokens.weight"
KINDS = {
    "plain": {"r": 4, "lora_alpha": 12},
    "rank-stabilised": {"r": 4, "lora_alpha": 12, "use_rslora": True},
    "ranks and alphas by pattern": {
        "r": 4,
        "rank_pattern": {r"encoder.*q_proj": 7},
        "alpha_pattern": {r"encoder.*q_proj": 3, "decoder.layers.1.self_attn.v_proj": 11},
    },
    "with whole modules": {"r": 2, "modules_to_save": ["layer_norm"]},
    "with biases": {"r": 2, "bias": "all"},
    "with an embedding": {"r": 2, "lora_alpha": 6, "target_modules": ["embed_tokens", "fc1"]},
    "with a whole embedding": {"r": 2, "modules_to_save": ["embed_tokens"]},
    "an orthogonal beginning": {"r": 2, "init_lora_weights": "orthogonal"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whisper(tmp_path_factory.mktemp("adapters") / "base")


@pytest.fixture
def adapt(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """`adapt(r=4, ...)` saves an adapter whose every number was trained."""

    def make(**settings: object) -> Path:
        settings = {"target_modules": ["q_proj", "v_proj"]} | settings
        model = WhisperForConditionalGeneration.from_pretrained(base)
        torch.manual_seed(1)
        model = get_peft_model(model, LoraConfig(**settings))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    return make


def merged_by_peft(base: Path, adapter: Path) -> dict[str, Tensor]:
    model = WhisperForConditionalGeneration.from_pretrained(base)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_its_deltas_are_what_peft_merges(base: Path, adapt: Callable, settings: dict) -> None:
    adapter = adapt(**settings)
    checkpoint = Checkpoint(base)
    vector = open_task_vector(adapter, checkpoint)
    assert isinstance(vector, AdapterTaskVector)
    wanted = merged_by_peft(base, adapter)
    changed = set()
    for name, spec in checkpoint.float_specs.items():
        delta = dense(vector.read(name))
        assert delta.shape == spec.shape
        expected = wanted[name] - checkpoint.read(name)
        torch.testing.assert_close(delta, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            vector.read_block(name, 3, 9), delta.reshape(-1)[3:9], rtol=0, atol=0
        )
        changed |= {name} if delta.any() else set()
    assert changed
    assert changed == {
        name for name in checkpoint.specs if (wanted[name] != checkpoint.read(name)).any()
    }


def test_factors_are_kept_and_what_is_left_alone_takes_no_bytes(
    base: Path, adapt: Callable
) -> None:
    vector = finetuned_vector(adapt(r=3), Checkpoint(base))
    delta = vector.read(Q_PROJ)
    assert isinstance(delta, LowRankSparse)
    assert (delta.left.shape, delta.right.shape, delta.sparse) == ((32, 3), (3, 32), None)
    layouts = vector.layouts
    assert (layouts[Q_PROJ].encoding, layouts[Q_PROJ].rank) == ("lors", 3)
    assert (layouts[FC1].encoding, layouts[FC1].rank, layouts[FC1].kept) == ("lors", 0, 0)
    assert vector.is_pruned(Q_PROJ)
    assert not vector.is_pruned(FC1)


def test_a_wrong_fan_in_fan_out_is_corrected_as_peft_does(base: Path, adapt: Callable) -> None:
    adapter = adapt(r=2, target_modules=["fc1", "q_proj"])  # square, all of them
    before = {
        name: dense(finetuned_vector(adapter, Checkpoint(base)).read(name))
        for name in (FC1, Q_PROJ)
    }
    edited(adapter, fan_in_fan_out=True)
    wanted = merged_by_peft(base, adapter)
    for name, delta in before.items():
        found = dense(finetuned_vector(adapter, Checkpoint(base)).read(name))
        torch.testing.assert_close(found, delta, rtol=0, atol=0)
        expected = wanted[name] - Checkpoint(base).read(name)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def make_gpt2(folder: Path, model_class: type) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=60, n_positions=8, pad_token_id=0
    )
    model_class(config).save_pretrained(folder)


GPT2_KINDS = {  # Conv1D alone, and beside modules that are none
    "square": (GPT2LMHeadModel, {"target_modules": ["attn.c_proj"]}, True),
    "all": (GPT2LMHeadModel, {"target_modules": ["c_attn", "c_proj", "c_fc"]}, True),
    "an embedding": (GPT2LMHeadModel, {"target_modules": ["attn.c_proj", "wte"]}, True),
    # PEFT records what the last module needed, and that is a Linear
    "a linear head": (GPT2ForSequenceClassification,
                      {"target_modules": ["attn.c_proj", "c_fc", "score"]}, False),
}  # fmt: skip


@pytest.mark.parametrize(
    ("model_class", "settings", "recorded"), GPT2_KINDS.values(), ids=GPT2_KINDS
)
def test_conv1d_layers_are_opened_as_by_peft(
    tmp_path: Path, model_class: type, settings: dict, recorded: bool
) -> None:
    make_gpt2(tmp_path / "base", model_class)
    model = get_peft_model(
        model_class.from_pretrained(tmp_path / "base"), LoraConfig(r=2, lora_alpha=6, **settings)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["fan_in_fan_out"] is recorded
    opened = PeftModel.from_pretrained(
        model_class.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    )
    wanted = opened.merge_and_unload().state_dict()
    # the bare file has no config: its tensors tell
    for path in (tmp_path / "base", tmp_path / "base" / "model.safetensors"):
        base = Checkpoint(path)
        vector = finetuned_vector(tmp_path / "adapter", base)
        changed = 0
        for name in base.float_specs:
            delta = dense(vector.read(name))
            torch.testing.assert_close(delta, wanted[name] - base.read(name), rtol=1e-4, atol=1e-5)
            changed += bool(delta.any())
        assert changed >= 2


def test_where_nothing_else_tells_fan_in_fan_out_does(tmp_path: Path) -> None:
    square = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    save_file({"h.0.c_proj.weight": square, "h.0.c_proj.bias": torch.zeros(8)}, tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    factors = {f"base_model.model.h.0.c_proj.lora_{x}.weight": square[:2] for x in "A"}
    factors["base_model.model.h.0.c_proj.lora_B.weight"] = square[:, :2].contiguous()
    save_file(factors, adapter / "adapter_model.safetensors")
    for flag in (True, False):
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "fan_in_fan_out": flag}
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        found = dense(
            finetuned_vector(adapter, Checkpoint(tmp_path / "base")).read("h.0.c_proj.weight")
        )
        product = square[:, :2] @ square[:2]
        torch.testing.assert_close(found, product.T if flag else product)


def test_an_old_adapter_is_a_pickle(base: Path, adapt: Callable) -> None:
    adapter = adapt(r=2)
    wanted = dense(finetuned_vector(adapter, Checkpoint(base)).read(Q_PROJ))
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    assert torch.equal(dense(finetuned_vector(adapter, Checkpoint(base)).read(Q_PROJ)), wanted)


def test_a_scaling_is_part_of_its_identity(base: Path, adapt: Callable) -> None:
    adapter = adapt(r=2)
    before = finetuned_vector(adapter, Checkpoint(base)).identity()
    assert before == finetuned_vector(adapter, Checkpoint(base)).identity()
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 9}))
    assert finetuned_vector(adapter, Checkpoint(base)).identity() != before


def test_half_precision_matters_in_whole_tensors_alone(base: Path, adapt: Callable) -> None:
    def in_half(adapter: Path) -> str:
        file = adapter / "adapter_model.safetensors"
        save_file({name: value.half() for name, value in load_file(file).items()}, file)
        return finetuned_vector(adapter, Checkpoint(base)).finetuned_dtype

    assert in_half(adapt(r=2)) == "F32"
    assert in_half(adapt(r=2, modules_to_save=["layer_norm"])) == "F16"


OTHER_KINDS = {
    "DoRA": ({"use_dora": True}, "use_dora"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "pissa"),
    "biases of its own": ({"lora_bias": True}, "lora_bias"),
}


@pytest.mark.parametrize(("settings", "word"), OTHER_KINDS.values(), ids=OTHER_KINDS)
def test_other_kinds_are_refused(base: Path, adapt: Callable, settings: dict, word: str) -> None:
    with pytest.raises(Mismatch, match="merge_and_unload") as caught:
        finetuned_vector(adapt(r=2, **settings), Checkpoint(base))
    assert word in caught.value.what


def edited(adapter: Path, **settings: object) -> Path:
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    return adapter


CONFIGS = {
    "another method": ({"peft_type": "IA3"}, "IA3"),
    "a setting of tomorrow": ({"use_later_idea": True}, "use_later_idea"),
    "a pattern that is none": ({"alpha_pattern": {"(": 1}}, "alpha_pattern|unterminated|missing"),
    "an alpha that is none": ({"lora_alpha": "much"}, "lora_alpha is 'much'"),
    "a list for an alpha": ({"lora_alpha": []}, r"lora_alpha is \[\]"),
    "an alpha that is true": ({"lora_alpha": True}, "lora_alpha is True"),
    "not a number": ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
    "infinite": ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
    "larger than any float": ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
    "an infinite alpha of some": ({"alpha_pattern": {"fc1": float("-inf")}}, "fc1.*-inf"),
    "a word for the alpha of some": (
        {"alpha_pattern": {"fc1": "8"}},
        "alpha_pattern of 'fc1' is '8'",
    ),
    "a list of alphas": ({"alpha_pattern": ["fc1"]}, "alpha_pattern is"),
    "a rank that is none": ({"r": "x"}, "rank of 'r' is 'x'"),
    "no rank": ({"r": 0}, "rank of 'r' is 0"),
    "a rank of some that is none": ({"rank_pattern": {"fc1": 2.5}}, "rank of 'fc1' is 2.5"),
    "targets that are numbers": ({"target_modules": [1, 2]}, "target_modules is"),
    "targets that are an object": ({"target_modules": {"a": 1}}, "target_modules is"),
    "a word for a flag": ({"fan_in_fan_out": "no"}, "fan_in_fan_out is 'no'"),
    "a base that is a list": ({"base_model_name_or_path": ["x"]}, "base_model_name_or_path is"),
    "an exponential pattern": ({"alpha_pattern": {"(a+)+$": 1}}, "alpha_pattern has a pattern"),
}


@pytest.mark.parametrize(("settings", "words"), CONFIGS.values(), ids=CONFIGS)
def test_configs_that_do_not_say_lora(
    base: Path, adapt: Callable, settings: dict, words: str
) -> None:
    with pytest.raises(LorsmergeError, match=words):
        finetuned_vector(edited(adapt(r=2), **settings), Checkpoint(base))


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[]", "null", '{"a": ', ""],
    ids=["deep", "a list", "null", "cut", "empty"],
)
def test_a_config_that_is_no_object(base: Path, adapt: Callable, text: str) -> None:
    adapter = adapt(r=2)
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(UnreadableFile, match="is not a readable adapter config"):
        finetuned_vector(adapter, Checkpoint(base))


NAMES = [
    "openai/whisper-small",
    "x'); __import__('os').system('touch owned'); W.from_pretrained('y",
    "both ' and \"",
    "C:\\models\\new",
    "two\nlines",
    "\u202e\x1b[2J",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_snippet_quotes_a_strangers_name(base: Path, adapt: Callable, name: str) -> None:
    adapter = edited(adapt(r=2), use_dora=True, base_model_name_or_path=name)
    with pytest.raises(Mismatch) as caught:
        finetuned_vector(adapter, Checkpoint(base))
    snippet = caught.value.remedy.partition("`")[2].rpartition("`")[0]
    calls = [node for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Call)]
    assert (
        len(calls) == 4
    )  # PEFT's from_pretrained and the base's, merge_and_unload, save_pretrained
    strings = [argument.value for call in calls for argument in call.args
               if isinstance(argument, ast.Constant)]  # fmt: skip
    assert sorted(strings) == sorted([name, str(adapter), "merged-adapter"])
    assert snippet.isprintable()


def test_a_value_of_any_length_is_shown_in_part(base: Path, adapt: Callable) -> None:
    adapter = edited(adapt(r=2), use_later_idea="x" * 10**6, base_model_name_or_path="y" * 10**6)
    with pytest.raises(Mismatch) as caught:
        finetuned_vector(adapter, Checkpoint(base))
    assert len(str(caught.value)) < 1500
    assert "W.from_pretrained('BASE')" in caught.value.remedy


def test_dora_without_its_setting_shows_in_the_tensors(base: Path, adapt: Callable) -> None:
    with pytest.raises(Mismatch, match="lora_magnitude_vector"):
        finetuned_vector(edited(adapt(r=2, use_dora=True), use_dora=False), Checkpoint(base))


def test_a_convolution_is_refused(base: Path, adapt: Callable) -> None:
    with pytest.raises(Mismatch, match=r"conv1\.lora_A.*merge_and_unload"):
        finetuned_vector(adapt(r=2, target_modules=["conv1"]), Checkpoint(base))


def test_a_factor_alone_is_named(base: Path, adapt: Callable) -> None:
    adapter = adapt(r=2)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    gone = f"base_model.model.{Q_PROJ.removesuffix('.weight')}.lora_B.weight"
    del tensors[gone]
    save_file(tensors, file)
    with pytest.raises(Mismatch, match=r"lora_A\.weight") as caught:
        finetuned_vector(adapter, Checkpoint(base))
    assert Q_PROJ.removesuffix(".weight") in caught.value.what


def test_the_output_layer_is_the_embedding(base: Path, adapt: Callable) -> None:
    with pytest.raises(Mismatch, match="ties to its embedding"):
        finetuned_vector(adapt(r=2, modules_to_save=["proj_out"]), Checkpoint(base))


def test_a_head_that_any_base_ties_is_told_as_that(tmp_path: Path) -> None:
    make_gpt2(tmp_path / "base", GPT2LMHeadModel)
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"]))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(Mismatch, match=r"ties to its embedding: 'lm_head\.weight'"):
        finetuned_vector(tmp_path / "adapter", Checkpoint(tmp_path / "base"))


def test_another_base_is_refused(base: Path, adapt: Callable, tmp_path: Path) -> None:
    adapter = adapt(r=2, target_modules=["embed_tokens"])
    other = make_whisper(tmp_path / "other", seed=5)
    with pytest.raises(Mismatch, match="another base") as caught:
        finetuned_vector(adapter, Checkpoint(other))
    assert str(base) in caught.value.remedy  # the one it names
    narrow = tmp_path / "narrow.safetensors"
    tensors = load_file(base / "model.safetensors")
    save_file({name: value for name, value in tensors.items() if "v_proj" not in name}, narrow)
    with pytest.raises(Mismatch, match="lacks"):
        finetuned_vector(adapt(r=2), Checkpoint(narrow))
    save_file(tensors | {Q_PROJ: torch.zeros(32, 40)}, narrow)
    with pytest.raises(Mismatch, match=r"another shape.*\[32, 32\] for \[32, 40\]"):
        finetuned_vector(adapt(r=2), Checkpoint(narrow))


def test_an_adapter_without_weights(base: Path, adapt: Callable) -> None:
    adapter = adapt(r=2)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UnreadableFile, match=r"no adapter_model\.safetensors"):
        finetuned_vector(adapter, Checkpoint(base))


def test_an_adapter_is_no_model(adapt: Callable) -> None:
    with pytest.raises(UnreadableFile, match="lorsmerge delta BASE ADAPTER"):
        Checkpoint(adapt(r=2))
