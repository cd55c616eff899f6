"""Configs, tokenizers and feature extractors of any origin: an error that names the file, or a model."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz import change_bytes, change_value
from safetensors.torch import load_file, save_file
from speech_models import make_clip, make_whisper

from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import LorsmergeError, Mismatch, UnreadableFile
from lorsmerge_cli.speech.decoding.clips import DecodingSettings, decode_answers
from lorsmerge_cli.speech.loading import refused
from lorsmerge_cli.speech.source import find_model

JSON_FILES = ("config.json", "generation_config.json", "processor_config.json", "tokenizer.json",
              "tokenizer_config.json")  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that works, and a clip. Read only."""
    folder = tmp_path_factory.mktemp("sound")
    make_clip(folder / "clip.wav", 1, 1.2)
    return make_whisper(folder / "whisper")


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    """One to spoil."""
    return Path(shutil.copytree(sound, tmp_path / "whisper"))


def use(folder: Path, clip: Path) -> str:
    """Open a model, make labels and decode, as eval and finetune do."""
    source = find_model(folder)
    speech = source.open(torch.float32, "cpu")
    row = Utterance("a", AudioFile(clip), "the red house", "ca", "asr", min(1.2, source.window))
    speech.labels(row)
    return decode_answers(speech, [row], DecodingSettings(beam=2, max_tokens=3))["a"].text


def edit(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_text())
    if path.name == "processor_config.json":
        document["feature_extractor"] |= changes
    else:
        document |= changes
    path.write_text(json.dumps(document))


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("text", ["[1]", "1", '"x"', "null", "{", "", DEEP, '{"a": ' + DEEP + "}"])
@pytest.mark.parametrize("name", JSON_FILES)
def test_what_is_no_such_document_is_named(sound: Path, copy: Path, name: str, text: str) -> None:
    (copy / name).write_text(text)
    with pytest.raises(LorsmergeError) as caught:
        use(copy, sound.parent / "clip.wav")
    spoilt = "tokenizer" if name.startswith("tokenizer") else name
    assert str(copy / spoilt) in str(caught.value)
    assert len(str(caught.value)) < 900


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("config.json", {"d_model": "x"}, "d_model"),
        ("config.json", {"d_model": 64}, "d_model is 64 and has to be 32"),
        ("config.json", {"d_model": True}, "d_model"),
        ("config.json", {"encoder_layers": 10**8}, "encoder_layers is 100000000 and has to be 1"),
        ("config.json", {"num_hidden_layers": 10**8}, "encoder_layers is 100000000"),
        ("config.json", {"decoder_layers": 0}, "decoder_layers is 0 and has to be 2"),
        ("config.json", {"vocab_size": 10**12}, "vocab_size is 1000000000000"),
        ("config.json", {"decoder_ffn_dim": 10**30}, "decoder_ffn_dim is 1000"),
        ("config.json", {"encoder_attention_heads": 0}, "encoder_attention_heads is 0"),
        ("config.json", {"decoder_attention_heads": -2}, "decoder_attention_heads is -2"),
        ("config.json", {"decoder_attention_heads": 5}, "5"),
        ("config.json", {"activation_function": "nothing"}, "nothing"),
        ("config.json", {"eos_token_id": 10**6}, "eos_token_id is 1000000"),
        ("config.json", {"eos_token_id": [1, 2]}, "eos_token_id is [1, 2]"),
        ("config.json", {"pad_token_id": None}, "pad_token_id is None"),
        ("config.json", {"decoder_start_token_id": -1}, "decoder_start_token_id is -1"),
        ("config.json", {"dropout": 5}, "dropout is 5"),
        ("generation_config.json", {"suppress_tokens": "abc"}, "suppress_tokens"),
        ("generation_config.json", {"begin_suppress_tokens": [[1]]}, "begin_suppress_tokens"),
        ("processor_config.json", {"feature_size": 10**9}, "feature_size is 1000000000"),
        ("processor_config.json", {"n_fft": 10**9}, "n_fft is 1000000000"),
        ("processor_config.json", {"hop_length": 0}, "hop_length is 0"),
        ("processor_config.json", {"chunk_length": 10**9}, "hop_length is "),
        ("processor_config.json", {"chunk_length": 30}, "has to be 128"),
        ("processor_config.json", {"sampling_rate": 8000}, "sampling_rate is 8000"),
        ("processor_config.json", {"padding_value": "x"}, "processor_config.json"),
        ("processor_config.json", {"padding_side": "up"}, "processor_config.json"),
    ],
)  # fmt: skip
def test_what_no_model_has_is_named_with_its_file(
    sound: Path, copy: Path, name: str, changes: dict[str, Any], said: str
) -> None:
    edit(copy / name, **changes)
    began = time.monotonic()
    with pytest.raises((UnreadableFile, Mismatch)) as caught:
        use(copy, sound.parent / "clip.wav")
    assert time.monotonic() - began < 5
    assert str(copy / name) in str(caught.value)
    assert said in str(caught.value)


