"""Simulated partial labels by the field's protocols.

Draws are keyed by seed, category name and row id (its position where rows have no ids), so
that neither the order of categories, nor the storage, nor taking some of the categories or named
rows changes which labels stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from catwise.errors import ConfigError
from catwise.labels.codes import NEGATIVE, POSITIVE
from catwise.labels.draws import category_keys, draws, row_keys, uniform

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from catwise.labels.codes import Codes, Rows
    from catwise.labels.core import PartialLabels

__all__ = ["drop_uniform", "keep_per_category", "keep_single_positive"]


def drop_uniform(labels: PartialLabels, keep: float, seed: int = 0) -> PartialLabels:
    """Keep every label with the same probability; the others become unknown.

    Nested: what is kept at 10% is kept at 20% too, with the same seed. Uncertain labels are dropped
    like known ones.

    Args:
        labels: the labels.
        keep: probability, 0 to 1, with which a label stays.
        seed: another one gives another choice.

    Raises:
        ConfigError: If `keep` is no probability.

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
    categories = category_keys(seed, "drop_uniform", labels.categories)
    keys = row_keys(labels)

    def kept(j: int, rows: Rows, _: Codes) -> NDArray[np.bool_]:
        return uniform(draws(keys[rows], categories[j])) < keep

    return labels.keep_entries(kept)


def keep_per_category(labels: PartialLabels, n: int, seed: int = 0) -> PartialLabels:
    """Keep n positives and n negatives of each category; the other labels become unknown.

    A category that has fewer keeps all it has. Nested: a smaller n keeps a part of what a larger
    one keeps. Uncertain labels become unknown.

    Args:
        labels: the labels.
        n: positives, and negatives, to keep in each category.
        seed: another one gives another choice.

    Raises:
        ConfigError: If n is no whole number of at least 0.

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
            order = np.argsort(draws(keys[rows[at]], categories[j]), kind="stable")
            mask[at[order[:n]]] = True
        return mask

    return labels.keep_entries(kept)


def keep_single_positive(labels: PartialLabels, seed: int = 0) -> PartialLabels:
    """Keep one positive of each row, chosen evenly; all other labels become unknown.

    Rows without a known positive keep nothing.

    Args:
        labels: the labels.
        seed: another one gives another choice.

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
        drawn = draws(keys[rows], categories[j])
        better = drawn < lowest[rows]
        lowest[rows[better]] = drawn[better]
        chosen[rows[better]] = j

    def kept(j: int, rows: Rows, _: Codes) -> NDArray[np.bool_]:
        mask: NDArray[np.bool_] = chosen[rows] == j
        return mask

    return labels.keep_entries(kept)
