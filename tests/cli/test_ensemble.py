"""`catwise ensemble` of runs and of files, by image, study and patient."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from catwise import Ensemble, PartialLabels, ensemble, load_head, threshold
from catwise.cli import main
from catwise.data.readers.chexpert import COMPETITION, OBSERVATIONS
from catwise.errors import ConfigError, FeatureError, OutputError
from catwise.features import read_features
from catwise.heads import Head, save_head
from catwise.tuning import FoldArtifacts
from cli.example import NAMES, make_example

TABLE = ["--labels", "all.csv", "--encoding", "nan", "--id-column", "image"]
SPLIT = [*TABLE, "--group-column", "patient", "--split-column", "split"]
VALID = [*SPLIT, "--split", "valid"]
TEST = ["--test-labels", "test.csv"]
RUNS = ["--member", "one=run", "--member", "two=other"]
ROWS = ["--test-member", "one=test.npz", "--test-member", "two=test2.npz"]
MODEL = ["--checkpoint", "model.safetensors", "--head-categories", "names.txt"]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, a run on it, one on other features, and one more on the same features."""
    folder = tmp_path_factory.mktemp("case")
    make_example(folder)
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(8, 10)).astype(np.float32)
    for name in ("all", "test"):
        with np.load(folder / f"{name}.npz") as arrays:
            z, ids = arrays["features"], arrays["ids"]
        noise = rng.normal(size=(len(z), 10)).astype(np.float32)
        np.savez(folder / f"{name}2.npz", features=z @ mix + noise, ids=ids)
    from catwise import read_head

    head = read_head(folder / "model.safetensors")
    turned = head.weight.numpy() @ np.linalg.pinv(mix).T
    save_head(Head(turned, head.bias, categories=NAMES), folder / "other.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for out, given in (
            ("run", ["--features", "all.npz", *MODEL]),
            ("other", ["--features", "all2.npz", "--head", "other.safetensors"]),
            ("again", ["--features", "all.npz", *MODEL, "--metric", "auroc"]),
        ):
            found = run("tune", *given, *SPLIT, "--out", out, "--quiet")
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


def table(path: Path | str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def labels_of(split: str) -> PartialLabels:
    """The labels of a split, read plainly."""
    every = table("test.csv" if split == "test" else "all.csv")
    rows = [row for row in every if row["split"] == split]
    y = [[float(row[name]) if row[name] else np.nan for name in NAMES] for row in rows]
    ids = [row["image"] for row in rows]
    groups = [row["patient"] for row in rows]
    return PartialLabels.from_array(y, encoding="nan", ids=ids, categories=NAMES, groups=groups)


def test_runs_are_the_librarys(tmp_path: Path) -> None:
    """Out-of-fold logits calibrate, the runs' heads and their own features are tested."""
    out, csv_path, said = (tmp_path / name for name in ("e.json", "e.csv", "p.csv"))
    report = tmp_path / "e.html"
    given = [
        "ensemble", *RUNS, *VALID, *ROWS, *TEST, "--out", str(out), "--csv", str(csv_path),
        "--predictions", str(said), "--report", str(report),
    ]  # fmt: skip
    found = document(*given)
    members = {
        name: FoldArtifacts.load(f"{place}/folds.safetensors")
        for name, place in (("one", "run"), ("two", "other"))
    }
    own = ensemble(members, labels_of("valid"))
    rows = {
        name: (load_head(f"{place}/head.safetensors"), read_features(file))
        for name, place, file in (("one", "run", "test.npz"), ("two", "other", "test2.npz"))
    }
    wanted = own.combine(rows)
    again = Ensemble.load(out)
    np.testing.assert_array_equal(again.combine(rows).logits, wanted.logits)
    lines = table(said)
    assert [line["image"] for line in lines] == labels_of("test").ids.tolist()  # type: ignore[union-attr]
    values = [[float(line[name]) for name in NAMES] for line in lines]
    np.testing.assert_allclose(values, wanted.probabilities, rtol=1e-9)
    assert found["against"]["one"]["auroc"]["after"] > 0.6
    page = report.read_text("utf-8")
    best = max(
        found["against"], key=lambda name: found["against"][name]["average_precision"]["before"]
    )
    assert f"Compared with its best member, {best}." in page
    assert found["categories"][0]["average_precision of two"] < 1
    assert "maps" not in found["members"][0]
    assert [line["category"] for line in table(csv_path)] == list(NAMES)
    text = " ".join(run(*given).output.split())
    assert "Ensemble, average precision on test rows" in text
    assert "against 'two': " in text
    assert "no_known_positive" in text


def test_by_patient_and_fitted_weights(tmp_path: Path) -> None:
    """Predictions are of patients; the worth of weights is said."""
    out, said = str(tmp_path / "e.json"), str(tmp_path / "p.csv")
    found = document(
        "ensemble", *RUNS, *VALID, *ROWS, *TEST, "--by", "patient", "--pool", "max",
        "--weights", "fitted", "--out", out, "--predictions", said,
    )  # fmt: skip
    patients = list(dict.fromkeys(row["patient"] for row in table("test.csv")))
    assert [line["patient"] for line in table(said)] == patients
    assert (found["by"], found["pool"]) == ("patient", "max")
    assert found["worth"]["log_loss"]["sentence"]
    assert np.allclose(np.sum(found["weights"], axis=0), 1)
    stated = document(
        "ensemble", *RUNS, *VALID, "--weights", "one=3", "--weights", "two=1", "--out", out
    )
    assert stated["weights"][0][0] == 0.75


def test_runs_on_the_same_features_are_one_head(tmp_path: Path) -> None:
    """The head that is written gives the ensemble's logits; of probabilities there is none."""
    head, said = tmp_path / "h.safetensors", tmp_path / "p.csv"
    given = [
        "ensemble", "--member", "one=run", "--member", "two=again", *VALID, "--test-member",
        "one=test.npz", "--test-member", "two=test.npz", *TEST, "--out", str(tmp_path / "e.json"),
        "--head-out", str(head), "--predictions", str(said),
    ]  # fmt: skip
    assert run(*given, "--method", "logit").exit_code == 0
    logits = load_head(head).logits(read_features("test.npz").values).double().numpy()
    values = np.array([[float(line[name]) for name in NAMES] for line in table(said)])
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), values, atol=1e-5)
    head.unlink()
    result = run(*given)
    assert result.exit_code == ConfigError.exit_code
    assert "only a mean of logits is one head" in result.output
    assert not head.exists()


