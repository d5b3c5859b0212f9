"""`catwise package`, `predict` and `export`, from the folder that `catwise fix` fills."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import catwise
from catwise.cli import main
from catwise.errors import ConfigError, IdError, MismatchError, OutputError
from catwise.heads import load_head
from catwise.models.images import read_image
from catwise.models.pixels import preprocess
from cli.fix_case import INPUT, MODEL, NAMES, arguments, make_case, tiny_net

RUN = ["--run", "out/run", "--labels", "labels.csv", "--encoding", "nan", "--id-column", "image",
       "--split-column", "split", "--split", "valid"]  # fmt: skip
FILES = ["--calibration", "maps.json", "--thresholds", "cuts.json", "--conformal", "sets.json"]


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a case, what `fix` made of it, and what is decided by its logits."""
    folder = tmp_path_factory.mktemp("case") / "case"
    make_case(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(*arguments(Path(), "--quiet"))
        run("calibrate", *RUN, "--out", "maps.json", "--quiet")
        run("threshold", *RUN, "--calibration", "maps.json", "--out", "cuts.json", "--quiet")
        run("conformal", *RUN, "--out", "sets.json", "--quiet")
        run("package", "--fix", "out", *FILES, "--out", "made", "--quiet")
    return folder


@pytest.fixture(autouse=True)
def _inside(fixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fixed)


def test_package_from_fix(tmp_path: Path) -> None:
    """The new checkpoint, its head, calibration, thresholds and sets, the input of the model."""
    result = run("package", "--fix", "out", *FILES, "--out", f"{tmp_path}/made")
    lines = result.output.splitlines()
    assert lines[0] == "4 categories, 4 with a threshold"
    assert lines[1].startswith("Probabilities speak of images like those with a known label")
    assert lines[2] == f"{tmp_path}/made"
    found = catwise.load_classifier(tmp_path / "made", model=MODEL)
    head = load_head("out/run/head.safetensors")
    torch.testing.assert_close(found.head.weight, head.weight)
    assert found.categories == NAMES
    assert found.preprocessing == INPUT
    names = {path.name for path in (tmp_path / "made").iterdir()}
    assert names == {"classifier.json", "head.safetensors", "calibration.json", "thresholds.json",
                     "conformal.json", "MODEL_CARD.md", "checkpoint"}  # fmt: skip
    assert (tmp_path / "made/checkpoint/net.safetensors").read_bytes() == Path(
        "out/net.safetensors").read_bytes()  # fmt: skip
    again = run("package", "--fix", "out", *FILES, "--out", f"{tmp_path}/made",
                code=OutputError.exit_code)  # fmt: skip
    assert "not empty" in again.output
    said = json.loads(run("package", "--fix", "out", *FILES, "--out", f"{tmp_path}/made",
                          "--overwrite", "--json").stdout)  # fmt: skip
    assert said["digest"] == found.digest


def test_predict_and_the_checkpoint_itself(tmp_path: Path) -> None:
    """Probabilities are the calibrated sigmoid of what the new checkpoint gives for the images."""
    out = tmp_path / "said.csv"
    result = run("predict", "--classifier", "made", "--model", MODEL, "--images", "images",
                 "--out", str(out))  # fmt: skip
    assert "300 images; skipped: 0" in result.output
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    module = tiny_net(Path("out/net.safetensors")).module
    assert module is not None
    images = torch.stack([preprocess(read_image(f"images/{row['id']}"), INPUT) for row in rows])
    with torch.no_grad():
        logits = module(images)
    maps, cuts = catwise.Calibration.load("maps.json"), catwise.Thresholds.load("cuts.json")
    wanted = maps.probabilities(logits).numpy()
    found = np.array([[float(row[f"probability:{name}"]) for name in NAMES] for row in rows])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    decided = np.array([[int(row[f"decision:{name}"]) for name in NAMES] for row in rows])
    np.testing.assert_array_equal(decided, cuts.decide(logits).numpy())
    assert {row["set:ant"] for row in rows} <= {"none", "negative", "positive", "both"}


def test_predict_says(tmp_path: Path) -> None:
    """One document; a table chooses and names the images; a finished file is recognised."""
    Path("some.csv").write_text("path,name\ntest_001.png,one\ntest_000.png,two\n")
    line = ["predict", "--classifier", "made", "--model", MODEL, "--images", "images",
            "--table", "some.csv", "--id-column", "name", "--out", f"{tmp_path}/said.jsonl",
            "--tags"]  # fmt: skip
    said = json.loads(run(*line, "--json").stdout)
    assert (said["rows"], said["made"], said["skipped"]) == (2, 2, [])
    rows = [json.loads(row) for row in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["one", "two"]
    assert all(set(row["tags"]) <= set(NAMES) for row in rows)
    assert json.loads(run(*line, "--json").stdout)["made"] == 0


def test_predict_features(tmp_path: Path) -> None:
    """A store of the model's features; one of other features is refused until it is forced."""
    run("predict", "--classifier", "made", "--features", "out/features", "--out",
        f"{tmp_path}/said.parquet", "--quiet")  # fmt: skip
    run("extract", "--model", MODEL, "--checkpoint", "net.safetensors", "--images", "images",
        "--flips", "--out", f"{tmp_path}/flipped", "--quiet")  # fmt: skip
    line = ["predict", "--classifier", "made", "--features", f"{tmp_path}/flipped", "--out",
            f"{tmp_path}/b.csv"]  # fmt: skip
    refused = run(*line, code=MismatchError.exit_code)
    assert "flips: True" in refused.output
    run(*line, "--force")
    assert len((tmp_path / "b.csv").read_text().splitlines()) == 301


def test_predict_by_study_and_patient(tmp_path: Path) -> None:
    """A row for each: by folders of the images, by a table's paths, or by its patients."""
    names = [f"test_{number:03}.png" for number in range(6)]
    for number, name in enumerate(names):
        place = tmp_path / f"images/p{number % 2}/s{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(Path("images", name).read_bytes())
    base = ["predict", "--classifier", "made", "--model", MODEL, "--images", f"{tmp_path}/images"]
    result = run(*base, "--by", "study", "--out", f"{tmp_path}/study.jsonl")
    assert "6 studies of 6 images; skipped: 0" in result.output
    rows = [
        f"p{at % 2}/s{at % 3}/{name},image{at},patient{at % 2}" for at, name in enumerate(names)
    ]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["path,name,who", *rows]) + "\n")
    of = ["--table", str(table), "--id-column", "name"]
    by = [*of, "--by", "patient", "--group-column", "who"]
    said = json.loads(run(*base, *by, "--out", f"{tmp_path}/who.jsonl", "--json").stdout)
    assert (said["rows"], said["images"], said["by"], said["pool"]) == (2, 6, "patient", "mean")
    found = [json.loads(line) for line in (tmp_path / "who.jsonl").read_text().splitlines()]
    assert [one["id"] for one in found] == ["patient0", "patient1"]
    run(*base, *of, "--out", f"{tmp_path}/each.jsonl", "--quiet")
    each = [json.loads(line) for line in (tmp_path / "each.jsonl").read_text().splitlines()]
    p = [one["categories"]["ant"]["probability"] for one in each]
    assert found[0]["categories"]["ant"]["probability"] == pytest.approx(np.mean(p[::2]), rel=1e-6)
    run(*base, *of, "--by", "study", "--pool", "max", "--out", f"{tmp_path}/of.jsonl", "--quiet")
    studies = [json.loads(line) for line in (tmp_path / "of.jsonl").read_text().splitlines()]
    assert [one["id"] for one in studies] == [f"p{at % 2}/s{at % 3}" for at in range(6)]
    assert [one["categories"]["ant"]["probability"] for one in studies] == p
    run("extract", "--model", MODEL, "--checkpoint", "net.safetensors", "--images",
        f"{tmp_path}/images", *of, "--out", f"{tmp_path}/features", "--quiet")  # fmt: skip
    run("predict", "--classifier", "made", "--features", f"{tmp_path}/features", *by, "--out",
        f"{tmp_path}/features.jsonl", "--force", "--quiet")  # fmt: skip
    lines = (tmp_path / "features.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["patient0", "patient1"]
    table.write_text("path,name,who\n" + f"{rows[0]}\n" + rows[0].replace("patient0", "you"))
    result = run("predict", "--classifier", "made", "--features", f"{tmp_path}/features", *by,
                 "--out", f"{tmp_path}/x.jsonl", code=IdError.exit_code)  # fmt: skip
    assert "'you' and 'patient0'" in result.output
    flat = ["--images", "images", "--by", "study", "--out", f"{tmp_path}/x.jsonl"]
    result = run("predict", "--classifier", "made", "--model", MODEL, *flat,
                 code=ConfigError.exit_code)  # fmt: skip
    assert "ids do not tell studies" in result.output


def test_undecodable(tmp_path: Path) -> None:
    """Refused with the option that skips them; then skipped, listed, and counted."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(Path("images/test_000.png").read_bytes())
    (tmp_path / "images/b.png").write_bytes(b"none")
    line = ["predict", "--classifier", "made", "--model", MODEL, "--images", f"{tmp_path}/images",
            "--out", f"{tmp_path}/said.csv"]  # fmt: skip
    assert "--undecodable skip" in run(*line, code=7).output
    result = run(*line, "--undecodable", "skip", "--overwrite")
    assert "1 images; skipped: 1\n  b.png\n" in result.output


def test_a_function_is_named(tmp_path: Path) -> None:
    """What makes the model is not called unasked; the message says the option."""
    result = run("predict", "--classifier", "made", "--images", "images", "--out",
                 f"{tmp_path}/said.csv", code=ConfigError.exit_code)  # fmt: skip
    assert f"--model {MODEL}" in result.output
    assert not (tmp_path / "said.csv").exists()


def test_package_a_model_and_a_head(tmp_path: Path) -> None:
    """The tuned head is written into a copy of the old checkpoint: the same classifier."""
    run("package", "--model", MODEL, "--checkpoint", "net.safetensors", "--head",
        "out/run/head.safetensors", *FILES, "--out", f"{tmp_path}/made", "--quiet")  # fmt: skip
    one = catwise.load_classifier(tmp_path / "made", model=MODEL).predict("images")
    other = catwise.load_classifier("made", model=MODEL).predict("images")
    assert torch.equal(one.logits, other.logits)
    np.testing.assert_array_equal(one.decisions, other.decisions)


def test_package_a_head(tmp_path: Path) -> None:
    """A head alone takes the features of the store that it was tuned on."""
    run("package", "--head", "out/run/head.safetensors", *FILES, "--features", "out/features",
        "--out", f"{tmp_path}/made", "--quiet")  # fmt: skip
    found = catwise.load_classifier(tmp_path / "made").predict("out/features")
    wanted = catwise.load_classifier("made").predict("out/features")
    np.testing.assert_array_equal(found.decisions, wanted.decisions)


def test_export(tmp_path: Path) -> None:
    """Both kinds of file, as one call."""
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    said = json.loads(run("export", "--classifier", "made", "--model", MODEL, "--onnx",
                          f"{tmp_path}/m.onnx", "--torch-export", f"{tmp_path}/m.pt2",
                          "--json").stdout)  # fmt: skip
    assert said["outputs"] == ["logits", "probabilities", "decisions", "sets"]
    images = torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = runtime.InferenceSession(f"{tmp_path}/m.onnx").run(None, {"images": images.numpy()})
    other = torch.export.load(f"{tmp_path}/m.pt2").module()(images)
    np.testing.assert_allclose(found[0], other[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[2], other[2])
    np.testing.assert_array_equal(found[3], other[3])


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (["package", "--out", "x"], "give --fix DIR"),
        (["package", "--fix", "out", "--head", "h", "--out", "x"], "of its own"),
        (["package", "--head", "h", "--checkpoint", "c", "--out", "x"],
         "--checkpoint needs --model"),
        (["package", "--head", "h", "--flips", "--out", "x"], "--flips needs --model"),
        (["predict", "--classifier", "made", "--out", "x.csv"], "either --images DIR"),
        (["predict", "--classifier", "made", "--features", "f", "--table", "t", "--out", "x.csv"],
         "belong to --images"),
        (["predict", "--classifier", "made", "--images", "i", "--by", "patient", "--out", "x.csv"],
         "--group-column NAME"),
        (["predict", "--classifier", "made", "--images", "i", "--group-column", "g", "--out",
          "x.csv"], "belongs to --table"),
        (["export", "--classifier", "made"], "--onnx FILE"),
    ],
)  # fmt: skip
def test_wrong_use(line: list[str], text: str) -> None:
    """Said at once."""
    assert text in run(*line, code=2).output


def test_a_folder_of_an_earlier_fix(tmp_path: Path) -> None:
    """What does not say how its model is loaded is refused, with what to name instead."""
    shutil.copytree("out", tmp_path / "out")
    table = json.loads((tmp_path / "out/fix.json").read_text())
    del table["finished"]["apply"]["model"]
    (tmp_path / "out/fix.json").write_text(json.dumps(table))
    result = run("package", "--fix", f"{tmp_path}/out", "--out", f"{tmp_path}/made", code=12)
    assert "--model, --checkpoint" in result.output
    (tmp_path / "out/net.safetensors").unlink()
    result = run("package", "--fix", f"{tmp_path}/out", "--out", f"{tmp_path}/made", code=12)
    assert "no finished checkpoint" in result.output


def test_what_is_not_there(tmp_path: Path) -> None:
    """A folder that is no classifier; a name that says no format; maps of other categories."""
    assert "classifier.json" in run("predict", "--classifier", "out", "--images", "images",
                                    "--out", f"{tmp_path}/a.csv", code=10).output  # fmt: skip
    assert ".parquet" in run("predict", "--classifier", "made", "--features", "out/features",
                             "--out", f"{tmp_path}/a.txt", code=12).output  # fmt: skip
    table: dict[str, Any] = json.loads(Path("maps.json").read_text())
    table["categories"][0]["category"] = "owl"
    (tmp_path / "maps.json").write_text(json.dumps(table))
    result = run("package", "--fix", "out", "--calibration", f"{tmp_path}/maps.json", "--out",
                 f"{tmp_path}/made", code=5)  # fmt: skip
    assert "'owl'" in result.output
