"""Every form a checkpoint has on disk, and every way in which it can be broken."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lorsmerge_cli.checkpoint.reader import DELTA_MARK, Checkpoint
from lorsmerge_cli.errors import Faults, LorsmergeError, Mismatch, UnreadableFile

EMBEDDING, HEAD = "model.decoder.embed_tokens.weight", "proj_out.weight"


def tensors(count: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return {f"layer.{i}.weight": torch.randn(4, 8, generator=generator) for i in range(count)}


def write_sharded(folder: Path, shards: int = 3) -> dict[str, torch.Tensor]:
    """A sharded model folder; the tensors are dealt out in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    everything = tensors()
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        shard = {key: everything[key] for key in list(everything)[number::shards]}
        save_file(shard, folder / name)
        weight_map |= dict.fromkeys(shard, name)
    write_index(folder, weight_map)
    return everything


def write_index(folder: Path, weight_map: object) -> None:
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def read_map(folder: Path) -> dict[str, str]:
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


def same(checkpoint: Checkpoint, wanted: dict[str, torch.Tensor]) -> bool:
    return checkpoint.specs.keys() == wanted.keys() and all(
        torch.equal(checkpoint.read(name), tensor) for name, tensor in wanted.items()
    )


def test_file_folder_and_shards_hold_the_same_tensors(tmp_path: Path) -> None:
    wanted = write_sharded(tmp_path / "sharded")
    (tmp_path / "folder").mkdir()
    save_file(wanted, tmp_path / "folder" / "model.safetensors")
    save_file(wanted, tmp_path / "any name.safetensors")
    file = Checkpoint(tmp_path / "any name.safetensors")
    folder = Checkpoint(tmp_path / "folder")
    sharded = Checkpoint(tmp_path / "sharded")
    assert all(same(checkpoint, wanted) for checkpoint in (file, folder, sharded))
    assert (file.folder, folder.folder) == (None, tmp_path / "folder")
    assert [len(checkpoint.files) for checkpoint in (file, folder, sharded)] == [1, 1, 3]


def one_shard_missing(folder: Path) -> None:
    (folder / "model-00002-of-00003.safetensors").unlink()


def two_shards_missing(folder: Path) -> None:
    one_shard_missing(folder)
    (folder / "model-00003-of-00003.safetensors").unlink()


def absent_tensor(folder: Path) -> None:
    write_index(folder, read_map(folder) | {"ghost": "model-00001-of-00003.safetensors"})


def tensor_in_another_shard(folder: Path) -> None:
    write_index(folder, read_map(folder) | {"layer.0.weight": "model-00002-of-00003.safetensors"})


def extra_tensor(folder: Path) -> None:
    weight_map = read_map(folder)
    del weight_map["layer.4.weight"]
    write_index(folder, weight_map)


def tensor_held_twice(folder: Path) -> None:
    save_file(
        {name: tensors()[name] for name in ("layer.0.weight", "layer.1.weight", "layer.4.weight")},
        folder / "model-00002-of-00003.safetensors",
    )


def shard_cut_short(folder: Path) -> None:
    shard = folder / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])


def climbing(target: str) -> Callable[[Path], None]:
    def break_it(folder: Path) -> None:
        save_file({"layer.0.weight": torch.ones(2)}, folder.parent / "outside.safetensors")
        write_index(folder, read_map(folder) | {"layer.0.weight": target})

    return break_it


def absolute(folder: Path) -> None:
    climbing(str(folder.parent / "outside.safetensors"))(folder)


def index_text(text: str) -> Callable[[Path], None]:
    def break_it(folder: Path) -> None:
        (folder / "model.safetensors.index.json").write_text(text)

    return break_it


BROKEN: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "a shard is missing": (one_shard_missing, ("model-00002-of-00003",)),
    "two shards are missing": (two_shards_missing, ("00002-of", "00003-of", "2 things")),
    "a shard is cut short": (shard_cut_short, ("model-00002-of-00003",)),
    "a tensor is not there": (absent_tensor, ("ghost", "index.json")),
    "a tensor is in another shard": (tensor_in_another_shard, ("layer.0.weight", "index.json")),
    "a tensor is left out": (extra_tensor, ("layer.4.weight", "index.json")),
    "a tensor is held twice": (tensor_held_twice, ("layer.0.weight", "index.json")),
    "it climbs out": (climbing("../outside.safetensors"), ("outside of its folder",)),
    "it climbs out to the folder above": (climbing(".."), ("..",)),
    "it climbs out by an absolute path": (absolute, ("outside of its folder",)),
    "a file name is a number": (
        index_text('{"weight_map": {"a": 1}}'),
        ("index.json",),
    ),
    "a file name is empty": (index_text('{"weight_map": {"a": ""}}'), ("sharded",)),
    "no map": (index_text("{}"), ("index.json",)),
    "an empty map": (index_text('{"weight_map": {}}'), ("no tensors",)),
    "a list for a map": (index_text('{"weight_map": ["a"]}'), ("index.json",)),
    "a list": (index_text("[]"), ("index.json",)),
    "no JSON": (index_text("weights"), ("index.json",)),
    "an empty index": (index_text(""), ("index.json",)),
}


