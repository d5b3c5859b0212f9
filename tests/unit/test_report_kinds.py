"""Pages of evaluations and audits, what a notebook shows, the next step, and files of a run."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import catwise
from catwise.labels import PartialLabels, audit_labels, find_suspicious, unknown_together
from catwise.reporting import page_document, render_report
from catwise.reporting.next_step import (
    next_step_of_audit,
    next_step_of_evaluation,
    next_step_of_run,
)
from catwise.reporting.run import read_run, today, write_run
from catwise.testing import make_task
from report_case import make_document


@cache
def task() -> Any:
    return make_task(seed=0)


@cache
def tuned() -> Any:
    return catwise.tune(task().head, task().train.pair, task().valid.pair, test=task().test.pair)


def parse(page: str) -> ET.Element:
    return ET.fromstring(page.split("\n", 1)[1])  # noqa: S314  # our own text


def text_of(root: ET.Element) -> str:
    return " ".join("".join(root.itertext()).split())


def test_page_of_an_evaluation() -> None:
    """The mean with its interval, every category with its score, all metrics, curves."""
    found = catwise.evaluate(tuned().head, task().test.pair, curves=True)
    root = parse(render_report(found.page_document()))
    first = root.find(".//section[@class='headline ']")
    assert first is not None
    mean = found.means["average_precision"]["macro"]
    assert first.findtext("p[@class='scores']") == f"{mean:.4f}"
    low, high = found.intervals["average_precision"].macro
    assert f"95% interval {low:.4f} to {high:.4f}" in text_of(first)
    rows = root.findall(".//table[@class='categories']/tbody/tr")
    cells = [row.findall("td")[0].text for row in rows]
    values = sorted(found.values["average_precision"].tolist(), reverse=True)
    assert cells == [f"{value:.4f}" for value in values]
    assert len(root.findall(".//details[@class='part']")) == len(found.categories)
    assert len(root.findall(".//details[@id='c-0']//svg")) == 4


def test_page_of_an_evaluation_without_curves() -> None:
    """Where none were kept the page has none, and says all else."""
    found = catwise.evaluate(tuned().head, task().test.pair, metrics=["auroc"])
    root = parse(render_report(found.page_document()))
    assert root.find(".//details[@id='c-0']//svg") is None
    assert "How scores order images" not in text_of(root)


def test_page_of_a_comparison() -> None:
    """The verdict of the first metric, counts, and each category's difference."""
    found = catwise.compare_heads(task().head, tuned().head, task().test.pair, curves=True)
    root = parse(render_report(found.page_document()))
    first = root.find(".//section[@class='headline helped']")
    assert first is not None
    assert first.findtext("p[@class='verdict']") == found.sentence()
    counts = ["".join(one.itertext()) for one in first.findall("ul/li")]
    assert counts[0] == f"{found.first.counts()['better']} better"
    assert "Use the second head" in text_of(first)


def test_page_of_an_audit() -> None:
    """How many categories can be used, and what is known of each, with bars."""
    labels = PartialLabels([[1, -1, 0], [0, -1, 0], [1, 0, -1]], categories=["a", "b", "c"])
    document = {
        "kind": "audit",
        **audit_labels(labels, few=1).to_dict(),
        "findings": find_suspicious(labels),
        "unknown_together": unknown_together(labels),
    }
    root = parse(render_report(document))
    verdict = root.findtext(".//p[@class='verdict']")
    assert str(verdict).startswith("1 of 3 categories can be fine-tuned and scored")
    assert root.findtext(".//p[@class='scores']") == "66.7%"
    step = text_of(root.find(".//p[@class='next']"))  # type: ignore[arg-type]
    assert step == (
        "Next step: Label positives and negatives of b, c. Everything else can be fine-tuned now "
        "(catwise tune)."
    )
    rows = root.findall(".//table[@class='categories']/tbody/tr")
    assert [row.get("data-group") for row in rows] == ["enough", "not usable", "not usable"]


