"""Options that choose rows, in every command that takes data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from speech_models import make_test_set, make_tuned, make_whisper

USAGE = 2
EVAL = "lorsmerge eval base --device cpu --beam 1 --samples 20"
FINETUNE = "lorsmerge finetune base --lr 1e-3 --effective-batch 4 --steps 1 --device cpu"


@pytest.fixture(scope="module")
def speech_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, ca/ and data/test.jsonl, whose rows have a column `room`."""
    folder = tmp_path_factory.mktemp("selection")
    make_whisper(folder / "base", spells=True)
    make_tuned(folder / "base", folder / "ca", seed=1)
    manifest = make_test_set(folder / "data")
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["room"] = "hall" if number % 2 else "car"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def read_json(path: str) -> Any:
    return json.loads(Path(path).read_text())


def rows_in(room: str) -> set[str]:
    lines = Path("data/test.jsonl").read_text().splitlines()
    return {row["id"] for row in map(json.loads, lines) if row["room"] == room}


def test_data_writes_the_rows_that_were_asked_for(files: Path, succeed: Callable) -> None:
    ended = succeed(
        "lorsmerge data data/test.jsonl --only room=car --where 'duration<9' -o car.jsonl"
    )
    written = {json.loads(line)["id"] for line in Path("car.jsonl").read_text().splitlines()}
    assert written == rows_in("car")
    assert f"dropped, not asked for: {len(rows_in('hall'))}" in ended.out


def test_scores_of_other_selections_are_not_of_one_set(files: Path, shell: Callable) -> None:
    assert shell(f"{EVAL} --data data/test.jsonl --only room=car -o car.json").code == 0
    assert read_json("car.json")["settings"]["selected"] == {"test.jsonl": ["room=car"]}
    scored = {row["id"] for r in read_json("car.json")["records"] for row in r["rows"]}
    assert scored == rows_in("car")
    ended = shell("lorsmerge report car.json -o alone")
    assert ended.code == 0
    assert "test.jsonl is not whole: only rows with room=car" in " ".join(ended.err.split())
    assert shell(f"{EVAL} --data data/test.jsonl -o base.json").code == 0
    ended = shell("lorsmerge report car.json base.json -o report")
    assert "with other rows (with room=car and all)" in " ".join(ended.err.split())
    line = EVAL.replace("base", "ca") + " --data data/test.jsonl -o all.json"
    assert shell(line).code == 0
    assert "selected" not in read_json("all.json")["settings"]
    ended = shell("lorsmerge report car.json all.json -o report")
    assert ended.code == 1
    assert "utterances with room=car, car.json)" in " ".join(ended.err.split())


def test_a_fine_tune_records_what_it_was_asked_for(files: Path, succeed: Callable) -> None:
    line = f"{FINETUNE} --data data/test.jsonl --where 'room!=hall' --task asr --language ca -o out"
    succeed(line)
    run = read_json("out/run.json")
    assert run["selected"] == ["room!=hall"]
    assert run["train"]["dropped"]["not asked for"] > 0
    Path("recipe.toml").write_text('only = "room=car"\nwhere = ["duration<9"]\n')
    succeed(f"{FINETUNE} --data data/test.jsonl --recipe recipe.toml -o again")
    assert read_json("again/run.json")["selected"] == ["room=car", "duration<9"]


def test_statistics_and_pseudo_labels(files: Path, succeed: Callable) -> None:
    asked = "--data data/test.jsonl --only room=car --language ca --task asr --device cpu"
    succeed(f"lorsmerge stats ca {asked} --half encoder -o ca.stats")
    plan = succeed(f"lorsmerge stats ca {asked} --half encoder -o x.stats --dry-run --json")
    count = json.loads(plan.out)["utterances"]
    succeed(f"lorsmerge transcribe {asked} --teacher base --beam 1 --keep-flawed -o p.jsonl")
    assert len(Path("p.jsonl").read_text().splitlines()) == count < len(rows_in("car"))
    assert read_json("p.jsonl.run.json")["selected"] == ["room=car"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lorsmerge data data/test.jsonl --only rom=car", "Did you mean 'room'?"),
        (f"{EVAL} --data data/test.jsonl --only room=cra", "Did you mean 'car'?"),
        (f"{FINETUNE} --data data/test.jsonl --where room>3 -o out", "and 3 is a number"),
        ("lorsmerge stats base --data data/test.jsonl --where room -o x", "no comparison"),
        ("lorsmerge transcribe --data data/test.jsonl --teacher base --where \"text!='x'\" -o p.jsonl",
         "texts are not read here"),
        ("lorsmerge transcribe base --audio x.wav --language ca --only room=car",
         "--only needs --data, --teacher and -o"),
        ("lorsmerge eval x.jsonl --score-only --where 'duration<3'", "remove --where"),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen(files: Path, shell: Callable, line: str, message: str) -> None:
    ended = shell(line)
    assert ended.code == USAGE
    assert message in " ".join(ended.err.split())


def test_hours_of_languages(files: Path, shell: Callable) -> None:
    asked = "--data data/test.jsonl --hours ca=0.0001 --hours Catalan=1"
    assert "ca is given twice" in shell(f"{EVAL} {asked}").err
    for line in (EVAL, f"{FINETUNE} -o out", "lorsmerge stats base -o x.stats --half encoder"):
        ended = shell(f"{line} --data data/test.jsonl --hours fr=1")
        assert (ended.code, "fr=1: no row of data/test.jsonl is in that" in ended.err) == (
            USAGE,
            True,
        )
    ended = shell("lorsmerge data data/test.jsonl --hours ca=0.0001 --json")
    document = json.loads(ended.out)
    by_language = {group["language"]: group["utterances"] for group in document["groups"]}
    assert by_language["ca"] == 1
    assert document["not_looked_at"] > 0
    Path("recipe.toml").write_text("hours = 0.0001\n")
    assert shell(f"{FINETUNE} --data data/test.jsonl --recipe recipe.toml -o one").code == 0
    assert read_json("one/run.json")["train"]["utterances"] == 1
    two = "--data a=data/test.jsonl --data b=data/test.jsonl"
    assert "no row of" in shell(f"{EVAL} {two} --hours fr=1").err
    assert shell(f"{EVAL} {two} --hours 0.0001 --hours de=0.0002").code == 0


def test_a_temperature_over_languages(files: Path, shell: Callable) -> None:
    asked = f"{FINETUNE} --data data/test.jsonl --language-temperature 100"
    planned = shell(f"{asked} -o out --dry-run")
    assert "in an epoch, by --language-temperature: " in planned.out
    assert shell(f"{asked} -o out").code == 0
    assert read_json("out/run.json")["settings"]["language_temperature"] == 100
    assert (
        "changes nothing: the data is of one language" in shell(f"{asked} --language ca -o one").err
    )
    ended = shell(f"{FINETUNE} --data data/test.jsonl --language-temperature 0.5 -o x")
    assert (ended.code, "is not a number of at least 1" in ended.err) == (USAGE, True)


def test_a_picture_with_what_a_tokenizer_spells_out(files: Path, succeed: Callable) -> None:
    succeed("lorsmerge data data/test.jsonl --plot data.svg --tokenizer base")
    assert "characters that the tokenizer spells out" in Path("data.svg").read_text()
