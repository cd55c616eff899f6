"""The file of TALL masks: what is written is read, and what is damaged is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lorsmerge_cli.checkpoint.references import short_name
from lorsmerge_cli.checkpoint.safetensors_file import TensorSpec
from lorsmerge_cli.deltas.file import DeltaFile, Provenance
from lorsmerge_cli.deltas.tall import (
    TallFile,
    TallOrigin,
    TallTask,
    TallWriter,
    check_task_name,
)
from lorsmerge_cli.errors import UnreadableFile

SHAPES = {
    "fc1.weight": (5, 7),
    "fc1.bias": (5,),
    "scalar": (),
    "none": (0, 3),
    "experts": (2, 3, 4),
}
TASKS = ("ca_asr", "de asr", "größe")


def drawn(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def written(tmp_path: Path, provenance: Provenance) -> tuple[Path, dict[str, list[torch.Tensor]]]:
    """A file, and for each tensor its sum and its masks."""
    tensors = {
        name: [drawn(shape, 1), *(drawn(shape, 2 + n) > 0 for n in range(len(TASKS)))]
        for name, shape in SHAPES.items()
    }
    tasks = tuple(TallTask(name, 0.5, "f" * 64, "c" * 64, provenance) for name in TASKS)
    origin = TallOrigin(provenance, 0.4, ("decoder=0.5",), tasks)
    specs = {name: TensorSpec(shape, torch.float32) for name, shape in SHAPES.items()}
    path = tmp_path / "tall.delta"
    with TallWriter(path, specs, origin) as writer:
        for name, (total, *masks) in tensors.items():
            flat, bits = total.reshape(-1), [mask.reshape(-1) for mask in masks]
            for start in range(0, total.numel(), 16):
                part = slice(start, start + 16)
                writer.write(name, flat[part], [mask[part] for mask in bits], start)
        writer.finish(origin)
    return path, tensors


def test_what_is_written_is_read(
    written: tuple[Path, dict[str, list[torch.Tensor]]], provenance: Provenance
) -> None:
    path, tensors = written
    file = TallFile(path)
    assert file.tasks == [*TASKS]
    assert (file.origin.threshold, file.origin.coef) == (0.4, ("decoder=0.5",))
    assert file.origin.tasks[1].provenance == provenance
    assert {name: spec.shape for name, spec in file.specs.items()} == SHAPES
    for number, task in enumerate(TASKS):
        vector = file.vector(task)
        for name, (total, *masks) in tensors.items():
            kept = total * masks[number]
            assert torch.equal(vector.read(name), kept)
            flat = kept.reshape(-1)
            for start, stop in ((0, 3), (3, 11), (8, 9), (9, len(flat))):
                if start <= stop <= len(flat):
                    assert torch.equal(vector.read_block(name, start, stop), flat[start:stop])
        assert vector.provenance.history == provenance.history * 2
    assert len({file.vector(task).identity() for task in TASKS}) == 3


def test_a_row_of_a_mask_has_its_lowest_bit_first(
    written: tuple[Path, dict[str, list[torch.Tensor]]],
) -> None:
    path, tensors = written
    with safe_open(path, "np") as file:
        packed = file.get_tensor("fc1.weight.masks")
    assert packed.shape == (3, 5)
    for row, mask in zip(packed, tensors["fc1.weight"][1:], strict=True):
        assert [(row[i // 8] >> (i % 8)) & 1 for i in range(35)] == mask.reshape(-1).int().tolist()
        assert row[4] >> 3 == 0


def test_other_readers_refuse_it(written: tuple[Path, Any], tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="is a file of TALL masks"):
        DeltaFile(written[0])
    tmp_path.joinpath("x.delta").write_bytes(written[0].read_bytes()[:-1])
    with pytest.raises(UnreadableFile, match="not a sound safetensors file"):
        TallFile(tmp_path / "x.delta")


def broken(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """The file with its entries and its description changed."""
    with safe_open(path, "np") as file:
        metadata = dict(file.metadata())
        tensors = {name: torch.from_numpy(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    described = json.loads(metadata["lorsmerge.tall"])
    change(described, tensors)
    metadata["lorsmerge.tall"] = json.dumps(described)
    save_file(tensors, path, metadata)
    return path


def task(key: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda found, tensors: found["tasks"][1].update({key: value})


def entry(
    name: str, value: torch.Tensor | None
) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(found: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value

    return change


DAMAGE = {
    "no threshold": lambda found, tensors: found.pop("threshold"),
    "threshold below 0": lambda found, tensors: found.update(threshold=-1),
    "threshold of text": lambda found, tensors: found.update(threshold="0.4"),
    "endless threshold": lambda found, tensors: found.update(threshold=float("inf")),
    "no tasks": lambda found, tensors: found.update(tasks=[]),
    "tasks are a table": lambda found, tensors: found.update(tasks={}),
    "a task less": lambda found, tensors: found["tasks"].pop(),
    "a task more": lambda found, tensors: found["tasks"].append(found["tasks"][0] | {"name": "x"}),
    "a task of text": lambda found, tensors: found["tasks"].__setitem__(0, "x"),
    "two of one name": task("name", "ca_asr"),
    "a path": task("name", "../ca"),
    "a folder above": task("name", ".."),
    "a backslash": task("name", "a\\b"),
    "control characters": task("name", "ca\x1b[31m"),
    "another direction": task("name", "ca\u202e"),
    "a lone surrogate": task("name", "\ud800"),
    "a long name": task("name", "a" * 101),
    "no name": task("name", ""),
    "a name of blanks": task("name", "  "),
    "a number": task("name", 7),
    "scale of text": task("scale", "1"),
    "endless scale": task("scale", float("nan")),
    "a fingerprint of numbers": task("fingerprint", 7),
    "no header": task("header", None),
    "an empty header": task("header", {}),
    "a header of numbers": task("header", {"lorsmerge.task": 7}),
    "coef of numbers": lambda found, tensors: found.update(coef=[1]),
    "no masks": entry("fc1.bias.masks", None),
    "masks of another width": entry("fc1.bias.masks", torch.zeros(3, 2, dtype=torch.uint8)),
    "masks of fewer tasks": entry("fc1.bias.masks", torch.zeros(2, 1, dtype=torch.uint8)),
    "masks in one dimension": entry("fc1.bias.masks", torch.zeros(3, dtype=torch.uint8)),
    "masks of another dtype": entry("fc1.bias.masks", torch.zeros(3, 1, dtype=torch.int8)),
    "masks of floats": entry("fc1.bias.masks", torch.zeros(3, 1)),
    "masks of nothing": entry("x.masks", torch.zeros(3, 1, dtype=torch.uint8)),
    "a sum in half precision": entry("fc1.bias", torch.zeros(5, dtype=torch.float16)),
    "no sum": entry("fc1.bias", None),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused(written: tuple[Path, Any], damage: str) -> None:
    path = broken(written[0], DAMAGE[damage])
    with pytest.raises(UnreadableFile) as caught:
        TallFile(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: the header of the TALL masks is damaged (")
    assert "Make it again with `lorsmerge merge BASE DELTA... --masks" in said
    assert "\x1b" not in said
    assert "\u202e" not in said


def test_a_later_version(written: tuple[Path, Any]) -> None:
    with safe_open(written[0], "pt") as file:
        metadata = dict(file.metadata()) | {"lorsmerge.format_version": "tall-2"}
    save_file({"x": torch.zeros(1)}, written[0], metadata)
    with pytest.raises(UnreadableFile, match=r"format 'tall-2', and .* reads 'tall-1'\. Update"):
        TallFile(written[0])


def test_bits_beyond_the_last_element_are_nobodys(written: tuple[Path, Any]) -> None:
    path, tensors = written
    before = TallFile(path).vector(TASKS[0]).read("fc1.bias").clone()
    filled = torch.full((3, 1), 0xE0, dtype=torch.uint8)
    filled |= torch.from_numpy(
        np.stack([np.packbits(m.numpy(), bitorder="little") for m in tensors["fc1.bias"][1:]])
    )
    broken(path, entry("fc1.bias.masks", filled))
    assert torch.equal(TallFile(path).vector(TASKS[0]).read("fc1.bias"), before)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("ca_asr.delta", "ca_asr"), ("runs/de.lors.delta", "de.lors"), ("ft/ca/", "ca"),
        ("ft/ca.v2", "ca.v2"), ("you/whisper-ca", "whisper-ca"), ("you/w-ca@abc", "w-ca"),
        ("you/deltas@abc:es_asr.delta", "es_asr"), ("x.safetensors", "x"),
    ],
)  # fmt: skip
def test_names_of_tasks(path: str, name: str) -> None:
    assert short_name(path) == check_task_name(name) == name
