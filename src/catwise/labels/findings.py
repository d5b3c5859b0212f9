"""What is suspicious in labels, and which categories are unknown together.

Nothing here is an error: labels with findings can be used, but a person should look at them first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from catwise._splitmix import mix
from catwise.errors import ShapeError
from catwise.labels.codes import UNKNOWN
from catwise.labels.columns import ranges
from catwise.labels.core import PartialLabels
from catwise.labels.draws import text_keys

FINDINGS: Final = {
    "no_known_label": "No label is known in these categories.",
    "constant": "Every row has the same known label in these categories.",
    "never_positive": "Negatives are known in these categories, but no positive.",
    "never_negative": "Positives are known in these categories, but no negative.",
    "same_labels": "These categories have the same labels in all rows: one may be a copy.",
    "names_alike": "These categories' names differ only in case or spaces.",
    "ids_alike": (
        "These ids differ only in case, spaces or the ending of an image file: an image may be "
        "there twice."
    ),
    "paths_twice": "These paths are those of several rows, which are not of one group.",
    "groups_in_two_splits": (
        "These groups (such as patients) are in several splits: scores on one split are flattered "
        "by the other."
    ),
    "reader_counts": "The reader met and counted what may need a look.",
}
"""Finding → what it means."""

EXAMPLES: Final = 20
MIN_TWINS: Final = 2  # labels that two categories must share before they are called the same
ODD_COUNTS: Final = re.compile(
    "conflict|contradict|repeated|annotated_and_negative|negative_and_not_exhaustive|unlike"
    "|in_two_|in_both_|in_neither_|listed_twice|listed_images_without|without_(files|images)$"
)
"""Names of counts of the readers that should be 0."""
IMAGE_ENDINGS: Final = re.compile(r"\.(jpe?g|png|dcm|dicom|tiff?|bmp|webp|gif)$")
ENDINGS_OF_LINES: Final = re.compile(IMAGE_ENDINGS.pattern, re.MULTILINE)

CHUNK_ROWS: Final = 1 << 16
CHUNK_PAIRS: Final = 1 << 22
SPARSE_BUDGET: Final = 1 << 28
DENSE_BUDGET: Final = 1 << 36
DENSE_FROM: Final = 1 / 16
"""Share of entries that are not unknown from which products of matrices are faster than pairs."""
ALPHA: Final = 0.01


def find_suspicious(
    labels: PartialLabels,
    *,
    splits: Any = None,
    paths: Any = None,
    counts: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Look for what labels of sound images seldom have.

    Takes time in proportion to the labels that are there, and to the rows.

    Args:
        labels: the labels.
        splits: (N,) the split of each row, such as `Dataset.splits`; None or all the same: not
            looked at. ShapeError if these, or the paths, are not as many as the rows.
        paths: (N,) paths of the images; blank ones are not looked at.
        counts: what a reader met, such as `Dataset.counts`.

    Returns:
        For each finding a JSON-ready dict: "finding" (a key of `FINDINGS`), "n" (how many),
        "examples" (up to 20, each a list of the names that belong together) and "explanation".
        Nothing suspicious: an empty list.

    >>> from catwise.labels import PartialLabels
    >>> labels = PartialLabels([[1, 0, 1], [0, -1, 0]], categories=["cat", "dog", "Cat"])
    >>> [(found["finding"], found["examples"]) for found in find_suspicious(labels)]
    [('never_positive', [['dog']]), ('same_labels', [['cat', 'Cat']]),
    ('names_alike', [['cat', 'Cat']])]
    """
    split_of, path_of = _texts(labels, "splits", splits), _texts(labels, "paths", paths)
    found = _odd_categories(labels)
    found["same_labels"] = _same_labels(labels)
    found["names_alike"] = _twice(np.array(labels.categories, dtype=np.str_), _folded_names)
    if labels.ids is not None:
        found["ids_alike"] = _twice(labels.ids, _folded_ids)
    if path_of is not None:
        found["paths_twice"] = _same_paths(path_of, labels.groups)
    if split_of is not None and labels.groups is not None:
        found["groups_in_two_splits"] = _in_two_splits(labels.groups, split_of)
    found["reader_counts"] = [[f"{name}: {n:,}"] for name, n in _odd_counts(counts or {})]
    return [
        {
            "finding": name,
            "n": len(examples),
            "examples": examples[:EXAMPLES],
            "explanation": FINDINGS[name],
        }
        for name, examples in found.items()
        if examples
    ]


def _texts(labels: PartialLabels, what: str, given: Any) -> NDArray[np.str_] | None:
    if given is None:
        return None
    texts = np.asarray(given, dtype=np.str_)
    if texts.shape != (labels.n_rows,):
        raise ShapeError(
            f"{what} and labels do not fit together.",
            found=f"{what} {texts.shape}, labels of {labels.n_rows:,} rows",
            expected=f"({labels.n_rows},)",
        )
    return texts


