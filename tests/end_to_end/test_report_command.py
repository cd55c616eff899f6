"""`lorsmerge report` as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest
from results_files import delta, finetune, merge, record, write_results

from lorsmerge_cli.outputs import MANIFEST

WORK, USAGE = 1, 2  # exit codes
CELLS = [("ca", "ca", "asr"), ("de", "de", "asr"), ("ca", "ca", "st")]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with results of a base, a merge and two fine-tunes."""
    monkeypatch.chdir(tmp_path)
    deltas = [delta(f"{language}_{task}") for _, language, task in CELLS]
    made = {"pretrained": {}, "ta": merge("ta", *deltas)}
    records = [record("pretrained", cell, 0.3) for cell in CELLS]
    records += [record("ta", cell, 0.1) for cell in CELLS]
    write_results(Path("merged.json"), records, made)
    for cell in CELLS:
        name = f"{cell[1]}_{cell[2]}"
        made = {"finetuned": finetune(name)}
        write_results(Path(f"ft_{name}.json"), [record("finetuned", cell, 0.15)], made)
    return tmp_path


def test_tables_go_to_stdout_and_the_folder(results: Path, succeed: Callable) -> None:
    ended = succeed(
        "lorsmerge report merged.json ft_ca_asr.json ft_de_asr.json ft_ca_st.json -o out"
    )
    own = [record("ta", cell, 0.1).score for cell in CELLS[:2]]
    line = next(line for line in ended.out.splitlines() if line.strip().startswith("ta "))
    assert f" {own[0]:.2f} " in line
    assert f" {fmean(own):.2f}" in line
    assert "Gain kept, ASR" in ended.out
    assert ended.err == ""
    files = {path.name for path in Path("out").iterdir()}
    assert files == {"report.html", "report.md", "tables.tex", "report.json", MANIFEST}
    assert "out: report.html, report.md, tables.tex, report.json" in ended.out


def test_json_is_the_report_s_own(results: Path, succeed: Callable) -> None:
    ended = succeed("lorsmerge report merged.json ft_ca_asr.json -o out --json")
    assert json.loads(ended.out) == json.loads(Path("out/report.json").read_text())
    assert json.loads(ended.out)["roles"]["base"] == "pretrained"


def test_mixed_settings_are_a_note(results: Path, succeed: Callable) -> None:
    write_results(Path("x.json"), [record("x", CELLS[0], 0.1)], beam=20)
    ended = succeed("lorsmerge report merged.json x.json -o out")
    assert "note: Mixed settings: beam is 1 in merged.json; 20 in x.json." in ended.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("merged.json", USAGE, "Missing option '--output'"),
        ("-o out", USAGE, "Missing argument"),
        ("merged.json -o out --against nobody", USAGE, "no result is of 'nobody'"),
        ("merged.json -o out --control ta", USAGE, "write NAME=CONTROL"),
        ("missing.json -o out", WORK, "missing.json cannot be read"),
        ("merged.json -o merged.json/such/folder", WORK, "is a file"),
        ("merged.json -o merged.json", WORK, "is or holds the input"),
        ("merged.json -o out --paper missing.toml", WORK, "holds no published numbers"),
    ],
)
def test_wrong_commands_say_so(
    results: Path, shell: Callable, arguments: str, code: int, said: str
) -> None:
    ended = shell(f"lorsmerge report {arguments}")
    assert ended.code == code
    assert said in " ".join(ended.err.split())
    assert not Path("out").exists()
