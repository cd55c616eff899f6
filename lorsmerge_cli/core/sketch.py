"""Sketches of sets of 64-bit hashes: all hashes of a small set, the smallest ones of a large set.

The smallest hashes of a set are a random sample of it, and the same sample wherever they are taken
(Cohen and Kaplan 2007, bottom-k sketches). So the share of members that two large sets have in
common is about the share of common hashes below a bound to which both are known.
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
    """A set of hashes, or the smallest ones of a set.

    Attributes:
        hashes: ascending, without duplicates.
        complete: whether they are all of the set; if not, nothing is known above the last.
    """

    hashes: Hashes
    complete: bool = True

    @staticmethod
    def of(hashes: Iterable[int] | Hashes) -> Sketch:
        """Return the complete set of some hashes.

        Example:
            >>> Sketch.of([7, 3, 7]).hashes.tolist()
            [3, 7]
        """
        values = hashes if isinstance(hashes, np.ndarray) else np.fromiter(hashes, np.uint64)
        return Sketch(np.unique(values))

    def bounded(self, limit: int = LIMIT) -> Sketch:
        """Return the `limit` smallest hashes, or all if there are no more.

        Example:
            >>> Sketch.of([7, 3, 5]).bounded(2)
            Sketch(hashes=array([3, 5], dtype=uint64), complete=False)
        """
        if len(self.hashes) <= limit:
            return self
        return Sketch(self.hashes[:limit], complete=False)

    def __or__(self, other: Sketch) -> Sketch:
        """Return the union up to the bound to which both are known."""
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
        """Tell for each range whether it holds a hash.

        Args:
            low: first value of each range.
            high: last value of each range.
        """
        left = np.searchsorted(self.hashes, low, "left")
        return np.asarray(np.searchsorted(self.hashes, high, "right") > left)

    def tells_of(self, high: Hashes) -> NDArray[np.bool_]:
        """Tell for each range that ends at `high` whether all hashes of the set in it are known."""
        return np.full(len(high), True) if self.complete else np.asarray(high <= self.last)


Trained = Sequence[tuple[str, Mapping[str, Sketch]]]  # name -> sketches of training data, by kind


def union(trained: Trained) -> dict[str, Sketch]:
    """Merge the sketches of each kind.

    Example:
        >>> union([("ca", {"audio": Sketch.of([1])}), ("de", {"audio": Sketch.of([2])})])
        {'audio': Sketch(hashes=array([1, 2], dtype=uint64), complete=True)}
    """
    merged: dict[str, Sketch] = {}
    for _, sketches in trained:
        for kind, sketch in sketches.items():
            merged[kind] = merged[kind] | sketch if kind in merged else sketch
    return merged


def sketches_document(sketches: Mapping[str, Sketch]) -> dict[str, Any]:
    """Return bounded sketches by kind as plain values for JSON.

    Example:
        >>> sketches_document({"audio": Sketch.of([1])})
        {'version': 1, 'audio': {'complete': True, 'hashes': 'AQAAAAAAAAA='}}
    """
    document: dict[str, Any] = {"version": VERSION}
    for kind, whole in sketches.items():
        sketch = whole.bounded()
        # the alphabet without slashes: a search for paths in a document must not find one here
        text = base64.urlsafe_b64encode(sketch.hashes.astype(BYTES).tobytes()).decode()
        document[kind] = {"complete": sketch.complete, "hashes": text}
    return document


def digests_entry(sketches: Mapping[str, Sketch]) -> dict[str, Any]:
    """Return the entry of a record that sketches are kept in; nothing for no sketches.

    Example:
        >>> list(digests_entry({"audio": Sketch.of([1])})), digests_entry({})
        (['digests'], {})
    """
    return {"digests": sketches_document(sketches)} if sketches else {}


def recorded_digests(record: Mapping[str, Any]) -> dict[str, Sketch]:
    """Return the sketches in a record of any origin, as `parse_sketches`; none where it has no entry.

    Raises:
        ValueError: the entry is not one of sketches.

    Example:
        >>> recorded_digests({"task": "asr"})
        {}
    """
    return parse_sketches(record["digests"]) if "digests" in record else {}


def parse_sketches(document: object) -> dict[str, Sketch]:
    """Read sketches by kind from a file of any origin; return none if they have another version.

    Raises:
        ValueError: the document is not one of sketches.

    Example:
        >>> parse_sketches(sketches_document({"audio": Sketch.of([1])}))
        {'audio': Sketch(hashes=array([1], dtype=uint64), complete=True)}
    """
    if not isinstance(document, dict):
        raise ValueError("`digests` is not a table")
    if document.get("version") != VERSION:
        return {}
    return {kind: _parse(kind, value) for kind, value in document.items() if kind != "version"}


def _parse(kind: str, value: object) -> Sketch:
    if not isinstance(value, dict):
        raise ValueError(f"`digests.{kind}` is not a table")
    complete, text = value.get("complete"), value.get("hashes")
    if not isinstance(complete, bool) or not isinstance(text, str):
        raise ValueError(f"`digests.{kind}` lacks `complete` or `hashes`")
    try:
        if "+" in text or "/" in text:  # the other alphabet, which b64decode takes as well
            raise ValueError
        raw = base64.b64decode(text, altchars=b"-_", validate=True)
        hashes = np.frombuffer(raw, BYTES).astype(np.uint64)
    except (ValueError, binascii.Error):
        raise ValueError(f"`digests.{kind}` has invalid hashes") from None
    if not (hashes[1:] > hashes[:-1]).all():
        raise ValueError(f"`digests.{kind}` has hashes out of order")
    return Sketch(hashes, complete)
