"""Transcribe and translate by beam search, with a prompt for each row."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lorsmerge_cli.data.utterance import Answer, Utterance
from lorsmerge_cli.errors import LorsmergeError, Mismatch, UsageFault
from lorsmerge_cli.speech.decoding.beam_search import search_clips
from lorsmerge_cli.speech.decoding.confidence import mean_log_probabilities
from lorsmerge_cli.speech.features import Features
from lorsmerge_cli.speech.memory import ALL, Memory
from lorsmerge_cli.speech.model import SpeechModel

CPU = torch.device("cpu")
LARGEST_BATCH = 64
MEMORY_SHARE = 0.3  # of what is free, for the attentions' keys and values and the beams' scores
SCORE_COPIES = 4  # of every token's score that a step of the search holds


@dataclass(frozen=True)
class DecodingSettings:
    """Settings of the search for a text.

    Attributes:
        beam: hypotheses in the search; 1 is greedy.
        batch_size: utterances at a time; None for what memory allows.
        max_tokens: most tokens of a hypothesis, with the end of the text and without the prompt;
            None for as many as the decoder has positions.
        suppress: token ids that are never generated; None for the model's own list. Fine-tunes often
            lack the base's list, and scores are comparable only under the same one.
        begin_suppress: likewise for the first token of the text.
        memory: limit by which the batch size is chosen on a CPU.

    Raises:
        UsageFault: a number below 1.
    """

    beam: int = 20
    batch_size: int | None = None
    max_tokens: int | None = None
    suppress: tuple[int, ...] | None = None
    begin_suppress: tuple[int, ...] | None = None
    memory: Memory = field(default=ALL, compare=False)

    def __post_init__(self) -> None:
        for name in ("beam", "batch_size", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageFault(f"{name} = {value} is not a whole number from 1 on.")

    def with_lists_of(self, model: SpeechModel) -> DecodingSettings:
        """Return the settings with a model's own lists of suppressed tokens filled in."""
        config = model.model.generation_config
        own = tuple(getattr(config, "suppress_tokens", None) or ())
        begin = tuple(getattr(config, "begin_suppress_tokens", None) or ())
        return replace(
            self,
            suppress=own if self.suppress is None else self.suppress,
            begin_suppress=begin if self.begin_suppress is None else self.begin_suppress,
        )

    @property
    def limit(self) -> str:
        """The part of a signature with the largest number of new tokens."""
        return "max:None" if self.max_tokens is None else f"max_new:{self.max_tokens}"

    def signature(self, dtype: str) -> str:
        """Return all that a text depends on beside the model and the audio.

        Args:
            dtype: that the model computes in.
        """
        return f"beam:{self.beam}|{dtype}|{self.limit}|suppress:{self.suppress_digest()}"

    def suppress_digest(self) -> str:
        """Return eight characters that identify the lists of suppressed tokens."""
        lists = (self.suppress, self.begin_suppress)
        return hashlib.sha256(repr(lists).encode()).hexdigest()[:8]


def decode(
    speech: SpeechModel,
    utterances: Sequence[Utterance],
    settings: DecodingSettings,
    progress: Callable[[Utterance, str], None] = lambda utterance, text: None,
    features: Features | None = None,
) -> dict[str, str]:
    """Return the text of each utterance by id; the arguments are those of `decode_answers`."""
    answers = decode_answers(
        speech, utterances, settings, lambda row, answer: progress(row, answer.text), features
    )
    return {name: answer.text for name, answer in answers.items()}


def decode_answers(
    speech: SpeechModel,
    utterances: Sequence[Utterance],
    settings: DecodingSettings,
    progress: Callable[[Utterance, Answer], None] = lambda utterance, answer: None,
    features: Features | None = None,
    confidence: bool = False,
) -> dict[str, Answer]:
    """Decode utterances, in batches of similar length.

    Args:
        speech: the model, on its device.
        utterances: rows with durations; language and task determine the prompt of each.
        settings: of the search.
        progress: called with each utterance and its answer when a batch is done.
        features: a cache, to be used again by the next decoding; none by default.
        confidence: also compute how sure the model is of each text, which the decoder reads again.

    Returns:
        Utterance id -> answer.

    Raises:
        UnreadableFile: an utterance's audio cannot be read.
        LorsmergeError: memory is too small for one utterance.
    """
    settings = settings.with_lists_of(speech)

    def answer(batch: Tensor, prompts: Tensor) -> list[Answer]:
        heard = encode(speech, batch)
        tokens = generate(speech, heard, prompts, settings)
        found = speech.texts(tokens), _cut(speech, tokens[:, prompts.shape[1] :])
        if not confidence:
            return [*map(Answer, *found)]
        return [*map(Answer, *found, _confidences(speech, heard, tokens, prompts, settings))]

    return decode_batches(
        speech, utterances, settings, answer, progress, features or Features(speech)
    )


