"""Making an ensemble: its members' maps, weights, the calibration of the mean, its account."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catwise._names import ENSEMBLE_METHODS
from catwise._text import some
from catwise.decisions.calibrate import Calibration, CategoryCalibration, fit_maps
from catwise.decisions.inputs import HeldOut, PerCategory, check_shares, per_category
from catwise.decisions.maps import CategoryMap, fit_ranks
from catwise.decisions.members import Ensemble, Member, mapped, mean_logits, pooled
from catwise.decisions.outputs import (
    Columns,
    alike,
    check_members,
    common_rows,
    is_pair,
    outside,
    read_members,
)
from catwise.decisions.reached import score_intervals
from catwise.errors import ConfigError, FeatureError, LabelError, check_choice
from catwise.joining import match_categories, require_known
from catwise.labels import PartialLabels
from catwise.labels.reasons import class_reason
from catwise.metrics import PairedComparison, compare_logits
from catwise.metrics.intervals import LEVEL
from catwise.metrics.pooling import By, Pooling
from catwise.progress import Progress, ProgressCallback
from catwise.tuning import TuneResult

FITTED: Final = "fitted"
_FOLDS: Final = 5
_NO_METRICS: Final = ("average_precision", "auroc")


def ensemble(
    members: Mapping[str, Any],
    labels: PartialLabels,
    *,
    kind: str | Mapping[str, str] = "logits",
    method: str | None = None,
    weights: str | Mapping[str, float] | None = None,
    prevalence: PerCategory = None,
    by: By = None,
    pool: str = "mean",
    test: tuple[Mapping[str, Any], PartialLabels] | None = None,
    metrics: Sequence[str] | None = None,
    level: float = LEVEL,
    force: bool = False,
    progress: ProgressCallback | None = None,
) -> Ensemble:
    """Make one answer of several models: checkpoints, backbones, seeds, views of an image.

    "probability" is the mean of probabilities, each member calibrated on the labelled rows;
    "logit" the mean of calibrated logits; "rank" the mean of ranks through the distribution
    functions of the labelled rows, for members that give no probabilities. A mean of ranks, and
    what is pooled over images, is calibrated in the end; a mean of calibrated members is not, as
    a second calibration is worth nothing. Members weigh the same unless weights are
    asked for: fitted ones are seldom better, and how they do on rows that did not fit them is said
    beside them (`Ensemble.worth`).

    Args:
        members: name → a `TuneResult` or its `FoldArtifacts` (out-of-fold logits are used), a pair
            (head, features), `Outputs`, or (N, C) numbers, of rows that fitted none of the members.
            Rows join by id and categories by name where both sides have them; a member that lacks
            a category takes no part there. Each member is checked against its own features.
        labels: (N, C) of these rows.
        kind: of the members' numbers, for all or by name: "logits", "probabilities", or "scores",
            of which only the order means something.
        method: "probability", "rank" or "logit"; None: the mean of probabilities, or of ranks
            where a member's are none (scores, or values outside [0, 1], which is said).
        weights: None, equal; {name: weight}; or "fitted": not negative, adding up to 1, the same
            for all categories, with the least log-loss of the mean of probabilities.
        prevalence: as in `calibrate`.
        by: what is scored as one, as in `evaluate` (a name or a mapping): the mean over members is
            pooled over images.
        pool: "mean" or "max", over the images of a study or patient.
        test: rows that fitted and chose nothing: ({name: features of a tuning's head or of a pair's
            head, or outputs}, labels). The ensemble is compared with every member there.
        metrics: of the comparisons; None: average precision, AUROC, and log-loss but for ranks and
            groups.
        level: confidence level of the intervals, in (0, 1).
        force: go on with a member whose scores look mismatched with the labels.
        progress: called now and then with a `Progress`.

    Returns:
        The ensemble: `combine` applies it, `collapse` makes one head of a mean of logits.

    Raises:
        ConfigError: If an option, or a combination of options, is not possible.
        FeatureError: If probabilities are asked for and a member's values are none.
        IdError: If a labelled row is missing, or fitted a head.
        CategoryError: If no member has a category of the labels.
        MismatchError: If a member's scores look mismatched with the labels.
        CatwiseError: As `calibrate` and `evaluate`.

    >>> rng = np.random.default_rng(0)
    >>> truth = rng.normal(size=(600, 2)) - 1
    >>> labels = PartialLabels((truth + rng.logistic(size=(600, 2)) > 0).astype(np.int8))
    >>> one, two = (truth + rng.normal(size=(600, 2)) for _ in range(2))
    >>> found = ensemble({"one": one, "two": 3 * two}, labels)
    >>> found.combine({"one": one[:2], "two": 3 * two[:2]}).probabilities.shape
    torch.Size([2, 2])
    """
    kinds = check_members(members, kind)
    _check_options(method, weights, level, by)
    labels, notes = common_rows(members, labels)
    columns, more = read_members(members, labels, kinds, force=force)
    method, why = _method(columns, method, labels.categories)
    notes += [*more, *alike(columns, labels.categories), *why]
    share = _shares(prevalence, labels.categories)
    pooling = Pooling.of(by, labels, pool)
    once = method != "rank" and pooling is None
    made, parts = _mapped(columns, labels, method, share if once else None, progress=progress)
    weighed, worth = _weights(weights, columns, parts, labels, method=method, level=level)
    spread = _spread(weighed, columns)
    mean = mean_logits(parts, spread, method)
    calibration = _uncalibrated(labels, share) if once else _final(mean, pooling, labels, share)
    notes += _unlike(calibration, method) + ([] if pooling is None else [pooling.note])
    whole = Ensemble(
        labels.categories,
        method,
        made,
        spread,
        calibration,
        _unit(by),
        pool,
        worth=worth,
        notes=tuple(dict.fromkeys(notes)),
    )
    if test is None:
        return whole
    return _tested(whole, members, test, by=by, metrics=metrics, level=level)


def _check_options(method: str | None, weights: Any, level: float, by: By) -> None:
    check_choice("method", method, (*ENSEMBLE_METHODS, None))
    if not 0.0 < level < 1.0:
        raise ConfigError("level is a share.", found=f"{level:g}", expected="inside (0, 1)")
    if isinstance(weights, str):
        check_choice("weights", weights, (FITTED, None))
    if not (by is None or isinstance(by, (str, Mapping))):
        raise ConfigError(
            "by is a name or a mapping, since it holds for other rows too.",
            found=type(by).__name__,
            expected="'study', 'patient' or {id: group}",
        )


def _shares(prevalence: PerCategory, categories: tuple[str, ...]) -> NDArray[np.float64]:
    """(C,) stated prevalences, NaN where none is."""
    share = per_category(prevalence, categories, "prevalence", is_whole=False)
    check_shares(share, "prevalence")
    return share


def _unit(by: By) -> str:
    return (by or "image") if by is None or isinstance(by, str) else "groups"


def _method(
    columns: Sequence[Columns], method: str | None, categories: Sequence[str]
) -> tuple[str, list[str]]:
    """The method that the members' values allow, and what to know of it."""
    notes = outside(columns, categories)
    scores = [repr(one.name) for one in columns if one.kind == "scores"]
    if method == "rank" or not (notes or scores):
        return method or ENSEMBLE_METHODS[0], notes
    if method is None:
        why = "not all members give probabilities: ranks are averaged."
        return "rank", [*notes, why]
    if notes:
        raise FeatureError(notes[0], remedy="method='rank', or leave the member out")
    raise ConfigError(
        "scores are neither probabilities nor logits.",
        found=f"method={method!r} with scores of {some(scores, 3)}",
        remedy="method='rank'",
    )


