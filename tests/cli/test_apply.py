"""`catwise apply`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from catwise.cli import main
from catwise.errors import CategoryError, CheckpointError, ConfigError, OutputError, ShapeError
from catwise.heads import Head, save_head

if TYPE_CHECKING:
    from pathlib import Path


def apply(folder: Path, *more: str) -> Result:
    arguments = ["apply", "--head", "head.safetensors", "--checkpoint", "in.safetensors"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return CliRunner().invoke(main, [*arguments, "--out", "out.safetensors", *more])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    head = Head([[1.0, 2.0], [3.0, 4.0]], [5.0, 6.0], categories=["cat", "dog"])
    save_head(head, tmp_path / "head.safetensors")
    tensors = {
        "body.weight": torch.ones(3, 3),
        "fc.weight": torch.zeros(2, 2, dtype=torch.float16),
        "fc.bias": torch.zeros(2, dtype=torch.float16),
    }
    save_file(tensors, tmp_path / "in.safetensors")
    return tmp_path


def test_head_is_written(folder: Path) -> None:
    """The head is in the copy, in the checkpoint's dtype; the rest and the input are as before."""
    before = (folder / "in.safetensors").read_bytes()
    result = apply(folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "2 of 2 rows of 'fc.weight' written\nout.safetensors\n"
    out = load_file(folder / "out.safetensors")
    assert out["fc.weight"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert out["fc.bias"].dtype == torch.float16
    assert torch.equal(out["body.weight"], torch.ones(3, 3))
    assert (folder / "in.safetensors").read_bytes() == before


def test_json(folder: Path) -> None:
    """One document on stdout says what was written where."""
    result = apply(folder, "--json", "--name", "fc.weight")
    document = json.loads(result.stdout)
    assert document["key"] == "fc.weight"
    assert document["rows"] == [0, 1]
    assert document["rounding"] is None


def test_rows_by_name(folder: Path) -> None:
    """With the names of the checkpoint's rows the head's rows find theirs."""
    (folder / "names.txt").write_text("dog\ncat\n")
    result = apply(folder, "--head-categories", "names.txt", "-q")
    assert (result.exit_code, result.stdout) == (0, "")
    out = load_file(folder / "out.safetensors")
    assert out["fc.weight"].tolist() == [[3.0, 4.0], [1.0, 2.0]]


def test_refusals(folder: Path) -> None:
    """What cannot be written says why, and leaves no file."""
    (folder / "names.txt").write_text("dog\nmouse\n")
    (folder / "blank.txt").write_text("dog\n\ncat\n")
    cases = [
        (["--head-categories", "names.txt"], CategoryError),
        (["--head-categories", "blank.txt"], ConfigError),
        (["--head-categories", "none.txt"], ConfigError),
        (["--checkpoint", "none.pt"], CheckpointError),
        (["--head", "in.safetensors"], CheckpointError),
        (["--name", "body.weight"], ShapeError),
        (["--out", "in.safetensors"], OutputError),
        (["--out", "no/such/out.safetensors"], OutputError),
    ]
    for more, kind in cases:
        result = apply(folder, *more)
        assert result.exit_code == kind.exit_code, (more, result.output)
        assert result.stderr.startswith(kind.__name__)
    assert not (folder / "out.safetensors").exists()


def test_overwrite(folder: Path) -> None:
    """A file that is there is replaced only when that is asked for."""
    assert apply(folder).exit_code == 0
    assert apply(folder).exit_code == OutputError.exit_code
    assert apply(folder, "--overwrite").exit_code == 0
