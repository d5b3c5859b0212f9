"""Models and files that people have, which once led nowhere."""

from __future__ import annotations

import json
import sys
import tarfile
import types
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from catwise import extract
from catwise.errors import CheckpointError, ConfigError
from catwise.heads import read_head
from catwise.models.registry import load_model
from catwise.models.writing import write_model

if TYPE_CHECKING:
    from pathlib import Path

IMAGES = torch.rand(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
NET = "python:unit.models.test_dead_ends:make_net"
PARTS = "python:unit.models.test_dead_ends:make_parts"


def make_net(n_categories: int) -> nn.Module:
    """A module whose number of categories must be said."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, n_categories))


def make_parts() -> nn.Module:
    """A module with a part that may have been compiled."""
    parts = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(parts, nn.Linear(3, 2))


def load(spec: str, **options: Any) -> Any:
    """A model with a head."""
    return load_model(spec, **options)


def test_the_first_of_two_heads_can_be_extracted() -> None:
    """What `heads=first` gives are the first head's own logits, for which its features stand."""
    pytest.importorskip("timm")
    args = {"heads": "first", "img_size": 32}
    model = load("timm:deit_tiny_distilled_patch16_224", n_categories=2, model_args=args)
    made: Any = extract(model, IMAGES[:2, :, :32, :32], dtype="float32")
    assert model.output_is == ""
    torch.testing.assert_close(model.head.logits(made.features), made.logits)


def test_heads_that_are_mixed_are_refused() -> None:
    """Four heads by weights are no mean of two, and no option is offered that fails."""
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=r"has 4 heads, and mixes[\s\S]*python:MODULE:FUNCTION"):
        load("timm:efficientvim_m1", n_categories=2)


def test_a_module_that_could_hold_two_heads_and_holds_one() -> None:
    """Without its second head the model is one of one head."""
    pytest.importorskip("timm")
    assert load("timm:iformer_t", n_categories=2).layer == "head.head.l"


def test_what_lies_beside_a_models_weights(tmp_path: Path) -> None:
    """Weights of a loss and counters among the model's own are left as they are, and told of."""
    state = {**make_net(2).state_dict(), "criterion.pos_weight": torch.ones(2)}
    torch.save({**state, "n_averaged": torch.tensor(3)}, tmp_path / "m.pt")
    model = load(NET, checkpoint=tmp_path / "m.pt")
    assert any("2 tensors beside the model's are left" in note for note in model.notes)
    write_model(model, model.head.replace(weight=model.head.weight + 1), tmp_path / "n.pt")
    assert torch.load(tmp_path / "n.pt")["criterion.pos_weight"].tolist() == [1, 1]
    torch.save({**state, "gate": torch.ones(2)}, tmp_path / "gated.pt")
    with pytest.raises(CheckpointError, match=r"1 unexpected \(gate\)"):
        load(NET, checkpoint=tmp_path / "gated.pt", n_categories=2)


def test_a_compiled_part_of_a_model(tmp_path: Path) -> None:
    """torch.compile puts `_orig_mod.` into the middle of names, too; the copy keeps it there."""
    state = {
        k.replace("0.0.0.", "0._orig_mod.0.0."): v for k, v in make_parts().state_dict().items()
    }
    assert "0._orig_mod.0.0.weight" in state
    torch.save(state, tmp_path / "m.pt")
    model = load(PARTS, checkpoint=tmp_path / "m.pt")
    inside = model.module.state_dict()["0.0.0.weight"]
    assert torch.equal(inside, state["0._orig_mod.0.0.weight"])
    write_model(model, model.head.replace(weight=model.head.weight + 1), tmp_path / "n.pt")
    assert torch.load(tmp_path / "n.pt").keys() == state.keys()


def test_the_number_of_categories_is_read_from_the_checkpoint(tmp_path: Path) -> None:
    """A function that needs it is given it; without a checkpoint the error says how to say it."""
    torch.save(make_net(4).state_dict(), tmp_path / "m.pt")
    assert load(NET, checkpoint=tmp_path / "m.pt").head.n_categories == 4
    assert load(NET, model_args={"n_categories": 3}).head.n_categories == 3
    with pytest.raises(ConfigError, match=r"needs n_categories[\s\S]*--model-arg n_categories="):
        load(NET)


