"""Fixtures: small real models, made once per session."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hub_server import Hub, forget_lookups
from make_models import make_base, make_finetune

TEXT_TOKENS = 300  # 256 bytes and a few more: a vocabulary of about 2,000 with special tokens


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `base`, `ca` and `de`: a Whisper of 64 units and two fine-tunes. Read only."""
    folder = tmp_path_factory.mktemp("models")
    make_base(folder / "base", "nano", text_tokens=TEXT_TOKENS)
    for seed, name in enumerate(("ca", "de"), 1):
        make_finetune(folder / "base", folder / name, seed=seed)
    return folder


@pytest.fixture(autouse=True)
def no_network(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test from reaching the real Hub and its cache."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.getbasetemp() / "no_cache"))
    forget_lookups()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that huggingface_hub in this process, and processes it starts, take for the real one.

    They are logged in as `you`, who may write, and their cache is empty. Waits before a retry are
    left out.
    """
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http, close_session

    home = tmp_path / "hf_home"
    with Hub() as server:
        for name in ("HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_TOKEN_PATH", "HF_HUB_CACHE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in server.environment(home).items():
            monkeypatch.setenv(name, value)
        # read from the environment when huggingface_hub was imported
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value)
        hasty = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})
        for module in (_http, file_download):
            monkeypatch.setattr(module, "time", hasty)
        yield server
        close_session()


@pytest.fixture
def set_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The `hub` for data sets: `datasets` in this process takes it for the real one too."""
    import datasets

    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    cache = tmp_path / "hf_home" / "datasets"
    for name, value in {
        "HF_ENDPOINT": hub.url,
        "HUB_DATASETS_URL": hub.url + "/datasets/{repo_id}/resolve/{revision}/{path}",
        "HF_CACHE_HOME": str(tmp_path / "hf_home"),
        "HF_DATASETS_CACHE": cache,
        "DOWNLOADED_DATASETS_PATH": str(cache / "downloads"),
        "HF_HUB_OFFLINE": False,
        "HF_UPDATE_DOWNLOAD_COUNTS": False,  # it asks another host
    }.items():
        monkeypatch.setattr(datasets.config, name, value)
    return hub


def pytest_sessionstart() -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job: commands
        signal.signal(signal.SIGINT, signal.default_int_handler)  # that tests run would inherit it


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
