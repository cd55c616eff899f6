"""The search for the text of a window as OpenAI's Whisper does it: greedy, by beams, or by sampling.

transformers' search ranks beams by another length and ends at another time, so that its texts differ
from OpenAI's, and it draws from a generator that all windows of a batch share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lorsmerge_cli.speech.decoding.stepper import Stepper
from lorsmerge_cli.speech.decoding.timestamps import Rules
from lorsmerge_cli.speech.model import SpeechModel


@dataclass(frozen=True)
class Found:
    """The tokens of a window.

    Attributes:
        tokens: without prompt and end.
        avg_logprob: sum of their log-probabilities and the end's, over their number and one.
        no_speech_prob: that nothing is said; None if the vocabulary has no token for it.
        cut: whether the limit of tokens ended them.
    """

    tokens: tuple[int, ...]
    avg_logprob: float
    no_speech_prob: float | None
    cut: bool


def search_windows(
    speech: SpeechModel,
    heard: Tensor,
    prompts: Sequence[Sequence[int]],
    rules: Rules,
    *,
    group: int,
    temperature: float,
    most: int,
    generators: Sequence[torch.Generator],
) -> list[Found]:
    """Return the best tokens of each window.

    Args:
        speech: the model.
        heard: [windows, positions, width], by `encode`.
        prompts: of each window, up to where its text begins.
        rules: of the tokens.
        group: beams at temperature 0, samples above.
        temperature: of the sampling; at 0 the likeliest tokens are taken.
        most: tokens of a text.
        generators: of each window's samples.
    """
    end = int(speech.model.config.eos_token_id)
    chooser: _Chooser
    if temperature == 0 and group > 1:
        chooser = _Beams(len(prompts), group, end)
    else:
        chooser = _Samples(len(prompts), group, end, temperature, generators)
    with torch.inference_mode():
        decoder = Stepper(speech, heard, prompts, group)
        start = speech.vocabulary["<|startoftranscript|>"]
        places = [list(prompt).index(start) - len(prompt) for prompt in prompts]
        at_start, logits = decoder.start(places)
        silent = _no_speech(speech, at_start)
        said = torch.empty(len(prompts) * group, 0, dtype=torch.long)
        limit = min(most, speech.longest_label + 1 - decoder.longest)  # the last one is not read
        while True:
            scores = rules.apply(logits, said.to(logits.device))
            tokens, sources = chooser.choose(scores, said)
            said = torch.cat([said[sources], tokens[:, None]], 1)
            if chooser.complete(said) or said.shape[1] >= limit:
                break
            if not torch.equal(sources, torch.arange(len(sources))):
                decoder.reorder(sources)
            logits = decoder.step(tokens)
    return [
        Found(tokens, total / (len(tokens) + 1), nothing, cut)
        for (tokens, total, cut), nothing in zip(chooser.best(said), silent, strict=True)
    ]


def no_speech_token(speech: SpeechModel) -> int | None:
    """Return the token that says that nothing is said, if the vocabulary has one."""
    known = speech.vocabulary
    return known.get("<|nospeech|>", known.get("<|nocaptions|>"))


def _no_speech(speech: SpeechModel, at_start: Tensor) -> list[float | None]:
    """Return how likely nothing is said, by the token after the start of each transcript."""
    token = no_speech_token(speech)
    if token is None:
        return [None] * len(at_start)
    found: list[float | None] = at_start.softmax(-1)[:, token].tolist()
    return found


Best = tuple[tuple[int, ...], float, bool]  # tokens without the end, their sum, whether cut


class _Chooser:
    """How the next tokens are chosen of scores, and the best hypotheses in the end."""

    def choose(self, scores: Tensor, said: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next token of each hypothesis, and which one it continues."""
        raise NotImplementedError

    def complete(self, said: Tensor) -> bool:
        """Whether nothing that could be added would change the result."""
        raise NotImplementedError

    def best(self, said: Tensor) -> list[Best]:
        """Return the best hypothesis of each window."""
        raise NotImplementedError


