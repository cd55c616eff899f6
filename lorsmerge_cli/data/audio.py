"""Turn recordings into samples: soundfile decodes them, soxr resamples them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import SEEK_END, BytesIO
from typing import Any, BinaryIO, TypeVar

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from lorsmerge_cli.data.audio_source import AudioSource
from lorsmerge_cli.data.mp3 import scan_mp3, with_true_length
from lorsmerge_cli.data.ogg import scan_ogg
from lorsmerge_cli.data.utterance import MISSING, NO_NUMBERS, SHORT, UNREADABLE
from lorsmerge_cli.errors import UnreadableFile
from lorsmerge_cli.inputs import FileIdentity
from lorsmerge_cli.quoting import command

Scan = TypeVar("Scan")

SUFFIXES = {"WAVEX": "WAV", "RF64": "WAV"}  # of libsndfile's formats that are not called like them
READ = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".oga")
RATE = 16_000  # Hz, Whisper's
GUESS = 0.25  # seconds by which a length by header may differ from that of the frames
STREAM = 0x7FF00000  # smallest size that a header gives when it is written before the audio
UNKNOWN = 1 << 62  # smallest number of frames that stands for an unknown one in a FLAC
LOUDEST = 2.0**31  # largest sample: of 32-bit integers that were written as floats
SILENCE = 1e-4  # largest sample of what is silent, 80 dB below full scale


class UnreadableAudio(UnreadableFile):
    """Audio that cannot be used. `reason` is one of `LACKING`, by which rows are counted."""

    def __init__(self, what: str, remedy: str = "", reason: str = UNREADABLE) -> None:
        super().__init__(what, remedy)
        self.reason = reason


def audio_seconds(source: AudioSource) -> float:
    """Return the length of a recording by its header, or by its frames if it is MPEG audio.

    Raises:
        UnreadableAudio: it is missing, no audio, or an Ogg file with damaged pages.
    """
    return _seconds(source, _header(source))


def audio_suffix(source: AudioSource) -> str:
    """Return the suffix of a file with this recording, by its content: `.mp3`.

    Raises:
        UnreadableAudio: as `audio_seconds`.
    """
    name = str(_header(source).format)
    return f".{SUFFIXES.get(name, name).lower()}"


def audio_channels(source: AudioSource) -> int:
    """Read the number of channels from the header.

    Raises:
        UnreadableFile: it is missing or no audio.
    """
    return int(_header(source).channels)


def ends_early(source: AudioSource) -> bool:
    """Return whether a recording was cut: its header promises more, or it ends within a frame.

    Raises:
        UnreadableAudio: as `audio_seconds`.
    """
    info = _header(source)
    if info.format == "MP3":
        scan = _scan(scan_mp3, source)
        if scan is None or scan.declared is None:
            return scan is not None and scan.cut
        return (scan.declared - scan.frames) * scan.frame_seconds > GUESS
    if info.format == "OGG":
        return _scan(scan_ogg, source).cut
    if info.format != "FLAC":
        with source.open() as file:
            declared = _declared_bytes(file.read(28))
            size = file.seek(0, SEEK_END)
        return bool((declared - size) * info.frames / info.samplerate > GUESS * size)
    try:
        with soundfile.SoundFile(_readable(source)) as sound:  # opening checks no FLAC's frames
            sound.seek(max(0, sound.frames - 1))
            return sound.frames > 0 and len(sound.read(1)) == 0
    except (OSError, soundfile.SoundFileError):
        return True


def _declared_bytes(head: bytes) -> int:
    """Return the size that a file has by its first bytes; 0 if they give none, as in a pipe."""
    size = 0
    if head.startswith(b"RIFF"):
        size = 8 + int.from_bytes(head[4:8], "little")
    elif head.startswith(b"RF64"):
        return 8 + int.from_bytes(head[20:28], "little")  # of 64 bits, in its ds64 chunk
    elif head.startswith(b"FORM"):
        size = 8 + int.from_bytes(head[4:8], "big")
    elif head.startswith(b".snd"):
        size = int.from_bytes(head[4:8], "big") + int.from_bytes(head[8:12], "big")
    return size if size < STREAM else 0


def _seconds(source: AudioSource, info: Any) -> float:
    seconds = float(info.frames / info.samplerate)
    scan = _scan(scan_mp3, source) if info.format == "MP3" else None
    # they differ by the encoder's padding, which is not decoded
    return scan.seconds if scan and abs(scan.seconds - seconds) > GUESS else seconds


def _scan(scan: Callable[[bytes], Scan], source: AudioSource) -> Scan:
    try:
        result: Scan = _scan_once(scan, source, FileIdentity.of(source.file))
    except OSError as error:
        raise _unreadable(source, error) from None
    return result


@lru_cache(maxsize=1 << 16)
def _scan_once(scan: Callable[[bytes], Any], source: AudioSource, identity: FileIdentity) -> Any:
    with source.open() as file:
        return scan(file.read())


def _readable(source: AudioSource) -> str | bytes | BinaryIO:
    """Return what soundfile opens: a path where there is one, which libsndfile reads faster."""
    if source.path is None:
        return source.open()
    # of a name that is no UTF-8, soundfile takes the bytes
    return os.fsencode(source.path) if os.name == "posix" else str(source.path)


def _header(source: AudioSource) -> Any:
    try:
        source.open().close()  # libsndfile would wait for a FIFO
        info = soundfile.info(_readable(source))
    except UnreadableFile as error:
        raise UnreadableAudio(error.what, error.remedy) from None
    except (OSError, soundfile.SoundFileError) as error:
        raise _unreadable(source, error) from None
    if info.frames >= UNKNOWN:
        raise UnreadableAudio(
            f"{source} does not say how long it is: it was written into a pipe.",
            f"`{command('ffmpeg', '-i', source.path, 'NEW.flac')}` makes one that does."
            if source.path is not None
            else "Make it again, into a file.",
        )
    if info.format == "OGG":
        pages = _scan(scan_ogg, source)
        if pages.damaged:
            raise UnreadableAudio(f"{source} has damaged pages.", "Make or fetch it again.")
        if pages.joined:
            raise UnreadableAudio(
                f"{source} holds several recordings one after the other, and only the first would be "
                "decoded.",
                "Join them into one, or write each to a file of its own.",
            )
    return info


def load_audio(
    source: AudioSource, *, start: float = 0.0, duration: float | None = None, rate: int = RATE
) -> NDArray[np.float32]:
    """Decode a recording or a piece of it.

    Args:
        source: wav, flac, mp3 or ogg (vorbis, opus).
        start: of the piece, in seconds.
        duration: of the piece, in seconds; to the end by default.
        rate: Hz of the result.

    Returns:
        [samples] in -1..1, the channels averaged.

    Raises:
        UnreadableAudio: missing, no audio, damaged, with samples that are no numbers, or ending more
            than 0.25 s before the piece does.
    """
    mono, source_rate = _samples(source, start, duration)
    if source_rate != rate:
        mono = soxr.resample(mono, source_rate, rate)
    return np.asarray(mono, dtype=np.float32)


def is_silent(source: AudioSource, start: float, duration: float | None) -> bool:
    """Decode a piece of a recording and return whether there is no sound in it.

    Raises:
        UnreadableAudio: as `load_audio`.
    """
    mono, _ = _samples(source, start, duration)
    return bool(np.abs(mono).max(initial=0.0) < SILENCE)


@contextmanager
def opened_sound(source: AudioSource) -> Iterator[Any]:
    """Open a recording as soundfile's object, with its true length.

    Raises:
        UnreadableAudio: as `audio_seconds`.
    """
    encoded = _with_true_length(source)
    try:
        sound = soundfile.SoundFile(encoded)
    except (OSError, soundfile.SoundFileError) as error:
        raise _unreadable(source, error) from None
    with sound:
        yield sound


def _samples(
    source: AudioSource, start: float, duration: float | None
) -> tuple[NDArray[np.float32], int]:
    """Decode a piece, its channels averaged; return it with its sample rate."""
    encoded = _with_true_length(source)
    try:
        with soundfile.SoundFile(encoded) as file:
            if start:
                file.seek(min(round(start * file.samplerate), file.frames))
            count = -1 if duration is None else round(duration * file.samplerate)
            samples = file.read(count, dtype="float32", always_2d=True)
            source_rate = file.samplerate
    except (OSError, soundfile.SoundFileError) as error:
        raise _unreadable(source, error) from None
    if duration is not None and len(samples) < count - GUESS * source_rate:
        raise UnreadableAudio(
            f"{source} ends after {start + len(samples) / source_rate:.2f} s, and it is read to "
            f"{start + duration:.2f} s.",
            "It was cut short: make or fetch it again, or correct the manifest.",
            SHORT,
        )
    if not np.abs(samples).max(initial=0.0) <= LOUDEST:  # nor is a NaN
        raise UnreadableAudio(
            f"{source} has samples that are no numbers.", "Make the file again.", NO_NUMBERS
        )
    return samples.mean(axis=1), int(source_rate)


def _with_true_length(source: AudioSource) -> str | bytes | BinaryIO:
    """Return what soundfile opens, with its true length where a decoder would believe a wrong one."""
    info = _header(source)
    if info.format != "MP3" or _seconds(source, info) == info.frames / info.samplerate:
        return _readable(source)
    scan = _scan(scan_mp3, source)
    assert scan is not None  # or the length would be the header's
    with source.open() as file:
        return BytesIO(with_true_length(file.read(), scan))


def _unreadable(source: AudioSource, error: Exception) -> UnreadableAudio:
    path = source.path
    if path is not None and path.is_dir():
        return UnreadableAudio(f"{path} is a folder, and no audio file.", "Name a file in it.")
    if not source.file.is_file():
        return UnreadableAudio(f"There is no audio file {source}.", "Check its path.", MISSING)
    reason = str(getattr(error, "error_string", error)).rstrip(".")  # without the file's name
    what = f"{source} cannot be read as audio ({reason})."
    if path is None or path.suffix.lower() in READ:
        return UnreadableAudio(what, "It is damaged: make or fetch it again.")
    line = command("ffmpeg", "-i", path, path.with_suffix(".flac"))
    return UnreadableAudio(what, f"wav, flac, mp3 and ogg can be: `{line}` converts others.")
