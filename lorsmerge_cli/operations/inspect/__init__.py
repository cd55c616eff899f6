"""Inspect: describe checkpoints and deltas, and compare deltas."""

from lorsmerge_cli.operations.inspect.report import (
    MOST,
    TOP_RATIOS,
    CheckpointReport,
    DeltaFileReport,
    InspectReport,
    KindFigures,
    TallReport,
)
from lorsmerge_cli.operations.inspect.run import inspect

__all__ = [
    "MOST",
    "TOP_RATIOS",
    "CheckpointReport",
    "DeltaFileReport",
    "InspectReport",
    "KindFigures",
    "TallReport",
    "inspect",
]
