"""Runs as pages for a person: one page of one run, one of its defence under attack, and one table of many runs."""

from fedplatform.experiments.report.comparison_page import comparison_markdown, write_comparison
from fedplatform.experiments.report.defence_page import write_defence_report
from fedplatform.experiments.report.defence_pairs import paired_markdown
from fedplatform.experiments.report.error import ReportError
from fedplatform.experiments.report.finished_run import FinishedRun, read_run
from fedplatform.experiments.report.markdown_table import defence_markdown
from fedplatform.experiments.report.page import write_report

__all__ = [
    "FinishedRun",
    "ReportError",
    "comparison_markdown",
    "defence_markdown",
    "paired_markdown",
    "read_run",
    "write_comparison",
    "write_defence_report",
    "write_report",
]
