"""Rooms, microphones and noise, applied to whole batches of waveforms by seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

RATE = 16_000
Range = tuple[float, float]


@dataclass(frozen=True)
class Acoustics:
    """Ranges that each clip draws its own surroundings from, uniformly.

    Attributes:
        snr: of speech to noise, dB.
        low, high: edges of the pass band, Hz.
        tilt: of the spectrum, dB per octave around 1 kHz.
        decay: of the reverberation to -60 dB, seconds.
        wet: amplitude of the reverberation beside the direct sound's 1.
        white: the noise is white; else it falls by 3 dB per octave.
    """

    snr: Range
    low: Range
    high: Range
    tilt: Range
    decay: Range
    wet: Range
    white: bool = False


BASE = Acoustics((2, 30), (20, 400), (2500, 8000), (-6, 6), (0.05, 0.5), (0, 0.9))
# The target domain: a hard corner of what the base was trained on, a little past it by language.
_TARGET: dict[str, Range] = {
    "snr": (0, 9), "low": (150, 350), "high": (2600, 4000),
    "tilt": (-4, 4), "decay": (0.2, 0.5), "wet": (0.4, 0.9),
}  # fmt: skip
TARGET = {
    "ca": Acoustics(**{**_TARGET, "low": (350, 450), "high": (2300, 2900)}),  # a telephone
    "de": Acoustics(**{**_TARGET, "wet": (0.8, 1.3)}),  # a hall
    "es": Acoustics(**{**_TARGET, "snr": (0, 6)}, white=True),  # a waterfall
    "fr": Acoustics(**{**_TARGET, "tilt": (-7, -4)}),  # behind a door
    "it": Acoustics(**{**_TARGET, "tilt": (8, 12)}),  # a tinny loudspeaker
}


def without_speech(acoustics: Acoustics) -> Acoustics:
    """The same surroundings, in which the speech only serves to scale the noise: nobody hears it."""
    return replace(acoustics, snr=(-60, -60))


def surround(waves: torch.Tensor, acoustics: Acoustics, generator: torch.Generator) -> torch.Tensor:
    """Put each clip into surroundings of its own.

    Args:
        waves: [clips, samples], speech padded with zeros.

    Returns:
        [clips, samples], peaks at 0.5.
    """
    clips, samples = waves.shape

    def uniform(span: Range) -> torch.Tensor:
        return span[0] + (span[1] - span[0]) * torch.rand(clips, 1, generator=generator)

    length = 2 * samples  # zeros after the clip keep the convolution from wrapping round
    spectrum = torch.fft.rfft(waves, length)
    echo = torch.randn(clips, int(0.6 * RATE), generator=generator)
    time = torch.arange(echo.shape[1]) / RATE
    echo *= 10 ** (-3 * time / uniform(acoustics.decay))
    echo[:, : RATE // 200] = 0  # the direct sound has the first 5 ms to itself
    echo *= uniform(acoustics.wet) / echo.norm(dim=1, keepdim=True)
    spectrum = spectrum * (1 + torch.fft.rfft(echo, length))

    noise = torch.fft.rfft(torch.randn(clips, samples, generator=generator), length)
    hertz = torch.linspace(0, RATE / 2, length // 2 + 1)
    if not acoustics.white:
        noise = noise / hertz.clamp(min=50).sqrt()
    speech = torch.fft.irfft(spectrum, length)[:, :samples]
    noise_wave = torch.fft.irfft(noise, length)[:, :samples]
    spoken = (waves != 0).sum(1, keepdim=True)
    power = speech.square().sum(1, keepdim=True) / spoken
    gain = power.sqrt() / noise_wave.square().mean(1, keepdim=True).sqrt()
    mixed = speech + noise_wave * gain * 10 ** (-uniform(acoustics.snr) / 20)

    channel = 10 ** (uniform(acoustics.tilt) * (hertz.clamp(min=50) / 1000).log2() / 20)
    channel = channel / (1 + (uniform(acoustics.low) / hertz.clamp(min=1)) ** 8).sqrt()
    channel = channel / (1 + (hertz / uniform(acoustics.high)) ** 8).sqrt()
    heard = torch.fft.irfft(torch.fft.rfft(mixed, length) * channel, length)[:, :samples]
    return 0.5 * heard / heard.abs().amax(1, keepdim=True)
