"""A search: its scores are eval's, and its trials are kept whatever happens on the way."""

from __future__ import annotations

import itertools
import json
import os
import platform
import random
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import TrialState
from search_calls import COMMAND, SPACE, Formula, folder, formula, plan, quick_disk, run
from speech_models import make_test_set

from lorsmerge_cli import merge
from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.dataset import load_data
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import Interrupted, LorsmergeError, Mismatch, UnreadableFile, UsageFault
from lorsmerge_cli.metrics.metric import Scoring
from lorsmerge_cli.operations.eval import run_evaluation
from lorsmerge_cli.operations.merge import inputs as merge_inputs
from lorsmerge_cli.operations.search import run as module
from lorsmerge_cli.operations.search import storage as search_storage
from lorsmerge_cli.operations.search import study as search_study
from lorsmerge_cli.operations.search.files import (
    document,
    of_earlier_fronts,
    write_report,
)
from lorsmerge_cli.operations.search.report import SearchReport
from lorsmerge_cli.operations.search.scores import ordered, pareto, parts_of
from lorsmerge_cli.recipe.recipe import load_recipe
from lorsmerge_cli.results.document import TestSet
from lorsmerge_cli.results.records import average
from lorsmerge_cli.speech.memory import Memory
from lorsmerge_cli.speech.source import find_model

__all__ = ["folder", "formula", "quick_disk"]
pytestmark = pytest.mark.usefixtures("quick_disk")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return tmp_path / "study.journal"


def averages(folder: Path, report: SearchReport, point: dict[str, Any], beam: int) -> list[float]:
    """What `merge` and `eval` make of a point: average error rate, average BLEU."""
    recipe = report.plan.space.recipe(point).resolved()
    output = report.plan.settings.output.parent / "merged"
    merge(folder / "base", list(recipe.deltas), output, method=recipe.method, force=True)
    rows = load_data([folder / "data" / "test.jsonl"], max_seconds=2.0).utterances
    records = run_evaluation(
        [find_model(output, name="merged")], [TestSet("dev", rows)],
        scoring=Scoring(samples=2), beam=beam, device="cpu",
    ).records  # fmt: skip
    return [average([r for r in records if r.task == task])[0] for task in ("asr", "st")]


# --- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_delta", ["", pytest.param("svp,scale", marks=pytest.mark.slow)])
def test_scores_of_trials_and_finalists_are_those_of_merge_and_eval(
    folder: Path, study: Path, per_delta: str
) -> None:
    report = run(folder, study, trials=2, finalists=1, per_delta=per_delta)
    assert len({row.values for row in report.trials}) > 1
    for row in report.trials:
        expected = averages(folder, report, row.point, beam=1)
        assert row.values == pytest.approx(expected, abs=1e-9)
        assert (row.part, row.stopped) == (1.0, False)
    for finalist in report.finalists:
        expected = averages(folder, report, finalist.trial.point, beam=2)
        assert finalist.values == pytest.approx(expected, abs=1e-9)


def test_scores_are_of_the_normalisation_asked_for(
    folder: Path, study: Path, tmp_path: Path
) -> None:
    manifest = make_test_set(tmp_path / "titles", count=20)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    text = "".join(json.dumps(row | {"text": row["text"].title()}) + "\n" for row in rows)
    manifest.write_text(text)
    arguments = {"trials": 1, "finalists": 1, "data": [manifest]}
    report = run(folder, study, **arguments, normalisation="raw")
    rows = load_data([manifest], max_seconds=2.0).utterances
    base = run_evaluation(
        [find_model(folder / "base", name="base")], [TestSet("dev", rows)],
        scoring=Scoring("raw", samples=2), beam=2, device="cpu",
    )  # fmt: skip
    assert report.base == pytest.approx({f"{r.language}_{r.task}": r.score for r in base.records})
    assert document(report)["normalisation"] == "raw"
    with pytest.raises(Mismatch, match="--normalise"):
        run(folder, study, **arguments, normalisation="auto")


