"""The last layer of a classifier: one weight vector and one bias for each category."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from catwise._arrays import as_numpy, dense
from catwise._io import write_bytes
from catwise._json import ready_text
from catwise._safetensors import build
from catwise.errors import CategoryError, HeadError, ShapeError
from catwise.features.blocks import BLOCK_ROWS, feature_shape, iterate_blocks
from catwise.features.by_category import CategoryFeatures, by_category
from catwise.labels.names import category_names, category_positions

HEAD_FORMAT: Final = "1"
FLOAT_DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SAFETENSORS_DTYPES: Final = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
_SHOWN: Final = 3
_UNSET: Final[Any] = object()


class Head:
    """A classification layer: `logits = features @ weight.T + bias`. Immutable.

    Args:
        weight: (C, D) float16, bfloat16, float32 or float64; copied, dtype and device kept. Plain
            lists of numbers become float32.
        bias: (C,) or None. A missing bias stays missing.
        categories: C different names; "0", "1", … when not given.
        fitted_on: uint64 digests of the rows that fitted or selected this head, or None when that
            is not known.
        provenance: what made this head, JSON-ready.

    Raises:
        HeadError: If weight or bias is not a finite float array, or empty.
        ShapeError: If weight, bias and categories do not fit together.
        CategoryError: If two categories have one name.

    >>> head = Head([[1.0, 0.0], [0.0, 2.0]], [0.5, 0.0], categories=["cat", "dog"])
    >>> head
    Head(n_categories=2, n_features=2, bias=True, dtype=float32)
    >>> head.logits([[1.0, 3.0]])
    tensor([[1.5000, 6.0000]])
    >>> head.take_categories(["dog"]).logits([[1.0, 3.0]])
    tensor([[6.]])
    """

    __slots__ = ("_provenance", "bias", "categories", "fitted_on", "weight")

    weight: torch.Tensor
    bias: torch.Tensor | None
    categories: tuple[str, ...]
    fitted_on: NDArray[np.uint64] | None
    _provenance: str

    def __init__(
        self,
        weight: Any,
        bias: Any = None,
        *,
        categories: Sequence[str] | None = None,
        fitted_on: Any = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        weight = _float_tensor(weight, "weight")
        if weight.ndim != 2 or 0 in weight.shape:
            raise ShapeError(
                "a head's weight must have one row for each category.",
                found=f"shape {tuple(weight.shape)}",
                expected="shape (C, D)",
            )
        if bias is not None:
            bias = _float_tensor(bias, "bias").to(weight.device)
            if bias.shape != weight.shape[:1]:
                raise ShapeError(
                    "a head's bias must have one value for each category.",
                    found=f"shape {tuple(bias.shape)} beside a weight of {tuple(weight.shape)}",
                    expected=f"shape ({weight.shape[0]},)",
                )
        said = ready_text(provenance, what="a head's provenance", error=HeadError, sort_keys=True)
        _set = object.__setattr__
        _set(self, "weight", weight)
        _set(self, "bias", bias)
        names = category_names(categories, len(weight), of="the head", each="row")
        _set(self, "categories", names)
        _set(self, "fitted_on", _digests(fitted_on))
        _set(self, "_provenance", said)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Head is immutable; use head.replace({name}=…)")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a Head is immutable")

    def __reduce__(self) -> tuple[Any, ...]:
        rest: dict[str, Any] = {"fitted_on": self.fitted_on, "provenance": self.provenance}
        return partial(Head, categories=self.categories, **rest), (self.weight, self.bias)

    def __repr__(self) -> str:
        return (
            f"Head(n_categories={self.n_categories}, n_features={self.n_features}, "
            f"bias={self.bias is not None}, dtype={str(self.dtype).removeprefix('torch.')})"
        )

    @property
    def n_categories(self) -> int:
        """C."""
        return int(self.weight.shape[0])

    @property
    def n_features(self) -> int:
        """D."""
        return int(self.weight.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weight."""
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where weight and bias are."""
        return self.weight.device

    @property
    def provenance(self) -> dict[str, Any]:
        """What made this head; a new copy each time."""
        value: dict[str, Any] = json.loads(self._provenance)
        return value

    @property
    def compute_dtype(self) -> torch.dtype:
        """float64 for a head with float64 parts, otherwise float32."""
        parts = (self.weight,) if self.bias is None else (self.weight, self.bias)
        return torch.float64 if any(p.dtype == torch.float64 for p in parts) else torch.float32

    @property
    def digest(self) -> str:
        """SHA-256 over weight, bias and categories; what it was fitted on is left out."""
        total = hashlib.sha256()
        for part in (self.weight, self.bias):
            text = "none" if part is None else f"{part.dtype} {tuple(part.shape)}"
            total.update(text.encode())
            total.update(b"" if part is None else _raw(part))
        total.update(json.dumps(self.categories, ensure_ascii=True).encode())
        return total.hexdigest()

    def logits(self, features: Any, *, block_rows: int = BLOCK_ROWS) -> torch.Tensor:
        """Score features, block by block: (N, C) float32, or float64 for a float64 head.

        A half-precision head is scored as stored: its numbers widen exactly to float32, in which
        the products are taken. The logits are unbounded, and on the head's device.

        Args:
            features: (N, D) numpy array or memmap, torch tensor, `Features` or feature store; or
                (N, C, D), a vector for each category (`CategoryFeatures`).
            block_rows: rows at a time.

        Raises:
            ShapeError: If the features have not D columns.
            FeatureError: If they are not an (N, D) array of real numbers.
        """
        if (own := by_category(features)) is not None:
            return self._logits_by_category(own)
        n_rows, n_features = feature_shape(features)
        if n_features != self.n_features:
            raise ShapeError(
                "features do not fit the head.",
                found=f"features with {n_features:,} columns",
                expected=f"{self.n_features:,} columns, as the head's weight has",
                remedy="use the features that feed this head: the output of the layer before it",
            )
        dtype = self.compute_dtype
        weight = self.weight.to(dtype).T
        bias = None if self.bias is None else self.bias.to(dtype)
        out = torch.empty((n_rows, self.n_categories), dtype=dtype, device=self.device)
        with torch.no_grad():
            for start, rows in iterate_blocks(features, block_rows=block_rows, dtype=dtype):
                part = out[start : start + len(rows)]
                torch.mm(rows.to(self.device), weight, out=part)
                if bias is not None:
                    part += bias
        return out

    def _logits_by_category(self, features: CategoryFeatures) -> torch.Tensor:
        """(N, C) logits of features in which every category takes a vector of its own."""
        n_rows, dtype = len(features), self.compute_dtype
        if features.n_features != self.n_features:
            raise ShapeError(
                "features do not fit the head.",
                found=f"vectors of {features.n_features:,} numbers",
                expected=f"{self.n_features:,}, as the head's weight has",
            )
        groups = torch.from_numpy(features.groups_of(self.n_categories)).to(self.device)
        weight = self.weight.to(dtype)
        out = torch.empty((n_rows, self.n_categories), dtype=dtype, device=self.device)
        plain = len(groups) == features.n_groups and bool((groups.diff() == 1).all())
        with torch.no_grad():
            for start, rows in iterate_blocks(features, dtype=dtype):
                vectors = rows.to(self.device).view(len(rows), features.n_groups, self.n_features)
                part = out[start : start + len(rows)]
                if plain:
                    part.copy_(torch.einsum("nkd,kd->nk", vectors, weight))
                else:
                    for group in sorted(set(groups.tolist())):
                        at = (groups == group).nonzero().flatten()
                        part[:, at] = vectors[:, group] @ weight[at].T
                if self.bias is not None:
                    part += self.bias.to(dtype)
        return out

    def take_categories(self, which: Iterable[str] | Iterable[int]) -> Head:
        """Return a head with some of the categories, by name or position, in the order given.

        CategoryError if one is not there, or is given twice.
        """
        size = self.n_categories
        wanted = (i + size if not isinstance(i, str) and -size <= i < 0 else i for i in which)
        index = category_positions(self.categories, wanted, of="the head has").tolist()
        if len(set(index)) != len(index):
            raise CategoryError("a category is given twice.", found=str(index))
        bias = None if self.bias is None else self.bias[index]
        names = [self.categories[i] for i in index]
        return self.replace(weight=self.weight[index], bias=bias, categories=names)

    def drop_categories(self, which: Iterable[str] | Iterable[int]) -> Head:
        """Return a head without some of the categories, the others in their order.

        Args:
            which: names or positions, each once.

        Raises:
            CategoryError: If one is not there, or is given twice.
            ShapeError: If none would be left.

        >>> Head([[1.0], [2.0]], categories=["cat", "dog"]).drop_categories(["cat"]).categories
        ('dog',)
        """
        dropped = set(self.take_categories(which).categories)
        return self.take_categories([name for name in self.categories if name not in dropped])

    def join(self, *others: Head) -> Head:
        """Return a head with the rows of further heads below these.

        They must be heads over one backbone, so that all take the same features: of that only the
        number of columns can be checked here. Numbers do not change; where dtypes differ, all rows
        take the wider one. A category that has the same row in several heads is taken once.

        Args:
            others: heads of other categories.

        Returns:
            The rows of all, on this head's device, fitted by all rows that fitted one of them.

        Raises:
            CategoryError: If two have different rows for a category of one name.
            ShapeError: If they take different numbers of features.
            HeadError: If some have a bias and others none.

        >>> cat, dog = Head([[1.0]], categories=["cat"]), Head([[2.0]], categories=["dog"])
        >>> cat.join(dog).categories
        ('cat', 'dog')
        """
        return _joined([self, *others])

    def to_linear(self) -> torch.nn.Linear:
        """Return a layer with a copy of these numbers, in their dtype, where they are.

        >>> Head([[2.0]], [1.0]).to_linear()(torch.tensor([[3.0]])).tolist()
        [[7.0]]
        """
        shape, has_bias = (self.n_features, self.n_categories), self.bias is not None
        layer = torch.nn.Linear(*shape, bias=has_bias, device=self.device, dtype=self.dtype)
        with torch.no_grad():
            layer.weight.copy_(self.weight)
            if self.bias is not None:
                layer.bias.copy_(self.bias)
        return layer

    def to(self, device: str | torch.device) -> Head:
        """Return this head on another device."""
        bias = None if self.bias is None else self.bias.to(device)
        return self.replace(weight=self.weight.to(device), bias=bias)

    def replace(
        self,
        *,
        weight: Any = _UNSET,
        bias: Any = _UNSET,
        categories: Sequence[str] | None = _UNSET,
        fitted_on: Any = _UNSET,
        provenance: Mapping[str, Any] | None = _UNSET,
    ) -> Head:
        """Return a head in which what is given takes the place of what was there.

        >>> Head([[1.0]]).replace(bias=[2.0]).logits([[1.0]])
        tensor([[3.]])
        """
        return Head(
            self.weight if weight is _UNSET else weight,
            self.bias if bias is _UNSET else bias,
            categories=self.categories if categories is _UNSET else categories,
            fitted_on=self.fitted_on if fitted_on is _UNSET else fitted_on,
            provenance=self.provenance if provenance is _UNSET else provenance,
        )

    def with_fitted_on(self, digests: Any) -> Head:
        """Return this head, remembering uint64 digests of further rows that fitted or chose it."""
        new = _digests(digests)
        if new is None:
            return self
        if (old := self.fitted_on) is None:
            return self.replace(fitted_on=new)
        both, provenance = np.union1d(old, new), self.provenance
        if (lacking := provenance.get("fitted_rows", 0) - old.size) > 0:  # a record had no room
            provenance["fitted_rows"] = int(both.size + lacking)
        return self.replace(fitted_on=both, provenance=provenance)


def _joined(parts: Sequence[Head]) -> Head:
    """One head with the rows of several, one below the other."""
    if len({part.n_features for part in parts}) > 1:
        raise ShapeError(
            "heads that are joined must take the same features.",
            found=f"heads of {', '.join(f'{part.n_features:,}' for part in parts)} features",
            expected="heads over one backbone, with as many features each",
        )
    if len({part.bias is None for part in parts}) > 1:
        raise HeadError(
            "some of the heads that are joined have a bias, and others none.",
            found="; ".join(map(repr, parts)),
            expected="a bias in all or in none",
            remedy="head.replace(bias=torch.zeros(…)) says that a bias shall be zero",
        )
    rows = _different_rows(parts)
    lacking = [
        max(0, part.provenance.get("fitted_rows", 0) - part.fitted_on.size)
        for part in parts
        if part.fitted_on is not None
    ]
    joined = [{"rows": len(own), **part.provenance} for part, own in zip(parts, rows, strict=True)]
    said: dict[str, Any] = {"joined": joined}
    digests = [part.fitted_on for part in parts if part.fitted_on is not None]
    fitted_on = np.unique(np.concatenate(digests)) if digests else None
    if fitted_on is not None and sum(lacking):  # a record had no room for all of them
        said["fitted_rows"] = int(fitted_on.size + sum(lacking))
    device = parts[0].device
    taken = list(zip(parts, rows, strict=True))
    biases = [one.bias[own].to(device) for one, own in taken if one.bias is not None]
    return Head(
        torch.cat([one.weight[own].to(device) for one, own in taken]),
        torch.cat(biases) if biases else None,
        categories=[one.categories[i] for one, own in taken for i in own],
        fitted_on=fitted_on,
        provenance=said,
    )


def _different_rows(parts: Sequence[Head]) -> list[list[int]]:
    """The rows of each head that none before it has; CategoryError where two rows differ."""
    seen: dict[str, tuple[Head, int]] = {}
    rows: list[list[int]] = []
    clashing = []
    for part in parts:
        rows.append([])
        for i, name in enumerate(part.categories):
            if name not in seen:
                seen[name] = part, i
                rows[-1].append(i)
            elif not _is_same_row((part, i), seen[name]):
                clashing.append(name)
    if clashing:
        raise CategoryError(
            f"{len(clashing):,} categories have different rows in the heads that are joined.",
            found=", ".join(map(repr, clashing[:_SHOWN])),
            expected="heads of different categories",
            remedy="leave them out of all but one with head.drop_categories([…]) (catwise join "
            "--head ONE --drop NAME --out FILE), or rename them with head.replace(categories=[…]) "
            "(catwise join --head ONE --head-categories NAMES --out FILE)",
        )
    return rows


def _is_same_row(first: tuple[Head, int], second: tuple[Head, int]) -> bool:
    """Whether two rows hold the same numbers."""
    (a, i), (b, j) = first, second
    same = torch.equal(a.weight[i].double().cpu(), b.weight[j].double().cpu())
    if a.bias is None or b.bias is None:
        return same
    return same and float(a.bias[i]) == float(b.bias[j])


def _float_tensor(values: Any, name: str) -> torch.Tensor:
    """A detached, contiguous copy with finite values."""
    name = f"a head's {name}"
    given = dense(values, name=name, error=HeadError)
    if isinstance(given, torch.Tensor):
        tensor = given.clone(memory_format=torch.contiguous_format)
    elif given.dtype.kind not in "fiub":
        raise HeadError(f"{name} must be numbers.", found=f"dtype {given.dtype}")
    elif isinstance(values, (list, tuple)):
        tensor = torch.tensor(given, dtype=torch.float32)
    else:
        tensor = torch.from_numpy(np.array(given, dtype=given.dtype.newbyteorder("="), order="C"))
    if tensor.dtype not in FLOAT_DTYPES:
        raise HeadError(
            f"{name} must be floating-point numbers.",
            found=f"dtype {tensor.dtype}",
            expected="float16, bfloat16, float32 or float64",
            remedy="use the checkpoint from before it was quantised",
        )
    _check_finite(tensor, name)
    return tensor


def _check_finite(tensor: torch.Tensor, name: str) -> None:
    finite = torch.isfinite(tensor)
    if bool(finite.all()):
        return
    rows = finite.reshape(len(tensor), -1).all(1).logical_not().nonzero().flatten()
    raise HeadError(
        f"{name} must be finite.",
        found=f"{int((~finite).sum()):,} NaN or infinite values; first in row {int(rows[0])}",
        remedy="this checkpoint is damaged or its training diverged: use another one",
    )


def _digests(values: Any) -> NDArray[np.uint64] | None:
    """Sorted, different, read-only uint64 values."""
    if values is None:
        return None
    array = as_numpy(values, name="fitted_on", error=HeadError)
    if array.size and (array.dtype.kind not in "ui" or array.ndim != 1):
        raise HeadError(
            "fitted_on must be row digests.",
            found=f"shape {array.shape}, dtype {array.dtype}",
            expected="shape (N,), dtype uint64",
        )
    result = np.unique(array.reshape(-1).astype(np.uint64))
    result.flags.writeable = False
    return result


def _raw(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes, row-major, little-endian."""
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return flat.numpy().tobytes()


