"""Learn lambdas by the gradient of the loss of a dev set's references, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)
from optuna.study import Study
from optuna.trial import FrozenTrial, create_trial
from torch import Tensor

from lorsmerge_cli.checkpoint.modules import depths
from lorsmerge_cli.core.low_rank_sparse import Delta, accumulable, add_scaled, inner_product
from lorsmerge_cli.core.parallel import default_threads, run_parallel
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import LorsmergeError, NonFinite
from lorsmerge_cli.operations.search import study as studies
from lorsmerge_cli.operations.search.plan import SearchPlan
from lorsmerge_cli.operations.search.scores import Scorer
from lorsmerge_cli.recipe.coefficients import PARTS
from lorsmerge_cli.recipe.space import BETA, WHOLE, Point, Values
from lorsmerge_cli.speech.loss import add_gradients, token_counts

BATCH = 8  # utterances whose activations are in memory at a time
PATIENCE = 8  # steps without a better loss of the other half, after which learning stops
DECAYS, TINY = (0.9, 0.99), 1e-8  # of Adam's means; a second one of 0.999 is slow for 40 steps
ADAM = "adam"  # attribute of a trial: both means of its gradients so far, and the last step's loss
END = 1e-3  # of a range, within which a lambda counts as at its end


@dataclass(frozen=True)
class Piece:
    """A part of an update with a coefficient of its own: lambda of one parameter, times a factor.

    Attributes:
        name: of the parameter.
        delta: number, from 0.
        part: number among the delta's pieces in the tensor.
        share: of the delta in the combination: 1 in a sum, 1 / T in a mean.
        depth: block / (blocks - 1), which beta multiplies; 0 outside of blocks.
    """

    name: str
    delta: int
    part: int
    share: float
    depth: float

    def coefficient(self, lambdas: Mapping[str, float]) -> float:
        """Return what the part is multiplied by."""
        return lambdas[self.name] * self.slope(lambdas)

    def slope(self, lambdas: Mapping[str, float]) -> float:
        """Return the derivative of the coefficient by lambda."""
        return self.share * (1.0 + lambdas.get(BETA, 0.0) * self.depth)

    def by_beta(self, lambdas: Mapping[str, float]) -> float:
        """Return the derivative of the coefficient by beta."""
        return self.share * lambdas[self.name] * self.depth


class CoefficientGradient:
    """The gradient of a loss by the lambdas of a linear merge.

    The loss has one gradient by the weights, dL/dW; that by a lambda is the sum of its inner products
    with the parts of deltas that lambda multiplies. So a step takes one backward pass, whatever the
    number of lambdas. The memory is the model's, one gradient of it, and that of deltas, which are
    mapped from their files where nothing is pruned.

    Args:
        plan: a checked search.
        scorer: whose model is given other weights.
    """

    def __init__(self, plan: SearchPlan, scorer: Scorer) -> None:
        self.plan, self.scorer = plan, scorer
        space = plan.space
        point = next(iter(space.first_points().values()))
        self.recipe = space.recipe(point).resolved()
        self.threads = plan.settings.threads or default_threads()
        self.parameters: dict[str, Any] = {
            name: value
            for name, value in scorer.speech.model.named_parameters()
            if name in plan.inputs.base.float_specs
        }

    @cached_property
    def pieces(self) -> dict[str, list[Piece]]:
        """What each tensor's update consists of."""
        space, floats = self.plan.space, list(self.plan.inputs.base.float_specs)
        places = depths(floats)
        names = {key: name for name, key in space.lambdas().items()}
        averages = self.recipe.chosen_method.combined.averages
        share = 1 / len(space.deltas) if averages else 1.0

        def of(tensor: str) -> list[Piece]:
            group, (block, blocks) = space.group(tensor), places.get(tensor, (0, 0))
            depth = block / (blocks - 1) if blocks > 1 else 0.0
            found = []
            for delta, held in enumerate(self._held(tensor)):
                for part in range(len(held)):
                    which = "" if group not in space.parted else WHOLE
                    which = PARTS[part] if len(held) > 1 else which
                    own = delta if "scale" in space.per_delta else None
                    found.append(Piece(names[own, group, which], delta, part, share, depth))
            return found

        return dict(run_parallel(of, self.parameters, self.threads))

    def _held(self, tensor: str) -> list[tuple[Delta, ...]]:
        parts = bool(self.plan.space.parted)
        return self.scorer.merge.pieces(tensor, self.recipe, parts=parts)

    def load(self, lambdas: Mapping[str, float]) -> None:
        """Load the weights of the merge with these lambdas into the model."""
        base = self.plan.inputs.base

        def weight(tensor: str) -> Tensor:
            value, held = accumulable(base.read(tensor)).clone(), self._held(tensor)
            for piece in self.pieces[tensor]:
                part = held[piece.delta][piece.part]
                add_scaled(value, part, piece.coefficient(lambdas))
            return value

        for tensor, value in run_parallel(weight, self.pieces, self.threads):
            self.parameters[tensor].data.copy_(value)

    def of(
        self, lambdas: Mapping[str, float], rows: Sequence[Utterance], weights: Mapping[str, float]
    ) -> tuple[float, dict[str, float]]:
        """Return a weighted sum of utterances' losses and its derivative by each lambda and beta.

        Args:
            lambdas: by name, with beta where there is one.
            rows: utterances.
            weights: by utterance id.
        """
        self.load(lambdas)
        needed = {name: value.requires_grad for name, value in self.parameters.items()}
        try:
            for value in self.parameters.values():
                value.requires_grad_(True)
            size = self.plan.settings.batch_size or BATCH
            loss = add_gradients(self.scorer.speech, rows, weights, self.scorer.features, size)
            return loss, self._inner_products(lambdas)
        finally:
            for name, value in self.parameters.items():
                value.grad = None
                value.requires_grad_(needed[name])

    def _inner_products(self, lambdas: Mapping[str, float]) -> dict[str, float]:
        found: dict[str, list[float]] = {name: [] for name in lambdas}

        def products(tensor: str) -> list[float]:
            if self.parameters[tensor].grad is None:
                return [0.0] * len(self.pieces[tensor])
            grad, held = accumulable(self.parameters[tensor].grad).cpu(), self._held(tensor)
            return [
                inner_product(grad, held[piece.delta][piece.part]) for piece in self.pieces[tensor]
            ]

        inner = dict(run_parallel(products, self.pieces, self.threads))
        for tensor, pieces in self.pieces.items():  # in one order, whichever thread was first
            for piece, product in zip(pieces, inner[tensor], strict=True):
                found[piece.name].append(product * piece.slope(lambdas))
                if BETA in found:
                    found[BETA].append(product * piece.by_beta(lambdas))
        return {name: math.fsum(values) for name, values in found.items()}


