"""Results for people and machines: tables, CSV, JSON and one HTML page.

>>> from catwise.reporting import records_csv
>>> print(records_csv([{"category": "cat", "status": "kept", "before": 0.5}]).splitlines()[0][:24])
category,index,status,re
"""

from __future__ import annotations

from catwise._csv import rows_csv
from catwise._json import json_ready
from catwise.reporting.html import render_report, render_summary
from catwise.reporting.run import (
    RUN_FILES,
    check_output,
    page_document,
    read_result,
    run_document,
    write_run,
)
from catwise.reporting.summary import summary_lines
from catwise.reporting.tables import (
    RECORD_COLUMNS,
    audit_table,
    comparison_table,
    differences_table,
    evaluation_table,
    means_table,
    records_csv,
    records_table,
    run_table,
)

__all__ = [
    "RECORD_COLUMNS",
    "RUN_FILES",
    "audit_table",
    "check_output",
    "comparison_table",
    "differences_table",
    "evaluation_table",
    "json_ready",
    "means_table",
    "page_document",
    "read_result",
    "records_csv",
    "records_table",
    "render_report",
    "render_summary",
    "rows_csv",
    "run_document",
    "run_table",
    "summary_lines",
    "write_run",
]
