"""docs/scores.md says what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from results_files import answers
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from lorsmerge_cli.data.languages import SPACELESS, TASKS
from lorsmerge_cli.metrics import METRICS, metrics_of
from lorsmerge_cli.metrics.metric import Scoring
from lorsmerge_cli.metrics.normalisation import (
    CHARACTER_LANGUAGES,
    CHOICES,
    LEADERBOARD,
    normalisation_for,
    normalise,
)
from lorsmerge_cli.metrics.wer import wer_signature
from lorsmerge_cli.operations.eval.settings import settings_of
from lorsmerge_cli.results.document import EvalReport, record_document
from lorsmerge_cli.results.records import score
from lorsmerge_cli.speech.decoding.clips import DecodingSettings

PAGE = (Path(__file__).parents[2] / "docs" / "scores.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines()
        if line.startswith("| ")]  # fmt: skip


def keys(signature: str) -> list[str]:
    return [part.split(":")[0] for part in signature.split("|")]


def test_signatures_have_the_parts_of_the_page() -> None:
    decoding = DecodingSettings(suppress=(), begin_suppress=())
    found = settings_of(decoding, Scoring(), "float32")["signature"]
    shown = re.findall(r"`(\w+:[^` ]+\|[^`]+)`", PAGE)
    assert keys(shown[0]) == keys(found)
    told = {name for row in ROWS for name in re.findall(r"`(\w+)`", row[0])}
    limited = settings_of(DecodingSettings(max_tokens=3), Scoring(), "float32")["signature"]
    assert told >= {*keys(found), *keys(limited)}
    assert keys(shown[1]) == keys(wer_signature(normalisation="basic", unit="word"))


def test_languages_are_normalised_as_the_page_says() -> None:
    listed = {row[0].strip("`"): row[2] for row in ROWS if len(row) == 3 and row[0][0] == "`"}
    assert tuple(listed) == CHOICES[1:]
    assert not listed.pop(LEADERBOARD)
    assert listed.pop("basic") == "all other languages"
    by_language = {code: how for how, codes in listed.items() for code in codes.split()}
    for code in LANGUAGES:
        assert normalisation_for(code) == by_language.get(code, "basic")
    text = "zh, yue, ja, th, lo, my and km"
    assert set(re.findall(r"\b[a-z]{2,3}\b", text)) - {"and"} == CHARACTER_LANGUAGES == SPACELESS
    assert PAGE.replace("\n", " ").count(text) == 3


def test_metrics_and_keys_are_those_of_the_page() -> None:
    rows = {row[0].strip("`"): row[1:] for row in ROWS if len(row) == 4 and row[0][0] == "`"}
    assert tuple(rows) == TASKS
    for task, cells in rows.items():
        names = {name for cell in cells for name in re.findall(r"\b(?:[A-Z]{3,}|chrF2)\b", cell)}
        assert names == {metric.name for metric in METRICS.values() if metric.task == task}
        assert cells[0].startswith(metrics_of("ca", task)[0].name)
        for metric in METRICS.values():
            assert (metric.name in cells[2]) == (metric.only_asked and metric.task == task)
    told = set(re.findall(r"[\"`](\w+)[\"`]", PAGE))
    record = record_document(score(answers(["a"], ["b"]), Scoring()))
    report = EvalReport((), (), {}, {}, (), True).to_dict()
    assert told >= {*record, *report, *record["scores"]["BLEU"], *record["rows"][0]}


@pytest.mark.parametrize("row", [row for row in ROWS if row[0] in LANGUAGES], ids=lambda r: r[0])
def test_examples_are_normalised_as_the_page_says(row: list[str]) -> None:
    language, text, scored = row
    assert normalise(text, normalisation_for(language)) == scored
