"""docs/scores.md says what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from lorsmerge_cli.data.languages import SPACELESS
from lorsmerge_cli.metrics.normalisation import (
    CHARACTER_LANGUAGES,
    NORMALISATIONS,
    normalisation_for,
    normalise,
)
from lorsmerge_cli.metrics.wer import wer_signature
from lorsmerge_cli.operations.eval.settings import settings_of
from lorsmerge_cli.results.records import Scoring
from lorsmerge_cli.speech.decoding import DecodingSettings

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
    assert tuple(listed) == NORMALISATIONS
    assert listed.pop("basic") == "all other languages"
    by_language = {code: how for how, codes in listed.items() for code in codes.split()}
    for code in LANGUAGES:
        assert normalisation_for(code) == by_language.get(code, "basic")
    text = "zh, yue, ja, th, lo, my and km"
    assert set(re.findall(r"\b[a-z]{2,3}\b", text)) - {"and"} == CHARACTER_LANGUAGES == SPACELESS
    assert PAGE.replace("\n", " ").count(text) == 2


@pytest.mark.parametrize("row", [row for row in ROWS if row[0] in LANGUAGES], ids=lambda r: r[0])
def test_examples_are_normalised_as_the_page_says(row: list[str]) -> None:
    language, text, scored = row
    assert normalise(text, normalisation_for(language)) == scored
