"""The miniature Whisper: its tokenizer, features and untrained weights."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from sentences import LANGUAGES, draw
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

SECONDS, HOP, VOCABULARY = 2, 250, 768
SPECIAL = [
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>",
    *(f"<|{language}|>" for language in LANGUAGES),
    "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>",
    "<|notimestamps|>",
]  # fmt: skip


def make_processor(folder: Path) -> WhisperProcessor:
    """A byte-level BPE of the grammar's own text, and log-mel features of 2 s windows."""
    rng = random.Random("tokenizer")
    drawn = [draw(language, rng) for language in LANGUAGES for _ in range(2000)]
    trainer = ByteLevelBPETokenizer(add_prefix_space=True)
    trainer.train_from_iterator(
        [text for sentence in drawn for text in (sentence.text, sentence.english)],
        vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    trainer.save_model(str(folder))
    merges = (folder / "merges.txt").read_text().splitlines()[1:]
    tokenizer = WhisperTokenizer(
        vocab=json.loads((folder / "vocab.json").read_text()),
        merges=[tuple(line.split(" ")) for line in merges],
        add_prefix_space=True,
        additional_special_tokens=SPECIAL[1:],
    )
    extractor = WhisperFeatureExtractor(
        feature_size=80, hop_length=HOP, chunk_length=SECONDS, n_fft=512
    )
    return WhisperProcessor(extractor, tokenizer)


def make_model(processor: WhisperProcessor) -> WhisperForConditionalGeneration:
    """5.7 M parameters at random (seed torch first)."""
    ids = {token: processor.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    frames = SECONDS * processor.feature_extractor.sampling_rate // HOP
    config = WhisperConfig(
        vocab_size=len(processor.tokenizer), num_mel_bins=80, d_model=256,
        encoder_layers=4, encoder_attention_heads=4, encoder_ffn_dim=1024,
        decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=1024,
        max_source_positions=frames // 2, max_target_positions=32,
        pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start,
        suppress_tokens=None, begin_suppress_tokens=None, dropout=0.0,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=end, decoder_start_token_id=start,
        max_length=32, is_multilingual=True, return_timestamps=False,
        lang_to_id={f"<|{name}|>": ids[f"<|{name}|>"] for name in ("en", *LANGUAGES)},
        task_to_id={task: ids[f"<|{task}|>"] for task in ("translate", "transcribe")},
        no_timestamps_token_id=ids["<|notimestamps|>"], suppress_tokens=[],
        begin_suppress_tokens=[], prev_sot_token_id=ids["<|startofprev|>"],
    )  # fmt: skip
    return model


def features(waves: torch.Tensor, extractor: WhisperFeatureExtractor) -> torch.Tensor:
    """Whisper's log-mel features, [clips, mel bins, frames], of padded waves [clips, samples]."""
    return torch.as_tensor(extractor._torch_extract_fbank_features(waves.numpy()))
