"""Predictions in a file: formats, resuming, what is told beside them."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from catwise.decisions import Thresholds
from catwise.errors import ConfigError, FeatureError, MismatchError, OutputError
from catwise.features import Features, write_store
from catwise.heads import Head
from catwise.models.given import GivenImages
from catwise.models.sources import FolderImages
from catwise.predicting import (
    Classifier,
    Predictions,
    load_classifier,
    save_classifier,
    write_predictions,
)
from catwise.predicting.content import content_digest
from catwise.progress import Progress
from classifier_case import at, decided, exact_rows, made_head, small_model
from cli.fix_case import MODEL, NAMES


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Classifier]:
    """300 images, and a classifier of them."""
    folder = tmp_path_factory.mktemp("case")
    loaded = small_model(folder / "case")
    cuts = Thresholds(tuple(map(at, NAMES, (0.25, -0.25, None, 0.0))), "")
    save_classifier(loaded, folder / "made", thresholds=cuts)
    return folder / "case/images", load_classifier(folder / "made", model=MODEL)


@pytest.fixture
def head_classifier(tmp_path: Path) -> Classifier:
    """A head alone, with calibration, thresholds and sets."""
    calibration, cuts, sets = decided(made_head())
    save_classifier(made_head(), tmp_path / "made", calibration=calibration, thresholds=cuts,
                    conformal=sets)  # fmt: skip
    return load_classifier(tmp_path / "made")


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Id → category → probability, decision, set, abstains, from any of the formats."""
    found: dict[str, dict[str, Any]] = {}
    if path.suffix == ".jsonl":
        records = [json.loads(line) for line in path.read_text().splitlines()]
        return {one["id"]: one["categories"] for one in records}
    if path.suffix == ".csv":
        with path.open(newline="") as stream:
            rows: list[dict[str, Any]] = list(csv.DictReader(stream))
    else:
        rows = pq.read_table(path).to_pylist()
    for row in rows:
        own: dict[str, Any] = {}
        for key, value in row.items():
            kind, _, category = key.partition(":")
            if not category:
                continue
            read: Any = value
            if path.suffix == ".csv":
                read = {"probability": float, "decision": lambda v: int(v) if v else None,
                        "set": str, "abstains": lambda v: v == "true"}[kind](value)  # fmt: skip
            own.setdefault(category, {})[kind] = read
        found[row["id"]] = own
    return found


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_formats(head_classifier: Classifier, tmp_path: Path, suffix: str) -> None:
    """Every format holds what `predict` gives, to the digits of a float32."""
    rows = Features(exact_rows(2500), ids=[f"image {i}" for i in range(2500)])
    said = head_classifier.predict(rows)
    out = tmp_path / f"out.{suffix}"
    made = write_predictions(head_classifier, rows, out)
    assert (made.rows, made.made, made.skipped) == (2500, 2500, ())
    found = read_rows(out)
    assert list(found) == list(said.ids)
    assert said.sets is not None
    for row in (0, 1023, 1024, 2499):
        for c, name in enumerate(said.categories):
            one = found[said.ids[row]][name]
            assert np.float32(one["probability"]) == np.float32(said.probabilities[row, c])
            assert one["decision"] == said.decisions[row, c]
            assert one["set"] == ("none", "negative", "positive", "both")[said.sets[row, c]]
            assert one["abstains"] == said.abstains[row, c]
    side = json.loads((tmp_path / f"out.{suffix}.catwise.json").read_text())
    assert side["items"]["origin"]["classifier"] == head_classifier.digest
    assert side["population"] == head_classifier.population


def test_no_threshold_is_empty(case: tuple[Path, Classifier], tmp_path: Path) -> None:
    """A category without a threshold has no decision, and abstains; there is no set to write."""
    for suffix in ("csv", "parquet", "jsonl"):
        write_predictions(case[1], case[0], tmp_path / f"out.{suffix}")
        row = read_rows(tmp_path / f"out.{suffix}")["valid_007.png"]
        assert row["cat"]["decision"] is None
        assert row["cat"]["abstains"] is True
        assert row["ant"]["abstains"] is False
        assert set(row["ant"]) == {"probability", "decision", "abstains"}


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_tags(tmp_path: Path, suffix: str) -> None:
    """A list for each image, the most probable first, with its probabilities."""
    head = Head(np.eye(3, dtype=np.float32), categories=["=a", "b", "c"])
    cuts = Thresholds((at("=a", 0.0), at("b", 5.0), at("c", 0.0)), "")
    save_classifier(head, tmp_path / "made", thresholds=cuts)
    found = load_classifier(tmp_path / "made")
    rows = Features([[1.0, 4.0, 2.0], [-1.0, 0.0, -1.0], [3.0, 0.0, -1.0]], ids=["x", "=y", "z"])
    out = tmp_path / f"tags.{suffix}"
    write_predictions(found, rows, out, tags=True)
    if suffix == "csv":
        lines = out.read_text().splitlines()
        assert lines == ["id,tags,probabilities", "x,c|=a,0.8807971|0.7310586", "'=y,,",
                         "z,'=a,0.95257413"]  # fmt: skip
        return
    records = (
        pq.read_table(out).to_pylist()
        if suffix == "parquet"
        else [json.loads(line) for line in out.read_text().splitlines()]
    )
    assert [one["tags"] for one in records] == [["c", "=a"], [], ["=a"]]
    assert records[0]["probabilities"] == pytest.approx([0.880797, 0.7310586], rel=1e-6)
    assert [one["id"] for one in records] == ["x", "=y", "z"]


