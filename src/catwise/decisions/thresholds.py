"""From which logit a category is called positive, by a rule, and what that reaches on test rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catwise._csv import rows_csv
from catwise._io import write_text
from catwise._text import count, plural
from catwise.decisions.calibrate import Calibration, fit_maps
from catwise.decisions.document import Document, read_document
from catwise.decisions.inputs import (
    HeldOut,
    PerCategory,
    check_shares,
    per_category,
    read_held_out,
    read_test,
)
from catwise.decisions.maps import CategoryMap, logit
from catwise.decisions.reached import Reached, cutoff_rows, reached
from catwise.decisions.rules import (
    GUARANTEED,
    RULES,
    WITH_VALUE,
    Choice,
    best_expected_f,
    expected_precision,
    least_precision,
    order_statistic,
    share_of_rows,
)
from catwise.errors import CategoryError, ConfigError, check_choice, check_rules, nearest
from catwise.labels import PartialLabels
from catwise.labels.reasons import explain
from catwise.metrics.intervals import LEVEL

FORMAT: Final = "1"
CONFIDENCE: Final = 0.9
"""With which a least sensitivity, specificity or precision is reached, if nobody says otherwise."""

_GROUPED: Final = (
    "The guarantee counts rows. Rows of one group are alike, so it holds less often where groups "
    "have several rows."
)
_LOWEST: Final = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class CategoryThreshold:
    """From which logit one category is called positive.

    Attributes:
        category: name.
        rule: of `RULES`.
        value: what the rule aims at, or None.
        confidence: with which it is reached; None where nothing is guaranteed.
        threshold: logit from which a row is called positive; None where there is none.
        probability: calibrated probability there.
        expected: what the rule expects to reach on new rows (F-beta, sensitivity + specificity − 1,
            sensitivity, specificity, precision, or share of rows); never what it reached on the
            rows that chose.
        needed: known labels of the class that the rule counts that it needs, where there are
            fewer.
        n_positive: known positives that chose.
        n_negative: known negatives that chose.
        reason: why there is no threshold: "too_few_known", "not_shown", or a code of
            `catwise.labels.reasons`.
        fold_low: lowest threshold that the rows without one of the folds choose.
        fold_high: highest one.
        reached: on test rows, or None.
    """

    category: str
    rule: str
    value: float | None
    confidence: float | None
    threshold: float | None
    probability: float | None
    expected: float | None
    needed: int | None
    n_positive: int
    n_negative: int
    reason: str | None = None
    fold_low: float | None = None
    fold_high: float | None = None
    reached: Reached | None = None

    @property
    def explanation(self) -> str:
        """What the threshold stands for, or why there is none, in a sentence.

        >>> CategoryThreshold("cat", "sensitivity", 0.95, 0.9, None, None, None, 45, 13, 900,
        ...     "too_few_known").explanation
        '95% sensitivity needs 45 known positives; 13 are known.'
        """
        aim = self.rule if self.value is None else f"{self.value:.4g} {self.rule}"
        if self.rule in GUARANTEED and self.value is not None:
            aim = f"{100 * self.value:.4g}% {self.rule}"
        if self.reason == "too_few_known" and self.needed is not None:
            side, known = _counted(self.rule), self.n_positive
            if side == "negative":
                known = self.n_negative
            elif side == "row":
                known = self.n_positive + self.n_negative
            needs = plural(self.needed, f"known {side}")
            return f"{aim} needs {needs}; {count(known)} {'is' if known == 1 else 'are'} known."
        if self.reason == "not_shown":
            return f"No cut-off is shown to have {aim}: at the top too many are negative."
        if self.reason is not None:
            return explain(self.reason)
        if self.confidence is not None:
            share = f"at most {100 * (1 - self.confidence):.3g}% of such thresholds"
            return f"At least {aim}: {share} end below."
        reach = "" if self.expected is None else f", {self.expected:.3g} expected"
        return f"Aimed at {RULES[self.rule]}{reach}."

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with what is reached on test rows in the same table."""
        names = (
            "category", "rule", "value", "confidence", "threshold", "probability", "expected",
            "needed", "n_positive", "n_negative", "reason", "fold_low", "fold_high",
        )  # fmt: skip
        record = {name: getattr(self, name) for name in names}
        record["explanation"] = self.explanation
        return record if self.reached is None else {**record, **self.reached.to_dict()}


