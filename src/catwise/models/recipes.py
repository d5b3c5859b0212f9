"""How a model was loaded, as JSON: so that a copy of its checkpoint is loaded in the same way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from catwise._json import TABLE, TEXT, TEXTS, Field, read_fields, ready_text
from catwise.errors import ConfigError
from catwise.models.core import LoadedModel
from catwise.models.registry import KINDS, OWN_CHECKPOINT, load_model

_FIELDS: Final = {
    "kind": Field(" or ".join(KINDS), lambda value: type(value) is str and value in KINDS),
    "model_args": TABLE,
    "name": replace(TEXT, required=False),
    "layer": replace(TEXT, required=False),
    "prefix": replace(TEXT, required=False),
    "categories": replace(TEXTS, required=False),
}


def recipe_of(model: LoadedModel) -> dict[str, Any]:
    """How `load_model` loaded a model, JSON-ready, but for where its checkpoint was.

    Raises:
        ConfigError: If the model was not loaded by `load_model`, or an option is not JSON-ready.
    """
    request = model.request
    if request is None:
        raise ConfigError(
            f"{model.name} cannot be loaded again: it was not loaded by load_model.",
            remedy="load_model('python:MODULE:FUNCTION', …) loads by a function of yours",
        )
    kind = model.name.partition(":")[0]
    table: dict[str, Any] = {"kind": kind, "model_args": dict(request.model_args)}
    if kind not in OWN_CHECKPOINT:
        table["name"] = request.name
    table |= {name: getattr(request, name) for name in ("layer", "prefix", "categories")}
    table = {name: value for name, value in table.items() if value is not None}
    what = f"the options that {model.name} was loaded with"
    made: dict[str, Any] = json.loads(ready_text(table, what=what, error=ConfigError))
    return made


def load_recipe(table: Mapping[str, Any], path: Path) -> LoadedModel:
    """Load a copy of a model as `recipe_of` says that the original was loaded.

    Args:
        table: what `recipe_of` gave.
        path: the copy of its checkpoint: a file, or a folder.

    Raises:
        ValueError: If the table is not one.
        CatwiseError: As `load_model`.
    """
    fields = read_fields(dict(table), _FIELDS, "how the model is loaded")
    kind, name = fields.pop("kind"), fields.pop("name", "")
    if kind in OWN_CHECKPOINT:
        return load_model(f"{kind}:{path}", **fields)
    return load_model(f"{kind}:{name}", checkpoint=path, **fields)
