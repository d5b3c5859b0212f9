"""Models of timm: architectures there and back, two heads, options, preprocessing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch

from catwise.errors import CategoryError, CheckpointError, ConfigError, HeadError
from catwise.models.extraction import extract
from catwise.models.registry import load_model
from unit.models.test_registry import NAMES, check_file_round_trip, need

if TYPE_CHECKING:
    from pathlib import Path

timm = need("timm")

LAYERS = {
    "mobilenetv2_035": "classifier",
    "mobilenetv3_small_050": "classifier",
    "ghostnet_050": "classifier",
    "resnet10t": "fc",
    "regnetx_002": "head.fc",
    "convnext_atto": "head.fc",
    "fastvit_t8": "head.fc",
    "test_vit": "head",
    "test_nfnet": "head.fc",
    "test_mambaout": "head.fc",
    "cait_xxs24_224": "head",
    "resnetv2_18": "head.fc",  # a 1×1 convolution
    "dpn48b": "classifier",  # another
}
TWO_HEADS = [
    "deit_tiny_distilled_patch16_224", "levit_128s", "efficientformerv2_s0", "repvit_m0_9",
    "crossvit_9_240",
]  # fmt: skip


def build(name: str, **args: Any) -> Any:
    return timm.create_model(name, pretrained=False, num_classes=len(NAMES), **args)


@pytest.mark.parametrize("name", LAYERS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    """Architectures of one head, with linear and with 1×1 convolutional classifiers."""
    model = check_file_round_trip(f"timm:{name}", lambda: build(name), tmp_path)
    assert model.layer == LAYERS[name]
    assert not model.output_is


@pytest.mark.parametrize("name", TWO_HEADS)
def test_two_heads_as_one(name: str, tmp_path: Path) -> None:
    """Both heads joined are the model's own output, and are written back to both."""
    model = check_file_round_trip(
        f"timm:{name}", lambda: build(name), tmp_path, model_args={"heads": "both"}
    )
    assert model.layer == "joined"
    assert len(model.writer.parts) == 2


def test_two_heads_that_are_not_averaged() -> None:
    """The joined head is compared with what the model itself gives; `extract` refuses a gap."""
    model = load_model(
        "timm:deit_tiny_distilled_patch16_224", n_categories=7, model_args={"heads": "both"}
    )
    assert not model.output_is
    extract(model, [torch.rand(1, 3, 224, 224)])
    handle = model.module.model.register_forward_hook(lambda _, __, output: 2 * output)
    with pytest.raises(HeadError, match="does not make the model's logits"):
        extract(model, [torch.rand(1, 3, 224, 224)])
    handle.remove()


def test_two_heads_are_refused() -> None:
    """Without a word on the two heads such a model is not loaded."""
    with pytest.raises(ConfigError, match="two heads, and its output is their mean"):
        load_model("timm:deit_tiny_distilled_patch16_224", n_categories=7)


def test_first_of_two_heads() -> None:
    """The first head alone can be had; a note says that the model averages."""
    model = load_model(
        "timm:deit_tiny_distilled_patch16_224", n_categories=7, model_args={"heads": "first"}
    )
    assert (model.layer, model.weight_key) == ("model.head", "head.weight")
    assert any("still averages both" in note for note in model.notes)


def test_torch_save_with_containers(tmp_path: Path) -> None:
    """A training checkpoint with state_dict and module. is read and written in its own layout."""
    model = check_file_round_trip(
        "timm:test_vit", lambda: build("test_vit"), tmp_path, suffix=".pt"
    )
    assert model.weight_key == "state_dict:module.head.weight"
    assert any("'state_dict:module.'" in note for note in model.notes)


def test_options_of_the_architecture_come_from_the_metadata(tmp_path: Path) -> None:
    """pad_type and bn_eps change the output and leave no trace among the tensors."""
    module = build("mobilenetv2_035", pad_type="same", bn_eps=1e-1).eval()
    path = tmp_path / "old.safetensors"
    safetensors.torch.save_file(
        module.state_dict(), path, {"pad_type": "same", "bn_eps": "1e-1", "made": "by me"}
    )
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = load_model("timm:mobilenetv2_035", checkpoint=path)
    with torch.no_grad():
        assert torch.allclose(model.module(images), module(images), atol=1e-6)
    assert any("pad_type='same', bn_eps=0.1" in note for note in model.notes)
    assert "the checkpoint says made: by me" in model.notes
    given = load_model("timm:mobilenetv2_035", checkpoint=path, model_args={"bn_eps": 1e-5})
    with torch.no_grad():
        assert not torch.allclose(given.module(images), module(images), atol=1e-6)


def test_metadata_that_is_no_number(tmp_path: Path) -> None:
    """It is named, not guessed."""
    path = tmp_path / "old.safetensors"
    safetensors.torch.save_file(build("test_vit").state_dict(), path, {"bn_eps": "small"})
    with pytest.raises(ConfigError, match="bn_eps = 'small'"):
        load_model("timm:test_vit", checkpoint=path)


def test_preprocessing_is_that_of_the_tag() -> None:
    """The pretrained tag tells size, mean, std, interpolation and crop."""
    model = load_model("timm:mobilenetv2_100.ra_in1k", n_categories=3)
    config = timm.data.resolve_model_data_config(timm.create_model("mobilenetv2_100.ra_in1k"))
    take = model.preprocessing
    assert (3, *take.size) == config["input_size"]
    assert (take.mean, take.std) == (config["mean"], config["std"])
    assert (take.interpolation, take.crop_pct) == (config["interpolation"], config["crop_pct"])
    assert take.source == "timm pretrained_cfg (ra_in1k)"


