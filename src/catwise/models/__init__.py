"""Any model in, the same checkpoint out: adapters, images, feature extraction."""

from __future__ import annotations

from catwise.models.core import LoadedModel, Preprocessing, Request, Writer

__all__ = ["LoadedModel", "Preprocessing", "Request", "Writer"]
