"""The folder of a classifier: what is in it, and whether it is what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from catwise._io import write_json
from catwise._json import TABLE, TEXT, TEXTS, Field, read_fields, read_file
from catwise.errors import CheckpointError, ConfigError, MismatchError, reason_of
from catwise.features.manifest import file_sha256
from catwise.models import Preprocessing

FORMAT: Final = "1"
MANIFEST: Final = "classifier.json"
HEAD: Final = "head.safetensors"
CALIBRATION: Final = "calibration.json"
THRESHOLDS: Final = "thresholds.json"
CONFORMAL: Final = "conformal.json"
CARD: Final = "MODEL_CARD.md"
CHECKPOINT: Final = "checkpoint"
"""The folder of the model's checkpoint, under its own name."""
FILES: Final = (MANIFEST, HEAD, CALIBRATION, THRESHOLDS, CONFORMAL, CARD, CHECKPOINT)

_FLAG: Final = Field("true or false", lambda value: type(value) is bool)
_ROWS: Final = Field(
    "a list of whole numbers",
    lambda value: type(value) is list and all(type(one) is int and one >= 0 for one in value),
)
_NUMBERS: Final = Field(
    "a list of lists of numbers",
    lambda value: (
        type(value) is list
        and all(type(row) is list and all(type(x) in (int, float) for x in row) for row in value)
    ),
)
_FIELDS: Final = {
    "catwise_classifier": TEXT,
    "catwise": TEXT,
    "categories": TEXTS,
    "population": TEXT,
    "files": Field(
        "a table of texts",
        lambda value: TABLE.test(value) and all(type(text) is str for text in value.values()),
    ),
    "extraction": TABLE,
    "provenance": TABLE,
    "model": replace(TABLE, required=False),
    "digest": TEXT,
}
_MODEL: Final = {
    "recipe": TABLE,
    "checkpoint": TEXT,
    "layer": TEXT,
    "rows": _ROWS,
    "flips": _FLAG,
    "preprocessing": TABLE,
    "probe": _NUMBERS,
}


@dataclass(frozen=True)
class Manifest:
    """What `classifier.json` says.

    Attributes:
        categories: C names.
        population: of which images the probabilities speak.
        files: the SHA-256 of every other file, by its path in the folder.
        extraction: what is known of the features that the head takes: digests of the weights that
            give them, layer, flips, preprocessing.
        provenance: what the user, and the head itself, say of where it comes from.
        model: how the model is loaded and what its input is; None for a head alone.
        catwise: the version that wrote it.
    """

    categories: tuple[str, ...]
    population: str
    files: dict[str, str]
    extraction: dict[str, Any]
    provenance: dict[str, Any]
    model: dict[str, Any] | None
    catwise: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the digest of all of it."""
        table = {"catwise_classifier": FORMAT, **vars(self), "categories": list(self.categories)}
        table = {name: value for name, value in table.items() if value is not None}
        return {**table, "digest": _digest(table)}

    @property
    def digest(self) -> str:
        """SHA-256 of the text, in which the digests of all files stand."""
        return str(self.to_dict()["digest"])

    def write(self, folder: Path) -> None:
        """Write `classifier.json`."""
        write_json(folder / MANIFEST, self.to_dict())

    @classmethod
    def read(cls, folder: Path, *, check: bool = True) -> Manifest:
        """Read `classifier.json`.

        Raises:
            CheckpointError: If there is none, or it cannot be read.
            ConfigError: If another version of catwise wrote it.
            MismatchError: If it was changed since.
        """
        path = folder / MANIFEST
        try:
            table = read_file(path)
            if type(table) is dict and table.get("catwise_classifier", FORMAT) != FORMAT:
                raise _other_version(path, table["catwise_classifier"])
            fields = read_fields(table, _FIELDS)
            _check_model(fields)
        except ConfigError:
            raise
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"cannot read a classifier from '{folder}'.",
                found=f"{MANIFEST}: {reason_of(error)}",
                expected="a folder that `save_classifier` or `catwise package` wrote",
                remedy="check the path, or make the folder again",
            ) from error
        said = {name: value for name, value in table.items() if name != "digest"}
        if fields.pop("digest") != _digest(said) and check:
            raise _changed(folder, [MANIFEST])
        del fields["catwise_classifier"]
        fields["categories"] = tuple(fields["categories"])
        return cls(**{"model": None, **fields})

    def check_files(self, folder: Path) -> None:
        """Compare every file with its digest.

        Raises:
            MismatchError: If one was changed, is gone, or does not belong.
        """
        there = set(list_files(folder))
        wrong = sorted(there ^ self.files.keys())
        wrong += [
            name
            for name, digest in self.files.items()
            if name in there and file_sha256(folder / name) != digest
        ]
        if wrong:
            raise _changed(folder, wrong)

    def preprocessing(self) -> Preprocessing | None:
        """How images become the model's input; None for a head alone."""
        if self.model is None:
            return None
        try:
            return Preprocessing.from_dict(self.model["preprocessing"])
        except ValueError as error:
            raise CheckpointError(
                "the preprocessing of the classifier cannot be used.", found=reason_of(error)
            ) from error


def _check_model(fields: Mapping[str, Any]) -> None:
    """Refuse a model that is not described as one is; ValueError."""
    if "model" not in fields:
        return
    model = read_fields(fields["model"], _MODEL, "its model")
    if len(model["rows"]) != len(fields["categories"]):
        raise ValueError("its rows are not one for each category")


def list_files(folder: Path) -> list[str]:
    """Every file of a classifier's folder but `classifier.json`, by its path in it."""
    found = (path for path in folder.rglob("*") if path.is_file())
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    return [name for name in names if name != MANIFEST and not name.startswith(".")]


def _digest(table: Mapping[str, Any]) -> str:
    text = json.dumps(table, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _other_version(path: Path, found: object) -> ConfigError:
    return ConfigError(
        f"'{path}' is of another version of the format.",
        found=repr(found),
        expected=repr(FORMAT),
        remedy="load it with the catwise that wrote it, or make the folder again",
    )


def _changed(folder: Path, names: list[str]) -> MismatchError:
    return MismatchError(
        f"the classifier in '{folder}' is not what was written.",
        found=f"changed, gone or added: {', '.join(names[:5])}",
        expected="the very files that it was made with",
        remedy="copy the folder again, or make it again; check=False loads it as it is",
    )
