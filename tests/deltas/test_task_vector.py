"""A fine-tune that is none of the base is told as what it is, and one that is wrapped can be read."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorsmerge_cli import delta
from lorsmerge_cli.checkpoint import reader
from lorsmerge_cli.checkpoint.pickled_file import PickledFile
from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.checkpoint.safetensors_file import SafetensorsFile
from lorsmerge_cli.core.low_rank_sparse import LowRankSparse, zeros
from lorsmerge_cli.deltas.encodings import TensorLayout
from lorsmerge_cli.deltas.file import DeltaFile, DeltaWriter, Provenance
from lorsmerge_cli.deltas.task_vector import (
    check_vector,
    finetuned_vector,
    open_file,
    open_task_vector,
    precision_warnings,
)
from lorsmerge_cli.errors import LorsmergeError, Mismatch

Tensors = dict[str, torch.Tensor]


def whisper_like() -> Tensors:
    return {
        "model.decoder.embed_tokens.weight": torch.arange(12.0).reshape(4, 3),
        "model.decoder.layers.0.fc1.weight": torch.ones(2, 3),
        "model.decoder.layers.0.fc1.bias": torch.ones(2),
        "model.encoder.norm.num_batches_tracked": torch.tensor(100),
        "model.encoder.embed_positions.position_ids": torch.arange(8).reshape(1, 8),
    }


def moved(tensors: Tensors) -> Tensors:
    return {n: t + 0.5 if t.is_floating_point() else t.clone() for n, t in tensors.items()}


@pytest.fixture
def faults_of(tmp_path: Path) -> Callable[[Tensors, Tensors], list[str]]:
    """What is wrong with a fine-tune, as texts."""

    def find(base: Tensors, finetuned: Tensors) -> list[str]:
        save_file(base, tmp_path / "base.safetensors")
        save_file(finetuned, tmp_path / "ft.safetensors")
        opened = Checkpoint(tmp_path / "base.safetensors")
        vector = finetuned_vector(tmp_path / "ft.safetensors", opened)
        return [str(fault) for fault in check_vector(opened, vector)]

    return find


OTHERS = {
    "int8": torch.tensor([[1, 2], [3, 4]], dtype=torch.int8),
    "uint8": torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8),
    "complex64": torch.tensor([1 + 2j, 3 - 1j]),
    "bool": torch.tensor([[True, False]]),
    "int32": torch.tensor([[1, 2]], dtype=torch.int32),
    "int64": torch.tensor([[1, 2]]),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_weights_that_are_no_floats_have_to_be_the_bases(
    faults_of: Callable[[Tensors, Tensors], list[str]], kind: str
) -> None:
    value = OTHERS[kind]
    base = whisper_like() | {"fc.weight": value}
    assert faults_of(base, moved(base)) == []
    changed = ~value if kind == "bool" else value + 1
    for other in (changed, torch.cat([value, value])):
        (fault,) = faults_of(base, moved(base) | {"fc.weight": other})
        assert "'fc.weight" in fault
        assert kind in fault
        assert "differs from the base" in fault
    (fault,) = faults_of(base, moved(whisper_like()))
    assert "lacks tensors" in fault
    assert "'fc.weight" in fault
    (fault,) = faults_of(whisper_like(), moved(base))
    assert "has tensors that the base" in fault
    assert "'fc.weight" in fault


def test_one_element_among_many_is_seen(
    faults_of: Callable[[Tensors, Tensors], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "BLOCK", 100)
    value = torch.zeros(50, 50, dtype=torch.int8)
    other = value.clone()
    other[-1, -1] = 1
    assert len(faults_of(whisper_like() | {"q": value}, whisper_like() | {"q": other})) == 1


BUFFERS = {
    "num_batches_tracked": torch.tensor(100),
    "position_ids": torch.arange(8).reshape(1, 8),
    "relative_position_index": torch.arange(9).reshape(3, 3),
    "steps": torch.tensor([3]),
    "count": torch.tensor(3, dtype=torch.int32),
}


@pytest.mark.parametrize("name", BUFFERS)
def test_counters_and_indices_may_differ_and_be_absent(tmp_path: Path, name: str) -> None:
    plain = {"fc1.weight": torch.ones(2, 3)}
    counted = plain | {f"norm.{name}": BUFFERS[name]}
    later = moved(plain) | {f"norm.{name}": BUFFERS[name] + 1}
    longer = moved(plain) | {f"norm.{name}": torch.cat([BUFFERS[name].reshape(-1)] * 2)}
    for base, finetuned, noted in (
        (counted, later, True), (counted, longer, True), (counted, moved(counted), False),
        (plain, later, False), (counted, moved(plain), False),
    ):  # fmt: skip
        save_file(base, tmp_path / "base")
        save_file(finetuned, tmp_path / "ft")
        opened = Checkpoint(tmp_path / "base")
        vector = finetuned_vector(tmp_path / "ft", opened)
        assert check_vector(opened, vector) == []
        notes = precision_warnings(vector, opened)
        assert len(notes) == noted
        assert all(f"'norm.{name}'" in note and "the base's are kept" in note for note in notes)


def test_what_zero3_leaves_empty(faults_of: Callable[[Tensors, Tensors], list[str]]) -> None:
    base = whisper_like()
    emptied = {
        n: torch.empty(0) if t.ndim == 2 and t.is_floating_point() else t for n, t in base.items()
    }
    (fault,) = faults_of(base, emptied)
    assert "zero_to_fp32.py" in fault
    assert "ft.safetensors has 2 empty tensors" in fault
    (fault,) = faults_of(emptied, base)
    assert "base.safetensors has 2 empty tensors" in fault


PREFIXES = [
    "model.",
    "module.",
    "_orig_mod.",
    "base_model.model.",
    "module._orig_mod.",
    "a b'$(x).",
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("wrapped", ["the fine-tune", "the base"])
def test_a_prefix_is_told_and_read_over(tmp_path: Path, prefix: str, wrapped: str) -> None:
    base, finetuned = whisper_like(), moved(whisper_like())
    if wrapped == "the base":
        base = {prefix + name: value for name, value in base.items()}
    else:  # with the tied copy, which is one only under its own name
        finetuned["proj_out.weight"] = finetuned["model.decoder.embed_tokens.weight"].clone()
        finetuned = {prefix + name: value for name, value in finetuned.items()}
    save_file(base, tmp_path / "base")
    save_file(finetuned, tmp_path / "ft")
    opened = Checkpoint(tmp_path / "base")
    (fault,) = check_vector(opened, finetuned_vector(tmp_path / "ft", opened))
    assert isinstance(fault, Mismatch)
    assert repr(prefix) in fault.what
    command = shlex.split(fault.remedy.split("`")[3])
    assert command[:2] == ["lorsmerge", "delta"]
    assert command[-2:] == ["--strip-prefix", prefix]
    vector = finetuned_vector(tmp_path / "ft", opened, prefix)
    assert check_vector(opened, vector) == []
    for name in opened.float_specs:
        assert torch.equal(vector.read(name), torch.full_like(base[name], 0.5))


def test_a_prefix_before_some_names_is_no_prefix(
    faults_of: Callable[[Tensors, Tensors], list[str]],
) -> None:
    names = sorted(whisper_like())
    half = {f"module.{n}" if n != names[1] else n: t for n, t in moved(whisper_like()).items()}
    assert not any("strip-prefix" in fault for fault in faults_of(whisper_like(), half))
    other = {f"module.{n}.x": t for n, t in moved(whisper_like()).items()}
    assert not any("strip-prefix" in fault for fault in faults_of(whisper_like(), other))


def test_a_name_with_and_without_the_prefix_is_refused(tmp_path: Path) -> None:
    save_file(whisper_like(), tmp_path / "base")
    save_file(
        whisper_like() | {f"module.{n}": t for n, t in moved(whisper_like()).items()},
        tmp_path / "ft",
    )
    with pytest.raises(Mismatch, match=r"'module\.' before it and without"):
        finetuned_vector(tmp_path / "ft", Checkpoint(tmp_path / "base"), "module.")


def test_a_delta_of_wrapped_names_is_told(tmp_path: Path, write_delta: Callable[..., Path]) -> None:
    save_file(whisper_like(), tmp_path / "base")
    opened = Checkpoint(tmp_path / "base")
    wrapped = {f"module.{n}": torch.ones(s.shape) for n, s in opened.float_specs.items()}
    vector = open_task_vector(write_delta(tmp_path / "x.delta", wrapped), opened)
    (fault,) = check_vector(opened, vector)
    assert "'module.' before their names" in str(fault)
    assert "strip-prefix" not in str(fault)  # which helps with fine-tunes alone


def test_every_file_is_opened_once(
    tmp_path: Path, write_delta: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(whisper_like(), tmp_path / "base")
    torch.save(moved(whisper_like()), tmp_path / "ft.pt")
    write_delta(tmp_path / "x.delta", {"a": torch.ones(2)})
    opened: list[str] = []
    for kind in (SafetensorsFile, PickledFile):

        def open_it(self: object, path: Path, real: Callable[..., None] = kind.__init__) -> None:
            opened.append(path.name)
            real(self, path)

        monkeypatch.setattr(kind, "__init__", open_it)
    base = open_file(tmp_path / "base")
    open_task_vector(tmp_path / "ft.pt", base)
    assert isinstance(open_file(tmp_path / "x.delta"), DeltaFile)
    assert opened == ["base", "ft.pt", "x.delta"]


def test_a_tensor_of_zeros_is_read_by_blocks(
    tmp_path: Path, write_delta: Callable[..., Path]
) -> None:
    pruned = LowRankSparse(torch.ones(3, 1), torch.ones(1, 4))
    path = write_delta(tmp_path / "x.delta", {"zero": zeros((3, 4), torch.float32), "lors": pruned})
    vector = open_task_vector(path, None)
    assert isinstance(vector, DeltaFile)
    assert vector.layouts["zero"] == TensorLayout("lors", (3, 4), torch.float32)
    assert (vector.is_pruned("zero"), vector.is_pruned("lors")) == (False, True)
    block = vector.read_block("zero", 2, 9)
    assert torch.equal(block, torch.zeros(7))
    assert block.untyped_storage().nbytes() == 7 * 4


def test_merges_onto_a_base_see_shapes_before_memory(
    tmp_path: Path, provenance: Provenance
) -> None:
    layouts = {
        name: TensorLayout("lors", (300_000, 300_000), torch.float32, 1)
        if spec.ndim == 2
        else TensorLayout("dense", tuple(spec.shape), torch.float32)
        for name, spec in whisper_like().items()
        if spec.is_floating_point()
    }
    with DeltaWriter(tmp_path / "x.delta", layouts, provenance) as writer:
        writer.finish(dict.fromkeys(layouts, 0.0))
    save_file(whisper_like(), tmp_path / "base")
    base = Checkpoint(tmp_path / "base")
    (fault,) = check_vector(base, open_task_vector(tmp_path / "x.delta", base))
    assert "another shape" in str(fault)
    with pytest.raises(LorsmergeError, match="is said to be 300000 x 300000"):
        open_file(tmp_path / "x.delta")


def test_the_wrapped_delta_file_holds_the_bases_names(tmp_path: Path) -> None:
    save_file(whisper_like(), tmp_path / "base")
    save_file({f"module.{n}": t for n, t in moved(whisper_like()).items()}, tmp_path / "ft")
    delta(tmp_path / "base", tmp_path / "ft", tmp_path / "x.delta", strip_prefix="module.")
    stored = load_file(tmp_path / "x.delta")
    assert stored.keys() == {n for n, t in whisper_like().items() if t.is_floating_point()}
    assert all(torch.equal(value, torch.full_like(value, 0.5)) for value in stored.values())
