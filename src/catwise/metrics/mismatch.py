"""Whether a head's rows and the labels' columns belong together, seen from the scores.

The commonest mistake is that head, features and columns are not of one model. Then the head
ranks no better than chance, or row i of the head ranks column j better than row j does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from catwise.errors import MismatchError
from catwise.metrics._inputs import Array, coerced_codes, label_shape
from catwise.metrics.bootstrap import category_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from catwise.labels import PartialLabels

__all__ = ["check_match", "cross_auroc"]

#: Rows and categories that are looked at: enough to see a mix-up, in well under a second.
_ROWS: Final = 8192
_CATEGORIES: Final = 256
#: Known positives and negatives that a category needs among them.
_ENOUGH: Final = 10
#: AUROC below which a category is hardly better than chance.
_CHANCE: Final = 0.55
#: By how much another row must rank a column better than its own, and in what share of columns.
_MARGIN: Final = 0.1
_SHARE: Final = 1 / 3


def cross_auroc(logits: NDArray[np.floating], codes: NDArray[np.int8]) -> NDArray[np.float64]:
    """How well each category's logits rank each category's labels.

    Ranks are taken among all rows, so where labels are partly known this is close to, but not
    the same as, the AUROC over the known rows.

    Args:
        logits: (N, K).
        codes: (N, C) label codes.

    Returns:
        (K, C); 0.5 is chance; NaN where a class is not known.

    >>> logits = np.array([[2.0, 0.0], [1.0, 3.0], [0.0, 1.0]])
    >>> cross_auroc(logits, np.array([[1, 0], [0, 1], [0, 0]], dtype=np.int8))[0].round(3)
    array([1. , 0.5])
    """
    order = np.argsort(logits, axis=0, kind="stable")
    ranks = np.empty(logits.shape, dtype=np.float32)
    np.put_along_axis(
        ranks, order, np.arange(len(logits), dtype=np.float32)[:, None] / len(logits), axis=0
    )
    positive, negative = codes == 1, codes == 0
    with np.errstate(invalid="ignore", divide="ignore"):
        above = (ranks.T @ positive.astype(np.float32)) / positive.sum(axis=0)
        below = (ranks.T @ negative.astype(np.float32)) / negative.sum(axis=0)
    return np.asarray(0.5 + (above - below), dtype=np.float64)


def check_match(
    logits: Array,
    labels: PartialLabels | Array,
    *,
    name: str = "data",
    categories: Sequence[str] | None = None,
    force: bool = False,
) -> list[str]:
    """Stop where head, features and labels look as if they did not belong together.

    That is so when most categories have an AUROC under 0.55, or when in over a third of them
    the logits of another category rank the labels better, by 0.1 and more. Looked at are up to
    8,192 rows and 256 categories with at least 10 known positives and negatives among them; with
    fewer than three such categories nothing is said.

    Args:
        logits: (N, C) of the head as it was given.
        labels: (N, C).
        name: what to call this source in the error.
        categories: C names for the error; by default the labels'.
        force: go on, and return what was seen as notes.

    Raises:
        MismatchError: If they look mismatched.
    """
    n_rows, _ = label_shape(labels)
    rows = np.unique(np.linspace(0, max(n_rows - 1, 0), min(n_rows, _ROWS)).astype(np.int64))
    codes = _codes_of(labels, rows)
    counts = np.minimum((codes == 1).sum(axis=0), (codes == 0).sum(axis=0))
    columns = np.sort(np.argsort(-counts, kind="stable")[:_CATEGORIES])
    columns = columns[counts[columns] >= _ENOUGH]
    if columns.size < 3:
        return []
    at = torch.from_numpy(rows), torch.from_numpy(columns)
    scores = torch.as_tensor(logits).cpu()[at[0]][:, at[1]].float().numpy()
    table = cross_auroc(scores, codes[:, columns])
    names = category_names(labels) if categories is None else categories
    seen = _seen(table, [names[int(c)] for c in columns])
    if seen is None:
        return []
    if force:
        return [f"{name}: columns or features look mismatched: {seen}."]
    raise MismatchError(
        f"{name}: columns or features look mismatched.",
        found=seen,
        expected="features of the model that the head comes from, and its categories in its order",
        remedy="name the categories of head and labels so that they match by name; "
        "force=True (--force) goes on",
    )


def _seen(table: NDArray[np.float64], names: list[str]) -> str | None:
    own = np.diag(table)
    weak = int((own < _CHANCE).sum())
    others = np.where(np.eye(len(own), dtype=bool), -np.inf, table)
    better = np.flatnonzero(others.max(axis=0) > own + _MARGIN)
    if better.size > _SHARE * own.size:
        j = int(better[np.argmax((others.max(axis=0) - own)[better])])
        i = int(others[:, j].argmax())
        return (
            f"in {better.size:,} of {own.size:,} categories another row of the head ranks better: "
            f"row {names[i]!r} ranks column {names[j]!r} with AUROC {table[i, j]:.2f}, "
            f"its own row with {own[j]:.2f}"
        )
    if weak > own.size / 2:
        return f"AUROC is under {_CHANCE} in {weak:,} of {own.size:,} categories"
    return None


def _codes_of(labels: PartialLabels | Array, rows: NDArray[np.int64]) -> NDArray[np.int8]:
    """(rows, C) codes, without making all labels dense."""
    if getattr(labels, "storage", "dense") == "columns":
        taken: NDArray[np.int8] = labels.take_rows(rows).codes  # type: ignore[union-attr]
        return taken
    return coerced_codes(labels)[rows]
