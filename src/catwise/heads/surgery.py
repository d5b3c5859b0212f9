"""Writing a head into a copy of a checkpoint: only the head's bytes change."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from catwise._io import atomic_path
from catwise._lock import remove
from catwise._safetensors import FileLayout
from catwise.errors import (
    CategoryError,
    CheckpointError,
    HeadError,
    ShapeError,
    nearest,
)
from catwise.heads.archive import Archive, fix_crc, record_name
from catwise.heads.catalog import (
    Catalog,
    Entry,
    load_tensor,
    open_catalog,
    storage_start,
    unreadable,
    view_of,
)
from catwise.heads.core import Head
from catwise.heads.fit import check_destination, fitting_bias, fitting_numbers, same_bits
from catwise.heads.locate import Found, HeadLocation, find_head
from catwise.heads.provenance import (
    put_beside,
    record_beside,
    remembered,
    side_file,
    stamp,
)
from catwise.heads.resizing import Replacement, write_resized
from catwise.heads.saved import head_of_layout
from catwise.heads.state import head_at, read_head

_OTHER_ROWS: Final = "to give the copy the head's rows and no others, resize=True"


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What was written where.

    Attributes:
        location: the head that was overwritten.
        rows: the rows that were overwritten, in the head's order.
        cast: how the numbers were rounded to the checkpoint's dtype, or ``""`` if they were not.
        resized_from: how many rows there were, where their number changed; else None.
    """

    location: HeadLocation
    rows: tuple[int, ...]
    cast: str
    resized_from: int | None = None

    def __str__(self) -> str:
        cast = f", {self.cast}" if self.cast else ""
        of = f"{self.location.n_categories:,} rows of {self.location.name!r}"
        if self.resized_from is not None:
            return f"{of} in place of {self.resized_from:,}{cast}"
        return f"{len(self.rows):,} of {of}{cast}"


