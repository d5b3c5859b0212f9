"""What a calibration and a set of thresholds have in common: how they are written and read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from catwise._csv import rows_csv
from catwise._io import write_json, write_text
from catwise._json import read_file
from catwise.errors import ConfigError

Read = TypeVar("Read")


class Document(ABC):
    """Something decided for each category, as JSON and as a table."""

    @abstractmethod
    def records(self) -> list[dict[str, Any]]:
        """One JSON-ready dict for each category."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-ready."""

    def save(self, path: str | Path) -> None:
        """Write as JSON; `load` reads it back, without what was seen on test rows.

        Raises:
            OutputError: If it cannot be written.
        """
        write_json(path, self.to_dict())

    def write_csv(self, path: str | Path) -> None:
        """Write a line for each category, without the knots of a map.

        Raises:
            OutputError: If it cannot be written.
        """
        rows = [{key: one[key] for key in one if key != "knots"} for one in self.records()]
        write_text(path, rows_csv(rows))


def read_document(
    path: str | Path, read: Callable[[Any], Read], *, what: str, written_by: str
) -> Read:
    """What `read` makes of a JSON file.

    Raises:
        ConfigError: If the file is not such a document, or is of another version.
    """
    try:
        return read(read_file(Path(path)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"cannot read {what} from '{path}'.",
            found=getattr(error, "strerror", None) or repr(error),
            expected=f"a file that {written_by} wrote",
        ) from error
