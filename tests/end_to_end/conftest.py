"""Commands as a user types them, and the folders they are typed in."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands_ended import Ended, Shell
from hub_server import forget_lookups
from safetensors.torch import save_file
from typer.testing import CliRunner

from lorsmerge_cli.app import app

PATIENCE = 60  # seconds that a command of a test may take at most


def arguments_of(line: str) -> list[str]:
    program, *arguments = shlex.split(line)
    assert program == "lorsmerge"
    return arguments


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Run a command line in this process, where PyTorch is loaded already."""

    def run(line: str) -> Ended:
        forget_lookups()
        monkeypatch.setattr(sys, "argv", shlex.split(line))  # what a delta's history records
        result = CliRunner().invoke(app, arguments_of(line))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ended(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def succeed(shell: Shell) -> Callable[[str], Ended]:
    """Run a command line that must end well."""

    def run(line: str) -> Ended:
        ended = shell(line)
        assert ended.code == 0, f"{line}\n{ended.out}\n{ended.err}"
        return ended

    return run


@pytest.fixture
def process() -> Shell:
    """Run a command line as a process of its own."""

    def run(line: str, **settings: object) -> Ended:
        done = subprocess.run(
            [sys.executable, "-m", "lorsmerge_cli", *arguments_of(line)],
            capture_output=True,
            encoding="utf-8",
            timeout=PATIENCE,
            check=False,
            **settings,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def contents() -> Callable[[Path], dict[str, str]]:
    """Every path below a folder, hidden ones too, with a digest of what it holds."""

    def of(folder: Path) -> dict[str, str]:
        found = {}
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            if path.is_symlink():
                found[name] = f"-> {os.readlink(path)}"
            elif path.is_file():
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                found[name] = "folder"
        return found

    return of


def tiny_model(seed: int) -> dict[str, torch.Tensor]:
    """Tensors of every sort that a speech model has, a few hundred numbers in all."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.05

    tensors = {
        "model.encoder.conv1.weight": normal(8, 4, 3),
        "model.decoder.embed_tokens.weight": normal(12, 8),
        "model.decoder.position_ids": torch.arange(4),
    }
    for layer in range(2):
        prefix = f"model.encoder.layers.{layer}."
        tensors[prefix + "self_attn.q_proj.weight"] = normal(8, 8)
        tensors[prefix + "self_attn.q_proj.bias"] = normal(8)
        tensors[prefix + "fc1.weight"] = normal(16, 8)
        tensors[prefix + "final_layer_norm.weight"] = normal(8)
    return tensors


def tiny_finetune(base: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 1e-3 * torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in base.items()
    }


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as in `tiny`; read only."""
    from lorsmerge_cli import delta

    folder = tmp_path_factory.mktemp("tiny")
    base = tiny_model(0)
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text('{"dtype": "float32"}\n')
    save_file(base, folder / "base" / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(folder / "base" / "model.safetensors", folder / "base.safetensors")
    for seed, name in enumerate(("ca", "de"), 1):
        save_file(tiny_finetune(base, seed), folder / f"{name}.safetensors")
        delta(
            folder / "base.safetensors", folder / f"{name}.safetensors", folder / f"{name}.delta",
            task="asr", language=name,
        )  # fmt: skip
    return folder


@pytest.fixture
def tiny(tiny_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: base/, base.safetensors, ca.safetensors, ca.delta, de.safetensors, de.delta."""
    folder = tmp_path / "work"
    shutil.copytree(tiny_files, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def files(speech_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a copy of the test module's own `speech_files`."""
    folder = tmp_path / "work"
    shutil.copytree(speech_files, folder)
    monkeypatch.chdir(folder)
    return folder