@dataclass(frozen=True, slots=True)
class _Patch:
    """New values for some rows of one tensor."""

    entry: Entry
    rows: tuple[int, ...]
    values: torch.Tensor

    def apply(self, view: torch.Tensor) -> None:
        rows, layout = torch.tensor(self.rows), self.entry.layout
        if layout == "groups":
            size = self.entry.shape[2]
            view.permute(0, 2, 1)[rows // size, rows % size] = self.values
            return
        target = view[0] if layout == "one" or self.is_flat else view
        target[rows] = self.values.reshape(len(self.rows), *target.shape[1:])

    @property
    def is_flat(self) -> bool:
        """Whether this is a bias of shape (1, C)."""
        return self.values.ndim == 1 and len(self.entry.shape) == 2


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is written where: some rows over others, or tensors of another number of rows."""

    found: Found
    patches: list[_Patch]
    resized: list[Replacement]
    report: WriteReport

    def write(self, source: Path, target: Path, catalog: Catalog) -> None:
        """Write the copy, and read it again."""
        if self.resized:
            write_resized(source, target, catalog, self.resized)
            return
        starts = [storage_start(catalog, patch.entry) for patch in self.patches]
        shutil.copyfile(source, target)
        for patch, start in zip(self.patches, starts, strict=True):
            _overwrite(target, patch, start)
        _fix_checksums(target, catalog, self.patches)
        _verify(target, catalog, self.found, self.patches)

    def is_change(self, catalog: Catalog) -> bool:
        """Whether the head gets other numbers."""
        return bool(self.resized) or any(_changes(catalog, patch) for patch in self.patches)


def write_head(
    source: str | os.PathLike[str],
    head: Head,
    destination: str | os.PathLike[str],
    *,
    key: str | None = None,
    bias_key: str | None = None,
    categories: Sequence[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    resize: bool = False,
    overwrite: bool = False,
) -> WriteReport:
    """Write a head into a copy of a checkpoint file; the input is never touched.

    Only the head's bytes change: in a safetensors file the tensors' range; in a `torch.save`
    archive the storage's range and the record's CRC-32. Names, dtypes, metadata, the pickle and all
    other tensors stay byte for byte, but for the text that `provenance` adds. The head that was
    read makes an identical file: `write_head(m, read_head(m), n)`.

    Args:
        source: the checkpoint.
        head: the head; cast to the checkpoint's dtype.
        destination: the new file, elsewhere than `source`.
        key: the weight's key, as in :func:`read_head`.
        bias_key: the bias's key, when it is not named like the weight's.
        categories: the names of the checkpoint's rows. With them the head's categories are matched
            by name and may be some of the rows; without them the head must have all rows in order.
        provenance: what to say of the head, JSON-ready, ``{}`` for nothing. None: how it was tuned
            and digests of the rows that fitted it, so far as the head knows that and differs from
            the one that was there; :func:`read_head` of the new file then knows these rows, and
            :func:`evaluate` marks them. In a safetensors file it is the text ``catwise`` of the
            metadata; a `torch.save` archive has no place for it: there it is the file
            ``NAME.catwise.json`` beside it, which must go where that goes. `written`, a digest of
            the numbers that are then in the file, is added.
        resize: the copy's rows are those of the head and no others, in its order: more, fewer or
            other ones than the checkpoint has. `categories` then only helps to find the place.
            Other tensors keep their bytes, also those that go by categories, such as an
            optimizer's: what else the model's code or configuration says of their number is not
            changed (but see `catwise.models.writing.write_model`).
        overwrite: replace a file that is at `destination`.

    Returns:
        What was written; its `cast` says how the numbers were rounded, if they were.

    Raises:
        CheckpointError: If the source cannot be read.
        HeadError: If the place is not clear, tied, quantised or weight-normed; if one has a bias
            and the other none; or if a number is too large for the checkpoint's dtype.
        ShapeError: If head and checkpoint differ in features or rows.
        CategoryError: If a category is not among the checkpoint's rows.
        OutputError: If the destination is the source, exists, or cannot be written.

    >>> import tempfile, torch
    >>> from catwise.heads import Head, read_head
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"fc.weight": torch.zeros(3, 2)}, f"{folder}/a.pt")
    ...     new = Head([[1.0, 2.0]], categories=["dog"])
    ...     report = write_head(
    ...         f"{folder}/a.pt", new, f"{folder}/b.pt", categories=["ant", "cat", "dog"]
    ...     )
    ...     print(report)
    ...     read_head(f"{folder}/b.pt").weight
    1 of 3 rows of 'fc.weight'
    tensor([[0., 0.],
            [0., 0.],
            [1., 2.]])
    """
    if isinstance(source, Mapping):
        raise HeadError(
            "write_head writes files.",
            found="a state_dict",
            remedy="write_head_to_state_dict gives a new state_dict",
        )
    catalog = open_catalog(source)
    check_destination(Path(destination), [Path(source)], what="the checkpoint", overwrite=overwrite)
    place: dict[str, Any] = {"key": key, "bias_key": bias_key, "categories": categories}
    plan = _plan(catalog, head, **place, resize=resize)
    said = _said(catalog, head, plan) if provenance is None else provenance
    beside = said is not None and not isinstance(catalog.origin, FileLayout)
    if beside:  # one without its file was left by a process that was killed
        alone = not Path(destination).exists()
        side = side_file(Path(destination))
        check_destination(side, [Path(source)], what="the checkpoint", overwrite=overwrite or alone)
    for patch in plan.patches:
        load_tensor(catalog, patch.entry)  # a damaged record is found before anything is written
    with (
        _removed_if_it_fails(side_file(Path(destination)) if beside else None),
        atomic_path(destination) as temporary,
    ):
        plan.write(Path(source), temporary, catalog)
        if said is not None:
            location = plan.found.location
            place = {"key": location.name, "bias_key": location.bias_key}
            told = {**said, "written": read_head(temporary, **place).digest}
            if beside:  # first: on a full disk neither is left
                put_beside(Path(destination), told)
            else:
                stamp(temporary, told)
    return plan.report


@contextlib.contextmanager
def _removed_if_it_fails(side: Path | None) -> Iterator[None]:
    """A new side file tells of a copy that is not there, if the block fails."""
    is_new = side is not None and not side.exists()
    try:
        yield
    except BaseException:
        if is_new and side is not None:
            remove(side)
        raise


def write_head_to_state_dict(
    state_dict: Mapping[str, Any],
    head: Head,
    *,
    key: str | None = None,
    bias_key: str | None = None,
    categories: Sequence[str] | None = None,
    resize: bool = False,
) -> dict[str, Any]:
    """Return a new state_dict with this head in it; the given one is not changed.

    All other tensors are the same objects as before. Arguments and errors are those of
    `write_head`. A state_dict has no place for what the head remembers of the rows that
    fitted it: keep the head itself, too (:func:`~catwise.save_head`).

    >>> from catwise.heads import Head
    >>> old = {"fc.weight": torch.zeros(1, 2), "other": 3}
    >>> write_head_to_state_dict(old, Head([[1.0, 2.0]]))
    {'fc.weight': tensor([[1., 2.]]), 'other': 3}
    >>> old["fc.weight"]
    tensor([[0., 0.]])
    """
    catalog = open_catalog(state_dict)
    place: dict[str, Any] = {"key": key, "bias_key": bias_key, "categories": categories}
    plan = _plan(catalog, head, **place, resize=resize)
    result = copy.copy(state_dict)
    for part in plan.resized or plan.patches:
        was = part.entry.value
        if isinstance(part, _Patch):
            value = was.detach().clone()
            part.apply(value)
        else:
            value = part.values.to(was.device)
        if isinstance(was, torch.nn.Parameter):
            value = torch.nn.Parameter(value, requires_grad=was.requires_grad)
        _put(result, state_dict, part.entry, value)
    return result  # type: ignore[return-value]


def _put(result: Any, original: Mapping[str, Any], entry: Entry, value: torch.Tensor) -> None:
    """Set one tensor in the copy; the tables that lead to it are copied, once."""
    for table, table_was, left in _paths(result, original, entry.container):
        if not left and table_was.get(entry.key) is entry.value:
            table[entry.key] = value
            return
    raise HeadError(f"the state_dict has no place for {entry.name!r} that can be set.")


def _paths(table: Any, was: Any, container: str) -> Any:
    """Yield the (copied) table that a container's name leads to; names may hold dots."""
    yield table, was, container
    for name, inner in was.items():
        text = str(name)
        if isinstance(inner, Mapping) and (container + ".").startswith(text + "."):
            if table[name] is inner:
                table[name] = copy.copy(inner)
            yield from _paths(table[name], inner, container[len(text) + 1 :])


