"""What hears the windows of a recording: a model in PyTorch, or in another engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lorsmerge_cli.speech.decoding.clips import encode
from lorsmerge_cli.speech.decoding.identification import identify_languages
from lorsmerge_cli.speech.decoding.timestamps import Rules
from lorsmerge_cli.speech.decoding.window_search import Found, search_windows
from lorsmerge_cli.speech.model import SpeechModel


@dataclass(frozen=True)
class Search:
    """What is searched for in some windows; attributes as in `search_windows`."""

    prompts: Sequence[Sequence[int]]
    rules: Rules
    group: int
    temperature: float
    most: int
    generators: Sequence[torch.Generator]


class Ear(Protocol):
    """A model that hears windows. What `encode` returns is for its other methods alone."""

    def encode(self, features: Tensor) -> Any:
        """Return windows as the encoder hears them, of features [windows, mel bins, frames]."""

    def languages(self, heard: Any, rows: Sequence[int]) -> list[tuple[str, float]]:
        """Return the likeliest language of some windows, as `identify_languages`."""

    def search(self, heard: Any, rows: Sequence[int], search: Search) -> list[Found]:
        """Return the best tokens of some windows, as `search_windows`."""


@dataclass(frozen=True)
class TorchEar:
    """A model in PyTorch, whose windows are heard as [windows, positions, width]."""

    speech: SpeechModel

    def encode(self, features: Tensor) -> Tensor:
        """Encode on the model's device."""
        return encode(self.speech, features)

    def languages(self, heard: Tensor, rows: Sequence[int]) -> list[tuple[str, float]]:
        """Identify as `identify_languages` does."""
        return identify_languages(self.speech, heard[list(rows)])

    def search(self, heard: Tensor, rows: Sequence[int], search: Search) -> list[Found]:
        """Search as `search_windows` does."""
        windows = heard if len(rows) == len(heard) else heard[list(rows)]
        return search_windows(
            self.speech, windows, search.prompts, search.rules, group=search.group,
            temperature=search.temperature, most=search.most, generators=search.generators,
        )  # fmt: skip
