"""What came of it: the headline, the report, a snippet for the model's card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catwise.features.manifest import file_sha256
from catwise.heads import Head
from catwise.models import LoadedModel
from catwise.models.card import model_card
from catwise.models.verify import Verified
from catwise.reporting import summary_lines


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
    model: LoadedModel, head: Head, run: Mapping[str, Any], checkpoint: Mapping[str, Any]
) -> str:
    """A few lines of Markdown for the model's card."""
    verified = [f"verified: {checkpoint['verified']}"] if "verified" in checkpoint else []
    return model_card(
        model.name,
        head,
        [model.weight_key or model.layer],
        sum(record["status"] == "replaced" for record in run["records"]),
        head.n_categories,
        base=model.head,
        lines=[*result_lines(run), *verified],
        preprocessing=model.preprocessing,
    )
