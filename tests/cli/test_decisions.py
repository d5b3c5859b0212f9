"""`catwise calibrate`, `threshold` and `conformal` on a run of `catwise tune`, and on logits."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from catwise import Calibration, ConformalSets, PartialLabels, Thresholds, load_head
from catwise.cli import main
from catwise.decisions import calibrate, conformal, threshold
from catwise.errors import CategoryError, ConfigError, IdError, OutputError
from catwise.features import read_features
from catwise.tuning import FoldArtifacts
from cli.example import NAMES, make_example

TABLE = ["--labels", "all.csv", "--encoding", "nan", "--id-column", "image"]
SPLIT = [*TABLE, "--group-column", "patient", "--split-column", "split"]
VALID = ["--run", "run", *SPLIT, "--split", "valid"]
TEST = ["--test-features", "test.npz", "--test-labels", "test.csv"]
HEAD = ["--checkpoint", "model.safetensors", "--head-categories", "names.txt"]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("case")
    make_example(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        found = run("tune", "--features", "all.npz", *SPLIT, *HEAD, "--out", "run", "--quiet")
    assert found.exit_code == 0, found.output
    return folder


@pytest.fixture(autouse=True)
def _inside(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(case)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def document(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def labels_of(split: str) -> PartialLabels:
    """The labels of a split, read plainly."""
    name = "test.csv" if split == "test" else "all.csv"
    with Path(name).open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    y = [[float(row[name]) if row[name] else np.nan for name in NAMES] for row in rows]
    ids = [row["image"] for row in rows]
    return PartialLabels.from_array(y, encoding="nan", ids=ids, categories=NAMES)


def test_calibrate_is_the_librarys(tmp_path: Path) -> None:
    """The same maps from the run's out-of-fold logits; test rows by the run's head."""
    out, table, head = (str(tmp_path / name) for name in ("c.json", "c.csv", "h.safetensors"))
    found = document(
        "calibrate", *VALID, *TEST, "--prevalence", "ant=0.1", "--out", out, "--csv", table,
        "--head-out", head,
    )  # fmt: skip
    folds = FoldArtifacts.load("run/folds.safetensors")
    own = calibrate(folds, labels_of("valid"), prevalence={"ant": 0.1})
    assert Calibration.load(out).categories == own.categories
    assert found["categories"][0]["prevalence"] == 0.1
    assert found["categories"][-1]["reason"] == "no_known_positive"
    logits = load_head("run/head.safetensors").logits(read_features("test.npz").values)
    test = labels_of("test")
    expected = calibrate(folds, labels_of("valid"), prevalence={"ant": 0.1}, test=(logits, test))
    assert found["test"]["log_loss"]["after"] == pytest.approx(
        expected.to_dict()["test"]["log_loss"]["after"]
    )
    folded = load_head(head).logits(read_features("test.npz").values)
    np.testing.assert_allclose(folded.numpy(), own.logits(logits).numpy(), atol=1e-4)
    with Path(table).open(encoding="utf-8") as file:
        assert [row["category"] for row in csv.DictReader(file)] == list(NAMES)


def test_calibrate_writes_a_report(tmp_path: Path) -> None:
    """The verdict of the test rows, and the file of maps that it speaks of."""
    report = tmp_path / "c.html"
    more = ("--prevalence", "ant=0.1", "--out", str(tmp_path / "c.json"), "--report", str(report))
    given = ("calibrate", *VALID, *TEST, *more)
    found = document(*given)
    page = report.read_text("utf-8")
    ET.fromstring(page.split("\n", 1)[1])  # noqa: S314  # our own text
    mean = found["test"]["log_loss"]
    assert f"mean log-loss went from {mean['before']:.4f} to {mean['after']:.4f}" in page
    assert "all.csv" in page
    wrong = run(*given[:-1], "all.csv")
    assert wrong.exit_code != 0
    assert "is one of the inputs" in wrong.stderr


def test_threshold_is_the_librarys(tmp_path: Path) -> None:
    """With every file that can be written, and a table that says why one is missing."""
    out, cut, config = (str(tmp_path / name) for name in ("t.json", "cut.csv", "config.json"))
    given = [
        "threshold", *VALID, *TEST, "--rule", "sensitivity", "--value", "0.9", "--out", out,
        "--cutoffs", cut, "--transformers", config,
    ]  # fmt: skip
    found = document(*given)
    own = threshold(
        FoldArtifacts.load("run/folds.safetensors"), labels_of("valid"), "sensitivity", value=0.9
    )
    np.testing.assert_allclose(Thresholds.load(out).values(), own.values())
    assert found["categories"][0]["sensitivity"] > 0.7
    assert found["op_threshs"][-1] is None
    assert found["categories"][-1]["explanation"].startswith("90% sensitivity needs 22 known pos")
    assert set(json.loads(Path(config).read_text("utf-8"))["decision_thresholds"]) == set(NAMES)
    with Path(cut).open(encoding="utf-8") as file:
        assert {row["category"] for row in csv.DictReader(file)} == set(NAMES)
    text = run(*given).output
    assert "needs 22 known positives; 0 are known" in " ".join(text.split())


def test_the_report_has_the_thresholds(tmp_path: Path) -> None:
    """The page of the run, and in it what each threshold reaches on test rows, and why none is."""
    page = tmp_path / "report.html"
    given = ["threshold", *VALID, "--rule", "sensitivity", "--value", "0.9", "--out"]
    found = document(*given, str(tmp_path / "t.json"), *TEST, "--report", str(page))
    text = page.read_text("utf-8")
    root = ET.fromstring(text.split("\n", 1)[1])  # noqa: S314  # our own text
    section = root.find(".//section[@aria-labelledby='thresholds']")
    assert section is not None
    rows = [["".join(cell.itertext()) for cell in row] for row in section.iter("tr")]
    first, shown = found["categories"][0], dict(zip(rows[0], rows[1], strict=True))
    assert float(shown["threshold (logit)"].replace("−", "-")) == pytest.approx(
        first["threshold"], abs=1e-4
    )
    for name in ("sensitivity", "specificity", "precision"):
        assert float(shown[name].split()[0]) == pytest.approx(first[name], abs=1e-4)
    assert float(shown["alerts per 1,000"]) == pytest.approx(first["alerts_per_1000"], abs=1)
    assert "needs 22 known positives; 0 are known" in rows[-1][-1]
    run_page = Path("run/report.html").read_text("utf-8")
    before, after = text.split('<section aria-labelledby="thresholds">')
    whole = before + after.split("</section>\n", 1)[1]
    # beyond the section: what a threshold is, and each in its category's part and chart
    ways = ("<dt>threshold", "<figure><figcaption>Where positives and negatives score")
    lines = [
        [line for line in one.split("\n") if line and not line.startswith(ways)]
        for one in (whole, run_page)
    ]
    assert lines[0] == lines[1]
    assert any(line.startswith(ways[0]) for line in whole.split("\n"))
    run(*given, str(tmp_path / "t.json"), "--report", str(page))
    assert "not tried on test rows" in page.read_text("utf-8")


def test_conformal_is_the_librarys(tmp_path: Path) -> None:
    """The same cut-offs from the run's out-of-fold logits; what they cover on test rows."""
    out, table = str(tmp_path / "s.json"), str(tmp_path / "s.csv")
    given = [
        "conformal", *VALID, *TEST, "--alpha", "0.2", "--out", out, "--csv", table,
    ]  # fmt: skip
    found = document(*given)
    own = conformal(FoldArtifacts.load("run/folds.safetensors"), labels_of("valid"), alpha=0.2)
    np.testing.assert_allclose(ConformalSets.load(out).cuts(), own.cuts())
    logits = load_head("run/head.safetensors").logits(read_features("test.npz").values)
    codes, y = own.decide(logits).numpy(), labels_of("test").codes
    first = found["categories"][0]
    assert first["positive_covered"] == pytest.approx(
        np.isin(codes[y[:, 0] == 1, 0], [2, 3]).mean()
    )
    with Path(table).open(encoding="utf-8") as file:
        assert [row["category"] for row in csv.DictReader(file)] == list(NAMES)
    text = " ".join(run(*given).output.split())
    assert 'fox: A set without "positive" needs 4 known positives; 0 are known.' in text
    strict = document("conformal", *VALID, "--confidence", "0.9", "--out", out)
    assert strict["categories"][-1]["positive_needed"] == 22


