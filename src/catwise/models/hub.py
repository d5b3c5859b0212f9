"""The metadata at the head of a model's card, as the Hugging Face Hub reads them.

Source: https://github.com/huggingface/hub-docs, modelcard.md: the fields, and the form of
``model-index``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from catwise._json import parse
from catwise._limits import MAX_JSON, read_within
from catwise._text import clean
from catwise.models.core import LoadedModel

TAGS: Final = ("image-classification", "multi-label-classification", "partial-labels", "catwise")
_LIBRARIES: Final = {"timm": "timm", "transformers": "transformers", "onnx": "onnx"}
_REPOSITORY: Final = re.compile(r"[\w.-]+/[\w.-]+")


def hub_metadata(
    model: LoadedModel | None,
    *,
    name: str = "",
    dataset: Mapping[str, str] | None = None,
    metrics: Mapping[str, tuple[str, object]] | None = None,
) -> dict[str, Any]:
    """The fields of a card.

    Args:
        model: whose layer was written; None for a head alone.
        name: of the model in its `model-index`.
        dataset: name, type, and where they are known split and revision of the rows that judged.
        metrics: key → name and value on these rows; what is not a finite number is left out.
    """
    kind = "" if model is None else model.name.partition(":")[0]
    found: dict[str, Any] = {
        "library_name": _LIBRARIES.get(kind, "catwise" if model is None else "pytorch"),
        "pipeline_tag": "image-classification",
        "tags": list(TAGS),
    }
    base = None if model is None or kind != "transformers" else _base_model(model)
    if base is not None:
        found["base_model"] = base
    values = {
        key: (text, float(value))
        for key, (text, value) in (metrics or {}).items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
    if values and dataset:
        found["metrics"] = list(values)
        result = {
            "task": {"type": "image-classification", "name": "Multi-label image classification"},
            "dataset": dict(dataset),
            "metrics": [
                {"type": key, "value": value, "name": text} for key, (text, value) in values.items()
            ],
        }
        found["model-index"] = [{"name": name, "results": [result]}]
    return found


def _base_model(model: LoadedModel) -> str | None:
    """The repository that a transformers folder says it comes from."""
    if model.request is None:
        return None
    try:
        config = parse(read_within(Path(model.request.name) / "config.json", MAX_JSON))
    except (OSError, ValueError):
        return None
    said = config.get("_name_or_path") if isinstance(config, dict) else None
    return said if isinstance(said, str) and _REPOSITORY.fullmatch(said) else None


def front_matter(fields: Mapping[str, Any]) -> str:
    """Fields as the YAML between two lines of dashes; texts are quoted, numbers plain."""
    return "\n".join(["---", *_lines(fields, ""), "---", ""])


def _lines(value: Any, indent: str) -> list[str]:
    """A mapping or a list in YAML's block style."""
    items = value.items() if isinstance(value, Mapping) else ((None, one) for one in value)
    lines = []
    for key, one in items:
        lead = f"{indent}- " if key is None else f"{indent}{key}: "
        if not isinstance(one, (Mapping, list)):
            lines.append(lead + _scalar(one))
        elif key is None:  # the first line of what is inside stands behind the dash
            first, *rest = _lines(one, f"{indent}  ")
            lines += [f"{lead}{first.strip()}", *rest]
        else:
            lines += [lead.rstrip(), *_lines(one, f"{indent}  ")]
    return lines


def _scalar(value: object) -> str:
    """A number with six decimals at most, never in powers of ten; else a quoted text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return json.dumps(clean(value), ensure_ascii=False)
    if isinstance(value, int):
        return str(int(value))
    text = f"{value:.6f}".rstrip("0")
    return f"{text}0" if text.endswith(".") else text
