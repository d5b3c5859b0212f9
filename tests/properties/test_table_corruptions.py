r"""Corrupted label files: the same cells as an independent strict parser, or an error with a line.

The parser below knows the standard library only. Both sides follow these rules.

Text tables (.csv, .tsv), as `csv.reader(strict=True)` reads them:

- UTF-8, in columns that are not read too, without NUL. One byte-order mark at the start is skipped.
- The suffix tells the delimiter. A field that begins with `"` ends at the next single `"`, which a
  delimiter, a line end or the end of the file must follow; `""` inside stands for `"`. A `"` within
  a bare field is a character like any other. Lines end in \n, \r\n or \r.
- A field has 131,072 characters at most, the standard library's limit.
- Blank lines are skipped; below a header of one column they are blank values.
- The first record names the columns, each name once. A single name that holds one of `; tab , |` is
  refused: the delimiter is another one. Every record has as many fields; there is one at least.
- Ids, groups and (in long tables) categories are texts as they stand and not "".
- A value is its text without surrounding space: a blank ("", nan, na, n/a, null, none, <na>, in any
  case), true or false (1 or 0, in any case), or what `float` reads, NaN being a blank. What the
  encoding does not list is refused.
- Wide: every other column is a category; ids are unique. Long: ids and categories in the order of
  first appearance; a pair has one row at most, and an id one group.

JSON lines (.jsonl), as `json.loads` reads them:

- UTF-8, a byte-order mark in line 1 is skipped. A record ends with its line (\n); lines of ASCII
  white space only are skipped. A record is one object in which no key comes twice; no text in it
  holds NUL or half a surrogate pair. NaN and Infinity are numbers, as Python writes them.
- Ids and groups are texts but "", or whole numbers, which become texts. Ids are unique. Once one
  record has a group, all have.
- Lists: null and absent lists are empty; names are texts that are not blank without surrounding
  space; an image has a category once. Other keys than id, positive, negative, uncertain, group and
  split are refused. Categories come in the order of the records and, in a record, of positive,
  negative, uncertain.
- One key a category, not "": numbers, texts (as in tables), true, false, null; absent is null.
- One record a label: id, category and group as ids above, a value as before; the rest as in long
  tables.

A refusal names the file and one of its lines, unless it speaks of the file as a whole (`WHOLE`).
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
import signal
import time
from collections import Counter
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from catwise.data import files, read_label_table
from catwise.data.readers import read_jsonl_table, read_label_lists
from catwise.errors import CatwiseError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

N_CASES = 2_000
SEED = 5
SECONDS = 10.0
LIMIT = 131_072
DELIMITERS = {".csv": ",", ".tsv": "\t"}
BOM = b"\xef\xbb\xbf"

# ------------------------------------------------------------------- the independent strict parser

#: The declared encodings: value → code; None is a blank.
MAPS: dict[str, dict[float | None, int]] = {
    "nan": {1: 1, 0: 0, None: -1},
    "minus_one_uncertain": {1: 1, 0: 0, -1: -2, None: -1},
    "codes": {1: 1, 0: 0, -1: -1, -2: -2},
}
WORDS: dict[str, float | None] = dict.fromkeys(("", "nan", "na", "n/a", "null", "none", "<na>"))
WORDS |= {"true": 1.0, "false": 0.0}

#: What says something of the file as a whole, where no line is to blame.
WHOLE_TABLE = r"is empty|has a header but no rows"
WHOLE_RECORDS = (
    r"holds no records|names no category|has no lists|of labels"
    r"|has no column '(id|group|category|value)'"
)


class RefusalError(Exception):
    """The strict parser does not take the file."""


class Cells(NamedTuple):
    """What a file says."""

    categories: list[str]
    ids: list[str] | None
    groups: list[str] | None
    codes: list[list[int]]


class Case(NamedTuple):
    """A file before its corruption, and how it is to be read."""

    kind: str
    suffix: str
    data: bytes
    encoding: str
    id_name: str | None = "id"
    group: str | None = None
    wanted: list[str] | None = None


def demand(good: object, reason: str) -> None:
    if not good:
        raise RefusalError(reason)


def value_of(text: str) -> float | None:
    """The number that a text stands for; None for a blank."""
    text = text.strip()
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        number = float(text)
    except ValueError:
        raise RefusalError("no number") from None
    return None if number != number else number  # noqa: PLR0124 - NaN


def codes_of(values: list[list[float | None]], encoding: str) -> list[list[int]]:
    demand(set(chain.from_iterable(values)) <= set(MAPS[encoding]), "a value of no meaning")
    return [[MAPS[encoding][value] for value in row] for row in values]


def rows_of(data: bytes, case: Case) -> tuple[list[str], list[list[str]]]:
    """The header and the records of a text table."""
    delimiter = DELIMITERS[case.suffix]
    demand(b"\0" not in data, "NUL")
    try:
        text = io.StringIO(data.removeprefix(BOM).decode(), newline="")
        records = list(csv.reader(text, delimiter=delimiter, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise RefusalError(str(error)) from None
    while records and not records[0]:
        del records[0]
    demand(records, "empty")
    header, *rest = records
    rows = [row or [""] for row in rest if row or len(header) == 1]
    demand(rows and all(len(row) == len(header) for row in rows), "ragged, or no rows")
    demand(len(set(header)) == len(header), "a name twice")
    other = [mark for mark in ";\t,|" if mark != delimiter and mark in header[0]]
    demand(len(header) > 1 or not other, "another delimiter")
    return header, rows


def strict_wide(data: bytes, case: Case) -> Cells:
    header, rows = rows_of(data, case)
    keys = {name for name in (case.id_name, case.group) if name is not None}
    categories = [name for name in header if name not in keys]
    categories = categories if case.wanted is None else case.wanted
    demand(categories and {*keys, *categories} <= set(header), "no such column")
    ids, groups = (
        None if name is None else [row[header.index(name)] for row in rows]
        for name in (case.id_name, case.group)
    )
    demand("" not in (ids or ()) and "" not in (groups or ()), "a blank id or group")
    demand(ids is None or len(set(ids)) == len(ids), "an id twice")
    index = [header.index(name) for name in categories]
    values = [[value_of(row[j]) for j in index] for row in rows]
    return Cells(categories, ids, groups, codes_of(values, case.encoding))


def strict_long(data: bytes, case: Case) -> Cells:
    header, rows = rows_of(data, case)
    keys = ["id", "category", *([case.group] if case.group else [])]
    demand({*keys, "value"} <= set(header), "no such column")
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    demand(all(cell[key] for cell in cells for key in keys), "a blank name")
    names = [[cell[key] for cell in cells] for key in keys]
    return joined(case, names, [value_of(cell["value"]) for cell in cells])


def joined(case: Case, names: list[list[str]], values: list[float | None]) -> Cells:
    """The labels of a long table, from its ids, categories and groups, and its values."""
    table: dict[str, dict[str, int]] = {}
    groups: dict[str, str] = {}
    categories: dict[str, None] = {}
    for (image, category, *group), value in zip(zip(*names, strict=True), values, strict=True):
        of_image = table.setdefault(image, {})
        demand(category not in of_image, "a label twice")
        of_image[category] = codes_of([[value]], case.encoding)[0][0]
        categories[category] = None
        if group:
            demand(groups.setdefault(image, group[0]) == group[0], "two groups")
    codes = [[labels.get(name, -1) for name in categories] for labels in table.values()]
    return Cells(list(categories), list(table), list(groups.values()) or None, codes)


def strict_records(data: bytes) -> list[dict[str, Any]]:
    """The records of JSON lines."""
    records = []
    for number, raw in enumerate(data.split(b"\n")):
        if not raw.strip():
            continue
        try:
            text = (raw if number else raw.removeprefix(BOM)).decode()
            record = json.loads(text, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            raise RefusalError(str(error)) from None
        demand(type(record) is dict, "no object")
        check_inside(record)
        records.append(record)
    demand(records and any(records), "no records")
    return records


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    demand(len(dict(pairs)) == len(pairs), "a key twice")
    return dict(pairs)


def check_inside(value: Any) -> None:
    """No text in a record holds NUL or half a surrogate pair."""
    if isinstance(value, str):
        demand(not re.search("[\0\ud800-\udfff]", value), "no text")
    elif isinstance(value, (list, dict)):
        for part in chain(value, value.values() if isinstance(value, dict) else ()):
            check_inside(part)


def names_in(records: list[dict[str, Any]], key: str) -> list[str]:
    values = [record.get(key) for record in records]
    demand(all(type(value) in (str, int) and value != "" for value in values), f"no {key}")
    return [str(value) for value in values]


def unique(names: list[str]) -> list[str]:
    demand(len(set(names)) == len(names), "an id twice")
    return names


def strict_lists(data: bytes, case: Case) -> Cells:
    records = strict_records(data)
    lists = {"positive": 1, "negative": 0, "uncertain": -2}
    keys = set(chain.from_iterable(records))
    demand(keys <= {"id", *lists, "group", "split"}, "a key without a role")
    demand(keys & set(lists), "no lists")
    labels: list[dict[str, int]] = []
    for record in records:
        found: dict[str, int] = {}
        for key, code in lists.items():
            names = record.get(key)
            demand(names is None or type(names) is list, "no list")
            for name in names or ():
                demand(type(name) is str and name.strip(), "no name")
                demand(name.strip() not in found, "a category twice")
                found[name.strip()] = code
        labels.append(found)
    ids = unique(names_in(records, "id"))
    groups = names_in(records, "group") if "group" in keys else None
    categories = list(dict.fromkeys(chain.from_iterable(labels)))
    demand(categories, "no categories")
    codes = [[found.get(name, -1) for name in categories] for found in labels]
    return Cells(categories, ids, groups, codes)


def strict_jsonl(data: bytes, case: Case) -> Cells:
    records = strict_records(data)
    ids = unique(names_in(records, "id"))
    groups = None if case.group is None else names_in(records, case.group)
    keys = dict.fromkeys(chain.from_iterable(records))
    categories = [key for key in keys if key not in {"id", case.group}]
    demand(categories and "" not in categories, "no categories, or one without a name")
    values = [[plain(record.get(name)) for name in categories] for record in records]
    return Cells(categories, ids, groups, codes_of(values, case.encoding))


def plain(raw: Any) -> float | None:
    """The number that a value of JSON stands for; None for a blank."""
    if isinstance(raw, str):
        return value_of(raw)
    demand(raw is None or isinstance(raw, (int, float)), "no value")
    return None if raw != raw else raw  # noqa: PLR0124 - NaN


def strict_pairs(data: bytes, case: Case) -> Cells:
    records = strict_records(data)
    demand("value" in set(chain.from_iterable(records)), "no values")
    keys = ["id", "category", *([case.group] if case.group else [])]
    names = [names_in(records, key) for key in keys]
    return joined(case, names, [plain(record.get("value")) for record in records])


STRICT = {"wide": strict_wide, "long": strict_long, "lists": strict_lists, "jsonl": strict_jsonl}
STRICT["pairs"] = strict_pairs


# ---------------------------------------------------------------------------------- catwise's turn


def read(path: Path, case: Case) -> Cells:
    """The same file by catwise."""
    if case.kind == "lists":
        labels = read_label_lists(path, others="unknown")
    elif case.kind == "jsonl":
        labels = read_jsonl_table(path, encoding=case.encoding, group_key=case.group)
    else:
        layout = "wide" if case.kind == "wide" else "long"
        options: dict[str, Any] = {"encoding": case.encoding, "layout": layout}
        options |= {"group_column": case.group, "categories": case.wanted}
        labels = read_label_table(path, id_column=case.id_name, **options)
    names = [None if part is None else part.tolist() for part in (labels.ids, labels.groups)]
    return Cells(list(labels.categories), *names, labels.codes.tolist())


class HangError(BaseException):
    """A case that takes too long; nothing below may catch it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def verdict(path: Path, case: Case, data: bytes) -> str:
    """Say "same" or "refused", or what is wrong with how catwise reads a file."""
    path.write_bytes(data)
    try:
        expected: Cells | None = STRICT[case.kind](data, case)
        reason = ""
    except RefusalError as refusal:
        expected, reason = None, str(refusal)
    try:
        with time_limit(SECONDS):
            found = read(path, case)
    except CatwiseError as error:
        if expected is not None:
            return f"REFUSED what is good: {error}"
        whole = WHOLE_TABLE if case.kind in ("wide", "long") else WHOLE_RECORDS
        there = names_a_line(str(error), data) or re.search(whole, str(error))
        return "refused" if there and str(path) in str(error) else f"NO LINE: {error}"
    except HangError:
        return "HANGS"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        return f"RAISED {type(error).__name__}: {error}"
    if expected is None:
        return f"ACCEPTED what is not ({reason})"
    return "same" if found == expected else f"DIFFERS: {expected} became {found}"


