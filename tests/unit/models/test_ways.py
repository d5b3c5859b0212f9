"""The way a model is run: near the model's own pass, and the model is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from catwise.errors import ConfigError, FeatureError, OutputError
from catwise.models import ways
from catwise.models.extraction import Extracted, extract
from catwise.models.ways import EXACT, choose_way, distance, running


class Block(nn.Module):
    """A residual block; with `reads` the convolution's output is used beside the norm, too."""

    def __init__(self, *, reads: bool = False, in_place: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.reads, self.in_place = reads, in_place

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        if self.in_place:
            out += 1
        new = self.norm(out).relu()
        return x + new + out if self.reads else x + new


def net(*blocks: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stem = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()]
        tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 5)]
        model = nn.Sequential(*stem, *(blocks or (Block(), Block())), *tail)
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
                nn.init.normal_(part.weight)
                nn.init.normal_(part.bias)
        return model


def images(n: int = 11) -> Tensor:
    return torch.rand(n, 3, 20, 20, generator=torch.Generator().manual_seed(1))


def by_hand(model: nn.Sequential, rows: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()[:-1](rows)


def described(model: nn.Module, rows: Tensor, **options: Any) -> tuple[str, Tensor]:
    """What was done, and the features."""
    name = f"{len(model) - 1}" if isinstance(model, nn.Sequential) else "fc"
    with running(model, name, choose_way(model, **options)) as run:
        features = torch.cat([run(part)[0] for part in rows.split(run.way.rows or len(rows))])
        return run.described, features


def test_batch_norms_are_folded() -> None:
    """Every batch norm behind a convolution goes; features stay, and so does the model."""
    model = net().train()
    state = {name: part.clone() for name, part in model.state_dict().items()}
    text, features = described(model, images())
    assert text == "channels last, 3 batch norms folded, 8 images at a time"
    assert model.training
    assert [*state] == [*model.state_dict()]
    assert all(torch.equal(part, state[name]) for name, part in model.state_dict().items())
    assert all(part.is_contiguous() for part in model.parameters())
    assert 0 < distance(features, by_hand(model, images())) <= EXACT


def test_the_models_own_hooks_are_kept() -> None:
    """A hook of the user's own runs in the copy; none of catwise's is left in the model."""
    model = net()
    model[2].register_forward_hook(lambda *_: _[-1] * 2)
    _, features = described(model, images())
    assert distance(features, by_hand(model, images())) <= EXACT
    assert not any(part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize("kind", ["reads", "in_place"])
def test_what_cannot_be_folded(kind: str) -> None:
    """Where something else reads or changes a convolution's output, features are still exact."""
    model = net(Block(**{kind: True}), Block())
    text, features = described(model, images())
    assert distance(features, by_hand(model, images())) <= EXACT
    kept = {"reads": "channels last, 8", "in_place": "channels last, 2 batch norms folded, 8"}
    assert text.startswith(kept[kind])


def test_a_shared_convolution_is_not_folded() -> None:
    """A convolution that runs twice, or whose weight another one shares, keeps its norm."""
    twice = Block()
    model = net(twice, twice)
    assert "1 batch norms folded" in described(model, images())[0]
    first, second = Block(), Block()
    second.conv.weight = first.conv.weight
    model = net(first, second)
    text, features = described(model, images())
    assert "1 batch norms folded" in text
    assert distance(features, by_hand(model, images())) <= EXACT


def test_other_models_run_as_they_are() -> None:
    """Without convolutions, or with other numbers than float32, nothing is done."""
    plain = nn.Sequential(nn.Flatten(), nn.Linear(1200, 5))
    assert described(plain, images())[0] == "as it is"
    assert choose_way(net().double()).rows is None
    patches = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Flatten(), nn.Linear(200, 5))
    text, features = described(patches, images())
    assert text == "8 images at a time"
    assert distance(features, by_hand(patches, images())) <= EXACT


def test_more_threads_take_more_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every thread has images to work at."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 32)
    assert choose_way(net()).rows == 64


def kept(precision: Any, **options: Any) -> Extracted:
    how = {"dtype": "float32", "batch_rows": 8, "precision": precision, **options}
    found = extract(net(), images(), **how)
    assert isinstance(found, Extracted)
    return found


def test_fast_without_bfloat16_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that does not compute in bfloat16 runs exactly, and says why."""
    monkeypatch.setattr(ways, "_half_flags", lambda: ())
    assert "does not compute in bfloat16" in choose_way(net(), None, "fast").notes[0]
    assert torch.equal(kept("fast").features, kept("exact").features)
    store: Any = extract(net(), images(), tmp_path / "s", precision="fast")
    assert extract(net(), images(), tmp_path / "s").digest == store.digest


def test_fast_is_half_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the processor computes in bfloat16, so does the model; the store says so."""
    exact = kept("exact")
    monkeypatch.setattr(ways, "_half_flags", lambda: ("avx512_bf16",))
    fast = kept("fast")
    assert EXACT < distance(fast.features, exact.features) < 0.03
    assert distance(fast.logits, exact.logits) < 0.05
    store: Any = extract(net(), images(), tmp_path / "s", precision="fast")
    made = store.origin["extract"]
    assert made["items"]["computed in"] == "bfloat16"
    assert made["items"]["processor"].endswith(", avx512_bf16")
    assert made["way"] == "channels last, 3 batch norms folded, 8 images at a time"
    assert EXACT < made["off"] < 0.03
    with pytest.raises(OutputError, match='precision: "fast", now "exact"'):
        extract(net(), images(), tmp_path / "s")
    assert "float64" in choose_way(net().double(), None, "fast").notes[0]


def test_fast_is_refused_where_it_is_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that half precision spoils are refused, with what to do."""
    monkeypatch.setattr(ways, "_half_flags", lambda: ("avx512_bf16",))
    monkeypatch.setattr(ways, "_FAST", 1e-6)
    with pytest.raises(FeatureError, match=r"half precision(.|\n)*precision='exact'"):
        kept("fast")


def test_another_processor_does_not_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of one processor are not continued on another; a finished store is taken as it is."""

    def stop(progress: Any) -> None:
        if progress.done > 8:
            raise KeyboardInterrupt

    how: dict[str, Any] = {"batch_rows": 4, "part_rows": 4}
    with pytest.raises(KeyboardInterrupt):
        extract(net(), images(), tmp_path / "s", progress=stop, **how)
    with monkeypatch.context() as other:
        other.setattr(ways, "_half_flags", lambda: ("avx512_bf16", "amx_bf16"))
        with pytest.raises(OutputError, match="processor"):
            extract(net(), images(), tmp_path / "s", **how)
    store: Any = extract(net(), images(), tmp_path / "s", **how)
    monkeypatch.setattr(ways, "_half_flags", lambda: ("avx512_bf16", "amx_bf16"))
    again: Any = extract(net(), images(), tmp_path / "s", **how)
    assert again.digest == store.digest


def test_precision_is_one_of_two() -> None:
    """Another word is refused."""
    with pytest.raises(ConfigError, match="precision"):
        kept("quick")


@pytest.mark.slow
def test_compiled_is_exact_and_says_when_it_pays(tmp_path: Path) -> None:
    """A compiled model gives the features, also of a last batch that is shorter."""
    told: list[str] = []
    found = kept("exact", compiled=True, progress=lambda step: told.append(step.message))
    assert distance(found.features, by_hand(net(), images())) <= EXACT
    assert any("should pay from" in text for text in told)
    assert any("compiled in" in text for text in told)
