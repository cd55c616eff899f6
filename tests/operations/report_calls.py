"""What stands in the tables of a report."""

from __future__ import annotations

from lorsmerge_cli.operations.report import Report
from lorsmerge_cli.operations.report.tables import Cell, Table


def table(found: Report, name: str) -> Table:
    return next(table for table in found.tables if table.name == name)


def cells(found: Report, name: str) -> dict[str, dict[tuple[str, str], Cell]]:
    """Row -> (head, block) -> cell."""
    drawn = table(found, name)
    return {label: dict(zip(drawn.heads, row, strict=True)) for label, _, row in drawn.rows}
