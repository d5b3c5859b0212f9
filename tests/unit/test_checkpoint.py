"""Heads read from checkpoints and written back, byte for byte."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from catwise.errors import CategoryError, CheckpointError, HeadError, OutputError, ShapeError
from catwise.heads import (
    Head,
    list_heads,
    load_head,
    read_head,
    save_head,
    write_head,
    write_head_to_state_dict,
)

NAMES = ["ant", "bee", "cat"]
REAL = Path(os.environ.get("CATWISE_TEST_CHECKPOINT", "absent"))


def state(dtype: torch.dtype = torch.float32, *, bias: bool = True, seed: int = 0) -> Any:
    """A small network's state_dict."""
    g = torch.Generator().manual_seed(seed)
    table: OrderedDict[str, torch.Tensor] = OrderedDict()
    table["conv.weight"] = torch.randn(4, 3, 3, 3, generator=g).to(dtype)
    table["bn.running_mean"] = torch.randn(4, generator=g).to(dtype)
    table["bn.num_batches_tracked"] = torch.tensor(7)
    table["fc.weight"] = torch.randn(3, 5, generator=g).to(dtype)
    if bias:
        table["fc.bias"] = torch.randn(3, generator=g).to(dtype)
    return table


def save(value: Any, path: Path) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(value, path, metadata={"made": "by a test"})
    else:
        torch.save(value, path)
    return path


def load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    return torch.load(path, weights_only=True)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def changed_bytes(a: Path, b: Path) -> int:
    left = np.frombuffer(a.read_bytes(), dtype=np.uint8)
    right = np.frombuffer(b.read_bytes(), dtype=np.uint8)
    assert left.shape == right.shape
    return int((left != right).sum())


both = pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
dtypes = pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)


@both
@dtypes
@pytest.mark.parametrize("bias", [True, False])
def test_read_equals_torch(tmp_path: Path, suffix: str, dtype: torch.dtype, bias: bool) -> None:
    """The head that is read has the bits that torch's own loader gives."""
    path = save(state(dtype, bias=bias), tmp_path / f"m{suffix}")
    head = read_head(path, categories=NAMES)
    expected = load(path)
    assert torch.equal(head.weight, expected["fc.weight"])
    assert head.dtype == dtype
    assert head.categories == tuple(NAMES)
    assert head.provenance["key"] == "fc.weight"
    if bias:
        assert head.bias is not None
        assert torch.equal(head.bias, expected["fc.bias"])
    else:
        assert head.bias is None


@both
@dtypes
@pytest.mark.parametrize("bias", [True, False])
def test_writing_back_changes_no_byte(
    tmp_path: Path, suffix: str, dtype: torch.dtype, bias: bool
) -> None:
    """`write_head(m, read_head(m))` makes an identical file."""
    path = save(state(dtype, bias=bias), tmp_path / f"m{suffix}")
    report = write_head(path, read_head(path), tmp_path / f"n{suffix}")
    assert digest(path) == digest(tmp_path / f"n{suffix}")
    assert report.rows == (0, 1, 2)
    assert report.cast == ""


