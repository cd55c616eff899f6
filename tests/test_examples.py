"""Every example in a docstring or on a page about Python runs, and prints what is written there."""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import runpy
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hub_server import Hub
from safetensors.torch import load
from speech_models import make_clip, make_test_set, make_tuned, make_whisper

import lorsmerge_cli
from lorsmerge_cli import delta

PACKAGE = Path(lorsmerge_cli.__file__).parent
ROOT = PACKAGE.parent
EXAMPLES = [file for file in sorted(PACKAGE.rglob("*.py")) if ">>> " in file.read_text("utf-8")]
CORE = sorted((PACKAGE / "core").rglob("*.py"))
# errors and records, which the examples of the functions that make them show
WITHOUT_EXAMPLE = {"EigenError", "Term", "Rounding", "Merged", "Method", "Budget", "BaseRounding"}


@pytest.fixture(scope="session")
def example_files(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files of the examples: base/, ca/, de/, nano/, two deltas, test.jsonl, clip.wav."""
    folder = tmp_path_factory.mktemp("examples")
    make_whisper(folder / "base", spells=True)
    for seed, name in enumerate(("ca", "de"), 1):
        make_tuned(folder / "base", folder / name, seed=seed)
        delta(folder / "base", folder / name, folder / f"{name}.delta", task="asr", language=name)
    shutil.copytree(models / "base", folder / "nano")  # of sizes that openai-whisper has
    make_test_set(folder)
    make_clip(folder / "clip.wav", 0, 1.5)
    return folder


@pytest.fixture
def among_files(
    example_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub
) -> Path:
    """Change to a copy of that folder, with a Hub to push to as `you`."""
    shutil.copytree(example_files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def name_of(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def module_of(file: Path) -> ModuleType:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return importlib.import_module(".".join(parts).removesuffix(".__init__"))


@pytest.mark.parametrize("file", EXAMPLES, ids=name_of)
def test_examples_of_a_module(file: Path, among_files: Path) -> None:
    found = doctest.testmod(module_of(file), extraglobs={"torch": torch, "os": os})
    assert found.attempted
    assert not found.failed  # what failed is on stdout, which pytest shows


@pytest.mark.parametrize("name", lorsmerge_cli.__all__)
def test_every_public_function_has_an_example(name: str) -> None:
    assert ">>> " in (getattr(lorsmerge_cli, name).__doc__ or "")


@pytest.mark.parametrize("file", CORE, ids=name_of)
def test_every_public_name_of_the_core_has_an_example(file: Path) -> None:
    module = module_of(file)
    public = {
        name: inspect.getsource(value)
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
        if inspect.isfunction(value) or inspect.isclass(value)
    }
    silent = {name for name, source in public.items() if ">>> " not in source}
    assert silent <= WITHOUT_EXAMPLE


def test_examples_of_the_page_about_python(among_files: Path) -> None:
    found = doctest.testfile(str(ROOT / "docs" / "python.md"), module_relative=False)
    assert found.attempted > 20
    assert not found.failed


def test_the_notebook(among_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "python" / "merge_in_a_notebook.py"))
    said = capsys.readouterr().out
    assert "equal to the model on disk: True" in said
    for wanted in ("cosine", "svp 0.05, mp 0.4: ", "merged: a step of norm", "lors ca asr: WER"):
        assert wanted in said
    assert "warning:" not in said
    merged = [
        Path(name, "model.safetensors").read_bytes() for name in ("merged", "merged-in-two-steps")
    ]
    first, second = (load(content) for content in merged)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