def _mapped(
    columns: Sequence[Columns],
    labels: PartialLabels,
    method: str,
    share: NDArray[np.float64] | None,
    *,
    progress: ProgressCallback | None,
) -> tuple[tuple[Member, ...], list[NDArray[np.float64]]]:
    """The members with their maps, and what these make of their outputs.

    Args:
        columns: M of them.
        labels: (N, C).
        method: of the ensemble.
        share: (C,) stated prevalences, NaN where none is; None: of no use here.
        progress: called for each.
    """
    made: list[Member] = []
    parts: list[NDArray[np.float64]] = []
    for at, one in enumerate(columns):
        if progress is not None:
            progress(Progress("members", at, len(columns), one.name))
        made.append(_member(one, labels, method, share))
        parts.append(mapped(one, made[-1].maps, method))
    if progress is not None:
        progress(Progress("members", len(columns), len(columns)))
    return tuple(made), parts


def _member(
    columns: Columns, labels: PartialLabels, method: str, share: NDArray[np.float64] | None
) -> Member:
    """A member with its maps."""
    maps: list[CategoryMap | None] = [None] * labels.n_categories
    has = np.flatnonzero(columns.has)
    if method == "rank":
        for c in has:
            maps[c] = fit_ranks(columns.values[:, c])
        return Member(columns.name, columns.kind, tuple(maps))
    own = labels.take_categories(has.tolist())
    held = HeldOut(torch.from_numpy(columns.logits()[:, has]), own, own.categories)
    stated = np.full(has.size, np.nan) if share is None else share[has]
    for c, one in zip(has, fit_maps(held, "affine", stated), strict=True):
        maps[c] = one.map
    return Member(columns.name, columns.kind, tuple(maps))


