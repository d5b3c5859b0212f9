"""Weights out of training checkpoints: containers, prefixes, EMA, Lightning, pickles with code.

Then torchxrayvision, whose published files are such pickles.
"""

from __future__ import annotations

import argparse
import math
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from catwise.errors import CheckpointError, ConfigError
from catwise.heads import read_head
from catwise.heads.catalog import open_catalog
from catwise.models.adapters.lightning import (
    count_categories,
    is_lightning,
    load_weights,
    open_weights,
    stored_categories,
)
from catwise.models.adapters.xrv import adapt_xrv
from catwise.models.registry import load_model
from catwise.models.writing import write_model
from unit.models.test_registry import Small, another, images_for, run, scramble

STATE = {key: value.clone() for key, value in scramble(Small()).state_dict().items()}


def led(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in STATE.items()}


@pytest.fixture(autouse=True)
def users(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of the user's that builds the model."""
    module = types.ModuleType("users_models")
    module.build = Small
    monkeypatch.setitem(sys.modules, "users_models", module)


def lightning(**more: Any) -> dict[str, Any]:
    """What Lightning's Trainer.save_checkpoint writes, as far as its documentation says."""
    return {
        "epoch": 3,
        "global_step": 400,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": led("model."),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': 'val_loss'}": {"best_model_score": torch.tensor(0.5)}
        },
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(7, 12)}}, "param_groups": []}],
        "lr_schedulers": [{"last_epoch": 3}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 1e-3},
        **more,
    }


@pytest.mark.parametrize(
    ("stored", "prefix"),
    [
        (led(""), ""),
        (led("module."), "module."),
        (led("_orig_mod.module."), "_orig_mod.module."),
        ({"state_dict": led("")}, "state_dict:"),
        ({"model": led("module."), "optimizer": {"state": {}}, "epoch": 3}, "model:module."),
        ({"ema": led(""), "step": 1}, "ema:"),
        ({"checkpoint": {"net": led("net.")}}, "checkpoint.net:net."),
        ({"state_dict": led("model.") | {"criterion.pos_weight": torch.ones(7)}},
         "state_dict:model."),
        (lightning(), "state_dict:model."),
    ],
)  # fmt: skip
def test_containers_and_prefixes(stored: dict[str, Any], prefix: str, tmp_path: Path) -> None:
    """What leads the keys is found; only the head's bytes change, wherever it lies."""
    old, same, new = (tmp_path / f"{name}.ckpt" for name in ("old", "same", "new"))
    torch.save(stored, old)
    model = load_model("python:users_models:build", checkpoint=old)
    assert torch.equal(model.module.fc.weight, STATE["fc.weight"])
    assert model.weight_key == f"{prefix}fc.weight"
    write_model(model, model.head, same)
    assert same.read_bytes() == old.read_bytes()
    write_model(model, another(model.head), new)
    again = load_model("python:users_models:build", checkpoint=new)
    assert torch.equal(again.module.fc.weight, another(model.head).weight)


def test_what_lies_beside_the_model_is_said(tmp_path: Path) -> None:
    """Tensors of the trainer are no error, and are named."""
    stored = lightning(state_dict=led("model.") | {"criterion.pos_weight": torch.ones(7)})
    torch.save(stored, tmp_path / "old.ckpt")
    model = load_model("python:users_models:build", checkpoint=tmp_path / "old.ckpt")
    assert any("state_dict:criterion.pos_weight" in note for note in model.notes)
    assert any("Lightning 2.4.0" in note for note in model.notes)


def test_what_lies_among_the_model_is_an_error(tmp_path: Path) -> None:
    """A left-over tensor under the model's own prefix means another model."""
    torch.save({"state_dict": led("model.") | {"model.more": torch.ones(7)}}, tmp_path / "old.ckpt")
    with pytest.raises(CheckpointError, match=r"1 unexpected \(state_dict:model\.more\)"):
        load_model("python:users_models:build", checkpoint=tmp_path / "old.ckpt")


def test_several_copies_must_be_told_apart(tmp_path: Path) -> None:
    """Weights and their moving average: the user says which."""
    averaged = {key: value * 2 for key, value in STATE.items()}
    torch.save({"state_dict": led(""), "state_dict_ema": averaged}, tmp_path / "old.pt")
    with pytest.raises(CheckpointError, match="2 copies of the model") as caught:
        load_model("python:users_models:build", checkpoint=tmp_path / "old.pt")
    assert "prefix='state_dict_ema:'" in str(caught.value)
    model = load_model(
        "python:users_models:build", checkpoint=tmp_path / "old.pt", prefix="state_dict_ema:"
    )
    assert torch.equal(model.module.fc.weight, averaged["fc.weight"])