def test_logits_of_ones_own(tmp_path: Path) -> None:
    """Logits with ids in a file, in place of a run; a stated calibration is used."""
    folds = FoldArtifacts.load("run/folds.safetensors")
    order = np.random.default_rng(0).permutation(len(folds.fold))
    assert folds.ids is not None
    np.savez(tmp_path / "z.npz", features=folds.logits[order], ids=folds.ids[order])
    given = ["--logits", str(tmp_path / "z.npz"), *SPLIT, "--split", "valid"]
    maps = str(tmp_path / "c.json")
    document("calibrate", *given, "--out", maps)
    found = document(
        "threshold", *given, "--calibration", maps, "--rule", "cost", "--value", "4", "--expected",
        "--out", str(tmp_path / "t.json"),
    )  # fmt: skip
    own = threshold(folds, labels_of("valid"), "cost", value=4.0)
    values = [row["threshold"] for row in found["categories"]]
    np.testing.assert_allclose(np.array(values, dtype=float), own.values(), rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "code", "text"),
    [
        (["calibrate", *SPLIT, "--split", "valid"], 2, "either --run DIR or --logits"),
        (["calibrate", *VALID, "--test-labels", "test.csv"], 2, "test rows need"),
        (["calibrate", *VALID, "--test-logits", "x.npy"], 2, "--test-logits needs --logits"),
        (["calibrate", "--run", "run", *SPLIT, "--split", "train"], IdError.exit_code, "IdError"),
        (["conformal", *VALID, "--alpha", "1"], 2, "--alpha"),
        (["conformal", *VALID, "--prevalence", "0.1"], 2, "No such option"),
        (["threshold", *VALID, "--cutoffs", "x.csv"], 2, "--cutoffs needs test rows"),
        (["threshold", *VALID, "--report", "run/summary.json"], OutputError.exit_code, "inputs"),
        (["threshold", *VALID, "--rule", "precision"], ConfigError.exit_code, "needs a value"),
        (
            ["calibrate", *VALID, "--test-features", "all.npz", "--test-split", "valid"],
            IdError.exit_code,
            "cannot judge",
        ),
    ],
)
def test_what_cannot_be(given: list[str], code: int, text: str, tmp_path: Path) -> None:
    """One clear error, and nothing is written."""
    out = tmp_path / "out.json"
    result = run(*given, "--out", str(out))
    assert result.exit_code == code, result.output
    assert text in " ".join(result.output.split())
    assert not out.exists()


