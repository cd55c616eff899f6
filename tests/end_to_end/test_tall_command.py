"""`merge --masks` and `merge --from --for` on the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands_ended import Ended, Shell
from safetensors.torch import load_file

MAKE = "lorsmerge merge base.safetensors ca.delta de.delta --masks 0.4 -o tall.delta"
TAKE = "lorsmerge merge base.safetensors --from tall.delta --for ca -o m.safetensors"


def test_making_and_taking(tiny: Path, succeed: Callable[[str], Ended]) -> None:
    made = succeed(MAKE)
    assert made.err == ""
    *_, size, next_step = made.out.splitlines()
    assert size.startswith("tall.delta: TALL masks at threshold 0.4, ")
    assert "times one whole delta (" in size
    assert next_step.endswith("--from tall.delta --for ca -o ca/")
    taken = succeed(TAKE)
    assert "tall.delta for ca" in taken.out
    record = json.loads(json_of(Path("m.safetensors")))
    assert record["recipe"]["deltas"] == [{"path": "tall.delta", "scale": 1.0, "for_task": "ca"}]
    succeed("lorsmerge merge base --from tall.delta --for de -o folder")
    assert Path("folder/config.json").exists()
    again = "lorsmerge merge --recipe folder/lorsmerge.json -o again"
    succeed(again)
    folder, other = (load_file(f"{name}/model.safetensors") for name in ("folder", "again"))
    assert all(folder[name].equal(other[name]) for name in folder)


def json_of(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()["lorsmerge"]


def test_json_and_dry_run(
    tiny: Path, succeed: Callable[[str], Ended], contents: Callable[[Path], dict[str, str]]
) -> None:
    before = contents(tiny)
    planned = json.loads(succeed(f"{MAKE} --dry-run --json").out)
    assert "would write tall.delta: " in succeed(f"{MAKE} --dry-run").out
    assert contents(tiny) == before
    made = json.loads(succeed(f"{MAKE} --json").out)
    assert planned.keys() <= made.keys()
    assert planned["output_bytes"] == made["output_bytes"]
    assert [task["name"] for task in made["tasks"]] == ["ca", "de"]
    assert all(0 < task["kept"] < 1 and task["norm"] > 0 for task in made["tasks"])
    assert abs(Path("tall.delta").stat().st_size - made["output_bytes"]) < 200_000
    before = contents(tiny)
    plan = json.loads(succeed(f"{TAKE} --dry-run --json").out)
    assert plan["recipe"]["deltas"][0]["for_task"] == "ca"
    assert plan["scale_total"] == 1
    assert contents(tiny) == before


def test_inspect(tiny: Path, succeed: Callable[[str], Ended]) -> None:
    succeed(MAKE)
    shown = succeed("lorsmerge inspect tall.delta ca.delta").out
    assert "tall.delta: TALL masks of 2 tasks at threshold 0.4, of " in shown
    assert f"made by: {MAKE}" in shown
    assert re.search(r"^ --for +language +task +lambda +kept *$", shown, re.M)
    assert "kept by no mask" in shown
    assert "--from tall.delta --for ca -o ca/" in shown
    document = json.loads(succeed("lorsmerge inspect tall.delta --json").out)["files"][0]
    assert (document["type"], document["threshold"]) == ("tall", 0.4)
    assert [task["name"] for task in document["tasks"]] == ["ca", "de"]


@pytest.mark.parametrize(
    "line",
    [
        "lorsmerge merge base.safetensors tall.delta -o x.safetensors",
        "lorsmerge merge base.safetensors ca.delta tall.delta -o x.safetensors",
        "lorsmerge prune tall.delta --mp 0.5 -o x.delta",
        "lorsmerge delta base.safetensors tall.delta -o x.delta",
        "lorsmerge search base tall.delta --data nowhere.jsonl -o x.toml",
        "lorsmerge eval base --apply tall.delta --data nowhere.jsonl",
        "lorsmerge push tall.delta you/tall --dry-run",
        "lorsmerge export tall.delta --format openai -o x.pt",
    ],
)
def test_other_commands_say_what_to_do(tiny: Path, shell: Shell, line: str) -> None:
    assert shell(MAKE).code == 0
    if "nowhere" in line:
        Path("clip.wav").write_bytes(b"")
        Path("nowhere.jsonl").write_text('{"audio_filepath": "clip.wav", "text": "x", '
                                         '"source_lang": "ca", "taskname": "asr"}\n')  # fmt: skip
    ended = shell(line)
    assert ended.code in (1, 2)
    assert "tall.delta is a file of TALL masks" in ended.err
    assert "lorsmerge merge BASE --from tall.delta --for TASK" in ended.err
    assert not list(tiny.glob("x.*"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (MAKE + " --method ties --control", "--control, --method have no use beside it"),
        (MAKE + " --svp 0.5", "and --svp has no use beside it"),
        (MAKE + " --dtype float16", "and --dtype has no use beside it"),
        (MAKE + " --from ca.delta --for ca", "--from, --for have no use beside it"),
        (MAKE.replace("-o tall.delta", ""), "There is no -o, and --masks writes one file"),
        (MAKE.replace("tall.delta", "tall"), "Write -o tall.delta."),
        (MAKE.replace("0.4", "-1"), "--masks -1 is not a threshold of at least 0"),
        (MAKE.replace("ca.delta de.delta ", ""), "There are no deltas to merge"),
        (TAKE.replace("--for ca", ""), "Give --for and one of its tasks: ca, de."),
        (TAKE.replace("--for ca", "--for cat"), "Did you mean 'ca'? Its tasks: ca, de."),
        (TAKE.replace("--from tall.delta", ""), "none is given. Give it with --from"),
        (TAKE.replace("merge base.safetensors", "merge"), "There is no base"),
        (TAKE + " --svp 0.1 --mp 0.1", "--svp, --mp have no use beside it"),
        (TAKE.replace("base.safetensors", "base.safetensors ca.delta"), "deltas have no use"),
        (TAKE.replace("--from tall.delta", "--from ca.delta"), "not a file of TALL masks"),
        (TAKE.replace("--from tall.delta", "--from nowhere.delta"), "no such file"),
        (TAKE + " --control", "tall.delta holds no deltas that could be added up"),
        (TAKE + " --recipe r.toml", "already holds base, deltas and settings"),
    ],
)  # fmt: skip
def test_wrong_usage(tiny: Path, shell: Shell, line: str, said: str) -> None:
    assert shell(MAKE).code == 0
    ended = shell(line + (" --force" if "--masks" in line else ""))
    assert ended.code in (1, 2)
    assert said in ended.err
    assert ended.out == ""
    assert not Path("m.safetensors").exists()


def test_an_existing_file_is_kept(tiny: Path, shell: Shell) -> None:
    Path("tall.delta").write_text("mine")
    ended = shell(MAKE)
    assert ended.code == 1
    assert "tall.delta exists" in ended.err
    assert Path("tall.delta").read_text() == "mine"
    assert shell(MAKE + " --force").code == 0


@pytest.mark.slow
def test_two_at_once(tiny: Path, succeed: Callable[[str], Ended]) -> None:
    """One writes the file, the other finds it there, or both write the same with --force."""
    line = [sys.executable, "-m", *MAKE.replace("lorsmerge", "lorsmerge_cli", 1).split(), "-q"]
    for extra, codes in (([], [0, 1]), (["--force"], [0, 0])):
        running = [subprocess.Popen([*line, *extra], stderr=subprocess.PIPE) for _ in range(2)]
        errors = [process.communicate()[1] for process in running]
        assert sorted(process.returncode for process in running) == codes, errors
        succeed(TAKE + " --force")
    assert not list(tiny.glob(".*partial*"))
