"""Trainer's `checkpoint-N`: weights and config, and tokenizer and extractor in the folder above or nowhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands_ended import Ended, Shell
from hub_server import Hub
from safetensors.torch import load_file, save_file
from speech_models import make_clip, make_whisper

DEMO = Path(__file__).parents[2] / "examples" / "demo" / "bundle" / "base"
CHECKPOINT = "run/checkpoint-500"
PROCESSOR = {"tokenizer.json", "tokenizer_config.json", "processor_config.json"}
STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "training_args.bin",
         "trainer_state.json")  # fmt: skip


@pytest.fixture(scope="module")
def speech_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run/ with a processor and checkpoint-500/ without, base/ and clip.wav."""
    folder = tmp_path_factory.mktemp("speech")
    make_whisper(folder / "run")
    shutil.copytree(folder / "run", folder / "base")
    (folder / CHECKPOINT).mkdir()
    for path in (folder / "run").iterdir():
        if path.name not in PROCESSOR and path.is_file():
            shutil.move(path, folder / CHECKPOINT / path.name)
    for name in STATE:
        (folder / CHECKPOINT / name).write_text("state of a training")
    make_clip(folder / "clip.wav", 1, 1.2)
    return folder


@pytest.fixture
def alone(files: Path) -> str:
    """The checkpoint in a folder without a processor."""
    shutil.copytree(CHECKPOINT, "elsewhere/checkpoint-500")
    return "elsewhere/checkpoint-500"


def test_openais_format_needs_neither(tmp_path: Path, succeed: Callable[[str], Ended]) -> None:
    folder = tmp_path / "checkpoint-9"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(DEMO / name, folder)
    succeed(f"lorsmerge export {folder} --format openai -o {tmp_path}/x.pt")
    content = torch.load(tmp_path / "x.pt", weights_only=True)
    stored = load_file(folder / "model.safetensors")
    named = content["model_state_dict"]["decoder.token_embedding.weight"]
    assert named.equal(stored["model.decoder.embed_tokens.weight"])


@pytest.mark.parametrize("config", ["", "--config base", "--config ./run"])
def test_ct2_takes_the_processor_of_the_folder_above_or_of_another(
    files: Path, alone: str, succeed: Callable[[str], Ended], config: str
) -> None:
    pytest.importorskip("ctranslate2")
    succeed("lorsmerge export base --format ct2 -o wanted")
    succeed(f"lorsmerge export {alone if config else CHECKPOINT} --format ct2 -o x {config}")
    wanted = {path.name: path.read_bytes() for path in Path("wanted").iterdir()}
    found = {path.name: path.read_bytes() for path in Path("x").iterdir()}
    assert found.keys() == wanted.keys()
    assert all(found[name] == wanted[name] for name in found if not name.startswith("."))


@pytest.mark.parametrize("command", ["export {} --format ct2 -o x", "push {} you/x --dry-run"])
@pytest.mark.parametrize(
    ("made_from", "named"),
    [
        (None, "--config BASE"),
        ("openai/whisper-small", "--config openai/whisper-small"),
        ("base", "--config base"),
        ("/nowhere/at all", "--config BASE"),
        ("org/x; touch owned", "--config BASE"),
        (["base"], "--config BASE"),
    ],
)
def test_without_one_it_is_asked_for(
    alone: str, hub: Hub, shell: Shell, command: str, made_from: object, named: str
) -> None:
    config = json.loads(Path(alone, "config.json").read_text())
    Path(alone, "config.json").write_text(json.dumps(config | {"_name_or_path": made_from}))
    ended = shell(f"lorsmerge {command.format(alone)}")
    assert ended.code == 1
    assert f"{alone} holds no tokenizer (tokenizer.json or vocab.json)" in ended.err
    assert f"{alone} holds no feature extractor" in ended.err
    assert f"Add `{named}`" in ended.err


def test_the_remedy_works(
    alone: str, hub: Hub, succeed: Callable[[str], Ended], tmp_path: Path
) -> None:
    pytest.importorskip("ctranslate2")
    hub.add_repo("org/base", Path("base"))
    for base in ("base", "org/base"):
        succeed(f"lorsmerge export {alone} --format ct2 -o x --force --config {base}")
        succeed(f"lorsmerge push {alone} you/{base.replace('/', '-')} --config {base}")
        assert hub.files(f"you/{base.replace('/', '-')}").keys() > PROCESSOR
        line = "--audio clip.wav --language ca --beam 1 --device cpu"
        succeed(f"lorsmerge transcribe {alone} --config {base} {line}")


