"""Writing files so that a reader never sees half of one.

Everything is built under a temporary name in the folder where it will live (`_lock`), flushed to
the disk and renamed. What fails on the way is removed, and the operating system's reason becomes an
:class:`~catwise.errors.OutputError`.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import json
import os
import sys
from collections.abc import Callable, Container, Iterator
from pathlib import Path

from catwise._lock import (
    Temporary,
    check_place,
    list_names,
    measure,
    record,
    remove,
    sweep,
    translated,
    writing,
)
from catwise.errors import CatwiseError, OutputError


def _sync(path: Path) -> None:
    """Flush one file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    """Flush a rename to the disk, where the file system can."""
    with contextlib.suppress(OSError):
        _sync(path)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], *, replace: bool = True) -> Iterator[Path]:
    """Give a temporary path that takes the place of `path` when the block ends well.

    On success the file is flushed to the disk and renamed; on failure it is removed and `path`
    stays as it was. A symbolic link is followed; what a killed process left of it is removed.
    Unless `replace`, only a file of the very bytes that were written may be there already, so that
    what was stopped can be repeated.
    """
    shown = Path(path)
    target = Path(os.path.realpath(shown))
    with translated(shown):
        if target.exists() and not target.is_file():
            code = errno.EISDIR if target.is_dir() else errno.EINVAL
            raise OSError(code, "not a regular file")
        if not os.access(target.parent, os.W_OK | os.X_OK) and target.parent.is_dir():
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        check_place(target)
        sweep(target)
        with Temporary(target) as temporary:
            yield temporary
            _sync(temporary)
            made = measure(temporary)
            check_place(target)
            if replace or not target.exists():
                temporary.replace(target)
            elif not filecmp.cmp(temporary, target, shallow=False):
                raise OutputError(
                    f"'{shown}' exists, with other content.",
                    remedy="choose another name, or replace it with overwrite=True",
                )
            record(target, made)
        _sync_folder(target.parent)


@contextlib.contextmanager
def named_as(shown: Path, temporary: Path) -> Iterator[None]:
    """Errors in the block speak of the name that people know, not of the temporary one.

    >>> with named_as(Path("out"), Path(".catwise-1")):
    ...     raise OutputError("cannot write '.catwise-1/a'.")
    Traceback (most recent call last):
    catwise.errors.OutputError: cannot write 'out/a'.
    """
    try:
        yield
    except CatwiseError as error:
        what, *more = (
            text and text.replace(str(temporary), str(shown))
            for text in (error.what, error.found, error.expected, error.remedy)
        )
        facts = dict(zip(("found", "expected", "remedy"), more, strict=True))
        raise type(error)(str(what), **facts) from error


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty folder beside `path` that takes this name when the block ends well.

    No other process can do the same meanwhile. `overwrite` removes a folder of that name once the
    new one is in place; the parent must exist.
    """
    shown = Path(path)
    target = Path(os.path.realpath(shown))
    with translated(shown), writing(path), Temporary(target) as temporary:
        _refuse_existing(shown, target, overwrite=overwrite)
        temporary.mkdir()
        yield temporary
        _refuse_existing(shown, target, overwrite=overwrite)
        put_folder(temporary, target)


def put_folder(folder: Path, target: Path) -> None:
    """Flush a folder to the disk and put it in the place of another, if there is one."""
    for inside in sorted(folder.rglob("*")):
        if inside.is_file():
            _sync(inside)
    _sync_folder(folder)
    made = measure(folder)
    check_place(target)
    _swap(folder, target)
    record(target, made)
    _sync_folder(target.parent)


@contextlib.contextmanager
def growing_folder(
    path: str | os.PathLike[str], *, last: str
) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    """Add files to a folder in which one file, `last`, tells what is there and is published last.

    Gives an empty folder to write in, and a function that moves one of its files into `path`. If
    the block fails, what it published is removed; no other process can add meanwhile.
    """
    target = Path(os.path.realpath(path))
    published: list[Path] = []

    def publish(file: Path) -> None:
        _sync(file)
        made = measure(file)
        check_place(target)
        if file.name == last:  # from here on they may be in use
            published.clear()
        else:
            published.append(target / file.name)
        file.replace(target / file.name)
        record(target / file.name, made)
        _sync_folder(target)

    with (
        translated(Path(path)),
        writing(path, inside=True),
        Temporary(target / "part") as temporary,
    ):
        try:
            temporary.mkdir()
            yield temporary, publish
        except BaseException:
            for file in published:
                remove(file)
            raise


def _refuse_existing(shown: Path, target: Path, *, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise OSError(errno.ENOTDIR, "a file has this name")
    if not overwrite and list_names(target):
        raise OutputError(
            f"'{shown}' exists and is not empty.",
            remedy="choose another folder, or replace it with overwrite=True",
        )


def _swap(folder: Path, target: Path) -> None:
    """Put the new folder in place of the old one, if there is one, and remove that."""
    if not target.exists():
        folder.rename(target)
    elif _exchange(folder, target):
        remove(folder)
    else:  # stopped between the two, the old one is put back by `sweep`
        aside = folder.with_name(f"{folder.name}.old")
        target.rename(aside)
        try:
            folder.rename(target)
        except BaseException:
            aside.rename(target)
            raise
        remove(aside)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names at once, where the operating system and the file system can."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    return call is not None and not call(
        here, os.fsencode(first), here, os.fsencode(second), exchange
    )


def is_same_content(first: Path, second: Path) -> bool:
    """Whether two files hold the same bytes, or two folders the same names and files."""
    if first.is_dir() != second.is_dir() or not second.exists():
        return False
    if first.is_file():
        return filecmp.cmp(first, second, shallow=False)
    names = [{path.name for path in folder.iterdir()} for folder in (first, second)]
    return names[0] == names[1] and all(
        is_same_content(first / name, second / name) for name in names[0]
    )


def folder_names(path: Path, *, own: Container[str] | None = None, what: str = "") -> list[str]:
    """Names in a folder that `what` is to fill or replace, all in `own`; none without a folder."""
    with translated(path):
        if path.exists() and not path.is_dir():
            raise OutputError(
                f"'{path}' is a file.", expected="a folder", remedy="choose another name"
            )
        inside = list_names(path) if path.exists() else []
    if foreign := [name for name in inside if own is not None and name not in own]:
        raise OutputError(
            f"'{path}' holds files that no {what} writes; it is not replaced.",
            found=", ".join(foreign[:3]),
            expected=f"no folder, an empty one or an earlier {what}",
            remedy="choose another folder",
        )
    return inside


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder and its parents, if they are not there."""
    with translated(Path(path)):
        Path(path).mkdir(parents=True, exist_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes, *, replace: bool = True) -> None:
    """Write bytes whole or not at all."""
    with atomic_path(path, replace=replace) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text whole or not at all; line ends stay as they are."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: object, *, indent: int | None = 2) -> None:
    """Write a value as JSON, whole or not at all; NaN and infinity are refused."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")
