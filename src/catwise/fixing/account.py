"""What came of it: scores on test images, the report, a snippet for the model's card."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from catwise._io import write_json
from catwise._json import TABLE, TEXT, Field, read_fields, read_file
from catwise._text import count, gain, interval, plural
from catwise._text import score as number
from catwise._version import __version__
from catwise.errors import OutputError
from catwise.features.manifest import file_sha256
from catwise.metrics import compare, evaluate
from catwise.models.verify import Verified
from catwise.reporting import json_ready, render_report
from catwise.reporting.summary import metric_label

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from catwise.heads import Head
    from catwise.labels import PartialLabels
    from catwise.metrics import Evaluation
    from catwise.models import LoadedModel, Preprocessing

__all__ = [
    "card",
    "describe_checkpoint",
    "preprocessing_text",
    "read",
    "report",
    "result_lines",
    "run_of",
    "score",
    "test_line",
    "write",
]

METRICS: Final = ("average_precision", "auroc", "log_loss")


def score(
    base: Head,
    head: Head,
    data: tuple[Any, PartialLabels],
    *,
    metric: str,
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """Both heads on test images, with paired bootstrap intervals of the changes; JSON-ready.

    Args:
        base: the head as it was.
        head: the tuned head.
        data: features and labels that chose nothing.
        metric: the one that was to become better; it stands first.
        bootstrap: resamples; 0 for no intervals.
        seed: of the resamples.
    """
    metrics = list(dict.fromkeys([metric, *METRICS]))
    options: dict[str, Any] = {"metrics": metrics, "bootstrap": bootstrap, "seed": seed}
    before, after = (evaluate(one, data, force=True, **options) for one in (base, head))
    found = compare(before, after)
    means = {
        name: {
            "before": one.mean_a,
            "after": one.mean_b,
            "change": one.difference,
            "change_low": one.interval[0] if one.interval else None,
            "change_high": one.interval[1] if one.interval else None,
            "n_categories": one.n_categories,
        }
        for name, one in found.items()
    }
    document: dict[str, Any] = json_ready(
        {
            "metric": metric,
            "images": data[1].n_rows,
            "n_categories": len(after.categories),
            "level": after.level,
            "bootstrap": bootstrap,
            "means": means,
            "categories": _per_category(before, after, metrics),
        }
    )
    return document


def _per_category(
    before: Evaluation, after: Evaluation, metrics: list[str]
) -> list[dict[str, Any]]:
    rows = []
    for old, new in zip(before.records(), after.records(), strict=True):
        row = {key: new[key] for key in ("category", "n_positive", "n_negative", "reason")}
        for name in metrics:
            row |= {f"{name}_before": old[name], f"{name}_after": new[name]}
        rows.append(row)
    return rows


def read(path: Path) -> dict[str, Any]:
    """A document of `score` that was written."""
    document: dict[str, Any] = _document(path, {"metric": TEXT, "means": TABLE})
    return document


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document of `score`."""
    write_json(path, document)


def run_of(folder: Path) -> dict[str, Any]:
    """The document of a run, from its files."""
    parts = [_document(folder / f"{name}.json", {name: TABLE}) for name in ("config", "summary")]
    records = _document(folder / "records.json", None)
    return {key: value for part in parts for key, value in part.items()} | {"records": records}


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


def report(
    run: Mapping[str, Any], evaluation: Mapping[str, Any] | None, checkpoint: Mapping[str, Any]
) -> str:
    """The page of a run with what came after the tuning."""
    return render_report({**run, "test": evaluation, "checkpoint": checkpoint})


def test_line(evaluation: Mapping[str, Any]) -> str:
    """The means before and after on the test images, and how sure the gain is."""
    metric = evaluation["metric"]
    mean = evaluation["means"][metric]
    images = f"{count(evaluation['images'])} test images, which chose nothing"
    if mean["before"] is None:
        return f"on {images}: no category could be scored"
    bounds = interval(mean["change_low"], mean["change_high"])
    sure = (
        f" ({evaluation['level']:.0%} interval {bounds})" if mean["change_low"] is not None else ""
    )
    return (
        f"mean {metric_label(metric)} on {images}: {number(mean['before'])} → "
        f"{number(mean['after'])}, {gain(mean['change'])}{sure}; "
        f"{mean['n_categories']} of {plural(evaluation['n_categories'], 'category', 'categories')}"
    )


def tuning_line(run: Mapping[str, Any]) -> str:
    """The same on the labels that chose, corrected for the choosing."""
    summary, records = run["summary"], run["records"]
    label = metric_label(summary.get("metric"))
    if summary.get("before") is None:
        return "no category could be scored where the choice was made"
    where = next((str(one["scored_on"]) for one in records if one.get("scored_on")), "validation")
    if summary.get("after") is None:
        told = (
            f"{number(summary['before'])} → ?, {number(summary.get('selected_on'))} not corrected"
        )
        return f"mean {label} on {where}: {told} for the choosing"
    bounds = interval(summary.get("gain_low"), summary.get("gain_high"))
    return (
        f"mean {label} on {where}, corrected for the choosing: {number(summary['before'])} → "
        f"{number(summary['after'])}, {gain(summary.get('gain'))} "
        f"({summary.get('level') or 0.95:.0%} interval {bounds})"
    )


def result_lines(run: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> list[str]:
    """What came of it, for people: the test images first."""
    found = Counter(str(record["status"]) for record in run["records"])
    counts = ", ".join(f"{found[status]:,} {status}" for status in ("replaced", "kept", "skipped"))
    lines = [
        tuning_line(run),
        f"rows of the head: {counts}",
    ]
    if not found["replaced"]:
        lines.append("nothing was clearly better, so the new checkpoint is a copy of the old one")
    if evaluation is None:
        lines.append("no test labels: score the new checkpoint on images that chose nothing")
        return lines
    return [test_line(evaluation), *lines]


def card(
    model: LoadedModel,
    run: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None,
    checkpoint: Mapping[str, Any],
) -> str:
    """A few lines of Markdown for the model's card."""
    lines = [
        f"## The classification layer of {model.name} was repaired",
        "",
        (
            f"The rows of `{model.weight_key or model.layer}` were tuned category by category on "
            f"the labels that are known, with catwise {__version__}. Every other tensor is the "
            "original's, bit for bit."
        ),
        "",
        *(f"- {line}" for line in result_lines(run, evaluation)),
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
