"""`export`, and what openai-whisper, CTranslate2 and faster-whisper make of what it writes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_models
import numpy as np
import pytest
import soundfile
import torch
from commands_ended import Ended, Shell
from safetensors.torch import load_file
from speech_models import make_whisper
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.outputs import MANIFEST

DEMO = Path(__file__).parents[2] / "examples" / "demo" / "bundle"
CLIPS = 3
LONGEST = 32  # tokens, the demo model's limit
NOISE = (0.1 * np.random.default_rng(0).standard_normal(3 * 16_000)).astype(np.float32)
SAID = 20  # tokens that are compared
FREE = {"language": "ca", "task": "transcribe", "without_timestamps": True}
UNCLOSED = "ignore::pytest.PytestUnraisableExceptionWarning"  # openai-whisper leaves a file open


@pytest.fixture(scope="module")
def demo() -> dict[str, Any]:
    """The demo's model, and what it hears and says in a few Catalan clips, greedily."""
    processor = WhisperProcessor.from_pretrained(DEMO / "base")
    model = WhisperForConditionalGeneration.from_pretrained(DEMO / "base", dtype=torch.float32)
    rows = [json.loads(line) for line in (DEMO / "ca_asr.test.jsonl").read_text().splitlines()]
    waves = [
        soundfile.read(DEMO / row["audio_filepath"], dtype="float32")[0] for row in rows[:CLIPS]
    ]
    features = processor.feature_extractor(waves, sampling_rate=16_000, return_tensors="pt")
    words = ("<|startoftranscript|>", "<|ca|>", "<|transcribe|>", "<|notimestamps|>")
    prompt = processor.tokenizer.convert_tokens_to_ids(words)
    return {"processor": processor, "model": model.eval(), "features": features.input_features,
            "prompt": prompt, "rows": rows[:CLIPS]}  # fmt: skip


@pytest.fixture
def said(demo: dict[str, Any], succeed: Callable[[str], Ended]) -> list[str]:
    """What `lorsmerge transcribe` hears in the clips."""
    clips = " ".join(f"--audio {DEMO / row['audio_filepath']}" for row in demo["rows"])
    line = f"lorsmerge transcribe {DEMO}/base {clips} --language ca --beam 1 --json"
    return [item["text"] for item in json.loads(succeed(line).out)["transcripts"]]


def greedy(
    logits: Callable[[torch.Tensor], torch.Tensor], prompt: list[int], end: int
) -> list[int]:
    """The likeliest token again and again, by a decoder that is given all of them every time."""
    tokens = list(prompt)
    while len(tokens) < LONGEST:
        following = int(logits(torch.tensor([tokens]))[0, -1].argmax())
        if following == end:
            break
        tokens.append(following)
    return tokens


def test_openai_names_and_sizes(tmp_path: Path, succeed: Callable[[str], Ended]) -> None:
    succeed(f"lorsmerge export {DEMO}/base --format openai -o {tmp_path}/demo.pt --dtype float32")
    content = torch.load(tmp_path / "demo.pt", weights_only=True)
    assert content["dims"] == {
        "n_mels": 80, "n_audio_ctx": 64, "n_audio_state": 256, "n_audio_head": 4,
        "n_audio_layer": 4, "n_vocab": 768, "n_text_ctx": 32, "n_text_state": 256,
        "n_text_head": 4, "n_text_layer": 2,
    }  # fmt: skip
    ours, theirs = load_file(DEMO / "base" / "model.safetensors"), content["model_state_dict"]
    assert len(theirs) == len(ours)
    for one, other in {
        "encoder.conv1.weight": "model.encoder.conv1.weight",
        "encoder.positional_embedding": "model.encoder.embed_positions.weight",
        "encoder.blocks.3.attn.out.bias": "model.encoder.layers.3.self_attn.out_proj.bias",
        "decoder.blocks.1.cross_attn_ln.weight": "model.decoder.layers.1.encoder_attn_layer_norm.weight",
        "decoder.blocks.0.mlp.2.weight": "model.decoder.layers.0.fc2.weight",
        "decoder.token_embedding.weight": "model.decoder.embed_tokens.weight",
    }.items():
        assert theirs[one].equal(ours[other].float())