def names_a_line(message: str, data: bytes) -> bool:
    """Whether an error names a line that the file has."""
    lines = re.findall(r"line ([\d,]*\d)", message)
    n_lines = len(re.split(rb"\r\n|\r|\n", data))
    return any(1 <= int(line.replace(",", "")) <= n_lines for line in lines)


# --------------------------------------------------------------------------- files to be corrupted

NAMES = ["\u2028", "\xa0", "e\u0301", "\U0001f600", " lead", "two\nlines", "t\tb", "a;b|c", "x,y"]
NAMES += ['say "hi"', "b/ü.png", "=1+1", "@SUM(A1)", "a", "-1", "0", "nan", "'", "\\", "#", "日本"]
VALUES = {
    "nan": ("1", "0", "", "1.0", "0.0", "nan", "True", "false", " 1", "NA", "1e0", "-0"),
    "minus_one_uncertain": ("1", "0", "", "-1", "1.0", "0.0", "-1.0", "NaN", "none"),
    "codes": ("1", "0", "-1", "-2", "1.0", "-2.0"),
}
PLAIN = {"nan": (1, 0), "minus_one_uncertain": (1, 0, -1), "codes": (1, 0, -1, -2)}


def make(rng: random.Random) -> Case:
    """A good file (a few are not: they are checked alike)."""
    kind = rng.choice(("wide", "wide", "long", "lists", "jsonl", "pairs"))
    encoding = rng.choice(list(MAPS))
    some = [f"{rng.choice(NAMES)}{j or ''}" for j in range(rng.randint(1, 4))]
    ids = [f"{rng.choice(NAMES)}{i or ''}" for i in range(rng.randint(1, 8))]
    group = rng.choice(("group", None))
    if kind in ("wide", "long"):
        case = Case(kind, rng.choice((".csv", ".tsv")), b"", encoding, group=group)
        return make_table(rng, case, some, ids)
    records: list[dict[str, Any]] = []
    for i in ids:
        record: dict[str, Any] = {"id": i}
        if group:
            record[group] = rng.choice(("p", "q", 7))
        if kind == "pairs":
            one = [*PLAIN[encoding], *((None, True, "1") if encoding != "codes" else ())]
            records += [record | {"category": c, "value": rng.choice(one)} for c in some]
            continue
        records.append(record)
        if kind == "jsonl":
            values: tuple[Any, ...] = VALUES[encoding] if rng.random() < 0.3 else PLAIN[encoding]
            values = (*values, None, True) if encoding != "codes" else values
            record |= {name: rng.choice(values) for name in some}
            continue
        for name in some:
            where = rng.choice(("positive", "negative", "uncertain", None))
            if where:
                record.setdefault(where, []).append(name)
    escaped, end = rng.random() < 0.5, rng.choice(("\n", "\n", "\r\n", "\n\n"))
    text = "".join(json.dumps(record, ensure_ascii=escaped) + end for record in records)
    return Case(kind, ".jsonl", text.encode(), encoding, group=group)


