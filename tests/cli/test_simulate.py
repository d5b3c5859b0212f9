"""`catwise simulate`: what is written reads back, and equal seeds give equal masks."""

from __future__ import annotations

import json
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from catwise.cli import main
from catwise.cli.options import LabelledOptions, TableOptions
from catwise.cli.tables import TableWriter, WrittenOptions
from catwise.data import Dataset, apply_mask, read_label_table, read_mask
from catwise.errors import IdError, LabelError, OutputError, ShapeError
from catwise.labels import PartialLabels, drop_uniform, keep_per_category, keep_single_positive

TABLE = ["--encoding", "minus_one_uncertain", "--id-column", "image"]
GROUPS = ["--group-column", "patient", "--split-column", "part"]
SOURCE = ["--labels", "labels.csv", *TABLE, *GROUPS]
NAMES = ["cat", "dog", "a, b"]
#: SHA-256 of the mask of `--keep 0.5 --seed 3`. A change here breaks published masks.
PINNED = "60804e2bea9125db68c550eb4cd7a41aea7806aaed87837264bc027d7b6d9eb0"


def full() -> PartialLabels:
    """Sixty images of twenty patients: written down, no draw."""
    codes = [[3 * i % 7 % 3 - 1, i * i % 5 % 3 - 1, i * i % 11 % 2] for i in range(60)]
    ids, groups = [f"i{i}" for i in range(60)], [f"p{i // 3}" for i in range(60)]
    return PartialLabels(codes, ids=ids, groups=groups, categories=NAMES)


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {1: "1.0", 0: "0.0", -1: ""}
    labels = full()
    lines = ['image,patient,part,cat,dog,"a, b"']
    for i, row in enumerate(labels.codes.tolist()):
        part = "train" if i < 30 else "test"
        lines.append(",".join([f"i{i}", f"p{i // 3}", part, *[texts[code] for code in row]]))
    Path("labels.csv").write_text("\n".join(lines) + "\n")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["simulate", *arguments])


