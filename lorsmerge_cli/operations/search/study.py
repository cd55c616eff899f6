"""The trials of a search in their study: who does which, what of, and what becomes of lost ones.

A trial is known by its place, not by Optuna's number: one that was lost with its worker is done
again under another number, and at the same place. What is tried there follows from the place,
the seed and the trials that are finished, so that a search by one worker comes to the same trials
however often it was killed, and workers that share a seed do not repeat one another.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import os
import socket
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from lorsmerge_cli.errors import Mismatch, UnreadableFile
from lorsmerge_cli.operations.search.scores import Statistics
from lorsmerge_cli.operations.search.storage import GRACE, HEARTBEAT, STORAGE_ERRORS
from lorsmerge_cli.recipe.search_settings import shown
from lorsmerge_cli.recipe.space import Point, Space

COMPARED = 5  # trials that are finished before any is stopped early
BEHIND = 2.0  # standard errors of the paired difference that one is stopped at
WORK = "work"  # attribute of a trial: its `place`, its `worker`; whether it is `signed`, `again`, `surplus`
INPUTS, TRIALS = "inputs", "trials"  # attributes of a study
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def keep_statistics(holder: Trial | Study, key: str, statistics: Statistics) -> None:
    """Keep statistics as attributes of a trial or of the study, one for each language and task.

    Compressed: a MySQL attribute holds 64 kB.
    """
    for group, table in statistics.items():
        packed = zlib.compress(np.ascontiguousarray(table, dtype="<f8").tobytes())
        holder.set_user_attr(f"{key} {group}", base64.b64encode(packed).decode("ascii"))


def kept_statistics(
    attributes: Mapping[str, Any], key: str, shapes: Mapping[str, tuple[int, int]]
) -> Statistics | None:
    """Return what was kept under a key; None where an older version kept nothing.

    Args:
        attributes: of a trial or a study.
        key: as given to `keep_statistics`.
        shapes: of each language and task, so that a stranger's database fills no memory.

    Raises:
        UnreadableFile: what is there was not kept by a search of this dev set.
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


def join_study(
    storage: RDBStorage,
    place: str,
    name: str,
    inputs: Mapping[str, str],
    directions: Sequence[str],
    *,
    create: bool,
) -> Study | None:
    """The study of a name, made where there is none yet.

    Args:
        storage: of `place`.
        place: for messages.
        name: of the study.
        inputs: everything that its trials depend on, to tell it from others of that name.
        directions: `minimize` or `maximize`, of each objective.
        create: whether to make it; else None stands for one that is not there.

    Raises:
        Mismatch: it is about something else.
    """
    known = {
        study.study_name
        for study in optuna.get_all_study_summaries(storage, include_best_trial=False)
    }
    if name not in known:
        if not create:
            return None
        with suppress(DuplicatedStudyError):  # another worker was faster
            storage.create_new_study([StudyDirection[word.upper()] for word in directions], name)
    study = optuna.load_study(study_name=name, storage=storage)
    found = study.user_attrs.get(INPUTS)
    if found is None and not study.get_trials(deepcopy=False):
        if not create:
            return None  # its maker is not ready
        study.set_user_attr(INPUTS, dict(inputs))
    elif found != inputs:
        found = found or {}
        other = [key for key in inputs if found.get(key) != inputs[key]]
        raise Mismatch(
            f"The study {name!r} in {shown(place)} is about other inputs: it differs in "
            f"{', '.join(other) or 'its settings'}.",
            "Give what it was begun with to go on with it, or another --name to begin a new one.",
        )
    return study


def live(study: Study) -> list[FrozenTrial]:
    """The trials that count: finished, running, or waiting to be done again; by place."""
    trials = study.get_trials(deepcopy=False)
    counted = [trial for trial in trials if trial.state != TrialState.FAIL]
    return sorted(counted, key=lambda trial: place_of(study, trial))


