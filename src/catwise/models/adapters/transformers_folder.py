"""A folder of transformers: its tables, and a head written into a copy of it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from catwise._io import atomic_folder, write_text
from catwise._json import parse
from catwise._limits import MAX_JSON, read_within
from catwise._safetensors import read_layout
from catwise.errors import CheckpointError, OutputError, reason_of
from catwise.features.manifest import file_sha256
from catwise.heads import Head, WriteReport
from catwise.models.core import LoadedModel, Writer
from catwise.models.stored_names import with_fields
from catwise.models.writing import refuse_changes

CONFIG: Final = "config.json"
INDEX: Final = "model.safetensors.index.json"
_OF_ROWS: Final = {CONFIG: ("id2label", "label2id", "num_labels"), INDEX: ("metadata",)}
"""What they say of the head's rows."""


def read_table(path: Path, *, needed: bool = False) -> dict[str, Any]:
    """Read a table; an absent file that is not needed is an empty one."""
    if not path.exists() and not needed:
        return {}
    try:
        value = parse(read_within(path, MAX_JSON))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read '{path}'.",
            found=reason_of(error),
            expected="a JSON table in a folder that save_pretrained wrote",
            remedy="check the folder's name; models are not downloaded",
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"'{path}' is not a table.", found=type(value).__name__)
    return value


@dataclass(frozen=True)
class FolderWriter:
    """Writes into a copy of a transformers folder; links are copied as what they lead to.

    Attributes:
        weights_file: the safetensors file in the folder that holds the head.
        inside: writes into a copy of that file.
        labels: what config.json calls the model's rows, by the names that they have in the head.
    """

    weights_file: str
    inside: Writer
    labels: Mapping[str, str] = field(default_factory=dict)

    def write(
        self,
        model: LoadedModel,
        head: Head,
        source: Path,
        destination: Path,
        *,
        resize: bool,
        overwrite: bool,
    ) -> list[WriteReport]:
        """Copy the folder byte for byte, but for the head's bytes, and what tells of its rows."""
        old, new = source.resolve(), destination.resolve()
        if new == old or old in new.parents or new in old.parents:
            raise OutputError(
                f"'{destination}' is the model's own folder, lies in it, or holds it.",
                expected="a new folder: an input is never changed",
                remedy="choose another name",
            )
        weights = old / self.weights_file

        def left_out(at: str, names: list[str]) -> list[str]:
            return [name for name in names if Path(at, name) == weights]

        with atomic_folder(destination, overwrite=overwrite) as folder:
            shutil.copytree(old, folder, dirs_exist_ok=True, ignore=left_out)
            copy = folder / self.weights_file
            reports = self.inside.write(model, head, weights, copy, resize=resize, overwrite=False)
            if resize:
                self._tell_rows(folder, head, more=_n_bytes(copy) - _n_bytes(weights))
            return reports

    def _tell_rows(self, folder: Path, head: Head, *, more: int) -> None:
        """Say in the configuration which rows there are, and in an index how large all tensors."""
        names = [self.labels.get(name, name) for name in head.categories]
        _edit(folder / CONFIG, _rows_of(names, read_table(folder / CONFIG)))
        if (folder / INDEX).exists():
            said = read_table(folder / INDEX).get("metadata")
            if isinstance(said, dict) and isinstance(said.get("total_size"), int):
                sizes = {**said, "total_size": said["total_size"] + more}
                _edit(folder / INDEX, {"metadata": sizes})

    def compare(self, model: LoadedModel, source: Path, copy: Path, *, resized: bool) -> int:
        """Compare all files byte for byte, and all other tensors of the head's file."""
        names = [
            {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
            for folder in (source, copy)
        ]
        common = sorted((names[0] & names[1]) - {self.weights_file})
        wrong = sorted(names[0] ^ names[1]) + [
            name for name in common if file_sha256(source / name) != file_sha256(copy / name)
        ]
        if resized:
            wrong = [name for name in wrong if not _tells_alone(source / name, copy / name)]
        refuse_changes(source, copy, wrong, what="files")
        files = (source / self.weights_file, copy / self.weights_file)
        return self.inside.compare(model, *files, resized=resized)


def _rows_of(names: Sequence[str], table: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of the rows; a count only where it has one (the names tell it)."""
    count = {"num_labels": len(names)} if "num_labels" in table else {}
    return {
        **count,
        "id2label": {str(row): name for row, name in enumerate(names)},
        "label2id": {name: row for row, name in enumerate(names)},
    }


def _edit(path: Path, fields: Mapping[str, Any]) -> None:
    write_text(path, with_fields(read_within(path, MAX_JSON).decode(), fields))


def _tells_alone(old: Path, new: Path) -> bool:
    """Whether two configurations differ only in what they say of the head's rows."""
    of_rows = _OF_ROWS.get(old.name, ())
    if not of_rows or not new.exists():
        return False
    left = [{k: v for k, v in read_table(path).items() if k not in of_rows} for path in (old, new)]
    return list(left[0].items()) == list(left[1].items())


def _n_bytes(path: Path) -> int:
    """The bytes of all tensors in a file."""
    tensors = read_layout(path).tensors
    return sum(tensor.stop - tensor.start for tensor in tensors)
