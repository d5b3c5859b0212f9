"""Charts: what they show of records, the same bytes every time, SVG that is well-formed."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import catwise
from catwise import plots
from catwise._configs import PaperConfig
from catwise.errors import ConfigError
from catwise.metrics.curves import curves_of, draw_curves
from catwise.metrics.ranking import average_precision_columns
from catwise.testing import make_task

NASTY = "<script>&\"'\x1b]]>"
LOSS = {"metric": "log_loss"}
SVG = "{http://www.w3.org/2000/svg}"


def record(category: str, before: float, gain: float, **more: Any) -> dict[str, Any]:
    return {
        "category": category, "metric": "average_precision", "before": before,
        "after": before + gain, "gain": gain, "gain_low": gain - 0.1, "gain_high": gain + 0.1,
        "n_positive_valid": 12, **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def run() -> Any:
    task = make_task(seed=0)
    return catwise.tune(task.head, task.train.pair, task.valid.pair, test=task.test.pair)


@pytest.fixture(scope="module")
def charts(run: Any) -> dict[str, plots.Chart]:
    """One of every kind, from a real run."""
    curves = run.curves["categories"]
    steps = [{"method": "ga", "step": s, "best": 0.5 + s / 100} for s in range(1, 9)]
    rows = [{"category": r["category"], "positive": r["n_positive_train"],
             "negative": r["n_negative_train"]} for r in run.records]  # fmt: skip
    found = {
        "gains": plots.gains(run.records),
        "all_gains": plots.all_gains(run.records),
        "precision_recall": plots.precision_recall(curves[0]),
        "mean_roc": plots.roc(curves),
        "reliability": plots.reliability(curves),
        "distribution": plots.distribution(curves[1], threshold=-0.5),
        "memorisation": plots.memorisation(run.gap),
        "learning": plots.learning(steps, metric="auroc"),
        "known_labels": plots.known_labels(rows, 400),
    }
    assert None not in found.values()
    return found  # type: ignore[return-value]


def parsed(chart: plots.Chart) -> ET.Element:
    return ET.fromstring(chart.svg())  # noqa: S314  # our own text


def test_gains_are_sorted_and_coloured_by_what_is_shown() -> None:
    """The largest gain is first; green and red only where the interval leaves out 0."""
    rows = [record("same", 0.5, 0.05), record("down", 0.6, -0.2), record("up", 0.4, 0.3)]
    chart = plots.gains([*rows, record("none", 0.5, 0.0) | {"before": None}])
    assert chart.rows == ("up", "same", "down")
    spans = {one.tone: (one.x, one.y) for one in chart.series if one.kind == "spans"}
    assert set(spans) == {"better", "worse", "same"}
    assert spans["better"] == (pytest.approx((0.4 + 0.2,)), (0,))
    assert chart.beside == ("12", "12", "12")
    assert "up in 2 and down in 1" in chart.description


def test_gains_of_a_loss_are_turned() -> None:
    """Of a loss less is better, so that the largest fall is first and green."""
    rows = [record("more", 0.5, 0.3) | LOSS, record("less", 0.6, -0.2) | LOSS]
    chart = plots.gains(rows)
    assert chart.rows == ("less", "more")
    assert [one.tone for one in chart.series if one.kind == "spans"] == ["better", "worse"]
    assert "less is better" in chart.x.label


def test_gains_show_test_rows_first() -> None:
    """Where records have test scores these are drawn, not those of the rows that chose."""
    tested = {"test_before": 0.25, "test_after": 0.5, "test_difference": 0.25, "test_low": 0.125,
              "test_high": 0.375, "test_outcome": "better", "n_positive_test": 7}  # fmt: skip
    chart = plots.gains([record("cat", 0.75, -0.5) | tested])
    assert [one.x for one in chart.series if one.tone == "before"] == [(0.25,)]
    assert chart.beside == ("7",)


def test_many_categories_are_cut_to_the_ends() -> None:
    """Of more than `most` half are the best and half the worst, and that is said."""
    rows = [record(f"c{i}", 0.5, i / 100) for i in range(-20, 20)]
    chart = plots.gains(rows, most=6)
    assert chart.rows == ("c19", "c18", "c17", "c-18", "c-19", "c-20")
    assert "40 categories; the 3 best and worst are drawn" in chart.description


def test_every_chart_is_well_formed_and_described(charts: dict[str, plots.Chart]) -> None:
    """SVG that a parser takes, with a role and a text for those who do not see it."""
    for name, chart in charts.items():
        root = parsed(chart)
        assert root.get("role") == "img", name
        assert chart.title in str(root.get("aria-label"))
        marks = [mark for kind in ("path", "circle") for mark in root.iter(SVG + kind)]
        assert len(marks) > 5, name


def corners(path: str) -> tuple[list[float], list[float]]:
    """All x and all y that a path goes to."""
    xs, ys = [0.0], [0.0]
    for kind, numbers in re.findall(r"([MLhv])([-\d. ]+)", path):
        values = [float(value) for value in numbers.split()]
        if kind == "v":
            ys.append(ys[-1] + values[0])
        else:
            xs.append(values[0] + (xs[-1] if kind == "h" else 0.0))
            ys += values[1:]
    return xs, ys


def test_marks_lie_inside(charts: dict[str, plots.Chart]) -> None:
    """Nothing is drawn outside a chart's own area."""
    for name, chart in charts.items():
        for mark in parsed(chart).iter():
            xs, ys = corners(mark.get("d", ""))
            xs += [float(mark.get(k, 0)) for k in ("x", "cx")]
            ys += [float(mark.get(k, 0)) for k in ("y", "cy")]
            assert 0 <= min(xs) <= max(xs) <= chart.width, (name, mark.attrib)
            assert 0 <= min(ys) <= max(ys) <= chart.height, (name, mark.attrib)


