"""Records of every kind as one list of changes: what test rows say, else what chose."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from catwise.reporting.summary import is_loss, outcome_of


class Change(NamedTuple):
    """One category before and after.

    Attributes:
        category: name.
        number: its place among the records.
        before: score of the original head, or None.
        after: score of the new one, or None.
        gain: after − before.
        low: lower end of the gain's interval, or None.
        high: upper end.
        outcome: "better", "worse", or "" where neither is shown.
        n_positive: known positives of the rows that scored, or None.
    """

    category: str
    number: int
    before: float | None
    after: float | None
    gain: float | None
    low: float | None
    high: float | None
    outcome: str
    n_positive: int | None

    @property
    def tone(self) -> str:
        """How it is drawn."""
        return self.outcome or "same"


def changes(records: Iterable[Mapping[str, Any]]) -> list[Change]:
    """Changes of records of a run, or of the categories of an evaluation, in their order.

    >>> row = {"category": "cat", "before": 0.5, "after": 0.75, "difference": 0.25,
    ...        "difference_low": 0.125, "difference_high": 0.375, "outcome": "better"}
    >>> changes([row])[0].tone
    'better'
    """
    return [_change(number, record) for number, record in enumerate(records)]


def _change(number: int, record: Mapping[str, Any]) -> Change:
    if "test_before" in record:
        names = ("test_before", "test_after", "test_difference", "test_low", "test_high")
        n_positive, outcome = record.get("n_positive_test"), outcome_of(record)
    elif "difference" in record:
        names = ("before", "after", "difference", "difference_low", "difference_high")
        n_positive, found = record.get("n_positive"), str(record.get("outcome"))
        outcome = found if found in {"better", "worse"} else ""
    else:
        names = ("before", "after", "gain", "gain_low", "gain_high")
        n_positive = record.get("n_positive_valid")
        if n_positive is None:
            n_positive = record.get("n_positive_train")
        outcome = outcome_of(record)
    before, after, gain, low, high = (_finite(record.get(name)) for name in names)
    name = str(record.get("category", number))
    return Change(name, number, before, after, gain, low, high, outcome, n_positive)


def _finite(value: Any) -> float | None:
    """A number, or None where it is NaN."""
    return None if value is None or not math.isfinite(value) else float(value)


def by_gain(found: Iterable[Change], metric: object) -> list[Change]:
    """What gained most first; what has no gain is left out."""
    sign = 1.0 if is_loss(metric) else -1.0
    scored = [one for one in found if one.gain is not None and one.before is not None]
    return sorted(scored, key=lambda one: (sign * (one.gain or 0.0), one.number))
