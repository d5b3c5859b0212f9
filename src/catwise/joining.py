"""Rows joined by id, categories by name: once, where they come in. Inside, only positions are used.

Rows: when features and labels both have ids, every labelled row finds its feature row by id;
otherwise row i belongs to row i, and the counts must be equal. Categories: names are matched
when both sides have them; where one side only has the default names "0", "1", … position j
belongs to position j, and the counts must be equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from catwise._text import some
from catwise.errors import CategoryError, HeadError, IdError, LabelError, ShapeError, nearest
from catwise.features.blocks import BLOCK_ROWS, RowBlocks, as_rows, block_of, feature_shape
from catwise.features.by_category import by_category, of_categories
from catwise.heads import Head
from catwise.labels import PartialLabels
from catwise.labels.names import refuse_repeats
from catwise.labels.renaming import matching_names, renaming_remedy

#: Unmatched ids and names that an error shows of each side.
_SHOWN: Final = 3
#: Unmatched ids of each side that are compared without folder and suffix to suggest a remedy.
_LOOKED_AT: Final = 10_000
#: Share of the smaller source whose rows may repeat in the other one by content alone: a few
#: equal images (blank pages, stock photos) are found in most collections.
COINCIDENCE: Final = 0.2


@dataclass(frozen=True)
class Joined:
    """The feature row, (N,) int64, of each labelled row; None: row i belongs to row i."""

    rows: NDArray[np.int64] | None
    n_unlabelled: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Aligned:
    """A head, features and labels (N, C) that belong together."""

    head: Head
    # (N,) int64 feature row of each labelled row, or None: row i belongs to row i
    rows: NDArray[np.int64] | None
    labels: PartialLabels
    head_index: NDArray[np.int64]  # (C,) int64 row of the head for each column of the labels
    notes: list[str]

    @property
    def scored(self) -> Head:
        """The head's rows that the labels speak about, in the order of the labels' columns."""
        if np.array_equal(self.head_index, np.arange(self.head.n_categories)):
            return self.head
        return self.head.take_categories([int(i) for i in self.head_index])

    def take(self, features: Any) -> Any:
        """Features in the order of the labels' rows; category-specific ones of their columns."""
        rows = aligned_features(features, self.rows)
        return of_categories(rows, self.head_index.tolist(), self.head.n_categories)

    @property
    def categories(self) -> tuple[str, ...]:
        """C names: the head's, or the labels' where the head has only the default ones."""
        if has_default_names(self.head.categories):
            return self.labels.categories
        return tuple(self.head.categories[int(i)] for i in self.head_index)


def align(
    head: Head,
    features: Any,
    labels: PartialLabels,
    *,
    name: str = "data",
    head_name: str = "the head",
) -> Aligned:
    """Check that a head, features (N, D) and labels (N, C) belong together, and say how."""
    if not hasattr(head, "n_features"):
        raise HeadError(
            "this is not a head.",
            found=type(head).__name__,
            expected="a Head: weight (C, D), bias (C,) or none, and categories",
            remedy="catwise.Head(weight, bias), or catwise.read_head(checkpoint)",
        )
    own = by_category(features)
    if own is not None:
        own.groups_of(head.n_categories)
    n_features = own.n_features if own else feature_shape(features, name=f"{name} features")[1]
    if n_features != head.n_features:
        raise ShapeError(
            f"the {name} features do not feed {head_name}.",
            found=f"features with {n_features:,} columns",
            expected=f"{head.n_features:,} columns, as the head's weight has",
            remedy="use the features that feed this head: the output of the layer before it",
        )
    joined = join_rows(features, labels, name=name)
    index, notes = match_categories(
        head.categories, labels.categories, name=name, head_name=head_name
    )
    return Aligned(head, joined.rows, labels, index, [*joined.notes, *notes])


def open_source(data: Any, *, name: str) -> tuple[Any, PartialLabels]:
    """Features and labels of one source; arrays of features as :func:`as_rows` has them."""
    if not (isinstance(data, (tuple, list)) and len(data) == 2):
        raise ShapeError(
            f"{name} must be a pair of features and labels.",
            found=type(data).__name__,
            expected=f"{name}=(features, labels)",
        )
    features, labels = data
    if not isinstance(labels, PartialLabels):
        raise LabelError(
            f"the labels of {name!r} are raw values.",
            found=type(labels).__name__,
            expected="PartialLabels, in which every value has a meaning",
            remedy="PartialLabels.from_array(y, encoding=…)",
        )
    return as_rows(features, name=f"{name} features"), labels


