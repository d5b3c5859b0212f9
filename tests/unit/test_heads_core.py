"""Head, save_head and load_head."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest
import safetensors.torch
import torch

from catwise.errors import CategoryError, CheckpointError, FeatureError, HeadError, ShapeError
from catwise.heads import Head, load_head, save_head

if TYPE_CHECKING:
    from pathlib import Path


def make(dtype: torch.dtype = torch.float32, *, bias: bool = True, seed: int = 0) -> Head:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 6, generator=generator).to(dtype)
    return Head(
        weight,
        torch.randn(4, generator=generator).to(dtype) if bias else None,
        categories=["ant", "bee", "cat", "dog"],
        fitted_on=np.array([2**64 - 1, 5, 5], dtype=np.uint64),
        provenance={"preset": "paper"},
    )


def features(n: int = 11) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 6)).astype(np.float32)


def test_inputs_are_copied() -> None:
    """Changing the array that a head was made of does not change the head."""
    weight = np.ones((2, 3), dtype=np.float32)
    head = Head(weight)
    weight[0, 0] = 9
    assert float(head.weight[0, 0]) == 1.0


def test_is_immutable() -> None:
    """Attributes can be neither set nor deleted."""
    head = make()
    with pytest.raises(AttributeError, match="immutable"):
        head.bias = None
    with pytest.raises(AttributeError, match="immutable"):
        del head.bias
    with pytest.raises(ValueError, match="read-only"):
        head.fitted_on[0] = 1  # type: ignore[index]
    head.provenance["preset"] = "x"
    assert head.provenance == {"preset": "paper"}


def test_default_categories() -> None:
    """Categories are numbered when they have no names."""
    assert Head(np.ones((3, 2))).categories == ("0", "1", "2")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    """Weight and bias keep the dtype that they came in."""
    head = make(dtype)
    assert head.weight.dtype == dtype == head.dtype
    assert head.bias is not None
    assert head.bias.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_logits_equal_the_plain_product(dtype: torch.dtype) -> None:
    """Half precision widens to float32, float64 stays; the block size changes nothing."""
    head = make(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert head.bias is not None
    plain = torch.from_numpy(features()).to(wide) @ head.weight.to(wide).T + head.bias.to(wide)
    assert head.logits(features()).dtype == wide
    torch.testing.assert_close(head.logits(features()), plain)
    torch.testing.assert_close(head.logits(features(), block_rows=3), plain)


def test_no_bias_is_no_bias() -> None:
    """A head without a bias scores by the product alone."""
    head = make(bias=False)
    assert head.bias is None
    expected = torch.from_numpy(features()) @ head.weight.T
    torch.testing.assert_close(head.logits(features()), expected)


def test_features_of_many_kinds(tmp_path: Path) -> None:
    """Arrays, mapped files, tensors, lists and big-endian numbers give the same logits."""
    head = make()
    half = features().astype(np.float16)
    expected = head.logits(half.astype(np.float32))
    np.save(tmp_path / "a.npy", half)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    kinds = [half, mapped, torch.from_numpy(half), half.tolist(), half.astype(">f4"), half[::-1]]
    for values in kinds[:-1]:
        assert torch.equal(head.logits(values), expected)
    assert torch.equal(head.logits(kinds[-1]), expected.flip(0))
    assert head.logits(half[:0]).shape == (0, 4)


def test_features_that_do_not_fit() -> None:
    """A wrong number of columns or axes, or no numbers, each has its own error."""
    head = make()
    with pytest.raises(ShapeError, match="6 columns"):
        head.logits(np.ones((2, 5), dtype=np.float32))
    with pytest.raises(FeatureError, match="shape \\(6,\\)"):
        head.logits(np.ones(6))
    for bad in (np.ones((2, 6), dtype=bool), np.ones((2, 6), dtype=complex)):
        with pytest.raises(FeatureError, match="real numbers"):
            head.logits(bad)
        with pytest.raises(FeatureError, match="real numbers"):
            head.logits(torch.from_numpy(bad))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float) -> None:
    """NaN and infinity in weight or bias are refused with the row."""
    with pytest.raises(HeadError, match="first in row 1"):
        Head([[1.0], [value]])
    with pytest.raises(HeadError, match="bias must be finite"):
        Head([[1.0]], [value])


def test_wrong_parts() -> None:
    """Shapes, dtypes and names are checked when the head is built."""
    with pytest.raises(ShapeError, match="one row for each category"):
        Head([1.0, 2.0])
    with pytest.raises(ShapeError, match="one row for each category"):
        Head(np.ones((0, 2)))
    with pytest.raises(ShapeError, match="one value for each category"):
        Head([[1.0], [2.0]], [1.0])
    with pytest.raises(HeadError, match="quantised"):
        Head(np.ones((2, 2), dtype=np.int8))
    with pytest.raises(HeadError, match="must be numbers"):
        Head([["a"]])
    with pytest.raises(ShapeError, match="3 names"):
        Head([[1.0], [2.0]], categories=["a", "b", "c"])
    with pytest.raises(CategoryError, match="'a'"):
        Head([[1.0], [2.0]], categories=["a", "a"])
    with pytest.raises(CategoryError, match="several names"):
        Head([[1.0], [2.0]], categories="ab")
    with pytest.raises(HeadError, match="JSON-ready"):
        Head([[1.0]], provenance={"a": object()})
    with pytest.raises(HeadError, match="row digests"):
        Head([[1.0]], fitted_on=[0.5])


def test_take_categories() -> None:
    """Names and positions choose rows, in the order given."""
    head = make()
    some = head.take_categories(["dog", "ant"])
    assert some.categories == ("dog", "ant")
    assert torch.equal(some.weight, head.weight[[3, 0]])
    assert torch.equal(head.take_categories([-1, 0]).logits(features()), some.logits(features()))
    with pytest.raises(CategoryError, match="did you mean 'dog'"):
        head.take_categories(["dogs"])
    with pytest.raises(CategoryError, match="position 4"):
        head.take_categories([4])
    with pytest.raises(CategoryError, match="twice"):
        head.take_categories([0, 0])


def test_replace_keeps_the_rest() -> None:
    """Only what is given changes; None takes the bias away."""
    head = make()
    other = head.replace(bias=None)
    assert other.bias is None
    assert head.bias is not None
    assert other.categories == head.categories
    assert other.provenance == head.provenance
    assert torch.equal(other.weight, head.weight)
    assert head.to("cpu").digest == head.digest


def test_fitted_on_grows() -> None:
    """Digests are sorted, different, and add up."""
    head = make()
    assert head.fitted_on is not None
    assert head.fitted_on.tolist() == [5, 2**64 - 1]
    more = head.with_fitted_on(np.array([7, 5], dtype=np.uint64))
    assert more.fitted_on is not None
    assert more.fitted_on.tolist() == [5, 7, 2**64 - 1]
    assert head.with_fitted_on(None) is head
    fresh = Head([[1.0]])
    assert fresh.fitted_on is None
    assert fresh.with_fitted_on([]).fitted_on is not None


def test_digest() -> None:
    """The digest follows weight, bias and names, not history."""
    head = make()
    assert head.digest == make().digest == head.with_fitted_on([1]).digest
    others = [
        head.replace(bias=None),
        head.replace(categories=list("abcd")),
        head.replace(weight=head.weight * 2),
        make(torch.float64),
    ]
    assert len({head.digest, *(other.digest for other in others)}) == 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_saved_head_is_equal(tmp_path: Path, dtype: torch.dtype, bias: bool) -> None:
    """What is saved comes back bit for bit, with names, digests and provenance."""
    head = make(dtype, bias=bias)
    save_head(head, tmp_path / "h.safetensors")
    back = load_head(tmp_path / "h.safetensors")
    assert back.digest == head.digest
    assert back.provenance == head.provenance
    assert back.fitted_on is not None
    assert np.array_equal(back.fitted_on, head.fitted_on)
    others = safetensors.torch.load_file(tmp_path / "h.safetensors")
    assert torch.equal(others["weight"], head.weight)


def test_saved_head_without_history(tmp_path: Path) -> None:
    """Unknown history stays unknown; known to be empty stays empty."""
    save_head(Head([[1.0]]), tmp_path / "a")
    assert load_head(tmp_path / "a").fitted_on is None
    save_head(Head([[1.0]], fitted_on=[]), tmp_path / "a")
    back = load_head(tmp_path / "a").fitted_on
    assert back is not None
    assert len(back) == 0


def test_copies() -> None:
    """A head can be copied and sent to another process."""
    head = make()
    assert copy.deepcopy(head).digest == head.digest
    assert pickle.loads(pickle.dumps(head)).digest == head.digest  # noqa: S301


def test_files_that_are_no_head(tmp_path: Path) -> None:
    """Missing, empty, cut, foreign and newer files each have a reason."""
    path = tmp_path / "h"
    with pytest.raises(CheckpointError, match="No such file"):
        load_head(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="empty"):
        load_head(path)
    save_head(make(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="cut short"):
        load_head(path)
    path.write_bytes(whole.replace(b'"catwise_head":"1"', b'"catwise_head":"7"'))
    with pytest.raises(CheckpointError, match="format 7"):
        load_head(path)
    safetensors.torch.save_file({"fc.weight": torch.ones(2, 2)}, path)
    with pytest.raises(CheckpointError, match="read_head"):
        load_head(path)
