"""The file of statistics: what is written comes back, and a stranger's is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import gaussian
from safetensors.torch import load_file, save_file

from lorsmerge_cli.calibration.file import (
    Layout,
    Origin,
    StatisticsFile,
    packed_triangle,
    unpacked_triangle,
    write_statistics,
)
from lorsmerge_cli.checkpoint.fingerprint import Fingerprint
from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.errors import LorsmergeError, NonFinite, UnreadableFile

Q, K, FC2 = (f"layers.0.{name}.weight" for name in ("q_proj", "k_proj", "fc2"))
LAYOUT = Layout(
    {Q: Q, K: Q, FC2: FC2}, {Q: 4, FC2: 7}, {"bias": (3,), "conv": (2, 3, 2), "one": ()}
)
ORIGIN = Origin(
    model="ft/ca", fingerprint=Fingerprint("0" * 64, "F32", (0.5,)), base="12ab", sample={Q: 0.5},
    labels="own", utterances=3, seconds=4.5, data="1" * 64, languages=(("ca", "asr"),),
    settings={"dtype": "float32"}, made_by="lorsmerge stats ft/ca", version="0",
)  # fmt: skip


def gram(width: int, seed: int) -> torch.Tensor:
    inputs = gaussian(3, width, seed)
    return inputs.T @ inputs


def tensors() -> dict[str, torch.Tensor]:
    squares = {name: gaussian(1, 12, 3)[0, : torch.Size(shape).numel()].abs().reshape(shape)
               for name, shape in LAYOUT.shapes.items()}  # fmt: skip
    return {f"{Q}.gram": gram(4, 1), f"{FC2}.gram": gram(7, 2)} | {
        f"{name}.fisher": values for name, values in squares.items()
    }


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_statistics(tmp_path / "ca.stats", LAYOUT, ORIGIN, tensors(), {Q: 30, FC2: 31})
    return tmp_path / "ca.stats"


def test_what_is_written_comes_back(written: Path) -> None:
    file, wrote = StatisticsFile(written), tensors()
    assert file.origin == ORIGIN
    assert file.layout == LAYOUT
    assert file.layout.kinds == ("gram", "fisher")
    assert file.names("gram") == {Q, K, FC2}
    for name, entry in ((Q, Q), (K, Q), (FC2, FC2)):
        assert torch.equal(file.read("gram", name), wrote[f"{entry}.gram"].float())
    mean = torch.cat([wrote[f"{name}.fisher"].reshape(-1) for name in LAYOUT.shapes]).mean()
    read = {name: file.read("fisher", name) for name in LAYOUT.shapes}
    for name, values in read.items():
        torch.testing.assert_close(values, (wrote[f"{name}.fisher"] / mean).float())
    assert float(torch.cat([v.reshape(-1) for v in read.values()]).mean()) == pytest.approx(1)
    assert file.identity == StatisticsFile(written).identity


def test_half_of_a_symmetric_matrix_is_stored(written: Path) -> None:
    stored = load_file(written)
    assert stored[f"{FC2}.gram"].shape == (28,)
    assert f"{K}.gram" not in stored
    assert sum(value.nbytes for value in stored.values()) == LAYOUT.nbytes


@pytest.mark.parametrize("width", [1, 2, 5])
def test_a_triangle_unpacked(width: int) -> None:
    matrix = gram(width, 5)
    packed = packed_triangle(matrix)
    assert packed.shape == (width * (width + 1) // 2,)
    assert torch.equal(unpacked_triangle(packed, width), matrix)
    assert torch.equal(packed, matrix[tuple(torch.tril_indices(width, width))])


def test_only_one_kind(tmp_path: Path) -> None:
    for kind, layout in (
        ("gram", Layout(LAYOUT.inputs, LAYOUT.widths, {})),
        ("fisher", Layout({}, {}, LAYOUT.shapes)),
    ):
        values = {name: value for name, value in tensors().items() if name.endswith(kind)}
        write_statistics(tmp_path / kind, layout, ORIGIN, values, {Q: 1, FC2: 1})
        assert StatisticsFile(tmp_path / kind).layout.kinds == (kind,)


def metadata_of(path: Path) -> dict[str, str]:
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return header["__metadata__"]


def damaged(path: Path, metadata: dict[str, Any] | None = None, **changed: Any) -> Path:
    """Write a copy with other metadata, whose values are JSON, or other tensors; None removes one."""
    told = metadata_of(path)
    for key, value in (metadata or {}).items():
        told[f"lorsmerge.{key}"] = value if isinstance(value, str) else json.dumps(value)
    held = load_file(path)
    for name, value in changed.items():
        held.pop(name) if value is None else held.update({name: value})
    other = path.with_name("damaged.stats")
    save_file(held, other, metadata={key: value for key, value in told.items() if value != "null"})
    return other


DATA = {"labels": "own", "utterances": 3, "seconds": 4.5, "sha256": "1" * 64, "languages": []}
WRONG = {
    "a later format": ({"statistics_version": "2"}, "Update lorsmerge"),
    "no model": ({"statistics.model": None}, "model' is missing"),
    "no data": ({"statistics.data": "[]"}, "damaged"),
    "data without labels": ({"statistics.data": {}}, "labels' is missing"),
    "no utterances": ({"statistics.data": DATA | {"utterances": 0}}, "number of utterances is 0"),
    "utterances of a text": ({"statistics.data": DATA | {"utterances": "3"}}, "utterances is '3'"),
    "seconds below zero": ({"statistics.data": DATA | {"seconds": -1}}, "seconds are -1"),
    "no hash": ({"statistics.data": DATA | {"sha256": "x"}}, "hash of its data is 'x'"),
    "languages of numbers": ({"statistics.data": DATA | {"languages": [[1, 2]]}}, "language"),
    "a sample of texts": ({"statistics.sample": {Q: "a"}}, "sample of its model"),
    "a fingerprint of a text": ({"statistics.fingerprint": '"a"'}, "object is needed"),
    "a width that is no number": ({"statistics.grams": {Q: {"width": "4", "rows": 1}}}, "Gram"),
    "a width of zero": ({"statistics.grams": {Q: {"width": 0, "rows": 1}}}, "Gram"),
    "another width": (
        {"statistics.grams": {Q: {"width": 5, "rows": 1}, FC2: {"width": 7, "rows": 1}}},
        "stored tensors are not those",
    ),
    "a layer whose matrix is not there": ({"statistics.inputs": {Q: "z"}}, "is not there"),
    "inputs that are a list": ({"statistics.inputs": {Q: [1]}}, "is not there"),
    "a mean below zero": ({"statistics.fisher": {"mean": -1.0}}, "mean of its Fisher"),
    "no mean": ({"statistics.fisher": {}}, "mean of its Fisher"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_damaged_header(written: Path, name: str) -> None:
    changed, words = WRONG[name]
    with pytest.raises(UnreadableFile, match=words):
        StatisticsFile(damaged(written, changed))


def test_entries_that_the_header_does_not_describe(written: Path) -> None:
    for changed in ({f"{FC2}.gram": None}, {"other": torch.ones(2)}):
        with pytest.raises(UnreadableFile, match="stored tensors are not those"):
            StatisticsFile(damaged(written, **changed))


@pytest.mark.parametrize("kind", ["gram", "fisher"])
def test_numbers_that_are_none(written: Path, kind: str) -> None:
    entry, name = {"gram": (f"{FC2}.gram", FC2), "fisher": ("bias.fisher", "bias")}[kind]
    for bad, error, words in (
        (float("nan"), NonFinite, "NaN"),
        (float("inf"), NonFinite, "infinity"),
        (-1.0, UnreadableFile, "is negative"),
    ):
        values = load_file(written)[entry]
        values[-1] = bad  # of a Gram matrix, the last element of its diagonal
        with pytest.raises(error, match=words):
            StatisticsFile(damaged(written, **{entry: values})).read(kind, name)


def test_files_of_another_type(written: Path, tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match=r"give the fine-tune|Give it to `merge` with --stats"):
        Checkpoint(written)
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UnreadableFile, match=r"not a file of statistics.*lorsmerge stats"):
        StatisticsFile(tmp_path / "model.safetensors")
    for missing in ("nowhere.stats", "."):
        with pytest.raises(LorsmergeError):
            StatisticsFile(tmp_path / missing)
