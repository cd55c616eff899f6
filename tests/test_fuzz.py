"""A short run of `tests/fuzz.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz import fuzz


@pytest.mark.slow
def test_mutated_files_are_refused_or_give_something_sane(tmp_path: Path) -> None:
    counts, findings = fuzz(tmp_path, 3000, seed=1)
    assert findings == []
    assert all(found["refused"] and found["opened"] for found in counts.values())
