"""`lorsmerge search` as a user types it."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from results_files import reported
from speech_models import make_deltas, make_test_set, make_whisper

from lorsmerge_cli import console
from lorsmerge_cli.operations.search import run as search_operation
from lorsmerge_cli.speech import memory
from lorsmerge_cli.speech.decoding import clips

WORK, USAGE = 1, 2  # exit codes
PATIENCE = 180  # seconds
SEARCH = "lorsmerge search base/ ca.delta de.delta --data data/test.jsonl --device cpu --beam 2 "
SPACE = "--svp 0.1,0.2,0.3 --mp 0.2,0.4,none --scale 0.1:0.9 "


@pytest.fixture(scope="module")
def speech_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, ca/, de/, ca.delta, de.delta and data/test.jsonl."""
    folder = tmp_path_factory.mktemp("search")
    base = make_whisper(folder / "base")
    made = {name: {"task": "asr", "language": name} for name in ("ca", "de")}
    make_deltas(base, made, step=0.5)
    make_test_set(folder / "data", count=20)
    return folder


def test_a_dry_run_shows_the_search_and_writes_nothing(
    files: Path, succeed: Callable, shell: Callable, contents: Callable
) -> None:
    before = contents(files)
    line = SEARCH + SPACE + "--objective wer --trials 7 --finalists 2 -o best.toml --dry-run"
    said = succeed(f"{line} --test data/test.jsonl").out
    for part in ("0.1, 0.2, 0.3", "0.2, 0.4, none", "0.1 to 0.9", "7 merges of 2 deltas by tpe",
                 "keep them in best.journal", "12 utterances of the dev set", "84 in all at most",
                 "best 2 by beam search (2)", "12 utterances of the test set"):  # fmt: skip
        assert part in said
    found = json.loads(succeed(f"{line} --json").out)
    assert (found["trials"], found["utterances"], found["test_utterances"]) == (7, 12, 0)
    assert list(found["parameters"]) == ["svp", "mp", "scale"]
    assert shell(f"{line} --method regmean").code == USAGE
    assert contents(files) == before


def test_a_limit_of_memory_that_is_held_already_is_refused(files: Path, shell: Callable) -> None:
    ended = shell(SEARCH + "--memory 1KB -o best.toml")
    assert ended.code == USAGE
    assert "--memory: 0.001 MB is less than the" in ended.err
    assert not list(Path().glob("best*"))


def test_merging_by_the_best_recipe_has_the_score_that_was_reported(
    files: Path, succeed: Callable
) -> None:
    """Through the search's files, and the other commands."""
    ended = succeed(
        SEARCH + SPACE + "--trials 5 --objective wer --pruner none --finalists 2 -o best.toml "
        "--csv trials.csv --plot trials.png --json --test data/test.jsonl"
    )
    found = json.loads(ended.out)
    assert "12 of the 12 test utterances are in the dev set too" in ended.err
    succeed("lorsmerge merge --recipe best.toml -o merged")
    succeed(
        "lorsmerge eval merged base --data data/test.jsonl --beam 2 --samples 2 -o results.json"
    )
    records = json.loads(Path("results.json").read_text())["records"]
    wers = {
        name: [reported(r)["score"] for r in records if (r["model"], r["task"]) == (name, "asr")]
        for name in ("merged", "base")
    }
    written = next(f for f in found["finalists"] if f["name"] == found["chosen"])
    assert written["as_good_as_the_best"]
    assert written["values"] == [pytest.approx(fmean(wers["merged"]), abs=1e-9)]
    assert {f["name"].split(" trial")[0] for f in found["finalists"] if f["trial"] is None} == {
        "task arithmetic of", "control of",
    }  # fmt: skip
    best = found["finalists"][0]
    assert [found["base"][f"{name}_asr"] for name in ("ca", "de", "zh")] == wers["base"]
    assert best["values"][0] == min(finalist["values"][0] for finalist in found["finalists"])
    heading = Path("best.toml").read_text().splitlines()[0]
    assert heading.startswith(f"# lorsmerge search: {found['chosen']} of 5, WER ")
    rows = list(csv.DictReader(Path("trials.csv").read_text().splitlines()))
    assert [row["trial"] for row in rows] == ["1", "2", "3", "4", "5"]
    for finalist in found["finalists"]:
        if finalist["trial"] is not None:
            shown = float(rows[finalist["trial"] - 1]["WER (beam 2)"])
            assert shown == finalist["values"][0]
    assert Path("trials.png").read_bytes()[:4] == b"\x89PNG"
    assert Path("best.journal").is_file()


