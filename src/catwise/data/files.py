"""Opening CSV, TSV and Parquet tables: batches of columns, and where things are in the file."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

from catwise._limits import (
    MAX_COLUMNS,
    MAX_LINE,
    MAX_ROWS,
    MAX_TEXT,
    check_at_most,
    read_within,
)
from catwise._text import some
from catwise.data.packed import (
    UNPACK_ERRORS,
    DamagedPackingError,
    open_unpacked,
    packing_of,
    unpacked_name,
)
from catwise.errors import ConfigError, LabelError, nearest

BLOCK_BYTES: Final = 1 << 24
SCAN_BYTES: Final = 1 << 20
BATCH_ROWS: Final = 1 << 16
BATCH_RECORDS: Final = 1 << 11
LONGEST_SHOWN: Final = 60
DELIMITERS: Final = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
PARQUET: Final = (".parquet", ".pq")
PARQUET_MAGIC: Final = b"PAR1"
UTF16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")
TEXT_ERRORS: Final = (csv.Error, *UNPACK_ERRORS)


@dataclass(frozen=True, slots=True)
class TableFile:
    """A table whose header is read.

    Attributes:
        path: the file.
        names: its columns; "1", "2", … where there is no header line.
        delimiter: between the fields of a text table; None for Parquet.
        header: whether there is a header line; None: the first line is one if it does not look like
            data (:meth:`check_header`).
    """

    path: Path
    names: tuple[str, ...]
    delimiter: str | None
    header: bool | None = field(default=None, kw_only=True)

    @property
    def n_above(self) -> int:
        """Records above the first row: the header, if there is one."""
        return 0 if self.header is False else 1

    def __str__(self) -> str:
        return f"'{self.path}'"

    def require(self, column: str, role: str) -> str:
        """Refuse a column that is not there, by a LabelError that suggests the nearest name."""
        if column in self.names:
            return column
        raise LabelError(
            f"{self.head()} has no column {column!r}, which should hold {role}.",
            found=listed(self.names),
            remedy=nearest(column, self.names).strip(" ()") or None,
        )

    def check_header(self, named: Iterable[str] = (), *, n_texts: int = 1) -> None:
        """Refuse a first line that looks like data, unless a column that was asked for is in it.

        In a row of data the first `n_texts` columns may hold texts. LabelError if the line looks
        so, and nobody has said whether it is a header.
        """
        sure = (
            self.delimiter is None or self.header is not None or not {*named}.isdisjoint(self.names)
        )
        if not sure and looks_like_data(self.names, n_texts):
            raise LabelError(
                f"{self.head()} the first line looks like data, not like the names of columns.",
                found=listed(self.names),
                expected="a header line",
                remedy="header=False (--no-header) if there is none: columns are then '1', '2', …; "
                "header=True (--header) if these are names",
            )

    def head(self) -> str:
        """Where the names of the columns are, for people: the file and, of a text, the line."""
        if self.delimiter is None or self.header is False:
            return str(self)
        return f"{self}, line {self.line(-1):,}:"

    def place(self, row: int, column: str | None = None) -> str:
        """Where data row `row` (from 0) is, for people: file, line and column."""
        if self.delimiter is None:
            where = f"{self}, row {row + 1:,}"
        else:
            where = f"{self}, line {self.line(row):,}"
        return where if column is None else f"{where}, column {column!r}"

    def line(self, row: int) -> int:
        """Line of the file (from 1) on which data row `row` (from 0) of a text table begins.

        Row −1 is the header.
        """
        try:
            with _text(self.path) as text:
                for count, (line, _) in enumerate(_records(text, self.delimiter or ",")):
                    if count == row + self.n_above:
                        return line
        except TEXT_ERRORS:
            pass
        return row + 1 + self.n_above

    def batches(self, columns: Sequence[str], *, coded: Sequence[str] = ()) -> Iterator[Any]:
        """Yield record batches of some columns, in the order of the file; LabelError if damaged.

        `coded` are those with few different values, which a text table gives as dictionary arrays.
        Everything else in a text table comes as text, blanks as "".
        """
        import pyarrow as pa

        try:
            if self.delimiter is None:
                yield from self._parquet(columns)
            elif _scan(self):
                yield from self._csv(columns, coded)
            else:
                yield from self._records(columns, coded)
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
            pa.input_stream(str(self.path), compression=packing_of(self.path)),
            read_options=arrow_csv.ReadOptions(
                block_size=BLOCK_BYTES,
                # blank lines at the beginning, which below would be blank values
                skip_rows=self.line(-self.n_above) - 1 if len(self.names) == 1 else 0,
                column_names=None if self.n_above else list(self.names),
            ),
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

    def _records(self, columns: Sequence[str], coded: Sequence[str]) -> Iterator[Any]:
        """What `_csv` gives, record by record: slower, and right where that is not."""
        import pyarrow as pa

        place, marked = {name: i for i, name in enumerate(self.names)}, set(coded)
        index = [place[name] for name in columns]
        with _text(self.path) as text:
            records = islice(_records(text, self.delimiter or ","), self.n_above, None)
            while part := [fields for _, fields in islice(records, BATCH_RECORDS)]:
                arrays = [pa.array([fields[i] for fields in part], pa.string()) for i in index]
                for k, name in enumerate(columns):
                    arrays[k] = arrays[k].dictionary_encode() if name in marked else arrays[k]
                yield pa.record_batch(arrays, names=list(columns))

    def _parquet(self, columns: Sequence[str]) -> Iterator[Any]:
        from pyarrow import parquet

        with parquet.ParquetFile(self.path) as file:
            yield from file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns))

    def _damaged(self, error: Exception) -> LabelError:
        """The error for a file that the reader gave up on: what is wrong, and on which line."""
        found = None if self.delimiter is None else _first_fault(self)
        return found or _unread(self.path, error)


def open_table(
    path: str | os.PathLike[str], *, delimiter: str | None = None, header: bool | None = None
) -> TableFile:
    r"""Read the names of a table's columns.

    Args:
        path: .csv, .tsv, .tab (each also .gz or .zst), .parquet or .pq.
        delimiter: one character, for a text table that is not separated as its suffix says; with
            it, any other suffix is read as text.
        header: whether a text table has a header line. None: it has, and a first line that looks
            like data is refused where the columns are asked for. False: columns are "1", "2", ….

    Raises:
        LabelError: If there is no such file, it cannot be read, is empty, truncated, no table of
            its kind, or has two columns of one name.
        ConfigError: If the delimiter is not one character, or a Parquet file should have no header.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "labels.csv")
    ...     _ = path.write_text("image,cat,dog\na.jpg,1,\n")
    ...     open_table(path).names
    ('image', 'cat', 'dog')
    """
    path = Path(path)
    said = delimiter is not None
    delimiter = _delimiter(path, delimiter)
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        with path.open("rb") as opened:
            head = opened.read(4)
    except OSError as error:
        raise unreadable(path, error) from error
    if not size:
        raise LabelError(f"'{path}' is empty.", found="0 bytes", remedy=_AGAIN)
    if delimiter is None and header is False:
        raise ConfigError("header=False (--no-header) belongs to text tables.", found=f"'{path}'")
    if delimiter is None:
        names = _parquet_names(path, head)
    else:
        names = _csv_names(path, head, delimiter, said=said)
    _check_most(path, "columns", len(names), MAX_COLUMNS, _SHORTER)
    if header is False:
        names = tuple(str(i) for i in range(1, len(names) + 1))
    file = TableFile(path, names, delimiter, header=header)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        file.check_header()
        raise LabelError(
            f"{file.head()} has two columns of one name.",
            found=listed(twice[:1]),
            expected="each name once",
        )
    return file


def _delimiter(path: Path, delimiter: str | None) -> str | None:
    """The delimiter of a text table, None for Parquet."""
    if delimiter is not None:
        if len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\n\r\0':
            raise ConfigError(
                "a delimiter must be one character.",
                found=repr(delimiter),
                expected="a character of ASCII that is no quote and no line end",
            )
        return delimiter
    suffix = unpacked_name(path).suffix.lower()
    if path.suffix.lower() in PARQUET:
        return None
    if suffix in DELIMITERS:
        return DELIMITERS[suffix]
    raise LabelError(
        f"the suffix of '{path}' does not tell what kind of table it is.",
        expected=".csv, .tsv, .tab, .jsonl or .ndjson (each also .gz or .zst), .parquet, .pq, "
        ".npz, .npy or .safetensors",
        remedy="rename the file, or give the delimiter of a text table, such as delimiter=','",
    )


def unreadable(path: Path, error: OSError) -> LabelError:
    """The error for a file that the operating system does not give."""
    missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
    return LabelError(
        f"there is no table '{path}'." if missing else f"cannot read '{path}'.",
        found=error.strerror or str(error),
        remedy="correct the path" if missing else "check the path and its permissions",
    )


def read_whole(path: Path, limit: int | None = None) -> bytes:
    """The bytes of a file that is read at once, at most `MAX_TEXT` or `limit`."""
    limit = MAX_TEXT if limit is None else limit
    try:
        if packing_of(path) is None:
            return read_within(path, limit)
        with open_unpacked(path) as file:
            content = file.read(limit + 1)
            check_at_most(len(content), limit, "bytes when unpacked")
            return content
    except UNPACK_ERRORS as error:
        raise _text_fault(path, error) from error
    except ValueError as error:
        raise LabelError(
            f"'{path}' is too large to be read at once.",
            found=str(error),
            expected=f"at most {limit:,} bytes, and no more than fit in memory",
            remedy="write what it holds as a table or JSON lines: these are read in parts",
        ) from error


_AGAIN: Final = "write or download the file again"
_SHORTER: Final = "a long table, or lists of categories, hold as many labels in short lines"


def _parquet_names(path: Path, head: bytes) -> tuple[str, ...]:
    import pyarrow as pa
    from pyarrow import parquet

    with path.open("rb") as file:
        file.seek(-min(4, path.stat().st_size), os.SEEK_END)
        tail = file.read()
    if head != PARQUET_MAGIC:
        raise LabelError(
            f"'{path}' is not a Parquet file.",
            found=f"the first bytes {head!r}",
            expected=f"{PARQUET_MAGIC!r}",
            remedy="give the file the suffix of what it holds",
        )
    if tail != PARQUET_MAGIC:
        raise truncated(path, "the end of the file is missing")
    try:
        with parquet.ParquetFile(path) as opened:
            n_rows, names = opened.metadata.num_rows, tuple(opened.schema_arrow.names)
    except (pa.ArrowException, OSError) as error:
        raise _unread(path, error) from error
    _check_most(path, "rows", n_rows, MAX_ROWS, _AGAIN)
    return names


def _unread(path: Path, error: Exception) -> LabelError:
    said = " ".join(str(error).split())
    return LabelError(f"'{path}' is damaged.", found=said, remedy=_AGAIN)


def _check_most(path: Path, what: str, found: int, limit: int, remedy: str) -> None:
    if found > limit:
        raise LabelError(
            f"'{path}' has too many {what}.",
            found=f"{found:,}",
            expected=f"at most {limit:,}",
            remedy=remedy,
        )


def _csv_names(path: Path, head: bytes, delimiter: str, *, said: bool) -> tuple[str, ...]:
    if head.startswith(UTF16_MARKS):
        raise _not_utf8(path, 1, "UTF-16")
    try:
        with _text(path) as text:
            for line, names in _records(_first_lines(path, text), delimiter):
                _check_names(path, line, names, None if said else delimiter)
                return tuple(names)
    except TEXT_ERRORS as error:
        raise _text_fault(path, error) from error
    except OSError as error:
        raise unreadable(path, error) from error
    raise LabelError(f"'{path}' is empty.", found="blank lines only")


def _first_lines(path: Path, text: TextIO) -> Iterator[str]:
    """The lines of the first record, which may not go on for ever."""
    n_read = 0
    while line := text.readline(MAX_LINE + 1 - n_read):
        n_read += len(line)
        if n_read > MAX_LINE:
            raise too_long(path, 1)
        yield line


def too_long(path: Path, line: int, remedy: str = _SHORTER) -> LabelError:
    """The error for a line that is too long."""
    return LabelError(
        f"'{path}', line {line:,}: is too long.",
        found=f"more than {MAX_LINE:,} bytes",
        expected=f"at most {MAX_LINE:,}",
        remedy=remedy,
    )


def _check_names(path: Path, line: int, names: list[str], delimiter: str | None) -> None:
    """Refuse a header that is not UTF-8 or holds NUL, or has another delimiter than its suffix."""
    if any(mark == "\0" or "\udc80" <= mark <= "\udcff" for name in names for mark in name):
        _scan_bytes(path)
    others = [other for other in ";\t,|" if other != delimiter and other in names[0]]
    if others and len(names) == 1 and delimiter is not None:
        raise LabelError(
            f"'{path}', line {line:,}: a single column when it is separated by {delimiter!r}.",
            found=f"the header {names[0]!r}",
            remedy=f"delimiter={others[0]!r}",
        )


def _text(path: Path) -> TextIO:
    """A text table, opened; a byte-order mark is skipped, and no byte is refused here."""
    return io.TextIOWrapper(
        open_unpacked(path), encoding="utf-8-sig", errors="surrogateescape", newline=""
    )


class _RecordError(csv.Error):
    """What is wrong with a record, and in which line."""

    def __init__(self, what: str, line: int) -> None:
        super().__init__(what)
        self.line = line


def _records(text: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(first line, fields) of each record; a blank line is one only where there is one column."""
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    line, width = 1, 0
    try:
        for fields in reader:
            if fields or width == 1:
                yield line, fields or [""]
            line, width = reader.line_num + 1, width or len(fields)
    except csv.Error as error:
        cut = "end of data" in str(error)
        raise _RecordError(str(error), line if cut else reader.line_num) from error


