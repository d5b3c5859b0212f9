"""An offset that a ranking plan adds to the scores before it ranks them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from catwise.errors import ShapeError
from catwise.metrics import RankingPlan


def case(seed: int = 0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1, 2, size=(20, 60)).astype(np.int8)
    scores = torch.from_numpy(rng.integers(-8, 8, size=(3, 20, 60)) / 4.0)
    offset = torch.from_numpy(rng.integers(-8, 8, size=(20, 60)) / 4.0)
    return RankingPlan(codes), scores, offset


@pytest.mark.parametrize("name", ["average_precision", "auroc"])
def test_offset_is_added_before_ranking(name: str) -> None:
    """As if the scores had been added up by the caller; half precision is widened first."""
    plan, scores, offset = case()
    metric = getattr(plan, name)
    wanted = metric(scores + offset)
    assert torch.equal(metric(scores, offset=offset), wanted)
    narrow = metric(scores.to(torch.bfloat16), offset=offset.float())
    torch.testing.assert_close(narrow, metric(scores.float() + offset.float()), rtol=0, atol=0)
    assert not torch.equal(wanted, metric(scores))


def test_an_offset_of_another_shape_is_refused() -> None:
    """The error gives both shapes."""
    plan, scores, offset = case()
    with pytest.raises(ShapeError, match="offset does not fit"):
        plan.auroc(scores, offset=offset[:, :7])
    with pytest.raises(ShapeError, match="rows_first=True"):
        plan.auroc(scores.mT, offset=offset, rows_first=True)