def test_the_best_is_scored_once_more_on_a_test_set(
    folder: Path, study: Path, tmp_path: Path
) -> None:
    other = make_test_set(tmp_path / "other", count=6, seed=5)
    report = run(
        folder,
        study,
        trials=2,
        finalists=1,
        task=None,
        test=[other],
        objective="wer",
        pruner="none",
    )
    write_report(report)
    recipe = load_recipe(report.plan.settings.output).resolved()
    output = tmp_path / "merged"
    merge(folder / "base", list(recipe.deltas), output, method=recipe.method)
    rows = load_data([other], max_seconds=2.0).utterances
    models = [find_model(path, name=path.name) for path in (output, folder / "base")]
    records = run_evaluation(
        models, [TestSet("t", rows)], scoring=Scoring(samples=2), beam=2, device="cpu"
    ).records
    for name, found in (("merged", report.test), ("base", report.base_test)):
        own = [r for r in records if (r.model, r.task) == (name, "asr")]
        expected = {f"{r.language}_{r.task}": r.score for r in own}
        assert found == pytest.approx(expected, abs=1e-9)
    assert report.test != report.base_test
    (tested,) = report.tested
    goal = report.plan.goal
    assert tested.difference == pytest.approx(
        goal.values(report.test)[0] - goal.values(report.base_test)[0]
    )
    assert 0 < tested.p_value <= 1
    speakers, warning = report.plan.warnings
    assert "test speakers are in the dev set too" in speakers
    assert "The dev set is small for asr: 12 utterances, of 4 speakers in one language" in warning


def test_a_dev_set_that_shares_utterances_with_the_test_set_is_a_warning(
    folder: Path, study: Path
) -> None:
    data = folder / "data" / "test.jsonl"
    assert plan(folder, study, test=[data]).warnings[0] == (
        "20 of the 20 test utterances are in the dev set too: a score on them says nothing about "
        "new data."
    )


def test_losses_rank_trials_and_decoding_the_finalists(folder: Path, study: Path) -> None:
    report = run(
        folder, study, trials=2, finalists=1, rank_by="loss", objective="bleu", pruner="none"
    )
    assert report.plan.goal.names(ranking=True) == ("st loss",)
    assert all(set(row.scores) == {"ca_st", "de_st"} for row in report.trials)
    for finalist in report.finalists:
        expected = averages(folder, report, finalist.trial.point, beam=2)[1:]
        assert finalist.values == pytest.approx(expected, abs=1e-9)


def test_parts_grow_and_have_every_language_and_task() -> None:
    rows = [
        Utterance(f"u{n}", AudioFile(Path("x")), "", language, task)
        for n, (language, task) in enumerate([("ca", "asr")] * 40 + [("de", "st")] * 8)
    ]
    parts = parts_of(rows, (0.25, 0.5, 1.0))
    assert [len(part) for part in parts] == [12, 24, 48]
    for part, after in itertools.pairwise(parts):
        assert {row.id for row in part} < {row.id for row in after}
    for part, share in zip(parts, (0.25, 0.5, 1.0), strict=True):
        assert sum(row.task == "st" for row in part) == 8 * share
    assert parts_of(rows[::-1], (0.5,))[0] != rows[::-1][:24]
    assert {r.id for r in parts_of(rows[::-1], (0.5,))[0]} == {r.id for r in parts[1]}


def test_fronts_are_those_of_the_definition() -> None:
    rng = random.Random(0)
    costs = [(rng.randint(0, 9), rng.randint(0, 9)) for _ in range(60)]

    def better(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a != b and a[0] <= b[0] and a[1] <= b[1]

    fronts = pareto(costs)
    assert sorted(itertools.chain(*fronts)) == list(range(60))
    seen: set[int] = set()
    for front in fronts:
        left = [n for n in range(60) if n not in seen]
        assert front == [n for n in left if not any(better(costs[m], costs[n]) for m in left)]
        seen |= set(front)
    assert ordered([(3.0,), (1.0,), (2.0,), (1.0,)]) == [1, 3, 2, 0]
    assert ordered([(0.0, 9.0), (5.0, 5.0), (1.0, 1.0), (9.0, 0.0)])[:3] == [2, 0, 3]


# --- trials ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_a_search_finds_what_is_good(
    folder: Path, study: Path, formula: Formula, sampler: str
) -> None:
    texts = SPACE | {"svp": "0.1:0.3"}
    settings = {"trials": 60, "sampler": sampler, "objective": "wer", "pruner": "none"}
    report = run(folder, study, texts=texts, finalists=1, **settings)
    assert len(report.trials) == 60
    assert report.finalists[0].values[0] == min(row.values[0] for row in report.trials)
    assert report.finalists[0].values[0] < 22  # 10 at best, 105 at worst


