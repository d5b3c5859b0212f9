"""What a metric brings beside its kernel: its sign, and itself prepared for fixed labels."""

from __future__ import annotations

import pytest
import torch

from catwise.metrics import METRICS, Metric

CODES = torch.tensor(
    [[1, 0, 0, 1, -1, 0], [1, 1, -1, 1, -1, 1], [0, 0, -1, -1, 0, 0], [0, 1, -2, -1, 1, 0]],
    dtype=torch.int8,
)
SCORES = torch.randn(3, *CODES.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())
def test_more_is_better_of_the_signed_score(metric: Metric) -> None:
    """Right logits score better than wrong ones."""
    side = torch.where(CODES == 1, 3.0, -3.0)
    right, wrong = (metric.sign * metric.prepare(CODES)(logits) for logits in (side, -side))
    assert bool((right > wrong)[[0, 3]].all())


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())
def test_prepared_scores_are_the_kernel_s(metric: Metric) -> None:
    """Of many sets of scores at once; NaN without both classes, also for means over rows."""
    found = metric.prepare(CODES)(SCORES)
    assert found.shape == (3, 4)
    assert found.dtype == torch.float64
    assert found[:, 1:3].isnan().all()
    for scores, values in zip(SCORES, found, strict=True):
        expected = metric.columns(scores, CODES)[[0, 3]]
        torch.testing.assert_close(values[[0, 3]], expected.double())


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())
def test_an_offset_is_added_first(metric: Metric) -> None:
    """It is one for all sets of scores."""
    score, offset = metric.prepare(CODES), SCORES[0]
    torch.testing.assert_close(score(SCORES, offset=offset), score(SCORES + offset), equal_nan=True)


def test_a_metric_of_one_s_own_is_prepared() -> None:
    """By its kernel alone."""
    spread = Metric(
        "spread", "Spread", lambda scores, codes: scores.std(-1).double() + 0 * codes[..., 0]
    )
    assert spread.sign == 1.0
    assert spread.prepare(CODES)(SCORES[0])[[0, 3]].tolist() == SCORES[0].std(-1)[[0, 3]].tolist()