class _Samples(_Chooser):
    """The likeliest tokens at temperature 0, and above it draws."""

    def __init__(
        self,
        windows: int,
        group: int,
        end: int,
        temperature: float,
        generators: Sequence[torch.Generator],
    ) -> None:
        self.group, self.end, self.temperature = group, end, temperature
        self.generators = generators
        self.sums = torch.zeros(windows * group)

    def choose(self, scores: Tensor, said: Tensor) -> tuple[Tensor, Tensor]:
        if self.temperature == 0:
            tokens = scores.argmax(-1).cpu()
        else:
            parts = scores.split(self.group)
            drawn = [
                draw(part.cpu() / self.temperature, generator)
                for part, generator in zip(parts, self.generators, strict=True)
            ]
            tokens = torch.cat(drawn)
        ended = (
            said[:, -1] == self.end if said.shape[1] else torch.zeros(len(scores), dtype=torch.bool)
        )
        chosen = tokens[:, None].to(scores.device)
        gained = scores.log_softmax(-1).gather(1, chosen)[:, 0].cpu()
        self.sums += gained.where(~ended, torch.tensor(0.0))
        return tokens.where(~ended, torch.tensor(self.end)), torch.arange(len(scores))

    def complete(self, said: Tensor) -> bool:
        return bool((said[:, -1] == self.end).all())

    def best(self, said: Tensor) -> list[Best]:
        found: list[Best] = []
        for rows, sums in zip(said.split(self.group), self.sums.split(self.group), strict=True):
            texts = [_until(row.tolist(), self.end) for row in rows]
            found.append(_likeliest(texts, sums.tolist(), [len(t) == rows.shape[1] for t in texts]))
        return found


class _Beams(_Chooser):
    """Beam search that ends for a window with as many finished hypotheses as there are beams."""

    def __init__(self, windows: int, group: int, end: int) -> None:
        self.group, self.end = group, end
        self.sums = torch.zeros(windows * group)
        self.finished: list[dict[tuple[int, ...], float]] = [{} for _ in range(windows)]

    def choose(self, scores: Tensor, said: Tensor) -> tuple[Tensor, Tensor]:
        values, tokens = scores.log_softmax(-1).topk(min(self.group + 1, scores.shape[1]))
        sums, tokens = self.sums[:, None] + values.cpu(), tokens.cpu()
        chosen: list[int] = []
        sources: list[int] = []
        for window, finished in enumerate(self.finished):
            candidates: dict[tuple[int, ...], tuple[float, int, int]] = {}
            for row in range(window * self.group, (window + 1) * self.group):
                past = tuple(said[row].tolist())
                for token, total in zip(tokens[row].tolist(), sums[row].tolist(), strict=True):
                    candidates[(*past, token)] = (total, row, token)  # equal pasts: once
            ended: dict[tuple[int, ...], float] = {}
            kept = 0
            for text in sorted(candidates, key=lambda key: candidates[key][0], reverse=True):
                total, row, token = candidates[text]
                if token == self.end:
                    ended[text[:-1]] = total
                    continue
                self.sums[len(chosen)] = total
                chosen.append(token)
                sources.append(row)
                kept += 1
                if kept == self.group:
                    break
            for text in sorted(ended, key=ended.__getitem__, reverse=True):
                if len(finished) < self.group:
                    finished[text] = ended[text]
        return torch.tensor(chosen), torch.tensor(sources)

    def complete(self, said: Tensor) -> bool:
        return all(len(finished) >= self.group for finished in self.finished)

    def best(self, said: Tensor) -> list[Best]:
        found: list[Best] = []
        for window, finished in enumerate(self.finished):
            texts = dict(finished)
            cut = set()
            rows = slice(window * self.group, (window + 1) * self.group)
            sums = self.sums[rows]
            for row in np.argsort(sums.numpy())[::-1].tolist():
                if len(texts) >= self.group:
                    break
                text = tuple(said[rows][row].tolist())
                texts[text] = float(sums[row])
                cut.add(text)
            keys = list(texts)
            found.append(_likeliest(keys, [texts[t] for t in keys], [t in cut for t in keys]))
        return found


def draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one token of each row [hypotheses, vocabulary]."""
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def _until(tokens: Sequence[int], end: int) -> tuple[int, ...]:
    tokens = tuple(tokens)
    return tokens[: tokens.index(end)] if end in tokens else tokens


def _likeliest(
    texts: Sequence[tuple[int, ...]], sums: Sequence[float], cut: Sequence[bool]
) -> Best:
    """Return the hypothesis with the largest sum of log-probabilities over its length."""
    means = [total / max(1, len(text)) for text, total in zip(texts, sums, strict=True)]
    index = int(np.argmax(means))
    return texts[index], sums[index], cut[index]
