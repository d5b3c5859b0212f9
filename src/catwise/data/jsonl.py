"""JSON lines as one more kind of table: a key is a column, what a record does not have is null."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, NoReturn

from catwise._json import parse
from catwise._limits import MAX_DEPTH, MAX_LINE, check_depth
from catwise.data.files import DELIMITERS, PARQUET, TableFile, too_long, truncated, unreadable
from catwise.data.packed import UNPACK_ERRORS, open_unpacked, unpacked_name
from catwise.errors import IdError, LabelError

SUFFIXES: Final = (".jsonl", ".ndjson")
_OTHERS: Final = (*DELIMITERS, *PARQUET)
_FIRST: Final = 1 << 10
BATCH_RECORDS: Final = 1 << 13


def is_json_lines(path: str | os.PathLike[str]) -> bool:
    """Whether a file is JSON lines, packed or not: by its suffix, or by how it begins.

    A suffix of another kind of table is believed.
    """
    suffix = unpacked_name(Path(path)).suffix.lower()
    if suffix in SUFFIXES or suffix in _OTHERS:
        return suffix in SUFFIXES
    with suppress(OSError, *UNPACK_ERRORS), open_unpacked(Path(path)) as file:
        return file.read(_FIRST).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"
    return False


@dataclass(frozen=True, slots=True)
class JsonLines(TableFile):
    """JSON lines as a table: a key is a column, what a record does not have is null."""

    first: dict[str, int]  # the line in which each key comes first
    texts: Sequence[str]  # the keys of ids, groups and splits
    lists: Sequence[str]  # the keys of lists of categories

    @classmethod
    def open(cls, path: Path, texts: Sequence[str], lists: Sequence[str] = ()) -> JsonLines:
        """Look through the file for its keys."""
        first: dict[str, int] = {}
        for line, record in _records(path):
            for key in record:
                first.setdefault(key, line)
        if not first:
            raise LabelError(f"'{path}' holds no records.", remedy="write the file again")
        return cls(path, tuple(first), None, first, texts, lists)

    def place(self, row: int, column: str | None = None) -> str:
        """Where record `row` (from 0) is, for people."""
        line = next(line for line, _ in islice(_records(self.path), row, None))
        return f"{self}, line {line:,}" + (f", key {column!r}" if column is not None else "")

    def batches(self, columns: Sequence[str], *, coded: Sequence[str] = ()) -> Iterator[Any]:
        """Yield record batches of some keys, in the order of the file; none is coded."""
        import pyarrow as pa

        del coded
        records, start = _records(self.path), 0
        while part := [record for _, record in islice(records, BATCH_RECORDS)]:
            arrays = [self._array(key, [r.get(key) for r in part], start) for key in columns]
            yield pa.record_batch(arrays, names=list(columns))
            start += len(part)

    def _array(self, key: str, values: list[Any], start: int) -> Any:
        import pyarrow as pa

        kinds = set(map(type, values)) - {type(None)}
        if key in self.lists:
            items = chain.from_iterable(v for v in values if v) if kinds <= {list} else (None,)
            if set(map(type, items)) - {str}:
                self._refuse(key, values, start)
            return pa.array(values, pa.list_(pa.string()))
        if key in self.texts and kinds - {str, int}:
            self._refuse(key, values, start)
        if kinds <= {int, float} or kinds <= {bool} or kinds <= {str}:
            with suppress(pa.ArrowException, OverflowError):
                return pa.array(values)
        return pa.array([v if v is None or type(v) is str else json.dumps(v) for v in values])

    def _refuse(self, key: str, values: list[Any], start: int) -> NoReturn:
        """Refuse the first value that has no place under the key."""
        error: type[IdError | LabelError] = IdError
        what = "is neither a text nor a whole number."
        good = [value is None or type(value) in (str, int) for value in values]
        if key in self.lists:
            error, what = LabelError, "is not a list of names."
            good = [v is None or (type(v) is list and set(map(type, v)) <= {str}) for v in values]
        i = good.index(False)
        found = json.dumps(values[i], ensure_ascii=False)[:60]
        raise error(f"{self.place(start + i, key)}: {what}", found=found)


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, record) of JSON lines; blank lines are skipped."""
    try:
        with open_unpacked(path) as file:
            for line, raw in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), 1):
                if len(raw) > MAX_LINE:
                    remedy = "leave out of the records what is neither id nor label"
                    raise too_long(path, line, remedy)
                if not raw.isspace():
                    yield line, _record(path, line, raw)
    except UNPACK_ERRORS as error:
        raise truncated(path, str(error)) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _record(path: Path, line: int, raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8-sig" if line == 1 else "utf-8")
        record = parse(text, object_pairs_hook=_object)
        if max(text.count("["), text.count("{")) > MAX_DEPTH:
            check_depth(record)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(record, ensure_ascii=False).encode()  # half a character is not text
        nul = "\\u0000" in text and _holds_nul(record)  # which arrays of texts would cut
        if type(record) is dict and not nul:
            return record
        found = "a NUL character in a text" if nul else text[:60]
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        if cut and not raw.endswith(b"\n"):
            raise truncated(path, f"line {line:,} ends inside a record") from error
        found = f"{error.msg}, column {error.colno:,}"
    except ValueError as error:  # among them: no UTF-8
        found = str(error)
    expected = "one JSON object in each line"
    raise LabelError(f"'{path}', line {line:,}: is not a record.", found=found, expected=expected)


def _holds_nul(value: Any) -> bool:
    """Whether a text in a JSON value, keys included, holds NUL."""
    if isinstance(value, dict):
        return _holds_nul([*value, *value.values()])
    if isinstance(value, list):
        return any(map(_holds_nul, value))
    return isinstance(value, str) and "\0" in value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f"the key {twice!r} twice")
    return record
