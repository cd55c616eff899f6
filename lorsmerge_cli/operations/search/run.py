"""Search the ratios and scales of a merge: many merges in memory, scored on a dev set."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from lorsmerge_cli.core.device import resolve_device
from lorsmerge_cli.errors import Interrupted, LorsmergeError, UnreadableFile
from lorsmerge_cli.metrics.metric import FLIPS
from lorsmerge_cli.metrics.significance import Comparison
from lorsmerge_cli.operations.search import study as studies
from lorsmerge_cli.operations.search.finalists import choose, complexity, judge, unpruned
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
from lorsmerge_cli.operations.search.storage import STORAGE_ERRORS, open_storage, reason
from lorsmerge_cli.recipe.search_settings import is_url, shown
from lorsmerge_cli.recipe.space import Point, rounded
from lorsmerge_cli.speech.decoding import DecodingSettings
from lorsmerge_cli.speech.memory import Memory
from lorsmerge_cli.speech.source import parse_speech_dtype

POLL = 1.0  # seconds between looks at what the other workers do
PATIENCE = 120.0  # seconds that a worker waits for the study to be made
KEPT_MERGES, KEPT_FEATURES = 0.25, 0.25  # of the free memory
RESULT = "result"  # attribute of a trial: `scores`, of which `part`, and the `same` one
STATISTICS = "statistics"  # attributes of a trial that heard all: what its scores come from


def run_search(
    plan: SearchPlan,
    *,
    command: str = "the same call",
    progress: Callable[[int, int], None] = lambda done, total: None,
    told: Callable[[str], None] = lambda text: None,
    done: Callable[[TrialRow], None] = lambda trial: None,
    heard: Callable[[float], None] = lambda rate: None,
) -> SearchReport:
    """Carry out a plan, or take part in it.

    Args:
        plan: a checked search.
        command: the line that resumes it.
        progress: told the trials that are newly finished, by whichever worker, and those in all.
        told: told what it waits for.
        done: told each trial that this process finished.
        heard: told the utterances that it scores per second.

    Raises:
        Interrupted: by a signal.
        UnreadableFile: the study cannot be read or written any more.
        Mismatch: the study is about something else.
        LorsmergeError: see the subclasses.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # of samplers and retries
            return _Run(plan, progress, told, done, heard).report()
    except KeyboardInterrupt:
        raise Interrupted(
            f"Interrupted; what was finished is kept in {shown(plan.study)}.",
            f"Resume with: {command}",
        ) from None
    except STORAGE_ERRORS as error:
        raise UnreadableFile(
            f"The search stopped ({reason(error)}); what was finished is kept in "
            f"{shown(plan.study)}.",
            f"When it can be reached again, resume with: {command}",
        ) from error


