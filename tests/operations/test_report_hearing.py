"""The report's tables of timestamps and of identified languages."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

from report_calls import cells, table
from results_files import SCORING, hypotheses, write_results

from lorsmerge_cli import report
from lorsmerge_cli.data.utterance import Segment
from lorsmerge_cli.results.records import Hypothesis, Record, score

KEYS = [("cv", "ca", "asr"), ("cv", "de", "asr"), ("fleurs", "ca", "asr")]
HEARD = {  # system -> what it hears in each set of 30, in turn
    "base": {"ca": ["ca", "es", "ca"], "de": ["de"]},
    "m:seed0": {"ca": ["ca", "ca", "nl"], "de": ["de", "ca"]},
    "m:seed1": {"ca": ["ca"], "de": ["de"]},
}


def rows(model: str, key: tuple[str, str, str]) -> list[Hypothesis]:
    heard = HEARD[model][key[1]]
    return [
        replace(row, identified=heard[n % len(heard)])
        for n, row in enumerate(hypotheses(model, key, 0.2))
    ]


def test_confusions_of_languages_by_system(tmp_path: Path) -> None:
    said = {model: [rows(model, key) for key in KEYS] for model in HEARD}
    records = [score(each, SCORING) for every in said.values() for each in every]
    found = report(write_results(tmp_path / "r.json", records), tmp_path / "out")
    drawn = table(found, "languages")
    assert [head for head, _ in drawn.heads] == [
        "utterances",
        "identified % ↑",
        "ca",
        "de",
        "es",
        "nl",
    ]
    lines = [(label, indented, [cell.text for cell in row]) for label, indented, row in drawn.rows]
    expected = []
    for system in ("base", "m"):
        own = [row for model, every in said.items() if model.split(":")[0] == system
               for each in every for row in each]  # fmt: skip
        for spoken in (None, "ca", "de"):
            part = [row for row in own if spoken in (None, row.language)]
            right = sum(row.identified == row.language for row in part)
            counts = Counter(row.identified for row in part)
            expected.append([str(len(part)), f"{100 * right / len(part):.2f}",
                             *(str(counts[code]) for code in ("ca", "de", "es", "nl"))])  # fmt: skip
    assert [texts for _, _, texts in lines] == expected
    assert [(label, indented) for label, indented, _ in lines][:3] == [
        ("base", False), ("ca spoken", True), ("de spoken", True),
    ]  # fmt: skip
    for page in ("report.html", "report.md", "tables.tex"):
        assert "identified as" in (tmp_path / "out" / page).read_text()


def test_timestamps_are_pooled_over_sets_and_runs(tmp_path: Path) -> None:
    meant = (Segment(0.0, 2.0, "a"), Segment(2.0, 4.0, "b"))
    heard = {
        "base": (Segment(0.0, 4.0, "a b"),),
        "m:seed0": (Segment(0.1, 2.0, "a"), Segment(2.0, 3.9, "b")),
        "m:seed1": (),
    }
    records = [
        score([replace(row, segments=meant, heard_segments=said)
               for row in hypotheses(model, key, 0.2, count=10)], SCORING)
        for model, said in heard.items() for key in KEYS[:2]
    ]  # fmt: skip
    found = cells(
        report(write_results(tmp_path / "r.json", records), tmp_path / "out"), "timestamps"
    )
    texts = {label: [cell.text for cell in row.values()] for label, row in found.items()}
    assert texts["base"] == ["20", "40", "20", "20", "1.000 ± 0.000", "0.00 ± 0.00"]
    assert next(row for label, row in texts.items() if label != "base") == [
        "40", "80", "40", "40", "0.050 ± 0.000", "50.00 ± 0.00",
    ]  # fmt: skip


def test_results_without_either_have_no_such_table(tmp_path: Path) -> None:
    record = score(hypotheses("m", KEYS[0], 0.2), SCORING)
    found = report(write_results(tmp_path / "r.json", [record]), tmp_path / "out")
    assert not {"timestamps", "languages"} & {each.name for each in found.tables}


SILENT = ("quiet", "ca", "asr")


def silence(model: str, said: str) -> Record:
    """Five utterances of 12 seconds in which nothing is said, in the last of which a model writes."""
    rows = [replace(row, reference="", hypothesis="", seconds=12.0)
            for row in hypotheses(model, SILENT, 0.2, count=5)]  # fmt: skip
    return score([*rows[:-1], replace(rows[-1], hypothesis=said)], SCORING)


def test_sets_in_which_nothing_is_said_have_a_table_and_are_in_no_average(tmp_path: Path) -> None:
    spoken = [score(hypotheses(model, key, 0.2), SCORING) for model in HEARD for key in KEYS[:2]]
    silent = [
        silence(model, said) for model, said in zip(HEARD, ("", "one two", "one"), strict=True)
    ]
    plain = report(write_results(tmp_path / "r.json", spoken), tmp_path / "plain")
    found = report(write_results(tmp_path / "s.json", [*spoken, *silent]), tmp_path / "out")
    assert found.tables[: len(plain.tables) - 1] == plain.tables[:-1]  # but for the new one
    assert (silent[0].silent, spoken[0].silent) == (True, False)
    texts = [[cell.text for cell in row] for _, _, row in table(found, "silence").rows]
    assert texts == [["5", "1.0", "0", "0", "0.00"], ["10", "2.0", "2", "3", "1.50"]]
    assert "nan" not in (tmp_path / "out" / "report.md").read_text()


def test_a_report_of_silence_alone_says_that_there_are_no_scores(tmp_path: Path) -> None:
    file = write_results(tmp_path / "s.json", [silence("base", "one two")])
    found = report(file, tmp_path / "out")
    assert [drawn.name for drawn in found.tables if drawn.rows] == ["silence"]
    assert "so there are no scores" in (tmp_path / "out" / "report.md").read_text()


def test_clips_and_recordings_are_never_averaged(tmp_path: Path) -> None:
    long = [replace(row, dataset="talks") for row in hypotheses("base", KEYS[0], 0.5)]
    files = [write_results(tmp_path / "c.json", [score(hypotheses("base", KEYS[0], 0.2), SCORING)]),
             write_results(tmp_path / "l.json", [score(long, SCORING)])]  # fmt: skip
    document = json.loads(files[1].read_text())
    document["settings"]["decoding"] |= {"long": "best_of:5", "language": "auto"}
    files[1].write_text(json.dumps(document))
    blocks = dict.fromkeys(
        block for _, block in table(report(files, tmp_path / "out"), "scores").heads
    )
    assert list(blocks) == ["WER % ↓", "WER % ↓, recordings, language-auto"]
