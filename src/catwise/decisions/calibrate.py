"""Probabilities that mean what they say, from logits of rows that fitted nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catwise._json import number
from catwise._names import CALIBRATIONS
from catwise._reported import Reported
from catwise._version import __version__
from catwise.decisions.document import Document, read_document
from catwise.decisions.inputs import (
    HeldOut,
    PerCategory,
    check_shares,
    per_category,
    read_held_out,
    read_test,
)
from catwise.decisions.maps import (
    CalibrationModule,
    CategoryMap,
    fit_isotonic,
    fit_venn_abers,
    logit,
)
from catwise.decisions.reached import score_intervals
from catwise.errors import ConfigError, check_choice
from catwise.heads import Head
from catwise.joining import match_categories
from catwise.labels import PartialLabels
from catwise.labels.reasons import class_reason
from catwise.metrics import PairedComparison, compare_logits
from catwise.metrics.curves import CategoryCurves, draw_curves
from catwise.metrics.intervals import LEVEL
from catwise.tuning.fits.affine import fit_affine

METHODS: Final = CALIBRATIONS
"""Names of the methods; "choose" takes the one with the least held-out log-loss."""

MIN_FLEXIBLE: Final = 1000
"""Known positives, and negatives, from which on isotonic regression does no harm (measured)."""

SHOWN: Final = ("log_loss", "brier", "ece")
"""What is shown before and after, on test rows."""

FORMAT: Final = "1"
_FOLDS: Final = 5
_AFFINE: Final = {"affine": "shrunk", "offset": "offset", "platt": "platt"}
_CHOICES: Final = ("affine", "offset", "platt", "isotonic", "venn_abers")


@dataclass(frozen=True)
class CategoryCalibration:
    """How the logits of one category are calibrated.

    Attributes:
        category: name.
        method: of `METHODS`, or "none" where the logits stay as they are.
        map: from logits to calibrated logits.
        n_positive: known positives that it was fitted on.
        n_negative: known negatives.
        prevalence: that was stated for this category, or None.
        reason: why the method is not the one that was asked for, or None: a code of
            `catwise.labels.reasons`, or "too_few_for_method".
    """

    category: str
    method: str
    map: CategoryMap
    n_positive: int
    n_negative: int
    prevalence: float | None = None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "category": self.category,
            "method": self.method,
            **self.map.to_dict(),
            "n_positive": self.n_positive,
            "n_negative": self.n_negative,
            "prevalence": self.prevalence,
            "reason": self.reason,
        }


@dataclass(frozen=True, eq=False, repr=False)
class Calibration(Document, Reported):
    """A map for each category, and what it did on test rows.

    Attributes:
        categories: one for each, in the order of the labels' columns.
        population: of which images the probabilities speak, in a sentence.
        test: {metric: PairedComparison} before and after on test rows; None without them.
        intervals: {metric: (2, C, 2)} ends of the intervals of the scores before and after.
        notes: what to know, a sentence each.
        curves: of the test rows, uncalibrated and calibrated, for pictures; None without them.
    """

    categories: tuple[CategoryCalibration, ...]
    population: str
    test: Mapping[str, PairedComparison] | None = None
    intervals: Mapping[str, NDArray[np.float64]] | None = None
    notes: tuple[str, ...] = ()
    curves: tuple[CategoryCurves, ...] | None = None

    def __repr__(self) -> str:
        methods = sorted({one.method for one in self.categories})
        return f"Calibration(n_categories={len(self.categories)}, methods={methods})"

    @classmethod
    def of(
        cls, categories: tuple[CategoryCalibration, ...], notes: tuple[str, ...] = ()
    ) -> Calibration:
        """Maps without an account of test rows, and of which images they speak."""
        stated = sum(one.prevalence is not None for one in categories)
        return cls(categories, _population(stated, len(categories)), notes=notes)

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Calibration:
        """The maps of a table that :meth:`to_dict` made; else ValueError, KeyError or TypeError."""
        if table.get("catwise_calibration") != FORMAT:
            raise ValueError(f"version {table.get('catwise_calibration')!r}, not {FORMAT!r}")
        categories = tuple(_read_category(one) for one in table["categories"])
        return cls(categories, str(table["population"]), notes=tuple(table["notes"]))

    @property
    def names(self) -> tuple[str, ...]:
        """C names."""
        return tuple(one.category for one in self.categories)

    @property
    def is_affine(self) -> bool:
        """Whether all of it folds into a head."""
        return all(one.map.is_affine for one in self.categories)

    def logits(self, logits: Any) -> Tensor:
        """(N, C) float64 calibrated logits of (N, C) logits."""
        given = torch.as_tensor(logits).double().cpu().numpy()
        columns = [one.map(given[..., c]) for c, one in enumerate(self.categories)]
        return torch.from_numpy(np.stack(columns, axis=-1))

    def probabilities(self, logits: Any) -> Tensor:
        """(N, C) float64 calibrated probabilities of (N, C) logits."""
        return torch.sigmoid(self.logits(logits))

    def fold(self, head: Head) -> Head:
        """The head whose own logits are calibrated; categories that are not named stay.

        Args:
            head: the head whose logits were calibrated; categories are joined by name.

        Raises:
            ConfigError: If a map is not affine, or needs a bias that the head lacks.
            CategoryError: If the head lacks a category.

        >>> head = Head([[1.0], [2.0]], [0.0, 1.0], categories=["cat", "dog"])
        >>> one = CategoryCalibration("dog", "affine", CategoryMap(0.5, -1.0), 20, 80)
        >>> folded = Calibration((one,), "").fold(head)
        >>> folded.weight.tolist(), folded.bias.tolist()
        ([[1.0], [1.0]], [0.0, -0.5])
        """
        if not self.is_affine:
            one = next(one for one in self.categories if not one.map.is_affine)
            raise ConfigError(
                "only affine maps fold into a head.",
                found=f"{one.method!r} for {one.category!r}",
                remedy="calibration.module() behind the head, or method='affine'",
            )
        index, _ = match_categories(head.categories, self.names, name="the calibration")
        if head.bias is None and any(one.map.offset for one in self.categories):
            raise ConfigError(
                "a head without a bias has nowhere to put an offset.",
                remedy="calibration.module() behind the head, or head.replace(bias=zeros)",
            )
        rows = torch.from_numpy(index).to(head.device)
        scale = torch.tensor([one.map.scale for one in self.categories], dtype=torch.float64)
        offset = torch.tensor([one.map.offset for one in self.categories], dtype=torch.float64)
        weight = head.weight.clone()
        weight[rows] = (scale[:, None] * weight[rows].cpu().double()).to(weight)
        if head.bias is None:
            return head.replace(weight=weight)
        bias = head.bias.clone()
        bias[rows] = (scale * bias[rows].cpu().double() + offset).to(bias)
        return head.replace(weight=weight, bias=bias)

    def module(self) -> CalibrationModule:
        """A torch module from (…, C) logits to calibrated logits; it exports to ONNX."""
        return CalibrationModule([one.map for one in self.categories])

    def records(self) -> list[dict[str, Any]]:
        """One JSON-ready dict for each category; with what it did on test rows, if there are."""
        records = [one.to_dict() for one in self.categories]
        for metric, found in (self.test or {}).items():
            for c, row in enumerate(found.records()):
                for at, side in enumerate(("before", "after")):
                    low, high = (self.intervals or {})[metric][at, c]
                    records[c][f"{metric}_{side}"] = row[side]
                    records[c][f"{metric}_{side}_low"] = number(float(low))
                    records[c][f"{metric}_{side}_high"] = number(float(high))
                for key in ("difference", "difference_low", "difference_high", "outcome"):
                    records[c][f"{metric}_{key}"] = row[key]
        return records

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        return {
            "catwise_calibration": FORMAT,
            "population": self.population,
            "test": {name: one.mean() for name, one in (self.test or {}).items()} or None,
            "notes": list(self.notes),
            "categories": self.records(),
        }

    def page_document(self) -> dict[str, Any]:
        """What the page is made of, JSON-ready."""
        tests = [one.to_dict() for one in (self.test or {}).values()]
        document = {"kind": "calibrate", "catwise": __version__, **self.to_dict()}
        document["comparisons"] = tests
        if self.curves is not None:
            document["curves"] = {
                "rows": "test",
                "categories": [one.to_dict() for one in self.curves],
            }
        return document

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read the maps that `save` wrote; not the comparisons on test rows.

        Raises:
            ConfigError: If it is not such a file, or of another version.
        """
        by = "`Calibration.save` or `catwise calibrate`"
        return read_document(path, cls.from_dict, what="a calibration", written_by=by)


