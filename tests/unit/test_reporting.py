"""Reports: CSV, JSON, the page, the folder."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from catwise._text import clean
from catwise.errors import OutputError
from catwise.heads import Head, load_head
from catwise.reporting import (
    RECORD_COLUMNS,
    RUN_FILES,
    check_output,
    differences_table,
    json_ready,
    records_csv,
    records_table,
    render_report,
    rows_csv,
    run_document,
    summary_lines,
    write_run,
)

NEXT = (
    "Next step: First look at what became worse: down. Then: write the new head into your "
    "checkpoint (catwise apply)."
)
NASTY = "=HYPERLINK(\"x\")<script>alert('1')</script>&\x1b[31m{{ 7*7 }}"


def record(category: str, index: int, status: str = "replaced", **more: Any) -> dict[str, Any]:
    scored = status != "skipped"
    return {
        "category": category,
        "index": index,
        "status": status,
        "reason": "improved" if status == "replaced" else "no_known_positive",
        "explanation": f"{category} was {status}.",
        "candidate": "bce",
        "metric": "average_precision",
        "before": 0.5 if scored else None,
        "after": 0.625 if scored else None,
        "gain": 0.125 if scored else None,
        "gain_low": 0.0625 if scored else None,
        "gain_high": 0.1875 if scored else float("nan"),
        "selected_on": 0.75 if scored else None,
        "scored_on": "cross-fitted validation labels" if scored else "",
        "n_positive_train": 10,
        "n_negative_train": 1000,
        "n_positive_valid": 5,
        "n_negative_valid": 50,
        "gap_auroc": 0.03125,
        "gap_average_precision": None,
        **more,
    }


def result(names: tuple[str, ...] = ("cat", "dog"), **more: Any) -> Any:
    head = Head(np.eye(len(names), dtype=np.float32), categories=names)
    values: dict[str, Any] = {
        "head": head,
        "base": head,
        "records": [
            record(name, i, "replaced" if i == 0 else "skipped") for i, name in enumerate(names)
        ],
        "config": {"seed": 0, "penalty": {"grid": [0.1, 1.0]}, "logits": None},
        "summary": {
            "metric": "average_precision",
            "n_categories": len(names),
            "n_scored": 1,
            "before": 0.5,
            "after": 0.625,
            "gain": 0.125,
            "gain_low": 0.0625,
            "gain_high": 0.1875,
            "selected_on": 0.75,
            "seconds": 1.5,
        },
        "gap": {
            "auroc": {
                "gap": 0.03125,
                "low": 0.015625,
                "high": float("nan"),
                "training": 0.875,
                "fresh": 0.84375,
                "n_categories": 2,
            },
            "level": 0.9,
            "advice": "Fresh labels are worth more.",
        },
        "history": [{"pass": 1, "loss": float("nan")}],
        "folds": None,
        "notes": ["train: rows were joined by id."],
    }
    return SimpleNamespace(**(values | more))


def parse(page: str) -> ET.Element:
    """The page as XML; whatever is not closed or escaped fails here."""
    assert page.startswith("<!DOCTYPE html>\n")
    return ET.fromstring(page.split("\n", 1)[1])  # noqa: S314  # our own text


def test_csv_has_every_column_and_all_digits() -> None:
    """The columns stand in the documented order and numbers read back exactly."""
    rows = list(csv.DictReader(io.StringIO(records_csv([record("cat", 0) | {"gain": 0.1}]))))
    assert tuple(rows[0]) == RECORD_COLUMNS
    assert float(rows[0]["gain"]) == 0.1
    assert rows[0]["gap_average_precision"] == ""


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\n", " =", "＝"])
def test_csv_defuses_formulas(start: str) -> None:
    """A name that a spreadsheet would run gets an apostrophe; numbers stay numbers."""
    text = rows_csv([{"category": start + "1", "x": -0.5}])
    row = next(iter(csv.DictReader(io.StringIO(text, newline=""))))
    assert row["category"] == "'" + start + "1"
    assert row["x"] == "-0.5"


def test_json_ready_leaves_only_json() -> None:
    """NaN, infinities, numpy, tuples and paths become what JSON has."""
    value = {
        "a": np.float64("nan"),
        "b": (np.int64(3), np.array([1.5, np.inf])),
        2: Path("x"),
        "d": np.bool_(1),
    }
    assert json_ready(value) == {"a": None, "b": [3, [1.5, None]], "2": "x", "d": True}


def test_page_is_well_formed_and_accessible() -> None:
    """One language, one h1, unique ids, captions, scopes, headings without a jump."""
    root = parse(render_report(run_document(result())))
    assert root.get("lang") == "en"
    assert root.findtext("head/title")
    levels = [int(e.tag[1]) for e in root.iter() if re.fullmatch(r"h[1-6]", e.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    assert {e.get("aria-labelledby") for e in root.iter() if e.get("aria-labelledby")} <= set(ids)
    for table in root.iter("table"):
        assert table.findtext("caption")
        assert all(cell.get("scope") for cell in table.iter("th"))
        columns = len(table.findall("thead/tr/th"))
        assert {len(list(row)) for row in table.findall("tbody/tr")} == {columns}


def test_page_loads_nothing() -> None:
    """No address, no linked file, no handler in an attribute; a policy forbids them."""
    page = render_report(run_document(result()))
    assert "://" not in page
    root = parse(page)
    for element in root.iter():
        assert element.tag not in {"link", "img", "iframe", "object", "embed", "base", "form"}
        for name, value in element.attrib.items():
            assert name not in {"src", "srcset", "style"}
            assert name != "href" or value.startswith("#")
            assert not name.startswith("on")
    assert "url(" not in page
    assert "@import" not in page
    policies = [e.get("content", "") for e in root.iter("meta") if e.get("http-equiv")]
    assert policies[0].startswith("default-src 'none'; style-src 'sha256-")


def test_page_policy_allows_its_own_script() -> None:
    """The hashes in the policy are those of the script and the style as they stand."""
    import base64
    import hashlib

    page = render_report(run_document(result()))
    policy = parse(page).find("head/meta[@http-equiv]").get("content")  # type: ignore[union-attr]
    for tag in ("style", "script"):
        text = page.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_page_escapes_names() -> None:
    """A hostile name is shown, not run, and no template in it is evaluated."""
    page = render_report(run_document(result((NASTY, "</script><b>"))))
    root = parse(page)
    assert len(list(root.iter("script"))) == 1
    assert not list(root.iter("b"))
    assert "{{ 7*7 }}" in page
    names = [cell.text for cell in root.iterfind(".//table[@class='categories']/tbody/tr/th/a")]
    assert names == [clean(NASTY), "</script><b>"]


def test_page_says_what_counts() -> None:
    """Mean before and after, interval, coverage, raw score, reasons, gap, notes, configuration."""
    text = " ".join("".join(parse(render_report(run_document(result()))).itertext()).split())
    for part in (
        "Validation only: on cross-fitted validation labels, which chose, mean average precision",
        "over 1 of 2 categories went from 0.5000 to 0.6250 (+0.1250, 95% interval +0.0625 to ",
        "+0.1875, corrected for the choosing). Test rows, which choose nothing, would judge.",
        "0.5000 → 0.6250",
        "Mean average precision on validation rows, corrected for the choosing: +0.1250",
        "0.7500",
        "Could not be judged (1 category)",
        "dog was skipped.",
        "Fresh labels are worth more.",
        "90% interval",
        "0.8750 0.8438 +0.0312",
        "Next step: Try the new head on labelled images that took no part",
        "0 worse 0 no difference shown 1 not judged",
        "train: rows were joined by id.",
        "penalty · grid",
    ):
        assert part in text, part


def judged(**more: Any) -> Any:
    """A run with test rows on which one category gained, one lost, one has too few positives."""
    rows = [
        ("up", 0.5, 0.75, 0.125, 0.375, "better", None, 40),
        ("down", 0.5, 0.375, -0.25, -0.0625, "worse", None, 30),
        ("few", 0.25, 0.5, None, None, "not_judged", "few_positives", 2),
        ("same", 0.5, 0.5, None, None, "no_difference", "unchanged", 20),
    ]
    names = ("category", "before", "after", "difference_low", "difference_high", "outcome",
             "reason", "n_positive")  # fmt: skip
    categories = [
        {**dict(zip(names, row, strict=True)), "difference": row[2] - row[1], "n_negative": 60}
        for row in rows
    ]
    mean = {"before": 0.4375, "after": 0.53125, "difference": 0.09375, "difference_low": 0.0625,
            "difference_high": 0.125, "n_scored": 4}  # fmt: skip
    evaluation = {
        "metric": "average_precision",
        "verdict": "helped",
        "sentence": "Helped: <on> 100 test rows.",
        **mean,
        "level": 0.95,
        "n_rows": 100,
        "n_categories": 4,
        "means": {"average_precision": mean},
        "categories": categories,
    }
    records = [
        record(row["category"], i, test_outcome=row["outcome"]) for i, row in enumerate(categories)
    ]
    return result(records=records, evaluation=evaluation, **more)


def table_rows(root: ET.Element) -> list[list[str]]:
    """The texts of the table of categories."""
    rows = root.findall(".//table[@class='categories']/tbody/tr")
    return [["".join(cell.itertext()) for cell in row] for row in rows]


def test_page_is_headed_by_the_test_rows() -> None:
    """The verdict on test rows first, what chose beside it; each category, the best first."""
    root = parse(render_report(run_document(judged())))
    first = root.find(".//section")
    assert first is not None
    assert first.get("class") == "headline helped"
    texts = [" ".join("".join(p.itertext()).split()) for p in first.findall("p")]
    assert texts == [
        "Helped: <on> 100 test rows.",
        "0.4375 → 0.5312",
        "Mean average precision on 100 test rows: +0.0938 (95% interval +0.0625 to +0.1250)",
        NEXT,
    ]
    counts = ["".join(one.itertext()) for one in first.findall("ul/li")]
    assert counts == ["1 better", "1 worse", "1 no difference shown", "1 not judged"]
    beside = root.findtext("body/main/p")
    assert str(beside).startswith("On cross-fitted validation labels, which chose: mean ")
    cells = table_rows(root)
    assert [row[0] for row in cells] == ["up", "few", "same", "down"]
    assert cells[1][4:] == ["–", "2", "replaced", "few positives"]
    assert cells[3][3:5] == ["−0.1250", "−0.2500 to −0.0625"]


def test_green_means_gained() -> None:
    """Of replaced categories only the one whose gain is shown is green, not a loss or no proof."""
    root = parse(render_report(run_document(judged())))
    found = {}
    for row in root.findall(".//table[@class='categories']/tbody/tr"):
        found["".join(row[0].itertext())] = str(row.get("class")), row.get("data-group")
    assert found == {
        "up": ("better", "better"),
        "down": ("worse", "worse"),
        "few": ("", "not judged"),
        "same": ("", "no difference shown"),
    }
    table = differences_table(run_document(judged())["evaluation"])
    assert table.grid.styles == ["green", "", "", "red"]
    records = [
        record("up", 0),
        record("down", 1, gain=-0.125, gain_low=-0.25, gain_high=-0.0625),
        record("unclear", 2, gain_low=-0.0625),
        record("loss", 3, metric="log_loss"),
        record("kept", 4, "kept", gain=0.0, gain_low=None, gain_high=None,
               interval_reason="unchanged"),
    ]  # fmt: skip
    table = records_table(records)
    assert table.grid.cells[4][4:6] == ["0.0000", "unchanged"]
    assert table.grid.styles == ["green", "red", "", "red", ""]


def test_test_tables_fit_the_terminal() -> None:
    """In 100 columns every number is whole; of a long name the rest is on further lines."""
    from rich.console import Console

    document = run_document(judged())["evaluation"]
    for row in document["categories"]:
        row |= {"category": "a long name of a category", "n_positive": 1_234_567}
    stream = io.StringIO()
    Console(width=100, file=stream).print(differences_table(document))
    drawn = stream.getvalue()
    assert "…" not in drawn
    assert max(map(len, drawn.splitlines())) <= 100
    assert drawn.count("1,234,567") == len(document["categories"])
    short = differences_table(document, limit=2)
    assert len(short.grid.cells) == 2
    assert "2 further categories" in " ".join(short.grid.lines)


def test_page_shows_several_heads() -> None:
    """Heads that were compared on the same rows stand in one table."""
    made = judged()
    made.evaluation["heads"] = [
        {"name": "before", "score": 0.5, "gain": None},
        {"name": "<ceiling>", "score": 0.75, "gain": 0.25, "gain_low": 0.125, "gain_high": 0.375},
    ]
    text = " ".join("".join(parse(render_report(run_document(made))).itertext()).split())
    assert "before 0.5000 – – <ceiling> 0.7500 +0.2500 +0.1250 to +0.3750" in text


def test_words_say_how_a_change_is_shown() -> None:
    """Test rows at a false discovery rate; without them by the interval alone."""
    for made, expected in ((judged(), True), (result(), False)):
        words = parse(render_report(run_document(made))).find(".//details[@class='words']")
        assert ("false discovery rate" in "".join(words.itertext())) is expected  # type: ignore[union-attr]


def test_page_without_any_score() -> None:
    """A run in which nothing could be scored says so."""
    empty = result(summary={"metric": "auroc", "before": None, "after": None}, gap=None, notes=[])
    page = render_report(run_document(empty))
    parse(page)
    assert "no category could be scored" in page
    assert "Memorisation gap" not in page


def facts_of(root: ET.Element, number: int) -> dict[str, str]:
    """The numbers in a category's own part."""
    part = root.find(f".//details[@id='c-{number}']/dl")
    assert part is not None
    texts = [str(one.text) for one in part]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def test_page_has_all_that_is_known_of_a_category() -> None:
    """Scores, what was done and why, known labels; candidates' scores, named as not corrected."""
    more = {"candidates": {"base": 0.5, "b": None}, "n_positive_valid": None}
    root = parse(render_report(run_document(result(records=[record("cat", 0, **more)]))))
    found = facts_of(root, 0)
    assert found["average precision on cross-fitted validation labels"] == (
        "0.5000 → 0.6250 (+0.1250, 95% interval +0.0625 to +0.1875)"
    )
    assert found["known in training"] == "10 positives, 1,000 negatives"
    assert found["base, not corrected for the choosing"] == "0.5000"
    assert found["b, not corrected for the choosing"] == "–"
    assert found["why"] == "cat was replaced."
    assert "known in validation" not in found
    assert "None" not in "".join(root.itertext())


