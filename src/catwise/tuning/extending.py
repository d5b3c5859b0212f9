"""Rows of a head for categories that the model never had.

They are fitted as `tune` fits: from rows of zeros, whose bias is the log odds of the category's
known labels, with all its folds, choices and account. The head's own rows keep their bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from catwise._configs import PaperConfig
from catwise._text import some
from catwise.errors import CategoryError, HeadError, InSampleWarning
from catwise.features import by_category
from catwise.heads import Head
from catwise.joining import has_default_names, open_source
from catwise.labels import LabelPolicy, PartialLabels
from catwise.metrics import Metric, average_precision
from catwise.metrics.levels import leave_one_out_precision
from catwise.progress import ProgressCallback
from catwise.tuning.account.documents import Account, Record, Summary
from catwise.tuning.account.results import TuneResult
from catwise.tuning.api import tune
from catwise.tuning.inputs import Pair
from catwise.tuning.presets.default_config import DefaultConfig
from catwise.tuning.presets.task import NO_VALIDATION

_SHOWN: Final = 5
_ONLY_THESE: Final = (
    "No validation data: the labels that fitted were cross-fitted. The features of images that the "
    "backbone was trained on separate too well: of other images the scores hold only where these "
    "were not."
)


class Extension(NamedTuple):
    """What `tune` is given to fit rows for new categories."""

    base: Head  # rows of zeros for the K new categories
    train: Pair
    valid: Pair | None
    test: Pair | None


def extend_head(
    head: Head,
    train: Pair,
    valid: Pair | None = None,
    *,
    test: Pair | None = None,
    metric: str | Metric = "average_precision",
    preset: str = "default",
    methods: Sequence[str] | None = None,
    validation: str | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    policy: LabelPolicy | None = None,
    force: bool = False,
    config: DefaultConfig | PaperConfig | None = None,
    progress: ProgressCallback | None = None,
) -> TuneResult:
    """Fit rows for categories that a head does not have; its own rows keep their bits.

    New are the categories of the training labels that the head lacks; columns that it has are not
    looked at (`tune` is for them). The fit starts from zero: there is no original row to pull to,
    and *before* in the account is a row that says the same of every image, so that its average
    precision is the category's share of positives and its AUROC 0.5. Scores *after* are of
    out-of-fold logits and corrected for the choosing, as in `tune`, average precision without its
    excess on few positives; and on test rows where there are any.

    Args:
        head: the trained model's last layer, with named categories.
        train: features (N, D) of the model and labels (N, C) of any categories. If these are not
            images that the backbone was trained on, all the better.
        valid: the same of images that the backbone has not seen, or None: then the training labels
            are cross-fitted.
        test: the same of rows that fit and choose nothing: they judge the new rows in the end.
        metric: as in :func:`catwise.tune`, and so are all other arguments.
        preset: "default" or "paper".
        methods: of "paper".
        validation: "fit_and_select" or "select".
        seed: of all that is drawn.
        device: where to compute.
        policy: what uncertain and blank labels count as in fitting.
        force: continue although columns or features look mismatched.
        config: of the preset.
        progress: called now and then.

    Returns:
        As of `tune`, with records of the new categories alone. `head` has the rows that were
        there, then the new ones in the order of the labels. A category that could not be fitted
        (`skipped` or `kept` in its record) has a row that gives its log odds to every image, and a
        note says so.

    Raises:
        CategoryError: If the labels bring no new category, or the head's rows have no names by
            which to know.
        HeadError: If each category has features of its own: a new one has none.
        CatwiseError: As :func:`catwise.tune`.

    >>> import numpy as np, catwise
    >>> rng = np.random.default_rng(0)
    >>> z = rng.normal(size=(200, 4)); y = (z[:, [2]] > 0.5).astype(float)
    >>> labels = catwise.PartialLabels.from_array(y, encoding="nan", categories=["eel"])
    >>> head = catwise.Head(np.eye(4)[:2], np.zeros(2), categories=["ant", "bee"])
    >>> valid = (z[100:], labels.take_rows(range(100, 200)))
    >>> result = catwise.extend_head(head, (z[:100], labels.take_rows(range(100))), valid)
    >>> result.head.categories, result.records[0]["status"]
    (('ant', 'bee', 'eel'), 'replaced')
    """
    new = new_rows(head, train, valid, test)
    with warnings.catch_warnings():
        # it says that the backbone has memorised the images: of these nobody knows
        warnings.filterwarnings("ignore", NO_VALIDATION[:20], category=InSampleWarning)
        result = tune(
            new.base,
            new.train,
            new.valid,
            test=new.test,
            metric=metric,
            preset=preset,
            methods=methods,
            validation=validation,
            seed=seed,
            device=device,
            policy=policy,
            force=force,
            config=config,
            progress=progress,
        )
    return _extended(head, result, new.train if new.valid is None else new.valid)


def new_rows(head: Head, train: Pair, valid: Pair | None, test: Pair | None) -> Extension:
    """Rows of zeros for the categories that a head lacks, and all sources with these alone."""
    features, labels = open_source(train, name="train")
    if by_category(features) is not None:
        raise HeadError(
            "the categories of this head have features of their own.",
            expected="features (N, D) that all categories share",
            remedy="a category that has features of its own needs a model that was trained with it",
        )
    names = _new_names(head, labels)
    fits = _only(train, names, "train")
    held_out = None if valid is None else _only(valid, names, "valid")
    judges = None if test is None else _only(test, names, "test")
    known = [part[1] for part in (held_out, fits) if part is not None]
    base = zero_head(known, head.weight.new_zeros(len(names), head.n_features))
    base = base if head.bias is not None else base.replace(bias=None)
    return Extension(base, fits, held_out, judges)


def zero_head(labels: Sequence[PartialLabels], weight: torch.Tensor) -> Head:
    """Rows of zeros, whose bias is the log odds of the known labels, half a label added to each.

    Those of the first source count, the rows that judge; of a category without any, the next's.

    Shapes:
        labels: (N, C) each, of the same categories.
        weight: (C, D) zeros.
    """
    positive = negative = np.zeros(len(weight), dtype=np.int64)
    for one in labels:
        counts, empty = one.counts(), positive + negative == 0
        positive = np.where(empty, counts.positive, positive)
        negative = np.where(empty, counts.negative, negative)
    odds = torch.from_numpy((positive + 0.5) / (negative + 0.5))
    return Head(weight, odds.log().to(weight), categories=labels[0].categories)


def _new_names(head: Head, labels: PartialLabels) -> list[str]:
    """The labels' categories that the head lacks."""
    nameless = [
        what
        for what, names in (("head", head.categories), ("labels", labels.categories))
        if has_default_names(names)
    ]
    names = [name for name in labels.categories if name not in set(head.categories)]
    if "labels" in nameless or (nameless and labels.n_categories == head.n_categories):
        raise CategoryError(
            f"the categories of the {nameless[-1]} have no names, by which to know what is new.",
            found=f"{head.n_categories:,} rows of the head, {labels.n_categories:,} categories of "
            "the labels",
            remedy="name them: head.replace(categories=[…]) (--head-categories FILE), "
            "PartialLabels(…, categories=[…])",
        )
    if not names:
        raise CategoryError(
            "the labels bring no category that the head lacks.",
            found=some([repr(name) for name in labels.categories], _SHOWN),
            expected="names that are not among the head's rows",
            remedy="tune fits rows that are there",
        )
    return names