def adam(
    value: float, gradient: float, means: Sequence[float], step: int, rate: float
) -> tuple[float, tuple[float, float]]:
    """Return a number after a step of Adam, and the new means of its gradient and of its square.

    Args:
        value: before the step.
        gradient: by it.
        means: before the step; 0 and 0 at first.
        step: its number, from 1.
        rate: about what a step changes.

    Example:
        >>> adam(1.0, 5.0, (0.0, 0.0), step=1, rate=0.1)[0]
        0.9000000002
    """
    first = DECAYS[0] * means[0] + (1 - DECAYS[0]) * gradient
    second = DECAYS[1] * means[1] + (1 - DECAYS[1]) * gradient**2
    corrected = first / (1 - DECAYS[0] ** step)
    spread = math.sqrt(second / (1 - DECAYS[1] ** step))
    return value - rate * corrected / (spread + TINY), (first, second)


@dataclass
class Learning:
    """Lambdas that are learned from one half of a dev set, and stopped by the other.

    Each step's lambdas are a trial of the study, whose value is the loss of the second half. So an
    interrupted search goes on behind the last one.

    Attributes:
        plan: a checked search.
        study: of the plan.
        scorer: of its merges.
        on_message: called with why it stops.
    """

    plan: SearchPlan
    study: Study
    scorer: Scorer
    on_message: Callable[[str], None]

    def __post_init__(self) -> None:
        space = self.plan.space
        self.ranges = {
            name: values
            for name, values in space.parameters.items()
            if name == BETA or name.startswith("scale")
        }
        start = space.start or 0.0
        unit = abs(start) or self.gradient.recipe.chosen_method.scale
        self.rates = {
            name: self.plan.rate * (1.0 if name == BETA else unit) for name in self.ranges
        }

    @cached_property
    def gradient(self) -> CoefficientGradient:
        """The gradient by all lambdas."""
        return CoefficientGradient(self.plan, self.scorer)

    @cached_property
    def weights(self) -> dict[str, float]:
        """Factors of the losses of the first half's utterances.

        A mean over a random batch, of losses multiplied by these, is an unbiased estimate of the loss
        of the half: the mean over languages and tasks of their loss per token.
        """
        rows = self.plan.halves[0]
        counts = token_counts(self.scorer.speech, rows)
        tokens: dict[tuple[str, str], int] = {}
        for row in rows:
            key = row.language, row.task
            tokens[key] = tokens.get(key, 0) + counts[row.id]
        return {row.id: len(rows) / len(tokens) / tokens[row.language, row.task] for row in rows}

    def batch(self, step: int) -> list[Utterance]:
        """Return the utterances of a step, from 1: the next ones of the half, shuffled anew each time."""
        rows, size = self.plan.halves[0], min(self.plan.clips, len(self.plan.halves[0]))
        found: list[Utterance] = []
        for number in range((step - 1) * size, step * size):
            epoch, place = divmod(number, len(rows))
            found.append(rows[self._order(epoch)[place]])
        return found

    def _order(self, epoch: int) -> list[int]:
        drawn = np.random.default_rng([self.plan.settings.seed, epoch])
        order: list[int] = drawn.permutation(len(self.plan.halves[0])).tolist()
        return order

    def finished(self) -> list[FrozenTrial]:
        """Return the trials so far: the start, and each step."""
        return list(studies.finished(studies.live(self.study)).values())

    def next(self) -> FrozenTrial | None:
        """Do a step and return its trial; None where there is no further one.

        Raises:
            NonFinite: the loss of the lambdas that it begins at is not finite.
            LorsmergeError: another process does the same.
        """
        done = self.finished()
        if len(done) >= self.plan.trials:
            return None
        if self._is_over(done):
            self.on_message(
                f"learning stopped after {len(done) - 1} steps: the loss of the other half has not "
                f"improved for {PATIENCE}"
            )
            return None
        lambdas, state = self._start() if not done else self._step(done)
        if not lambdas:
            return None
        trial = self._trial(lambdas, state)
        if not done and not all(map(math.isfinite, trial.values)):
            raise NonFinite(
                "The loss of the dev set is not finite with the lambdas that learning begins at.",
                "Give --scale a smaller one, and check the deltas with `lorsmerge inspect`.",
            )
        if len(self.finished()) != len(done):
            raise LorsmergeError(
                "Another process takes steps of this search.",
                "Let one run, or give --name or --study another value.",
            )
        self.study.add_trial(trial)
        return self.study.get_trials(deepcopy=False)[-1]

    def _is_over(self, done: Sequence[FrozenTrial]) -> bool:
        losses = [sum(trial.values) for trial in done]
        return bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= PATIENCE

    def _start(self) -> tuple[dict[str, float], dict[str, Any]]:
        start = self.plan.space.start or 0.0
        lambdas = {name: 0.0 if name == BETA else start for name in self.ranges}
        return lambdas, {"means": {}, "loss": None}

    def _step(self, done: Sequence[FrozenTrial]) -> tuple[dict[str, float], dict[str, Any]]:
        """Return the lambdas after another step of Adam, and its state; nothing where it cannot go on."""
        last = done[-1]
        lambdas = {name: float(last.params[name]) for name in self.ranges}
        rows, step = self.batch(len(done)), len(done)
        weights = {row.id: self.weights[row.id] / len(rows) for row in rows}
        loss, gradient = self.gradient.of(lambdas, rows, weights)
        if not math.isfinite(loss) or not all(map(math.isfinite, gradient.values())):
            self.on_message(
                f"learning stopped after {step - 1} steps: the loss or its gradient is not finite"
            )
            return {}, {}
        before, means = last.user_attrs[ADAM]["means"], {}
        for name, values in self.ranges.items():
            old = before.get(name, (0.0, 0.0))
            new, means[name] = adam(lambdas[name], gradient[name], old, step, self.rates[name])
            lambdas[name] = min(max(new, values.low), values.high)
        return lambdas, {"means": means, "loss": loss}

    def _trial(self, lambdas: Mapping[str, float], state: Mapping[str, Any]) -> FrozenTrial:
        """Return the trial of these lambdas, scored on the half that says when to stop."""
        space, goal, rows = self.plan.space, self.plan.goal, self.plan.halves[1]
        fixed = {
            name: values.choices[0]
            for name, values in space.parameters.items()
            if name not in self.ranges
        }
        point: Point = {**fixed, **lambdas}
        self.scorer.load(space.recipe(point))
        (statistics,) = self.scorer.rank([rows])
        scores = goal.scores(statistics, ranking=True)
        part = len(rows) / len(self.plan.rows)
        return create_trial(
            params={name: point[name] for name in space.parameters},
            distributions={
                name: _distribution(values, learned=name in self.ranges)
                for name, values in space.parameters.items()
            },
            values=list(goal.values(scores)),
            user_attrs={studies.RESULT: {"scores": scores, "part": part}, ADAM: dict(state)},
        )


def _distribution(values: Values, *, learned: bool) -> BaseDistribution:
    if learned:
        return FloatDistribution(values.low, values.high)
    return CategoricalDistribution(values.choices)


def at_an_end(plan: SearchPlan, point: Point) -> list[str]:
    """Return the names of learned lambdas that are at an end of their range."""
    found = []
    for name, values in plan.space.parameters.items():
        if name != BETA and not name.startswith("scale"):
            continue
        value, near = float(point[name] or 0.0), END * (values.high - values.low)
        if min(value - values.low, values.high - value) < near:
            found.append(name)
    return found