def test_inputs_are_not_written_over() -> None:
    """The run's folds and head are inputs."""
    before = Path("run/head.safetensors").read_bytes()
    result = run("calibrate", *VALID, "--out", "run/head.safetensors")
    assert result.exit_code == OutputError.exit_code
    assert Path("run/head.safetensors").read_bytes() == before


def test_categories_that_the_run_does_not_have(tmp_path: Path) -> None:
    """They are left out on request, of labels and of test labels; the result is the same."""
    wide = {}
    for name in ("all.csv", "test.csv"):
        lines = Path(name).read_text().splitlines()
        wide[name] = tmp_path / name
        wide[name].write_text("\n".join([f"{lines[0]},gnu", *(f"{one},1" for one in lines[1:])]))
    table = [str(wide["all.csv"]) if one == "all.csv" else one for one in VALID]
    test = [str(wide["test.csv"]) if one == "test.csv" else one for one in TEST]
    for command, judged in (
        ("calibrate", True),
        ("threshold", True),
        ("conformal", True),
        ("suggest", False),
    ):
        line = [command, *table, *(test if judged else ["--cells", "10"]), "--out"]
        refused = run(*line, str(tmp_path / "a"))
        assert refused.exit_code == CategoryError.exit_code
        assert "--unknown-categories ignore" in refused.output.partition("try:")[2]
        told = run(*line, str(tmp_path / command), "--unknown-categories", "ignore")
        assert told.exit_code == 0, told.output
        assert "1 category is not of the head, and ignored: gnu" in told.output
        plain = [command, *VALID, *(TEST if judged else ["--cells", "10"])]
        assert run(*plain, "--out", str(tmp_path / f"{command}.plain")).exit_code == 0
        assert (tmp_path / command).read_bytes() == (tmp_path / f"{command}.plain").read_bytes()