def test_raw_scores_are_called_so() -> None:
    """Where nothing is corrected the raw score has a column of its own, and no gain is claimed."""
    raw = record("cat", 0, after=None, gain=None, gain_low=None, gain_high=None)
    root = parse(render_report(run_document(result(records=[raw]))))
    heads = [cell.text for cell in root.iterfind(".//table[@class='categories']/thead/tr/th")]
    assert "after, not corrected" in heads
    row = dict(zip(heads, table_rows(root)[0], strict=True))
    assert (row["after"], row["after, not corrected"], row["change"]) == ("–", "0.7500", "–")


def test_page_without_an_honest_score() -> None:
    """Where only the data that chose gave a score, no gain is claimed."""
    summary = result().summary | {"after": None, "gain": None}
    raw = [record("cat", 0, after=None, gain=None)]
    page = render_report(run_document(result(summary=summary, records=raw)))
    assert "→" not in "".join(parse(page).find("body/main/section").itertext())  # type: ignore[union-attr]
    assert "from 0.5000 to 0.7500, which is not corrected for the choosing and too high" in page
    page = render_report(run_document(result(summary=summary | {"selected_on": None})))
    assert "was 0.5000 before, and after is not known (?). Test rows" in page


def test_run_is_written_whole(tmp_path: Path) -> None:
    """Every file is there, reads back, and nothing else is left."""
    folder = tmp_path / "runs" / "a"
    written = write_run(result(), folder, inputs={"features": "f.npz"})
    assert sorted(p.name for p in folder.iterdir()) == sorted(written)
    assert set(written) == set(RUN_FILES) - {
        "folds.safetensors",
        "shared.safetensors",
        "evaluation.json",
        "curves.json",
    }
    assert [p.name for p in folder.parent.iterdir()] == ["a"]
    assert load_head(folder / "head.safetensors").categories == ("cat", "dog")
    assert json.loads((folder / "records.json").read_text())[0]["category"] == "cat"
    assert json.loads((folder / "config.json").read_text())["inputs"] == {"features": "f.npz"}
    assert json.loads((folder / "summary.json").read_text())["summary"]["gain"] == 0.125
    assert json.loads((folder / "history.json").read_text()) == [{"pass": 1, "loss": None}]


