"""A model as one file, as a folder, in shards; and what is copied beside the weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lorsmerge_cli.checkpoint.model_writer import ModelWriter, copy_companions, split_shards
from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.checkpoint.safetensors_file import TensorSpec

EMBEDDING, HEAD = "model.decoder.embed_tokens.weight", "proj_out.weight"
TIED = {HEAD: EMBEDDING}


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        EMBEDDING: torch.randn(10, 8, generator=generator),
        "a.weight": torch.randn(16, 8, generator=generator),
        "b.weight": torch.randn(16, 8, generator=generator).bfloat16(),
        "c.positions": torch.arange(9),
        "d.scalar": torch.tensor(3.0),
    }


def specs_of(these: dict[str, torch.Tensor]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in these.items()}


def write(path: Path, tied: dict[str, str], limit: int | None) -> None:
    with ModelWriter(path, specs_of(tensors()), tied, {"made": "here"}, limit) as writer:
        for name, tensor in reversed(tensors().items()):
            flat = tensor.reshape(-1)
            for start in range(0, flat.numel(), 50):
                writer.write(name, flat[start : start + 50], start)
        writer.finish()


def load(path: Path) -> dict[str, torch.Tensor]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {name: t for file in files for name, t in load_file(file).items()}


@pytest.mark.parametrize("tied", [{}, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("limit", [None, 10**9, 600, 1], ids=["file", "folder", "shards", "each"])
def test_what_is_written_is_read(tmp_path: Path, tied: dict[str, str], limit: int | None) -> None:
    path = tmp_path / "x.safetensors" if limit is None else tmp_path
    write(path, tied, limit)
    wanted = tensors() | {copy: tensors()[original] for copy, original in tied.items()}
    read = load(path)
    assert read.keys() == wanted.keys()
    assert all(torch.equal(read[name], wanted[name]) for name in wanted)
    checkpoint = Checkpoint(path)
    assert checkpoint.tied == tied
    assert checkpoint.specs == specs_of(tensors())
    for file in checkpoint.files:
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt", "made": "here"}


def test_shards_stay_under_the_limit_and_their_index_is_right(tmp_path: Path) -> None:
    write(tmp_path, TIED, 600)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)
    ]
    held = {}
    for file in files:
        shard = load_file(file)
        assert sum(t.nbytes for t in shard.values()) <= 600
        held |= dict.fromkeys(shard, file.name)
    assert index["weight_map"] == held
    everything = load(tmp_path)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in everything.values())


def test_one_shard_needs_no_index(tmp_path: Path) -> None:
    write(tmp_path, {}, 10**9)
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_split_shards_keeps_the_order_and_a_tensor_whole() -> None:
    specs = {name: TensorSpec((size,), torch.uint8) for name, size in
             [("a", 4), ("b", 4), ("c", 3), ("d", 99), ("e", 1)]}  # fmt: skip
    split = split_shards(specs, 8)
    assert [list(shard) for shard in split.values()] == [["a", "b"], ["c"], ["d"], ["e"]]
    assert list(split_shards(specs, None)) == ["model.safetensors"]


KEPT = ("config.json", "generation_config.json", "tokenizer.json", "preprocessor_config.json",
        "vocab.json", "LICENSE")  # fmt: skip
LEFT = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "tf_model.h5",
        "flax_model.msgpack", "README.md", "optimizer.pt", "trainer_state.json", "lorsmerge.json",
        ".git/HEAD", "checkpoint-100/model.safetensors", "runs/events.out.tfevents.1",
        "ca.delta", "rng_state_0.pth", "training_args.bin", "modeling_custom.py", "notes.txt",
        "onnx_config/notes.txt", "adapter_config.json")  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    for name in (*KEPT, *LEFT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_companions_are_copied_and_weights_and_training_state_are_not(
    source: Path, tmp_path: Path
) -> None:
    (tmp_path / "target").mkdir()
    copy_companions(source, tmp_path / "target", torch.float32)
    assert files_of(tmp_path / "target") == set(KEPT)
    assert files_of(source) == {*KEPT, *LEFT}


@pytest.mark.parametrize(
    ("config", "dtype", "wanted"),
    [
        ({"dtype": "float32", "a": 1}, torch.float16, {"dtype": "float16", "a": 1}),
        ({"torch_dtype": "float32"}, torch.bfloat16, {"torch_dtype": "bfloat16"}),
        ({"a": "ü"}, torch.float32, {"a": "ü", "dtype": "float32"}),
        ({"forced_decoder_ids": [[1, 2]]}, torch.float32, {"dtype": "float32"}),
    ],
    ids=["dtype", "torch_dtype", "none", "forced"],
)
def test_the_configs_dtype_is_the_weights(
    source: Path, tmp_path: Path, config: dict[str, object], dtype: torch.dtype, wanted: object
) -> None:
    (source / "config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    (tmp_path / "target").mkdir()
    copy_companions(source, tmp_path / "target", dtype)
    assert json.loads((tmp_path / "target" / "config.json").read_text("utf-8")) == wanted


def test_a_language_that_a_fine_tune_forces_is_dropped(source: Path, tmp_path: Path) -> None:
    generation = {"language": "ca", "task": "transcribe", "forced_decoder_ids": [], "max_length": 9}
    (source / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "target").mkdir()
    copy_companions(source, tmp_path / "target", torch.float32)
    copied = json.loads((tmp_path / "target" / "generation_config.json").read_text())
    assert copied == {"max_length": 9}


@pytest.mark.parametrize("what", ["files", "folder"])
def test_what_is_read_only_in_a_shared_model_can_be_written_in_the_copy(
    source: Path, tmp_path: Path, what: str
) -> None:
    """Modes are looked at as well as tried out, because root may write anything."""
    (tmp_path / "target").mkdir()
    locked = [source] if what == "folder" else [source / "config.json"]
    modes = [path.stat().st_mode for path in locked]
    for path, mode in zip(locked, modes, strict=True):
        path.chmod(mode & 0o555)
    try:
        copy_companions(source, tmp_path / "target", torch.float32)
    finally:
        for path, mode in zip(locked, modes, strict=True):
            path.chmod(mode)
    assert (tmp_path / "target").stat().st_mode & 0o200
    assert (tmp_path / "target" / "config.json").stat().st_mode & 0o200
    (tmp_path / "target" / "model.safetensors").write_text("weights")