def test_unknown_lead_is_suggested(tmp_path: Path) -> None:
    """A lead that is not known is not guessed; it is shown, and taken when it is given."""
    path = tmp_path / "old.safetensors"
    safetensors.torch.save_file(led("encoder."), path)
    with pytest.raises(CheckpointError, match=r"say prefix='encoder\.'"):
        load_model("python:users_models:build", checkpoint=path)
    model = load_model("python:users_models:build", checkpoint=path, prefix="encoder.")
    assert model.weight_key == "encoder.fc.weight"


def test_nothing_in_common(tmp_path: Path) -> None:
    """Another model's checkpoint lacks everything, and the error says what."""
    torch.save({"other.weight": torch.ones(2, 2)}, tmp_path / "old.pt")
    with pytest.raises(CheckpointError, match=r"2 missing \(fc\.weight, fc\.bias\)"):
        load_model("python:users_models:build", checkpoint=tmp_path / "old.pt")


def test_batch_counters_may_lack() -> None:
    """Batch norm's counters, which old files do not have, start anew; its means must be there."""
    norm = nn.Sequential(nn.BatchNorm1d(2))
    state = {key: value for key, value in norm.state_dict().items() if "num_batches" not in key}
    assert load_weights(norm, open_catalog(state)).prefix == ""
    del state["0.running_mean"]
    with pytest.raises(CheckpointError, match=r"1 missing \(0\.running_mean\)"):
        load_weights(norm, open_catalog(state))


def test_tied_tensors_of_safetensors(tmp_path: Path) -> None:
    """save_model keeps one of two tied tensors and notes the other in the metadata."""
    module = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    module["b"].weight = module["a"].weight
    safetensors.torch.save_model(module, str(tmp_path / "tied.safetensors"))
    fresh = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    load_weights(fresh, open_weights(tmp_path / "tied.safetensors"))
    assert torch.equal(fresh["b"].weight, module["b"].weight)
    assert torch.equal(fresh["a"].weight, module["a"].weight)


def test_integers_and_half_precision_are_loaded() -> None:
    """Every dtype of the file goes into the model's own."""
    norm = nn.BatchNorm1d(2)
    state = {k: v.half() if v.is_floating_point() else v + 5 for k, v in norm.state_dict().items()}
    load_weights(norm, open_catalog(state))
    assert (int(norm.num_batches_tracked), norm.weight.dtype) == (5, torch.float32)


# Numbers and names of categories


def test_count_of_copies_that_agree() -> None:
    """A model and its moving average have one number of categories."""
    catalog = open_catalog({"state_dict": STATE, "state_dict_ema": STATE})
    assert count_categories(catalog) == 7
    assert count_categories(catalog, layer="fc") == 7


def test_count_is_not_guessed() -> None:
    """Heads that differ, or none: the number must be given."""
    two = {"a": STATE, "b": {"fc.weight": torch.ones(3, 12)}}
    with pytest.raises(ConfigError, match=r"heads with \[3, 7\] rows"):
        count_categories(open_catalog(two))
    with pytest.raises(ConfigError, match="give their names"):
        count_categories(open_catalog({"a": torch.ones(3)}))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"class_names": list("abcdefg")}, list("abcdefg")),
        ({"class_names": list("abc")}, None),
        ({"class_names": list("aacdefg")}, None),
        ({"classes": 7}, None),
        ({"labels": list(range(7))}, None),
    ],
)
def test_names_among_the_options(
    options: dict[str, Any], expected: list[str] | None, tmp_path: Path
) -> None:
    """Names are taken where they fit, and from nowhere else."""
    torch.save(lightning(hyper_parameters=options), tmp_path / "old.ckpt")
    catalog = open_weights(tmp_path / "old.ckpt")
    assert stored_categories(catalog, 7) == expected
    model = load_model("python:users_models:build", checkpoint=tmp_path / "old.ckpt")
    assert model.head.categories == tuple(expected or "0123456")


