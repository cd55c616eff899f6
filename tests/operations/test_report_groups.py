"""The report's block of scores by length, gender and speaker."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jiwer
import pytest
from report_calls import cells, table
from results_files import SCORING, hypotheses, write_results

from lorsmerge_cli import report
from lorsmerge_cli.results.document import read_results
from lorsmerge_cli.results.records import Hypothesis, Record, score

KEYS = [("cv", "ca", "asr"), ("cv", "de", "asr")]
ASR = "WER % ↓"


def rows(model: str, key: tuple[str, str, str], wrong: float) -> list[Hypothesis]:
    """Every third is a woman's, one in ten of no known gender; lengths from 2 to 26 s."""
    genders = ["female", "male", "male"]
    return [
        replace(
            row, seconds=2.0 + 6 * (n % 5), speaker=f"s{n % 4}",
            gender=None if n % 10 == 9 else genders[n % 3],
        )
        for n, row in enumerate(hypotheses(model, key, wrong, count=40))
    ]  # fmt: skip


@pytest.fixture
def said() -> dict[str, list[Hypothesis]]:
    return {name: [row for key in KEYS for row in rows(name, key, wrong)]
            for name, wrong in (("base", 0.4), ("m", 0.1))}  # fmt: skip


def records(said: dict[str, list[Hypothesis]]) -> list[Record]:
    return [
        score([row for row in all_rows if row.language == key[1]], SCORING)
        for all_rows in said.values()
        for key in KEYS
    ]


def wer(rows: list[Hypothesis]) -> float:
    return 100 * jiwer.wer([row.reference for row in rows], [row.hypothesis for row in rows])


def test_groups_are_all_their_errors_by_all_their_words(
    said: dict[str, list[Hypothesis]], tmp_path: Path
) -> None:
    file = write_results(tmp_path / "r.json", records(said))
    found = report(file, tmp_path / "out")
    shown = cells(found, "groups")
    assert [head for head, _ in table(found, "groups").heads] == [
        "under 5 s (16)*", "5 to 10 s (16)*", "10 to 20 s (16)*", "20 s or more (32)", "female (24)",
        "male (48)", "best of 8 speakers", "median of 8 speakers", "worst of 8 speakers",
    ]  # fmt: skip
    for system, all_rows in said.items():
        women = [row for row in all_rows if row.gender == "female"]
        assert shown[system]["female (24)", ASR].text.startswith(f"{wer(women):.2f} ± ")
        long = [row for row in all_rows if row.seconds >= 20]
        assert shown[system]["20 s or more (32)", ASR].text.startswith(f"{wer(long):.2f} ± ")
        each = [
            wer([r for r in all_rows if (r.language, r.speaker) == (language, f"s{n}")])
            for _, language, _ in KEYS for n in range(4)
        ]  # fmt: skip
        assert shown[system]["worst of 8 speakers", ASR].text == f"{max(each):.2f}"
    assert "under 20 utterances or 6 speakers" in table(found, "groups").note
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len([each for each in document["groups"] if each["by"] == "speaker"]) == 16
    assert {each["few"] for each in document["groups"] if each["group"] == "under 5 s"} == {True}


def test_what_is_not_known_is_no_group(said: dict[str, list[Hypothesis]], tmp_path: Path) -> None:
    plain = {
        name: [replace(row, gender=None, speaker=None, seconds=3.0) for row in all_rows]
        for name, all_rows in said.items()
    }
    found = report(write_results(tmp_path / "r.json", records(plain)), tmp_path / "out")
    assert "groups" not in {each.name for each in found.tables}
    assert found.document["groups"] == []


def test_gender_is_in_a_results_file_where_it_is_known(
    said: dict[str, list[Hypothesis]], tmp_path: Path
) -> None:
    path = write_results(tmp_path / "r.json", records(said))
    rows = json.loads(path.read_text())["records"][0]["rows"]
    assert [row.get("gender") for row in rows] == [
        row.gender for row in read_results(path).records[0].rows
    ]
    assert "gender" not in rows[9]
