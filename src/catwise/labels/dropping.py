"""Simulated partial labels by the field's protocols.

Draws are keyed by seed, category name and row id (its position where rows have no ids), so
that neither the order of categories, nor the storage, nor taking some of the categories or named
rows changes which labels stay. Only the published streams of `drop_uniform` depend on the order of
rows and categories, as the code does that they repeat.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from catwise.errors import ConfigError, check_choice
from catwise.labels.codes import NEGATIVE, POSITIVE, Codes, Rows
from catwise.labels.core import PartialLabels
from catwise.labels.draws import category_keys, row_keys, uniform
from catwise.labels.draws import draws as draw

DRAWS: Final = {
    "keyed": "By seed, category name and row id, whatever the order of rows and categories.",
    "mlcpl": (
        "As in mlcpl, by the authors of CFT (their seed is 526): one stream of numpy's PCG64 over "
        "the labels, row after row; in a row positives, negatives, then uncertain labels, each by "
        "position."
    ),
    "matrix": (
        "As in the code of SST, SARB and their kin (their seed is 0): one number of numpy's legacy "
        "generator for every entry, known or not, row after row."
    ),
}
"""Way to draw → what it means."""

PLACES: Final = np.array([1, 0, 2, 3])
"""In a row of "mlcpl": of the codes 0 (negative), 1 (positive), -2 (uncertain) and -1."""
BLOCK_DRAWS: Final = 1 << 22


def drop_uniform(
    labels: PartialLabels,
    keep: float,
    seed: int = 0,
    *,
    draws: Literal["keyed", "mlcpl", "matrix"] = "keyed",
) -> PartialLabels:
    """Keep every label with the same probability; the others become unknown.

    Nested: what is kept at 10% is kept at 20% too, with the same seed; another seed gives another
    choice. Uncertain labels are dropped like known ones.

    Args:
        labels: the labels.
        keep: probability, 0 to 1, with which a label stays; else ConfigError.
        seed: of the draws.
        draws: a key of `DRAWS`. With the same seed, and rows and categories in the order that the
            published code has them in, "mlcpl" and "matrix" keep the very labels that it keeps.

    Source: the protocol of Durand et al., "Learning a deep ConvNet for multi-label classification
    with partial labels", CVPR 2019; nested as in Chong et al., Neurocomputing 647, 2025.

    >>> from catwise.labels import PartialLabels
    >>> complete = PartialLabels(np.zeros((1000, 10), dtype=np.int8))
    >>> int(drop_uniform(complete, 0.1, seed=0).counts().known.sum())
    1005
    """
    if not 0 <= keep <= 1:
        raise ConfigError(
            "the share of labels to keep must be a probability.",
            found=f"keep={keep}",
            expected="0 to 1, such as 0.1 for 10%",
        )
    check_choice("draws", draws, DRAWS)
    categories = category_keys(seed, "drop_uniform", labels.categories)
    if draws != "keyed":
        return _drop_by_stream(labels, keep, seed, draws)
    keys = row_keys(labels)

    def kept(j: int, rows: Rows, _: Codes) -> NDArray[np.bool_]:
        return uniform(draw(keys[rows], categories[j])) < keep

    return labels.keep_entries(kept)


def _drop_by_stream(labels: PartialLabels, keep: float, seed: int, draws: str) -> PartialLabels:
    """Drop labels by one stream of random numbers over all of them."""
    if not 0 <= seed < 1 << 32:
        raise ConfigError(
            "this stream has no such seed.", found=f"seed={seed}", expected="0 to 2³² − 1"
        )
    columns = labels.as_columns()
    category = np.repeat(np.arange(columns.n_columns), np.diff(columns.starts))
    stays = np.empty(len(category), dtype=np.bool_)
    if draws == "mlcpl":
        order = columns.rows.astype(np.int64) * len(PLACES) + PLACES[columns.codes]
        order = order * columns.n_columns + category
        random = np.random.Generator(np.random.PCG64(seed)).random(len(category))
        stays[np.argsort(order)] = random < keep
    else:
        stream = np.random.RandomState(seed)
        order = np.argsort(columns.rows, kind="stable")
        rows, step = columns.rows[order], max(1, BLOCK_DRAWS // max(columns.n_columns, 1))
        for start in range(0, labels.n_rows, step):
            size = min(step, labels.n_rows - start)
            block = stream.random_sample((size, columns.n_columns)) < keep
            at = order[slice(*np.searchsorted(rows, (start, start + size)))]
            stays[at] = block[columns.rows[at] - start, category[at]]
    return labels.keep_entries(lambda j, _, __: stays[columns.span(j)])


def keep_per_category(labels: PartialLabels, n: int, seed: int = 0) -> PartialLabels:
    """Keep n positives and n negatives of each category; the other labels become unknown.

    A category that has fewer keeps all it has. Nested: a smaller n keeps a part of what a larger
    one keeps; another seed gives another choice. Uncertain labels become unknown. ConfigError if n
    is not a whole number of at least 0.

    Source: "fixed per class" of Ben-Baruch et al., "Multi-label classification with partial
    annotations using class-aware selective loss", CVPR 2022.

    >>> from catwise.labels import PartialLabels
    >>> complete = PartialLabels(np.eye(100, 2, dtype=np.int8))
    >>> keep_per_category(complete, 5).counts().known
    array([6, 6])
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 0:
        raise ConfigError(
            "the number of labels to keep in each category must be a whole number.",
            found=f"n={n!r}",
            expected="0 or more",
        )
    categories = category_keys(seed, "keep_per_category", labels.categories)
    keys = row_keys(labels)

    def kept(j: int, rows: Rows, codes: Codes) -> NDArray[np.bool_]:
        mask = np.zeros(len(rows), dtype=bool)
        for code in (POSITIVE, NEGATIVE):
            at = np.flatnonzero(codes == code)
            order = np.argsort(draw(keys[rows[at]], categories[j]), kind="stable")
            mask[at[order[:n]]] = True
        return mask

    return labels.keep_entries(kept)


def keep_single_positive(labels: PartialLabels, seed: int = 0) -> PartialLabels:
    """Keep one positive of each row, chosen evenly; all other labels become unknown.

    Rows without a known positive keep nothing. Another seed gives another choice.

    Source: Cole et al., "Multi-label learning from single positive labels", CVPR 2021.

    >>> from catwise.labels import PartialLabels
    >>> keep_single_positive(PartialLabels([[0, 1, 0], [0, 0, 0]])).codes
    array([[-1,  1, -1],
           [-1, -1, -1]], dtype=int8)
    """
    categories = category_keys(seed, "keep_single_positive", labels.categories)
    keys = row_keys(labels)
    lowest = np.full(labels.n_rows, np.iinfo(np.uint64).max, dtype=np.uint64)
    chosen = np.full(labels.n_rows, -1, dtype=np.int64)
    for j in range(labels.n_categories):
        rows, positive = labels.known(j)
        rows = rows[positive]
        drawn = draw(keys[rows], categories[j])
        better = drawn < lowest[rows]
        lowest[rows[better]] = drawn[better]
        chosen[rows[better]] = j

    def kept(j: int, rows: Rows, _: Codes) -> NDArray[np.bool_]:
        mask: NDArray[np.bool_] = chosen[rows] == j
        return mask

    return labels.keep_entries(kept)
