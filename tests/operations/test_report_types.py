"""Results files whose values are of another type than `eval` writes: an error, and no traceback."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzz import change_value
from results_files import delta, finetune, merge, record, write_results

from lorsmerge_cli import report as run
from lorsmerge_cli.errors import LorsmergeError, UnreadableFile
from lorsmerge_cli.operations.report import run as report_module

CELLS = [("ca", "ca", "asr"), ("ca", "ca", "st")]
MADE = {
    "pretrained": {},
    "finetuned": finetune("ca_asr", "ca_st"),
    "ta": merge("ta", delta("ca_asr"), delta("ca_st")),
    "lors": merge("lors", delta("ca_asr", svp=0.1, mp=0.2), delta("ca_st", svp=0.1, mp=0.2)),
}


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    records = [record(name, cell, 0.2, count=6) for name in MADE for cell in CELLS]
    found: dict[str, Any] = json.loads(
        write_results(tmp_path / "r.json", records, MADE).read_text()
    )
    found["settings"] |= {"dropped": {"ca": {"missing audio": 2}}, "partial": {"ca": [6, 8]}}
    return found


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Report of a document, without figures."""
    monkeypatch.setattr(report_module, "can_draw", lambda: False)

    def draw(changed: Any) -> None:
        text = json.dumps(changed).encode("utf-8", "surrogatepass")
        (tmp_path / "r.json").write_bytes(text)
        run([tmp_path / "r.json"], tmp_path / "out", force=True)

    return draw


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (["settings"], [], "settings is"),
        (["settings", "versions"], "x", "settings.versions is 'x'"),
        (["settings", "decoding"], [1], "settings.decoding is [1]"),
        (["settings", "decoding", "beam"], {"a": 1}, "settings.decoding.beam is"),
        (["settings", "dropped", "ca"], ["x"], "settings.dropped.ca is"),
        (["settings", "partial", "ca"], [1], "settings.partial.ca is no pair"),
        (["settings", "scoring", "normalisation"], {}, "settings.scoring.normalisation is {}"),
        (["models"], [], "models is []"),
        (["models", "ta"], 3, "models.ta is 3"),
        (["models", "ta", "identity"], ["x"], "models.ta.identity is"),
        (["models", "lors", "made_from", "deltas"], {}, "models.lors.made_from.deltas is {}"),
        (["models", "lors", "made_from", "deltas", 0, "svp"], [1], "deltas[0].svp is [1]"),
        (["models", "lors", "made_from", "coef"], [1], "made_from.coef[0] is 1"),
        (["models", "lors", "made_from", "deltas", 0, "trained_on", 0, "hours"], "5", "hours is '5'"),
        (["records"], {}, "records is {}"),
        (["records", 0], None, "records[0] is None"),
        (["records", 0, "scores", "WER", "score"], "12", "records[0].scores.WER.score is '12'"),
        (["records", 0, "scores", "WER", "score"], True, "records[0].scores.WER.score is True"),
        (["records", 0, "scores", "WER", "low"], 1e200, "records[0].scores.WER.low is 1e+200"),
        (["records", 0, "metric"], "BLEU", "records[0].scores has no 'BLEU'"),
        (["version"], "2", "its version is '2'"),
        (["records", 0, "task"], "", "records[0] has no task"),
        (["records", 0, "task"], "sing", "no task"),
        (["records", 0, "details"], None, "records[0].details is None"),
        (["records", 0, "details", "cut"], "3", "records[0].details.cut is '3'"),
        (["records", 0, "rows"], [], "records[0] has no rows"),
        (["records", 0, "rows", 1, "reference"], ["a"], "records[0].rows[1].reference is ['a']"),
        (["records", 0, "rows", 1, "seconds"], "1", "records[0].rows[1].seconds is '1'"),
        (["records", 0, "rows", 1, "hypothesis"], "\ud800", "surrogates not allowed"),
    ],
)  # fmt: skip
def test_the_value_is_named(
    document: dict[str, Any], drawn: Callable[[Any], None], place: list[Any], value: Any, said: str
) -> None:
    drawn(document)
    holder: Any = document
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    with pytest.raises(UnreadableFile) as caught:
        drawn(document)
    assert "r.json" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_files_are_refused_or_drawn(
    document: dict[str, Any], drawn: Callable[[Any], None], seed: int
) -> None:
    draw, refused = random.Random(seed), 0
    for _ in range(60):
        changed = copy.deepcopy(document)
        if draw.random() < 0.8:  # in what there is less of than of rows
            part = draw.choice([["settings"], ["models"], ["records", draw.randrange(8)]])
            holder: Any = changed
            for key in part[:-1]:
                holder = holder[key]
            inner = holder[part[-1]]
            rows = inner.pop("rows", None)
            mutated = change_value(inner, draw)
            if rows is not None and isinstance(mutated, dict):
                mutated["rows"] = rows
            holder[part[-1]] = mutated
        else:
            changed = change_value(changed, draw)
        try:
            drawn(changed)
        except LorsmergeError:
            refused += 1
    assert refused > 10


def test_a_merge_with_rules_of_coefficients_is_not_plain_task_arithmetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "can_draw", lambda: False)
    plain = merge("ta", delta("ca_asr"), delta("ca_st"))
    made = {"halves": plain | {"coef": ["decoder=0.5"]}, "one lambda": plain}
    records = [record(name, cell, 0.2, count=6) for name in made for cell in CELLS]
    write_results(tmp_path / "r.json", records, made)
    run([tmp_path / "r.json"], tmp_path / "out")
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["roles"]["against"] == "one lambda"
