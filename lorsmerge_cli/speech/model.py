"""A Whisper with its processor: features, prompts, labels and texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from lorsmerge_cli.data.audio import RATE, load_audio
from lorsmerge_cli.data.languages import SPACELESS, WHISPER_TASKS, text_language
from lorsmerge_cli.data.utterance import Segment, Utterance, segments_of
from lorsmerge_cli.errors import Mismatch, UsageFault, named
from lorsmerge_cli.speech.loading import (
    CONFIG,
    ModelParts,
    load_config,
    load_parts,
    refused,
)

CONTROL = re.compile(r"<\|.*\|>")  # languages, tasks, timestamps, the end of a text
FIRST = "<|0.00|>"  # timestamp


@dataclass(frozen=True)
class Timestamps:
    """The tokens that stand for times in a window.

    Attributes:
        begin: number of the token of time 0; the others follow in order.
        count: of tokens, from 0 to the window's length.
        step: seconds from one to the next, the encoder's resolution: 0.02 s in Whisper.
    """

    begin: int
    count: int
    step: float

    def __contains__(self, token: int) -> bool:
        return self.begin <= token < self.begin + self.count

    def steps(self, token: int) -> int:
        """Return how many steps into the window a token is."""
        return token - self.begin

    def token(self, seconds: float) -> int:
        """Return the token that is nearest to a time in the window."""
        return self.begin + min(self.count - 1, max(0, round(seconds / self.step)))


@dataclass(frozen=True)
class SpeechModel:
    """A model in memory and its processor.

    Attributes:
        name: what the user called it.
        model: in evaluation mode.
        processor: feature extractor and tokenizer.
    """

    name: str
    model: Any  # WhisperForConditionalGeneration; transformers' types say less than its docs
    processor: Any  # WhisperProcessor

    @property
    def window(self) -> float:
        """Seconds of audio that the encoder takes."""
        return float(self.processor.feature_extractor.chunk_length)

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Number of each token; cached, as a tokenizer takes tens of milliseconds for it."""
        return dict(self.processor.tokenizer.get_vocab())

    @cached_property
    def timestamps(self) -> Timestamps | None:
        """The timestamps of the vocabulary; None if it has none.

        Tokenizers of before 2023 do not list them, although the network has an embedding for each.
        """
        positions, size = self.model.config.max_source_positions, self.model.config.vocab_size
        known = self.vocabulary
        begin = known.get(FIRST, known.get("<|notimestamps|>", size) + 1)
        if FIRST not in known and begin in known.values():
            return None
        if begin + positions + 1 > size:
            return None
        return Timestamps(begin, positions + 1, self.window / positions)

    @property
    def longest_label(self) -> int:
        """Largest number of tokens of a decoder sequence."""
        return int(self.model.config.max_target_positions)

    def prompt(self, language: str, task: str) -> list[int]:
        """Return the prompt: start, language, task, no timestamps (Radford et al. 2022, 2.3).

        Raises:
            UsageFault: the model was made without the language or the task.
        """
        words = ["<|startoftranscript|>", f"<|{language}|>", f"<|{WHISPER_TASKS[task]}|>",
                 "<|notimestamps|>"]  # fmt: skip
        if not getattr(self.model.generation_config, "is_multilingual", True):
            if (language, task) != ("en", "asr"):
                raise UsageFault(
                    f"{self.name} is an English-only model and cannot be asked for {language} {task}.",
                    "Use the multilingual model of its size.",
                )
            words = [words[0], words[3]]
        known = self.vocabulary
        missing = [word for word in words if word not in known]
        if missing:
            raise UsageFault(
                f"{self.name} has no token {' or '.join(missing)} in its vocabulary.",
                "Choose a language and task that it was trained on.",
            )
        return self._within([int(known[word]) for word in words])

    def known(self, tokens: Iterable[int] | None) -> list[int]:
        """Return the tokens that the network has; lists of suppressed ones may hold others, such as -1."""
        size = int(self.model.config.vocab_size)
        return [token for token in tokens or () if 0 <= token < size]

    def _within(self, tokens: list[int]) -> list[int]:
        """Check that the network has an embedding of each token.

        Raises:
            Mismatch: one is beyond its vocabulary.
        """
        size = int(self.model.config.vocab_size)
        if max(tokens, default=0) >= size:
            raise Mismatch(
                f"{self.name}: its tokenizer has the token {max(tokens)}, and the model {size} of them.",
                "Give the tokenizer of the model that it was fine-tuned from.",
            )
        return tokens

    @cached_property
    def leading_space(self) -> str:
        """Where the space at the start of a text comes from: `added` here, or the `tokenizer`.

        OpenAI's vocabularies need it added. A tokenizer made with `add_prefix_space` adds its own:
        with it `a` and ` a` begin with the same token.
        """
        same = self._text_tokens("a")[:1] == self._text_tokens(" a")[:1]
        return "tokenizer" if same else "added"

    def labels(
        self, utterance: Utterance, space: str = "auto", *, timestamps: bool = False
    ) -> list[int]:
        """Return the labels: language, task, no timestamps, the text, the end.

        Args:
            utterance: runs of white space in its text become one blank, and text that reads like a
                control token (`<|en|>`) is spelled out.
            space: `auto` begins a text with a space, as the texts that Whisper was trained on do,
                in languages that write spaces and in every translation; `none` begins with the
                first letter. Neither has an effect if the tokenizer adds the space itself.
            timestamps: whether the text of each segment stands between tokens of its start and its
                end, in place of the token that says that there are none (Radford et al. 2022, 2.3).

        Raises:
            UsageFault: the model lacks the language, the task or, with `timestamps`, these.
        """
        prompt = self.prompt(utterance.language, utterance.task)[1:]
        end = int(self.processor.tokenizer.eos_token_id)
        if not timestamps:
            return [*prompt, *self._within([*self._spoken(utterance.text, utterance, space), end])]
        times, tokens = self.timestamps, list[int]()
        if times is None:
            raise UsageFault(
                f"{self.name} has no timestamps in its vocabulary.",
                "Use a model that has them, as OpenAI's do, or train without --timestamps.",
            )
        tokens = self._timed(segments_of(utterance), times, utterance, space)
        return [*prompt[:-1], *self._within([*tokens, end])]

    def _timed(
        self, segments: Sequence[Segment], times: Timestamps, utterance: Utterance, space: str
    ) -> list[int]:
        tokens = list[int]()
        for part in segments:
            tokens += [times.token(part.start), *self._spoken(part.text, utterance, space)]
            tokens.append(times.token(part.end))
        return tokens

    def context(
        self, utterance: Utterance, room: int, space: str = "auto", *, timestamps: bool = False
    ) -> list[int]:
        """Return the tokens of what was said before an utterance, which precede the prompt.

        Args:
            utterance: with its `previous`, and `before` for timestamps.
            room: most tokens; of the text, the end is kept, in half of the decoder at most.
            space: as in `labels`.
            timestamps: whether the text has those that it was heard with, as in decoding it has: the
                text so far is then the prompt with its timestamps (openai-whisper's transcribe).
        """
        begin = self.vocabulary.get("<|startofprev|>")
        most = min(room, self.longest_label // 2) - 1
        if begin is None or most <= 0 or not utterance.previous:
            return []
        if timestamps and self.timestamps and utterance.before:
            tokens = self._timed(utterance.before, self.timestamps, utterance, space)
        else:
            tokens = self._spoken(utterance.previous, utterance, space)
        return self._within([begin, *tokens[-most:]])

    def _spoken(self, text: str, utterance: Utterance, space: str) -> list[int]:
        """Return the tokens of a text of an utterance, with the space that it begins with."""
        text = " ".join(text.split())
        spaced = text_language(utterance.language, utterance.task) not in SPACELESS
        if text and spaced and space == "auto" and self.leading_space == "added":
            text = f" {text}"
        return self._text_tokens(text)

    def _text_tokens(self, text: str) -> list[int]:
        """Return the tokens of a text, none of which is a control token."""
        tokenizer = self.processor.tokenizer
        found: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        if self.control.isdisjoint(found):
            return found
        backend = tokenizer.backend_tokenizer  # its model has no added tokens
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        pieces = backend.pre_tokenizer.pre_tokenize_str(text)
        return [token.id for piece, _ in pieces for token in backend.model.tokenize(piece)]

    def control_token_in(self, text: str) -> str | None:
        """Return the first control token that a text reads like, such as `<|en|>`; None for none."""
        tokenizer = self.processor.tokenizer
        found = tokenizer(text, add_special_tokens=False).input_ids
        token = next((number for number in found if number in self.control), None)
        return None if token is None else str(tokenizer.convert_ids_to_tokens(token))

    @cached_property
    def control(self) -> frozenset[int]:
        """Tokens that are no text: languages, tasks, timestamps, the end."""
        tokenizer = self.processor.tokenizer
        added = tokenizer.get_added_vocab().items()  # timestamps are in it, and are not special
        timed = {number for token, number in added if CONTROL.fullmatch(token)}
        return frozenset(timed | set(tokenizer.all_special_ids))

    def features(self, waves: Sequence[NDArray[np.float32]]) -> Tensor:
        """Return log-mel features [clips, mel bins, frames] of waves, padded to the window."""
        extracted = self.processor.feature_extractor(
            list(waves), sampling_rate=RATE, return_tensors="pt"
        )
        features: Tensor = extracted.input_features
        return features

    def texts(self, tokens: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Return the texts of token sequences, without special tokens and outer white space."""
        texts = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [text.strip() for text in texts]


def audio_of(utterance: Utterance) -> NDArray[np.float32]:
    """Read the samples of an utterance, at 16 kHz."""
    if utterance.pieces:
        return np.concatenate([audio_of(piece) for piece in utterance.pieces])
    return load_audio(utterance.audio, start=utterance.start, duration=utterance.duration)


def build_model(
    name: str,
    folder: Path,
    state: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    parts: ModelParts | None = None,
) -> SpeechModel:
    """Build a model from weights and the config, tokenizer and extractor of a folder.

    Args:
        name: of the model, for messages.
        folder: a Hugging Face model folder that passed `check_model_folder`.
        state: weights by name; `proj_out.weight` is tied and may be missing.
        dtype: of the model; that of the weights by default.
        parts: the folder's config and processor; read from it by default.

    Raises:
        UnreadableFile: config, tokenizer or extractor cannot be used.
        Mismatch: the weights are of another architecture.
    """
    parts = parts or load_parts(load_config(folder), folder)
    if dtype is None:
        dtype = next(value.dtype for value in state.values() if value.is_floating_point())
    model: Any
    with refused(folder / CONFIG), torch.device("meta"):
        model = WhisperForConditionalGeneration(deepcopy(parts.config))  # training changes it
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    wrong = [
        key
        for key, shape in shapes.items()
        if key != "proj_out.weight" and (key not in state or state[key].shape != shape)
    ]
    wrong += [key for key in state if key not in shapes]
    if wrong:
        raise Mismatch(
            f"{name} and {folder / CONFIG} describe different models: they differ in "
            f"{named(wrong)}.",
            "Give the config of the model that the weights belong to.",
        )
    model = model.to_empty(device="cpu").to(dtype)
    # as transformers records them when it saves a model
    model.config.architectures, model.config.dtype = [type(model).__name__], dtype
    with torch.no_grad():
        parameters: dict[str, Any] = dict(model.named_parameters()) | dict(model.named_buffers())
        for key, value in state.items():
            if key in parameters:
                parameters[key].copy_(value)
    model.tie_weights()
    if parts.generation is not None:
        model.generation_config = parts.generation
    return SpeechModel(name, model.eval(), parts.processor)