def document(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def written(path: str, layout: str = "wide", encoding: str = "nan") -> PartialLabels:
    """A table that was written, read by the library."""
    return read_label_table(
        path,
        encoding=encoding,
        layout=layout,
        id_column="image",
        group_column="patient",
        categories=NAMES,
    )


@pytest.mark.parametrize(
    ("arguments", "stem", "kept"),
    [
        (["--keep", "0.5"], "uniform_0.5_seed3", lambda labels: drop_uniform(labels, 0.5, 3)),
        (["--n", "4"], "per_category_4_seed3", lambda labels: keep_per_category(labels, 4, 3)),
        (
            ["--single-positive"],
            "single_positive_seed3",
            lambda labels: keep_single_positive(labels, 3),
        ),
    ],
)
def test_protocols(arguments: list[str], stem: str, kept: Any) -> None:
    """Table and mask hold what the library's function keeps; the numbers are told."""
    found = document(*SOURCE, *arguments, "--seed", "3", "--out", "out")
    (file,) = found["files"]
    assert file["table"] == f"out/{stem}.csv"
    expected = kept(full())
    assert written(file["table"]) == expected
    assert apply_mask(file["mask"], full()) == expected
    assert read_mask(file["mask"]).sha256 == file["mask_sha256"]
    assert read_mask(file["mask"]).protocol == file["protocol"]
    counts = expected.counts()
    assert file["n_kept"] == counts.known.sum()
    assert file["n_full"] == full().counts().known.sum()
    assert file["n_positive"] == counts.positive.sum()
    assert file["n_negative"] == counts.negative.sum()
    assert file["n_categories_both"] == ((counts.positive > 0) & (counts.negative > 0)).sum()


def test_the_series_is_nested() -> None:
    """Nine masks, 10% to 90%; each keeps what the one before keeps."""
    files = document(*SOURCE, "--series", "--out", "out")["files"]
    assert [file["protocol"]["keep"] for file in files] == [i / 10 for i in range(1, 10)]
    known = [written(file["table"]).codes != -1 for file in files]
    assert all((less <= more).all() for less, more in pairwise(known))
    assert sorted(path.name for path in Path("out").iterdir())[:2] == [
        "uniform_0.1_seed0.csv",
        "uniform_0.1_seed0.mask.safetensors",
    ]


def test_equal_seeds_give_equal_checksums() -> None:
    """The same seed gives the same file, byte for byte, and the checksum that is pinned."""
    one, two, other = (
        document(*SOURCE, "--keep", "0.5", "--seed", seed, "--out", out)["files"][0]
        for seed, out in (("3", "a"), ("3", "b"), ("4", "c"))
    )
    assert one["mask_sha256"] == two["mask_sha256"] == PINNED
    assert Path(one["mask"]).read_bytes() == Path(two["mask"]).read_bytes()
    assert Path(one["table"]).read_bytes() == Path(two["table"]).read_bytes()
    assert other["mask_sha256"] != PINNED
    assert PINNED in run(*SOURCE, "--keep", "0.5", "--seed", "3", "--out", "d").stdout


def test_the_order_of_rows_and_columns_does_not_matter() -> None:
    """Draws hang on names and ids."""
    head, *rows = Path("labels.csv").read_text().splitlines()
    Path("labels.csv").write_text("\n".join([head, *reversed(rows)]) + "\n")
    file = document(*SOURCE, "--keep", "0.5", "--out", "out")["files"][0]
    expected = drop_uniform(full(), 0.5).take_rows(slice(None, None, -1))
    assert written(file["table"]) == expected


def test_a_mask_is_applied() -> None:
    """--mask gives the table that its own run gave; other labels are refused."""
    made = document(*SOURCE, "--keep", "0.5", "--out", "a")["files"][0]
    again = document(*SOURCE, "--mask", made["mask"], "--out", "b")["files"][0]
    assert Path(again["table"]).read_bytes() == Path(made["table"]).read_bytes()
    assert again["mask_sha256"] == made["mask_sha256"]
    assert [path.name for path in Path("b").iterdir()] == ["uniform_0.5_seed0.csv"]
    text = Path("labels.csv").read_text().replace("0.0", "2.0").replace("1.0", "0.0")
    Path("labels.csv").write_text(text.replace("2.0", "1.0"))
    refused = run(*SOURCE, "--mask", made["mask"], "--out", "c")
    assert (refused.exit_code, Path("c").exists()) == (LabelError.exit_code, False)
    corrected = document(*SOURCE, "--mask", made["mask"], "--corrected", "--out", "c")["files"][0]
    codes = written(corrected["table"]).codes
    before = drop_uniform(full(), 0.5).codes
    np.testing.assert_array_equal(codes, np.where(before == -1, -1, 1 - before))


def test_a_mask_of_other_ids_is_refused() -> None:
    """A mask fits its own rows only."""
    made = document(*SOURCE, "--keep", "0.5", "--out", "a")["files"][0]
    result = run(*SOURCE, "--id-prefix", "x", "--mask", made["mask"], "--out", "b")
    assert result.exit_code == IdError.exit_code


def test_dry_run() -> None:
    """The same numbers, and nothing on disk."""
    arguments = [*SOURCE, "--n", "2", "--n", "4"]
    dry = document(*arguments, "--out", "out", "--dry-run")
    assert not Path("out").exists()
    wet = document(*arguments, "--out", "out")
    assert dry["dry_run"] is True
    assert [file["n_kept"] for file in dry["files"]] == [file["n_kept"] for file in wet["files"]]
    assert [file["mask_sha256"] for file in dry["files"]] == [None, None]
    assert "nothing was written" in run(*arguments, "--out", "out", "--dry-run").stdout


def test_force() -> None:
    """Files that differ are replaced only when asked; others stay; inputs are never touched."""
    assert run(*SOURCE, "--keep", "0.5", "--out", "out").exit_code == 0
    Path("out", "mine.txt").write_text("x")
    table = Path("out", "uniform_0.5_seed0.csv")
    made, stamp = table.read_bytes(), table.stat().st_mtime_ns
    assert run(*SOURCE, "--keep", "0.5", "--out", "out").exit_code == 0
    assert table.stat().st_mtime_ns == stamp, "what is there already stays"
    table.write_bytes(made[:-1])
    refused = run(*SOURCE, "--keep", "0.5", "--out", "out")
    assert refused.exit_code == OutputError.exit_code
    assert "--force" in refused.stderr
    assert table.read_bytes() == made[:-1]
    assert run(*SOURCE, "--keep", "0.5", "--out", "out", "--force").exit_code == 0
    assert Path("out", "mine.txt").read_text() == "x"
    Path("labels.csv").rename("uniform_0.5_seed0.csv")
    own = ["--labels", "uniform_0.5_seed0.csv", *TABLE, *GROUPS]
    refused = run(*own, "--keep", "0.5", "--out", ".", "--force")
    assert refused.exit_code == OutputError.exit_code
    assert "is what is read" in refused.stderr


def test_a_folder_that_cannot_be() -> None:
    """A file in the way, or no parent, is one error."""
    for out in ("labels.csv", "no/such"):
        assert run(*SOURCE, "--keep", "0.5", "--out", out).exit_code == OutputError.exit_code


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--keep", "0.5", "--n", "3"],
        ["--series", "--single-positive"],
        ["--n", "3", "--mask", "x"],
        ["--keep", "1.5"],
        ["--n", "-1"],
        ["--keep", "0.5", "--corrected"],
        ["--keep", "0.5", "--out-encoding", "complete"],
    ],
)
def test_wrong_use(arguments: list[str]) -> None:
    """One protocol at a time, with possible numbers."""
    assert run(*SOURCE, *arguments, "--out", "out").exit_code == 2
    assert not Path("out").exists()


