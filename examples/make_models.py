"""Make a Whisper of any size with random weights, and random fine-tunes of it.

No weights are downloaded: architecture, names, shapes, dtypes and files are those of the real
model, the numbers are random. A fine-tune moves every tensor by noise and every matrix in a few
directions as well, in such a proportion that the top 5% of its singular triplets hold about two
thirds of its energy.

    python examples/make_models.py demo/ --size small --finetunes ca_asr de_asr de_st
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

SIZES = {  # (width, heads, layers) of openai/whisper-*
    "nano": (64, 2, 2),
    "tiny": (384, 6, 4),
    "base": (512, 8, 6),
    "small": (768, 12, 12),
    "medium": (1024, 16, 24),
}
TEXT_TOKENS = 50257
LANGUAGE_TOKENS = 99
TIMESTAMPS = 1501
SIGNAL_RANK = 0.05  # of a matrix's smaller side
SIGNAL = 1.5  # a fine-tune's low-rank part, as a multiple of its noise's energy
MOVE = 3e-4  # standard deviation of a fine-tune's noise, relative to the weights'


def make_base(folder: Path, size: str, *, text_tokens: int = TEXT_TOKENS, seed: int = 0) -> None:
    """Write a model folder with weights, configs, tokenizer and feature extractor."""
    tokens = whisper_tokens(text_tokens)
    ids = {token: number for number, token in enumerate(tokens)}
    width, heads, layers = SIZES[size]
    torch.manual_seed(seed)
    config = WhisperConfig(
        vocab_size=len(tokens),
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        pad_token_id=ids["<|endoftext|>"],
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|endoftext|>"],
        decoder_start_token_id=ids["<|startoftranscript|>"],
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config = generation_config(ids)
    model.save_pretrained(folder)
    tokenizer = WhisperTokenizer(
        vocab=ids,
        merges=[],
        unk_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[token for token in tokens if token.startswith("<|")][1:],
    )
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)


def whisper_tokens(text_tokens: int) -> list[str]:
    """All tokens in Whisper's order; the text tokens past the 256 bytes are placeholders."""
    tokens = sorted(ByteLevel.alphabet())
    tokens += [f"Ġ{number}" for number in range(text_tokens - len(tokens))]
    tokens += ["<|endoftext|>", "<|startoftranscript|>"]
    tokens += [f"<|{code}|>" for code in list(LANGUAGES)[:LANGUAGE_TOKENS]]
    tokens += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>"]
    tokens += ["<|nospeech|>", "<|notimestamps|>"]
    return tokens + [f"<|{step * 0.02:.2f}|>" for step in range(TIMESTAMPS)]


def generation_config(ids: dict[str, int]) -> GenerationConfig:
    """What `generate(language=..., task=...)` needs to know."""
    end = ids["<|endoftext|>"]
    return GenerationConfig(
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        is_multilingual=True,
        lang_to_id={
            f"<|{code}|>": ids[f"<|{code}|>"] for code in list(LANGUAGES)[:LANGUAGE_TOKENS]
        },
        task_to_id={task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        max_initial_timestamp_index=50,
        max_length=448,
        return_timestamps=False,
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )


def make_finetune(base: Path, folder: Path, *, seed: int, move: float = MOVE) -> None:
    """Write a fine-tune of `base`: the same folder with every float tensor moved."""
    generator = torch.Generator().manual_seed(seed)
    model = WhisperForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.requires_grad:  # the encoder's positions are fixed
                continue
            scale = move * (float(parameter.std()) if parameter.numel() > 1 else 1.0) + move * 1e-2
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                rank = max(1, int(SIGNAL_RANK * min(parameter.shape)))
                left = torch.randn(parameter.shape[0], rank, generator=generator)
                right = torch.randn(rank, parameter.shape[1], generator=generator)
                energy = 1 / torch.arange(1, rank + 1)
                noise += (left * (SIGNAL * energy / energy.sum()).sqrt()) @ right
            parameter.add_(noise, alpha=scale)
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = {name: t.contiguous() for name, t in model.state_dict().items()}
    del tensors["proj_out.weight"]  # tied to the token embedding
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--finetunes", nargs="+", default=["ca_asr", "de_asr", "de_st"])
    arguments = parser.parse_args()
    base = arguments.folder / "base"
    make_base(base, arguments.size)
    print(base, flush=True)
    for seed, name in enumerate(arguments.finetunes, 1):
        make_finetune(base, arguments.folder / name, seed=seed)
        print(arguments.folder / name, flush=True)


if __name__ == "__main__":
    main()
