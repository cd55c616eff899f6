"""Prune: a dense delta into a small one, with the share of its energy that is kept."""

from lorsmerge_cli.operations.prune.lora import LoraReport, check_adapter, open_low_rank, write_lora
from lorsmerge_cli.operations.prune.run import Kept, PruneReport, prune

__all__ = [
    "Kept",
    "LoraReport",
    "PruneReport",
    "check_adapter",
    "open_low_rank",
    "prune",
    "write_lora",
]