@both
@dtypes
def test_new_head_is_read_by_torch(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    """Torch reads the new head and the old rest; the input and the pickle stay as they were."""
    path = save(state(dtype), tmp_path / f"m{suffix}")
    before = digest(path)
    new = read_head(save(state(dtype, seed=1), tmp_path / f"o{suffix}"))
    target = tmp_path / f"n{suffix}"
    write_head(path, new, target)
    assert digest(path) == before
    old, back = load(path), load(target)
    assert list(old) == list(back)
    assert torch.equal(back["fc.weight"], new.weight)
    assert torch.equal(back["fc.bias"], new.bias)
    for name in ("conv.weight", "bn.running_mean", "bn.num_batches_tracked"):
        assert torch.equal(old[name], back[name])
    head_bytes = 18 * dtype.itemsize
    assert 0 < changed_bytes(path, target) <= head_bytes + 3 * 2 * 4
    if suffix == ".pt":
        with zipfile.ZipFile(path) as a, zipfile.ZipFile(target) as b:
            assert b.testzip() is None
            assert a.read("m/data.pkl") == b.read("m/data.pkl")


@both
def test_some_rows_by_name(tmp_path: Path, suffix: str) -> None:
    """A head of fewer categories goes into its rows; the other rows keep every bit."""
    path = save(state(), tmp_path / f"m{suffix}")
    head = Head([[9.0] * 5, [8.0] * 5], [7.0, 6.0], categories=["cat", "ant"])
    target = tmp_path / f"n{suffix}"
    report = write_head(path, head, target, categories=NAMES)
    assert report.rows == (2, 0)
    back, old = load(target), load(path)
    assert back["fc.weight"][:, 0].tolist()[::2] == [8.0, 9.0]
    assert torch.equal(back["fc.weight"][1], old["fc.weight"][1])
    assert back["fc.bias"].tolist() == [6.0, float(old["fc.bias"][1]), 7.0]


def test_names_that_do_not_fit(tmp_path: Path) -> None:
    """Fewer rows without names, unknown names and a wrong number of names are refused."""
    path, target = save(state(), tmp_path / "m.pt"), tmp_path / "n.pt"
    two = read_head(path, categories=NAMES).take_categories(["ant", "cat"])
    with pytest.raises(HeadError, match=r"names of|row names"):
        write_head(path, two, target)
    with pytest.raises(ShapeError, match="categories=\\["):
        write_head(path, two, target, key="fc")
    with pytest.raises(CategoryError, match="did you mean 'ants'"):
        write_head(path, two, target, categories=["ants", "bee", "cat"])
    with pytest.raises(ShapeError, match="2 different names"):
        write_head(path, two, target, key="fc", categories=["ant", "cat"])
    with pytest.raises(ShapeError, match=r"5, as 'fc\.weight' has"):
        write_head(path, Head(np.ones((3, 4)), np.ones(3)), target)
    assert not target.exists()


def test_numbered_rows_are_matched(tmp_path: Path) -> None:
    """A head whose unnamed categories were reordered goes back to the right rows."""
    path = save(state(), tmp_path / "m.pt")
    mixed = read_head(path).take_categories([2, 0, 1])
    write_head(path, mixed, tmp_path / "n.pt")
    assert digest(path) == digest(tmp_path / "n.pt")


def test_bias_is_never_invented(tmp_path: Path) -> None:
    """A bias on one side only is an error, except one of zeros that has nowhere to go."""
    with_bias = save(state(), tmp_path / "a.pt")
    without = save(state(bias=False), tmp_path / "b.pt")
    target = tmp_path / "n.pt"
    with pytest.raises(HeadError, match="the new one has none"):
        write_head(with_bias, read_head(without), target)
    with pytest.raises(HeadError, match="cannot be written"):
        write_head(without, read_head(with_bias), target)
    write_head(without, read_head(without).replace(bias=torch.zeros(3)), target)
    assert digest(without) == digest(target)


def test_cast_is_stated(tmp_path: Path) -> None:
    """Rounding to half precision is reported; an overflow is refused."""
    path, target = save(state(torch.float16), tmp_path / "m.pt"), tmp_path / "n.pt"
    head = Head(np.full((3, 5), 0.1, dtype=np.float32), np.zeros(3, dtype=np.float32))
    assert "float32 rounded to float16 in 'fc.weight'" in write_head(path, head, target).cast
    assert load(target)["fc.weight"].dtype == torch.float16
    with pytest.raises(HeadError, match="too large"):
        write_head(path, head.replace(weight=head.weight * 1e7), tmp_path / "o.pt")
    assert not (tmp_path / "o.pt").exists()


def test_destination(tmp_path: Path) -> None:
    """The source is never the destination, by any name; another file only on request."""
    path = save(state(), tmp_path / "m.pt")
    head = read_head(path)
    (tmp_path / "link.pt").symlink_to(path)
    for same in (path, tmp_path / "link.pt"):
        with pytest.raises(OutputError, match="the checkpoint itself"):
            write_head(path, head, same, overwrite=True)
    other = save(state(seed=2), tmp_path / "o.pt")
    with pytest.raises(OutputError, match="exists"):
        write_head(path, head, other)
    write_head(path, head, other, overwrite=True)
    assert digest(other) == digest(path)
    with pytest.raises(OutputError, match="make the folder"):
        write_head(path, head, tmp_path / "no" / "n.pt")


@pytest.mark.parametrize("container", ["state_dict", "model", "model_state_dict", "ema"])
def test_containers(tmp_path: Path, container: str) -> None:
    """A state_dict inside a training checkpoint is found and its neighbours stay."""
    optimizer = {"state": {0: {"exp_avg": torch.ones(3, 5)}}, "param_groups": [{"lr": 0.1}]}
    value = {"epoch": 3, container: state(), "optimizer": optimizer}
    path = save(value, tmp_path / "m.pt")
    (place,) = list_heads(path)
    assert place.name == f"{container}:fc.weight"
    write_head(path, read_head(path).replace(weight=torch.ones(3, 5)), tmp_path / "n.pt")
    back = load(tmp_path / "n.pt")
    assert torch.equal(back[container]["fc.weight"], torch.ones(3, 5))
    assert back["epoch"] == 3
    assert torch.equal(back["optimizer"]["state"][0]["exp_avg"], torch.ones(3, 5))


def test_copies_are_listed_and_the_named_one_is_written(tmp_path: Path) -> None:
    """With an EMA copy and a `module.` prefix the head must be named; only that one changes."""
    moving = {f"module.{key}": value for key, value in state(seed=1).items()}
    path = save({"state_dict": state(), "state_dict_ema": moving}, tmp_path / "m.pt")
    assert {place.name for place in list_heads(path)} == {
        "state_dict:fc.weight",
        "state_dict_ema:module.fc.weight",
    }
    assert [bool(place.note) for place in list_heads(path)] == [False, True]
    with pytest.raises(HeadError, match=r"2 layers .* may be the head") as caught:
        read_head(path)
    assert "state_dict_ema:module.fc.weight" in str(caught.value)
    assert "key='state_dict:fc.weight'" in str(caught.value)
    key = "state_dict_ema:module.fc"
    head = read_head(path, key=key)
    assert torch.equal(head.weight, moving["module.fc.weight"])
    write_head(path, head.replace(weight=torch.zeros(3, 5)), tmp_path / "n.pt", key=key)
    back = load(tmp_path / "n.pt")
    assert torch.equal(back["state_dict"]["fc.weight"], state()["fc.weight"])
    assert not back["state_dict_ema"]["module.fc.weight"].any()


def linear(c: int, d: int) -> torch.Tensor:
    return torch.arange(c * d, dtype=torch.float32).reshape(c, d)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"features.0": (8, 3), "classifier": (3, 8)}, "classifier.weight"),
        ({"classifier.0": (6, 8), "classifier.3": (4, 6), "classifier.10": (3, 4)},
         "classifier.10.weight"),
        ({"blocks.0.mlp.fc1": (9, 8), "blocks.0.mlp.fc2": (8, 9), "head": (3, 8)}, "head.weight"),
        ({"densenet121.classifier.0": (3, 8)}, "densenet121.classifier.0.weight"),
        ({"heads.head": (3, 8), "encoder.layers.0.mlp.0": (9, 8)}, "heads.head.weight"),
        ({"fc": (3, 8), "AuxLogits.fc": (3, 7)}, "fc.weight"),
        ({"classifier.dense": (8, 8), "classifier.out_proj": (3, 8)}, "classifier.out_proj.weight"),
        ({"fc1": (5, 8), "fc2": (3, 5)}, "fc2.weight"),
        ({"final_stage": (3, 8)}, "final_stage.weight"),
        ({"model.backbone.embed": (9, 8), "model.my_layer": (3, 8)}, "model.my_layer.weight"),
    ],
)  # fmt: skip
def test_heads_are_found(shapes: dict[str, tuple[int, int]], expected: str) -> None:
    """The last layer of common architectures is found by name, place and number of categories."""
    table = {f"{name}.weight": linear(*shape) for name, shape in shapes.items()}
    found = read_head(table, categories=NAMES)
    assert found.provenance["key"] == expected


