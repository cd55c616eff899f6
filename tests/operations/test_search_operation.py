"""A search: its scores are eval's, and its trials the same whatever happens on the way."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from operation_calls import run_merge, take_delta
from search_calls import COMMAND, SPACE, Formula, formula, plan, quick_disk, run
from speech_models import make_test_set, make_tuned, make_whisper

from lorsmerge_cli.data.dataset import load_data
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import Interrupted, LorsmergeError, Mismatch, UnreadableFile, UsageFault
from lorsmerge_cli.operations.eval.run import evaluate
from lorsmerge_cli.operations.merge import inputs as merge_inputs
from lorsmerge_cli.operations.search import run as module
from lorsmerge_cli.operations.search import storage as search_storage
from lorsmerge_cli.operations.search import study as search_study
from lorsmerge_cli.operations.search.files import (
    document,
    of_earlier_fronts,
    trials_csv,
    write_report,
)
from lorsmerge_cli.operations.search.report import SearchReport
from lorsmerge_cli.operations.search.scores import ordered, pareto, parts_of
from lorsmerge_cli.recipe.recipe import load_recipe
from lorsmerge_cli.results.document import TestSet
from lorsmerge_cli.results.records import Scoring, average
from lorsmerge_cli.speech.memory import Memory
from lorsmerge_cli.speech.source import find_model

__all__ = ["formula", "quick_disk"]
pytestmark = pytest.mark.usefixtures("quick_disk")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, ca/, de/, their deltas, and data/test.jsonl. Read only."""
    folder = tmp_path_factory.mktemp("search")
    make_whisper(folder / "base")
    for seed, name in enumerate(("ca", "de"), 1):
        make_tuned(folder / "base", folder / name, seed=seed, step=0.5)
        take_delta(folder / "base", folder / name, folder / f"{name}.delta", language=name)
    make_test_set(folder / "data", count=20)
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return tmp_path / "study.db"


