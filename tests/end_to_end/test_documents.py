"""Every document that a command reads may be a stranger's: too deep, a FIFO, or none at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands_ended import Shell

DEMO = Path(__file__).parents[2] / "examples" / "demo" / "bundle"
DEEP = {"json": '{"a":' * 100_000 + "1" + "}" * 100_000, "toml": "a = " + "[" * 100_000}
LINES = {  # the document -> a command that reads it
    "results.json": "lorsmerge report results.json -o out",
    "paper.toml": "lorsmerge report results.json --paper paper.toml -o out",
    "recipe.toml": "lorsmerge merge --recipe recipe.toml -o out.safetensors",
    "card.md": "lorsmerge merge --recipe card.md -o out.safetensors",
    "lorsmerge.json": "lorsmerge merge --recipe lorsmerge.json -o out.safetensors",
    "settings.toml": "lorsmerge finetune whisper --data data.jsonl --recipe settings.toml -o out",
    "said.jsonl": "lorsmerge eval --hypotheses said.jsonl --score-only",
    "data.jsonl": "lorsmerge data data.jsonl",
    "kaldi/wav.scp": "lorsmerge data kaldi --language ca --task asr",
    "clip.wav": "lorsmerge transcribe whisper --audio clip.wav --language ca",
    "whisper/config.json": "lorsmerge export whisper --format openai -o out.pt",
    "whisper/generation_config.json": "lorsmerge finetune whisper --data data.jsonl -o out",
    "base/config.json": "lorsmerge merge base ca.delta -o out",
    "adapter/adapter_config.json": "lorsmerge delta base adapter -o out.delta",
    "base/model.safetensors.index.json": "lorsmerge inspect base",
}


@pytest.fixture
def files(tiny: Path) -> Path:
    """The current folder, with all that the commands name."""
    shutil.copytree(DEMO / "base", "whisper")
    rows = (DEMO / "ca_asr.dev.jsonl").read_text().splitlines()[:2]
    Path("data.jsonl").write_text("\n".join(rows).replace('"audio/', f'"{DEMO}/audio/') + "\n")
    Path("results.json").write_text("{}")
    Path("kaldi").mkdir()
    Path("kaldi/text").write_text("a un dos\n")
    Path("adapter").mkdir()
    Path("adapter/adapter_model.safetensors").write_bytes(Path("ca.safetensors").read_bytes())
    return tiny


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("how", ["deep", "fifo", "device"])
def test_a_document_that_is_none_is_refused_in_words(
    files: Path, shell: Shell, contents: Callable, name: str, how: str
) -> None:
    path = Path(name)
    if name.endswith("index.json"):
        Path("base/model.safetensors").unlink()  # or it would be read instead
    path.unlink(missing_ok=True)
    if how == "deep":
        text = DEEP["toml" if path.suffix in (".toml", ".md") else "json"]
        path.write_text(
            f"```toml lorsmerge-recipe\n{text}\n```\n" if path.suffix == ".md" else text
        )
    elif how == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    before = {key: value for key, value in contents_of(files).items() if key != name}
    ended = shell(LINES[name])
    assert ended.code in (1, 2), ended.out
    message = " ".join(ended.err.split())
    assert "bug" not in message
    assert path.name in message.replace(" ", "") or "hypothes" in message
    after = {key: value for key, value in contents_of(files).items() if key != name}
    assert after == before


def contents_of(folder: Path) -> dict[str, bytes]:
    """What regular files hold; a FIFO has no content to wait for."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


SAID = (
    '{"model": "m", "dataset": "d", "id": "u1", "language": "ca", "task": "asr", "reference": "un", '
    '"hypothesis": "un", "seconds": 1.0, "speaker": "s", "made_by": "x", "heard": "y", "of": 1}\n'
)
SCORE = "lorsmerge eval --score-only --hypotheses said.jsonl "
DECODE = "lorsmerge eval whisper --data data.jsonl --beam 1 --hypotheses "


