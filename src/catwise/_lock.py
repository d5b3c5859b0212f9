"""One process at a time writes an output; what a killed one left is removed.

All temporaries of catwise lie beside their target, or in the folder that is worked in, and begin
with ``.catwise-``. Their names tell the target, the machine and the process. So the next process
that writes the same target can remove those of a process that was killed, and never those of one
that runs.

`exclusive` is the lock of every output. It is a lock of the operating system on a hidden file, so a
kill lets it go. Where a file system has no such locks the work continues, with a warning. What is
written while it is held is remembered; at the end all of it must still be there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Final

from catwise.errors import CatwiseError, OutputError

PREFIX: Final = ".catwise-"  # what the names of our temporaries and locks begin with

_REMEDIES: Final = {
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

_NAME: Final = re.compile(r"\.catwise-([0-9a-f]{8})-([0-9a-f]{6})-([0-9]+)-([0-9a-f]{8})")
_OLD: Final = ".old"


def list_names(folder: Path) -> list[str]:
    """The names in a folder without those of our temporaries, sorted; OSError if it is none."""
    return sorted(name for name in os.listdir(folder) if not name.startswith(PREFIX))  # noqa: PTH208


def remove(path: Path) -> None:
    """Remove a file or folder of ours that is no longer wanted, if it is there and can be."""
    for hold in _HOLDS:
        hold.forget(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _output_error(path: Path, error: OSError) -> OutputError:
    if error.errno == errno.ENOENT and (gone := _removed(path)) is not None:
        return gone
    reason = error.strerror or str(error) or type(error).__name__
    return OutputError(
        f"cannot write '{path}'.",
        found=reason,
        remedy=_REMEDIES.get(error.errno or 0, "check the path and the disk"),
    )


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn the operating system's errors into ours; leave ours as they are."""
    try:
        yield
    except CatwiseError:
        raise
    except OSError as error:
        raise _output_error(path, error) from error


def _removed(path: Path) -> OutputError | None:
    """The error for a path in a folder that was held and is gone."""
    around = Path(os.path.realpath(path)).parents
    gone = (hold.shown for hold in _HOLDS if hold.folder in around and not hold.is_there)
    for shown in gone:
        return OutputError(
            f"the folder of '{shown}' was removed or replaced while catwise ran.",
            found="No such file or directory",
            remedy="run the command again, and leave the folder alone until it ends",
        )
    return None


@contextlib.contextmanager
def still_there(path: Path) -> Iterator[None]:
    """Errors in the block whose cause is that a held folder was removed say so."""
    try:
        yield
    except Exception as error:
        if not path.exists() and (gone := _removed(path)) is not None:
            raise gone from error
        raise


# ------------------------------------------------------------------------------ temporaries


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:length]


@cache
def _machine() -> str:
    """This machine, and within it the numbering of processes: containers have their own."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - no path
    except OSError:
        numbering = ""
    return _digest(f"{platform.node()} {numbering}", 6)


def _key(name: str) -> str:
    """What ties temporaries to a target's name; those of a temporary are of its own target."""
    found = _NAME.match(name)
    return found[1] if found else _digest(name, 8)


class Temporary:
    """A hidden, unused name beside a target, with the target's suffix; removed with the block."""

    _mine: Final[set[str]] = set()

    def __init__(self, target: Path) -> None:
        self._token = secrets.token_hex(4)
        start = f"{PREFIX}{_key(target.name)}-{_machine()}-{os.getpid()}"
        self._path = target.with_name(f"{start}-{self._token}{target.suffix[:32]}")

    def __enter__(self) -> Path:
        self._mine.add(self._token)
        return self._path

    def __exit__(self, *error: object) -> None:
        remove(self._path)
        self._mine.discard(self._token)

    @classmethod
    def is_stale(cls, name: str, *, locked: bool) -> bool:
        """Whether a temporary is used by no process: by none but this one where it holds a lock."""
        found = _NAME.match(name)
        if found is None or found[4] in cls._mine:
            return False
        pid = int(found[3])
        return locked or (found[2] == _machine() and (pid == os.getpid() or not _runs(pid)))


