"""Sets of 64-bit hashes that stay small: all of them, or of many the smallest.

The smallest hashes of a set are a random sample of it, and the same sample wherever they are taken
(Cohen and Kaplan 2007, bottom-k sketches). Two large sets that share a share of their members share
about that share of the hashes below a bound that both were taken to.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LIMIT = 8192  # hashes: 64 KiB, and 87 kB as text
VERSION = 1  # of what is hashed
BYTES = np.dtype("<u8")

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Sketch:
    """A set of hashes, or the smallest of it.

    Attributes:
        hashes: ascending, each once.
        complete: whether they are all; else nothing is known of what is above the last.
    """

    hashes: Hashes
    complete: bool = True

    @staticmethod
    def of(hashes: Iterable[int] | Hashes) -> Sketch:
        """Return the set of some hashes, all of them.

        Example:
            >>> Sketch.of([7, 3, 7]).hashes.tolist()
            [3, 7]
        """
        values = hashes if isinstance(hashes, np.ndarray) else np.fromiter(hashes, np.uint64)
        return Sketch(np.unique(values))

    def bounded(self, limit: int = LIMIT) -> Sketch:
        """Return no more than the `limit` smallest."""
        if len(self.hashes) <= limit:
            return self
        return Sketch(self.hashes[:limit], complete=False)

    def __or__(self, other: Sketch) -> Sketch:
        """Return the union, as far as both are known."""
        both = np.union1d(self.hashes, other.hashes)
        parts = [part for part in (self, other) if not part.complete]
        for part in parts:
            both = both[both <= part.last]
        return Sketch(both, complete=not parts)

    @property
    def last(self) -> np.uint64:
        """The largest hash; 0 for an empty set."""
        return self.hashes[-1] if len(self.hashes) else np.uint64(0)

    def has_within(self, low: Hashes, high: Hashes) -> NDArray[np.bool_]:
        """Return whether a hash lies in each of some ranges, both ends included."""
        left = np.searchsorted(self.hashes, low, "left")
        return np.asarray(np.searchsorted(self.hashes, high, "right") > left)

    def tells_of(self, high: Hashes) -> NDArray[np.bool_]:
        """Return whether ranges that end at `high` lie where all hashes of the set are known."""
        return np.full(len(high), True) if self.complete else np.asarray(high <= self.last)


Trained = Sequence[tuple[str, Mapping[str, Sketch]]]  # name -> sketches of training data, by kind


def union(trained: Trained) -> dict[str, Sketch]:
    """Put sketches together, by kind."""
    found: dict[str, Sketch] = {}
    for _, sketches in trained:
        for kind, sketch in sketches.items():
            found[kind] = found[kind] | sketch if kind in found else sketch
    return found


def sketches_document(sketches: Mapping[str, Sketch]) -> dict[str, Any]:
    """Return sketches by kind, bounded, as plain values for JSON."""
    document: dict[str, Any] = {"version": VERSION}
    for kind, whole in sketches.items():
        sketch = whole.bounded()
        # without slashes, which would make a path of it for whoever looks for paths
        text = base64.urlsafe_b64encode(sketch.hashes.astype(BYTES).tobytes()).decode()
        document[kind] = {"complete": sketch.complete, "hashes": text}
    return document


def parse_sketches(document: object) -> dict[str, Sketch]:
    """Read sketches by kind, which anyone may have written; none where they are of another version.

    Raises:
        ValueError: they are no sketches.
    """
    if not isinstance(document, dict):
        raise ValueError("`digests` is no table")
    if document.get("version") != VERSION:
        return {}
    return {kind: _parse(kind, value) for kind, value in document.items() if kind != "version"}


def _parse(kind: str, value: object) -> Sketch:
    if not isinstance(value, dict):
        raise ValueError(f"`digests.{kind}` is no table")
    complete, text = value.get("complete"), value.get("hashes")
    if not isinstance(complete, bool) or not isinstance(text, str):
        raise ValueError(f"`digests.{kind}` lacks `complete` or `hashes`")
    try:
        if "+" in text or "/" in text:  # the other alphabet, which b64decode takes as well
            raise ValueError
        raw = base64.b64decode(text, altchars=b"-_", validate=True)
        hashes = np.frombuffer(raw, BYTES).astype(np.uint64)
    except (ValueError, binascii.Error):
        raise ValueError(f"`digests.{kind}` has hashes that are none") from None
    if not (hashes[1:] > hashes[:-1]).all():
        raise ValueError(f"`digests.{kind}` has hashes out of order")
    return Sketch(hashes, complete)