def finished(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Those that have a result."""
    return [trial for trial in trials if trial.state in FINISHED]


def place_of(study: Study, trial: FrozenTrial) -> int:
    """0, 1, 2, ... as the trials were begun, not counting those that were done again."""
    work = trial.user_attrs.get(WORK, {})
    if "place" in work:
        return int(work["place"])
    earlier = (t for t in study.get_trials(deepcopy=False) if t.number < trial.number)
    return sum(not {"again", "surplus"} & t.user_attrs.get(WORK, {}).keys() for t in earlier)


def do_again(study: Study, trial: FrozenTrial) -> None:
    """Put what was lost back into the queue, at its place and with what was chosen for it."""
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={
                WORK: {
                    "place": place_of(study, trial),
                    "worker": this_process(),
                    "again": True,
                }
            },
        )
    )


def let_be(study: Study, trial: Trial) -> None:
    """End a trial that is one too many."""
    found = study.get_trials(deepcopy=False)[trial.number]
    trial.set_user_attr(WORK, found.user_attrs[WORK] | {"surplus": True})
    study.tell(trial, state=TrialState.FAIL)


def give_up(study: Study, trial: FrozenTrial) -> None:
    """Have a trial done again that was begun and will not be finished."""
    try:
        study.tell(trial.number, state=TrialState.FAIL)
    except (ValueError, RuntimeError):  # it ended meanwhile, or another worker was faster
        return
    do_again(study, trial)


def recover(study: Study) -> None:
    """Put the trials of dead workers back into the queue.

    On this machine a process that is gone is known to be; of another one, its signs of life tell.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        work = trial.user_attrs.get(WORK, {})
        worker = work.get("worker")
        lost = worker is not None and (worker == this_process() or not _alive(worker))
        if not work.get("signed"):  # nor is there a sign of life, by which Optuna tells stale ones
            began = trial.datetime_start or datetime.now()
            lost |= datetime.now() - began > timedelta(seconds=GRACE)
        if lost:
            give_up(study, trial)


def workers_here(study: Study) -> int:
    """Count the processes on this machine that are doing trials, this one among them."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    workers = {trial.user_attrs.get(WORK, {}).get("worker") for trial in running}
    here = {name for name in workers if name and name.rsplit(" ", 2)[0] == _machine()}
    return len({name for name in here if _alive(name)} | {this_process()})


def ask(study: Study) -> Trial:
    """Begin a trial: a lost one first, else a new one.

    A new one is put into the queue and taken from there, so that it bears a worker's name from
    its first moment: were this process killed before `before_trial` signs it, the next one would
    not know whether it is lost, and would do it out of its turn.
    """
    if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING, user_attrs={WORK: {"worker": this_process()}}
            )
        )
    with warnings.catch_warnings():
        # Optuna's own loop gives signs of life; ours are below
        warnings.filterwarnings("ignore", message="Heartbeat of storage")
        return study.ask()


@contextmanager
def signs_of_life(storage: RDBStorage, trial: Trial) -> Iterator[None]:
    """Tell the other workers, while the block runs, that this one is alive."""
    ended = threading.Event()

    def beat() -> None:
        while True:
            with suppress(*STORAGE_ERRORS):
                storage.record_heartbeat(trial._trial_id)
            if ended.wait(HEARTBEAT):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def this_process() -> str:
    """A name that no other process has, here or on another machine."""
    return f"{_machine()} {os.getpid()} {_started(os.getpid())}"


def _alive(worker: str) -> bool:
    """Whether a process may still run."""
    machine, pid, started = worker.rsplit(" ", 2)
    return machine != _machine() or _started(int(pid)) == started


def _machine() -> str:
    """This machine since it was booted, or this container: where process ids mean the same."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "/".join(parts).replace(" ", "_")


def _started(pid: int) -> str:
    """When a process began, which tells it from a later one of its id; `-` if it is gone."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return "-"
        except OSError:
            pass
        return "?"
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "-"
    return "-" if state in "ZX" else fields[18]


class Sampler(BaseSampler):
    """Given points first, and then another sampler, seeded anew for each place.

    Args:
        kind: of SAMPLERS; a grid has given points only.
        seed: of everything random.
        points: what to try at the first places.
    """

    def __init__(self, kind: str, seed: int, points: Sequence[Point]) -> None:
        self.kind, self.seed, self.points = kind, seed, points
        self._place = 0
        self._inner: BaseSampler = RandomSampler()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._place = place_of(study, trial)
        work = trial.user_attrs.get(WORK, {})
        work = work | {"place": self._place, "worker": this_process(), "signed": True}
        if isinstance(study._storage, RDBStorage):
            study._storage.record_heartbeat(trial._trial_id)
        study._storage.set_trial_user_attr(trial._trial_id, WORK, work)
        digest = hashlib.sha256(f"{self.seed} {self._place}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            if self.kind == "cmaes":
                self._inner = CmaEsSampler(seed=seed, warn_independent_sampling=False)
            else:
                # a liar: what others are trying counts as tried, and found to be bad
                self._inner = TPESampler(seed=seed, constant_liar=True)

    @property
    def _given(self) -> Point | None:
        return self.points[self._place] if self._place < len(self.points) else None

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        if self._given is not None:
            return {}
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if self._given is not None:
            return {}
        if self.kind == "cmaes":  # it seeds by the number
            trial = copy.copy(trial)
            trial.number = self._place
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        if self._given is not None:
            return self._given[param_name]
        return self._inner.sample_independent(study, trial, param_name, param_distribution)


def suggest(trial: Trial, space: Space) -> Point:
    """What is to be tried in a trial."""
    point: Point = {}
    for name, values in space.parameters.items():
        if values.choices:
            found: Any = trial.suggest_categorical(name, values.choices)
        else:
            found = trial.suggest_float(name, values.low, values.high, step=values.step)
        point[name] = found
    return point
