"""Count the frames of MPEG audio: its true length, and a header by which all of it is decoded.

A decoder takes the length from the Xing frame at the start or, without one, guesses it from the first
frame's bit rate. The guess is wrong for a variable rate, and in concatenated files the Xing frame
describes only the first one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

ROOM = 0.25  # seconds of audio that zeros at the end may have been meant for
TAG_SIZE = 128  # bytes of an ID3v1 tag
SYNC = 0xFFE00000
TAGS = (b"Xing", b"Info", b"VBRI")
# kbit/s by the index in a frame's header, of MPEG 1 layers I, II, III and MPEG 2 layers I, II and III
_RATES = {
    (1, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_INFO_INDEX = 9  # of a bit rate whose frames have room for a Xing tag at every sample rate


@dataclass(frozen=True)
class Mp3Scan:
    """The frames of a file.

    Attributes:
        seconds: of all whole frames but the Xing frame.
        declared: number of frames by the Xing frame; None without one.
        frames: number of whole frames but the Xing frame.
        frame_seconds: of one frame.
        start: byte at which the first frame of audio begins.
        cut: whether the file ends within a frame that directly follows another, or in zeros.
    """

    seconds: float
    declared: int | None
    frames: int
    frame_seconds: float
    start: int
    cut: bool


def _frame(header: int) -> tuple[int, int, int] | None:
    """Return bytes, samples and sample rate of the frame with a four-byte header; None if it is none."""
    version, layer = (header >> 19) & 3, 4 - ((header >> 17) & 3)
    rate, sampling = (header >> 12) & 15, (header >> 10) & 3
    if header & SYNC != SYNC or version == 1 or layer == 4 or rate in (0, 15) or sampling == 3:
        return None
    mpeg = 1 if version == 3 else 2
    hertz = (44_100, 48_000, 32_000)[sampling] >> {3: 0, 2: 1, 0: 2}[version]
    samples = 384 if layer == 1 else 576 if (mpeg, layer) == (2, 3) else 1152
    unit = 4 if layer == 1 else 1
    size = samples // 8 * _RATES[mpeg, layer][rate] * 1000 // unit // hertz + ((header >> 9) & 1)
    return size * unit, samples, hertz


def scan_mp3(data: bytes) -> Mp3Scan | None:
    """Count the frames of a file; None if there are none, or if their bit rate is free."""
    position, seconds, count, declared, first = 0, 0.0, 0, None, -1
    length, end, cut = 0.0, -1, False
    while 0 <= position <= len(data) - 4:
        if data.startswith(b"ID3", position) and position + 10 <= len(data):
            a, b, c, d = data[position + 6 : position + 10]
            position += 10 + ((a & 127) << 21 | (b & 127) << 14 | (c & 127) << 7 | (d & 127))
            continue
        found = _frame(struct.unpack_from(">I", data, position)[0])
        following = position + found[0] if found else 0
        if not found or not _leads_on(data, following, first < 0):
            position = data.find(b"\xff", position + 1)
            continue
        size, samples, hertz = found
        if following > len(data):
            cut = position == end  # else it may be no frame
            break
        head = data[position : position + 48]
        if first < 0 and declared is None and any(tag in head for tag in TAGS):
            declared = _declared(head)
        else:
            first = position if first < 0 else first
            length = samples / hertz
            seconds, count = seconds + length, count + 1
        position = end = position + size
    if not count:
        return None
    cut = cut or _blank(data[end:]) > ROOM * (end - first) / seconds
    return Mp3Scan(seconds, declared, count, length, first, cut)


def _blank(rest: bytes) -> int:
    """Return how many bytes follow the last frame, if all are zero: room that was never filled.

    A downloader makes it before it has the audio. A tag may end it.
    """
    rest = rest[:-TAG_SIZE] if rest[-TAG_SIZE:].startswith(b"TAG") else rest
    return 0 if rest.strip(b"\0") else len(rest)


def _leads_on(data: bytes, following: int, searching: bool) -> bool:
    """Return whether another frame begins where one ends, which is checked until the first is found.

    The bytes before it may look like a header.
    """
    if not searching or following > len(data) - 4:
        return True
    return _frame(struct.unpack_from(">I", data, following)[0]) is not None


def _declared(head: bytes) -> int | None:
    """Read the number of frames from a Xing or Info tag."""
    at = max(head.find(b"Xing"), head.find(b"Info"))
    if at < 0 or len(head) < at + 12 or not head[at + 7] & 1:
        return None
    return int(struct.unpack_from(">I", head, at + 8)[0])


def with_true_length(data: bytes, scan: Mp3Scan) -> bytes:
    """Return a file's audio after a Xing frame with its true number of frames."""
    header = struct.unpack_from(">I", data, scan.start)[0]
    header = header & ~(0xF << 12 | 1 << 9) | _INFO_INDEX << 12 | 1 << 16  # no padding, no checksum
    found = _frame(header)
    assert found is not None  # the header of a frame with another bit rate
    mono, first_version = (header >> 6) & 3 == 3, (header >> 19) & 3 == 3
    side = (17 if mono else 32) if first_version else (9 if mono else 17)
    audio = data[scan.start :]
    tag = struct.pack(">4sIII", b"Xing", 3, scan.frames, found[0] + len(audio))
    frame = struct.pack(">I", header) + bytes(side) + tag
    return frame.ljust(found[0], b"\0") + audio
