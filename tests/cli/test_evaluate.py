"""`catwise audit` and `catwise evaluate` beyond what docs/cli.md shows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from catwise.cli import main
from catwise.errors import (
    CategoryError,
    ConfigError,
    FeatureError,
    FeatureStoreError,
    HeadError,
    IdError,
    LabelError,
    MismatchError,
    OutputError,
    ShapeError,
)
from catwise.heads import Head, load_head, read_head, save_head, write_head
from cli.example import NAMES, make_example

TABLE = ["--encoding", "nan", "--id-column", "image", "--group-column", "patient"]
TEST = ["--features", "test.npz", "--labels", "test.csv", *TABLE, "--ignore-column", "split"]
MODEL = ["--checkpoint", "model.safetensors", "--head-categories", "names.txt"]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("case")
    make_example(folder)
    return folder


@pytest.fixture(autouse=True)
def _inside(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(case)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def document(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output

    def refuse(text: str) -> None:
        raise AssertionError(text)

    found: dict[str, Any] = json.loads(result.stdout, parse_constant=refuse)
    return found


def test_audit_json_and_csv(tmp_path: Path) -> None:
    """One strict JSON document; the CSV holds a row for each category."""
    path = tmp_path / "audit.csv"
    found = document(
        "audit", "--labels", "train.csv", *TABLE, "--ignore-column", "split", "--csv", str(path)
    )
    assert [row["category"] for row in found["categories"]] == list(NAMES)
    assert found["categories"][-1]["reason"] == "no_known_positive"
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["known"]) for row in rows] == [row["known"] for row in found["categories"]]


def test_audit_of_a_split() -> None:
    """A split of a joint table is the same as its own table."""
    joint = document(
        "audit", "--labels", "all.csv", *TABLE, "--split-column", "split", "--split", "valid"
    )
    alone = document("audit", "--labels", "valid.csv", *TABLE, "--ignore-column", "split")
    assert joint["categories"] == alone["categories"]


def test_categories_by_name() -> None:
    """Some categories, in the order that is asked for."""
    found = document(
        "audit", "--labels", "train.csv", "--encoding", "nan", "--category", "dog",
        "--category", "ant",
    )  # fmt: skip
    assert [row["category"] for row in found["categories"]] == ["dog", "ant"]


def test_evaluate_json() -> None:
    """Undefined numbers are null, and the inputs are described."""
    valid = ["--features", "valid.npz", "--labels", "valid.csv", *TABLE, "--ignore-column", "split"]
    found = document("evaluate", *valid, *MODEL, "--metric", "auroc", "--metric", "f1")
    assert found["categories"][-1]["auroc"] is None
    assert found["categories"][-1]["reason"] == "no_known_positive"
    assert list(found["means"]) == ["auroc", "f1"]
    assert found["means"]["auroc"]["n_categories"] == len(NAMES) - 1
    assert found["inputs"]["head"]["path"] == "model.safetensors"


def test_rows_of_a_split_join_by_id_or_position() -> None:
    """One file of features serves both splits, with ids and without."""
    source = ["evaluate", "--features", "all.npz", "--labels", "all.csv", *MODEL]
    split = ["--encoding", "nan", "--split-column", "split", "--split", "valid"]
    by_id = document(*source, *split, "--id-column", "image", "--ignore-column", "patient")
    by_place = document(*source, *split, "--ignore-column", "image", "--ignore-column", "patient")
    assert by_id["categories"] == by_place["categories"]


def test_head_file_and_checkpoint_agree(tmp_path: Path) -> None:
    """A head saved by catwise scores as the checkpoint that it came from."""
    path = tmp_path / "head.safetensors"
    save_head(read_head("model.safetensors", categories=NAMES), path)
    head = document("evaluate", *TEST, "--head", str(path))
    assert head["categories"] == document("evaluate", *TEST, *MODEL)["categories"]


def test_in_sample_is_said(tmp_path: Path) -> None:
    """Rows that fitted the head are recognised, on stderr, in the table and in the document."""
    from catwise.features import row_digests

    ids = np.load("test.npz")["ids"]
    head = read_head("model.safetensors", categories=NAMES)
    path = tmp_path / "head.safetensors"
    save_head(head.with_fitted_on(row_digests(np.zeros((len(ids), 1)), ids=ids)[:7]), path)
    result = run("evaluate", *TEST, "--head", str(path))
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: 7 of 400 rows fitted or selected this head")
    assert "in sample: 7 of these rows" in result.stdout
    assert document("evaluate", *TEST, "--head", str(path))["in_sample"] is True


@pytest.mark.parametrize("name", ["out.safetensors", "out.pt"])
def test_an_applied_head_knows_the_rows_that_fitted_it(tmp_path: Path, name: str) -> None:
    """In the metadata or beside the file; of other numbers in that place nothing is known."""
    from catwise.features import row_digests

    ids = np.load("test.npz")["ids"]
    digests = row_digests(np.zeros((len(ids), 1)), ids=ids)
    head = read_head("model.safetensors", categories=NAMES)
    tuned = head.replace(weight=head.weight * 1.5).with_fitted_on(digests[:9])
    save_head(tuned, tmp_path / "head.safetensors")
    source, out = tmp_path / f"in{name[3:]}", tmp_path / name
    state = {"fc.weight": head.weight, "fc.bias": head.bias}
    (save_file if name.endswith("safetensors") else torch.save)(state, source)
    applied = run(
        "apply", "--head", str(tmp_path / "head.safetensors"), "--checkpoint", str(source),
        "--out", str(out),
    )  # fmt: skip
    assert applied.exit_code == 0, applied.output
    given = ["evaluate", *TEST, "--head-categories", "names.txt", "--checkpoint"]
    assert document(*given, str(out))["n_in_sample"] == 9
    assert "in sample: 9 of these rows" in run(*given, str(out)).stdout
    before = document(*given, str(source))
    assert before["in_sample"] is before["n_in_sample"] is None
    assert "not known whether some of these rows" in run(*given, str(source)).stdout
    if name.endswith(".pt"):  # somebody trains on, and saves at the same place
        torch.save({**state, "fc.weight": head.weight * 2}, out)
        assert document(*given, str(out))["in_sample"] is None
        (tmp_path / "out.pt.catwise.json").write_text('{"written": 3')
        assert document(*given, str(out))["in_sample"] is None


@pytest.mark.parametrize("name", ["out.safetensors", "out.pt"])
def test_a_head_written_from_python_knows_the_rows_that_fitted_it(
    tmp_path: Path, name: str
) -> None:
    """Unasked; as the head goes on from copy to copy, and only while its numbers are there."""
    from catwise.features import row_digests

    ids = np.load("test.npz")["ids"]
    digests = row_digests(np.zeros((len(ids), 1)), ids=ids)
    head = read_head("model.safetensors", categories=NAMES)
    tuned = head.replace(weight=head.weight * 1.5).with_fitted_on(digests[:9])
    source, out = tmp_path / f"in{name[3:]}", tmp_path / name
    copy, more, bare = (tmp_path / f"{word}{name}" for word in ("copy", "more", "bare"))
    state = {"fc.weight": head.weight, "fc.bias": head.bias}
    (save_file if name.endswith("safetensors") else torch.save)(state, source)
    given = ["evaluate", *TEST, "--head-categories", "names.txt", "--checkpoint"]

    write_head(source, tuned, out)
    assert document(*given, str(out))["n_in_sample"] == 9
    write_head(out, read_head(out), copy)
    assert copy.read_bytes() == out.read_bytes()
    assert document(*given, str(copy))["n_in_sample"] == 9
    one_row = tuned.replace(fitted_on=digests[8:12]).take_categories(["bee"])
    write_head(out, one_row.replace(weight=one_row.weight * 2), more, categories=NAMES)
    assert document(*given, str(more))["n_in_sample"] == 12
    write_head(out, tuned.replace(weight=tuned.weight * 2, fitted_on=None, provenance={}), bare)
    assert document(*given, str(bare))["n_in_sample"] is None
    write_head(source, tuned, bare, provenance={}, overwrite=True)
    assert document(*given, str(bare))["n_in_sample"] is None
    write_head(source, read_head(source), copy, overwrite=True)
    assert copy.read_bytes() == source.read_bytes()
    assert document(*given, str(copy))["n_in_sample"] is None

    compared = [*given[:-1], "--checkpoint", str(out), "--against", str(source)]
    told = document(*compared)
    assert (told["verdict"], told["n_in_sample_after"]) == ("in_sample", 9)
    assert told["comparisons"][0]["verdict"] == "in_sample"


def test_a_head_written_over_a_saved_one_keeps_no_memory_of_it(tmp_path: Path) -> None:
    """A file of `save_head` is a checkpoint, too: what fitted the old numbers does not count."""
    first = Head([[1.0, 2.0], [3.0, 4.0]], categories=["cat", "dog"], fitted_on=[1, 2])
    save_head(first, tmp_path / "old.safetensors")
    second = first.replace(weight=first.weight * 2, fitted_on=[3])
    write_head(tmp_path / "old.safetensors", second, tmp_path / "new.safetensors")
    for found in (read_head(tmp_path / "new.safetensors"), load_head(tmp_path / "new.safetensors")):
        assert torch.equal(found.weight, second.weight)
        assert found.fitted_on is not None
        assert found.fitted_on.tolist() == [3]


def test_rows_that_a_record_had_no_room_for_stay_unknown() -> None:
    """Also when further rows are remembered: the part is never taken for the whole."""
    head = Head([[1.0]], fitted_on=[1, 2], provenance={"fitted_rows": 5}).with_fitted_on([2, 9, 10])
    assert head.provenance["fitted_rows"] == 7
    assert Head([[1.0]], fitted_on=[1]).with_fitted_on([2]).provenance == {}


@pytest.mark.parametrize("number", ["1e400", "NaN", "true", "-1", "9" * 10_000, '"9"'])
def test_a_damaged_record_of_rows_says_nothing(tmp_path: Path, number: str) -> None:
    """A count that is none makes the whole record none; the head is read."""
    head = read_head("model.safetensors", categories=NAMES)
    told = {
        "written": head.replace(categories=None).digest,
        "fitted_on": {"n_rows": "COUNT", "digests": ""},
    }
    text = json.dumps(told).replace('"COUNT"', number)
    state = {"fc.weight": head.weight, "fc.bias": head.bias}
    save_file(state, tmp_path / "x.safetensors", metadata={"catwise": text})
    given = ["evaluate", *TEST, "--head-categories", "names.txt", "--checkpoint"]
    assert document(*given, str(tmp_path / "x.safetensors"))["in_sample"] is None


def test_rows_beyond_what_a_checkpoint_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many digests and no more: found ones are counted, and no finding says nothing."""
    from catwise.features import row_digests
    from catwise.heads import provenance

    monkeypatch.setattr(provenance, "MAX_ROWS", 20)
    ids = np.load("test.npz")["ids"]
    digests = np.sort(row_digests(np.zeros((len(ids), 1)), ids=ids))
    head = read_head("model.safetensors", categories=NAMES)
    given = ["evaluate", *TEST, "--head-categories", "names.txt", "--checkpoint"]
    for fitted, expected in (
        (digests[:50], 20),
        (np.r_[np.arange(1, 40).astype(np.uint64), digests[-1:]], None),
    ):
        new = head.replace(weight=head.weight * 1.5).with_fitted_on(fitted)
        out = tmp_path / f"{expected}.safetensors"
        told = provenance.describe(new, head)
        write_head("model.safetensors", new, out, categories=NAMES, provenance=told)
        assert document(*given, str(out))["n_in_sample"] == expected