def averages(folder: Path, report: SearchReport, point: dict[str, Any], beam: int) -> list[float]:
    """What `merge` and `eval` make of a point: average error rate, average BLEU."""
    recipe = report.plan.space.recipe(point).resolved()
    output = report.plan.settings.output.parent / "merged"
    run_merge(folder / "base", list(recipe.deltas), output, method=recipe.method, force=True)
    rows = load_data([folder / "data" / "test.jsonl"], max_seconds=2.0).utterances
    records = evaluate(
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
    base = evaluate(
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
    run_merge(folder / "base", list(recipe.deltas), output, method=recipe.method)
    rows = load_data([other], max_seconds=2.0).utterances
    models = [find_model(path, name=path.name) for path in (output, folder / "base")]
    records = evaluate(
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
        Utterance(f"u{n}", Path("x"), "", language, task)
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
    part = run(folder, study.with_name("b"), texts=texts, sampler="grid", trials=3, objective="wer")
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


@pytest.mark.slow
def test_more_trials_go_on_where_fewer_ended(folder: Path, study: Path, formula: Formula) -> None:
    wanted = run(folder, study.with_name("b.db"), objective="wer", trials=12)
    run(folder, study, objective="wer", trials=4)
    report = run(folder, study, objective="wer", trials=12)
    assert report.trials == wanted.trials
    assert report.own == 8
    assert trials_csv(report) == trials_csv(wanted)


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
        run(folder, study, **settings, done=stop_at_three)
    worker = run(folder, study, **settings, worker=True)
    assert (worker.own, len(worker.trials), worker.finalists) == (3, 6, ())
    report = run(folder, study, **settings)
    assert (report.own, len(report.trials)) == (0, 6)
    points = [tuple(row.point.values()) for row in report.trials]
    assert sorted(points) == sorted(itertools.product((0.1, 0.2, 0.3), (0.2, 0.4)))


def test_what_another_worker_began_last_is_not_one_too_many(
    folder: Path, study: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both see room for one more trial; the one that is later lets it be."""
    settings = {"objective": "wer", "trials": 5, "finalists": 1}
    real = search_study.ask
    late: list[Any] = []

    def ask(found: Any) -> Any:
        if len(search_study.live(found)) == 4 and not late:
            late.append(1)
            run(folder, study, **settings, worker=True)
        return real(found)

    monkeypatch.setattr(search_study, "ask", ask)
    report = run(folder, study, **settings)
    assert late
    assert [row.number for row in report.trials] == [1, 2, 3, 4, 5]
    del late[:]
    more = run(folder, study, **settings | {"trials": 7})
    monkeypatch.undo()
    assert [row.number for row in more.trials] == [1, 2, 3, 4, 5, 6, 7]


# --- what happens on the way ----------------------------------------------------------------------


class Killed(BaseException):
    """In place of a SIGKILL."""


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int, when: str) -> None:
    """End the process as if by SIGKILL in its `number`-th trial: unsigned, signed or scored."""
    real, count = module._Run._try, itertools.count(1)
    sign, asked = search_study.Sampler.before_trial, itertools.count(1)
    give_up, dead = search_study.give_up, False

    def killed() -> None:
        nonlocal dead
        dead = True
        raise Killed

    def attempt(self: Any, *rest: Any) -> Any:
        last = next(count) == number
        if last and when == "signed":
            killed()
        found = real(self, *rest)
        if last:
            killed()
        return found

    def before_trial(self: Any, *rest: Any) -> None:
        if next(asked) == number and when == "unsigned":
            killed()
        sign(self, *rest)

    monkeypatch.setattr(module._Run, "_try", attempt)
    monkeypatch.setattr(search_study.Sampler, "before_trial", before_trial)
    monkeypatch.setattr(search_study, "give_up", lambda *rest: dead or give_up(*rest))
    gone = f"{search_study._machine()} 4194999 1"
    monkeypatch.setattr(search_study, "this_process", lambda: gone)


@pytest.mark.parametrize(
    "sampler",
    ["tpe", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cmaes", "grid"))],
)
def test_the_trials_are_the_same_after_kills(
    folder: Path, study: Path, formula: Formula, sampler: str
) -> None:
    texts = {"svp": "0.1:0.3:0.1", "mp": "0.2:0.6:0.2", "scale": "0.1:0.9:0.2"}
    settings = {
        "texts": texts,
        "sampler": sampler,
        "trials": 13,
        "objective": "wer",
        "finalists": 2,
    }
    wanted = run(folder, study.with_name("b.db"), **settings)
    for number, when in (
        (1, "signed"), (2, "scored"), (1, "unsigned"), (8, "scored"), (2, "signed"), (1, "unsigned")
    ):  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, number, when)
            with pytest.raises(Killed):
                run(folder, study, **settings)
    report = run(folder, study, **settings)
    assert report.trials == wanted.trials
    assert report.finalists == wanted.finalists
    assert trials_csv(report) == trials_csv(wanted)


def test_an_interrupted_search_says_how_to_go_on_and_comes_to_the_same(
    folder: Path, study: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"objective": "wer", "trials": 4, "finalists": 1}
    wanted = run(folder, study.with_name("b.db"), **settings)
    real, count = formula.load, itertools.count()

    def load(recipe: Any) -> None:
        if next(count) == 2:
            raise KeyboardInterrupt
        real(recipe)

    monkeypatch.setattr(formula, "load", load)
    with pytest.raises(Interrupted, match=rf"study.db\. Go on with: {COMMAND}"):
        run(folder, study, **settings)
    assert run(folder, study, **settings).trials == wanted.trials


def test_finalists_are_not_scored_again(folder: Path, study: Path, formula: Formula) -> None:
    settings = {"objective": "wer", "trials": 3, "finalists": 2}
    first = run(folder, study, **settings)
    del formula.tried[:]
    assert run(folder, study, **settings).finalists == first.finalists
    assert formula.tried == []
    run(folder, study, **settings, beam=3)
    assert len(formula.tried) == 2 + 2  # and task arithmetic, and the control


def test_a_trial_of_a_dead_machine_is_done_again_and_of_a_living_one_is_not(
    folder: Path, study: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere only signs of life tell."""
    settings = {"objective": "wer", "trials": 6, "finalists": 1}
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, 3, "signed")
        patch.setattr(search_study, "this_process", lambda: "elsewhere 1 1")
        with pytest.raises(Killed):
            run(folder, study, **settings)
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            with sqlite3.connect(study) as connection:
                connection.execute("update trial_heartbeats set heartbeat = '2001-01-01 00:00:00'")
            connection.close()

    monkeypatch.setattr(module.time, "sleep", sleep)
    told: list[str] = []
    report = run(folder, study, **settings, told=told.append)
    assert told[0].startswith("waiting for the trials of other workers")
    assert len(waits) == 3
    assert [row.number for row in report.trials] == [1, 2, 3, 4, 5, 6]


def test_workers_on_this_machine_share_its_memory(
    folder: Path, study: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that do trials now: neither one of another machine nor one that is gone."""
    shares: list[int] = []
    monkeypatch.setattr(formula, "share_memory", shares.append)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        other = f"{search_study._machine()} {process.pid} {search_study._started(process.pid)}"
        run(folder, study, trials=1)
        opened = optuna.load_study(study_name="search", storage=f"sqlite:///{study}")
        for worker in (other, other, "elsewhere 1 1", f"{search_study._machine()} 4194999 1"):
            trial = opened.ask()
            opened._storage.set_trial_user_attr(
                trial._trial_id, search_study.WORK, {"worker": worker, "place": 50, "signed": True}
            )
        assert search_study.workers_here(opened) == 2
        opened.set_user_attr(search_study.TRIALS, 7)
        run(folder, study, worker=True)
        assert set(shares[1:]) == {2}
        process.communicate(b"\n")
    assert shares[0] == 1
    assert search_study.workers_here(opened) == 1


def test_memory_given_by_hand_is_not_shared(
    folder: Path, study: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[int] = []
    monkeypatch.setattr(formula, "share_memory", shares.append)
    run(folder, study, trials=2, memory=10**9)
    assert shares == []


def test_what_is_kept_and_decoded_with_follows_the_memory_and_the_workers(
    folder: Path, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.Memory, "free", lambda self: 4_000_000)
    scorer = module._Run(plan(folder, study), *[lambda *told: None] * 4).scorer
    assert (scorer.merge.cache, scorer.features.limit) == (1_000_000, 1_000_000)
    scorer.share_memory(4)
    assert (scorer.merge.cache, scorer.features.limit) == (250_000, 250_000)
    assert scorer.decoding.memory == Memory(None, 4)
    scorer.share_memory(1)
    assert scorer.merge.cache == 1_000_000
    by_hand = module._Run(plan(folder, study, memory=7), *[lambda *told: None] * 4).scorer
    assert by_hand.decoding.memory.limit == 7


def test_a_trial_that_another_machine_never_signed_is_done_again_after_a_while(
    folder: Path, study: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"objective": "wer", "trials": 4, "finalists": 1}
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, 2, "unsigned")
        patch.setattr(search_study, "this_process", lambda: "elsewhere 1 1")
        with pytest.raises(Killed):
            run(folder, study, **settings)
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            with sqlite3.connect(study) as connection:
                connection.execute("update trials set datetime_start = '2001-01-01 00:00:00'")
            connection.close()

    monkeypatch.setattr(module.time, "sleep", sleep)
    assert [row.number for row in run(folder, study, **settings).trials] == [1, 2, 3, 4]
    assert len(waits) == 3


def test_a_trial_that_others_gave_up_meanwhile_is_dropped(
    folder: Path, study: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a laptop slept with a trial in hand."""
    settings = {"objective": "wer", "trials": 4, "finalists": 1}
    wanted = run(folder, study.with_name("b.db"), **settings)
    real, count = formula.load, itertools.count()

    def load(recipe: Any) -> None:
        if next(count) == 1:
            found = optuna.load_study(study_name="search", storage=f"sqlite:///{study}")
            search_study.give_up(found, found.get_trials()[1])
        real(recipe)

    monkeypatch.setattr(formula, "load", load)
    told: list[str] = []
    report = run(folder, study, **settings, told=told.append)
    assert any("given up by another worker" in text for text in told)
    assert report.trials == wanted.trials


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
    place = tmp_path_factory.mktemp("begun") / "study.db"
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
    with pytest.raises(Mismatch, match=rf"'search' in .*study.db .* differs in {said}\. .*--name"):
        run(folder, begun, **{"objective": "wer", "trials": 1} | change)


def test_a_database_holds_many_searches(folder: Path, study: Path, formula: Formula) -> None:
    for name in ("one", "another"):
        settings = {"objective": "wer", "trials": 1, "seed": len(name)}
        assert run(folder, study, **settings, name=name).own == 1


def test_a_database_that_goes_away_is_waited_for(
    folder: Path, study: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = run(folder, study.with_name("b.db"), objective="wer", trials=3)
    monkeypatch.setattr(search_storage, "BACKOFF", (0.01, 0.01))
    told: list[str] = []
    hidden = study.with_name("hidden")

    def tell(text: str) -> None:
        told.append(text)
        if hidden.exists():
            shutil.move(hidden, study)

    def hide(row: Any) -> None:
        if row.number == 2:
            shutil.move(study, hidden)

    report = run(folder, study, objective="wer", trials=3, told=tell, done=hide)
    assert told[0] == f"{study} cannot be reached ({study} is gone); trying again in 0.01 s."
    assert report.trials == wanted.trials


def test_a_database_that_stays_away_ends_the_search_with_how_to_go_on(
    folder: Path, study: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = run(folder, study.with_name("b.db"), objective="wer", trials=3)
    monkeypatch.setattr(search_storage, "BACKOFF", (0.01, 0.01))
    hidden = study.with_name("hidden")
    real, count = formula.load, itertools.count()

    def load(recipe: Any) -> None:
        if next(count) == 1:
            shutil.move(study, hidden)
        real(recipe)

    monkeypatch.setattr(formula, "load", load)
    with pytest.raises(UnreadableFile, match=rf"went away in the middle .*go on with: {COMMAND}"):
        run(folder, study, objective="wer", trials=3)
    assert not study.exists()
    shutil.move(hidden, study)
    assert run(folder, study, objective="wer", trials=3).trials == wanted.trials


@pytest.mark.parametrize(
    ("place", "error", "said"),
    [
        ("mysql+nothing://user:secret@host/db", LorsmergeError, "cannot be opened|not installed"),
        ("postgresql+psycopg://user:secret@host/db", LorsmergeError, "not installed"),
        ("text.db/study.db", LorsmergeError, "cannot be opened: unable to open"),
        ("text.db", UnreadableFile, "cannot be opened: file is not a database"),
        ("what?.db", UsageFault, "question mark"),
    ],
)
def test_no_database(
    folder: Path, tmp_path: Path, formula: Formula, monkeypatch: pytest.MonkeyPatch, place: str,
    error: type[Exception], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search_storage, "OPENINGS", 1)
    Path("text.db").write_text("no database" * 100)
    settings = {"study": place, "output": tmp_path / "x.toml"}
    with pytest.raises(error, match=said) as caught:
        run(folder, Path("ignored"), **settings)
    assert "secret" not in str(caught.value)


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
