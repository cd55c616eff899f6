"""When each word is said, by the cross-attention of heads that follow the audio.

As openai-whisper's `find_alignment`: the text is read again, the chosen heads' attention over the window
is smoothed, and dynamic time warping draws the path of tokens through it (Sakoe & Chiba 1978).
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lorsmerge_cli.data.languages import SPACELESS
from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.speech.model import SpeechModel

WIDTH = 7  # tokens' neighbouring positions of which the median is taken
BEFORE, AFTER = "\"'“¿([{-", "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001 - joined to the word after, and before
BROKEN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class AlignedWord:
    """A word of a window.

    Attributes:
        word: with the space before it and the punctuation at it.
        tokens: their number.
        start, end: positions of the encoder.
        probability: mean over its tokens.
    """

    word: str
    tokens: int
    start: int
    end: int
    probability: float


def need_alignment(speech: SpeechModel) -> list[tuple[int, int]]:
    """Return layer and number of the heads that follow the audio.

    Raises:
        UsageFault: the generation config names none.
    """
    heads = getattr(speech.model.generation_config, "alignment_heads", None)
    config = speech.model.config
    found = [(int(layer), int(head)) for layer, head in heads or ()]
    if not found or not all(
        layer < config.decoder_layers and head < config.decoder_attention_heads
        for layer, head in found
    ):
        raise UsageFault(
            f"{speech.name} has no alignment_heads in its generation_config.json, or none that the "
            "model has, and words get their times by them.",
            "Copy those of the model that it was fine-tuned from, or drop --words.",
        )
    return found


def align_words(
    speech: SpeechModel,
    heard: Tensor,
    prompt: Sequence[int],
    tokens: Sequence[int],
    positions: int,
    language: str,
) -> list[AlignedWord]:
    """Return the words of a window and when they are said.

    Args:
        speech: a model with alignment heads.
        heard: [1, positions, width], by `encode`.
        prompt: start, language, task, no timestamps.
        tokens: of the text, without timestamps.
        positions: of the encoder that belong to the recording.
        language: code of the spoken one, which says whether words have spaces between them.
    """  # fmt: skip
    if not tokens or not positions:
        return []
    end = int(speech.model.config.eos_token_id)
    weights, logits = _attention(speech, heard, [*prompt, *tokens, end], need_alignment(speech))
    matrix = _smoothed(weights[:, :, :positions])[len(prompt) - 1 : -1]
    texts, times = warp(-matrix.cpu().double().numpy())
    began = times[np.concatenate([[True], np.diff(texts) > 0])]  # of each token, and of the end
    scores = logits[len(prompt) - 1 : -2].clone()
    scores[:, [token for token in speech.control if token < scores.shape[1]]] = -torch.inf
    likely = scores.softmax(-1)[torch.arange(len(tokens)), torch.tensor(tokens)].cpu().numpy()
    words, at = [], 0
    for word, count in split_words(speech, tokens, language):
        words.append(
            AlignedWord(
                word, count, int(began[at]), int(began[at + count]),
                float(likely[at : at + count].mean()),
            )
        )  # fmt: skip
        at += count
    return _punctuated(words)


def _attention(
    speech: SpeechModel, heard: Tensor, tokens: Sequence[int], heads: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Return the heads' scores [heads, tokens, positions], and logits [tokens, vocabulary]."""
    model: Any = speech.model
    queries: dict[int, Tensor] = {}
    hooks = []
    for index, layer in enumerate(model.model.decoder.layers):

        def keep(module: Any, given: tuple[Tensor, ...], index: int = index) -> None:
            queries[index] = given[0]

        hooks.append(layer.encoder_attn.register_forward_pre_hook(keep))
    try:
        with torch.inference_mode():
            hidden = model.model.decoder(
                input_ids=torch.tensor([list(tokens)], device=heard.device),
                encoder_hidden_states=heard, use_cache=False,
            ).last_hidden_state  # fmt: skip
            logits = model.proj_out(hidden)[0].float()
            found = []
            for index, head in heads:
                attention = model.model.decoder.layers[index].encoder_attn
                part = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
                query = attention.q_proj(queries[index])[0, :, part] * attention.scaling
                found.append(query @ attention.k_proj(heard)[0, :, part].T)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found).float(), logits


