"""What tests of ONNX models share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from catwise.models.adapters.onnx.running import make_session, open_for_images, outputs_of
from catwise.models.core import LoadedModel


def features_of(model: LoadedModel, batches: Iterable[Any]) -> Iterator[Any]:
    """What the graph's classification layer takes: (K, D) for each batch, in the graph's dtype."""
    module: Any = model.module
    assert model.checkpoint is not None
    assert model.head is not None
    file = open_for_images(model.checkpoint, module.image)
    session = make_session(file, [module.features])
    for batch in batches:
        yield outputs_of(file, session, module.image, batch, [model.head.n_features])[0]
