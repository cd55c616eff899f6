"""What a metric is: a corpus score of statistics that add up over utterances."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from lorsmerge_cli.errors import LorsmergeError
from lorsmerge_cli.metrics.normalisation import AUTO

FLIPS = 10_000  # random assignments of a paired test

if TYPE_CHECKING:  # METRICS is also read where nothing is scored, which must not load numpy
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


class Scored(Protocol):
    """A hypothesis beside its reference, as a metric needs it."""

    @property
    def language(self) -> str:
        """Whisper's code of the spoken language."""

    @property
    def reference(self) -> str:
        """The right answer."""

    @property
    def hypothesis(self) -> str:
        """The model's answer."""

    @property
    def source_text(self) -> str | None:
        """The transcript, where the reference is a translation of it; None if not known."""


@dataclass(frozen=True)
class Scoring:
    """How hypotheses are scored.

    Attributes:
        normalisation: of texts before their errors are counted, one of `CHOICES`; `auto` is by
            language.
        samples: random exchanges of a paired test over more than 12 speakers.
        seed: of the exchanges.
        metrics: additional ones, each `NAME` or `NAME=OPTION`.
        sets: names of test sets with a normalisation of their own, and that.
    """

    normalisation: str = AUTO
    samples: int = FLIPS
    seed: int = 0
    metrics: tuple[str, ...] = ()
    sets: tuple[tuple[str, str], ...] = ()

    def of(self, dataset: str) -> Scoring:
        """Return how the hypotheses of one test set are scored.

        Example:
            >>> Scoring(sets=(("mcv", "leaderboard"),)).of("mcv").normalisation
            'leaderboard'
        """
        if not self.sets:
            return self
        return replace(
            self, normalisation=dict(self.sets).get(dataset, self.normalisation), sets=()
        )

    @property
    def asked(self) -> dict[str, str]:
        """The additional metrics: key -> option, empty where none was given."""
        parts = (text.partition("=") for text in self.metrics)
        return {key: option for key, _, option in parts}


@dataclass(frozen=True, kw_only=True)
class CorpusScore:
    """A score of summed statistics, with its unit and direction.

    Attributes:
        name: as tables show it.
        unit: `%`, `points` or `nats`.
        higher_is_better: whether a larger score is the better one.
        score: sums of statistics (..., columns) -> scores (...) in the unit; NaN where there is none.
        columns: number of columns of the statistics.
        size: the column with the length of the references, the weight of a block.
        lowest, highest: bounds of the score.
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
        """Suffix of the name in a heading: `% ↓` of error rates, `↑` of BLEU."""
        return ("% " if self.unit == "%" else "") + ("↑" if self.higher_is_better else "↓")


@dataclass(frozen=True, kw_only=True)
class Metric(CorpusScore):
    """An entry of `METRICS`.

    Attributes:
        task: whose hypotheses it scores.
        statistics: of each row, (rows, columns); they add up over rows.
        signature: of scores in a language: everything they depend on, in sacreBLEU's form (Post
            2018).
        normalised: whether it is of texts that were normalised.
        segments: whether errors of words are counted, of which segments of utterances are compared.
        first_for: languages of which it is the task's reported metric.
        details: counts behind a score, by name.
        only_asked: whether it is computed only where it is asked for.
        option: the value after `NAME=` in capitals, for help; empty where there is none.
        needs_source: whether rows need a source text.
        faults: errors for missing software.
    """

    task: str
    statistics: Callable[[Sequence[Scored], Scoring], Floats]
    signature: Callable[[str, Scoring], str]
    normalised: bool = False
    segments: bool = False
    first_for: frozenset[str] = frozenset()
    details: Callable[[Sequence[Scored], Scoring], dict[str, Any]] = lambda rows, scoring: {}
    only_asked: bool = False
    option: str = ""
    needs_source: bool = False
    faults: Callable[[], list[LorsmergeError]] = list


def ratio(sums: Floats) -> Floats:
    """Return the first column by the second, (...) of (..., 2); NaN where the second is 0."""
    import numpy as np

    counts, lengths = sums[..., 0], sums[..., 1]
    return np.divide(counts, lengths, out=np.full_like(counts, np.nan), where=lengths > 0)


@cache
def sacrebleu_signature(name: str) -> str:
    """Return the signature of sacreBLEU's `BLEU` or `CHRF`, for one reference per hypothesis."""
    import sacrebleu

    metric = getattr(sacrebleu, name)()
    metric.corpus_score(["a"], [["a"]])  # sets the number of references
    return str(metric.get_signature())