def _read_category(one: Mapping[str, Any]) -> CategoryCalibration:
    name = str(one["category"])
    return CategoryCalibration(
        name,
        str(one["method"]),
        CategoryMap.from_dict(one, name),
        int(one["n_positive"]),
        int(one["n_negative"]),
        one["prevalence"],
        one["reason"],
    )


def calibrate(
    source: Any,
    labels: PartialLabels,
    *,
    method: str = "affine",
    prevalence: PerCategory = None,
    test: tuple[Any, PartialLabels] | None = None,
    level: float = LEVEL,
) -> Calibration:
    """Fit a map from logits to calibrated logits, category by category.

    "affine" fits a scale and an offset; the scale is shrunk to the slope of all categories, so
    that a handful of positives does no harm. "offset" leaves the scale; "platt" shrinks nothing.
    "isotonic" and "venn_abers" need 1,000 known positives and negatives; with fewer a category
    takes "affine". "choose" takes, where there are so many, the method whose held-out log-loss is
    clearly (by two standard errors) below that of "affine". Calibration error chooses nothing: it
    is best for a constant. A category without both classes keeps its logits, or, where a
    prevalence is stated, its scale is the pooled one and its mean probability the prevalence.

    Args:
        source: a `TuneResult` or its `FoldArtifacts`, whose out-of-fold logits are used, or (N, C)
            logits of rows that fitted nothing.
        labels: (N, C) of these rows; joined by id and name where both sides have them.
        method: of `METHODS`.
        prevalence: share of positives among the images that will be met, in (0, 1), where that is
            not the share among the known labels: a number, (C,) numbers, or a mapping from names,
            which may leave out categories. The offset is corrected by it. Nothing is estimated
            where none is stated.
        test: rows that fitted and chose nothing, to compare log-loss, Brier score and calibration
            error before and after: features and labels where `source` is a `TuneResult` (its
            head's logits are used), else logits and labels.
        level: confidence level of the intervals, in (0, 1).

    Returns:
        The maps. `fold` puts affine ones into a head, `module` makes a torch module of any.

    Raises:
        ConfigError: If an option is out of range, or a tuning has no out-of-fold logits.
        LabelError: If labels are raw values, or none is known.
        ShapeError: If logits and labels do not fit together.
        IdError: If a labelled row has no logits, or a test row fitted the head.
        CategoryError: If categories do not match.
        FeatureError: If a logit is NaN or infinite.

    >>> rng = np.random.default_rng(0)
    >>> z = rng.normal(size=(400, 2))
    >>> codes = (rng.random((400, 2)) < 1 / (1 + np.exp(2 - z))).astype(np.int8)
    >>> found = calibrate(3 * z, PartialLabels(codes))
    >>> [round(one.map.scale, 1) for one in found.categories]
    [0.3, 0.3]
    """
    check_choice("method", method, METHODS)
    if not 0.0 < level < 1.0:
        raise ConfigError("level is a share.", found=f"{level:g}", expected="inside (0, 1)")
    held_out = read_held_out(source, labels)
    share = per_category(prevalence, held_out.categories, "prevalence", is_whole=False)
    check_shares(share, "prevalence")
    done = Calibration.of(fit_maps(held_out, method, share), held_out.notes)
    rows = read_test(test, source, held_out.categories)
    return done if rows is None else _tested(done, rows, level)


