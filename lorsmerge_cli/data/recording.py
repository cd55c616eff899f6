"""Whole recordings, decoded block by block: any length in constant memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from lorsmerge_cli.data.audio import (
    LOUDEST,
    RATE,
    UnreadableAudio,
    audio_channels,
    audio_seconds,
    ends_early,
    opened_sound,
)
from lorsmerge_cli.data.audio_source import AudioFile, AudioSource
from lorsmerge_cli.data.utterance import MISSING, NO_NUMBERS, UNREADABLE
from lorsmerge_cli.errors import UnreadableFile
from lorsmerge_cli.inputs import open_regular

BLOCK = 10 * RATE  # samples decoded at a time
PIECE = 256  # samples at a time where a block is damaged
AUDIO = (
    ".wav", ".flac", ".mp3", ".ogg", ".opus", ".oga", ".aif", ".aiff", ".au", ".caf", ".rf64", ".w64",
)  # fmt: skip
CONVERTED = (
    ".m4a", ".mp4", ".mkv", ".webm", ".mov", ".avi", ".aac", ".wma", ".amr", ".3gp", ".m4v", ".mpg",
    ".mpeg", ".ts", ".wv", ".ape",
)  # fmt: skip
FFMPEG = "ffmpeg"


@dataclass(frozen=True)
class Recording:
    """A file that is decoded from its start to its end, as often as it is iterated.

    Attributes:
        source: the audio; a file that soundfile does not read if `converted`.
        name: for messages.
        channel: the only one that is heard, from 0; None for the mean of all.
        converted: whether ffmpeg decodes it.
        start, duration: seconds of a piece that is all that is heard; to the end by default.

    Example:
        >>> recording = open_recording(Path("clip.wav"))
        >>> sum(len(block) for block in recording.blocks()) / 16_000
        1.5
    """

    source: AudioSource
    name: str
    channel: int | None = None
    converted: bool = False
    start: float = 0.0
    duration: float | None = None

    @property
    def file(self) -> Path:
        """The file on disk that has it."""
        return self.source.file

    @property
    def truncated(self) -> bool:
        """Whether the file's header promises more than the file has."""
        return not self.converted and ends_early(self.source)

    @property
    def seconds(self) -> float | None:
        """The length by the header; None for one that ffmpeg decodes."""
        return None if self.converted else audio_seconds(self.source)

    @property
    def channels(self) -> int:
        """How many channels the file has; 1 for one that ffmpeg decodes, which mixes them."""
        return 1 if self.converted else audio_channels(self.source)

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yield pieces of the recording: [samples] at 16 kHz in -1..1, the channels averaged.

        A damaged file ends where its decoder gives up.

        Raises:
            UnreadableAudio: it cannot be opened, ffmpeg fails before the first sample, or samples
                are no numbers.
        """
        for block in _converted(self) if self.converted else _decoded(self):
            if not np.abs(block).max(initial=0.0) <= LOUDEST:  # nor is a NaN
                raise UnreadableAudio(
                    f"{self.name} has samples that are no numbers.", "Make the file again.",
                    NO_NUMBERS,
                )  # fmt: skip
            yield block


def open_recording(path: Path, name: str = "") -> Recording:
    """Return the recording in a file, once its header was read.

    Args:
        path: wav, flac, mp3, ogg, or with ffmpeg on PATH whatever that decodes, video too.
        name: for messages; the path by default.

    Raises:
        UnreadableAudio: it is missing, empty or no audio, or needs ffmpeg, which is not on PATH.
    """
    name = name or str(path)
    try:
        empty = audio_seconds(AudioFile(path)) == 0
    except UnreadableAudio as error:
        if error.reason != UNREADABLE or not path.is_file() or path.suffix.lower() in AUDIO:
            raise
        if shutil.which(FFMPEG) is None:
            raise UnreadableAudio(
                f"{error.what} ffmpeg would be asked, and is not on PATH.",
                f"Install ffmpeg. {error.remedy}",
            ) from None
        recording = Recording(AudioFile(path), name, converted=True)
        empty = next(recording.blocks(), None) is None
    else:
        recording = Recording(AudioFile(path), name)
    if empty:
        raise UnreadableAudio(f"{name} holds no samples.", "Record it again.")
    return recording


def files_in(folder: Path) -> list[Path]:
    """List the audio and video files of a folder, by their suffixes and in order of their names."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in (*AUDIO, *CONVERTED)
        and path.is_file()
        and not path.name.startswith(".")
    )


