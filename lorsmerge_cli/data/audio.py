"""Audio files to samples: soundfile reads them, soxr resamples them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from lorsmerge_cli.data.mp3 import Mp3Scan, scan_mp3, with_true_length
from lorsmerge_cli.data.ogg import OggScan, scan_ogg
from lorsmerge_cli.data.utterance import MISSING, NO_NUMBERS, SHORT, UNREADABLE
from lorsmerge_cli.errors import UnreadableFile
from lorsmerge_cli.inputs import open_regular
from lorsmerge_cli.quoting import command

Scan = TypeVar("Scan")

READ = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".oga")
RATE = 16_000  # Hz, Whisper's
GUESS = 0.25  # seconds from which on a length by header is another than that of the frames
STREAM = 0x7FF00000  # sizes from here on stand in headers that were written before the audio
UNKNOWN = 1 << 62  # frames from here on stand for a FLAC that does not say how many it has
LOUDEST = 2.0**31  # of samples that are sound: 32-bit integers that were written as floats
SILENCE = 1e-4  # largest sample of what is silent, 80 dB below full scale


class UnreadableAudio(UnreadableFile):
    """An audio file that cannot be used. `reason` is one of `LACKING`, by which rows are counted."""

    def __init__(self, what: str, remedy: str = "", reason: str = UNREADABLE) -> None:
        super().__init__(what, remedy)
        self.reason = reason


def audio_seconds(path: Path) -> float:
    """Find the length of a file: by its header, and by its frames where it is MPEG audio.

    Raises:
        UnreadableAudio: it is missing, no audio, or an Ogg file with damaged pages.
    """
    info = _header(path)
    return _seconds(path, info)


def ends_early(path: Path) -> bool:
    """Whether a file was cut: its header tells of more audio than there is, or it ends within a frame.

    Raises:
        UnreadableAudio: as `audio_seconds`.
    """
    info = _header(path)
    if info.format == "MP3":
        scan = _mp3(path)
        if scan is None or scan.told is None:
            return scan is not None and scan.cut
        return (scan.told - scan.frames) * scan.frame_seconds > GUESS
    if info.format == "OGG":
        return _ogg(path).cut
    if info.format != "FLAC":
        size = path.stat().st_size
        lacking = _told_bytes(path) - size
        return bool(lacking * info.frames / info.samplerate > GUESS * size)
    try:
        with soundfile.SoundFile(str(path)) as file:  # a FLAC's header is not checked by opening it
            file.seek(max(0, file.frames - 1))
            return file.frames > 0 and len(file.read(1)) == 0
    except (OSError, soundfile.SoundFileError):
        return True


def _told_bytes(path: Path) -> int:
    """Bytes that a file has by its header; 0 where it does not say, as one written into a pipe."""
    with path.open("rb") as file:
        head = file.read(28)
    told = 0
    if head.startswith(b"RIFF"):
        told = 8 + int.from_bytes(head[4:8], "little")
    elif head.startswith(b"RF64"):
        return 8 + int.from_bytes(head[20:28], "little")  # of 64 bits, in its ds64 chunk
    elif head.startswith(b"FORM"):
        told = 8 + int.from_bytes(head[4:8], "big")
    elif head.startswith(b".snd"):
        told = int.from_bytes(head[4:8], "big") + int.from_bytes(head[8:12], "big")
    return told if told < STREAM else 0


def _seconds(path: Path, info: Any) -> float:
    seconds = float(info.frames / info.samplerate)
    scan = _mp3(path) if info.format == "MP3" else None
    # they differ by the encoder's padding, which is left out of the decoded audio
    return scan.seconds if scan and abs(scan.seconds - seconds) > GUESS else seconds


def _mp3(path: Path) -> Mp3Scan | None:
    return _scanned(scan_mp3, path)


def _ogg(path: Path) -> OggScan:
    return _scanned(scan_ogg, path)


def _scanned(scan: Callable[[bytes], Scan], path: Path) -> Scan:
    try:
        status = path.stat()
        found: Scan = _scan_once(scan, path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise _unreadable(path, error) from None
    return found


@lru_cache(maxsize=1 << 16)
def _scan_once(scan: Callable[[bytes], Any], path: Path, size: int, modified: int) -> Any:
    return scan(path.read_bytes())


def audio_channels(path: Path) -> int:
    """Read how many channels a file has from its header.

    Raises:
        UnreadableFile: it is missing or no audio.
    """
    return int(_header(path).channels)


def _header(path: Path) -> Any:
    try:
        open_regular(path).close()  # libsndfile would wait for a FIFO
        info = soundfile.info(str(path))
    except (OSError, soundfile.SoundFileError) as error:
        raise _unreadable(path, error) from None
    if info.frames >= UNKNOWN:
        raise UnreadableAudio(
            f"{path} does not say how long it is: it was written into a pipe.",
            f"`{command('ffmpeg', '-i', path, 'NEW.flac')}` makes one that does.",
        )
    if info.format == "OGG":
        pages = _ogg(path)
        if pages.damaged:
            raise UnreadableAudio(f"{path} has damaged pages.", "Make or fetch it again.")
        if pages.joined:
            raise UnreadableAudio(
                f"{path} holds recordings one behind the other, and the first alone would be heard.",
                "Make one of them, or a file of each.",
            )
    return info


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
        UnreadableAudio: missing, no audio, damaged, with samples that are no numbers, or ending more
            than 0.25 s before the piece does.
    """
    mono, source_rate = _samples(path, start, duration)
    if source_rate != rate:
        mono = soxr.resample(mono, source_rate, rate)
    return np.asarray(mono, dtype=np.float32)


