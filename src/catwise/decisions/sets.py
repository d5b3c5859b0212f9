"""Sets of answers that hold the true one with a stated probability, for positives and negatives.

For each category two cut-offs are taken from rows that fitted nothing: from the first one up
"positive" is in the set, below the second one "negative". So a row's set is {negative},
{positive}, both (unsure) or, between cut-offs that do not overlap, none (unlike most known rows of
either class). Of new positives a share of 1 − alpha have "positive" in their set, of new negatives
as many "negative", whatever the distribution and the prevalence; nothing is drawn at random.

That is so in the mean over categories. The share in one category follows Beta(n − r + 1, r), where
the cut-off is the r-th of its n known rows of a class: how probable it is that it is lower than
stated is said beside it.

Source: Vovk, "Conditional validity of inductive conformal predictors", ACML 2012 (label-conditional
sets; the beta law); Sadinle, Lei & Wasserman, JASA 114, 2019 (sets by class, and empty ones).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catwise._text import count, plural
from catwise.decisions.document import Document, read_document
from catwise.decisions.inputs import (
    HeldOut,
    PerCategory,
    check_shares,
    per_category,
    read_held_out,
    read_test,
)
from catwise.decisions.reached import Covered, covered
from catwise.decisions.rules import chance_below, kept_with, order_statistic, set_codes
from catwise.decisions.thresholds import CONFIDENCE
from catwise.errors import ConfigError
from catwise.labels import PartialLabels
from catwise.metrics.intervals import LEVEL

FORMAT: Final = "1"
ALPHA: Final = 0.1

_GROUPED: Final = (
    "Rows count as independent. Rows of one group are alike, so where groups have several rows the "
    "coverage of a category is lower than stated more often than is said."
)


@dataclass(frozen=True)
class ClassCut:
    """From which logit one class is in the set of a category.

    Attributes:
        cut: logit: positives are in the set from it up, negatives below it; None where too few
            rows of the class are known, so that it is in every set.
        n: known rows of the class.
        needed: that it would take, where there are fewer.
        expected: share of new rows of the class whose set holds it, in the mean.
        chance_lower: probability that this share is below 1 − alpha in this category.
        low: share that is exceeded with 90% in this category.
    """

    cut: float | None
    n: int
    needed: int | None = None
    expected: float | None = None
    chance_lower: float | None = None
    low: float | None = None


@dataclass(frozen=True)
class CategorySets:
    """The sets of one category.

    Attributes:
        category: name.
        alpha: share of new rows of each class whose set may lack it.
        confidence: with which no more may in this category; None: in the mean.
        positive: from which logit "positive" is in the set.
        negative: below which logit "negative" is in it.
        covered: on test rows, or None.
    """

    category: str
    alpha: float
    confidence: float | None
    positive: ClassCut
    negative: ClassCut
    covered: Covered | None = None

    @property
    def explanation(self) -> str:
        """What the sets promise, or what they lack, in a sentence or two.

        >>> positive = ClassCut(None, 3, needed=9)
        >>> negative = ClassCut(1.5, 900, None, 0.9001, 0.48, 0.887)
        >>> print(CategorySets("cat", 0.1, None, positive, negative).explanation)
        A set without "positive" needs 9 known positives; 3 are known. "negative" is in the set of
        90.0% of negatives, in this category of fewer than 90% with probability 0.48.
        """
        return " ".join(
            _sentence(name, one, self.alpha)
            for name, one in (("positive", self.positive), ("negative", self.negative))
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with what is covered on test rows in the same table."""
        record: dict[str, Any] = {
            "category": self.category,
            "alpha": self.alpha,
            "confidence": self.confidence,
            "positive_from": self.positive.cut,
            "negative_below": self.negative.cut,
        }
        for name in ("positive", "negative"):
            one: ClassCut = getattr(self, name)
            record |= {f"n_{name}": one.n, f"{name}_needed": one.needed}
            for key in _CHANCES:
                record[f"{name}_{key}"] = getattr(one, key)
        record["explanation"] = self.explanation
        return record if self.covered is None else {**record, **self.covered.to_dict()}


