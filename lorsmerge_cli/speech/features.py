"""Make the features of utterances, and keep them for the next decoding."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lorsmerge_cli.data.audio_source import AudioSource
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.speech.model import SpeechModel, audio_of

THREADS = 4  # that read audio
FEATURES_SHARE = 0.2  # of free memory, for features that are used again


class Features:
    """A cache of log-mel features, which depend on the audio and the extractor, not on weights.

    Args:
        speech: model whose feature extractor is used.
        limit: size in bytes.
    """

    def __init__(self, speech: SpeechModel, limit: int = 0) -> None:
        self.speech, self.limit = replace(speech, model=None), limit  # no weights are kept
        self._held: dict[tuple[AudioSource, float, float | None], Tensor] = {}
        self._used = self._frames = 0

    def of(self, rows: Sequence[Utterance]) -> Tensor:
        """Return features [clips, mel bins, frames], in float32 on the CPU.

        Raises:
            UnreadableFile: an utterance's audio cannot be read.
        """
        if not rows:
            return torch.empty(0)
        found = {key: self._held[key] for row in rows if (key := _key(row)) in self._held}
        missing = {_key(row): row for row in rows if _key(row) not in found}
        if missing:
            with ThreadPoolExecutor(THREADS) as pool:
                waves = list(pool.map(audio_of, missing.values()))
            for key, features in zip(missing, self.speech.features(waves), strict=True):
                self._frames = features.shape[1]
                found[key] = trimmed(features)
                self._keep(key, found[key])
        return torch.stack([untrimmed(found[_key(row)], self._frames) for row in rows])

    def keep_at_most(self, limit: int) -> None:
        """Set another limit in bytes; the cache is emptied if it holds more."""
        self.limit = limit
        if self._used > limit:
            self._held.clear()
            self._used = 0

    def _keep(self, key: tuple[AudioSource, float, float | None], features: Tensor) -> None:
        nbytes = features.numel() * features.element_size()
        if self._used + nbytes <= self.limit:
            self._held[key] = features.clone()  # not the batch it is a view of
            self._used += nbytes


class SharedFeatures:
    """Caches of several models, one for those whose extractors make the same features.

    Args:
        limit: size of each in bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: list[tuple[Any, Features]] = []

    def of(self, speech: SpeechModel) -> Features:
        """Return the cache of a model's extractor."""
        settings = speech.processor.feature_extractor.to_dict()
        found = next((held for known, held in self._held if known == settings), None)
        if found is None:
            self._held.append((settings, found := Features(speech, self.limit)))
        return found


def trimmed(features: Tensor) -> Tensor:
    """Return float32 features [mel bins, frames] up to one of the equal frames at their end, of padding.

    Most of a window is padding, which is one value in Whisper's features. `untrimmed` undoes this
    to the bit.
    """
    bits = features.view(torch.int32)
    differs = (bits != bits[:, -1:]).any(0).nonzero()
    last = int(differs[-1]) + 1 if len(differs) else 0
    return features[:, : last + 1]


def untrimmed(features: Tensor, frames: int) -> Tensor:
    """Return features of so many frames: the last one is repeated."""
    missing = frames - features.shape[1]
    return torch.cat([features, features[:, -1:].expand(-1, missing)], 1)


def _key(row: Utterance) -> tuple[AudioSource, float, float | None]:
    return row.audio, row.start, row.duration