def test_tags_that_csv_cannot_hold(tmp_path: Path) -> None:
    """A separator in a name is refused there, and held elsewhere."""
    save_classifier(Head([[1.0]], categories=["a|b"]), tmp_path / "made",
                    thresholds=Thresholds((at("a|b", 0.0),), ""))  # fmt: skip
    found = load_classifier(tmp_path / "made")
    with pytest.raises(ConfigError, match=r"'a\|b'(.|\n)*Parquet"):
        write_predictions(found, [[1.0]], tmp_path / "tags.csv", tags=True)
    write_predictions(found, [[1.0]], tmp_path / "tags.jsonl", tags=True)
    assert json.loads((tmp_path / "tags.jsonl").read_text())["tags"] == ["a|b"]


class StoppedError(Exception):
    """In place of a kill."""


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_resumed(case: tuple[Path, Classifier], tmp_path: Path, suffix: str,
                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """What was stopped ends with the same bytes, and no image is run twice."""
    images, classifier = case
    options: dict[str, Any] = {"batch_rows": 16, "part_rows": 32}
    write_predictions(classifier, images, tmp_path / f"whole.{suffix}", **options)
    out = tmp_path / f"out.{suffix}"

    def stop(progress: Progress) -> None:
        if progress.stage == "predict" and progress.done >= 150:
            raise StoppedError

    with pytest.raises(StoppedError):
        write_predictions(classifier, images, out, progress=stop, **options)
    assert not out.exists()
    read: list[int] = []
    real = FolderImages.read

    def counted(source: FolderImages, row: int, **options: Any) -> Any:
        read.append(row)
        return real(source, row, **options)

    monkeypatch.setattr(FolderImages, "read", counted)
    told: list[Progress] = []
    made = write_predictions(classifier, images, out, progress=told.append, **options)
    assert sorted(set(read)) == list(range(128, 300))  # four parts of 32 were there
    assert made.made == 172
    assert told[0].done == 128
    assert any("s left" in one.message for one in told)
    assert out.read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"out.{suffix}", f"out.{suffix}.catwise.json", f"whole.{suffix}",
                     f"whole.{suffix}.catwise.json"]  # fmt: skip
    read.clear()
    assert write_predictions(classifier, images, out, **options).made == 0  # it is finished
    assert not read