def test_preprocessing_follows_size_and_channels() -> None:
    """img_size and in_chans are part of the input; greyscale takes the means' mean."""
    model = load_model(
        "timm:vit_tiny_patch16_224", n_categories=3, model_args={"img_size": 32, "in_chans": 1}
    )
    take = model.preprocessing
    assert (take.size, take.channels, take.mean) == ((32, 32), 1, (0.5,))
    assert not any("fails" in note for note in model.notes)


@pytest.mark.parametrize(
    ("name", "args", "text"),
    [
        ("mobilenetv2_35", {}, "did you mean 'mobilenetv2_035'"),
        ("mobilenetv2_100.ra_in1", {}, "did you mean 'mobilenetv2_100.ra_in1k'"),
        ("hf-hub:someone/something", {}, "nothing is downloaded"),
        ("test_vit", {"pretrained": True}, "model_args has no pretrained"),
        ("test_vit", {"colour": "red"}, "unexpected keyword argument 'colour'"),
        ("test_vit", {"heads": "second"}, "heads cannot be 'second'"),
    ],
)
def test_refused(name: str, args: dict[str, Any], text: str) -> None:
    """Unknown names and options are one error with the nearest valid one."""
    with pytest.raises(ConfigError, match=text):
        load_model(f"timm:{name}", n_categories=3, model_args=args)


def test_checkpoint_of_another_model(tmp_path: Path) -> None:
    """All that is missing, left over or of another shape is in one error."""
    state = build("test_vit").state_dict()
    state["pos_embed"] = state["pos_embed"][:, 1:].clone()
    state["head.extra"] = torch.ones(1)
    del state["norm.weight"]
    safetensors.torch.save_file(state, tmp_path / "old.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_model("timm:test_vit", checkpoint=tmp_path / "old.safetensors")
    text = str(caught.value)
    assert "1 missing (norm.weight)" in text
    assert "1 unexpected (head.extra)" in text
    assert "'pos_embed' is (1, 100, 64)" in text


def test_wrong_number_of_categories(tmp_path: Path) -> None:
    """The number that was given and the checkpoint's rows must agree."""
    safetensors.torch.save_file(build("test_vit").state_dict(), tmp_path / "old.safetensors")
    with pytest.raises(CheckpointError, match=r"head.weight' is \(7, 64\) and the model's \(9, 64"):
        load_model("timm:test_vit", checkpoint=tmp_path / "old.safetensors", n_categories=9)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"label_names": list("abc")}, "abc"),
        ({"pretrained_cfg": {"label_names": list("abc")}}, "abc"),
        ({"labels": list("abc")}, "abc"),
        ({"label_names": {"0": "a", "1": "b", "2": "c"}}, "abc"),
        ({"label_descriptions": {"0": "a", "1": "b", "2": "c"}}, "abc"),
        ({"label_names": list("abc"), "label_descriptions": {k: k * 3 for k in "abc"}}, "abc"),
        ({}, "012"),
    ],
)
def test_names_in_timms_folder(config: dict[str, Any], names: str, tmp_path: Path) -> None:
    """The config.json that timm writes beside the weights names the rows."""
    module = timm.create_model("test_vit", num_classes=3)
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(module.state_dict(), path)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", **config}))
    head = load_model("timm:test_vit", checkpoint=path).head
    assert head is not None
    assert head.categories == tuple(names)
    given = load_model("timm:test_vit", checkpoint=path, categories=list("xyz")).head
    assert given is not None
    assert given.categories == tuple("xyz")


def test_names_in_timms_folder_that_do_not_fit(tmp_path: Path) -> None:
    """Too few names, and numbers from 1, are refused; another file called config.json is not."""
    path, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    safetensors.torch.save_file(timm.create_model("test_vit", num_classes=3).state_dict(), path)
    for wrong in (["a", "b"], {"1": "a", "2": "b", "3": "c"}):
        config.write_text(json.dumps({"architecture": "test_vit", "label_names": wrong}))
        with pytest.raises(CategoryError, match="label_names in"):
            load_model("timm:test_vit", checkpoint=path)
    for other in ("[]", "{", '{"label_names": ["a"]}'):
        config.write_text(other)
        assert load_model("timm:test_vit", checkpoint=path).head is not None
    config.write_text(json.dumps({"architecture": "test_vit"}))
    with pytest.raises(CheckpointError, match="--model timm:test_vit --checkpoint"):
        load_model(f"transformers:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "layer", "near"),
    [
        ("repvit_m0_9", "head.head", "'head.head.l'"),
        ("repvit_m0_9", "head", "'head.head_dist.l'"),
        ("test_vit", "norm", "layer="),
        ("test_vit", "blocks.0.mlp", "'blocks.0.mlp.fc2'"),
        ("test_vit", "patch_embed.proj", "not the weight of a head"),
        ("test_vit", "hed", "did you mean 'head'"),
    ],
)
def test_layers_that_are_none(name: str, layer: str, near: str) -> None:
    """A container, a norm, a convolution over places: refused, with the linear layers inside."""
    with pytest.raises((ConfigError, HeadError), match=near):
        load_model(f"timm:{name}", n_categories=7, layer=layer)
