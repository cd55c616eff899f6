"""Sentences of one speaker in a row, with pauses, and the sounds that are no speech."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from voices import RATE


@dataclass(frozen=True)
class Spoken:
    """A sentence somewhere in a recording.

    Attributes:
        start, end: seconds into the recording.
        text: what is said, in the language of the recording.
        english: the same in English.
    """

    start: float
    end: float
    text: str
    english: str


def silence(seconds: float) -> np.ndarray:
    """Zeros: float32 samples."""
    return np.zeros(int(seconds * RATE), np.float32)


def music(samples: int, rng: random.Random) -> np.ndarray:
    """Chords of some decaying harmonics each: float32 samples, peak 1."""
    wave = np.zeros(samples, np.float32)
    start, length = 0, int(rng.uniform(0.2, 0.6) * RATE)
    root = rng.uniform(110, 330)
    while start < len(wave):
        time = np.arange(min(2 * length, len(wave) - start), dtype=np.float32) / RATE
        for interval in rng.sample((0, 3, 4, 5, 7, 9, 12), 3):
            pitch = root * 2 ** (interval / 12)
            for harmonic in (1, 2, 3, 4):
                tone = np.sin(2 * np.pi * pitch * harmonic * time + rng.uniform(0, 6))
                wave[start : start + len(time)] += tone * np.exp(-3 * time * harmonic) / harmonic
        start += length
    return wave / np.abs(wave).max()


def speak(
    clips: Callable[[], tuple[np.ndarray, str, str]], sentences: int, rng: random.Random, *,
    sounds: bool,
) -> tuple[np.ndarray, list[Spoken]]:  # fmt: skip
    """Let someone say sentences, with a pause of 0.2 to 2 s after each.

    Args:
        clips: returns the next sentence: samples of peak 1, its text and its English.
        sentences: how many.
        rng: what pauses are drawn from.
        sounds: whether some pauses are long: 4 to 10 s without a sound, or with music.

    Returns:
        Samples, zero where nothing sounds, and the sentences.
    """
    parts, spoken = [silence(rng.uniform(0.1, 0.8))], []
    at = len(parts[0])
    for number in range(sentences):
        clip, text, english = clips()
        spoken.append(Spoken(at / RATE, (at + len(clip)) / RATE, text, english))
        pause = silence(rng.choice((rng.uniform(0.2, 0.8), rng.uniform(0.5, 2))))
        if sounds and number % 6 == 5:
            pause = silence(rng.uniform(4, 10))
            if rng.random() < 0.5:
                inner = pause[RATE // 2 : -RATE // 2]
                inner += 0.5 * music(len(inner), rng)
        parts += [clip, pause]
        at += len(clip) + len(pause)
    return np.concatenate(parts), spoken
