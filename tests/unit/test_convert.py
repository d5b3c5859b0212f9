"""Conversions for other tools: unknown labels are not there, and nothing is NaN or invented."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from catwise.data import (
    Dataset,
    fiftyone_samples,
    to_cleanlab,
    to_cleanlab_lists,
    to_fiftyone,
    to_huggingface,
)
from catwise.errors import ConfigError, FeatureError, LabelError, MissingExtraError, ShapeError
from catwise.labels import PartialLabels

NAMES = ["cat", "dog", "eel"]
CODES = [[1, 0, -1], [-2, -1, -1], [0, 1, 1], [1, 0, 0]]
KINDS = {"positive": 1, "negative": 0, "uncertain": -2}


def dataset(root: Path = Path("/x"), codes: Any = CODES, **given: Any) -> Dataset:
    n = len(codes)
    ids, groups = [f"i{k}" for k in range(n)], [f"p{k // 2}" for k in range(n)]
    labels = PartialLabels(codes, ids=ids, categories=NAMES, groups=groups)
    told = {"paths": [f"a/{k}.png" for k in range(n)], "splits": ["train", "test"] * (n // 2)}
    return Dataset("mine", root, **{**told, **given}, labels=labels, notes=("A note.",))


# ------------------------------------------------------------------------------------- FiftyOne


def test_samples() -> None:
    """Each image with its file, split, id, group and the names of its categories."""
    samples = list(fiftyone_samples(dataset()))
    assert samples[0] == {
        "filepath": "/x/a/0.png",
        "tags": ["train"],
        "image_id": "i0",
        "group_id": "p0",
        "positive": ["cat"],
        "negative": ["dog"],
        "uncertain": [],
    }
    assert [s["uncertain"] for s in samples] == [[], ["cat"], [], []]
    assert [s["positive"] for s in fiftyone_samples(dataset(), kinds=["positive"])] == [
        ["cat"],
        [],
        ["dog", "eel"],
        ["cat"],
    ]


def test_samples_need_files() -> None:
    """Images without a path are refused, or left out where that is asked for."""
    part = dataset(paths=["", "b.png", "", "d.png"], splits=["", "", "", ""])
    with pytest.raises(FeatureError, match=r"2 of 4 images .*'i0'"):
        fiftyone_samples(part)
    samples = list(fiftyone_samples(part, skip_without_path=True))
    assert [(s["image_id"], s["tags"]) for s in samples] == [("i1", []), ("i3", [])]
    with pytest.raises(ConfigError, match="did you mean 'negative'"):
        fiftyone_samples(part, kinds=["negatives"])


class Made(types.SimpleNamespace):
    """What FiftyOne would have made."""


def stand_in(kept: list[Any]) -> types.ModuleType:
    """FiftyOne's documented classes, without its database."""
    module = types.ModuleType("fiftyone")

    class FiftyOneDataset:
        def __init__(self, name: str | None = None) -> None:
            self.name, self.info, self.classes = name, {}, {}

        def add_samples(self, samples: Any) -> None:
            kept.extend(samples)

    made: Any = module
    made.Dataset = FiftyOneDataset
    for name in ("Sample", "Classifications", "Classification"):
        setattr(made, name, Made)
    return module


