"""Classifiers of models of other packages: saved, loaded, run, exported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from catwise.decisions import Thresholds
from catwise.models.registry import load_model
from catwise.models.verify import noise
from catwise.predicting import Classifier, load_classifier, save_classifier
from classifier_case import at
from unit.models.test_registry import another, need, scramble

if TYPE_CHECKING:
    from pathlib import Path

    from catwise.models import LoadedModel


def timm_model(folder: Path) -> LoadedModel:
    timm = need("timm")
    from safetensors.torch import save_file

    module = scramble(timm.create_model("mobilenetv3_small_050", num_classes=4))
    save_file(module.state_dict(), folder / "m.safetensors")
    return load_model("timm:mobilenetv3_small_050", checkpoint=folder / "m.safetensors",
                      categories=["a", "b", "c", "d"])  # fmt: skip


def transformers_model(folder: Path) -> LoadedModel:
    transformers = need("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=8, num_labels=4,
        id2label=dict(enumerate(["a", "b", "c", "d"])), label2id={"a": 0, "b": 1, "c": 2, "d": 3},
    )  # fmt: skip
    module = scramble(transformers.ViTForImageClassification(config))
    module.save_pretrained(folder / "vit")
    return load_model(f"transformers:{folder}/vit")


def xrv_model(folder: Path) -> LoadedModel:
    xrv = need("torchxrayvision")
    name = "densenet121-res224-chex"  # some of its rows have no name
    n = len(xrv.models.model_urls[name]["labels"])
    module = scramble(xrv.models.DenseNet(weights=None, num_classes=n))
    torch.save(module.state_dict(), folder / "m.pt")
    return load_model(f"xrv:{name}", checkpoint=folder / "m.pt")


def graphs_of(found: Classifier, folder: Path, images: torch.Tensor) -> list[Any]:
    """What both exported graphs say of images."""
    runtime = pytest.importorskip("onnxruntime")
    found.export_torch(folder / "m.pt2")
    found.export_onnx(folder / "m.onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    graph = runtime.InferenceSession(str(folder / "m.onnx"), options)
    program = torch.export.load(folder / "m.pt2").module()
    return [graph.run(None, {"images": images.numpy()}), program(images)]


@pytest.mark.parametrize("build", [timm_model, transformers_model, xrv_model])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_there_and_out(build: Any, tmp_path: Path) -> None:
    """A head into a copy, the same classifier back, and both graphs of a small one."""
    loaded = build(tmp_path)
    assert loaded.head is not None
    head = another(loaded.head)
    cuts = Thresholds(tuple(at(name, 0.1 * c) for c, name in enumerate(head.categories)), "")
    save_classifier(loaded, tmp_path / "made", head=head, thresholds=cuts)
    found = load_classifier(tmp_path / "made")
    assert found.categories == head.categories
    images = noise(loaded, 3)
    said = found.predict(images)
    assert said.logits.shape == (3, head.n_categories)
    # A densenet121 takes a minute to export, and shows nothing there that the others do not.
    made = [] if build is xrv_model else graphs_of(found, tmp_path, images)
    largest = float(said.logits.abs().max())
    for logits, _, decisions in made:
        gap = np.abs(np.asarray(logits) - said.logits.numpy()).max()
        assert gap <= 1e-5 * largest
        clear = np.abs(said.logits.numpy() - found.rules.thresholds) > 1e-5 * largest
        np.testing.assert_array_equal(np.asarray(decisions)[clear], said.decisions[clear])