def head_bytes(head: Head) -> bytes:
    """Return the file that :func:`save_head` writes; equal heads give equal bytes."""
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for name, part in (("weight", head.weight), ("bias", head.bias)):
        if part is not None:
            dtype = SAFETENSORS_DTYPES[part.dtype]
            tensors[name] = (dtype, tuple(part.shape), _raw(part))
    if head.fitted_on is not None:
        digests = head.fitted_on.astype("<u8").tobytes()
        tensors["fitted_on"] = ("I64", head.fitted_on.shape, digests)
    metadata = {
        "catwise_head": HEAD_FORMAT,
        "categories": json.dumps(head.categories, ensure_ascii=False),
        "provenance": json.dumps(head.provenance, sort_keys=True, ensure_ascii=False),
    }
    return build(tensors, metadata)


def save_head(head: Head, path: str | os.PathLike[str]) -> None:
    """Write a head as safetensors: tensors `weight`, `bias`, `fitted_on`; names in the metadata.

    The 64-bit row digests are stored as int64 with the same bits, which every reader knows. Equal
    heads give equal bytes. A file of that name is replaced; OutputError if it cannot be written.

    >>> import tempfile
    >>> from catwise.heads import load_head
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_head(Head([[1.0]], categories=["cat"]), f"{folder}/head.safetensors")
    ...     load_head(f"{folder}/head.safetensors").categories
    ('cat',)
    """
    write_bytes(path, head_bytes(head))
