"""What a search found."""

from __future__ import annotations

from dataclasses import dataclass

from lorsmerge_cli.operations.search_plan import SearchPlan
from lorsmerge_cli.operations.search_scores import Scores
from lorsmerge_cli.operations.search_space import Point


@dataclass(frozen=True)
class TrialRow:
    """One trial.

    Attributes:
        number: from 1, as the trials were begun.
        title: which known setting it is, if one.
        stopped: before all of the dev set was heard.
        part: share of the dev set's utterances that its scores are of.
        point: what was tried.
        values: of the objectives.
        scores: of each language and task.
        same_as: the earlier trial that tried the same, and whose scores these are.
    """

    number: int
    title: str
    stopped: bool
    part: float
    point: Point
    values: tuple[float, ...]
    scores: Scores
    same_as: int | None = None


@dataclass(frozen=True)
class Finalist:
    """A trial scored by beam search on all of the dev set, as `eval` does it.

    Attributes:
        trial: what was tried.
        values: of the objectives.
        scores: of each language and task.
        on_front: no other finalist is better in one objective and as good in the others.
    """

    trial: TrialRow
    values: tuple[float, ...]
    scores: Scores
    on_front: bool


@dataclass(frozen=True)
class SearchReport:
    """What a search found.

    Attributes:
        plan: what was asked for.
        trials: by number.
        finalists: the best first; empty for a worker.
        base: the untouched base's scores on the dev set; None for a worker.
        test, base_test: scores of the best and of the base on the test set; None without one.
        own: trials that this process did.
    """

    plan: SearchPlan
    trials: tuple[TrialRow, ...]
    finalists: tuple[Finalist, ...]
    base: Scores | None
    test: Scores | None
    base_test: Scores | None
    own: int

    @property
    def front(self) -> tuple[Finalist, ...]:
        """The best, and with two objectives every other finalist of the Pareto front."""
        return tuple(finalist for finalist in self.finalists if finalist.on_front)