def _plan(
    catalog: Catalog,
    head: Head,
    *,
    key: str | None,
    bias_key: str | None,
    categories: Sequence[str] | None,
    resize: bool,
) -> _Plan:
    """Find the place, match the rows, cast the numbers; nothing is written."""
    _check_factor(head)
    names = tuple(map(str, categories)) if categories is not None else _own_names(catalog, key)
    own = names is not None and categories is None
    if own and resize:
        raise HeadError(
            f"{catalog.label} is a head of catwise, not a checkpoint.",
            remedy="save_head writes a head of any number of rows",
        )
    n_rows = len(names) if names is not None else None if resize else head.n_categories
    found = _find(
        catalog,
        key="weight" if own and key is None else key,
        bias_key=bias_key,
        n_categories=n_rows if key is None else None,
    )
    location, n_new = found.location, head.n_categories
    if resize:
        _check_one_vector(found)
    rows = tuple(range(n_new)) if resize else _match(head, location, names)
    if head.n_features != location.n_features:
        raise ShapeError(
            "the head does not fit the checkpoint.",
            found=f"a head of {head.n_features:,} features",
            expected=f"{location.n_features:,}, as {location.name!r} has",
        )
    bias = _bias_values(head, found)
    patches, cast = _patches(found, rows, head.weight, bias)
    if not resize or n_new == location.n_categories:
        return _Plan(found, patches, [], WriteReport(location, rows, cast))
    report = WriteReport(replace(location, n_categories=n_new), rows, cast, location.n_categories)
    resized = [Replacement.of(patch.entry, patch.values) for patch in patches]
    return _Plan(found, [], resized, report)