def test_two_heads_are_compared(tmp_path: Path) -> None:
    """A saved head against the checkpoint: both ways round, as JSON, CSV and a narrow table."""
    head = read_head("model.safetensors", categories=NAMES)
    path, csv_path = tmp_path / "head.safetensors", tmp_path / "table.csv"
    save_head(head.replace(weight=head.weight + torch.eye(6, 8)), path)
    forth = document("evaluate", *TEST, "--head", str(path), "--against", "model.safetensors")
    back = document(
        "evaluate", *TEST, *MODEL, "--against", str(path), "--csv", str(csv_path)
    )  # fmt: skip
    one, other = forth["comparisons"][0], back["comparisons"][0]
    assert one["metric"] == other["metric"] == "average_precision"
    assert one["difference"] == pytest.approx(-other["difference"])
    assert one["before"] == other["after"]
    assert forth["inputs"]["against"]["path"] == "model.safetensors"
    assert forth["sentence"].split(":")[0] in {"Helped", "Harmed", "No difference shown"}
    with csv_path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["category"] for row in rows] == [*NAMES, *NAMES]
    assert [row["metric"] for row in rows] == ["average_precision"] * 6 + ["auroc"] * 6
    assert float(rows[0]["difference"]) == other["categories"][0]["difference"]
    printed = run("evaluate", *TEST, "--head", str(path), "--against", "model.safetensors").stdout
    assert printed.startswith(forth["sentence"][:40])
    table = printed.split("average precision on 400 rows")[1].splitlines()
    assert max(map(len, table)) <= 100


