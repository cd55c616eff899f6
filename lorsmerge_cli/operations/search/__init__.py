"""Search the ratios and scales of a merge: many merges in memory, scored on a dev set."""

from lorsmerge_cli.operations.search.files import document, of_earlier_fronts, write_report
from lorsmerge_cli.operations.search.plan import plan_search
from lorsmerge_cli.operations.search.report import SearchReport, TrialRow
from lorsmerge_cli.operations.search.run import search
from lorsmerge_cli.operations.search.scores import Goal

__all__ = [
    "Goal",
    "SearchReport",
    "TrialRow",
    "document",
    "of_earlier_fronts",
    "plan_search",
    "search",
    "write_report",
]
