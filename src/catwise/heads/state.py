"""Reading a head out of a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from catwise._safetensors import FileLayout
from catwise.heads.catalog import Catalog, load_tensor, open_catalog
from catwise.heads.core import Head
from catwise.heads.locate import Found, find_head
from catwise.heads.provenance import recall_rows
from catwise.heads.saved import head_of_layout


def read_head(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    key: str | None = None,
    bias_key: str | None = None,
    categories: Sequence[str] | None = None,
) -> Head:
    """Read the last layer of a model from a checkpoint.

    The file is a safetensors file or what `torch.save` writes of a state_dict, nested or not
    (`state_dict`, `model`, EMA copies …). Nothing in it is executed and only the head's numbers are
    read. The head is found by its name and place; where several layers may be meant, `key` decides.

    Args:
        source: a checkpoint's path, or a state_dict.
        key: the weight's key, such as ``"fc.weight"``, ``"fc"`` or ``"state_dict_ema:fc.weight"``.
            ``"fc_{}.weight"`` are layers of one category each, in the order of their numbers.
        bias_key: the bias's key, when it is not named like the weight's.
        categories: the names of the head's rows, in order; their number helps to find it.

    Returns:
        The head on the CPU, in the checkpoint's dtype; without a bias if the checkpoint has none.
        Where catwise wrote it there, it knows the rows that fitted it.

    Raises:
        CheckpointError: If the file cannot be read, or asks for more than tensors.
        HeadError: If no head or several are found (the candidates are shown), or it is tied,
            quantised or weight-normed.

    >>> import torch
    >>> state = {"model": {"fc.weight": torch.eye(2), "fc.bias": torch.zeros(2)}}
    >>> read_head(state, categories=["cat", "dog"])
    Head(n_categories=2, n_features=2, bias=True, dtype=float32)
    """
    catalog = open_catalog(source)
    layout = catalog.origin
    own = isinstance(layout, FileLayout) and "catwise_head" in layout.metadata and not key
    if own and catalog.path is not None and isinstance(layout, FileLayout):
        head = head_of_layout(catalog.path, layout)
        return head if categories is None else head.replace(categories=categories)
    n_categories = None if categories is None else len(categories)
    found = find_head(catalog, key=key, bias_key=bias_key, n_categories=n_categories)
    return head_at(catalog, found, categories=categories)


def head_at(catalog: Catalog, found: Found, *, categories: Sequence[str] | None = None) -> Head:
    """Read the head at a place that is already found, with the rows known to have fitted it."""
    location = found.location
    numbers = [_numbers(catalog, part) for part in found.parts or (found,)]
    weight = torch.cat([rows for rows, _ in numbers])
    biases = [bias for _, bias in numbers if bias is not None]
    bias = torch.cat(biases) if biases else None
    provenance = {
        "checkpoint": catalog.path.name if catalog.path else "state_dict",
        "key": location.name,
        "bias_key": location.bias_key,
    }
    head = Head(weight, bias, categories=categories, provenance=provenance)
    if catalog.path is None:
        return head
    texts = catalog.origin.metadata if isinstance(catalog.origin, FileLayout) else None
    return recall_rows(head, catalog.path, texts)


def _numbers(catalog: Catalog, found: Found) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The rows (C, D) and biases (C,) of one layer."""
    weight = load_tensor(catalog, found.weight)
    if found.weight.layout == "groups":
        weight = weight.permute(0, 2, 1)
    rows = weight.reshape(-1, found.location.n_features)[: found.location.n_categories]
    return rows, None if found.bias is None else load_tensor(catalog, found.bias).reshape(-1)
