"""A model folder becomes features, prompts and texts, and what does not fit is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from speech_models import LONGEST, RATE, WINDOW, make_clip, make_whisper

from lorsmerge_cli.checkpoint.whisper_config import check_model_folder
from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import Mismatch, UnreadableFile, UsageFault
from lorsmerge_cli.speech.model import (
    SpeechModel,
    audio_of,
    build_model,
)
from lorsmerge_cli.speech.source import find_model

Edit = Callable[[dict[str, torch.Tensor]], object]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return make_whisper(tmp_path_factory.mktemp("model") / "whisper")


@pytest.fixture(scope="module")
def speech(folder: Path) -> SpeechModel:
    return build_model("tiny", folder, load_file(folder / "model.safetensors"))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A model folder to spoil."""
    return make_whisper(tmp_path / "whisper")


def wave(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(round(seconds * RATE))).astype(np.float32)


# --- sound ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.1, 0.73, WINDOW])
def test_audio_is_padded_as_waveform_to_the_window(speech: SpeechModel, seconds: float) -> None:
    sound = wave(seconds)
    padded = np.pad(sound, (0, round(WINDOW * RATE) - len(sound)))
    found = speech.features([sound])
    assert found.shape == (1, 80, 128)
    assert found.equal(speech.features([padded]))
    if seconds < WINDOW:  # silence is not the zero that padding of features would put there
        assert not found[..., -10:].eq(0).any()


def test_features_do_not_depend_on_the_clips_beside(speech: SpeechModel) -> None:
    waves = [wave(0.4, 1), wave(1.9, 2), wave(1.0, 3)]
    together = speech.features(waves)
    for number, sound in enumerate(waves):
        torch.testing.assert_close(together[number], speech.features([sound])[0], rtol=0, atol=1e-5)


def test_an_utterance_is_a_piece_of_its_file(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.wav", 1, 1.5)
    whole = audio_of(Utterance("a", AudioFile(clip), "", "ca", "asr"))
    piece = audio_of(Utterance("a", AudioFile(clip), "", "ca", "asr", 0.5, 0.25))
    np.testing.assert_array_equal(piece, whole[round(0.25 * RATE) : round(0.75 * RATE)])


def test_window_and_limit_are_the_models(speech: SpeechModel, folder: Path, models: Path) -> None:
    assert speech.window == find_model(folder).window == WINDOW
    assert find_model(models / "base").window == 30
    assert speech.longest_label == LONGEST


# --- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "token"), [("asr", "transcribe"), ("st", "translate")])
@pytest.mark.parametrize("language", ["ca", "de"])
def test_a_prompt_is_start_language_task_and_no_timestamps(
    speech: SpeechModel, language: str, task: str, token: str
) -> None:
    names = speech.processor.tokenizer.convert_ids_to_tokens(speech.prompt(language, task))
    assert names == [
        "<|startoftranscript|>", f"<|{language}|>", f"<|{token}|>", "<|notimestamps|>",
    ]  # fmt: skip


def test_a_prompt_is_what_transformers_prompts_with(models: Path) -> None:
    base = models / "base"
    speech = build_model("base", base, load_file(base / "model.safetensors"))
    pairs = speech.processor.get_decoder_prompt_ids(
        language="ca", task="translate", no_timestamps=True
    )
    assert speech.prompt("ca", "st")[1:] == [token for _, token in pairs]


def test_labels_are_the_prompt_the_text_and_the_end(models: Path) -> None:
    base = models / "base"
    speech = build_model("base", base, load_file(base / "model.safetensors"))
    labels = speech.labels(Utterance("a", AudioFile(Path("a.wav")), "el nen és", "ca", "asr"))
    assert labels[:3] == speech.prompt("ca", "asr")[1:]
    assert labels[-1] == speech.processor.tokenizer.eos_token_id
    assert speech.texts(torch.tensor([labels])) == ["el nen és"]


@pytest.mark.parametrize("pair", [("ca", "asr"), ("en", "st")])
def test_an_english_only_model_is_asked_for_english_transcripts_alone(
    copy: Path, pair: tuple[str, str]
) -> None:
    file = copy / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"is_multilingual": False}))
    speech = build_model("tiny.en", copy, load_file(copy / "model.safetensors"))
    names = speech.processor.tokenizer.convert_ids_to_tokens(speech.prompt("en", "asr"))
    assert names == ["<|startoftranscript|>", "<|notimestamps|>"]
    with pytest.raises(UsageFault, match=r"tiny\.en is an English-only model"):
        speech.prompt(*pair)


def test_texts_have_no_special_tokens(speech: SpeechModel) -> None:
    end = speech.model.config.eos_token_id
    tokens = torch.tensor([[*speech.prompt("ca", "asr"), 0, 1, end, end],
                           [*speech.prompt("de", "st"), end, end, end, end]])  # fmt: skip
    assert speech.texts(tokens) == ["the girl", ""]


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16])
def test_weights_are_the_files_in_the_wanted_dtype(folder: Path, dtype: torch.dtype | None) -> None:
    state = load_file(folder / "model.safetensors")
    model = build_model("tiny", folder, state, dtype).model
    assert not model.training
    held = model.state_dict()
    assert held["proj_out.weight"].data_ptr() == (
        held["model.decoder.embed_tokens.weight"].data_ptr()
    )
    for name, value in state.items():
        assert held[name].equal(value.to(dtype or value.dtype)), name


def drop(state: dict[str, torch.Tensor]) -> None:
    del state["model.encoder.conv1.weight"]


def add(state: dict[str, torch.Tensor]) -> None:
    state["model.encoder.conv9.weight"] = torch.zeros(1)


def reshape(state: dict[str, torch.Tensor]) -> None:
    state["model.encoder.conv1.bias"] = torch.zeros(7)


@pytest.mark.parametrize(
    ("edit", "tensor"), [(drop, "conv1.weight"), (add, "conv9.weight"), (reshape, "conv1.bias")]
)
def test_a_config_of_another_size_is_refused(folder: Path, edit: Edit, tensor: str) -> None:
    state = load_file(folder / "model.safetensors")
    edit(state)
    with pytest.raises(Mismatch, match=rf"tiny and .*describe different models.*{tensor}'"):
        build_model("tiny", folder, state)


# --- folders --------------------------------------------------------------------------------------


def test_a_sound_folder_has_no_faults(folder: Path, models: Path) -> None:
    assert check_model_folder(folder) == check_model_folder(models / "base") == []


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["config.json"], ["holds no config.json"]),
        (["tokenizer.json", "vocab.json"], ["holds no tokenizer"]),
        (["processor_config.json", "preprocessor_config.json"], ["holds no feature extractor"]),
        (
            ["tokenizer.json", "vocab.json", "processor_config.json", "preprocessor_config.json"],
            ["holds no tokenizer", "holds no feature extractor"],
        ),
    ],
)
def test_missing_files_are_named(copy: Path, files: list[str], words: list[str]) -> None:
    for file in files:
        (copy / file).unlink(missing_ok=True)
    faults = check_model_folder(copy)
    assert len(faults) == len(words)
    for fault, word in zip(faults, words, strict=True):
        assert isinstance(fault, UnreadableFile)
        assert word in str(fault)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('{"model_type": "wav2vec2"}', "is a wav2vec2 model"),
        ("{}", "is a None model"),
        ("[1]", "is no JSON config"),
        ("{", "is no JSON config"),
    ],
)
def test_another_architecture_is_refused(copy: Path, config: str, words: str) -> None:
    (copy / "config.json").write_text(config)
    (fault,) = check_model_folder(copy)
    assert words in str(fault)