def _population(stated: int, n: int) -> str:
    labelled = "images like those with a known label of the category"
    if not stated:
        return f"Probabilities speak of {labelled}."
    at = "images with the stated share of positives"
    if stated == n:
        return f"Probabilities speak of {at}."
    return f"Probabilities speak of {at} in {stated:,} categories, of {labelled} in the others."


def fit_maps(
    held_out: HeldOut, method: str, prevalence: NDArray[np.float64]
) -> tuple[CategoryCalibration, ...]:
    """The calibration of every category.

    Args:
        held_out: logits and labels.
        method: of `METHODS`.
        prevalence: (C,) stated shares, NaN where none is.
    """
    counts = held_out.labels.counts()
    affine = fit_affine_maps(held_out, _AFFINE.get(method, "shrunk"))
    if not np.isnan(prevalence).all():  # a stated share moves from the share that is known
        own = fit_affine_maps(held_out, _AFFINE.get(method, "shrunk"), shrink_offset=False)
        affine = [a if np.isnan(p) else b for a, b, p in zip(affine, own, prevalence, strict=True)]
    slope = _pooled_slope(held_out, affine)
    found = []
    for c, name in enumerate(held_out.categories):
        k, n = int(counts.positive[c]), int(counts.negative[c])
        share = None if np.isnan(prevalence[c]) else float(prevalence[c])
        used, one, reason = (_AFFINE.get(method) and method) or "affine", affine[c], None
        lacking = class_reason(k, n)
        if lacking is not None:
            used, reason = ("none" if share is None else "prevalence"), lacking
            if share is not None:
                one = _by_prevalence(held_out.column(c), slope, share)
        elif method not in _AFFINE:
            if min(k, n) < MIN_FLEXIBLE:
                reason = None if method == "choose" else "too_few_for_method"
            else:
                used, one = _flexible(held_out, c, method, affine[c])
        if share is not None and lacking is None:
            one = one.moved(float(logit(np.array(share)) - logit(np.array(k / (k + n)))))
        found.append(CategoryCalibration(name, used, one, k, n, share, reason))
    return tuple(found)


#: A map that is this near to the one that changes nothing is that one.
_SAME: Final = 1e-6