def _only(pair: Pair, names: Sequence[str], source: str) -> Pair:
    """A source with the new categories alone, in their order."""
    features, labels = open_source(pair, name=source)
    if lacking := [name for name in names if name not in set(labels.categories)]:
        raise CategoryError(
            f"the {source} labels lack {len(lacking):,} of the {len(names):,} new categories.",
            found=f"not there: {some([repr(name) for name in lacking], _SHOWN)}",
            expected="all that the training labels bring, by name",
            remedy="add the columns, with unknown labels, or leave them out of both",
        )
    return features, labels.take_categories(list(names))


def _extended(head: Head, result: TuneResult, judges: Pair) -> TuneResult:
    """The whole head, with the account of its new rows."""
    new, n_own = result.head, head.n_categories
    joined = head.join(new)
    how = new.provenance.get("catwise", {})
    added = [*head.provenance.get("added", []), {"categories": list(new.categories), **how}]
    provenance = {**head.provenance, "added": added}
    provenance.pop("fitted_rows", None)
    if (n_fitted := joined.provenance.get("fitted_rows")) is not None:
        provenance["fitted_rows"] = n_fitted
    account = _without_excess(result, judges[1])
    records = tuple(
        # a row that says the same of every image has no gap
        replace(one, index=one.index + n_own, gap_auroc=None, gap_average_precision=None)
        for one in account.records
    )
    stay = f"{n_own:,} rows of the head stay as they are; {len(records):,} are new."
    notes = [stay, *(_ONLY_THESE if note == NO_VALIDATION else note for note in result.notes)]
    if constant := [one.category for one in records if one.status != "replaced"]:
        notes.append(
            f"{len(constant):,} new categories were not fitted ({some(constant, _SHOWN)}): their "
            "rows give the log odds of the known labels to every image."
            if head.bias is not None
            else f"{len(constant):,} new categories were not fitted ({some(constant, _SHOWN)}): "
            "their rows are zero."
        )
    return replace(
        result,
        head=joined.replace(provenance=provenance),
        base=head,
        account=Account(records, account.summary),
        config={**result.config, "base": head.digest, "added": list(new.categories)},
        gap=None,
        notes=notes,
        shared=None,
    )


def _without_excess(result: TuneResult, labels: PartialLabels) -> Account:
    """The account without the excess that average precision has on few positives.

    In `tune` a gain is the difference of two scores of which both have it. Here the score before is
    that of equal logits, which have none; so it is taken off the score after: average precision of
    the out-of-fold logits, less what is left when each positive is left out of its own precision.
    """
    account, folds = result.account, result.folds
    if folds is None or result.config["metric"] != "average_precision":
        return account
    codes, records, excess = labels.codes, list(account.records), []
    scores = average_precision(torch.from_numpy(folds.logits), labels).tolist()
    for c, one in enumerate(account.records):
        if one.after is None:
            continue
        known = codes[:, c] >= 0
        level = leave_one_out_precision(folds.logits[known, c], codes[known, c] == 1)
        excess.append(max(0.0, scores[c] - level))
        if one.status == "replaced":
            records[c] = replace(one, **_less(one, excess[-1]))
    mean = float(np.mean(excess)) if excess else 0.0
    return Account(tuple(records), replace(account.summary, **_less(account.summary, mean)))


def _less(one: Record | Summary, excess: float) -> dict[str, Any]:
    """A score and its gain over one that has no excess, both without it."""
    values = {name: getattr(one, name) for name in ("after", "gain", "gain_low", "gain_high")}
    return {name: None if v is None else float(v - excess) for name, v in values.items()}
