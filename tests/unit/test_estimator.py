"""The scikit-learn classifier: its own checks, and what partly known labels add."""

from __future__ import annotations

import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from catwise import CategoryWiseClassifier, Head
from catwise.errors import CatwiseError, ConfigError, LabelError, ShapeError
from catwise.labels import PartialLabels
from catwise.testing import Task, make_task
from catwise.tuning import tune
from catwise.tuning.presets.default_config import DefaultConfig

FAILING = {
    "check_classifier_multioutput": "multi-label shape: it indexes classes_ as one array for all "
    "columns; here it is a list of [0, 1], one for each, as several of scikit-learn's own have it: "
    "with one array scorers would take two categories for the two classes of one",
}


@parametrize_with_checks([CategoryWiseClassifier()], expected_failed_checks=lambda _: FAILING)
def test_of_scikit_learn(estimator, check) -> None:
    """Every check of scikit-learn for classifiers but those of `FAILING`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the checks cause some on purpose
        check(estimator)


@pytest.fixture(scope="module")
def task() -> Task:
    return make_task(known=0.5, known_valid=0.7, seed=5)


@pytest.fixture(scope="module")
def data(task: Task) -> SimpleNamespace:
    """Arrays in which NaN is unknown."""
    parts = {}
    for name in ("train", "valid", "test"):
        part = getattr(task, name)
        codes = part.labels.codes.astype(float)
        parts[name] = np.asarray(part.features.values), np.where(codes < 0, np.nan, codes)
    return SimpleNamespace(**parts)


def auroc(logits: np.ndarray, truth: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, logits, average="macro"))


def test_partly_known_labels(data: SimpleNamespace) -> None:
    """NaN is unknown: the fit is of use, its shapes are those of multi-label targets."""
    model = CategoryWiseClassifier().fit(*data.train, validation=data.valid)
    z, truth = data.test
    assert auroc(model.decision_function(z), truth) > 0.85
    assert model.decision_function(z).shape == model.predict_proba(z).shape == truth.shape
    assert ((model.predict_proba(z) > 0.5) == model.predict(z)).all()
    assert model.n_features_in_ == 32
    assert [one.tolist() for one in model.classes_] == [[0, 1]] * 6
    assert model.categories_.tolist() == [str(i) for i in range(6)]
    assert 0.5 < model.score(z, truth) <= 1
    assert model.score(*data.valid) != model.score(*data.train)


def test_it_is_tune(task: Task, data: SimpleNamespace) -> None:
    """With a head the very numbers of `tune`; the head that was given is not changed."""
    head = task.head.replace(categories=None)
    before = head.digest
    model = CategoryWiseClassifier(head, metric="auroc", random_state=3)
    model.fit(*data.train, validation=data.valid)
    labels = [PartialLabels.from_array(y, encoding="nan") for _, y in (data.train, data.valid)]
    pairs = [(z, one) for (z, _), one in zip((data.train, data.valid), labels, strict=True)]
    result = tune(head, *pairs, metric="auroc", seed=3)
    assert model.head_.digest == result.head.digest
    assert head.digest == before
    gap = np.abs(model.decision_function(data.test[0]) - result.head.logits(data.test[0]).numpy())
    assert gap.max() < 1e-5
    assert model.result_.summary["n_categories"] == 6
    assert CategoryWiseClassifier(head, preset="paper", methods=("bp_bce",)).fit(
        *data.train, validation=data.valid
    ).result_.config["preset"] == "paper"  # fmt: skip


def test_validation_rows(data: SimpleNamespace) -> None:
    """Given, or a share of the rows, whole groups and always the same; not both."""
    z, y = (np.concatenate(parts) for parts in zip(data.train, data.valid, strict=True))
    groups = np.arange(len(z)) // 3
    model = CategoryWiseClassifier(validation_fraction=0.3)
    first = model.fit(z, y, groups=groups)
    n_valid = first.result_.folds.fold.size
    assert 0.27 < n_valid / len(z) < 0.33
    assert n_valid % 3 == 0
    again = clone(model).fit(z, y, groups=groups)
    assert again.head_.digest == first.head_.digest
    assert clone(model).set_params(random_state=1).fit(z, y).head_.digest != first.head_.digest
    with pytest.raises(ConfigError, match="validation rows are given"):
        model.fit(z, y, validation=data.valid)
    for wrong in (0, 1.5, "a half"):
        with pytest.raises(ConfigError, match="validation_fraction"):
            clone(model).set_params(validation_fraction=wrong).fit(z, y)
    with pytest.raises(ShapeError, match="pair"):
        CategoryWiseClassifier().fit(z, y, validation=z)


def test_clone_pickle_pipeline(task: Task, data: SimpleNamespace) -> None:
    """A head is a parameter as any other; a fitted pipeline comes back whole."""
    model = CategoryWiseClassifier(task.head.replace(categories=None), config=DefaultConfig())
    twin = clone(model)
    assert twin.head.digest == model.head.digest
    assert twin.get_params().keys() == model.get_params().keys()
    with pytest.raises(NotFittedError):
        twin.predict(data.test[0])
    pipe = make_pipeline(StandardScaler(), CategoryWiseClassifier()).fit(*data.valid)
    again = pickle.loads(pickle.dumps(pipe))  # noqa: S301  # our own
    assert (again.predict_proba(data.test[0]) == pipe.predict_proba(data.test[0])).all()
    assert auroc(pipe.decision_function(data.test[0]), data.test[1]) > 0.8


def test_searches_and_scorers(data: SimpleNamespace) -> None:
    """Over partly known labels by its own score, over complete ones by scikit-learn's, too."""
    grid = {"metric": ["average_precision", "auroc"], "random_state": [0]}
    found = GridSearchCV(CategoryWiseClassifier(), grid, cv=KFold(3)).fit(*data.valid)
    assert np.isfinite(found.cv_results_["mean_test_score"]).all()
    assert found.best_estimator_.head_.n_categories == 6
    z, truth = data.test
    for columns in (slice(0, 6), slice(0, 2)):  # of two categories, too
        scores = cross_val_score(
            CategoryWiseClassifier(), z, truth[:, columns], cv=KFold(3), scoring="roc_auc"
        )
        assert scores.min() > 0.8
    grouped = cross_val_score(
        CategoryWiseClassifier(), *data.valid, cv=GroupKFold(3), groups=np.arange(200) // 2
    )
    assert np.isfinite(grouped).all()