def test_lightning_is_told_from_others(tmp_path: Path) -> None:
    """By the version that it writes."""
    torch.save(lightning(), tmp_path / "a.ckpt")
    torch.save({"state_dict": STATE}, tmp_path / "b.ckpt")
    assert is_lightning(open_weights(tmp_path / "a.ckpt"))
    assert not is_lightning(open_weights(tmp_path / "b.ckpt"))


# Pickles


def test_what_weights_only_refuses_is_read_inertly(tmp_path: Path) -> None:
    """Options as a Namespace and paths: torch refuses them, and nothing of them is needed."""
    stored = lightning(
        hyper_parameters=argparse.Namespace(lr=0.1, out=Path("runs")), datamodule=Path("data")
    )
    old = tmp_path / "old.ckpt"
    torch.save(stored, old)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(old, weights_only=True)
    model = load_model("python:users_models:build", checkpoint=old)
    assert torch.equal(model.module.fc.weight, STATE["fc.weight"])
    write_model(model, model.head, tmp_path / "same.ckpt")
    assert (tmp_path / "same.ckpt").read_bytes() == old.read_bytes()


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "ran")


def test_code_in_a_pickle_is_never_run(tmp_path: Path) -> None:
    """A file that would run something is refused, and nothing has run."""
    target = tmp_path / "ran"
    torch.save(lightning(hyper_parameters=Evil(target)), tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="nothing in a checkpoint is executed"):
        load_model("python:users_models:build", checkpoint=tmp_path / "evil.ckpt")
    assert not target.exists()
    torch.load(tmp_path / "evil.ckpt", weights_only=False)
    assert target.exists()  # the file is as dangerous as it claims


def test_whole_module_is_refused(tmp_path: Path) -> None:
    """torch.save(model) names classes; they are not imported."""
    torch.save(Small(), tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match=r"model\.state_dict\(\)"):
        load_model("python:users_models:build", checkpoint=tmp_path / "module.pt")


def test_folder_is_no_checkpoint(tmp_path: Path) -> None:
    """A folder is named as such."""
    with pytest.raises(CheckpointError, match="is a folder"):
        open_weights(tmp_path)


def test_quantised_tensor_is_refused(tmp_path: Path) -> None:
    """A number format that catwise does not read is named."""
    state = dict(STATE)
    state["fc.weight"] = STATE["fc.weight"].to(torch.float8_e4m3fn)
    safetensors.torch.save_file(state, tmp_path / "old.safetensors")
    with pytest.raises(CheckpointError, match=r"'fc\.weight' .* of a kind that is not read"):
        load_model("python:users_models:build", checkpoint=tmp_path / "old.safetensors")


# torchxrayvision: a stand-in with the attributes and the output that its documentation describes