def _check_factor(head: Head) -> None:
    """Refuse a head that holds a constant of its model which is no part of the checkpoint."""
    factor = head.provenance.get("factor", 1)
    if factor != 1:
        raise HeadError(
            "the head is that of a model that multiplies what its layer gives.",
            found=f"a head that is {factor} times the layer",
            expected="numbers of the layer itself",
            remedy="write it with the model, which divides it: --model python:MODULE:FUNCTION; in "
            "Python write_model",
        )


def _check_one_vector(found: Found) -> None:
    """Refuse a layer whose categories have features each."""
    if found.weight.layout != "matrix" or found.parts:
        raise HeadError(
            f"the head {found.location.name!r} cannot have other rows.",
            found=str(found.location),
            expected="one layer that gives every category the same features",
            remedy="a category that has features or a layer of its own needs a model that was "
            "trained with it",
        )


def _find(catalog: Catalog, *, n_categories: int | None, **place: Any) -> Found:
    """The place of the head; where none has so many rows, the error says what else there is."""
    try:
        return find_head(catalog, n_categories=n_categories, **place)
    except HeadError as error:
        if n_categories is None:
            raise
        facts = {"found": error.found, "expected": error.expected}
        remedy = f"{error.remedy}; {_OTHER_ROWS}" if error.remedy else _OTHER_ROWS
        raise HeadError(error.what, **facts, remedy=remedy) from error


def _own_names(catalog: Catalog, key: str | None) -> tuple[str, ...] | None:
    """The row names of a file that save_head wrote."""
    layout = catalog.origin
    if not isinstance(layout, FileLayout) or catalog.path is None:
        return None
    if key not in {None, "weight"} or "catwise_head" not in layout.metadata:
        return None
    return head_of_layout(catalog.path, layout).categories


def _said(catalog: Catalog, head: Head, plan: _Plan) -> Mapping[str, Any] | None:
    """What the copy says of its head where the caller says nothing."""
    assert catalog.path is not None  # noqa: S101  # write_head reads files
    old = None
    with suppress(HeadError):  # such as one that is not finite
        old = head_at(catalog, plan.found)
    if plan.is_change(catalog):
        return remembered(head, old, n_rows=plan.report.location.n_categories)
    # Metadata are copied with the file; a record beside it is not.
    has_no_text = not isinstance(catalog.origin, FileLayout)
    is_beside = has_no_text and old is not None and old.fitted_on is not None
    return record_beside(catalog.path) if is_beside else None


def _changes(catalog: Catalog, patch: _Patch) -> bool:
    """Whether a patch gives its tensor other numbers."""
    new = load_tensor(catalog, patch.entry).clone()
    patch.apply(new)
    return not same_bits(new, load_tensor(catalog, patch.entry))


def _match(head: Head, location: HeadLocation, names: tuple[str, ...] | None) -> tuple[int, ...]:
    """The checkpoint's row for each of the head's categories."""
    n_rows = location.n_categories
    if names is None:
        if head.n_categories != n_rows:
            raise ShapeError(
                "the head does not fit the checkpoint.",
                found=f"a head of {head.n_categories:,} categories",
                expected=f"{n_rows:,}, as {location.name!r} has",
                remedy="pass categories=[…], the names of the checkpoint's rows, "
                f"to write some of them by name; {_OTHER_ROWS}",
            )
        numbers = {str(i): i for i in range(n_rows)}
        by_number = all(name in numbers for name in head.categories)
        return tuple(numbers[c] if by_number else i for i, c in enumerate(head.categories))
    if len(names) != n_rows or len(set(names)) != n_rows:
        raise ShapeError(
            "the names of the checkpoint's rows do not fit it.",
            found=f"{len(set(names)):,} different names",
            expected=f"{n_rows:,}, one for each row of {location.name!r}",
        )
    index = {name: i for i, name in enumerate(names)}
    missing = [name for name in head.categories if name not in index]
    if missing:
        raise CategoryError(
            f"{len(missing):,} of the head's categories are not rows of the checkpoint.",
            found=", ".join(repr(n) + nearest(n, names) for n in missing[:3]),
            expected=f"names among the {n_rows:,} of {location.name!r}",
        )
    return tuple(index[name] for name in head.categories)