@contextmanager
def kept_on_disk(stream: IO[bytes]) -> Iterator[Path]:
    """Copy a stream, which can be read once, to a temporary file for as long as the block runs.

    Raises:
        UnreadableFile: there is nothing in it.
    """
    with tempfile.NamedTemporaryFile(prefix="lorsmerge-") as file:
        shutil.copyfileobj(stream, file, 1 << 20)
        file.flush()
        if not os.path.getsize(file.name):
            raise UnreadableFile("Standard input is empty.", "Pipe an audio file into it.")
        yield Path(file.name)


def _decoded(recording: Recording) -> Iterator[NDArray[np.float32]]:
    """Yield what soundfile decodes and soxr resamples."""
    with opened_sound(recording.source) as sound:
        rate = int(sound.samplerate)
        if recording.start:
            sound.seek(min(round(recording.start * rate), sound.frames))
        left = -1 if recording.duration is None else round(recording.duration * rate)
        resampler = soxr.ResampleStream(rate, RATE, 1, "float32") if rate != RATE else None
        while True:
            count = max(1, BLOCK * rate // RATE)
            count = count if left < 0 else min(count, left)
            start, damaged = sound.tell(), False
            try:
                block = sound.read(count, dtype="float32", always_2d=True)
            except soundfile.SoundFileError:  # what it had decoded of the block is lost
                block, damaged = (
                    _before_damage(recording.source, start, count, sound.channels),
                    True,
                )
            left -= len(block) if left > 0 else 0
            last = damaged or not len(block)
            channel = recording.channel
            mono = (
                block.mean(axis=1) if channel is None else np.ascontiguousarray(block[:, channel])
            )
            if resampler is not None:
                mono = resampler.resample_chunk(mono, last=last)
            if len(mono):
                yield np.asarray(mono, np.float32)
            if last:
                return


def _before_damage(
    source: AudioSource, start: int, count: int, channels: int
) -> NDArray[np.float32]:
    """Return the samples [up to count, channels] from a start to where the decoder fails."""
    pieces = [np.empty((0, channels), np.float32)]
    try:
        with opened_sound(source) as sound:  # after a failure, one that is open moves no more
            sound.seek(start)
            while len(piece := sound.read(PIECE, dtype="float32", always_2d=True)):
                pieces.append(piece)
    except soundfile.SoundFileError:
        pass
    return np.concatenate(pieces)[:count]


def _converted(recording: Recording) -> Iterator[NDArray[np.float32]]:
    """Yield what ffmpeg decodes, from a pipe."""
    try:
        open_regular(recording.file).close()
    except OSError as error:
        raise UnreadableAudio(
            f"{recording.name} cannot be read ({error.strerror}).", "Check its path.", MISSING
        ) from None
    line = [
        FFMPEG, "-nostdin", "-v", "error",
        "-i", f"file:{recording.file}",  # else `-x.mp4` would be an option and `a:b` a protocol
        "-map", "0:a:0", "-f", "f32le", "-ac", "1", "-ar", str(RATE), "-",
    ]  # fmt: skip
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said
        ) as pipe,
    ):
        assert pipe.stdout is not None
        some = False
        try:
            while raw := _whole_samples(pipe.stdout):
                some = True
                yield np.frombuffer(raw, "<f4").astype(np.float32)
        finally:
            pipe.stdout.close()
            if not some:
                pipe.wait()
            pipe.kill()
        if not some and pipe.returncode:
            said.seek(0)
            reason = said.read(1 << 16).decode(errors="replace").strip().splitlines()[-1:]
            raise UnreadableAudio(
                f"ffmpeg finds no audio in {recording.name} ({''.join(reason) or 'no reason given'}).",
                "Give a file with a sound track.",
            )


def _whole_samples(pipe: IO[bytes] | BinaryIO) -> bytes:
    """Read a block of samples of four bytes; at the end of the stream what is left."""
    raw = pipe.read(4 * BLOCK)
    return raw[: len(raw) // 4 * 4]
