"""`lorsmerge eval --suite` and the report of its results, as a user types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_data import add_set, fleurs_files
from hub_server import Hub
from speech_models import make_test_set, make_tuned, make_whisper

EVAL = "lorsmerge eval base ca --device cpu --beam 1 --samples 20"
SUITE = """
[sets.clean]
data = "data/test.jsonl"
language = "ca"
task = "asr"

[sets.board]
data = "data/test.jsonl"
language = "ca"
task = "asr"
normalise = "leaderboard"

[sets.into_english]
data = "data/test.jsonl"
task = "st"

[[published]]
model = "big"
set = "clean"
metric = "WER"
score = 12.5
normalise = "auto"
source = "https://example.org/big"

[[published]]
model = "big"
set = "board"
metric = "WER"
score = 11.0
normalise = "unknown"
source = "a talk"
"""
ALONE = "lorsmerge eval base ca --device cpu --beam 1 --samples 20 --data {} --task {}"


@pytest.fixture(scope="module")
def speech_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, ca/, suite.toml and data/test.jsonl."""
    folder = tmp_path_factory.mktemp("suite")
    make_whisper(folder / "base")
    make_tuned(folder / "base", folder / "ca", seed=1)
    make_test_set(folder / "data", count=20)
    (folder / "suite.toml").write_text(SUITE)
    return folder


def read_json(path: str) -> Any:
    return json.loads(Path(path).read_text())


def scores(path: str, dataset: str) -> list[dict[str, Any]]:
    keys = ("model", "language", "task", "metric", "scores", "rows")
    found = [{key: record[key] for key in keys} for record in read_json(path)["records"]
             if record["dataset"] == dataset]  # fmt: skip
    assert found
    return sorted(found, key=lambda record: (record["model"], record["language"]))


def test_a_suite_is_what_its_sets_would_give_alone(files: Path, succeed: Callable) -> None:
    succeed(f"{EVAL} --suite suite.toml -o all.json")
    data = "data/test.jsonl"
    ca = " --language ca"
    succeed(ALONE.format(f"clean={data}", "asr") + ca + " -o clean.json")
    succeed(ALONE.format(f"board={data}", "asr") + ca + " --normalise leaderboard -o board.json")
    succeed(ALONE.format(f"into_english={data}", "st") + " -o into_english.json")
    for name in ("clean", "board", "into_english"):
        assert scores("all.json", name) == scores(f"{name}.json", name)
    settings = read_json("all.json")["settings"]
    assert settings["suite"]["name"] == "suite"
    assert len(settings["suite"]["digest"]) == 16
    assert settings["suite"]["sets"] == ["clean", "board", "into_english"]
    assert settings["scoring"]["sets"] == {"board": "leaderboard"}
    assert "suite" not in read_json("clean.json")["settings"]


def test_scores_that_do_not_compare_are_in_no_common_table(files: Path, succeed: Callable) -> None:
    ended = succeed(f"{EVAL} --suite suite.toml -o all.json")
    titles = [line.strip() for line in ended.out.splitlines() if line.startswith(("WER", "BLEU"))]
    assert titles == ["WER %", "WER %, leaderboard", "BLEU"]
    shown = [line.split() for line in ended.out.splitlines() if line.startswith(" big ")]
    assert shown == [["big", "(published)", "12.5", "12.50"]]
    assert "big (published): https://example.org/big" in ended.out
    told = "big (published) by a normalisation that is not known, so in no column: board ca WER 11.0 (a talk)"
    assert told in " ".join(ended.out.split())


def test_a_report_has_the_published_rows_and_no_test_of_them(
    files: Path, succeed: Callable
) -> None:
    succeed(f"{EVAL} --suite suite.toml -o all.json")
    document = json.loads(succeed("lorsmerge report all.json -o report --json").out)
    table = next(table for table in document["tables"] if table["name"] == "scores")
    blocks = list(dict.fromkeys(block for _, block in table["heads"]))
    assert blocks == ["WER % ↓", "WER % ↓, leaderboard", "BLEU ↑"]
    label, _, cells = table["rows"][-1]
    assert label == "big (published)"
    assert [cell["text"] for cell in cells if cell["text"]][:2] == ["12.5", "12.50"]
    assert all(cell["p_value"] is None and cell["mark"] == "" for cell in cells)
    assert "https://example.org/big" in table["note"]
    assert {row["system"] for row in document["scores"]} == {"base", "ca"}
    # an average is over one normalisation alone
    means = [row["value"] for row in document["scores"] if row["language"] == "average"]
    assert len(means) == 6


