"""Compiles the sampled products (`src/catwise/_native/sampled.c`) while catwise is installed.

They are an accelerator, never a need: without a C compiler that knows `_VARIANTS` (GCC 11, Clang 12
or newer), or on another platform than Linux on x86-64, catwise is built without them and uses
PyTorch's own operators. ``CC`` names the compiler; ``CATWISE_NO_COMPILE=1`` asks for none.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_SOURCE = Path("src/catwise/_native/sampled.c")
# No -ffast-math: a library linked with it would flush denormal numbers in the whole process.
_FLAGS = ("-O3", "-shared", "-fPIC", "-fopenmp", "-falign-functions=64", "-falign-loops=64")
_VARIANTS = {"avx512": "-march=x86-64-v4", "avx2": "-march=x86-64-v3"}


class CompileSampled(BuildHookInterface[Any]):
    """Adds a library for each kind of processor to the wheel, or to the source tree if editable."""

    _made: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; `version` is "standard" or "editable"."""
        if self.target_name != "wheel":
            return
        source = Path(self.root) / _SOURCE
        if version == "editable":
            with suppress(OSError):  # of an earlier installation: of another source, it is not used
                for old in source.parent.glob("*.so"):
                    old.unlink()
        compiler = _compiler()
        if compiler is None:
            return
        self._made = tempfile.TemporaryDirectory(prefix="catwise-")
        for name, flag in _VARIANTS.items():
            made = Path(self._made.name) / f"sampled_{name}.so"
            try:
                _compile(compiler, source, made, flag)
                if version == "editable":
                    shutil.copyfile(made, part := source.with_name(f"{made.name}.part"))
                    part.replace(source.with_name(made.name))
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                reason = getattr(error, "stderr", None) or error
                self.app.display_warning(f"catwise: {made.name} was not built: {reason}")
                continue
            if version != "editable":
                inside = f"catwise/{source.parent.name}/{made.name}"
                build_data["force_include"][str(made)] = inside
                build_data["pure_python"] = False
                build_data["tag"] = "py3-none-linux_x86_64"  # nothing in it knows a Python

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled and is packed now."""
        del version, build_data, artifact_path
        if self._made is not None:
            self._made.cleanup()


def _compiler() -> str | None:
    """The command to call, if there is one, and if it is wanted."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    if os.environ.get("CATWISE_NO_COMPILE", "0") not in ("", "0"):
        return None
    return os.environ.get("CC", "").strip() or shutil.which("cc")


def _compile(compiler: str, source: Path, target: Path, flag: str) -> None:
    crc = f"-DSOURCE={zlib.crc32(source.read_bytes())}u"
    command = [*shlex.split(compiler), *_FLAGS, flag, crc, "-o", str(target), str(source)]
    subprocess.run(  # noqa: S603 -- the compiler that the user named
        command, capture_output=True, text=True, errors="replace", check=True
    )
    if not target.is_file():
        raise ValueError(f"{command[0]} made no library")
