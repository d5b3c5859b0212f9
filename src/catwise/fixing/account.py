"""What came of it: the headline, the report, a snippet for the model's card."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from catwise._json import TABLE, TEXT, Field, read_fields, read_file
from catwise._version import __version__
from catwise.errors import OutputError
from catwise.features.manifest import file_sha256
from catwise.fixing.folder import EVALUATION
from catwise.models.verify import Verified
from catwise.reporting import render_report, summary_lines

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from catwise.models import LoadedModel, Preprocessing

__all__ = [
    "card",
    "describe_checkpoint",
    "preprocessing_text",
    "report",
    "result_lines",
    "run_of",
]


def run_of(folder: Path) -> dict[str, Any]:
    """The document of a run, from its files."""
    parts = [_document(folder / f"{name}.json", {name: TABLE}) for name in ("config", "summary")]
    records = _document(folder / "records.json", None)
    path = folder / EVALUATION
    evaluation = _document(path, {"metric": TEXT, "means": TABLE}) if path.exists() else None
    found = {key: value for part in parts for key, value in part.items()}
    return {**found, "records": records, "evaluation": evaluation}


def _document(path: Path, fields: Mapping[str, Field] | None) -> Any:
    """A document that was written: a table with these fields, or None for a list of tables."""
    try:
        document = read_file(path)
        for table in [document] if fields is not None else document:
            read_fields(table, fields or {"category": TEXT})
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(
            f"'{path}' is not as it was written.",
            found=getattr(error, "strerror", None) or str(error),
            remedy="remove it and repeat the command, which makes it again",
        ) from error
    return document


def describe_checkpoint(
    model: LoadedModel, target: Path, facts: Mapping[str, Any], left_out: list[dict[str, str]]
) -> dict[str, Any]:
    """What the report says about the new checkpoint."""
    about: dict[str, Any] = {"name": target.name}
    if target.is_file():
        about["sha256"] = file_sha256(target)
    about["changed"] = ", ".join(filter(None, (model.weight_key or model.layer, model.bias_key)))
    if "verified" in facts:
        about["verified"] = str(Verified(**facts["verified"])).removeprefix("verified: ")
    reasons = Counter(row["reason"] for row in left_out)
    if reasons:
        about["labelled images left out"] = "; ".join(f"{n:,}: {why}" for why, n in reasons.items())
    return about


def report(run: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> str:
    """The page of a run with what came after the tuning."""
    return render_report({**run, "checkpoint": checkpoint})


def result_lines(run: Mapping[str, Any]) -> list[str]:
    """What came of it, for people, the headline first."""
    lines = summary_lines(run)
    if not any(record["status"] == "replaced" for record in run["records"]):
        lines.append("No row was replaced, so the new checkpoint is a copy of the old one.")
    return lines


def card(model: LoadedModel, run: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> str:
    """A few lines of Markdown for the model's card."""
    replaced = sum(record["status"] == "replaced" for record in run["records"])
    lines = [
        f"## The classification layer of {model.name}",
        "",
        (
            f"The rows of `{model.weight_key or model.layer}` were tuned category by category on "
            f"the labels that are known, with catwise {__version__}; {replaced:,} of "
            f"{len(run['records']):,} were replaced. Every other tensor is the original's, bit for "
            "bit."
        ),
        "",
        *(f"- {line}" for line in result_lines(run)),
    ]
    if "verified" in checkpoint:
        lines.append(f"- verified: {checkpoint['verified']}")
    lines.append(f"- input: {preprocessing_text(model.preprocessing)}")
    return "\n".join(lines) + "\n"


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
    axes = "" if preprocessing.layout == "nchw" else f"; axes {preprocessing.layout}"
    return (
        f"{height} x {width} pixels (height x width), {kinds[preprocessing.crop_mode]}{crop}, "
        f"{preprocessing.interpolation}; mean {mean}; std {std}{axes} (from {preprocessing.source})"
    )
