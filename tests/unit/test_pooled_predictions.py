"""Predictions of studies and patients from those of their images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from catwise.decisions import (
    SETS,
    Calibration,
    CategorySets,
    ClassCut,
    ConformalSets,
    DecisionRules,
    Thresholds,
)
from catwise.errors import ConfigError, IdError, OutputError
from catwise.features import Features
from catwise.heads import Head
from catwise.metrics.pooling import RunningPool
from catwise.predicting import Classifier, load_classifier, save_classifier, write_predictions
from catwise.predicting import writing as writing_module
from catwise.predicting.predictions import Predictions
from classifier_case import CATEGORIES, at, decided, exact_rows, made_head, scaled

N = 3000


def study_of(rows: int, seed: int = 5) -> list[str]:
    """Studies of about three images each, whose images lie anywhere."""
    random = np.random.default_rng(seed)
    return [f"s{number}" for number in random.integers(0, rows // 3, rows)]


@pytest.fixture(scope="module", params=["affine", "isotonic"])
def classifier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A head alone with calibration, thresholds and sets."""
    folder = tmp_path_factory.mktemp("made") / "made"
    calibration, cuts, sets = decided(made_head(), request.param)
    save_classifier(made_head(), folder, calibration=calibration, thresholds=cuts, conformal=sets)
    return load_classifier(folder)


@pytest.fixture(scope="module")
def rows() -> Features:
    studies = study_of(N)
    return Features(exact_rows(N), ids=[f"{name}/{row}.png" for row, name in enumerate(studies)])


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_a_plain_loop(classifier: Classifier, rows: Features, pool: str) -> None:
    """Calibrated probabilities are pooled; thresholds and sets are asked of what comes of it."""
    each = classifier.predict(rows)
    found = classifier.predict(rows, by="study", pool=pool)
    names = list(dict.fromkeys(study_of(N)))
    assert list(found.ids) == names
    studies = np.array(study_of(N))
    how = np.mean if pool == "mean" else np.max
    wanted = np.array([how(each.probabilities[studies == name], axis=0) for name in names])
    np.testing.assert_allclose(found.probabilities, wanted, rtol=1e-12)
    # Thresholds as probabilities: what a map makes of them.
    rules = classifier.rules
    level = 1 / (1 + np.exp(-rules.calibrated(rules.thresholds[None])[0]))
    sure = abs(wanted - level) > 1e-9
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(found.decisions[sure], (wanted >= level)[sure])
    assert rules.cuts is not None
    low, high = 1 / (1 + np.exp(-rules.calibrated(rules.cuts)))
    codes = 2 * (wanted >= low) + (wanted < high)
    sure = (abs(wanted - low) > 1e-9) & (abs(wanted - high) > 1e-9)
    assert found.sets is not None
    np.testing.assert_array_equal(found.sets[sure], codes[sure])
    assert set(np.unique(found.decisions)) == {0, 1}


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_a_study_of_one_image_is_decided_as_the_image(tmp_path: Path, pool: str) -> None:
    """Also exactly at threshold and cut-offs, where the last bit decides."""
    random = np.random.default_rng(0)
    values = random.normal(size=(200, 2)).astype(np.float32)
    cuts = Thresholds((at("a", float(values[7, 0])), at("b", float(values[9, 1]))), "")
    sets = ConformalSets(
        tuple(
            CategorySets(name, 0.1, None, ClassCut(float(values[3, c]), 99),
                         ClassCut(float(values[11, c]), 99))
            for c, name in enumerate(("a", "b"))
        )
    )  # fmt: skip
    maps = Calibration((scaled("a", 0.37, 1.3), scaled("b", 1.9, -2.1)), "")
    rules = DecisionRules.of(("a", "b"), maps, cuts, sets)
    ids = tuple(f"s{row}/x" for row in range(200))
    each = Predictions(ids, ("a", "b"), torch.from_numpy(values), rules)
    found = each.pooled("study", pool)
    np.testing.assert_array_equal(found.decisions, each.decisions)
    np.testing.assert_array_equal(found.sets, each.sets)
    np.testing.assert_array_equal(found.probabilities, each.probabilities)