_CHANCES: Final = ("expected", "chance_lower", "low")


def _sentence(name: str, one: ClassCut, alpha: float) -> str:
    if one.cut is None:
        are = "is" if one.n == 1 else "are"
        needs = plural(one.needed or 0, f"known {name}")
        return f'A set without "{name}" needs {needs}; {count(one.n)} {are} known.'
    return (
        f'"{name}" is in the set of {100 * (one.expected or 0.0):.1f}% of {name}s, in this '
        f"category of fewer than {100 * (1 - alpha):.4g}% with probability "
        f"{one.chance_lower or 0.0:.2f}."
    )


@dataclass(frozen=True, eq=False, repr=False)
class ConformalSets(Document):
    """Two cut-offs for each category, of the logits that were given.

    Attributes:
        categories: one for each, in the order of the labels' columns.
        notes: what to know, a sentence each.
    """

    categories: tuple[CategorySets, ...]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        whole = sum(None not in (one.positive.cut, one.negative.cut) for one in self.categories)
        return f"ConformalSets({len(self.categories)} categories, {whole} with both cut-offs)"

    @property
    def names(self) -> tuple[str, ...]:
        """C names."""
        return tuple(one.category for one in self.categories)

    def cuts(self) -> NDArray[np.float64]:
        """(2, C) logits: from which "positive" and below which "negative" is in the set.

        Minus infinity and infinity where the class is in every set.
        """
        found = [(one.positive.cut, one.negative.cut) for one in self.categories]
        ends = (-math.inf, math.inf)
        return np.array(
            [[end if cut is None else cut for cut in side]
             for side, end in zip(zip(*found, strict=True), ends, strict=True)]
        )  # fmt: skip

    def decide(self, logits: Any) -> Tensor:
        """(N, C) int8 sets of (N, C) logits: 0 none, 1 negative, 2 positive, 3 both (`SETS`).

        The logits are those of the head whose logits chose, not calibrated ones.

        >>> from catwise.decisions import SETS
        >>> cuts = ClassCut(-1.0, 99), ClassCut(2.0, 99)
        >>> sets = ConformalSets((CategorySets("cat", 0.1, None, *cuts),))
        >>> [SETS[code] for code in sets.decide([[-1.5], [-1.0], [2.0]])[:, 0]]
        ['negative', 'both', 'positive']
        """
        given = torch.as_tensor(logits).double().cpu().numpy()
        return torch.from_numpy(set_codes(given, *self.cuts()))

    def records(self) -> list[dict[str, Any]]:
        """One JSON-ready dict for each category."""
        return [one.to_dict() for one in self.categories]

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        return {
            "catwise_conformal": FORMAT,
            "notes": list(self.notes),
            "categories": self.records(),
        }

    @classmethod
    def load(cls, path: str | Path) -> ConformalSets:
        """Read the cut-offs that `save` wrote; not what they covered on test rows.

        Raises:
            ConfigError: If it is not such a file, or of another version.
        """
        by = "`ConformalSets.save` or `catwise conformal`"
        return read_document(path, _read, what="conformal sets", written_by=by)


def _read(table: Mapping[str, Any]) -> ConformalSets:
    if table.get("catwise_conformal") != FORMAT:
        raise ValueError(f"version {table.get('catwise_conformal')!r}, not {FORMAT!r}")
    found = []
    for one in table["categories"]:
        positive = _read_cut(one, "positive", one["positive_from"])
        negative = _read_cut(one, "negative", one["negative_below"])
        name, alpha = str(one["category"]), float(one["alpha"])
        found.append(CategorySets(name, alpha, one["confidence"], positive, negative))
    return ConformalSets(tuple(found), tuple(table["notes"]))


def _read_cut(one: Mapping[str, Any], name: str, cut: float | None) -> ClassCut:
    if cut is not None and not math.isfinite(cut):
        raise ValueError(f"a cut-off of {one['category']!r} is not finite")
    chances = [one[f"{name}_{key}"] for key in _CHANCES]
    return ClassCut(cut, int(one[f"n_{name}"]), one[f"{name}_needed"], *chances)


