"""Files of the `openai-whisper` package, which is installed without what it needs to run."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType

import pytest


def package_file(name: str) -> Path:
    """Return the path of a file in the package."""
    try:
        found = distribution("openai-whisper").locate_file(f"whisper/{name}")
    except PackageNotFoundError:
        pytest.fail("Run: pip install --no-deps openai-whisper tiktoken")
    return Path(str(found))


@cache
def tokenizer_module() -> ModuleType:
    """Load whisper/tokenizer.py by itself: the package as a whole needs numba."""
    spec = importlib.util.spec_from_file_location("whisper_tokenizer", package_file("tokenizer.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up annotations
    spec.loader.exec_module(module)
    return module
