"""Load a model folder's config, tokenizer and feature extractor with transformers.

The files may be anyone's. One that transformers, or a later step, cannot use is an error that names it;
sizes are compared with those of the weights before anything is built.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperProcessor,
)
from transformers.utils import logging as transformers_logging

from lorsmerge_cli.data.audio import RATE
from lorsmerge_cli.errors import LorsmergeError, Mismatch, UnreadableFile
from lorsmerge_cli.inputs import json_object, read_document

CONFIG, GENERATION = "config.json", "generation_config.json"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
EXTRACTOR_FILES = ("processor_config.json", "preprocessor_config.json")
RESTORE = "Copy or download it again from the model that it was made from."
LONGEST_REASON = 300  # characters of another library's message

# WhisperFeatureExtractor's defaults
EXTRACTOR = {"feature_size": 80, "sampling_rate": RATE, "hop_length": 160, "chunk_length": 30,
             "n_fft": 400}  # fmt: skip
LARGEST_HOP, LARGEST_FFT = 1 << 12, 1 << 16  # samples; Whisper's are 160 and 400
TOKENS = ("pad_token_id", "eos_token_id", "decoder_start_token_id")
PROBABILITIES = ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop",
                 "decoder_layerdrop", "mask_time_prob", "mask_feature_prob")  # fmt: skip


@dataclass(frozen=True)
class ModelParts:
    """A model without its weights.

    Attributes:
        config: of the network.
        processor: feature extractor and tokenizer.
        generation: lists of suppressed tokens, and whether the model is multilingual; None if the
            folder has no such file.
    """

    config: WhisperConfig
    processor: Any  # WhisperProcessor; transformers' types say less than its docs
    generation: GenerationConfig | None

    @property
    def window(self) -> float:
        """Seconds of audio that the encoder takes."""
        return float(self.processor.feature_extractor.chunk_length)


@contextmanager
def refused(*files: Path) -> Iterator[None]:
    """Turn an exception of another library into an error that names the files it was given.

    Raises:
        UnreadableFile: in place of anything but our own errors, the system's and an interruption.
    """
    try:
        yield
    except (LorsmergeError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic in tokenizers' Rust is no Exception
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's, and no fault of the content
        reason = " ".join(str(error).split())
        if len(reason) > LONGEST_REASON:
            reason = f"{reason[:LONGEST_REASON]}..."
        named = " or ".join(map(str, files))
        raise UnreadableFile(
            f"{named} cannot be used ({type(error).__name__}: {reason}).", RESTORE
        ) from error


def load_config(folder: Path) -> WhisperConfig:
    """Read the config of a Whisper.

    Keys that any model's config may have are ignored: they change the outputs or the memory of a
    forward pass, not the meaning of the weights.

    Raises:
        UnreadableFile: it is no config of a Whisper.
    """
    path = folder / CONFIG
    try:
        found = json_object(read_document(path))
    except ValueError as error:
        raise UnreadableFile(f"{path} is no JSON config ({error}).", RESTORE) from None
    own = WhisperConfig().to_dict().keys() - PreTrainedConfig().to_dict().keys()
    own |= {*TOKENS, "bos_token_id", *WhisperConfig.attribute_map}
    with refused(path):
        config = WhisperConfig.from_dict({key: found[key] for key in own & found.keys()})
        wrong = list(_wrong_values(config))
    if wrong:
        raise UnreadableFile(f"{path} cannot be used: {', '.join(wrong)}.", RESTORE)
    # proj_out is the embedding, and is not read as a tensor of its own
    config.tie_word_embeddings = True
    return config


def _wrong_values(config: Any) -> Iterator[str]:
    """Yield faults that no shape of a weight reveals, and that would end a run later."""
    for key in ("encoder_attention_heads", "decoder_attention_heads"):
        heads = getattr(config, key)
        if type(heads) is not int or heads < 1:
            yield f"{key} is {heads!r}"
    for key in TOKENS:
        token = getattr(config, key)
        if type(token) is not int or not 0 <= token < config.vocab_size:
            yield f"{key} is {token!r}, and the vocabulary has {config.vocab_size} tokens"
    for key in PROBABILITIES:
        value = getattr(config, key)
        if type(value) not in (int, float) or not 0 <= value <= 1:
            yield f"{key} is {value!r}"


def load_parts(config: WhisperConfig, folder: Path, processor: Path | None = None) -> ModelParts:
    """Read what a model has beside its weights, and try it out.

    Args:
        config: from `load_config`, already compared with the weights.
        folder: of the generation config.
        processor: folder of tokenizer and feature extractor, if it is another one.

    Raises:
        UnreadableFile: a file that transformers cannot use.
        Mismatch: a feature extractor that does not fit the encoder.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    place = processor or folder
    _check_extractor(place, config)
    with refused(_extractor_file(place)):
        extractor = WhisperFeatureExtractor.from_pretrained(place)
        heard = extractor(
            [np.zeros(RATE // 10, np.float32)], sampling_rate=RATE, return_tensors="pt"
        )
        if not torch.isfinite(heard.input_features).all():
            raise ValueError("the features of silence are no numbers")
    with refused(*(place / name for name in TOKENIZER_FILES if (place / name).is_file())):
        # given a config, it does not build one from the keys of a stranger's
        tokenizer = AutoTokenizer.from_pretrained(place, config=config, trust_remote_code=False)
        tokens = tokenizer("a b", add_special_tokens=False).input_ids
        tokenizer.batch_decode([[*tokens, int(tokenizer.eos_token_id)]], skip_special_tokens=True)
        tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a b")
        dict(tokenizer.get_vocab())
        both = WhisperProcessor(extractor, tokenizer)
    return ModelParts(config, both, _generation(folder))


def _generation(folder: Path) -> GenerationConfig | None:
    path = folder / GENERATION
    if not path.is_file():
        return None
    with refused(path):
        json_object(read_document(path))
        found = GenerationConfig.from_pretrained(folder)
        for key in ("suppress_tokens", "begin_suppress_tokens"):
            listed = getattr(found, key, None) or []
            if not isinstance(listed, list) or any(type(token) is not int for token in listed):
                raise TypeError(f"{key} is no list of tokens")
    return found


def _extractor_file(folder: Path) -> Path:
    """Return the file that describes the feature extractor: the first that transformers looks at."""
    first, second = (folder / name for name in EXTRACTOR_FILES)
    return first if first.is_file() and (_nested(first) or not second.is_file()) else second


def _nested(path: Path) -> Any:
    """Return the feature extractor's part of a processor's config."""
    with refused(path):
        document = json_object(read_document(path))
    return document.get("feature_extractor", document.get("audio_processor"))


def _check_extractor(folder: Path, config: Any) -> None:
    """Check how much a feature extractor allocates, and that its output fits the encoder.

    Raises:
        UnreadableFile, Mismatch: as `load_parts`.
    """
    path = _extractor_file(folder)
    with refused(path):
        found = (
            _nested(path) if path.name == EXTRACTOR_FILES[0] else json_object(read_document(path))
        )
        if not isinstance(found, Mapping):
            raise TypeError("feature_extractor is no table")
    values = {key: found.get(key, default) for key, default in EXTRACTOR.items()}
    wrong = [f"{key} is {v!r}" for key, v in values.items() if type(v) is not int or v < 1]
    if not wrong:
        frames = values["chunk_length"] * RATE // values["hop_length"]
        wanted = {
            "sampling_rate": (values["sampling_rate"], RATE),
            "feature_size": (values["feature_size"], config.num_mel_bins),
            "chunk_length * sampling_rate / hop_length": (frames, 2 * config.max_source_positions),
        }
        wrong = [
            f"{k} is {is_} and has to be {to_be}"
            for k, (is_, to_be) in wanted.items()
            if is_ != to_be
        ]
        wrong += [
            f"{key} is {values[key]}"
            for key, most in (("hop_length", LARGEST_HOP), ("n_fft", LARGEST_FFT))
            if values[key] > most
        ]
    if wrong:
        raise Mismatch(
            f"{path} describes no feature extractor of this model: {', '.join(wrong)}.",
            "Give the tokenizer and feature extractor of the model that it was fine-tuned from.",
        )