def test_a_config_is_compared_before_weights_are_read(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(copy / "config.json", encoder_layers=3)
    monkeypatch.setattr("lorsmerge_cli.checkpoint.reader.Checkpoint.read", None)
    with pytest.raises(Mismatch, match="encoder_layers is 3 and has to be 1"):
        find_model(copy)


@pytest.mark.parametrize(
    "extra",
    [
        {"num_labels": 10**9},
        {"id2label": "x"},
        {"return_dict": False, "output_attentions": True},
        {"to_dict": 5, "get_text_config": "x"},
        {"quantisation": {}, "_attn_implementation": "nothing", "dtype": "nothing"},
        {"is_encoder_decoder": False, "chunk_size_feed_forward": 7},
        {"auto_map": {"AutoConfig": "owned.Config"}},
    ],
)
def test_keys_that_are_not_whispers_change_nothing(
    sound: Path, copy: Path, extra: dict[str, Any]
) -> None:
    (copy / "owned.py").write_text("raise SystemExit('ran')")
    edit(copy / "config.json", **extra)
    clip = sound.parent / "clip.wav"
    assert use(copy, clip) == use(sound, clip) != ""


def test_an_untied_config_has_the_embedding_for_its_output_all_the_same(
    sound: Path, copy: Path
) -> None:
    edit(copy / "config.json", tie_word_embeddings=False)
    model = find_model(copy).open(torch.float32, "cpu").model
    assert model.proj_out.weight.data_ptr() == model.model.decoder.embed_tokens.weight.data_ptr()
    clip = sound.parent / "clip.wav"
    assert use(copy, clip) == use(sound, clip)


def test_a_token_beyond_the_embedding_is_an_error(sound: Path, copy: Path) -> None:
    """A tokenizer of another model: its tokens have no row of the embedding."""
    state = load_file(copy / "model.safetensors")
    name = "model.decoder.embed_tokens.weight"
    few = len(state[name]) - 6
    save_file(state | {name: state[name][:few].clone()}, copy / "model.safetensors")
    edit(copy / "config.json", vocab_size=few, eos_token_id=1, pad_token_id=1,
         decoder_start_token_id=1, bos_token_id=1)  # fmt: skip
    with pytest.raises(Mismatch, match=rf"tokenizer has the token \d+, and the model {few} of"):
        use(copy, sound.parent / "clip.wav")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_a_fifo_is_not_waited_for(copy: Path, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(UnreadableFile, match=rf"{name} is a FIFO"):
        find_model(copy)


def test_interruptions_and_errors_of_the_system_pass(tmp_path: Path) -> None:
    for error in (KeyboardInterrupt(), SystemExit(3), OSError(28, "No space left on device")):
        with pytest.raises(type(error)), refused(tmp_path):
            raise error
    with pytest.raises(UnreadableFile, match="PanicError: called"), refused(tmp_path):
        raise type("PanicError", (BaseException,), {})("called\nunwrap")


@pytest.mark.parametrize("seed", range(3))
def test_mutated_files_are_refused_or_work(sound: Path, copy: Path, seed: int) -> None:
    draw, refusals = random.Random(seed), 0
    clip = sound.parent / "clip.wav"
    for _ in range(25):
        name = draw.choice(JSON_FILES)
        content = (sound / name).read_bytes()
        if draw.random() < 0.2:
            mutated = change_bytes(content, draw)
        else:
            text = json.dumps(change_value(json.loads(content), draw))
            mutated = text.encode("utf-8", "surrogatepass")
        (copy / name).write_bytes(mutated)
        try:
            use(copy, clip)
        except LorsmergeError:
            refusals += 1
        (copy / name).write_bytes(content)
    assert 0 < refusals < 25
