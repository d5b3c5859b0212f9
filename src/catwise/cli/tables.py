"""Label tables that read back as the labels they were made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from catwise import _names
from catwise._options import option
from catwise.cli.options import LabelledOptions, TableOptions
from catwise.errors import LabelError, OutputError, ShapeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from catwise.data import Dataset
    from catwise.labels import PartialLabels

MAX_CELLS: Final = 1 << 31
"""Cells that a wide table may have: more are some gigabytes of commas."""


@dataclass(frozen=True)
class WrittenOptions:
    """What the values of a written table mean, and how it is laid out."""

    out_encoding: str = option(
        "nan",
        choices=[name for name in _names.ENCODINGS if name != "complete"],
        help="What the values of the written table mean.",
    )
    out_layout: str = option(
        "wide",
        choices=("wide", "long"),
        help="wide: one column a category. long: one row a known label.",
    )


class TableWriter:
    """Writes label tables that read back as the labels they were made from, into one folder."""

    def __init__(
        self,
        dataset: Dataset,
        table: TableOptions,
        source: LabelledOptions,
        written: WrittenOptions,
        *,
        home: Path,
    ) -> None:
        from catwise.labels import ENCODINGS

        labels, encoding, layout = dataset.labels, written.out_encoding, written.out_layout
        self.dataset, self.encoding, self.layout = dataset, encoding, layout
        self.texts = {
            code: "" if raw is None else f"{raw:g}" for raw, code in ENCODINGS[encoding].codes
        }
        taken = {"category", "value"} if layout == "long" else set(labels.categories)
        self.columns: dict[str, str] = {}
        values = {"id": labels.ids, "group": labels.groups, "split": dataset.splits}
        values["path"] = _paths_from(home, dataset)
        names = {"id": table.id_column, "group": table.group_column, "split": source.split_column}
        names["path"] = table.path_column
        for role, column in values.items():
            if column is None or (role in {"split", "path"} and not (column != "").any()):
                continue
            name = names[role] or role
            while name in taken:
                name += "_"
            taken.add(name)
            self.columns[role] = name
        self.rows = [
            column for role, column in values.items() if role in self.columns and column is not None
        ]

    @property
    def alone(self) -> bool:
        """Whether a wide table has one column only."""
        wide = self.layout == "wide"
        return wide and self.dataset.labels.n_categories == 1 and not self.columns

    @property
    def splits_groups(self) -> bool:
        """Whether a group is in several splits, so that commands would refuse it as a group."""
        if not {"group", "split"} <= self.columns.keys():
            return False
        groups = [] if self.dataset.groups is None else self.dataset.groups.tolist()
        splits = self.dataset.splits.tolist()
        pairs = {pair for pair in zip(groups, splits, strict=True) if pair[1]}
        return len({group for group, _ in pairs}) < len(pairs)

    @property
    def reading(self) -> str:
        """The options that read such a table."""
        import shlex

        from catwise.data.files import looks_like_data

        options = ["--encoding", self.encoding]
        if self.layout == "long":
            options += ["--layout", "long"]
        for role, name in self.columns.items():
            if role != "group" or not self.splits_groups:
                options += [f"--{role}-column", name]
            elif self.layout == "wide":
                options += ["--ignore-column", name]
        if self.alone and any(mark in self.dataset.labels.categories[0] for mark in ";\t,|"):
            options += ["--delimiter", ","]
        if not self.columns and looks_like_data(self.dataset.labels.categories):
            options += ["--header"]
        return shlex.join(options)

    def check(self, kept: PartialLabels) -> None:
        """Refuse labels that a table cannot hold."""
        n_uncertain = int(kept.counts().uncertain.sum())
        if n_uncertain and -2 not in self.texts:
            raise LabelError(
                f"the encoding {self.encoding!r} has no value for uncertain labels.",
                found=f"{n_uncertain:,} uncertain labels",
                remedy="--out-encoding minus_one_uncertain or codes",
            )
        if self.layout == "long" and kept.ids is None:
            raise LabelError("a long table needs ids.", remedy="--id-column, or --out-layout wide")
        if self.layout == "wide" and kept.n_rows * kept.n_categories > MAX_CELLS:
            raise ShapeError(
                "these labels are too many for a wide table.",
                found=f"{kept.n_rows:,} rows × {kept.n_categories:,} categories",
                expected=f"at most {MAX_CELLS:,} cells",
                remedy="--out-layout long",
            )

    def write(self, kept: PartialLabels, path: Path, *, replace: bool = True) -> None:
        """Write a table, whole or not at all; another of that name is replaced only if asked."""
        from catwise._io import atomic_path

        write = self._write_long if self.layout == "long" else self._write_wide
        try:
            with (
                atomic_path(path, replace=replace) as new,
                new.open("w", encoding="utf-8", newline="") as file,
            ):
                write(kept, file)
        except UnicodeEncodeError as error:
            raise OutputError(
                f"cannot write '{path}'.",
                found=f"a name that is not Unicode text: {error.object!r}",
                remedy="correct the ids or names",
            ) from error

    def _write_wide(self, kept: PartialLabels, file: TextIO) -> None:
        file.write(_line([*self.columns.values(), *kept.categories]))
        text = self.texts.__getitem__
        for start, codes in kept.blocks():
            for at, row in enumerate(codes.tolist(), start):
                values = ",".join(map(text, row))
                if self.rows:
                    values = ",".join([*(_field(column[at]) for column in self.rows), values])
                file.write((values or '""' if self.alone else values) + "\n")

    def _write_long(self, kept: PartialLabels, file: TextIO) -> None:
        """Image after image, so that rows read back come in their order."""
        file.write(_line([*self.columns.values(), "category", "value"]))
        for at, j, code in _entries(kept):
            names = [*(str(column[at]) for column in self.rows), kept.categories[j]]
            file.write(_line([*names, self.texts[code]]))


def _paths_from(home: Path, dataset: Dataset) -> NDArray[np.str_]:
    """The paths of the images from a folder, with "/"; blank ones stay blank."""
    import os

    import numpy as np

    roots: dict[str, str] = {}

    def led(path: str) -> str:
        folder, _, name = path.rpartition("/")
        if folder not in roots:
            roots[folder] = Path(os.path.relpath(dataset.root / folder, home)).as_posix()
        return f"{roots[folder]}/{name}".removeprefix("./")

    return np.array([led(path) if path else "" for path in dataset.paths.tolist()], dtype=np.str_)


def _line(fields: list[str]) -> str:
    return ",".join(map(_field, fields)) + "\n"


def _field(text: str) -> str:
    """A field of a CSV file; csv.writer leaves a lone carriage return unquoted."""
    if any(sign in text for sign in ',"\r\n') or text != text.strip():
        return '"' + text.replace('"', '""') + '"'
    return text


def _entries(labels: PartialLabels) -> Iterator[tuple[int, int, int]]:
    """(row, category, code) of the labels that are not unknown, row after row."""
    import numpy as np

    columns = labels.as_columns()
    category = np.repeat(np.arange(columns.n_columns), np.diff(columns.starts))
    order = np.argsort(columns.rows, kind="stable")
    step = 1 << 20
    for start in range(0, len(order), step):
        at = order[start : start + step]
        parts = (columns.rows[at], category[at], columns.codes[at])
        yield from zip(*(part.tolist() for part in parts), strict=True)