def test_names_are_texts() -> None:
    """A hostile name neither breaks the file nor becomes an element."""
    root = parsed(plots.gains([record(NASTY, 0.5, 0.1)]))
    assert not list(root.iter(SVG + "script"))
    assert any("<script>" in (one.text or "") for one in root.iter(SVG + "text"))


def test_the_same_bytes_in_another_process() -> None:
    """SVG, PNG and PDF do not change from process to process."""
    code = (
        "import hashlib, pathlib, tempfile\n"
        "from catwise import plots\n"
        "row = {'category': 'cat', 'before': 0.5, 'after': 0.7, 'gain': 0.2, 'metric': 'auroc'}\n"
        "chart = plots.gains([row])\n"
        "folder = pathlib.Path(tempfile.mkdtemp())\n"
        "for end in ('svg', 'png', 'pdf'):\n"
        "    chart.save(folder / f'a.{end}')\n"
        "    print(hashlib.sha256((folder / f'a.{end}').read_bytes()).hexdigest())\n"
    )
    pytest.importorskip("matplotlib")
    told = {subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True,
                           text=True, check=True).stdout for _ in range(2)}  # fmt: skip
    assert len(told) == 1
    assert len(told.pop().split()) == 3


def test_figures_have_axes_of_the_data(charts: dict[str, plots.Chart]) -> None:
    """A matplotlib figure has real axes: limits and ticks in units of the data."""
    pytest.importorskip("matplotlib")
    figure = charts["mean_roc"].figure()
    axes = figure.axes[0]
    assert axes.get_xlim() == (0.0, 1.0)
    assert axes.get_xlabel() == "false positive rate"
    assert {line.get_label() for line in axes.get_lines()} >= {"original", "new"}
    again = charts["gains"].figure(axes=axes)
    assert again is figure
    for chart in charts.values():
        chart.figure()


def test_an_unknown_ending_is_refused(tmp_path: Path, charts: dict[str, plots.Chart]) -> None:
    """Written are .svg, .png and .pdf."""
    with pytest.raises(ConfigError, match=r"\.svg, \.png or \.pdf"):
        charts["gains"].save(tmp_path / "chart.gif")
    charts["gains"].save(tmp_path / "chart.svg")
    assert (tmp_path / "chart.svg").read_text("utf-8") == charts["gains"].svg()


