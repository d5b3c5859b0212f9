"""Made-up tasks with a planted truth, and assertions, for tests of catwise and of what uses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from catwise.errors import check_rules
from catwise.features import Features
from catwise.heads import Head
from catwise.labels import (
    NEGATIVE,
    POSITIVE,
    LabelPolicy,
    PartialLabels,
    drop_uniform,
    make_targets,
)

__all__ = ["Task", "TaskSplit", "assert_same_head", "make_task"]

_DIRECTIONS: Final = 1.1
_RIDGE: Final = 0.03
_LOGIT_SCALE: Final = 8.0
_LOGIT_SHIFT: Final = -3.0


@dataclass(frozen=True, eq=False)
class TaskSplit:
    """Rows of one split.

    Attributes:
        features: (N, D) float32 with ids.
        labels: what is known, with the same ids.
        truth: (N, C) complete and correct labels.
    """

    features: Features
    labels: PartialLabels
    truth: PartialLabels

    @property
    def pair(self) -> tuple[Features, PartialLabels]:
        """Features and what is known, as `tune` and `evaluate` take them."""
        return self.features, self.labels


@dataclass(frozen=True, eq=False)
class Task:
    """A head to repair, and the data to do it with.

    Attributes:
        head: trained the assume-negative way on the training rows.
        train: rows that features and head have memorised; few labels known.
        valid: held-out rows.
        test: held-out rows, completely and correctly labelled.
    """

    head: Head
    train: TaskSplit
    valid: TaskSplit
    test: TaskSplit


def make_task(
    n_train: int = 400,
    n_valid: int = 200,
    n_test: int = 400,
    n_features: int = 32,
    n_categories: int = 6,
    *,
    known: float = 0.3,
    known_valid: float = 1.0,
    wrong: float = 0.02,
    memorised: float = 0.5,
    prevalence: tuple[float, float] = (0.1, 0.4),
    groups: int | None = None,
    seed: int = 0,
) -> Task:
    """Draw a task with planted signal, wrong labels and memorisation.

    Every category shifts the features along a direction of its own where it is present. The
    head is a ridge regression on the training labels with unknown counted as negative. The
    training features are moved along the directions towards those same labels, so that they
    fit them too well: what a backbone does to the images that it was trained on.

    Args:
        n_train: training rows.
        n_valid: validation rows.
        n_test: test rows.
        n_features: D.
        n_categories: C; they are named "category 0", "category 1", ….
        known: share of the training labels that are known.
        known_valid: the same for the validation labels.
        wrong: share of the known training labels that are false.
        memorised: how far training features move towards the labels that the head was trained on,
            in units of the planted signal; 0: not at all.
        prevalence: lowest and highest share of positives of a category.
        groups: rows of a group (a patient) in each split; None: no groups.
        seed: of everything.

    Returns:
        The task; the same arguments give the same task.

    Raises:
        ConfigError: If a size or a share is out of range.

    >>> task = make_task(50, 20, 30, 8, 3, known=0.5, seed=1)
    >>> task.head
    Head(n_categories=3, n_features=8, bias=True, dtype=float32)
    >>> task.train.labels.shape, task.test.labels == task.test.truth
    ((50, 3), True)
    """
    _check(dict(locals()))
    generator = np.random.default_rng(seed)
    directions = generator.standard_normal((n_categories, n_features))
    directions *= _DIRECTIONS / np.linalg.norm(directions, axis=1, keepdims=True)
    positives = generator.permutation(np.linspace(*prevalence, n_categories))
    n_rows = {"train": n_train, "valid": n_valid, "test": n_test}
    truths = [_truth(name, n, positives, groups, generator) for name, n in n_rows.items()]
    values = [_features(truth, directions, generator) for truth in truths]
    labels = drop_uniform(_with_errors(truths[0], wrong, generator), known, seed=seed)
    targets = make_targets(labels, LabelPolicy(blank="negative")).target
    head = _ridge_head(values[0], targets, list(labels.categories))
    values[0] = values[0] + memorised * (targets - targets.mean(0)) @ directions
    known_labels = [labels, drop_uniform(truths[1], known_valid, seed=seed + 1), truths[2]]
    splits = [
        TaskSplit(Features(part.astype(np.float32), ids=truth.ids), kept, truth)
        for part, kept, truth in zip(values, known_labels, truths, strict=True)
    ]
    return Task(head, *splits)


def _check(options: dict[str, Any]) -> None:
    sizes = ("n_train", "n_valid", "n_test", "n_features", "n_categories")
    rules = {f"{name} >= 1": options[name] >= 1 for name in sizes}
    rules["groups >= 1"] = options["groups"] is None or options["groups"] >= 1
    for name in ("known", "known_valid", "wrong", "prevalence"):
        rules[f"0 <= {name} <= 1"] = 0 <= np.min(options[name]) <= np.max(options[name]) <= 1
    check_rules("options of a made-up task", options, rules)


def _truth(
    name: str,
    n_rows: int,
    positives: NDArray[np.float64],
    groups: int | None,
    generator: np.random.Generator,
) -> PartialLabels:
    """Complete labels with a share of positives for each category."""
    return PartialLabels(
        (generator.random((n_rows, positives.size)) < positives).astype(np.int8),
        ids=[f"{name}-{row}" for row in range(n_rows)],
        categories=[f"category {number}" for number in range(positives.size)],
        groups=[f"{name}-{row // groups}" for row in range(n_rows)] if groups else None,
    )


def _features(
    truth: PartialLabels, directions: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.float64]:
    noise = 0.5 * generator.standard_normal((truth.n_rows, directions.shape[1]))
    features: NDArray[np.float64] = noise + truth.codes @ directions
    return features


def _with_errors(
    truth: PartialLabels, wrong: float, generator: np.random.Generator
) -> PartialLabels:
    """The same labels with a share of them turned round."""
    turned = generator.random(truth.shape) < wrong
    codes = np.where(turned, POSITIVE + NEGATIVE - truth.codes, truth.codes)
    return PartialLabels(codes, truth.ids, truth.categories, truth.groups)


def _ridge_head(
    features: NDArray[np.float64], targets: NDArray[np.float32], names: list[str]
) -> Head:
    """Ridge regression on 0/1 targets, scaled to look like logits."""
    mean, average = features.mean(0), targets.mean(0)
    centred = features - mean
    gram = centred.T @ centred + _RIDGE * len(features) * np.eye(features.shape[1])
    weight = _LOGIT_SCALE * np.linalg.solve(gram, centred.T @ (targets - average)).T
    bias = _LOGIT_SHIFT + _LOGIT_SCALE * average - weight @ mean
    return Head(weight.astype(np.float32), bias.astype(np.float32), categories=names)


def assert_same_head(actual: Head, expected: Head, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Fail unless two heads have the same categories in the same order and the same numbers.

    Args:
        actual: the head under test.
        expected: what it should be.
        rtol: relative tolerance; with both 0 all numbers and dtypes must be equal.
        atol: absolute tolerance.

    Raises:
        AssertionError: With the category and the size of the largest difference.

    >>> head = Head([[1.0], [2.0]], categories=["cat", "dog"])
    >>> assert_same_head(head, head)
    >>> assert_same_head(head.replace(weight=[[1.0], [2.5]]), head)
    Traceback (most recent call last):
    AssertionError: heads differ in the weight of 'dog': by 0.5 ...
    """
    if actual.categories != expected.categories:
        raise AssertionError(
            f"heads differ in their categories: {actual.categories} against {expected.categories}"
        )
    exact = rtol == 0.0 and atol == 0.0
    for name in ("weight", "bias"):
        one, other = getattr(actual, name), getattr(expected, name)
        if (one is None) != (other is None):
            raise AssertionError(f"only one of the heads has a {name}")
        if one is None:
            continue
        _assert_same_part(name, one, other, expected.categories, exact=exact, rtol=rtol, atol=atol)


def _assert_same_part(
    name: str,
    one: torch.Tensor,
    other: torch.Tensor,
    categories: tuple[str, ...],
    *,
    exact: bool,
    rtol: float,
    atol: float,
) -> None:
    if one.shape != other.shape or (exact and one.dtype != other.dtype):
        raise AssertionError(
            f"heads differ in their {name}: {tuple(one.shape)} {one.dtype} "
            f"against {tuple(other.shape)} {other.dtype}"
        )
    a, b = one.detach().cpu().double(), other.detach().cpu().double()
    excess = (a - b).abs() - (atol + rtol * b.abs())
    if bool((excess <= 0).all()):
        return
    row = int(excess.reshape(len(categories), -1).amax(1).argmax())
    size = float((a - b).abs()[row].max())
    raise AssertionError(
        f"heads differ in the {name} of {categories[row]!r}: by {size:.3g} "
        f"(rtol={rtol:g}, atol={atol:g})"
    )