@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_streamed(
    classifier: Classifier, rows: Features, tmp_path: Path, pool: str, suffix: str
) -> None:
    """A file of studies whose images are far apart holds what `predict` gives."""
    said = classifier.predict(rows, by="study", pool=pool)
    out = tmp_path / f"out.{suffix}"
    made = write_predictions(classifier, rows, out, by="study", pool=pool, part_rows=512)
    assert (made.rows, made.images, made.made) == (len(said), N, N)
    again = write_predictions(classifier, rows, out, by="study", pool=pool, part_rows=512)
    assert (again.rows, again.images, again.made) == (len(said), N, 0)
    if suffix != "parquet":
        return
    found = pq.read_table(out)
    assert found.column("id").to_pylist() == list(said.ids)
    for c, name in enumerate(CATEGORIES):
        wanted = said.probabilities[:, c].astype(np.float32)
        np.testing.assert_allclose(found.column(f"probability:{name}"), wanted, rtol=1e-6)
        assert found.column(f"decision:{name}").to_pylist() == said.decisions[:, c].tolist()
        assert said.sets is not None
        assert found.column(f"set:{name}").to_pylist() == [SETS[k] for k in said.sets[:, c]]
    side = json.loads((tmp_path / f"out.{suffix}.catwise.json").read_text())
    assert (side["rows"], side["images"]) == (len(said), N)
    assert side["items"]["origin"]["by"] == "study"


class StoppedError(Exception):
    """In place of a kill."""


def test_resumed(classifier: Classifier, rows: Features, tmp_path: Path) -> None:
    """What was stopped ends with the same bytes; another pool, or other studies, is told apart."""
    options: dict[str, Any] = {"by": "study", "part_rows": 512}
    write_predictions(classifier, rows, tmp_path / "whole.csv", **options)
    out = tmp_path / "out.csv"

    def stop(progress: Any) -> None:
        if progress.done >= 1600:
            raise StoppedError

    with pytest.raises(StoppedError):
        write_predictions(classifier, rows, out, progress=stop, **options)
    assert not out.exists()
    with pytest.raises(OutputError, match="pool"):
        write_predictions(classifier, rows, out, pool="max", **options)
    made = write_predictions(classifier, rows, out, **options)
    assert 0 < made.made < N
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert rows.ids is not None
    groups = {str(one): str(one).partition("/")[0] for one in rows.ids}
    by_name = tmp_path / "named.csv"
    write_predictions(classifier, rows, by_name, by=groups, part_rows=512)
    assert by_name.read_bytes() == out.read_bytes()
    groups[str(rows.ids[0])] = "another"
    with pytest.raises(OutputError, match="by"):
        write_predictions(classifier, rows, by_name, by=groups, part_rows=512)
    with pytest.raises(OutputError, match="by"):
        write_predictions(classifier, rows, by_name, part_rows=512)


def test_memory_is_that_of_open_studies(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where images of a study follow one another, hardly any study is open at a time."""
    most: list[int] = []
    real = RunningPool.add

    def watched(pool: RunningPool, index: Any, logits: Any) -> None:
        real(pool, index, logits)
        most.append(pool.n_groups)

    monkeypatch.setattr(RunningPool, "add", watched)
    monkeypatch.setattr(writing_module, "_SHOWN_ROWS", 60)
    for name, order in (("near", sorted(study_of(N))), ("far", study_of(N))):
        rows = Features(exact_rows(N), ids=[f"{one}/{at}" for at, one in enumerate(order)])
        most.clear()
        write_predictions(classifier, rows, tmp_path / f"{name}.csv", by="study")
        assert (max(most) <= 61) == (name == "near")


def test_what_cannot_be_pooled_is_refused_at_once(classifier: Classifier, tmp_path: Path) -> None:
    """Before a row is run: ids that tell no study, images without a group, wrong options."""
    out = tmp_path / "out.csv"
    plain = Features(exact_rows(3), ids=["a", "b", "c"])
    for call in (
        lambda **more: classifier.predict(plain, **more),
        lambda **more: write_predictions(classifier, plain, out, **more),
    ):
        with pytest.raises(ConfigError, match="do not tell studies"):
            call(by="study")
        with pytest.raises(IdError, match="2 images have no group"):
            call(by={"a": "x"})
        with pytest.raises(ConfigError, match="pool"):
            call(by={"a": "x"}, pool="median")
        with pytest.raises(ConfigError, match="patients"):
            call(by="patient")
    assert not list(tmp_path.iterdir())
    found = classifier.predict(exact_rows(4), by={"0": "x", "1": "y", "2": "x", "3": "x"})
    assert found.ids == ("x", "y")
    named = classifier.predict(exact_rows(2), ids=["s/1", "s/2"], by="study")
    assert named.ids == ("s",)
    assert len(classifier.predict(exact_rows(0), by="study")) == 0


def test_tags_of_studies(tmp_path: Path) -> None:
    """Tags are those of the pooled probabilities."""
    head = Head(np.eye(2, dtype=np.float32), categories=["a", "b"])
    save_classifier(
        head, tmp_path / "made", thresholds=Thresholds((at("a", 0.0), at("b", 0.0)), "")
    )
    found = load_classifier(tmp_path / "made")
    rows = Features([[1.0, 4.0], [-3.0, -1.0]], ids=["s/1", "s/2"])
    assert found.predict(rows, by="study").tags() == [["b"]]
    assert found.predict(rows, by="study", pool="max").tags() == [["b", "a"]]