def _scan(file: TableFile) -> bool:
    """Refuse what the columnar reader would take or cut in silence; whether it reads the rest well.

    Every byte is looked at, and every record where there are quotes or possibly overlong fields.
    """
    path = file.path
    try:
        look = _scan_bytes(path)
        if not (look.quotes or look.long_lines):
            return True
        crossing: list[int] | None = [] if look.n_bytes > BLOCK_BYTES else None
        fault = _first_fault(file, crossing)
        if fault is None:
            return not crossing
    except TEXT_ERRORS as error:
        raise _text_fault(path, error) from error
    except OSError as error:
        raise unreadable(path, error) from error
    raise fault


def _crosses_blocks(fields: list[str]) -> bool:
    r"""Whether the columnar reader may lose a record at the end of a block.

    That is one not much shorter than a block; or one with \r\n in a quoted field, which loses \n.
    """
    record = "".join(fields)
    if "\r" in record:
        return True
    if len(record) <= BLOCK_BYTES // 8:
        return False
    return len(record.encode()) + record.count('"') + 3 * len(fields) > BLOCK_BYTES


class _Scan(NamedTuple):
    """What the bytes of a text table tell of it."""

    n_bytes: int
    quotes: bool
    long_lines: bool


def _scan_bytes(path: Path) -> _Scan:
    """Refuse bytes that are not UTF-8, and NUL."""
    decoder, limit = codecs.getincrementaldecoder("utf-8")(), csv.field_size_limit()
    offset = run = open_line = 0  # bytes before the block, and those since the last line end
    quotes = long_lines = False
    with open_unpacked(path) as file:
        while block := file.read(SCAN_BYTES):
            pending = len(decoder.getstate()[0])
            zero = block.find(b"\0")
            try:
                if pending or not block.isascii():
                    decoder.decode(block)
            except UnicodeDecodeError as error:
                if zero < 0 or error.start - pending < zero:
                    byte = f"byte {error.object[error.start]:#04x}"
                    line = _line_of(path, offset - pending + error.start)
                    raise _not_utf8(path, line, byte) from error
            if zero >= 0:
                raise _zero_byte(path, _line_of(path, offset + zero))
            if not long_lines:
                long_lines, run = _has_long_line(block, run, limit)
            starts = [at for at in (block.find(b"\n"), block.find(b"\r")) if at >= 0]
            if open_line + min(starts, default=len(block)) > MAX_LINE:
                raise too_long(path, _line_of(path, offset))
            end = _last_end(block, 0, len(block))
            open_line = open_line + len(block) if end < 0 else len(block) - end - 1
            quotes = quotes or b'"' in block
            offset += len(block)
    pending = len(decoder.getstate()[0])
    if pending:
        line = _line_of(path, offset - pending)
        raise _not_utf8(path, line, "a character that the end of the file cuts")
    return _Scan(offset, quotes, long_lines)


