"""Label tables of several sets as one, and their union in Python."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

import catwise
from catwise.cli.main import main
from catwise.data import Dataset, read_table
from catwise.errors import ConfigError, IdError
from catwise.labels import PartialLabels
from cli.fix_case import MODEL, NAMES, make_case


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("id,part,who,cat,dog\n1,train,p,1,\n2,test,p,,0\n")
    Path("b.csv").write_text("id,part,who,dog,Effusion\n1,train,p,-1,1\n2,valid,q,1,0\n")


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output + str(result.exception)
    return result


TABLES = ["--encoding", "nan", "--encoding-of", "B=minus_one_uncertain", "--id-column", "id"]
TABLES += ["--group-column", "who", "--split-column", "part"]
OUT = ["--out", "u.csv", "--out-encoding", "minus_one_uncertain"]


@pytest.mark.usefixtures("here")
def test_tables_become_one() -> None:
    """Columns meet by name, the others are unknown; ids are led; what is told reads it back."""
    result = run("union", "A=a.csv", "B=b.csv", *TABLES, *OUT)
    assert "A: 2 images, 2 of 3 categories, 2 known labels" in result.output
    options = shlex.split(result.output.split("read it with: --labels u.csv ")[1])
    told = dict(zip(options[::2], options[1::2], strict=True))
    assert "the column 'who' only says where images are from" in result.output
    found = read_table(
        "u.csv",
        encoding=told["--encoding"],
        id_column=told["--id-column"],
        group_column=told["--ignore-column"],
        split_column=told["--split-column"],
    )
    assert found.labels.categories == ("cat", "dog", "Effusion")
    assert found.labels.codes.tolist() == [[1, -1, -1], [-1, 0, -1], [-1, -2, 1], [-1, 1, 0]]
    assert found.labels.ids is not None
    assert found.labels.ids.tolist() == ["A/1", "A/2", "B/1", "B/2"]
    assert found.groups is not None
    assert found.groups.tolist() == ["A", "A", "B", "B"]
    assert found.splits.tolist() == ["train", "test", "train", "valid"]
    assert "exists" in run("union", "A=a.csv", "B=b.csv", *TABLES, *OUT, code=13).output
    run("union", "A=a.csv", "B=b.csv", *TABLES, *OUT, "--groups", "own", "--force")
    again = read_table("u.csv", encoding="minus_one_uncertain", id_column="id", group_column="who",
                       split_column="part")  # fmt: skip
    assert again.groups is not None
    assert again.groups.tolist() == ["A/p", "A/p", "B/p", "B/q"]


@pytest.mark.usefixtures("here")
def test_names_and_data_sets() -> None:
    """Names that may be one are told of and renamed; a data set in its layout is a set, too."""
    Path("chex").mkdir()
    row = "CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg,Frontal,1.0\n"
    Path("chex/train.csv").write_text("Path,Frontal/Lateral,Pleural Effusion\n" + row)
    line = ["union", "b=b.csv", "chex=chexpert:chex", "--encoding", "minus_one_uncertain"]
    line += ["--id-column", "id", "--ignore-column", "who", "--split-column", "part", *OUT]
    result = run(*line, code=3)
    assert "no column" in result.output
    head = "Path,Frontal/Lateral," + ",".join(["Pleural Effusion", *OTHERS])
    Path("chex/train.csv").write_text(f"{head}\n{row.strip()}{',' * len(OTHERS)}\n")
    result = run(*line)
    assert "may mean the same, and stay apart: 'Pleural Effusion' and 'Effusion'" in result.output
    document = json.loads(
        run(*line, "--rename", "Effusion=Pleural Effusion", "--force", "--json").stdout
    )
    assert document["counts"]["images_by_source"] == {"b": 2, "chex": 1}
    assert "Effusion" not in document["categories"]
    assert (
        "no set has a category 'Efusion'"
        in run(*line, "--rename", "Efusion=x", "--force", code=5).output
    )


OTHERS = ["No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion",
          "Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Other",
          "Fracture", "Support Devices"]  # fmt: skip


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["A=a.csv"], 12, "two sets or more"),
        (["A=a.csv", "A=b.csv"], 12, "a name of its own"),
        (["A=a.csv", "B=b.csv", "--encoding-of", "C=nan"], 12, "names no set"),
        (["A=a.csv", "B=b.csv", "--encoding-of", "B=nn"], 12, "did you mean 'nan'"),
        (["A=a.csv", "B=b.csv", "--encoding-of", "B"], 2, "NAME=ENCODING"),
        ([], 2, "Missing argument"),
    ],
)
def test_what_is_no_union(arguments: list[str], code: int, told: str) -> None:
    """Each has its own message; nothing is written."""
    line = ["union", *arguments, "--encoding", "minus_one_uncertain", "--id-column", "id"]
    line += ["--ignore-column", "who", "--split-column", "part", *OUT]
    assert told in run(*line, code=code).output
    assert not Path("u.csv").exists()


rows = st.lists(st.sampled_from([1, 0, -1, -2]), min_size=3, max_size=3)
matrices = st.lists(rows, min_size=1, max_size=5)


@given(matrices, matrices, st.sampled_from(["dense", "columns"]))
def test_every_label_stays(a: list[list[int]], b: list[list[int]], storage: str) -> None:
    """Taken apart again, each set has its labels; all else is unknown."""
    sets = {
        name: PartialLabels(
            rows,
            ids=[str(row) for row in range(len(rows))],
            categories=[f"c{j + shift}" for j in range(len(rows[0]))],
            storage=storage,  # type: ignore[arg-type]
        )
        for name, rows, shift in (("a", a, 0), ("b", b, 2))
    }
    made = catwise.union(sets).labels
    start = 0
    for one in sets.values():
        part = made.take_rows(np.arange(start, start + one.n_rows))
        start += one.n_rows
        np.testing.assert_array_equal(part.take_categories(one.categories).codes, one.codes)
        known = one.counts().known.sum() + one.counts().uncertain.sum()
        assert part.counts().known.sum() + part.counts().uncertain.sum() == known


def test_sets_that_cannot_be_joined() -> None:
    """Without ids, groups or a name of its own a set is refused by what is missing."""
    a = PartialLabels([[1]], ids=["1"])
    with pytest.raises(IdError, match="have no ids"):
        catwise.union({"a": a, "b": PartialLabels([[1]])})
    with pytest.raises(IdError, match="have no groups"):
        catwise.union({"a": a, "b": a}, groups="own")
    with pytest.raises(ConfigError, match="without '/'"):
        catwise.union({"a/b": a, "b": a})
    made = catwise.union({"a": a, "b": Dataset("x", Path("x"), ["1.jpg"], a, ["train"])})
    assert made.paths.tolist() == ["", "x/1.jpg"]
    assert made.splits.tolist() == ["", "train"]


def coco_of(folder: Path, rows: list[dict[str, str]]) -> None:
    """A release of MS-COCO's layout with images of the case as its val2017."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2017").mkdir()
    annotations = []
    for number, row in enumerate(rows):
        (Path("images") / f"{row['image']}.png").rename(folder / "val2017" / f"{number}.png")
        annotations += [
            {"id": len(annotations) + j, "image_id": number, "category_id": j, "iscrowd": 0}
            for j, name in enumerate(NAMES)
            if row[name] == "1"
        ]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(len(rows))],
        "annotations": annotations,
        "categories": [{"id": j, "name": name} for j, name in enumerate(NAMES)],
    }
    (folder / "annotations/instances_val2017.json").write_text(json.dumps(content))


