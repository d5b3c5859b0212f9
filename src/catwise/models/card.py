"""Lines for a model's card: what became of its classification layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from catwise._json import parse
from catwise._limits import MAX_JSON, read_within
from catwise._version import __version__
from catwise.heads import Head
from catwise.models.core import Preprocessing


def model_card(
    name: str,
    head: Head,
    places: Sequence[str],
    n_written: int,
    n_rows: int,
    *,
    base: Head | None,
    lines: Sequence[str],
    preprocessing: Preprocessing | None,
) -> str:
    """Markdown for the model's card; `places` are the keys of the weights that hold the head.

    `n_written` of `n_rows` rows of `base` were written; `lines` say what came of it, in sentences.
    """
    items = list(lines)
    tuned = head.provenance.get("catwise")
    if isinstance(tuned, dict):
        how = (f"{key} {tuned[key]}" for key in ("preset", "metric", "seed") if key in tuned)
        items.append(f"tuned category by category on known labels: {', '.join(how)}")
    if preprocessing is not None:
        items.append(f"input: {preprocessing_text(preprocessing)}")
    items.append(f"head: sha256 {head.digest}")
    if base is not None:
        items.append(f"it took the place of: sha256 {base.digest}")
    where = " and ".join(f"`{place}`" for place in places)
    said = (
        f"{n_written:,} of the {n_rows:,} rows of {where} were written by catwise {__version__}. "
        "Every other tensor is the original's, bit for bit."
    )
    title = f"## The classification layer of {name}"
    return "\n".join([title, "", said, "", *(f"- {item}" for item in items), ""])


def preprocessing_text(preprocessing: Preprocessing) -> str:
    """How images become the model's input, in one line."""
    height, width = preprocessing.size
    kinds = {
        "center": "scaled to cover them and cut in the centre",
        "squash": "scaled to them, proportions given up",
        "border": "scaled to fit and padded",
    }
    crop = f" (crop {preprocessing.crop_pct:.4g})" if preprocessing.crop_pct < 1 else ""
    mean, std = (
        ", ".join(f"{one:.4g}" for one in values)
        for values in (preprocessing.mean, preprocessing.std)
    )
    less = "; JPEGs decoded at reduced size" if preprocessing.decoding == "reduced" else ""
    less += "; channels blue, green, red" if preprocessing.order == "bgr" else ""
    less += "" if preprocessing.white is None else f"; white is {preprocessing.white:g}"
    axes = "" if preprocessing.layout == "nchw" else f"; axes {preprocessing.layout}"
    return (
        f"{height} x {width} pixels (height x width), {kinds[preprocessing.crop_mode]}{crop}, "
        f"{preprocessing.interpolation}; mean {mean}; std {std}{axes}{less} "
        f"(from {preprocessing.source})"
    )


def run_summary(path: Path) -> dict[str, Any] | None:
    """The summary in a run's `summary.json`; None if that is something else."""
    try:
        found = parse(read_within(path, MAX_JSON))["summary"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) and "n_replaced" in found else None