def test_losses_are_negated(data: SimpleNamespace) -> None:
    """Of a score more is better, whatever the metric; categories of one class have none."""
    model = CategoryWiseClassifier(metric="log_loss").fit(*data.train, validation=data.valid)
    assert -1 < model.score(*data.test) < 0
    z, y = data.test
    model = CategoryWiseClassifier().fit(*data.train, validation=data.valid)
    assert np.isnan(model.score(z, np.zeros_like(y)))
    with pytest.raises(ConfigError, match="sample_weight"):
        model.score(z, y, np.ones(len(z)))


def test_tables_with_names(task: Task, data: SimpleNamespace) -> None:
    """Columns of a table are named: those of Z must stay, those of Y find the head's rows."""
    pandas = pytest.importorskip("pandas")
    names = list(task.head.categories)
    z = pandas.DataFrame(data.valid[0], columns=[f"z{i}" for i in range(32)])
    y = pandas.DataFrame(data.valid[1], columns=names)[names[::-1]]
    model = CategoryWiseClassifier(task.head).fit(z, y)
    assert model.feature_names_in_.tolist() == list(z.columns)
    assert model.categories_.tolist() == names[::-1]
    assert model.head_.categories == tuple(names[::-1])
    few = CategoryWiseClassifier(task.head).fit(z, y[names[:2]])
    assert few.predict(z).shape == (200, 2)
    assert model.score(z, y) == pytest.approx(model.score(z, y[names]))
    with pytest.raises(ValueError, match="feature names"):
        model.predict(z[z.columns[::-1]])
    bare = CategoryWiseClassifier(task.head).fit(*data.valid)
    assert bare.categories_.tolist() == names


def test_targets_of_one_dimension() -> None:
    """Two classes are one category, three are three; probabilities of a row add up to one."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(300, 6))
    two = np.where(z[:, 0] + 0.3 * rng.normal(size=300) > 0, "yes", "no")
    model = CategoryWiseClassifier().fit(z[:200], two[:200])
    assert model.classes_.tolist() == ["no", "yes"]
    assert model.head_.n_categories == 1
    assert model.decision_function(z).shape == (300,)
    assert model.score(z[200:], two[200:]) > 0.85
    three = z[:, :3].argmax(axis=1)
    model = CategoryWiseClassifier().fit(z[:200], three[:200], validation=(z[200:], three[200:]))
    assert model.score(z, three) > 0.9
    assert np.allclose(model.predict_proba(z).sum(axis=1), 1)
    with pytest.raises(ShapeError, match="one class a row"):
        model.fit(z, three, validation=(z, np.eye(3)[three]))


def test_what_is_refused(task: Task, data: SimpleNamespace) -> None:
    """Values of no meaning, nothing known, another width, another number of categories."""
    z, y = data.valid
    wrong = y.copy()
    wrong[3, 2] = 2
    with pytest.raises(LabelError, match="2"):
        CategoryWiseClassifier().fit(z, wrong)
    with pytest.raises(LabelError, match="known"):
        CategoryWiseClassifier().fit(z, np.full_like(y, np.nan))
    with pytest.raises(CatwiseError):
        CategoryWiseClassifier(task.head).fit(z[:, :5], y)
    with pytest.raises(CatwiseError):
        CategoryWiseClassifier(task.head).fit(z, y[:, :4])
    with pytest.raises(ConfigError, match="preset"):
        CategoryWiseClassifier(preset="defualt").fit(z, y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        CategoryWiseClassifier().fit(z, y[:9])
    with pytest.raises(ValueError, match="contains NaN"):
        CategoryWiseClassifier().fit(np.where(z > 1, np.nan, z), y)


def test_a_head_of_its_own_precision(data: SimpleNamespace) -> None:
    """Features of float32 give a head of float32, of float64 one of float64."""
    z, y = data.valid
    for dtype in (np.float32, np.float64):
        model = CategoryWiseClassifier().fit(z.astype(dtype), y)
        assert str(model.head_.dtype) == f"torch.{np.dtype(dtype).name}"
    assert isinstance(model.head_, Head)
