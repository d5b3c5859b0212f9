"""Charts of what catwise found, made from its records: SVG, or matplotlib figures.

A notebook shows a chart by itself; `chart.svg()` is the text of an SVG file, `chart.figure()` a
matplotlib figure (``pip install catwise[plots]``), `chart.save(path)` a file. The same records give
the same bytes.

>>> import catwise.plots
>>> record = {"category": "cat", "before": 0.5, "after": 0.75, "gain": 0.25, "metric": "auroc"}
>>> chart = catwise.plots.gains([record])
>>> chart, chart.svg()[:15]
(Chart('Before and after, by category'), '<svg class="cw"')
"""

from __future__ import annotations

from catwise._lazy import attach

__all__, __getattr__, __dir__ = attach(
    __name__,
    {
        "catwise.reporting.charts.chart": "Axis Chart Series",
        "catwise.reporting.charts.curves": "distribution precision_recall reliability roc",
        "catwise.reporting.charts.gains": "all_gains gains scores",
        "catwise.reporting.charts.progress": "known_labels learning memorisation",
        "catwise.reporting.charts.studies": "known_shares study_differences",
    },
)
