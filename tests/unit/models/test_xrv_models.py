"""torchxrayvision itself, with random weights: there and back, operating points, whole modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from catwise.errors import CheckpointError, ConfigError
from catwise.models.adapters.xrv import adapt_xrv
from catwise.models.extraction import extract
from catwise.models.registry import load_model, reload_model
from catwise.models.verify import compare_written, noise, verify_written
from catwise.models.writing import write_model
from unit.models.test_registry import another, need, scramble

if TYPE_CHECKING:
    from pathlib import Path

xrv = need("torchxrayvision")

NAME = "densenet121-res224-chex"
TARGETS: list[str] = xrv.models.model_urls[NAME]["labels"]
POINTS: list[float] = xrv.models.model_urls[NAME]["op_threshs"]
NAMED = [target for target in TARGETS if target]


def build(*, points: bool = False) -> Any:
    given = {"op_threshs": torch.tensor(POINTS)} if points else {}
    module = xrv.models.DenseNet(weights=None, num_classes=len(TARGETS), **given)
    return scramble(module).eval()


def save(module: Any, path: Path) -> Path:
    torch.save(module.state_dict(), path)
    return path


@pytest.mark.parametrize("points", [False, True])
def test_round_trip(points: bool, tmp_path: Path) -> None:
    """The published architecture with its targets: the same bytes, then another head; '' rows stay.

    With operating points the package's own output is the stretched probability of the new logits.
    """
    module = build(points=points)
    old = save(module, tmp_path / "old.pt")
    args = {"op_threshs": "drop"} if points else {}
    model = load_model(f"xrv:{NAME}", checkpoint=old, model_args=args)
    assert model.layer == "classifier"
    assert model.head.categories == tuple(NAMED)
    assert len(NAMED) < len(TARGETS)
    write_model(model, model.head, tmp_path / "same.pt")
    assert (tmp_path / "same.pt").read_bytes() == old.read_bytes()

    head, new = another(model.head), tmp_path / "new.pt"
    write_model(model, head, new)
    seen = verify_written(model, reload_model(model, new), head, noise(model, 2))
    assert seen.gap < 1e-4 < seen.change
    assert compare_written(model, new) == len(module.state_dict()) - 2
    fresh = build(points=points)
    fresh.load_state_dict(torch.load(new, weights_only=True), strict=True)
    unnamed = [row for row, target in enumerate(TARGETS) if not target]
    assert torch.equal(fresh.classifier.weight[unnamed], module.classifier.weight[unnamed])
    named = [row for row, target in enumerate(TARGETS) if target]
    images = noise(model, 2)
    features = extract(model, [images], dtype="float32").features
    with torch.no_grad():
        theirs = fresh(images)[:, named]
    expected = head.logits(features)
    if points:
        expected = xrv.models.op_norm(expected.sigmoid(), torch.tensor(POINTS)[named])
    assert torch.allclose(theirs, expected, atol=1e-5 * max(1.0, float(expected.abs().max())))


def test_operating_points_are_refused(tmp_path: Path) -> None:
    """They are thresholds of the old head: somebody must say what becomes of them."""
    old = save(build(points=True), tmp_path / "old.pt")
    with pytest.raises(ConfigError, match="operating points"):
        load_model(f"xrv:{NAME}", checkpoint=old)
    kept = load_model(f"xrv:{NAME}", checkpoint=old, model_args={"op_threshs": "keep"})
    assert kept.output_is == "not the layer's"


def test_published_files_are_not_opened(tmp_path: Path) -> None:
    """They are pickles of whole modules; a model that is in memory already is adapted."""
    module = build(points=True)
    torch.save(module, tmp_path / "published.pt")
    with pytest.raises(CheckpointError, match="nothing in a checkpoint is executed"):
        load_model(f"xrv:{NAME}", checkpoint=tmp_path / "published.pt")
    module.targets = TARGETS
    model = adapt_xrv(module, op_threshs="drop")
    found = extract(model, [noise(model, 2)], dtype="float32")
    assert found.logits.shape == (2, len(TARGETS))


def test_preprocessing_is_the_package_s_own() -> None:
    """A grey level means the same as after `xrv.datasets.normalize`."""
    take = load_model(f"xrv:{NAME}", model_args={"op_threshs": "drop"}).preprocessing
    ours = (torch.tensor([0.0, 0.5, 1.0]) - take.mean[0]) / take.std[0]
    theirs = xrv.datasets.normalize(torch.tensor([0.0, 127.5, 255.0]).numpy(), 255)
    assert ours.tolist() == pytest.approx(theirs.tolist())
