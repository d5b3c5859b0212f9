"""What calibration and thresholds read: logits of rows that fitted nothing, and their labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catwise._arrays import dense
from catwise.errors import (
    ConfigError,
    FeatureError,
    IdError,
    LabelError,
    ShapeError,
    nearest,
)
from catwise.heads import Head
from catwise.joining import (
    COINCIDENCE,
    align,
    has_default_names,
    join_rows,
    match_categories,
    open_source,
    require_known,
    seen_rows,
    source_digests,
    source_ids,
)
from catwise.labels import PartialLabels
from catwise.metrics.inputs import KnownScores, check_head_logits, checked_logits, known_scores
from catwise.metrics.intervals import Units
from catwise.tuning import FoldArtifacts, TuneResult

PerCategory: TypeAlias = float | Mapping[str, float] | NDArray[Any] | None
"""A number for all categories, one for each by its name or in their order, or None."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Logits of rows that fitted nothing, and their labels.

    Attributes:
        logits: (N, C) float, finite.
        labels: (N, C), in the order of the logits.
        categories: C names.
        fold: (N,) fold of each row, or None.
        notes: what was done with the input, a sentence each.
    """

    logits: Tensor
    labels: PartialLabels
    categories: tuple[str, ...]
    fold: NDArray[Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def units(self) -> Units:
        """What counts as one in an interval: rows, or groups of them."""
        return Units.of_labels(self.labels)

    def known(self, c: int) -> KnownScores:
        """The known rows of category number c; scores as float64."""
        found = known_scores(self.logits, self.labels, c)
        return found._replace(scores=found.scores.astype(np.float64))

    def column(self, c: int) -> NDArray[np.float64]:
        """(N,) logits of category number c, known or not."""
        return self.logits[:, c].double().cpu().numpy()


def read_held_out(source: Any, labels: PartialLabels) -> HeldOut:
    """Out-of-fold logits of a tuning, or logits as they are, with their labels.

    Args:
        source: a `TuneResult` or `FoldArtifacts`, or (N, C) logits of rows that fitted nothing.
        labels: of these rows; joined by id and by name where both sides have them, else by
            position. Labels of other rows are left out where ids tell them apart.

    Raises:
        ConfigError: If the result has no out-of-fold logits.
        LabelError: If the labels are raw values, or none is known.
        ShapeError: If logits and labels do not fit together.
        IdError: If a labelled row has no logits.
        CategoryError: If a category of the labels has no logits.
        FeatureError: If a logit is NaN or infinite.
    """
    check_labels(labels)
    folds = folds_of(source)
    if folds is None:
        logits = checked_logits(source, labels.shape)
        return HeldOut(logits, labels, labels.categories)
    labels, left_out = _cross_fitted(folds, labels)
    joined = join_rows(_Rows(folds), labels, name="out-of-fold logits")
    index, notes = match_categories(
        folds.categories, labels.categories, name="labels", head_name="the tuning"
    )
    rows = np.arange(len(folds.fold)) if joined.rows is None else joined.rows
    logits = torch.from_numpy(folds.logits[rows][:, index])
    names = tuple(folds.categories[i] for i in index)
    categories = labels.categories if has_default_names(folds.categories) else names
    checked = checked_logits(logits, labels.shape)
    return HeldOut(
        checked, labels, categories, folds.fold[rows], (*left_out, *joined.notes, *notes)
    )


def check_labels(labels: Any) -> None:
    """Refuse raw values, and labels of which none is known.

    Raises:
        LabelError: If it is so.
    """
    if not isinstance(labels, PartialLabels):
        raise LabelError(
            "labels are raw values, whose meaning nobody has named.",
            found=type(labels).__name__,
            expected="PartialLabels",
            remedy="PartialLabels.from_array(y, encoding=…)",
        )
    require_known(labels)


def _cross_fitted(
    folds: FoldArtifacts, labels: PartialLabels
) -> tuple[PartialLabels, tuple[str, ...]]:
    """The labels of the rows that were cross-fitted, where ids tell; all if that is none."""
    if folds.ids is None or labels.ids is None:
        return labels, ()
    inside = np.isin(labels.ids, folds.ids)
    n = int(np.count_nonzero(~inside))
    if not n or n == inside.size:
        return labels, ()
    own = labels.take_rows(inside)
    require_known(own)
    return own, (f"{n:,} labelled rows were not cross-fitted by the tuning and were not used.",)


def folds_of(source: Any) -> FoldArtifacts | None:
    """The out-of-fold logits of a tuning; None of anything else.

    Raises:
        ConfigError: If the tuning has none.
    """
    if not isinstance(source, TuneResult):
        return source if isinstance(source, FoldArtifacts) else None
    if source.folds is None:
        raise ConfigError(
            "this tuning has no out-of-fold logits.",
            found="folds=None, as validation='select' and preset='paper' leave it",
            expected="a tuning by validation='fit_and_select', or logits",
            remedy="logits of rows that neither fitted nor chose anything: "
            "calibrate(result.head.logits(features), labels)",
        )
    return source.folds


class _Rows:
    """Out-of-fold logits as rows with ids, as they are joined to labels."""

    def __init__(self, folds: FoldArtifacts) -> None:
        self.ids, self.shape = folds.ids, folds.logits.shape
        self.dtype = folds.logits.dtype
        self._logits = folds.logits

    def block(self, start: int, stop: int) -> NDArray[np.float32]:
        return self._logits[start:stop]


def read_test(
    test: tuple[Any, PartialLabels] | None, source: Any, categories: tuple[str, ...]
) -> HeldOut | None:
    """Test rows: features of a tuning's head, or logits, and labels.

    Args:
        test: the pair, or None. Features where `source` is a `TuneResult`, else logits (N, C).
        source: as in :func:`read_held_out`.
        categories: of the held-out rows; the test labels may have them in another order.

    Raises:
        IdError: If one of the rows fitted or selected the tuning's head.
        CatwiseError: As :func:`read_held_out`.
    """
    if test is None:
        return None
    if isinstance(source, TuneResult):
        logits, labels, names, notes = head_logits(source.head, test)
    else:
        if not (isinstance(test, (tuple, list)) and len(test) == 2):
            raise ShapeError(
                "test must be a pair of logits and labels.",
                found=type(test).__name__,
                expected="test=(logits, labels)",
            )
        found = read_held_out(*test)
        logits, labels, names, notes = found.logits, found.labels, found.categories, ()
    require_known(labels, "test label")
    index, more = match_categories(names, categories, name="test", head_name="the test labels")
    order = [int(i) for i in index]
    if order != list(range(labels.n_categories)):
        logits, labels = logits[:, order], labels.take_categories(order)
    return HeldOut(logits, labels, categories, None, (*notes, *more))


def head_logits(
    head: Head, test: tuple[Any, PartialLabels]
) -> tuple[Tensor, PartialLabels, tuple[str, ...], tuple[str, ...]]:
    """Logits of a head on test rows, their labels and categories, and what to know.

    Raises:
        IdError: If one of the rows fitted or selected the head.
        CatwiseError: As `catwise.joining.align`.
    """
    features, labels = open_source(test, name="test")
    aligned = align(head, features, labels, name="test")
    seen = seen_rows(head, source_digests(features, labels, aligned.rows))[0]
    named = source_ids(features, labels) is not None
    if seen.any() and (named or seen.mean() > COINCIDENCE):
        raise IdError(
            f"{int(seen.sum()):,} of {seen.size:,} test rows fitted or selected the head, "
            "so they cannot judge it.",
            found=f"first row {int(np.flatnonzero(seen)[0]):,}",
            expected="rows that the tuning has not seen",
            remedy="leave test out: out-of-fold logits of the tuning's rows are used anyway",
        )
    logits = aligned.scored.logits(aligned.take(features))
    check_head_logits(logits, aligned.categories, name="test")
    return logits, labels, aligned.categories, tuple(aligned.notes)


def per_category(
    value: PerCategory, categories: tuple[str, ...], name: str, *, is_whole: bool = True
) -> NDArray[np.float64]:
    """A number for each category; NaN for none.

    Args:
        value: as it was given.
        categories: C names.
        name: of the option.
        is_whole: whether a table must name every category.

    Raises:
        ConfigError: If a table has a name that is no category, or lacks one that it must have.
        ShapeError: If there is not one for each category.
    """
    if value is None:
        return np.full(len(categories), np.nan)
    if isinstance(value, Mapping):
        unknown = [key for key in value if key not in categories]
        lacking = [key for key in categories if key not in value] if is_whole else []
        if unknown or lacking:
            first = (unknown or lacking)[0]
            hint = nearest(str(first), categories) if unknown else ""
            what = "is no category" if unknown else "has no number"
            raise ConfigError(
                f"{name}: {first!r} {what}{hint}.", expected=f"names among {list(categories)[:5]}"
            )
        return np.array([float(value.get(key, np.nan)) for key in categories])
    array = np.asarray(dense(value, name=name, error=FeatureError, numpy=True), dtype=np.float64)
    if array.ndim and array.shape != (len(categories),):
        raise ShapeError(
            f"{name} does not fit the categories.",
            found=f"shape {array.shape}",
            expected=f"a number, or one for each of the {len(categories):,} categories",
        )
    return np.broadcast_to(array, (len(categories),)).astype(np.float64)


def check_shares(values: NDArray[np.float64], name: str) -> None:
    """Refuse what is not inside (0, 1); NaN is none.

    Raises:
        ConfigError: Names the first.
    """
    bad = np.flatnonzero(~np.isnan(values) & ~((values > 0) & (values < 1)))
    if bad.size:
        raise ConfigError(
            f"{name} is a share.", found=f"{values[bad[0]]:g}", expected="inside (0, 1)"
        )