def test_what_was_exported_to_openai_is_the_same_model_when_it_comes_back(
    tmp_path: Path, succeed: Callable[[str], Ended]
) -> None:
    succeed(f"lorsmerge export {DEMO}/base --format openai -o {tmp_path}/base.pt")
    one, other = Checkpoint(DEMO / "base"), Checkpoint(tmp_path / "base.pt")
    assert one.specs == other.specs
    assert all(one.read(name).equal(other.read(name)) for name in one.specs)


def test_openai_whisper_hears_what_we_hear(
    demo: dict[str, Any], said: list[str], tmp_path: Path, succeed: Callable[[str], Ended]
) -> None:
    whisper = pytest.importorskip("whisper", reason="pip install openai-whisper")
    ended = succeed(f"lorsmerge export {DEMO}/base --format openai -o {tmp_path}/demo.pt")
    assert "64 encoder positions and 768 tokens" in ended.err  # its transcribe() cannot
    model = whisper.load_model(tmp_path / "demo.pt", device="cpu").float().eval()
    prompt, end = demo["prompt"], demo["model"].config.eos_token_id
    for number, wanted in enumerate(said):
        heard = demo["features"][number : number + 1]
        with torch.no_grad():
            logits = demo["model"](heard, decoder_input_ids=torch.tensor([prompt])).logits
            assert model(heard, torch.tensor([prompt])).equal(logits)
            audio = model.embed_audio(heard)
            tokens = greedy(lambda sofar, audio=audio: model.logits(sofar, audio), prompt, end)
        assert demo["processor"].decode(tokens, skip_special_tokens=True).strip() == wanted


def test_ctranslate2_hears_what_we_hear(
    demo: dict[str, Any], said: list[str], tmp_path: Path, succeed: Callable[[str], Ended]
) -> None:
    import ctranslate2

    succeed(f"lorsmerge export {DEMO}/base --format ct2 -o {tmp_path}/demo-ct2 --dtype float32")
    model = ctranslate2.models.Whisper(str(tmp_path / "demo-ct2"), compute_type="float32")
    heard = ctranslate2.StorageView.from_array(demo["features"].numpy())
    prompts = [demo["prompt"]] * CLIPS
    found = model.generate(heard, prompts, beam_size=1, max_length=LONGEST)
    texts = [demo["processor"].decode(item.sequences_ids[0]).strip() for item in found]
    assert texts == said
    assert len(set(texts)) == CLIPS


def test_a_ct2_folder_has_what_faster_whisper_reads(
    tmp_path: Path, succeed: Callable[[str], Ended]
) -> None:
    succeed(f"lorsmerge export {DEMO}/base --format ct2 -o {tmp_path}/ct2 --dtype int8")
    files = {path.name for path in (tmp_path / "ct2").iterdir()}
    assert files == {"model.bin", "config.json", "vocabulary.json", "tokenizer.json",
                     "preprocessor_config.json", MANIFEST}  # fmt: skip
    extractor = json.loads((tmp_path / "ct2" / "preprocessor_config.json").read_text())
    assert (extractor["hop_length"], extractor["n_fft"], extractor["chunk_length"]) == (250, 512, 2)
    assert (tmp_path / "ct2" / "model.bin").stat().st_size < 7_000_000  # int8: 11.5 MB in float16


