"""Remedies that errors name on the command line: they speak its language, and they work."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from catwise import Head, save_head
from catwise.cli.main import main
from catwise.errors import CheckpointError, ConfigError, HeadError
from cli.tiny import MODEL
from unit.models.test_registry import need


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output + str(result.exception)
    return result


def images(folder: str = "images", n: int = 4) -> None:
    random = np.random.default_rng(0)
    Path(folder).mkdir()
    for row in range(n):
        pixels = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(Path(folder, f"{row}.png"))


def remedy(result: Result) -> str:
    return result.output.partition("try:")[2].strip()


def test_paths_that_are_the_ids() -> None:
    """One column may be both."""
    images()
    Path("t.csv").write_text("file,x\n1.png,1\n3.png,0\n")
    columns = ["--table", "t.csv", "--path-column", "file", "--id-column", "file"]
    result = run("extract", *MODEL, "--images", "images", *columns, "--out", "f")
    assert "2 rows of 8 features" in result.output


def test_a_readers_remedy_is_an_option() -> None:
    """What the reader of a data set recommends is told as --option NAME=VALUE, and works."""
    Path("annotations").mkdir()
    Path("annotations/instances_val2014.json").write_text(
        '{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [],'
        ' "categories": [{"id": 1, "name": "cat"}]}'
    )
    line = ["audit", "--dataset", "coco", "--root", "."]
    result = run(*line, code=3)
    option = re.match(r"--option \S+", remedy(result))
    assert option is not None
    assert "1 row, 1 category" in run(*line, *option[0].split()).output


def test_columns_are_named_as_options() -> None:
    """Columns of lists that have no role, and values that no encoding knows."""
    Path("l.csv").write_text("id,positive,x,y\na,cat,1,2\n")
    line = ["audit", "--labels", "l.csv", "--layout", "lists", "--others", "unknown"]
    line += ["--separator", "|"]
    result = run(*line, code=3)
    assert "--ignore-column x --ignore-column y" in remedy(result)
    run(*line, "--ignore-column", "x", "--ignore-column", "y")
    Path("w.csv").write_text("id,cat\na,1\nb,\n")
    result = run("audit", "--labels", "w.csv", "--encoding", "nan", code=3)
    assert "--ignore-column NAME" in remedy(result)
    run("audit", "--labels", "w.csv", "--encoding", "nan", "--ignore-column", "id")


def test_choices_in_capitals() -> None:
    """A choice of a reader is found in any case."""
    line = ["audit", "--dataset", "openimages", "--root", "."]
    assert "v3 or v6" in run(*line, "--option", "version=V9", code=12).output
    assert "has no" in run(*line, "--option", "version=V6", code=3).output


def test_a_function_that_needs_a_number() -> None:
    """The error names --model-arg, and with it the function is called."""
    images()
    line = ["extract", "--model", "python:unit.models.test_dead_ends:make_net"]
    line += ["--images", "images", "--input-size", "8x8", "--out", "f", "--dry-run"]
    result = run(*line, code=ConfigError.exit_code)
    option = shlex.split(remedy(result).replace("…", "2"))
    assert option == ["--model-arg", "n_categories=2"], remedy(result)
    told = run(*line, *option).output
    assert "3 features" in told
    assert "assumed" not in told.replace("(from assumed", "")  # the size was given


def test_two_heads() -> None:
    """Both remedies are options that work."""
    need("timm")
    images(n=1)
    line = ["extract", "--model", "timm:deit_tiny_distilled_patch16_224", "--images", "images"]
    line += ["--model-arg", "img_size=32", "--out", "f", "--dry-run"]
    result = run(*line, code=ConfigError.exit_code)
    options = re.findall(r"--model-arg heads=\w+", remedy(result))
    assert options == ["--model-arg heads=both", "--model-arg heads=first"]
    for option in options:
        run(*line, *option.split())


def onnx_model(path: str, last: str = "") -> None:
    """A mean of the pixels, a linear layer, and maybe an operator behind it."""
    onnx: Any = pytest.importorskip("onnx")
    made, number = onnx.helper.make_node, onnx.numpy_helper.from_array
    nodes = [
        made("GlobalAveragePool", ["x"], ["g"]),
        made("Flatten", ["g"], ["z"]),
        made("Gemm", ["z", "w", "b"], ["y"], transB=1),
    ]
    nodes += [made(last, ["y", "y"], ["end"])] if last else []
    weight, bias = np.eye(2, 3, dtype="f"), np.zeros(2, "f")
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [info("x", 1, ["N", 3, 8, 8])], [info("end" if last else "y", 1, ["N", 2])],
        initializer=[number(weight, "w"), number(bias, "b")],
    )  # fmt: skip
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)


def test_an_onnx_model_as_a_checkpoint() -> None:
    """The error names --model onnx:FILE, and that writes the copy."""
    onnx_model("m.onnx")
    save_head(Head(torch.ones(2, 3), torch.ones(2)), "head.safetensors")
    line = ["apply", "--head", "head.safetensors", "--out", "n.onnx"]
    result = run(*line, "--checkpoint", "m.onnx", code=CheckpointError.exit_code)
    options = re.search(r"--model \S+(?=,)", remedy(result))
    assert options is not None
    run(*line, *options[0].split())
    assert Path("n.onnx").exists()


def test_a_named_onnx_layer_stops_fix_at_once() -> None:
    """Something else lies behind the layer: nothing is extracted or fitted."""
    onnx_model("m.onnx", last="Mul")
    images()
    Path("l.csv").write_text("id,split,a,b\n0.png,train,1,0\n1.png,train,0,1\n2.png,valid,1,0\n")
    line = ["fix", "--model", "onnx:m.onnx", "--images", "images", "--labels", "l.csv"]
    line += ["--encoding", "complete", "--id-column", "id", "--split-column", "split"]
    line += ["--valid-split", "valid", "--test-split", "none", "--out", "out"]
    result = run(*line, code=HeadError.exit_code)
    assert "export the model again" in remedy(result)
    for more in ([], ["--dry-run"]):
        result = run(*line, "--model-arg", "node=y", *more, code=HeadError.exit_code)
        assert "not what its layer 'head' gives" in result.output
    assert not Path("out").exists()


def touch_beside(path: Path, _: Any) -> None:
    Path(f"{path}.catwise.json").touch()


def test_a_failed_apply_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would tell of the copy is not left where the copy could not be put."""
    torch.save({"fc.weight": torch.eye(2, 3), "fc.bias": torch.zeros(2)}, "m.pt")
    save_head(Head(torch.ones(2, 3), torch.ones(2)), "head.safetensors")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("catwise._io._sync", full)
        patch.setattr("catwise.heads.surgery.put_beside", touch_beside)
        run("apply", "--head", "head.safetensors", "--checkpoint", "m.pt", "--out", "n.pt", code=13)
    assert sorted(path.name for path in Path().iterdir()) == ["head.safetensors", "m.pt"]


def test_a_table_of_some_observations() -> None:
    """CheXpert's own layout with fewer columns: the remedy reads them, and so does --category."""
    Path("train.csv").write_text(
        "Path,Frontal/Lateral,Edema,Pleural Effusion\n"
        "CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg,Frontal,1,\n"
    )
    line = ["audit", "--dataset", "chexpert", "--root", "."]
    options = shlex.split(remedy(run(*line, code=3)).partition(" for those")[0])
    assert options == ["--option", "categories=Edema", "--option", "categories=Pleural Effusion"]
    assert "1 row, 2 categories" in run(*line, *options).output
    told = run(*line, "--category", "Pleural Effusion").output
    assert "1 row, 1 category" in told