def test_a_second_run_goes_on_and_the_table_names_the_best(files: Path, succeed: Callable) -> None:
    line = SEARCH + "--scale 0.1:0.9 --objective bleu --pruner none --finalists 1 --rank-by loss "
    first = succeed(line + "--trials 2 -o best.toml")
    assert first.err.count("note: trial") == 2
    second = succeed(line + "--trials 3 -o best.toml --force")
    assert re.findall(r"note: trial (\d+): st loss", second.err) == ["3"]
    assert re.search(r"^best: trial \d of 3 \(0 stopped early\): BLEU \d+\.\d\d$", second.out, re.M)
    assert "paper" in second.out
    assert "1/T" in second.out
    assert "control: " not in second.out  # one lambda for all is its own


def test_a_search_that_learns_says_so_before_and_whether_more_steps_may_help(
    files: Path, succeed: Callable
) -> None:
    """Its trials are steps on one half of the dev set, not merges scored on all of it."""
    line = SEARCH + "--sampler gradient --by half,depth --trials 2 --clips 2 -o learned.toml "
    planned = " ".join(succeed(line + "--dry-run").out.split())
    assert (
        "would learn 2 lambdas and a beta for 2 deltas, from 0.15 on, in 2 trials at most"
        in planned
    )
    assert re.search(r"each step learns from 2 of \d+ utterances of the dev set; the loss", planned)
    assert "known point" not in planned
    done = succeed(line)
    losses = [float(loss) for loss in re.findall(r"trial \d: .* loss ([\d.]+) at", done.err)]
    falling = "the loss was still falling at the last trial" in " ".join(done.err.split())
    assert falling == (losses[1] < losses[0])
    assert "stopped early" not in done.out
    assert ("control of trial 2" in done.out) == (
        "control: task arithmetic with one lambda for all, and a step of the same length."
        in done.out
    )


def test_help_lists_no_method_that_a_search_refuses(shell: Callable) -> None:
    shown = shell("lorsmerge search --help").out
    assert "Model Stock" in shown
    assert "RegMean" not in shown


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ("--scale nan -o best.toml", USAGE, "--scale 'nan': 'nan' is not a finite number."),
        ("--svp 0.3:0.1 -o best.toml", USAGE, "--svp '0.3:0.1' is an empty range."),
        ("--mp , -o best.toml", USAGE, "--mp ',': '' is not a finite number."),
        ("--sampler grid -o best.toml", USAGE, "--sampler grid needs a step for --scale."),
        ("", USAGE, "There is no output. Write -o best.toml."),
        ("-o ca.delta", USAGE, "ca.delta: a recipe is written as .toml."),
        ("-o there.toml", WORK, "there.toml exists. Give --force"),
        ("-o best.toml --csv ca.delta --plot x.gif", USAGE, "ca.delta is or holds the input"),
        ("--worker -o best.toml --study s.journal", USAGE, "A --worker writes nothing."),
        ("-o best.toml --data none.jsonl", WORK, "none.jsonl"),
        ("-o best.toml --objective cer", USAGE, "--objective cer: unknown. Use wer, bleu, both."),
        ("-o best.toml --study there.toml", WORK, "there.toml cannot be opened: it is neither"),
    ],
)
def test_what_cannot_be_searched_is_said_before_any_work(
    files: Path, shell: Callable, contents: Callable, change: str, code: int, said: str
) -> None:
    Path("there.toml").write_text("mine " * 200)
    before = contents(files)
    ended = shell(SEARCH + change)
    assert ended.code == code
    assert re.search(said if "|" in said else re.escape(said), ended.err), ended.err
    assert ended.out == ""
    assert contents(files) == before


def test_deltas_of_another_base_and_missing_ones_are_named(files: Path, shell: Callable) -> None:
    ended = shell(SEARCH.replace("base/", "ca/") + "-o best.toml")
    assert ended.code == WORK
    assert "ca.delta was taken from another model" in ended.err
    ended = shell(SEARCH.replace("de.delta", "no.delta") + "-o best.toml")
    assert ended.code == WORK
    assert "no.delta" in ended.err


def test_a_study_of_other_deltas_is_refused(
    files: Path, succeed: Callable, shell: Callable
) -> None:
    line = SEARCH + "--scale 0.1,0.2 --trials 1 --finalists 1 --objective wer --study s.journal "
    succeed(line + "-o best.toml")
    ended = shell(line.replace("ca.delta de.delta", "de.delta ca.delta") + "-o other.toml")
    assert ended.code == WORK
    assert (
        "The study 'search' in s.journal is about other inputs: it differs in the deltas."
        in ended.err
    )
    assert "--name" in ended.err
    assert not Path("other.toml").exists()


# --- processes ------------------------------------------------------------------------------------


