"""Whispers of random weights with OpenAI's real vocabularies, from the `openai-whisper` package."""

from __future__ import annotations

import base64
from itertools import pairwise
from pathlib import Path

import torch
from speech_models import byte_alphabet
from tokenizers import AddedToken
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from whisper_package import package_file, tokenizer_module

# name -> table of byte pairs, languages, mel bins
VOCABULARIES = {
    "v2": ("multilingual", 99, 80),
    "v3": ("multilingual", 100, 128),
    "english": ("gpt2", 99, 80),
}
TIMES = [f"<|{number * 0.02:.2f}|>" for number in range(1501)]


def make_real_vocabulary(folder: Path, name: str) -> Path:
    """A model folder whose tokenizer is that of Whisper's v2, v3 or English-only models."""
    table, languages, bins = VOCABULARIES[name]
    codes = list(tokenizer_module().LANGUAGES)[:languages]
    special = [
        "<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in codes),
        "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>",
        "<|notimestamps|>",
    ]  # fmt: skip
    ids, merges = _byte_pairs(package_file(f"assets/{table}.tiktoken"))
    for token in [*special, *TIMES]:
        ids[token] = len(ids)
    tokenizer = WhisperTokenizer(vocab=ids, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    # not special, as in the files of openai/whisper-*
    tokenizer.add_tokens([AddedToken(time, normalized=False, special=False) for time in TIMES])
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    ends = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end}
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(ids), num_mel_bins=bins, d_model=8, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=1, decoder_attention_heads=1, encoder_ffn_dim=8,
            decoder_ffn_dim=8, decoder_start_token_id=start, suppress_tokens=None,
            begin_suppress_tokens=None, **ends,
        )
    )  # fmt: skip
    own = {"is_multilingual": False}
    if name != "english":
        own = {
            "is_multilingual": True,
            "lang_to_id": {f"<|{code}|>": ids[f"<|{code}|>"] for code in codes},
            "task_to_id": {task: ids[f"<|{task}|>"] for task in ("translate", "transcribe")},
        }
    model.generation_config = GenerationConfig(decoder_start_token_id=start, **ends, **own)
    model.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=bins)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    return folder


def _byte_pairs(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of tiktoken's ranks, in the alphabet of byte-level tokens."""
    lines = (line.split() for line in path.read_text().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    alphabet = byte_alphabet()

    def spell(token: bytes) -> str:
        return "".join(alphabet[byte] for byte in token)

    merges = [
        tuple(map(spell, _halves(token, ranks)))
        for token in sorted(ranks, key=ranks.__getitem__)
        if len(token) > 1
    ]
    return {spell(token): rank for token, rank in ranks.items()}, merges


def _halves(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens that a token was merged from: all earlier merges done."""
    parts = [token[n : n + 1] for n in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
        n = joined.index(min(joined))
        parts[n : n + 2] = [parts[n] + parts[n + 1]]
    return parts
