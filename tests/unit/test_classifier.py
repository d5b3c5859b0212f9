"""A classifier: saved, loaded, checked, run on images and features."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import catwise
from catwise.decisions import Calibration, Thresholds
from catwise.errors import (
    CategoryError,
    CheckpointError,
    ConfigError,
    FeatureError,
    MismatchError,
    OutputError,
    ShapeError,
)
from catwise.features import CategoryFeatures, open_store, write_store
from catwise.heads import Head
from catwise.models import LoadedModel
from catwise.models.images import read_image
from catwise.models.pixels import preprocess
from catwise.models.sources import FolderImages
from catwise.predicting import (
    Classifier,
    load_classifier,
    save_classifier,
    write_predictions,
)
from classifier_case import CATEGORIES, at, decided, exact_rows, made_head, scaled, small_model
from cli import fix_case
from cli.fix_case import MODEL, NAMES


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LoadedModel]:
    """Images and a model."""
    folder = tmp_path_factory.mktemp("case") / "case"
    return folder, small_model(folder)


@pytest.fixture
def model_classifier(case: tuple[Path, LoadedModel], tmp_path: Path) -> Classifier:
    """The model with calibration and thresholds."""
    cuts = Thresholds(tuple(at(name, 0.25) for name in NAMES), "")
    maps = Calibration.of((scaled("bee", 0.5, -1.0),))
    save_classifier(case[1], tmp_path / "made", calibration=maps, thresholds=cuts)
    return load_classifier(tmp_path / "made", model=MODEL)


def logits_by_hand(loaded: LoadedModel, paths: list[Path]) -> torch.Tensor:
    """Logits of the module itself."""
    assert loaded.module is not None
    rows = [preprocess(read_image(path), loaded.preprocessing) for path in paths]
    with torch.no_grad():
        found: torch.Tensor = loaded.module.eval()(torch.stack(rows))
    return found


@pytest.mark.parametrize("method", ["affine", "isotonic", "venn_abers"])
def test_a_head_and_what_is_decided(tmp_path: Path, method: str) -> None:
    """What was saved decides as calibration, thresholds and sets themselves do."""
    head = made_head()
    calibration, cuts, sets = decided(head, method)
    save_classifier(head, tmp_path / "made", calibration=calibration, thresholds=cuts,
                    conformal=sets)  # fmt: skip
    found = load_classifier(tmp_path / "made")
    rows = exact_rows(300)
    said, logits = found.predict(rows), head.logits(rows)
    assert torch.equal(said.logits, logits)
    assert said.ids == tuple(map(str, range(300)))
    np.testing.assert_array_equal(said.probabilities, calibration.probabilities(logits))
    np.testing.assert_array_equal(said.decisions, cuts.decide(logits))
    assert said.sets is not None
    np.testing.assert_array_equal(said.sets, sets.decide(logits))
    np.testing.assert_array_equal(said.abstains, (said.sets == 0) | (said.sets == 3))
    assert 0 < said.abstains.mean() < 1
    assert found.population == calibration.population


def test_categories_join_by_name(tmp_path: Path) -> None:
    """Maps and thresholds may be of some categories, in any order; the others decide nothing."""
    cuts = Thresholds((at("fox", 0.5), at("bee", None)), "")
    save_classifier(made_head(), tmp_path / "made", thresholds=cuts,
                    calibration=Calibration.of((scaled("cat", 2.0, 1.0),)))  # fmt: skip
    said = load_classifier(tmp_path / "made").predict(exact_rows(50))
    logits = said.logits.double().numpy()
    assert (said.decisions[:, :5] == -1).all()
    np.testing.assert_array_equal(said.decisions[:, 5], logits[:, 5] >= 0.5)
    np.testing.assert_array_equal(said.abstains, said.decisions < 0)
    wanted = logits.copy()
    wanted[:, 2] = 2 * wanted[:, 2] + 1
    np.testing.assert_allclose(said.probabilities, 1 / (1 + np.exp(-wanted)), rtol=1e-12)
    with pytest.raises(CategoryError, match="'owl'"):
        save_classifier(made_head(), tmp_path / "b", thresholds=Thresholds((at("owl", 0.0),), ""))
    assert not (tmp_path / "b").exists()


def test_float64_heads_decide_in_float64(tmp_path: Path) -> None:
    """A row on the very threshold is positive, where a float32 would be below it; in files too."""
    head = Head(np.array([[1.0]]), np.array([0.1]), categories=["cat"])
    value = float(head.logits(np.array([[1.0]]))[0, 0])  # 1.1, which is no float32
    assert float(np.float32(value)) > value  # so the row just below it must not be positive
    below = np.nextafter(1.0, 0.0)
    save_classifier(head, tmp_path / "made", thresholds=Thresholds((at("cat", value),), ""))
    found = load_classifier(tmp_path / "made")
    rows = np.array([[1.0], [below - 1e-15]])
    assert found.predict(rows).decisions[:, 0].tolist() == [1, 0]
    write_predictions(found, rows, tmp_path / "out.csv")
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert [line.split(",")[2] for line in lines[1:]] == ["1", "0"]


def test_rows_that_the_layer_lacks(model_classifier: Classifier) -> None:
    """One error, not an index out of range."""
    path = model_classifier.folder / "classifier.json"
    rewritten(path, lambda table: table["model"].update(rows=[0, 1, 2, 9]), digest=True)
    with pytest.raises(MismatchError, match="lacks rows"):
        load_classifier(model_classifier.folder, model=MODEL).predict([b""])
    rewritten(path, lambda table: table["model"].update(rows=[0]), digest=True)
    with pytest.raises(CheckpointError, match="one for each category"):
        load_classifier(model_classifier.folder)


def test_tags(tmp_path: Path) -> None:
    """Positive categories, the most probable first."""
    head = Head(np.eye(3, dtype=np.float32), categories=["a", "b", "c"])
    cuts = Thresholds((at("a", 0.0), at("b", 5.0), at("c", 0.0)), "")
    save_classifier(head, tmp_path / "made", thresholds=cuts)
    said = load_classifier(tmp_path / "made").predict([[1.0, 4.0, 2.0], [0.0, 6.0, -1.0]])
    assert said.tags() == [["c", "a"], ["b", "a"]]


def test_images_in_any_form(case: tuple[Path, LoadedModel], model_classifier: Classifier) -> None:
    """A folder, paths, Pillow images, arrays and tensors give what the module itself gives."""
    folder, loaded = case
    paths = sorted((folder / "images").glob("*.png"))[:6]
    wanted = logits_by_hand(loaded, paths)
    opened = [Image.open(path) for path in paths]
    pixels = np.stack([np.asarray(image) for image in opened])
    ready = torch.stack([preprocess(read_image(path), loaded.preprocessing) for path in paths])
    forms: dict[str, Any] = {
        "paths": paths,
        "texts": [str(path) for path in paths],
        "bytes": [path.read_bytes() for path in paths],
        "pillow": opened,
        "array": pixels,
        "arrays": list(pixels),
        "source": FolderImages(folder / "images", [path.name for path in paths]),
        "tensor": ready,
    }
    for name, form in forms.items():
        said = model_classifier.predict(form)
        torch.testing.assert_close(said.logits, wanted, msg=name)
        assert len(said.ids) == 6
    for form in (paths[0], opened[0], pixels[0]):
        torch.testing.assert_close(model_classifier.predict(form).logits, wanted[:1])
    whole = model_classifier.predict(folder / "images")
    assert whole.ids[:6] == tuple(path.name for path in paths)
    torch.testing.assert_close(whole.logits[:6], wanted)
    bee = 1 / (1 + np.exp(-(0.5 * whole.logits[:, 1].double().numpy() - 1)))
    np.testing.assert_allclose(whole.probabilities[:, 1], bee, rtol=1e-12)
    np.testing.assert_array_equal(whole.decisions, (whole.logits >= 0.25).numpy())


def test_a_tuned_head_is_written_into_the_model(
    case: tuple[Path, LoadedModel], tmp_path: Path
) -> None:
    """Some rows of another head, in another order: the classifier is of these categories."""
    loaded = case[1]
    assert loaded.head is not None
    tuned = loaded.head.take_categories(["dog", "ant"])
    tuned = tuned.replace(weight=tuned.weight * 2, categories=["dog", "ant"])
    save_classifier(loaded, tmp_path / "made", head=tuned)
    found = load_classifier(tmp_path / "made", model=MODEL)
    paths = sorted((case[0] / "images").glob("*.png"))[:4]
    before = logits_by_hand(loaded, paths)[:, [3, 0]]
    assert found.categories == ("dog", "ant")
    said = found.predict(paths).logits
    bias = tuned.bias
    assert bias is not None
    torch.testing.assert_close(said, 2 * (before - bias) + bias, rtol=1e-4, atol=1e-4)
    again = load_classifier(tmp_path / "made").predict(found_features(loaded, paths)).logits
    torch.testing.assert_close(again, said, rtol=1e-4, atol=1e-4)


def found_features(loaded: LoadedModel, paths: list[Path]) -> torch.Tensor:
    made: Any = catwise.extract(loaded, FolderImages(paths[0].parent, [p.name for p in paths]),
                                dtype="float32")  # fmt: skip
    return made.features  # type: ignore[no-any-return]


def test_flips(case: tuple[Path, LoadedModel], tmp_path: Path) -> None:
    """Logits are the mean over an image and its mirror image."""
    save_classifier(case[1], tmp_path / "made", flips=True)
    module = case[1].module
    assert module is not None
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = (module(images) + module(images.flip(-1))) / 2
    found = load_classifier(tmp_path / "made", model=MODEL)
    torch.testing.assert_close(found.predict(images).logits, wanted)
    torch.testing.assert_close(found.module()(images)[0], wanted)


def test_features_by_category(tmp_path: Path) -> None:
    """A vector for each category."""
    head = made_head()
    save_classifier(head, tmp_path / "made")
    values = exact_rows(20, 6 * 8).reshape(20, 6, 8)
    said = load_classifier(tmp_path / "made").predict(CategoryFeatures(values))
    assert torch.equal(said.logits, head.logits(CategoryFeatures(values)))


@pytest.mark.parametrize("skip", [False, True])
def test_undecodable_images(
    case: tuple[Path, LoadedModel], model_classifier: Classifier, tmp_path: Path, *, skip: bool
) -> None:
    """Refused by name, or skipped and listed."""
    good = sorted((case[0] / "images").glob("*.png"))[:2]
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    given = [good[0], bad, good[1]]
    if not skip:
        with pytest.raises(FeatureError, match=r"bad\.png"):
            model_classifier.predict(given)
        return
    said = model_classifier.predict(given, undecodable="skip")
    assert (said.ids, said.skipped) == ((str(good[0]), str(good[1])), (str(bad),))
    assert said.logits.shape == (2, 4)


def test_what_is_neither_images_nor_features(model_classifier: Classifier, tmp_path: Path) -> None:
    """One clear error, which says what may be given."""
    for given in (np.zeros((2, 8, 8, 3)), object(), 3.5):
        with pytest.raises(FeatureError, match=r"neither images nor features(.|\n)*uint8"):
            model_classifier.predict(given)
    with pytest.raises(ShapeError, match="12"):
        model_classifier.predict(np.zeros((2, 5), dtype=np.float32))
    with pytest.raises(FeatureError, match="number 1"):
        model_classifier.predict([str(tmp_path / "a.png"), 7])
    save_classifier(made_head(), tmp_path / "head")
    with pytest.raises(ConfigError, match=r"head alone(.|\n)*features"):
        load_classifier(tmp_path / "head").predict([tmp_path / "a.png"])
    with pytest.raises(FeatureError, match="cannot hold"):
        load_classifier(tmp_path / "head").predict([[np.inf] * 8])


# --------------------------------------------------------------------------------- checks


def rewritten(path: Path, change: Any, *, digest: bool = False) -> None:
    """Change the manifest, and its digest too if asked to."""
    from catwise.predicting import folder

    table = json.loads(path.read_text())
    change(table)
    if digest:
        table.pop("digest")
        table["digest"] = folder._digest(table)
    path.write_text(json.dumps(table))


@pytest.mark.parametrize(
    "name",
    ["head.safetensors", "calibration.json", "thresholds.json", "MODEL_CARD.md",
     "checkpoint/net.safetensors"],
)  # fmt: skip
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_files_are_those_that_were_written(
    model_classifier: Classifier, name: str, how: str
) -> None:
    """A file that was changed or removed is named."""
    path = model_classifier.folder / name
    raw = path.read_bytes()
    path.unlink()
    if how == "changed":
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(MismatchError, match=name.replace(".", r"\.")):
        load_classifier(model_classifier.folder)


def test_a_manifest_that_was_changed(model_classifier: Classifier) -> None:
    """Another mean in the preprocessing is refused; without checks it is taken."""
    path = model_classifier.folder / "classifier.json"
    rewritten(path, lambda table: table["model"]["preprocessing"].update(mean=[0.0, 0.0, 0.0]))
    with pytest.raises(MismatchError, match=r"classifier\.json"):
        load_classifier(model_classifier.folder)
    found = load_classifier(model_classifier.folder, check=False)
    assert found.preprocessing is not None
    assert found.preprocessing.mean == (0.0, 0.0, 0.0)


def test_another_preprocessing_shows_in_the_logits(model_classifier: Classifier) -> None:
    """With its digest made good, the made-up images tell."""
    path = model_classifier.folder / "classifier.json"
    rewritten(path, lambda table: table["model"]["preprocessing"].update(crop_pct=0.7), digest=True)
    found = load_classifier(model_classifier.folder, model=MODEL)
    with pytest.raises(MismatchError, match="made-up images"):
        found.predict(np.zeros((8, 8, 3), dtype=np.uint8))


def test_another_architecture_shows_in_the_logits(
    model_classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights in a module that computes something else are refused."""

    class Other(fix_case.TinyNet):
        def __init__(self) -> None:
            super().__init__()
            self.body[2] = nn.ReLU()

    monkeypatch.setattr(fix_case, "TinyNet", Other)
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    found = load_classifier(model_classifier.folder, model=MODEL)
    with pytest.raises(MismatchError, match="made-up images"):
        found.predict(image)
    load_classifier(model_classifier.folder, model=MODEL, check=False).predict(image)


