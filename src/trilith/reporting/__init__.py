"""Metrics in; figures, tables and pages out. Imports no torch."""

from trilith.reporting.findings import TARGETS, closing_lines
from trilith.reporting.page import ReportFiles, write_report

__all__ = ["TARGETS", "ReportFiles", "closing_lines", "write_report"]