def test_the_other_head_is_named_and_placed(tmp_path: Path) -> None:
    """Its key may be said; the option alone is wrong use; it is not written over."""
    two = {"a.weight": torch.zeros(6, 8), "b.weight": torch.eye(6, 8)}
    torch.save(two, tmp_path / "two.pt")
    against = ["evaluate", *TEST, *MODEL, "--against", str(tmp_path / "two.pt")]
    assert run(*against).exit_code == HeadError.exit_code
    found = document(*against, "--against-key", "b.weight", "--force")
    assert [row["category"] for row in found["comparisons"][0]["categories"]] == list(NAMES)
    assert run("evaluate", *TEST, *MODEL, "--against-key", "b.weight").exit_code == 2
    written = run(*against, "--csv", str(tmp_path / "two.pt"))
    assert written.exit_code == OutputError.exit_code


@pytest.mark.parametrize("option", ["--csv", "--report"])
@pytest.mark.parametrize("command", ["evaluate", "audit"])
def test_what_is_written_is_no_input(command: str, option: str, case: Path) -> None:
    """Table and report are not written over the labels they are made from, by whatever name."""
    options = [*TEST, *MODEL] if command == "evaluate" else TEST[2:]
    link = case / f"{command}{option}.csv"
    link.symlink_to("test.csv")
    before = (case / "test.csv").read_bytes()
    for path in ("test.csv", str(link)):
        result = run(command, *options, option, path)
        assert result.exit_code == OutputError.exit_code
        assert "is one of the inputs" in result.stderr
    assert (case / "test.csv").read_bytes() == before


