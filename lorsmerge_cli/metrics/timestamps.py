"""When a recording's segments are heard, beside when they are said.

Segments are matched one to one and in order, so that the sum of their intersections over unions in time
is largest: texts are not compared. A boundary is right within 0.2 s, the collar of event-based scores
in sound event detection (Mesaros et al. 2016, doi:10.3390/app6060162), which match one to one as well.
A reference segment without a partner, as where a model falls silent or hears two as one, has no
boundary error, and is none of those within the collar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from lorsmerge_cli.metrics.metric import CorpusScore, ratio

if TYPE_CHECKING:
    from lorsmerge_cli.metrics.significance import Interval

COLLAR = 0.2  # seconds
SLACK = 1e-6  # seconds, of rounding: 0.2 apart in decimals is within


class Timed(Protocol):
    """A segment."""

    @property
    def start(self) -> float:
        """Seconds from the beginning of the recording."""

    @property
    def end(self) -> float:
        """Seconds from the beginning of the recording."""


class Recorded(Protocol):
    """A hypothesis with segments beside its reference's."""

    @property
    def dataset(self) -> str:
        """Name of the test set."""

    @property
    def id(self) -> str:
        """Of the utterance in it."""

    @property
    def language(self) -> str:
        """Whisper's code of the spoken language."""

    @property
    def task(self) -> str:
        """The task."""

    @property
    def speaker(self) -> str | None:
        """Who speaks; None if that is not known."""

    @property
    def segments(self) -> Sequence[Timed] | None:
        """Those of the reference; None if they are not known."""

    @property
    def heard_segments(self) -> Sequence[Timed] | None:
        """Those of the hypothesis; None if the model has no times."""


@dataclass(frozen=True)
class Boundaries:
    """Counts of the segments of recordings, which add up.

    Attributes:
        recordings: whose reference and model have times.
        segments: of the references.
        heard: segments of the hypotheses.
        matched: pairs of the two.
        within: pairs whose two boundaries are no more than 0.2 s apart each.
        seconds: sum of the distances of the pairs' boundaries.
    """

    recordings: int = 0
    segments: int = 0
    heard: int = 0
    matched: int = 0
    within: int = 0
    seconds: float = 0.0

    def __add__(self, other: Boundaries) -> Boundaries:
        """Return the counts of both."""
        return Boundaries(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def error(self) -> float | None:
        """Mean absolute boundary error in seconds, two boundaries a pair; None without a pair."""
        return self.seconds / (2 * self.matched) if self.matched else None

    @property
    def share(self) -> float | None:
        """Reference segments with both boundaries within 0.2 s, in percent; None without segments."""
        return 100 * self.within / self.segments if self.segments else None


def boundaries(rows: Sequence[Recorded]) -> Boundaries:
    """Compare the segments of hypotheses with those of their references, where both are known.

    Args:
        rows: hypotheses.

    Example:
        >>> from collections import namedtuple
        >>> part, row = namedtuple("part", "start end"), namedtuple("row", "segments heard_segments")
        >>> found = boundaries([row([part(0, 2), part(2, 4)], [part(0.1, 2.1), part(3, 4)])])
        >>> found.matched, found.within, round(found.error, 3), found.share
        (2, 1, 0.3, 50.0)
    """
    return sum(map(_of, rows), Boundaries())


def _of(row: Recorded) -> Boundaries:
    if not row.segments or row.heard_segments is None:
        return Boundaries()
    pairs = matched(row.segments, row.heard_segments)
    apart = [
        (abs(said.start - heard.start), abs(said.end - heard.end))
        for said, heard in ((row.segments[i], row.heard_segments[j]) for i, j in pairs)
    ]
    return Boundaries(
        1, len(row.segments), len(row.heard_segments), len(pairs),
        sum(max(pair) <= COLLAR + SLACK for pair in apart), sum(map(sum, apart)),
    )  # fmt: skip


# of sums of seconds and boundaries
ERROR = CorpusScore(name="boundary error", unit="s", higher_is_better=False, score=ratio)
# of sums of segments within the collar and segments
SHARE = CorpusScore(
    name="within the collar", unit="%", higher_is_better=True,
    score=lambda sums: 100 * ratio(sums), highest=100.0,
)  # fmt: skip


def _block(row: Recorded) -> str:
    """Return the name of the speaker, or else the recording, in its test set, language and task."""
    who = f"speaker {row.speaker}" if row.speaker else f"recording {row.id}"
    return "\t".join((row.dataset, row.language, row.task, who))


def intervals(rows: Sequence[Recorded]) -> tuple[Interval, Interval]:
    """Return the intervals of the boundary error and of the share of segments within the collar.

    They are over the speakers of each test set, language and task, or the recordings where no
    speaker is known; all runs of a system on one speaker are one block.

    Args:
        rows: hypotheses, at least one.
    """
    import numpy as np

    from lorsmerge_cli.metrics.significance import block_sums, interval

    counts = [_of(row) for row in rows]
    blocks = [_block(row) for row in rows]
    error = np.array([(each.seconds, 2 * each.matched) for each in counts], dtype=np.float64)
    share = np.array([(each.within, each.segments) for each in counts], dtype=np.float64)
    return interval(block_sums(error, blocks), ERROR), interval(block_sums(share, blocks), SHARE)


def matched(said: Sequence[Timed], heard: Sequence[Timed]) -> list[tuple[int, int]]:
    """Return the pairs of segments, by index, whose overlaps have the largest sum.

    Each overlap is the intersection over the union in time; pairs are one to one, in order, and
    overlap. O(n m) in time and memory.

    Args:
        said: in order.
        heard: in order.
    """
    import numpy as np

    start, end = (np.array([getattr(each, key) for each in heard]) for key in ("start", "end"))
    above = np.zeros(len(heard) + 1)
    moves = []  # of each segment said: where the sum is that without it, or without the one heard
    for ours in said:
        common = np.minimum(ours.end, end) - np.maximum(ours.start, start)
        either = np.maximum(ours.end, end) - np.minimum(ours.start, start)
        overlap = np.divide(common, either, out=np.zeros(len(heard)), where=common > 0)
        taken = np.where(overlap > 0, above[:-1] + overlap, 0.0)
        row = np.maximum.accumulate(np.concatenate([[0.0], np.maximum(above[1:], taken)]))
        moves.append((row == above, row[1:] == row[:-1]))
        above = row
    pairs = []
    i, j = len(said), len(heard)
    while i and j:
        without, without_theirs = moves[i - 1]
        if without[j]:
            i -= 1
        elif without_theirs[j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]


def details(rows: Sequence[Recorded]) -> dict[str, Any]:
    """Return the entry of a record's details; nothing where no row has times to compare."""
    found = boundaries(rows)
    if not found.recordings:
        return {}
    return {"timestamps": asdict(found) | {"seconds": round(found.seconds, 6)}}