def _odd_categories(labels: PartialLabels) -> dict[str, list[list[str]]]:
    """Categories that lack a class, by what they lack."""
    counts, n_rows = labels.counts(), labels.n_rows
    known, positive, negative = counts.known > 0, counts.positive > 0, counts.negative > 0
    one_class = known & ~(positive & negative)
    constant = one_class & (counts.known == n_rows) & (n_rows > 1)
    marked = {
        "no_known_label": ~known,
        "constant": constant,
        "never_positive": one_class & ~positive & ~constant,
        "never_negative": one_class & ~negative & ~constant,
    }
    return {
        name: [[labels.categories[j]] for j in np.flatnonzero(mask).tolist()]
        for name, mask in marked.items()
    }


def _same_labels(labels: PartialLabels) -> list[list[str]]:
    """Categories that are alike in every row; those with one label in all rows do not count."""
    counts = labels.counts()
    n_labels = counts.known + counts.uncertain
    varies = np.max([counts.positive, counts.negative, counts.uncertain], axis=0) < labels.n_rows
    candidates = np.flatnonzero((n_labels >= MIN_TWINS) & varies)
    same = []
    for twins in _runs(_column_hashes(labels)[1][candidates]):
        first, *others = candidates[twins].tolist()
        rows, codes = labels.entries(first)
        alike = []
        for j in others:
            other, of_other = labels.entries(j)
            if np.array_equal(rows, other) and np.array_equal(codes, of_other):
                alike.append(j)
        if alike:
            same.append([labels.categories[j] for j in (first, *alike)])
    return same


def _column_hashes(labels: PartialLabels) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(C,) hashes of which rows are not unknown, and (C,) of their codes too."""
    keys = mix(np.arange(labels.n_rows, dtype=np.uint64))
    where = np.zeros(labels.n_categories, dtype=np.uint64)
    what = np.zeros(labels.n_categories, dtype=np.uint64)
    if labels.storage == "columns":
        columns = labels.as_columns()
        for j in range(labels.n_categories):
            span = columns.span(j)
            key = keys[columns.rows[span]]
            where[j] = key.sum()
            what[j] = mix(key ^ columns.codes[span].astype(np.uint64)).sum()
        return where, what
    for start, codes in labels.blocks():
        key = keys[start : start + len(codes), None]
        here = codes != UNKNOWN
        where += np.where(here, key, np.uint64(0)).sum(axis=0, dtype=np.uint64)
        mixed = np.where(here, mix(key ^ codes.astype(np.uint64)), np.uint64(0))
        what += mixed.sum(axis=0, dtype=np.uint64)
    return where, what


def _runs(keys: NDArray[Any]) -> Iterator[NDArray[np.int64]]:
    """Positions, ascending, of each value that is there more than once."""
    order = np.argsort(keys, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(keys[order]) != 0, True)) + 1
    starts = np.append(0, ends[:-1])
    several = ends - starts > 1
    for start, end in sorted(
        zip(starts[several].tolist(), ends[several].tolist(), strict=True),
        key=lambda bounds: int(order[bounds[0]]),
    ):
        yield order[start:end]


def _twice(texts: NDArray[np.str_], fold: Callable[[list[str]], list[str]]) -> list[list[str]]:
    """Texts that are the same once folded."""
    keys = np.empty(len(texts), dtype=np.uint64)
    for start in range(0, len(texts), CHUNK_ROWS):
        folded = fold(texts[start : start + CHUNK_ROWS].tolist())
        keys[start : start + CHUNK_ROWS] = text_keys(np.array(folded, dtype=np.str_))
    return [texts[rows].tolist() for rows in _runs(keys)]


def _folded_names(texts: list[str]) -> list[str]:
    return [" ".join(text.casefold().split()) for text in texts]


def _folded_ids(texts: list[str]) -> list[str]:
    """In lower case, without space around and the ending of an image."""
    lines = "\n".join([text.strip() for text in texts])
    if lines.count("\n") == len(texts) - 1:  # all at once, if none has lines of its own
        return ENDINGS_OF_LINES.sub("", lines.casefold()).split("\n")
    return [IMAGE_ENDINGS.sub("", text.strip().casefold()) for text in texts]


def _same_paths(paths: NDArray[np.str_], groups: NDArray[np.str_] | None) -> list[list[str]]:
    """Paths of several rows. Rows of one group may share theirs: objects in one image."""
    rows = np.flatnonzero(paths != "")
    keys = text_keys(paths if len(rows) == len(paths) else paths[rows])
    return [
        [str(paths[rows[same[0]]])]
        for same in _runs(keys)
        if groups is None or len(set(groups[rows[same]].tolist())) > 1
    ]


def _in_two_splits(groups: NDArray[np.str_], splits: NDArray[np.str_]) -> list[list[str]]:
    if not np.any(splits[1:] != splits[:-1]):
        return []
    names, group = np.unique(groups, return_inverse=True)
    split = np.unique(splits, return_inverse=True)[1]
    first = np.zeros(len(names), dtype=np.int64)
    first[group] = split  # the split of any one row of the group
    others = np.unique(group[split != first[group]])
    return [[str(name)] for name in names[others].tolist()]


def _odd_counts(counts: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Counts over 0 that should be 0; those that are told for each split are added up."""
    for name, value in counts.items():
        parts = list(value.values()) if isinstance(value, Mapping) else [value]
        numbers = [part for part in parts if isinstance(part, (int, np.integer))]
        if ODD_COUNTS.search(name) and len(numbers) == len(parts) and sum(numbers):
            yield name, int(sum(numbers))