def _runs(pid: int) -> bool:
    if os.name != "posix":  # where asking would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of somebody else
        return True
    return True


def sweep(target: Path) -> None:
    """Remove what killed processes left beside a target; a folder only moved aside is put back."""
    locked = any(hold.locked and hold.path == target for hold in _HOLDS)
    start = f"{PREFIX}{_key(target.name)}-"
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(target.parent) if name.startswith(start)]  # noqa: PTH208
        for name in names:
            path = target.with_name(name)
            if not Temporary.is_stale(name, locked=locked):
                continue
            if name.endswith(_OLD) and not target.exists():
                path.rename(target)
            else:
                remove(path)


# ---------------------------------------------------------------------------------- signals


class _Late:
    """What a signal asked for while steps ran that must not be parted."""

    depth = 0
    act: Callable[[], None] | None = None


@contextlib.contextmanager
def undivided() -> Iterator[None]:
    """A few quick steps, which a signal that asks to end does not part; see `put_off`."""
    _Late.depth += 1
    try:
        yield
    finally:
        _Late.depth -= 1
        act = _Late.act
        if act is not None and not _Late.depth:
            _Late.act = None
            act()


def put_off(act: Callable[[], None]) -> bool:
    """Let a signal's handler act when undivided steps are done; False if it may act at once."""
    if _Late.depth:
        _Late.act = act
    return bool(_Late.depth)


# ------------------------------------------------------------------------------------ locks


