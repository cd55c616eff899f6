"""Digests of what utterances hold: audio, sentence and speaker, to find them again in other data.

docs/delta-format.md says what is hashed, for whoever wants to look without this package.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from lorsmerge_cli.core.sketch import Hashes, Sketch
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import LorsmergeError
from lorsmerge_cli.inputs import open_regular

KINDS = ("audio", "sentences", "speakers")
READERS = 16  # threads that wait for files
WHOLE = 1 << 18  # bytes up to which all of a file is hashed
WINDOWS, WINDOW = 16, 1 << 14  # that many pieces of so many bytes of a larger one

SECONDS = 20  # bits of an audio hash that say which second of its file it is
PIECES = 1 << SECONDS
SHORT = PIECES >> 1  # from here on: pieces in which no second begins


@dataclass(frozen=True)
class Traces:
    """One kind of content of some utterances: ranges of hashes, one for each utterance.

    Attributes:
        known: whether the utterance has such content; its ranges mean nothing else.
        low, high: the range of its hashes.
        first, last: the range that its file may have; for what is no audio the same.
        kept: the hashes by which it is found again, those of all utterances.
    """

    known: NDArray[np.bool_]
    low: Hashes
    high: Hashes
    first: Hashes
    last: Hashes
    kept: Sketch

    def found_in(self, sketch: Sketch) -> NDArray[np.bool_]:
        """Return which utterances share this content with those that a sketch was made of."""
        # a file that was used whole has its first hash alone
        found = sketch.has_within(self.low, self.high) | sketch.has_within(self.first, self.first)
        return self.told_by(sketch) & found

    def told_by(self, sketch: Sketch) -> NDArray[np.bool_]:
        """Return of which utterances a sketch can tell whether they share it."""
        return self.known & sketch.tells_of(self.last)


@dataclass(frozen=True)
class DataDigests:
    """Digests of some utterances.

    Attributes:
        utterances: in their order.
        files: the hash of each one's audio file; None for a file that cannot be read.
        traces: by kind.
    """

    utterances: tuple[Utterance, ...]
    files: tuple[int | None, ...]
    traces: Mapping[str, Traces]

    @property
    def sketches(self) -> dict[str, Sketch]:
        """By kind, complete."""
        return {kind: traces.kept for kind, traces in self.traces.items()}


def digests_of(utterances: Sequence[Utterance]) -> DataDigests:
    """Read the audio files of utterances, each once, and hash what they hold."""
    paths = list({row.audio: None for row in utterances})
    with ThreadPoolExecutor(READERS) as pool:
        by_path = dict(zip(paths, pool.map(file_hash, paths), strict=True))
    files = tuple(by_path[row.audio] for row in utterances)
    traces = {
        "audio": _audio_traces(utterances, files),
        "sentences": _traces(sentence_hash(row) for row in utterances),
        "speakers": _traces(speaker_hash(row) for row in utterances),
    }
    return DataDigests(tuple(utterances), files, traces)


def file_hash(path: Path) -> int | None:
    """Hash a file's bytes, of a large one its size and pieces; None where it cannot be read."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= WHOLE:
                return xxhash.xxh3_64_intdigest(file.read(WHOLE))
            found = xxhash.xxh3_64(size.to_bytes(8, "little"))
            for number in range(WINDOWS):
                file.seek(number * (size - WINDOW) // (WINDOWS - 1))
                found.update(file.read(WINDOW))
            return found.intdigest()
    except (OSError, LorsmergeError):
        return None


def sentence_hash(row: Utterance) -> int | None:
    """Hash the letters, marks and digits of a text with its language and task; None if it has none.

    Example:
        >>> one, other = (Utterance("u", Path(), text, "ca", "asr") for text in ("L'avi!", "l avi"))
        >>> sentence_hash(one) == sentence_hash(other)
        True
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", row.text).casefold())
    text = folded.translate(_KEPT)
    if not text:
        return None
    return xxhash.xxh3_64_intdigest("\0".join((row.language, row.task, text)).encode())


def speaker_hash(row: Utterance) -> int | None:
    """Hash the name of a speaker with the language; None where it is not known."""
    if not row.speaker:
        return None
    return xxhash.xxh3_64_intdigest(f"{row.language}\0{row.speaker}".encode())


class _Kept(dict[int, str | None]):
    """For `str.translate`: letters, marks and digits as they are, everything else away."""

    def __missing__(self, code: int) -> str | None:
        kept = unicodedata.category(chr(code))[0] in "LMN"
        return self.setdefault(code, chr(code) if kept else None)


_KEPT = _Kept()


def _traces(found: Iterable[int | None]) -> Traces:
    hashes = list(found)
    known = np.array([value is not None for value in hashes], bool)
    values = np.array([value or 0 for value in hashes], np.uint64)
    return Traces(known, values, values, values, values, Sketch.of(values[known]))


def _audio_traces(rows: Sequence[Utterance], files: Sequence[int | None]) -> Traces:
    ranges: list[tuple[int, int, int, int]] = []
    kept: set[int] = set()
    for row, file in zip(rows, files, strict=True):
        first = 0 if file is None else file // PIECES * PIECES
        last = first + PIECES - 1
        whole = row.whole or row.duration is None
        begin, end = (0, PIECES - 1) if whole else _seconds(row.start, row.duration or 0.0)
        ranges.append((first + begin, first + end, first, last))
        if file is not None:
            kept.update([first] if whole else range(first + begin, first + end + 1))
    known = np.array([file is not None for file in files], bool)
    low, high, lowest, highest = np.array(ranges, np.uint64).reshape(-1, 4).T
    return Traces(known, low, high, lowest, highest, Sketch.of(kept))


def _seconds(start: float, duration: float) -> tuple[int, int]:
    """Number the first and the last second that begin in a piece of a file, from 1 on.

    A piece in which none begins has a number of its own, from SHORT on.
    """
    begin, end = round(100 * start), round(100 * (start + duration))
    first, last = -(-begin // 100) + 1, (end - 1) // 100 + 1
    if last < first:
        own = SHORT + xxhash.xxh3_64_intdigest(f"{begin}-{end}".encode()) % SHORT
        return own, own
    return min(first, SHORT - 1), min(last, SHORT - 1)