def test_uncertain_labels_need_an_encoding() -> None:
    """Labels that the written encoding cannot say are refused before anything is written."""
    text = Path("labels.csv").read_text()
    Path("labels.csv").write_text(text.replace("1.0", "-1.0", 1))
    result = run(*SOURCE, "--keep", "1", "--out", "out")
    assert (result.exit_code, Path("out").exists()) == (LabelError.exit_code, False)
    assert "1 uncertain labels" in result.stderr
    for encoding in ("minus_one_uncertain", "codes"):
        more = ["--out-encoding", encoding, "--out", encoding]
        (file,) = document(*SOURCE, "--keep", "1", *more)["files"]
        assert written(file["table"], encoding=encoding).counts().uncertain.sum() == 1
    assert run(*SOURCE, "--n", "5", "--out", "out").exit_code == 0  # this protocol drops them


@pytest.mark.parametrize("encoding", ["nan", "minus_one_unknown", "zero_unknown", "codes"])
@pytest.mark.parametrize("layout", ["wide", "long"])
def test_encodings_and_layouts(encoding: str, layout: str) -> None:
    """What is written in any of them reads back by the options that are printed."""
    more = ["--out-encoding", encoding, "--out-layout", layout, "--out", "out"]
    result = run(*SOURCE, "--keep", "0.5", *more)
    expected = drop_uniform(full(), 0.5)
    *_, last = result.stdout.splitlines()
    program, command, *options = shlex.split(last.split(": ")[1])
    assert (program, command) == ("catwise", "audit")
    options[options.index("TABLE")] = "out/uniform_0.5_seed0.csv"
    audited = CliRunner().invoke(main, [command, *options, "--json"])
    summary = json.loads(audited.stdout)
    told = {row["category"]: row["positive"] for row in summary["categories"]}
    names = dict(zip(NAMES, expected.counts().positive.tolist(), strict=True))
    assert told == names
    read = written("out/uniform_0.5_seed0.csv", layout, encoding)
    assert read.ids is not None
    assert expected.ids is not None
    rows = np.flatnonzero(np.isin(expected.ids, read.ids))
    assert read == expected.take_rows(rows)
    assert len(rows) == (60 if layout == "wide" else (expected.codes != -1).any(axis=1).sum())


def test_splits_are_written() -> None:
    """The split of each row stays beside it, also where one split is read."""
    document(*SOURCE, "--keep", "0.5", "--out", "all")
    document(*SOURCE, "--split", "test", "--keep", "0.5", "--out", "test")
    rows = [Path(out, "uniform_0.5_seed0.csv").read_text().splitlines() for out in ("all", "test")]
    assert rows[1] == [rows[0][0], *rows[0][31:]]
    assert rows[1][1].startswith("i30,p10,test,")


