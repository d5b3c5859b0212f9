"""What readers of data sets have in common: finding files, reading them, joining what they say."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catwise._json import parse
from catwise.data.checks import refuse_wrong
from catwise.data.dataset import Dataset
from catwise.data.files import TableFile, listed, read_whole, truncated
from catwise.data.packed import first_there
from catwise.data.source import (
    IdAffixes,
    LabelTable,
    check_textual,
    encode_columns,
    filled,
    refuse_values,
)
from catwise.errors import CatwiseError, ConfigError, IdError, LabelError
from catwise.labels.codes import UNKNOWN, Codes, Rows
from catwise.labels.columns import Columns, Storage, row_dtype
from catwise.labels.core import PartialLabels
from catwise.labels.encodings import UNFIT, Encoding
from catwise.labels.names import refuse_repeats

AGAIN: Final = "download the file again"


# Files


def find(
    root: Path,
    names: Iterable[str],
    what: str,
    *,
    alone: str | None = None,
    found: str | None = None,
    remedy: str | None = None,
) -> Path:
    """The first of some files in a folder that is there, packed (.gz, .zst) or not.

    Several are refused where `alone` says what to do then, with {} for the name of the first.
    """
    names = list(names)
    there = [path for name in names if (path := first_there(root, name)) is not None]
    if alone is not None and len(there) > 1:
        raise ConfigError(
            f"'{root}' has more than one {what}.",
            found=listed([path.relative_to(root).as_posix() for path in there]),
            remedy=alone.format(there[0].name),
        )
    if not there:
        raise LabelError(
            f"'{root}' has no {what}.",
            found=found if root.is_dir() else "no such folder",
            expected=" or ".join(f"'{name}'" for name in dict.fromkeys(names)),
            remedy=remedy,
        )
    return there[0]


def find_splits(
    root: Path,
    names: Mapping[str, Sequence[str]],
    split: str | None,
    what: str,
    **options: str | None,
) -> dict[str, Path]:
    """The file of each split that is there, or that of the split asked for; options of `find`."""
    wanted = names if split is None else {split: names[split]}
    there = {
        name: find(root, files, f"{what} for the split {name!r}", **options)
        for name, files in wanted.items()
        if split is not None or any(first_there(root, file) is not None for file in files)
    }
    if not there:
        find(root, [file for files in wanted.values() for file in files], what, **options)
    return there


def relative(paths: Mapping[str, Path], root: Path) -> dict[str, str]:
    """Paths of files from the root."""
    return {name: path.relative_to(root).as_posix() for name, path in paths.items()}


def read_bytes(path: Path, what: str, *, limit: int | None = None) -> bytes:
    """The bytes of a file that holds `what`."""
    try:
        content = read_whole(path, limit)
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        raise LabelError(
            f"there is no file '{path}'." if missing else f"cannot read '{path}'.",
            found=None if missing else error.strerror,
            expected=what,
            remedy="correct the root, or download the file into it"
            if missing
            else "check the path and its permissions",
        ) from error
    if not content.removeprefix(b"\xef\xbb\xbf").strip():
        raise LabelError(f"'{path}' is empty.", expected=what, remedy=AGAIN)
    return content


def decode(path: Path, content: bytes, *, above: int = 0) -> str:
    """The text of bytes in UTF-8, which stand below so many lines; a byte-order mark is skipped."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1 + above
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise LabelError(
            f"'{path}', line {line:,}: is not UTF-8 text.",
            found=f"byte {content[error.start]:#04x} in column {column:,}",
            remedy=AGAIN,
        ) from error


def read_text(path: Path, what: str, *, limit: int | None = None) -> str:
    """The text of a file; errors as for `read_bytes`, and if it is not UTF-8."""
    return decode(path, read_bytes(path, what, limit=limit))