def _counted(rule: str) -> str:
    return {"specificity": "negative", "alert_rate": "row", "prevalence": "row"}.get(
        rule, "positive"
    )


@dataclass(frozen=True, eq=False, repr=False)
class Thresholds(Document):
    """A threshold for each category, of the logits that were given.

    Attributes:
        categories: one for each, in the order of the labels' columns.
        population: of which images probabilities and expectations speak, in a sentence.
        notes: what to know, a sentence each.
        test_rows: the test rows, for `cutoffs`; None without them.
    """

    categories: tuple[CategoryThreshold, ...]
    population: str
    notes: tuple[str, ...] = ()
    test_rows: HeldOut | None = None

    def __repr__(self) -> str:
        found = sum(one.threshold is not None for one in self.categories)
        rule = self.categories[0].rule if self.categories else None
        return f"Thresholds(rule={rule!r}, found={found} of {len(self.categories)})"

    @property
    def names(self) -> tuple[str, ...]:
        """C names."""
        return tuple(one.category for one in self.categories)

    def values(self) -> NDArray[np.float64]:
        """(C,) thresholds as logits; NaN where there is none."""
        found = [math.nan if t.threshold is None else t.threshold for t in self.categories]
        return np.array(found, dtype=np.float64)

    def decide(self, logits: Any) -> Tensor:
        """(N, C) int8 decisions on (N, C) logits: 1 positive, 0 negative, -1 without a threshold.

        The logits are those of the head whose logits chose, not calibrated ones.
        """
        values = torch.from_numpy(self.values())
        given = torch.as_tensor(logits).double().cpu()
        return torch.where(values.isnan(), -1, (given >= values).to(torch.int8)).to(torch.int8)

    def op_threshs(self, *, calibrated: bool = True) -> list[float]:
        """Thresholds as torchxrayvision's `model.op_threshs`: probabilities, NaN for none.

        Args:
            calibrated: whether the model's outputs will be calibrated ones (the calibration is
                folded into its last layer); else they are the sigmoid of the logits as they were.
        """
        return [
            math.nan if one.threshold is None else _probability(one, calibrated=calibrated)
            for one in self.categories
        ]

    def to_transformers(self, *, calibrated: bool = True) -> dict[str, Any]:
        """Entries of a transformers config: `problem_type` and `decision_thresholds` by label.

        Args:
            calibrated: as in :meth:`op_threshs`. Labels without a threshold are null.
        """
        found = {
            one.category: None
            if one.threshold is None
            else _probability(one, calibrated=calibrated)
            for one in self.categories
        }
        return {"problem_type": "multi_label_classification", "decision_thresholds": found}

    def records(self) -> list[dict[str, Any]]:
        """One JSON-ready dict for each category."""
        return [one.to_dict() for one in self.categories]

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        return {
            "catwise_thresholds": FORMAT,
            "population": self.population,
            "notes": list(self.notes),
            "categories": self.records(),
        }

    @classmethod
    def load(cls, path: str | Path) -> Thresholds:
        """Read the thresholds that `save` wrote; not what they reached on test rows.

        Raises:
            ConfigError: If it is not such a file, or of another version.
        """
        by = "`Thresholds.save` or `catwise threshold`"
        return read_document(path, _read, what="thresholds", written_by=by)

    def cutoffs(self, category: str) -> list[dict[str, Any]]:
        """Every cut-off of a category on the test rows, from the highest logit down.

        Keys: threshold, n_called, true_positives, false_positives, sensitivity, specificity,
        precision, f1 of the known rows, and alerts_per_1000 of all rows. Read off to explain a
        threshold; a threshold chosen here would be too good.

        Raises:
            ConfigError: If there were no test rows.
            CategoryError: If there is no such category.
        """
        if self.test_rows is None:
            raise ConfigError(
                "there is no table of cut-offs without test rows.",
                remedy="threshold(…, test=(…, labels))",
            )
        if category not in self.names:
            raise CategoryError(
                f"there is no category {category!r}{nearest(category, self.names)}."
            )
        return cutoff_rows(self.test_rows, self.names.index(category))

    def write_cutoffs(self, path: str | Path) -> None:
        """Write the cut-offs of all categories as CSV, the category first.

        Raises:
            OutputError: If it cannot be written.
            ConfigError: If there were no test rows.
        """
        rows = [{"category": name, **row} for name in self.names for row in self.cutoffs(name)]
        write_text(path, rows_csv(rows))