def test_killed_while_it_writes(case: tuple[Path, Classifier], tmp_path: Path,
                                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """All parts are there, the file is not: it is written without running the model."""
    images, classifier = case
    out = tmp_path / "out.csv"

    def stop(_: Predictions) -> Any:
        raise StoppedError

    monkeypatch.setattr(Predictions, "table", stop)
    with pytest.raises(StoppedError):
        write_predictions(classifier, images, out)
    assert not out.exists()
    monkeypatch.undo()
    assert write_predictions(classifier, images, out).made == 0
    assert len(read_rows(out)) == 300


def test_what_is_there(case: tuple[Path, Classifier], tmp_path: Path) -> None:
    """Another file, or other options, are refused until they are to be replaced."""
    images, classifier = case
    out = tmp_path / "out.csv"
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        write_predictions(classifier, images, out)
    assert out.read_text() == "mine"
    write_predictions(classifier, images, out, overwrite=True)
    with pytest.raises(OutputError, match="tags"):
        write_predictions(classifier, images, out, tags=True)
    out.write_text(out.read_text() + "more\n")  # no longer what was written
    with pytest.raises(OutputError, match="exists"):
        write_predictions(classifier, images, out)
    write_predictions(classifier, images, out, overwrite=True)
    assert len(read_rows(out)) == 300
    with pytest.raises(ConfigError, match=r"\.parquet"):
        write_predictions(classifier, images, tmp_path / "out.txt")


def test_undecodable_images(case: tuple[Path, Classifier], tmp_path: Path) -> None:
    """Refused by name, or skipped and listed beside the file."""
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    good = sorted(case[0].glob("*.png"))[:3]
    given = [good[0], bad, *good[1:]]
    with pytest.raises(FeatureError, match=r"bad\.png"):
        write_predictions(case[1], given, tmp_path / "out.csv")
    made = write_predictions(case[1], given, tmp_path / "out.csv", undecodable="skip",
                             overwrite=True)  # fmt: skip
    assert (made.rows, made.skipped) == (3, (str(bad),))
    assert list(read_rows(tmp_path / "out.csv")) == [str(path) for path in good]
    side = json.loads((tmp_path / "out.csv.catwise.json").read_text())
    assert side["skipped"] == [str(bad)]


def test_features_from_a_store(case: tuple[Path, Classifier], tmp_path: Path) -> None:
    """Blocks of a store, in parts; other features under the same name are told."""
    rows = exact_rows(700, 12)
    write_store(tmp_path / "store", rows, ids=[f"i{row}" for row in range(700)])
    out = tmp_path / "out.parquet"
    made = write_predictions(case[1], tmp_path / "store", out, part_rows=128)
    assert made.rows == 700
    wanted = case[1].head.logits(torch.from_numpy(rows).half()).double().sigmoid()
    found = pq.read_table(out)
    np.testing.assert_array_equal(found.column("probability:dog"), wanted[:, 3].float())
    assert found.column("id").to_pylist()[699] == "i699"
    write_store(tmp_path / "store", rows + 1, ids=[f"i{row}" for row in range(700)], overwrite=True)
    with pytest.raises(OutputError, match="content"):
        write_predictions(case[1], tmp_path / "store", out, part_rows=128)


def test_other_images_under_the_same_names(case: tuple[Path, Classifier], tmp_path: Path) -> None:
    """Nothing old is taken for them: files, arrays, tensors, features."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, path in enumerate(sorted(case[0].glob("*.png"))[:4]):
        (folder / f"{number % 2}-{number // 2}.png").write_bytes(path.read_bytes())
    first = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    forms: list[tuple[Any, Any]] = [
        (first, first + 1),
        (torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)),
        (exact_rows(2, 12), exact_rows(2, 12, seed=9)),
        ([first[0].tobytes(), first[1].tobytes()], [first[0].tobytes(), b"other"]),
    ]
    for number, (one, other) in enumerate(forms[:3]):
        out = tmp_path / f"out {number}.csv"
        assert write_predictions(case[1], one, out).made == 2
        assert write_predictions(case[1], one, out).made == 0
        with pytest.raises(OutputError, match="content"):
            write_predictions(case[1], other, out)
    assert content_digest(GivenImages(forms[3][0])) != content_digest(GivenImages(forms[3][1]))
    out = tmp_path / "out.csv"
    assert write_predictions(case[1], folder, out).made == 4
    image = Image.open(folder / "0-0.png")
    other_image = Image.eval(image, lambda value: 255 - value)
    assert content_digest(GivenImages([image])) != content_digest(GivenImages([other_image]))
    other_image.save(folder / "0-0.png")
    with pytest.raises(OutputError, match="content"):
        write_predictions(case[1], folder, out)
    assert write_predictions(case[1], folder, out, overwrite=True).made == 4


def test_ids_that_a_spreadsheet_would_run(head_classifier: Classifier, tmp_path: Path) -> None:
    """An apostrophe goes before them."""
    rows = Features(exact_rows(2), ids=["=1+1", "b,c"])
    write_predictions(head_classifier, rows, tmp_path / "out.csv")
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[1].startswith("'=1+1,")
    assert lines[2].startswith('"b,c",')


def test_a_changed_classifier_does_not_resume(
    case: tuple[Path, Classifier], tmp_path: Path
) -> None:
    """Parts of another classifier are not taken."""
    images, classifier = case

    def stop(progress: Progress) -> None:
        if progress.done >= 100:
            raise StoppedError

    out = tmp_path / "out.csv"
    with pytest.raises(StoppedError):
        write_predictions(classifier, images, out, progress=stop, batch_rows=16, part_rows=32)
    save_classifier(small_model(tmp_path / "case"), tmp_path / "other")
    other = load_classifier(tmp_path / "other", model=MODEL)
    with pytest.raises(OutputError, match="classifier"):
        write_predictions(other, images, out, batch_rows=16, part_rows=32)
    with pytest.raises(MismatchError, match="weights"):
        other.check_features(_odd_store(tmp_path))


def _odd_store(folder: Path) -> Any:
    from catwise.features import read_features

    origin = {"extract": {"items": {"weights": "others", "layer": "fc", "flips": False}}}
    write_store(folder / "odd", exact_rows(3, 12), origin=origin)
    return read_features(folder / "odd", check=False)


def test_a_kill(case: tuple[Path, Classifier], tmp_path: Path) -> None:
    """SIGKILL leaves parts and no file; the same call ends as if nothing had been."""
    images, classifier = case
    code = f"""if True:
        import os, signal
        from catwise.predicting import load_classifier, write_predictions
        def stop(progress):
            if progress.done >= 100:
                os.kill(os.getpid(), signal.SIGKILL)
        one = load_classifier({str(classifier.folder)!r}, model={MODEL!r})
        write_predictions(one, {str(images)!r}, 'out.csv', progress=stop, batch_rows=16,
                          part_rows=32)"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out.csv").exists()
    made = write_predictions(classifier, images, tmp_path / "out.csv", batch_rows=16, part_rows=32)
    assert made.made == 300 - 96
    write_predictions(classifier, images, tmp_path / "whole.csv", batch_rows=16, part_rows=32)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".catwise-0")]