def _has_long_line(block: bytes, run: int, limit: int) -> tuple[bool, int]:
    r"""Whether more than `limit` bytes go by without a line end; with how many the block ends."""
    start, long = -run, False
    while len(block) - start > limit and not long:
        end = _last_end(block, max(start, 0), start + limit + 1)
        start, long = end + 1, end < 0
    end = _last_end(block, 0, len(block))
    return long, len(block) - (start if end < 0 else end + 1)


def _last_end(block: bytes, start: int, stop: int) -> int:
    """The last line end in a part of a block, or −1."""
    return max(block.rfind(b"\n", start, stop), block.rfind(b"\r", start, stop))


def _line_of(path: Path, offset: int) -> int:
    """Line (from 1) of a byte of a text table; lines end as the csv module has it."""
    n_ends, last = 1, b""
    with open_unpacked(path) as file:
        while offset > 0 and (block := file.read(min(offset, SCAN_BYTES))):
            offset -= len(block)
            n_ends += block.count(b"\n") + block.count(b"\r") - (last + block).count(b"\r\n")
            last = block[-1:]
    return n_ends


def _first_fault(file: TableFile, crossing: list[int] | None = None) -> LabelError | None:
    """The first record that is not like the first one, or None."""
    path, delimiter, n_fields = file.path, file.delimiter or ",", len(file.names)
    last = n_records = 0
    wrong: tuple[int, int] | None = None
    try:
        with _text(path) as text:
            for last, fields in _records(text, delimiter):
                n_records += 1
                if len(fields) != n_fields and wrong is None:
                    wrong = last, len(fields)
                if crossing is not None and not crossing and _crosses_blocks(fields):
                    crossing.append(last)
    except TEXT_ERRORS as error:
        return _text_fault(path, error) if wrong is None else _ragged(path, *wrong, n_fields)
    if wrong is None:
        return no_rows(f"'{path}'") if n_records == file.n_above else None
    if wrong[0] == last and wrong[1] < n_fields and not _ends_line(path):
        return truncated(path, f"line {last:,} ends after {wrong[1]} of {n_fields} fields")
    return _ragged(path, *wrong, n_fields)