def _unlike(calibration: Calibration, method: str) -> list[str]:
    """Of which categories a mean of ranks gives no probabilities, in a sentence."""
    names = [repr(one.category) for one in calibration.categories if one.method == "none"]
    if method != "rank" or not names:
        return []
    return [f"{some(names, 3)}: ranks, not probabilities, as one class is not known."]


def _uncalibrated(labels: PartialLabels, share: NDArray[np.float64]) -> Calibration:
    """No calibration of the mean: its members are calibrated."""
    counts = labels.counts()
    found = [
        CategoryCalibration(
            name,
            "none",
            CategoryMap(),
            k,
            n,
            None if np.isnan(stated) else stated,
            class_reason(k, n),
        )
        for name, k, n, stated in zip(
            labels.categories,
            counts.positive.tolist(),
            counts.negative.tolist(),
            share.tolist(),
            strict=True,
        )
    ]
    return Calibration.of(tuple(found))


def _final(
    mean: Tensor, pooling: Pooling | None, labels: PartialLabels, share: NDArray[np.float64]
) -> Calibration:
    """The calibration of the mean, on what is scored as one."""
    logits = pooled(mean, pooling)
    own = labels if pooling is None else pooling.labels(labels)
    return Calibration.of(fit_maps(HeldOut(logits, own, own.categories), "affine", share))


def _spread(shares: NDArray[np.float64], columns: Sequence[Columns]) -> NDArray[np.float64]:
    """(M, C) weights whose columns add up to 1, from those of the members."""
    weights = shares[:, None] * np.array([one.has for one in columns], dtype=np.float64)
    total = weights.sum(axis=0)
    if not (total > 0).all():
        raise ConfigError(
            "the members that have a category weigh nothing.",
            expected="a weight above 0 for one member of each category",
        )
    return np.asarray(weights / total, dtype=np.float64)


def _weights(
    given: str | Mapping[str, float] | None,
    columns: Sequence[Columns],
    parts: Sequence[NDArray[np.float64]],
    labels: PartialLabels,
    *,
    method: str,
    level: float,
) -> tuple[NDArray[np.float64], dict[str, PairedComparison] | None]:
    """(M,) weights, and how they do against equal ones on rows that did not fit them."""
    equal = np.full(len(columns), 1.0 / len(columns))
    if given is None or len(columns) == 1:
        return equal, None
    if isinstance(given, str):
        if method != "probability" or not all(one.has.all() for one in columns):
            raise ConfigError(
                "weights are fitted for a mean of probabilities of members with all categories.",
                found=f"method={method!r}" if method != "probability" else "a member lacks some",
                remedy="weights={name: weight}, or equal ones",
            )
        found = fit_weights(parts, labels)
        held = _cross_fitted(columns, parts, labels)
    else:
        found = _stated(given, [one.name for one in columns])
        held = mean_logits(parts, _spread(found, columns), method)
    plain = mean_logits(parts, _spread(equal, columns), method)
    names = _NO_METRICS if method == "rank" else (*_NO_METRICS, "log_loss")
    worth = {name: compare_logits(plain, held, labels, name, level=level) for name in names}
    return found, worth


def _stated(given: Mapping[str, float], names: Sequence[str]) -> NDArray[np.float64]:
    wrong = [str(name) for name in given if name not in names]
    lacking = [name for name in names if name not in given]
    if wrong or lacking:
        what = f"{wrong[0]!r} is not a member" if wrong else f"{lacking[0]!r} has none"
        raise ConfigError(f"weights: {what}.", expected=", ".join(map(repr, names)))
    found = np.array([float(given[name]) for name in names])
    if not np.isfinite(found).all() or (found < 0).any() or not found.any():
        raise ConfigError(
            "weights must not be negative.", found=f"{found.tolist()}", expected="numbers from 0 up"
        )
    return np.asarray(found / found.sum(), dtype=np.float64)