def test_to_fiftyone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample for each image; labels are `Classifications` of named `Classification`s."""
    kept: list[Any] = []
    monkeypatch.setitem(sys.modules, "fiftyone", stand_in(kept))
    made = to_fiftyone(dataset(), "mine", kinds=["positive"])
    assert (made.name, made.classes) == ("mine", {"positive": NAMES})
    assert made.info == {"catwise": {"name": "mine", "notes": ["A note."]}}
    assert [sample.filepath for sample in kept] == [f"/x/a/{k}.png" for k in range(4)]
    assert [c.label for c in kept[2].positive.classifications] == ["dog", "eel"]
    assert not hasattr(kept[2], "negative")


def test_samples_of_the_real_fiftyone() -> None:
    """FiftyOne takes the fields as they are; no database is needed for single samples."""
    fo = pytest.importorskip("fiftyone", exc_type=ImportError)
    from catwise.data.convert import _fiftyone_sample

    sample = _fiftyone_sample(fo, next(fiftyone_samples(dataset())), list(KINDS))
    assert sample.filepath == "/x/a/0.png"
    assert [c.label for c in sample["positive"].classifications] == ["cat"]


# ------------------------------------------------------------------------------------- cleanlab


def test_to_cleanlab() -> None:
    """Known rows only, 0 and 1, probabilities of both classes; one-sided categories are out."""
    codes = [[1, 0, -1], [-2, -1, -1], [0, 1, 1], [1, 0, -1]]
    logits = np.array([[800.0, 0, 1], [0, 0, 0], [-800, 2, 0], [np.log(3), 0, 0]])
    tasks = to_cleanlab(PartialLabels(codes, categories=NAMES), logits)
    assert list(tasks) == ["cat", "dog"]  # no eel is known to be absent
    assert tasks["cat"].rows.tolist() == [0, 2, 3]
    assert tasks["cat"].labels.tolist() == [1, 0, 1]
    chances = tasks["cat"].pred_probs
    assert chances is not None
    assert np.allclose(chances, [[0, 1], [1, 0], [0.25, 0.75]])
    assert tasks["cat"].labels.dtype == np.int64
    assert to_cleanlab(PartialLabels(codes))["0"].pred_probs is None


def test_to_cleanlab_refuses() -> None:
    """Logits that do not fit or are NaN; labels of which no row is complete."""
    labels = PartialLabels([[1, -1], [0, 1]])
    with pytest.raises(ShapeError, match="do not fit"):
        to_cleanlab(labels, [[1.0]])
    with pytest.raises(FeatureError, match="nan"):
        to_cleanlab(labels, [[1.0, 2.0], [np.nan, 0.0]])
    with pytest.raises(LabelError, match="no row is completely known"):
        to_cleanlab_lists(PartialLabels([[1, -1], [-2, 1]]))


def test_cleanlab_takes_them() -> None:
    """The one label that was turned round is found by cleanlab, per category and in lists."""
    pytest.importorskip("cleanlab")
    from cleanlab.filter import find_label_issues
    from cleanlab.multilabel_classification.filter import find_label_issues as find_in_lists

    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (200, 3))
    logits = np.where(truth == 1, 3.0, -3.0) + rng.normal(0, 0.3, truth.shape)
    codes = truth.copy()
    codes[17, 0] = 1 - codes[17, 0]
    codes[:, 1:][rng.random((200, 2)) < 0.5] = -1
    codes[17, 1:] = truth[17, 1:]
    labels = PartialLabels(codes, categories=NAMES)
    task = to_cleanlab(labels, logits)["cat"]
    issues = find_label_issues(
        task.labels, task.pred_probs, return_indices_ranked_by="self_confidence", n_jobs=1
    )
    assert task.rows[issues].tolist() == [17]
    lists = to_cleanlab_lists(labels, logits)
    assert 0 < len(lists.rows) < 200
    issues = find_in_lists(
        labels=lists.labels,
        pred_probs=lists.pred_probs,
        return_indices_ranked_by="self_confidence",
        n_jobs=1,
    )
    assert lists.rows[issues].tolist() == [17]


CODE = st.sampled_from([1, 0, -1, -2])
ANY = st.lists(st.lists(CODE, min_size=3, max_size=3), min_size=1, max_size=8)


@settings(max_examples=50, deadline=None)
@given(ANY)
def test_nothing_is_invented(codes: list[list[int]]) -> None:
    """The tasks' labels are the known ones, all of them, and no number is NaN."""
    labels = PartialLabels(codes, categories=NAMES)
    tasks = to_cleanlab(labels, np.zeros(labels.shape))
    for j, name in enumerate(NAMES):
        known = [(i, row[j]) for i, row in enumerate(codes) if row[j] >= 0]
        if {code for _, code in known} != {0, 1}:
            assert name not in tasks
            continue
        task = tasks[name]
        assert list(zip(task.rows.tolist(), task.labels.tolist(), strict=True)) == known
        assert task.pred_probs is not None
        assert not np.isnan(task.pred_probs).any()


# --------------------------------------------------------------------------------- Hugging Face


def test_to_huggingface(tmp_path: Path) -> None:
    """One data set for each split, with images that open and lists of class labels."""
    pytest.importorskip("datasets")
    (tmp_path / "a").mkdir()
    for k in range(4):
        Image.new("RGB", (4, 3), (k, 0, 0)).save(tmp_path / "a" / f"{k}.png")
    made = to_huggingface(dataset(tmp_path))
    assert list(made) == ["train", "test"]
    train = made["train"]
    assert train["image_id"][:] == ["i0", "i2"]
    assert train["group_id"][:] == ["p0", "p1"]
    assert train[1]["image"].getpixel((0, 0)) == (2, 0, 0)
    feature = train.features["positive"].feature
    assert [feature.int2str(row) for row in train["positive"][:]] == [["cat"], ["dog", "eel"]]
    assert made["test"]["uncertain"][:] == [[0], []]
    assert made["test"]["negative"][:] == [[], [1, 2]]


def test_to_huggingface_without_images() -> None:
    """Paths instead of images, null where there is none; no split is the split "all"."""
    pytest.importorskip("datasets")
    part = dataset(paths=["", "b.png", "", "d.png"], splits=[""] * 4)
    made = to_huggingface(part, images=False)
    assert list(made) == ["all"]
    assert made["all"]["path"][:] == [None, "/x/b.png", None, "/x/d.png"]
    with pytest.raises(ConfigError, match="name of a split") as caught:
        to_huggingface(dataset(splits=["fold 1"] * 4))
    assert "'fold 1'" in str(caught.value)


@settings(max_examples=20, deadline=None)
@given(ANY)
def test_lists_of_huggingface_are_the_codes(codes: list[list[int]]) -> None:
    """The three lists give back the codes, whatever they are."""
    pytest.importorskip("datasets")
    n = len(codes)
    part = dataset(codes=codes, paths=[""] * n, splits=["train"] * n)
    found = np.full((n, 3), -1)
    table = to_huggingface(part, images=False)["train"]
    for kind, code in KINDS.items():
        for i, row in enumerate(table[kind]):
            found[i, row] = code
    assert found.tolist() == codes


# ------------------------------------------------------------------------------------- packages


@pytest.mark.parametrize(
    ("package", "convert"), [("fiftyone", to_fiftyone), ("datasets", to_huggingface)]
)
def test_absent_and_broken_packages(
    package: str, convert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are one error with the line that installs them."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=f"needs the package '{package}'") as caught:
        convert(dataset())
    assert f"pip install 'catwise[{package}]'" in str(caught.value)
    monkeypatch.delitem(sys.modules, package)
    (tmp_path / f"{package}.py").write_text("raise RuntimeError('operator x does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match="operator x"):
        convert(dataset())
