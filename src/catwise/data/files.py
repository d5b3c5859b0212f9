"""Opening CSV, TSV and Parquet tables: batches of columns, and where things are in the file."""

from __future__ import annotations

import csv
import gzip
import os
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from catwise.errors import ConfigError, LabelError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import IO, TextIO

__all__ = ["TableFile", "open_table"]

BLOCK_BYTES: Final = 1 << 24
BATCH_ROWS: Final = 1 << 16
DELIMITERS: Final = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
PARQUET: Final = (".parquet", ".pq")
PARQUET_MAGIC: Final = b"PAR1"
UTF16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")
TEXT_ERRORS: Final = (UnicodeDecodeError, csv.Error, EOFError, gzip.BadGzipFile, zlib.error)


@dataclass(frozen=True, slots=True)
class TableFile:
    """A table whose header is read.

    Attributes:
        path: the file.
        names: its columns.
        delimiter: between the fields of a text table; None for Parquet.
    """

    path: Path
    names: tuple[str, ...]
    delimiter: str | None

    def __str__(self) -> str:
        return f"'{self.path}'"

    def require(self, column: str, role: str) -> str:
        """Refuse a column that is not there.

        Raises:
            LabelError: Suggests the nearest name.
        """
        if column in self.names:
            return column
        raise LabelError(
            f"{self} has no column {column!r}, which should hold {role}.",
            found=listed(self.names),
            remedy=nearest(column, self.names).strip(" ()") or None,
        )

    def place(self, row: int, column: str | None = None) -> str:
        """Where data row `row` (from 0) is, for people: file, line and column."""
        if self.delimiter is None:
            where = f"{self}, row {row + 1:,}"
        else:
            where = f"{self}, line {self.line(row):,}"
        return where if column is None else f"{where}, column {column!r}"

    def line(self, row: int) -> int:
        """Line of the file (from 1) on which data row `row` (from 0) of a text table begins."""
        try:
            with _text(self.path) as text:
                for count, (line, _) in enumerate(_records(text, self.delimiter or ",")):
                    if count == row + 1:
                        return line
        except TEXT_ERRORS:
            pass
        return row + 2

    def batches(self, columns: Sequence[str], *, coded: Sequence[str] = ()) -> Iterator[Any]:
        """Yield record batches of some columns, in the order of the file.

        Args:
            columns: which.
            coded: those of them with few different values, which a text table gives as dictionary
                arrays. Everything else in a text table comes as text, blanks as "".

        Raises:
            LabelError: If the file is damaged, truncated or no such table.
        """
        import pyarrow as pa

        try:
            reader = self._parquet(columns) if self.delimiter is None else self._csv(columns, coded)
            yield from reader
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, PermissionError):
                raise unreadable(self.path, error) from error
            raise self._damaged(error) from error

    def _csv(self, columns: Sequence[str], coded: Sequence[str]) -> Any:
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        text, few = pa.string(), pa.dictionary(pa.int32(), pa.string())
        marked = set(coded)
        return arrow_csv.open_csv(
            str(self.path),
            read_options=arrow_csv.ReadOptions(block_size=BLOCK_BYTES),
            parse_options=arrow_csv.ParseOptions(
                delimiter=self.delimiter,
                newlines_in_values=True,
                ignore_empty_lines=len(self.names) > 1,  # else a blank line is a blank value
            ),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=list(columns),
                column_types={name: few if name in marked else text for name in columns},
                strings_can_be_null=False,
                null_values=[],
            ),
        )

    def _parquet(self, columns: Sequence[str]) -> Iterator[Any]:
        from pyarrow import parquet

        with parquet.ParquetFile(self.path) as file:
            yield from file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns))

    def _damaged(self, error: Exception) -> LabelError:
        """The error for a file that the reader gave up on: what is wrong, and on which line."""
        if self.delimiter is not None:
            found = _first_fault(self.path, self.delimiter, len(self.names))
            if found is not None:
                return found
        return LabelError(
            f"{self} is damaged.",
            found=" ".join(str(error).split()),
            remedy="write or download the file again",
        )