class Listing(NamedTuple):
    """The lines of a list and their numbers; blank lines do not count."""

    path: Path
    names: list[str]
    lines: list[int]

    def place(self, index: int) -> str:
        """Where an entry is, for people."""
        return f"'{self.path}', line {self.lines[index]:,}"

    def refuse(self, pattern: str, expected: str, *, error: type[CatwiseError] = IdError) -> None:
        """Refuse the first entry that does not match a pattern as a whole."""
        good = [re.fullmatch(pattern, name) is not None for name in self.names]
        what = f"'{self.path}' has an entry that is not as it should be."
        refuse_wrong(self.names, good, self.place, what, expected=expected, error=error)

    def refuse_repeats(self, what: str = "image", *, error: type[CatwiseError] = IdError) -> None:
        """Refuse a duplicate entry."""
        refuse_repeats(
            self.names, self.place, f"'{self.path}' has a duplicate {what}.", error=error
        )


def read_list(path: Path, what: str) -> Listing:
    """The lines of a text file without the space around them."""
    lines = read_text(path, what).split("\n")
    pairs = [(line.strip(), number) for number, line in enumerate(lines, 1) if line.strip()]
    return Listing(path, [name for name, _ in pairs], [number for _, number in pairs])


def read_json(
    path: Path, what: str, *, keep: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """What a JSON file holds; `keep` makes of the pairs of an object what is kept of it."""

    def pairs_of(pairs: list[tuple[str, Any]]) -> Any:
        if len({key for key, _ in pairs}) < len(pairs):
            key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            named = next((f" of {v!r}" for k, v in pairs if k == "instance_id" and v), "")
            raise LabelError(f"'{path}': an object has a key twice.", found=f"{key!r}{named}")
        return dict(pairs) if keep is None else keep(pairs)

    text = read_text(path, what)
    try:
        return parse(text, object_pairs_hook=pairs_of)
    except LabelError:
        raise
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip(" \t\r\n\0")) or error.msg.startswith("Unterminated"):
            raise truncated(path, f"it ends in line {error.lineno:,}: {error.msg}") from error
        raise LabelError(
            f"'{path}', line {error.lineno:,}, column {error.colno:,}: is not JSON.",
            found=f"{error.msg}: {text[error.pos : error.pos + 40]!r}",
            remedy=AGAIN,
        ) from error
    except ValueError as error:
        raise LabelError(f"'{path}' is not JSON that can be read.", found=str(error)) from error


def describe(value: Any) -> str:
    """What a value of a JSON file is, for people."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if isinstance(value, (int, float)):
        return f"the number {value!r}"[:60]
    return "a list" if isinstance(value, list) else "an object"


# Tables


def read_columns(
    file: TableFile,
    roles: Mapping[str, str],
    *,
    labels: Sequence[str] = (),
    encoding: Encoding | None = None,
    coded: Sequence[str] = (),
) -> tuple[dict[str, Any], Codes]:
    """Columns of names, as Arrow texts with "" for blanks, and (N, C) codes of `labels`."""
    import pyarrow as pa

    for column, role in [*roles.items(), *((name, "labels") for name in labels)]:
        file.require(column, role)
    source = LabelTable(file, None, None, None, None, IdAffixes("", "", "", ""))
    texts: dict[str, list[Any]] = {column: [] for column in roles}
    blocks = []
    for batch, _ in source.batches([*roles, *labels], coded=[*labels, *coded]):
        codes = np.empty((batch.num_rows, 0), dtype=np.int8)
        if encoding is not None:
            codes = encode_columns(batch, labels, encoding)
        if bool((codes == UNFIT).any()):
            refuse_values(source, labels, encoding)
        blocks.append(codes)
        for column, parts in texts.items():
            check_textual(batch.column(column).type, column, file)
            parts.append(filled(batch.column(column)))
    return {name: pa.concat_arrays(parts) for name, parts in texts.items()}, np.concatenate(blocks)


def in_column(file: TableFile, column: str) -> Callable[[int], str]:
    """The places of a column."""
    return lambda row: file.place(row, column)


def matches(array: Any, pattern: str) -> Any:
    """Which texts of an Arrow array match a regular expression."""
    from pyarrow import compute

    return compute.match_substring_regex(array, pattern)


def numbered(array: Any) -> tuple[Any, Rows]:
    """The different texts of an Arrow array as they come, and the number of each row's."""
    import pyarrow as pa

    coded = array.dictionary_encode()
    rows: Any = np.from_dlpack(coded.indices.cast(pa.int64()))
    return coded.dictionary, rows


