"""examples/paper from end to end, with stand-ins for all commands but `report`."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest

PAPER = Path(__file__).parents[2] / "examples" / "paper"
USAGE = 2
Call = Callable[..., list[list[str]]]
PATIENCE = 300  # seconds of a script
LANGUAGES = ("ca", "de", "es", "fr", "it")
STAND_IN = """
import hashlib, json, os, sys
from pathlib import Path

command, *words = sys.argv[1:]
options, places = {}, []
while words:
    word = words.pop(0)
    if word in ("--quiet", "--resume", "--force", "--json", "--long", "--keep-language"):
        options[word] = []
    elif word.startswith("-"):
        options.setdefault(word, []).append(words.pop(0))
    else:
        places.append(word)
with open("calls", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")

def groups(paths):
    names = [Path(p).name.split(".")[0] for p in paths]
    sets = [s for name in names for s in ([name] if "_" in name else [f"{x}_asr" for x in ("ca", "de", "es", "fr", "it")])]
    return [dict(zip(("language", "task"), s.split("_")), hours=hours) for s in sets]

hours = float(options.get("--hours", ["0.084"])[0].partition("=")[2] or options.get("--hours", ["0.084"])[0])
if command == "finetune":
    made = {"kind": "finetune", "base": "0", "trained_on": groups(options["--data"])}
    output = Path(options["-o"][0])
    output.mkdir()
    (output / "made").write_text(json.dumps(made))
    for delta in options.get("--delta", []):
        Path(delta).write_text(json.dumps(made))
elif command == "transcribe":
    for ending in ("", ".journal"):
        Path(options["-o"][0] + ending).touch()
elif command == "search":
    base, *deltas = places
    ratios = [option[2:] for option in ("--mp", "--svp") if option in options]
    method = {(): "ta", ("mp",): "mp", ("svp",): "svp"}.get(tuple(ratios), "lors")
    made = {"kind": "merge", "method": method, "deltas": [
        {"fingerprint": d, "scale": 0.2, "trained_on": json.load(open(d))["trained_on"]}
        | dict.fromkeys(ratios, 0.1) for d in deltas]}
    Path(options["-o"][0]).write_text("scale = 0.2\\n" + json.dumps(made))
elif command == "merge" and "--recipe" in options:
    output = Path(options["-o"][0])
    output.mkdir()
    made = Path(options["--recipe"][0]).read_text().partition("\\n")[2]
    (output / "made").write_text(made)
    print(json.dumps({"step_norm": 0.2 if '"method": "ta"' in made else 0.1}))
elif command == "merge":
    base, *deltas = places
    ratios = [dict(part.split("=") for part in d.partition(":")[2].split(",") if part) for d in deltas]
    method = options.get("--method", ["".join(sorted(ratios[0]))])[0] or "ta"
    scale = float(options.get("--scale", ["1"])[0])
    made = {"kind": "merge", "method": {"mpsvp": "lors"}.get(method, method), "deltas": [
        {"fingerprint": d, "scale": scale, "trained_on": json.load(open(d.partition(":")[0]))["trained_on"]}
        | {key: float(value) for key, value in ratio.items()} for d, ratio in zip(deltas, ratios)]}
    output = Path(options["-o"][0])
    output.mkdir()
    (output / "made").write_text(json.dumps(made))
    print(json.dumps({"step_norm": scale * (0.5 if ratios[0] else 1.0)}))
elif command == "eval":
    records, models = [], {}
    for name, path in (place.split("=", 1) for place in places):
        made = Path(path, "made")
        models[name] = {"identity": path, "made_from": json.loads(made.read_text()) if made.exists() else {}}
        for data in options["--data"]:
            dataset, _, file = data.partition("=")
            language, task = Path(file).name.split(".")[0].split("_")
            score = 10 + int(hashlib.md5((name + data).encode()).hexdigest(), 16) % 1000 / 100
            records.append({
                "model": name, "dataset": dataset, "language": language, "task": task,
                "metric": "BLEU" if task == "st" else "WER", "score": score, "low": score - 1,
                "high": score + 1, "standard_error": 0.5, "signature": "made up", "details": {},
                "rows": [{"id": str(n), "speaker": None, "seconds": 1.0, "reference": "a b c d e f",
                          "hypothesis": " ".join("a b c d e f".split()[: 6 - (n * int(100 * score)) % 4])}
                         for n in range(4)]})
            if "--hypotheses" in options and ".clips." in options["-o"][0] or {"--long", "--language"} & options.keys():
                records[-1] |= {"scores": {"WER": {"score": score}}, "seconds": 30.0, "details": {
                    "heard_as": {language: 3, "en": 1}, "timestamps": {"segments": 8, "heard": 7, "matched": 5,
                    "within": 4, "seconds": 2.0, "recordings": 2}}}
    Path(options["-o"][0]).write_text(json.dumps({
        "lorsmerge": "0", "models": models, "records": records,
        "settings": {"scoring": {"normalisation": "basic", "samples": 10, "seed": 0},
                     "decoding": {"beam": options["--beam"][0]}}}))
elif command == "data":
    Path(options["-o"][0]).touch()
elif command == "report":
    os.execv(sys.executable, [sys.executable, "-m", "lorsmerge_cli", *sys.argv[1:]])
"""


@pytest.fixture
def call(tmp_path: Path) -> Call:
    """Run a script in a folder where `lorsmerge` is the stand-in; the commands it ran."""
    (tmp_path / "bin").mkdir()
    stand_in = tmp_path / "bin" / "lorsmerge"
    stand_in.write_text(f"#!{sys.executable}\n{STAND_IN}")
    stand_in.chmod(0o755)

    def run(name: str, *arguments: str, demo: bool = True) -> list[list[str]]:
        settings = os.environ | {"PATH": f"{stand_in.parent}:{os.environ['PATH']}"}
        kind = ["--demo"] if demo else []
        log = tmp_path / "work" / "calls"
        log.unlink(missing_ok=True)
        log.parent.mkdir(exist_ok=True)
        log.touch()
        done = subprocess.run(
            ["bash", PAPER / f"{name}.sh", "work", *kind, *arguments], cwd=tmp_path,
            env=settings, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        return [json.loads(line) for line in log.read_text().splitlines()]

    return run


def rows(tmp_path: Path, name: str) -> list[str]:
    """Labels of the table of scores."""
    document = json.loads((tmp_path / "work" / name / "report.json").read_text())
    scores = next(table for table in document["tables"] if table["name"] == "scores")
    return [label for label, _, _ in scores["rows"]]


def of(calls: list[list[str]], command: str) -> list[str]:
    return [shlex.join(call) for call in calls if call[0] == command]


def controlled(calls: list[list[str]]) -> list[str]:
    """Names of the merges that task arithmetic of the same step norm was made for, each checked."""
    found = []
    for call in calls:
        if "--step-norm-of" in call:
            merge = Path(call[call.index("--step-norm-of") + 1])
            assert call[call.index("-o") + 1] == f"{merge.parent}/ta_as_{merge.name}"
            assert not any("svp=" in word or "mp=" in word for word in call)
            found.append(merge.name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task"), [("table1", "asr"), ("table2", "st")])
def test_tables_1_and_2_have_every_system(call: Call, tmp_path: Path, name: str, task: str) -> None:
    calls = call(name)
    assert rows(tmp_path, name) == [
        "Pretrained", "Finetuned", "Multi-lingual training", "Weight Averaging", "Task Arithmetic",
        "MP-Merging", "TA, same norm as MP", "SVP-Merging", "TA, same norm as SVP", "LoRS-Merging",
        "TA, same norm as LoRS",
    ]  # fmt: skip
    tuned = of(calls, "finetune")
    assert len(tuned) == 6
    assert " --steps 21 " in tuned[0]  # finetune.toml's
    assert " --steps 105 " in tuned[-1]
    assert tuned[-1].count(f"_{task}.train.jsonl") == 5
    assert controlled(calls) == [f"{system}_ml_{task}" for system in ("mp", "svp", "lors")]
    scores = json.loads((tmp_path / "work" / name / "report.json").read_text())["scores"]
    assert {s["task"] for s in scores if s["system"] != "pretrained"} == {task}
    assert [call[0] for call in call(name)] == ["report"]  # all else is there
    if name == "table1":  # a fine-tune of a seed without merges is not in the mean
        other = tmp_path / "work" / "seed7" / "results"
        other.mkdir(parents=True)
        found = (tmp_path / "work/seed0/results/finetuned_ca_asr.json").read_text()
        (other / "finetuned_ca_asr.json").write_text(found.replace(":seed0", ":seed7"))
        assert "seed7" not in shlex.join(call(name)[0])
    again = call(name, "--seed", "1")
    assert sum("--seed 1" in line for line in of(again, "finetune")) == 6
    assert "pretrained" not in " ".join(of(again, "eval"))
    document = json.loads((tmp_path / "work" / name / "report.json").read_text())
    assert {s["runs"] for s in document["scores"] if s["system"] == "lors"} == {2}


@pytest.mark.slow
def test_table_3_merges_the_tasks_of_each_language(call: Call, tmp_path: Path) -> None:
    calls = call("table3")
    found = rows(tmp_path, "table3")
    assert found[:3] == ["Pretrained", "Finetuned", "Multi-task training"]
    assert len(found) == 11
    assert len(of(calls, "finetune")) == 15
    assert len(of(calls, "merge")) == 8 * 5


@pytest.mark.slow
def test_table_4_has_the_four_combinations(call: Call, tmp_path: Path) -> None:
    calls = call("table4")
    found = rows(tmp_path, "table4")
    assert len(found) == 5 + 3 * 3
    published = tomllib.loads((PAPER / "paper.toml").read_text())["names"].values()
    assert set(found) <= set(published)
    steps = [line.partition("--steps ")[2].split()[0] for line in of(calls, "finetune")]
    assert sorted(map(int, steps)) == [21] * 10 + [42] * 5 + [105] * 2 + [210]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "figure", "lines"),
    [
        ("figure3", "languages", ("Task Arithmetic", "LoRS-Merging")),
        ("figure4", "hours", ("Finetuned", "Multi-lingual training", "Task Arithmetic", "LoRS-Merging")),
        ("figure5", "retain", ("SVP of each fine-tune, 0.084 h", "shrunk to the norm of MP, 0.084 h")),
    ],
)  # fmt: skip
def test_figures_are_drawn(
    call: Call, tmp_path: Path, name: str, figure: str, lines: tuple[str, ...]
) -> None:
    call(name)
    folder = tmp_path / "work" / name
    assert (folder / "figures" / f"{figure}.png").is_file()
    text = (folder / "report.md").read_text()
    assert all(f"{line}: " in text for line in lines)
    assert [command[0] for command in call(name)] == ["report"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tuned", "overfit"])
def test_merges_are_tuned_on_dev_and_scored_on_test(call: Call, tmp_path: Path, name: str) -> None:
    calls = call(name)
    assert rows(tmp_path, name) == [
        "Pretrained", "Finetuned", "Task Arithmetic, tuned", "MP-Merging, tuned",
        "TA, same norm as MP", "SVP-Merging, tuned", "TA, same norm as SVP",
        "LoRS-Merging, tuned", "TA, same norm as LoRS",
    ]  # fmt: skip
    searches = of(calls, "search")
    assert len(searches) == 4
    assert all("--scale 0.1:0.5:0.025" in line and "test" not in line for line in searches)
    assert not [line for line in of(calls, "eval") if "dev" in line]
    ending = "_overfit" if name == "overfit" else ""
    assert controlled(calls) == [f"{system}_tuned{ending}" for system in ("mp", "svp", "lors")]
    assert [call[0] for call in call(name)] == ["report"]


@pytest.mark.slow
def test_overfitted_fine_tunes_learn_from_few_clips_with_wrong_words(
    call: Call, tmp_path: Path
) -> None:
    tuned = of(call("overfit"), "finetune")
    assert len(tuned) == 5
    wanted = ("--average-last 1", "--hours 0.021 ", "--steps 42 ")
    assert all(part in line for part in wanted for line in tuned)
    before, after = (
        [json.loads(line) for line in (tmp_path / "work" / path).read_text().splitlines()]
        for path in ("data/de_asr.train.jsonl", "wrong/de_asr.jsonl")
    )
    words = [
        (row["text"].split(), other["text"].split())
        for row, other in zip(before, after, strict=True)
    ]
    assert all(len(said) == len(now) for said, now in words)
    wrong = fmean(a != b for said, now in words for a, b in zip(said, now, strict=True))
    assert wrong == pytest.approx(1 / 3, abs=0.05)
    assert all(Path(row["audio_filepath"]).is_file() for row in after)


@pytest.mark.slow
def test_one_model_learns_from_what_the_fine_tunes_say(call: Call, tmp_path: Path) -> None:
    calls = call("distil")
    assert rows(tmp_path, "distil") == [
        "Pretrained", "Finetuned", "Multi-lingual training", "Task Arithmetic, best lambda",
        "Merge taught, few steps", "Merge taught", "Merge taught on 10 new clips of each language, few steps",
        "Merge taught on 50 new clips of each language, few steps", "Merge taught on new audio, few steps",
        "Base taught, few steps", "Base taught", "Base taught on new audio",
        "Base taught on new audio, sure texts",
        "Merge, 50 labelled clips", "Base, 50 labelled clips",
    ]  # fmt: skip
    heard, new, sure = of(calls, "transcribe")
    assert sure == new.replace("--beam", "--min-confidence -0.25 --beam").replace(
        "new.jsonl", "sure.jsonl"
    )
    for line, folder, ending in ((heard, "data", ".train.jsonl"), (new, "new", ".jsonl")):
        for code in LANGUAGES:
            assert f"--data {folder}/{code}_asr{ending}" in line
            assert f"--teacher {code}=seed0/ft/{code}_asr" in line
    steps = {
        call[-1]: [call[n + 1] for n, word in enumerate(call) if word == "--steps"][-1]
        for call in calls
        if call[0] == "finetune" and "--dev" not in call
    }
    few = {
        "distil_ta", "distil_ta_new", "distil_ta_new_10", "distil_ta_new_50", "distil_base_short",
        "few_ta", "few_base",
    }  # fmt: skip
    assert steps == {
        f"seed0/ft/{name}": "40" if name in few else "105"
        for name in few | {"distil_ta_long", "distil_base", "distil_base_new", "distil_base_sure"}
    }
    for call_ in calls:
        if call_[0] == "finetune" and "--dev" not in call_:
            start = "seed0/merged/ta_best" if "_ta" in call_[-1] else "base"
            assert call_[1] == start
    work = tmp_path / "work"
    found = {
        part: [json.loads(line) for line in (work / part / "de_asr.jsonl").read_text().splitlines()]
        for part in ("scored", "new", "few")
    }
    assert {part: len(lines) for part, lines in found.items()} == {
        "scored": 100,
        "new": 100,
        "few": 50,
    }
    assert {row["id"] for row in found["new"]}.isdisjoint(row["id"] for row in found["scored"])
    assert all("text" not in row and Path(row["audio_filepath"]).is_file() for row in found["new"])
    assert all(row["text"] for row in found["few"] + found["scored"])
    scored = [line for line in of(calls, "eval") if "/ft/distil" in line]
    assert all("scored/" in line and "new/" not in line for line in scored)
    assert [call[0] for call in call("distil")] == ["report"]


@pytest.mark.slow
def test_recordings_are_heard_by_base_fine_tunes_and_merges(call: Call, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    missing = subprocess.run(
        ["bash", PAPER / "long.sh", "work", "--bundle", bundle], cwd=tmp_path, capture_output=True,
        text=True, timeout=20, check=False,
    )  # fmt: skip
    assert missing.returncode == 1
    assert "needs a bundle of recordings" in missing.stderr
    (bundle / "ca_long.test.jsonl").touch()
    calls = call("long", "--bundle", str(bundle), demo=False)
    tuned = of(calls, "finetune")
    assert [
        " --pack 8 --timestamps 0.5 --condition 0.5 --keep-language " in line for line in tuned
    ] == ([False] * 6 + [True] * 6)
    assert controlled(calls) == ["lors_clips", "lors_packed"]
    kinds = [Path(call_[-1]).name.split(".")[1] for call_ in calls if call_[0] == "eval"]
    assert kinds == ["clips", "long", "silence", "language"] * 12
    for line, kind in zip(of(calls, "eval"), kinds, strict=True):
        assert ("--long" in line) == (kind in ("long", "silence"))
        assert ("--language auto" in line) == (kind == "language")
    table = (tmp_path / "work" / "long" / "table.md").read_text().splitlines()
    assert len(table) == 2 + 1 + 2 * (1 + 4 + 2 + 1)
    (row,) = (line for line in table if line.startswith("| lors_packed "))
    # 2 s over 10 boundaries, 4 of 8 segments, 3 of 4 clips; words of four rows in half a minute
    said = sum(
        len(r["hypothesis"].split()) for r in rows_of(tmp_path, "long.silence", "lors_packed")
    )
    assert row.split(" | ")[3:] == ["0.20", "50.00", "75.0", f"{60 * said / 150:.2f} |"]
    assert call("long", "--bundle", str(bundle), demo=False) == []


def rows_of(tmp_path: Path, results: str, system: str) -> list[dict[str, str]]:
    document = json.loads((tmp_path / "work/seed0/results" / f"{results}.json").read_text())
    found = [r for r in document["records"] if r["model"].startswith(f"{system}:")]
    return [row for record in found for row in record["rows"]]


def test_the_paper_s_numbers_add_up() -> None:
    found = tomllib.loads((PAPER / "paper.toml").read_text())
    for task in ("asr", "st"):
        for system, columns in found[task].items():
            assert system in found["names"]
            mean = fmean(columns[language] for language in LANGUAGES)
            assert columns["average"] == pytest.approx(mean, abs=0.13)
    assert found["asr"].keys() == found["st"].keys()


def test_the_scripts_say_what_they_take(tmp_path: Path) -> None:
    script = PAPER / "table1.sh"
    for arguments in ([], ["work", "--nothing"], ["work", "more"]):
        done = subprocess.run(["bash", script, *arguments], cwd=tmp_path, capture_output=True,
                              text=True, timeout=20, check=False)  # fmt: skip
        assert done.returncode == USAGE
        assert "usage: examples/paper/table1.sh FOLDER" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_without_demo_the_settings_are_the_paper_s(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whisper").mkdir()
    monkeypatch.setenv("WHISPER", str(tmp_path / "whisper"))
    monkeypatch.setenv("COMMON_VOICE", "cv")
    calls = call("table2", demo=False)
    data = of(calls, "data")
    assert len(data) == 5 * 2 * 3
    assert data[0] == (
        f"data {tmp_path}/cv/ca --language ca --task asr --split train --hours 5 -o data/ca_asr.train.jsonl"
    )
    tuned = of(calls, "finetune")
    assert "recipes/finetune/ca_st.toml" in tuned[0]
    assert "--learning-rate 5e-9 --schedule constant --epochs 10" in tuned[-1]
    lors = next(line for line in of(calls, "merge") if "svp=" in line and "mp=" in line)
    recipe = tomllib.loads((PAPER.parent / "recipes" / "paper-st.toml").read_text())
    for delta in recipe["deltas"]:
        assert f"/{delta['path']}:svp={delta['svp']},mp={delta['mp']}" in lors
    assert "--scale 0.15 " in lors
    assert all("--beam 20" in line for line in of(calls, "eval"))


def test_a_folder_of_other_data_is_refused(call: Call, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "made-of").write_text("whisper\n")
    with pytest.raises(AssertionError, match="was made of other data"):
        call("table1")
