"""`merge --control` on the command line, and the scores of what it writes in a report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands_ended import Ended, Shell

MERGE = "lorsmerge merge base.safetensors ca.delta de.delta "


def test_what_is_said(tiny: Path, succeed: Callable[[str], Ended]) -> None:
    shown = succeed(MERGE + "--method ties --control -o t.safetensors")
    last = shown.out.splitlines()[-1]
    assert last.startswith("t-control.safetensors: its control, task arithmetic at lambda ")
    assert shown.err == ""
    found = json.loads(succeed(MERGE + "--svp 0.5 --control -o s.safetensors --json").out)
    assert found["control"]["output"] == "s-control.safetensors"
    assert found["control"]["step_norm"] == pytest.approx(found["step_norm"], rel=1e-6)
    assert len(found["control"]["scales"]) == 2


def test_a_dry_run_shows_it_and_writes_nothing(
    tiny: Path, succeed: Callable[[str], Ended], contents: Callable[[Path], dict[str, str]]
) -> None:
    before = contents(tiny)
    line = MERGE + "--method ties --control -o t.safetensors --dry-run"
    assert "and its control t-control.safetensors: " in succeed(line).out
    assert json.loads(succeed(line + " --json").out)["control"] == {
        "output": "t-control.safetensors"
    }
    assert contents(tiny) == before


@pytest.mark.parametrize("method", ["ta", "wa"])
def test_a_sum_says_that_it_is_its_own(
    tiny: Path, succeed: Callable[[str], Ended], method: str
) -> None:
    ended = succeed(MERGE + f"--method {method} --control -o t.safetensors --json")
    assert f"note: {method} adds the deltas up as they are: it is its own control." in ended.err
    assert "control" not in json.loads(ended.out)
    assert not Path("t-control.safetensors").exists()


def test_faults_come_before_the_work(tiny: Path, shell: Shell) -> None:
    Path("t-control.safetensors").write_text("mine")
    ended = shell(MERGE + "--method ties --control -o t.safetensors")
    assert (ended.code, ended.out) == (1, "")
    assert "t-control.safetensors exists. Give --force" in ended.err
    assert not Path("t.safetensors").exists()
    shell("lorsmerge prune ca.delta -o p.delta --svp 0.5")
    ended = shell("lorsmerge merge base.safetensors p.delta --control -o x.safetensors")
    assert ended.code == 2
    assert "'p.delta' was pruned before" in ended.err
    assert "--step-norm-of x.safetensors" in ended.err


def test_a_merge_from_a_recipe(tiny: Path, succeed: Callable[[str], Ended]) -> None:
    succeed(MERGE + "--svp 0.5 --mp 0.5 -o a.safetensors --save-recipe r.toml")
    ended = succeed("lorsmerge merge --recipe r.toml --control -o b.safetensors")
    assert "b-control.safetensors: its control" in ended.out
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()


def test_a_dry_run_takes_no_other_merge_for_one(tiny: Path, shell: Shell) -> None:
    for source, told in (
        ("base.safetensors", "no record of its step norm"),
        ("ca.delta", "is a delta"),
    ):
        ended = shell(MERGE + f"-o x.safetensors --dry-run --step-norm-of {source}")
        assert ended.code == 1
        assert told in " ".join(ended.err.split())
