"""Run a search: try merges in memory, score them on a dev set, compare the best by beam search."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from lorsmerge_cli.core.device import resolve_device
from lorsmerge_cli.core.methods import method_of
from lorsmerge_cli.core.parallel import default_threads
from lorsmerge_cli.errors import Interrupted, LorsmergeError, UnreadableFile, UsageFault
from lorsmerge_cli.metrics.metric import FLIPS
from lorsmerge_cli.metrics.significance import Comparison
from lorsmerge_cli.operations.search import study as studies
from lorsmerge_cli.operations.search.finalists import (
    choose,
    judge,
    level,
    scaled,
    unpruned,
)
from lorsmerge_cli.operations.search.gradient import Learning
from lorsmerge_cli.operations.search.merges import RepeatedMerge
from lorsmerge_cli.operations.search.plan import SearchPlan
from lorsmerge_cli.operations.search.report import Finalist, SearchReport, TrialRow
from lorsmerge_cli.operations.search.scores import (
    Scorer,
    Scores,
    Statistics,
    ordered,
    pareto,
    speakers_of,
)
from lorsmerge_cli.operations.search.storage import STORAGE_ERRORS, reason
from lorsmerge_cli.operations.search.study import RESULT
from lorsmerge_cli.recipe.recipe import Recipe
from lorsmerge_cli.recipe.search_settings import shown
from lorsmerge_cli.recipe.space import METHOD, Point, Space, Value
from lorsmerge_cli.speech.decoding.clips import DecodingSettings
from lorsmerge_cli.speech.memory import Memory, limited
from lorsmerge_cli.speech.source import parse_speech_dtype

POLL = 1.0  # seconds between looks at what the other workers do
PATIENCE = 120.0  # seconds that a worker waits for the study
KEPT_MERGES, KEPT_FEATURES = 0.25, 0.25  # of the free memory
STATISTICS = "statistics"  # attributes of a trial that was not stopped: what its scores come from


def run_search(
    plan: SearchPlan,
    *,
    command: str = "the same call",
    progress: Callable[[int, int], None] = lambda done, total: None,
    on_message: Callable[[str], None] = lambda text: None,
    on_trial: Callable[[TrialRow], None] = lambda trial: None,
    on_rate: Callable[[float], None] = lambda rate: None,
) -> SearchReport:
    """Carry out a plan, or do trials of it as a worker.

    Args:
        plan: a checked search.
        command: the line that resumes it.
        progress: called with the trials newly finished, by whichever worker, and those in all.
        on_message: called with what the search waits for or begins.
        on_trial: called with each trial that this process finished.
        on_rate: called with the utterances that it scores per second.

    Raises:
        Interrupted: by a signal.
        UsageFault: less memory is allowed than the process holds already.
        UnreadableFile: the study cannot be read or written any more.
        Mismatch: the study is about something else.
        LorsmergeError: see the subclasses.
    """
    limited(plan.settings.memory)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # of samplers and retries
            return _Run(plan, progress, on_message, on_trial, on_rate).report()
    except KeyboardInterrupt:
        raise Interrupted(
            f"Interrupted; finished trials are kept in {shown(plan.study)}.",
            f"Resume with: {command}",
        ) from None
    except STORAGE_ERRORS as error:
        raise UnreadableFile(
            f"The search stopped ({reason(error)}); finished trials are kept in "
            f"{shown(plan.study)}.",
            f"When it can be reached again, resume with: {command}",
        ) from error


@dataclass
class _Run:
    """A process of a search."""

    plan: SearchPlan
    progress: Callable[[int, int], None]
    on_message: Callable[[str], None]
    on_trial: Callable[[TrialRow], None]
    on_rate: Callable[[float], None]
    study: Study = field(init=False)
    own: int = 0  # trials that this process finished
    _reported: int = 0  # finished trials that `progress` knows of

    def report(self) -> SearchReport:
        """Do trials until there are enough; unless for a worker, score the best of them."""
        self.join()
        self.plan = plan = replace(self.plan, space=self.measured())
        self.do_trials()
        if plan.settings.worker:
            return SearchReport(plan, self.rows(), self.own)
        finalists = self.finalists()
        # of one method that was asked for, its control is there to be compared with
        asked = [
            found for found in finalists if not (plan.space.method and METHOD in found.trial.point)
        ]
        chosen = choose(asked, plan.settings.best)
        statistics = self.by_beam("the base", lambda: self.scorer.load_base())
        base = plan.goal.scores(statistics, ranking=False)
        test, base_test, tested = self.test(chosen) if plan.test else (None, None, ())
        return SearchReport(
            plan, self.rows(), self.own, finalists, chosen, base, test, base_test, tested
        )

    def measured(self) -> Space:
        """Return the space with the units of its methods, from the study if it keeps them.

        Raises:
            UsageFault: a method takes no step, whatever lambda is.
        """
        space = self.plan.space
        units: dict[str, float] = {}
        first = {point.get(METHOD): point for point in space.first_points().values()}
        plain = method_of(())
        for method in space.methods:
            key = f"unit of {method}"
            unit: float | None = self.study.user_attrs.get(key)
            if unit is None and method != plain:
                self.on_message(f"measure the step of {method}")
                like = level(unpruned(first[method])) | {METHOD: plain}
                unit = self._ratio(*map(space.recipe, (like, level(first[method]))))
                if not unit:
                    what = f"--method {method} takes no step with these deltas, whatever lambda is."
                    raise UsageFault(what, "Omit it.")
                self.study.set_user_attr(key, unit)
            units[method] = unit or 1.0
        return replace(space, units=units)

    def _ratio(self, recipe: Recipe, other: Recipe) -> float:
        """Return by what the step of a recipe is longer than that of another; 0 if that has none."""
        norms = [self.scorer.step_norm(each) for each in (recipe, other)]
        return norms[0] / norms[1] if norms[1] else 0.0

    @cached_property
    def titles(self) -> dict[tuple[tuple[str, Value], ...], str]:
        """The known settings: their points, as items, and names."""
        return {
            tuple(self._point(point).items()): title
            for title, point in self.plan.space.first_points().items()
        }

    @cached_property
    def scorer(self) -> Scorer:
        """The loaded model and the caches of its merges and features."""
        plan = self.plan
        settings = plan.settings
        device = resolve_device(settings.device)
        speech = plan.source.open(parse_speech_dtype(settings.dtype), settings.device)
        ratio = plan.space.values.get("svp")
        # of one worker: `_try` divides it, as workers come and go
        memory = Memory(settings.memory, workers=1)
        free = memory.free()
        merge = RepeatedMerge(
            plan.inputs, ratio.largest if ratio else None, device,
            settings.threads or default_threads(), cache=int(KEPT_MERGES * free),
        )  # fmt: skip
        decoding = DecodingSettings(
            settings.beam, settings.batch_size, settings.max_tokens, memory=memory
        )
        return Scorer(
            speech, merge, plan.goal.rank_by, decoding, int(KEPT_FEATURES * free),
            settings.normalisation,
        )  # fmt: skip

    def join(self) -> None:
        """Open or create the study; a worker waits for it."""
        plan, deadline = self.plan, time.monotonic() + PATIENCE
        while (study := studies.join_study(plan)) is None:
            if time.monotonic() > deadline:
                raise LorsmergeError(
                    f"There is no study {plan.settings.name!r} in {shown(plan.study)} yet.",
                    "Start the search itself: the same command with -o in place of --worker.",
                )
            time.sleep(POLL)
        if not plan.settings.worker:
            studies.begin(study, plan)
        begun = len(study.get_trials(deepcopy=False))
        study.sampler = studies.make_sampler(plan.settings, begun)
        self.study = study

    @property
    def total(self) -> int:
        """Trials in all; for a worker as the search itself has it."""
        return int(self.study.user_attrs.get(studies.TRIALS, self.plan.trials))

    def do_trials(self) -> None:
        """Do trials until there are enough; a search then waits for its workers."""
        if self.plan.settings.learns:
            self._learn()
            return
        waited = False
        while True:
            studies.requeue_lost(self.study)
            trials = studies.live(self.study)
            states = [trial.state for trial in trials.values()]
            count = len(studies.finished(trials))
            self.progress(count - self._reported, self.total)
            self._reported = count
            if TrialState.WAITING in states or len(trials) < self.total:
                self._do_one()
            elif TrialState.RUNNING in states and not self.plan.settings.worker:
                if not waited:
                    self.on_message(
                        "waiting for the trials of other workers; those of one that died are "
                        f"requeued after {studies.GRACE} s"
                    )
                    waited = True
                time.sleep(POLL)
            else:
                return

    def _learn(self) -> None:
        """Take steps until there are enough, or they are of no use any more."""
        learning = Learning(self.plan, self.study, self.scorer, self.on_message)
        while True:
            count = len(learning.finished())
            self.progress(count - self._reported, self.total)
            self._reported = count
            began = time.monotonic()
            trial = learning.next()
            if trial is None:
                return
            seconds = max(1e-3, time.monotonic() - began)
            self.on_rate((len(self.plan.halves[1]) + self.plan.clips) / seconds)
            self.on_trial(self._row(count + 1, trial))
            self.own += 1

    def _do_one(self) -> None:
        trial = self.study.ask()
        trials = studies.live(self.study)
        if sum(t.number < trial.number for t in trials.values()) >= self.total:
            studies.discard(self.study, trial)
            return
        number = next(n for n, found in trials.items() if found.number == trial.number)
        try:
            with studies.heartbeat(trial, worker=self.plan.settings.worker):
                values = self._try(trial, studies.finished(trials))
            state = TrialState.PRUNED if values is None else None
            found = self.study.tell(trial, values, state, skip_if_finished=True)
        except UpdateFinishedTrialError:
            what = "requeued by another worker, as this one gave no heartbeat"
            self.on_message(f"trial {number}: {what}")
            return
        except BaseException:
            with suppress(*STORAGE_ERRORS):
                studies.requeue(self.study, trial.number)
            raise
        self.on_trial(self._row(number, found))
        self.own += 1

    def _try(self, trial: Trial, finished: Mapping[int, FrozenTrial]) -> tuple[float, ...] | None:
        """Return the values of the objectives; None for a trial that is stopped early."""
        point = self._point(studies.suggest(trial, self.plan.space))
        twin = next((n for n, t in finished.items() if self._point(t.params) == point), None)
        if twin is not None:
            return self._repeat(trial, twin, finished[twin])
        if self.plan.settings.memory is None:
            self.scorer.share_memory(studies.workers_here(self.study))
        self.scorer.load(self.plan.space.recipe(point))
        parts, goal = self.plan.parts, self.plan.goal
        values: tuple[float, ...] = ()
        began = time.monotonic()
        for step, statistics in enumerate(self.scorer.rank(parts), 1):
            self.on_rate(len(parts[step - 1]) / max(1e-3, time.monotonic() - began))
            scores = goal.scores(statistics, ranking=True)
            values = goal.values(scores)
            last = step == len(parts)
            if not last and len(values) == 1:
                trial.report(values[0], step)
            stopped = not last and self._is_behind(statistics)
            if last:
                studies.keep_statistics(trial, STATISTICS, statistics)
            if last or stopped:
                part = len(parts[step - 1]) / len(parts[-1])
                trial.set_user_attr(RESULT, {"scores": scores, "part": part})
            if stopped:
                return None
        return values

    def _is_behind(self, statistics: Statistics) -> bool:
        """Return whether a trial on the Pareto front is clearly better on the same utterances.

        Clearly is by more than two standard errors of the paired difference in every objective. A
        loss that is not finite is behind any that is.
        """
        goal = self.plan.goal
        whole = [
            trial for trial in studies.finished(studies.live(self.study)).values()
            if trial.state == TrialState.COMPLETE and "same" not in trial.user_attrs[RESULT]
        ]  # fmt: skip
        if len(whole) < studies.COMPARED:
            return False
        costs = [goal.costs(trial.values or (), ranking=True) for trial in whole]
        for n in pareto(costs)[0]:
            best = studies.kept_statistics(whole[n].user_attrs, STATISTICS, self._shapes(True))
            if best is None:
                continue
            same = {key: table[: len(statistics[key])] for key, table in best.items()}
            found = goal.compare(same, statistics, self.plan.speakers, ranking=True)
            behind = goal.costs([test.difference for test in found], ranking=True)
            lost = self._infinite(statistics) and not self._infinite(same)
            if lost or all(
                cost > studies.BEHIND * test.interval.standard_error
                for cost, test in zip(behind, found, strict=True)
            ):
                return True
        return False

    def _infinite(self, statistics: Statistics) -> bool:
        values = self.plan.goal.values(self.plan.goal.scores(statistics, ranking=True))
        return any(map(math.isinf, values))

    def _shapes(self, ranking: bool) -> dict[str, tuple[int, int]]:
        """Return the shapes of statistics of the whole dev set."""
        goal = self.plan.goal
        return {
            key: (len(names), goal.metric(key.rpartition("_")[2], ranking=ranking).columns)
            for key, names in self.plan.speakers.items()
        }

    def _repeat(self, trial: Trial, number: int, twin: FrozenTrial) -> tuple[float, ...] | None:
        """Return the result of a finished trial that tried the same."""
        trial.set_user_attr(RESULT, {"same": number} | twin.user_attrs[RESULT])
        for step, value in twin.intermediate_values.items():  # none with two objectives
            trial.report(value, step)
        return None if twin.state == TrialState.PRUNED else tuple(twin.values or ())

    def _point(self, params: Mapping[str, Any]) -> Point:
        """Return a point with the values that its recipe has."""
        space = self.plan.space  # parameters that a method does not take are not drawn
        return space.normal({name: params.get(name) for name in space.parameters})

    def _row(self, number: int, trial: FrozenTrial) -> TrialRow:
        point, result = self._point(trial.params), trial.user_attrs[RESULT]
        return TrialRow(
            number=number,
            title=self.titles.get(tuple(point.items()), ""),
            stopped=trial.state == TrialState.PRUNED,
            part=result["part"],
            point=point,
            values=tuple(trial.values or self.plan.goal.values(result["scores"])),
            scores=result["scores"],
            same_as=result.get("same"),
        )

    def rows(self) -> tuple[TrialRow, ...]:
        """Return the finished trials."""
        found = studies.finished(studies.live(self.study))
        return tuple(self._row(number, trial) for number, trial in found.items())

    def finalists(self) -> tuple[Finalist, ...]:
        """Score the best trials and what they have to beat as `eval` does, and order them.

        To beat are task arithmetic with the lambdas of the best trial, if that prunes; the same
        method with one lambda, if the best trial's differs by tensor; and the control, which is task
        arithmetic with one lambda. The last two take as long a step as the best trial.
        """
        plan = self.plan
        rows = [row for row in self.rows() if not row.stopped and row.same_as is None]
        costs = [plan.goal.costs(row.values, ranking=True) for row in rows]
        if plan.settings.learns:  # neighbours on one path are no choice: its best, and its start
            learned = min(range(len(rows)), key=lambda n: sum(costs[n]))
            chosen = [rows[n] for n in dict.fromkeys((learned, 0))]
        else:
            chosen = [rows[n] for n in ordered(costs)[: plan.settings.finalists]]
        found = {row.name: (row, self._final(row)) for row in chosen}
        best = chosen[0] if plan.settings.learns else self._judged(found.values())[0].trial
        for row in self._to_beat(best):
            if row.point not in [other.point for other, _ in found.values()]:
                found[row.name] = row, self._final(row)
        return self._judged(found.values())

    def _judged(self, found: Iterable[tuple[TrialRow, Statistics]]) -> tuple[Finalist, ...]:
        rows, statistics = zip(*found, strict=True)
        recipes = [(row, self.plan.space.recipe(row.point)) for row in rows]
        return judge(self.plan.goal, recipes, statistics, self.plan.speakers)

    def _to_beat(self, best: TrialRow) -> Iterator[TrialRow]:
        space, learns = self.plan.space, self.plan.settings.learns
        recipe = space.recipe(best.point)
        method = recipe.resolved().chosen_method
        scales = {entry.scale for entry in recipe.resolved().deltas}
        differ = bool(recipe.rules) or (learns and len(scales) > 1)
        if method.adds_up and not differ:
            return
        prunes, sums = method.pruner is not None, method.combined.linear
        named = {METHOD: method_of(())} if space.method or space.methods else {}
        plain = unpruned(best.point) | named
        if sums and prunes and not space.parted:
            yield TrialRow(0, f"task arithmetic of {best.name}", False, 1.0, plain, (), {})
        if differ and (prunes or not sums):
            yield self._as_long_as(best, f"one lambda for {best.name}", level(best.point))
        like = level(plain) if differ or not sums else plain
        yield self._as_long_as(best, f"control of {best.name}", like)

    def _as_long_as(self, best: TrialRow, title: str, point: Point) -> TrialRow:
        """Return a point with all lambdas times one factor, so that its step is as long."""
        key = f"step of {title.removeprefix('control of ')}"
        factor: float | None = self.study.user_attrs.get(key)
        if factor is None:
            factor = self._ratio(*map(self.plan.space.recipe, (best.point, point)))
            self.study.set_user_attr(key, factor)
        return TrialRow(0, title, False, 1.0, scaled(point, factor), (), {})

    def _final(self, row: TrialRow) -> Statistics:
        if self.plan.goal.rank_by == "beam" and row.number:
            trial = studies.live(self.study)[row.number]
            known = studies.kept_statistics(trial.user_attrs, STATISTICS, self._shapes(True))
            if known is not None:
                return known
        recipe = self.plan.space.recipe(row.point)
        return self.by_beam(row.name, lambda: self.scorer.load(recipe))

    def by_beam(self, what: str, load: Callable[[], None]) -> Statistics:
        """Return statistics of a model as `eval` has them, from the study if it keeps them."""
        key = f"{what} beam {self.plan.settings.beam}"
        known = studies.kept_statistics(self.study.user_attrs, key, self._shapes(False))
        if known is None:
            self.on_message(f"beam search with {what}")
            load()
            known = self.scorer.score(self.plan.parts[-1])
            studies.keep_statistics(self.study, key, known)
        return known

    def test(self, chosen: Finalist) -> tuple[Scores, Scores, tuple[Comparison, ...]]:
        """Score the chosen recipe and the base on the test set, and test their difference."""
        goal, rows = self.plan.goal, self.plan.test
        self.on_message(f"beam search with {chosen.trial.name} and the base on the test set")
        self.scorer.load(self.plan.space.recipe(chosen.trial.point))
        own = self.scorer.score(rows)
        self.scorer.load_base()
        base = self.scorer.score(rows)
        tested = goal.compare(base, own, speakers_of(rows), ranking=False, flips=FLIPS)
        return goal.scores(own, ranking=False), goal.scores(base, ranking=False), tested