def test_a_function_is_not_called_unasked(model_classifier: Classifier) -> None:
    """What makes the model must be named by the user."""
    for given in (None, "python:os:system"):
        with pytest.raises(ConfigError, match=r"not called unasked(.|\n)*fix_case:tiny_net"):
            _ = load_classifier(model_classifier.folder, model=given).model


def test_other_folders(tmp_path: Path) -> None:
    """None, another one, and one of another version."""
    with pytest.raises(CheckpointError, match=r"classifier\.json"):
        load_classifier(tmp_path)
    save_classifier(made_head(), tmp_path / "made")
    rewritten(tmp_path / "made/classifier.json", lambda t: t.update(catwise_classifier="9"))
    with pytest.raises(ConfigError, match="another version"):
        load_classifier(tmp_path / "made")
    rewritten(tmp_path / "made/classifier.json",
              lambda t: t.update(catwise_classifier="1", files=3))  # fmt: skip
    with pytest.raises(CheckpointError, match="files"):
        load_classifier(tmp_path / "made")


def test_features_of_another_model_are_refused(
    case: tuple[Path, LoadedModel], model_classifier: Classifier, tmp_path: Path
) -> None:
    """A store says what gave it; the same model and preprocessing are taken, others are not."""
    images = FolderImages.scan(case[0] / "images")
    catwise.extract(case[1], images, tmp_path / "same")
    said = model_classifier.predict(tmp_path / "same")
    whole = model_classifier.predict(images)
    assert said.ids == whole.ids
    torch.testing.assert_close(said.logits, whole.logits, rtol=0, atol=0.01)
    catwise.extract(case[1], images, tmp_path / "flipped", flips=True)
    with pytest.raises(MismatchError, match="flips"):
        model_classifier.predict(tmp_path / "flipped")
    other = small_model(tmp_path / "other")
    assert other.module is not None
    with torch.no_grad():
        other.module.get_parameter("body.1.weight").mul_(2)
    catwise.extract(other, images, tmp_path / "other store")
    with pytest.raises(MismatchError, match="weights"):
        model_classifier.predict(open_store(tmp_path / "other store"))
    model_classifier.predict(tmp_path / "other store", check=False)
    write_store(tmp_path / "plain", exact_rows(4, 12))
    assert len(model_classifier.predict(tmp_path / "plain")) == 4  # it says nothing