@pytest.mark.parametrize(("break_it", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_sharded_folder(
    tmp_path: Path, break_it: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    folder = tmp_path / "sharded"
    write_sharded(folder)
    break_it(folder)
    with pytest.raises(LorsmergeError) as caught:
        Checkpoint(folder)
    assert isinstance(caught.value, UnreadableFile | Faults)
    for word in words:
        assert word in str(caught.value)


FOLDERS = {
    "empty folder": ((), "neither"),
    "PEFT adapter": (
        ("adapter_config.json", "adapter_model.safetensors"),
        "lorsmerge delta BASE ADAPTER",
    ),
    "a shard without its index": (("pytorch_model-00001-of-00002.bin",), "neither"),
    "other weights": (("tf_model.h5",), "neither"),
}


@pytest.mark.parametrize(("files", "hint"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_without_a_whole_model(tmp_path: Path, files: tuple[str, ...], hint: str) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UnreadableFile, match=hint) as caught:
        Checkpoint(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="no such file"):
        Checkpoint(tmp_path / "absent")


@pytest.mark.parametrize("sharded", [False, True])
def test_an_old_folder_is_read_as_a_new_one(tmp_path: Path, sharded: bool) -> None:
    state = tensors()
    if sharded:
        names = sorted(state)
        shards = {f"pytorch_model-{n}-of-2.bin": names[n - 1 :: 2] for n in (1, 2)}
        index = {name: file for file, held in shards.items() for name in held}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    else:
        shards = {"pytorch_model.bin": list(state)}
    for file, held in shards.items():
        torch.save({name: state[name] for name in held}, tmp_path / file)
    checkpoint = Checkpoint(tmp_path)
    assert {path.name for path in checkpoint.files} == set(shards)
    assert checkpoint.folder == tmp_path
    assert checkpoint.specs.keys() == state.keys()
    assert all(torch.equal(checkpoint.read(name), state[name]) for name in state)
    save_file(state, tmp_path / "model.safetensors")  # which is taken where both are there
    assert [path.name for path in Checkpoint(tmp_path).files] == ["model.safetensors"]


def test_a_delta_is_no_checkpoint(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "x.delta", metadata={DELTA_MARK: "1"})
    with pytest.raises(UnreadableFile, match="is a delta"):
        Checkpoint(tmp_path / "x.delta")


def test_a_file_without_tensors_is_no_checkpoint(tmp_path: Path) -> None:
    save_file({}, tmp_path / "x.safetensors")
    with pytest.raises(UnreadableFile, match="no tensors"):
        Checkpoint(tmp_path / "x.safetensors")


def whisper_like(head: torch.Tensor | None) -> dict[str, torch.Tensor]:
    embedding = torch.arange(24.0).reshape(6, 4)
    rest = {EMBEDDING: embedding, "model.fc1.weight": torch.ones(4, 4)}
    return rest if head is None else rest | {HEAD: head}


def test_a_tied_copy_that_is_equal_is_dropped(tmp_path: Path) -> None:
    save_file(whisper_like(torch.arange(24.0).reshape(6, 4)), tmp_path / "x.safetensors")
    checkpoint = Checkpoint(tmp_path / "x.safetensors")
    assert HEAD not in checkpoint.specs
    assert checkpoint.tied == {HEAD: EMBEDDING}


def changed(place: int) -> torch.Tensor:
    head = torch.arange(24.0)
    head[place] += 1e-6 if place == 0 else 2.0
    return head.reshape(6, 4)


@pytest.mark.parametrize(
    "head",
    [
        changed(0),
        changed(23),
        torch.arange(20.0).reshape(5, 4),
        torch.arange(24.0).reshape(6, 4).half(),
    ],
    ids=["first", "last", "shape", "dtype"],
)
def test_a_tied_copy_that_differs_is_an_error(tmp_path: Path, head: torch.Tensor) -> None:
    save_file(whisper_like(head), tmp_path / "x.safetensors")
    with pytest.raises(Mismatch, match=r"proj_out\.weight"):
        Checkpoint(tmp_path / "x.safetensors")


def test_a_tied_copy_alone_is_a_tensor_like_any_other(tmp_path: Path) -> None:
    save_file({HEAD: torch.ones(3, 2)}, tmp_path / "x.safetensors")
    assert list(Checkpoint(tmp_path / "x.safetensors").specs) == [HEAD]


def test_no_tied_copy(tmp_path: Path) -> None:
    save_file(whisper_like(None), tmp_path / "x.safetensors")
    assert Checkpoint(tmp_path / "x.safetensors").tied == {}


DTYPES = {
    "float32": ({"a": (10, torch.float32), "b": (3, torch.float16)}, torch.float32),
    "by entries, not tensors": (
        {"a": (2, torch.float32), "b": (2, torch.float32), "c": (9, torch.bfloat16)},
        torch.bfloat16,
    ),
    "integers do not count": ({"a": (99, torch.int64), "b": (1, torch.float16)}, torch.float16),
    "no floats": ({"a": (9, torch.int64)}, torch.float32),
}


@pytest.mark.parametrize(("sizes", "wanted"), DTYPES.values(), ids=DTYPES)
def test_dtype_of_a_mixed_checkpoint(
    tmp_path: Path, sizes: dict[str, tuple[int, torch.dtype]], wanted: torch.dtype
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({name: torch.zeros(size, dtype=dtype) for name, (size, dtype) in sizes.items()}, path)
    checkpoint = Checkpoint(path)
    assert checkpoint.dtype is wanted
    assert all(spec.dtype.is_floating_point for spec in checkpoint.float_specs.values())


MEASURE = """
import sys
from pathlib import Path
import torch
from lorsmerge_cli.checkpoint.reader import Checkpoint

def anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

checkpoint = Checkpoint(Path(sys.argv[1]))
checkpoint.read("a").sum()
before = anonymous()
held = [checkpoint.read(name) for name in checkpoint.specs]
total = sum(float(tensor.max()) for tensor in held)
print(anonymous() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_reading_maps_the_file_and_takes_no_memory(tmp_path: Path) -> None:
    """All tensors held at once and read through: 48 MB of file, next to no memory."""
    path = tmp_path / "x.safetensors"
    save_file({name: torch.ones(1 << 22) for name in "abc"}, path)
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 8 << 20