def make_table(rng: random.Random, case: Case, some: list[str], ids: list[str]) -> Case:
    values = VALUES[case.encoding]
    has_note = rng.random() < 0.2  # a column that is not read
    if case.kind == "wide":
        id_name = "id" if rng.random() < 0.8 or case.group else None
        case = case._replace(id_name=id_name, wanted=some if has_note else None)
        head = [*([id_name] if id_name else []), *some]
        rows = [[*([i] if id_name else []), *(rng.choice(values) for _ in some)] for i in ids]
    else:
        head = ["id", "category", "value"]
        rows = [[i, c, rng.choice(values)] for i in ids for c in some if rng.random() < 0.7]
    group = {i: rng.choice(("p", "q")) for i in ids}
    extra = [*([case.group] if case.group else []), *(["note"] if has_note else [])]
    of_row = {"group": lambda i: group[i], "note": lambda _: rng.choice(NAMES)}
    rows = [[*row, *(of_row[name](row[0]) for name in extra)] for row in rows]
    out = io.StringIO(newline="")
    quoting = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    end = rng.choice(("\n", "\n", "\r\n", "\r"))
    writer = csv.writer(out, delimiter=DELIMITERS[case.suffix], quoting=quoting, lineterminator=end)
    writer.writerows([[*head, *extra], *rows])
    return case._replace(data=out.getvalue().encode())