def test_fix_takes_a_union(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed reads it, each image is found, and MS-COCO's val validates."""
    make_case(tmp_path / "case")
    monkeypatch.chdir(tmp_path / "case")
    rows = list(csv.DictReader(Path("labels.csv").read_text().splitlines()))
    coco_of(Path("zoo"), [row for row in rows if row["split"] == "valid"])
    lines = Path("labels.csv").read_text().splitlines()
    Path("own.csv").write_text("\n".join(one for one in lines if ",valid," not in one) + "\n")
    Path("tables").mkdir()
    line = ["union", "own=own.csv", "zoo=coco:zoo", "--encoding", "nan", "--id-column", "image"]
    line += ["--split-column", "split", "--out", "tables/both.csv"]
    option = re.search(r"--option-of (zoo=year=\d+)", run(*line, code=3).output)
    assert option is not None
    line += ["--option-of", option[1]]
    told = run(*line).output
    assert "own: 200 images have no path; --images own=DIR finds them by their ids." in told
    told = run(*line, "--images", "own=images", "--force").output
    assert "have no path" not in told
    reading = shlex.split(told.split("read it with: ")[1])
    assert reading[-2:] == ["--path-column", "path"]
    fix = ["fix", "--model", MODEL, "--checkpoint", "net.safetensors", *reading, "--dry-run"]
    result = run(*fix, "--out", "out")
    assert "labelled images: 120 train, 78 valid, 80 test" in result.output
    assert "all fits" in result.output
    assert (
        "names no set: 'won' (did you mean 'own'?)"
        in run(*line, "--force", "--images", "won=images", code=12).output
    )


def test_one_name_for_a_split() -> None:
    """Names of one split meet; a set that has two of them keeps both."""
    labels = PartialLabels([[1]] * 4, ids=list("abcd"))
    a = Dataset("a", Path(), [""] * 4, labels, ["Training", "val", "testing", "extra"])
    b = Dataset("b", Path(), [""] * 4, labels, ["train", "val", "valid", "test"])
    made = catwise.union({"a": a, "b": b})
    assert made.splits.tolist() == ["train", "valid", "test", "extra", "train", "val", "valid",
                                    "test"]  # fmt: skip