def test_run_is_not_replaced_unasked(tmp_path: Path) -> None:
    """An earlier run stays unless overwriting is asked for; other files stay in any case."""
    folder = tmp_path / "a"
    write_run(result(), folder)
    with pytest.raises(OutputError, match="not empty"):
        write_run(result(), folder)
    write_run(result(("x", "y")), folder, overwrite=True)
    assert load_head(folder / "head.safetensors").categories == ("x", "y")
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        write_run(result(), folder, overwrite=True)
    assert (folder / "thesis.tex").read_text() == "mine"


def test_output_is_checked_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the way and a folder without permission are found at once, and nothing is made."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        check_output(tmp_path / "file")
    with pytest.raises(OutputError, match="is a file"):
        check_output(tmp_path / "file" / "run")
    assert check_output(tmp_path / "new" / "run") == tmp_path / "new" / "run"
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="no permission"):
        check_output(tmp_path / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full the run's own path is named and no half of it stays."""

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="free some space") as caught:
        write_run(result(), tmp_path / "a")
    assert str(tmp_path / "a" / "head.safetensors") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_long_tables_show_what_matters() -> None:
    """Of many categories the ones that changed most are shown and the rest is counted."""
    records = [record(f"c{i}", i) | {"gain": g} for i, g in enumerate([0.0, -0.5, 0.1, 0.4])]
    table = records_table(records, limit=2)
    assert [row[0] for row in table.grid.cells] == ["c1", "c3"]
    assert "2 further categories" in " ".join(table.grid.lines)


def test_lines_where_nothing_was_replaced() -> None:
    """The head is the original's, and no gain or loss is told of it."""
    told = {"metric": "auroc", "before": 0.75, "after": 0.75, "gain": 0.0, "n_scored": 2,
            "n_categories": 2}  # fmt: skip
    kept = [record(name, i, "kept", gain=0.0) for i, name in enumerate(("cat", "dog"))]
    lines = summary_lines({"summary": told, "records": kept})
    assert lines[0].startswith(
        "Nothing replaced: mean AUROC over 2 of 2 categories stays 0.7500 on "
    )
    assert lines[1] == "Rows of the head: 0 replaced, 2 kept, 0 skipped."
    both = [kept[0], record("dog", 1, "replaced")]
    assert summary_lines({"summary": told, "records": both})[0].startswith("Validation only: ")


def test_among_many_an_interval_without_zero_may_show_nothing() -> None:
    """That is said under the table, where it is so."""
    document = run_document(judged())["evaluation"]
    assert differences_table(document).grid.lines == []
    document["categories"][0]["outcome"] = "no_difference"
    assert "false discovery rate of 5%" in " ".join(differences_table(document).grid.lines)
    assert len(differences_table(document, limit=1).grid.lines) == 2
