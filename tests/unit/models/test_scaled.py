"""Models that multiply their layer's output by a constant: read, extracted, written back, run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import catwise
from catwise.errors import HeadError
from catwise.heads import read_head, write_head
from catwise.models.extraction import extract
from catwise.models.registry import load_model, reload_model
from catwise.models.verify import verify_copy
from catwise.models.writing import write_model

if TYPE_CHECKING:
    from pathlib import Path

C, D = 3, 5
HERE = "python:unit.models.test_scaled:"


class Divided(nn.Module):
    """``logits / 0.7``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, D, 3, stride=2)
        self.fc = nn.Linear(D, C)

    def features(self, images: torch.Tensor) -> Any:
        return self.conv(images).relu().mean((2, 3))

    def forward(self, images: torch.Tensor) -> Any:
        return self.fc(self.features(images)) / 0.7


class Multiplied(Divided):
    """A convolution without bias, ``64 * logits`` in place, beside the features."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(D, C, 1, bias=False)  # type: ignore[assignment]

    def forward(self, images: torch.Tensor) -> Any:
        x = self.features(images)
        return {"logits": self.fc(x[:, :, None, None]).flatten(1).mul_(64), "features": x}


class ByFeatures(Divided):
    """A factor that differs by image, such as one by the length of its features."""

    def forward(self, images: torch.Tensor) -> Any:
        x = self.features(images)
        return self.fc(x) / (1 + x.norm(dim=1, keepdim=True))


class ByCategory(Divided):
    """A factor for each category."""

    def forward(self, images: torch.Tensor) -> Any:
        return super().forward(images) * torch.tensor([1.0, 2.0, 1.0])


class Shifted(Divided):
    """A multiple, and a number more."""

    def forward(self, images: torch.Tensor) -> Any:
        return super().forward(images) + 0.1


class Negated(Divided):
    """A negative factor is no temperature."""

    def forward(self, images: torch.Tensor) -> Any:
        return -super().forward(images)


def images(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def saved(module: nn.Module, path: Path) -> dict[str, torch.Tensor]:
    state = module.state_dict()
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return state


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("kind", [Divided, Multiplied])
def test_there_and_back(kind: type[nn.Module], suffix: str, tmp_path: Path) -> None:
    """head(features) are the model's logits; what is written makes the model say the new head's."""
    torch.manual_seed(0)
    module: Any = kind().eval()
    old, new = tmp_path / f"old{suffix}", tmp_path / f"new{suffix}"
    was = saved(module, old)
    model = load_model(HERE + kind.__name__, checkpoint=old, categories=["a", "b", "c"])
    assert (model.output_is, model.layer) == ("", "joined")
    assert any("times what its layer 'fc' gives" in note for note in model.notes)
    assert model.head is not None
    with torch.no_grad():
        logits = module(images())
        logits = logits if kind is Divided else logits["logits"]
        torch.testing.assert_close(model.head.logits(module.features(images())), logits)
    found: Any = extract(model, [images()], dtype="float32")
    torch.testing.assert_close(found.logits, logits)

    write_model(model, model.head, tmp_path / f"same{suffix}")
    assert (tmp_path / f"same{suffix}").read_bytes() == old.read_bytes()
    weight = model.head.weight.clone()
    weight[1] += torch.arange(D)
    head = model.head.replace(weight=weight)
    catwise.save_head(head, tmp_path / "head.safetensors")
    head = catwise.load_head(tmp_path / "head.safetensors")
    with pytest.raises(HeadError, match="write it with the model"):
        write_head(old, head, new)
    with pytest.raises(HeadError, match="was read without what the model multiplies"):
        write_model(model, read_head(old), new)
    write_model(model, head, new)
    assert verify_copy(model, new, head, images()).gap < 1e-5
    now = load_file(new) if suffix == ".safetensors" else torch.load(new, weights_only=True)
    kept = [key for key in was if key != "fc.weight"]
    assert all(torch.equal(now[key], was[key]) for key in kept)
    assert torch.equal(now["fc.weight"][[0, 2]], was["fc.weight"][[0, 2]])
    module.load_state_dict(now)
    with torch.no_grad():
        logits = module(images())
        logits = logits if kind is Divided else logits["logits"]
        torch.testing.assert_close(head.logits(module.features(images())), logits)
    again = reload_model(model, new)
    assert again.head is not None
    torch.testing.assert_close(again.head.weight, head.weight)


@pytest.mark.parametrize("kind", [ByFeatures, ByCategory, Shifted, Negated])
def test_what_is_no_constant(kind: type[nn.Module], tmp_path: Path) -> None:
    """What differs by image or category, or is more than a positive factor, is refused as ever."""
    torch.manual_seed(0)
    saved(kind(), tmp_path / "m.pt")
    model = load_model(HERE + kind.__name__, checkpoint=tmp_path / "m.pt")
    assert model.output_is == "not the layer's"
    with pytest.raises(HeadError, match="does not make the model's logits"):
        extract(model, [images()])
