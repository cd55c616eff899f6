"""Whether an Ogg file is whole, by its pages (RFC 3533).

A decoder passes over a page that is damaged or lost and goes on with the next, and takes the last page
that there is for the end: neither is an error to it.
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
    """What the pages of a file come to.

    Attributes:
        cut: it ends within a page.
        damaged: a page is lost, or not as it was written.
        joined: another recording comes behind the first one.
    """

    cut: bool
    damaged: bool
    joined: bool


def scan_ogg(data: bytes) -> OggScan:
    """Follow the pages of a file as far as they are whole."""
    position, ended, heard = max(0, data.find(MARK)), False, False  # behind a tag
    streams: dict[int, tuple[int, bool]] = {}  # serial -> number of its last page, whether of audio
    while position < len(data):
        if not data.startswith(MARK, position):
            follows = data.find(MARK, position) >= 0
            return OggScan(
                not (ended or follows), follows, False
            )  # what comes after the end is a tag
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
        if (
            audio and number != before + 1
        ):  # a stream that was recorded from its middle has headers first
            return OggScan(False, True, False)
        streams[serial] = number, audio or granule > 0
        heard, ended = heard or granule > 0, bool(flags & ENDS)
        position += size
    return OggScan(False, False, False)


def _page_size(data: bytes, position: int) -> int | None:
    """Bytes of the page at a position; None where the data ends before it does."""
    if position + HEADER > len(data):
        return None
    segments = position + HEADER, position + HEADER + data[position + 26]
    size = segments[1] - position + sum(data[slice(*segments)])
    return size if position + size <= len(data) else None


def _checksum(page: bytes) -> int:
    """Return the CRC of a page, whose own field counts as zero.

    It is that of zlib with the bits of every byte, and of the sum, the other way round.
    """
    blank = page[:22] + bytes(4) + page[26:]
    mirrored = zlib.crc32(blank.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)
