"""Classifiers exported to ONNX and torch.export: equal logits, and equal decisions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from catwise.decisions import (
    Calibration,
    CategoryCalibration,
    CategoryMap,
    CategorySets,
    ClassCut,
    ConformalSets,
    Thresholds,
)
from catwise.errors import ConfigError, MismatchError, MissingExtraError
from catwise.heads import Head
from catwise.models.registry import load_model
from catwise.predicting import Classifier, load_classifier, save_classifier
from classifier_case import CATEGORIES, at, decided, exact_rows, made_head, scaled, small_model
from cli.fix_case import MODEL, NAMES

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

KINDS = ("onnx", "torch")
NEAR = 1e-5


def exported(classifier: Classifier, kind: str, given: torch.Tensor) -> list[np.ndarray[Any, Any]]:
    """What the file that is written gives: logits, probabilities, decisions."""
    path = classifier.folder.with_suffix({"onnx": ".onnx", "torch": ".pt2"}[kind])
    if kind == "torch":
        classifier.export_torch(path)
        return [part.numpy() for part in torch.export.load(path).module()(given)]
    classifier.export_onnx(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    assert tuple(names) == classifier.output_names
    made: list[np.ndarray[Any, Any]] = session.run(
        None, {session.get_inputs()[0].name: given.numpy()}
    )
    return made


def check(classifier: Classifier, found: list[np.ndarray[Any, Any]], given: torch.Tensor) -> None:
    """Logits to 1e-5 of the largest; decisions equal beyond that; probabilities near."""
    wanted = classifier.predict(given)
    logits, probabilities, decisions = found[:3]
    own = wanted.logits.numpy()
    largest = float(np.abs(own).max())
    assert logits.shape == own.shape == probabilities.shape == decisions.shape
    assert np.abs(logits - own).max() <= NEAR * largest
    assert decisions.dtype == np.int8
    cuts = classifier.rules.thresholds
    clear = ~(np.abs(own - cuts) <= NEAR * largest)
    np.testing.assert_array_equal(decisions[clear], wanted.decisions[clear])
    np.testing.assert_allclose(probabilities, wanted.probabilities, atol=1e-4)
    assert len(found) == 3 + (wanted.sets is not None)
    if wanted.sets is not None:
        assert classifier.rules.cuts is not None
        clear = (np.abs(own - classifier.rules.cuts[:, None]) > NEAR * largest).all(0)
        assert found[3].dtype == np.int8
        np.testing.assert_array_equal(found[3][clear], wanted.sets[clear])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["affine", "isotonic", "venn_abers"])
def test_a_head(tmp_path: Path, kind: str, method: str) -> None:
    """1,000 rows of features, with calibration by scales or by knots."""
    calibration, cuts, sets = decided(made_head(), method)
    assert calibration.is_affine == (method == "affine")
    save_classifier(
        made_head(), tmp_path / "made", calibration=calibration, thresholds=cuts, conformal=sets
    )
    found = load_classifier(tmp_path / "made")
    random = torch.Generator().manual_seed(0)
    given = torch.randn(1000, 8, generator=random)
    made = exported(found, kind, given)
    check(found, made, given)
    assert len(np.unique(made[3])) > 2


@pytest.mark.parametrize("kind", KINDS)
def test_rows_at_the_threshold(tmp_path: Path, kind: str) -> None:
    """Decisions are those of float64, on the very logit, on its neighbours, and between two."""
    head = made_head()
    rows = exact_rows(1000)
    logits = head.logits(rows).numpy()
    up, down = np.float32(np.inf), np.float32(-np.inf)
    values = [
        float(logits[0, 0]),  # a logit that occurs
        float(np.nextafter(logits[0, 1], up)),  # just above one
        float(np.nextafter(logits[0, 2], down)),  # just below one
        float(logits[0, 3]) + 1e-12,  # no float32: above one
        float(logits[0, 4]) - 1e-12,
        None,
    ]
    cuts = Thresholds(tuple(map(at, CATEGORIES, values)), "")
    save_classifier(head, tmp_path / "made", thresholds=cuts)
    found = load_classifier(tmp_path / "made")
    given = torch.from_numpy(rows)
    made = exported(found, kind, given)
    np.testing.assert_array_equal(made[0], logits)  # such sums are exact
    np.testing.assert_array_equal(made[2], cuts.decide(logits).numpy())
    np.testing.assert_array_equal(made[2], found.predict(rows).decisions)
    assert made[2][0].tolist() == [1, 0, 1, 0, 1, -1]
    assert (logits[:, 0] == values[0]).sum() > 1


@pytest.mark.parametrize("kind", KINDS)
def test_rows_at_the_cut_offs(tmp_path: Path, kind: str) -> None:
    """Sets are those of float64, on the very cut-off and its neighbours, and without one."""
    head, rows = made_head(), exact_rows(1000)
    logits = head.logits(rows).numpy()
    up, down = np.float32(np.inf), np.float32(-np.inf)
    ends = [
        (float(logits[0, 0]), float(logits[0, 0])),  # at both at once
        (float(logits[0, 1]), float(np.nextafter(logits[0, 1], up))),
        (float(np.nextafter(logits[0, 2], up)), float(logits[0, 2])),  # between them: none
        (float(logits[0, 3]) + 1e-12, float(logits[0, 3]) + 1e-12),  # no float32
        (float(np.nextafter(logits[0, 4], down)), float(logits[0, 4]) - 1e-12),
        (None, None),
    ]
    sides = [[ClassCut(end, 0 if end is None else 99) for end in pair] for pair in ends]
    sets = ConformalSets(
        tuple(CategorySets(name, 0.1, None, *pair)
              for name, pair in zip(CATEGORIES, sides, strict=True))
    )  # fmt: skip
    save_classifier(head, tmp_path / "made", conformal=sets)
    found = load_classifier(tmp_path / "made")
    made = exported(found, kind, torch.from_numpy(rows))
    np.testing.assert_array_equal(made[0], logits)  # such sums are exact
    np.testing.assert_array_equal(made[3], sets.decide(logits).numpy())
    np.testing.assert_array_equal(made[3], found.predict(rows).sets)
    assert made[3][0].tolist() == [2, 3, 0, 1, 2, 3]
    assert set(np.unique(made[3])) == {0, 1, 2, 3}


def mixed() -> Calibration:
    """A scale; a staircase whose steps are steep; and nothing for the others."""
    steps = ((-2.0, -3.0), (-1.0, -3.0), (-0.99, 0.5), (1.0, 0.5), (1.25, 4.0))
    stair = CategoryCalibration("bee", "isotonic", CategoryMap(1.0, 0.25, steps), 2000, 2000)
    return Calibration.of((scaled("ant", 0.5, -1.0), stair))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model(tmp_path: Path, kind: str) -> None:
    """Images through the model's own graph, in batches of any size."""
    loaded = small_model(tmp_path / "case")
    cuts = Thresholds(tuple(map(at, NAMES, (0.5, -0.25, None, 0.0))), "")
    save_classifier(loaded, tmp_path / "made", calibration=mixed(), thresholds=cuts)
    found = load_classifier(tmp_path / "made", model=MODEL)
    given = torch.randn(1000, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    made = exported(found, kind, given)
    check(found, made, given)
    assert 0 < (made[2][:, 1] == 1).mean() < 1
    check(found, exported(found, kind, given[:1]), given[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_flips_and_some_categories(tmp_path: Path, kind: str) -> None:
    """The mean over an image and its mirror image, and some rows of the layer, in the graph too."""
    loaded = small_model(tmp_path / "case")
    assert loaded.head is not None
    head = loaded.head.take_categories(["dog", "bee"])
    save_classifier(
        loaded, tmp_path / "made", head=head, flips=True, calibration=Calibration.of(())
    )
    found = load_classifier(tmp_path / "made", model=MODEL)
    given = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    made = exported(found, kind, given)
    check(found, made, given)
    assert made[0].shape == (64, 2)
    assert (made[2] == -1).all()


class Net(nn.Module):
    """An output that is called as ours are, behind a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(images).relu().mean((2, 3))).sigmoid()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_onnx_model(tmp_path: Path) -> None:
    """Decisions are put behind the graph's own logits; what has our outputs' names gets others."""
    torch.manual_seed(0)
    net, path = Net().eval(), tmp_path / "net.onnx"
    given = torch.randn(1000, 3, 12, 12)
    torch.onnx.export(
        net, (given[:2],), str(path), input_names=["images"], output_names=["probabilities"],
        dynamo=False, dynamic_axes={"images": {0: "n"}, "probabilities": {0: "n"}},
    )  # fmt: skip
    model = load_model(f"onnx:{path}", categories=NAMES)
    cuts = Thresholds(tuple(map(at, NAMES, (0.05, -0.05, None, 0.0))), "")
    pair = ClassCut(-0.05, 99), ClassCut(0.05, 99)
    sets = ConformalSets(tuple(CategorySets(name, 0.1, None, *pair) for name in NAMES))
    save_classifier(model, tmp_path / "made", calibration=mixed(), thresholds=cuts, conformal=sets)
    found = load_classifier(tmp_path / "made")
    made = exported(found, "onnx", given)
    check(found, made, given)
    with torch.no_grad():
        wanted = net(given)
    np.testing.assert_allclose(1 / (1 + np.exp(-made[0])), wanted, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"not a model of torch(.|\n)*onnx"):
        found.export_torch(tmp_path / "made.pt2")
    assert not (tmp_path / "made.pt2").exists()


def test_a_graph_is_read_as_a_model(tmp_path: Path) -> None:
    """What was exported says its preprocessing, categories and origin."""
    save_classifier(small_model(tmp_path / "case"), tmp_path / "made")
    found = load_classifier(tmp_path / "made", model=MODEL)
    path = tmp_path / "made.onnx"
    found.export_onnx(path)
    said = {one.key: one.value for one in onnx.load(str(path)).metadata_props}
    assert json.loads(said["catwise.categories"]) == list(NAMES)
    assert said["catwise.classifier"] == found.digest
    again = load_model(f"onnx:{path}", model_args={"output": "logits"})
    assert found.preprocessing is not None
    assert again.preprocessing == found.preprocessing
    assert again.head is not None
    torch.testing.assert_close(again.head.weight, found.head.weight)


def test_a_program_says_what_it_is(tmp_path: Path) -> None:
    """Categories, preprocessing and digest lie beside the program."""
    save_classifier(small_model(tmp_path / "case"), tmp_path / "made")
    found = load_classifier(tmp_path / "made", model=MODEL)
    found.export_torch(tmp_path / "made.pt2")
    said = {"catwise.categories": "", "catwise.classifier": "", "catwise.preprocessing": ""}
    torch.export.load(tmp_path / "made.pt2", extra_files=said)
    assert json.loads(said["catwise.categories"]) == list(NAMES)
    assert said["catwise.classifier"] == found.digest
    assert json.loads(said["catwise.preprocessing"])["size"] == [8, 8]


class Uneven(nn.Module):
    """Takes another way for bright images: no exporter can follow that."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 64, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = images.flatten(1)
        if float(rows.mean()) > 0.3:
            rows = rows + 2
        return self.fc(rows)


def uneven(checkpoint: Path) -> Any:
    """What `python:unit.test_classifier_export:uneven` would call."""
    from safetensors.torch import load_file

    from catwise.models import LoadedModel, Preprocessing

    module = Uneven()
    module.load_state_dict(load_file(checkpoint))
    state = module.fc
    return LoadedModel(
        "uneven", module.eval(), "fc", Preprocessing((8, 8), (0.0,) * 3, (1.0,) * 3),
        head=Head(state.weight, state.bias), weight_key="fc.weight", bias_key="fc.bias",
        checkpoint=checkpoint,
    )  # fmt: skip


def test_what_cannot_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose way depends on the values is refused, and nothing is written."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(Uneven().state_dict(), tmp_path / "net.safetensors")
    monkeypatch.setitem(sys.modules, "made_up_module", sys.modules[__name__])
    spec = "python:made_up_module:uneven"
    loaded = load_model(spec, checkpoint=tmp_path / "net.safetensors")
    save_classifier(loaded, tmp_path / "made")
    found = load_classifier(tmp_path / "made", model=spec)
    with pytest.raises(ConfigError, match=r"torch\.export cannot take the model"):
        found.export_torch(tmp_path / "made.pt2")
    with pytest.raises(MismatchError, match="exported graph does not give"):  # one way was traced
        found.export_onnx(tmp_path / "made.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "net.safetensors"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_differs_is_refused(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written was compared with the classifier."""
    save_classifier(made_head(), tmp_path / "made")
    found = load_classifier(tmp_path / "made")
    monkeypatch.setattr(Head, "logits", lambda _, rows: rows[:, :6].clone())
    with pytest.raises(MismatchError, match="does not give what the classifier gives"):
        exported(found, kind, torch.zeros(1, 8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"]


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_packages(
    tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One error says how to install them."""
    save_classifier(made_head(), tmp_path / "made")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package}(.|\n)*catwise\[onnx\]"):
        load_classifier(tmp_path / "made").export_onnx(tmp_path / "made.onnx")
    assert not (tmp_path / "made.onnx").exists()