def open_table(path: str | os.PathLike[str], *, delimiter: str | None = None) -> TableFile:
    r"""Read the names of a table's columns.

    Args:
        path: .csv, .tsv, .tab (each also .gz), .parquet or .pq.
        delimiter: one character, for a text table that is not separated as its suffix says; with
            it, any other suffix is read as text.

    Raises:
        LabelError: If there is no such file, it cannot be read, is empty, truncated, no table of
            its kind, or has two columns of one name.
        ConfigError: If the delimiter is not one character.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "labels.csv")
    ...     _ = path.write_text("image,cat,dog\na.jpg,1,\n")
    ...     open_table(path).names
    ('image', 'cat', 'dog')
    """
    path = Path(path)
    delimiter = _delimiter(path, delimiter)
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise unreadable(path, error) from error
    if not size:
        raise LabelError(
            f"'{path}' is empty.", found="0 bytes", remedy="write or download the file again"
        )
    names = _parquet_names(path, head) if delimiter is None else _csv_names(path, head, delimiter)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise LabelError(
            f"'{path}' has two columns of one name.",
            found=repr(twice[0]),
            expected="each name once",
        )
    return TableFile(path, names, delimiter)


def _delimiter(path: Path, delimiter: str | None) -> str | None:
    """The delimiter of a text table, None for Parquet."""
    if delimiter is not None:
        if len(delimiter) != 1:
            raise ConfigError("a delimiter must be one character.", found=repr(delimiter))
        return delimiter
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    elif suffixes and suffixes[-1] in PARQUET:
        return None
    if suffixes and suffixes[-1] in DELIMITERS:
        return DELIMITERS[suffixes[-1]]
    raise LabelError(
        f"the suffix of '{path}' does not tell what kind of table it is.",
        expected=".csv, .tsv or .tab (each also .gz), .parquet or .pq",
        remedy="rename the file, or give the delimiter of a text table",
    )


def unreadable(path: Path, error: OSError) -> LabelError:
    """The error for a file that the operating system does not give."""
    missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
    return LabelError(
        f"there is no table '{path}'." if missing else f"cannot read '{path}'.",
        found=error.strerror or str(error),
        remedy="correct the path" if missing else "check the path and its permissions",
    )


def _parquet_names(path: Path, head: bytes) -> tuple[str, ...]:
    import pyarrow as pa
    from pyarrow import parquet

    with path.open("rb") as file:
        file.seek(-min(4, path.stat().st_size), os.SEEK_END)
        tail = file.read()
    if head != PARQUET_MAGIC:
        raise LabelError(
            f"'{path}' is no Parquet file.",
            found=f"the first bytes {head!r}",
            expected=f"{PARQUET_MAGIC!r}",
            remedy="give the file the suffix of what it holds",
        )
    if tail != PARQUET_MAGIC:
        raise truncated(path, "the end of the file is missing")
    try:
        with parquet.ParquetFile(path) as opened:
            return tuple(opened.schema_arrow.names)
    except (pa.ArrowException, OSError) as error:
        raise LabelError(
            f"'{path}' is damaged.",
            found=" ".join(str(error).split()),
            remedy="write or download the file again",
        ) from error


def _csv_names(path: Path, head: bytes, delimiter: str) -> tuple[str, ...]:
    if head.startswith(UTF16_MARKS):
        raise _not_utf8(path, None, "UTF-16")
    try:
        with _text(path) as text:
            for _, names in _records(text, delimiter):
                _check_separated(path, names, delimiter)
                return tuple(names)
    except TEXT_ERRORS as error:
        raise _text_fault(path, 0, error) from error
    raise LabelError(f"'{path}' is empty.", found="blank lines only")


def _check_separated(path: Path, names: list[str], delimiter: str) -> None:
    if len(names) > 1:
        return
    others = [other for other in ";\t,|" if other != delimiter and other in names[0]]
    if others:
        raise LabelError(
            f"'{path}' has a single column when it is separated by {delimiter!r}.",
            found=f"the header {names[0]!r}",
            remedy=f"delimiter={others[0]!r}",
        )