def join_rows(features: Any, labels: PartialLabels, *, name: str = "data") -> Joined:
    """Find the feature row of each labelled row: by id where both have ids, else by position."""
    features = by_category(features) or features
    n_rows = feature_shape(features, name=f"{name} features")[0]
    have, wanted = getattr(features, "ids", None), labels.ids
    if have is None or wanted is None:
        return _by_position(n_rows, labels.shape[0], name, _without_ids(have, wanted))
    have, wanted = np.asarray(have).astype(str), np.asarray(wanted).astype(str)
    refuse_repeats(have, "row {:,}".format, f"{name}: features have a duplicate id.")
    if have.shape == wanted.shape and np.array_equal(have, wanted):
        return Joined(None, 0, ())
    order = np.argsort(have, kind="stable")
    place = np.searchsorted(have, wanted, sorter=order)
    rows = order[np.minimum(place, max(have.size - 1, 0))] if have.size else place
    missing = np.ones(wanted.size, dtype=bool) if not have.size else have[rows] != wanted
    if missing.any():
        raise _unmatched(wanted[missing], have[~np.isin(have, wanted)], wanted.size, name)
    n_unlabelled = int(have.size - np.unique(rows).size)
    notes = [f"{name}: rows were joined by id."]
    if n_unlabelled:
        rest = f"{n_unlabelled:,} feature rows are not among its labels"
        notes.append(f"{name}: {rest} and were not used.")
    return Joined(rows.astype(np.int64), n_unlabelled, tuple(notes))


def _without_ids(have: Any, wanted: Any) -> str:
    if have is None and wanted is None:
        return "neither features nor labels have ids"
    return "the features have no ids" if have is None else "the labels have no ids"


def _by_position(n_features: int, n_labels: int, name: str, why: str) -> Joined:
    if n_features != n_labels:
        raise ShapeError(
            f"{name}: features and labels differ in their number of rows, and {why}.",
            found=f"{n_features:,} rows of features, {n_labels:,} rows of labels",
            expected="equal numbers, or ids on both sides to join them by",
        )
    return Joined(None, 0, (f"{name}: rows were joined by position, as {why}.",))


def _unmatched(
    labels: NDArray[np.str_], features: NDArray[np.str_], n_labels: int, name: str
) -> IdError:
    return IdError(
        f"{name}: {labels.size:,} of {n_labels:,} labelled rows have no features.",
        found=f"labels without features: {_some(labels)}; "
        f"features without labels ({features.size:,}): {_some(features)}",
        expected="a feature row with the id of each labelled row",
        remedy=_id_remedy(labels, features),
    )


def _some(values: Sequence[Any] | NDArray[Any]) -> str:
    return some([repr(str(value)) for value in values], _SHOWN) or "none"


def _id_remedy(labels: NDArray[np.str_], features: NDArray[np.str_]) -> str:
    """Say so when the ids would match with another folder and suffix, and by which options."""
    left, right = (
        {PurePath(value).stem: str(value) for value in side[:_LOOKED_AT].tolist()}
        for side in (labels, features)
    )
    common = min(left.keys() & right.keys(), default=None)
    if common is not None:
        options = []
        cut, put = left[common].rpartition(common), right[common].rpartition(common)
        for place, end in ((0, "prefix"), (2, "suffix")):
            if cut[place] != put[place]:
                options += [f"--strip-{end} '{cut[place]}'"] if cut[place] else []
                options += [f"--id-{end} '{put[place]}'"] if put[place] else []
        return f"the names agree but for folder and suffix: {' '.join(options)}"
    return "name the column that holds the ids of the features (--id-column), or extract the rest"


def require_known(labels: PartialLabels, what: str = "label") -> None:
    """Refuse labels of which none is known."""
    if not labels.counts().known.any():
        raise LabelError(
            f"no {what} is known.",
            found=f"{labels.shape[0]:,} rows, {labels.shape[1]:,} categories, all unknown",
            remedy="check the encoding: `catwise audit` shows what was read",
        )


