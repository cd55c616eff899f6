"""Small real models, made once a session."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from make_models import make_base, make_finetune

TEXT_TOKENS = 300  # 256 bytes and a few more: a vocabulary of about 2,000 with special tokens


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, `ca` and `de`: a Whisper of 64 units and two fine-tunes. Read only."""
    folder = tmp_path_factory.mktemp("models")
    make_base(folder / "base", "nano", text_tokens=TEXT_TOKENS)
    for seed, name in enumerate(("ca", "de"), 1):
        make_finetune(folder / "base", folder / name, seed=seed)
    return folder


def pytest_sessionstart() -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job: commands
        signal.signal(signal.SIGINT, signal.default_int_handler)  # that tests run would inherit it


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