def test_a_head_of_a_store(case: tuple[Path, LoadedModel], tmp_path: Path) -> None:
    """A head alone remembers what gave the features that it was tuned on."""
    images = FolderImages.scan(case[0] / "images")
    store: Any = catwise.extract(case[1], images, tmp_path / "store")
    head = case[1].head
    assert head is not None
    save_classifier(head, tmp_path / "made", features=store)
    found = load_classifier(tmp_path / "made")
    assert len(found.predict(store)) == len(images)
    catwise.extract(case[1], images, tmp_path / "flipped", flips=True)
    with pytest.raises(MismatchError, match="flips"):
        found.predict(tmp_path / "flipped")


# -------------------------------------------------------------------------------- writing


def test_whole_or_not_at_all(
    case: tuple[Path, LoadedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails leaves nothing, and what was there stays; equal inputs give equal bytes."""
    place = tmp_path / "made"
    save_classifier(case[1], place)
    before = fix_case.contents(place)
    save_classifier(case[1], tmp_path / "again")
    assert fix_case.contents(tmp_path / "again") == before
    with pytest.raises(OutputError, match="not empty"):
        save_classifier(made_head(), place)

    def fails(*_: object, **__: object) -> None:
        raise MismatchError("it does not hold.")

    monkeypatch.setattr("catwise.predicting.saving.verify_written", fails)
    with pytest.raises(MismatchError, match="does not hold"):
        save_classifier(case[1], place, overwrite=True)
    assert fix_case.contents(place) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "made"]
    monkeypatch.undo()
    save_classifier(made_head(), place, overwrite=True)
    assert load_classifier(place).categories == CATEGORIES
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        save_classifier(made_head(), tmp_path / "mine", overwrite=True)


def test_what_does_not_go_together(case: tuple[Path, LoadedModel], tmp_path: Path) -> None:
    """Each wrong combination is told before anything is written."""
    out = tmp_path / "made"
    bare = LoadedModel("bare", nn.Sequential(nn.Linear(2, 2)), "0", fix_case.INPUT,
                       head=Head(np.eye(2, dtype=np.float32)))  # fmt: skip
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (bare, {}, "cannot be loaded again"),
        (made_head(), {"head": made_head()}, "head alone"),
        (case[1], {"features": object()}, "head alone"),
        (3, {}, "a model, a head, or a folder"),
        (made_head(), {"thresholds": Calibration.of(())}, "not a Thresholds"),
        (made_head(), {"provenance": {"x": object()}}, "JSON-ready"),
        (tmp_path, {}, "no finished checkpoint"),
    ]
    for source, options, match in wrong:
        with pytest.raises(ConfigError, match=match):
            save_classifier(source, out, **options)
        assert not out.exists()


def test_thresholds_of_another_calibration(tmp_path: Path) -> None:
    """Where a rule of probabilities chose them they are refused; counted rows do not care."""
    from classifier_case import made_labels

    head = made_head()
    logits = head.logits(exact_rows(600))
    labels = made_labels(logits, head.categories)
    own = catwise.calibrate(logits, labels)
    other = catwise.calibrate(logits, labels, prevalence=0.01)
    by_f1 = catwise.threshold(logits, labels, calibration=own)
    with pytest.raises(ConfigError, match=r"another calibration(.|\n)*--calibration"):
        save_classifier(head, tmp_path / "made", calibration=other, thresholds=by_f1)
    save_classifier(head, tmp_path / "made", calibration=own, thresholds=by_f1)
    counted = catwise.threshold(logits, labels, "sensitivity", value=0.9, calibration=own)
    save_classifier(head, tmp_path / "counted", calibration=other, thresholds=counted)


def test_the_card(tmp_path: Path) -> None:
    """What is decided, by which threshold, and what that reaches on test rows."""
    head = made_head()
    logits = head.logits(exact_rows(600))
    from classifier_case import made_labels

    labels = made_labels(logits, head.categories)
    cuts = catwise.threshold(logits, labels, test=(logits, labels))
    sets = catwise.conformal(logits, labels)
    save_classifier(head, tmp_path / "made", thresholds=cuts, conformal=sets,
                    provenance={"who": "me"})  # fmt: skip
    card = (tmp_path / "made/MODEL_CARD.md").read_text()
    assert "| category | threshold (logit) | probability there | rule | sensitivity |" in card
    one = cuts.categories[2]
    assert one.threshold is not None
    assert one.reached is not None
    assert f"| cat | {one.threshold:.4g} |" in card
    assert f"{one.reached.sensitivity.value:.4g}" in card
    assert f"| {sets.categories[2].positive.cut:.4g} |" in card
    assert load_classifier(tmp_path / "made").manifest.provenance["who"] == "me"


def test_pillow_is_named_where_it_is_missing(
    model_classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One error says how to install it."""
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    found = load_classifier(model_classifier.folder, model=MODEL)
    with pytest.raises(catwise.CatwiseError, match=r"catwise\[images\]"):
        found.predict(["a.png"])