def test_the_known_settings_are_tried_first_and_named(
    folder: Path, study: Path, formula: Formula
) -> None:
    report = run(folder, study, objective="wer", texts=SPACE | {"svp": "none,0.1"}, trials=6)
    assert [row.title for row in report.trials] == [
        "near paper", "near 1/T", "near authors' script", "", "", "",
    ]  # fmt: skip
    assert [row.point["scale"] for row in report.trials[:3]] == [0.15, 0.5, 0.2]


def test_a_grid_is_tried_whole_and_each_point_once(
    folder: Path, study: Path, formula: Formula
) -> None:
    texts = {"svp": "0.1,0.2", "mp": "0.2,none", "scale": "0.1:0.3:0.1"}
    report = run(folder, study, texts=texts, sampler="grid", trials=None, objective="wer")
    points = [tuple(row.point.values()) for row in report.trials]
    assert len(points) == len(set(points)) == 2 * 2 * 3
    assert len(formula.tried) == 12 + len(report.finalists)
    part = run(
        folder, study.with_name("b.journal"), texts=texts, sampler="grid", trials=3, objective="wer"
    )
    assert [tuple(row.point.values()) for row in part.trials] == points[:3]
    assert part.plan.warnings[0] == "3 of the grid's 12 points are tried."


def test_what_was_tried_before_is_not_scored_again(
    folder: Path, study: Path, formula: Formula
) -> None:
    report = run(folder, study, texts={"scale": "0.1,0.2"}, trials=6, objective="wer", finalists=1)
    assert len(formula.tried) == 2 + 1
    again = [row for row in report.trials if row.same_as]
    assert len(again) == 4
    for row in again:
        first = report.trials[row.same_as - 1]
        assert (row.point, row.values, row.scores) == (first.point, first.values, first.scores)


def test_a_trial_that_is_behind_is_stopped(folder: Path, study: Path, formula: Formula) -> None:
    report = run(folder, study, objective="wer", trials=9)
    stopped = [row for row in report.trials if row.stopped]
    assert stopped
    assert {row.part for row in stopped} <= {0.25, 1 / 3, 0.5}
    assert all(not found.trial.stopped for found in report.finalists)
    assert not any(row.stopped for row in report.trials[:5])


def test_more_trials_go_on_where_fewer_ended(folder: Path, study: Path, formula: Formula) -> None:
    first = run(folder, study, objective="wer", trials=4)
    report = run(folder, study, objective="wer", trials=12)
    assert report.trials[:4] == first.trials
    assert [row.number for row in report.trials] == list(range(1, 13))
    assert report.own == 8
    points = [tuple(row.point.values()) for row in report.trials]
    assert len(set(points)) == 12  # what the first run drew is not drawn again


def test_a_seed_repeats_a_search(folder: Path, study: Path, formula: Formula) -> None:
    settings = {"objective": "wer", "trials": 7, "finalists": 1}
    tables = [
        run(folder, study.with_name(f"{n}.journal"), **settings, seed=seed).trials
        for n, seed in enumerate((3, 3, 4))
    ]
    assert tables[0] == tables[1] != tables[2]


def test_a_worker_takes_part_and_leaves_the_rest(
    folder: Path, study: Path, formula: Formula
) -> None:
    texts = {"svp": "0.1,0.2,0.3", "mp": "0.2,0.4"}
    settings = {"texts": texts, "sampler": "grid", "objective": "wer", "trials": None}
    told: list[Any] = []

    def stop_at_three(row: Any) -> None:
        told.append(row)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        run(folder, study, **settings, on_trial=stop_at_three)
    worker = run(folder, study, **settings, worker=True)
    assert (worker.own, len(worker.trials), worker.finalists) == (3, 6, ())
    report = run(folder, study, **settings)
    assert (report.own, len(report.trials)) == (0, 6)
    points = [tuple(row.point.values()) for row in report.trials]
    assert sorted(points) == sorted(itertools.product((0.1, 0.2, 0.3), (0.2, 0.4)))