def test_page_of_a_calibration() -> None:
    """On test rows before and after, what probabilities mean, and each category's map."""
    test = task().test
    logits = (3 * tuned().head.logits(test.features.values), test.labels)
    source = 3 * tuned().folds.logits
    found = catwise.calibrate(source, task().valid.labels, test=logits)
    root = parse(render_report(found.page_document()))
    first = root.find(".//section[@class='headline helped']")
    assert first is not None
    assert first.findtext("p[@class='verdict']") == found.test["log_loss"].sentence()  # type: ignore[index]
    assert "calibrated probabilities" in text_of(first)
    text = text_of(root)
    assert "What probabilities mean" in text
    assert "How scores order images" not in text
    rows = root.findall(".//section[@aria-labelledby='maps']//tbody/tr")
    assert len(rows) == len(found.categories)
    one = found.categories[0]
    assert rows[0].findall("td")[1].text == f"{one.map.scale:.4f}"
    assert len(root.findall(".//details[@id='c-0']//svg")) == 4
    bare = text_of(parse(render_report(catwise.calibrate(*logits).page_document())))
    assert "No test rows say whether that helped" in bare
    assert "test rows), before you use them" in bare


def test_page_of_an_ensemble() -> None:
    """Against its best member, and every member with its weight; without test rows it says so."""
    labels, test = task().valid.labels, task().test
    new, old = tuned().head, task().head
    valid = task().valid.features.values
    members = {"old": old.logits(valid), "new": new.logits(valid)}
    rows = {"old": old.logits(test.features.values), "new": new.logits(test.features.values)}
    found = catwise.ensemble(members, labels, test=(rows, test.labels))
    document = found.page_document()
    assert document["best"] == "new"
    root = parse(render_report(document))
    verdict = str(root.findtext(".//p[@class='verdict']"))
    against = next(iter(found.against["new"].values()))  # type: ignore[index]
    assert verdict == f"{against.sentence()} Compared with its best member, new."
    cells = root.findall(".//section[@aria-labelledby='members']//tbody/tr/th")
    assert [one.text for one in cells[:2]] == ["old", "new"]
    bare = text_of(parse(render_report(catwise.ensemble(members, labels).page_document())))
    assert "No test rows say whether it is better" in bare


def test_page_of_runs_side_by_side() -> None:
    """The first difference, means of every run, and each category in each run."""
    other = catwise.tune(task().head, task().train.pair, task().valid.pair, metric="auroc")
    runs = {"tuned": tuned(), "by AUROC": other}
    found = catwise.compare_runs(runs, task().test.pair, force=True)
    root = parse(render_report(found.page_document()))
    assert root.findtext(".//p[@class='verdict']") == found.sentences()[0]
    names = root.findall(".//section[@aria-labelledby='runs-auroc']//tbody/tr/th")
    assert [one.text for one in names] == list(runs)
    rows = root.findall(".//table[@class='categories']/tbody/tr")
    scores = {
        (one["run"], one["category"]): one["score"]
        for one in found.rows
        if one["metric"] == "average_precision" and one["category"] is not None
    }
    assert len(rows) == len(scores) / 2
    for row in rows:
        name = "".join(row.find("th").itertext())  # type: ignore[union-attr]
        shown = [one.text for one in row.findall("td")[:2]]
        assert shown == [f"{scores[run, name]:.4f}" for run in runs]
    assert len(root.findall(".//details[@class='part']")) == len(rows)


def test_a_large_page_tells_how_far_it_is() -> None:
    """Parts made and parts written; never beyond the total, and at its end at last."""
    told: list[Any] = []
    document = make_document(600, metrics=("average_precision",))
    page = render_report(document, progress=told.append)
    assert page == render_report(document)
    assert {one.stage for one in told} == {"report"}
    assert [one.done for one in told] == list(range(100, 1300, 100))
    assert {one.total for one in told} == {1200}


def test_notebooks_show_the_verdict_and_a_chart() -> None:
    """Verdict, counts, next step and the forest; no script."""
    page = tuned()._repr_html_()
    assert tuned().test.sentence() in page
    assert "Next step: " in page
    assert page.count("<svg") == 1
    assert "<script" not in page
    one = catwise.evaluate(tuned().head, task().test.pair)
    assert "Mean average precision" in one._repr_html_()
    assert (
        "<svg" in catwise.compare_heads(task().head, tuned().head, task().test.pair)._repr_html_()
    )


