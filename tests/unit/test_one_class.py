"""Categories of which only one class is known: means over labels are defined, ranks are not."""

from __future__ import annotations

import numpy as np
import pytest

from catwise import Head, PartialLabels, compare_heads, evaluate
from catwise.metrics import METRICS, average_precision, brier, ece, log_loss
from catwise.metrics.bootstrap import bootstrap_replicates

LOGITS = np.array([[2.0, 1.0, 0.0, 1.0], [0.0, -1.0, 1.0, -1.0], [1.0, 3.0, 2.0, 0.5]])
LABELS = PartialLabels([[1, 0, -1, 1], [1, -1, -1, 0], [1, 0, -1, 1]])
MEANS = ("brier", "log_loss", "ece")


def probability(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def test_per_category_values() -> None:
    """They are the plain means over the known labels; without a label there is none."""
    p = probability(LOGITS)
    squares = [np.mean((1 - p[:, 0]) ** 2), np.mean(p[[0, 2], 1] ** 2)]
    np.testing.assert_allclose(brier(LOGITS, LABELS)[:2], squares)
    losses = [np.mean(-np.log(p[:, 0])), np.mean(-np.log(1 - p[[0, 2], 1]))]
    np.testing.assert_allclose(log_loss(LOGITS, LABELS)[:2], losses)
    gaps = [np.mean(1 - p[:, 0]), np.mean(p[[0, 2], 1])]
    np.testing.assert_allclose(ece(LOGITS, LABELS)[:2], gaps)
    for metric in (brier, log_loss, ece):
        assert metric(LOGITS, LABELS).isnan().tolist() == [False, False, True, False]
    assert average_precision(LOGITS, LABELS).isnan().tolist() == [True, True, True, False]


@pytest.mark.parametrize("value", [1, 0])
def test_micro_of_one_class(value: int) -> None:
    """Labels of one class pooled have them as well."""
    labels = PartialLabels(np.full(LOGITS.shape, value))
    wrong = probability(-LOGITS if value else LOGITS)
    assert METRICS["brier"].micro(LOGITS, labels) == pytest.approx(np.mean(wrong**2))
    assert METRICS["log_loss"].micro(LOGITS, labels) == pytest.approx(np.mean(-np.log(1 - wrong)))
    assert METRICS["ece"].micro(LOGITS, labels) == pytest.approx(np.mean(wrong))
    assert np.isnan(METRICS["auroc"].micro(LOGITS, labels))


def test_an_evaluation_with_one_class() -> None:
    """Means cover what has a value; three rows give no interval; reasons are those of ranks."""
    names = [*MEANS, "auroc", "f1"]
    result = evaluate(Head(np.eye(4)), (LOGITS, LABELS), metrics=names, force=True)
    for name in MEANS:
        assert result.means[name]["n_categories"] == 3
        assert np.isfinite([result.means[name]["macro"], result.means[name]["micro"]]).all()
        assert np.isnan(result.intervals[name].macro).all()
    assert result.means["auroc"]["n_categories"] == result.means["f1"]["n_categories"] == 1
    reasons = ("no_known_negative", "no_known_positive", "no_known_label", None)
    assert result.reasons == reasons


def test_a_comparison_with_one_class() -> None:
    """Differences are there and count in the mean, as in an evaluation; they are not judged."""
    before, after = Head(np.eye(4)), Head(2.0 * np.eye(4))
    found = compare_heads(before, after, (LOGITS, LABELS), metrics=MEANS, force=True)
    sides = [evaluate(one, (LOGITS, LABELS), metrics=MEANS, force=True) for one in (before, after)]
    for name in MEANS:
        one = found.comparisons[name]
        assert one.n_scored == 3
        for side, mean in zip(sides, (one.mean_before, one.mean_after), strict=True):
            assert mean == pytest.approx(side.means[name]["macro"])
        assert one.reason[:3] == ("no_known_negative", "no_known_positive", "no_known_label")
        assert one.outcome[:3] == ("not_judged",) * 3
        assert np.isnan(one.low[:3]).all()


def test_replicates_of_one_class() -> None:
    """The two ways to resample a metric agree that it has a value."""
    (found,) = bootstrap_replicates([LOGITS], LABELS, metric="brier", n_resamples=40, seed=0)
    assert np.isfinite(found[:, [0, 1, 3]]).all()
    assert np.isnan(found[:, 2]).all()