def test_what_another_worker_began_last_is_not_one_too_many(
    folder: Path, study: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both see room for one more trial; the one that is later discards its own."""
    settings = {"objective": "wer", "trials": 5, "finalists": 1}
    real = Study.ask
    late: list[Any] = []

    def ask(found: Study) -> Any:
        if len(search_study.live(found)) == 4 and not late:
            late.append(1)
            run(folder, study, **settings, worker=True)
        return real(found)

    monkeypatch.setattr(Study, "ask", ask)
    report = run(folder, study, **settings)
    assert late
    assert [row.number for row in report.trials] == [1, 2, 3, 4, 5]
    more = run(folder, study, **settings | {"trials": 7})
    assert (more.own, len(more.trials)) == (2, 7)
    assert more.trials[:5] == report.trials


# --- what happens on the way ----------------------------------------------------------------------


class Killed(BaseException):
    """In place of a SIGKILL."""


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int, when: str) -> None:
    """End the process as if by SIGKILL in its `number`-th trial: asked for, begun or scored."""
    real, beat, requeue = module._Run._try, search_study.heartbeat, search_study.requeue
    begun, scored = itertools.count(1), itertools.count(1)
    dead = False

    def killed() -> None:
        nonlocal dead
        dead = True
        raise Killed

    def attempt(self: Any, *rest: Any) -> Any:
        last = next(scored) == number
        if last and when == "begun":
            killed()
        found = real(self, *rest)
        if last:
            killed()
        return found

    def heartbeat(*rest: Any, **options: Any) -> Any:
        if next(begun) == number and when == "asked":
            killed()
        return beat(*rest, **options)

    monkeypatch.setattr(module._Run, "_try", attempt)
    monkeypatch.setattr(search_study, "heartbeat", heartbeat)
    monkeypatch.setattr(search_study, "requeue", lambda *rest: dead or requeue(*rest))


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let so much time have passed since the heartbeats of the trials."""
    clock = SimpleNamespace(time=lambda: time.time() + seconds)
    monkeypatch.setattr(search_study, "time", clock)


@pytest.mark.parametrize(
    "sampler",
    ["tpe", "grid", pytest.param("cmaes", marks=pytest.mark.slow)],
)
def test_finished_trials_are_kept_and_lost_ones_done_again_after_kills(
    folder: Path, study: Path, formula: Formula, sampler: str
) -> None:
    texts = {"svp": "0.1:0.3:0.1", "mp": "0.2:0.6:0.4", "scale": "0.1:0.9:0.4"}
    settings = {
        "texts": texts,
        "sampler": sampler,
        "trials": 18,
        "objective": "wer",
        "finalists": 2,
    }
    kept: list[Any] = []
    for number, when in (
        (1, "begun"), (2, "scored"), (1, "asked"), (8, "scored"), (2, "begun"), (1, "asked")
    ):  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, number, when)
            with pytest.raises(Killed):
                run(folder, study, **settings, on_trial=kept.append)
    with pytest.MonkeyPatch.context() as patch:
        later(patch, search_study.GRACE + 1)
        report = run(folder, study, **settings, on_trial=kept.append)
    assert [row.number for row in report.trials] == list(range(1, 19))
    assert sorted(kept, key=lambda row: row.number) == list(report.trials)
    first = [tuple(point.values()) for point in report.plan.points]
    tried = [tuple(row.point.values()) for row in report.trials]
    assert tried[: len(first)] == first
    if sampler == "grid":
        assert len(set(tried)) == 18 == len(first)


@pytest.mark.parametrize("when", ["asked", "begun"])
def test_a_killed_search_is_resumed_without_waiting(
    folder: Path, study: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """There is one search to a study, so what it was at is known to be lost."""
    settings = {"objective": "wer", "trials": 4, "finalists": 1}
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, 2, when)
        with pytest.raises(Killed):
            run(folder, study, **settings)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: pytest.fail("it waited"))
    assert [row.number for row in run(folder, study, **settings).trials] == [1, 2, 3, 4]


def test_an_interrupted_search_says_how_to_resume_it(
    folder: Path, study: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"objective": "wer", "trials": 4, "finalists": 1}
    real, count = formula.load, itertools.count()

    def load(recipe: Any) -> None:
        if next(count) == 2:
            raise KeyboardInterrupt
        real(recipe)

    monkeypatch.setattr(formula, "load", load)
    with pytest.raises(Interrupted, match=rf"study.journal\. Resume with: {COMMAND}"):
        run(folder, study, **settings)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: pytest.fail("it waited"))
    report = run(folder, study, **settings, worker=True)  # any process takes it from the queue
    assert (report.own, [row.number for row in report.trials]) == (2, [1, 2, 3, 4])
    assert [row.title for row in report.trials[:3]] == [*report.plan.space.first_points()]


