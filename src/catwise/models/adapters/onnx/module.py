"""An ONNX graph as a module, so that extraction runs it as it runs any other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from catwise.features.manifest import file_sha256
from catwise.heads import Head
from catwise.models.adapters.onnx import graph as onnx_graph
from catwise.models.adapters.onnx.graph import open_onnx
from catwise.models.adapters.onnx.input import ImageInput
from catwise.models.layers import put_head


class OnnxModule(nn.Module):
    """Runs an ONNX file by onnxruntime; its classification layer stands as `head`.

    `head` is given what the graph's own layer is given, so that a hook on it catches the features;
    what is returned is what the graph's own layer gives, before any sigmoid. The session is made
    when it is first needed.
    """

    def __init__(
        self,
        path: Path,
        head: Head,
        *,
        features: str,
        image: ImageInput,
        session: Callable[[], Any],
        run: Callable[[Any, Any], tuple[Any, Any]],
    ) -> None:
        super().__init__()
        self.path, self.layout = path, image.layout
        self.features, self.image = features, image
        bias = head.bias is not None
        self.head = nn.Linear(head.n_features, head.n_categories, bias=bias, dtype=head.dtype)
        put_head(self.head, head)
        self._make, self._run = session, run
        self._session: Any = None
        self._digest = ""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_session": None}

    def extra_repr(self) -> str:
        """What the features depend on: a digest of the file and its external data; the layout."""
        if not self._digest:
            file = open_onnx(self.path)
            entries = (onnx_graph.external_entry(file, x) for x in onnx_graph.list_tensors(file))
            total = hashlib.sha256(file.raw)
            for path in sorted({entry[0] for entry in entries if entry is not None}):
                total.update(file_sha256(path).encode())
            self._digest = total.hexdigest()
        turned = "" if self.layout in {"", "nchw"} else f", layout={self.layout}"
        return f"sha256={self._digest}{turned}"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) of preprocessed images."""
        self._session = self._session or self._make()
        features, logits = (torch.from_numpy(part) for part in self._run(self._session, images))
        place = self.head.weight
        self.head(features.to(place))
        return logits.to(place.device)
