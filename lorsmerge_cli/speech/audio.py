"""Audio files to samples: soundfile reads them, soxr resamples them."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from lorsmerge_cli.errors import UnreadableFile

READ = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".oga")
RATE = 16_000  # Hz, Whisper's


def audio_seconds(path: Path) -> float:
    """Length of a file, from its header.

    Raises:
        UnreadableFile: it is missing or no audio.
    """
    try:
        info = soundfile.info(str(path))
    except (OSError, soundfile.SoundFileError) as error:
        raise _unreadable(path, error) from None
    return float(info.frames / info.samplerate)


def load_audio(
    path: Path, *, start: float = 0.0, duration: float | None = None, rate: int = RATE
) -> NDArray[np.float32]:
    """Samples of a file or a piece of it.

    Args:
        path: wav, flac, mp3 or ogg (vorbis, opus).
        start, duration: of the piece, in seconds.
        rate: Hz of the result.

    Returns:
        [samples] in -1..1, the channels averaged.

    Raises:
        UnreadableFile: missing, no audio, or with samples that are no numbers.
    """
    try:
        with soundfile.SoundFile(str(path)) as file:
            if start:
                file.seek(min(round(start * file.samplerate), file.frames))
            count = -1 if duration is None else round(duration * file.samplerate)
            samples = file.read(count, dtype="float32", always_2d=True)
            source_rate = file.samplerate
    except (OSError, soundfile.SoundFileError) as error:
        raise _unreadable(path, error) from None
    if not np.isfinite(samples).all():
        raise UnreadableFile(f"{path} has samples that are no numbers.", "Make the file again.")
    mono = samples.mean(axis=1)
    if source_rate != rate:
        mono = soxr.resample(mono, source_rate, rate)
    return np.asarray(mono, dtype=np.float32)


def _unreadable(path: Path, error: Exception) -> UnreadableFile:
    if path.is_dir():
        return UnreadableFile(f"{path} is a folder, and no audio file.", "Name a file in it.")
    if not path.is_file():
        return UnreadableFile(f"There is no audio file {path}.", "Check its path.")
    if path.suffix.lower() in READ:
        return UnreadableFile(
            f"{path} cannot be read as audio ({error}).", "It is damaged: make or fetch it again."
        )
    old, new = shlex.quote(str(path)), shlex.quote(str(path.with_suffix(".flac")))
    return UnreadableFile(
        f"{path} cannot be read as audio ({error}).",
        f"wav, flac, mp3 and ogg can be: `ffmpeg -i {old} {new}` converts others.",
    )
