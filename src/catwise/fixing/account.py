"""What came of it: the headline, the report, the model's card."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catwise._text import clean, count, gain, score
from catwise.features.manifest import file_sha256
from catwise.heads import Head
from catwise.labels import LabelPolicy
from catwise.models import LoadedModel
from catwise.models.card import model_card
from catwise.models.hub import front_matter, hub_metadata
from catwise.models.registry import OWN_CHECKPOINT
from catwise.models.verify import Verified
from catwise.reporting import summary_lines
from catwise.reporting.summary import metric_label
from catwise.reporting.tables import (
    as_markdown,
    bounds,
    differences_grid,
    lay_out,
    numbers,
    records_grid,
    text,
)
from catwise.reporting.terminal import Grid


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


def result_lines(run: Mapping[str, Any]) -> list[str]:
    """What came of it, for people, the headline first."""
    lines = summary_lines(run)
    if not any(record["status"] == "replaced" for record in run["records"]):
        lines.append("No row was replaced, so the new checkpoint is a copy of the old one.")
    return lines


def card(
    model: LoadedModel,
    head: Head,
    run: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
    inputs: Mapping[str, str],
) -> str:
    """The model's card: metadata, verdict, scores, categories, labels, the layer, as Markdown.

    `inputs` has the digests of the labels of each split, as `fix.json` does.
    """
    evaluation = run["evaluation"]
    verified = [f"verified: {checkpoint['verified']}"] if "verified" in checkpoint else []
    labels = run["inputs"].get("labels", {})
    name = Path(str(checkpoint["name"])).stem
    metadata = hub_metadata(
        model,
        name=name,
        dataset=_dataset(labels, inputs),
        metrics=_metrics(evaluation),
    )
    parts = [front_matter(metadata), f"# {clean(name)}", "", *result_lines(run)[:1], ""]
    if evaluation is not None:
        parts += ["## Scores on the test images", "", as_markdown(_means(evaluation)), ""]
        parts += ["## Categories", "", as_markdown(differences_grid(evaluation, title=""))]
    else:
        parts += ["## Categories", "", as_markdown(records_grid(run["records"], title=""))]
    kind, _, rest = model.name.partition(":")
    layer = model_card(
        f"{kind}:{Path(rest).name}" if kind in OWN_CHECKPOINT else model.name,
        head,
        [model.weight_key or model.layer],
        sum(record["status"] == "replaced" for record in run["records"]),
        head.n_categories,
        base=model.head,
        lines=[*result_lines(run), *verified],
        preprocessing=model.preprocessing,
    )
    read = ["## How the labels were read", "", *_labels_read(run, labels), ""]
    return "\n".join([*parts, layer, *read])


def _dataset(labels: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, str]:
    """Name and kind of the labels that judged, and the digest that tells them from others."""
    said = labels.get("dataset") or Path(str(labels.get("path", "labels"))).name
    name = clean(said)
    found = {"name": name, "type": re.sub(r"[^\w.-]+", "-", name).strip("-") or "labels"}
    if "test labels" in inputs:
        found |= {"split": "test", "revision": inputs["test labels"]}
    return found


def _metrics(evaluation: Mapping[str, Any] | None) -> dict[str, tuple[str, object]]:
    """The tuned model's means over categories on the test rows."""
    means = evaluation["means"] if evaluation is not None else {}
    return {key: (f"mean {metric_label(key)}", row["after"]) for key, row in means.items()}


def _means(evaluation: Mapping[str, Any]) -> Grid:
    """Means over categories before and after."""
    rows = [
        {"metric": f"mean {metric_label(key)}", **row} for key, row in evaluation["means"].items()
    ]
    level = f"{evaluation['level']:.0%} interval"
    columns = [
        text("metric"),
        *numbers(score, before="before", after="after"),
        *numbers(gain, "difference"),
        bounds(level, "difference"),
        *numbers(count, categories="n_scored"),
    ]
    return lay_out(rows, columns)


def _labels_read(run: Mapping[str, Any], labels: Mapping[str, Any]) -> list[str]:
    """What was read as what, and how much of it there was, a line each."""
    policy, splits = run["config"].get("policy"), run["inputs"].get("splits", {})
    items = [
        f"{key.replace('_', ' ')}: {clean(Path(str(value)).name if key == 'path' else value)}"
        for key, value in labels.items()
        if isinstance(value, (str, int)) and not isinstance(value, bool) and key != "root"
    ]
    items += [f"{name} images: {split['images']:,}" for name, split in splits.items()]
    items.append(f"while fitting: {policy or LabelPolicy()}")
    return [f"- {item}" for item in items]
