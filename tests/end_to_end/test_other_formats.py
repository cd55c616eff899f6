"""OpenAI's checkpoints, LoRA adapters and a Trainer's checkpoints, in the commands that take them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub_server import Hub
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from speech_models import make_clip, make_tuned, make_whisper
from transformers import WhisperForConditionalGeneration

from lorsmerge_cli.checkpoint.openai_names import to_openai

WORK, USAGE = 1, 2  # exit codes
TRANSCRIBE = "lorsmerge transcribe {} --audio clip.wav --language ca --device cpu --beam 1 --json"
RATIOS = " --svp 0.1 --mp 0.5"
PROCESSOR = ("tokenizer.json", "tokenizer_config.json", "processor_config.json")


@pytest.fixture(scope="module")
def speech_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, ca/, base.pt, ca.pt, clip.wav."""
    folder = tmp_path_factory.mktemp("formats")
    base = make_whisper(folder / "base")
    make_tuned(base, folder / "ca", seed=1, step=0.5)
    make_clip(folder / "clip.wav", 1, 1.2)
    for name in ("base", "ca"):
        save_as_openai(folder / name, folder / f"{name}.pt")
    return folder


def save_as_openai(model: Path, path: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    state = {to_openai(name): value for name, value in tensors.items()}
    torch.save({"dims": {"n_audio_head": 2, "n_text_head": 2}, "model_state_dict": state}, path)


def make_adapter(base: Path, folder: Path, **settings: object) -> Path:
    model = WhisperForConditionalGeneration.from_pretrained(base)
    torch.manual_seed(3)
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    model.merge_and_unload().save_pretrained(folder.with_name("unloaded"))
    return folder


def text_of(succeed: Callable, models: str) -> str:
    (transcript,) = json.loads(succeed(TRANSCRIBE.format(models)).out)["transcripts"]
    return transcript["text"]


def assert_close(a: Path, b: Path) -> None:
    ours, theirs = load_file(a), load_file(b)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-6)


# --- OpenAI's .pt -------------------------------------------------------------------------------


def test_a_merge_onto_openais_file_is_that_onto_the_folder(files: Path, succeed: Callable) -> None:
    succeed("lorsmerge merge base ca -o wanted" + RATIOS)
    succeed("lorsmerge merge base.pt ca.pt -o merged --config base" + RATIOS)
    assert_close(Path("merged/model.safetensors"), Path("wanted/model.safetensors"))
    assert {path.name for path in Path("merged").iterdir()} == {
        path.name for path in Path("wanted").iterdir()
    }
    assert text_of(succeed, "merged") == text_of(succeed, "wanted")
    assert text_of(succeed, "ca.pt --config base") == text_of(succeed, "ca")
    succeed("lorsmerge merge base.pt ca.pt -o bare.safetensors" + RATIOS)
    assert_close(Path("bare.safetensors"), Path("wanted/model.safetensors"))


CONFIGS = {
    "none for a folder": ("-o x", WORK, ("x is to be a model folder", "--config openai/whisper-small")),
    "one for a file": ("-o x.safetensors --config base", USAGE, ("no use", "-o NAME/")),
    "a folder that has none": ("-o x --config empty", WORK, ("empty has no config.json",)),
    "a folder that is not there": ("-o x --config gone", WORK, ("error: gone: no such file",)),
    "other sizes": ("-o x --config wide", WORK, ("base.pt", "d_model is 48 and has to be 32")),
    "other heads": ("-o x --config heads", WORK,
                    ("decoder_attention_heads is 4 and has to be 2",)),
}  # fmt: skip