def _text(path: Path) -> TextIO:
    """A text table, opened; a byte-order mark is skipped."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open("r", encoding="utf-8-sig", newline="")


def _bytes(path: Path) -> IO[bytes]:
    """A text table as bytes, unpacked."""
    if path.suffix.lower() == ".gz":
        return cast("IO[bytes]", gzip.open(path))
    return path.open("rb")


def _records(text: TextIO, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(first line, fields) of each record; a blank line is one only where there is one column."""
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    line, width = 1, 0
    for fields in reader:
        if fields or width == 1:
            yield line, fields or [""]
        line, width = reader.line_num + 1, width or len(fields)


def _first_fault(path: Path, delimiter: str, n_fields: int) -> LabelError | None:
    """The first record that is not like the header, or None."""
    line = last = n_records = 0
    wrong: tuple[int, int] | None = None
    try:
        with _text(path) as text:
            for line, fields in _records(text, delimiter):
                last, n_records = line, n_records + 1
                if wrong is None and len(fields) != n_fields:
                    wrong = line, len(fields)
    except TEXT_ERRORS as error:
        return _text_fault(path, line, error) if wrong is None else _ragged(path, *wrong, n_fields)
    if wrong is None:
        return no_rows(f"'{path}'") if n_records == 1 else None
    if wrong[0] == last and wrong[1] < n_fields and not _ends_line(path):
        return truncated(path, f"line {last:,} ends after {wrong[1]} of {n_fields} fields")
    return _ragged(path, *wrong, n_fields)


def _text_fault(path: Path, line: int, error: Exception) -> LabelError:
    """The error for a text table that stops making sense after a line."""
    if isinstance(error, UnicodeDecodeError):
        return _not_utf8(path, _undecodable_line(path), f"byte {error.object[error.start]:#04x}")
    if isinstance(error, gzip.BadGzipFile):
        return LabelError(f"'{path}' is no gzip file.", found=str(error))
    if isinstance(error, (EOFError, zlib.error)):
        return truncated(path, str(error))
    if "end of data" in str(error):
        return truncated(path, f"a quote that opens after line {line:,} is never closed")
    return LabelError(f"'{path}', line {line + 1:,}: no row of a table.", found=str(error))


def no_rows(file: str) -> LabelError:
    """The error for a table that is only a header."""
    return LabelError(f"{file} has a header but no rows.", remedy="write the table again")


def _ragged(path: Path, line: int, n_found: int, n_fields: int) -> LabelError:
    return LabelError(
        f"'{path}', line {line:,}: not as many fields as the header.",
        found=f"{n_found} fields",
        expected=f"{n_fields}",
        remedy="quote texts that hold the delimiter, and fill short lines with blanks",
    )


def _ends_line(path: Path) -> bool:
    with _bytes(path) as file:
        last = b""
        while block := file.read(1 << 20):
            last = block[-1:]
    return last in (b"\n", b"\r")


def truncated(path: Path, found: str) -> LabelError:
    """The error for a file whose end is missing."""
    return LabelError(
        f"'{path}' is truncated.", found=found, remedy="write or download the file again"
    )


def _undecodable_line(path: Path) -> int | None:
    """The first line that is not UTF-8."""
    with _bytes(path) as file:
        # What cannot be decoded becomes U+FFFD, which a good file hardly holds.
        lines = enumerate((line.decode("utf-8", "replace") for line in file), 1)
        return next((number for number, line in lines if "\ufffd" in line), None)


def _not_utf8(path: Path, line: int | None, found: str) -> LabelError:
    where = f"'{path}'" if line is None else f"'{path}', line {line:,}:"
    return LabelError(f"{where} is not UTF-8 text.", found=found, remedy="save the table as UTF-8")


def listed(names: Sequence[str], n: int = 8) -> str:
    """A few names for people.

    >>> listed(["a", "b", "c"], 2)
    "'a', 'b', … (3)"
    """
    shown = ", ".join(map(repr, names[:n]))
    return f"{shown}, … ({len(names):,})" if len(names) > n else shown
