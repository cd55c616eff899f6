"""Features of utterances, made from audio files once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.speech.model import SpeechModel, audio_of

READERS = 4  # threads that read audio


class Features:
    """Log-mel features of utterances, kept as far as a limit goes.

    They depend on the audio and the feature extractor alone, not on a model's weights.

    Args:
        speech: whose extractor makes them.
        limit: bytes kept.
    """

    def __init__(self, speech: SpeechModel, limit: int = 0) -> None:
        self.speech, self.limit = speech, limit
        self._held: dict[tuple[Path, float, float | None], Tensor] = {}
        self._used = 0

    def of(self, rows: Sequence[Utterance]) -> Tensor:
        """[clips, mel bins, frames], in float32 on the CPU.

        Raises:
            UnreadableFile: an audio file.
        """
        found = {key: self._held[key] for row in rows if (key := _key(row)) in self._held}
        missing = {_key(row): row for row in rows if _key(row) not in found}
        if missing:
            with ThreadPoolExecutor(READERS) as pool:
                waves = list(pool.map(audio_of, missing.values()))
            for key, features in zip(missing, self.speech.features(waves), strict=True):
                found[key] = features
                self._keep(key, features)
        return torch.stack([found[_key(row)] for row in rows])

    def keep_at_most(self, limit: int) -> None:
        """Keep another number of bytes from now on; nothing of what is there if it is more."""
        self.limit = limit
        if self._used > limit:
            self._held.clear()
            self._used = 0

    def _keep(self, key: tuple[Path, float, float | None], features: Tensor) -> None:
        nbytes = features.numel() * features.element_size()
        if self._used + nbytes <= self.limit:
            self._held[key] = features.clone()  # not the batch it is a view of
            self._used += nbytes


def _key(row: Utterance) -> tuple[Path, float, float | None]:
    return row.audio, row.start, row.duration
