"""Checkpoints whose head gets more rows, fewer rows, or rows in another order."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from catwise.errors import CategoryError, CheckpointError, HeadError, OutputError, ShapeError
from catwise.heads import Head, read_head, save_head, write_head, write_head_to_state_dict

NAMES = ("ant", "bee", "cat")


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def state(dtype: torch.dtype = torch.float32, n: int = 3) -> dict[str, torch.Tensor]:
    return {
        "body.weight": numbers(7, 4, seed=1),
        "fc.weight": numbers(n, 5, seed=2, dtype=dtype),
        "fc.bias": numbers(n, seed=3, dtype=dtype),
        "steps": torch.tensor(17),
        "body.half": numbers(3, seed=4, dtype=torch.float16),
    }


def head_of(n: int, dtype: torch.dtype = torch.float32) -> Head:
    names = [f"new {i}" for i in range(n)]
    return Head(numbers(n, 5, seed=8, dtype=dtype), numbers(n, seed=9), categories=names)


def records(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


# -- in memory


def test_heads_are_joined_by_rows() -> None:
    """The rows stand below one another, numbers and the rows that fitted them are kept."""
    first = head_of(2).replace(fitted_on=[3, 1], provenance={"by": "a"})
    second = Head(numbers(1, 5, dtype=torch.float64), [2.0], categories=["x"], fitted_on=[3, 7])
    joined = first.join(second)
    assert joined.categories == ("new 0", "new 1", "x")
    assert joined.dtype == torch.float64
    assert torch.equal(joined.weight[:2], first.weight.double())
    assert joined.fitted_on is not None
    assert joined.fitted_on.tolist() == [1, 3, 7]
    assert joined.provenance["joined"][0] == {"rows": 2, "by": "a"}
    assert joined.drop_categories(["x"]).categories == first.categories
    z = numbers(4, 5, seed=11)
    assert torch.allclose(first.join(head_of(1).replace(categories=["y"])).logits(z)[:, :2],
                          first.logits(z))  # fmt: skip


def test_equal_rows_are_taken_once() -> None:
    """Two extensions of one head are joined although both have its rows."""
    first = head_of(3)
    a = first.join(Head(numbers(1, 5), [1.0], categories=["a"]))
    b = first.join(Head(numbers(1, 5), [2.0], categories=["b"]))
    joined = a.join(b, first)
    assert joined.categories == (*first.categories, "a", "b")
    assert joined.bias[3:].tolist() == [1.0, 2.0]
    assert [one["rows"] for one in joined.provenance["joined"]] == [4, 1, 0]


def test_heads_that_cannot_be_joined() -> None:
    """Other features, a bias in one alone, one name twice: each says what is wrong."""
    first = head_of(2)
    with pytest.raises(ShapeError, match="same features"):
        first.join(Head([[1.0]], [0.0], categories=["x"]))
    with pytest.raises(HeadError, match="have a bias"):
        first.join(Head(numbers(1, 5), categories=["x"]))
    with pytest.raises(CategoryError, match="different rows"):
        first.join(first.replace(bias=[0.0, 0.0]).take_categories(["new 1"]))
    with pytest.raises(CategoryError):
        first.drop_categories(["new 9"])
    with pytest.raises(ShapeError):
        first.drop_categories(first.categories)


# -- safetensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 300])
def test_safetensors(tmp_path: Path, n: int, dtype: torch.dtype) -> None:
    """Only the head has other rows; names, texts and all other tensors are as before."""
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(state(dtype), source, metadata={"format": "pt", "note": "näme"})
    before = source.read_bytes()
    head = head_of(n, dtype)
    report = write_head(source, head, out, resize=True)
    assert report.rows == tuple(range(n))
    assert report.resized_from == (None if n == 3 else 3)
    assert source.read_bytes() == before
    found, was = load_file(out), load_file(source)
    assert list(found) == list(was)
    assert torch.equal(found["fc.weight"], head.weight)
    assert torch.equal(found["fc.bias"], head.bias.to(dtype))
    for name in ("body.weight", "steps", "body.half"):
        assert torch.equal(found[name], was[name])
        assert found[name].dtype == was[name].dtype
    with safe_open(out, "pt") as opened:
        assert opened.metadata() == {"format": "pt", "note": "näme"}


def test_same_head_same_file(tmp_path: Path) -> None:
    """The rows that are there give the file that is there, whatever was asked for."""
    for name, save in (("in.safetensors", save_file), ("in.pt", torch.save)):
        save(state(), tmp_path / name)
        write_head(tmp_path / name, read_head(tmp_path / name), tmp_path / f"o{name}", resize=True)
        assert (tmp_path / f"o{name}").read_bytes() == (tmp_path / name).read_bytes()


def test_there_and_back(tmp_path: Path) -> None:
    """More rows and then the old ones again give the file as it was."""
    save_file(state(), tmp_path / "a.safetensors")
    torch.save(state(), tmp_path / "a.pt")
    for kind in ("safetensors", "pt"):
        old = read_head(tmp_path / f"a.{kind}")
        write_head(tmp_path / f"a.{kind}", head_of(70000), tmp_path / f"b.{kind}", resize=True)
        write_head(
            tmp_path / f"b.{kind}", old, tmp_path / f"c.{kind}", resize=True, provenance=None
        )
    first, last = (tmp_path / f"{n}.safetensors" for n in "ac")
    assert first.read_bytes() == last.read_bytes()
    assert records(tmp_path / "a.pt").values() != records(tmp_path / "b.pt").values()
    assert list(records(tmp_path / "a.pt").values()) == list(records(tmp_path / "c.pt").values())


def test_the_rows_that_fitted_it_are_remembered(tmp_path: Path) -> None:
    """The copy tells of its rows; what was told of the old ones does not stay."""
    save_file(state(), tmp_path / "a.safetensors")
    torch.save(state(), tmp_path / "a.pt")
    for kind in ("safetensors", "pt"):
        head = head_of(5).replace(fitted_on=[5, 4])
        write_head(tmp_path / f"a.{kind}", head, tmp_path / f"b.{kind}", resize=True)
        again = read_head(tmp_path / f"b.{kind}")
        assert again.fitted_on is not None
        assert again.fitted_on.tolist() == [4, 5]
        fewer = again.take_categories([0]).replace(fitted_on=None)
        write_head(tmp_path / f"b.{kind}", fewer, tmp_path / f"c.{kind}", resize=True)
        assert read_head(tmp_path / f"c.{kind}").fitted_on is None


# -- archives


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("n", [1, 4, 255, 256, 70000])
def test_archive(tmp_path: Path, n: int, protocol: int) -> None:
    """Only the head's records and its sizes in the pickle differ; torch reads it, mapped too."""
    content = {"model": state(), "epoch": 3, "args": {"lr": 0.1, "classes": ("a", "b", "c")}}
    source, out = tmp_path / "in.pt", tmp_path / "out.pt"
    torch.save(content, source, pickle_protocol=protocol)
    head = head_of(n)
    write_head(source, head, out, resize=True)
    for mmap in (False, True):
        found = torch.load(out, weights_only=protocol == 2, mmap=mmap)
        assert torch.equal(found["model"]["fc.weight"], head.weight)
        assert torch.equal(found["model"]["fc.bias"], head.bias)
        assert found["model"]["fc.weight"].untyped_storage().nbytes() == 4 * 5 * n
        for name in ("body.weight", "steps", "body.half"):
            assert torch.equal(found["model"][name], content["model"][name])
        assert (found["epoch"], found["args"]) == (content["epoch"], content["args"])
    old, new = records(source), records(out)
    assert list(old) == list(new)
    assert sum(old[name] != new[name] for name in old) == 3  # the pickle, weight and bias