def _smoothed(scores: Tensor) -> Tensor:
    """Return the mean of the heads [tokens, positions], each normalised and smoothed."""
    weights = scores.softmax(-1)
    std, mean = torch.std_mean(weights, dim=-2, keepdim=True, correction=0)
    weights = (weights - mean) / std
    half = WIDTH // 2
    if weights.shape[-1] > half:
        padded = functional.pad(weights, (half, half), mode="reflect")
        weights = padded.unfold(-1, WIDTH, 1).sort()[0][..., half]
    return weights.mean(0)


def warp(costs: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows and columns of the cheapest path through a matrix, from corner to corner.

    Example:
        >>> [part.tolist() for part in warp(np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]))]
        [[0, 1, 1], [0, 1, 2]]
    """
    rows, columns = costs.shape
    total = np.full((rows + 1, columns + 1), np.inf, np.float32)
    total[0, 0] = 0
    steps = np.full((rows + 1, columns + 1), 2, np.int8)
    for diagonal in range(2, rows + columns + 1):  # whose elements do not depend on each other
        i = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        j = diagonal - i
        both, down, right = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
        step = np.where(
            (both < down) & (both < right), 0, np.where((down < both) & (down < right), 1, 2)
        )
        steps[i, j] = step
        total[i, j] = costs[i - 1, j - 1] + np.choose(step, [both, down, right])
    steps[0, :], steps[:, 0] = 2, 1
    path = []
    i, j = rows, columns
    while i > 0 or j > 0:
        path.append((i - 1, j - 1))
        i, j = i - (steps[i, j] < 2), j - (steps[i, j] != 1)
    found = np.array(path[::-1])
    return found[:, 0], found[:, 1]


def split_words(speech: SpeechModel, tokens: Sequence[int], language: str) -> list[tuple[str, int]]:
    """Return words and the number of their tokens; a character each in languages without spaces."""
    tokenizer = speech.processor.tokenizer

    def decoded(part: Sequence[int]) -> str:
        text: str = tokenizer.decode(list(part), clean_up_tokenization_spaces=False)
        return text

    whole, pieces, part, offset = decoded(tokens), list[tuple[str, int]](), list[int](), 0
    for token in tokens:  # until a character is whole
        part.append(token)
        text = decoded(part)
        at = text.find(BROKEN)
        if at < 0 or whole[offset + at : offset + at + 1] == BROKEN:
            pieces.append((text, len(part)))
            offset += len(text)
            part = []
    if part:
        pieces.append((decoded(part), len(part)))
    if language in SPACELESS:
        return pieces
    words: list[tuple[str, int]] = []
    for text, count in pieces:
        if not words or text.startswith(" ") or text.strip() in string.punctuation:
            words.append((text, count))
        else:
            words[-1] = (words[-1][0] + text, words[-1][1] + count)
    return words


def _punctuated(words: Sequence[AlignedWord]) -> list[AlignedWord]:
    """Join punctuation to the words that it belongs to, which keep their times."""
    joined: list[AlignedWord] = []
    for word in reversed(words):
        opens = word.word.startswith(" ") and word.word.strip() in BEFORE
        if opens and joined:
            joined[-1] = _with(joined[-1], word.word, "", word.tokens)
        else:
            joined.append(word)
    found: list[AlignedWord] = []
    for word in reversed(joined):
        if found and not found[-1].word.endswith(" ") and word.word in AFTER:
            found[-1] = _with(found[-1], "", word.word, word.tokens)
        else:
            found.append(word)
    return found


def _with(word: AlignedWord, before: str, after: str, tokens: int) -> AlignedWord:
    return AlignedWord(
        before + word.word + after, word.tokens + tokens, word.start, word.end, word.probability
    )