def test_thresholds_of_an_ensemble(tmp_path: Path) -> None:
    """Its out-of-fold logits go into `threshold` and `conformal`, joined by id."""
    logits = tmp_path / "oof.npz"
    given = ["ensemble", *RUNS, *VALID, "--out", str(tmp_path / "e.json")]
    document(*given, "--logits-out", str(logits))
    members = {
        name: FoldArtifacts.load(f"{place}/folds.safetensors")
        for name, place in (("one", "run"), ("two", "other"))
    }
    labels = labels_of("valid")
    wanted = ensemble(members, labels).combine(members, ids=labels.ids).logits
    out = str(tmp_path / "t.json")
    rule = ["--rule", "sensitivity", "--value", "0.9"]
    found = document("threshold", "--logits", str(logits), *VALID, *rule, "--out", out)
    own = threshold(wanted, labels, "sensitivity", value=0.9)
    values = [row["threshold"] for row in found["categories"]]
    np.testing.assert_allclose(np.array(values, dtype=float), own.values(), rtol=1e-6)
    assert run("conformal", "--logits", str(logits), *VALID, "--out", out).exit_code == 0
    result = run(*given, "--logits-out", str(logits), "--by", "patient")
    assert result.exit_code == 2
    assert "--logits-out is of images" in result.output


def outputs_file(path: Path, ids: list[str], values: Any, names: Any) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *names])
        writer.writerows([one, *row] for one, row in zip(ids, values.tolist(), strict=True))
    return str(path)


def chexpert(root: Path) -> dict[str, Any]:
    """Tables as CheXpert's, of studies with two views, and two models' probabilities."""
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for split, first in (("valid", 0), ("test", 500)):
        truth = rng.normal(size=(200, 14))
        paths = [
            f"{split}/patient{first + s:05}/study1/view{v}_{view}.jpg"
            for s in range(200)
            for v, view in ((1, "frontal"), (2, "lateral"))
        ]
        y = ((truth + rng.logistic(size=truth.shape)) > 1).astype(float).repeat(2, axis=0)
        with (root / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["Path", *OBSERVATIONS])
            writer.writerows(
                [f"CheXpert-v1.0/{one}", *row] for one, row in zip(paths, y, strict=True)
            )
        for name in ("one", "two"):
            z = truth.repeat(2, axis=0) + rng.normal(size=(400, 14))
            p = 1 / (1 + np.exp(-z))
            found[f"{name} {split}"] = outputs_file(
                root / f"{name}_{split}.csv", paths, p, OBSERVATIONS
            )
            found[f"{name} {split} p"] = p
        found[f"y {split}"], found[f"paths {split}"] = y, paths
    return found


