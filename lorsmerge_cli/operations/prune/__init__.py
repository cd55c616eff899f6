"""Prune: make a dense delta small, and measure the share of its energy that is kept."""

from lorsmerge_cli.operations.prune.lora import LoraReport, check_adapter, open_low_rank, write_lora
from lorsmerge_cli.operations.prune.run import PruneReport, PruningStats, prune

__all__ = [
    "LoraReport",
    "PruneReport",
    "PruningStats",
    "check_adapter",
    "open_low_rank",
    "prune",
    "write_lora",
]