# ------------------------------------------------------------------------------------- corruptions

MARKS = (b'"', b'""', b",", b"\t", b";", b"|", b"\n", b"\r", b"\r\n", b"\0", b"\xff", b"\xc3", b" ")
MARKS += (BOM, b"\xe9", b"=", b"'", b"\\", b"_", b"\xed\xa0\x80", b"\xc0\x80", b"{", b"]", b":")
MARKS += (b"\\u0000", b"\\ud800", b"\x1a", b"\x0c", b"\xc2\xa0", b"\xe2\x80\xa8", b"1", b"-", b"e")
FORMULAS = (b"=1+1", b'=HYPERLINK("http://x","y")', b"+1", b"-1+1", b"@SUM(1,1)", b"'=cmd|'!A0")
ODD = (b"1", b"0", b"-1", b"-2", b"1.0", b"01", b"1_0", b"0x1", b"inf", b"-nan", b"+1", b"1e0")
ODD += (b"TRUE", b"yes", b"null", b"None", b"2", b"\xef\xbc\x91", b"1 ", b"[1]", b"{}", b"NaN")
ODD += (b"Infinity", b"1e400", b"true", b"9007199254740993", b"1" * 30, b'"1"', b"-0")
HUGE = (5_000, LIMIT - 1, LIMIT, LIMIT + 1, 200_000)
CODECS = ("utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp1252", "utf-8-sig", "utf-32", "utf-7")
MARKS_OF_ORDER = (BOM, BOM, BOM * 2, BOM[:2], b"\xff\xfe", b"\xfe\xff")
LINES = (b"\n", b" \n", b"\t\n", b",\n", b'""\n', b"{}\n", b"null\n")
ENDS = (b"\n", b"\r\n", b"\r", b"\n\n", b"\r\r\n", b"\n\r", b"\x0b", b"\xc2\x85")


