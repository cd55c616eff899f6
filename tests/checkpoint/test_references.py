"""What is a Hub id, what is a path, and which of a repository's files are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorsmerge_cli.checkpoint.model_files import files_needed
from lorsmerge_cli.checkpoint.references import REFERENCE, is_hub_id, local_path, pinned
from lorsmerge_cli.errors import UnreadableFile

IDS = {
    "org/name": ("org/name", None, None),
    "org/name.delta": ("org/name.delta", None, None),
    "org/name@main": ("org/name", "main", None),
    "org/name@refs/pr/3": ("org/name", "refs/pr/3", None),
    "org/name@v1:sub/x.delta": ("org/name", "v1", "sub/x.delta"),
    "org/name:a..b--c.pt": ("org/name", None, "a..b--c.pt"),
}
PATHS = ("name", "a/b/c", "/org/name", "./org", "../name", "org/", "org/na me", "org/a..b", "o@rg/name",
         "org/name@", "org/name:", "C:/name", "-org/name", "org/.name")  # fmt: skip


@pytest.mark.parametrize(("text", "parts"), IDS.items(), ids=IDS)
def test_the_parts_of_an_id(text: str, parts: tuple[str | None, ...]) -> None:
    match = REFERENCE.fullmatch(text)
    assert match
    assert (match["repo"], match["revision"], match["file"]) == parts
    assert is_hub_id(Path(text))


@pytest.mark.parametrize("text", PATHS)
def test_what_is_no_id(text: str) -> None:
    assert REFERENCE.fullmatch(text) is None


def test_what_is_here_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").touch()
    assert local_path(Path("org/name")) == Path("org/name")
    assert pinned(Path("org/name")) is None
    with pytest.raises(UnreadableFile, match=r"absent: no such file.*ORG/NAME@REVISION"):
        local_path(Path("absent"))


CLUTTER = ["README.md", "tf_model.h5", "flax_model.msgpack", "onnx/config.json", "run.py",
           "model.fp16.safetensors", "training_args.bin", "x.delta"]  # fmt: skip
COMPANIONS = ["config.json", "merges.txt", "tokenizer.json", "vocab.json"]
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = "model.safetensors.index.json"
NEEDED = {
    "one file": (["model.safetensors"], ["model.safetensors", "pytorch_model.bin"], True),
    "shards": ([INDEX, *SHARDS], [INDEX, *SHARDS, "pytorch_model.bin"], True),
    "shards under a later file": (
        ["model.safetensors"], [INDEX, *SHARDS, "model.safetensors"], True
    ),
    "a pickle over shards": (["pytorch_model.bin"], ["pytorch_model.bin.index.json",
                             "pytorch_model-00001-of-00001.bin", "pytorch_model.bin"], True),
    "a pickle": (["pytorch_model.bin"], ["pytorch_model.bin"], True),
    "an adapter": (["adapter_config.json", "adapter_model.safetensors"],
                   ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"], False),
    "a model beside an adapter": (["model.safetensors"], ["adapter_config.json", "model.safetensors",
                                  "adapter_model.safetensors"], True),
}  # fmt: skip


@pytest.mark.parametrize(("wanted", "weights", "companions"), NEEDED.values(), ids=NEEDED)
def test_only_what_is_read_is_needed(
    wanted: list[str], weights: list[str], companions: bool
) -> None:
    names = sorted([*CLUTTER, *COMPANIONS, *weights])
    files, single = files_needed(names, None, "org/name")
    assert sorted(files) == sorted([*wanted, *(COMPANIONS if companions else [])])
    assert single is None
    assert files_needed(names, "x.delta", "org/name") == (["x.delta"], "x.delta")
