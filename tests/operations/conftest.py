"""Deltas of the session's models, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorsmerge_cli import delta


@pytest.fixture(scope="session")
def deltas(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ca.delta` and `de.delta`. Read only."""
    folder = tmp_path_factory.mktemp("deltas")
    for name in ("ca", "de"):
        delta(models / "base", models / name, folder / f"{name}.delta", task="asr", language=name)
    return folder
