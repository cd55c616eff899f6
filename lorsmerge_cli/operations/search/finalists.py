"""Choose the simplest of a search's finalists that are as good as the best."""

from __future__ import annotations

from collections.abc import Sequence

from lorsmerge_cli.operations.search.report import Finalist, TrialRow
from lorsmerge_cli.operations.search.scores import Goal, Speakers, Statistics, ordered, pareto
from lorsmerge_cli.recipe.recipe import RATIOS, Recipe
from lorsmerge_cli.recipe.space import BETA, Point, rounded


def complexity(recipe: Recipe) -> tuple[int, int, float]:
    """Return a key that is less for a simpler recipe.

    It compares the number of parts (none in task arithmetic; each ratio is one, as is a pruner that
    takes none, and a combiner that does more than add up), then the number of different settings of
    deltas and of rules, then the share that pruning keeps.
    """
    resolved = recipe.resolved()
    deltas, method = resolved.deltas, resolved.chosen_method
    settings = [(delta.svp, delta.mp, delta.scale, delta.own_rules) for delta in deltas]
    parts = max((svp is not None) + (mp is not None) for svp, mp, *_ in settings)
    parts += (method.pruner is not None and not method.ratios) + (not method.combined.linear)
    kept = sum((svp or 0) + (mp or 0) for svp, mp, *_ in settings) / len(settings)
    return parts, len(set(settings)) + len(recipe.rules), kept


def unpruned(point: Point) -> Point:
    """Return a point without its ratios."""
    return {
        name: None if name.partition("[")[0] in RATIOS else value for name, value in point.items()
    }


def scaled(point: Point, factor: float) -> Point:
    """Return a point with each lambda times a factor."""
    return {
        name: rounded(factor * value)
        if name.startswith("scale") and isinstance(value, float)
        else value
        for name, value in point.items()
    }


def level(point: Point) -> Point:
    """Return a point with lambda 1 in all tensors."""
    return {
        name: 1.0 if name.startswith("scale") else 0.0 if name == BETA else value
        for name, value in point.items()
    }


def judge(
    goal: Goal,
    recipes: Sequence[tuple[TrialRow, Recipe]],
    statistics: Sequence[Statistics],
    speakers: Speakers,
) -> tuple[Finalist, ...]:
    """Order finalists, the best first, and mark those that are as good as the best.

    A finalist is as good where it is behind by at most one standard error of the paired difference,
    in every objective. A dev set with too few speakers for a standard error marks only finalists
    that are no worse.

    Args:
        goal: the objectives.
        recipes: the trials and their recipes.
        statistics: of each, on the dev set by beam search.
        speakers: of the dev set.
    """
    scores = [goal.scores(found, ranking=False) for found in statistics]
    values = [goal.values(found) for found in scores]
    costs = [goal.costs(found, ranking=False) for found in values]
    order = ordered(costs)
    front = set(order[:1]) if len(goal.tasks) == 1 else set(pareto(costs)[0])
    order.sort(key=lambda n: (n not in front, sum(costs[n]) if len(goal.tasks) > 1 else 0))
    found = []
    for n in order:
        row, recipe = recipes[n]
        differences = goal.compare(statistics[order[0]], statistics[n], speakers, ranking=False)
        behind = goal.costs([d.difference for d in differences], ranking=False)
        errors = [difference.interval.standard_error for difference in differences]
        as_good = all(
            cost <= 0 or cost <= error for cost, error in zip(behind, errors, strict=True)
        )
        found.append(
            Finalist(
                row, values[n], scores[n], n in front, differences, as_good, complexity(recipe)
            )
        )
    return tuple(found)


def choose(finalists: Sequence[Finalist], best: bool) -> Finalist:
    """Return the finalist whose recipe is written; the first if none is as good as the best.

    Args:
        finalists: those that may be chosen, the best first.
        best: the best trial itself; else the simplest of those that are as good as the best (the
            one-standard-error rule of Breiman et al. 1984), of equally simple ones the better.
    """
    if best:
        return next(found for found in finalists if found.trial.number)
    as_good = [found for found in finalists if found.as_good]
    return min(as_good or finalists[:1], key=lambda found: found.complexity)
