"""Models with a layer for each category: read, extracted, written back into each layer, run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import nn

import catwise
from catwise.cli import main
from catwise.errors import ConfigError, HeadError
from catwise.heads import Head, read_head, write_head, write_head_to_state_dict
from catwise.models.extraction import extract
from catwise.models.registry import load_model, reload_model
from catwise.models.verify import verify_copy
from catwise.models.writing import write_model

if TYPE_CHECKING:
    from pathlib import Path

C, D = 12, 5
NAMES = [f"c{number}" for number in range(C)]
HERE = "python:unit.models.test_separate_layers:"


class Backbone(nn.Module):
    """Images to features (N, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, D, 3, stride=2)
        self.other = nn.Linear(D, D)

    def features(self, images: torch.Tensor) -> Any:
        return self.other(self.conv(images).relu().mean((2, 3)))


class Listed(Backbone):
    """A ModuleList, whose outputs are side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(D, 1) for _ in range(C))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.features(images)
        return torch.cat([head(x) for head in self.heads], dim=1)


class Numbered(Backbone):
    """1×1 convolutions `fc_0` … whose outputs are a list, beside another list."""

    def __init__(self) -> None:
        super().__init__()
        for number in reversed(range(C)):  # as they lie in the file says nothing of their order
            setattr(self, f"fc_{number}", nn.Conv2d(D, 1, 1))

    def each(self, number: int, x: torch.Tensor) -> Any:
        return getattr(self, f"fc_{number}")(x[:, :, None, None]).flatten(1)

    def forward(self, images: torch.Tensor) -> Any:
        x = self.features(images)
        return [self.each(number, x) for number in range(C)], [images] * C


class Biasless(Listed):
    """Layers without biases, and a sigmoid behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(D, 1, bias=False) for _ in range(C))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).sigmoid()


class Apart(Listed):
    """Each category's layer is given features of its own."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.features(images)
        return torch.cat([head(x * (1 + at)) for at, head in enumerate(self.heads)], dim=1)


class Twice(Listed):
    """The layers are used for more than the logits."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.features(images)
        weights = [head(x).sigmoid() for head in self.heads]
        return torch.cat([h(x * w) for h, w in zip(self.heads, weights, strict=True)], dim=1)


