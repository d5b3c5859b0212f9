"""The report in a real browser: what is seen without scrolling, that it fits, sorts and filters."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import catwise
from catwise._configs import PaperConfig
from catwise.labels import audit_labels, find_suspicious, unknown_together
from catwise.reporting import render_report
from catwise.testing import make_task
from report_case import make_document

NASTY = (
    "=HYPERLINK(\"x\")<script>alert('1')</script>&\x1b[31m",
    "</script><b>",
    "a" * 200,
    "<img src=x onerror=alert(1)>",
    "\u202eevil",
    "{{ 7*7 }}",
    '"><svg onload=alert(1)>',
)
SIZES = [(1280, 800), (500, 800)]


@cache
def pages() -> dict[str, str]:
    """A page of every kind, from real runs."""
    task = make_task(seed=0)
    test = task.test.pair
    tuned = catwise.tune(task.head, task.train.pair, task.valid.pair, test=test)
    paper = catwise.tune(
        task.head, task.train.pair, task.valid.pair, preset="paper", methods=["bp_bce", "ga"],
        config=PaperConfig(max_steps=30, patience=30),
    )  # fmt: skip
    one = catwise.evaluate(tuned.head, test, curves=True)
    two = catwise.compare_heads(task.head, tuned.head, test, curves=True)
    limits = catwise.threshold(tuned.folds, task.valid.labels, "f1", test=(
        tuned.head.logits(task.test.features.values), task.test.labels))  # fmt: skip
    labels = task.train.labels
    audit = {
        "kind": "audit",
        **audit_labels(labels).to_dict(),
        "findings": find_suspicious(labels),
        "unknown_together": unknown_together(labels),
    }
    run = tuned.page_document()
    features = task.test.features.values
    logits = {"old": task.head.logits(features), "new": tuned.head.logits(features)}
    valid = task.valid.features.values
    both = {"old": task.head.logits(valid), "new": tuned.head.logits(valid)}
    mean = catwise.ensemble(both, task.valid.labels, test=(logits, task.test.labels))
    maps = catwise.calibrate(
        3 * tuned.folds.logits, task.valid.labels, test=(3 * logits["new"], task.test.labels)
    )
    runs = catwise.compare_runs({"default": tuned, "published": paper}, test)
    return {
        "calibrate": render_report(maps.page_document()),
        "ensemble": render_report(mean.page_document()),
        "runs": render_report(runs.page_document()),
        "tune": render_report(run),
        "validation": render_report(
            catwise.tune(task.head, task.train.pair, task.valid.pair).page_document()
        ),
        "paper": render_report(paper.page_document()),
        "thresholds": render_report({**run, "thresholds": limits.to_dict()}),
        "evaluate": render_report(one.page_document()),
        "compare": render_report(two.page_document()),
        "audit": render_report(audit),
        "pictures": render_report(with_pictures(run)),
        "many names": render_report(make_document(40, names=[*NASTY, *map(str, range(33))])),
        "hundreds": render_report(
            with_pictures(make_document(520, metrics=("average_precision",)))
        ),
    }


def with_pictures(document: dict[str, Any]) -> dict[str, Any]:
    """The document with small pictures of what moved, but for the last one of each category."""
    image = pytest.importorskip("PIL.Image")
    images, shown = {}, {}
    for one in document["curves"]["categories"]:
        for place, row in enumerate(one["moved"]):
            row["id"] = row["id"] or f"{row['row']}.jpg"
            file = io.BytesIO()
            image.new("RGB", (96, 64), (40 * place, 90, 200)).save(file, format="JPEG")
            data = base64.b64encode(file.getvalue()).decode("ascii")
            images[row["id"]] = f"data:image/jpeg;base64,{data}"
        shown[one["category"]] = [row["id"] for row in one["moved"][:-1]]
    return {**document, "thumbnails": {"images": images, "categories": shown}}


KINDS = (
    "tune", "validation", "paper", "thresholds", "evaluate", "compare", "audit", "pictures",
    "many names", "hundreds", "calibrate", "ensemble", "runs",
)  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=["wide", "narrow"])
@pytest.mark.parametrize("kind", KINDS)
def test_first_screen(look: Any, kind: str, size: tuple[int, int]) -> None:
    """Verdict, before → after with interval, counts and next step are seen without scrolling."""
    window = look(pages()[kind], *size)
    # What chose cannot say what it is worth; of several runs there is no one change.
    without_scores = {"paper", "runs"}
    scores = () if kind in without_scores else (".scores", ".of")
    for name in (".verdict", *scores, ".counts", ".next"):
        box = window.page.locator(f".headline {name}").bounding_box()
        assert box is not None, name
        assert box["y"] >= 0
        assert box["height"] > 10
        assert box["y"] + box["height"] <= size[1], name
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= size[0], name


@pytest.mark.parametrize("size", [*SIZES, (800, 800)], ids=["wide", "narrow", "between"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_wider_than_the_window(look: Any, kind: str, size: tuple[int, int]) -> None:
    """No horizontal scroll bar, with everything unfolded; no table or chart sticks out."""
    window = look(pages()[kind], *size)
    window.unfold()
    assert window.run("document.documentElement.scrollWidth") <= size[0]
    wide = window.run(
        """(width) => Array.from(document.querySelectorAll("main *"))
        .filter((one) => one.getBoundingClientRect().right > width + 0.5)
        .filter((one) => !one.closest("thead, svg"))
        .map((one) => one.outerHTML.slice(0, 80))""",
        size[0],
    )
    assert wide == []


def texts(window: Any, column: int = 1) -> list[str]:
    found: list[str] = window.run(
        "(n) => Array.from(document.querySelectorAll("
        "`table.categories tbody tr > :nth-child(${n})`), (one) => one.textContent)",
        column,
    )
    return found


def test_a_heading_sorts(look: Any) -> None:
    """By number, the largest first and then the smallest; missing numbers last both times."""
    window = look(pages()["many names"])
    button = window.page.locator("table.categories thead button", has_text="positives")
    columns = window.run(
        "Array.from(document.querySelectorAll('table.categories th button'), (b) => b.textContent)"
    )
    place = columns.index("positives") + 1
    for order in (True, False):
        button.click()
        numbers = [int(text.replace(",", "")) for text in texts(window, place)]
        assert numbers == sorted(numbers, reverse=order)
        state = window.page.locator("th[aria-sort]").get_attribute("aria-sort")
        assert state == ("descending" if order else "ascending")
    change = columns.index("change") + 1
    window.page.locator("table.categories thead button", has_text="change").click()
    cells = texts(window, change)
    signs = [float(c.replace("\N{MINUS SIGN}", "-")) for c in cells if c != "–"]
    assert signs == sorted(signs, reverse=True)
    assert cells[len(signs) :] == ["–"] * (len(cells) - len(signs))


def test_headings_are_reached_by_keyboard(look: Any) -> None:
    """A heading has focus by Tab and sorts by Enter."""
    window = look(pages()["tune"])
    window.page.locator("table.categories thead button").first.focus()
    window.page.keyboard.press("Enter")
    names = texts(window)
    assert names == sorted(names)
    window.page.keyboard.press("Tab")
    assert window.run("document.activeElement.textContent") == "before"


def test_rows_are_filtered(look: Any) -> None:
    """By a part of the name in any case, and by what is shown; how many is said."""
    window = look(pages()["many names"])
    window.page.locator("#filter").fill("SCRIPT")
    assert len(texts(window)) == 2
    assert window.page.locator("#count").text_content() == "2 of 40 categories"
    window.page.locator("#filter").fill("")
    window.page.locator("#group").select_option("better")
    shown = window.run(
        "Array.from(document.querySelectorAll('table.categories tbody tr'), (r) => r.className)"
    )
    counted = window.page.locator(".counts li").first.text_content()
    assert set(shown) == {"better"}
    assert counted == f"{len(shown)} better"


def test_names_lead_to_their_category(look: Any) -> None:
    """A link opens the part and brings it into view; a second time too."""
    window = look(pages()["tune"])
    link = window.page.locator("table.categories tbody a").nth(2)
    name = link.text_content()
    for _ in range(2):
        link.click()
        part = window.page.locator("details.part[open]")
        assert part.locator("strong").text_content() == name
        assert 0 <= part.bounding_box()["y"] < 800
        assert part.locator("svg").count() == 4
        window.run("document.querySelector('details.part[open]').open = false")
        window.run("scrollTo(0, 0)")


def test_hostile_names_are_texts(look: Any) -> None:
    """Names from outside are shown, and none of them becomes an element or runs."""
    window = look(pages()["many names"])
    window.unfold()
    assert (
        window.run("document.querySelectorAll('b, img, script:not([type]) ~ script').length") == 0
    )
    assert window.run("document.querySelectorAll('svg [onload]').length") == 0
    names = texts(window)
    assert "</script><b>" in names
    assert "{{ 7*7 }}" in names
    assert "<img src=x onerror=alert(1)>" in names


def test_hundreds_of_categories_are_drawn_on_demand(look: Any) -> None:
    """The table holds 100 rows and more when asked; a part is drawn from its record."""
    window = look(pages()["hundreds"])
    assert len(texts(window)) == 100
    window.page.locator("#more").click()
    assert len(texts(window)) == 200
    window.run("dispatchEvent(new Event('beforeprint'))")
    assert len(texts(window)) == 520
    window.run("dispatchEvent(new Event('afterprint'))")
    assert len(texts(window)) == 100
    assert window.page.locator("details.part").count() == 0
    window.page.locator("#filter").fill("category 517")
    window.page.locator("table.categories tbody a").click()
    part = window.page.locator("details.part[open]")
    assert part.locator("strong").text_content() == "category 517"
    assert part.locator("svg path").count() > 3
    assert part.locator("dd").count() > 5


def test_images_that_moved_are_shown(look: Any) -> None:
    """With a text each, from the page itself; in pages of hundreds of categories when asked."""
    window = look(pages()["pictures"])
    window.unfold()
    part = window.page.locator("details.part").first
    count = part.locator("ul.pictures li").count()
    assert count > 2
    assert part.locator("ul.pictures img").count() == count - 1
    window = look(pages()["hundreds"])
    window.page.goto(window.page.url + "#c-3")
    part = window.page.locator("details.part[open]")
    image = part.locator("ul.pictures img").first
    assert "known " in image.get_attribute("alt")
    assert "→" in image.get_attribute("alt")
    window.run("Promise.all(Array.from(document.images, (one) => one.decode()))")
    assert window.run("document.images[0].naturalWidth") == 96
    assert window.run("document.images.length") == 2
    window.requests[:] = window.requests[:1]


def test_drawn_on_demand_is_what_is_drawn_beforehand(look: Any) -> None:
    """The page's script draws the same charts as its maker: every mark at the same place."""
    document = make_document(520, metrics=("average_precision",))
    few = {
        **document,
        "records": document["records"][:3],
        "curves": {"rows": "test", "categories": document["curves"]["categories"][:3]},
        "evaluation": {**document["evaluation"],
                       "categories": document["evaluation"]["categories"][:3]},
    }  # fmt: skip
    script = """(id) => Array.from(document.getElementById(id).querySelectorAll("svg"), (one) =>
        Array.from(one.querySelectorAll("*")).flatMap((mark) => mark.tagName === "use"
        ? Array.from(document.querySelector(mark.getAttribute("href")).children) : [mark])
        .map((mark) => mark.tagName + Array.from(mark.attributes, (a) => `${a.name}=${a.value}`)
        .sort() + mark.textContent))"""
    before = look(render_report(few)).run(script, "c-1")
    window = look(render_report(document))
    window.page.goto(window.page.url + "#c-1")
    assert window.run(script, "c-1") == before
    assert len(before) == 4
    window.requests.clear()
    window.requests.append("the page")


