"""Heads over a vector for each category: read, extracted, tuned, written back, run again.

The modules are the smallest that compute what the papers say.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import catwise
from catwise.errors import HeadError
from catwise.features import CategoryFeatures
from catwise.heads import list_heads, read_head, write_head_to_state_dict
from catwise.models.extraction import extract
from catwise.models.registry import load_model, reload_model
from catwise.models.verify import compare_written, verify_written
from catwise.models.writing import write_model
from unit.models.test_registry import another, need

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

C, D, WIDTH = 6, 8, 5
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox"]


class Backbone(nn.Module):
    """Images to maps of features, (N, WIDTH, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 3, stride=2)

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images).relu()


class ElementWise(nn.Module):
    """Chen et al., ICCV 2019 (SSGRL), equation 5: s_c = f_c(o_c), a classifier for each c."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(C, D))
        self.bias = nn.Parameter(torch.randn(C))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return (vectors * self.weight).sum(2) + self.bias


class Ssgrl(Backbone):
    """Semantic attention pools a vector for each category; ElementWise scores it."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Parameter(torch.randn(C, WIDTH))
        self.fc_output = nn.Linear(WIDTH, D)
        self.classifiers = ElementWise()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.maps(images).flatten(2)
        share = torch.einsum("cw,nwp->ncp", self.words, maps).softmax(2)
        vectors = torch.einsum("ncp,nwp->ncw", share, maps)
        return self.classifiers(torch.tanh(self.fc_output(vectors)))


class GroupWise(nn.Module):
    """Liu et al., arXiv 2107.10834 (Query2Label), equation 3: p_k = W_k^T Q_k + b_k."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(1, C, D))
        self.b = nn.Parameter(torch.randn(1, C))

    def forward(self, queries: torch.Tensor) -> torch.Tensor:
        return (self.W * queries).sum(-1) + self.b


class Query2Label(Backbone):
    """A query for each category attends to the map; GroupWise scores it."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Embedding(C, D)
        self.project = nn.Linear(WIDTH, D)
        self.attention = nn.MultiheadAttention(D, 2, batch_first=True)
        self.fc = GroupWise()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.project(self.maps(images).flatten(2).transpose(1, 2))
        queries = self.queries.weight.expand(len(images), -1, -1)
        return self.fc(queries + self.attention(queries, maps, maps)[0])


class Decoder(nn.Module):
    """Ridnik et al., WACV 2023 (ML-Decoder), section 3.2: K queries, C / K categories each."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        size = -(-C // groups)
        layer = nn.TransformerDecoderLayer(D, 2, 16, dropout=0.1)
        self.decoder = nn.TransformerDecoder(layer, 1)
        self.query_embed = nn.Embedding(groups, D)
        self.duplicate_pooling = nn.Parameter(torch.randn(groups, D, size))
        self.duplicate_pooling_bias = nn.Parameter(torch.randn(C))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        queries = self.query_embed.weight[:, None].expand(-1, len(rows), -1)
        vectors = self.decoder(queries, rows.transpose(0, 1)).transpose(0, 1)
        scores = torch.einsum("nkd,kdg->nkg", vectors, self.duplicate_pooling)
        return scores.flatten(1)[:, :C] + self.duplicate_pooling_bias


class MLDecoderModel(Backbone):
    """The decoder over the positions of the map."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, D)
        self.head = Decoder(groups)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.project(self.maps(images).flatten(2).transpose(1, 2)))


class Csra(Backbone):
    """Zhu & Wu, ICCV 2021 (CSRA), equations 2 to 5: the mean, and lam times an attention."""

    def __init__(self, lam: float, temperature: float = 1.0, *, normed: bool = False) -> None:
        super().__init__()
        self.lam, self.temperature, self.normed = lam, temperature, normed
        self.classifier = nn.Conv2d(WIDTH, C, 1, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores = self.classifier(self.maps(images)).flatten(2)
        if self.normed:  # as the authors' code does
            scores = scores / self.classifier.weight.flatten(1).norm(dim=1)[:, None]
        attended = (scores * (self.temperature * scores).softmax(2)).sum(2)
        return scores.mean(2) + self.lam * attended


def ssgrl() -> nn.Module:
    return Ssgrl()


def query2label() -> nn.Module:
    return Query2Label()


def ml_decoder() -> nn.Module:
    return MLDecoderModel(C)


def ml_decoder_groups() -> nn.Module:
    return MLDecoderModel(3)


def ml_decoder_uneven() -> nn.Module:
    """Four groups of two places for six categories: two places stay empty."""
    return MLDecoderModel(4)


def csra_mean() -> nn.Module:
    return Csra(lam=0.0)


def csra() -> nn.Module:
    return Csra(lam=0.2)


def csra_normed() -> nn.Module:
    return Csra(lam=0.0, normed=True)


def csra_uniform() -> nn.Module:
    """At temperature 0 the attention is the mean, so that the model is linear, times 1 + lam."""
    return Csra(lam=0.2, temperature=0.0)


MODELS: dict[str, tuple[str, int]] = {
    "ssgrl": ("classifiers", C),
    "query2label": ("fc", C),
    "ml_decoder": ("head", C),
    "ml_decoder_groups": ("head", 3),
}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "category_heads", sys.modules[__name__])
    torch.manual_seed(0)


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, 9, 9, generator=torch.Generator().manual_seed(seed))


