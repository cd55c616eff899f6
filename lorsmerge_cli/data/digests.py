"""Hash the audio, sentence and speaker of utterances, to find them again in other data.

docs/delta-format.md describes the hashes for programs without this package.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from lorsmerge_cli.core.sketch import Hashes, Sketch
from lorsmerge_cli.data.utterance import Utterance

KINDS = ("audio", "sentences", "speakers")
THREADS = 16  # that wait for files
SECONDS = 20  # low bits of an audio hash: the second of its file
PIECES = 1 << SECONDS
SHORT = PIECES >> 1  # smallest number of a piece in which no second begins


@dataclass(frozen=True)
class Traces:
    """One kind of content of some utterances: ranges of hashes, one for each utterance.

    Attributes:
        known: whether the utterance has such content; its ranges have no meaning otherwise.
        low: first hash of the range.
        high: last hash of the range.
        first: first hash that its file may have; `low` unless the content is audio.
        last: last hash that its file may have; `high` unless the content is audio.
        kept: the hashes of all utterances, by which they are found again.
    """

    known: NDArray[np.bool_]
    low: Hashes
    high: Hashes
    first: Hashes
    last: Hashes
    kept: Sketch

    def found_in(self, sketch: Sketch) -> NDArray[np.bool_]:
        """Return which utterances share this content with those of a sketch."""
        # a file that was used whole is in a sketch by its first hash alone
        found = sketch.has_within(self.low, self.high) | sketch.has_within(self.first, self.first)
        return self.told_by(sketch) & found

    def told_by(self, sketch: Sketch) -> NDArray[np.bool_]:
        """Return for which utterances a sketch is complete enough to decide that."""
        return self.known & sketch.tells_of(self.last)


@dataclass(frozen=True)
class DataDigests:
    """Digests of some utterances.

    Attributes:
        utterances: in their order.
        files: hash of each one's recording; None if that cannot be read.
        traces: by kind.
    """

    utterances: tuple[Utterance, ...]
    files: tuple[int | None, ...]
    traces: Mapping[str, Traces]

    @property
    def sketches(self) -> dict[str, Sketch]:
        """Complete sketches by kind."""
        return {kind: traces.kept for kind, traces in self.traces.items()}


def digests_of(utterances: Sequence[Utterance]) -> DataDigests:
    """Read the recordings of utterances, each once, and hash their content."""
    sources = list({row.audio: None for row in utterances})
    with ThreadPoolExecutor(THREADS) as pool:
        hashes = dict(zip(sources, pool.map(lambda source: source.digest(), sources), strict=True))
    files = tuple(hashes[row.audio] for row in utterances)
    traces = {
        "audio": _audio_traces(utterances, files),
        "sentences": _traces(sentence_hash(row) for row in utterances),
        "speakers": _traces(speaker_hash(row) for row in utterances),
    }
    return DataDigests(tuple(utterances), files, traces)


def sentence_hash(row: Utterance) -> int | None:
    """Hash the letters, marks and digits of a text with its language and task; None without any.

    Example:
        >>> from pathlib import Path
        >>> from lorsmerge_cli.data.audio_source import AudioFile
        >>> clip = AudioFile(Path("clip.wav"))
        >>> one, other = (Utterance("u", clip, text, "ca", "asr") for text in ("L'avi!", "l avi"))
        >>> sentence_hash(one) == sentence_hash(other)
        True
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", row.text).casefold())
    text = folded.translate(_KEPT)
    if not text:
        return None
    return xxhash.xxh3_64_intdigest("\0".join((row.language, row.task, text)).encode())


def speaker_hash(row: Utterance) -> int | None:
    """Hash the name of a speaker with the language; None if it is not known."""
    if not row.speaker:
        return None
    return xxhash.xxh3_64_intdigest(f"{row.language}\0{row.speaker}".encode())


class _Kept(dict[int, str | None]):
    """A table for `str.translate` that keeps letters, marks and digits and removes the rest."""

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
    """Return the numbers, from 1 on, of the first and last second that begin in a piece of a file.

    A piece in which no second begins has one number of its own, from SHORT on.
    """
    begin, end = round(100 * start), round(100 * (start + duration))
    first, last = -(-begin // 100) + 1, (end - 1) // 100 + 1
    if last < first:
        own = SHORT + xxhash.xxh3_64_intdigest(f"{begin}-{end}".encode()) % SHORT
        return own, own
    return min(first, SHORT - 1), min(last, SHORT - 1)
