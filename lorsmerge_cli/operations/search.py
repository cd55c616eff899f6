"""Search the ratios and scales of a merge: many merges in memory, scored on a dev set."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from lorsmerge_cli.core.device import resolve_device
from lorsmerge_cli.errors import Interrupted, LorsmergeError, UnreadableFile
from lorsmerge_cli.operations import search_study as studies
from lorsmerge_cli.operations.search_merge import RepeatedMerge
from lorsmerge_cli.operations.search_plan import SearchPlan
from lorsmerge_cli.operations.search_report import Finalist, SearchReport, TrialRow
from lorsmerge_cli.operations.search_scores import Scorer, Scores, ordered, pareto
from lorsmerge_cli.operations.search_space import Point, rounded
from lorsmerge_cli.operations.search_storage import (
    GRACE,
    STORAGE_ERRORS,
    is_url,
    open_storage,
    reason,
    shown,
)
from lorsmerge_cli.operations.speech_model import parse_speech_dtype
from lorsmerge_cli.speech.decoding import free_memory

POLL = 1.0  # seconds between looks at what the other workers do
PATIENCE = 120.0  # seconds that a worker waits for the study to be made
KEPT_MERGES, KEPT_FEATURES = 0.25, 0.25  # of the free memory
RESULT = "result"  # attribute of a trial: `scores`, of which `part`, and the `same` one


def search(
    plan: SearchPlan,
    *,
    command: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
    told: Callable[[str], None] = lambda text: None,
    done: Callable[[TrialRow], None] = lambda trial: None,
) -> SearchReport:
    """Carry out a plan, or take part in it.

    Args:
        plan: a checked search.
        command: the line that goes on with it.
        progress: told the trials that are newly finished, by whichever worker, and those in all.
        told: told what it waits for.
        done: told each trial that this process finished.

    Raises:
        Interrupted: by a signal.
        UnreadableFile: the database went away and did not come back.
        Mismatch: the study is about something else.
        LorsmergeError: see the subclasses.
    """
    run = _Run(plan, progress, told, done)
    try:
        run.join()
        run.do_trials()
        if plan.settings.worker:
            return SearchReport(plan, run.rows(), (), None, None, None, run.own)
        finalists = run.finalists()
        base = run.by_beam("the base", lambda: run.scorer.load_base())
        test = base_test = None
        if plan.test:
            told("beam search with the best and the base on the test set")
            run.scorer.load(plan.space.recipe(finalists[0].trial.point))
            test = run.scorer.score(plan.test)
            run.scorer.load_base()
            base_test = run.scorer.score(plan.test)
        return SearchReport(plan, run.rows(), finalists, base, test, base_test, run.own)
    except KeyboardInterrupt:
        raise Interrupted(
            f"Interrupted; what was finished is kept in {shown(plan.study)}.",
            f"Go on with: {command}",
        ) from None
    except STORAGE_ERRORS as error:
        raise UnreadableFile(
            f"{shown(plan.study)} went away in the middle of the search ({reason(error)}).",
            f"What was finished is in it. When it is back, go on with: {command}",
        ) from error


class _Run:
    """A process of a search."""

    def __init__(
        self,
        plan: SearchPlan,
        progress: Callable[[int, int], None],
        told: Callable[[str], None],
        done: Callable[[TrialRow], None],
    ) -> None:
        self.plan, self.progress, self.told, self.done = plan, progress, told, done
        self.own = 0
        self._reported = 0
        self._titles = {
            tuple(self._point(point).items()): title
            for title, point in plan.space.first_points().items()
        }
        self.storage: RDBStorage
        self.study: Study

    @cached_property
    def scorer(self) -> Scorer:
        """The model and all that is kept for it, made when it is first needed."""
        plan = self.plan
        settings = plan.settings
        device = resolve_device(settings.device)
        speech = plan.source.open(parse_speech_dtype(settings.dtype), settings.device)
        ratio = plan.space.values.get("svp")
        free = free_memory()
        merge = RepeatedMerge(
            plan.inputs, ratio.largest if ratio else None, device, plan.threads,
            cache=int(KEPT_MERGES * free),
        )  # fmt: skip
        return Scorer(
            speech, merge, plan.goal.rank_by, settings.decoding, int(KEPT_FEATURES * free),
            settings.normalisation,
        )  # fmt: skip

    def join(self) -> None:
        """Open the study, or begin it; a worker waits for it."""
        plan, began = self.plan, time.monotonic()
        worker = plan.settings.worker
        while True:
            study = None
            if not worker or is_url(plan.study) or os.path.exists(plan.study):
                self.storage = open_storage(plan.study, studies.do_again, self.told)
                study = studies.join_study(
                    self.storage, plan.study, plan.settings.name, plan.fingerprint,
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
        study.sampler = studies.Sampler(plan.settings.sampler, plan.settings.seed, plan.points)
        study.pruner = studies.PRUNERS[plan.settings.pruner]()
        if not worker and study.user_attrs.get(studies.TRIALS) != plan.trials:
            study.set_user_attr(studies.TRIALS, plan.trials)
        self.study = study

    @property
    def total(self) -> int:
        """Trials in all, as the search itself was told."""
        return int(self.study.user_attrs.get(studies.TRIALS, self.plan.trials))

    def do_trials(self) -> None:
        """Do trials until there are enough; a search then waits for those of its workers."""
        waited = failed = False
        while True:
            try:
                studies.recover(self.study)
                trials = studies.live(self.study)
                states = [trial.state for trial in trials]
                self._progress(trials)
                if TrialState.WAITING in states or len(trials) < self.total:
                    self._do_one()
                elif TrialState.RUNNING in states and not self.plan.settings.worker:
                    if not waited:
                        self.told(
                            "waiting for the trials of other workers; those of one that died "
                            f"are done again after {GRACE} s"
                        )
                        waited = True
                    time.sleep(POLL)
                else:
                    return
                failed = False
            except STORAGE_ERRORS as error:
                if failed:
                    raise
                failed = True  # the trial in hand is lost, and done again if the next one works
                self.told(f"{shown(self.plan.study)}: {reason(error)}; trying again.")

    def _progress(self, trials: Sequence[FrozenTrial]) -> None:
        count = len(studies.finished(trials))
        self.progress(count - self._reported, self.total)
        self._reported = count

    def _do_one(self) -> None:
        trial = studies.ask(self.study)
        try:
            trials = studies.live(self.study)
            if sum(t.number < trial.number for t in trials) >= self.total:  # another was faster
                studies.let_be(self.study, trial)
                return
            with studies.signs_of_life(self.storage, trial):
                values = self._try(trial, studies.finished(trials))
        except UpdateFinishedTrialError:
            self.told(f"trial {trial.number}: given up by another worker, as this one gave no sign")
            return
        except STORAGE_ERRORS:
            raise
        except BaseException:
            with suppress(*STORAGE_ERRORS):
                studies.give_up(self.study, self.study.get_trials(deepcopy=False)[trial.number])
            raise
        state = TrialState.PRUNED if values is None else None
        self.done(self._row(self.study.tell(trial, values, state, skip_if_finished=True)))
        self.own += 1

    def _try(self, trial: Trial, finished: Sequence[FrozenTrial]) -> tuple[float, ...] | None:
        """Values of the objectives; None for a trial that is stopped early."""
        point = studies.suggest(trial, self.plan.space)
        wanted = self._point(point)
        twin = next((t for t in finished if self._point(t.params) == wanted), None)
        if twin is not None:
            return self._repeat(trial, twin)
        self.scorer.load(self.plan.space.recipe(point))
        parts = self.plan.parts
        values: tuple[float, ...] = ()
        for step, scores in enumerate(self.scorer.rank(parts), 1):
            values = self.plan.goal.values(scores)
            last = step == len(parts)
            if not last:
                trial.report(values[0], step)
            stopped = not last and trial.should_prune()
            if last or stopped:
                part = len(parts[step - 1]) / len(parts[-1])
                trial.set_user_attr(RESULT, {"scores": scores, "part": part})
            if stopped:
                return None
        return values

    def _repeat(self, trial: Trial, twin: FrozenTrial) -> tuple[float, ...] | None:
        """The result of a finished trial that tried the same."""
        same = studies.place_of(self.study, twin) + 1
        trial.set_user_attr(RESULT, {"same": same} | twin.user_attrs[RESULT])
        for step, value in twin.intermediate_values.items():
            trial.report(value, step)
        return None if twin.state == TrialState.PRUNED else tuple(twin.values or ())

    def _point(self, params: Mapping[str, Any]) -> Point:
        """As it stands in a recipe."""
        point = {name: params[name] for name in self.plan.space.parameters}
        return {name: None if value is None else rounded(value) for name, value in point.items()}

    def _row(self, trial: FrozenTrial) -> TrialRow:
        point, result = self._point(trial.params), trial.user_attrs[RESULT]
        return TrialRow(
            number=studies.place_of(self.study, trial) + 1,
            title=self._titles.get(tuple(point.items()), ""),
            stopped=trial.state == TrialState.PRUNED,
            part=result["part"],
            point=point,
            values=tuple(trial.values or ()),
            scores=result["scores"],
            same_as=result.get("same"),
        )

    def rows(self) -> tuple[TrialRow, ...]:
        """The finished trials."""
        return tuple(self._row(trial) for trial in studies.finished(studies.live(self.study)))

    def finalists(self) -> tuple[Finalist, ...]:
        """The best trials, scored as `eval` does, the best of them first."""
        goal = self.plan.goal
        rows = [row for row in self.rows() if not row.stopped and row.same_as is None]
        costs = [goal.costs(row.values, ranking=True) for row in rows]
        chosen = [rows[n] for n in ordered(costs)[: self.plan.settings.finalists]]
        scored = [self._final(row) for row in chosen]
        values = [goal.values(scores) for scores in scored]
        costs = [goal.costs(found, ranking=False) for found in values]
        order = ordered(costs)
        if len(goal.tasks) == 1:
            front = set(order[:1])
        else:
            front = set(pareto(costs)[0])
            order.sort(key=lambda n: (n not in front, sum(costs[n])))
        return tuple(Finalist(chosen[n], values[n], scored[n], n in front) for n in order)

    def _final(self, row: TrialRow) -> Scores:
        if self.plan.goal.rank_by == "beam":
            return row.scores
        recipe = self.plan.space.recipe(row.point)
        return self.by_beam(f"trial {row.number}", lambda: self.scorer.load(recipe))

    def by_beam(self, what: str, load: Callable[[], None]) -> Scores:
        """Scores of a model as `eval` has them, from the study where an earlier run got there."""
        key = f"{what} beam {self.plan.settings.beam}"
        known: Scores | None = self.study.user_attrs.get(key)
        if known is None:
            self.told(f"beam search with {what}")
            load()
            known = self.scorer.score(self.plan.rows)
            self.study.set_user_attr(key, known)
        return known
