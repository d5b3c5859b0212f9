"""On PYTHONPATH, this lets timm live beside a torchvision that was built for another torch.

Such a torchvision fails on import, where it registers fake kernels of operators that its binary
did not define. Their definitions alone are enough. They are made when torchvision is first
imported, and only if its binary cannot be loaded: a sound torchvision is left as it is, and Python
starts as fast as without this file.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from pathlib import Path

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
KEPT = []


def binary_loads(folder: Path) -> bool:
    """Whether torchvision's own binary defines its operators."""
    import torch

    for library in folder.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return True
    return False


def define_operators() -> None:
    """Define the operators; the library that does it must stay alive."""
    from torch import library

    torchvision = library.Library("torchvision", "DEF")
    for schema in OPERATORS:
        torchvision.define(schema)
    KEPT.append(torchvision)


class TorchvisionFinder(importlib.abc.MetaPathFinder):
    """Sees the first import of torchvision, defines the operators if need be, steps aside."""

    def find_spec(self, fullname, path=None, target=None):
        """Find torchvision as Python would."""
        del target
        if fullname != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.origin and not binary_loads(Path(spec.origin).parent):
            define_operators()
        return spec


sys.meta_path.insert(0, TorchvisionFinder())