def _probability(one: CategoryThreshold, *, calibrated: bool) -> float:
    value = one.threshold if one.threshold is not None else math.nan
    if calibrated and one.probability is not None:
        return one.probability
    return float(torch.sigmoid(torch.tensor(value, dtype=torch.float64)))


def _read(table: Mapping[str, Any]) -> Thresholds:
    if table.get("catwise_thresholds") != FORMAT:
        raise ValueError(f"version {table.get('catwise_thresholds')!r}, not {FORMAT!r}")
    names = set(CategoryThreshold.__dataclass_fields__) - {"reached"}
    found = [
        CategoryThreshold(**{name: one[name] for name in names}) for one in table["categories"]
    ]
    return Thresholds(tuple(found), str(table["population"]), tuple(table["notes"]))


@dataclass(frozen=True)
class _Rule:
    """What is asked for one category."""

    name: str
    value: float | None
    confidence: float | None

    def __post_init__(self) -> None:
        if self.name in WITH_VALUE and (self.value is None or not math.isfinite(self.value)):
            raise ConfigError(
                f"the rule {self.name!r} needs a value.", remedy="value=0.9, for instance"
            )
        if self.name not in WITH_VALUE and self.value is not None:
            raise ConfigError(f"the rule {self.name!r} takes no value.", found=f"{self.value:g}")
        is_share = self.name not in {"f_beta", "cost"}
        value = 0.5 if self.value is None else self.value
        rules = {
            "value in (0, 1)": not is_share or 0 < value < 1,
            "value > 0": is_share or value > 0,
            "confidence in (0, 1), or None": self.confidence is None or 0 < self.confidence < 1,
        }
        check_rules(f"options of the rule {self.name!r}", self, rules)


class _Column(NamedTuple):
    """The rows of one category that choose."""

    scores: NDArray[np.float64]  # of the known rows
    positive: NDArray[np.bool_]
    every: NDArray[np.float64]  # of all rows
    map: CategoryMap
    prevalence: float | None

    @property
    def of_population(self) -> NDArray[np.float64]:
        """Calibrated probabilities of the rows that the labels, or the prevalence, speak of."""
        rows = self.scores if self.prevalence is None else self.every
        return torch.sigmoid(torch.from_numpy(self.map(rows))).numpy()