def decode_batches(
    speech: SpeechModel,
    utterances: Sequence[Utterance],
    settings: DecodingSettings,
    answer: Callable[[Tensor, Tensor], list[Answer]],
    progress: Callable[[Utterance, Answer], None],
    features: Features,
) -> dict[str, Answer]:
    """Have utterances answered in batches of similar length, smaller ones where memory ends.

    Args:
        speech: its prompts, and what batches are sized by; weights are not needed.
        utterances: as in `decode_answers`, and so the others.
        settings: of the search.
        answer: what answers a batch: features [clips, mel bins, frames] and prompts
            [clips, tokens] -> an answer each.
        progress: called with each utterance and its answer when a batch is done.
        features: a cache.

    Raises:
        LorsmergeError: as `decode_answers`, or a decoder has no room behind a prompt.
    """
    prompts = {
        pair: speech.prompt(*pair) for pair in {(row.language, row.task) for row in utterances}
    }
    longest = max(map(len, prompts.values()), default=0)
    if prompts and longest >= speech.longest_label:
        raise Mismatch(
            f"{speech.name}: its decoder has {speech.longest_label} positions, and the prompt takes "
            f"{longest}, so there is no room for a text.",
            "Look at max_target_positions in its config.json: OpenAI's models have 448.",
        )
    size = settings.batch_size or fitting_batch(speech, settings.beam, settings.memory)
    order = sorted(utterances, key=lambda row: (-(row.duration or 0.0), row.id))
    answers: dict[str, Answer] = {}
    start = 0
    with ThreadPoolExecutor(1) as pool:  # makes the next batch's features while one is decoded
        made = pool.submit(features.of, order[:size])
        while start < len(order):
            rows = order[start : start + size]
            batch = made.result()
            given = torch.tensor([prompts[row.language, row.task] for row in rows])
            made = pool.submit(features.of, order[start + size : start + 2 * size])
            try:
                found = answer(batch, given)
            except torch.OutOfMemoryError:
                size = _halved(size, speech.name)
                made = pool.submit(features.of, order[start : start + size])
                continue
            for row, said in zip(rows, found, strict=True):
                answers[row.id] = said
                progress(row, said)
            start += len(rows)
    return answers


def _cut(speech: SpeechModel, said: Tensor) -> list[bool]:
    """Return whether each row of tokens after the prompt lacks the end."""
    found: list[bool] = (said != speech.model.config.eos_token_id).all(1).tolist()
    return found


def _confidences(
    speech: SpeechModel,
    heard: Tensor,
    tokens: Tensor,
    prompts: Tensor,
    settings: DecodingSettings,
) -> list[float | None]:
    """Return the confidence in each text of a batch; None for one that is no number."""
    found = mean_log_probabilities(
        speech, heard, tokens, prompts.shape[1], settings.suppress or (),
        settings.begin_suppress or (),
    )  # fmt: skip
    return [value if math.isfinite(value) else None for value in found]


def encode(speech: SpeechModel, features: Tensor) -> Tensor:
    """Return what the encoder makes of a batch: [clips, positions, width], on the model's device.

    Args:
        speech: the model, on its device.
        features: [clips, mel bins, frames].
    """
    model = speech.model
    with torch.inference_mode():
        heard: Tensor = model.model.encoder(
            features.to(model.device, model.dtype)
        ).last_hidden_state
    return heard


def generate(
    speech: SpeechModel, heard: Tensor, prompts: Tensor, settings: DecodingSettings
) -> Tensor:
    """Generate the tokens of a batch, after their prompts.

    Args:
        speech: the model, on its device.
        heard: [clips, positions, width], by `encode`.
        prompts: [clips, tokens].
        settings: of the search, its lists filled in.

    Returns:
        [clips, tokens], padded with the end token.
    """
    most = speech.longest_label - prompts.shape[1]
    if settings.max_tokens is not None:
        most = min(most, settings.max_tokens)
    prompts = prompts.to(heard.device)
    said = search_clips(
        speech, heard, prompts, beam=settings.beam, most=most,
        suppress=settings.suppress or (), begin_suppress=settings.begin_suppress or (),
    )  # fmt: skip
    return torch.cat([prompts, said], 1)


def fitting_batch(speech: SpeechModel, beam: int, memory: Memory = ALL) -> int:
    """Return for how many utterances a search's caches and scores fit a share of the free memory."""
    config, itemsize = speech.model.config, speech.model.dtype.itemsize
    positions = config.max_source_positions + beam * config.max_target_positions
    caches = 2 * config.decoder_layers * config.d_model * positions * itemsize
    scores = SCORE_COPIES * torch.float32.itemsize * config.vocab_size * beam
    free = free_memory(speech.model.device, memory)
    return max(1, min(LARGEST_BATCH, int(MEMORY_SHARE * free / (caches + scores))))


def free_memory(device: torch.device = CPU, memory: Memory = ALL) -> int:
    """Return the bytes that this process may still use: on a GPU all free ones, else those of `memory`."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return memory.free()


def _halved(size: int, name: str) -> int:
    torch.cuda.empty_cache()
    if size == 1:
        raise LorsmergeError(
            f"{name} does not fit into memory with one utterance.",
            "Use a smaller --beam, half precision, or another --device.",
        )
    return size // 2