def test_finalists_are_not_scored_again(folder: Path, study: Path, formula: Formula) -> None:
    settings = {"objective": "wer", "trials": 3, "finalists": 2}
    first = run(folder, study, **settings)
    del formula.tried[:]
    assert run(folder, study, **settings).finalists == first.finalists
    assert formula.tried == []
    run(folder, study, **settings, beam=3)
    assert len(formula.tried) == 2 + 2  # and task arithmetic, and the control


def test_a_trial_of_a_dead_worker_is_done_again_and_of_a_living_one_is_not(
    folder: Path, study: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"objective": "wer", "trials": 6, "finalists": 1}
    run(folder, study, **settings | {"trials": 2})
    storage = search_storage.open_storage(str(study))
    optuna.load_study(study_name="search", storage=storage).set_user_attr("trials", 6)
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, 1, "begun")
        with pytest.raises(Killed):
            run(folder, study, **settings, worker=True)
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        later(monkeypatch, search_study.GRACE * (0.9 if len(waits) < 3 else 1.1))

    monkeypatch.setattr(module.time, "sleep", sleep)
    told: list[str] = []
    report = run(folder, study, **settings, on_message=told.append)
    assert told[0].startswith("waiting for the trials of other workers")
    assert len(waits) == 3
    assert [row.number for row in report.trials] == [1, 2, 3, 4, 5, 6]