def has_default_names(categories: Sequence[str]) -> bool:
    """Whether categories only have their positions for names, such as "0" and "1"."""
    return all(name == str(i) for i, name in enumerate(categories))


def name_rows(head: Head, names: Sequence[str]) -> Head:
    """The head; one without names of its own takes these, where there are as many."""
    nameless = has_default_names(head.categories) and not has_default_names(names)
    return head.replace(categories=names) if nameless and head.n_categories == len(names) else head


def match_categories(
    head: Sequence[str],
    labels: Sequence[str],
    *,
    name: str = "data",
    head_name: str = "the head",
) -> tuple[NDArray[np.int64], list[str]]:
    """The row of the head for each column of the labels, (C,) int64, and what was done, in words.

    By name where both have names, or where the head has all of the labels' names; by position
    where one side has only the default names "0", "1", …
    """
    place = {category: i for i, category in enumerate(head)}
    plain = has_default_names(labels)
    if tuple(head) == tuple(labels):
        return np.arange(len(head)), []
    if not plain and all(category in place for category in labels):
        extra = len(head) - len(labels)
        notes = [f"{name}: {extra:,} rows of the head have no labels."] if extra else []
        return np.array([place[category] for category in labels], dtype=np.int64), notes
    if plain or has_default_names(head):
        if len(head) != len(labels):
            who = "the labels have" if plain else f"{head_name} has"
            raise ShapeError(
                f"{name}: {head_name} and the labels differ in their number of categories, "
                f"and {who} no category names.",
                found=f"{len(head):,} rows of the head, {len(labels):,} columns of labels",
                expected="equal numbers, or names on both sides",
                remedy="name the columns of the labels: PartialLabels(…, categories=…), or a table "
                "whose header names them"
                if plain
                else "name the head's rows in their order: categories=[…] (--head-categories FILE)",
            )
        return np.arange(len(head)), [f"{name}: categories were matched by position."]
    lacking = [category for category in labels if category not in place]
    shown = ", ".join(f"{category!r}{nearest(category, head)}" for category in lacking[:_SHOWN])
    raise CategoryError(
        f"{name}: {head_name} lacks {len(lacking):,} of {len(labels):,} categories of the labels.",
        found=f"not in the head: {shown}{', …' if len(lacking) > _SHOWN else ''}",
        expected=f"names among the head's {len(head):,}: {_some(head)}",
        remedy=_renaming(labels, head),
    )


def _renaming(labels: Sequence[str], head: Sequence[str]) -> str:
    """What can be done with categories of other names."""
    rest = "leave out the categories that the head does not know (--unknown-categories ignore)"
    same = matching_names(labels, head)
    if not same:
        return f"rename the columns, labels.rename_categories({{…}}) (--rename OLD=NEW), or {rest}"
    return f"these mean the same: labels.{renaming_remedy(same)}; or {rest}"


class _TakenRows:
    """Rows of features in another order; read when asked for."""

    __slots__ = ("_features", "_rows", "shape")

    def __init__(self, features: Any, rows: NDArray[np.int64]) -> None:
        self._features, self._rows = features, rows
        self.shape = (len(rows), feature_shape(features)[1])

    @property
    def ids(self) -> NDArray[np.str_] | None:
        ids = getattr(self._features, "ids", None)
        return None if ids is None else np.asarray(ids)[self._rows]

    def block(self, start: int, stop: int) -> Any:
        rows = self._rows[start:stop]
        values = self._features
        if isinstance(values, torch.Tensor):
            return values[torch.from_numpy(rows).to(values.device)]
        if not isinstance(values, RowBlocks):
            return values[rows]
        take = getattr(values, "rows", None)  # stores and `Features` know a good order themselves
        return _gathered(values, rows) if take is None else take(rows)


