"""A merge that is stopped half-way leaves nothing under the final name."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lorsmerge_cli.checkpoint import safetensors_file

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

LAYERS, WIDTH = 24, 1024
WEIGHTS = LAYERS * WIDTH * WIDTH * 4  # bytes
PATIENCE = 60  # seconds
MERGE = "merge {} ft.safetensors --svp 0.03 --mp 0.4 --threads 1 -o {}"
TARGETS = {"file": ("base.safetensors", "out.safetensors"), "folder": ("base", "out")}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and a fine-tune that take seconds to merge."""
    folder = tmp_path_factory.mktemp("large")
    generator = torch.Generator().manual_seed(0)
    base, finetuned = {}, {}
    for layer in range(LAYERS):
        name = f"model.encoder.layers.{layer}.fc1.weight"
        base[name] = torch.randn(WIDTH, WIDTH, generator=generator) * 0.02
        finetuned[name] = base[name] + 1e-4 * torch.randn(WIDTH, WIDTH, generator=generator)
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text("{}")
    save_file(base, folder / "base.safetensors")
    (folder / "base" / "model.safetensors").hardlink_to(folder / "base.safetensors")
    save_file(finetuned, folder / "ft.safetensors")
    return folder


@pytest.fixture
def here(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with links to the large files."""
    for source in large.iterdir():
        (tmp_path / source.name).symlink_to(source)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def partial_bytes(folder: Path) -> int:
    """Largest size of a file in the temporary folder, where there is one."""
    sizes = [0]
    for scratch in folder.glob(".*.partial"):
        for file in scratch.rglob("*.safetensors"):
            try:
                sizes.append(file.stat().st_size)
            except FileNotFoundError:
                continue
    return max(sizes)


@pytest.fixture
def start() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start a command and return when it has written a third of its output."""
    running = []

    def begin(line: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "lorsmerge_cli", *line.split()]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        running.append(process)
        deadline = time.monotonic() + PATIENCE
        while partial_bytes(Path.cwd()) < WEIGHTS / 3:
            assert process.poll() is None, f"it ended before: {process.communicate()}"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return process

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("number", "codes"), [(signal.SIGINT, {130}), (signal.SIGTERM, {130, 143})]
)
def test_a_signal_ends_it_and_nothing_is_left(
    here: Path, start: Callable, number: signal.Signals, codes: set[int], target: str
) -> None:
    before = set(here.iterdir())
    process = start(MERGE.format(*TARGETS[target]))
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode in codes, err
    assert set(here.iterdir()) == before
    assert out == ""
    assert "nterrupted" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_an_impatient_user_presses_ctrl_c_again(here: Path, start: Callable) -> None:
    before = set(here.iterdir())
    process = start(MERGE.format(*TARGETS["file"]))
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode in {130, -signal.SIGINT}, err
    assert set(here.iterdir()) == before
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_kill_leaves_nothing_under_the_name_and_the_next_run_succeeds(
    here: Path, start: Callable, process: Callable, target: str
) -> None:
    line = MERGE.format(*TARGETS[target])
    killed = start(line)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=PATIENCE)
    output = here / TARGETS[target][1]
    assert not output.exists()
    ended = process("lorsmerge " + line.replace("--svp 0.03 --mp 0.4", ""))
    assert ended.code == 0, ended.err
    (left,) = here.glob(".*.partial")
    assert f"warning: {left} is left over from a run that was killed" in ended.err
    assert output.exists()


@pytest.mark.parametrize("existing", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize(
    "line",
    [
        "lorsmerge merge base.safetensors ca.delta de.delta -o x.safetensors --svp 0.5",
        "lorsmerge merge base ca.delta de.delta -o x --svp 0.5",
        "lorsmerge merge base ca.delta de.delta -o x --svp 0.5 --save-recipe x.toml",
        "lorsmerge prune ca.delta -o x.delta --mp 0.5",
        "lorsmerge delta base ca.safetensors -o x.delta",
        "lorsmerge merge base ca.delta de.delta --masks 0.4 -o x.delta",
        "lorsmerge merge base --from tall.delta --for ca -o x",
    ],
)
def test_an_interruption_in_mid_write_leaves_all_as_it_was(
    tiny: Path,
    shell: Callable,
    contents: Callable,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    existing: bool,
) -> None:
    if "tall.delta" in line:
        assert shell("lorsmerge merge base ca.delta de.delta --masks 0.4 -o tall.delta").code == 0
    if existing:
        assert shell(line).code == 0
    before = contents(tiny)

    def interrupted(self: object, metadata: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors_file.SafetensorsWriter, "finish", interrupted)
    ended = shell(line + (" --force" if existing else ""))
    assert ended.code == 130
    assert "Interrupted" in ended.err
    assert contents(tiny) == before
