"""Audio files to samples: soundfile reads them, soxr resamples them."""

from __future__ import annotations

import shlex
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from lorsmerge_cli.data.mp3 import Mp3Scan, scan_mp3, with_true_length
from lorsmerge_cli.errors import UnreadableFile
from lorsmerge_cli.inputs import open_regular

READ = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".oga")
RATE = 16_000  # Hz, Whisper's
GUESS = 0.25  # seconds from which on a length by header is another than that of the frames
STREAM = 0x7FF00000  # sizes from here on stand in RIFF headers that were written before the audio


def audio_seconds(path: Path) -> float:
    """Find the length of a file: by its header, and by its frames where it is MPEG audio.

    Raises:
        UnreadableFile: it is missing or no audio.
    """
    info = _header(path)
    return _seconds(path, info)


def ends_early(path: Path) -> bool:
    """Whether a file was cut: its header tells of more audio than there is.

    Raises:
        UnreadableFile: it is missing or no audio.
    """
    info = _header(path)
    if info.format == "MP3":
        scan = _scan(path)
        if scan is None or scan.told is None:
            return False
        return (scan.told - scan.frames) * scan.frame_seconds > GUESS
    if info.format in ("WAV", "WAVEX") and _is_short_riff(path):
        return True
    try:
        with soundfile.SoundFile(str(path)) as file:  # a FLAC's header is not checked by opening it
            file.seek(max(0, file.frames - 1))
            return file.frames > 0 and len(file.read(1)) == 0
    except (OSError, soundfile.SoundFileError):
        return True


def _is_short_riff(path: Path) -> bool:
    """Whether a RIFF header tells of more bytes than the file has; a stream's tells no true number."""
    with path.open("rb") as file:
        head = file.read(8)
    told = int.from_bytes(head[4:8], "little")
    return head[:4] == b"RIFF" and told < STREAM and told + 8 > path.stat().st_size + 1


def _seconds(path: Path, info: Any) -> float:
    seconds = float(info.frames / info.samplerate)
    scan = _scan(path) if info.format == "MP3" else None
    # they differ by the encoder's padding, which is left out of the decoded audio
    return scan.seconds if scan and abs(scan.seconds - seconds) > GUESS else seconds


def _scan(path: Path) -> Mp3Scan | None:
    try:
        status = path.stat()
        return _scan_once(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise _unreadable(path, error) from None


@lru_cache(maxsize=1 << 16)
def _scan_once(path: Path, size: int, modified: int) -> Mp3Scan | None:
    return scan_mp3(path.read_bytes())


def audio_channels(path: Path) -> int:
    """Read how many channels a file has from its header.

    Raises:
        UnreadableFile: it is missing or no audio.
    """
    return int(_header(path).channels)


def _header(path: Path) -> Any:
    try:
        open_regular(path).close()  # libsndfile would wait for a FIFO
        return soundfile.info(str(path))
    except (OSError, soundfile.SoundFileError) as error:
        raise _unreadable(path, error) from None


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
        UnreadableFile: missing, no audio, with samples that are no numbers, or ending more than
            0.25 s before the piece does.
    """
    try:
        with soundfile.SoundFile(_source(path)) as file:
            if start:
                file.seek(min(round(start * file.samplerate), file.frames))
            count = -1 if duration is None else round(duration * file.samplerate)
            samples = file.read(count, dtype="float32", always_2d=True)
            source_rate = file.samplerate
    except (OSError, soundfile.SoundFileError) as error:
        raise _unreadable(path, error) from None
    if duration is not None and len(samples) < count - GUESS * source_rate:
        raise UnreadableFile(
            f"{path} ends after {start + len(samples) / source_rate:.2f} s, and it is read to "
            f"{start + duration:.2f} s.",
            "It was cut short: make or fetch it again, or correct the manifest.",
        )
    if not np.isfinite(samples).all():
        raise UnreadableFile(f"{path} has samples that are no numbers.", "Make the file again.")
    mono = samples.mean(axis=1)
    if source_rate != rate:
        mono = soxr.resample(mono, source_rate, rate)
    return np.asarray(mono, dtype=np.float32)


def _source(path: Path) -> str | BytesIO:
    """The file, or a copy with its true length where a decoder would believe a wrong one."""
    info = soundfile.info(str(path))
    if info.format != "MP3" or _seconds(path, info) == info.frames / info.samplerate:
        return str(path)
    scan = _scan(path)
    assert scan is not None  # or the length would be the header's
    return BytesIO(with_true_length(path.read_bytes(), scan))


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