def test_the_chexpert_ensemble(tmp_path: Path) -> None:
    """One option: five observations, by study, the largest over views; its submission."""
    made = chexpert(tmp_path)
    out, submission, said = (tmp_path / name for name in ("e.json", "s.csv", "p.csv"))
    given = [
        "ensemble", "--kind", "probabilities", "--preset", "chexpert", "--dataset", "chexpert",
        "--root", str(tmp_path), "--split", "valid", "--out", str(out),
        *(x for m in ("one", "two") for x in ("--member", f"{m}={made[f'{m} valid']}")),
    ]  # fmt: skip
    rows = [x for m in ("one", "two") for x in ("--test-member", f"{m}={made[f'{m} test']}")]
    found = document(
        *given, *rows, "--test-split", "test", "--submission", str(submission),
    )  # fmt: skip
    assert [row["category"] for row in found["categories"]] == list(COMPETITION)
    assert (found["by"], found["pool"]) == ("study", "max")
    comparison = found["against"]["one"]["auroc"]
    assert "on 200 test rows" in comparison["sentence"]
    lines = table(submission)
    assert list(lines[0]) == ["Study", *COMPETITION]
    assert lines[3]["Study"] == "CheXpert-v1.0/test/patient00503/study1"
    from catwise.metrics import auroc

    y = made["y test"][::2][:, [OBSERVATIONS.index(one) for one in COMPETITION]]
    values = np.array([[float(line[one]) for one in COMPETITION] for line in lines])
    assert float(auroc(values, y.astype(np.int8)).mean()) == pytest.approx(comparison["after"])
    predict = [x.replace("--test-member", "--predict-member") for x in rows]
    document(*given, *predict, "--submission", str(said))
    assert table(said) == lines


def test_values_that_are_no_probabilities(tmp_path: Path) -> None:
    """They are said, and ranks are averaged."""
    made = chexpert(tmp_path)
    wrong = made["two valid p"].copy()
    wrong[0, 0] = 1.7
    two = outputs_file(tmp_path / "w.csv", made["paths valid"], wrong, OBSERVATIONS)
    given = [
        "ensemble", "--kind", "probabilities", "--dataset", "chexpert", "--root", str(tmp_path),
        "--split", "valid", "--member", f"one={made['one valid']}", "--member", f"two={two}",
        "--out", str(tmp_path / "e.json"),
    ]  # fmt: skip
    found = document(*given)
    assert found["method"] == "rank"
    assert any("outside [0, 1]" in note for note in found["notes"])
    result = run(*given, "--method", "probability")
    assert result.exit_code == FeatureError.exit_code
    assert "--method rank" in result.output


@pytest.mark.parametrize(
    ("given", "code", "text"),
    [
        (["--member", "run"], 2, "is not NAME=PATH"),
        ([*RUNS, "--member", "one=again"], 2, "given twice"),
        ([*RUNS, *ROWS], 2, "test rows need --test-member, and"),
        ([*RUNS, *TEST], 2, "test rows need --test-member, and"),
        ([*RUNS, "--predictions", "p.csv"], 2, "predictions need"),
        ([*RUNS, *ROWS, *TEST, "--submission", "s.csv"], 2, "--submission needs --by study"),
        ([*RUNS, "--weights", "one"], 2, "is not NAME=VALUE"),
        ([*RUNS, "--weights", "one=1"], ConfigError.exit_code, "'two' has none"),
        ([*RUNS, *ROWS[:2], *TEST], ConfigError.exit_code, "test lacks the member 'two'"),
        ([*RUNS, "--by", "study"], ConfigError.exit_code, "ids do not tell studies"),
        ([*RUNS, "--head-out", "h.safetensors"], ConfigError.exit_code, "only a mean of logits"),
    ],
)
def test_what_cannot_be(given: list[str], code: int, text: str, tmp_path: Path) -> None:
    """One clear error, and nothing is written."""
    out = tmp_path / "e.json"
    result = run("ensemble", *given, *VALID, "--out", str(out))
    assert result.exit_code == code, result.output
    assert text in " ".join(result.output.split())
    assert not out.exists()


def test_inputs_are_not_written_over() -> None:
    """A run's folds and head, and files of outputs, are inputs."""
    before = Path("run/head.safetensors").read_bytes()
    for out in ("run/head.safetensors", "other/folds.safetensors", "test2.npz"):
        result = run("ensemble", *RUNS, *VALID, *ROWS, *TEST, "--out", out)
        assert result.exit_code == OutputError.exit_code
    assert Path("run/head.safetensors").read_bytes() == before
