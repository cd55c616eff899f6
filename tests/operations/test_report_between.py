"""The page of what got better and worse between two models."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from urllib.parse import unquote_to_bytes

import jiwer
import pytest
from hostile import NAMES, STEERS, Elements
from results_files import SCORING, hypotheses, record, write_results
from speech_models import make_clip

from lorsmerge_cli import report
from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.operations.report.between import MOST, between
from lorsmerge_cli.operations.report.results import read_results
from lorsmerge_cli.results.records import Hypothesis, score

CV, ST = ("cv", "ca", "asr"), ("cv", "de", "st")


def errors(row: Hypothesis) -> int:
    found = jiwer.process_words(row.reference, row.hypothesis)
    return found.substitutions + found.deletions + found.insertions


def write(folder: Path, *sets: list[Hypothesis]) -> Path:
    return write_results(folder / "r.json", [score(rows, SCORING) for rows in sets])


def test_utterances_are_ordered_by_the_change_of_their_errors(tmp_path: Path) -> None:
    sets = [hypotheses(name, CV, wrong) for name, wrong in (("base", 0.3), ("m", 0.2))]
    page = between(read_results([write(tmp_path, *sets)]), ("base", "m"), [], tmp_path)
    changes = {a.id: errors(b) - errors(a) for a, b in zip(*sets, strict=True)}
    worse, better = page.sections
    for section, sign in ((worse, 1), (better, -1)):
        shown = [change.row.id for change in section.changes]
        assert set(shown) == {name for name, change in changes.items() if sign * change > 0}
        amounts = [sign * changes[name] for name in shown]
        assert amounts == sorted(amounts, reverse=True)
        assert section.count == len(shown)
    same = sum(change == 0 for change in changes.values())
    assert f"{same} are as good as before" in page.about[0]


def test_pieces_put_together_are_both_texts(tmp_path: Path) -> None:
    sets = [hypotheses(name, CV, wrong) for name, wrong in (("base", 0.5), ("m", 0.1))]
    sets[0][0] = replace(sets[0][0], hypothesis="")
    sets[1][1] = replace(sets[1][1], hypothesis="one word more " + sets[1][1].reference)
    texts = [{row.id: (row.reference, row.hypothesis) for row in rows} for rows in sets]
    page = between(read_results([write(tmp_path, *sets)]), ("base", "m"), [], tmp_path)
    for section in page.sections:
        for change in section.changes:
            for pieces, known in zip(change.pieces, texts, strict=True):
                reference, hypothesis = known[change.row.id]
                kinds = ("hit", "sub", "del", "ins")
                assert all(piece.kind in kinds for piece in pieces)
                assert " ".join(p.reference for p in pieces if p.reference) == reference
                assert " ".join(p.hypothesis for p in pieces if p.hypothesis) == hypothesis


def test_languages_without_spaces_are_aligned_by_characters(tmp_path: Path) -> None:
    rows = [Hypothesis(name, "zh", "1", "zh", "asr", "今天天气很好", said, 1.0)
            for name, said in (("a", "今天天气很好"), ("b", "今天的天气好"))]  # fmt: skip
    page = between(read_results([write(tmp_path, [rows[0]], [rows[1]])]), ("a", "b"), [], tmp_path)
    (change,) = page.sections[0].changes
    assert change.shown == "0 to 2 errors"
    assert [(p.kind, p.reference or p.hypothesis) for p in change.pieces[1] if p.kind != "hit"] == [
        ("ins", "的"), ("del", "很"),
    ]  # fmt: skip


def test_a_task_has_its_own_sections_and_unit(tmp_path: Path) -> None:
    path = write_results(tmp_path / "r.json", [record(m, k, w) for m, w in (("a", 0.3), ("b", 0.1)) for k in (CV, ST)])  # fmt: skip
    page = between(read_results([path]), ("a", "b"), [], tmp_path)
    titles = [section.title for section in page.sections]
    assert titles == ["Got worse, ASR", "Got better, ASR", "Got worse, ST", "Got better, ST"]
    assert all(re.match(r"chrF2 [\d.]+ to [\d.]+", c.shown) for c in page.sections[3].changes)


@pytest.mark.parametrize(
    "name", ["clips with #?% signs", "a\"b'c", "javascript:alert(1)", os.fsdecode(b"caf\xe9")]
)
def test_audio_is_linked_from_the_page_and_not_copied(tmp_path: Path, name: str) -> None:
    sets = [hypotheses(name, CV, wrong, count=4) for name, wrong in (("base", 0.9), ("m", 0.0))]
    made, clips = tmp_path / "made", tmp_path / name
    made.mkdir()
    lines = []
    for number, row in enumerate(sets[0]):
        line = {"id": row.id, "audio": f"{number}.wav", "text": "x", "language": "ca"}
        if number < 3:  # the last one is not there
            make_clip(made / f"{number}.wav", number, 1.0)
        if number == 1:
            line |= {"offset": 0.25, "duration": 0.5}
        lines.append(json.dumps(line) + "\n")
    made.rename(clips)  # soundfile writes no file whose name is not UTF-8
    (clips / "m.jsonl").write_text("".join(lines))
    file = write(tmp_path, *sets)
    out = tmp_path / "a" / "out"
    found = report(file, out, between=("base", "m"), data={"cv": clips / "m.jsonl"})
    assert "between.html" in found.files
    page = (out / "between.html").read_text()
    links = [unescape(link) for link in re.findall(r'<audio controls preload="none" src="([^"]*)">', page)]  # fmt: skip
    assert len(links) == 3
    for link in links:
        path, _, part = link.partition("#")
        assert part in ("", "t=0.25,0.75")
        assert (out / os.fsdecode(unquote_to_bytes(path))).resolve().parent == clips
    assert not [path for path in out.rglob("*") if path.suffix == ".wav"]


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_stranger_s_text_is_text(name: str, tmp_path: Path) -> None:
    name = name.encode("utf-8", "replace").decode()  # no results file has half of a pair

    def page(text: str) -> str:
        sets = [
            [Hypothesis(model + text, text, "1" + text, "ca", "st", "a b " + text, said, 1.0, text)]
            for model, said in (("a", "a " + text + " c"), ("b", text))
        ]
        folder = tmp_path / str(len(text))
        folder.mkdir()
        file = write(folder, *sets)
        report(file, folder / "out", between=("a" + text, "b" + text))
        return (folder / "out" / "between.html").read_text()

    made = page(name)
    assert not STEERS.search(made.replace("\n", ""))
    tags = {"script", "img", "iframe", "link", "object", "form", "base"}
    assert not tags & {element for element, _ in Elements(made).found}
    assert "default-src 'none'" in made


def test_very_long_lists_are_cut_and_say_so(tmp_path: Path) -> None:
    sets = [hypotheses(name, CV, wrong, count=MOST + 20) for name, wrong in (("a", 0.0), ("b", 0.9))]  # fmt: skip
    file = write(tmp_path, *sets)
    report(file, tmp_path / "out", between=("a", "b"))
    page = (tmp_path / "out" / "between.html").read_text()
    assert f"The {MOST} that changed most." in page
    assert page.count("<article>") == MOST


def test_what_is_not_there_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    file = write_results(tmp_path / "r.json", [record("base", CV, 0.3), record("m", ST, 0.1)])
    out = tmp_path / "out"
    with pytest.raises(UsageFault, match=r"--between: no result is of 'bsae'. Did you mean 'base'\?"):  # fmt: skip
        report(file, out, between=("bsae", "m"))
    with pytest.raises(UsageFault, match="no test set that both have"):
        report(file, out, between=("base", "m"))
    file = write_results(tmp_path / "s.json", [record("base", CV, 0.3), record("m", CV, 0.1)])
    with pytest.raises(UsageFault, match=r"no result is on 'm\.jsonl'"):
        report(file, out, between=("base", "m"), data=tmp_path / "m.jsonl")
    assert not out.exists()
