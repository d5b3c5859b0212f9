"""Simulated partial labels as files: which labels stay, by what protocol, with a checksum.

A mask file is a safetensors file. Its one or two tensors say which labels stay, in the smaller of
two layouts: "bits", one bit for every image and category (`bits`, (N, ⌈C / 8⌉) bytes, the highest
bit first), or "columns", the rows of each category one category after the other (`starts`, (C + 1,)
and `rows`). Its metadata hold the format's number, categories, the number of rows, digests of ids
and of the labels that stay, the protocol, and the SHA-256 of the file without that entry.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from catwise._io import write_bytes
from catwise._json import TABLE, TEXT, TEXTS, WHOLE, own, read_fields
from catwise._limits import MAX_UNPACKED, read_within
from catwise._safetensors import NUMPY_DTYPES, build, read_layout
from catwise.errors import CategoryError, ConfigError, IdError, LabelError, ShapeError
from catwise.labels.codes import UNKNOWN, Codes, Rows
from catwise.labels.columns import row_dtype
from catwise.labels.core import PartialLabels
from catwise.labels.draws import text_keys

MASK_FORMAT: Final = "1"
CHUNK: Final = 1 << 16
NUMBERS: Final = ("n_rows", "n_kept", "n_full")
FIELDS: Final = {"categories": TEXTS, "protocol": TABLE, **dict.fromkeys(NUMBERS, WHOLE)}


@dataclass(frozen=True, eq=False, repr=False)
class Mask:
    """Which labels stay. Immutable.

    Attributes:
        protocol: how they were chosen: "name", "seed" and the rest, as given to `save_mask`.
        categories: C names.
        n_rows: N.
        n_kept: how many labels stay.
        n_full: how many labels there were.
        ids_sha256: digest of the ids in their order, or None for rows without ids.
        ids_in_any_order: another digest, whatever the order, or None.
        labels_sha256: digest of the labels that stay.
        sha256: checksum of the whole file.
        bits: (N, ⌈C / 8⌉) uint8, or None.
        starts: (C + 1,) int64, or None: entries of category j are `rows[starts[j]:starts[j + 1]]`.
        rows: the rows that stay, ascending in each category, or None.
    """

    protocol: dict[str, Any]
    categories: tuple[str, ...]
    n_rows: int
    n_kept: int
    n_full: int
    ids_sha256: str | None
    ids_in_any_order: str | None
    labels_sha256: str
    sha256: str
    bits: NDArray[np.uint8] | None = None
    starts: NDArray[np.int64] | None = None
    rows: NDArray[np.integer[Any]] | None = None

    @property
    def share(self) -> float:
        """The share of the labels that stays."""
        return self.n_kept / self.n_full if self.n_full else 0.0

    def __repr__(self) -> str:
        shape = f"n_rows={self.n_rows}, n_categories={len(self.categories)}"
        return f"Mask({self.protocol['name']!r}, {shape}, n_kept={self.n_kept}, {self.sha256[:8]})"

    def kept(self, j: int, rows: Rows) -> NDArray[np.bool_]:
        """Which of these rows, ascending, keep their label of the category at position j."""
        if self.bits is not None:
            marked: NDArray[np.bool_] = (self.bits[rows, j >> 3] >> (7 - (j & 7)) & 1).astype(bool)
            return marked
        assert self.starts is not None  # noqa: S101 - one of the two layouts is there
        assert self.rows is not None  # noqa: S101
        span = self.rows[self.starts[j] : self.starts[j + 1]]
        return np.isin(rows, span, assume_unique=True)


def save_mask(
    path: str | os.PathLike[str],
    full: PartialLabels,
    kept: PartialLabels,
    *,
    protocol: Mapping[str, Any],
    overwrite: bool = True,
) -> str:
    """Write which of the labels stay.

    Args:
        path: where; its folder must exist. A file of that name is replaced, whole or not at all.
        full: (N, C) labels before dropping.
        kept: the same images and categories, some of the labels unknown.
        protocol: how they were dropped: a "name" such as "drop_uniform", its "seed" (None where
            nothing was drawn), and whatever else tells it, such as {"keep": 0.1}. JSON-ready.
        overwrite: whether a file of that name with other content may be replaced.

    Returns:
        The SHA-256 that the file holds and is checked against. Equal labels, choice and protocol
        give equal files.

    Raises:
        ShapeError: If the two differ in rows.
        CategoryError: If they differ in categories.
        IdError: If they differ in ids.
        LabelError: If a label of `kept` is not in `full`.
        ConfigError: If the protocol has no name or seed, or is not JSON-ready.
        OutputError: If the file cannot be written.

    >>> import tempfile
    >>> from catwise.labels import PartialLabels, drop_uniform
    >>> full = PartialLabels(np.eye(4, dtype=np.int8))
    >>> kept = drop_uniform(full, 0.5, seed=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "half.safetensors")
    ...     sha = save_mask(path, full, kept, protocol={"name": "drop_uniform", "seed": 1})
    ...     apply_mask(path, full) == kept
    True
    """
    text = _protocol_text(protocol)
    _check_same(kept, full)
    n_kept = _check_within(full, kept)
    metadata = {
        "catwise_mask": MASK_FORMAT,
        "categories": _json(full.categories),
        "protocol": text,
        "labels_sha256": labels_sha256(kept),
        "n_rows": str(full.n_rows),
        "n_kept": str(n_kept),
        "n_full": str(_n_entries(full)),
    }
    if full.ids is not None:
        metadata["ids_sha256"] = _texts_sha256(full.ids)
        metadata["ids_in_any_order"] = _any_order(full.ids)
    arrays = _arrays(kept, n_kept)
    sha = hashlib.sha256(build(arrays, metadata)).hexdigest()
    write_bytes(path, build(arrays, {**metadata, "sha256": sha}), replace=overwrite)
    return sha


def read_mask(path: str | os.PathLike[str]) -> Mask:
    """Read what `save_mask` wrote; LabelError if there is none, or it is damaged or was changed."""
    arrays, metadata = _read(Path(path))
    try:
        mask = _mask(arrays, metadata)
    except (KeyError, ValueError, RecursionError) as error:
        raise LabelError(
            f"the mask '{path}' is damaged.",
            found=f"no {error} in its metadata" if isinstance(error, KeyError) else str(error),
            remedy="write it again with save_mask",
        ) from error
    for array in (mask.bits, mask.starts, mask.rows):
        if array is not None:
            array.flags.writeable = False
    return mask


def apply_mask(
    path: str | os.PathLike[str], full: PartialLabels, *, same_labels: bool = True
) -> PartialLabels:
    """Keep the labels that a mask file names; the others become unknown.

    Args:
        path: a file by `save_mask`.
        full: (N, C) labels with the ids, in the order, and the categories that the mask was made
            for.
        same_labels: refuse labels that are not those of the mask. False: whatever label stands
            where the mask keeps one, such as after a correction of labels.

    Returns:
        The labels that stay, in the storage of `full`.

    Raises:
        LabelError: If the file cannot be used, or the labels that would stay are not those that
            were saved.
        ShapeError: If the labels have another number of rows.
        CategoryError: If they have other categories, or another order of them.
        IdError: If they have other ids, or another order of them.
    """
    mask = read_mask(path)
    _check_fits(path, mask, full)
    kept = full.keep_entries(lambda j, rows, _: mask.kept(j, rows))
    n_kept = _n_entries(kept)
    if same_labels and (n_kept != mask.n_kept or labels_sha256(kept) != mask.labels_sha256):
        missing = mask.n_kept - n_kept
        raise LabelError(
            f"these are not the labels that the mask '{path}' was made for.",
            found=f"{missing:,} of its {mask.n_kept:,} labels are unknown here"
            if missing
            else "the same places with other labels",
            expected="the labels from which some were dropped",
            remedy="same_labels=False (--corrected) to use the mask on corrected labels",
        )
    return kept


def _protocol_text(protocol: Any) -> str:
    try:
        protocol = dict(protocol)
        text = _json(protocol)
        good = own(text) == protocol and isinstance(protocol.get("name"), str)
        good = good and "seed" in protocol
    except (TypeError, ValueError, RecursionError):
        good = False
    if not good:
        raise ConfigError(
            "the protocol of a mask cannot be used.",
            found=repr(protocol),
            expected='a JSON-ready table with "name" and "seed"',
            remedy='{"name": "drop_uniform", "keep": 0.1, "seed": 0}',
        )
    return text


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))


def _check_same(kept: PartialLabels, full: PartialLabels) -> None:
    what = "the labels before and after dropping differ in their"
    if kept.n_rows != full.n_rows:
        raise ShapeError(
            f"{what} rows.",
            found=f"{kept.n_rows:,} rows kept",
            expected=f"{full.n_rows:,}, as before dropping",
        )
    if kept.categories != full.categories:
        raise CategoryError(f"{what} categories.", found=_first(kept.categories, full.categories))
    mine, theirs = kept.ids, full.ids
    if mine is None or theirs is None:
        if mine is not theirs:
            raise IdError(f"{what} ids.", found="ids on one side only")
    elif not np.array_equal(mine, theirs):
        raise IdError(f"{what} ids.", found=_first(mine.tolist(), theirs.tolist()))


def _first(mine: Any, theirs: Any) -> str:
    """The first difference of two lists of names."""
    for i, (here, there) in enumerate(zip(mine, theirs, strict=False)):
        if here != there:
            return f"{here!r} instead of {there!r} at position {i}"
    return f"{len(mine):,} instead of {len(theirs):,}"


def _check_within(full: PartialLabels, kept: PartialLabels) -> int:
    """How many labels stay, all of which must have been there."""
    total = 0
    for j, name in enumerate(full.categories):
        rows, codes = kept.entries(j)
        before = _codes_at(rows, *full.entries(j))
        wrong = np.flatnonzero(before != codes)
        if len(wrong):
            row = int(rows[wrong[0]])
            place = f"row {row}" if full.ids is None else f"row {row} ({str(full.ids[row])!r})"
            raise LabelError(
                "a label that stays was not there before dropping.",
                found=f"{codes[wrong[0]]} in {place}, category {name!r}",
                expected=f"{before[wrong[0]]} or -1 (unknown)",
            )
        total += len(rows)
    return total


def _codes_at(rows: Rows, there: Rows, codes: Codes) -> Codes:
    """The codes of some rows of a category whose rows `there` have codes."""
    at = np.searchsorted(there, rows)
    found = at < len(there)
    found[found] = there[at[found]] == rows[found]
    result = np.full(len(rows), UNKNOWN, dtype=np.int8)
    result[found] = codes[at[found]]
    return result


def _n_entries(labels: PartialLabels) -> int:
    counts = labels.counts()
    return int(counts.known.sum() + counts.uncertain.sum())


def _texts_sha256(texts: NDArray[np.str_]) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(texts), CHUNK):
        digest.update(_json(texts[start : start + CHUNK].tolist()).encode("ascii"))
    return digest.hexdigest()


def _any_order(texts: NDArray[np.str_]) -> str:
    """A digest of texts that does not depend on their order."""
    return f"{int(text_keys(texts).sum(dtype=np.uint64)):016x}"


def labels_sha256(labels: PartialLabels) -> str:
    """Digest of rows and codes, category by category, whatever the storage."""
    digest = hashlib.sha256()
    for j in range(labels.n_categories):
        rows, codes = labels.entries(j)
        digest.update(np.array(len(rows), dtype="<i8").tobytes())
        digest.update(rows.astype("<i8").tobytes())
        digest.update(codes.tobytes())
    return digest.hexdigest()


def _arrays(kept: PartialLabels, n_kept: int) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    width = -(-kept.n_categories // 8)
    dtype = "<i4" if row_dtype(kept.n_rows) is np.int32 else "<i8"
    if kept.n_rows * width <= 8 * (kept.n_categories + 1) + n_kept * int(dtype[-1]):
        parts = [np.packbits(codes != UNKNOWN, axis=1).tobytes() for _, codes in kept.blocks()]
        return {"bits": ("U8", (kept.n_rows, width), b"".join(parts))}
    columns = kept.as_columns()
    return {
        "starts": ("I64", columns.starts.shape, columns.starts.astype("<i8").tobytes()),
        "rows": (
            f"I{8 * int(dtype[-1])}",
            columns.rows.shape,
            columns.rows.astype(dtype).tobytes(),
        ),
    }


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The tensors and metadata of a mask file whose checksum is right."""
    try:
        layout = read_layout(path)
        raw = read_within(path, MAX_UNPACKED)
    except (OSError, ValueError) as error:
        raise LabelError(
            f"cannot read the mask '{path}'.",
            found=(error.strerror or str(error)) if isinstance(error, OSError) else str(error),
            expected="a file that save_mask wrote",
        ) from error
    metadata = dict(layout.metadata)
    version = metadata.get("catwise_mask")
    if version != MASK_FORMAT:
        raise LabelError(
            f"'{path}' holds no mask that this version reads.",
            found="another safetensors file" if version is None else f"format {version}",
            expected=f"format {MASK_FORMAT}, as save_mask writes it",
        )
    said = metadata.pop("sha256", "nothing")
    parts = {t.name: (t.dtype, t.shape, raw[t.start : t.stop]) for t in layout.tensors}
    if all(dtype in NUMPY_DTYPES for dtype, _, _ in parts.values()):
        sha = hashlib.sha256(build(parts, metadata)).hexdigest()
        if sha == said and build(parts, {**metadata, "sha256": said}) == raw:
            metadata["sha256"] = sha
            return {
                name: np.frombuffer(data, NUMPY_DTYPES[dtype]).reshape(shape)
                for name, (dtype, shape, data) in parts.items()
            }, metadata
    raise LabelError(
        f"the mask '{path}' is not as it was written: its checksum is wrong.",
        found="a changed or damaged file",
        expected=f"SHA-256 {said}",
        remedy="copy it again, or write it again with save_mask",
    )