def test_results_write_their_report(tmp_path: Path) -> None:
    """Every result has `report`, which gives back where it is."""
    found = catwise.evaluate(tuned().head, task().test.pair, curves=True)
    assert found.report(tmp_path / "a.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    assert tuned().report(tmp_path / "b.html").is_file()


def test_a_run_is_read_back_for_its_page(tmp_path: Path) -> None:
    """The page of a folder is that of the result: history, curves and date are in its files."""
    write_run(tuned(), tmp_path / "run", inputs={"head": {"path": "m.pt"}})
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert render_report(read_run(tmp_path / "run")) == page
    assert page == render_report(page_document(tuned(), inputs={"head": {"path": "m.pt"}}))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["date"] == today()
    about = parse(page).find(".//dl[@class='about']")
    assert [one.text for one in about.iter("dd")] == ["m.pt", today()]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"model": {"name": "resnet50"}, "labels": {"dataset": "chexpert"}},
         ["resnet50", "chexpert"]),
        ({"checkpoint": "network.pt", "labels": "labels.csv"}, ["network.pt", "labels.csv"]),
        ({"candidates": {"base": {}, "tuned": {}}, "valid labels": {"path": "v.csv"}},
         ["base, tuned", "v.csv"]),
        ({}, []),
    ],
)  # fmt: skip
def test_model_and_data_are_named(inputs: dict[str, Any], expected: list[str]) -> None:
    """However the command that made the run calls them."""
    root = parse(render_report({"summary": {}, "records": [], "inputs": inputs}))
    about = root.find(".//dl[@class='about']")
    assert about is not None
    assert [one.text for one in about.iter("dd")] == expected


def test_the_date_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """SOURCE_DATE_EPOCH, as for other builds; else the day in UTC."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    assert today() == "1970-01-01"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "soon")
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", today())


def document(verdict: str, **more: Any) -> dict[str, Any]:
    """A run with a category that was replaced, judged by test rows."""
    evaluation = {"verdict": verdict, "sentence": "…", "categories": []}
    record = {"category": "rare", "status": "replaced", "n_positive_valid": 3}
    return {"summary": {}, "records": [record], "evaluation": evaluation, **more}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (document("helped"), "Write the new head into your checkpoint"),
        (document("helped", checkpoint={"name": "new.pt"}), "Use the new checkpoint, new.pt"),
        (document("harmed"), "Keep the original model: the new head is worse. More labels would"),
        (document("no_difference"), "Keep the original model, or look at single categories"),
        (document("not_judged"), "Label more test images"),
        (document("helped", evaluation=None), "Try the new head on labelled images that took no"),
        ({"records": [{"category": "a", "status": "kept"}]}, "Nothing changed: no category had"),
    ],
)  # fmt: skip
def test_next_step_of_a_run(given: dict[str, Any], expected: str) -> None:
    """What follows from the verdict; never to use what was not shown to help."""
    step = next_step_of_run(given)
    assert step.startswith(expected)
    assert ("first positives of rare" in step) == ("More labels" in step)


def test_next_step_of_others() -> None:
    """Rows that fitted a head judge nothing; labels that were not read are said first."""
    assert "took no part in fitting" in next_step_of_evaluation({"in_sample": True})
    assert next_step_of_evaluation({"verdict": "harmed"}).startswith("Keep the first head")
    assert "catwise tune" in next_step_of_evaluation({"categories": []})
    rows = [{"category": "a", "reason": "no_known_label"}]
    assert next_step_of_audit({"categories": rows}).startswith("Check how the labels were read")


def test_many_categories_are_embedded_as_records() -> None:
    """Beyond 500 their parts are JSON, in pieces; every category is in one of them, once."""
    names = [f"</script>{c}" for c in range(501)]
    found = make_document(501, metrics=("average_precision",), names=names)
    page = render_report(found)
    root = parse(page)
    scripts = {one.get("id"): one.text for one in root.iter("script") if one.get("type")}
    rows = json.loads(str(scripts.pop("rows")))
    assert sorted(row[0] for row in rows) == list(range(501))
    parts = [part for text in scripts.values() for part in json.loads(str(text))]
    assert [part["name"] for part in parts] == names
    assert len(scripts) == 6
    assert root.find(".//details[@class='part']") is None
    assert page.count("</script>") == page.count("<script")


def test_pages_are_the_same_bytes() -> None:
    """The same document gives the same page."""
    found = make_document(12)
    assert render_report(found) == render_report(json.loads(json.dumps(found)))