def unknown_together(labels: PartialLabels, *, n_pairs: int = 10, few: int = 10) -> dict[str, Any]:
    """Which categories are unknown in the same rows, more often than by chance.

    Looked at are categories with `few` unknown rows and `few` others; uncertain labels are not
    unknown. Categories that are unknown in exactly the same rows are one entry in "same" and take
    part in the pairs once. A pair is shown where the number of rows in which both are unknown
    exceeds what independent rows would give, by Bernstein's inequality at 1% for all pairs
    together; the strongest by phi, the correlation of the two. Very large labels are searched on
    some of the rows, evenly drawn; the numbers of the pairs are always those of all rows.

    Args:
        labels: the labels.
        n_pairs: how many pairs to show.
        few: so many rows must be unknown, and so many others not.

    Returns:
        JSON-ready: "n_categories" that were looked at, "same" (up to 20 lists of names), "n_same",
        "pairs" (dicts of "first", "second", "n_unknown_first", "n_unknown_second", "n_together",
        "expected", "lift" (n_together / expected) and "phi"), "n_beyond_chance" (pairs; among the
        rows that were searched), and "n_rows_searched".

    Source: Hoeffding, "Probability inequalities for sums of bounded random variables", JASA 58,
    1963, section 6: bounds for independent draws hold for draws without replacement.

    >>> from catwise.labels import PartialLabels
    >>> codes = np.zeros((200, 3), dtype=np.int8)
    >>> codes[:100, :2], codes[::2, 2], codes[0, 0] = -1, -1, 0
    >>> found = unknown_together(PartialLabels(codes, categories=["a", "b", "c"]))
    >>> [(pair["first"], pair["second"], round(pair["phi"], 2)) for pair in found["pairs"]]
    [('a', 'b', 0.99)]
    """
    counts = labels.counts()
    present = counts.known + counts.uncertain
    eligible = np.flatnonzero(np.minimum(present, labels.n_rows - present) >= few)
    same = _same_rows(labels, eligible)
    chosen = np.setdiff1d(eligible, [j for twins in same for j in twins[1:]])
    found: dict[str, Any] = {
        "n_categories": len(eligible),
        "same": [[labels.categories[j] for j in twins] for twins in same[:EXAMPLES]],
        "n_same": len(same),
        "pairs": [],
        "n_beyond_chance": 0,
        "n_rows_searched": labels.n_rows if len(chosen) > 1 else 0,
    }
    if len(chosen) < 2:
        return found
    part, dense = _searched_rows(labels, chosen)
    best: list[tuple[float, int, int]] = []
    for start, both in (_dense_pairs if dense else _sparse_pairs)(part):
        more, n_beyond = _beyond_chance(start, both, part, n_pairs)
        best = sorted([*best, *more], key=lambda pair: (-pair[0], pair[1:]))[:n_pairs]
        found["n_beyond_chance"] += n_beyond
    pairs = [_pair(labels, int(chosen[i]), int(chosen[j])) for _, i, j in best]
    found["pairs"] = sorted(pairs, key=lambda pair: -float(pair["phi"]))
    found["n_rows_searched"] = part.n_rows
    return found


def _same_rows(labels: PartialLabels, eligible: NDArray[np.int64]) -> list[list[int]]:
    """Categories that are unknown in exactly the same rows."""
    if len(eligible) < 2:
        return []
    where = _column_hashes(labels)[0][eligible]
    return [eligible[twins].tolist() for twins in _runs(where)]