class Backwards(Listed):
    """The outputs are not in the order of the layers' numbers."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).flip(1)


def images(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def saved(module: nn.Module, path: Path) -> dict[str, torch.Tensor]:
    state = {key: part.clone() for key, part in module.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": {f"module.{key}": part for key, part in state.items()}}, path)
    return state


def state_of(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    state = torch.load(path, weights_only=True)["state_dict"]
    return {key.removeprefix("module."): part for key, part in state.items()}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("kind", [Listed, Numbered, Biasless])
def test_there_and_back(kind: type[nn.Module], suffix: str, tmp_path: Path) -> None:
    """Features are what goes into all layers; a head goes back into each, and nothing else."""
    module: Any = kind().eval()
    old, new = tmp_path / f"old{suffix}", tmp_path / f"new{suffix}"
    was = saved(module, old)
    model = load_model(HERE + kind.__name__, checkpoint=old, categories=NAMES)
    assert model.head is not None
    assert any("are one category each" in note for note in model.notes)
    found: Any = extract(model, [images()], dtype="float32")
    with torch.no_grad():
        torch.testing.assert_close(found.features, module.features(images()))
    assert torch.allclose(model.head.logits(found.features), found.logits, atol=1e-6)

    write_model(model, model.head, tmp_path / f"same{suffix}")
    assert (tmp_path / f"same{suffix}").read_bytes() == old.read_bytes()
    change = torch.randn(C, D, generator=torch.Generator().manual_seed(2))
    head = model.head.replace(weight=model.head.weight + change)
    some = head.take_categories(["c10", "c2"])
    write_model(model, some, new)
    expected = model.head.weight.clone()
    expected[[10, 2]] = some.weight
    assert verify_copy(model, new, some, images()).tensors == 4  # of `conv` and `other`
    now = state_of(new)
    lead = "fc_" if kind is Numbered else "heads."
    for key, part in was.items():
        changed = key in {f"{lead}10.weight", f"{lead}2.weight"}
        assert torch.equal(now[key], part) is not changed, key
    assert torch.equal(now[f"{lead}10.weight"].flatten(), some.weight[0])
    again = reload_model(model, new)
    assert again.head is not None
    assert torch.equal(again.head.weight, expected)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_from_the_file_alone(suffix: str, tmp_path: Path) -> None:
    """A key with a place for the number means all layers, by number; without it that is offered."""
    module = Numbered()
    path, new = tmp_path / f"m{suffix}", tmp_path / f"n{suffix}"
    saved(module, path)
    key = ("state_dict:module." if suffix == ".pt" else "") + "fc_{}.weight"
    with pytest.raises(HeadError) as caught:
        read_head(path)
    assert repr(key) in str(caught.value)
    head = read_head(path, key=key, categories=NAMES)
    for row, number in enumerate(range(C)):
        layer: Any = getattr(module, f"fc_{number}")
        assert torch.equal(head.weight[row], layer.weight.flatten())
        assert torch.equal(head.bias[row], layer.bias[0])  # type: ignore[index]
    report = write_head(path, head.replace(weight=head.weight.double() / 3), new, key=key)
    assert "12 of 12 rows" in str(report)
    assert "float64 rounded to float32" in report.cast
    assert torch.equal(read_head(new, key=key).weight, (head.weight.double() / 3).float())
    assert torch.equal(state_of(new)["other.weight"], module.other.weight)
    catwise.save_head(head.replace(weight=head.weight * 2), tmp_path / "head.safetensors")
    out = tmp_path / f"by-command{suffix}"
    call = ["apply", "--head", tmp_path / "head.safetensors", "--checkpoint", path, "--out", out]
    seen = CliRunner().invoke(main, [*map(str, call), "--head-key", key])
    assert seen.exit_code == 0, seen.output
    assert torch.equal(read_head(out, key=key).weight, head.weight * 2)
    with pytest.raises(HeadError, match="cannot have other rows"):
        write_head(path, head, tmp_path / "x", key=key, resize=True)


def test_state_dicts() -> None:
    """In memory, too; the given table stays."""
    state = Listed().state_dict()
    head = read_head(state, key="heads.{}")
    new = write_head_to_state_dict(state, head.replace(weight=head.weight + 1), key="heads.{}")
    assert torch.equal(new["heads.11.weight"], state["heads.11.weight"] + 1)
    assert new["other.weight"] is state["other.weight"]


def test_layers_that_are_not_one_a_category() -> None:
    """Numbers that are left out, other widths, biases here and there, and no such tensors."""
    state = dict(Listed().state_dict())
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("heads.{}", {"heads.3.weight": None}, "do not count from 0 or 1"),
        ("heads.{}", {"heads.3.weight": torch.ones(1, 7)}, "not one layer for each category"),
        ("heads.{}", {"heads.3.bias": None}, "not one layer for each category"),
        ("head.{}", {}, r"no tensors 'head\.\{\}' with a number"),
    ]
    for key, change, match in cases:
        made = {k: v for k, v in {**state, **change}.items() if v is not None}
        with pytest.raises(HeadError, match=match):
            read_head(made, key=key)


@pytest.mark.parametrize(
    ("kind", "match"), [(Apart, "not given the same features"), (Twice, "'heads.0' 2 times")]
)
def test_models_that_are_not_one_layer(kind: type[nn.Module], match: str, tmp_path: Path) -> None:
    """Features that differ by category, and layers that serve more than the logits, are refused."""
    saved(kind(), tmp_path / "m.pt")
    with pytest.raises(HeadError, match=match):
        load_model(HERE + kind.__name__, checkpoint=tmp_path / "m.pt")


def test_outputs_in_another_order(tmp_path: Path) -> None:
    """A model whose columns are not in the order of the numbers is seen when it runs."""
    saved(Backwards(), tmp_path / "m.pt")
    model = load_model(HERE + "Backwards", checkpoint=tmp_path / "m.pt")
    assert model.output_is == "not the layer's"
    with pytest.raises(HeadError, match="does not make the model's logits"):
        extract(model, [images()])


def test_the_layers_can_be_named(tmp_path: Path) -> None:
    """`layer="heads.{}"` says which layers are meant; a name of none is refused with those."""
    saved(Listed(), tmp_path / "m.pt")
    where: Any = {"checkpoint": tmp_path / "m.pt"}
    head: Head | None = load_model(HERE + "Listed", layer="heads.{}", **where).head
    assert head is not None
    assert (head.n_categories, head.n_features) == (C, D)
    with pytest.raises(ConfigError, match=r"did you mean 'heads\.\{\}'"):
        load_model(HERE + "Listed", layer="head.{}", **where)
    assert catwise.read_head(tmp_path / "m.pt", key="module.heads.{}").n_categories == C