def test_reports_are_written(tmp_path: Path) -> None:
    """Of one head, of two, and of labels: with what was read, the date, curves and the verdict."""
    path = tmp_path / "page.html"
    one = document("evaluate", *TEST, *MODEL, "--report", str(path))
    page = path.read_text("utf-8")
    assert "<dd>model.safetensors</dd>" in page
    assert f'<p class="scores">{one["means"]["average_precision"]["macro"]:.4f}</p>' in page
    assert page.count("<svg") > 6 * 4
    assert "2026-01-01" in page
    two = document(
        "evaluate", *TEST, *MODEL, "--against", "model.safetensors", "--report", str(path)
    )  # fmt: skip
    assert two["sentence"] in path.read_text("utf-8")
    labels = document("audit", *TEST[2:], "--report", str(path))
    assert f"<dd>{labels['next']['fix']}</dd>" in path.read_text("utf-8")
    assert "6 of 6 categories can be fine-tuned and scored" in path.read_text("utf-8")


def test_quiet_and_few_rows() -> None:
    """--quiet prints nothing; --rows shortens the table and says so."""
    assert run("evaluate", *TEST, *MODEL, "-q").stdout == ""
    assert "4 further categories are not shown" in run(
        "evaluate", *TEST, *MODEL, "--rows", "2"
    ).stdout  # fmt: skip


def test_exactly_one_head() -> None:
    """No head, or two, is wrong use."""
    assert run("evaluate", *TEST).exit_code == 2
    assert run("evaluate", *TEST, *MODEL, "--head", "x").exit_code == 2


