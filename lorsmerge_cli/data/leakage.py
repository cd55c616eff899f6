"""Find utterances, sentences and speakers that data sets share and should not, and report them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

import numpy as np
from numpy.typing import NDArray

from lorsmerge_cli.core.sketch import Sketch, Trained
from lorsmerge_cli.data.digests import KINDS, DataDigests

NOUNS = {"audio": "utterances", "sentences": "sentences", "speakers": "speakers"}
SHOWN = 3  # names of deltas in a warning


@dataclass(frozen=True)
class Shared:
    """How much of one kind a data set shares with other data.

    Attributes:
        kind: of KINDS.
        count: utterances, or speakers, that are in the other data too.
        of: utterances, or speakers, that were compared.
        complete: whether all were compared, or else a random sample.
        sources: deltas or models that were trained on the other data.
    """

    kind: str
    count: int
    of: int
    complete: bool
    sources: tuple[str, ...] = ()

    def in_words(self, where: str = "", *, role: str = "", name: str = "") -> str:
        """Return the finding as a sentence.

        Args:
            where: the other data; the training data of `sources` by default.
            role: what the data set is used as: `test`, `dev`.
            name: of the data set.
        """
        noun = f"{role} {NOUNS[self.kind]}".strip() + (f" of {name}" if name else "")
        where = where or f"the training data of {_listed(self.sources)}"
        share = self.count / self.of
        percent = f"{share:.0%}" if 0.01 <= share < 0.995 else f"{100 * share:.3g}%"
        if not self.complete:
            return (
                f"About {percent} of the {noun} are in {where} ({self.count} of the {self.of} that "
                "its digests tell of)"
            )
        shown = "" if self.count == self.of else f" ({percent})"
        verb = "is" if self.count == 1 else "are"
        return f"{self.count} of the {self.of} {noun}{shown} {verb} in {where}"

    def warning(self, where: str = "", *, role: str = "", name: str = "") -> str:
        """Return the finding with its consequence for scores."""
        told = self.in_words(where, role=role, name=name)
        if self.kind == "audio":
            return f"{told}: a score on them says nothing about new data."
        return f"{told}: scores may be too good."


def shared_with(
    digests: DataDigests,
    others: Mapping[str, Sketch],
    chosen: NDArray[np.bool_] | None = None,
) -> list[Shared]:
    """Return what utterances share with the data of some sketches.

    Args:
        digests: of the utterances.
        others: sketches by kind; only these kinds are compared.
        chosen: mask of the utterances to compare; all by default.
    """
    found = []
    for kind in KINDS:
        if kind not in others:
            continue
        traces, sketch = digests.traces[kind], others[kind]
        told, same = traces.told_by(sketch), traces.found_in(sketch)
        if chosen is not None:
            told, same = told & chosen, same & chosen
        of, count = int(told.sum()), int(same.sum())
        if kind == "speakers":
            of, count = (len(np.unique(traces.low[mask])) for mask in (told, same))
        if count:
            found.append(Shared(kind, count, of, sketch.complete))
    return found


def shared_with_training(
    digests: DataDigests, trained: Trained, chosen: NDArray[np.bool_] | None = None
) -> list[Shared]:
    """Return what utterances share with all training data together, and with whose."""
    found = []
    for kind in KINDS:
        own = [
            (name, sketches[kind])
            for name, sketches in trained
            if kind in sketches and shared_with(digests, {kind: sketches[kind]}, chosen)
        ]
        if own:
            union = reduce(or_, (sketch for _, sketch in own))
            names = tuple(dict.fromkeys(name for name, _ in own))
            for shared in shared_with(digests, {kind: union}, chosen):
                found.append(Shared(kind, shared.count, shared.of, shared.complete, names))
    return found


def parse_shared(value: object) -> tuple[Shared, ...]:
    """Read what `eval` recorded for a test set, in a file of any origin.

    Raises:
        ValueError: it is no such record.
    """
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ValueError("`leakage` is no list of tables")
    found = []
    for entry in value:
        kind, count, of = (entry.get(key) for key in ("kind", "count", "of"))
        complete, sources = entry.get("complete"), entry.get("sources")
        if kind not in KINDS or type(count) is not int or type(of) is not int:
            raise ValueError("`leakage` has a kind or a count that is none")
        if not 0 < count <= of or not isinstance(complete, bool) or not isinstance(sources, list):
            raise ValueError("`leakage` has counts that do not fit together")
        found.append(Shared(kind, count, of, complete, tuple(map(str, sources))))
    return tuple(found)


def repeated(digests: DataDigests, *, role: str = "", name: str = "") -> list[str]:
    """Return a warning if utterances of one language and task have the same audio.

    Args:
        digests: of the utterances.
        role: what they are used as: `test`, `dev`, `training`.
        name: of the data set.
    """
    texts: dict[tuple[object, ...], set[str]] = {}
    count = others = 0
    for row, file in zip(digests.utterances, digests.files, strict=True):
        if file is None:
            continue
        piece = None if row.whole or row.duration is None else (row.start, row.duration)
        times = piece and tuple(round(seconds, 2) for seconds in piece)
        text = " ".join(row.text.split())
        seen = texts.setdefault((file, times, row.language, row.task), set())
        count += bool(seen)
        others += bool(seen) and text not in seen
        seen.add(text)
    if not count:
        return []
    noun = f"{role} utterances".strip() + (f" of {name}" if name else "")
    other = f", {others} of them with another text" if others else ""
    verb = "repeats" if count == 1 else "repeat"
    return [
        f"{count} of the {len(digests.utterances)} {noun} {verb} the audio of another one{other}: "
        "it counts more than once."
    ]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