def conformal(
    source: Any,
    labels: PartialLabels,
    *,
    alpha: PerCategory = ALPHA,
    confidence: float | None = None,
    test: tuple[Any, PartialLabels] | None = None,
    level: float = LEVEL,
) -> ConformalSets:
    """Sets of answers for each category that hold the true one for a share 1 − alpha of each class.

    The sets of `decide` are {negative}, {positive}, both (unsure) or none. Of new positives at
    least a share of 1 − alpha have "positive" in their set, of new negatives as many "negative",
    whatever the distribution and the prevalence, if their labels are known as those of the rows
    that chose are. A class with fewer known rows than that needs (9 for 90%, 19 for 95%) is in
    every set.

    Args:
        source: a `TuneResult` or its `FoldArtifacts`, whose out-of-fold logits are used, or (N, C)
            logits of rows that fitted nothing. Logits of rows that fitted the head choose cut-offs
            that cover too little.
        labels: (N, C) of these rows; joined by id and name where both sides have them.
        alpha: share of each class whose set may lack it, in (0, 1): a number, (C,) numbers, or a
            mapping from names with all of them.
        confidence: with which each category's own share is at least 1 − alpha, in (0, 1); None: in
            the mean, and the probability that it is lower is said for each.
        test: rows that fitted and chose nothing: features and labels where `source` is a
            `TuneResult`, else logits and labels. What is covered is shown for these.
        level: confidence level of their intervals, in (0, 1).

    Returns:
        Two cut-offs for each category; a cut-off is None, with how many known rows it would take,
        where too few are known.

    Raises:
        ConfigError: If an option is out of range.
        CatwiseError: As `calibrate`.

    >>> rng = np.random.default_rng(0)
    >>> z = rng.normal(size=(400, 1))
    >>> labels = PartialLabels((rng.random((400, 1)) < 1 / (1 + np.exp(2 - 2 * z))).astype(np.int8))
    >>> sets = conformal(z, labels)
    >>> sets.decide([[-2.0], [0.5], [2.0]])[:, 0].tolist()
    [1, 3, 2]
    """
    for name, share in (("level", level), ("confidence", confidence)):
        if share is not None and not 0.0 < share < 1.0:
            raise ConfigError(f"{name} is a share.", found=f"{share:g}", expected="inside (0, 1)")
    held_out = read_held_out(source, labels)
    names = held_out.categories
    shares = per_category(alpha, names, "alpha")
    if np.isnan(shares).any():
        raise ConfigError("alpha is a share.", found="none", expected="inside (0, 1)")
    check_shares(shares, "alpha")
    rows = read_test(test, source, names)
    every = None if rows is None else rows.units
    found = []
    for c, share in enumerate(shares.tolist()):
        one = _sets_of(held_out, c, share, confidence)
        if rows is not None and every is not None:
            cuts = one.positive.cut, one.negative.cut
            one = replace(one, covered=covered(rows, c, cuts, every, level))
        found.append(one)
    notes = [*held_out.notes, *(() if rows is None else rows.notes)]
    if labels.groups is not None:
        notes.append(_GROUPED)
    return ConformalSets(tuple(found), tuple(notes))


def _sets_of(held_out: HeldOut, c: int, alpha: float, confidence: float | None) -> CategorySets:
    """The cut-offs of category number c."""
    known = held_out.known(c)
    positive, negative = (
        _cut_of(known.scores[known.positive == above], alpha, confidence, above=above)
        for above in (True, False)
    )
    return CategorySets(held_out.categories[c], alpha, confidence, positive, negative)


def _cut_of(
    scores: NDArray[np.float64], alpha: float, confidence: float | None, *, above: bool
) -> ClassCut:
    """The cut-off of one class, from its known rows."""
    choice, rank = order_statistic(scores, 1.0 - alpha, confidence, above=above)
    n = scores.size
    if choice.threshold is None:
        return ClassCut(None, n, choice.needed)
    law = chance_below(n, rank, 1.0 - alpha), kept_with(n, rank, CONFIDENCE)
    return ClassCut(choice.threshold, n, None, 1.0 - rank / (n + 1.0), *law)
