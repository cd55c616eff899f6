"""A merge holds a few tensors, not the model."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lorsmerge_cli.checkpoint.reader import BLOCK
from lorsmerge_cli.core.methods import find_method
from lorsmerge_cli.operations.merge.masks import HELD
from lorsmerge_cli.operations.merge.plan import PRUNING_COPIES, THREAD_OVERHEAD

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc"),
]

LAYERS, ROWS, COLUMNS = 12, 4096, 1024
TENSOR = ROWS * COLUMNS * 4  # bytes; 12 in a model: holding one file would not pass
DELTAS = 3
# glibc gives back at once what is freed: what is measured is what the merge holds, not what the
# heap keeps for the next tensor, which differs from run to run
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}


METHODS = [
    "ta", "lors", "dare", "star", "ties", "consensus", "boost", "lors:around=mean", "localize",
    "localize:around=mean", "stitch",
]  # fmt: skip
# SciPy is loaded where it is needed: here always, so that it is no part of what a merge holds
RUN = "import runpy, scipy.linalg.lapack; runpy.run_module('lorsmerge_cli', run_name='__main__')"


def peak_anonymous(arguments: list[str]) -> int:
    """Largest number of bytes of its own, mapped files not counted, that a command held."""
    command = [sys.executable, "-c", RUN, *arguments]
    peak = 0
    environment = os.environ | GIVE_BACK
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        while process.poll() is None:
            text = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(peak, *(1024 * int(kb) for kb in re.findall(r"RssAnon:\s+(\d+)", text)), 0)
            time.sleep(0.005)
    assert process.returncode == 0
    return peak


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """A base and fine-tunes of it, a gigabyte, removed at the end."""
    folder = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(0)
    names = [f"model.encoder.layers.{layer}.fc1.weight" for layer in range(LAYERS)]
    found = [folder / f"{number}.safetensors" for number in range(DELTAS + 1)]
    for file in found:
        save_file({name: torch.randn(ROWS, COLUMNS, generator=generator) for name in names}, file)
    yield found
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("name", "threads"), [*((name, 1) for name in METHODS), ("lors", 2), ("ties", 2)]
)
def test_peak_memory(files: list[Path], tmp_path: Path, name: str, threads: int) -> None:
    method, output = find_method(name), tmp_path / "out.safetensors"
    line = ["merge", *map(str, files), "-o", str(output), "--method", name]
    line += ["--threads", str(threads)]
    for ratio in method.ratios:
        line += [f"--{ratio}", {"svp": "0.03", "mp": "0.4"}[ratio]]
    at_rest = peak_anonymous([*line, "--dry-run"])
    held = peak_anonymous(line) - at_rest
    output.unlink()
    copies = PRUNING_COPIES + method.copies + (DELTAS if method.needs_all else 0)
    assert held <= (copies * TENSOR + THREAD_OVERHEAD) * threads


@pytest.mark.parametrize("threads", [1, 2])
def test_masks_hold_blocks(files: list[Path], tmp_path: Path, threads: int) -> None:
    line = ["merge", *map(str, files), "--threads", str(threads)]
    make = [*line, "--masks", "0.4", "-o", str(tmp_path / "tall.delta")]
    at_rest = peak_anonymous([*make, "--dry-run"])
    held = peak_anonymous(make) - at_rest
    assert held <= ((DELTAS * 4 + HELD * 8) * BLOCK + THREAD_OVERHEAD) * threads
    output = tmp_path / "out.safetensors"
    take = ["merge", str(files[0]), "--from", str(tmp_path / "tall.delta"), "--for", files[1].stem]
    take += ["--threads", str(threads), "-o", str(output)]
    assert peak_anonymous(take) - at_rest <= (PRUNING_COPIES * TENSOR + THREAD_OVERHEAD) * threads
    output.unlink()


def test_inspect_holds_two_tensors_however_many_deltas(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    names = ["model.encoder.layers.0.fc1.weight"]
    for file in ("base", "ft"):
        tensors = {name: torch.randn(ROWS, COLUMNS, generator=generator) for name in names}
        save_file(tensors, tmp_path / f"{file}.safetensors")
    run = [sys.executable, "-m", "lorsmerge_cli"]
    dense, pruned = tmp_path / "dense.delta", tmp_path / "0.delta"
    paths = [str(tmp_path / f"{file}.safetensors") for file in ("base", "ft")]
    subprocess.run([*run, "delta", *paths, "-o", str(dense)], check=True)
    subprocess.run([*run, "prune", str(dense), "-o", str(pruned), "--mp", "0.2"], check=True)
    deltas = [str(pruned)]
    for number in range(1, 6):
        deltas.append(str(tmp_path / f"{number}.delta"))
        shutil.copy(pruned, deltas[-1])
    line = ["inspect", "--no-spectra", "--threads", "1"]
    few, many = (peak_anonymous([*line, *deltas[:number]]) for number in (2, 6))
    assert many - few < TENSOR
