"""Reports: words, tables and figures from results files. A model is never seen here."""

from __future__ import annotations

from hf_early_ood.report.tables import run_table, study_markdown, study_report, study_tables
from hf_early_ood.report.verdict import judge, verdict

__all__ = ["judge", "run_table", "study_markdown", "study_report", "study_tables", "verdict"]
