"""From logits to probabilities and decisions, by a calibration and thresholds of the same logits.

Thresholds are compared on the scale of logits: probabilities of float32 logits beyond 17 are all 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from catwise.decisions.calibrate import Calibration
from catwise.decisions.maps import CalibrationModule, CategoryMap
from catwise.decisions.rules import SETS, set_codes
from catwise.decisions.sets import ConformalSets
from catwise.decisions.thresholds import Thresholds
from catwise.errors import CategoryError, ShapeError, nearest

ONE_ANSWER: Final = (SETS.index("negative"), SETS.index("positive"))
"""Codes of the sets that hold one answer."""


class Decisions(NamedTuple):
    """What is decided of N images and C categories.

    Attributes:
        probabilities: (N, C) float64 in [0, 1], calibrated.
        decisions: (N, C) int8: 1 positive, 0 negative, -1 where the category has no threshold.
        sets: (N, C) int8 codes of `SETS`: 0 none, 1 negative, 2 positive, 3 both; None where there
            are no conformal sets.
        abstains: (N, C) whether nothing should be decided: there is no threshold, or the set is
            not one answer.
    """

    probabilities: NDArray[np.float64]
    decisions: NDArray[np.int8]
    sets: NDArray[np.int8] | None
    abstains: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class DecisionRules:
    """How the logits of each category become a probability and a decision.

    Attributes:
        categories: C names.
        maps: C maps to calibrated logits.
        thresholds: (C,) float64 logits from which on an image is positive; NaN for none.
        cuts: (2, C) float64 logits: from which "positive" and below which "negative" is in the
            conformal set; None without such sets.
    """

    categories: tuple[str, ...]
    maps: tuple[CategoryMap, ...]
    thresholds: NDArray[np.float64]
    cuts: NDArray[np.float64] | None = None

    @classmethod
    def of(
        cls,
        categories: tuple[str, ...],
        calibration: Calibration | None = None,
        thresholds: Thresholds | None = None,
        conformal: ConformalSets | None = None,
    ) -> DecisionRules:
        """The rules of a head's categories, by name.

        Categories without a calibration keep their logits; those without a threshold get no
        decision, those without cut-offs a set with both answers.

        Raises:
            CategoryError: If one of them has a category that the head lacks.

        >>> DecisionRules.of(("cat", "dog")).decide([[0.0, 2.0]]).decisions.tolist()
        [[-1, -1]]
        """
        maps: dict[str, CategoryMap] = {}
        values: dict[str, float] = {}
        if calibration is not None:
            _refuse_others(calibration.names, categories, "the calibration")
            maps = {one.category: one.map for one in calibration.categories}
        if thresholds is not None:
            _refuse_others(thresholds.names, categories, "the thresholds")
            values = dict(zip(thresholds.names, thresholds.values().tolist(), strict=True))
        found = [values.get(name, float("nan")) for name in categories]
        return cls(
            categories,
            tuple(maps.get(name, CategoryMap()) for name in categories),
            np.array(found, dtype=np.float64),
            None if conformal is None else _cuts_of(categories, conformal),
        )

    def decide(self, logits: Any) -> Decisions:
        """Probabilities and decisions of (N, C) logits.

        Raises:
            ShapeError: If they have another number of columns.
        """
        given = torch.as_tensor(logits).double().cpu().numpy()
        if given.ndim != 2 or given.shape[1] != len(self.categories):
            raise ShapeError(
                "the logits do not fit the categories.",
                found=f"shape {given.shape}",
                expected=f"(N, {len(self.categories)})",
            )
        calibrated = self.calibrated(given)
        positive = (given >= self.thresholds).astype(np.int8)
        decisions = np.where(np.isnan(self.thresholds), np.int8(-1), positive)
        sets = None if self.cuts is None else set_codes(given, *self.cuts)
        unsure = False if sets is None else (sets != ONE_ANSWER[0]) & (sets != ONE_ANSWER[1])
        return Decisions(
            torch.sigmoid(torch.from_numpy(calibrated)).numpy(),
            decisions,
            sets,
            (decisions < 0) | unsure,
        )

    def calibrated(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, C) calibrated logits of (N, C) logits."""
        scale = np.array([one.scale for one in self.maps])
        offset = np.array([one.offset for one in self.maps])
        found = np.asarray(scale * logits + offset, dtype=np.float64)
        for c, one in enumerate(self.maps):
            if not one.is_affine:
                found[:, c] = one(logits[:, c])
        return found

    def of_calibrated(self) -> DecisionRules:
        """The same rules for logits that are calibrated already.

        A map by knots that is level somewhere takes what lies there for one, so that a threshold or
        a cut-off there calls all of it positive.

        >>> one = DecisionRules(("cat",), (CategoryMap(2.0, 1.0),), np.array([0.5]))
        >>> one.of_calibrated().thresholds
        array([2.])
        """
        with np.errstate(invalid="ignore"):
            thresholds = self.calibrated(self.thresholds[None])[0]
        cuts = self.cuts
        if cuts is not None:
            cuts = np.where(np.isinf(cuts), cuts, self.calibrated(cuts))
        identity = (CategoryMap(),) * len(self.maps)
        return DecisionRules(self.categories, identity, thresholds, cuts)

    def float32_thresholds(self) -> NDArray[np.float32]:
        """(C,) the least float32 that is not below each threshold; +inf where there is none.

        Of float32 logits, those at or above it are those at or above the threshold itself.
        """
        return _least_float32(self.thresholds)

    def float32_cuts(self) -> NDArray[np.float32] | None:
        """(2, C) the same of the conformal sets' cut-offs; None without such sets."""
        return None if self.cuts is None else _least_float32(self.cuts)

    def module(self) -> DecisionModule:
        """A torch module from float32 logits to what is decided; it exports."""
        return DecisionModule(self)


