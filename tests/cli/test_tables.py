"""Tables as people have them: own codes, lists under other names, arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.numpy import save_file

from catwise import Head, save_head
from catwise.cli.main import main
from catwise.data import read_table
from catwise.errors import LabelError
from catwise.labels import ENCODINGS, PartialLabels, encoding_of


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output + str(result.exception)
    return result


def audit(*arguments: str) -> dict[str, tuple[int, int, int]]:
    """(positive, negative, uncertain) of each category."""
    document = json.loads(run("audit", *arguments, "--json").stdout)
    names = ("positive", "negative", "uncertain")
    return {row["category"]: tuple(row[n] for n in names) for row in document["categories"]}  # type: ignore[misc]


def codes(*given: str) -> list[str]:
    return [part for one in given for part in ("--code", one)]


def test_own_codes() -> None:
    """Numbers, texts and blanks mean what is said of them."""
    Path("l.csv").write_text("id,cat,dog\na,3,yes\nb,-100,no\nc,,3\nd,0,?\n")
    line = ["--labels", "l.csv", "--id-column", "id"]
    said = codes("3=positive", "yes=positive", "no=negative", "0=negative", "-100=unknown")
    said += codes("blank=unknown", "?=uncertain")
    assert audit(*line, *said) == {"cat": (1, 1, 0), "dog": (2, 1, 1)}
    result = run("audit", *line, *codes("3=positive"), code=3)
    assert "does not know a value" in result.output
    result = run("audit", *line, "--encoding", "nan", code=3)
    assert "--code VALUE=MEANING" in result.output


@pytest.mark.parametrize(
    ("said", "code", "told"),
    [
        (codes("3=positiv"), 3, "did you mean 'positive'?"),
        (codes("3"), 2, "is not VALUE=MEANING"),
        (codes("3=positive", "3=negative"), 2, "each value once"),
        (codes("3=positive", "3.0=negative"), 3, "given twice"),
        ([*codes("3=positive"), "--encoding", "nan"], 2, "either --encoding or --code"),
        ([*codes("3=positive"), "--layout", "lists"], 2, "--code does not belong"),
        (["--encoding", "nan", "--positive-column", "x"], 2, "belongs to --layout lists"),
    ],
)
def test_codes_that_cannot_be(said: list[str], code: int, told: str) -> None:
    """Each has its own message."""
    Path("l.csv").write_text("id,cat\na,3\n")
    result = run("audit", "--labels", "l.csv", "--id-column", "id", *said, code=code)
    assert told in result.output


def test_encodings_of_ones_own() -> None:
    """In Python too; texts never match numbers."""
    own = encoding_of({"yes": "positive", 0: "negative", None: "unknown"})
    assert PartialLabels.from_array([["yes", None], [0, "yes"]], encoding=own).codes.tolist() == [
        [1, -1],
        [0, 1],
    ]
    assert PartialLabels.from_array(np.zeros((1, 1)), encoding=own).codes.tolist() == [[0]]
    with pytest.raises(LabelError):
        encoding_of({})


def test_lists_under_other_names() -> None:
    """The columns of positives, negatives and uncertain ones are named; the rest is refused."""
    Path("l.csv").write_text("image,tags,absent,maybe\na,x|y,z,\nb,,x,y\n")
    line = ["--labels", "l.csv", "--layout", "lists", "--others", "unknown", "--separator", "|"]
    line += ["--id-column", "image"]
    result = run("audit", *line, code=3)
    assert "--positive-column NAME" in result.output
    named = ["--positive-column", "tags", "--negative-column", "absent"]
    found = audit(*line, *named, "--uncertain-column", "maybe")
    assert found == {"x": (1, 1, 0), "y": (1, 0, 1), "z": (0, 1, 0)}
    assert "expected: 'tag' or" in run("audit", *line, "--positive-column", "tag", code=3).output


VALUES = np.array([[1, 0], [np.nan, 1], [0, np.nan]])
NAMES = {"ids": np.array(["a", "b", "c"]), "categories": np.array(["cat", "dog"])}
MORE: dict[str, Any] = {"groups": np.array([1, 1, 2]), "part": np.array(["train", "train", "test"])}


def test_arrays_as_labels() -> None:
    """An .npz holds labels, names and splits; an .npy and a .safetensors the values alone."""
    np.savez("l.npz", labels=VALUES, **NAMES, **MORE)
    np.savez_compressed("packed.npz", y=VALUES, **NAMES, **MORE)
    for name in ("l.npz", "packed.npz"):
        found = read_table(name, encoding="nan", split_column="part")
        assert found.labels.codes.tolist() == [[1, 0], [-1, 1], [0, -1]]
        assert found.labels.ids is not None
        assert found.labels.ids.tolist() == ["a", "b", "c"]
        assert found.groups is not None
        assert found.groups.tolist() == ["1", "1", "2"]
        assert found.splits.tolist() == ["train", "train", "test"]
        line = ["--labels", name, "--encoding", "nan", "--split-column", "part"]
        assert audit(*line, "--split", "train") == {"cat": (1, 0, 0), "dog": (1, 1, 0)}
    np.save("l.npy", VALUES.astype("f"))
    save_file({"labels": VALUES}, "l.safetensors")
    for name in ("l.npy", "l.safetensors"):
        assert audit("--labels", name, "--encoding", "nan") == {"0": (1, 1, 0), "1": (1, 1, 0)}
    found = read_table("l.npz", encoding="nan", categories=["dog"], id_suffix=".jpg")
    assert found.labels.categories == ("dog",)
    assert found.labels.ids is not None
    assert found.labels.ids.tolist() == ["a.jpg", "b.jpg", "c.jpg"]


def test_arrays_in_an_evaluation() -> None:
    """Splits of arrays choose the rows of features, with ids and without."""
    random = np.random.default_rng(0)
    truth = (random.random((90, 1)) < 0.5).astype("f")
    part = np.array(["train", "test"])[(np.arange(90) % 3 == 0).astype(int)]
    np.savez("f.npz", features=np.hstack([truth, truth]) + random.normal(0, 0.2, (90, 2)))
    np.savez("l.npz", labels=truth, part=part)
    save_head(Head(torch.ones(1, 2), torch.full((1,), -1.0)), "head.safetensors")
    line = ["evaluate", "--features", "f.npz", "--labels", "l.npz", "--encoding", "complete"]
    line += ["--split-column", "part", "--split", "test", "--head", "head.safetensors", "--json"]
    document = json.loads(run(*line).stdout)
    assert document["n_rows"] == 30
    assert document["categories"][0]["auroc"] > 0.95


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [
        ({"a": VALUES, "b": VALUES}, {}, "which array holds the labels"),
        ({"labels": VALUES, "ids": np.array(["a"])}, {}, "does not hold the image ids"),
        ({"labels": VALUES}, {"id_column": "idz"}, "no array 'idz'"),
        ({"labels": VALUES, "ids": np.array([1.5, 2, 3])}, {}, "texts or whole numbers"),
        ({"labels": VALUES}, {"layout": "long"}, "takes no layout"),
        ({"labels": VALUES}, {"ignore": ["x"]}, "takes no ignore"),
        ({"labels": VALUES * 7}, {}, "does not know a value"),
        ({"labels": VALUES}, {"encoding": None}, "must be named"),
    ],
)
def test_arrays_that_are_no_labels(
    content: dict[str, Any], options: dict[str, Any], told: str
) -> None:
    """What is missing, of another size, or of no meaning is refused."""
    np.savez("l.npz", **content)
    with pytest.raises(ValueError, match=told):
        read_table("l.npz", **{"encoding": "nan", **options})


def test_every_named_encoding_is_what_its_codes_say() -> None:
    """An encoding of one's own that says the same reads the same."""
    for encoding in ENCODINGS.values():
        words = {1: "positive", 0: "negative", -1: "unknown", -2: "uncertain"}
        own = encoding_of({raw: words[code] for raw, code in encoding.codes})
        assert own.mapping == encoding.mapping