def save(state: dict[str, torch.Tensor], path: Path) -> Path:
    if path.suffix == ".pt":
        torch.save({"state_dict": state}, path)
    else:
        save_file(state, path)
    return path


def loaded(kind: str, path: Path) -> Any:
    """As a user would load it; the image size is what the tests use."""
    return load_model(
        f"python:category_heads:{kind}", checkpoint=path, layer=MODELS[kind][0], categories=NAMES
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("kind", MODELS)
def test_read_and_write(kind: str, suffix: str, tmp_path: Path) -> None:
    """The same head leaves every byte; another one is what the model's own code computes with."""
    build: Callable[[], nn.Module] = globals()[kind]
    module = build().eval()
    old = save(module.state_dict(), tmp_path / f"old{suffix}")
    model = loaded(kind, old)
    assert (model.head.n_categories, model.head.n_features) == (C, D)
    assert not model.output_is
    write_model(model, model.head, tmp_path / f"same{suffix}")
    assert (tmp_path / f"same{suffix}").read_bytes() == old.read_bytes()

    new, head = tmp_path / f"new{suffix}", another(model.head)
    write_model(model, head, new)
    again = reload_model(model, new)
    seen = verify_written(model, again, head, images(4))
    assert seen.gap < 1e-5 < seen.change
    assert compare_written(model, new) == len(module.state_dict()) - 2
    theirs = build().eval()
    state = load_file(new) if suffix != ".pt" else torch.load(new, weights_only=True)["state_dict"]
    theirs.load_state_dict(state, strict=True)
    found = extract(again, [images(4)], dtype="float32")
    assert found.features.shape == (4, MODELS[kind][1], D)
    with torch.no_grad():
        assert torch.allclose(theirs(images(4)), found.logits, atol=1e-5)
    assert torch.allclose(head.logits(found.features), found.logits, atol=1e-4)


@pytest.mark.parametrize("kind", MODELS)
def test_end_to_end(kind: str, tmp_path: Path) -> None:
    """From images to a better checkpoint: extract to a store, tune, evaluate, write, run."""
    build: Callable[[], nn.Module] = globals()[kind]
    module = build().eval()
    rng = np.random.default_rng(0)
    sets = {
        name: images(n, seed)
        for seed, (name, n) in enumerate([("train", 150), ("valid", 150), ("test", 200)])
    }
    truth = {}
    with torch.no_grad():
        for name, batch in sets.items():
            logits = module(batch)
            truth[name] = (logits > logits.median(0).values).float().numpy()
        for part in module.parameters():
            if part.shape in {(C, D), (1, C, D), (C, D, 1), (3, D, 2)}:
                part.add_(part.std() * torch.randn(part.shape))  # what training did wrong
    path = save(module.state_dict(), tmp_path / "old.safetensors")
    model = loaded(kind, path)
    pairs = {}
    for name, batch in sets.items():
        ids = [f"{name}-{i}" for i in range(len(batch))]
        store = extract(model, [batch], tmp_path / name, ids=ids, dtype="float32")
        labels = truth[name].copy()
        if name == "train":
            labels[rng.random(labels.shape) > 0.5] = np.nan
        known = catwise.PartialLabels.from_array(labels, encoding="nan", categories=NAMES, ids=ids)
        pairs[name] = (store, known)
    result = catwise.tune(model.head, pairs["train"], pairs["valid"], force=True)
    before, after = (catwise.evaluate(h, pairs["test"], metrics=["auroc"], force=True)
                     for h in (model.head, result.head))  # fmt: skip
    assert after.means["auroc"]["macro"] > before.means["auroc"]["macro"] + 0.02
    write_model(model, result.head, tmp_path / "new.safetensors")
    again = reload_model(model, tmp_path / "new.safetensors")
    seen = verify_written(model, again, result.head, sets["test"][:5])
    assert seen.gap < 1e-4
    read = catwise.read_features(tmp_path / "test")
    assert isinstance(read, CategoryFeatures)
    found = extract(again, [sets["test"]], dtype="float32")
    assert torch.allclose(result.head.logits(read), found.logits, atol=1e-3)


def test_uneven_groups(tmp_path: Path) -> None:
    """Places of the last groups that no category takes are left as they are."""
    module = ml_decoder_uneven()
    old = save(module.state_dict(), tmp_path / "old.pt")
    with torch.no_grad():
        expected = module.eval()(images(3))
    head = read_head(old, key="head.duplicate_pooling")
    assert (head.n_categories, head.n_features) == (C, D)
    place = {"key": "head.duplicate_pooling"}
    catwise.write_head(old, another(head), tmp_path / "new.pt", **place)
    state = torch.load(tmp_path / "new.pt", weights_only=True)["state_dict"]
    was = module.state_dict()["head.duplicate_pooling"]
    assert torch.equal(state["head.duplicate_pooling"][3], was[3])
    assert not torch.equal(state["head.duplicate_pooling"][2], was[2])
    model = load_model("python:category_heads:ml_decoder_uneven", checkpoint=old)
    found = extract(model, [images(3)], dtype="float32")
    assert torch.allclose(found.logits, expected, atol=1e-5)
    assert torch.allclose(model.head.logits(found.features), expected, atol=1e-4)


def test_heads_of_a_state_dict() -> None:
    """In memory the layouts are read and written too; the given tables stay."""
    for kind, key, bias in [
        ("query2label", "fc.W", "fc.b"),
        ("ml_decoder_groups", "head.duplicate_pooling", None),
    ]:
        state = globals()[kind]().state_dict()
        kept = {name: part.clone() for name, part in state.items()}
        head = read_head(state, key=key, bias_key=bias)
        new = write_head_to_state_dict(state, another(head), key=key, bias_key=bias)
        again = read_head(new, key=key, bias_key=bias)
        assert torch.equal(again.weight, another(head).weight)
        assert torch.equal(again.bias, another(head).bias)
        assert all(torch.equal(kept[name], part) for name, part in state.items())


def test_head_of_a_decoder_is_found() -> None:
    """Without a key: the matrices of a module called `head` are not taken for it."""
    state = ml_decoder_uneven().state_dict()
    head = read_head(state)
    assert torch.equal(head.weight, read_head(state, key="head.duplicate_pooling").weight)
    place = list_heads(state)[0]
    assert (place.key, place.bias_key) == ("head.duplicate_pooling", "head.duplicate_pooling_bias")
    assert "category-specific features" in place.note
    assert read_head(state, categories=NAMES).categories == tuple(NAMES)


def test_row_of_a_group_is_its_column() -> None:
    """Category c is column c % g of group c // g."""
    state = ml_decoder_groups().state_dict()
    head = read_head(state, key="head.duplicate_pooling")
    for c in range(C):
        assert torch.equal(head.weight[c], state["head.duplicate_pooling"][c // 2, :, c % 2])


class Layers(nn.Module):
    """What `nn.TransformerDecoder` does, for layers that know none of its newer arguments."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, queries: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            queries = layer(queries, memory)
        return queries


def test_decoder_of_timm(tmp_path: Path) -> None:
    """The ML-Decoder of timm, but for its loop over layers, which torch 2 does not run."""
    decoders = need("timm.layers.ml_decoder")

    class Model(Backbone):
        def __init__(self) -> None:
            super().__init__()
            self.fc = decoders.MLDecoder(C, 4, decoder_embedding=16, initial_num_features=WIDTH)
            self.fc.decoder = Layers(self.fc.decoder.layers)

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return self.fc(self.maps(batch))

    sys.modules["category_heads"].timm_decoder = Model  # type: ignore[attr-defined]
    module = Model().eval()
    old = save(module.state_dict(), tmp_path / "old.safetensors")
    model = load_model("python:category_heads:timm_decoder", checkpoint=old)
    with torch.no_grad():
        expected = module(images(3))
    found = extract(model, [images(3)], dtype="float32")
    assert found.features.shape == (3, 4, 16)
    assert torch.allclose(found.logits, expected, atol=1e-5)
    head = another(model.head)
    write_model(model, head, tmp_path / "new.safetensors")
    module.load_state_dict(load_file(tmp_path / "new.safetensors"), strict=True)
    with torch.no_grad():
        assert torch.allclose(module(images(3)), head.logits(found.features), atol=1e-4)


def test_csra_where_it_is_linear(tmp_path: Path) -> None:
    """With lambda 0 it scores the mean of the map: plain (N, D) features, tuned as such."""
    module = csra_mean().eval()
    old = save(module.state_dict(), tmp_path / "old.safetensors")
    model = load_model("python:category_heads:csra_mean", checkpoint=old)
    assert any("the model takes their mean" in note for note in model.notes)
    found = extract(model, [images(3)], dtype="float32")
    with torch.no_grad():
        assert torch.allclose(found.features, module.maps(images(3)).mean((2, 3)))
        assert torch.allclose(found.logits, module(images(3)), atol=1e-6)
    write_model(model, another(model.head), tmp_path / "new.safetensors")
    again = reload_model(model, tmp_path / "new.safetensors")
    assert verify_written(model, again, another(model.head), images(4)).gap < 1e-5


@pytest.mark.parametrize("kind", ["csra", "csra_normed", "csra_uniform"])
def test_csra_where_it_is_not(kind: str, tmp_path: Path) -> None:
    """Its attention is made with the very weights that are to be tuned: that is refused, and why.

    At temperature 0 it is the mean times 1 + lambda: linear, but not what the layer's numbers say.
    """
    old = save(globals()[kind]().state_dict(), tmp_path / "old.safetensors")
    model = load_model(f"python:category_heads:{kind}", checkpoint=old)
    assert model.output_is == "not linear"
    with pytest.raises(HeadError, match="does not make the model's logits"):
        extract(model, [images(3)])
