"""PartialLabels: what is known, unknown and uncertain, for each image and category."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from catwise._arrays import is_sparse
from catwise.errors import ConfigError, IdError
from catwise.labels.codes import POSITIVE, UNKNOWN, Codes, LabelCounts, Rows
from catwise.labels.columns import Columns, Storage, as_stored, dense_counts
from catwise.labels.encodings import Encoding
from catwise.labels.names import category_names, category_positions, row_names
from catwise.labels.reading import (
    array_codes,
    array_names,
    describe_cell,
    encode_array,
    row_positions,
    sparse_codes,
    two_dimensional,
)
from catwise.labels.renaming import renamed

BLOCK_ENTRIES: Final = 1 << 23


class PartialLabels:
    """Labels of N images in C categories, many of them unknown. Immutable.

    Stored either dense, one byte for every image and category, or as columns: for each category
    the rows that have a label. Both give the same answers; columns never need memory in
    proportion to rows × categories, except where a dense result is asked for.

    Args:
        codes: (N, C) of 1 positive, 0 negative, -1 unknown, -2 uncertain; copied.
        ids: (N,) different names of the images, texts or whole numbers. None: rows are known by
            their position only.
        categories: C different names; "0", "1", … when not given.
        groups: (N,) such as the patient of each image; images of one group are never split.
        storage: "dense", "columns", or "auto": columns where under one entry in eight is not
            unknown and there are a million entries or more.

    Raises:
        LabelError: If codes hold another value.
        ShapeError: If codes are not (N, C), or ids, groups or categories do not fit.
        IdError: If ids repeat, or an id or group is blank.
        CategoryError: If two categories have one name.

    >>> labels = PartialLabels([[1, -1], [0, -2]], categories=["cat", "dog"])
    >>> labels
    PartialLabels(n_rows=2, n_categories=2, known=2, storage='dense')
    >>> labels.known(0)
    (array([0, 1]), array([ True, False]))
    """

    __slots__ = ("_columns", "_dense", "categories", "groups", "ids", "n_rows")

    categories: tuple[str, ...]
    ids: NDArray[np.str_] | None
    groups: NDArray[np.str_] | None
    n_rows: int
    _dense: Codes | None
    _columns: Columns | None

    def __init__(
        self,
        codes: Any,
        ids: Any = None,
        categories: Sequence[str] | None = None,
        groups: Any = None,
        *,
        storage: Storage = "auto",
    ) -> None:
        checked = array_codes(codes, categories)
        names = category_names(categories, checked.shape[1])
        self._fill(checked, len(checked), names, ids=ids, groups=groups, storage=storage)

    def _fill(
        self,
        content: Codes | Columns,
        n_rows: int,
        categories: tuple[str, ...],
        *,
        ids: Any,
        groups: Any,
        storage: Storage,
        checked: bool = False,
    ) -> None:
        """Set every slot from codes that are checked and not shared."""
        stored = as_stored(content, n_rows, storage)
        dense = None if isinstance(stored, Columns) else stored
        columns = stored if isinstance(stored, Columns) else None
        if not checked:
            ids = row_names(ids, n_rows, "ids", unique=True)
            groups = row_names(groups, n_rows, "groups", unique=False)
        for array in (dense, ids, groups, *(columns or ())):
            if array is not None:
                array.flags.writeable = False
        _set = object.__setattr__
        _set(self, "categories", categories)
        _set(self, "n_rows", n_rows)
        _set(self, "ids", ids)
        _set(self, "groups", groups)
        _set(self, "_columns", columns)
        _set(self, "_dense", dense)

    @classmethod
    def from_content(
        cls, content: Codes | Columns, n_rows: int, categories: tuple[str, ...], **rest: Any
    ) -> PartialLabels:
        """Build labels from codes that are checked and not shared: for readers, and no copy."""
        labels = cls.__new__(cls)
        labels._fill(content, n_rows, categories, **rest)  # noqa: SLF001 - an object of this class
        return labels

    @classmethod
    def from_array(
        cls,
        y: Any,
        *,
        encoding: str | Encoding | None = None,
        ids: Any = None,
        categories: Sequence[str] | None = None,
        groups: Any = None,
        storage: Storage = "auto",
        others: Literal["unknown", "negative"] | None = None,
    ) -> PartialLabels:
        """Read labels from an array in a named encoding.

        Args:
            y: (N, C): a numpy array, torch tensor, nested list (None is a blank), or a data frame,
                whose column names become the categories. A masked entry is unknown, whatever lies
                under the mask. A sparse array (scipy, torch) stores single entries.
            encoding: a name in `ENCODINGS`, or an `Encoding`. It must be given.
            ids: as for `PartialLabels`.
            categories: as for `PartialLabels`.
            groups: as for `PartialLabels`.
            storage: as for `PartialLabels`.
            others: for a sparse array, and only there: what entries mean that it does not store,
                "unknown" or "negative". It must be given.

        Raises:
            LabelError: If no encoding is named, or it does not know a value; the error lists the
                encodings that do. If y is not a dense array, or is sparse without `others`.
            ShapeError: If y is not (N, C).
            ConfigError: If `others` is given for what is not sparse.

        >>> PartialLabels.from_array([[1, None], [0, 1]], encoding="nan").codes
        array([[ 1, -1],
               [ 0,  1]], dtype=int8)
        >>> y = np.ma.array([[1, 0]], mask=[[False, True]])
        >>> PartialLabels.from_array(y, encoding="nan").codes
        array([[ 1, -1]], dtype=int8)
        """
        categories = array_names(y) if categories is None else categories
        content: Codes | Columns
        if is_sparse(y):
            content, n_rows, names = sparse_codes(y, encoding, others, categories)
        elif others is not None:
            raise ConfigError("others= belongs to sparse arrays.", found=f"a {type(y).__name__}")
        else:
            array = two_dimensional(y)
            n_rows, n_columns = array.values.shape
            names = category_names(categories, n_columns)
            content = encode_array(array, encoding, where=lambda place: describe_cell(place, names))
        rest: dict[str, Any] = {"ids": ids, "groups": groups, "storage": storage}
        return cls.from_content(content, n_rows, names, **rest)

    @classmethod
    def from_columns(
        cls,
        columns: Iterable[tuple[Any, Any]],
        n_rows: int,
        categories: Sequence[str] | None = None,
        ids: Any = None,
        groups: Any = None,
        *,
        storage: Storage = "columns",
    ) -> PartialLabels:
        """Build labels from the labelled rows of each category, never making (N, C).

        `columns` holds for each category (rows, codes): integers from 0 to N − 1 in any order, each
        once, and their codes. Rows that are not listed are unknown. The rest is as for
        `PartialLabels`, the errors too.

        >>> PartialLabels.from_columns([([2, 0], [1, 0]), ([], [])], 3).codes
        array([[ 0, -1],
               [-1, -1],
               [ 1, -1]], dtype=int8)
        """
        pairs = list(columns)
        names = category_names(categories, len(pairs))
        content = Columns.from_pairs(pairs, n_rows)
        return cls.from_content(content, n_rows, names, ids=ids, groups=groups, storage=storage)

    @classmethod
    def from_table(cls, path: Any, **options: Any) -> PartialLabels:
        """Deprecated: use `catwise.data.read_label_table`."""
        labels: PartialLabels = _moved("from_table", "catwise.data.read_label_table")(
            path, **options
        )
        return labels

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"PartialLabels are immutable: {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"PartialLabels are immutable: {name} cannot be deleted")

    def __reduce__(self) -> tuple[Any, ...]:
        made = partial(PartialLabels.from_content, **self._rest())
        return made, (self._content(), self.n_rows, self.categories)

    def __repr__(self) -> str:
        return (
            f"PartialLabels(n_rows={self.n_rows}, n_categories={self.n_categories}, "
            f"known={int(self.counts().known.sum())}, storage={self.storage!r})"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PartialLabels):
            return NotImplemented
        return (
            self.n_rows == other.n_rows
            and self.categories == other.categories
            and _same(self.ids, other.ids)
            and _same(self.groups, other.groups)
            and self._same_codes(other)
        )

    __hash__ = None  # type: ignore[assignment]

    def _same_codes(self, other: PartialLabels) -> bool:
        if self._dense is not None and other._dense is not None:
            return np.array_equal(self._dense, other._dense)
        mine, theirs = self.as_columns(), other.as_columns()
        return (
            np.array_equal(mine.starts, theirs.starts)
            and np.array_equal(mine.rows, theirs.rows)
            and np.array_equal(mine.codes, theirs.codes)
        )

    def _content(self) -> Codes | Columns:
        return self._columns if self._dense is None else self._dense  # type: ignore[return-value]

    def _rest(self, rows: Rows | None = None, storage: Storage | None = None) -> dict[str, Any]:
        """What goes along with codes: checked ids and groups, and the storage."""
        return {
            "ids": self.ids if self.ids is None or rows is None else self.ids[rows],
            "groups": self.groups if self.groups is None or rows is None else self.groups[rows],
            "storage": storage or self.storage,
            "checked": True,
        }

    @property
    def n_categories(self) -> int:
        """C."""
        return len(self.categories)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, C)."""
        return self.n_rows, self.n_categories

    def __len__(self) -> int:
        return self.n_rows

    @property
    def storage(self) -> Literal["dense", "columns"]:
        """How the codes are stored."""
        return "columns" if self._dense is None else "dense"

    @property
    def codes(self) -> Codes:
        """(N, C) int8, read-only: a view of dense storage, made from columns."""
        if self._dense is not None:
            return self._dense
        dense = self.block(0, self.n_rows)
        dense.flags.writeable = False
        return dense

    def block(self, start: int, stop: int) -> Codes:
        """Rows start to stop as (rows, C) int8 codes; bounds are cut as in a slice.

        >>> PartialLabels([[1, 0], [0, 1]]).block(1, 2)
        array([[0, 1]], dtype=int8)
        """
        start, stop, _ = slice(start, stop).indices(self.n_rows)
        if self._columns is not None:
            return self._columns.dense(start, max(start, stop))
        return self.codes[start:stop]

    def blocks(self) -> Iterator[tuple[int, Codes]]:
        """(first row, codes) block by block, each of some ten million entries at most."""
        step = max(1, BLOCK_ENTRIES // max(self.n_categories, 1))
        for start in range(0, self.n_rows, step):
            yield start, self.block(start, start + step)

    def units(self) -> Rows:
        """(N,) int64: the number of each row's group in the order of names, or of the row itself.

        >>> PartialLabels([[1], [0], [1]], groups=["b", "a", "b"]).units()
        array([1, 0, 1])
        """
        if self.groups is None:
            return np.arange(self.n_rows)
        return np.unique(self.groups, return_inverse=True)[1].astype(np.int64)

    def column(self, j: int | str) -> Codes:
        """Codes of one category, by position or name, as a new (N,) array; else CategoryError."""
        j = self._position(j)
        if self._columns is None:
            return np.array(self.codes[:, j])
        column = np.full(self.n_rows, UNKNOWN, dtype=np.int8)
        rows, codes = self.entries(j)
        column[rows] = codes
        return column

    def entries(self, j: int | str) -> tuple[Rows, Codes]:
        """Rows of one category that are not unknown, ascending, and their codes.

        >>> PartialLabels([[1], [-1], [-2]]).entries(0)
        (array([0, 2]), array([ 1, -2], dtype=int8))
        """
        j = self._position(j)
        if self._columns is None:
            codes = self.codes[:, j]
            rows = np.flatnonzero(codes != UNKNOWN)
            return rows, codes[rows]
        span = self._columns.span(j)
        return self._columns.rows[span].astype(np.int64), self._columns.codes[span]

    def known(self, j: int | str) -> tuple[Rows, NDArray[np.bool_]]:
        """Hard known labels of one category: int64 rows, ascending, and which are positive.

        CategoryError if it is not there.
        """
        rows, codes = self.entries(j)
        hard = codes >= 0
        if not hard.all():
            rows, codes = rows[hard], codes[hard]
        return rows, codes == POSITIVE

    def counts(self) -> LabelCounts:
        """How many labels each category has.

        >>> PartialLabels([[1, -2], [0, -1]]).counts().known
        array([2, 0])
        """
        content = self._content()
        counted = content.counts() if isinstance(content, Columns) else dense_counts(content)
        positive, negative, uncertain = counted
        return LabelCounts(positive + negative, positive, negative, uncertain)

    def as_columns(self) -> Columns:
        """The labels as compressed columns: `.starts`, `.rows`, `.codes`, read-only."""
        return Columns.from_dense(self.codes) if self._columns is None else self._columns

    def with_storage(self, storage: Storage) -> PartialLabels:
        """Return the same labels, stored as asked for."""
        rest = self._rest(storage=storage)
        return self.from_content(self._content(), self.n_rows, self.categories, **rest)

    def keep_entries(self, kept: Callable[[int, Rows, Codes], NDArray[np.bool_]]) -> PartialLabels:
        """Return the labels that are marked; the others become unknown.

        `kept` is called for each category with its position, the rows that are not unknown and
        their codes; it says which stay.

        >>> PartialLabels([[1], [0]]).keep_entries(lambda j, rows, codes: codes == 1).codes
        array([[ 1],
               [-1]], dtype=int8)
        """
        if self._columns is not None:
            masks = [kept(j, *self.entries(j)) for j in range(self.n_categories)]
            content: Codes | Columns = self._columns.keep(
                np.concatenate(masks) if masks else np.empty(0, dtype=bool)
            )
        else:
            content = np.full(self.shape, UNKNOWN, dtype=np.int8)
            for j in range(self.n_categories):
                rows, codes = self.entries(j)
                mask = kept(j, rows, codes)
                content[rows[mask], j] = codes[mask]
        return self.from_content(content, self.n_rows, self.categories, **self._rest())

    def with_entries(self, j: int | str, rows: Rows, codes: Codes) -> PartialLabels:
        """Return the labels with other ones in some rows of a category.

        Args:
            j: the category, by position or name.
            rows: (M,) different row numbers.
            codes: (M,) their codes.

        >>> PartialLabels([[1], [0]]).with_entries(0, np.array([1]), np.array([1])).codes
        array([[1],
               [1]], dtype=int8)
        """
        at = self._position(j)
        if self._dense is not None:
            content: Codes = self._dense.copy()
            content[rows, at] = codes
            return self.from_content(content, self.n_rows, self.categories, **self._rest())
        columns = [self.entries(k) for k in range(self.n_categories)]
        old, had = columns[at]
        stays = ~np.isin(old, rows)
        every = np.concatenate([old[stays], np.asarray(rows, dtype=old.dtype)])
        values = np.concatenate([had[stays], np.asarray(codes, dtype=np.int8)])
        order = np.argsort(every, kind="stable")
        columns[at] = every[order], values[order]
        return self.from_columns(
            columns, self.n_rows, self.categories, ids=self.ids, groups=self.groups,
            storage=self.storage,
        )  # fmt: skip

    def take_rows(self, index: Any) -> PartialLabels:
        """Return some rows, in the order asked for.

        `index` is positions (negative ones count from the end), a mask of N truth values, or a
        slice; ShapeError if it does not fit. IdError if a row that has an id is taken twice.

        >>> PartialLabels([[1], [0], [-1]], ids=["a", "b", "c"]).take_rows([2, 0]).ids.tolist()
        ['c', 'a']
        """
        rows = row_positions(index, self.n_rows)
        if self.ids is not None and len(np.unique(rows)) != len(rows):
            raise IdError(
                "rows with ids cannot be taken twice.", remedy="weights, or labels without ids"
            )
        content: Codes | Columns
        if self._columns is None:
            content = self.codes[rows]
        else:
            content = self._columns.take_rows(rows, self.n_rows)
        return self.from_content(content, len(rows), self.categories, **self._rest(rows))

    def take_categories(self, wanted: Iterable[str | int]) -> PartialLabels:
        """Return some categories, by name or position, in the order asked for.

        CategoryError if one is not there, or is asked for twice.

        >>> PartialLabels([[1, 0]], categories=["cat", "dog"]).take_categories(["dog"]).codes
        array([[0]], dtype=int8)
        """
        index = category_positions(self.categories, [wanted] if isinstance(wanted, str) else wanted)
        names = category_names([self.categories[j] for j in index], len(index))
        content: Codes | Columns
        if self._columns is None:
            content = np.ascontiguousarray(self.codes[:, index])
        else:
            content = self._columns.take_columns(index)
        return self.from_content(content, self.n_rows, names, **self._rest())

    def rename_categories(self, new_names: Mapping[str, str]) -> PartialLabels:
        """Return the same labels with other names of some categories: {old: new}.

        CategoryError if two would have one name, or neither name of a pair is there.

        >>> PartialLabels([[1]], categories=["Effusion"]).rename_categories(
        ...     {"Effusion": "Pleural Effusion"}
        ... ).categories
        ('Pleural Effusion',)
        """
        names = renamed(self.categories, new_names)
        return self.from_content(self._content(), self.n_rows, names, **self._rest())

    def targets(self, policy: Any = None, seed: int = 0) -> Any:
        """Deprecated: use `catwise.labels.make_targets`."""
        return _moved("targets", "catwise.labels.make_targets")(self, policy, seed)

    def audit(self, *, few: int = 5) -> Any:
        """Deprecated: use `catwise.labels.audit_labels`."""
        return _moved("audit", "catwise.labels.audit_labels")(self, few=few)

    def _position(self, j: int | str) -> int:
        if isinstance(j, str) or not 0 <= j < self.n_categories:
            return int(category_positions(self.categories, [j])[0])
        return int(j)


def _moved(method: str, function: str) -> Callable[..., Any]:
    """The function that took the place of a method; says so."""
    what = f"PartialLabels.{method} is deprecated: use {function}."
    warnings.warn(what, DeprecationWarning, stacklevel=3)
    module, _, name = function.rpartition(".")
    moved: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return moved


def _same(mine: NDArray[Any] | None, theirs: NDArray[Any] | None) -> bool:
    if mine is None or theirs is None:
        return mine is theirs
    return np.array_equal(mine, theirs)
