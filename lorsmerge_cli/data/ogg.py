"""Check by its pages whether an Ogg file is whole (RFC 3533).

A decoder skips a page that is damaged or lost, and takes the last page it finds for the end: to it
neither is an error.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

MARK = b"OggS"
HEADER = 27  # bytes of a page's header before the lengths of its segments
BEGINS, ENDS = 2, 4  # flags of the first and last page of a stream
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class OggScan:
    """The state of a file's pages.

    Attributes:
        cut: whether the file ends within a page.
        damaged: whether a page is lost, or differs from its checksum.
        joined: whether another recording follows the first.
    """

    cut: bool
    damaged: bool
    joined: bool


def scan_ogg(data: bytes) -> OggScan:
    """Read the pages of a file, up to the first that is not whole."""
    position, ended, heard = max(0, data.find(MARK)), False, False  # behind a tag
    streams: dict[int, tuple[int, bool]] = {}  # serial -> number of its last page, whether of audio
    while position < len(data):
        if not data.startswith(MARK, position):
            follows = data.find(MARK, position) >= 0
            # what follows the last page is a tag
            return OggScan(not (ended or follows), follows, False)
        size = _page_size(data, position)
        if size is None:
            damaged = data.find(MARK, position + 4) >= 0
            return OggScan(not damaged, damaged, False)
        flags, granule, serial, number, checksum = struct.unpack_from("<xBqIII", data, position + 4)
        if _checksum(data[position : position + size]) != checksum:
            return OggScan(False, True, False)
        if flags & BEGINS and heard:
            return OggScan(False, False, True)
        before, audio = streams.get(serial, (number - 1, False))
        # only after audio: a stream recorded from its middle has headers first
        if audio and number != before + 1:
            return OggScan(False, True, False)
        streams[serial] = number, audio or granule > 0
        heard, ended = heard or granule > 0, bool(flags & ENDS)
        position += size
    return OggScan(False, False, False)


def _page_size(data: bytes, position: int) -> int | None:
    """Return the bytes of the page at a position; None if the data ends before it does."""
    if position + HEADER > len(data):
        return None
    segments = position + HEADER, position + HEADER + data[position + 26]
    size = segments[1] - position + sum(data[slice(*segments)])
    return size if position + size <= len(data) else None


def _checksum(page: bytes) -> int:
    """Return the CRC of a page, its own field taken as zero.

    It is zlib's with the bits of every byte, and of the result, in reverse order.
    """
    blank = page[:22] + bytes(4) + page[26:]
    mirrored = zlib.crc32(blank.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)
