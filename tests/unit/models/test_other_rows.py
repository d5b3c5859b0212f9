"""Models whose classification layer gets other rows: the packages themselves load and run them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch

from catwise.errors import HeadError, OutputError
from catwise.heads import Head
from catwise.models.registry import load_model
from catwise.models.verify import noise, verify_copy
from catwise.models.writing import write_model
from unit.models.test_registry import NAMES, need, scramble

if TYPE_CHECKING:
    from pathlib import Path

timm = need("timm")
transformers = need("transformers")
xrv = need("torchxrayvision")

HIDDEN = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip


def grown(head: Head) -> Head:
    """Two of its rows in another order, and two new ones among them."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn((2, head.n_features), generator=generator) * 0.1
    new = Head(weight.to(head.dtype), [0.5, -0.5], categories=["new a", "new b"])
    whole = head.join(new)
    return whole.take_categories(["new b", head.categories[3], head.categories[0], "new a"])


def check(model: Any, out: Path) -> Head:
    """Write the grown head, run both, and give it."""
    head = grown(model.head)
    write_model(model, head, out, resize=True)
    seen = verify_copy(model, out, head, noise(model, 2), resized=True)
    assert seen.gap < 1e-4
    assert seen.change < 1e-4  # the categories that were there before say what they said
    assert seen.tensors
    return head


def predicted(old: Any, new: Any, layer: str, head: Head, images: torch.Tensor) -> None:
    """The new model of the package gives the head's logits on the old model's features."""
    seen: list[torch.Tensor] = []
    handle = old.get_submodule(layer).register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].flatten(1))
    )
    with torch.no_grad():
        old.eval()(images)
        out = new.eval()(images)
    handle.remove()
    logits = getattr(out, "logits", out)
    assert logits.shape == (len(images), head.n_categories)
    assert torch.allclose(logits, head.logits(seen[0]), atol=1e-4)


@pytest.mark.parametrize(("name", "layer"), [("resnet10t", "fc"), ("resnetv2_18", "head.fc")])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_timm(name: str, layer: str, suffix: str, tmp_path: Path) -> None:
    """A linear layer and a 1×1 convolution, in either container."""
    module = scramble(timm.create_model(name, pretrained=False, num_classes=len(NAMES)))
    old, new = tmp_path / f"old.{suffix}", tmp_path / f"new.{suffix}"
    state = module.state_dict()
    if suffix == "pt":
        torch.save({"state_dict_ema": state, "epoch": 2}, old)
    else:
        safetensors.torch.save_file(state, old)
    head = check(load_model(f"timm:{name}", checkpoint=old, categories=NAMES), new)
    fresh = timm.create_model(name, pretrained=False, num_classes=4)
    read = torch.load(new, weights_only=True)["state_dict_ema"] if suffix == "pt" else None
    fresh.load_state_dict(read or safetensors.torch.load_file(new))
    predicted(module, fresh, layer, head, torch.rand(2, 3, 64, 64))


def test_timm_with_two_heads(tmp_path: Path) -> None:
    """Both heads get the rows; their mean is what the joined head says."""
    name = "deit_tiny_distilled_patch16_224"
    module = scramble(timm.create_model(name, pretrained=False, num_classes=len(NAMES)))
    safetensors.torch.save_file(module.state_dict(), tmp_path / "old.safetensors")
    args = {"heads": "both"}
    model = load_model(
        f"timm:{name}", checkpoint=tmp_path / "old.safetensors", model_args=args, categories=NAMES
    )
    head = check(model, tmp_path / "new.safetensors")
    found = safetensors.torch.load_file(tmp_path / "new.safetensors")
    assert found["head.weight"].shape[0] == found["head_dist.weight"].shape[0] == 4
    assert torch.equal(found["head.bias"][1], module.state_dict()["head.bias"][3])
    assert torch.allclose((found["head.bias"] + found["head_dist.bias"])[[0, 3]] / 2,
                          head.bias[[0, 3]])  # fmt: skip


def write_timm(folder: Path, **more: Any) -> Any:
    module = scramble(timm.create_model("resnet10t", pretrained=False, num_classes=len(NAMES)))
    folder.mkdir()
    safetensors.torch.save_file(module.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "resnet10t",
        "num_classes": len(NAMES),
        "num_features": 512,
        "pretrained_cfg": {"tag": "mine", "num_classes": len(NAMES), "crop_pct": 0.95},
        **more,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return module


def test_timm_folder(tmp_path: Path) -> None:
    """The config.json beside the weights names the rows, and timm opens the folder by it."""
    described = {"label_names": NAMES, "label_descriptions": {name: f"a {name}" for name in NAMES}}
    module = write_timm(tmp_path / "old", **described)
    model = load_model("timm:resnet10t", checkpoint=tmp_path / "old" / "model.safetensors")
    assert model.head.categories == tuple(NAMES)
    before = (tmp_path / "old" / "config.json").read_bytes()
    (tmp_path / "new").mkdir()
    head = check(model, tmp_path / "new" / "model.safetensors")
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 4
    assert config["label_names"] == list(head.categories)
    assert config["label_descriptions"]["new b"] == "new b"
    assert config["label_descriptions"][NAMES[3]] == f"a {NAMES[3]}"
    assert (config["num_features"], config["pretrained_cfg"]["crop_pct"]) == (512, 0.95)
    assert list(config) == list(json.loads(before))
    fresh = timm.create_model(f"local-dir:{tmp_path / 'new'}", pretrained=True)
    predicted(module, fresh, "fc", head, torch.rand(2, 3, 64, 64))
    again = load_model("timm:resnet10t", checkpoint=tmp_path / "new" / "model.safetensors")
    assert again.head.categories == head.categories
    assert (tmp_path / "old" / "config.json").read_bytes() == before


def test_timm_folder_is_kept_apart(tmp_path: Path) -> None:
    """A copy with other rows never lies beside the original, whose config.json it would take."""
    write_timm(tmp_path / "old")
    old = tmp_path / "old" / "model.safetensors"
    model = load_model("timm:resnet10t", checkpoint=old, categories=NAMES)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="cannot lie beside"):
            write_model(
                model,
                grown(model.head),
                tmp_path / "old" / "new.safetensors",
                resize=True,
                overwrite=overwrite,
            )
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        write_model(model, grown(model.head), tmp_path / "new.safetensors", resize=True)
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    write_model(model, model.head, tmp_path / "old" / "same.safetensors")  # rows as they are


