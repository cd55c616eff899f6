"""Keep the trials of a search in an Optuna study; requeue those that are lost."""

from __future__ import annotations

import base64
import os
import platform
import secrets
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler, CmaEsSampler, TPESampler
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from lorsmerge_cli.errors import Mismatch, UnreadableFile
from lorsmerge_cli.operations.search.plan import SearchPlan
from lorsmerge_cli.operations.search.scores import Statistics
from lorsmerge_cli.operations.search.storage import STORAGE_ERRORS, open_storage
from lorsmerge_cli.recipe.search_settings import SearchSettings, is_url, shown
from lorsmerge_cli.recipe.space import Point, Space

COMPARED = 5  # trials that are finished before any is stopped early
BEHIND = 2.0  # standard errors of the paired difference that one is stopped at
HEARTBEAT, GRACE = 30, 150  # seconds between heartbeats, and without one until a trial is lost
# attributes of a trial: its last heartbeat, whether a worker does it, host and number of the process
ALIVE, WORKER, PROCESS = "alive", "worker", "process"
WORK, SURPLUS = "work", "surplus"  # attribute of a discarded trial; earlier versions' `place`
# attribute of a trial: `scores`, of which `part`, and the `same` one
RESULT = "result"
INPUTS, TRIALS = "inputs", "trials"  # attributes of a study
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def keep_statistics(holder: Trial | Study, key: str, statistics: Statistics) -> None:
    """Keep statistics as attributes of a trial or of the study, one for each language and task.

    They are compressed, as a MySQL attribute holds 64 kB.
    """
    for group, table in statistics.items():
        packed = zlib.compress(np.ascontiguousarray(table, dtype="<f8").tobytes())
        holder.set_user_attr(f"{key} {group}", base64.b64encode(packed).decode("ascii"))


def kept_statistics(
    attributes: Mapping[str, Any], key: str, shapes: Mapping[str, tuple[int, int]]
) -> Statistics | None:
    """Return what `keep_statistics` kept under a key; None where an older version kept nothing.

    Args:
        attributes: of a trial or a study.
        key: as given to `keep_statistics`.
        shapes: of each language and task, so that a stranger's database cannot fill the memory.

    Raises:
        UnreadableFile: the attribute was not kept by a search of this dev set.
    """
    found: Statistics = {}
    for group, shape in shapes.items():
        packed = attributes.get(f"{key} {group}")
        if packed is None:
            return None
        try:
            size = 8 * shape[0] * shape[1]
            raw = zlib.decompressobj().decompress(base64.b64decode(packed), size + 1)
            found[group] = np.frombuffer(raw, dtype="<f8").astype(np.float64).reshape(shape)
        except (TypeError, ValueError, zlib.error):
            raise UnreadableFile(
                f"The study holds {key} {group} that no search of this dev set kept.",
                "Begin a new study with another --name.",
            ) from None
    return found


def join_study(plan: SearchPlan) -> Study | None:
    """Return the study of a search, created where there is none; None if a worker finds none yet.

    Raises:
        Mismatch: it is about something else.
    """
    name, create = plan.settings.name, not plan.settings.worker
    if not (create or is_url(plan.study) or os.path.exists(plan.study)):
        return None
    storage = open_storage(plan.study)
    if create:
        directions = plan.goal.directions(ranking=True)
        study = optuna.create_study(
            storage=storage, study_name=name, directions=directions, load_if_exists=True
        )
    else:
        try:
            study = optuna.load_study(study_name=name, storage=storage)
        except KeyError:
            return None
    found, inputs = study.user_attrs.get(INPUTS), plan.fingerprint
    if found is None and not finished(live(study)):
        return study if create else None
    if found != inputs:
        found = found or {}
        other = [key for key in inputs if found.get(key) != inputs[key]]
        raise Mismatch(
            f"The study {name!r} in {shown(plan.study)} is about other inputs: it differs in "
            f"{', '.join(other) or 'its settings'}.",
            "Give what it was begun with to resume it, or another --name to begin a new one.",
        )
    return study


