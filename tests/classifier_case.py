"""A head, a small model, and what is decided by their logits, for tests of classifiers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from catwise.decisions import (
    Calibration,
    CategoryCalibration,
    CategoryMap,
    CategoryThreshold,
    ConformalSets,
    Thresholds,
    calibrate,
    conformal,
    threshold,
)
from catwise.heads import Head
from catwise.labels import PartialLabels
from catwise.models.registry import load_model
from cli.fix_case import MODEL, NAMES, make_case

if TYPE_CHECKING:
    from pathlib import Path

    from catwise.models import LoadedModel

CATEGORIES = ("ant", "bee", "cat", "dog", "eel", "fox")


def made_head(n_features: int = 8, seed: int = 0) -> Head:
    """Six categories; weights are multiples of 1/8, so that sums of such products are exact."""
    random = np.random.default_rng(seed)
    weight = random.integers(-8, 9, (len(CATEGORIES), n_features)) / 8
    bias = random.integers(-8, 9, len(CATEGORIES)) / 8
    return Head(weight.astype(np.float32), bias.astype(np.float32), categories=CATEGORIES)


def exact_rows(n: int, n_features: int = 8, seed: int = 1) -> np.ndarray[Any, Any]:
    """Features that are multiples of 1/8."""
    random = np.random.default_rng(seed)
    return (random.integers(-16, 17, (n, n_features)) / 8).astype(np.float32)


def made_labels(logits: torch.Tensor, names: tuple[str, ...], seed: int = 2) -> PartialLabels:
    """Labels whose log odds are half of the logits."""
    random = np.random.default_rng(seed)
    positive = random.random(logits.shape) < 1 / (1 + np.exp(-logits.numpy() / 2))
    return PartialLabels(positive.astype(np.int8), categories=names)


def decided(head: Head, method: str = "affine") -> tuple[Calibration, Thresholds, ConformalSets]:
    """Calibration, thresholds and sets of 4,000 rows of a head."""
    logits = head.logits(exact_rows(4000, head.n_features, seed=3))
    labels = made_labels(logits, head.categories)
    calibration = calibrate(logits, labels, method=method)
    cuts = threshold(logits, labels, "sensitivity", value=0.9, calibration=calibration)
    return calibration, cuts, conformal(logits, labels)


def at(category: str, value: float | None) -> CategoryThreshold:
    """A threshold at a logit."""
    return CategoryThreshold(category, "f1", None, None, value, None, None, None, 50, 50)


def scaled(category: str, scale: float, offset: float = 0.0) -> CategoryCalibration:
    """An affine calibration."""
    return CategoryCalibration(category, "affine", CategoryMap(scale, offset), 50, 50)


def small_model(folder: Path) -> LoadedModel:
    """The network of the case of `fix`, its checkpoint and its images in a new folder."""
    make_case(folder)
    loaded = load_model(MODEL, checkpoint=folder / "net.safetensors")
    assert loaded.head is not None
    loaded.head = loaded.head.replace(categories=NAMES)
    return loaded
