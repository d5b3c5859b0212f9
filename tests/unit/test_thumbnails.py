"""Images that moved most: which they are, and small pictures of them in a page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catwise.labels import PartialLabels
from catwise.metrics.curves import MOVED, draw_curves
from catwise.models import thumbnails
from catwise.models.sources import FolderImages
from catwise.models.thumbnails import make_thumbnails
from catwise.reporting import render_report
from report_case import make_document

Image = pytest.importorskip("PIL.Image")
N = 40


def make_images(folder: Path, n: int = N) -> FolderImages:
    random = np.random.default_rng(0)
    for row in range(n):
        pixels = random.integers(0, 256, (50, 200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{row}.png")
    names = [f"{row}.png" for row in range(n)]
    return FolderImages(folder, names, [f"i{row}" for row in range(n)])


def make_curves(n: int = N, n_categories: int = 3) -> dict[str, Any]:
    random = np.random.default_rng(1)
    before, change = random.normal(size=(2, n, n_categories))
    codes = random.integers(-1, 2, (n, n_categories)).astype(np.int8)
    names = tuple(f"c{c}" for c in range(n_categories))
    labels = PartialLabels(codes, [f"i{row}" for row in range(n)], names)
    found = draw_curves({"before": before, "after": before + change}, labels, names)
    return {"rows": "test", "categories": [one.to_dict() for one in found]}


def test_moved_rows_are_the_known_ones_that_changed_most() -> None:
    """By a plain loop: known rows, the largest change of probability first, with their label."""
    random = np.random.default_rng(2)
    before, after = random.normal(size=(2, N, 2))
    codes = random.integers(-1, 2, (N, 2)).astype(np.int8)
    labels = PartialLabels(codes, [f"i{row}" for row in range(N)], ("a", "b"))
    for c, found in enumerate(draw_curves({"before": before, "after": after}, labels, ("a", "b"))):
        old, new = (1 / (1 + np.exp(-side[:, c])) for side in (before, after))
        known = [row for row in range(N) if codes[row, c] >= 0]
        wanted = sorted(known, key=lambda row: -abs(new[row] - old[row]))[:MOVED]
        assert [one.row for one in found.moved] == wanted
        for one in found.moved:
            assert one.id == f"i{one.row}"
            assert one.positive == (codes[one.row, c] == 1)
            assert one.before == pytest.approx(old[one.row], rel=1e-3)
            assert one.after == pytest.approx(new[one.row], rel=1e-3)


def test_rows_that_stayed_are_not_listed() -> None:
    """A category whose head was kept has none, and one head alone has no such list."""
    logits = np.zeros((4, 1))
    codes = np.array([[1], [0], [1], [0]], dtype=np.int8)
    (same,) = draw_curves({"before": logits, "after": logits}, codes, ("a",))
    assert same.to_dict()["moved"] == []
    (alone,) = draw_curves({"score": logits}, codes, ("a",))
    assert "moved" not in alone.to_dict()


def test_pictures_are_small_jpegs_and_the_same_each_time(tmp_path: Path) -> None:
    """At most 96 pixels, of the same proportions, the same bytes twice."""
    source, curves = make_images(tmp_path), make_curves()
    found = make_thumbnails(curves, source)
    assert found == make_thumbnails(curves, source)
    assert found["problems"] == {}
    for one in found["images"].values():
        start, _, data = one.partition(",")
        assert start == "data:image/jpeg;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert picture.size == (96, 24)
    shown = {(name, one) for name, ids in found["categories"].items() for one in ids}
    listed = {(one["category"], row["id"]) for one in curves["categories"] for row in one["moved"]}
    assert shown == listed


def test_images_that_cannot_be_shown_are_told(tmp_path: Path) -> None:
    """One that is damaged and one that is absent; the page says so in their place."""
    source, document = make_images(tmp_path), make_document(3)
    curves = {**document["curves"], "categories": make_curves()["categories"]}
    moved = curves["categories"][0]["moved"]
    for record, one in zip(document["records"], curves["categories"], strict=True):
        one["category"] = record["category"]
    (tmp_path / f"{moved[0]['row']}.png").write_bytes(b"no image")
    (tmp_path / f"{moved[1]['row']}.png").unlink()
    found = make_thumbnails(curves, source)
    assert set(found["problems"]) == {moved[0]["id"], moved[1]["id"]}
    assert "2 images cannot be shown." in found["notes"]
    page = render_report({**document, "curves": curves, "thumbnails": found})
    assert page.count("the image cannot be decoded") >= 2
    assert "2 images cannot be shown." in page


def test_dicom_is_shown_only_where_someone_asks(tmp_path: Path) -> None:
    """By the name or by the first bytes of a file."""
    curves = make_curves()
    source = make_images(tmp_path)
    row = curves["categories"][0]["moved"][0]["row"]
    path = tmp_path / f"{row}.png"
    picture = path.read_bytes()
    path.write_bytes(bytes(128) + b"DICM")
    found = make_thumbnails(curves, source)
    assert "images" not in found
    assert "medical" in found["notes"][0]
    assert make_thumbnails(curves, source, wanted=True)["images"]
    path.write_bytes(picture)
    assert make_thumbnails(curves, source)["images"]


def test_their_number_and_bytes_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that moved most of every category comes first; how many are left out is said."""
    source, curves = make_images(tmp_path), make_curves()
    monkeypatch.setattr(thumbnails, "MOST", 4)
    found = make_thumbnails(curves, source)
    firsts = {one["category"]: one["moved"][0]["id"] for one in curves["categories"]}
    assert {name: ids[0] for name, ids in found["categories"].items()} == firsts
    assert sum(map(len, found["categories"].values())) == 4
    assert "14 further images would make the page too large." in found["notes"]
    monkeypatch.setattr(thumbnails, "MAX_BYTES", len(next(iter(found["images"].values()))) + 1)
    assert sum(map(len, make_thumbnails(curves, source)["categories"].values())) == 1


def test_a_page_allows_images_only_where_it_has_some(tmp_path: Path) -> None:
    """img-src data: stands in the policy of a page with pictures; each has a text."""
    document = make_document(3)
    assert "img-src" not in render_report(document)
    curves = {"rows": "test", "categories": make_curves()["categories"]}
    for record, one in zip(document["records"], curves["categories"], strict=True):
        one["category"] = record["category"]
    pictures = make_thumbnails(curves, make_images(tmp_path))
    page = render_report({**document, "curves": curves, "thumbnails": pictures})
    assert "; img-src data:" in page
    assert page.count("<img ") == page.count('alt="Image i') == 18


def test_eighty_categories_with_pictures_are_under_four_megabytes(tmp_path: Path) -> None:
    """With as many pictures as there may be, of noise, which takes the most bytes."""
    document = make_document(80)
    for one in document["curves"]["categories"]:
        for row in one["moved"]:
            row["id"] = f"i{row['row']}"
    found = make_thumbnails(document["curves"], make_images(tmp_path, 200))
    page = render_report({**document, "thumbnails": found})
    assert sum(map(len, found["categories"].values())) > 100
    assert len(page.encode()) < 4_000_000