def test_matplotlib_is_not_loaded_for_svg() -> None:
    """Only figures need it."""
    code = (
        "import sys\nfrom catwise import plots\n"
        "plots.known_labels([{'category': 'a', 'positive': 1, 'negative': 2}], 5).svg()\n"
        "print('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_thinned_curves_keep_the_area() -> None:
    """A few cut-offs give AUROC and average precision of all rows to about a hundredth."""
    rng = np.random.default_rng(0)
    positive = rng.random(4000) < 0.1
    scores = rng.normal(size=4000) + 1.5 * positive
    found = curves_of(scores, positive)
    true, false = np.array(found.true), np.array(found.false)
    assert true.size < 60
    assert (true[-1], false[-1]) == (positive.sum(), (~positive).sum())
    area = np.trapezoid(true / true[-1], false / false[-1])
    exact = float(np.mean(scores[positive][:, None] > scores[~positive][None]))
    assert area == pytest.approx(exact, abs=0.005)
    precision = true[1:] / (true[1:] + false[1:])
    ap = float(np.sum(np.diff(true / true[-1]) * precision))
    assert ap == pytest.approx(
        float(average_precision_columns(scores[None], positive[None].astype(np.int8))), abs=0.02
    )
    assert sum(found.rows) == 4000
    assert sum(found.positive) == positive.sum() == sum(found.positives_at)


def test_tied_scores_are_one_cut_off() -> None:
    """The order of rows that tie changes nothing."""
    found = curves_of(np.array([1.0, 1.0, 0.0, 0.0]), np.array([True, False, False, True]))
    assert (found.true, found.false) == ([0, 1, 2], [0, 1, 2])
    assert found.probability == [0.5, 0.7311]


def test_curves_count_known_rows_only() -> None:
    """Unknown labels are in no curve, and a category without known labels has none."""
    codes = np.array([[1, -1], [0, -1], [-1, -1]], dtype=np.int8)
    cat, dog = draw_curves({"score": np.array([[2.0, 0], [1.0, 0], [9.0, 0]])}, codes, ("a", "b"))
    assert (cat.n_positive, cat.n_negative) == (1, 1)
    assert cat.heads["score"].true == [0, 1, 1]
    assert (dog.n_positive, dog.n_negative, dict(dog.heads)) == (0, 0, {})


def test_a_run_brings_its_curves(run: Any, tmp_path: Path) -> None:
    """Test rows are drawn where there are any, else those that were cross-fitted; files too."""
    assert run.curves["rows"] == "test"
    one = run.curves["categories"][0]
    assert list(one["heads"]) == ["before", "after"]
    assert one["n_positive"] == run.records[0]["n_positive_test"]
    paths = run.save(tmp_path / "run")
    assert paths["curves.json"].is_file()
    task = make_task(seed=0)
    found = catwise.tune(task.head, task.train.pair, task.valid.pair).curves
    assert found is not None
    assert found["rows"] == "validation"
    assert found["categories"][0]["n_positive"] == int((task.valid.labels.codes[:, 0] == 1).sum())


def test_learning_curves_come_from_the_history() -> None:
    """Preset paper leaves the mean of every step and a curve of each category; default none."""
    task = make_task(seed=0)
    config = PaperConfig(max_steps=30, patience=30)
    found = catwise.tune(
        task.head, task.train.pair, task.valid.pair, preset="paper", methods=["bp_bce", "ga"],
        config=config,
    )  # fmt: skip
    mean = plots.learning(found.history, metric="average_precision")
    assert mean is not None
    assert {one.label for one in mean.series} == {"bp_bce", "ga"}
    assert max(mean.series[0].x) == 30
    loss = plots.learning(found.history, found.records[0]["category"], quantity="loss")
    assert loss is not None
    assert loss.series[0].y[0] > loss.series[0].y[-1]
    assert plots.learning([{"candidate": "penalty=1", "pooled_gain": 0.1}]) is None


@pytest.mark.parametrize("digits", [0, 1, 6])
def test_curves_equal_a_plain_count(digits: int) -> None:
    """With many ties, few or none: cut-offs, bins and steps are those of counting row by row."""
    rng = np.random.default_rng(digits)
    scores = np.round(rng.normal(size=57), digits)
    positive = rng.random(57) < 0.3
    found = curves_of(scores, positive, points=1000)
    cuts = sorted(set(scores.tolist()), reverse=True)
    assert found.true == [0, *(int(positive[scores >= cut].sum()) for cut in cuts)]
    assert found.false == [0, *(int((~positive)[scores >= cut].sum()) for cut in cuts)]
    groups: dict[int, list[int]] = {}
    for row, score in enumerate(scores):
        groups.setdefault(10 * int((scores < score).sum()) // 57, []).append(row)
    bins = [groups[key] for key in sorted(groups)]
    assert found.rows == [len(rows) for rows in bins]
    assert found.positive == [int(positive[rows].sum()) for rows in bins]
    means = [float(np.mean(1 / (1 + np.exp(-scores[rows])))) for rows in bins]
    assert found.probability == pytest.approx(means, rel=1e-3)
    assert sum(found.positives_at) == positive.sum()
    if digits > 1:  # no score lies on an edge
        edges = np.linspace(scores.min(), scores.max(), 21)
        for count, part in ((found.positives_at, positive), (found.negatives_at, ~positive)):
            assert count == np.histogram(scores[part], edges)[0].tolist()