def test_everything_is_printed(look: Any, tmp_path: Path) -> None:
    """What is folded is in the print, and is folded again afterwards."""
    window = look(pages()["tune"])
    path = tmp_path / "page.pdf"
    window.page.pdf(path=path, format="A4", prefer_css_page_size=True)
    if (program := shutil.which("pdftotext")) is None:
        pytest.skip("pdftotext (poppler-utils) reads the print")
    done = subprocess.run([program, str(path), "-"], capture_output=True, text=True, check=True)
    for text in ("What the words mean", "1 is perfect, 0.5 is chance", "known in training",
                 "Where positives and negatives score"):  # fmt: skip
        assert text in " ".join(done.stdout.split())
    assert window.run("document.querySelectorAll('details[open]').length") == 0


def test_pages_of_eighty_categories_are_small() -> None:
    """Without thumbnails under 1.5 MB."""
    assert len(render_report(make_document(80)).encode()) < 1_500_000


@pytest.fixture(scope="session")
def axe_script() -> str:
    """axe-core, as a package for the tests brings it."""
    package = pytest.importorskip("axe_playwright_python")
    return (Path(package.__file__).parent / "axe.min.js").read_text("utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "kind", ["tune", "thresholds", "evaluate", "audit", "paper", "pictures", "calibrate", "runs"]
)
def test_axe_finds_nothing_serious(look: Any, axe_script: str, kind: str, scheme: str) -> None:
    """No serious or critical violation of accessibility rules, with everything unfolded."""
    window = look(pages()[kind], scheme=scheme)
    window.unfold()
    window.run(axe_script + "; undefined")
    found = window.run("axe.run(document, { resultTypes: ['violations'] })")
    assert found["testEngine"]["name"] == "axe-core"
    serious = [
        (one["id"], [node["html"][:120] for node in one["nodes"][:3]])
        for one in found["violations"]
        if one["impact"] in {"serious", "critical"}
    ]
    assert serious == [], json.dumps(serious, indent=1)
