"""What every metric does to its inputs before it computes anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catwise._arrays import dense
from catwise.errors import ConfigError, FeatureError, ShapeError
from catwise.labels import PartialLabels
from catwise.labels.reading import array_codes

#: What the kernels and the public functions read as an array.
Array: TypeAlias = Tensor | NDArray[Any]

POSITIVE = 1
NEGATIVE = 0
#: Entries of one block of categories: 32 MiB as float64.
BLOCK_ENTRIES = 1 << 22


def as_tensor(array: Array | float, name: str = "scores, codes and weights") -> Tensor:
    """A tensor that shares the memory of `array` where torch can; else FeatureError."""
    values = dense(array, name=name, error=FeatureError)
    tensor = isinstance(values, Tensor)
    if values.is_complex() if tensor else values.dtype.kind not in "fiub":
        raise FeatureError(f"{name} must be real numbers.", found=f"dtype {values.dtype}")
    if isinstance(values, Tensor):
        tiny = values.is_floating_point() and values.dtype.itemsize == 1
        return values.float() if tiny else values  # few operations know float8
    if values.dtype.itemsize > 8:
        values = values.astype(np.float64)
    elif not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    if not values.flags.writeable or any(stride < 0 for stride in values.strides):
        values = values.copy()
    return torch.from_numpy(values)


class Entries(NamedTuple):
    """Scores, and the weight of each entry as a positive and as a negative."""

    score: Tensor  # (..., M), without the dimensions that only weights have; blank if unknown
    positive: Tensor  # (..., M) float64
    negative: Tensor  # (..., M) float64
    n_positive: Tensor  # (...,) float64
    n_negative: Tensor  # (...,) float64
    undefined: Tensor  # (...,) bool: a class is missing, or a counted score is NaN


def entries(scores: Array, codes: Array, weight: Array | None, *, fill: float = 0.0) -> Entries:
    """Scores, codes and weights of one shape, with what does not count blanked out."""
    score, code = as_tensor(scores), as_tensor(codes)
    weights = torch.ones((), dtype=torch.float64) if weight is None else as_tensor(weight).double()
    try:
        shape = np.broadcast_shapes(score.shape, code.shape, weights.shape)
    except ValueError as error:
        raise ShapeError(
            "scores, codes and weights do not broadcast",
            found=f"scores {tuple(score.shape)}, codes {tuple(code.shape)}, "
            f"weights {tuple(weights.shape)}",
            expected="(..., M) each, equal or 1 in every dimension",
        ) from error
    if not score.is_floating_point():
        score = score.to(torch.float64)
    code, weights = code.to(score.device), weights.to(score.device).expand(shape)
    positive, negative = weights * (code == POSITIVE), weights * (code == NEGATIVE)
    n_positive, n_negative = positive.sum(-1), negative.sum(-1)
    counted = (code == POSITIVE) | (code == NEGATIVE)
    score = torch.where(counted, score, fill)
    undefined = (n_positive <= 0) | (n_negative <= 0) | score.isnan().any(-1)
    return Entries(score, positive, negative, n_positive, n_negative, undefined)


def in_order(values: Tensor, order: Tensor) -> Tensor:
    """`values` (..., M) taken along the last dimension by `order` (M,) or (..., M)."""
    if order.ndim == 1:
        return values.index_select(-1, order)
    return torch.take_along_dim(values, order, -1)


def where_defined(value: Tensor, given: Entries) -> Tensor:
    """`value` with NaN where the metric is not defined."""
    return value.masked_fill(given.undefined, float("nan"))


def where_known(value: Tensor, given: Entries) -> Tensor:
    """`value` with NaN where no label is known, for metrics that need no two classes."""
    blank = (given.n_positive + given.n_negative <= 0) | given.score.isnan().any(-1)
    return value.masked_fill(blank, float("nan"))


def option_values(value: float | Array | None, name: str, n_categories: int) -> Any:
    """An option of a metric as a number, a (C,) float64 tensor, or None; else ShapeError."""
    if value is None or isinstance(value, (int, float)):
        return value
    tensor = as_tensor(value, name).double()
    if tensor.ndim == 0:
        return float(tensor)
    if tuple(tensor.shape) != (n_categories,):
        raise ShapeError(
            f"{name} does not fit the categories.",
            found=f"shape {tuple(tensor.shape)}",
            expected=f"a number, or one for each of the {n_categories:,} categories",
        )
    return tensor


def option_at(value: Any, c: int) -> float | None:
    """An option of category number c."""
    return value if value is None or isinstance(value, (float, int)) else float(value[c])


def checked_prevalence(prevalence: float | Array | None, device: torch.device) -> Tensor | None:
    """The stated prevalence as a float64 tensor; ConfigError if it is not inside (0, 1)."""
    if prevalence is None:
        return None
    share = as_tensor(prevalence, "the prevalence").to(device, torch.float64)
    if not bool(((share > 0) & (share < 1)).all()):
        raise ConfigError(
            "the prevalence is a share of positives",
            found=f"prevalence={prevalence}",
            expected="inside (0, 1)",
        )
    return share


def restated(
    true: Any, false: Any, n_positive: Any, n_negative: Any, share: Any
) -> tuple[Any, Any]:
    """Weights of true and false positives at a stated prevalence: ``π TPR`` and ``(1 − π) FPR``."""
    return share * true / n_positive, (1.0 - share) * false / n_negative


def coerced_codes(labels: PartialLabels | Array) -> NDArray[np.int8]:
    """(N, C) int8 codes of labels; LabelError or ShapeError if an array holds none."""
    return labels.codes if isinstance(labels, PartialLabels) else array_codes(labels)


def checked_labels(labels: PartialLabels | Array) -> PartialLabels | NDArray[np.int8]:
    """`PartialLabels` as they are; an array as its checked (N, C) int8 codes."""
    return labels if isinstance(labels, PartialLabels) else coerced_codes(labels)


def label_shape(labels: PartialLabels | Array) -> tuple[int, int]:
    """(N, C) of labels, without making their codes dense."""
    n, c = checked_labels(labels).shape
    return n, c


def checked_logits(logits: Array, shape: tuple[int, int]) -> Tensor:
    """(N, C) logits that fit the labels and are finite; else ShapeError or FeatureError.

    Infinite ones come of probabilities of 0 and 1, whose order is lost, or of an overflow.
    """
    score = as_tensor(logits, "logits")
    if tuple(score.shape) != shape:
        turned = tuple(score.shape) == shape[::-1]
        raise ShapeError(
            "logits and labels do not fit together",
            found=f"logits {tuple(score.shape)}, labels {shape}",
            expected="(N, C) both: one row per image, one column per category",
            remedy="logits.T" if turned else None,
        )
    if not score.is_floating_point():
        score = score.to(torch.float64)
    for bad, what in ((score.isnan(), "NaN"), (score.isinf(), "infinite values")):
        if bool(bad.any()):
            row, column = (int(i) for i in bad.nonzero()[0])
            raise FeatureError(
                f"logits hold {what}",
                found=f"{int(bad.sum()):,} {what}, first at row {row}, column {column}",
                expected="a finite number for every image and category",
                remedy="take the model's logits as they are, before a sigmoid: those of "
                "probabilities of 0 and 1 are infinite"
                if what != "NaN"
                else None,
            )
    return score


def check_head_logits(logits: Tensor, categories: Sequence[str], *, name: str) -> Tensor:
    """(N, C) logits that a head gave for the rows `name`; FeatureError if they overflowed."""
    bad = ~logits.isfinite()
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        raise FeatureError(
            f"{name}: the head gives logits that {str(logits.dtype)[6:]} cannot hold.",
            found=f"{float(logits[row, column])} in row {row:,}, {categories[column]!r}",
            remedy="check that head and features are of one model",
        )
    return logits


def category_blocks(
    logits: Tensor, labels: PartialLabels | Array
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Category-major blocks: (categories, scores (B, M), codes (B, M)) on the logits' device.

    Labels stored as columns give one category at a time with its known rows only; dense ones
    give as many categories as fit a block.
    """
    n, c = label_shape(labels)
    if isinstance(labels, PartialLabels) and labels.storage == "columns":
        for j in range(c):
            rows, positive = labels.known(j)
            codes = torch.from_numpy(np.asarray(positive, dtype=np.int8)).to(logits.device)
            index = torch.from_numpy(np.array(rows, dtype=np.int64)).to(logits.device)
            yield slice(j, j + 1), logits[index, j][None], codes[None]
        return
    dense = coerced_codes(labels)
    width = max(1, BLOCK_ENTRIES // max(n, 1))
    for start in range(0, c, width):
        block = slice(start, min(start + width, c))
        code = as_tensor(dense[:, block].T).contiguous().to(logits.device)
        yield block, logits[:, block].T.contiguous(), code


class KnownScores(NamedTuple):
    """The known rows of one category."""

    rows: NDArray[np.int64]  # (n,) positions
    scores: NDArray[Any]  # (n,) float32 or float64 logits
    positive: NDArray[np.bool_]  # (n,)

    def above(self, threshold: float) -> NDArray[Any]:
        """By how much each score is above a threshold; 0 where it just reaches it."""
        return self.scores if threshold == 0.0 else self.scores.astype(np.float64) - threshold


def known_rows(
    labels: PartialLabels | NDArray[np.int8], c: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The known rows of category number c, and whether they are positive."""
    if isinstance(labels, np.ndarray):
        rows = np.flatnonzero(labels[:, c] >= 0)
        return rows, labels[rows, c] == POSITIVE
    rows, positive = labels.known(c)
    return np.array(rows, dtype=np.int64), np.asarray(positive, dtype=bool)


def known_scores(logits: Tensor, labels: PartialLabels | NDArray[np.int8], c: int) -> KnownScores:
    """The known rows of category number c: which, their logits, and whether they are positive."""
    rows, positive = known_rows(labels, c)
    column = logits[torch.from_numpy(rows).to(logits.device), c].cpu()
    if column.dtype not in {torch.float32, torch.float64}:  # numpy lacks the others
        column = column.float()
    return KnownScores(rows, column.numpy(), positive)


def known_entries(logits: Tensor, labels: PartialLabels | Array) -> tuple[Tensor, Tensor]:
    """All known entries of all categories as (K,) scores and (K,) codes, for micro means."""
    scores, codes = [], []
    for _, score, code in category_blocks(logits, labels):
        known = code >= 0
        scores.append(score[known])
        codes.append(code[known])
    if not scores:
        return logits.new_zeros(0), torch.zeros(0, dtype=torch.int8)
    return torch.cat(scores), torch.cat(codes)
