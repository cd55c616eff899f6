"""`lorsmerge merge --calibrate` as a user types it: plans, results, faults, and a Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands_ended import Shell
from safetensors.torch import load_file
from speech_models import make_test_set, make_tuned, make_whisper

from lorsmerge_cli import delta
from lorsmerge_cli.calibration.file import StatisticsFile

LINE = "lorsmerge merge base ca.delta de.delta --method regmean --calibrate data/test.jsonl -o m"


@pytest.fixture(scope="module")
def speech_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrate")
    base = make_whisper(folder / "base", spells=True)
    make_test_set(folder / "data", count=10)
    for seed, (name, task) in enumerate((("ca", "asr"), ("de", "st")), 1):
        make_tuned(base, folder / name, seed=seed, step=0.02)
        delta(base, folder / name, folder / f"{name}.delta", task=task, language=name)
    return folder


def test_the_plan_and_the_merge(files: Path, succeed: Callable) -> None:
    planned = succeed(f"{LINE} --control --dry-run")
    assert "ca.delta" in planned.out
    assert "de st" in planned.out
    assert "would first write those statistics into m-stats, one fine-tune after the other" in (
        planned.out
    )
    document = json.loads(succeed(f"{LINE} --dry-run --json").out)
    assert not list(Path().glob("m*"))
    heard = document["calibration"]
    assert [(each["delta"], each["output"], each["there"]) for each in heard] == [
        ("ca.delta", "m-stats/ca.stats", False), ("de.delta", "m-stats/de.stats", False),
    ]  # fmt: skip
    assert [each["utterances"] for each in heard] == [2, 2]
    assert "stats" not in document["recipe"]
    ended = succeed(f"{LINE} --control")
    assert (
        "statistics are kept in m-stats, for other merges: --stats m-stats/NAME.stats" in ended.err
    )
    stored = load_file("m-stats/ca.stats").values()
    assert heard[0]["bytes"] == sum(value.nbytes for value in stored)
    assert StatisticsFile(Path("m-stats/ca.stats")).origin.made_by == f"{LINE} --control"
    again = succeed(f"{LINE} --force")
    assert "made of this audio before, and used again: 'm-stats/ca.stats', 'm-stats/de.stats'" in (
        again.err
    )
    recipe = json.loads(succeed(f"{LINE} --force --json").out)["recipe"]
    assert recipe["stats"] == ["m-stats/ca.stats", "m-stats/de.stats"]
    assert "is there already" in succeed(f"{LINE} --force --dry-run").out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("--method ties", 2, "Method ties needs no audio, and --calibrate is given."),
        ("--stats x.stats", 2, "Statistics are given, x.stats, and audio"),
        ("--calibrate fr=x.jsonl", 2, "--calibrate fr=x.jsonl names no delta. Known: ca, de."),
        ("--calibrate nowhere.jsonl", 1, "There is no data set nowhere.jsonl"),
        ("--half top", 2, "--half 'top' is unknown. Use all, encoder, decoder."),
        ("--hours 0", 2, "--hours"),
        ("--save-recipe m/r.toml", 1, "m/r.toml lies in the output folder"),
    ],
)
def test_wrong_usage(files: Path, shell: Shell, words: str, code: int, message: str) -> None:
    ended = shell(f"{LINE} {words}")
    assert message in ended.err
    assert (ended.code, ended.out) == (code, "")
    assert not list(Path().glob("m*"))


def test_neither_audio_nor_statistics(files: Path, shell: Shell) -> None:
    ended = shell("lorsmerge merge base ca.delta de.delta --method fisher -o m")
    assert ended.code == 2
    assert "lorsmerge stats FINETUNE --data AUDIO --kind fisher" in ended.err
    assert "--calibrate AUDIO" in ended.err
    ended = shell("lorsmerge merge base ca.delta --half encoder -o m")
    assert "--half needs --calibrate" in ended.err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_signal_leaves_whole_files_alone(files: Path) -> None:
    rows = [json.loads(row) for row in Path("data/test.jsonl").read_text().splitlines()]
    lines = []
    for name, task, count in (("ca", "asr", 1), ("de", "st", 500)):
        lines += [
            row | {"id": f"{name}{n}", "source_lang": name, "taskname": task}
            for n, row in enumerate(rows * count)
        ]
    Path("data/many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    before = set(files.iterdir())
    command = [sys.executable, "-m", "lorsmerge_cli", *LINE.split()[1:]]
    command[command.index("data/test.jsonl")] = "data/many.jsonl"
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    deadline = time.monotonic() + 120
    while not Path("m-stats/ca.stats").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert set(files.iterdir()) - before == {files / "m-stats"}
    assert [path.name for path in Path("m-stats").iterdir()] == ["ca.stats"]
    assert out == ""
    assert "Interrupted; written: " in err
    assert "m-stats/ca.stats" in err


def test_a_test_set_that_a_merge_was_weighed_by_is_told(files: Path, succeed: Callable) -> None:
    """Of each delta the audio of its language and task was heard; the sentences were not read."""
    succeed(LINE)
    line = "lorsmerge eval m --data data/test.jsonl --beam 1 --device cpu --samples 20 -o r.json"
    told = " ".join(succeed(f"{line} --max-tokens 3").err.split())
    assert "4 of the 10 utterances of test.jsonl (40%) are in the training data of ca.stats, de.stats" in told  # fmt: skip
    assert "sentences" not in told
    found = {
        (record["language"], record["task"]): [
            (row["kind"], row["sources"]) for row in record["leakage"]
        ]
        for record in json.loads(Path("r.json").read_text())["records"]
    }
    assert ("audio", ["ca.stats"]) in found["ca", "asr"]
    document = json.loads(Path("m/lorsmerge.json").read_text())
    for row in document["statistics"]:  # as an earlier version wrote it
        del row["digests"]
    Path("m/lorsmerge.json").write_text(json.dumps(document))
    assert "ca.stats" not in succeed(f"{line} --force --max-tokens 3").err
    document["statistics"] = [{"digests": {"version": 1, "audio": 3}}]
    Path("m/lorsmerge.json").write_text(json.dumps(document))
    succeed(f"{line} --force --max-tokens 3")  # a stranger's