def fit_affine_maps(
    held_out: HeldOut, rule: str, *, shrink_offset: bool = True
) -> list[CategoryMap]:
    """Affine maps of all categories, by a rule of `fit_affine`; offsets near the logits' own."""
    codes = torch.from_numpy(np.array(held_out.labels.codes.T, order="C"))
    logits = held_out.logits.cpu().T.contiguous()
    level = logits if shrink_offset else None
    scale, offset = fit_affine(logits, codes, level=level, rule=rule)
    pairs = zip(scale.tolist(), offset.tolist(), strict=True)
    # What is calibrated already, as a run's logits are, differs by rounding only: then not at all.
    same = CategoryMap(1.0, 0.0)
    return [same if max(abs(a - 1), abs(b)) < _SAME else CategoryMap(a, b) for a, b in pairs]


def _pooled_slope(held_out: HeldOut, maps: list[CategoryMap]) -> float:
    """The mean slope per standard deviation of the logits, by positives up to 100."""
    counts = held_out.labels.counts()
    weight = np.minimum(np.minimum(counts.positive, counts.negative), 100).astype(np.float64)
    if not weight.any():
        return 1.0
    slopes = [
        one.scale * max(float(held_out.column(c).std()), 1e-12) if weight[c] else 1.0
        for c, one in enumerate(maps)
    ]
    return float(np.exp(np.average(np.log(slopes), weights=weight)))


def _by_prevalence(column: NDArray[np.float64], slope: float, prevalence: float) -> CategoryMap:
    """The pooled slope, and the offset at which the mean probability is the prevalence."""
    spread = float(column.std())
    scaled = slope / spread * column if spread > 0 else np.zeros_like(column)
    centre = float(logit(np.array(prevalence)))
    low, high = centre - scaled.max() - 1.0, centre - scaled.min() + 1.0
    for _ in range(60):  # the mean rises with the offset
        middle = (low + high) / 2
        mean = float(torch.sigmoid(torch.from_numpy(scaled + middle)).mean())
        low, high = (middle, high) if mean < prevalence else (low, middle)
    return CategoryMap(slope / spread if spread > 0 else 1.0, (low + high) / 2)


def _flexible(
    held_out: HeldOut, c: int, method: str, affine: CategoryMap
) -> tuple[str, CategoryMap]:
    """A map of a category with thousands of labels, chosen where that is asked for."""
    known = held_out.known(c)
    if method == "choose":
        fold = held_out.units.of_row[known.rows] % _FOLDS
        if held_out.fold is not None:
            fold = np.unique(held_out.fold[known.rows], return_inverse=True)[1]
        method = _least_log_loss(known.scores, known.positive, fold)
    return method, affine if method == "affine" else _fit(method, known.scores, known.positive)


def _fit(method: str, scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> CategoryMap:
    if method not in _AFFINE:
        return (fit_isotonic if method == "isotonic" else fit_venn_abers)(scores, positive)
    codes = torch.from_numpy(positive.astype(np.int8))[None]
    scale, offset = fit_affine(torch.from_numpy(scores)[None], codes, rule=_AFFINE[method])
    return CategoryMap(float(scale), float(offset))


def _least_log_loss(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], fold: NDArray[Any]
) -> str:
    """The method whose held-out log-loss is least; another than "affine" must win clearly."""
    losses = np.empty((len(_CHOICES), scores.size))
    sign = np.where(positive, -1.0, 1.0)
    for f in np.unique(fold):
        inside = fold != f
        for at, name in enumerate(_CHOICES):
            one = _fit(name, scores[inside], positive[inside])
            losses[at, ~inside] = np.logaddexp(0.0, sign[~inside] * one(scores[~inside]))
    differences = losses - losses[0]
    mean = differences.mean(axis=1)
    error = differences.std(axis=1, ddof=1) / np.sqrt(scores.size)
    mean[mean > -2.0 * error] = 0.0
    return _CHOICES[int(mean.argmin())]


def _tested(found: Calibration, rows: HeldOut, level: float) -> Calibration:
    """The calibration with its account on test rows."""
    after = found.logits(rows.logits)
    before = rows.logits.double()
    test = {name: compare_logits(before, after, rows.labels, name, level=level) for name in SHOWN}
    sides = [
        score_intervals(HeldOut(logits, rows.labels, rows.categories), SHOWN, level)
        for logits in (before, after)
    ]
    intervals = {name: np.stack([side[name][1] for side in sides]) for name in SHOWN}
    both = {"uncalibrated": before, "calibrated": after}
    return replace(
        found,
        test=test,
        intervals=intervals,
        notes=(*found.notes, *rows.notes),
        curves=draw_curves(both, rows.labels, rows.categories),
    )
