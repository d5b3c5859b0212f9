"""What `tune` and `select` give back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from catwise._io import write_bytes
from catwise._json import TEXTS, Field, own, read_fields
from catwise._reported import Reported, reporting
from catwise._safetensors import build, read_arrays, read_layout
from catwise.errors import FeatureStoreError, HeadError
from catwise.heads import Head
from catwise.metrics import PairedComparison
from catwise.tuning.account.documents import Account
from catwise.tuning.account.shared import Shared

FOLDS_FORMAT: Final = "1"


@dataclass(frozen=True, eq=False, repr=False)
class FoldArtifacts:
    """What cross-fitting leaves for calibration and thresholds to use.

    Attributes:
        fold: (n,) int8 fold of each cross-fitted row.
        logits: (n, C) float32, of the head that was fitted without the row's fold; the
            original head's where a category is kept.
        weight: (F, C, D) float32 of the heads fitted without each fold.
        bias: (F, C) float32, or None for a head without one.
        categories: C names.
        ids: (n,) ids of these rows, or None.
        version: of this layout.
    """

    fold: NDArray[np.int8]
    logits: NDArray[np.float32]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    categories: tuple[str, ...]
    ids: NDArray[np.str_] | None = None
    version: str = FOLDS_FORMAT

    @property
    def heads(self) -> list[Head]:
        """F heads, one fitted without each fold."""
        biases = [None] * len(self.weight) if self.bias is None else list(self.bias)
        return [
            Head(weight, bias, categories=self.categories)
            for weight, bias in zip(self.weight, biases, strict=True)
        ]

    def updated(self, others: Iterable[tuple[NDArray[np.int64], FoldArtifacts]]) -> FoldArtifacts:
        """With the (K,) categories of other artifacts of the same rows in place of its own."""
        logits, weight = self.logits.copy(), self.weight.copy()
        bias = None if self.bias is None else self.bias.copy()
        for at, other in others:
            logits[:, at], weight[:, at] = other.logits, other.weight
            if bias is not None and other.bias is not None:
                bias[:, at] = other.bias
        return replace(self, logits=logits, weight=weight, bias=bias)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as safetensors: tensors `fold`, `logits`, `weight`, `bias`; names in metadata."""
        arrays: dict[str, tuple[str, tuple[int, ...], bytes]] = {
            "fold": ("I8", self.fold.shape, self.fold.tobytes()),
            "logits": ("F32", self.logits.shape, _little(self.logits)),
            "weight": ("F32", self.weight.shape, _little(self.weight)),
        }
        if self.bias is not None:
            arrays["bias"] = ("F32", self.bias.shape, _little(self.bias))
        metadata = {
            "catwise_folds": self.version,
            "categories": json.dumps(self.categories, ensure_ascii=False),
            "ids": json.dumps(None if self.ids is None else self.ids.tolist(), ensure_ascii=False),
        }
        write_bytes(path, build(arrays, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FoldArtifacts:
        """Read what `save` wrote.

        Raises:
            FeatureStoreError: If the file is not there, damaged, or no such file.
        """
        path = Path(path)
        try:
            layout = read_layout(path)
            metadata = layout.metadata
            version = metadata.get("catwise_folds")
            fields = {name: own(metadata[name]) for name in _FIELDS if name in metadata}
            arrays = read_arrays(path, layout)
            if version == FOLDS_FORMAT:
                read_fields(fields, _FIELDS, "its metadata")
                _check_folds(arrays, len(fields["categories"]), fields["ids"])
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise FeatureStoreError(
                f"cannot read folds from '{path}'.",
                found=reason,
                expected="the whole file, as `catwise tune` wrote it",
                remedy="copy it again, or tune again",
            ) from error
        if version != FOLDS_FORMAT:
            raise FeatureStoreError(
                f"'{path}' holds no folds that this version reads.",
                found=f"version {version}",
                expected=f"version {FOLDS_FORMAT}, as `catwise tune` writes it",
            )
        return cls(
            arrays["fold"],
            arrays["logits"],
            arrays["weight"],
            arrays.get("bias"),
            tuple(fields["categories"]),
            None if fields["ids"] is None else np.array(fields["ids"], dtype=str),
        )


_FIELDS: Final = {
    "categories": TEXTS,
    "ids": Field("null or a list of texts", lambda v: v is None or TEXTS.test(v)),
}


def _check_folds(
    arrays: Mapping[str, NDArray[Any]], n_categories: int, ids: list[str] | None
) -> None:
    """Refuse tensors that do not fit one another, with the reason as ValueError."""
    shapes = {name: (array.dtype.str, *array.shape) for name, array in arrays.items()}
    n_rows = shapes.get("fold", ("", 0))[-1]
    n_folds, _, n_features = (*shapes.get("weight", ())[1:], 0, 0, 0)[:3]
    expected: dict[str, tuple[Any, ...]] = {
        "fold": ("|i1", n_rows),
        "logits": ("<f4", n_rows, n_categories),
        "weight": ("<f4", n_folds, n_categories, n_features),
    }
    if "bias" in arrays:
        expected["bias"] = ("<f4", n_folds, n_categories)
    wrong = [name for name, shape in expected.items() if shapes.get(name) != shape]
    if wrong:
        found = f"{wrong[0]!r} {shapes[wrong[0]]}" if wrong[0] in shapes else f"no {wrong[0]!r}"
        raise ValueError(f"its tensors do not fit one another: {found}, not {expected[wrong[0]]}")
    fold = arrays["fold"]
    if n_rows and not 0 <= int(fold.min()) <= int(fold.max()) < n_folds:
        raise ValueError(f"folds {fold.min()} to {fold.max()}, of {n_folds} fold heads")
    if ids is not None and len(ids) != n_rows:
        raise ValueError(f"{len(ids):,} ids for {n_rows:,} rows")


def _little(array: NDArray[np.float32]) -> bytes:
    return np.ascontiguousarray(array, dtype="<f4").tobytes()


class _Written(Reported):
    """What both kinds of results share: their account as JSON, and the folder of a run."""

    account: Account

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """One JSON-ready dict for each category; typed in `account`, listed in docs/records.md."""
        return [record.to_dict() for record in self.account.records]

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Means, counts, the choice, time, passes; JSON-ready."""
        return self.account.summary.to_dict()

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> dict[str, Path]:
        """Write the run into a folder, as `catwise tune` and `catwise select` do.

        Args:
            folder: where; it appears whole or not at all.
            overwrite: replace an earlier run there.

        Returns:
            The path of each file by its name: the head, records, summary, configuration, report.

        Raises:
            OutputError: If something else is there, or it cannot be written.
        """
        paths: dict[str, Path] = reporting("write_run")(self, folder, overwrite=overwrite)
        return paths

    def page_document(self) -> dict[str, Any]:
        """All of the run but the tensors, JSON-ready: what the page is made of."""
        document: dict[str, Any] = reporting("page_document")(self)
        return document


@dataclass(frozen=True, eq=False, repr=False)
class TuneResult(_Written):
    """A better head and a full account of it.

    Attributes:
        head: tuned; dtype, device, categories and the presence of a bias as the base's.
        base: the head that was given.
        account: records of all categories of the labels, and the summary; typed.
        config: everything that was asked for or resolved; JSON-ready.
        gap: the memorisation gap, JSON-ready, or None without validation rows.
        history: a JSON-ready dict for each candidate or step.
        folds: what cross-fitting left, or None.
        notes: what to know about it, a sentence each.
        test: both heads on the test rows, by the metric of the tuning; None without test rows.
        evaluation: that, by further metrics too, JSON-ready.
        curves: what curves are drawn from (`catwise.plots`), of test rows, or of those that
            were cross-fitted; JSON-ready, or None.
        shared: what `retune` holds; None where it cannot start from this result.
        records: those of the account, JSON-ready.
        summary: that of the account, JSON-ready.
    """

    head: Head
    base: Head
    account: Account
    config: dict[str, Any]
    gap: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    folds: FoldArtifacts | None = None
    notes: list[str] = field(default_factory=list)
    test: PairedComparison | None = None
    evaluation: dict[str, Any] | None = None
    curves: dict[str, Any] | None = None
    shared: Shared | None = None

    @classmethod
    def load(cls, folder: str | os.PathLike[str], base: Head) -> TuneResult:
        """Read the folder of a run of the preset "default", to bring it up to date.

        Args:
            folder: as `save` or `catwise tune` wrote it.
            base: the head that was given to `tune`; the folder keeps its digest alone.

        Returns:
            The result, which `retune` and `update_run` take; `test`, the comparison as an object,
            is None, its numbers are in `evaluation`.

        Raises:
            ConfigError: If the folder lacks what the categories share.
            MismatchError: If `base` is not the head that was given to `tune`.
            OutputError: If there is no run, or a file is not as it was written.
        """
        result: TuneResult = reporting("read_result")(folder, base)
        return result

    def tested_on(self, digest: str | None) -> TuneResult:
        """With the digest of the test rows that scored it."""
        shared = None if self.shared is None else replace(self.shared, test=digest)
        return replace(self, shared=shared)

    def __repr__(self) -> str:
        if self.test is not None:
            return f"TuneResult({self.test.sentence()!r})"
        found = self.account.summary
        return (
            f"TuneResult(n_replaced={found.n_replaced}, n_kept={found.n_kept}, gain={found.gain})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class SelectResult(_Written):
    """What :func:`~catwise.select` chose.

    Attributes:
        head: the rows of the chosen candidates; dtype, device and categories of the base.
        account: records of all rows of the head, and the summary; typed.
        config: what was asked for and done; JSON-ready.
        notes: what to know about it, a sentence each.
        records: those of the account, JSON-ready.
        summary: that of the account, JSON-ready.
    """

    head: Head
    account: Account
    config: dict[str, Any]
    notes: list[str]

    def __repr__(self) -> str:
        found = self.account.summary
        return (
            f"SelectResult(replaced={found.n_replaced}, kept={found.n_kept}, "
            f"skipped={found.n_skipped}, metric={found.metric!r})"
        )


def changed_head(
    base: Head, index: NDArray[np.int64], weight: torch.Tensor, bias: torch.Tensor | None
) -> Head:
    """The base with some of its rows replaced; all other rows keep their bits.

    Shapes:
        index: (K,) rows of the head.
        weight: (K, D) new weights, any float dtype.
        bias: (K,) new biases; ignored where the head has none.
    """
    rows = torch.from_numpy(index).to(base.device)
    new_weight = base.weight.clone()
    new_weight[rows] = _cast(weight, base.weight)
    if base.bias is None or bias is None:
        return base.replace(weight=new_weight)
    new_bias = base.bias.clone()
    new_bias[rows] = _cast(bias, base.bias)
    return base.replace(weight=new_weight, bias=new_bias)


def _cast(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """New numbers in the dtype and on the device of the old ones."""
    cast = values.to(like.device, like.dtype)
    if not bool(cast.isfinite().all()):
        dtype = str(like.dtype).removeprefix("torch.")
        raise HeadError(
            f"the tuned head does not fit into the head's dtype, {dtype}.",
            found=f"a number of {float(values.abs().max()):.4g}",
            expected=f"at most {torch.finfo(like.dtype).max:.4g}",
            remedy="give the head in float32",
        )
    return cast