def put(data: bytes, where: int, what: bytes, until: int | None = None) -> bytes:
    return data[:where] + what + data[where if until is None else until :]


def change(rng: random.Random, data: bytes, how: Callable[[bytes], bytes], most: int) -> bytes:
    """Something done to some bytes in a row."""
    start = rng.randint(0, len(data))
    stop = min(len(data), start + rng.randint(min(1, most), most))
    return put(data, start, how(data[start:stop]), stop)


def one_of(rng: random.Random, data: bytes, marks: bytes) -> int | None:
    """The place of one of some bytes."""
    places = [i for i, byte in enumerate(data) if byte in marks]
    return rng.choice(places) if places else None


def delimiters(rng: random.Random, data: bytes) -> bytes:
    """One delimiter is missing, there twice, or another one; or all are others."""
    i = one_of(rng, data, b",\t:")
    if i is None or rng.random() < 0.1:
        return data.translate(bytes.maketrans(b",", rng.choice((b";", b"|", b"\t"))))
    mark = data[i : i + 1]
    return put(data, i, rng.choice((b"", mark * 2, b";", b"|", b" " + mark + b" ")), i + 1)


def quoting(rng: random.Random, data: bytes) -> bytes:
    """A quote is missing or there twice; a field is quoted, or half of it."""
    i = one_of(rng, data, b'"')
    if i is not None and rng.random() < 0.5:
        return put(data, i, rng.choice((b"", b'""', b'"""', b"'")), i + 1)
    i = one_of(rng, data, b",\t\n\r")
    stops = [k for k in range((i or 0) + 1, len(data)) if data[k] in b",\t\n\r"]
    if i is None or not stops:
        return data + b'"'
    field = data[i + 1 : stops[0]]
    half = rng.randint(0, len(field))
    forms = (b'"%b"' % field, b'"' + field, field + b'"', b'"%b"%b' % (field[:half], field[half:]))
    return put(data, i + 1, rng.choice((*forms, b' "%b"' % field, b'"%b" ' % field)), stops[0])