class Hold:
    """An output that this process alone writes.

    Attributes:
        shown: the file or folder as it was named; `path` is it without symbolic links.
        locked: False where the file system has no locks.
        is_used: whether a writer is at work in it; a second one would be another's.
    """

    def __init__(self, shown: Path, path: Path, lock: Path, *, inside: bool) -> None:
        self.shown, self.path, self._lock, self._inside = shown, path, lock, inside
        self._thread = threading.get_ident()
        self.is_used = False
        self._descriptor, self.locked = _acquire(lock, shown)
        self._written: dict[Path, int] = {}

    @property
    def is_mine(self) -> bool:
        """Whether it is of this thread."""
        return self._thread == threading.get_ident()

    @property
    def folder(self) -> Path:
        """Where the lock is: the output itself, or the folder around it."""
        return self._lock.parent

    @property
    def is_there(self) -> bool:
        """Whether that folder is still the one that was locked."""
        return _is_same(self._descriptor, self._lock)

    def covers(self, path: Path) -> bool:
        """Whether a path is the output or lies in it."""
        return path == self.path or self.path in path.parents

    def sweep(self) -> None:
        """Remove what killed processes left, beside the output or in its folder."""
        sweep(self.path)
        for name in os.listdir(self.path) if self._inside else ():  # noqa: PTH208
            path = self.path / name
            ours = name.startswith(PREFIX) and path != self._lock
            if ours and (self.locked or Temporary.is_stale(name, locked=False)):
                remove(path)

    def record(self, path: Path, made: Mapping[str, int]) -> None:
        """Remember what was written, in place of what was there."""
        self.forget(path)
        self._written |= {path / name: size for name, size in made.items()}

    def forget(self, path: Path) -> None:
        """It is to be removed."""
        gone = [one for one in self._written if one == path or path in one.parents]
        for one in gone:
            del self._written[one]

    def check_place(self) -> None:
        """The folder in which is worked must still be the one that was locked."""
        if self._inside and not self.is_there:
            raise OutputError(
                f"'{self.shown}' was removed or replaced while catwise wrote into it.",
                remedy="run the command again, and leave the folder alone until it ends",
            )

    def check(self) -> None:
        """All that was written must still be there."""
        self.check_place()
        lost = [path for path, size in self._written.items() if _size(path) != size]
        if lost:
            raise OutputError(
                f"files in '{self.shown}' were removed or changed while catwise ran."
                if lost != [self.path]
                else f"'{self.shown}' was removed or changed while catwise ran.",
                found=", ".join(f"'{path}'" for path in lost[:3]),
                remedy="run the command again, and leave its output alone until it ends",
            )

    def release(self) -> None:
        """Let others in. The lock's file is removed while it is held, so it is never another's."""
        if self.is_there:
            with contextlib.suppress(OSError):
                self._lock.unlink()
        os.close(self._descriptor)

    def close(self) -> None:
        """In a child process, which holds nothing."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


_HOLDS: Final[list[Hold]] = []


def _close_in_child() -> None:
    for hold in _HOLDS:
        hold.close()
    _HOLDS.clear()


if hasattr(os, "register_at_fork"):  # a worker that outlives its parent must not keep the lock
    os.register_at_fork(after_in_child=_close_in_child)


@contextlib.contextmanager
def exclusive(
    path: str | os.PathLike[str], *, inside: bool = False, parents: bool = False
) -> Iterator[Hold]:
    """Write an output alone, while the block runs: for a command, or all of a work.

    What killed processes left of it is removed at the start. When the block ends well, all that was
    written there must still be there. `inside`: it is a folder that exists, and is worked in;
    otherwise it is put into its place when it is whole. `parents`: make the folders around it that
    are not there; those that stay empty are removed.
    """
    shown, target = Path(path), Path(os.path.realpath(path))
    made: list[Path] = []
    taken: list[Hold] = []
    try:
        with translated(shown), undivided():
            if shown.exists() and not (shown.is_file() or shown.is_dir()):
                raise OSError(errno.EINVAL, "neither a file nor a folder")
            made += _make_parents(target.parent) if parents else []
            lock = target / f"{PREFIX}lock" if inside else None
            lock = lock or target.with_name(f"{PREFIX}{_key(target.name)}.lock")
            taken.append(Hold(shown, target, lock, inside=inside))
            _HOLDS.extend(taken)
        taken[0].sweep()
        yield taken[0]
        taken[0].check()
    finally:
        with undivided():
            for hold in taken:
                _HOLDS.remove(hold)
                hold.release()
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], *, inside: bool = False) -> Iterator[None]:
    """As `exclusive`, for one writer; where this thread holds the output already, within that."""
    target = Path(os.path.realpath(path))
    held = [hold for hold in _HOLDS if hold.path == target and hold.is_mine and not hold.is_used]
    with contextlib.nullcontext(held[0]) if held else exclusive(path, inside=inside) as hold:
        hold.is_used = True
        try:
            yield
        finally:
            hold.is_used = False


def measure(path: Path) -> dict[str, int]:
    """Sizes of a file, or of a folder and all that is in it, by their names from there."""
    found = [path, *(path.rglob("*") if path.is_dir() else ())]
    return {str(one.relative_to(path)): _size(one) for one in found}


def record(path: Path, made: Mapping[str, int]) -> None:
    """Tell the holds that cover it that a file or folder was written; `made` is its `measure`."""
    for hold in _HOLDS:
        if hold.covers(path):
            hold.record(path, made)


def check_place(path: Path) -> None:
    """Folders that are held and in which a path lies must still be what they were."""
    for hold in _HOLDS:
        if hold.covers(path):
            hold.check_place()


def _make_parents(folder: Path) -> list[Path]:
    """Make a folder; returns those that were not there, the innermost first."""
    made = []
    for one in (folder, *folder.parents):
        if one.exists():
            break
        made.append(one)
    folder.mkdir(parents=True, exist_ok=True)
    return made


def _acquire(lock: Path, shown: Path) -> tuple[int, bool]:
    """Open and lock a file that is at that name; whether the file system has locks."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise OutputError(
                f"another process is writing '{shown}'.",
                remedy="wait until it has ended, or choose another name",
            ) from error
        except (ImportError, OSError):
            warnings.warn(
                f"The file system of '{shown}' has no locks: see to it that no other process "
                "writes there at the same time.",
                stacklevel=2,
            )
            return descriptor, False
        if _is_same(descriptor, lock):
            return descriptor, True
        os.close(descriptor)  # the one that had it removed it


def _is_same(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _size(path: Path) -> int:
    """Of a file; −1 for a folder, −2 if it is not there."""
    try:
        return -1 if path.is_dir() else path.stat().st_size
    except OSError:
        return -2
