"""LoRA adapters give the deltas that peft itself merges, without a merged model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from speech_models import make_whisper
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from lorsmerge_cli.checkpoint.adapter import AdapterTaskVector
from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.checkpoint.task_vector import finetuned_vector, open_task_vector
from lorsmerge_cli.core.low_rank_sparse import LowRankSparse, dense
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


def test_a_transposed_layer_as_in_gpt2(tmp_path: Path, adapt: Callable, base: Path) -> None:
    adapter = adapt(r=2, target_modules=["fc1"])
    config = adapter / "adapter_config.json"
    before = dense(finetuned_vector(adapter, Checkpoint(base)).read(FC1))
    config.write_text(json.dumps(json.loads(config.read_text()) | {"fan_in_fan_out": True}))
    after = dense(finetuned_vector(adapter, Checkpoint(base)).read(FC1))  # fc1 is square here
    torch.testing.assert_close(after, before.T)
    assert (after != before).any()


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
    "an alpha that is none": ({"lora_alpha": "much"}, "much"),
}


@pytest.mark.parametrize(("settings", "words"), CONFIGS.values(), ids=CONFIGS)
def test_configs_that_do_not_say_lora(
    base: Path, adapt: Callable, settings: dict, words: str
) -> None:
    with pytest.raises(LorsmergeError, match=words):
        finetuned_vector(edited(adapt(r=2), **settings), Checkpoint(base))


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