def _text_fault(path: Path, error: Exception) -> LabelError:
    """The error for a text table that stops making sense."""
    if isinstance(error, gzip.BadGzipFile):
        return LabelError(f"'{path}' is not a gzip file.", found=str(error))
    if isinstance(error, DamagedPackingError) and "runcated" not in str(error):
        return LabelError(f"'{path}' is not a zstd file.", found=str(error))
    if not isinstance(error, _RecordError):
        return truncated(path, str(error))
    if "end of data" in str(error):
        found = f"a quote in the record that begins in line {error.line:,} is never closed"
        return truncated(path, found)
    return LabelError(f"'{path}', line {error.line:,}: no row of a table.", found=str(error))


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
    with open_unpacked(path) as file:
        last = b""
        while block := file.read(1 << 20):
            last = block[-1:]
    return last in (b"\n", b"\r")


def truncated(path: Path, found: str) -> LabelError:
    """The error for a file whose end is missing."""
    return LabelError(f"'{path}' is truncated.", found=found, remedy=_AGAIN)


def _not_utf8(path: Path, line: int, found: str) -> LabelError:
    return LabelError(
        f"'{path}', line {line:,}: is not UTF-8 text.",
        found=found,
        remedy="save the table as UTF-8",
    )


def _zero_byte(path: Path, line: int) -> LabelError:
    return LabelError(
        f"'{path}', line {line:,}: no text of a table.",
        found="a zero byte",
        remedy=f"{_AGAIN}; text in UTF-16 must be saved as UTF-8",
    )


