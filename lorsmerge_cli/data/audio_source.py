"""Where a recording is: in a file of its own, or within a file that holds more than it."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import xxhash

from lorsmerge_cli.errors import LorsmergeError
from lorsmerge_cli.inputs import open_regular

WHOLE = 1 << 18  # bytes up to which all of a recording is hashed
WINDOWS, WINDOW = 16, 1 << 14  # that many pieces of so many bytes of a larger one


@dataclass(frozen=True)
class AudioSource(ABC):
    """A recording as it was encoded (wav, flac, mp3 or ogg), wherever its bytes are.

    Sources are equal where they name the same place; they hold no open file and can be pickled.
    `str()` names the place in a message.

    Attributes:
        file: the file on disk that has the bytes.
    """

    file: Path

    @property
    def path(self) -> Path | None:
        """The file that is this recording and nothing else; None where there is none."""
        return None

    @property
    def name(self) -> str:
        """The place without its folder: the same for a copy of the data set."""
        return Path(str(self)).name

    def exists(self) -> bool:
        """Whether there is something to open."""
        return True

    @abstractmethod
    def open(self) -> BinaryIO:
        """Open the encoded recording for reading and seeking.

        Raises:
            OSError: it cannot be read.
            UnreadableFile: its file is no regular one, or damaged.
        """

    def digest(self) -> int | None:
        """Hash the recording's bytes, of a large one its size and pieces; None if it cannot be read.

        The hash is that of docs/delta-format.md and does not depend on where the bytes are.
        """
        try:
            with self.open() as file:
                size = file.seek(0, io.SEEK_END)
                file.seek(0)
                if size <= WHOLE:
                    return xxhash.xxh3_64_intdigest(file.read(WHOLE))
                digest = xxhash.xxh3_64(size.to_bytes(8, "little"))
                for number in range(WINDOWS):
                    file.seek(number * (size - WINDOW) // (WINDOWS - 1))
                    digest.update(file.read(WINDOW))
                return digest.intdigest()
        except (OSError, LorsmergeError):
            return None


@dataclass(frozen=True)
class AudioFile(AudioSource):
    """A recording in a file of its own.

    Example:
        >>> source = AudioFile(Path("clip.wav"))
        >>> source.name, source.exists()
        ('clip.wav', True)
    """

    def __str__(self) -> str:
        return str(self.file)

    @property
    def path(self) -> Path:
        """The file."""
        return self.file

    def exists(self) -> bool:
        """Whether there is such a file."""
        try:
            return self.file.is_file()
        except OSError:  # a name too long for the file system
            return False

    def open(self) -> BinaryIO:
        """Open the file.

        Raises:
            OSError: it cannot be read.
            UnreadableFile: it is no regular file.
        """
        return open_regular(self.file)
