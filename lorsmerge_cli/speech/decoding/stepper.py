"""Take the hypotheses of a search through the decoder, token by token."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

from lorsmerge_cli.speech.model import SpeechModel


class Stepper:
    """A decoder that is fed token by token, several hypotheses for each window.

    Args:
        speech: the model.
        heard: [windows, positions, width], by `encode`.
        prompts: of each window; they are aligned at their ends.
        group: hypotheses of a window.
    """

    def __init__(
        self, speech: SpeechModel, heard: Tensor, prompts: Sequence[Sequence[int]], group: int
    ) -> None:
        self.model, self.heard, self.group = speech.model, heard, group
        self.longest = max(map(len, prompts))
        self.cache = SharedCrossAttention(self.model, heard)
        self._padding = torch.tensor([self.longest - len(prompt) for prompt in prompts])
        pad = int(self.model.config.pad_token_id)
        self._prompts = torch.tensor(
            [[pad] * (self.longest - len(prompt)) + list(prompt) for prompt in prompts]
        )
        self.length = 0

    def start(self, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Read the prompts.

        Args:
            places: of a token in each prompt, from its end (-1 is the last).

        Returns:
            Logits [windows, vocabulary] after those tokens, and [windows * group, vocabulary] after
            the prompts.
        """
        hidden = self._read(self._prompts)
        there = self._logits(hidden[torch.arange(len(hidden)), torch.tensor(places)])
        logits = self._logits(hidden[:, -1]).repeat_interleave(self.group, 0)
        self._padding = self._padding.repeat_interleave(self.group)
        if self.group > 1:
            self.cache.self_attention_cache.batch_repeat_interleave(self.group)
        return there, logits

    def step(self, tokens: Tensor) -> Tensor:
        """Return logits [windows * group, vocabulary] after one more token of each."""
        with beams_as_queries(self.model, self.group):
            return self._logits(self._read(tokens[:, None])[:, 0])

    def reorder(self, sources: Tensor) -> None:
        """Continue each hypothesis from that of another number in the same window."""
        order: Any = sources.to(self.heard.device)
        self.cache.reorder_cache(order)

    def keep(self, windows: Tensor) -> None:
        """Drop all windows but these; `reorder`, called next, drops the others' hypotheses."""
        self.heard = self.heard[windows]
        rows = windows.cpu()[:, None] * self.group + torch.arange(self.group)
        self._padding = self._padding[rows.flatten()]
        self.cache.cross_attention_cache.batch_select_indices(windows)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.model.proj_out(hidden).float()
        return logits

    def _read(self, tokens: Tensor) -> Tensor:
        device, dtype = self.heard.device, self.heard.dtype
        rows, count = tokens.shape
        places = torch.arange(self.length, self.length + count)
        positions = (places[None] - self._padding[:, None]).clamp(min=0)
        mask = None
        if self._padding.any():
            # a fully masked row would be NaN: what is before a prompt hears itself
            known = torch.arange(self.length + count)
            seen = (known <= places[:, None]) & (known >= self._padding[:, None, None])
            seen |= known == places[:, None]
            mask = torch.zeros(rows, 1, count, self.length + count, dtype=dtype)
            mask = mask.masked_fill(~seen[:, None], torch.finfo(dtype).min).to(device)
        decoder: Any = self.model.model.decoder
        hidden: Tensor = decoder(
            input_ids=tokens.to(device), attention_mask=mask, encoder_hidden_states=self.heard,
            position_ids=positions.to(device), use_cache=True,
            **{cache_argument(decoder): self.cache},
        ).last_hidden_state  # fmt: skip
        self.length += count
        return hidden


class RoomyLayer(DynamicLayer):
    """Keys and values of a layer, with room for the next tokens, so that a new one copies none of the earlier."""

    MORE = 8  # tokens at a time

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._held: list[Tensor] = []  # keys and values [rows, heads, room, units]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the keys and values of some tokens, and return all."""
        length = self.get_seq_length()
        total = length + key_states.shape[-2]
        if not self._held or total > self._held[0].shape[-2]:
            rows, heads, _, units = key_states.shape
            room = self.MORE * (1 + total // self.MORE)
            before = self._held
            self._held = [key_states.new_empty(rows, heads, room, units) for _ in range(2)]
            for held, old in zip(self._held, before, strict=False):
                held[:, :, :length] = old[:, :, :length]
            self.is_initialized = True
        for held, new in zip(self._held, (key_states, value_states), strict=True):
            held[:, :, length:total] = new
        return self._show(total)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take rows by their numbers."""
        self._held = [held.index_select(0, beam_idx) for held in self._held]
        self._show(self.get_seq_length())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        self._held = [held.repeat_interleave(repeats, 0) for held in self._held]
        self._show(self.get_seq_length())

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        keys, values = (held[:, :, :length] for held in self._held)
        self.keys, self.values = keys, values
        return keys, values


class SharedCrossAttention(EncoderDecoderCache):
    """A cache with one cross-attention for all beams of an utterance, made before the first step.

    Beams never cross utterances, so those of one hear the same keys and values. transformers keeps
    them once for each beam and moves them at every step.

    Args:
        model: a Whisper.
        heard: [clips, positions, width], the encoder's output.
    """

    def __init__(self, model: Any, heard: Tensor) -> None:
        layers: list[Any] = [RoomyLayer() for _ in model.model.decoder.layers]
        super().__init__(Cache(layers=layers), DynamicCache())
        for index, layer in enumerate(model.model.decoder.layers):
            attention = layer.encoder_attn
            shape = (*heard.shape[:2], attention.num_heads, attention.head_dim)
            keys, values = (
                projection(heard).view(shape).transpose(1, 2).contiguous()
                for projection in (attention.k_proj, attention.v_proj)
            )
            self.cross_attention_cache.update(keys, values, index)
            self.is_updated[index] = True

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorder the self-attention of the beams."""
        self.self_attention_cache.reorder_cache(beam_idx)


@contextmanager
def beams_as_queries(model: Any, beam: int) -> Iterator[None]:
    """Have the cross-attention take the beams of an utterance as queries of one call."""

    def fold(module: Any, arguments: tuple[Tensor, ...], named: Any) -> tuple[Any, Any]:
        queries, *others = arguments
        rows, length, width = queries.shape
        return (queries.reshape(rows // beam, beam * length, width), *others), named

    def unfold(module: Any, arguments: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        found, weights = output
        clips, queries, width = found.shape
        return found.reshape(clips * beam, queries // beam, width), weights

    hooks = []
    for layer in model.model.decoder.layers if beam > 1 else ():
        hooks.append(layer.encoder_attn.register_forward_pre_hook(fold, with_kwargs=True))
        hooks.append(layer.encoder_attn.register_forward_hook(unfold))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def cache_argument(module: Any) -> str:
    """Return the name of a module's argument that takes a cache; earlier transformers have another."""
    forward = inspect.signature(type(module).forward).parameters
    return "cache" if "cache" in forward else "past_key_values"