def line_ends(rng: random.Random, data: bytes) -> bytes:
    """Other line ends, in the whole file or in places; or none at the end."""
    if rng.random() < 0.2:
        return data.rstrip(b"\r\n")
    one, share = rng.choice(ENDS), rng.choice((1.0, 1.0, 0.5))
    return re.sub(rb"\r\n|\r|\n", lambda match: one if rng.random() < share else match[0], data)


def lines(rng: random.Random, data: bytes) -> bytes:
    """A line is missing, there twice, blank or somewhere else, or the file goes on."""
    parts = data.splitlines(keepends=True) or [b""]
    i, k = rng.randrange(len(parts)), rng.randrange(len(parts))
    more = rng.choice((b"\x1a", b"\0" * 40, b"\n\n\n", b'"', b"EOF", b"{", b" "))
    choices = (
        [*parts[:i], *parts[i + 1 :]],
        [*parts[:k], parts[i], *parts[k:]],
        [*parts[:i], rng.choice(LINES), *parts[i:]],
        [*parts, more],
    )
    return b"".join(rng.choice(choices))


def recode(rng: random.Random, data: bytes) -> bytes:
    """The whole file, or a part, in another encoding; or UTF-8 taken for Latin-1."""
    if rng.random() < 0.2:
        return data.decode("latin-1").encode()
    codec = rng.choice(CODECS)

    def other(part: bytes) -> bytes:
        return part.decode("utf-8", "replace").encode(codec, "replace")

    return change(rng, data, other, 40) if rng.random() < 0.2 else other(data)


def cell(rng: random.Random, data: bytes, content: bytes) -> bytes:
    """Something else in place of a cell, or a JSON value, or in front of what is there."""
    spans = [m.span() for m in re.finditer(rb'[^,\t\r\n"{}\[\]]+', data)] or [(0, 0)]
    start, stop = rng.choice(spans)
    return put(data, start, content, stop if rng.random() < 0.7 else start)


def huge(rng: random.Random, data: bytes) -> bytes:
    beyond = b"{" not in data and rng.random() < 0.005  # what is longer than a block
    n = files.BLOCK_BYTES + 5 if beyond else rng.choice(HUGE)
    return cell(rng, data, rng.choice((b"x", b"x", b"1", b" ", "ü".encode(), b'""')) * n)