def test_a_data_set() -> None:
    """Data sets in their own layout are simulated too, with their splits."""
    Path("lists.jsonl").write_text(
        '{"id": "a", "positive": ["cat"], "negative": ["id"], "split": "x"}\n{"id": "b"}\n'
    )
    source = ["--labels", "lists.jsonl", "--layout", "lists", "--others", "unknown"]
    found = document(*source, "--keep", "1", "--out", "out")
    assert found["columns"] == {"id": "id_"}  # a category has the name "id"
    table = Path(found["files"][0]["table"])
    assert table.read_text() == "id_,cat,id\na,1,0\nb,,\n"


def test_published_streams() -> None:
    """The stream is named in files and masks, and gives the labels that the library gives."""
    found = document(*SOURCE, "--keep", "0.3", "--draws", "mlcpl", "--seed", "526", "--out", "out")
    mask = read_mask(found["files"][0]["mask"])
    assert Path(found["files"][0]["mask"]).name == "uniform_0.3_seed526_mlcpl.mask.safetensors"
    assert mask.protocol == {"name": "drop_uniform", "keep": 0.3, "seed": 526, "draws": "mlcpl"}
    assert apply_mask(found["files"][0]["mask"], full()) == drop_uniform(
        full(), 0.3, 526, draws="mlcpl"
    )
    wrong = run(*SOURCE, "--n", "3", "--draws", "matrix", "--out", "other")
    assert wrong.exit_code == 2
    assert "--draws belongs to" in wrong.output


def options(**given: Any) -> tuple[TableOptions, LabelledOptions]:
    """The options of a table without any option."""
    return TableOptions(**given), LabelledOptions(labels=Path("x"))


def writer_of(labels: PartialLabels, layout: str = "wide", **given: Any) -> TableWriter:
    blank: Any = [""] * labels.n_rows
    dataset = Dataset("it", Path(), blank, labels, blank)
    return TableWriter(dataset, *options(**given), WrittenOptions("codes", layout), home=Path())


def test_a_single_column_with_marks_in_its_name(tmp_path: Path) -> None:
    """Another delimiter is suspected, unless the one that holds is named."""
    labels = PartialLabels([[1], [-1]], categories=["a;b|c"])
    writer, path = writer_of(labels), tmp_path / "one.csv"
    writer.write(labels, path)
    assert writer.reading == "--encoding codes --delimiter ,"
    with pytest.raises(LabelError, match="a single column"):
        read_label_table(path, encoding="codes")
    assert read_label_table(path, encoding="codes", delimiter=",") == labels


def test_tables_that_cannot_be() -> None:
    """A long table needs ids; a wide one has an end."""
    with pytest.raises(LabelError, match="needs ids"):
        writer_of(PartialLabels([[1]]), "long").check(PartialLabels([[1]]))
    huge = PartialLabels.from_columns([([0], [1])] * 3000, 1 << 20)
    with pytest.raises(ShapeError, match="too many for a wide table"):
        writer_of(huge).check(huge)
    bad = PartialLabels([[1]], ids=["\ud800"])
    with pytest.raises(OutputError, match="not Unicode text"):
        writer_of(bad).write(bad, Path("bad.csv"))
    assert not Path("bad.csv").exists()


NAME = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6)
TEXTS = st.lists(
    NAME.filter(lambda name: name == name.strip() and "\ufeff" not in name),
    min_size=4,
    max_size=4,
    unique=True,
)


@settings(max_examples=60, deadline=None)
@given(
    names=TEXTS,
    ids=st.none() | TEXTS,
    codes=st.lists(st.lists(st.integers(-2, 1), min_size=4, max_size=4), min_size=4, max_size=4),
    width=st.integers(1, 4),
)
def test_what_is_written_is_read(
    names: list[str],
    ids: list[str] | None,
    codes: list[list[int]],
    width: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Whatever names and ids hold: commas, quotes, line ends, signs of formulas."""
    labels = PartialLabels(
        np.array(codes)[:, :width], ids=ids, categories=names[:width], groups=ids and ["g"] * 4
    )
    writer = writer_of(labels)
    path = tmp_path_factory.getbasetemp() / "written.csv"
    writer.write(labels, path)
    read = read_label_table(
        path,
        encoding="codes",
        id_column=writer.columns.get("id"),
        group_column=writer.columns.get("group"),
        delimiter="," if "--delimiter" in writer.reading else None,
        header=True if "--header" in writer.reading else None,
    )
    assert read == labels
