"""What models gave for images: read from files, joined to labels, and looked at.

Rows join by id and columns by the name of their category where both sides have them, else by
position. A member may lack categories; it takes no part in theirs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from catwise._arrays import dense
from catwise._names import OUTPUT_KINDS
from catwise._text import some
from catwise.data.files import PARQUET, TableFile, open_table
from catwise.data.source import texts_of
from catwise.decisions.inputs import check_labels, folds_of, head_logits, read_held_out
from catwise.decisions.maps import logit
from catwise.errors import (
    CategoryError,
    ConfigError,
    FeatureError,
    FeatureStoreError,
    IdError,
    ShapeError,
    check_choice,
    nearest,
)
from catwise.features import Features, read_features
from catwise.features.arrays import list_arrays
from catwise.heads import Head
from catwise.joining import align, has_default_names, join_rows, match_categories, require_known
from catwise.labels import PartialLabels
from catwise.labels.names import category_names
from catwise.metrics.inputs import check_head_logits
from catwise.metrics.mismatch import check_match
from catwise.tuning import FoldArtifacts, TuneResult

TABLES: Final = (".csv", ".tsv", ".tab", ".gz", *PARQUET)
#: Probabilities of 0 and 1 become those of a half of float32's step below 1.
_EDGE: Final = 2.0**-25


@dataclass(frozen=True, eq=False, repr=False)
class Outputs:
    """What a model gave for images: logits, probabilities, or other scores.

    Args:
        values: (N, C) numbers.
        categories: C names, or None: known by their position.
        ids: (N,) ids of the images, or None: known by their position.

    Raises:
        FeatureError: If the values are not (N, C) numbers.
        ShapeError: If names or ids are not as many.
        CategoryError: If two categories have one name.
        IdError: If an id repeats.

    >>> Outputs([[0.5, 0.2]], categories=["cat", "dog"], ids=["a.jpg"])
    Outputs(n_rows=1, n_categories=2, ids=True)
    """

    values: Any
    categories: Sequence[str] | None = None
    ids: Any = None
    _rows: Features = field(init=False)

    def __post_init__(self) -> None:
        values = dense(self.values, name="outputs", error=FeatureError, numpy=True)
        rows = Features(values, getattr(self.values, "ids", None) if self.ids is None else self.ids)
        names = category_names(self.categories, rows.shape[1])
        for name, value in {"values": values, "categories": names, "ids": rows.ids}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_rows", rows)

    def __repr__(self) -> str:
        n, c = self._rows.shape
        return f"Outputs(n_rows={n}, n_categories={c}, ids={self.ids is not None})"

    def for_labels(self, labels: PartialLabels, name: str) -> tuple[NDArray[np.float64], list[str]]:
        """(N, C) values in the order of labels, whose categories are all here; and notes."""
        joined = join_rows(self._rows, labels, name=name)
        index, notes = match_categories(
            tuple(self.categories or ()), labels.categories, name=name, head_name=f"the {name}"
        )
        rows = slice(None) if joined.rows is None else joined.rows
        values = np.asarray(self.values[rows], dtype=np.float64)[:, index]
        if not np.isfinite(values).all():
            row, column = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise FeatureError(
                f"{name}: outputs hold NaN or infinite values.",
                found=f"{values[row, column]} at row {row:,}, category "
                f"{labels.categories[column]!r}",
                expected="a finite number for every image and category",
            )
        return values, [*joined.notes, *notes]


def read_outputs(
    path: str | os.PathLike[str], *, categories: Sequence[str] | None = None
) -> Outputs:
    r"""Read outputs of a model from a file.

    Args:
        path: a table (.csv, .tsv, .parquet) whose first column has the ids of the images and whose
            others are categories; or .npy, .npz, .safetensors with an array (N, C), with `ids` and
            `categories` in an .npz.
        categories: only these columns of a table, as far as they are there; None: all.

    Raises:
        LabelError: If the table cannot be read.
        FeatureError: If a value is not a number.
        FeatureStoreError: If the file cannot be read.
        CatwiseError: As `Outputs`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = Path(folder, "model.csv")
    ...     _ = table.write_text("Study,Edema\npatient1/study1,0.25\n")
    ...     found = read_outputs(table)
    >>> found.ids.tolist(), found.categories, found.values.tolist()
    (['patient1/study1'], ('Edema',), [[0.25]])
    """
    path = Path(path)
    if path.suffix.lower() in TABLES:
        return _from_table(open_table(path), categories)
    features = read_features(path, check=False)
    names = None
    if path.suffix == ".npz":
        try:
            arrays = {array.name: array for array in list_arrays(path)}
            if "categories" in arrays:
                names = [str(name) for name in np.asarray(arrays["categories"].open())]
        except (OSError, ValueError) as error:
            raise FeatureStoreError(
                f"cannot read categories from '{path}'.", found=str(error)
            ) from error
    if len(features.shape) != 2:
        raise FeatureError(
            f"'{path}' holds no outputs.", found=f"shape {features.shape}", expected="(N, C)"
        )
    return Outputs(features.block(0, features.shape[0]), names, features.ids)


def _from_table(file: TableFile, categories: Sequence[str] | None) -> Outputs:
    """The outputs of a table: ids in the first column."""
    first, *others = file.names
    names = [name for name in others if categories is None or name in categories]
    if not names:
        hint = nearest(others[0], categories or ()) if others else ""
        raise ConfigError(
            f"{file} has none of the categories.",
            found=f"columns {some([repr(name) for name in others], 5) or 'of ids only'}{hint}",
            expected=some([repr(name) for name in categories or ["a column for each category"]], 5),
        )
    ids, parts = [], []
    for batch in file.batches([first, *names]):
        ids.append(texts_of(batch.column(0)))
        parts.append([_numbers(file, name, batch.column(name), ids) for name in names])
    values = np.concatenate([np.stack(part, axis=1) for part in parts])
    return Outputs(values, names, np.concatenate(ids))


def _numbers(file: TableFile, name: str, column: Any, ids: list[Any]) -> NDArray[np.float64]:
    """A column as numbers; the row of one that is none is named by its id."""
    import pyarrow as pa
    from pyarrow import compute

    try:
        values = compute.cast(column, pa.float64())
    except pa.ArrowException:
        values = None
    if values is not None and not values.null_count:
        return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)
    texts = ["" if one is None else str(one) for one in column.to_pylist()]
    at = next(i for i, text in enumerate(texts) if not _is_number(text))
    raise FeatureError(
        f"{file} has a value that is not a number.",
        found=f"{texts[at]!r} for {str(ids[-1][at])!r}, category {name!r}",
        expected="a number for every image and category",
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class Columns(NamedTuple):
    """What one member gave for the rows of labels.

    Attributes:
        name: of the member.
        kind: of its values.
        values: (N, C) float64; 0 where it lacks the category.
        has: (C,) whether it has the category.
        fold: (N,) fold of each row, or None.
    """

    name: str
    kind: str
    values: NDArray[np.float64]
    has: NDArray[np.bool_]
    fold: NDArray[Any] | None = None

    def logits(self) -> NDArray[np.float64]:
        """The values as logits: those of probabilities, 0 and 1 a little inside."""
        if self.kind != "probabilities":
            return self.values
        return np.where(self.has, logit(np.clip(self.values, _EDGE, 1.0 - _EDGE)), 0.0)


def check_members(members: Any, kind: str | Mapping[str, str]) -> dict[str, str]:
    """The kind of each member.

    Raises:
        ConfigError: If there is no member, or a kind is not possible.
    """
    if not isinstance(members, Mapping) or not members:
        raise ConfigError(
            "an ensemble needs members.",
            found=type(members).__name__ if not isinstance(members, Mapping) else "none",
            expected="{name: logits, …}",
        )
    kinds = dict.fromkeys(map(str, members), kind) if isinstance(kind, str) else dict(kind)
    for name in kinds:
        check_choice("kind: a member", name, tuple(members))
    kinds = {str(name): str(kinds.get(name, "logits")) for name in members}
    for one in kinds.values():
        check_choice("kind", one, OUTPUT_KINDS)
    return kinds


def common_rows(
    members: Mapping[str, Any], labels: PartialLabels
) -> tuple[PartialLabels, list[str]]:
    """The labels of the rows that every tuning among the members cross-fitted, and a note.

    Raises:
        IdError: If there are none.
        LabelError: If the labels are raw values, or none is known.
    """
    check_labels(labels)
    inside = np.ones(labels.n_rows, dtype=np.bool_)
    for value in members.values():
        folds = folds_of(value)
        if folds is not None and folds.ids is not None and labels.ids is not None:
            inside &= np.isin(labels.ids, folds.ids)
    if inside.all():
        return labels, []
    if not inside.any():
        raise IdError(
            "no labelled row was cross-fitted by all of the tunings.",
            expected="labels of their validation rows",
        )
    left = int(np.count_nonzero(~inside))
    kept = labels.take_rows(inside)
    require_known(kept)
    return kept, [
        f"{left:,} labelled rows were not cross-fitted by every tuning and were not used."
    ]


def read_members(
    members: Mapping[str, Any],
    labels: PartialLabels,
    kinds: Mapping[str, str],
    *,
    judged: bool = True,
    force: bool = False,
) -> tuple[list[Columns], list[str]]:
    """What each member gave for the rows of labels, and what to know.

    Args:
        members: name → `TuneResult` or `FoldArtifacts` (its out-of-fold logits), (head, features),
            `Outputs` or (N, C) numbers.
        labels: (N, C).
        kinds: of the values of each member.
        judged: whether rows that fitted a head are refused, and a member whose scores look
            mismatched.
        force: leave a member in that looks mismatched.

    Raises:
        CategoryError: If no member has one of the categories.
        MismatchError: If a member's columns or features look mismatched.
        CatwiseError: As the parts.
    """
    found, notes = [], []
    for name, value in members.items():
        shared = _shared(value, labels.categories)
        own = labels.take_categories(shared)
        what = f"member {str(name)!r}"
        values, fold, more = _values(value, own, what, judged=judged)
        if judged:
            more = [*more, *check_match(torch.from_numpy(values), own, name=what, force=force)]
        has = np.isin(np.arange(labels.n_categories), shared)
        whole = np.zeros(labels.shape)
        whole[:, has] = values
        found.append(Columns(str(name), kinds[str(name)], whole, has, fold))
        notes += more
        if not has.all():
            lacking = [repr(labels.categories[c]) for c in np.flatnonzero(~has)]
            notes.append(f"{what} has no {some(lacking, 3)}, and takes no part there.")
    alone = np.flatnonzero(~np.any([one.has for one in found], axis=0))
    if alone.size:
        names = [repr(labels.categories[int(c)]) for c in alone]
        raise CategoryError(
            f"no member has {some(names, 3)}.",
            expected="every category of the labels in a member",
            remedy="rename the members' categories, or leave these out of the labels",
        )
    return found, list(dict.fromkeys(notes))


def is_pair(value: Any) -> bool:
    """Whether a member is a head and features."""
    return isinstance(value, (tuple, list)) and len(value) > 0 and isinstance(value[0], Head)


def as_outputs(value: Any) -> Any:
    """The out-of-fold logits of a tuning as outputs; other members as they are."""
    folds = folds_of(value)
    return value if folds is None else Outputs(folds.logits, folds.categories, folds.ids)


def _categories_of(value: Any) -> tuple[str, ...] | None:
    """The categories of a member; None where it has no names at all."""
    if isinstance(value, TuneResult):
        return value.head.categories
    if is_pair(value):
        return tuple(value[0].categories)
    names = getattr(value, "categories", None)
    return None if names is None else tuple(names)


def _shared(value: Any, wanted: tuple[str, ...]) -> list[int]:
    """Numbers of the categories that a member has; all where nothing tells."""
    names = _categories_of(value)
    every = list(range(len(wanted)))
    if names is None or has_default_names(names) or has_default_names(wanted):
        return every
    found = [c for c in every if wanted[c] in set(names)]
    return found or every  # of which the join says that none is there


def _values(
    value: Any, labels: PartialLabels, name: str, *, judged: bool
) -> tuple[NDArray[np.float64], NDArray[Any] | None, list[str]]:
    """(N, C) values of one member, folds of the rows where there are any, and notes."""
    if isinstance(value, (TuneResult, FoldArtifacts)):
        held = read_held_out(value, labels)
        return held.logits.double().cpu().numpy(), held.fold, list(held.notes)
    if is_pair(value):
        if len(value) != 2:
            raise ShapeError(f"{name} must be a pair of a head and features.")
        head, features = value
        if judged:
            logits, _, _, found = head_logits(head, (features, labels))
            return logits.double().cpu().numpy(), None, list(found)
        aligned = align(head, features, labels, name=name)
        logits = aligned.scored.logits(aligned.take(features))
        check_head_logits(logits, aligned.categories, name=name)
        return logits.double().cpu().numpy(), None, aligned.notes
    outputs = value if isinstance(value, Outputs) else Outputs(value)
    values, notes = outputs.for_labels(labels, name)
    return values, None, notes


def outside(columns: Sequence[Columns], categories: Sequence[str]) -> list[str]:
    """What is no probability although it was called one, a sentence for each member."""
    notes = []
    for one in columns:
        wrong = (one.values < 0.0) | (one.values > 1.0)
        if one.kind != "probabilities" or not wrong.any():
            continue
        counts = wrong.sum(axis=0)
        shown = [f"{categories[int(c)]!r} ({counts[c]:,})" for c in np.flatnonzero(counts)]
        notes.append(
            f"member {one.name!r} has values outside [0, 1], from {one.values.min():.4g} to "
            f"{one.values.max():.4g}: {some(shown, 3)}. They are no probabilities."
        )
    return notes


def alike(columns: Sequence[Columns], categories: Sequence[str]) -> list[str]:
    """Columns that two members have in common, and columns that are constant, a sentence each."""
    sets: dict[tuple[str, ...], list[str]] = {}
    notes = []
    for c, category in enumerate(categories):
        found: dict[bytes, list[str]] = {}
        for one in columns:
            column = np.ascontiguousarray(one.values[:, c])
            if not one.has[c] or column.size < 2:
                continue
            if column.min() == column.max():
                notes.append(f"member {one.name!r} gives every image one value for {category!r}.")
            else:
                found.setdefault(column.tobytes(), []).append(one.name)
        for same in found.values():
            if len(same) > 1:
                sets.setdefault(tuple(same), []).append(repr(category))
    for one in columns:
        values = one.values[:, one.has]
        if one.kind == "logits" and values.size > 1 and 0.0 <= values.min() < values.max() <= 1.0:
            notes.append(
                f"all logits of member {one.name!r} lie between 0 and 1: if they are "
                "probabilities, kind='probabilities' says so."
            )
    for names, where in sets.items():
        listed = ", ".join(map(repr, names[:-1])) + f" and {names[-1]!r}"
        notes.append(
            f"members {listed} have the same values for {some(where, 3)}: there they count as "
            f"{len(names)} although they are one."
        )
    return notes
