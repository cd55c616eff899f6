"""Wrong names, numbers and paths are told before torch is loaded, all at once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from speech_models import make_clip

# importing torch, or others that take long, is an error from here on
START = (
    "import sys; sys.modules |= dict.fromkeys(('torch', 'transformers', 'scipy', 'scipy.stats', 'optuna')); "
    "from lorsmerge_cli.app import main; main()"
)
WORK, USAGE = 1, 2
LINES = [
    ("finetune base --data d.jsonl -o out --epochs 0", USAGE, ["--epochs 0"]),
    ("finetune nowhere --data d.jsonl -o out", WORK, ["nowhere: no such file or folder"]),
    (
        "finetune base --data no.jsonl --dev none.jsonl -o out --schedule saw --dtype fp16",
        USAGE,
        ["no data set no.jsonl", "no data set none.jsonl", "no schedule 'saw'"],
    ),
    ("finetune base --data d.jsonl -o there", WORK, ["there exists", "--force"]),
    ("finetune base --data there/d.jsonl -o there --force", WORK, ["there is or holds the input"]),
    ("eval base --data d.jsonl -o d.jsonl --force", WORK, ["d.jsonl is or holds the input"]),
    ("finetune base --data d.jsonl -o stopped", WORK, ["stopped.training holds a run", "--resume"]),
    ("finetune base --data d.jsonl -o out --batch-size 3", USAGE, ["does not divide"]),
    ("eval base nowhere --data d.jsonl", WORK, ["nowhere: no such file or folder"]),
    ("eval base --data no.jsonl --normalise x --dtype y --device z", USAGE,
     ["no data set no.jsonl", "normalisation 'x'", "dtype 'y'", "--device z"]),
    ("eval base --data d.jsonl -o there/d.jsonl", WORK, ["there/d.jsonl exists"]),
    ("eval base --data d.jsonl --apply no.delta --scale nan", USAGE, ["no.delta", "--scale nan"]),
    ("eval --score-only --hypotheses h.jsonl --normalise x", USAGE, ["normalisation 'x'"]),
    ("search base no.delta --data no.jsonl -o best.toml --normalise x --hours inf", USAGE,
     ["no.delta", "no data set no.jsonl", "normalisation 'x'", "--hours inf"]),
    ("finetune base --data d.jsonl -o out --epochs -1 --dev-hours nan", USAGE, ["--epochs|--dev-hours"]),
    ("finetune base --data d.jsonl -o out --epochs nan", USAGE, ["--epochs"]),
    ("finetune base --data d.jsonl -o out --dev-hours 0", USAGE, ["--dev-hours"]),
    ("finetune base --data d.jsonl -o out --dev-hours nan", USAGE, ["--dev-hours"]),
    ("finetune base --data d.jsonl -o out --dev-hours -3", USAGE, ["--dev-hours"]),
    ("finetune base --data d.jsonl -o out --hours 0", USAGE, ["--hours"]),
    ("finetune base --data d.jsonl -o out --masks XL --report-to mlflow", USAGE,
     ["--masks: 'XL' is neither a policy nor a size", "reported to 'mlflow'"]),
    ("finetune base --data d.jsonl -o out --eval-steps 0", USAGE, ["--eval-steps"]),
    ("finetune base --data d.jsonl -o out --dtype auto", USAGE, ["no dtype 'auto'"]),
    ("finetune base --data d.jsonl -o out --language klingon", USAGE, ["no language 'klingon'"]),
    ("finetune base --data d.jsonl -o out --delta out/x.delta", WORK, ["lies in the output folder"]),
    ("finetune base --data d.jsonl -o out --delta out.training/x.delta", WORK, ["keeps its state"]),
    ("search base x.delta --data d.jsonl -o best.toml --sampler x --pruner y --objective z --rank-by w",
     USAGE, ["--sampler x", "--pruner y", "--objective z", "--rank-by w"]),
    ("search base x.delta --data d.jsonl", USAGE, ["There is no output"]),
    ("search base x.delta --data d.jsonl -o best.json", USAGE, ["a recipe is written as .toml"]),
    ("search base x.delta --data d.jsonl -o there.toml --csv d.jsonl --plot x.bmp", USAGE,
     ["there.toml exists", "d.jsonl is or holds the input", "--plot x.bmp: not one of"]),
    ("search base x.delta --data d.jsonl -o b.toml --csv b.toml", USAGE, ["--csv b.toml is the recipe's"]),
    ("search base x.delta --data d.jsonl -o b.toml --objective both", WORK, ["b.2.toml exists"]),
    ("search base x.delta --data d.jsonl --worker", USAGE, ["A --worker needs --study"]),
    ("search base x.delta --data d.jsonl --worker --study s.db --csv x.csv", USAGE, ["writes nothing"]),
    ("search base x.delta --data d.jsonl -o b.toml --study a://b:c:d", USAGE, ["is not a database URL"]),
    ("search base x.delta --data d.jsonl -o b.toml --sampler grid", USAGE, ["needs a step for --scale"]),
    ("search base x.delta --data d.jsonl -o b.toml --sampler cmaes", USAGE, ["--sampler cmaes takes"]),
    ("search base x.delta --data d.jsonl -o b.toml --memory much", USAGE, ["--memory much is not a size"]),
    ("search base x.delta --data d.jsonl -o b.toml --memory 0GB", USAGE, ["--memory 0GB is not a size"]),
    ("search base x.delta --data d.jsonl -o b.toml --config nowhere", WORK, ["nowhere: no such"]),
    ("eval base --data d.jsonl --compare a a --trn trn", USAGE,
     ["--compare a with itself", "names no model 'a'", "old.trn exists"]),
    ("eval base=base base=there --data d.jsonl", USAGE, ["Two models are called 'base'"]),
    ("eval base --data d.jsonl --data d.jsonl", USAGE, ["--data d.jsonl is given twice"]),
    ("eval base --data d.jsonl --hypotheses there/d.jsonl", WORK, ["no file that `eval --hypotheses` wrote"]),
    ("eval base --data d.jsonl --memory -3GB", USAGE, ["--memory -3GB is not a size"]),
    ("eval base --data d.jsonl --config nowhere", WORK, ["nowhere: no such"]),
    ("eval base --data d.jsonl --engine ctranslate --device gpu", USAGE, ["no engine 'ctranslate'", "--device gpu"]),
    ("eval --score-only --hypotheses no.jsonl", WORK, ["no.jsonl: No such file"]),
    ("delta base nowhere -o x.delta --task sing --language xx", USAGE,
     ["nowhere: no such", "x.delta exists", "no task 'sing'", "no language 'xx'"]),
    ("prune nowhere --svp 0.1 -o x.delta --dtype int8 --device gpu", USAGE,
     ["nowhere: no such", "x.delta exists", "dtype 'int8'", "--device gpu"]),
    ("prune x.delta --svp 7 -o z.delta", USAGE, ["svp = 7.0 is not between 0 and 1"]),
    ("prune x.delta -o z.delta", USAGE, ["Nothing says how much to keep"]),
    ("prune x.delta -o z.delta --method lor", USAGE, ["Unknown method 'lor'"]),
    ("merge nowhere no.delta -o there --dtype int9 --device gpu", USAGE,
     ["nowhere: no such", "no.delta: no such", "there exists and holds", "dtype 'int9'", "--device gpu"]),
    ("merge base x.delta -o y.delta", WORK, ["a merged model is written as .safetensors"]),
    ("merge base x.delta -o m.safetensors", WORK, ["m.safetensors exists"]),
    ("merge base x.delta -o new --save-recipe there.toml", WORK, ["there.toml exists"]),
    ("merge base x.delta -o new --config nowhere", WORK, ["nowhere: no such"]),
    ("merge base x.delta -o new --max-shard-size big", USAGE, ["--max-shard-size big is not a size"]),
    ("merge base x.delta -o new --push a/b/c", USAGE, ["not the id of a repository"]),
    ("inspect nowhere --plot x.bmp", USAGE, ["nowhere: no such", "--plot x.bmp"]),
    ("export nowhere --format ct3 -o new", USAGE, ["nowhere: no such", "no format 'ct3'"]),
    ("export base --format openai -o new.bin --dtype int8", USAGE, [".pt files", "dtype 'int8'"]),
    ("export base --format ct2 -o new.pt --dtype int4", USAGE, ["is a folder", "CTranslate2 has no int4"]),
    ("export base --format ct2 -o there", WORK, ["there exists"]),
    ("push nowhere a/b --results no.json", WORK, ["nowhere: no such", "no.json: No such file"]),
    ("push x.delta a/b/c", USAGE, ["not the id of a repository"]),
    ("report no.json -o there --paper no.toml", WORK, ["no.json cannot be read", "no.toml holds no published", "there exists"]),
    ("report d.jsonl -o new --control lors", USAGE, ["write NAME=CONTROL"]),
    ("data nowhere --language xx", USAGE, ["no data set nowhere", "no language 'xx'"]),
    ("data d.jsonl --format csv", USAGE, ["no format 'csv'"]),
    ("data d.jsonl --max-seconds nan", USAGE, ["--max-seconds"]),
    ("data d.jsonl -o d.jsonl --force", WORK, ["d.jsonl is or holds the input"]),
    ("transcribe base --audio a.wav --language ca --config nowhere --device z", USAGE,
     ["nowhere: no such", "--device z"]),
    ("transcribe nowhere --audio no.wav --audio d.jsonl --language ca --task sing", USAGE,
     ["nowhere", "no audio file no.wav", "d.jsonl cannot be read as audio", "no task 'sing'"]),
]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("base").mkdir()
    Path("stopped.training").mkdir()
    Path("there").mkdir()
    make_clip(tmp_path / "a.wav", 0, 0.5)
    row = '{"audio_filepath": "a.wav", "text": "bon dia", "source_lang": "ca", "taskname": "asr"}'
    for path in ("d.jsonl", "there/d.jsonl"):
        Path(path).write_text(row + "\n")
    for path in ("x.delta", "m.safetensors", "there.toml", "b.2.toml", "trn/old.trn"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text("")
    return tmp_path


@pytest.mark.parametrize(("line", "code", "words"), LINES)
def test_wrong_usage_is_told_before_torch_is_loaded(
    here: Path, line: str, code: int, words: list[str]
) -> None:
    before = sorted(here.rglob("*"))
    ended = subprocess.run(
        [sys.executable, "-c", START, *line.split()],
        capture_output=True, encoding="utf-8", check=False, timeout=60,
    )  # fmt: skip
    assert ended.returncode == code, ended.stderr
    told = " ".join(re.sub("[│\n]", " ", ended.stderr).split())
    assert [
        word for word in words if not re.search(re.escape(word).replace(r"\|", "|"), told)
    ] == [], told
    assert ended.stdout == ""
    assert sorted(here.rglob("*")) == before


def test_a_merge_of_whole_deltas_waits_for_torch_alone(tmp_path: Path) -> None:
    name = "model.encoder.layers.0.fc1.weight"
    for file, value in (("base", 1.0), ("a", 2.0), ("b", 3.0)):
        save_file({name: torch.full((8, 4), value)}, tmp_path / f"{file}.safetensors")
    merge = "merge base.safetensors a.safetensors b.safetensors --scale 1 -o out.safetensors"
    start = START.replace("'torch', ", "").replace("'optuna'", "'optuna', 'accelerate', 'datasets'")
    ended = subprocess.run(
        [sys.executable, "-c", start, *merge.split()],
        capture_output=True, encoding="utf-8", check=False, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert load_file(tmp_path / "out.safetensors")[name].equal(torch.full((8, 4), 4.0))


def test_the_check_itself_would_see_torch(here: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", START, "eval", "base", "--data", "d.jsonl"],
        capture_output=True, encoding="utf-8", check=False, timeout=60,
    )  # fmt: skip
    assert "halted; None in sys.modules" in ended.stderr