FILE_NAME: Final = re.compile(
    r"\.(jpe?g|png|dcm|dicom|tiff?|bmp|gif|webp|npy)(\.gz)?\s*$", re.IGNORECASE
)
DATE: Final = re.compile(r"\s*\d{4}[-/.]\d{1,2}[-/.]\d{1,2}\b")
LABELS: Final = (-2.0, -1.0, 0.0, 1.0)


def looks_like_data(names: Sequence[str], n_texts: int = 1) -> bool:
    """Whether these look like a row of a label table, not like the names of its columns.

    They do if one is the name of an image file or a date, or if all but the first `n_texts` are
    labels or blank. The default names of categories, "0", "1", "2" …, are names.
    """
    from catwise.labels.encodings import raw_value

    if any(FILE_NAME.search(name) or DATE.match(name) for name in names):
        return True
    raw = [raw_value(name) for name in names]
    for start in (0, 1):
        behind = not start or isinstance(raw[0], str) or raw[0] is None
        if behind and list(names[start:]) == [str(i) for i in range(len(names) - start)]:
            return False
    label = [isinstance(value, float) and (value in LABELS or value % 1 > 0) for value in raw]
    rest = range(n_texts, len(raw))
    return any(label) and all(label[i] or raw[i] is None for i in rest)


def listed(names: Sequence[str], n: int = 8) -> str:
    """A few names for people; of long ones the beginning."""
    cut = (name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}…" for name in names)
    return some(list(map(repr, cut)), n)