def test_a_push_takes_the_files_above_and_no_state_of_the_training(
    files: Path, hub: Hub, succeed: Callable[[str], Ended]
) -> None:
    ended = succeed(f"lorsmerge push {CHECKPOINT} you/x")
    arrived = hub.files("you/x")
    assert arrived.keys() == PROCESSOR | {
        "README.md", ".gitattributes", "config.json", "generation_config.json", "model.safetensors",
    }  # fmt: skip
    assert arrived["tokenizer.json"] == Path("run/tokenizer.json").read_bytes()
    assert "'tokenizer.json'" in ended.err
    assert "its parent folder" in ended.err


def test_a_checkpoint_with_the_extractor_alone_takes_both_from_above(
    files: Path, succeed: Callable[[str], Ended]
) -> None:
    """As Trainer leaves it that was given the feature extractor in place of a processor."""
    shutil.copy("run/processor_config.json", CHECKPOINT)
    succeed(
        f"lorsmerge transcribe {CHECKPOINT} --audio clip.wav --language ca --beam 1 --device cpu"
    )


def test_a_licence_above_does_not_make_the_processor_be_looked_for_there(
    files: Path, succeed: Callable[[str], Ended]
) -> None:
    for name in PROCESSOR:
        shutil.move(f"run/{name}", CHECKPOINT)
    Path("run/LICENSE").write_text("MIT")
    succeed(
        f"lorsmerge transcribe {CHECKPOINT} --audio clip.wav --language ca --beam 1 --device cpu"
    )


def test_another_models_processor_is_refused(files: Path, alone: str, shell: Shell) -> None:
    config = json.loads(Path("base/config.json").read_text())
    Path("base/config.json").write_text(json.dumps(config | {"vocab_size": 51866}))
    for command in (f"export {alone} --format ct2 -o x", f"push {alone} you/x --dry-run"):
        ended = shell(f"lorsmerge {command} --config base")
        assert ended.code == 1
        assert "vocab_size is 51866" in ended.err


def test_one_file_takes_no_config(files: Path, hub: Hub, shell: Shell) -> None:
    shutil.copy(f"{CHECKPOINT}/model.safetensors", "x.safetensors")
    ended = shell("lorsmerge push x.safetensors you/x --config base --dry-run")
    assert (ended.code, "--config base has no effect" in ended.err) == (2, True)


def test_a_merge_says_that_its_folder_will_have_none(
    alone: str, hub: Hub, shell: Shell, succeed: Callable[[str], Ended]
) -> None:
    tuned = load_file(f"{alone}/model.safetensors")
    save_file({name: value + 0.01 for name, value in tuned.items()}, "ft.safetensors")
    succeed(f"lorsmerge delta {alone} ft.safetensors -o x.delta")
    ended = succeed(f"lorsmerge merge {alone} x.delta -o merged")
    assert "holds no tokenizer" in ended.err
    assert "merged will have none" in ended.err
    ended = shell(f"lorsmerge merge {alone} x.delta -o other --push you/x")
    assert (ended.code, Path("other").exists()) == (1, False)
    ended = succeed(f"lorsmerge merge {alone} x.delta -o whole --config base")
    assert "tokenizer" not in ended.err
    assert {path.name for path in Path("whole").iterdir()} > PROCESSOR


def test_what_is_of_other_weights_or_of_a_training_is_not_copied(
    files: Path, succeed: Callable[[str], Ended]
) -> None:
    index = json.dumps({"weight_map": {"model.x": "model-00001-of-00001.safetensors"}})
    others = ("model.fp16.safetensors.index.json", "pytorch_model.bin.index.json",
              "tf_model.h5", "tf_model.h5.index.json", "flax_model.msgpack",
              "flax_model.msgpack.index.json", "model.safetensors.index.json",
              "model.fp16.safetensors", "global_step5", *STATE)  # fmt: skip
    for name in others:
        Path("base", name).write_text(index)
    tuned = load_file("base/model.safetensors")
    save_file({name: value + 0.01 for name, value in tuned.items()}, "ft.safetensors")
    succeed("lorsmerge delta base ft.safetensors -o x.delta")
    succeed("lorsmerge merge base x.delta -o merged")
    names = {path.name for path in Path("merged").iterdir()}
    assert names.isdisjoint(others)
    assert names > PROCESSOR
    pytest.importorskip("ctranslate2")
    succeed("lorsmerge export base --format ct2 -o ct2")
    assert {path.name for path in Path("ct2").iterdir()}.isdisjoint(others)