def _least_float32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """The least float32 that is not below each value; +inf for NaN."""
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    up = np.nextafter(near, np.float32(np.inf))
    least = np.where(near.astype(np.float64) < values, up, near)
    return np.where(np.isnan(values), np.float32(np.inf), least)


class DecisionModule(nn.Module):
    """(N, C) logits → logits, calibrated probabilities, int8 decisions and sets, as tensors.

    Sets are there if the rules have them: four tensors, else three.

    >>> from catwise.decisions import CategoryThreshold, Thresholds
    >>> one = CategoryThreshold("cat", "f1", None, None, 0.5, None, None, None, 20, 80)
    >>> rules = DecisionRules.of(("cat", "dog"), thresholds=Thresholds((one,), ""))
    >>> [part.tolist() for part in rules.module()(torch.tensor([[0.5, 0.0], [0.25, 0.0]]))[1:]]
    [[[0.622..., 0.5], [0.562..., 0.5]], [[1, -1], [0, -1]]]
    """

    threshold: Tensor
    has_threshold: Tensor
    cuts: Tensor

    def __init__(self, rules: DecisionRules) -> None:
        super().__init__()
        self.calibration = CalibrationModule(rules.maps)
        has = torch.from_numpy(~np.isnan(rules.thresholds))
        self.register_buffer("threshold", torch.from_numpy(rules.float32_thresholds()))
        self.register_buffer("has_threshold", has)
        cuts = rules.float32_cuts()
        self.has_sets = cuts is not None  # not read from a tensor: it exports
        if cuts is not None:
            self.register_buffer("cuts", torch.from_numpy(cuts))

    def forward(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Logits, probabilities and decisions; and sets, if there are any."""
        called = (logits >= self.threshold).to(torch.int8)
        decisions = torch.where(self.has_threshold, called, torch.full_like(called, -1))
        found = (logits, torch.sigmoid(self.calibration(logits)), decisions)
        if not self.has_sets:
            return found
        low, high = self.cuts[0], self.cuts[1]
        sets = (logits < high).to(torch.int8) + 2 * (logits >= low).to(torch.int8)  # codes of SETS
        return (*found, sets)


def _cuts_of(categories: tuple[str, ...], conformal: ConformalSets) -> NDArray[np.float64]:
    """(2, C) cut-offs of a head's categories."""
    _refuse_others(conformal.names, categories, "the conformal sets")
    pairs = dict(zip(conformal.names, conformal.cuts().T, strict=True))
    both = np.array([-np.inf, np.inf])
    found = np.array([pairs.get(name, both) for name in categories], dtype=np.float64)
    return np.ascontiguousarray(found.T)


def _refuse_others(names: tuple[str, ...], categories: tuple[str, ...], what: str) -> None:
    """Refuse categories that the head does not have."""
    others = [name for name in names if name not in set(categories)]
    if others:
        raise CategoryError(
            f"{what} are of other categories than the head."
            if what.endswith("s")
            else f"{what} is of other categories than the head.",
            found=f"{len(others):,} that it lacks: {others[0]!r}{nearest(others[0], categories)}",
            expected="categories of the head",
            remedy="use those that were made for this head's logits",
        )
