"""`report` as the tests call it, and what stands in its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorsmerge_cli.operations.report.run import Report, report
from lorsmerge_cli.operations.report.tables import Cell, Table


def run(paths: list[Path], output: Path, **changes: Any) -> Report:
    settings: dict[str, Any] = {
        "title": "Test", "base": None, "finetuned": None, "against": None, "controls": {},
        "held_out": [], "paper": None, "force": False,
    }  # fmt: skip
    return report(paths, output, **settings | changes)


def table(found: Report, name: str) -> Table:
    return next(table for table in found.tables if table.name == name)


def cells(found: Report, name: str) -> dict[str, dict[tuple[str, str], Cell]]:
    """Row -> (head, block) -> cell."""
    drawn = table(found, name)
    return {label: dict(zip(drawn.heads, row, strict=True)) for label, _, row in drawn.rows}
