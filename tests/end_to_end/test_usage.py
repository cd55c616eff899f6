"""Wrong names, numbers and paths are told before torch is loaded, all at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from speech_models import make_clip

# importing torch is an error from here on
START = "import sys; sys.modules['torch'] = None; from lorsmerge_cli.app import main; main()"
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
    assert [word for word in words if word not in ended.stderr] == [], ended.stderr
    assert ended.stdout == ""
    assert sorted(here.rglob("*")) == before


def test_the_check_itself_would_see_torch(here: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", START, "eval", "base", "--data", "d.jsonl"],
        capture_output=True, encoding="utf-8", check=False, timeout=60,
    )  # fmt: skip
    assert "import of torch halted" in ended.stderr