def _searched_rows(labels: PartialLabels, chosen: NDArray[np.int64]) -> tuple[PartialLabels, bool]:
    """The chosen categories of as many rows as the search may take, and whether they are dense."""
    part = labels if len(chosen) == labels.n_categories else labels.take_categories(chosen.tolist())
    width = np.zeros(part.n_rows, dtype=np.int64)
    if part.storage == "columns":
        rows = part.as_columns().rows
        for start in range(0, len(rows), CHUNK_PAIRS):
            width += np.bincount(rows[start : start + CHUNK_PAIRS], minlength=part.n_rows)
    else:
        for start, codes in part.blocks():
            width[start : start + len(codes)] = np.count_nonzero(codes != UNKNOWN, axis=1)
    dense = bool(width.sum() > part.n_rows * part.n_categories * DENSE_FROM)
    cost = np.full(part.n_rows, part.n_categories**2) if dense else width**2
    order = np.argsort(mix(np.arange(part.n_rows, dtype=np.uint64)))
    within = np.cumsum(cost[order]) <= (DENSE_BUDGET if dense else SPARSE_BUDGET)
    if within.all():
        return part, dense
    return part.take_rows(np.sort(order[within])), dense


def _dense_pairs(part: PartialLabels) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """For blocks of categories: the first one, and in how many rows each has a label with each."""
    n = part.n_categories
    width = max(1, CHUNK_PAIRS // n)
    for start in range(0, n, width):
        both = np.zeros((min(width, n - start), n))
        for _, codes in part.blocks():
            for i in range(0, len(codes), CHUNK_ROWS):  # float32 counts them exactly
                here = (codes[i : i + CHUNK_ROWS] != UNKNOWN).astype(np.float32)
                both += here[:, start : start + width].T @ here
        yield start, both


def _sparse_pairs(part: PartialLabels) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """The same, from the labels that are there."""
    columns, n = part.as_columns(), part.n_categories
    category = np.repeat(np.arange(n), np.diff(columns.starts))
    length = np.bincount(columns.rows, minlength=part.n_rows)
    first = np.cumsum(length) - length
    of_row = category[np.argsort(columns.rows, kind="stable")]  # row after row
    width = max(1, CHUNK_PAIRS // n)
    for start in range(0, n, width):
        size = min(width, n - start)
        both = np.zeros(size * n, dtype=np.int64)
        block = slice(int(columns.starts[start]), int(columns.starts[start + size]))
        rows, one = columns.rows[block], category[block] - start
        ends = np.append(0, np.cumsum(length[rows]))
        at = 0
        while at < len(rows):
            stop = max(at + 1, int(np.searchsorted(ends, ends[at] + CHUNK_PAIRS, "right")) - 1)
            here = rows[at:stop]
            other = of_row[ranges(first[here], length[here])]
            pair = np.repeat(one[at:stop] * n, length[here]) + other
            both += np.bincount(pair, minlength=size * n)
            at = stop
        yield start, both.reshape(size, n).astype(np.float64)


def _beyond_chance(
    start: int, both: NDArray[np.float64], part: PartialLabels, n_pairs: int
) -> tuple[list[tuple[float, int, int]], int]:
    """The strongest pairs (phi, first, second) of a block, and how many are beyond chance."""
    n_rows, n = part.n_rows, part.n_categories
    counts = part.counts()
    have = (counts.known + counts.uncertain).astype(np.float64)
    one = have[start : start + len(both), None]
    excess = both - one * have / n_rows
    variance = one * (n_rows - one) / n_rows * (have * (n_rows - have) / n_rows) / n_rows
    log = np.log(n * (n - 1) / 2 / ALPHA)
    beyond = excess > log / 3 + np.sqrt(log**2 / 9 + 2 * variance * log)
    beyond &= np.arange(n) > np.arange(start, start + len(both))[:, None]
    at = np.flatnonzero(beyond)
    phi = excess.ravel()[at] / np.sqrt(variance.ravel()[at] * n_rows)
    top = np.argsort(-phi, kind="stable")[:n_pairs]
    found = [(float(phi[i]), start + int(at[i] // n), int(at[i] % n)) for i in top]
    return found, len(at)


def _pair(labels: PartialLabels, first: int, second: int) -> dict[str, Any]:
    """What is to be said of two categories, on all rows."""
    n_rows = labels.n_rows
    rows, others = labels.entries(first)[0], labels.entries(second)[0]
    one, other = n_rows - len(rows), n_rows - len(others)
    both = len(np.intersect1d(rows, others, assume_unique=True))
    together = one + other - n_rows + both
    expected = one * other / n_rows
    spread = math.sqrt(one * (n_rows - one) * other * (n_rows - other))
    return {
        "first": labels.categories[first],
        "second": labels.categories[second],
        "n_unknown_first": one,
        "n_unknown_second": other,
        "n_together": together,
        "expected": expected,
        "lift": together / expected,
        "phi": (n_rows * together - one * other) / spread,
    }
