"""The results file is read as it was written, and that of version 1 still is."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from results_files import SCORING, answers, delta, merge, write_results

from lorsmerge_cli.errors import UnreadableFile
from lorsmerge_cli.operations.push.card_scores import read_results as scores_for_card
from lorsmerge_cli.operations.report.run import Report, report
from lorsmerge_cli.results.document import read_results, record_document
from lorsmerge_cli.results.records import Record, compare, score

VERSION_1 = Path(__file__).with_name("version1.json")  # as `eval -o` wrote it at the time


def run(paths: list[Path], output: Path) -> Report:
    return report(
        paths, output, title="", base=None, finetuned=None, against=None, controls={}, held_out=[],
        paper=None, force=False,
    )  # fmt: skip


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = answers(["a b", "c"], ["a b", ""], speaker="s", cut=False)
    known = [replace(rows[0], source_text="x y"), rows[1]]
    nothing = score(answers([""], [""]), SCORING)
    for record in (score(rows, SCORING), score(known, SCORING), nothing):
        made = {"m": merge("ta", delta("ca_st"))}
        stored = read_results(write_results(tmp_path / "r.json", [record], made))
        assert stored.records[0].rows == record.rows
        assert repr(stored.records[0].scores) == repr(record.scores)  # NaN included
        assert (stored.records[0].blocks, stored.records[0].details) == (
            record.blocks,
            record.details,
        )
        assert stored.identities == {"m": "id of m"}
        assert stored.made_from == made
    assert "source_text" not in record_document(score(rows, SCORING))["rows"][0]


def test_the_reported_score_is_the_one_that_the_record_names(tmp_path: Path) -> None:
    """Whatever order another program wrote the scores in."""
    path = write_results(tmp_path / "r.json", [score(answers(["a b"], ["a c"]), SCORING)])
    document = json.loads(path.read_text())
    scores = document["records"][0]["scores"]
    document["records"][0]["scores"] = dict(reversed(scores.items()))
    path.write_text(json.dumps(document))
    assert list(read_results(path).records[0].scores) == ["BLEU", "chrF2"]


def test_version_1_is_read(tmp_path: Path) -> None:
    plain = json.loads(VERSION_1.read_text())
    assert "version" not in plain
    stored = read_results(VERSION_1)
    for record, old in zip(stored.records, plain["records"], strict=True):
        assert list(record.scores) == [old["metric"]]
        found = record.reported
        assert (found.score, found.low, found.high) == (old["score"], old["low"], old["high"])
        assert (found.standard_error, found.signature) == (old["standard_error"], old["signature"])
        assert record.blocks == old["blocks"]
        assert [row.hypothesis for row in record.rows] == [r["hypothesis"] for r in old["rows"]]
    assert stored.splits == {"fleurs": "test"}
    assert stored.scoring.normalisation == "auto"


def test_scores_and_tests_are_those_of_version_1() -> None:
    """Rescored from the rows; other scores of that version were among the details."""
    plain = json.loads(VERSION_1.read_text())
    records = [score(record.rows, SCORING) for record in read_results(VERSION_1).records]
    for record, old in zip(records, plain["records"], strict=True):
        for key in ("score", "low", "high", "standard_error"):
            assert getattr(record.reported, key) == pytest.approx(old[key], rel=1e-12)
        for key, name in (("chrf2", "chrF2"), ("cer", "CER"), ("wer", "WER")):
            if key in old["details"]:
                assert record.scores[name].score == pytest.approx(old["details"][key], rel=1e-12)
        newer = {"repeats", "invented", "script", "language", "unheard"}
        kept = {key: value for key, value in record.details.items() if key not in newer}
        assert kept.items() <= old["details"].items()
    for old, a, b in zip(plain["comparisons"], records[:3], records[3:], strict=True):
        found, unit = compare([(a, b)], SCORING), 100 if old["task"] == "asr" else 1  # once a rate
        assert found.difference == pytest.approx(unit * old["difference"], rel=1e-12)
        assert found.interval.low == pytest.approx(unit * old["interval"]["low"], rel=1e-12)
        assert found.p_value == old["p_value"]


def test_report_and_card_take_version_1(tmp_path: Path) -> None:
    found = run([VERSION_1], tmp_path / "out")
    assert {score["system"] for score in found.document["scores"]} == {"pretrained", "lors"}
    shown = scores_for_card(VERSION_1, "1" * 16, tmp_path)
    assert [row.metric for row in shown] == ["WER", "CER", "BLEU"]
    assert all(not math.isnan(row.score) and row.interval for row in shown)


@pytest.mark.parametrize(
    ("version", "said"), [(3, "of version 3, and"), (0, "is 0"), ("2", "is '2'"), (None, "is None")]
)
def test_another_version_is_told(tmp_path: Path, version: object, said: str) -> None:
    document = json.loads(VERSION_1.read_text()) | {"version": version}
    (tmp_path / "r.json").write_text(json.dumps(document))
    with pytest.raises(UnreadableFile, match=said):
        read_results(tmp_path / "r.json")


def test_a_record_by_another_metric_is_in_no_table(tmp_path: Path) -> None:
    def renamed(record: Record) -> Record:
        return replace(record, scores={"chrF2": record.scores["chrF2"]})

    record = score(answers(["a b"], ["a c"]), SCORING)
    with pytest.raises(UnreadableFile, match="a score of ca st by 'chrF2'"):
        run([write_results(tmp_path / "r.json", [renamed(record)])], tmp_path / "out")