@pytest.fixture
def start() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []

    def begin(line: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "lorsmerge_cli", *line.split()[1:]]
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        running.append(process)
        return process

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def trials_of(journal: str, *states: TrialState) -> list[FrozenTrial]:
    """The trials of a search that are in a state, as Optuna reads them."""
    if not Path(journal).exists():
        return []
    try:
        study = optuna.load_study(
            study_name="search", storage=JournalStorage(JournalFileBackend(journal))
        )
    except KeyError:
        return []
    return study.get_trials(states=states)


def finished_trials(journal: str) -> list[FrozenTrial]:
    return trials_of(journal, TrialState.COMPLETE, TrialState.PRUNED)


def ended_well(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    return out


@pytest.mark.slow
def test_finished_trials_are_kept_and_lost_ones_done_again_after_kill_9(
    files: Path, start: Callable
) -> None:
    line = SEARCH + SPACE + "--trials 13 --objective wer --finalists 2 --study killed.journal "
    line += "-o killed.toml --csv killed.csv --json"
    kept: list[FrozenTrial] = []
    for number in (0, 7, 11):
        process = start(line)
        deadline = time.monotonic() + PATIENCE
        while len(finished_trials("killed.journal")) <= number and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.1)  # into the next trial: a lock that is left behind holds for half a minute
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = finished_trials("killed.journal")
        assert len(kept) > number
        assert not Path("killed.toml").exists()
    found = json.loads(ended_well(start(line)))["trials"]
    assert [trial["trial"] for trial in found] == list(range(1, 14))
    by_point = {tuple(trial["point"].values()): trial["values"] for trial in found}
    for trial in kept:
        point = tuple(trial.params[name] for name in ("svp", "mp"))
        scale = float(f"{trial.params['scale']:.4g}")
        assert by_point[(*point, scale)] == trial.values
    assert {trial["title"] for trial in found[:3]} == {
        "near paper", "near 1/T", "near authors' script",
    }  # fmt: skip
    assert not trials_of("killed.journal", TrialState.RUNNING, TrialState.WAITING)
    assert len(Path("killed.csv").read_text().splitlines()) == 14


@pytest.mark.slow
def test_two_processes_share_a_grid_and_do_no_point_twice(files: Path, start: Callable) -> None:
    line = SEARCH + "--svp 0.1,0.2,0.3 --mp 0.2,0.4,none --scale 0.2,0.4 --sampler grid "
    line += "--objective wer --pruner none --finalists 1 --study s.journal --json "
    worker = start(line + "--worker")  # waits for the study
    found = json.loads(ended_well(start(line + "-o best.toml")))
    own = json.loads(ended_well(worker))["own_trials"]
    points = [tuple(trial["point"].values()) for trial in found["trials"]]
    assert len(points) == len(set(points)) == 18
    assert own > 0
    assert found["own_trials"] > 0
    assert own + found["own_trials"] == 18
    assert len(trials_of("s.journal", TrialState.COMPLETE)) == 18


@pytest.mark.parametrize(("option", "sizes"), [("", {64}), (" --memory 1000010KB", {1})])
def test_memory_by_hand_decides_the_batches(
    files: Path, succeed: Callable, monkeypatch: pytest.MonkeyPatch, option: str, sizes: set[int]
) -> None:
    """10 KB are left; the tiny model's utterances fit in their dozens otherwise."""
    monkeypatch.setattr(memory, "_used", lambda: (10**9, 10**9))
    chosen = []
    real = clips.fitting_batch

    def record(*arguments: Any) -> int:
        chosen.append(real(*arguments))
        return chosen[-1]

    monkeypatch.setattr(clips, "fitting_batch", record)
    succeed(SEARCH + "--scale 0.1,0.2 --trials 1 --objective wer -o best.toml" + option)
    assert set(chosen) == sizes
    chosen.clear()
    succeed("lorsmerge eval base --data data/test.jsonl --beam 1 --device cpu" + option)
    assert set(chosen) == sizes


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells")
def test_a_job_of_slurm_decides_what_is_kept(
    files: Path, succeed: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1")
    kept = []
    real = search_operation.RepeatedMerge

    def record(*arguments: Any, cache: int) -> Any:
        kept.append(cache)
        return real(*arguments, cache=cache)

    monkeypatch.setattr(search_operation, "RepeatedMerge", record)
    succeed(SEARCH + "--scale 0.1,0.2 --trials 1 --objective wer -o best.toml")
    assert kept == [0]


def test_the_lines_of_a_long_search_say_trials_and_utterances_a_second(
    files: Path, succeed: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "INTERVAL", 0.01)
    ended = succeed(SEARCH + "--scale 0.1:0.9 --trials 4 --objective wer -o best.toml")
    assert re.search(
        r"^search: \d/4 trials, [\d.]+ utterances/(s|min), .* trials/", ended.err, re.M
    )
    ended = succeed("lorsmerge eval base --data data/test.jsonl --beam 1 --device cpu")
    assert re.search(r"^eval: \d+/20 utterances", ended.err, re.M)
