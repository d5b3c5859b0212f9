"""Sizes and times of reports in a real browser: made, painted, usable, sorted.

    python benches/report.py [--categories 6 80 500 5000] [--repeats 3] [--json FILE]

Times are the page's own performance marks in a headless Chromium (`chromium`, or CATWISE_CHROMIUM):
from the start of navigation until the headline is painted (first contentful paint) and until table
and script are ready; and from the click on a heading until the sorted rows are laid out (of all
headings the slowest). The page is read from a file. Scores are drawn at random
(`tests/report_case.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
NAMES = ("chromium", "chromium-browser", "google-chrome")


def make(n_categories: int, folder: Path) -> dict[str, Any]:
    """Write the page of a run with so many categories; how long that took, and its size."""
    sys.path.insert(0, str(TESTS))
    from catwise.reporting import render_report
    from report_case import make_document

    document = make_document(n_categories, metrics=("average_precision",))
    began = time.process_time()
    page = render_report(document)
    seconds = time.process_time() - began
    path = folder / f"{n_categories}.html"
    path.write_text(page, encoding="utf-8")
    return {
        "categories": n_categories,
        "page": path,
        "MB": len(page.encode()) / 1e6,
        "made in s": seconds,
    }


def look(page: Any, path: Path) -> dict[str, float]:
    """The page's own times, in milliseconds."""
    page.goto(path.as_uri())
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
    times = page.evaluate(
        "({ painted: performance.getEntriesByName('first-contentful-paint')[0].startTime,"
        " usable: performance.getEntriesByName('catwise-ready')[0].startTime })"
    )
    heads = page.locator("table.categories thead button")
    for n in range(heads.count()):
        heads.nth(n).click()
    times["sorted"] = page.evaluate(
        "Math.max(...performance.getEntriesByName('catwise-sort').map((one) => one.duration))"
    )
    page.locator("table.categories tbody a").first.click()
    times["charts of a part"] = page.evaluate(
        "document.querySelectorAll('details[open] svg').length"
    )
    return times


def measure(categories: list[int], repeats: int) -> list[dict[str, Any]]:
    from playwright.sync_api import sync_playwright

    program = os.environ.get("CATWISE_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)))
    rows = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for n_categories in categories:
            row = make(n_categories, Path(folder))
            path = row.pop("page")
            found = []
            for _ in range(repeats):
                context = browser.new_context(viewport={"width": 1280, "height": 800})
                found.append(look(context.new_page(), path))
                context.close()
            for name in found[0]:
                row[name] = statistics.median(one[name] for one in found)
            rows.append(row)
            print({key: round(value, 3) for key, value in row.items()}, flush=True)
        browser.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--categories", type=int, nargs="+", default=[6, 80, 500, 5000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = measure(given.categories, given.repeats)
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