def fit_weights(
    parts: Sequence[NDArray[np.float64]], labels: PartialLabels, rows: Any = None
) -> NDArray[np.float64]:
    """(M,) weights with the least log-loss of the mean of probabilities, every category alike.

    The log-likelihood of a mixture is concave in its weights; they are the softmax of what is
    minimised over.

    Args:
        parts: M times (N, C) calibrated logits.
        labels: (N, C).
        rows: (N,) bool, those that fit; None: all.

    Source: Breiman, "Stacked regressions", Machine Learning 24, 1996 (weights that are not
    negative).

    >>> labels = PartialLabels([[1], [0], [1], [0]])
    >>> right, wrong = np.array([[2.0], [-2.0]] * 2), np.array([[-1.0], [1.0]] * 2)
    >>> fit_weights([right, wrong], labels).round(3)
    array([1., 0.])
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax, softmax

    chances, shares = [], []
    for c in range(labels.n_categories):
        known, positive = labels.known(c)
        if rows is not None:
            known, positive = known[rows[known]], positive[rows[known]]
        if known.size:
            sign = np.where(positive, 1.0, -1.0)
            chances.append(np.stack([-np.logaddexp(0.0, -sign * part[known, c]) for part in parts]))
            shares.append(np.full(known.size, 1.0 / known.size))
    log_chance, share = np.concatenate(chances, axis=1), np.concatenate(shares)
    share /= share.sum()

    def loss(free: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        joint = log_softmax(free)[:, None] + log_chance
        total = np.logaddexp.reduce(joint, axis=0)
        return -float(total @ share), softmax(free) - np.exp(joint - total) @ share

    found = minimize(loss, np.zeros(len(parts)), jac=True, method="L-BFGS-B", tol=1e-10)
    return np.asarray(softmax(found.x), dtype=np.float64)


def _cross_fitted(
    columns: Sequence[Columns], parts: Sequence[NDArray[np.float64]], labels: PartialLabels
) -> Tensor:
    """(N, C) logits of the mean, the weights of each row fitted without its fold."""
    folds = [one.fold for one in columns]
    fold, first = labels.units() % _FOLDS, folds[0]
    if first is not None and all(one is not None and np.array_equal(first, one) for one in folds):
        fold = first
    out = np.empty(labels.shape)
    for f in np.unique(fold):
        inside = fold == f
        own = fit_weights(parts, labels, ~inside)
        part = [one[inside] for one in parts]
        whole = np.broadcast_to(own[:, None], (own.size, labels.n_categories))
        out[inside] = mean_logits(part, whole, "probability").numpy()
    return torch.from_numpy(out)


def _tested(
    whole: Ensemble,
    members: Mapping[str, Any],
    test: tuple[Mapping[str, Any], PartialLabels],
    *,
    by: By,
    metrics: Sequence[str] | None,
    level: float,
) -> Ensemble:
    """The ensemble with its account on test rows."""
    given, labels = _test_pair(test)
    require_known(labels, "test label")
    kinds = {one.name: one.kind for one in whole.members}
    opened = {name: _opened(members[name], given, name) for name in members}
    labels = _in_order(labels, whole.categories)
    columns, notes = read_members(opened, labels, kinds, force=True)
    pooling = Pooling.of(by, labels, whole.pool)
    own = labels if pooling is None else pooling.labels(labels)
    after = whole.calibration.logits(pooled(whole.mean(columns), pooling))
    if metrics is None:
        plain = whole.method == "rank" or pooling is not None
        metrics = _NO_METRICS if plain else (*_NO_METRICS, "log_loss")
    against: dict[str, dict[str, PairedComparison]] = {}
    for one, member in zip(columns, whole.members, strict=True):
        has = np.flatnonzero(one.has).tolist()
        before = pooled(torch.from_numpy(mapped(one, member.maps, whole.method)), pooling)
        sides = before[:, has], after[:, has]
        part = own.take_categories(has)
        against[one.name] = {
            name: compare_logits(*sides, part, name, level=level) for name in metrics
        }
    scores = score_intervals(HeldOut(after, own, whole.categories), metrics, level)
    return replace(
        whole, against=against, scores=scores, notes=tuple(dict.fromkeys([*whole.notes, *notes]))
    )


def _test_pair(test: Any) -> tuple[Mapping[str, Any], PartialLabels]:
    if (
        isinstance(test, (tuple, list))
        and len(test) == 2
        and isinstance(test[0], Mapping)
        and isinstance(test[1], PartialLabels)
    ):
        return test[0], test[1]
    raise LabelError(
        "test must be a pair of members and labels.",
        found=type(test).__name__,
        expected="test=({name: outputs or features}, PartialLabels)",
    )


def _opened(member: Any, given: Mapping[str, Any], name: str) -> Any:
    """A member's outputs for test rows: its head and their features, or what is given."""
    if name not in given:
        raise ConfigError(
            f"test lacks the member {name!r}.", expected="outputs or features of every member"
        )
    head = member.head if isinstance(member, TuneResult) else None
    if is_pair(member):
        head = member[0]
    value = given[name]
    return value if head is None or is_pair(value) else (head, value)


def _in_order(labels: PartialLabels, categories: tuple[str, ...]) -> PartialLabels:
    """Test labels in the order of the ensemble's categories."""
    index, _ = match_categories(
        labels.categories, categories, name="test", head_name="the test labels"
    )
    order = [int(i) for i in index]
    return labels if order == list(range(labels.n_categories)) else labels.take_categories(order)