@pytest.mark.parametrize(("line", "code", "words"), CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_does_not_fit(
    files: Path, shell: Callable, line: str, code: int, words: tuple[str, ...]
) -> None:
    Path("empty").mkdir()
    for name, changes in (("wide", {"d_model": 48}), ("heads", {"decoder_attention_heads": 4})):
        shutil.copytree("base", name)
        config = json.loads(Path("base/config.json").read_text()) | changes
        Path(name, "config.json").write_text(json.dumps(config))
    ended = shell(f"lorsmerge merge base.pt ca.pt {line}")
    assert ended.code == code
    assert [word for word in words if word not in ended.err] == [], ended.err
    assert "\n\n" not in ended.err.strip()
    assert not Path("x").exists()


def test_heads_are_checked_where_nothing_else_would_tell(files: Path, shell: Callable) -> None:
    config = json.loads(Path("base/config.json").read_text()) | {"encoder_attention_heads": 4}
    Path("base/config.json").write_text(json.dumps(config))
    ended = shell(TRANSCRIBE.format("base.pt --config base"))
    assert ended.code == WORK
    assert "encoder_attention_heads is 4 and has to be 2" in ended.err


# --- LoRA adapters ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_becomes_a_small_delta(files: Path, succeed: Callable) -> None:
    make_adapter(Path("base"), Path("adapter"), r=2, lora_alpha=6, modules_to_save=["layer_norm"])
    ended = succeed("lorsmerge delta base adapter -o ca.delta --task asr --language ca --json")
    assert json.loads(ended.out)["bytes"] < 30_000
    assert Path("ca.delta").stat().st_size < Path("base/model.safetensors").stat().st_size / 4
    succeed("lorsmerge merge base ca.delta --scale 1 -o by_delta")
    succeed("lorsmerge merge base adapter --scale 1 -o at_once")
    for name in ("by_delta", "at_once"):
        assert_close(Path(name, "model.safetensors"), Path("unloaded/model.safetensors"))
    ended = succeed("lorsmerge inspect ca.delta")
    assert "asr" in ended.out
    assert "lors" in ended.out
    succeed("lorsmerge prune ca.delta -o pruned.delta --svp 0.05")
    succeed("lorsmerge merge base ca.delta adapter ca/ -o pruned" + RATIOS)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_in_place_of_a_model(files: Path, shell: Callable) -> None:
    make_adapter(Path("base"), Path("adapter"), r=2)
    for line in (
        TRANSCRIBE.format("adapter"),
        "lorsmerge merge adapter ca -o x",
        "lorsmerge inspect adapter",
    ):
        ended = shell(line)
        assert ended.code == WORK
        assert "adapter is a PEFT adapter" in ended.err
        assert "lorsmerge delta BASE ADAPTER" in ended.err


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(("trained_on", "warned"), [("org/whisper", False), ("org/v2", True)])
def test_an_adapter_from_the_hub_names_its_base(
    files: Path, hub: Hub, succeed: Callable, trained_on: str, warned: bool
) -> None:
    make_adapter(Path("base"), Path("adapter"), r=2)
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    config["base_model_name_or_path"] = trained_on
    Path("adapter/adapter_config.json").write_text(json.dumps(config))
    shutil.copy("base/tokenizer.json", "adapter")
    hub.add_repo("org/whisper", Path("base"))
    hub.add_repo("me/adapter", Path("adapter"))
    ended = succeed("lorsmerge merge org/whisper@main me/adapter:scale=1 -o merged")
    assert ("me/adapter was trained on org/v2" in ended.err) == warned
    assert_close(Path("merged/model.safetensors"), Path("unloaded/model.safetensors"))
    fetched = {call.path.split("/")[-1] for call in hub.seen("GET", "me/adapter/resolve")}
    assert fetched == {"adapter_config.json", "adapter_model.safetensors"}


# --- a Trainer's checkpoint-N ---------------------------------------------------------------------


def test_a_trainers_checkpoint_takes_the_rest_from_its_parent(
    files: Path, succeed: Callable, shell: Callable
) -> None:
    checkpoint = Path("run/checkpoint-500")
    shutil.copytree("ca", checkpoint)
    for name in PROCESSOR:
        shutil.move(checkpoint / name, "run")
    (checkpoint / "optimizer.pt").write_text("state")
    wanted = text_of(succeed, "ca")
    assert text_of(succeed, str(checkpoint)) == wanted
    succeed(f"lorsmerge merge {checkpoint} base --scale 0 -o merged")
    assert text_of(succeed, "merged") == wanted
    assert {*PROCESSOR} <= {path.name for path in Path("merged").iterdir()}
    shutil.move(checkpoint, "run/best")  # any other folder has to hold its own
    ended = shell(TRANSCRIBE.format("run/best"))
    assert ended.code == WORK
    assert "tokenizer" in ended.err
