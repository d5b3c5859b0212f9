"""Writing files so that a reader never sees half of one.

Everything is built under a temporary name in the folder where it will live, flushed to the disk and
renamed. What fails on the way is removed, and the operating system's reason becomes an
:class:`~catwise.errors.OutputError`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from catwise.errors import CatwiseError, OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "atomic_folder",
    "atomic_path",
    "growing_folder",
    "make_folder",
    "write_bytes",
    "write_json",
    "write_text",
]

_REMEDIES = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some of your quota, or write to another disk",
    errno.EACCES: "choose a folder that you may write to, or change its permissions",
    errno.EPERM: "choose a folder that you may write to, or change its permissions",
    errno.EROFS: "the disk is mounted read-only: choose another folder",
    errno.ENOENT: "make the folder first, or correct the path",
    errno.ENOTDIR: "a part of the path is a file: correct the path",
    errno.EISDIR: "a folder has this name: choose another one",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EFBIG: "the disk or a limit does not allow files of this size",
}


def _output_error(path: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error) or type(error).__name__
    return OutputError(
        f"cannot write '{path}'.",
        found=reason,
        remedy=_REMEDIES.get(error.errno or 0, "check the path and the disk"),
    )


def _temporary(target: Path) -> Path:
    """A hidden, unused name beside the target, with the target's suffix."""
    return target.with_name(f".catwise-{secrets.token_hex(8)}{target.suffix[:32]}")


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


def _remove(path: Path) -> None:
    """Remove a file or folder of ours that is no longer wanted."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn the operating system's errors into ours; leave ours as they are."""
    try:
        yield
    except CatwiseError:
        raise
    except OSError as error:
        raise _output_error(path, error) from error


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path that takes the place of `path` when the block ends well.

    The block writes a file at the path that it is given. On success the file is flushed to the disk
    and renamed to `path`, replacing a file of that name; on failure it is removed and `path` stays
    as it was. A symbolic link is followed.

    Args:
        path: where the file shall be; its folder must exist.

    Yields:
        A path in the same folder, with the same suffix, at which nothing exists yet.

    Raises:
        OutputError: If the operating system refuses: no space, no permission, a read-only disk, no
            such folder, or something that is not a file has this name.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_path(f"{folder}/a.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     Path(folder, "a.txt").read_text()
    'whole'
    """
    shown = Path(path)
    target = Path(os.path.realpath(shown))
    temporary = _temporary(target)
    with _translated(shown):
        if target.exists() and not target.is_file():
            code = errno.EISDIR if target.is_dir() else errno.EINVAL
            raise OSError(code, "not a regular file")
        if not os.access(target.parent, os.W_OK | os.X_OK) and target.parent.is_dir():
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        try:
            yield temporary
            _sync(temporary)
            temporary.replace(target)
        except BaseException:
            _remove(temporary)
            raise
        _sync_folder(target.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder that takes the name `path` when the block ends well.

    Args:
        path: where the folder shall be; its parent must exist.
        overwrite: replace a folder of that name; it is removed once the new one is in place.

    Yields:
        An empty folder beside `path`.

    Raises:
        OutputError: If the operating system refuses, or `path` exists and `overwrite` is false.
    """
    shown = Path(path)
    target = Path(os.path.realpath(shown))
    temporary = _temporary(target)
    with _translated(shown):
        _refuse_existing(shown, target, overwrite=overwrite)
        try:
            temporary.mkdir()
            yield temporary
            for inside in sorted(temporary.rglob("*")):
                if inside.is_file():
                    _sync(inside)
            _sync_folder(temporary)
            _refuse_existing(shown, target, overwrite=overwrite)
            _swap(temporary, target)
        except BaseException:
            _remove(temporary)
            raise
        _sync_folder(target.parent)


@contextlib.contextmanager
def growing_folder(
    path: str | os.PathLike[str], *, last: str
) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    """Add files to a folder in which one file tells what is there.

    Args:
        path: a folder that exists. While the block runs no other process can add to it.
        last: the name of that file, which is to be published last. If the block fails before,
            what it published is removed.

    Yields:
        An empty folder to write files in, and a function that flushes one of them to the disk and
        puts it into `path` under its own name, in place of a file of that name.

    Raises:
        OutputError: If the operating system refuses, or somebody else adds files.
    """
    target = Path(os.path.realpath(path))
    with _translated(Path(path)), _locked(target):
        for left in target.glob(".catwise-*"):  # by a process that was killed
            _remove(left)
        temporary = _temporary(target / "part")
        published: list[Path] = []

        def publish(file: Path) -> None:
            _sync(file)
            if file.name == last:  # from here on they may be in use
                published.clear()
            else:
                published.append(target / file.name)
            file.replace(target / file.name)
            _sync_folder(target)

        try:
            temporary.mkdir()
            yield temporary, publish
        except BaseException:
            for file in published:
                _remove(file)
            raise
        finally:
            _remove(temporary)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time in; the lock ends with the process. Only where there are locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(
                    f"somebody else adds to '{folder}'.", remedy="wait until that is finished"
                ) from error
        yield
    finally:
        os.close(descriptor)


def _refuse_existing(shown: Path, target: Path, *, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise OSError(errno.ENOTDIR, "a file has this name")
    if not overwrite and any(target.iterdir()):
        raise OutputError(
            f"'{shown}' exists and is not empty.",
            remedy="choose another folder, or ask to overwrite it",
        )


def _swap(temporary: Path, target: Path) -> None:
    """Put the new folder in place of the old one, if there is one."""
    if not target.exists():
        temporary.rename(target)
        return
    aside = _temporary(target)
    target.rename(aside)
    try:
        temporary.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    _remove(aside)


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder and its parents, if they are not there.

    Raises:
        OutputError: If the operating system refuses, or a file has this name.
    """
    with _translated(Path(path)):
        Path(path).mkdir(parents=True, exist_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write bytes whole or not at all.

    Raises:
        OutputError: As for :func:`atomic_path`.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text whole or not at all; line ends stay as they are.

    Raises:
        OutputError: As for :func:`atomic_path`.
    """
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: object, *, indent: int | None = 2) -> None:
    """Write a value as JSON, whole or not at all; NaN and infinity are refused.

    Raises:
        ValueError: If the value holds NaN or infinity, which JSON has not.
        OutputError: As for :func:`atomic_path`.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")
