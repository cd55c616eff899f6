"""docs/delta-format.md: its reader and its digest, run as they stand, agree with this package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lorsmerge_cli import tall_masks
from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.checkpoint.safetensors_file import DTYPE_CODES
from lorsmerge_cli.core.low_rank_sparse import LowRankSparse, accumulable, dense
from lorsmerge_cli.core.pruning import prune
from lorsmerge_cli.core.pruning.budget import budget
from lorsmerge_cli.deltas.encodings import ENCODINGS, TensorLayout
from lorsmerge_cli.deltas.file import DeltaFile, Provenance
from lorsmerge_cli.deltas.tall import TallFile
from lorsmerge_cli.deltas.task_vector import base_fingerprint

PAGE = Path(__file__).parents[2] / "docs" / "delta-format.md"
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def code_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """The names that the page's code defines."""
    names: dict[str, Any] = {}
    for block in code_blocks():
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def make(pruner: str | None, svp: float | None = None, mp: float | None = None) -> Any:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(48, 70, generator=generator) * 1e-2
    return matrix if pruner is None else prune(matrix, pruner, budget(matrix.shape, svp, mp))


DELTAS = {
    "dense": {
        "a.weight": make(None),
        "bias": torch.linspace(-1, 1, 7),
        "scalar": torch.tensor(2.0),
    },
    "lors with a bitmask": {"a.weight": make("lors", 0.1, 0.3), "bias": torch.linspace(-1, 1, 7)},
    "lors with places": {"a.weight": make("lors", 0.1, 0.01)},
    "low rank alone": {"a.weight": make("svp", 0.1)},
    "sparse alone": {"a.weight": make("mp", None, 0.3)},
    "sparse places alone": {"a.weight": make("mp", None, 0.01)},
    "nothing kept": {"a.weight": make("mp", None, 1e-6), "bias": torch.linspace(-1, 1, 7)},
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("deltas", DELTAS.values(), ids=DELTAS)
def test_the_pages_reader_reads_what_lorsmerge_reads(
    tmp_path: Path,
    page: dict[str, Any],
    write_delta: Callable[..., Path],
    deltas: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    path = write_delta(tmp_path / "x.delta", deltas, dtype)
    read = page["read_delta"](path)
    file = DeltaFile(path)
    assert read.keys() == file.specs.keys()
    for name, array in read.items():
        ours = file.read(name)
        wanted = dense(ours).numpy()
        assert array.dtype == wanted.dtype
        if isinstance(ours, LowRankSparse) and ours.left is not None:
            size = float(accumulable(ours.left).norm() * accumulable(ours.right).norm())
            precision = np.finfo(wanted.dtype).eps
            np.testing.assert_allclose(array, wanted, rtol=0, atol=4 * precision * size)
        else:
            np.testing.assert_array_equal(array, wanted)


def test_the_pages_reader_needs_neither_torch_nor_lorsmerge(
    tmp_path: Path, write_delta: Callable[..., Path]
) -> None:
    path = write_delta(tmp_path / "x.delta", DELTAS["lors with a bitmask"])
    check = (
        "import sys\nsys.modules['torch'] = sys.modules['lorsmerge_cli'] = None\n"
        f"{code_blocks()[0]}\nprint(sorted(read_delta(sys.argv[1])))"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", check, str(path)], capture_output=True, text=True
    )
    assert (run.stderr, run.stdout.strip()) == ("", "['a.weight', 'bias']")


def test_the_pages_reader_refuses_what_is_no_delta(tmp_path: Path, page: dict[str, Any]) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="no delta"):
        page["read_delta"](tmp_path / "x.safetensors")


def test_the_page_reads_a_task_of_tall_masks(
    tmp_path: Path, page: dict[str, Any], write_delta: Callable[..., Path]
) -> None:
    base = {name: torch.zeros(dense(delta).shape) for name, delta in DELTAS["dense"].items()}
    save_file(base, tmp_path / "base.safetensors")
    for seed, name in enumerate(("ca", "de")):
        generator = torch.Generator().manual_seed(seed)
        tuned = {n: torch.randn(t.shape, generator=generator) for n, t in base.items()}
        save_file(tuned, tmp_path / f"{name}.safetensors")
    tunes = [tmp_path / "ca.safetensors", tmp_path / "de.safetensors"]
    tall_masks(tmp_path / "base.safetensors", tunes, tmp_path / "tall.delta")
    vector = TallFile(tmp_path / "tall.delta").vector("de")
    for name, array in page["read_task"](tmp_path / "tall.delta", "de").items():
        np.testing.assert_array_equal(array, vector.read(name).numpy())
    with pytest.raises(ValueError, match="no delta of format 1"):
        page["read_delta"](tmp_path / "tall.delta")


def test_the_pages_digest_is_the_fingerprints(tmp_path: Path, page: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"z": (1024,), "a.weight": (32, 32), "large": (90, 70), "s": (), "empty": (0, 4),
              "ü": (1025,), "odd": (3, 1111)}  # fmt: skip
    tensors = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
    tensors["half"] = tensors["large"].half()
    save_file(tensors | {"positions": torch.arange(9)}, tmp_path / "x.safetensors")
    listed = {
        name: (DTYPE_CODES[t.dtype], list(t.shape), t.numpy().tobytes())
        for name, t in tensors.items()
    }
    identity = base_fingerprint(Checkpoint(tmp_path / "x.safetensors"))
    assert page["digest"](listed) == identity.digest
    assert identity.dtype == "F16+F32"
    in_order = [name for name in sorted(tensors) if tensors[name].numel()]
    assert identity.sample == tuple(
        float(tensors[name].reshape(-1)[tensors[name].numel() // 2]) for name in in_order
    )


def test_the_page_lists_every_metadata_key(provenance: Provenance) -> None:
    text = PAGE.read_text("utf-8")
    for key in (*provenance.metadata(), "lorsmerge.tensors", "lorsmerge.tall"):
        assert f"| `{key}` |" in text


def test_the_page_describes_every_encoding() -> None:
    for name in ENCODINGS:
        assert f"### `{name}`" in PAGE.read_text("utf-8")


def test_the_pages_example_adds_up() -> None:
    text = PAGE.read_text("utf-8")
    tensors = json.loads(re.search(r"^```json\n(.*?)^```$", text, re.M | re.S)[1])
    wanted = {}
    for name, item in tensors.items():
        assert item["dtype"] == "F32"
        layout = TensorLayout(item["encoding"], tuple(item["shape"]), torch.float32,
                              item.get("rank", 0), item.get("kept", 0))  # fmt: skip
        if layout.encoding == "lors":
            keep = budget(layout.shape, 0.05, 0.1)
            assert (keep.rank, keep.kept) == (layout.rank, layout.kept)
        for part, spec in ENCODINGS[layout.encoding].specs(name, layout).items():
            wanted[part] = (DTYPE_CODES[spec.dtype], spec.nbytes)
    rows = re.findall(r"^\| `(model\.\S+)` \| (\w+) \| \(.*?\) \| ([\d,]+) \|$", text, re.M)
    assert {part: (code, int(size.replace(",", ""))) for part, code, size in rows} == wanted
