"""COMET by a stand-in for comet-score, which is called as unbabel-comet 2.2.7 has it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from results_files import answers
from typer.testing import CliRunner

from lorsmerge_cli.app import app
from lorsmerge_cli.errors import LorsmergeError
from lorsmerge_cli.metrics import check_metrics
from lorsmerge_cli.metrics.comet import COMET
from lorsmerge_cli.metrics.metric import Scoring
from lorsmerge_cli.metrics.significance import interval

# Of each line: letters that the translation shares with the reference, less those of the source.
STAND_IN = """#!{python}
import argparse, json, sys
parser = argparse.ArgumentParser()
parser.add_argument("-s", dest="src")
parser.add_argument("-t", dest="mt", nargs="+")
parser.add_argument("-r", dest="ref")
parser.add_argument("--model", default="none")
parser.add_argument("--quiet", action="store_true")
parser.add_argument("--to_json")
args = parser.parse_args()
if args.model == "gone":
    sys.exit("Model 'gone' not supported by COMET.")
lines = [[l.strip() for l in open(p, encoding="utf-8").readlines()] for p in (args.src, *args.mt, args.ref)]
assert len(set(map(len, lines))) == 1
found = [{{"src": s, "mt": m, "ref": r, "COMET": (len(set(m) & set(r)) - len(set(m) & set(s))) / 10}}
         for s, m, r in zip(*lines)]
if args.model == "short":
    found.pop()
if args.model != "silent":
    json.dump({{args.mt[0]: found}}, open(args.to_json, "w"))
print("score of all", args.model)
"""
SAID, MEANT, SPOKEN = ["abc\ndef", "xy", ""], ["abcd", "xz", "q"], ["ghé", "xyz", "ab"]
WANTED = [0.4, -0.1, 0.0]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "comet-score").write_text(STAND_IN.format(python=sys.executable))
    (folder / "comet-score").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def rows() -> list:
    return [
        replace(row, source_text=text)
        for row, text in zip(answers(SAID, MEANT), SPOKEN, strict=True)
    ]


def test_a_corpus_has_the_mean_of_its_segments(program: Path) -> None:
    statistics = COMET.statistics(rows(), Scoring(metrics=("comet",)))
    assert statistics.tolist() == [[score, 1.0] for score in WANTED]
    assert COMET.score(statistics.sum(axis=0)) == pytest.approx(100 * np.mean(WANTED))
    found = interval(statistics, COMET)  # negative scores too, symmetric and by t
    assert found.high - 100 * np.mean(WANTED) == pytest.approx(100 * np.mean(WANTED) - found.low)
    assert found.standard_error == pytest.approx(100 * np.std(WANTED, ddof=1) / np.sqrt(3))


def test_the_model_is_chosen_and_named(program: Path) -> None:
    chosen = Scoring(metrics=("comet=Unbabel/eamt22-cometinho-da",))
    assert "model:Unbabel/eamt22-cometinho-da|" in COMET.signature("ca", chosen)
    assert "model:Unbabel/wmt22-comet-da|" in COMET.signature("ca", Scoring(metrics=("comet",)))
    with pytest.raises(
        LorsmergeError, match="'gone' exited with status 1: Model 'gone' not supported"
    ):
        COMET.statistics(rows(), Scoring(metrics=("comet=gone",)))


@pytest.mark.parametrize(("model", "said"), [("short", "2 of 3"), ("silent", "wrote no scores")])
def test_scores_that_are_missing_are_told(program: Path, model: str, said: str) -> None:
    with pytest.raises(LorsmergeError, match=said):
        COMET.statistics(rows(), Scoring(metrics=(f"comet={model}",)))


def test_a_missing_program_is_told_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (fault,) = check_metrics(["comet=x"])
    assert "needs comet-score" in str(fault)
    assert "pipx install unbabel-comet" in str(fault)
    with pytest.raises(LorsmergeError, match="cannot be run"):
        COMET.statistics(rows(), Scoring(metrics=("comet",)))


def test_hypotheses_are_scored_by_it_from_the_shell(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        {"model": model, "dataset": "d", "id": row.id, "language": "ca", "task": "st",
         "reference": row.reference, "hypothesis": text or row.hypothesis, "seconds": 1.0,
         "source_text": row.source_text}
        for model, text in (("a", ""), ("b", "ab"))
        for row in rows()
    ]  # fmt: skip
    Path("h.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    line = ["eval", "--score-only", "--hypotheses", "h.jsonl", "--metric", "comet", "-o", "r.json"]
    ended = CliRunner().invoke(app, [*line, "--compare", "a", "b"])
    assert ended.exit_code == 0, ended.output
    record, other = json.loads(Path("r.json").read_text())["records"]
    assert list(record["scores"]) == ["BLEU", "chrF2", "COMET"]
    assert record["scores"]["COMET"]["score"] == pytest.approx(100 * np.mean(WANTED))
    assert f"{100 * np.mean(WANTED):.2f}" in ended.output
    assert "COMET of b minus a" in ended.output
    assert other["scores"]["COMET"]["signature"] == record["scores"]["COMET"]["signature"]
    del lines[1]["source_text"]
    Path("h.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ended = CliRunner().invoke(app, [*line, "--force"])
    assert ended.exit_code == 1
    assert "1 of 6 st utterances have no transcript ('1')" in " ".join(ended.output.split())
