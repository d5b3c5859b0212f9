"""Logits are finite, wherever they are scored: given as numbers, or made by a head."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import catwise
from catwise import metrics
from catwise.errors import FeatureError
from catwise.metrics import METRICS, bootstrap_replicates, compare_logits, paired_bootstrap

CODES = np.array([[1, 0], [0, 1], [1, -1], [0, 0]] * 3, dtype=np.int8)
PLAIN = [
    "auroc", "average_precision", "best_f1", "best_f1_threshold", "brier", "ece", "f1", "log_loss",
    "precision", "recall",
]  # fmt: skip


def logits(bad: float, row: int = 2, column: int = 0) -> np.ndarray:
    values = np.linspace(-2, 2, CODES.size).reshape(CODES.shape)
    values[row, column] = bad
    return values


BAD = [(float("nan"), "hold NaN"), (float("inf"), "infinite"), (float("-inf"), "infinite")]


@pytest.mark.parametrize(("bad", "reason"), BAD)
@pytest.mark.parametrize("name", PLAIN)
def test_plain_functions(name: str, bad: float, reason: str) -> None:
    """Known or not, in numpy and torch: one error that names the place."""
    function = getattr(metrics, name)
    function(logits(0.0), CODES)
    for given in (logits(bad), torch.from_numpy(logits(bad)), torch.from_numpy(logits(bad)).half()):
        with pytest.raises(FeatureError, match=rf"{reason}(.|\n)*row 2, column 0"):
            function(given, CODES)
    with pytest.raises(FeatureError, match=rf"{reason}(.|\n)*row 2, column 1"):  # unknown
        function(logits(bad, column=1), CODES)


def test_the_list_of_plain_functions_is_whole() -> None:
    """A metric that is added is tested too."""
    assert {*PLAIN} >= {*METRICS} - {"partial_auroc"}


@pytest.mark.parametrize(("bad", "reason"), BAD)
def test_everything_that_takes_logits(bad: float, reason: str) -> None:
    """Metrics by name, pooled, compared and drawn anew."""
    good, wrong = logits(0.0), logits(bad)
    calls: list[Any] = [
        *(lambda m=m: m.per_category(wrong, CODES) for m in METRICS.values()),
        *(lambda m=m: m.micro(wrong, CODES) for m in METRICS.values()),
        lambda: compare_logits(good, wrong, CODES),
        lambda: compare_logits(wrong, good, CODES),
        lambda: paired_bootstrap(good, wrong, CODES),
        lambda: bootstrap_replicates([wrong], CODES, "auroc"),
    ]
    for call in calls:
        with pytest.raises(FeatureError, match=reason):
            call()


def test_infinite_logits_come_of_probabilities() -> None:
    """The error says where to take others."""
    with pytest.raises(FeatureError, match="before a sigmoid"):
        metrics.auroc(torch.tensor(CODES == 1).double().logit(), CODES)


HUGE = catwise.Head(torch.full((2, 1), 3e38), categories=["cat", "dog"])
FEATURES = np.array([[0.1], [-0.2], [1e3], [0.3]] * 3, dtype=np.float32)
LABELS = catwise.PartialLabels(CODES, categories=["cat", "dog"])
TWO = LABELS.take_rows([0, 1])
SMALL = HUGE.replace(weight=torch.ones(2, 1))
WHERE = r"the head gives logits that float32 cannot hold(.|\n)*inf in row 2, 'cat'"


@pytest.mark.parametrize(
    "call",
    [
        lambda data: catwise.evaluate(HUGE, data, force=True),
        lambda data: catwise.compare_heads(SMALL, HUGE, data, force=True),
        lambda data: catwise.compare_heads(HUGE, SMALL, data, force=True),
        lambda data: catwise.select({"base": SMALL, "huge": HUGE}, valid=data, force=True),
        lambda data: catwise.tune(HUGE, data, force=True),
        lambda data: catwise.tune(HUGE, (FEATURES[:2] / 2, TWO), test=data),
    ],
    ids=["evaluate", "after", "before", "select", "tune", "tune, test"],
)
@pytest.mark.filterwarnings("ignore:No validation data")
def test_what_a_head_gives(call: Any) -> None:
    """Features and weights are finite, their product is not: never a score of it."""
    with pytest.raises(FeatureError, match=WHERE):
        call((FEATURES, LABELS))


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan"), 1e39])
def test_features_are_finite_too(bad: float) -> None:
    """From Python as on the command line, and before anything is scored."""
    features = np.linspace(-1, 1, 12)[:, None]
    features[7, 0] = bad
    data = (features, LABELS)
    for call in (
        lambda: catwise.evaluate(SMALL, data),
        lambda: catwise.compare_heads(SMALL, SMALL, data),
        lambda: catwise.select({"base": SMALL, "other": SMALL}, valid=data),
        lambda: catwise.tune(SMALL, data),
    ):
        with pytest.raises(FeatureError, match="row 7"):
            call()