def _bias_values(head: Head, found: Found) -> torch.Tensor | None:
    return fitting_bias(
        head,
        None if found.bias is None else found.bias.name,
        what="the checkpoint's head",
        found=str(found.location),
        remedy="tune without a bias, or name the checkpoint's bias with bias_key='…'",
    )


def _patches(
    found: Found, rows: tuple[int, ...], weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[list[_Patch], str]:
    """New values for the rows of one layer, or of a layer each; how they are rounded."""
    patches, texts = [], []
    for values, name in ((weight, "weight"), (bias, "bias")):
        key = found.location.key if name == "weight" else found.location.bias_key
        entries = [getattr(part, name) for part in found.parts or (found,)]
        if values is None or entries[0] is None or key is None:
            continue
        if found.parts:
            new = [_patch(entries[r], (0,), values[i : i + 1]) for i, r in enumerate(rows)]
        else:
            new = [_patch(entries[0], rows, values)]
        patches += new
        texts.append(_cast_text(values, new, key))
    return patches, "; ".join(filter(None, texts))


def _patch(entry: Entry, rows: tuple[int, ...], values: torch.Tensor) -> _Patch:
    assert entry.dtype is not None  # noqa: S101  # find_head refuses it
    remedy = "convert the checkpoint to float32 first"
    cast = fitting_numbers(values.cpu(), entry.dtype, what=repr(entry.name), remedy=remedy)
    return _Patch(entry, rows, cast)


def _cast_text(values: torch.Tensor, patches: Sequence[_Patch], key: str) -> str:
    """How numbers were rounded to the dtype of the checkpoint; '' where they were not."""
    new = torch.cat([patch.values.double() for patch in patches])
    error = float((new - values.detach().cpu().double()).abs().max())
    if not error:
        return ""
    old = str(values.dtype).removeprefix("torch.")
    return f"{old} rounded to {patches[0].entry.dtype_name} in {key!r}, by at most {error:.3g}"


def _overwrite(path: Path, patch: _Patch, storage_at: int) -> None:
    """Write the patch's rows into the file; what lies between them is written as it was."""
    low, high = patch.entry.extent
    with path.open("r+b") as stream:
        stream.seek(storage_at + low)
        raw = bytearray(stream.read(high - low))
        patch.apply(view_of(raw, patch.entry, 0))
        stream.seek(storage_at + low)
        stream.write(raw)


def _fix_checksums(path: Path, catalog: Catalog, patches: Sequence[_Patch]) -> None:
    """Make the CRC-32 of an archive's changed records true again."""
    if not isinstance(catalog.origin, Archive):
        return
    names = {record_name(catalog.origin, patch.entry.value.storage) for patch in patches}
    try:
        for name in sorted(names):
            fix_crc(path, name)
    except ValueError as error:
        raise unreadable(catalog.label, error) from error


def _verify(path: Path, before: Catalog, found: Found, patches: Sequence[_Patch]) -> None:
    """Read the new file as anyone would and compare the head with what was meant."""
    assert before.path is not None  # noqa: S101  # write_head reads files
    catalog = open_catalog(path)
    same_size = path.stat().st_size == before.path.stat().st_size
    find_head(catalog, key=found.location.name, bias_key=found.bias_name)
    entries = {entry.name: entry for entry in catalog.entries}
    for patch in patches:
        entry = entries.get(patch.entry.name)
        expected = load_tensor(before, patch.entry)
        patch.apply(expected)
        if entry is None or not same_size or not same_bits(load_tensor(catalog, entry), expected):
            raise CheckpointError(
                f"the written head differs from the one that was meant, in {patch.entry.name!r}.",
                remedy="report this with the checkpoint's layout (list_heads); nothing was written",
            )
