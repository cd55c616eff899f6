"""Whispers with two-second windows and a few words, and audio for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from lorsmerge_cli import delta
from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.utterance import Utterance

RATE, WINDOW = 16_000, 2.0  # Hz, seconds
LANGUAGES = ("en", "ca", "de", "zh")
TEXT = (
    "the girl sees six birds and a boy buys old yellow hats today we saw their red house la nena "
    "veu ocells el nen un gos die Frau sieht. Über, 你好 世界 l'home"
)
WORDS = TEXT.split()
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES),
           "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>",
           "<|notimestamps|>"]  # fmt: skip
OFTEN = ["the", "red", "boy", "house", "birds", "ocells", "世界"]  # the model says some of these
LONGEST = 16  # tokens of a hypothesis
FACTORS = {  # of the random weights: at 1 it says one word for ever, whatever it hears
    "conv1.weight": 20.0,
    "_proj.weight": 10.0,
    "fc": 10.0,
    "decoder.embed_positions": 30.0,
    "decoder.embed_tokens": 3.0,
    "decoder.layer_norm.weight": 7.0,
    "encoder_attn.out_proj.weight": 3.0,
}
ENDING = 0.18  # spread of the embedding of the end, zero in a new model: texts of many lengths
MIXED = [("ca", "asr"), ("de", "st"), ("de", "asr"), ("zh", "asr"), ("ca", "st")]


def make_whisper(
    folder: Path,
    *,
    seed: int = 0,
    suppress: tuple[int, ...] = (),
    spells: bool = False,
    spelt: int = 64,
    times: bool = False,
) -> Path:
    """A model folder of random weights; which words it says depends on sound and prompt.

    One that `spells` has tokens for letters too, without which no text can be learnt, and says as
    many as `spelt` tokens. With `times` its vocabulary has timestamps.
    """
    tokens = [_bytes("" if word in "好界" else " ") + _bytes(word) for word in WORDS] + SPECIAL
    longest = LONGEST
    if spells:
        tokens += sorted(set(_bytes(" ".join(WORDS))))
        longest = spelt
    step = WINDOW / 64
    tokens += [f"<|{number * step:.2f}|>" for number in range(65)] if times else []
    ids = {token: number for number, token in enumerate(tokens)}
    tokenizer = WhisperTokenizer(
        vocab=ids, merges=[], unk_token="<|endoftext|>", bos_token="<|endoftext|>",
        eos_token="<|endoftext|>", pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL[1:],
    )  # fmt: skip
    extractor = WhisperFeatureExtractor(
        feature_size=80, hop_length=250, chunk_length=int(WINDOW), n_fft=512
    )
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokens), num_mel_bins=80, d_model=32, encoder_layers=1,
            decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=32, decoder_ffn_dim=32, max_source_positions=64,
            max_target_positions=longest, pad_token_id=end, bos_token_id=end, eos_token_id=end,
            decoder_start_token_id=start, suppress_tokens=None, begin_suppress_tokens=None,
        )
    )  # fmt: skip
    with torch.no_grad():
        for name, weight in model.named_parameters():
            for part, factor in FACTORS.items():
                if part in name and weight.requires_grad:
                    weight.mul_(factor)
        model.model.decoder.embed_tokens.weight[end].normal_(std=ENDING)
        said = torch.randint(len(tokens), (16, LONGEST))
        heard = torch.randn(16, 80, 128)
        usual = model.eval().model(heard, decoder_input_ids=said).last_hidden_state.mean((0, 1))
        model.model.decoder.layer_norm.bias.sub_(usual)
    model.generation_config = GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=end, decoder_start_token_id=start,
        max_length=longest, is_multilingual=True, return_timestamps=False,
        lang_to_id={f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES},
        task_to_id={task: ids[f"<|{task}|>"] for task in ("translate", "transcribe")},
        no_timestamps_token_id=ids["<|notimestamps|>"], begin_suppress_tokens=[],
        suppress_tokens=list(suppress), prev_sot_token_id=ids["<|startofprev|>"],
    )  # fmt: skip
    model.save_pretrained(folder)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    return folder


def make_tuned(base: Path, folder: Path, *, seed: int, step: float = 0.1) -> Path:
    """A folder with every weight of a model moved."""
    shutil.copytree(base, folder)
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(base / "model.safetensors")
    moved = {
        name: t + step * t.abs().mean() * torch.randn(t.shape, generator=generator)
        for name, t in tensors.items()
    }
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def make_deltas(base: Path, made: Mapping[str, Mapping[str, str]], *, step: float) -> None:
    """Fine-tunes of a model beside it, and their deltas: name -> what the delta records."""
    for seed, (name, about) in enumerate(made.items(), 1):
        tuned = make_tuned(base, base.with_name(name), seed=seed, step=step)
        delta(base, tuned, base.with_name(f"{name}.delta"), **about)


def make_clip(path: Path, seed: int, seconds: float, rate: int = RATE) -> Path:
    """Return audio of a few tones of varying loudness."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    tones = [
        np.sin(2 * np.pi * (rng.uniform(100, 3000) * time + rng.uniform(0, 3) * time**2))
        * np.sin(np.pi * rng.uniform(1, 6) * time) ** 2
        for _ in range(4)
    ]
    wave = 0.2 * np.sum(tones, axis=0) + 0.01 * rng.standard_normal(len(time))
    soundfile.write(path, wave.astype(np.float32), rate, subtype="FLOAT")
    return path


def make_utterances(folder: Path) -> list[Utterance]:
    """Ten clips of 0.3 to 1.9 s, of five pairs of language and task."""
    found = []
    for number in range(10):
        seconds = 0.3 + 0.17 * ((3 * number) % 10)
        clip = make_clip(folder / f"{number}.wav", number, seconds)
        found.append(Utterance(f"u{number}", AudioFile(clip), "", *MIXED[number % 5], seconds))
    return found


def make_test_set(folder: Path, count: int = 10, seed: int = 0) -> Path:
    """`test.jsonl` of mixed languages and tasks, and its audio."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    rows = []
    for number in range(count):
        clip = make_clip(folder / f"{number}.wav", 100 * seed + number, 0.3 + 1.6 * rng.random())
        language, task = MIXED[number % len(MIXED)]
        rows.append(
            {
                "id": f"u{number}",
                "audio_filepath": clip.name,
                "text": " ".join(rng.choice(OFTEN, rng.integers(3, 9))),
                "source_lang": language,
                "taskname": task,
                "speaker": f"s{number % 4}",
            }
        )
    manifest = folder / "test.jsonl"
    manifest.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return manifest


def _bytes(text: str) -> str:
    """A text in the alphabet of byte-level tokens."""
    table = byte_alphabet()
    return "".join(table[byte] for byte in text.encode())


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {
        byte: chr(256 + number) for number, byte in enumerate(hidden)
    }