def test_results_of_a_suite_and_of_a_set_alone_are_reported_together(
    files: Path, succeed: Callable
) -> None:
    succeed(f"{EVAL} --suite suite.toml -o all.json")
    succeed(
        "lorsmerge eval other=ca --data board=data/test.jsonl --language ca --task asr --device cpu "
        "--beam 1 --samples 20 --normalise leaderboard -o other.json"
    )
    document = json.loads(succeed("lorsmerge report all.json other.json -o report --json").out)
    found = {
        (row["system"], row["dataset"]): row["value"]
        for row in document["scores"]
        if "dataset" in row
    }
    assert found["other", "board"] == found["ca", "board"]
    assert not [note for note in document["notes"] if "rescored" in note]


def test_some_hours_of_each_set_stand_beside_no_published_figure(
    files: Path, succeed: Callable
) -> None:
    ended = succeed(f"{EVAL} --suite suite.toml --hours 0.001 -o part.json")
    assert "published" not in ended.out
    assert read_json("part.json")["settings"]["suite"]["published"] == []


def test_shards_are_scored_as_the_suite_says(files: Path, succeed: Callable) -> None:
    succeed(f"{EVAL} --suite suite.toml -o whole.json")
    for part in (1, 2):
        succeed(f"{EVAL} --suite suite.toml --shard {part}/2 --hypotheses {part}.jsonl")
    succeed("lorsmerge eval --score-only 1.jsonl 2.jsonl --suite suite.toml --samples 20 -o joined.json")  # fmt: skip
    for name in ("clean", "board", "into_english"):
        assert scores("joined.json", name) == scores("whole.json", name)
    assert read_json("joined.json")["settings"]["suite"] == read_json("whole.json")["settings"]["suite"]  # fmt: skip


def test_faults_of_the_file_and_its_sets_come_before_any_model(
    files: Path, shell: Callable
) -> None:
    Path("bad.toml").write_text(SUITE.replace("data/test.jsonl", "data/gone.jsonl"))
    ended = shell("lorsmerge eval base none/such/model --suite bad.toml --device cpu")
    assert ended.code == 1
    told = " ".join(ended.err.split())
    assert "bad.toml: sets.clean.data: There is no data set data/gone.jsonl." in told
    assert "sets.into_english.data" in told  # all of them at once
    assert shell(f"{EVAL} --suite suite.toml -o suite.toml").code == 1
    ended = shell(f"{EVAL} --suite suite.toml --data clean=data/test.jsonl")
    assert ended.code == 2
    assert "--data clean has the name of a set of suite.toml." in ended.err
    assert shell("lorsmerge eval base").code == 2


def test_configurations_on_the_hub_are_looked_up_first(
    files: Path, set_hub: Hub, shell: Callable, succeed: Callable
) -> None:
    add_set(set_hub, "google/fleurs", fleurs_files())
    text = '[sets.ca]\ndata = "hub:google/fleurs:ca_es:test"\nlanguage = "ca"\ntask = "asr"\n'
    Path("hub.toml").write_text(text + '[sets.xx]\ndata = "hub:google/fleurs:xx_xx:test"\n')
    ended = shell(f"{EVAL} --suite hub.toml")
    assert ended.code in (1, 2)
    assert "hub.toml: sets.xx.data: google/fleurs has no configuration 'xx_xx'" in " ".join(ended.err.split())  # fmt: skip
    Path("hub.toml").write_text(text.replace(":test", ":tset"))
    assert "sets.ca.data: hub:google/fleurs:ca_es:tset has no split 'tset'." in " ".join(shell(f"{EVAL} --suite hub.toml").err.split())  # fmt: skip
    Path("hub.toml").write_text(text)
    succeed(f"{EVAL} --suite hub.toml -o r.json")
    (first, _) = read_json("r.json")["records"]
    assert (first["dataset"], first["language"], first["task"]) == ("ca", "ca", "asr")
    assert {row["gender"] for row in first["rows"]} == {"male", "female"}


def test_words_that_are_invented_in_silence_are_counted(files: Path, succeed: Callable) -> None:
    rows = [json.loads(line) for line in Path("data/test.jsonl").read_text().splitlines()[:6]]
    own = [row | {"source_lang": "ca", "taskname": "asr"} for row in rows]
    for row in own[:3]:
        row["text"] = ""  # nothing is said in them
    Path("data/silence.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    ended = succeed("lorsmerge eval base --data data/silence.jsonl --device cpu --beam 1 -o s.json")
    (record,) = read_json("s.json")["records"]
    said = [row for row in record["rows"] if not row["reference"] and row["hypothesis"]]
    assert record["details"]["invented"] == len(said) > 0
    assert "invented: hypotheses with words where nothing is said (no reference)" in ended.out
    document = json.loads(succeed("lorsmerge report s.json -o silence --json").out)
    assert any("have words where nothing is said" in note for note in document["notes"])
