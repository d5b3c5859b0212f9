"""A scikit-learn classifier whose rows are fitted one by one on the labels that are known."""

from __future__ import annotations

import warnings
from numbers import Integral
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    assert_all_finite,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from catwise.errors import ConfigError, InSampleWarning, ShapeError, check_rules
from catwise.heads import Head
from catwise.joining import match_categories
from catwise.labels import PartialLabels
from catwise.labels.partition import split_labels
from catwise.metrics import resolve_metric
from catwise.tuning.api import tune
from catwise.tuning.extending import zero_head
from catwise.tuning.presets.task import NO_VALIDATION

if TYPE_CHECKING:
    from catwise._configs import PaperConfig
    from catwise.metrics import Metric
    from catwise.tuning.account.results import TuneResult
    from catwise.tuning.presets.default_config import DefaultConfig

Floats: TypeAlias = NDArray[np.floating[Any]]
Pair: TypeAlias = tuple[Floats, PartialLabels]
_DTYPES: Final = [np.float64, np.float32]


class CategoryWiseClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # untyped
    """Fit or tune a linear layer on partly known labels, as a scikit-learn classifier.

    `fit` is :func:`catwise.tune` on features Z (N, D) and labels Y (N, C) in which NaN is unknown:
    a head that is given is tuned; without one, rows are fitted from zero. It can be cloned, put
    into a pipeline and searched over. Targets of one dimension are taken too: two classes are one
    category, more are one category each, of which the likeliest is predicted.

    Rows of `fit` count as rows that the backbone was trained on where there are validation rows
    (of other images: `fit(Z, Y, validation=(Z, Y))`, or a share of the rows by
    `validation_fraction`); else they are cross-fitted.

    Cross-validators that stratify read Y, and refuse NaN: give one that does not, such as
    `cv=KFold(5)` or `GroupKFold(5)`.

    Args:
        head: the layer to tune, as :func:`catwise.read_head` gives it, its categories in the order
            of Y's columns (or, where Y is a table with names, by name). None: fit from nothing.
        preset: "default" or "paper"; see :func:`catwise.tune`.
        metric: name in `catwise.metrics.METRICS`; chooses, and is what `score` gives.
        methods: of the preset "paper".
        validation: "fit_and_select" or "select", what validation rows are used for; None: the
            preset's own.
        validation_fraction: share of the rows that is held out as validation rows, in (0, 1), by
            groups and spread over categories; None: none.
        config: options of the preset; None: its own.
        random_state: of folds and of all that is drawn: a whole number, a generator, or None for
            numpy's global one.

    Attributes:
        head_: the fitted layer, a :class:`catwise.Head`.
        result_: records, summary, out-of-fold logits: what `tune` gave.
        categories_: (C,) names of the columns of Y; of one-dimensional targets their classes.
        classes_: C arrays [0, 1]; of one-dimensional targets the array of their classes.
        n_features_in_: D.
        feature_names_in_: names of Z's columns, where it is a table with names.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> Z = rng.normal(size=(200, 5))
    >>> Y = (Z[:, :2] > 0.5).astype(float)
    >>> Y[rng.random(Y.shape) < 0.5] = np.nan
    >>> model = CategoryWiseClassifier().fit(Z, Y)
    >>> model.predict(Z[:3]).shape, model.head_.categories
    ((3, 2), ('0', '1'))
    """

    head_: Head
    result_: TuneResult
    categories_: NDArray[Any]
    classes_: Any
    n_features_in_: int

    def __init__(
        self,
        head: Head | None = None,
        *,
        preset: str = "default",
        metric: str | Metric = "average_precision",
        methods: tuple[str, ...] | None = None,
        validation: str | None = None,
        validation_fraction: float | None = None,
        config: DefaultConfig | PaperConfig | None = None,
        random_state: Any = 0,
    ) -> None:
        self.head = head
        self.preset = preset
        self.metric = metric
        self.methods = methods
        self.validation = validation
        self.validation_fraction = validation_fraction
        self.config = config
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        tags.target_tags.multi_output = True
        return tags

    def fit(
        self, X: Any, y: Any, *, validation: tuple[Any, Any] | None = None, groups: Any = None
    ) -> CategoryWiseClassifier:
        """Fit or tune every category on its known labels.

        Args:
            X: (N, D) features, finite.
            y: (N, C) of 1, 0 and NaN (unknown), an array or a table; or (N,) classes.
            validation: the same two of images that the backbone was not trained on.
            groups: (N,) such as the patient of each row: never split over folds.

        Raises:
            ConfigError: If an option is not possible.
            LabelError: If Y holds other values, or no label is known.
            ShapeError: If Z, Y and the head do not fit together.
            CatwiseError: As :func:`catwise.tune`.
        """
        train = self._read(X, y, groups=groups)
        valid = None if validation is None else self._read(*_pair(validation), reset=False)
        if self.validation_fraction is not None:
            if valid is not None:
                raise ConfigError(
                    "validation rows are given, and a share of the others is asked for.",
                    remedy="fit(…, validation=None), or validation_fraction=None",
                )
            train, valid = _held_out(train, self.validation_fraction, _seed(self.random_state))
        head = self._start(train, valid)
        with warnings.catch_warnings():
            # it says that the backbone has memorised the images: of these nobody knows
            warnings.filterwarnings("ignore", NO_VALIDATION[:20], category=InSampleWarning)
            self.result_ = tune(
                head,
                train,
                valid,
                metric=self.metric,
                preset=self.preset,
                methods=None if self.methods is None else list(self.methods),
                validation=self.validation,
                seed=_seed(self.random_state),
                config=self.config,
            )
        rows, _ = match_categories(head.categories, train[1].categories)
        self.head_ = self.result_.head.take_categories(rows.tolist())
        if not self._is_single:
            self.categories_ = np.array(self.head_.categories, dtype=object)
        return self

    def decision_function(self, X: Any) -> Floats:
        """Logits.

        Args:
            X: (N, D) features.

        Returns:
            (N, C); of one-dimensional targets of two classes (N,), above 0 where the second class
            is the likelier.
        """
        logits = self._logits(X)
        return logits[:, 0] if self._is_single and len(self.classes_) <= 2 else logits

    def predict_proba(self, X: Any) -> Floats:
        """Probabilities.

        Args:
            X: (N, D) features.

        Returns:
            (N, C) in [0, 1], of each category by itself; of one-dimensional targets (N, classes),
            of which each row has the sum 1.
        """
        probabilities: Floats = expit(self._logits(X))
        if not self._is_single:
            return probabilities
        if len(self.classes_) == 1:
            return np.ones_like(probabilities)
        if len(self.classes_) == 2:
            return np.concatenate([1 - probabilities, probabilities], axis=1)
        return np.asarray(probabilities / probabilities.sum(axis=1, keepdims=True))

    def predict(self, X: Any) -> NDArray[Any]:
        """Decisions at a probability of 0.5.

        Args:
            X: (N, D) features.

        Returns:
            (N, C) of 0 and 1; of one-dimensional targets (N,) the likeliest class.
        """
        logits = self._logits(X)
        if not self._is_single:
            return (logits > 0).astype(np.int64)
        if len(self.classes_) > 2:
            return np.asarray(self.classes_[logits.argmax(axis=1)])
        return np.asarray(self.classes_[np.where(logits[:, 0] > 0, len(self.classes_) - 1, 0)])

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The metric's mean over categories, of known labels; larger is better (a loss is negated).

        Args:
            X: (N, D) features.
            y: (N, C) of 1, 0 and NaN. Of one-dimensional targets the score is accuracy.
            sample_weight: (N,), of one-dimensional targets alone.

        Returns:
            NaN where no category has both classes.
        """
        check_is_fitted(self)
        if self._is_single:
            return float(super().score(X, y, sample_weight))
        if sample_weight is not None:
            raise ConfigError("scores of partly known labels take no sample_weight.")
        metric = resolve_metric(self.metric)
        z, labels = self._read(X, y, reset=False)
        rows, _ = match_categories(self.categories_.tolist(), labels.categories)
        values = metric.per_category(self.head_.logits(z)[:, rows], labels).cpu().numpy()
        known = values[~np.isnan(values)]
        return float(metric.sign * known.mean()) if known.size else float("nan")

    # ------------------------------------------------------------------------- rows and columns

    @property
    def _is_single(self) -> bool:
        """Whether the targets have one dimension."""
        return self._binarizer is not None

    def _logits(self, X: Any) -> Floats:
        check_is_fitted(self)
        z = validate_data(self, X, reset=False, dtype=_DTYPES)
        return np.asarray(self.head_.logits(z).double().cpu().numpy())

    def _read(
        self, X: Any, y: Any, *, groups: Any = None, reset: bool = True
    ) -> tuple[Floats, PartialLabels]:
        """Features and labels, checked; with `reset` those that say what all others are like."""
        if y is None:
            validate_data(self, X, y)  # which says that targets are needed
        z = validate_data(self, X, reset=reset, dtype=_DTYPES, ensure_min_samples=2 if reset else 1)
        check_consistent_length(X, y, groups)
        targets = self._targets(y, reset=reset)
        if reset or self._is_single:
            names = [str(name) for name in self.categories_]
        else:
            names = _column_names(y) or [str(name) for name in self.categories_]
        given = None if groups is None else np.asarray(groups)
        return z, PartialLabels.from_array(targets, encoding="nan", categories=names, groups=given)

    def _targets(self, y: Any, *, reset: bool) -> Any:
        """(N, C) of 1, 0 and NaN; with `reset` categories and classes are taken from them."""
        values = np.asarray(y)
        classes = _as_classes(values)
        if reset:
            self._binarizer = None
            if classes is None:
                names = _column_names(y) or [str(i) for i in range(values.shape[-1])]
                self.categories_ = np.array(names, dtype=object)
                self.classes_ = [np.array([0, 1]) for _ in names]
            else:
                self._binarizer = LabelBinarizer().fit(classes)
                self.classes_ = self._binarizer.classes_
                self.categories_ = self.classes_[-1:] if len(self.classes_) <= 2 else self.classes_
        if self._binarizer is None:
            return values
        if classes is None:
            raise ShapeError(
                "validation targets are not like those of the other rows.",
                found=f"shape {values.shape}",
                expected="one class a row",
            )
        return self._binarizer.transform(classes)

    def _start(self, train: Pair, valid: Pair | None) -> Head:
        """The head that is tuned; zeros where none is given."""
        if self.head is not None:
            return self.head
        z, labels = train
        dtype = torch.float32 if z.dtype == np.float32 else torch.float64
        known = [part[1] for part in (valid, train) if part is not None]
        return zero_head(known, torch.zeros((labels.n_categories, z.shape[1]), dtype=dtype))


def _as_classes(values: NDArray[Any]) -> NDArray[Any] | None:
    """One class a row; None where the targets are of several categories, or partly known."""
    if values.ndim == 2 and values.shape[1] == 1:
        known = values[values == values]  # noqa: PLR0124  # NaN is not equal to itself
        if not np.isin(known.astype(str), ["0", "1", "0.0", "1.0", "False", "True"]).all():
            values = column_or_1d(values, warn=True)
    if values.ndim != 1:
        return None
    assert_all_finite(values, input_name="y")
    check_classification_targets(values)
    return values


def _column_names(y: Any) -> list[str] | None:
    """The names of a table's columns."""
    columns = getattr(y, "columns", None)
    return None if columns is None else [str(name) for name in columns]


def _pair(validation: Any) -> tuple[Any, Any]:
    if not (isinstance(validation, (tuple, list)) and len(validation) == 2):
        raise ShapeError(
            "validation must be a pair of features and targets.",
            found=type(validation).__name__,
            expected="fit(Z, Y, validation=(Z, Y))",
        )
    first, second = validation
    return first, second


def _held_out(train: Pair, share: Any, seed: int) -> tuple[Pair, Pair]:
    """The rows in two parts: those that stay, and the share that becomes validation rows."""
    rule = isinstance(share, (int, float)) and 0 < share < 1
    check_rules(
        "options of the classifier",
        {"validation_fraction": share},
        {"validation_fraction in (0, 1)": rule},
    )
    z, labels = train
    name = split_labels(labels, {"train": 1 - float(share), "valid": float(share)}, seed=seed)
    first, second = (np.flatnonzero(name == part) for part in ("train", "valid"))
    return (z[first], labels.take_rows(first)), (z[second], labels.take_rows(second))


def _seed(random_state: Any) -> int:
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))