def vit(folder: Path, *, shards: bool = False, **more: Any) -> Any:
    config = transformers.ViTConfig(**HIDDEN, **more)
    module = transformers.ViTForImageClassification(config).eval()
    module.save_pretrained(folder, max_shard_size="10KB" if shards else "1GB")
    return module


NAMED = {
    "num_labels": len(NAMES),
    "id2label": dict(enumerate(NAMES)),
    "label2id": {name: i for i, name in enumerate(NAMES)},
    "problem_type": "multi_label_classification",
}


@pytest.mark.parametrize("shards", [False, True])
def test_transformers(shards: bool, tmp_path: Path) -> None:
    """The library opens the new folder, by the names in it; all else in config.json stays."""
    module = vit(tmp_path / "old", shards=shards, **NAMED)
    (tmp_path / "old" / "README.md").write_text("a card")
    model = load_model(f"transformers:{tmp_path / 'old'}")
    head = check(model, tmp_path / "new")
    fresh = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "new")
    assert fresh.config.num_labels == 4
    assert list(fresh.config.id2label.values()) == list(head.categories)
    assert fresh.config.label2id == {name: row for row, name in enumerate(head.categories)}
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        features = module.vit(images).last_hidden_state[:, 0]
        assert torch.allclose(fresh(images).logits, head.logits(features), atol=1e-5)
    old, new = ((tmp_path / name / "config.json").read_text() for name in ("old", "new"))
    a, b = (json.loads(text) for text in (old, new))
    assert list(a) == list(b)
    assert {k: v for k, v in a.items() if "label" not in k} == {
        k: v for k, v in b.items() if "label" not in k
    }
    if shards:
        index = "model.safetensors.index.json"
        sizes = [json.loads((tmp_path / n / index).read_text()) for n in ("old", "new")]
        assert sizes[0]["weight_map"] == sizes[1]["weight_map"]
        rows = head.n_categories - len(NAMES)
        more = sizes[1]["metadata"]["total_size"] - sizes[0]["metadata"]["total_size"]
        assert more == 4 * rows * 17
    again = load_model(f"transformers:{tmp_path / 'new'}")
    assert again.head.categories == head.categories


def test_transformers_config_text(tmp_path: Path) -> None:
    """Where the rows get the names that they had, config.json has the very bytes that it had."""
    vit(tmp_path / "old", **NAMED)
    model = load_model(f"transformers:{tmp_path / 'old'}")
    write_model(model, grown(model.head), tmp_path / "new", resize=True)
    model_new = load_model(f"transformers:{tmp_path / 'new'}")
    write_model(model_new, model.head, tmp_path / "back", resize=True)
    for name in ("config.json",):
        files = [(tmp_path / folder / name).read_bytes() for folder in ("old", "back")]
        assert files[0] == files[1]


def test_transformers_without_names(tmp_path: Path) -> None:
    """Numbered rows keep the names that the library invents, new ones bring theirs."""
    vit(tmp_path / "old", num_labels=2)  # which leaves no trace in config.json
    model = load_model(f"transformers:{tmp_path / 'old'}")
    new = Head(torch.zeros(1, 16), [0.25], categories=["new"])
    head = model.head.join(new)
    write_model(model, head, tmp_path / "new", resize=True)
    verify_copy(model, tmp_path / "new", head, noise(model), resized=True)
    fresh = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "new")
    assert fresh.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "new"}


def test_xrv(tmp_path: Path) -> None:
    """Its rows change as any model's, but not while the file holds their operating points."""
    name = "densenet121-res224-chex"
    targets = xrv.models.model_urls[name]["labels"]
    module = scramble(xrv.models.DenseNet(weights=None, num_classes=len(targets)))
    torch.save(module.state_dict(), tmp_path / "old.pt")
    model = load_model(f"xrv:{name}", checkpoint=tmp_path / "old.pt")
    head = check(model, tmp_path / "new.pt")
    state = torch.load(tmp_path / "new.pt", weights_only=True)
    fresh = xrv.models.DenseNet(weights=None, num_classes=4)
    fresh.load_state_dict(state)
    assert torch.equal(fresh.classifier.weight.data, head.weight)

    points = torch.tensor(xrv.models.model_urls[name]["op_threshs"])
    module = scramble(xrv.models.DenseNet(weights=None, num_classes=18, op_threshs=points))
    torch.save(module.state_dict(), tmp_path / "points.pt")
    model = load_model(
        f"xrv:{name}", checkpoint=tmp_path / "points.pt", model_args={"op_threshs": "drop"}
    )
    with pytest.raises(HeadError, match="op_threshs"):
        write_model(model, grown(model.head), tmp_path / "x.pt", resize=True)
    assert not (tmp_path / "x.pt").exists()