class StandIn(nn.Module):
    """A DenseNet of torchxrayvision, as far as its head goes."""

    def __init__(
        self,
        weights: None = None,
        num_classes: int = 18,
        in_channels: int = 1,
        op_threshs: torch.Tensor | None = None,
        *,
        apply_sigmoid: bool = False,
    ) -> None:
        super().__init__()
        assert weights is None
        self.apply_sigmoid = apply_sigmoid
        self.features = nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(4, num_classes)
        self.register_buffer("op_threshs", op_threshs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits, or probabilities stretched around the operating points."""
        out = self.classifier(self.features(images).flatten(1))
        if self.op_threshs is None:
            return out.sigmoid() if self.apply_sigmoid else out
        p, t = out.sigmoid(), self.op_threshs
        return torch.where(p < t, p / (2 * t), 1 - (1 - p) / (2 * (1 - t)))


TARGETS = ["Atelectasis", "", "Edema", "", "Hernia"]
POINTS = [0.1, math.nan, 0.2, math.nan, 0.3]


@pytest.fixture
def xrv(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package; the real one is not needed by the tests."""
    package, models = types.ModuleType("torchxrayvision"), types.ModuleType("models")
    models.DenseNet = StandIn
    models.model_urls = {"densenet121-res224-chex": {"labels": TARGETS, "op_threshs": POINTS}}
    package.models = models
    monkeypatch.setitem(sys.modules, "torchxrayvision", package)


def xrv_checkpoint(path: Path, *, points: bool) -> Path:
    module = StandIn(num_classes=5, op_threshs=torch.tensor(POINTS) if points else None)
    torch.save(module.state_dict(), path)
    return path


@pytest.mark.usefixtures("xrv")
def test_xrv_refuses_operating_points(tmp_path: Path) -> None:
    """Without a word on op_threshs such a model is not loaded."""
    path = xrv_checkpoint(tmp_path / "old.pt", points=True)
    with pytest.raises(ConfigError, match="op_threshs"):
        load_model("xrv:densenet121-res224-chex", checkpoint=path)


@pytest.mark.usefixtures("xrv")
def test_xrv_drop_gives_logits(tmp_path: Path) -> None:
    """The model's output is then its layer's, and a note tells what to do with the file."""
    path = xrv_checkpoint(tmp_path / "old.pt", points=True)
    model = load_model(
        "xrv:densenet121-res224-chex", checkpoint=path, model_args={"op_threshs": "drop"}
    )
    features, out = run(model.module, model.layer, images_for(model))
    assert torch.allclose(out, read_head(path, key="classifier").logits(features), atol=1e-5)
    assert any("op_threshs are dropped" in note for note in model.notes)
    assert not model.output_is


@pytest.mark.usefixtures("xrv")
def test_xrv_keep_leaves_the_model(tmp_path: Path) -> None:
    """The output stays a probability, and a note says that it is not the layer's."""
    path = xrv_checkpoint(tmp_path / "old.pt", points=True)
    model = load_model(
        "xrv:densenet121-res224-chex", checkpoint=path, model_args={"op_threshs": "keep"}
    )
    _, out = run(model.module, model.layer, images_for(model))
    assert 0 <= float(out[:, 0].min()) <= float(out[:, 0].max()) <= 1
    assert any("op_threshs are kept" in note for note in model.notes)
    assert model.output_is == "not the layer's"


@pytest.mark.usefixtures("xrv")
def test_xrv_unnamed_targets_stay_as_they_are(tmp_path: Path) -> None:
    """Rows without a name are not in the head; writing it changes only the named rows."""
    path = xrv_checkpoint(tmp_path / "old.pt", points=False)
    model = load_model("xrv:densenet121-res224-chex", checkpoint=path)
    assert model.head.categories == ("Atelectasis", "Edema", "Hernia")
    assert any("2 of 5 rows have no name" in note for note in model.notes)
    (report,) = write_model(model, another(model.head), tmp_path / "new.pt")
    assert report.rows == (0, 2, 4)
    old = torch.load(path, weights_only=True)["classifier.weight"]
    new = torch.load(tmp_path / "new.pt", weights_only=True)["classifier.weight"]
    assert torch.equal(old[[1, 3]], new[[1, 3]])
    assert torch.equal(new[[0, 2, 4]], another(model.head).weight)


@pytest.mark.usefixtures("xrv")
def test_xrv_preprocessing_is_its_range() -> None:
    """One channel; black is -1024 and white is 1024."""
    model = load_model("xrv:densenet121-res224-chex", model_args={"op_threshs": "drop"})
    take = model.preprocessing
    assert (take.channels, take.size) == (1, (224, 224))
    assert [(x - take.mean[0]) / take.std[0] for x in (0.0, 1.0)] == [-1024, 1024]


@pytest.mark.usefixtures("xrv")
@pytest.mark.parametrize(
    ("name", "args", "text"),
    [
        ("densenet121-res224-che", {}, "did you mean 'densenet121-res224-chex'"),
        ("densenet121-res224-chex", {"op_threshs": "forget"}, "cannot be 'forget'"),
        ("densenet121-res224-chex", {"weights": "all"}, "model_args has no weights"),
    ],
)
def test_xrv_refuses_names_and_options(name: str, args: dict[str, str], text: str) -> None:
    """Unknown models and policies; nothing is downloaded."""
    with pytest.raises(ConfigError, match=text):
        load_model(f"xrv:{name}", model_args=args)


def test_xrv_model_in_memory() -> None:
    """A model that the user loaded is adapted as it is."""
    module = StandIn(num_classes=5)
    module.targets = TARGETS
    model = adapt_xrv(module)
    assert model.module is module
    assert model.head.categories == ("Atelectasis", "Edema", "Hernia")


@pytest.mark.usefixtures("xrv")
def test_xrv_pickle_of_a_module_is_not_opened(tmp_path: Path) -> None:
    """The published files are such pickles."""
    torch.save(StandIn(num_classes=5), tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match="nothing in a checkpoint is executed"):
        load_model("xrv:densenet121-res224-chex", checkpoint=tmp_path / "module.pt")