CORRUPTIONS: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "nothing": lambda _, data: data,
    "bit flipped": lambda rng, data: change(
        rng, data, lambda part: bytes(byte ^ (1 << rng.randrange(8)) for byte in part), 1
    ),
    "byte inserted": lambda rng, data: change(rng, data, lambda _: rng.choice(MARKS), 0),
    "noise inserted": lambda rng, data: change(rng, data, lambda _: rng.randbytes(2), 0),
    "bytes deleted": lambda rng, data: change(rng, data, lambda _: b"", rng.choice((1, 1, 12))),
    "byte replaced": lambda rng, data: change(rng, data, lambda _: rng.choice(MARKS), 1),
    "span repeated": lambda rng, data: change(rng, data, lambda part: part * 2, 40),
    "zeroed": lambda rng, data: change(rng, data, lambda part: bytes(len(part)), 64),
    "end cut": lambda rng, data: data[: rng.randint(0, len(data))],
    "start cut": lambda rng, data: data[rng.randint(0, len(data)) :],
    "delimiters": delimiters,
    "quoting": quoting,
    "line ends": line_ends,
    "lines": lines,
    "byte-order mark": lambda rng, data: rng.choice(MARKS_OF_ORDER) + data,
    "mark inside": lambda rng, data: change(rng, data, lambda _: rng.choice(MARKS_OF_ORDER), 0),
    "encoding": recode,
    "formula": lambda rng, data: cell(rng, data, rng.choice(FORMULAS)),
    "odd value": lambda rng, data: cell(rng, data, rng.choice(ODD)),
    "huge field": huge,
}
SMALL = ("bit flipped", "byte inserted", "bytes deleted", "byte replaced", "quoting", "odd value")


class Outcome(NamedTuple):
    """What became of one case."""

    index: int
    corruption: str
    kind: str
    verdict: str
    seconds: float
    data: bytes


def run_case(index: int, folder: Path, seed: int = SEED) -> Outcome:
    """Make a file, corrupt it, read it twice. The same index and seed give the same bytes."""
    rng = random.Random(f"{seed}/{index}")
    case = make(rng)
    corruption = rng.choice(list(CORRUPTIONS))
    data = CORRUPTIONS[corruption](rng, case.data)
    for _ in range(rng.choice((0, 0, 1, 3)) if corruption != "nothing" else 0):
        data = CORRUPTIONS[rng.choice(SMALL)](rng, data)
    start = time.perf_counter()
    with pytest.MonkeyPatch.context() as patch:
        if rng.randrange(3) == 0:
            patch.setattr(files, "BLOCK_BYTES", longest_record(data) + 8)
        found = verdict(folder / f"labels{case.suffix}", case, data)
        if found == "HANGS":  # a busy machine stalls too: what hangs, hangs again
            found = verdict(folder / f"labels{case.suffix}", case, data)
    return Outcome(index, corruption, case.kind, found, time.perf_counter() - start, data)


def longest_record(data: bytes) -> int:
    """Bytes of the longest record, or more: the smallest block in which it can be read."""
    longest = n = n_quotes = 0
    for line in data.splitlines(keepends=True):
        n, n_quotes = n + len(line), n_quotes + line.count(b'"')
        longest = max(longest, n)
        n = 0 if n_quotes % 2 == 0 else n
    return longest


# ------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("text", ['a,"1"x', 'a,"1', "a", "a,1\na,1", "a,\0", ",1", "a,2", "\xe9,1"])
def test_the_parser_is_strict(text):
    """The judge refuses what it should, and takes what it should."""
    case = Case("wide", ".csv", b"", "nan")
    with pytest.raises(RefusalError):
        strict_wide(f"id,cat\n{text}\n".encode("latin-1"), case)
    good = strict_wide(b'\xef\xbb\xbfid,cat\r\r\n"a\r\n""",TRUE\nb"c,', case)
    assert good == Cells(["cat"], ['a\r\n"', 'b"c'], None, [[1], [-1]])


@pytest.mark.parametrize("part", range(10))
def test_no_silent_difference(tmp_path, part):
    """The strict parser's cells, ids and categories, or an error that names file and line."""
    outcomes = [run_case(i, tmp_path) for i in range(part, N_CASES, 10)]
    wrong = [o for o in outcomes if o.verdict not in ("same", "refused")]
    shown = [f"{o.index} {o.corruption} {o.kind} {o.data[:200]!r}: {o.verdict}" for o in wrong]
    assert not wrong, "\n".join([f"{len(wrong)} of {len(outcomes)}", *shown[:10]])
    counted = Counter(o.verdict for o in outcomes)
    assert min(counted["same"], counted["refused"]) > len(outcomes) // 10