def test_ambiguity_is_resolved_by_number_or_key() -> None:
    """Two equal layers are an error that shows both; a number of categories may decide."""
    table = {"colour.weight": linear(3, 8), "shape.weight": linear(4, 8)}
    with pytest.raises(HeadError, match="2 layers"):
        read_head(table)
    assert read_head(table, categories=list("abcd")).provenance["key"] == "shape.weight"
    assert read_head(table, key="colour").n_categories == 3
    with pytest.raises(HeadError, match="no head with 5 rows"):
        read_head(table, categories=list("abcde"))
    with pytest.raises(HeadError, match=r"did you mean 'colour\.weight'"):
        read_head(table, key="color.weight")
    with pytest.raises(HeadError, match="no head was found"):
        read_head({"a": torch.ones(3)})


def test_one_by_one_convolution(tmp_path: Path) -> None:
    """A 1×1 convolution is a head too: said so, read as a matrix, written in its own shape."""
    table = {"conv_head.weight": torch.ones(6, 4, 1, 1), "classifier.weight": linear(3, 6)}
    table["classifier.weight"] = table["classifier.weight"].reshape(3, 6, 1, 1)
    path = save(table, tmp_path / "m.pt")
    (place,) = list_heads(path)
    assert place.note == "1×1 convolution"
    assert read_head(path).weight.shape == (3, 6)
    write_head(path, read_head(path).replace(weight=torch.ones(3, 6)), tmp_path / "n.pt")
    assert torch.equal(load(tmp_path / "n.pt")["classifier.weight"], torch.ones(3, 6, 1, 1))