def _abuse(folder: Path) -> None:
    """Files with something wrong each."""
    test = dict(np.load("test.npz"))
    features, ids = test["features"], test["ids"]
    bad = features.copy()
    bad[3, 1] = np.nan
    np.savez(folder / "nan.npz", features=bad, ids=ids)
    np.savez(folder / "narrow.npz", features=features[:, :4], ids=ids)
    np.savez(folder / "twice.npz", features=features, ids=np.r_[ids[:1], ids[:-1]])
    np.savez(folder / "shuffled.npz", features=features[::-1], ids=ids)
    np.savez(folder / "short.npz", features=features[:9])
    np.savez(folder / "void.npz", features=features[:0])
    (folder / "cut.npz").write_bytes((folder / "nan.npz").read_bytes()[:5000])
    text = Path("test.csv").read_text()
    lines = text.splitlines()
    (folder / "empty.csv").write_text("")
    (folder / "header.csv").write_text(lines[0] + "\n")
    (folder / "value.csv").write_text("\n".join([*lines[:2], lines[2][:-1] + "7"]) + "\n")
    (folder / "twice.csv").write_text("\n".join([*lines, lines[-1]]) + "\n")
    (folder / "renamed.csv").write_text(text.replace("fox", "fax", 1))
    (folder / "cut.csv").write_text(text[: len(text) // 2 - 1])


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("nan.npz", FeatureError, "row 3"),
        ("narrow.npz", ShapeError, "8 columns"),
        ("twice.npz", IdError, "test_000"),
        ("short.npz", ShapeError, "number of rows"),
        ("void.npz", FeatureStoreError, "no features"),
        ("cut.npz", FeatureStoreError, "cut.npz"),
        ("absent.npz", FeatureStoreError, "No such file"),
        ("shuffled.npz", MismatchError, "mismatched"),
        ("empty.csv", LabelError, "empty"),
        ("header.csv", LabelError, "no rows"),
        ("value.csv", LabelError, "7"),
        ("twice.csv", IdError, "test_399"),
        ("renamed.csv", CategoryError, "did you mean 'fox'"),
        ("cut.csv", LabelError, "cut.csv"),
        ("absent.csv", LabelError, "No such file"),
    ],
)
def test_bad_input(tmp_path: Path, name: str, kind: type[Any], says: str) -> None:
    """Each kind of bad input has its own message and exit code, and no traceback."""
    _abuse(tmp_path)
    option = "--features" if name.endswith(".npz") else "--labels"
    result = run("evaluate", *TEST, *MODEL, option, str(tmp_path / name))
    assert result.exit_code == kind.exit_code, result.output
    assert result.stderr.startswith(kind.__name__ + ": ")
    assert says in result.stderr


def test_force_goes_on(tmp_path: Path) -> None:
    """--force scores what looks mismatched, and says so."""
    _abuse(tmp_path)
    result = run("evaluate", *TEST, *MODEL, "--features", str(tmp_path / "shuffled.npz"), "--force")
    assert result.exit_code == 0
    assert "look mismatched" in result.stdout


def test_features_at_an_url(tmp_path: Path) -> None:
    """A feature store's URL is taken as it stands, and scores as the folder does."""
    fsspec = pytest.importorskip("fsspec")
    from catwise.features import read_features, write_store

    make_example(tmp_path)
    found = []
    for place in (str(tmp_path / "store"), "memory://cli/store"):
        write_store(place, read_features(tmp_path / "test.npz"))
        arguments = ["evaluate", "--features", place, "--labels", str(tmp_path / "test.csv")]
        arguments += ["--encoding", "nan", "--id-column", "image", "--ignore-column", "split"]
        arguments += ["--group-column", "patient", "--checkpoint"]
        result = CliRunner().invoke(main, [*arguments, str(tmp_path / "model.safetensors")])
        assert result.exit_code == 0, result.output
        found.append(result.output)
    fsspec.filesystem("memory").store.clear()
    assert found[0] == found[1]


def test_scores_by_patient_and_by_study(tmp_path: Path) -> None:
    """A patient's images, or those of one folder, count as one."""
    found = document("evaluate", *TEST, *MODEL, "--by", "patient", "--pool", "max")
    with Path("test.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    patients = {row["patient"] for row in rows}
    assert found["n_rows"] == len(patients)
    positive = {row["patient"] for row in rows if row["ant"] == "1"}
    assert found["categories"][0]["n_positive"] == len(positive)
    assert any(f"scores are of {len(patients)} patients" in note for note in found["notes"])
    with np.load("test.npz") as arrays:
        features = arrays["features"]
    ids = np.array([f"test/{row['patient']}/study1/{row['image']}.jpg" for row in rows])
    np.savez(tmp_path / "paths.npz", features=features, ids=ids)
    with (tmp_path / "paths.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(
            {**row, "image": name} for row, name in zip(rows, ids.tolist(), strict=True)
        )
    paths = ["--features", str(tmp_path / "paths.npz"), "--labels", str(tmp_path / "paths.csv")]
    given = ["evaluate", *paths, *TEST[4:], *MODEL, "--by", "study", "--pool", "max"]
    studies = document(*given)
    assert studies["means"]["auroc"] == found["means"]["auroc"]
    result = run("evaluate", *TEST, *MODEL, "--by", "study")
    assert result.exit_code == ConfigError.exit_code
    assert "ids do not tell studies" in result.output
