"""Every form a checkpoint has on disk, and every way in which it can be broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lorsmerge_cli.checkpoint.model_files import is_adapter
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


def in_place_of(file: Path, make: Callable[[Path], object]) -> None:
    file.unlink()
    make(file)


def fifo_for_a_shard(folder: Path) -> None:
    in_place_of(folder / "model-00002-of-00003.safetensors", os.mkfifo)


def folder_for_a_shard(folder: Path) -> None:
    in_place_of(folder / "model-00002-of-00003.safetensors", Path.mkdir)


def dangling_shard(folder: Path) -> None:
    in_place_of(folder / "model-00002-of-00003.safetensors", lambda file: file.symlink_to("gone"))


def fifo_for_the_index(folder: Path) -> None:
    in_place_of(folder / "model.safetensors.index.json", os.mkfifo)


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
    "two shards are missing": (two_shards_missing, ("00002-of", "00003-of", "2 problems")),
    "a shard is cut short": (shard_cut_short, ("model-00002-of-00003",)),
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
    "an index nested deeply": (
        index_text('{"weight_map":' * 10**5),
        ("index.json", "nested too deeply"),
    ),
    "a map nested deeply": (index_text('{"weight_map": {"a": ' + "[" * 10**5), ("index.json",)),
    "a file name that is a list": (index_text('{"weight_map": {"a": ["b"]}}'), ("index.json",)),
    "a FIFO for a shard": (fifo_for_a_shard, ("model-00002-of-00003", "FIFO")),
    "a folder for a shard": (folder_for_a_shard, ("model-00002-of-00003", "folder")),
    "a link that leads nowhere": (dangling_shard, ("model-00002-of-00003", "no such file")),
    "a FIFO for an index": (fifo_for_the_index, ("index.json", "FIFO")),
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


INEXACT: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "an entry too many": (absent_tensor, ("'ghost'", "do not hold")),
    "an entry too few": (extra_tensor, ("'layer.4.weight'", "omits")),
    "an entry of another shard": (tensor_in_another_shard, ("'layer.0.weight'", "wrong file")),
}


@pytest.mark.parametrize(("change", "words"), INEXACT.values(), ids=INEXACT)
def test_an_inexact_index_is_told_and_the_shards_are_read(
    tmp_path: Path, change: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    folder = tmp_path / "sharded"
    wanted = write_sharded(folder)
    assert Checkpoint(folder).notes == ()
    change(folder)
    checkpoint = Checkpoint(folder)
    assert same(checkpoint, wanted)
    assert len(checkpoint.notes) == 1
    assert all(word in checkpoint.notes[0] for word in (*words, "index.json"))


def one_file(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors")


def shards(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model-00001-of-00001.safetensors")
    write_index(folder, dict.fromkeys(tensors, "model-00001-of-00001.safetensors"))


def one_pickle(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    torch.save(tensors, folder / "pytorch_model.bin")


def pickled_shards(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    torch.save(tensors, folder / "pytorch_model-00001-of-00001.bin")
    index = {"weight_map": dict.fromkeys(tensors, "pytorch_model-00001-of-00001.bin")}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


SETS = (one_file, shards, one_pickle, pickled_shards)  # as transformers looks for them
NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
         "pytorch_model.bin.index.json")  # fmt: skip


@pytest.mark.parametrize("there", range(1, 16))
def test_a_folder_of_several_sets_is_read_in_transformers_order(tmp_path: Path, there: int) -> None:
    numbers = [number for number in range(4) if there >> number & 1]
    for number in reversed(numbers):
        SETS[number](tmp_path, {"a.weight": torch.full((2, 2), float(number))})
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.read("a.weight")[0, 0] == numbers[0]
    assert len(checkpoint.notes) == (len(numbers) > 1)
    if checkpoint.notes:
        assert all(repr(NAMES[number]) in checkpoint.notes[0] for number in numbers[1:3])
        assert NAMES[numbers[0]] in checkpoint.notes[0]
    (tmp_path / "adapter_config.json").write_text("{}")
    assert not is_adapter(tmp_path)


def test_the_index_that_a_later_save_left_is_not_read(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    for shard in tmp_path.glob("model-*"):
        shard.unlink()
    save_file(tensors(2), tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    assert same(checkpoint, tensors(2))
    assert "'model.safetensors.index.json' is not" in checkpoint.notes[0]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_file_in_the_place_of_weights(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UnreadableFile, match=rf"{name} is a FIFO"):
        Checkpoint(tmp_path)


def test_a_loop_of_links_and_a_folder_that_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(UnreadableFile, match=r"b cannot be read: .*links"):
        Checkpoint(tmp_path / "b")
    with pytest.raises(UnreadableFile, match="`~` is the shell's"):
        Checkpoint(Path("~/model"))

    def refuse(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(UnreadableFile, match="cannot be read: Permission denied"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("ending", ["SCB", "weight.absmax", "weight.quant_map", "qweight", "qzeros",
                                    "weight_scale_inv", "weight_packed"])  # fmt: skip
def test_a_quantised_model_is_told_by_its_names(tmp_path: Path, ending: str) -> None:
    save_file({"fc1.weight": torch.ones(2), f"fc1.{ending}": torch.ones(2)}, tmp_path / "x")
    with pytest.raises(UnreadableFile, match=rf"quantised \('fc1\.{ending}'\).*dequantize"):
        Checkpoint(tmp_path / "x")


def test_a_quantised_model_is_told_by_its_config(tmp_path: Path) -> None:
    one_file(tmp_path, tensors())
    for text in (
        '{"quantization_config": {"quant_method": "fp8"}}',
        '{"quantization_config": "x"}',
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UnreadableFile, match="quantization_config"):
            Checkpoint(tmp_path)
    for text in ("{}", '{"quantization_config": null}', "[]", "no json", "[" * 10**5):
        (tmp_path / "config.json").write_text(text)
        assert same(Checkpoint(tmp_path), tensors())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_float8_in_a_pickle_and_in_safetensors_is_quantised(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    torch.save({"a.weight": torch.ones(4).to(dtype)}, tmp_path / "x.pt")
    save_file({"a.weight": torch.ones(4).to(dtype)}, tmp_path / "x.safetensors")
    for name in ("x.pt", "x.safetensors"):
        with pytest.raises(UnreadableFile, match=r"quantised \('a\.weight'.*dequantize"):
            Checkpoint(tmp_path / name)


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