class _Run:
    """A process of a search."""

    def __init__(
        self,
        plan: SearchPlan,
        progress: Callable[[int, int], None],
        told: Callable[[str], None],
        done: Callable[[TrialRow], None],
        heard: Callable[[float], None],
    ) -> None:
        self.plan, self.progress, self.told, self.done = plan, progress, told, done
        self.heard = heard
        self.own = 0
        self._reported = 0
        self._titles = {
            tuple(self._point(point).items()): title
            for title, point in plan.space.first_points().items()
        }
        self.study: Study

    def report(self) -> SearchReport:
        """Do trials until there are enough; unless for a worker, score the best of them."""
        plan = self.plan
        self.join()
        self.do_trials()
        if plan.settings.worker:
            return SearchReport(plan, self.rows(), (), None, None, None, None, (), self.own)
        finalists = self.finalists()
        chosen = choose(finalists, plan.settings.best)
        found = self.by_beam("the base", lambda: self.scorer.load_base())
        base = plan.goal.scores(found, ranking=False)
        test, base_test, tested = self.test(chosen) if plan.test else (None, None, ())
        return SearchReport(
            plan, self.rows(), finalists, chosen, base, test, base_test, tested, self.own
        )

    @cached_property
    def scorer(self) -> Scorer:
        """The model and all that is kept for it, made when it is first needed."""
        plan = self.plan
        settings = plan.settings
        device = resolve_device(settings.device)
        speech = plan.source.open(parse_speech_dtype(settings.dtype), settings.device)
        ratio = plan.space.values.get("svp")
        # all there is: `_try` divides it, as workers come and go
        memory = Memory(settings.memory, workers=1)
        free = memory.free()
        merge = RepeatedMerge(
            plan.inputs, ratio.largest if ratio else None, device, plan.threads,
            cache=int(KEPT_MERGES * free),
        )  # fmt: skip
        decoding = DecodingSettings(
            settings.beam, settings.batch_size, settings.max_tokens, memory=memory
        )
        return Scorer(
            speech, merge, plan.goal.rank_by, decoding, int(KEPT_FEATURES * free),
            settings.normalisation,
        )  # fmt: skip

    def join(self) -> None:
        """Open the study, or begin it; a worker waits for it."""
        plan, began = self.plan, time.monotonic()
        worker = plan.settings.worker
        while True:
            study = None
            if not worker or is_url(plan.study) or os.path.exists(plan.study):
                study = studies.join_study(
                    open_storage(plan.study), plan.study, plan.settings.name, plan.fingerprint,
                    plan.goal.directions(ranking=True), create=not worker,
                )  # fmt: skip
            if study is not None:
                break
            if time.monotonic() - began > PATIENCE:
                raise LorsmergeError(
                    f"There is no study {plan.settings.name!r} in {shown(plan.study)} to take "
                    "part in.",
                    "Start the search itself, the same command with -o in place of --worker.",
                )
            time.sleep(POLL)
        if not worker:
            studies.begin(study, plan.fingerprint, plan.points, plan.trials)
        study.sampler = studies.make_sampler(
            plan.settings.sampler, plan.settings.seed, len(study.get_trials(deepcopy=False)),
            worker=worker,
        )  # fmt: skip
        self.study = study

    @property
    def total(self) -> int:
        """Trials in all, as the search itself was told."""
        return int(self.study.user_attrs.get(studies.TRIALS, self.plan.trials))

    def do_trials(self) -> None:
        """Do trials until there are enough; a search then waits for those of its workers."""
        waited = False
        while True:
            studies.requeue_lost(self.study)
            trials = studies.live(self.study)
            states = [trial.state for trial in trials.values()]
            self._progress(trials)
            if TrialState.WAITING in states or len(trials) < self.total:
                self._do_one()
            elif TrialState.RUNNING in states and not self.plan.settings.worker:
                if not waited:
                    self.told(
                        "waiting for the trials of other workers; those of one that died are "
                        f"requeued after {studies.GRACE} s"
                    )
                    waited = True
                time.sleep(POLL)
            else:
                return

    def _progress(self, trials: Mapping[int, FrozenTrial]) -> None:
        count = len(studies.finished(trials))
        self.progress(count - self._reported, self.total)
        self._reported = count

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
            self.told(f"trial {number}: requeued by another worker, as this one gave no heartbeat")
            return
        except BaseException:
            with suppress(*STORAGE_ERRORS):
                studies.requeue(self.study, trial.number)
            raise
        self.done(self._row(number, found))
        self.own += 1

    def _try(self, trial: Trial, finished: Mapping[int, FrozenTrial]) -> tuple[float, ...] | None:
        """Values of the objectives; None for a trial that is stopped early."""
        point = studies.suggest(trial, self.plan.space)
        wanted = self._point(point)
        twin = next((n for n, t in finished.items() if self._point(t.params) == wanted), None)
        if twin is not None:
            return self._repeat(trial, twin, finished[twin])
        if self.plan.settings.memory is None:
            self.scorer.share_memory(studies.workers_here(self.study))
        self.scorer.load(self.plan.space.recipe(point))
        parts, goal = self.plan.parts, self.plan.goal
        values: tuple[float, ...] = ()
        began = time.monotonic()
        for step, statistics in enumerate(self.scorer.rank(parts), 1):
            self.heard(len(parts[step - 1]) / max(1e-3, time.monotonic() - began))
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
        """Whether one of the best finished trials is better on the same utterances, for certain.

        By more than two standard errors of the paired difference, in every objective. A loss that
        is not finite is behind.
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
        """Of the statistics of the whole dev set."""
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
        """As it stands in a recipe."""
        point = {name: params[name] for name in self.plan.space.parameters}
        return {name: None if value is None else rounded(value) for name, value in point.items()}

    def _row(self, number: int, trial: FrozenTrial) -> TrialRow:
        point, result = self._point(trial.params), trial.user_attrs[RESULT]
        return TrialRow(
            number=number,
            title=self._titles.get(tuple(point.items()), ""),
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
        """The best trials and what they have to beat, scored as `eval` does, the best of them first.

        To beat: task arithmetic with the lambda of the best trial, and with the lambda that takes a
        step of the same norm, its control.
        """
        plan = self.plan
        rows = [row for row in self.rows() if not row.stopped and row.same_as is None]
        costs = [plan.goal.costs(row.values, ranking=True) for row in rows]
        chosen = [rows[n] for n in ordered(costs)[: plan.settings.finalists]]
        found = {row.name: (row, self._final(row)) for row in chosen}
        best = self._judged(found.values())[0].trial
        for row in self._to_beat(best):
            if row.point not in [other.point for other, _ in found.values()]:
                found[row.name] = row, self._final(row)
        return self._judged(found.values())

    def _judged(self, found: Iterable[tuple[TrialRow, Statistics]]) -> tuple[Finalist, ...]:
        rows, statistics = zip(*found, strict=True)
        recipes = [(row, self.plan.space.recipe(row.point)) for row in rows]
        return judge(self.plan.goal, recipes, statistics, self.plan.speakers)

    def _to_beat(self, best: TrialRow) -> Iterator[TrialRow]:
        recipe, plain = self.plan.space.recipe(best.point), unpruned(best.point)
        if complexity(recipe)[0] == 0:
            return
        key = f"step of {best.name}"
        factor: float | None = self.study.user_attrs.get(key)
        if factor is None:
            norms = [self.scorer.step_norm(r) for r in (recipe, self.plan.space.recipe(plain))]
            factor = norms[0] / norms[1] if norms[1] else 0.0
            self.study.set_user_attr(key, factor)
        for title, point in (
            (f"task arithmetic of {best.name}", plain),
            (f"control of {best.name}", unpruned(best.point, factor)),
        ):
            yield TrialRow(0, title, False, 1.0, point, (), {})

    def _final(self, row: TrialRow) -> Statistics:
        if self.plan.goal.rank_by == "beam" and row.number:
            trial = studies.live(self.study)[row.number]
            known = studies.kept_statistics(trial.user_attrs, STATISTICS, self._shapes(True))
            if known is not None:
                return known
        recipe = self.plan.space.recipe(row.point)
        return self.by_beam(row.name, lambda: self.scorer.load(recipe))

    def by_beam(self, what: str, load: Callable[[], None]) -> Statistics:
        """Statistics of a model as `eval` has them, from the study where an earlier run got there."""
        key = f"{what} beam {self.plan.settings.beam}"
        known = studies.kept_statistics(self.study.user_attrs, key, self._shapes(False))
        if known is None:
            self.told(f"beam search with {what}")
            load()
            known = self.scorer.score(self.plan.parts[-1])
            studies.keep_statistics(self.study, key, known)
        return known

    def test(self, chosen: Finalist) -> tuple[Scores, Scores, tuple[Comparison, ...]]:
        """Scores of the chosen recipe and of the base on the test set, and their paired test."""
        goal, rows = self.plan.goal, self.plan.test
        self.told(f"beam search with {chosen.trial.name} and the base on the test set")
        self.scorer.load(self.plan.space.recipe(chosen.trial.point))
        own = self.scorer.score(rows)
        self.scorer.load_base()
        base = self.scorer.score(rows)
        tested = goal.compare(base, own, speakers_of(rows), ranking=False, flips=FLIPS)
        return goal.scores(own, ranking=False), goal.scores(base, ranking=False), tested