def threshold(
    source: Any,
    labels: PartialLabels,
    rule: str = "f1",
    *,
    value: PerCategory = None,
    confidence: float | None = CONFIDENCE,
    calibration: Calibration | None = None,
    prevalence: PerCategory = None,
    test: tuple[Any, PartialLabels] | None = None,
    level: float = LEVEL,
) -> Thresholds:
    """From which logit each category is called positive.

    A row is called positive when its logit is at least the threshold. The rules, with `value`:

    - "f1", "f_beta" (beta): the best expected F-beta of calibrated probabilities. Half of the
      best F1 is the threshold; a sweep over the same rows reaches less on new ones.
    - "cost" (the cost of a missed positive over that of a false alert), "youden": likewise.
    - "sensitivity", "specificity" (the least one): by an order statistic, so that it is reached
      with `confidence`, whatever the distribution; None and how many are needed where too few
      are known. With ``confidence=None`` it is reached in expectation.
    - "precision" (the least one): cut-offs are tested from the top, so that at most
      1 − confidence of all thresholds asked for end below; it says less of those that were found.
      With ``confidence=None`` from calibrated probabilities, in expectation.
    - "alert_rate" (share of rows), "prevalence": so many rows are called.

    Args:
        source: a `TuneResult` or its `FoldArtifacts`, whose out-of-fold logits are used, or (N, C)
            logits of rows that fitted nothing. Logits of rows that fitted the head choose
            thresholds that fail on new rows.
        labels: (N, C) of these rows; joined by id and name where both sides have them.
        rule: of `RULES`.
        value: as above: a number, (C,) numbers, or a mapping from names with all of them.
        confidence: as above, in (0, 1).
        calibration: of these logits; None: fitted here, as `calibrate` does by default.
        prevalence: as in `calibrate`, where no calibration is given.
        test: rows that fitted and chose nothing: features and labels where `source` is a
            `TuneResult`, else logits and labels. What is reached is shown for these.
        level: confidence level of their intervals, in (0, 1).

    Returns:
        A threshold for each category, or None and the reason.

    Raises:
        ConfigError: If an option, or a combination of options, is not possible.
        CategoryError: If the calibration is of other categories.
        CatwiseError: As `calibrate`.

    >>> rng = np.random.default_rng(0)
    >>> z = rng.normal(size=(400, 1))
    >>> labels = PartialLabels((rng.random((400, 1)) < 1 / (1 + np.exp(2 - z))).astype(np.int8))
    >>> found = threshold(z, labels, "sensitivity", value=0.9)
    >>> found.categories[0].explanation
    'At least 90% sensitivity: at most 10% of such thresholds end below.'
    """
    check_choice("rule", rule, RULES)
    if not 0.0 < level < 1.0:
        raise ConfigError("level is a share.", found=f"{level:g}", expected="inside (0, 1)")
    held_out = read_held_out(source, labels)
    names = held_out.categories
    share = per_category(prevalence, names, "prevalence", is_whole=False)
    check_shares(share, "prevalence")
    _check_together(rule, confidence, calibration, share)
    if calibration is None:
        calibration = Calibration.of(fit_maps(held_out, "affine", share))
    elif calibration.names != names:
        raise CategoryError(
            "the calibration is of other categories than the labels.",
            found=f"{list(calibration.names)[:5]}",
            expected=f"{list(names)[:5]}",
        )
    values = per_category(value, names, "value")
    promised = confidence if rule in GUARANTEED else None
    rows = read_test(test, source, names)
    every = None if rows is None else rows.units
    found = []
    for c in range(len(names)):
        asked = _Rule(rule, None if np.isnan(values[c]) else float(values[c]), promised)
        one = _threshold_of(held_out, c, asked, calibration)
        if rows is not None and every is not None and one.threshold is not None:
            one = replace(one, reached=reached(rows, c, one.threshold, every, level))
        found.append(one)
    notes = [*held_out.notes, *(() if rows is None else rows.notes)]
    if labels.groups is not None and promised is not None:
        notes.append(_GROUPED)
    return Thresholds(tuple(found), calibration.population, tuple(notes), rows)


def _check_together(
    rule: str,
    confidence: float | None,
    calibration: Calibration | None,
    share: NDArray[np.float64],
) -> None:
    stated = bool(np.isfinite(share).any())
    if calibration is not None and stated:
        raise ConfigError(
            "a calibration has its prevalence already.",
            remedy="give prevalence to calibrate, not to threshold",
        )
    stated |= calibration is not None and any(
        one.prevalence is not None for one in calibration.categories
    )
    if rule == "precision" and confidence is not None and stated:
        raise ConfigError(
            "a precision is guaranteed among images like the labelled ones only.",
            found="a stated prevalence",
            remedy="confidence=None aims at it by calibrated probabilities",
        )