def matched(values: NDArray[Any], keys: NDArray[Any]) -> Rows:
    """The place of each value among different keys, -1 where it is not among them."""
    order = np.argsort(keys, kind="stable")
    at = np.minimum(np.searchsorted(keys, values, sorter=order), len(keys) - 1)
    rows: Rows = np.where(keys[order[at]] == values, order[at], -1)
    return rows


# Labels and images


def distinct(keys: NDArray[Any]) -> NDArray[Any]:
    """Different numbers, ascending: `numpy.unique`, which is slow where it hashes."""
    ordered = np.sort(keys)
    return np.compress(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)], ordered)


def sparse(keys: Rows, codes: Codes, n_rows: int, n_categories: int) -> Columns:
    """Labels whose keys (category × rows + row) ascend as columns; unknown ones are left out."""
    here = codes != UNKNOWN
    keys, codes = (keys, codes) if here.all() else (keys[here], codes[here])
    starts = np.searchsorted(keys, np.arange(n_categories + 1) * n_rows).astype(np.int64)
    rows: Rows = keys % max(n_rows, 1)
    return Columns(starts, rows.astype(row_dtype(n_rows)), codes)


class Located(NamedTuple):
    """Where images are: (N,) paths from the root, "" where no folder has the file."""

    paths: NDArray[np.str_]
    there: tuple[str, ...]  # the folders that are there
    n_missing: int  # different files that no folder has
    n_twice: int  # different files that two folders have


def locate_images(root: Path, folders: Sequence[str], files: Sequence[str]) -> Located:
    """Look for files in folders; the first folder that has a file counts."""
    held = {name: _names_in(root / name) for name in folders}
    where: dict[str, str] = {}
    for folder in reversed(folders):
        where |= dict.fromkeys(held[folder] or (), folder)
    copies = Counter(name for names in held.values() for name in names or ())
    different = set(files)
    return Located(
        np.array([f"{where[f]}/{f}" if f in where else "" for f in files], dtype=np.str_),
        tuple(name for name in folders if held[name] is not None),
        sum(name not in where for name in different),
        sum(copies[name] > 1 for name in different),
    )


def _names_in(folder: Path) -> list[str] | None:
    try:
        return os.listdir(folder)  # noqa: PTH208 - a hundred thousand names at once
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LabelError(f"cannot read the folder '{folder}'.", found=error.strerror) from error


class Images(NamedTuple):
    """The images of a data set, (N,) each."""

    ids: Any
    paths: Any
    splits: Any
    groups: Any = None


def dataset(
    name: str,
    root: Path,
    labels: tuple[Codes | Columns, Sequence[str]],
    images: Images,
    *,
    counts: Mapping[str, Any],
    notes: Iterable[str],
    storage: Storage = "auto",
    checked: bool = False,
) -> Dataset:
    """A data set of codes (checked and not shared) and categories; `checked`: ids are too."""
    ids = np.asarray(images.ids, dtype=np.str_)
    rest: dict[str, Any] = {"groups": images.groups, "storage": storage, "checked": checked}
    content, categories = labels
    for texts in (images.paths, images.splits):  # which are not shared: no copy is made
        if isinstance(texts, np.ndarray):
            texts.flags.writeable = False
    read = PartialLabels.from_content(content, len(ids), tuple(categories), ids=ids, **rest)
    return Dataset(name, root, images.paths, read, images.splits, dict(counts), tuple(notes))