def _mask(arrays: dict[str, NDArray[Any]], metadata: dict[str, str]) -> Mask:
    """Build the mask from parts whose checksum is right."""
    said = {name: own(metadata[name]) for name in FIELDS}
    read_fields(said, FIELDS, "its metadata")
    categories, protocol = said["categories"], said["protocol"]
    read_fields(protocol, {"name": TEXT}, "the protocol")
    n_rows, n_kept, n_full = (said[name] for name in NUMBERS)
    if "bits" in arrays:
        _check_bits(arrays, n_rows, len(categories), n_kept)
    else:
        _check_columns(arrays, n_rows, len(categories), n_kept)
    return Mask(
        protocol,
        tuple(categories),
        n_rows,
        n_kept,
        n_full,
        metadata.get("ids_sha256"),
        metadata.get("ids_in_any_order"),
        metadata["labels_sha256"],
        metadata["sha256"],
        **arrays,
    )


def _check_bits(
    arrays: dict[str, NDArray[Any]], n_rows: int, n_categories: int, n_kept: int
) -> None:
    bits, width = arrays["bits"], -(-n_categories // 8)
    if set(arrays) != {"bits"} or bits.dtype != np.uint8 or bits.shape != (n_rows, width):
        raise ValueError(f"bits of shape {bits.shape} for {n_rows:,} rows")
    beyond = (1 << (8 * width - n_categories)) - 1
    total = sum(
        int(np.unpackbits(bits[start : start + CHUNK]).sum()) for start in range(0, n_rows, CHUNK)
    )
    if total != n_kept or (width and (bits[:, -1] & beyond).any()):
        raise ValueError(f"{total:,} labels that stay, not {n_kept:,} in the categories")


def _check_columns(
    arrays: dict[str, NDArray[Any]], n_rows: int, n_categories: int, n_kept: int
) -> None:
    if set(arrays) != {"starts", "rows"} or any(a.dtype.kind != "i" for a in arrays.values()):
        raise ValueError("other tensors than bits, or starts and rows: " + ", ".join(arrays))
    starts, rows = arrays["starts"], arrays["rows"]
    if starts.shape != (n_categories + 1,) or rows.shape != (n_kept,):
        raise ValueError(f"starts {starts.shape} and rows {rows.shape} for {n_kept:,} labels")
    bounds_fit = starts[0] == 0 and starts[-1] == n_kept and (np.diff(starts) >= 0).all()
    if not bounds_fit or (n_kept and not 0 <= rows.min() <= rows.max() < n_rows):
        raise ValueError("starts or rows beyond the labels")
    ascends = np.diff(rows) > 0
    inner = starts[1:-1]
    ascends[inner[(inner > 0) & (inner < n_kept)] - 1] = True
    if not ascends.all():
        raise ValueError("rows that do not ascend in a category")


def _check_fits(path: str | os.PathLike[str], mask: Mask, full: PartialLabels) -> None:
    what = f"the mask '{path}' was made for other"
    if full.n_rows != mask.n_rows:
        raise ShapeError(
            f"{what} labels.", found=f"{full.n_rows:,} rows", expected=f"{mask.n_rows:,} rows"
        )
    if full.categories != mask.categories:
        same = set(full.categories) == set(mask.categories)
        raise CategoryError(
            f"{what} categories.",
            found=_first(full.categories, mask.categories),
            expected="the mask's categories in their order",
            remedy="labels.take_categories(read_mask(path).categories)" if same else None,
        )
    mine = None if full.ids is None else _texts_sha256(full.ids)
    if mine == mask.ids_sha256:
        return
    if mine is None or mask.ids_sha256 is None:
        found = "labels without ids" if mine is None else "labels with ids, a mask without"
    elif full.ids is not None and _any_order(full.ids) == mask.ids_in_any_order:
        found = "the same ids in another order"
    else:
        found = f"other ids, such as {str(full.ids[0])!r}" if full.ids is not None else ""
    raise IdError(f"{what} rows.", found=found, expected="the mask's ids in their order")