def test_transposed_and_packed_storages(tmp_path: Path) -> None:
    """A transposed weight, and weight and bias in one flat buffer, are read and written rightly."""
    flat = torch.arange(40, dtype=torch.float32)
    table = {
        "fc.weight": flat[3:18].reshape(5, 3).t(),
        "fc.bias": flat[18:21],
        "other": flat[:2],
        "rest": flat[21:],
    }
    path = save(table, tmp_path / "m.pt")
    head = read_head(path)
    assert torch.equal(head.weight, table["fc.weight"])
    new = Head(-head.weight, [1.0, 2.0, 3.0])
    write_head(path, new, tmp_path / "n.pt")
    back = load(tmp_path / "n.pt")
    assert torch.equal(back["fc.weight"], new.weight)
    assert back["fc.bias"].tolist() == [1.0, 2.0, 3.0]
    assert torch.equal(back["other"], flat[:2])
    assert torch.equal(back["rest"], flat[21:])


def tied() -> dict[str, torch.Tensor]:
    shared = linear(3, 5)
    return {"embed.weight": shared, "fc.weight": shared}


REFUSED: dict[str, tuple[Any, str]] = {
    "tied": (tied(), "tied: 'fc.weight' shares its storage with 'embed.weight'"),
    "expanded": ({"fc.weight": torch.ones(1, 5).expand(3, 5)}, "tied: the rows"),
    "int8": ({"fc.weight": torch.ones(3, 5, dtype=torch.int8)}, "quantised"),
    "fp8": ({"fc.weight": torch.ones(3, 5).to(torch.float8_e4m3fn)}, "quantised"),
    "bitsandbytes": ({"fc.weight": linear(3, 5), "fc.SCB": torch.ones(3)}, "quantised"),
    "scaled": ({"fc.weight": linear(3, 5), "fc.weight_scale": torch.ones(3)}, "quantised"),
    "weight norm": (
        {"fc.weight_g": torch.ones(3, 1), "fc.weight_v": linear(3, 5), "fc.bias": torch.ones(3)},
        "weight-normed",
    ),
    "parametrised": (
        {
            "fc.parametrizations.weight.original0": torch.ones(3, 1),
            "fc.parametrizations.weight.original1": linear(3, 5),
        },
        "weight-normed",
    ),
    "pruned": (
        {"fc.weight_orig": linear(3, 5), "fc.weight_mask": torch.ones(3, 5)},
        "pruned",
    ),
    "misfit bias": ({"fc.weight": linear(3, 5), "fc.bias": torch.ones(4)}, "does not fit"),
    "NaN": ({"fc.weight": torch.full((3, 5), float("nan"))}, "finite"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("live", [True, False])
def test_heads_that_are_refused(tmp_path: Path, case: str, live: bool) -> None:
    """Tied, quantised, weight-normed and damaged heads are refused with the reason."""
    table, reason = REFUSED[case]
    source = table if live else save(table, tmp_path / "m.pt")
    with pytest.raises(HeadError, match=reason):
        read_head(source)
    if case not in {"misfit bias", "NaN"}:
        assert any(reason.split(":")[0] in place.problem for place in list_heads(source))


def test_tied_head_in_safetensors(tmp_path: Path) -> None:
    """A tie that safetensors' save_model notes in the metadata is seen."""
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file({"fc.weight": linear(3, 5)}, path, {"embed.weight": "fc.weight"})
    with pytest.raises(HeadError, match=r"shares its storage with 'embed\.weight'"):
        read_head(path)


def test_quantised_linear(tmp_path: Path) -> None:
    """A tensor quantised by torch is refused from the file too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls quantised tensors deprecated
        weight = torch.quantize_per_tensor(linear(3, 5), 0.1, 0, torch.qint8)
        path = save({"fc.weight": weight}, tmp_path / "m.pt")
    with pytest.raises(HeadError, match="quantised"):
        read_head(path)


def packed(body: nn.Module) -> dict[str, Any]:
    """A state_dict of which torch has quantised the last layer: only its scale is a tensor."""
    scale = {"fc.scale": torch.tensor(1.0), "fc.zero_point": torch.tensor(0)}
    return {f"layer1.{name}": value for name, value in body.state_dict().items()} | scale


@pytest.mark.parametrize("body", [nn.Linear(8, 16), nn.Conv2d(3, 4, 3)])
@pytest.mark.parametrize("categories", [None, list("abcde")])
def test_a_packed_head_is_not_mistaken_for_the_layer_before_it(
    body: nn.Module, categories: list[str] | None
) -> None:
    """It is quantised, whatever else is there; a float layer must be named then."""
    with pytest.raises(HeadError, match=r"(?s)fc.*quantised.*use the checkpoint from before.*key="):
        read_head(packed(body), categories=categories)
    if isinstance(body, nn.Linear):
        assert read_head(packed(body), key="layer1").weight.shape == (16, 8)
    named = packed(body) | {"head.weight": torch.ones(5, 16), "head.bias": torch.ones(5)}
    assert read_head(named, key="head").n_categories == 5
    with pytest.raises(HeadError, match=r"(?s)cannot be told.*'fc.scale' \(quantised\)"):
        read_head(named)


@pytest.mark.parametrize(
    "beside",
    [
        {"fc.weight": torch.ones(40, 1, dtype=torch.uint8), "fc.weight.absmax": torch.ones(2)},
        {"fc.qweight": torch.ones(2, 5, dtype=torch.int32), "fc.scales": torch.ones(1, 5)},
    ],
)
def test_quantised_is_said_before_the_bias_is_looked_at(beside: dict[str, Any]) -> None:
    """The shape of packed weights says nothing of the bias."""
    with pytest.raises(HeadError, match="quantised"):
        read_head(beside | {"fc.bias": torch.ones(5)})


def test_state_dict_in_state_dict_out() -> None:
    """A new state_dict comes back, nested tables copied, other tensors the same objects."""
    inner = state()
    inner._metadata = {"version": 1}
    table = {"model.a": {"x": 1}, "model": inner, "epoch": 4}
    new = read_head(table).replace(weight=torch.ones(3, 5))
    result = write_head_to_state_dict(table, new)
    assert torch.equal(result["model"]["fc.weight"], torch.ones(3, 5))
    assert torch.equal(inner["fc.weight"], state()["fc.weight"])
    assert result["model"]["conv.weight"] is inner["conv.weight"]
    assert result["model"]._metadata == {"version": 1}
    assert list(result["model"]) == list(inner)
    assert result["epoch"] == 4
    with pytest.raises(HeadError, match="write_head_to_state_dict"):
        write_head(table, new, "x")  # type: ignore[arg-type]


def test_module_is_not_a_source() -> None:
    """A module is refused with the remedy."""
    with pytest.raises(HeadError, match=r"model\.state_dict\(\)"):
        read_head(torch.nn.Linear(2, 3))  # type: ignore[arg-type]


def test_trained_module_round_trip() -> None:
    """A module's own state_dict gives the module's logits."""
    module = torch.nn.Sequential(OrderedDict(fc=torch.nn.Linear(5, 3)))
    features = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    expected = module(features).detach()
    torch.testing.assert_close(read_head(module.state_dict()).logits(features), expected)
    new = Head(torch.ones(3, 5), torch.ones(3))
    module.load_state_dict(write_head_to_state_dict(module.state_dict(), new))
    torch.testing.assert_close(module(features).detach(), new.logits(features))


def test_saved_head_is_a_checkpoint_too(tmp_path: Path) -> None:
    """read_head and write_head take files of save_head, with their own row names."""
    head = Head(linear(3, 5), torch.zeros(3), categories=NAMES, fitted_on=[1, 2])
    path, target = tmp_path / "h.safetensors", tmp_path / "n.safetensors"
    save_head(head, path)
    assert read_head(path).categories == tuple(NAMES)
    assert read_head(path, categories=list("abc")).categories == ("a", "b", "c")
    write_head(path, head, target)
    assert digest(path) == digest(target)
    one = Head([[1.0] * 5], [2.0], categories=["bee"])
    write_head(path, one, target, overwrite=True)
    assert load_head(target).weight[1].tolist() == [1.0] * 5
    assert load_head(target).fitted_on is not None


def test_file_objects_are_no_source() -> None:
    """An open file is refused: a path is needed."""
    with pytest.raises(HeadError, match="path"):
        read_head(io.BytesIO())  # type: ignore[arg-type]


def test_missing_checkpoint(tmp_path: Path) -> None:
    """A path that is not there is named with the reason."""
    with pytest.raises(CheckpointError, match="No such file"):
        read_head(tmp_path / "m.pt")


@pytest.mark.skipif(not REAL.is_file(), reason="CATWISE_TEST_CHECKPOINT names no checkpoint")
def test_real_checkpoint(tmp_path: Path) -> None:
    """A real checkpoint is read, written back without a change, and patched."""
    head = read_head(REAL)
    assert head.bias is not None
    write_head(REAL, head, tmp_path / f"n{REAL.suffix}")
    assert digest(REAL) == digest(tmp_path / f"n{REAL.suffix}")
    new = head.replace(weight=head.weight * 2)
    write_head(REAL, new, tmp_path / f"o{REAL.suffix}")
    assert read_head(tmp_path / f"o{REAL.suffix}").digest == new.digest