def test_workers_on_this_machine_share_its_memory(
    folder: Path, study: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that do trials now: neither one of another machine nor one without a heartbeat."""
    shares: list[int] = []
    monkeypatch.setattr(formula, "share_memory", shares.append)
    run(folder, study, trials=1)
    opened = optuna.load_study(study_name="search", storage=search_storage.open_storage(str(study)))
    now, here = time.time(), platform.node()
    for host, number, alive in (
        (here, 1, now), (here, 1, now), ("elsewhere", 2, now), (here, 3, now - 2 * search_study.GRACE),
    ):  # fmt: skip
        trial = opened.ask()
        trial.set_user_attr(search_study.PROCESS, [host, number])
        trial.set_user_attr(search_study.ALIVE, alive)
    assert search_study.workers_here(opened) == 2
    opened.set_user_attr(search_study.TRIALS, 7)
    run(folder, study, worker=True)
    assert shares[0] == 1
    assert set(shares[1:]) == {2}


def test_memory_given_by_hand_is_not_shared(
    folder: Path, study: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[int] = []
    monkeypatch.setattr(formula, "share_memory", shares.append)
    run(folder, study, trials=2, memory=10**12)
    assert shares == []


def test_what_is_kept_and_decoded_with_follows_the_memory_and_the_workers(
    folder: Path, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.Memory, "free", lambda self: 4_000_000)
    scorer = module._Run(plan(folder, study), *[lambda *told: None] * 4).scorer
    assert (scorer.merge.cache.size, scorer.features.limit) == (1_000_000, 1_000_000)
    scorer.share_memory(4)
    assert (scorer.merge.cache.size, scorer.features.limit) == (250_000, 250_000)
    assert scorer.decoding.memory == Memory(None, 4)
    scorer.share_memory(1)
    assert scorer.merge.cache.size == 1_000_000
    by_hand = module._Run(plan(folder, study, memory=7), *[lambda *told: None] * 4).scorer
    assert by_hand.decoding.memory.limit == 7


def test_a_trial_of_a_worker_that_died_before_its_first_heartbeat_is_done_again(
    folder: Path, study: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"objective": "wer", "trials": 4, "finalists": 1}
    real, count = formula.load, itertools.count()

    def load(recipe: Any) -> None:
        if next(count) == 1:
            with pytest.MonkeyPatch.context() as patch:
                kill_at(patch, 1, "asked")
                with pytest.raises(Killed):
                    run(folder, study, **settings, worker=True)
        real(recipe)

    monkeypatch.setattr(formula, "load", load)
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        later(monkeypatch, search_study.GRACE * (0.9 if len(waits) < 3 else 1.1))

    monkeypatch.setattr(module.time, "sleep", sleep)
    report = run(folder, study, **settings)
    assert [row.number for row in report.trials] == [1, 2, 3, 4]
    assert len(waits) == 3


def test_a_trial_that_others_requeued_meanwhile_is_dropped(
    folder: Path, study: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a laptop slept with a trial in hand."""
    settings = {"objective": "wer", "trials": 4, "finalists": 1}
    real, count = formula.load, itertools.count()

    def load(recipe: Any) -> None:
        if next(count) == 1:
            storage = search_storage.open_storage(str(study))
            search_study.requeue(optuna.load_study(study_name="search", storage=storage), 1)
        real(recipe)

    monkeypatch.setattr(formula, "load", load)
    told: list[str] = []
    done: list[Any] = []
    report = run(folder, study, **settings, on_message=told.append, on_trial=done.append)
    assert told[0].startswith("trial 2: requeued by another worker")
    assert [row.number for row in report.trials] == [1, 2, 3, 4]
    assert sorted(done, key=lambda row: row.number) == list(report.trials)


def test_a_recipe_names_the_commits_of_what_is_on_the_hub(
    folder: Path, study: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = run(folder, study, objective="wer", trials=1, finalists=1)
    monkeypatch.setattr(merge_inputs, "pinned", lambda path: f"{path.name}@c0ffee")
    (path,) = write_report(report)
    recipe = load_recipe(path)
    assert [recipe.base, *(entry.path for entry in recipe.deltas)] == [
        "base@c0ffee", "ca.delta@c0ffee", "de.delta@c0ffee",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def begun(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of one trial. Read only."""
    place = tmp_path_factory.mktemp("begun") / "study.journal"
    with pytest.MonkeyPatch.context() as patch:
        scorer = Formula()
        patch.setattr(module._Run, "scorer", property(lambda self: scorer))
        run(folder, place, objective="wer", trials=1, finalists=1)
    return place


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"deltas": ["de.delta", "ca.delta"]}, "the deltas"),
        ({"deltas": ["ca.delta"]}, "the deltas"),
        ({"base": "ca", "deltas": ["base", "de"]}, "the base, the deltas"),
        ({"data": ["other"]}, "the dev set"),
        ({"texts": SPACE | {"svp": "0.1,0.2"}}, "what may be chosen"),
        ({"per_delta": "scale"}, "what may be chosen"),
        ({"rank_by": "loss"}, "the objective"),
        (
            {"sampler": "cmaes", "texts": SPACE | {"svp": "0.1:0.3"}},
            "what may be chosen, --sampler",
        ),
        ({"seed": 1}, "--seed"),
        ({"max_tokens": 9}, "decoding"),
    ],
    ids=str,
)
def test_a_study_of_something_else_is_refused(
    folder: Path, begun: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    for key in ("deltas", "base"):
        if key in change:
            value = change[key]
            change = change | {
                key: [folder / name for name in value] if key == "deltas" else folder / value
            }
    if "data" in change:
        change = {"data": [make_test_set(tmp_path / "other", count=20, seed=3)]}
    with pytest.raises(
        Mismatch, match=rf"'search' in .*study.journal .* differs in {said}\. .*--name"
    ):
        run(folder, begun, **{"objective": "wer", "trials": 1} | change)


def test_a_database_holds_many_searches(folder: Path, study: Path, formula: Formula) -> None:
    for name in ("one", "another"):
        settings = {"objective": "wer", "trials": 1, "seed": len(name)}
        assert run(folder, study, **settings, name=name).own == 1


def test_a_study_that_goes_away_ends_the_search_with_how_to_resume_it(
    folder: Path, study: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = study.with_name("hidden")
    real, count = formula.load, itertools.count()

    def load(recipe: Any) -> None:
        if next(count) == 1:
            shutil.move(study, hidden)
        real(recipe)

    monkeypatch.setattr(formula, "load", load)
    with pytest.raises(
        UnreadableFile, match=rf"study.journal: No such file.* resume with: {COMMAND}"
    ):
        run(folder, study, objective="wer", trials=3)
    assert [path.name for path in study.parent.iterdir()] == ["hidden"]
    shutil.move(hidden, study)
    assert len(run(folder, study, objective="wer", trials=3).trials) == 3


def test_a_study_of_an_earlier_version_is_resumed(
    folder: Path, study: Path, formula: Formula
) -> None:
    """A database of SQLite's, whose trials say at which place they are."""
    database = study.with_suffix(".db")
    settings = {"objective": "wer", "trials": 6, "finalists": 2}
    new = run(folder, study, **settings | {"trials": 3})
    storage = RDBStorage(f"sqlite:///{database}")
    earlier = optuna.create_study(storage=storage, study_name="search", directions=["minimize"])
    journal = search_storage.open_storage(str(study))
    found = optuna.load_study(study_name="search", storage=journal).get_trials()
    for place, again in ((0, {}), (1, {}), (2, {}), (1, {"again": True})):
        lost = place == 1 and not again
        trial, work = found[place], {"place": place, "worker": "elsewhere 1 1", "signed": True}
        earlier.add_trial(
            optuna.create_trial(
                state=TrialState.FAIL if lost else TrialState.COMPLETE,
                params=trial.params, distributions=trial.distributions,
                values=None if lost else trial.values,
                user_attrs=trial.user_attrs | {"work": work | again},
            )
        )  # fmt: skip
    earlier.set_user_attr("inputs", new.plan.fingerprint)
    storage.engine.dispose()
    assert plan(folder, study, study=None, output=study.with_suffix(".toml")).study == str(database)
    report = run(folder, database, **settings)
    assert report.own == 3
    assert report.trials[:3] == new.trials
    assert [row.number for row in report.trials] == [1, 2, 3, 4, 5, 6]
    assert database.read_bytes()[:6] == b"SQLite"


def test_the_study_is_a_journal_beside_the_output(folder: Path, tmp_path: Path) -> None:
    found = plan(folder, tmp_path / "x", study=None, output=tmp_path / "best.toml")
    assert found.study == str(tmp_path / "best.journal")


def test_a_line_of_a_killed_writer_is_cut_off(folder: Path, study: Path, formula: Formula) -> None:
    settings = {"objective": "wer", "trials": 3, "finalists": 1}
    first = run(folder, study, **settings)
    other = search_storage.open_storage(str(study))  # has read all that was whole
    before = study.read_bytes()
    with study.open("ab") as file:
        file.write(b'{"op_code":8,"worker_id":"x","trial_id":0,"user_attr":{"y":"' + b"z" * 9000)
    optuna.load_study(study_name="search", storage=other).set_user_attr("seen", 0)
    lines = study.read_bytes()
    assert lines.startswith(before)
    assert b"zzz" not in lines
    assert json.loads(lines.splitlines()[-1])["user_attr"] == {"seen": 0}
    report = run(folder, study, **settings | {"trials": 5})
    assert report.trials[:3] == first.trials
    assert report.own == 2


STRANGE = {
    "text": b"no database" * 100,
    "database": search_storage.SQLITE + b"no database" * 100,
    "operation": b'{"op_code":77,"worker_id":"x"}\n',
    "words": b'{"op_code":4,"worker_id":"x"}\n',
    "list": b'{"op_code":[0]}\n',
    "deep": b'{"op_code":' + b"[" * 100_000 + b"\n{}\n",
    "binary": b'{"op_code":0\xff\xfe}\n{}\n',
    "last": b'{"op_code":0,"worker_id":"x"\n',
    "what?": search_storage.SQLITE,
}


@pytest.mark.parametrize(
    ("place", "error", "said"),
    [
        ("mysql+nothing://user:secret@host/db", LorsmergeError, "cannot be opened|not installed"),
        ("postgresql+psycopg://user:secret@host/db", LorsmergeError, "not installed"),
        ("text/study.journal", LorsmergeError, "cannot be opened: .*text: File exists"),
        ("text", UnreadableFile, "cannot be opened: it is neither a journal nor a database"),
        ("database", UnreadableFile, "cannot be opened: file is not a database"),
        *((name, UnreadableFile, "cannot be opened") for name in (
            "operation", "words", "list", "deep", "binary", "last"
        )),
        ("pipe", UnreadableFile, "pipe is a FIFO, not a file"),
        ("what?", UsageFault, "question mark"),
    ],
)  # fmt: skip
def test_no_study(
    folder: Path, tmp_path: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch, place: str,
    error: type[Exception], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search_storage, "OPENINGS", 1)
    os.mkfifo("pipe")
    for name, content in STRANGE.items():
        Path(name).write_bytes(content)
    settings = {"study": place, "output": tmp_path / "x.toml"}
    with pytest.raises(error, match=said) as caught:
        run(folder, Path("ignored"), **settings)
    assert "secret" not in str(caught.value)
    assert all(Path(name).read_bytes() == content for name, content in STRANGE.items())


def test_a_worker_needs_a_study(
    folder: Path, study: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    with pytest.raises(LorsmergeError, match=r"no study 'search' in .* -o in place of --worker"):
        run(folder, study, worker=True)
    assert not study.exists()


# --- both objectives ------------------------------------------------------------------------------


def test_both_objectives_give_a_front_and_a_recipe_for_each_of_it(
    folder: Path, study: Path, formula: Formula, tmp_path: Path
) -> None:
    output, table, picture = (tmp_path / name for name in ("best.toml", "trials.csv", "p.png"))
    report = run(
        folder, study, trials=8, finalists=6, output=output, csv=table, plot=picture,
        per_delta="mp", pruner="none",
    )  # fmt: skip
    assert report.plan.goal.tasks == ("asr", "st")
    assert not any(row.stopped for row in report.trials)
    costs = [(found.values[0], -found.values[1]) for found in report.finalists]
    on_front = [n for n in range(6) if report.finalists[n].on_front]
    assert on_front == pareto(costs)[0] == list(range(len(on_front)))
    assert sum(costs[0]) == min(map(sum, costs))
    written = write_report(report)
    recipes = [path for path in written if path.suffix == ".toml"]
    assert len(recipes) == len(on_front)
    assert recipes[0] == output
    for path, found in zip(recipes, report.front, strict=True):
        wanted = report.plan.space.recipe(found.trial.point).resolved()
        assert load_recipe(path).resolved() == wanted
    lines = table.read_text().splitlines()
    assert len(lines) == 9
    assert lines[0].startswith("trial,title,state,part,same as,svp,mp[1],mp[2],scale,WER (greedy),")
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_a_recipe_of_an_earlier_larger_front_is_told_and_never_removed(
    folder: Path, study: Path, formula: Formula, tmp_path: Path
) -> None:
    formula.groups = ["ca_asr", "ca_st"]
    (tmp_path / "best.2.toml").write_text("# lorsmerge search: trial 3 of 8\n")
    (tmp_path / "best.3.toml").write_text("my own recipe")
    report = run(
        folder, study, trials=1, finalists=3, output=tmp_path / "best.toml", force=True,
        texts={"scale": "0.1:0.9"},
    )  # fmt: skip
    write_report(report)
    left = sorted(path.name for path in tmp_path.glob("best*.toml"))
    assert left == ["best.2.toml", "best.3.toml", "best.toml"]
    assert of_earlier_fronts(report) == [tmp_path / "best.2.toml"]


def test_no_recipe_of_a_front_replaces_a_file(folder: Path, study: Path) -> None:
    study.with_name("study.3.toml").write_text("mine")
    with pytest.raises(LorsmergeError, match=r"study.3.toml exists. Give --force"):
        plan(folder, study)
    plan(folder, study, finalists=2)
    plan(folder, study, objective="wer")


# --- settings that are wrong ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sampler": "magic"}, "--sampler magic: unknown. Use grid, tpe, cmaes"),
        ({"pruner": "hyperband"}, "--pruner hyperband: unknown. Use paired, none"),
        ({"objective": "cer"}, "--objective cer: unknown"),
        ({"rank_by": "ear"}, "--rank-by ear: unknown"),
        ({"sampler": "cmaes"}, "two or more parameters that are ranges"),
        ({"sampler": "cmaes", "texts": {"scale": "0:1"}}, "two or more parameters"),
        ({"sampler": "grid"}, "--sampler grid needs a step for --mp"),
        ({"objective": "both", "data": []}, "no asr utterances"),
        ({"output": None}, "There is no output"),
        ({"output": Path("best.json")}, r"best.json: a recipe .* -o best.toml"),
        ({"worker": True, "output": Path("x.toml")}, "A --worker writes nothing"),
        ({"worker": True, "study": None}, "A --worker needs --study"),
        ({"dtype": "int8"}, "no dtype 'int8'"),
    ],
    ids=str,
)
def test_wrong_settings(folder: Path, study: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(LorsmergeError, match=said) as caught:
        plan(folder, study, **change)
    assert caught.value.exit_code == 2
