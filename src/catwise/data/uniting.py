"""Several data sets as one: joined by category, what a set does not label is unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from catwise.data.dataset import Dataset
from catwise.errors import ConfigError, IdError, check_choice
from catwise.labels.core import PartialLabels
from catwise.labels.renaming import matching_names

GROUPS: Final = ("source", "own")
SPLIT_NAMES: Final = {
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation", "dev"),
    "test": ("test", "testing"),
}
"""What data sets call the same split."""


def union(
    sets: Mapping[str, Dataset | PartialLabels],
    *,
    groups: Literal["source", "own"] = "source",
) -> Dataset:
    """Join data sets into one, by the names of their categories.

    Args:
        sets: by the name of their source. Each has ids.
        groups: "source": the group of an image is its source, so that folds and splits leave out
            whole sources; "own": it is its own group led by its source, such as
            "chexpert/patient00001", which all sets must have.

    Returns:
        The images of all sets, in their order. Ids are led by the source, as in "a/0001.jpg".
        Categories are those of all sets, in the order of first appearance; one that a set does not
        have is unknown in its images. Splits are those of the sets, where "val", "validation" and
        "dev" are "valid", "training" is "train" and "testing" is "test". Paths lead to the images
        from the working folder. A note names categories that may mean the same.

    Raises:
        ConfigError: If there are fewer than two sets, or a name is empty or has a "/".
        IdError: If a set has no ids, or with groups="own" no groups.

    >>> a = PartialLabels([[1, 0]], ids=["1"], categories=["cat", "dog"])
    >>> b = PartialLabels([[1]], ids=["1"], categories=["dog"])
    >>> both = union({"a": a, "b": b})
    >>> both.labels.ids.tolist(), both.labels.codes.tolist(), both.groups.tolist()
    (['a/1', 'b/1'], [[1, 0], [-1, 1]], ['a', 'b'])
    """
    check_choice("groups", groups, GROUPS)
    wrong = [name for name in sets if not name.strip() or "/" in name]
    if len(sets) < 2 or wrong:
        raise ConfigError(
            "a union is of two sets or more, each with a name.",
            found=f"the name {wrong[0]!r}" if wrong else f"{len(sets)} set",
            expected="names without '/'",
        )
    parts = {name: _labels(name, one, groups) for name, one in sets.items()}
    labels = _joined(parts, groups)
    sizes = [part.n_rows for part in parts.values()]
    given = [one if isinstance(one, Dataset) else None for one in sets.values()]
    empty = [np.zeros(n, "U1") for n in sizes]
    splits = [e if one is None else _splits(one) for one, e in zip(given, empty, strict=True)]
    paths = [e if one is None else _paths(one) for one, e in zip(given, empty, strict=True)]
    counts: dict[str, Any] = {
        "images_by_source": dict(zip(parts, sizes, strict=True)),
        "categories_by_source": {name: part.n_categories for name, part in parts.items()},
    }
    notes = [f"{name}: {note}" for name, one in sets.items() if isinstance(one, Dataset)
             for note in one.notes]  # fmt: skip
    return Dataset(
        "union",
        Path(),
        np.concatenate(paths),
        labels,
        np.concatenate(splits),
        counts,
        (*notes, *_alike(list(parts.values()))),
    )


def _labels(name: str, one: Dataset | PartialLabels, groups: str) -> PartialLabels:
    labels = one.labels if isinstance(one, Dataset) else one
    for what, there in (("ids", labels.ids), ("groups", labels.groups)):
        if there is None and (what == "ids" or groups == "own"):
            raise IdError(
                f"the images of {name!r} have no {what}.",
                expected=f"{what} in every set of a union",
                remedy="name their column: id_column='…' (--id-column NAME)"
                if what == "ids"
                else "groups='source', or name their column: group_column='…' "
                "(--group-column NAME)",
            )
    return labels


def _joined(parts: Mapping[str, PartialLabels], groups: str) -> PartialLabels:
    """The labels of all sets."""
    names = list(dict.fromkeys(name for part in parts.values() for name in part.categories))
    rows: list[list[NDArray[Any]]] = [[] for _ in names]
    codes: list[list[NDArray[Any]]] = [[] for _ in names]
    place = {name: j for j, name in enumerate(names)}
    start = 0
    for part in parts.values():
        for category in part.categories:
            here, values = part.entries(category)
            rows[place[category]].append(here + start)
            codes[place[category]].append(values)
        start += part.n_rows
    columns = [(np.concatenate(r), np.concatenate(c)) for r, c in zip(rows, codes, strict=True)]
    led = [[f"{name}/{one}" for one in _texts(part.ids)] for name, part in parts.items()]
    grouped = [
        [source] * part.n_rows
        if groups == "source"
        else [f"{source}/{one}" for one in _texts(part.groups)]
        for source, part in parts.items()
    ]
    return PartialLabels.from_columns(
        columns,
        start,
        names,
        ids=np.concatenate([np.array(ids, dtype=np.str_) for ids in led]),
        groups=np.concatenate([np.array(some, dtype=np.str_) for some in grouped]),
        storage="auto",
    )


def _texts(names: NDArray[np.str_] | None) -> list[str]:
    return [] if names is None else names.tolist()


def _paths(one: Dataset) -> NDArray[np.str_]:
    """Paths from the working folder; blank ones stay blank."""
    return np.array([(one.root / path).as_posix() if path else "" for path in one.paths.tolist()])


def _splits(one: Dataset) -> NDArray[np.str_]:
    """The splits of a set by the names that all sets share; a set that has both keeps its own."""
    own = set(one.splits.tolist())
    names = {name: name for name in own}
    for name, others in SPLIT_NAMES.items():
        here = [other for other in own if other.lower() in others]
        if len(here) == 1:
            names[here[0]] = name
    return np.array([names[split] for split in one.splits.tolist()], dtype=np.str_)


def _alike(parts: Sequence[PartialLabels]) -> list[str]:
    """Categories of different sets that may mean the same, under other names."""
    found: dict[str, str] = {}
    for i, part in enumerate(parts):
        for other in parts[:i]:
            found |= matching_names(part.categories, other.categories)
    pairs = ", ".join(f"{old!r} and {new!r}" for old, new in found.items())
    return [f"may mean the same, and stay apart: {pairs}."] if pairs else []
