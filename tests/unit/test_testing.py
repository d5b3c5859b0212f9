"""make_task plants what it promises; assert_same_head sees every difference."""

from __future__ import annotations

import numpy as np
import pytest

from catwise.errors import ConfigError
from catwise.heads import Head
from catwise.metrics import evaluate
from catwise.testing import assert_same_head, make_task


def auroc(head: Head, features: object, labels: object) -> float:
    result = evaluate(head, (features, labels), metrics="auroc")
    return float(result.means["auroc"]["macro"])


def test_same_arguments_give_the_same_task() -> None:
    """Head, features and labels depend on the arguments alone."""
    one, two, other = make_task(seed=3), make_task(seed=3), make_task(seed=4)
    assert_same_head(one.head, two.head)
    assert np.array_equal(one.train.features.values, two.train.features.values)
    assert one.train.labels == two.train.labels
    assert one.valid.labels == two.valid.labels
    assert one.head.digest != other.head.digest


def test_shapes_names_and_ids() -> None:
    """Every part has the size, the names and the ids that were asked for."""
    task = make_task(30, 20, 10, 5, 3, groups=4, seed=0)
    for split, n_rows in ((task.train, 30), (task.valid, 20), (task.test, 10)):
        assert split.features.shape == (n_rows, 5)
        assert split.labels.shape == split.truth.shape == (n_rows, 3)
        assert split.labels.categories == task.head.categories
        assert split.labels.ids.tolist() == split.features.ids.tolist()
        assert split.labels.groups.tolist()[3:5] == [split.labels.groups[0], split.labels.groups[4]]


def test_training_labels_are_dropped_and_some_are_wrong() -> None:
    """About the share asked for is known, and about the share asked for of it is wrong."""
    task = make_task(2_000, known=0.25, wrong=0.1, seed=0)
    codes, truth = task.train.labels.codes, task.train.truth.codes
    known = codes >= 0
    assert known.mean() == pytest.approx(0.25, abs=0.02)
    assert (codes != truth)[known].mean() == pytest.approx(0.1, abs=0.02)


def test_fresh_labels_are_correct_and_the_test_complete() -> None:
    """Validation labels are dropped when asked, never wrong; test labels are the truth."""
    task = make_task(known_valid=0.5, seed=0)
    codes, truth = task.valid.labels.codes, task.valid.truth.codes
    assert 0.4 < (codes >= 0).mean() < 0.6
    assert bool(((codes == truth) | (codes < 0)).all())
    assert task.test.labels == task.test.truth


def test_the_head_has_memorised_its_training_rows() -> None:
    """Known training labels are ranked much better than fresh ones, but those not by chance."""
    task = make_task(seed=0)
    fresh = auroc(task.head, *task.test.pair)
    assert fresh > 0.7
    assert auroc(task.head, *task.train.pair) > fresh + 0.1


def test_memorisation_grows_with_its_option() -> None:
    """Without it the features do not know the training labels."""
    scores = [
        auroc(task.head, *task.train.pair)
        for task in (make_task(known=0.1, memorised=share, seed=0) for share in (0.0, 1.0))
    ]
    assert scores[0] < scores[1]


def test_signal_is_there_to_be_found() -> None:
    """A fit on true fresh labels ranks the test rows far better than the head."""
    from sklearn.linear_model import LogisticRegression

    task = make_task(known=0.1, seed=0)
    z = task.valid.features.values
    fits = [LogisticRegression().fit(z, y) for y in task.valid.truth.codes.T]
    head = Head(
        np.stack([fit.coef_[0] for fit in fits]),
        np.stack([fit.intercept_[0] for fit in fits]),
        categories=task.head.categories,
    )
    assert auroc(head, *task.test.pair) > auroc(task.head, *task.test.pair) + 0.05


def test_impossible_tasks_are_refused() -> None:
    """Sizes under 1 and shares outside 0 to 1 are named."""
    with pytest.raises(ConfigError, match="n_train >= 1"):
        make_task(n_train=0)
    with pytest.raises(ConfigError, match="0 <= known <= 1"):
        make_task(known=1.5)


def head(**changes: object) -> Head:
    given = {"weight": [[1.0, 2.0], [3.0, 4.0]], "bias": [0.0, 1.0], "categories": ["cat", "dog"]}
    given |= changes
    return Head(given["weight"], given["bias"], categories=given["categories"])


def test_equal_heads_pass() -> None:
    """The same numbers and names pass; what the heads were fitted on does not count."""
    assert_same_head(head(), head().replace(fitted_on=np.array([1], dtype=np.uint64)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": [[1.0, 2.0], [3.0, 4.5]]}, "weight of 'dog': by 0.5"),
        ({"bias": [0.25, 1.0]}, "bias of 'cat': by 0.25"),
        ({"bias": None}, "only one of the heads has a bias"),
        ({"categories": ["dog", "cat"]}, "categories"),
        ({"weight": np.array([[1.0, 2.0], [3.0, 4.0]])}, "float64"),
        ({"weight": [[1.0], [3.0]]}, "weight"),
    ],
)
def test_a_difference_is_named(changes: dict[str, object], message: str) -> None:
    """Every kind of difference fails, with its place."""
    with pytest.raises(AssertionError, match=message):
        assert_same_head(head(**changes), head())


def test_tolerances() -> None:
    """A difference inside the tolerance passes, whatever the dtype."""
    near = head(weight=np.array([[1.0, 2.0], [3.0, 4.001]]))
    assert_same_head(near, head(), rtol=1e-3)
    assert_same_head(near, head(), atol=2e-3)
    with pytest.raises(AssertionError):
        assert_same_head(near, head(), rtol=1e-5)
