"""Keep the features of a training's rows, for all of its epochs and the processes that read ahead."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import weakref
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from lorsmerge_cli.speech.features import trimmed, untrimmed

# columns of features beyond a clip's own length that still hear it, and one of what lies behind them
BEYOND = 4
COLUMNS, FRAMES, CHECK = range(3)  # of the table: 0 columns is a row that is not kept


class KeptFeatures:
    """Features by row, made once: in memory as far as it goes, the rest in a file without a name.

    Processes that are forked later share all of it. The file has no name: nobody else writes to it,
    and it goes with the last of them, however they end. A row that cannot be kept, or whose bytes
    are not those that were kept, has to be made again.

    Args:
        sizes: columns of each row's own audio.
        shape: [mel bins, frames] of all features.
        memory: bytes of memory.
        disk: bytes of the file.
        folder: of the file.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        shape: tuple[int, int],
        *,
        memory: int,
        disk: int = 0,
        folder: Path | None = None,
    ) -> None:
        self.bins, self.frames = shape
        columns = np.minimum(np.asarray(sizes, np.int64) + BEYOND, self.frames)
        self._room = columns * self.bins * np.dtype(np.float32).itemsize
        ends = np.cumsum(self._room)
        self._inside = int(np.searchsorted(ends, memory, side="right"))  # rows in memory
        held = int(ends[self._inside - 1]) if self._inside else 0
        try:
            self._memory = mmap.mmap(-1, max(held, 1))
        except OSError:  # a system that promises no more than it has
            self._inside = held = 0
            self._memory = mmap.mmap(-1, 1)
        self._starts = ends - self._room
        self._starts[self._inside :] -= held
        cells = 3 * (len(columns) + 1)  # the last row: whether the disk was full
        self._table = np.frombuffer(mmap.mmap(-1, 4 * cells), np.uint32).reshape(-1, 3)
        self._disk = disk
        self._file: IO[bytes] | None = None
        if self._inside < len(columns) and disk and folder is not None and hasattr(os, "pread"):
            with suppress(OSError):
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - as long as this
                weakref.finalize(self, self._file.close)

    def get(self, row: int) -> tuple[Tensor, int] | None:
        """Return a row's features [mel bins, frames] and its audio's frames; None if they are not kept."""
        columns, frames, check = (int(value) for value in self._table[row])
        data = self._read(row, columns * self.bins * 4) if columns else b""
        if not data or zlib.crc32(data) != check:
            return None
        found = torch.frombuffer(bytearray(data), dtype=torch.float32).view(self.bins, columns)
        return untrimmed(found, self.frames), frames

    def put(self, row: int, features: Tensor, frames: int) -> None:
        """Keep a row's features, if there is room for them."""
        found = trimmed(features)
        data = found.contiguous().numpy().tobytes()
        if len(data) > self._room[row] or found.dtype != torch.float32:
            return
        if self._write(row, data):
            self._table[row, FRAMES], self._table[row, CHECK] = frames, zlib.crc32(data)
            self._table[row, COLUMNS] = found.shape[1]  # last: the row can be read from here on

    def _read(self, row: int, size: int) -> bytes:
        start = int(self._starts[row])
        if row < self._inside:
            return self._memory[start : start + size]
        if self._file is not None:
            with suppress(OSError):
                return os.pread(self._file.fileno(), size, start)
        return b""

    def _write(self, row: int, data: bytes) -> bool:
        start = int(self._starts[row])
        if row < self._inside:
            self._memory[start : start + len(data)] = data
            return True
        if self._file is None or self._table[-1].any() or start + len(data) > self._disk:
            return False
        try:
            return os.pwrite(self._file.fileno(), data, start) == len(data)
        except OSError:  # a full disk: what it took is given back, for checkpoints
            self._table[-1] = 1
            with suppress(OSError):
                os.ftruncate(self._file.fileno(), 0)
            return False


def frames_of(seconds: float | None, window: float, hop: float) -> int:
    """Return the columns of audio of some seconds, of a whole window if that is not known.

    Args:
        seconds: of the audio.
        window: seconds that the encoder takes.
        hop: seconds of a column.
    """
    return math.ceil((window if seconds is None else seconds) / hop)
