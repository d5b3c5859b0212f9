"""What to do with a result, in a sentence or two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from catwise._text import clean, plural, some
from catwise.metrics.registry import resolve_metric
from catwise.reporting.summary import headline

_FEW: Final = 10
_NAMED: Final = 3
_LACKING: Final = ("no_known_label", "never_positive", "never_negative", "reader_counts")
"""Findings that the steps themselves name, or that ask for nothing."""


def next_step_of_run(document: Mapping[str, Any]) -> str:
    """After `tune`, `fix` or `select`.

    Args:
        document: as :func:`~catwise.reporting.run_document` gives it.

    >>> next_step_of_run({"summary": {}, "records": []})[:32]
    'Nothing changed: no category had'
    """
    records = document.get("records") or []
    if not any(record.get("status") == "replaced" for record in records):
        return f"Nothing changed: no category had a gain to take. {_label_more(records)}".strip()
    evaluation = document.get("evaluation")
    if not evaluation:
        return (
            "Try the new head on labelled images that took no part here (test rows): only they can "
            "tell whether it helped. Until then keep the original model."
        )
    verdict = headline(document).verdict
    if verdict == "helped":
        return _after_help(evaluation, document)
    if verdict == "harmed":
        return f"Keep the original model: the new head is worse. {_label_more(records)}".strip()
    if verdict == "not_judged":
        return "Label more test images: with so few the result cannot be judged."
    return (
        "Keep the original model, or look at single categories below: on average no change is "
        f"shown. {_label_more(records)}".strip()
    )


def _after_help(evaluation: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    worse = [
        str(one.get("category"))
        for one in evaluation.get("categories") or []
        if one.get("outcome") == "worse"
    ]
    use = (
        f"Use the new checkpoint, {clean(document['checkpoint'].get('name', ''))}"
        if document.get("checkpoint")
        else "Write the new head into your checkpoint (catwise apply)"
    )
    if worse:
        names = some([clean(name) for name in worse], _NAMED)
        return f"First look at what became worse: {names}. Then: {use[0].lower()}{use[1:]}."
    thresholds = "" if document.get("thresholds") else ", and choose thresholds (catwise threshold)"
    return f"{use}{thresholds}."


def _label_more(records: Sequence[Mapping[str, Any]]) -> str:
    """Which categories more labels would tell most of: those with the fewest known positives."""
    known = [
        (int(n), str(record.get("category")))
        for record in records
        if (n := record.get("n_positive_valid", record.get("n_positive_train"))) is not None
    ]
    rare = [clean(name) for n, name in sorted(known) if n < _FEW]
    if not rare:
        return ""
    return f"More labels would tell more, first positives of {some(rare, _NAMED)}."


def next_step_of_evaluation(document: Mapping[str, Any]) -> str:
    """After `evaluate`, of one head or of two.

    Args:
        document: as `Evaluation.to_dict` or `HeadComparison.to_dict` gives it.
    """
    if document.get("in_sample"):
        return (
            "Score it on images that took no part in fitting: some of these did, so the scores "
            "are too good."
        )
    verdicts = {
        "helped": "Use the second head: it is better on these images.",
        "harmed": "Keep the first head: the second is worse on these images.",
        "no_difference": "Keep the first head, unless single categories below say otherwise.",
        "not_judged": "Label more images: with so few the heads cannot be told apart.",
    }
    if (verdict := document.get("verdict")) in verdicts:
        return verdicts[str(verdict)]
    few = [
        clean(one["category"])
        for one in document.get("categories") or []
        if one.get("interval_reason") is not None
    ]
    if few:
        return (
            f"Label more images: {plural(len(few), 'category', 'categories')} could not be "
            f"scored with an interval ({some(few, _NAMED)})."
        )
    return "Fine-tune the head on the known labels (catwise tune), and compare it with this one."


def next_step_of_audit(document: Mapping[str, Any]) -> str:
    """After `audit`.

    Args:
        document: of the command, with "categories" and "findings".
    """
    rows = document.get("categories") or []
    unfit = [clean(one["category"]) for one in rows if str(one["reason"]).startswith("no_known")]
    few = [clean(one["category"]) for one in rows if str(one["reason"]).startswith("few")]
    odd = [one for one in document.get("findings") or [] if one["finding"] not in _LACKING]
    if unfit and len(unfit) == len(rows):
        return "Check how the labels were read: no category has both known positives and negatives."
    steps = []
    if odd:
        steps.append("look at what seems odd below")
    if unfit:
        steps.append(f"label positives and negatives of {some(unfit, _NAMED)}")
    elif few:
        steps.append(f"label more of {some(few, _NAMED)}")
    if not steps:
        return "Fine-tune the head on these labels (catwise tune, or catwise fix)."
    text = "; ".join(steps)
    return f"{text[0].upper()}{text[1:]}. Everything else can be fine-tuned now (catwise tune)."


def next_step_of_calibration(document: Mapping[str, Any]) -> str:
    """After `calibrate`.

    Args:
        document: as `Calibration.page_document` gives it.
    """
    comparisons = document.get("comparisons") or []
    if not comparisons:
        return "Try the maps on labelled images that took no part (test rows), before you use them."
    if comparisons[0]["verdict"] == "harmed":
        return "Keep the logits as they were: calibrated they are worse on these images."
    return (
        "Use the calibrated probabilities (catwise package, or calibrate --head-out), and choose "
        "thresholds (catwise threshold)."
    )


def next_step_of_ensemble(document: Mapping[str, Any]) -> str:
    """After `ensemble`.

    Args:
        document: as `Ensemble.page_document` gives it.
    """
    comparisons = document.get("comparisons") or []
    if not comparisons:
        return "Compare it with its members on labelled images that took no part (test rows)."
    best = clean(document["best"])
    verdicts = {
        "helped": "Use the ensemble: it is better than each member alone on these images.",
        "harmed": f"Use the member {best} alone: the ensemble is worse.",
        "not_judged": "Label more images: with so few they cannot be told apart.",
    }
    return verdicts.get(
        str(comparisons[0]["verdict"]),
        f"Use the member {best} alone, which costs less, unless single categories below say "
        "otherwise.",
    )


def next_step_of_runs(document: Mapping[str, Any]) -> str:
    """After `compare`.

    Args:
        document: as `RunComparison.page_document` gives it.
    """
    metric = document["metrics"][0]
    own = [one for one in document["variants"] if one["metric"] == metric]
    better = [one for one in own if one["verdict"] == "helped"]
    sign = resolve_metric(metric).sign
    if better:
        best = max(better, key=lambda one: sign * float(one["difference"]))
        return f"Use {clean(best['variant'])}: it is better than {clean(document['reference'])}."
    if all(one["verdict"] == "harmed" for one in own if one["difference"] is not None):
        return f"Keep {clean(document['reference'])}: all others are worse."
    return "Take the simplest of these runs: no one is shown to be better."