@pytest.mark.slow
@pytest.mark.filterwarnings(UNCLOSED)
def test_transcribe_of_both_libraries_on_a_model_of_openais_sizes(
    tmp_path: Path, succeed: Callable[[str], Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    whisper = pytest.importorskip("whisper", reason="pip install openai-whisper")
    faster_whisper = pytest.importorskip("faster_whisper", reason="pip install faster-whisper")
    tokens = make_models.whisper_tokens(make_models.TEXT_TOKENS)
    tokens[make_models.TEXT_TOKENS - 1] = ""  # which tells CTranslate2 a multilingual Whisper
    monkeypatch.setattr(make_models, "whisper_tokens", lambda count: tokens)
    folder = tmp_path / "full"
    make_models.make_base(folder, "nano")
    processor = WhisperProcessor.from_pretrained(folder)
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    heard = processor.feature_extractor(NOISE, sampling_rate=16_000, return_tensors="pt")
    model.generation_config.max_length = None
    wanted = model.generate(
        heard.input_features, language="ca", task="transcribe", num_beams=1, max_new_tokens=SAID
    )[0].tolist()
    assert len(set(wanted)) > 1

    ended = succeed(f"lorsmerge export {folder} --format openai -o {tmp_path}/full.pt")
    assert ended.err == ""
    theirs = whisper.load_model(tmp_path / "full.pt", device="cpu")
    never = {
        "logprob_threshold": None,
        "no_speech_threshold": None,
        "compression_ratio_threshold": None,
    }
    found = whisper.transcribe(
        theirs, NOISE, fp16=False, temperature=0, suppress_tokens="", suppress_blank=False,
        sample_len=SAID, **FREE, **never,
    )  # fmt: skip
    assert found["segments"][0]["tokens"] == wanted

    succeed(f"lorsmerge export {folder} --format ct2 -o {tmp_path}/full-ct2")
    fast = faster_whisper.WhisperModel(str(tmp_path / "full-ct2"), compute_type="float32")
    never["log_prob_threshold"] = never.pop("logprob_threshold")
    segments, _ = fast.transcribe(
        NOISE, beam_size=1, temperature=0, suppress_tokens=[], suppress_blank=False,
        max_new_tokens=SAID, **FREE, **never,
    )  # fmt: skip
    heard_fast = next(iter(segments)).tokens
    assert len(heard_fast) > SAID // 2  # it counts the prompt
    assert heard_fast == wanted[: len(heard_fast)]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("base --format gguf -o x", 2, ["There is no format 'gguf'", "ct2 or openai"]),
        ("gone --format ct2 -o x", 1, ["gone: no such file or folder"]),
        ("base/model.safetensors --format openai -o x.pt", 2, ["is a bare file"]),
        ("other --format ct2 -o x", 1, ["other is a bert model"]),
        ("base --format openai -o x", 2, ["x: openai-whisper's checkpoints are .pt files", "x.pt"]),
        ("base --format ct2 -o x.pt", 2, ["a CTranslate2 model is a folder", "-o x/"]),
        ("base --format openai -o x.pt --dtype int8", 2, ["int8"]),
        ("base --format ct2 -o x --dtype int3", 2, ["CTranslate2 has no int3", "int8_float16"]),
        ("base --format openai -o there.pt", 1, ["there.pt exists", "--force"]),
        ("base --format ct2 -o base --force", 1, ["base is or holds the input"]),
        ("wide --format openai -o x.pt", 1, ["encoder_ffn_dim = 99", "--format ct2"]),
        ("untold --format ct2 -o x", 1, ["untold holds no tokenizer.json"]),
    ],
)  # fmt: skip
def test_bad_input(
    tmp_path: Path,
    shell: Shell,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    code: int,
    said: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    make_whisper(Path("base"))
    (tmp_path / "there.pt").write_text("something")
    for name, changes in (("wide", {"encoder_ffn_dim": 99}), ("other", {"model_type": "bert"})):
        shutil.copytree("base", name)
        config = json.loads(Path(name, "config.json").read_text())
        Path(name, "config.json").write_text(json.dumps(config | changes))
    shutil.copytree("base", "untold")
    Path("untold", "tokenizer.json").rename(Path("untold", "vocab.json"))
    before = sorted(path.name for path in tmp_path.iterdir())
    ended = shell(f"lorsmerge export {arguments}")
    assert ended.code == code, ended.err
    assert all(part in ended.err for part in said), ended.err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_ct2_without_ctranslate2_says_how_to_get_it(
    tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    ended = shell(f"lorsmerge export {DEMO}/base --format ct2 -o {tmp_path}/x")
    assert (ended.code, "pip install" in ended.err) == (2, True)