def test_records_of_an_archive_are_aligned(tmp_path: Path) -> None:
    """Every record begins at a multiple of 64 bytes, as torch writes them."""
    torch.save(state(), tmp_path / "in.pt")
    write_head(tmp_path / "in.pt", head_of(11), tmp_path / "out.pt", resize=True)
    raw = (tmp_path / "out.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "out.pt") as archive:
        for info in archive.infolist():
            name, extra = struct.unpack("<HH", raw[info.header_offset + 26 :][:4])
            assert (info.header_offset + 30 + name + extra) % 64 == 0


def test_nested_and_parameters(tmp_path: Path) -> None:
    """One of two copies is meant by its key, the other stays; parameters stay parameters."""
    model, ema = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    content: dict[str, Any] = {
        "state_dict": {"fc.weight": model.weight, "fc.bias": model.bias},
        "state_dict_ema": {"fc.weight": ema.weight, "fc.bias": ema.bias},
    }
    torch.save(content, tmp_path / "in.pt")
    key = "state_dict_ema:fc.weight"
    write_head(tmp_path / "in.pt", head_of(4), tmp_path / "out.pt", key=key, resize=True)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert found["state_dict_ema"]["fc.weight"].shape == (4, 5)
    assert torch.equal(found["state_dict"]["fc.weight"], model.weight)
    grown = write_head_to_state_dict(content, head_of(4), key=key, resize=True)
    assert isinstance(grown["state_dict_ema"]["fc.weight"], torch.nn.Parameter)
    assert grown["state_dict_ema"]["fc.bias"].shape == (4,)
    assert grown["state_dict"] is content["state_dict"]
    assert content["state_dict_ema"]["fc.weight"].shape == (3, 5)


def test_convolution(tmp_path: Path) -> None:
    """A 1×1 convolution gets rows of its own shape."""
    save_file({"fc.weight": numbers(3, 5, 1, 1), "fc.bias": numbers(3)}, tmp_path / "a.safetensors")
    write_head(tmp_path / "a.safetensors", head_of(2), tmp_path / "b.safetensors", resize=True)
    assert load_file(tmp_path / "b.safetensors")["fc.weight"].shape == (2, 5, 1, 1)


# -- what cannot be done


def test_tensors_that_share_a_storage_are_refused(tmp_path: Path) -> None:
    """A weight that is a part of a larger storage, or turned, says how to save it; no file."""
    flat = numbers(40)
    turned = numbers(5, 3).T
    for wrong in ({"fc.weight": flat[:15].view(3, 5), "rest": flat[15:]}, {"fc.weight": turned}):
        torch.save(wrong, tmp_path / "in.pt")
        with pytest.raises(HeadError, match="another number of rows") as caught:
            write_head(
                tmp_path / "in.pt",
                head_of(2).replace(bias=None),
                tmp_path / "out.pt",
                resize=True,
            )
        assert "weight.clone()" in str(caught.value)
    tied = numbers(3, 5)
    torch.save({"fc.weight": tied, "embed": tied}, tmp_path / "in.pt")
    with pytest.raises(HeadError, match="tied"):
        write_head(tmp_path / "in.pt", head_of(2), tmp_path / "out.pt", resize=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pt"]


def test_category_specific_layers_are_refused(tmp_path: Path) -> None:
    """Where every category has features of its own a new one has none."""
    path = tmp_path / "in.safetensors"
    save_file({"fc.weight": numbers(1, 3, 5), "fc.bias": numbers(1, 3)}, path)
    for n in (3, 4):
        with pytest.raises(HeadError, match="cannot have other rows"):
            write_head(path, head_of(n), tmp_path / "o", key="fc.weight", resize=True)


def test_other_refusals(tmp_path: Path) -> None:
    """Other features, no bias, a head of catwise, the input itself."""
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(state(), path)
    with pytest.raises(ShapeError):
        write_head(path, Head([[1.0]], [0.0]), out, resize=True)
    with pytest.raises(HeadError, match="bias"):
        write_head(path, head_of(4).replace(bias=None), out, resize=True)
    with pytest.raises(OutputError, match="itself"):
        write_head(path, head_of(4), path, resize=True)
    save_head(head_of(2), tmp_path / "head.safetensors")
    with pytest.raises(HeadError, match="save_head"):
        write_head(tmp_path / "head.safetensors", head_of(4), out, resize=True)
    for key in (None, "fc.weight"):  # not asked for
        with pytest.raises((HeadError, ShapeError), match="resize=True"):
            write_head(path, head_of(4), out, key=key)
    assert not out.exists()


@pytest.mark.parametrize("at", [0.2, 0.5, 0.9])
def test_damaged_archives(tmp_path: Path, at: float) -> None:
    """A file that is cut short is refused, and nothing is left."""
    torch.save(state(), tmp_path / "whole.pt")
    raw = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "in.pt").write_bytes(raw[: int(len(raw) * at)])
    with pytest.raises(CheckpointError):
        write_head(tmp_path / "in.pt", head_of(4), tmp_path / "out.pt", resize=True)
    assert not (tmp_path / "out.pt").exists()


def test_a_damaged_record_is_found(tmp_path: Path) -> None:
    """A record that does not fit its checksum is not copied."""
    torch.save(state(), tmp_path / "in.pt")
    raw = bytearray((tmp_path / "in.pt").read_bytes())
    at = raw.index(numbers(7, 4, seed=1).numpy().tobytes())
    raw[at] ^= 1
    (tmp_path / "in.pt").write_bytes(raw)
    with pytest.raises(CheckpointError, match="cannot read"):
        write_head(tmp_path / "in.pt", head_of(4), tmp_path / "out.pt", resize=True)
    assert not (tmp_path / "out.pt").exists()