def test_exported_programs_and_adapters_are_called_what_they_are(tmp_path: Path) -> None:
    """`.pt2` files and folders of peft hold no checkpoint; the errors say what to do."""
    torch.export.save(torch.export.export(make_net(2), (IMAGES,)), tmp_path / "m.pt2")
    with pytest.raises(CheckpointError, match=r"exported program[\s\S]*state_dict"):
        read_head(tmp_path / "m.pt2")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    pytest.importorskip("transformers")
    with pytest.raises(CheckpointError, match=r"holds an adapter[\s\S]*merge_and_unload"):
        load(f"transformers:{tmp_path / 'adapter'}")


class DictConfig(dict[str, Any]):
    """A table of options as other packages have it."""


@pytest.mark.parametrize("package", ["omegaconf", "mine"])
def test_options_of_training_stay_inert(
    tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables of packages of options are left alone; those of any other package are refused."""
    monkeypatch.setattr(DictConfig, "__module__", f"{package}.dictconfig")
    for name in (package, f"{package}.dictconfig"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules[name], "DictConfig", DictConfig, raising=False)
    path = tmp_path / "m.ckpt"
    torch.save({"state_dict": make_net(2).state_dict(), "hparams": DictConfig(lr=0.1)}, path)
    if package == "omegaconf":
        assert read_head(path).n_categories == 2
        return
    with pytest.raises(CheckpointError, match=r"asks for mine\.dictconfig\.DictConfig"):
        read_head(path)


def vit_folder(folder: Path) -> Path:
    """A folder that transformers wrote, of four categories."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        image_size=32, patch_size=16, id2label=dict(enumerate("abcd")), label2id={},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


def test_a_folder_of_a_compiled_model(tmp_path: Path) -> None:
    """Its tensors' names are led by `_orig_mod.`; the head is read, and written back so."""
    folder = vit_folder(tmp_path / "old")
    path = folder / "model.safetensors"
    plain: Any = load(f"transformers:{folder}").head
    state = {f"_orig_mod.{key}": value for key, value in load_file(path).items()}
    save_file(state, path, metadata={"format": "pt"})
    model = load(f"transformers:{folder}")
    assert torch.equal(model.head.weight, plain.weight)
    head = model.head.replace(weight=model.head.weight * 2)
    write_model(model, head, tmp_path / "new")
    new = load_file(tmp_path / "new/model.safetensors")
    assert torch.equal(new["_orig_mod.classifier.weight"], plain.weight * 2)


def test_a_folder_whose_names_and_rows_differ(tmp_path: Path) -> None:
    """The error names both counts, not a report that nobody sees."""
    folder = vit_folder(tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"], config["label2id"] = {"0": "a", "1": "b"}, {}
    (folder / "config.json").write_text(json.dumps(config))
    found = r"\(4, 8\) and the model's \(2, 8\)[\s\S]*id2label"
    with pytest.raises(CheckpointError, match=found):
        load(f"transformers:{folder}")


def test_a_folder_is_what_is_extracted(tmp_path: Path) -> None:
    """The path of a folder or a tar shard stands for its images, if a model says how."""
    image = pytest.importorskip("PIL.Image")
    for row in range(3):
        image.new("RGB", (20, 20), (row * 90, 0, 0)).save(tmp_path / f"{row}.png")
    model = load(NET, model_args={"n_categories": 2})
    for root in (tmp_path, str(tmp_path)):
        made: Any = extract(model, root, dtype="float32")
        assert made.ids.tolist() == ["0.png", "1.png", "2.png"]
        assert made.features[:, 0].diff().min() > 0.5
    with tarfile.open(tmp_path.parent / "x.tar", "w") as archive:
        archive.add(tmp_path / "1.png", arcname="1.png")
    tar: Any = extract(model, tmp_path.parent / "x.tar", dtype="float32")
    assert torch.equal(tar.features, made.features[1:2])
    with pytest.raises(ConfigError, match="a bare module does not say"):
        extract(make_net(2), tmp_path)
    with pytest.raises(ConfigError, match="no images"):
        extract(model, tmp_path / "nowhere")
