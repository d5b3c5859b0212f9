"""A small task that tests of `tune` share, and its default result, which is made once a process."""

from __future__ import annotations

from functools import cache

import catwise
from catwise import PartialLabels
from catwise._configs import PaperConfig
from catwise.testing import Task, make_task
from catwise.tuning.presets.default_config import DefaultConfig

QUICK = PaperConfig(lr=2e-3, max_steps=60, patience=20)
SMALL = DefaultConfig(penalties=(2.5, 0.6), n_folds=3)


@cache
def task(**options) -> Task:
    """300 training, 150 validation and 400 test rows of 16 features and 5 categories."""
    return make_task(300, 150, 400, 16, 5, **options)


def tuned(made=None, **options):
    """The result of `tune` on a task."""
    made = made or task()
    return catwise.tune(made.head, made.train.pair, made.valid.pair, **options)


@cache
def default_result():
    """The default result of the task."""
    return tuned()


def mean_score(head, split, metric="average_precision"):
    """The mean over categories of a head's scores."""
    found = catwise.evaluate(head, split.pair, metrics=(metric,))
    return found.means[metric]["macro"]


def with_codes(split, codes):
    """The split's features, with other labels."""
    labels = split.labels
    return split.features, PartialLabels(codes, labels.ids, labels.categories, labels.groups)