def is_silent(path: Path, start: float, duration: float | None) -> bool:
    """Decode a piece of a file; whether there is no sound in it.

    Raises:
        UnreadableAudio: as `load_audio`.
    """
    mono, _ = _samples(path, start, duration)
    return bool(np.abs(mono).max(initial=0.0) < SILENCE)


def _samples(path: Path, start: float, duration: float | None) -> tuple[NDArray[np.float32], int]:
    """Decode a piece of a file, its channels averaged; its sample rate."""
    source = _source(path)
    try:
        with soundfile.SoundFile(source) as file:
            if start:
                file.seek(min(round(start * file.samplerate), file.frames))
            count = -1 if duration is None else round(duration * file.samplerate)
            samples = file.read(count, dtype="float32", always_2d=True)
            source_rate = file.samplerate
    except (OSError, soundfile.SoundFileError) as error:
        raise _unreadable(path, error) from None
    if duration is not None and len(samples) < count - GUESS * source_rate:
        raise UnreadableAudio(
            f"{path} ends after {start + len(samples) / source_rate:.2f} s, and it is read to "
            f"{start + duration:.2f} s.",
            "It was cut short: make or fetch it again, or correct the manifest.",
            SHORT,
        )
    if not np.abs(samples).max(initial=0.0) <= LOUDEST:  # nor is a NaN
        raise UnreadableAudio(
            f"{path} has samples that are no numbers.", "Make the file again.", NO_NUMBERS
        )
    return samples.mean(axis=1), int(source_rate)


def _source(path: Path) -> str | BytesIO:
    """The file, or a copy with its true length where a decoder would believe a wrong one."""
    info = _header(path)
    if info.format != "MP3" or _seconds(path, info) == info.frames / info.samplerate:
        return str(path)
    scan = _mp3(path)
    assert scan is not None  # or the length would be the header's
    return BytesIO(with_true_length(path.read_bytes(), scan))


def _unreadable(path: Path, error: Exception) -> UnreadableAudio:
    if path.is_dir():
        return UnreadableAudio(f"{path} is a folder, and no audio file.", "Name a file in it.")
    if not path.is_file():
        return UnreadableAudio(f"There is no audio file {path}.", "Check its path.", MISSING)
    if path.suffix.lower() in READ:
        return UnreadableAudio(
            f"{path} cannot be read as audio ({error}).", "It is damaged: make or fetch it again."
        )
    line = command("ffmpeg", "-i", path, path.with_suffix(".flac"))
    return UnreadableAudio(
        f"{path} cannot be read as audio ({error}).",
        f"wav, flac, mp3 and ogg can be: `{line}` converts others.",
    )
