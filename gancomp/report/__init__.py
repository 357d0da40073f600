"""The report of a run."""

from gancomp.report.html import ReportData, Stage, Table, write_report

__all__ = ["ReportData", "Stage", "Table", "write_report"]
