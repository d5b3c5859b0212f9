"""Files with code in them, at every door that takes a checkpoint: refused, and nothing has run."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from catwise.cli import main
from catwise.errors import CatwiseError, CheckpointError
from catwise.heads import Head, list_heads, load_head, read_head, save_head, write_head
from catwise.models.adapters.lightning import open_weights
from catwise.models.registry import load_model
from catwise.models.writing import compare_tensors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STATE = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2)}


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


class Whole(nn.Linear):
    """A whole module, as torchxrayvision publishes: its class would have to be imported."""

    def __init__(self, canary: Canary) -> None:
        super().__init__(3, 2)
        self.canary = canary


def archive(path: Path, content: Any) -> None:
    torch.save(content, path)


def bare(path: Path, content: Any) -> None:
    """The format of torch before 1.6."""
    torch.save(content, path, _use_new_zipfile_serialization=False)


def plain(path: Path, content: Any) -> None:
    path.write_bytes(pickle.dumps(content))


def tarred(path: Path, content: Any) -> None:
    """The format of torch before 0.1.10, a tar of pickles, one name leading out."""
    with tarfile.open(path, "w") as tar:
        for name in ("pickle", "../outside"):
            info = tarfile.TarInfo(name)
            info.size = len(data := pickle.dumps(content))
            tar.addfile(info, io.BytesIO(data))


def second(path: Path, content: Any) -> None:
    """A sound archive with a second pickle under the same name, which some readers take."""
    torch.save(STATE, path)
    with zipfile.ZipFile(path, "a") as opened:
        name = next(n for n in opened.namelist() if n.endswith("data.pkl"))
        with pytest.warns(UserWarning, match="Duplicate name"):
            opened.writestr(name, pickle.dumps(content))


CONTAINERS: dict[str, Callable[[Path, Any], None]] = {
    "archive": archive, "bare": bare, "plain": plain, "tarred": tarred, "second": second,
}  # fmt: skip
CONTENTS: dict[str, Callable[[Canary], Any]] = {
    "beside": lambda canary: {"state_dict": STATE, "callbacks": [canary]},
    "as_key": lambda canary: {"state_dict": STATE, "names": {"a": {"b": (canary,)}}},
    "alone": lambda canary: canary,
    "module": Whole,
    "lightning": lambda canary: {
        "state_dict": {f"model.{key}": part for key, part in STATE.items()},
        "pytorch-lightning_version": "2.5",
        "hyper_parameters": {"loss": canary},
    },
}


def build() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3, 2))


DOORS: dict[str, Callable[[Path], Any]] = {
    "read_head": read_head,
    "list_heads": list_heads,
    "load_head": load_head,
    "write_head": lambda path: write_head(path, Head(torch.ones(2, 3)), path.with_suffix(".new")),
    "open_weights": open_weights,
    "compare_tensors": lambda path: compare_tensors(path, path, but=()),
    "python": lambda path: load_model(f"python:{__name__}:build", checkpoint=path),
    "transformers": lambda path: load_model(f"transformers:{path}"),
    "onnx": lambda path: load_model(f"onnx:{path}"),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_nothing_runs(container: str, content: str, tmp_path: Path) -> None:
    """At every door: an error of catwise, no trace of the code, no new file."""
    canary = Canary(tmp_path / "canary")
    for suffix in (".pt", ".ckpt", ".safetensors", ".onnx"):
        path = tmp_path / f"m{suffix}"
        CONTAINERS[container](path, CONTENTS[content](canary))
        before = sorted(tmp_path.iterdir())
        for door in DOORS.values():
            with pytest.raises(CatwiseError):
                door(path)
        assert sorted(tmp_path.iterdir()) == before
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("content", CONTENTS)
def test_the_trap_works(content: str, tmp_path: Path) -> None:
    """Where the same file is unpickled, the code runs: the tests above could fail."""
    archive(tmp_path / "m.pt", CONTENTS[content](Canary(tmp_path / "canary")))
    torch.load(tmp_path / "m.pt", weights_only=False)
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["timm:test_vit", "torchvision:resnet18"])
def test_architectures_by_name(name: str, tmp_path: Path) -> None:
    """The adapters of libraries read a file by the same inert reader."""
    archive(tmp_path / "m.pt", CONTENTS["beside"](Canary(tmp_path / "canary")))
    with pytest.raises(CheckpointError, match="nothing in a checkpoint is executed"):
        load_model(name, checkpoint=tmp_path / "m.pt")
    assert not (tmp_path / "canary").exists()


def test_apply_refuses(tmp_path: Path) -> None:
    """So does the command line, with the error's own exit code and no file."""
    archive(tmp_path / "m.pt", CONTENTS["beside"](Canary(tmp_path / "canary")))
    save_head(Head(torch.ones(2, 3)), tmp_path / "head.safetensors")
    words = ["apply", "--head", str(tmp_path / "head.safetensors"), "--checkpoint"]
    result = CliRunner().invoke(
        main, [*words, str(tmp_path / "m.pt"), "--out", str(tmp_path / "n")]
    )
    assert result.exit_code == CheckpointError.exit_code
    assert not (tmp_path / "canary").exists()
    assert not (tmp_path / "n").exists()


def test_a_folder_with_a_pickle_alone(tmp_path: Path) -> None:
    """Transformers' own pickle is not opened."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "vit", "num_labels": 2}')
    archive(folder / "pytorch_model.bin", CONTENTS["beside"](Canary(tmp_path / "canary")))
    pytest.importorskip("transformers")
    with pytest.raises(CheckpointError, match="a pickle, which is not opened"):
        load_model(f"transformers:{folder}")
    assert not (tmp_path / "canary").exists()
