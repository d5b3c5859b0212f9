"""Whether all that a command was given is as it was when it last ended: told without torch."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from catwise._version import __version__

UNCHANGED: Final = "unchanged.json"
NOTHING_TO_DO: Final = "nothing has changed since the last update"
_NOT_INPUTS: Final = ("out", "output", "workers", "engine", "update")


def inputs_digest(given: Any, out: Path) -> str:
    """A digest of a command's options and of the files that they name.

    Of a file its size and time of change count, of a folder those of all files in it but `out`.
    """
    digest = hashlib.sha256(f"{__version__} {sys.version} {os.cpu_count()}".encode())
    skipped = os.path.realpath(out)
    for name, value in _values(given):
        digest.update(f"{name}={value!r}\n".encode())
        for path in _paths(value):
            for line in _stamps(path, skipped):
                digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def _values(given: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The options of a dataclass and of those in it, in order."""
    for field in dataclasses.fields(given):
        value = getattr(given, field.name)
        if field.name in _NOT_INPUTS:
            continue
        if dataclasses.is_dataclass(value):
            yield from _values(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def _paths(value: Any) -> Iterator[Path]:
    """The files and folders that a value names, as in `transformers:FOLDER`, `python:MODULE:…`."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _paths(one)
    elif isinstance(value, str):
        kind, _, rest = value.partition(":")
        if kind == "python":
            with contextlib.suppress(ImportError, ValueError, AttributeError):
                module = importlib.util.find_spec(rest.partition(":")[0])
                if module is not None and module.origin is not None:
                    yield Path(module.origin)
        elif rest and os.path.exists(rest):  # noqa: PTH110 - a name may be no path at all
            yield Path(rest)


def _stamps(path: Path, skipped: str) -> Iterator[str]:
    """A line for each file: its path, size and time of change."""
    if not path.is_dir():
        yield _stamp(path)
        return
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(
            one for one in folders if os.path.realpath(Path(folder, one)) != skipped
        )
        for name in sorted(files):
            yield _stamp(Path(folder, name))


def _stamp(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return f"{path} absent"
    return f"{path} {found.st_size} {found.st_mtime_ns}"


def is_unchanged(out: Path, digest: str) -> bool:
    """Whether the command last ended with these inputs, and what it left is as it was."""
    from catwise._json import read_file

    try:
        told = read_file(out / UNCHANGED)
        return bool(told == {"inputs": digest, "outputs": _outputs(out)})
    except (OSError, ValueError):
        return False


def note_unchanged(out: Path, digest: str) -> None:
    """Note what a command was given, and what it left, once it has ended well."""
    from catwise._io import write_json

    write_json(out / UNCHANGED, {"inputs": digest, "outputs": _outputs(out)})


def _outputs(out: Path) -> str:
    """A digest of the files in a folder, by size and time of change."""
    own = str(out / UNCHANGED)
    lines = sorted(line for line in _stamps(out, "") if not line.startswith(f"{own} "))
    shown = "\n".join(line.removeprefix(str(out)) for line in lines)
    return hashlib.sha256(shown.encode()).hexdigest()
