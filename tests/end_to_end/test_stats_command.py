"""`lorsmerge stats` as a user types it: plans, results, faults, and a Ctrl-C."""

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
from speech_models import make_test_set, make_whisper

LINE = "lorsmerge stats ca --data data/test.jsonl -o ca.stats"


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heard")
    make_whisper(folder / "ca", spells=True)
    make_test_set(folder / "data", count=4)
    return folder


@pytest.fixture
def here(heard: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The current folder, with links to the model and the data."""
    for name in ("ca", "data"):
        (tmp_path / name).symlink_to(heard / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_plan_and_the_file(here: Path, succeed: Callable) -> None:
    planned = succeed(f"{LINE} --dry-run")
    assert "ca would hear 4 utterances, 0.1 minutes" in planned.out
    assert not Path("ca.stats").exists()
    size = json.loads(succeed(f"{LINE} --dry-run --json").out)["bytes"]
    found = json.loads(succeed(f"{LINE} --json").out)
    assert found["output"] == "ca.stats"
    assert (found["kinds"], found["layers"], found["utterances"]) == (["gram"], 26, 4)
    assert found["bytes"] == size == sum(value.nbytes for value in load_file("ca.stats").values())
    said = succeed(f"{LINE} --kind both --half encoder --force").out
    assert "ca.stats: gram and fisher over 4 utterances, 0.1 minutes, " in said


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("--kind grams", 2, "--kind 'grams' is unknown. Use gram, fisher, both."),
        ("--labels none --half top", 2, "--half 'top' is unknown. Use all, encoder, decoder."),
        ("--hours 0", 2, "--hours"),
        ("--data nowhere.jsonl", 1, "There is no data set nowhere.jsonl"),
        ("--language en", 2, "and --language en was given"),
        ("--device tpu", 2, "--device tpu is not"),
        ("--config nowhere", 1, "nowhere"),
    ],
)
def test_wrong_usage(here: Path, shell: Shell, words: str, code: int, message: str) -> None:
    ended = shell(f"{LINE} {words}")
    assert message in ended.err
    assert (ended.code, ended.out) == (code, "")
    assert not Path("ca.stats").exists()


def test_statistics_in_place_of_a_model(here: Path, succeed: Callable, shell: Shell) -> None:
    succeed(LINE)
    for line in (
        "lorsmerge inspect ca.stats",
        "lorsmerge merge ca ca.stats -o m",
        "lorsmerge eval ca.stats --data data/test.jsonl",
        "lorsmerge delta ca ca.stats -o x.delta",
        "lorsmerge stats ca.stats --data data/test.jsonl -o x.stats",
    ):
        ended = shell(line)
        assert ended.code == 1
        assert "ca.stats has statistics of a fine-tune, and weights are needed here" in ended.err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(here: Path, number: signal.Signals) -> None:
    rows = Path("data/test.jsonl").read_text().splitlines()
    many = [json.loads(row) for row in rows * 500]
    Path("many.jsonl").write_text(
        "".join(
            json.dumps(row | {"id": str(n), "audio_filepath": f"data/{row['audio_filepath']}"})
            + "\n"
            for n, row in enumerate(many)
        )
    )
    before = set(here.iterdir())
    command = [sys.executable, "-m", "lorsmerge_cli", *LINE.split()[1:]]
    command[command.index("data/test.jsonl")] = "many.jsonl"
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    deadline = time.monotonic() + 60
    while set(here.iterdir()) == before and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)  # until the scratch folder is there: it decodes
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode in {130, 143}, err
    assert set(here.iterdir()) == before
    assert out == ""
    assert "nterrupted" in err
    assert "Traceback" not in err
