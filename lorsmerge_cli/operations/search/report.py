"""The types of a search's report."""

from __future__ import annotations

from dataclasses import dataclass

from lorsmerge_cli.metrics.significance import Comparison
from lorsmerge_cli.operations.search.plan import SearchPlan
from lorsmerge_cli.operations.search.scores import Scores
from lorsmerge_cli.recipe.space import Point


@dataclass(frozen=True)
class TrialRow:
    """One trial.

    Attributes:
        number: from 1, in the order in which trials began; 0 for a control scored at the end.
        title: the name of the known setting that it is, if any.
        stopped: early, on a part of the dev set.
        part: share of the dev set's utterances that its scores are of.
        point: what was tried.
        values: of the objectives.
        scores: of each language and task.
        same_as: number of the earlier trial of the same point, whose scores these are.
    """

    number: int
    title: str
    stopped: bool
    part: float
    point: Point
    values: tuple[float, ...]
    scores: Scores
    same_as: int | None = None

    @property
    def name(self) -> str:
        """`trial 7`, or the title of a control."""
        return f"trial {self.number}" if self.number else self.title


@dataclass(frozen=True)
class Finalist:
    """A trial scored by beam search on all of the dev set, as `eval` does it.

    Attributes:
        trial: what was tried.
        values: of the objectives.
        scores: of each language and task.
        on_front: no other finalist is better in one objective and as good in the others.
        differences: from the best finalist, in each objective, without p-values.
        as_good: whether it is within a standard error of the best.
        complexity: as `finalists.complexity` returns it.
    """

    trial: TrialRow
    values: tuple[float, ...]
    scores: Scores
    on_front: bool
    differences: tuple[Comparison, ...]
    as_good: bool
    complexity: tuple[int, int, float]


@dataclass(frozen=True)
class SearchReport:
    """What a search found.

    Attributes:
        plan: the search.
        trials: by number.
        own: trials that this process did.
        finalists: the best first; empty for a worker.
        chosen: the one whose recipe is written; None for a worker.
        base: the untouched base's scores on the dev set; None for a worker.
        test, base_test: scores of the chosen one and of the base on the test set; None without.
        tested: the chosen one less the base on the test set, in each objective.
    """

    plan: SearchPlan
    trials: tuple[TrialRow, ...]
    own: int
    finalists: tuple[Finalist, ...] = ()
    chosen: Finalist | None = None
    base: Scores | None = None
    test: Scores | None = None
    base_test: Scores | None = None
    tested: tuple[Comparison, ...] = ()

    @property
    def front(self) -> tuple[Finalist, ...]:
        """The best, and with two objectives every other finalist of the Pareto front."""
        return tuple(finalist for finalist in self.finalists if finalist.on_front)

    @property
    def written(self) -> tuple[Finalist, ...]:
        """The chosen one, and with two objectives the front's, at most `--finalists` in all."""
        if self.chosen is None:
            return ()
        rest = self.front if len(self.plan.goal.tasks) > 1 else ()
        found = (self.chosen, *(other for other in rest if other is not self.chosen))
        return found[: self.plan.settings.finalists]
