"""What a metric is: a corpus score of statistics that add up over utterances."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from lorsmerge_cli.errors import LorsmergeError
from lorsmerge_cli.metrics.normalisation import AUTO

FLIPS = 10_000  # random assignments of a paired test

if TYPE_CHECKING:  # numpy is loaded where there is something to score: refusals need METRICS too
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


class Scored(Protocol):
    """What a metric needs of an utterance."""

    @property
    def language(self) -> str:
        """Whisper's code of the spoken language."""

    @property
    def reference(self) -> str:
        """What should have been answered."""

    @property
    def hypothesis(self) -> str:
        """What a model answered."""

    @property
    def source_text(self) -> str | None:
        """The transcript of an utterance whose reference is a translation; None if not known."""


@dataclass(frozen=True)
class Scoring:
    """How hypotheses are scored.

    Attributes:
        normalisation: of the texts whose errors are counted, of `CHOICES`; `auto` is by language.
        samples: random exchanges of a paired test of more than 12 speakers.
        seed: of the exchanges.
        metrics: asked for beside those that a task always has, `NAME` or `NAME=OPTION`.
    """

    normalisation: str = AUTO
    samples: int = FLIPS
    seed: int = 0
    metrics: tuple[str, ...] = ()

    @property
    def asked(self) -> dict[str, str]:
        """The metrics asked for: key -> option, empty where none was given."""
        parts = (text.partition("=") for text in self.metrics)
        return {key: option for key, _, option in parts}


@dataclass(frozen=True, kw_only=True)
class CorpusScore:
    """A score of summed statistics, and how it is read.

    Attributes:
        name: as tables show it.
        unit: `%`, `points` or `nats`.
        higher_is_better: whether a larger score is the better one.
        score: sums of statistics (..., columns) -> scores (...) in the unit; NaN where there is none.
        columns: of the statistics.
        size: the column of the length of the references, by which blocks differ in weight.
        lowest, highest: score there can be.
    """

    name: str
    unit: str
    higher_is_better: bool
    score: Callable[[Floats], Floats]
    columns: int = 2
    size: int = 1
    lowest: float = 0.0
    highest: float = math.inf

    def gain(self, difference: float) -> float:
        """Return a difference of two scores, positive where it is for the better."""
        return difference if self.higher_is_better else -difference

    @property
    def sign(self) -> str:
        """What a heading has after the name: `% ↓` of error rates, `↑` of BLEU."""
        return ("% " if self.unit == "%" else "") + ("↑" if self.higher_is_better else "↓")


def no_details(rows: Sequence[Scored], scoring: Scoring) -> dict[str, Any]:
    """Return nothing: a metric whose score says all."""
    return {}


def no_faults() -> list[LorsmergeError]:
    """Return no fault: a metric that needs nothing but what is always installed."""
    return []


@dataclass(frozen=True, kw_only=True)
class Metric(CorpusScore):
    """An entry of `METRICS`.

    Attributes:
        task: whose hypotheses it scores.
        statistics: of each row, (rows, columns); they add up over rows.
        signature: of a language's scores: all that they depend on, as sacreBLEU writes it (Post
            2018).
        first_for: languages of which it is the task's reported metric.
        details: counts behind a score, by name.
        only_asked: whether it is computed only where it is asked for.
        option: what stands after `NAME=`, in capitals; empty where there is nothing to choose.
        needs_source: whether rows need a source text.
        faults: what of its software is missing.
    """

    task: str
    statistics: Callable[[Sequence[Scored], Scoring], Floats]
    signature: Callable[[str, Scoring], str]
    first_for: frozenset[str] = frozenset()
    details: Callable[[Sequence[Scored], Scoring], dict[str, Any]] = no_details
    only_asked: bool = False
    option: str = ""
    needs_source: bool = False
    faults: Callable[[], list[LorsmergeError]] = no_faults


def ratio(sums: Floats) -> Floats:
    """Return the first column by the second, (...) of (..., 2); NaN where the second is 0."""
    import numpy as np

    counts, lengths = sums[..., 0], sums[..., 1]
    return np.divide(counts, lengths, out=np.full_like(counts, np.nan), where=lengths > 0)


def sacrebleu_signature(metric: Any) -> str:
    """Return the signature of one of sacreBLEU's metrics, with one reference for a hypothesis."""
    metric.corpus_score(["a"], [["a"]])  # the number of references is known after a first score
    return str(metric.get_signature())
