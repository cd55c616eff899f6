"""The features of a recording's windows, made as they are asked for: constant memory at any length.

OpenAI's Whisper makes the log-mel spectrogram of a whole file and clips it to eight decades below the
loudest value of the file. Here the file is decoded twice: once for that value and the length, and once
for the windows. The frames of neighbouring blocks overlap, so the features are those of the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorsmerge_cli.data.audio import RATE
from lorsmerge_cli.data.recording import Recording
from lorsmerge_cli.speech.model import SpeechModel

QUIETEST = 1e-10  # power of a mel band, below which all are the same
DECADES = 8.0  # that a spectrogram spans below its loudest value


@dataclass(frozen=True)
class Length:
    """What the first pass over a recording finds.

    Attributes:
        samples: at 16 kHz.
        loudest: log10 of its loudest mel value, by which features are clipped.
    """

    samples: int
    loudest: float

    @property
    def seconds(self) -> float:
        """The length in seconds."""
        return self.samples / RATE


class Spectrogram:
    """The settings of a model's log-mel features.

    Args:
        speech: its feature extractor is asked.

    Attributes:
        hop: samples from one frame to the next.
        frames: of a window.
    """

    def __init__(self, speech: SpeechModel) -> None:
        extractor = speech.processor.feature_extractor
        self.hop, self.size = int(extractor.hop_length), int(extractor.n_fft)
        self.frames = round(speech.window * RATE) // self.hop
        self._filters = torch.from_numpy(np.asarray(extractor.mel_filters)).to(torch.float32).T
        self._hann = torch.hann_window(self.size)

    def log_mels(self, blocks: Iterable[NDArray[np.float32]]) -> Iterator[Tensor]:
        """Yield log10 mel values [mel bins, frames] of a wave and a window of silence after it.

        A frame has its middle at a multiple of the hop; before its first sample the wave is mirrored.

        Args:
            blocks: [samples] each, one after the other.
        """
        half = self.size // 2
        held, begun, samples, made = np.empty(0, np.float32), False, 0, 0
        for silence, block in _with_silence(blocks, self.frames * self.hop + self.size):
            samples += 0 if silence else len(block)
            held = np.concatenate([held, block])
            if not begun:
                if len(held) <= half:
                    continue
                held, begun = np.concatenate([held[half:0:-1], held]), True
            count = (len(held) - self.size) // self.hop + 1
            if silence:
                count = min(count, samples // self.hop + self.frames - made)
            if count > 0:
                yield self._of(held[: (count - 1) * self.hop + self.size])
                held = held[count * self.hop :]
                made += count

    def _of(self, wave: NDArray[np.float32]) -> Tensor:
        spectrum = torch.stft(
            torch.from_numpy(wave), self.size, self.hop, window=self._hann, center=False,
            return_complex=True,
        )  # fmt: skip
        power = spectrum.abs() ** 2
        return (self._filters @ power).clamp(min=QUIETEST).log10()

    def length(self, recording: Recording) -> Length:
        """Decode a recording to its end, for its length and its loudest value.

        Raises:
            UnreadableAudio: see `Recording.blocks`.
        """
        samples, loudest = 0, -torch.inf

        def counted() -> Iterator[NDArray[np.float32]]:
            nonlocal samples
            for block in recording.blocks():
                samples += len(block)
                yield block

        for mels in self.log_mels(counted()):
            loudest = max(loudest, float(mels.max()))
        return Length(samples, loudest)


class Windows:
    """The windows of one recording, each not before the one asked for last.

    Args:
        spectrogram: of the model that hears them.
        recording: whose blocks are read.
        length: of the recording.

    Attributes:
        frames: of the recording, without the silence after it.
    """

    def __init__(self, spectrogram: Spectrogram, recording: Recording, length: Length) -> None:
        self.frames = max(1, length.samples // spectrogram.hop)
        self._size, self._floor = spectrogram.frames, length.loudest - DECADES
        self._blocks: Any = spectrogram.log_mels(recording.blocks())
        self._held = torch.empty(0)
        self._start = 0

    def at(self, seek: int) -> Tensor:
        """Return the features [mel bins, frames] of the window that begins at a frame.

        The last window is filled with silence, as `finetune` and `eval` fill clips.
        """
        while not self._held.numel() or self._start + self._held.shape[1] < seek + self._size:
            mels = next(self._blocks, None)
            if mels is None:
                break
            self._held = torch.cat([self._held, mels], 1) if self._held.numel() else mels
            gone = min(max(0, seek - self._start), self._held.shape[1])
            self._held = self._held[:, gone:].clone()  # not a view of all that was read
            self._start += gone
        found = self._held[:, seek - self._start : seek - self._start + self._size]
        missing = self._size - found.shape[1]  # of a file that was shortened since its first pass
        if missing:
            quiet = torch.full((len(self._held), missing), float(np.log10(QUIETEST)))
            found = torch.cat([found, quiet], 1)
        return (found.clamp(min=self._floor) + 4.0) / 4.0


def _with_silence(
    blocks: Iterable[NDArray[np.float32]], silence: int
) -> Iterator[tuple[bool, NDArray[np.float32]]]:
    """Yield blocks, then so many zeros, each with whether it is these."""
    for block in blocks:
        yield False, block
    yield True, np.zeros(silence, np.float32)
