"""What unknown and uncertain labels count as when something is fitted.

Metrics never see a policy: they use hard known labels only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from catwise.errors import ConfigError, check_choice, nearest
from catwise.labels.codes import POSITIVE, UNCERTAIN, UNKNOWN
from catwise.labels.core import PartialLabels
from catwise.labels.draws import category_keys, draws, row_keys, uniform

Uncertain: TypeAlias = "Literal['unknown', 'negative', 'positive'] | tuple[float, float]"

_WORDS = {
    "unknown": "are left out",
    "negative": "count as negative",
    "positive": "count as positive",
}


@dataclass(frozen=True, eq=False)
class Targets:
    """What a fit aims at; ``target, weight = make_targets(labels)`` takes it apart.

    Attributes:
        target: (N, C) float32 in [0, 1]; 0 where the weight is 0.
        weight: (N, C) float32: 1 counts, 0 does not.
        description: what the policy did, for reports.
    """

    target: NDArray[np.float32]
    weight: NDArray[np.float32]
    description: str

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return iter((self.target, self.weight))


@dataclass(frozen=True, slots=True)
class LabelPolicy:
    """What uncertain and blank labels count as when something is fitted.

    `uncertain` is "unknown" (left out), "negative", "positive", or (low, high): a soft target drawn
    evenly from that range, inside 0 to 1, for each label. `blank` is "unknown" (left out) or
    "negative", the assumption behind single-positive labels. ConfigError for all else.

    Source: U-Ignore, U-Zeros, U-Ones of Irvin et al., "CheXpert", AAAI 2019; the soft range, (0.55,
    0.85) or (0, 0.3), of Pham et al., "Interpreting chest X-rays via CNNs that exploit hierarchical
    disease dependencies and uncertainty labels", Neurocomputing 437, 2021.

    >>> str(LabelPolicy(uncertain=(0.55, 0.85)))
    'Uncertain labels get soft targets between 0.55 and 0.85; unknown labels are left out.'
    """

    uncertain: Uncertain = "unknown"
    blank: Literal["unknown", "negative"] = "unknown"

    def __post_init__(self) -> None:
        object.__setattr__(self, "uncertain", _checked_uncertain(self.uncertain))
        check_choice("blank", self.blank, ("unknown", "negative"))

    def __str__(self) -> str:
        if isinstance(self.uncertain, str):
            uncertain = _WORDS[self.uncertain]
        else:
            uncertain = "get soft targets between {:g} and {:g}".format(*self.uncertain)
        return f"Uncertain labels {uncertain}; unknown labels {_WORDS[self.blank]}."

    def to_dict(self) -> dict[str, Any]:
        """The policy, JSON-ready."""
        soft = not isinstance(self.uncertain, str)
        return {"uncertain": list(self.uncertain) if soft else self.uncertain, "blank": self.blank}


def _checked_uncertain(value: Any) -> Uncertain:
    if isinstance(value, str):
        if value in _WORDS:
            return value  # type: ignore[return-value]
        raise ConfigError(
            "uncertain labels cannot count as that.",
            found=f"uncertain={value!r}{nearest(value, _WORDS)}",
            expected="'unknown', 'negative', 'positive' or a range such as (0.55, 0.85)",
        )
    if isinstance(value, Sequence) and [isinstance(end, Real) for end in value] == [True, True]:
        low, high = (float(end) for end in value)
        if 0 <= low <= high <= 1:
            return low, high
    raise ConfigError(
        "the soft range of uncertain labels must lie inside 0 to 1.",
        found=f"uncertain={value!r}",
        expected="(low, high) such as (0.55, 0.85)",
    )


def make_targets(
    labels: PartialLabels, policy: LabelPolicy | None = None, seed: int = 0
) -> Targets:
    """Targets and weights for fitting, (N, C) float32 each, and a sentence for reports.

    `policy` says what unknown and uncertain labels count as; None: both are left out. `seed` is
    that of the draws from a soft range, which are keyed by category name and row id.

    >>> from catwise.labels import PartialLabels
    >>> labels = PartialLabels([[1, -2, -1]])
    >>> made = make_targets(labels, LabelPolicy(uncertain="positive"))
    >>> made.target, made.weight
    (array([[1., 1., 0.]], dtype=float32), array([[1., 1., 0.]], dtype=float32))
    >>> print(made.description)
    Uncertain labels count as positive; unknown labels are left out. (1 uncertain, 1 unknown of 3)
    """
    policy = LabelPolicy() if policy is None else policy
    target = np.zeros(labels.shape, dtype=np.float32)
    weight = np.full(labels.shape, float(policy.blank == "negative"), dtype=np.float32)
    soft = not isinstance(policy.uncertain, str)
    keys = row_keys(labels) if soft else np.empty(0, dtype=np.uint64)
    categories = category_keys(seed, "soft_targets", labels.categories)
    n_unknown = labels.n_rows * labels.n_categories
    n_uncertain = 0
    for start, codes in labels.blocks():
        rows = slice(start, start + len(codes))
        target[rows] = codes == POSITIVE
        weight[rows][codes >= 0] = 1.0
        row, column = np.nonzero(codes == UNCERTAIN)
        n_unknown -= int(np.count_nonzero(codes != UNKNOWN))
        n_uncertain += len(row)
        weight[rows][row, column] = float(policy.uncertain != "unknown")
        if not isinstance(policy.uncertain, str):
            low, high = policy.uncertain
            drawn = uniform(draws(keys[rows][row], categories[column]))
            target[rows][row, column] = low + (high - low) * drawn
        elif policy.uncertain == "positive":
            target[rows][row, column] = 1.0
    n_entries = labels.n_rows * labels.n_categories
    counted = f"({n_uncertain:,} uncertain, {n_unknown:,} unknown of {n_entries:,})"
    return Targets(target, weight, f"{policy} {counted}")
