"""Compiles the sampled products (`src/catwise/_native/sampled.c`) while catwise is installed.

They are an accelerator, never a need: without a C compiler, or on another platform, catwise is
built without them, says so, and uses PyTorch's own operators. ``CC`` names the compiler;
``CATWISE_NO_COMPILE=1`` asks for none.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_SOURCE = Path("src/catwise/_native/sampled.c")
# No -ffast-math: a library linked with it would flush denormal numbers in the whole process.
_FLAGS = ("-O3", "-shared", "-fPIC", "-fopenmp", "-falign-functions=64", "-falign-loops=64")
_VARIANTS = {"avx512": "-march=x86-64-v4", "avx2": "-march=x86-64-v3"}


class CompileSampled(BuildHookInterface[Any]):
    """Adds a library for each kind of processor to the wheel, or to the source tree if editable."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; `version` is "standard" or "editable"."""
        del version
        if self.target_name != "wheel" or os.environ.get("CATWISE_NO_COMPILE"):
            return
        source = Path(self.root) / _SOURCE
        built = [
            library
            for name, flag in _VARIANTS.items()
            if (library := self._compile(source, source.with_name(f"sampled_{name}.so"), flag))
        ]
        if built:
            build_data["artifacts"] += [f"/{p.relative_to(self.root).as_posix()}" for p in built]
            build_data["pure_python"] = False
            build_data["infer_tag"] = True

    def _compile(self, source: Path, target: Path, flag: str) -> Path | None:
        target.unlink(missing_ok=True)
        if sys.platform != "linux" or platform.machine() != "x86_64":
            return None
        compiler = os.environ.get("CC") or shutil.which("cc")
        if compiler is None:
            self.app.display_warning("catwise: no C compiler was found; PyTorch's operators serve")
            return None
        with tempfile.TemporaryDirectory(dir=source.parent) as folder:
            made = Path(folder) / target.name
            command = [*shlex.split(compiler), *_FLAGS, flag, "-o", str(made), str(source)]
            try:
                subprocess.run(  # noqa: S603 -- the compiler that the user named
                    command, capture_output=True, text=True, check=True
                )
            except (OSError, subprocess.CalledProcessError) as error:
                reason = getattr(error, "stderr", None) or error
                self.app.display_warning(f"catwise: {target.name} was not built: {reason}")
                return None
            made.replace(target)
        return target