def _gathered(values: RowBlocks, rows: NDArray[np.int64]) -> Any:
    """Read rows in any order as runs of neighbours."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    cuts = np.flatnonzero(np.diff(ordered) != 1) + 1
    parts: list[Any] = [
        values.block(int(run[0]), int(run[-1]) + 1) for run in np.split(ordered, cuts) if run.size
    ]
    back = np.empty_like(order)
    back[order] = np.arange(order.size)
    if not parts:
        return values.block(0, 0)
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts)[torch.from_numpy(back).to(parts[0].device)]
    return np.concatenate(parts)[back]


def aligned_features(features: Any, rows: NDArray[np.int64] | None) -> Any:
    """Features (M, D) in the order of the labels, by rows (N,): as given, or read by `.block`."""
    if (own := by_category(features)) is not None:
        return own if rows is None else own.take_rows(rows)
    features = as_rows(features)
    return features if rows is None else _TakenRows(features, rows)


def source_digests(
    features: Any, labels: PartialLabels, rows: NDArray[np.int64] | None = None
) -> NDArray[np.uint64]:
    """What a head remembers of the rows that fitted or selected it, (N,) uint64.

    From the ids of the labels, else of the features, else from the feature rows themselves.
    """
    from catwise.features.digests import row_digests

    taken = aligned_features(features, rows)
    return row_digests(taken, ids=source_ids(taken, labels))


def seen_rows(head: Head, digests: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], bool]:
    """Which rows, (N,) bool by their digests, fitted or selected a head, and whether these are all.

    Not all where nobody knows what fitted it, or where a checkpoint kept a part of the digests.
    """
    if head.fitted_on is None:
        return np.zeros(digests.size, dtype=np.bool_), False
    is_whole = head.provenance.get("fitted_rows", 0) <= head.fitted_on.size
    return np.isin(digests, head.fitted_on), is_whole


def source_ids(features: Any, labels: PartialLabels) -> NDArray[np.str_] | None:
    """The labels' ids, else those of the features (in the labels' order), else None."""
    ids = labels.ids if labels.ids is not None else getattr(features, "ids", None)
    return None if ids is None else np.asarray(ids).astype(str)


def check_disjoint(
    train: tuple[Any, PartialLabels],
    valid: tuple[Any, PartialLabels],
    *,
    names: tuple[str, str] = ("training", "validation"),
) -> list[str]:
    """Check that no image and no group (patient) is in two sources; what was noticed, in sentences.

    Images are compared by id where both sources have ids, otherwise by the content of their
    feature rows. By content, up to a fifth of the smaller source may repeat: that is noted only,
    since most collections hold a few equal images.
    """
    notes: list[str] = []
    ids = [source_ids(features, labels) for features, labels in (train, valid)]
    if ids[0] is not None and ids[1] is not None:
        _refuse_common("ids", ids[0], ids[1], names)
    else:
        notes += _compare_content(train, valid, names)
    groups = [labels.groups for _, labels in (train, valid)]
    if groups[0] is not None and groups[1] is not None:
        _refuse_common("groups", groups[0], groups[1], names)
    return notes


def _refuse_common(
    what: str, train: NDArray[Any], valid: NDArray[Any], names: tuple[str, str]
) -> None:
    common = np.intersect1d(np.asarray(train).astype(str), np.asarray(valid).astype(str))
    if common.size:
        raise IdError(
            f"{common.size:,} {what} are in both the {names[0]} and the {names[1]} data.",
            found=_some(common),
            expected="each image and each group (patient) in one source only",
            remedy=f"take them out of the {names[0]} data, or split again by group",
        )


class _Nameless:
    """Features without their ids, to be known by their content."""

    def __init__(self, features: Any) -> None:
        features = by_category(features) or features
        self._features, self.shape = features, feature_shape(features)
        self.block_rows = getattr(features, "block_rows", BLOCK_ROWS)

    def block(self, start: int, stop: int) -> Any:
        return block_of(self._features, start, stop)


def _compare_content(
    train: tuple[Any, Any], valid: tuple[Any, Any], names: tuple[str, str]
) -> list[str]:
    from catwise.features.digests import row_digests

    digests = [row_digests(_Nameless(features)) for features, _ in (train, valid)]
    common = int(np.isin(digests[1], digests[0]).sum())
    if not common:
        return []
    smaller = max(1, min(len(part) for part in digests))
    seen = f"{common:,} {names[1]} rows have the same features as a {names[0]} row."
    if common > COINCIDENCE * smaller:
        raise IdError(
            seen,
            found=f"first at row {int(np.flatnonzero(np.isin(digests[1], digests[0]))[0]):,}",
            expected="different images in the two sources",
            remedy=f"take them out of the {names[0]} data; give ids to tell equal images apart",
        )
    return [seen]