def _threshold_of(
    held_out: HeldOut, c: int, rule: _Rule, calibration: Calibration
) -> CategoryThreshold:
    """The threshold of category number c, and how far it moves without each fold."""
    own, known = calibration.categories[c], held_out.known(c)
    k = int(known.positive.sum())
    n = known.positive.size - k
    column = _Column(known.scores, known.positive, held_out.column(c), own.map, own.prevalence)
    blank = CategoryThreshold(
        own.category, rule.name, rule.value, rule.confidence, None, None, None, None, k, n
    )
    by_probability = rule.name not in {"sensitivity", "specificity", "alert_rate"} and not (
        rule.name == "precision" and rule.confidence is not None
    )
    if own.method == "none" and by_probability:
        return replace(blank, reason=own.reason)
    choice, expected = choose(column, rule)
    if choice.threshold is None:
        reason = "not_shown" if choice.needed is None else "too_few_known"
        return replace(blank, needed=choice.needed, reason=reason)
    at = np.array([choice.threshold])
    probability = float(torch.sigmoid(torch.from_numpy(own.map(at)))[0])
    low, high = _spread(held_out, column, rule, known.rows)
    return replace(
        blank,
        threshold=choice.threshold,
        probability=probability,
        expected=expected,
        fold_low=low,
        fold_high=high,
    )


def _spread(
    held_out: HeldOut, column: _Column, rule: _Rule, rows: NDArray[np.int64]
) -> tuple[float | None, float | None]:
    """The lowest and the highest threshold that the rows without one of the folds choose."""
    if held_out.fold is None:
        return None, None
    found = []
    for f in np.unique(held_out.fold):
        kept = held_out.fold != f
        inside = kept[rows]
        part = column._replace(
            scores=column.scores[inside],
            positive=column.positive[inside],
            every=column.every[kept],
        )
        if part.scores.size and (one := choose(part, rule)[0].threshold) is not None:
            found.append(one)
    return (min(found), max(found)) if found else (None, None)


def choose(column: _Column, rule: _Rule) -> tuple[Choice, float | None]:
    """What a rule chooses from the rows of one category, and what it expects to reach."""
    if rule.name in GUARANTEED:
        return _least(column, rule.name, rule.value or 0.0, rule.confidence)
    if rule.name in {"alert_rate", "prevalence"}:
        share, rows = rule.value, column.every
        if share is None:
            share = column.prevalence
            if share is None:
                share, rows = float(column.positive.mean()), column.scores
        choice = share_of_rows(rows, share)
        return choice, None if choice.threshold is None else share
    p = column.of_population
    expected: float | None = None
    if rule.name in {"f1", "f_beta"}:
        beta = rule.value or 1.0
        expected = best_expected_f(p, beta)
        cut = expected / (1.0 + beta**2)
    elif rule.name == "cost":
        cut = 1.0 / (1.0 + (rule.value or 1.0))
    else:
        cut = float(p.mean())
        called = p >= cut
        expected = float(p[called].sum() / p.sum() - (1.0 - p[called]).sum() / (1.0 - p).sum())
    found = column.map.lowest_at_least(float(logit(np.array(cut))))
    return Choice(None if found is None else max(found, _LOWEST)), expected


def _least(
    column: _Column, name: str, least: float, confidence: float | None
) -> tuple[Choice, float | None]:
    if name == "precision":
        if confidence is None:
            rows = column.scores if column.prevalence is None else column.every
            return expected_precision(rows, column.of_population, least)
        return least_precision(column.scores, column.positive, least, confidence), None
    above = name == "sensitivity"
    side = column.scores[column.positive if above else ~column.positive]
    choice, rank = order_statistic(side, least, confidence, above=above)
    return choice, None if not rank else 1.0 - rank / (side.size + 1.0)
