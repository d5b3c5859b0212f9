"""Models of torchvision: architectures there and back, preprocessing of published weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from catwise.errors import ConfigError, MismatchError
from catwise.models.registry import load_model, reload_model
from catwise.models.verify import noise, verify_written
from catwise.models.writing import write_model
from unit.models.test_registry import NAMES, another, check_file_round_trip, need, scramble

if TYPE_CHECKING:
    from pathlib import Path

models = need("torchvision.models")

LAYERS = {
    "resnet18": "fc",
    "shufflenet_v2_x0_5": "fc",
    "regnet_x_400mf": "fc",
    "mobilenet_v2": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "efficientnet_b0": "classifier.1",
    "densenet121": "classifier",
    "squeezenet1_1": "classifier.1",  # a 1×1 convolution before the pooling
}


def build(name: str, **args: Any) -> Any:
    return models.get_model(name, weights=None, num_classes=len(NAMES), **args)


@pytest.mark.parametrize("name", LAYERS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    """Heads at all the places where torchvision has them."""
    model = check_file_round_trip(f"torchvision:{name}", lambda: build(name), tmp_path)
    assert model.layer == LAYERS[name]
    assert bool(model.output_is) == (name == "squeezenet1_1")


def test_model_that_asks_for_its_version(tmp_path: Path) -> None:
    """MNASNet loads nothing that does not say its version, which safetensors cannot."""
    old, new = tmp_path / "old.pt", tmp_path / "new.pt"
    torch.save(scramble(build("mnasnet0_5")).state_dict(), old)
    model = load_model("torchvision:mnasnet0_5", checkpoint=old)
    assert model.layer == "classifier.1"
    write_model(model, another(model.head), new)
    fresh = build("mnasnet0_5")
    fresh.load_state_dict(torch.load(new, weights_only=True), strict=True)
    assert torch.equal(fresh.classifier[1].weight, another(model.head).weight)


def test_layer_that_scores_every_place() -> None:
    """SqueezeNet's head is applied before the pooling: its input is not a vector."""
    model = load_model("torchvision:squeezenet1_1", n_categories=7)
    assert model.output_is == "not linear"
    assert any("13×13 places: its input is not a vector" in note for note in model.notes)


def test_layer_that_scores_every_place_is_compared(tmp_path: Path) -> None:
    """What the layer itself gives is verified, where the model's output says something else."""
    torch.save(scramble(build("squeezenet1_1")).state_dict(), tmp_path / "old.pt")
    model = load_model("torchvision:squeezenet1_1", checkpoint=tmp_path / "old.pt")
    head = another(model.head)
    write_model(model, head, tmp_path / "new.pt")
    again = reload_model(model, tmp_path / "new.pt")
    assert verify_written(model, again, head, noise(model, 2)).gap < 1e-4
    with pytest.raises(MismatchError, match="does not say what its head says"):
        verify_written(model, again, head.replace(weight=2 * head.weight), noise(model, 2))


@pytest.mark.parametrize("aux", [True, False])
def test_auxiliary_heads_are_there_if_the_checkpoint_has_them(aux: bool, tmp_path: Path) -> None:
    """GoogLeNet's extra heads, which train only, are no candidates and no surprise."""
    module = scramble(build("googlenet", aux_logits=aux, init_weights=False))
    torch.save(module.state_dict(), tmp_path / "old.pt")
    model = load_model("torchvision:googlenet", checkpoint=tmp_path / "old.pt")
    assert model.layer == "fc"
    assert (model.module.aux1 is not None) == aux


def test_preprocessing_of_named_weights() -> None:
    """The preset of the weights that are named, and the names of their categories."""
    model = load_model("torchvision:resnet50", model_args={"weights": "IMAGENET1K_V2"})
    preset = models.ResNet50_Weights.IMAGENET1K_V2.transforms()
    take = model.preprocessing
    assert (list(take.size), take.crop_pct) == (preset.crop_size * 2, 224 / 232)
    assert (list(take.mean), list(take.std)) == (preset.mean, preset.std)
    assert take.source == "torchvision IMAGENET1K_V2"
    assert model.head.categories[:2] == ("tench", "goldfish")
    assert len(set(model.head.categories)) == 1000


def test_preprocessing_is_not_known_where_weights_differ() -> None:
    """A note says whose preprocessing was taken, and how to choose; no categories are invented."""
    model = load_model("torchvision:mobilenet_v2", n_categories=1000)
    assert model.preprocessing.source == "torchvision IMAGENET1K_V1"
    assert any("IMAGENET1K_V2" in note and "weights" in note for note in model.notes)
    assert model.head.categories[:2] == ("0", "1")


@pytest.mark.parametrize(
    ("name", "args", "text"),
    [
        ("resnet_50", {}, "did you mean 'resnet50'"),
        ("fcn_resnet50", {}, "no image classifier"),
        ("resnet50", {"weights": "IMAGENET_V2"}, "did you mean 'IMAGENET1K_V2'"),
        ("resnet50", {"num_classes": 3}, "model_args has no num_classes"),
        ("resnet18", {"colour": 1}, "unexpected keyword argument 'colour'"),
    ],
)
def test_refused(name: str, args: dict[str, Any], text: str) -> None:
    """Unknown names and options are one error with the nearest valid one."""
    with pytest.raises(ConfigError, match=text):
        load_model(f"torchvision:{name}", model_args=args)
