"""A report: the paper's tables and figures from results files, in a folder."""

from lorsmerge_cli.operations.report.run import Report, report
from lorsmerge_cli.operations.report.tables import Table

__all__ = ["Report", "Table", "report"]