@pytest.mark.parametrize("text", ["a note without an end", "{}\n", '{"mine": 1}\n', "\n"])
@pytest.mark.parametrize("name", ["notes.txt", "link.txt"])
def test_hypotheses_are_added_to_no_file_of_a_users(
    files: Path, shell: Shell, text: str, name: str
) -> None:
    Path("notes.txt").write_text(text)
    Path("link.txt").symlink_to("notes.txt")
    ended = shell(DECODE + name)
    assert ended.code == 1
    assert "no hypothesis" in ended.err or "is no file that `eval --hypotheses` wrote" in ended.err
    assert Path("notes.txt").read_text() == text


def test_hypotheses_are_added_to_no_input(files: Path, shell: Shell) -> None:
    before = contents_of(files)
    for name in ("data.jsonl", "whisper/config.json", "whisper/model.safetensors"):
        assert shell(DECODE + name).code == 1
    assert contents_of(files) == before


@pytest.mark.parametrize("kind", ["file", "link", "hard link to the input"])
def test_transcripts_replace_nothing_without_force(files: Path, shell: Shell, kind: str) -> None:
    Path("said.jsonl").write_text(SAID)
    Path("victim").write_text("mine")
    Path("out").mkdir()
    there = Path("out/m-d-ca-asr.ref.trn")
    {
        "file": lambda: there.write_text("mine"),
        "link": lambda: there.symlink_to("../victim"),
        "hard link to the input": lambda: there.hardlink_to("said.jsonl"),
    }[kind]()
    before = contents_of(files)
    assert shell(SCORE + "--trn out").code == 1
    assert contents_of(files) == before
    ended = shell(SCORE + "--trn out --force")
    assert (ended.code == 0) == (kind != "hard link to the input"), ended.err
    assert Path("said.jsonl").read_text() == SAID


@pytest.mark.parametrize(
    ("key", "value"),
    [("reference", 1), ("hypothesis", None), ("id", ["a"]), ("model", {}), ("language", None),
     ("task", "mt"), ("seconds", "1"), ("speaker", 3), ("dataset", 0), ("cut", "x")],
)  # fmt: skip
def test_hypotheses_of_another_type_are_refused(
    files: Path, shell: Shell, key: str, value: object
) -> None:
    row = json.loads(SAID) | {key: value}
    Path("said.jsonl").write_text(json.dumps(row) + "\n" + SAID)
    ended = shell(SCORE + "-o results.json --force")
    assert ended.code == 1
    assert "said.jsonl, line 1 is no hypothesis" in ended.err


TUNE = "lorsmerge finetune whisper --data data.jsonl -o tuned --force "


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("checkpoint-500/model.safetensors", TUNE),  # but no run of ours
        ("epochs/best-ever.safetensors", TUNE),
        ("settings.json", TUNE),
        ("thesis.tex", TUNE),
        ("base/config.json", TUNE.replace("whisper", "tuned.training/base")),
        ("data.jsonl", TUNE.replace("data.jsonl", "tuned.training/data.jsonl")),
    ],
)
def test_a_training_clears_no_file_of_a_users(
    files: Path, shell: Shell, name: str, line: str
) -> None:
    mine = Path("tuned.training") / name
    if "tuned.training/base" in line:
        shutil.copytree("whisper", "tuned.training/base")
    mine.parent.mkdir(parents=True, exist_ok=True)
    if not mine.exists():
        mine.write_bytes(Path("data.jsonl").read_bytes() if mine.name == "data.jsonl" else b"{}")
    before = contents_of(files)
    ended = shell(line)
    assert ended.code == 1
    assert "tuned.training" in ended.err
    assert contents_of(files) == before


def test_a_training_folder_that_is_a_link_is_left_alone(files: Path, shell: Shell) -> None:
    Path("mine").mkdir()
    Path("mine/settings.json").write_text('{"run": {}, "before": {}}')
    Path("tuned.training").symlink_to("mine")
    assert shell(TUNE).code == 1
    assert Path("mine/settings.json").exists()
