"""Golden files: pages that were checked by hand, so that a change of a page is a change of its file."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "golden"


def golden(name: str, made: str) -> str:
    """Return the text of a golden file; one that is missing is written, to be read, and fails."""
    path = FOLDER / name
    if not path.exists():
        path.write_bytes(made.encode())
        pytest.fail(f"{path} was missing and is written now: read it, and run again")
    return path.read_bytes().decode()