def begin(study: Study, plan: SearchPlan) -> None:
    """Enqueue what is tried first, and let the workers in; requeue what an earlier run left.

    Args:
        study: of the plan.
        plan: of a search, not of a worker.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        # no worker's, and there is one search to a study: that of a dead process
        if not trial.user_attrs.get(WORKER):
            requeue(study, trial.number)
    for point in plan.points[: plan.trials]:
        study.enqueue_trial(point, skip_if_exists=True)
    # the inputs last: workers wait for them
    for key, value in ((TRIALS, plan.trials), (INPUTS, plan.fingerprint)):
        if study.user_attrs.get(key) != value:
            study.set_user_attr(key, value)


def make_sampler(settings: SearchSettings, begun: int) -> BaseSampler:
    """Return Optuna's sampler for a process of a search.

    Args:
        settings: of the search. Of a grid every point is enqueued, and nothing sampled.
        begun: trials there are already: what another run drew is not to be drawn again.
    """
    # workers draw at the same time, so each needs entropy of its own, and none can be repeated
    entropy = [settings.seed, begun, *([secrets.randbits(64)] if settings.worker else [])]
    drawn = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    if settings.sampler == "cmaes":
        return CmaEsSampler(seed=drawn, warn_independent_sampling=False)
    # a liar: trials that are running count as finished with a bad result
    return TPESampler(seed=drawn, constant_liar=True)


def live(study: Study) -> dict[int, FrozenTrial]:
    """Return the trials that count (finished, running or in the queue) by trial number.

    Numbers are 1, 2, 3, ... in the order in which trials were first asked for. Unlike Optuna's they
    have no gaps, as a requeued trial keeps the number of the lost one.
    """
    trials = study.get_trials(deepcopy=False)
    numbers: dict[int, int] = {}
    discarded = 0
    for trial in trials:
        work = trial.user_attrs.get(WORK, {})
        lost = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
        if "place" in work:  # of an earlier version
            numbers[trial.number] = int(work["place"]) + 1
        elif lost is not None:
            numbers[trial.number] = numbers[lost]
        else:
            numbers[trial.number] = trial.number + 1 - discarded
        discarded += lost is not None or bool({"again", SURPLUS} & work.keys())
    found = {numbers[t.number]: t for t in trials if t.state != TrialState.FAIL}
    return dict(sorted(found.items()))


def finished(trials: Mapping[int, FrozenTrial]) -> dict[int, FrozenTrial]:
    """Return the trials that have a result."""
    return {number: trial for number, trial in trials.items() if trial.state in FINISHED}


def discard(study: Study, trial: Trial) -> None:
    """Fail a trial that exceeds the quota, because another worker was faster."""
    trial.set_user_attr(WORK, {SURPLUS: True})
    study.tell(trial, state=TrialState.FAIL)


def requeue(study: Study, number: int) -> None:
    """Fail a running trial, and put its point back into the queue."""
    try:
        lost = study.tell(number, state=TrialState.FAIL)
    except (ValueError, UpdateFinishedTrialError):  # it ended, or another worker was faster
        return
    RetryHeartbeatStaleTrialCallback()(study, lost)


def requeue_lost(study: Study) -> None:
    """Requeue the running trials of workers that gave no heartbeat for GRACE seconds.

    Optuna (5.0) has heartbeats only for databases, and misses a trial whose process died before its
    first one. Here they are an attribute of the trial, which any storage keeps.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        # a requeued trial still has the last heartbeat of the lost one
        if time.time() - max(began, trial.user_attrs.get(ALIVE, 0.0)) > GRACE:
            requeue(study, trial.number)


def workers_here(study: Study) -> int:
    """Return the number of processes on this machine that do trials, this one included."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    alive = [t.user_attrs for t in running if time.time() - t.user_attrs.get(ALIVE, 0.0) <= GRACE]
    processes = [found[PROCESS] for found in alive if PROCESS in found]
    return len({number for host, number in processes if host == platform.node()} | {os.getpid()})


@contextmanager
def heartbeat(trial: Trial, *, worker: bool) -> Iterator[None]:
    """Record in the study, while the block runs, that the process of its trial is alive."""
    trial.set_user_attr(ALIVE, time.time())
    trial.set_user_attr(WORKER, worker)
    trial.set_user_attr(PROCESS, [platform.node(), os.getpid()])
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT):
            with suppress(*STORAGE_ERRORS, UpdateFinishedTrialError):  # the next one may do
                trial.set_user_attr(ALIVE, time.time())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def suggest(trial: Trial, space: Space) -> Point:
    """Return the point that a trial tries, without ratios that its method does not take."""
    point: Point = {}
    for name, values in space.parameters.items():
        if not space.takes(point, name):
            continue  # the sampler need not learn what has no effect
        if values.choices:
            found: Any = trial.suggest_categorical(name, values.choices)
        else:
            found = trial.suggest_float(name, values.low, values.high, step=values.step)
        point[name] = found
    return point
