"""Every document that a command reads may be a stranger's: too deep, a FIFO, or none at all."""

from __future__ import annotations

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
    shutil.copy(DEMO / "ca_asr.dev.jsonl", "data.jsonl")
    Path("results.json").write_text("{}")
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
