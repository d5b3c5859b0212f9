"""Labels that are not missing at random: how known labels differ from the images as a whole.

Which labels are known may depend on what they are: positives are often looked for, negatives often
not written down. Known labels alone cannot tell this. With the true share of positives (the
prevalence), Bayes' theorem gives for each category

    P(known | positive) = P(positive | known) · P(known) / prevalence

and the same for negatives. Without it, a prevalence can be estimated only under an assumption about
how labels became known, which has to be named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catwise._arrays import as_numpy
from catwise.errors import (
    CategoryError,
    ConfigError,
    FeatureError,
    LabelError,
    ShapeError,
    check_choice,
    nearest,
)
from catwise.labels.core import PartialLabels
from catwise.labels.reasons import explain

Z: Final = 1.959963984540054  # two-sided 95% of the normal distribution
TOP_Z: Final = 4.0
"""Standard deviations of the lower bound by which the cut is chosen: with fewer, one of very many
cuts looks better than it is by chance (in simulations the estimate came out a tenth too low)."""
MIN_TOP: Final = 10
"""Known positives that the highest scored images must hold to tell the label frequency."""

ASSUMPTIONS: Final = {
    "scar": "Selected completely at random: every positive had the same chance to become a known "
    "positive, whatever its image looks like (Elkan & Noto, KDD 2008).",
}
"""Name → what it says."""

VERDICTS: Final = {
    "no_known_label": explain("no_known_label"),
    "not_identified": (
        "No prevalence is given: from known labels alone it cannot be told whether positives or "
        "negatives became known more often."
    ),
    "impossible": (
        "More labels of one class are known than images of it should be there: the prevalence is "
        "not that of these images, or labels are wrong."
    ),
    "as_at_random": (
        "The known labels have the given prevalence, as far as their number can tell: no sign of "
        "a bias."
    ),
    "positives_favoured": "Positives became known more often than negatives.",
    "negatives_favoured": "Negatives became known more often than positives.",
}
"""Verdict → what it means."""


def selection_bias(labels: PartialLabels, prevalence: Any = None) -> list[dict[str, Any]]:
    """Compare the known labels of each category with a true prevalence.

    Args:
        labels: (N, C); uncertain labels count as unknown.
        prevalence: the true share of positives of each category among images like these, inside
            (0, 1): a mapping name → share, which may leave categories out, or an array (C,), or one
            number for all. NaN, None or absent: not given for that category. Not the share among
            known labels.

    Returns:
        For each category a JSON-ready dict: "category", "index", "known", "positive", "negative",
        "share_known" (of all rows), "share_positive" (of the known; None where none is),
        "prevalence", "known_given_positive" and "known_given_negative" (None without a prevalence;
        not cut, so over 1 where the prevalence does not fit), "ratio" of the two (None where the
        second is 0), "verdict" (a key of `VERDICTS`) and "explanation". A bias is said where the
        share of positives differs from the prevalence by more than 1.96 standard deviations of
        labels that became known at random; among many categories one in twenty does so by chance.

    Raises:
        CategoryError: If the mapping names a category that is not there.
        ShapeError: If an array does not fit.
        ConfigError: If a prevalence is not inside (0, 1).

    Source: Little and Rubin, "Statistical Analysis with Missing Data", for the terms; Bayes'
    theorem.

    >>> from catwise.labels import PartialLabels
    >>> labels = PartialLabels([[1]] * 300 + [[0]] * 300 + [[-1]] * 400, categories=["cat"])
    >>> row = selection_bias(labels, {"cat": 0.4})[0]
    >>> row["known_given_positive"], row["known_given_negative"], row["verdict"]
    (0.75, 0.5, 'positives_favoured')
    """
    given = _prevalence(labels, prevalence, complete=False)
    counts = labels.counts()
    rows = []
    for j, name in enumerate(labels.categories):
        positive, negative = int(counts.positive[j]), int(counts.negative[j])
        pi = None if np.isnan(given[j]) else float(given[j])
        rows.append({"category": name, "index": j, **_bias(labels.n_rows, positive, negative, pi)})
    return rows


def _bias(n_rows: int, positive: int, negative: int, pi: float | None) -> dict[str, Any]:
    known = positive + negative
    of_positive = of_negative = ratio = None
    if pi is not None and n_rows:
        of_positive, of_negative = positive / (n_rows * pi), negative / (n_rows * (1 - pi))
        ratio = of_positive / of_negative if of_negative else None
    verdict = _verdict(n_rows, positive, negative, pi)
    return {
        "known": known,
        "positive": positive,
        "negative": negative,
        "share_known": known / n_rows if n_rows else 0.0,
        "share_positive": positive / known if known else None,
        "prevalence": pi,
        "known_given_positive": of_positive,
        "known_given_negative": of_negative,
        "ratio": ratio,
        "verdict": verdict,
        "explanation": VERDICTS[verdict],
    }


def _verdict(n_rows: int, positive: int, negative: int, pi: float | None) -> str:
    known = positive + negative
    if not known:
        return "no_known_label"
    if pi is None:
        return "not_identified"
    spread = Z * np.sqrt(n_rows * pi * (1 - pi))
    if positive > n_rows * pi + spread or negative > n_rows * (1 - pi) + spread:
        return "impossible"
    beyond = positive - known * pi
    if abs(beyond) <= Z * np.sqrt(known * pi * (1 - pi)):
        return "as_at_random"
    return "positives_favoured" if beyond > 0 else "negatives_favoured"


def inverse_propensity_weights(
    labels: PartialLabels,
    prevalence: Any,
    *,
    stabilised: bool = True,
    missing: Literal["error", "nan", "one"] = "error",
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights with which the known labels of each category have the given prevalence.

    They are 1 / P(known | class), times P(known) where stabilised. They set the balance of the two
    classes right; that the known positives look like all positives, and the known negatives like
    all negatives, remains assumed.

    Args:
        labels: (N, C); uncertain labels count as unknown.
        prevalence: as for `selection_bias`, but given for every category.
        stabilised: weights whose mean over the known labels is 1, so that a loss keeps its scale.
            False: weights whose sum is the number of rows.
        missing: what to do where a class has no known label, so that no weight gives the
            prevalence: "error" refuses, "nan" gives NaN for both classes, "one" gives 1 for both
            (the known labels as they are).

    Returns:
        (C,) weights of known positives, and (C,) of known negatives.

    Raises:
        LabelError: If a class has no known label and `missing` is "error".
        CategoryError: If the mapping lacks a category or names another one.
        ShapeError: If an array does not fit.
        ConfigError: If a prevalence is not inside (0, 1), or `missing` is none of the three.

    Source: Horvitz and Thompson, JASA 47(260), 1952; stabilised as in Robins, Hernán and Brumback,
    Epidemiology 11(5), 2000.

    >>> from catwise.labels import PartialLabels
    >>> labels = PartialLabels([[1]] * 30 + [[0]] * 10 + [[-1]] * 40)
    >>> inverse_propensity_weights(labels, 0.25)
    (array([0.33333333]), array([3.]))
    """
    check_choice("missing", missing, ("error", "nan", "one"))
    pi = _prevalence(labels, prevalence, complete=True)
    counts = labels.counts()
    lacking = (counts.positive == 0) | (counts.negative == 0)
    if missing == "error" and lacking.any():
        names = [labels.categories[j] for j in np.flatnonzero(lacking)]
        raise LabelError(
            "where a class has no known label, no weights give the prevalence.",
            found=_some(names),
            expected="a known positive and a known negative in every category",
            remedy="missing='nan' or missing='one', or leave these categories out",
        )
    total = counts.known if stabilised else np.full(labels.n_categories, labels.n_rows)
    fill = 1.0 if missing == "one" else np.nan
    positive, negative = (
        np.where(lacking, fill, share * total / np.maximum(count, 1))
        for share, count in ((pi, counts.positive), (1 - pi, counts.negative))
    )
    return positive, negative


class PrevalenceEstimate(NamedTuple):
    """An estimated prevalence; (C,) float64 each, NaN where it is not known."""

    prevalence: NDArray[np.float64]  # share of positives among all rows
    label_frequency: NDArray[np.float64]  # P(known positive | positive)
    lowest: NDArray[np.float64]  # what known labels allow, whatever is assumed: known positives …
    highest: NDArray[np.float64]  # … and all but the known negatives
    assumption: str


def estimate_prevalence(
    scores: Any,
    labels: PartialLabels,
    *,
    assumption: str | None = None,
    estimator: Literal["top", "mean"] = "top",
) -> PrevalenceEstimate:
    """Estimate the share of positives of each category from known positives, under an assumption.

    Under "scar", P(known positive | image) = c · P(positive | image), with one c, the label
    frequency, for the whole category. Then the prevalence is the share of known positives / c.
    All other rows, known negatives too, count only as rows that are no known positive.

    To tell c, something must be known of images that are surely positive:

    - "top": the images with the highest scores are positive. c is the share of known positives
      among the highest scored images, the cut chosen where a lower bound of this share (Wilson's, 4
      standard deviations) is highest, with at least 10 known positives above. Only ranks matter:
      logits and probabilities, of any head, give the same. Where even the highest scored images are
      not all positive, c comes out too low and the prevalence too high.
    - "mean": c is the mean over the known positives of P(known positive | image), which `scores`
      must be: calibrated probabilities of a model that was fitted to tell known positives from all
      other rows. Exact where positives and negatives do not overlap, else the prevalence comes out
      too high.

    The scores must come from a head that was not fitted on these rows: a fitted head scores the
    known positives above the others, and the prevalence comes out too low.

    Args:
        scores: (N, C) logits or probabilities; "mean": P(known positive | image).
        labels: (N, C).
        assumption: must be named; a key of `ASSUMPTIONS`.
        estimator: how c is estimated.

    Returns:
        Prevalence, cut to what the known labels allow, and label frequency; NaN where no positive
        is known ("top": fewer than 10).

    Raises:
        ConfigError: If no assumption is named: without one the prevalence is not identified. If the
            assumption or the estimator is not known.
        ShapeError: If scores and labels differ in shape.
        FeatureError: If a score is NaN, or no probability where one is needed.

    Source: Elkan and Noto, "Learning classifiers from only positive and unlabeled data", KDD 2008,
    section 2: "mean" is their first estimator, "top" their third (the largest value) over ranks
    instead of single images, with a bound as in Garg et al., "Mixture proportion estimation and PU
    learning: a modern approach", NeurIPS 2021.

    >>> from catwise.labels import PartialLabels
    >>> codes = np.where(np.arange(1000) % 4, -1, 1)[:, None]
    >>> codes[400:] = -1
    >>> scores = (np.arange(1000) < 400)[:, None] * 1.0
    >>> estimate_prevalence(scores, PartialLabels(codes), assumption="scar").prevalence
    array([0.4])
    """
    _check_choice(assumption, estimator)
    values = checked_scores(scores, labels, probabilities=estimator == "mean")
    counts = labels.counts()
    frequency = np.full(labels.n_categories, np.nan)
    for j in range(labels.n_categories):
        rows, is_positive = labels.known(j)
        rows = rows[is_positive]
        if estimator == "mean":
            frequency[j] = values[rows, j].mean(dtype=np.float64) if len(rows) else np.nan
        elif len(rows) >= MIN_TOP:
            frequency[j] = _top_share(values[:, j], rows)
    n_rows = max(labels.n_rows, 1)
    lowest, highest = counts.positive / n_rows, 1 - counts.negative / n_rows
    with np.errstate(divide="ignore", invalid="ignore"):
        prevalence = np.clip(lowest / frequency, lowest, highest)
    return PrevalenceEstimate(prevalence, frequency, lowest, highest, str(assumption))


def _check_choice(assumption: str | None, estimator: str) -> None:
    if assumption is None:
        raise ConfigError(
            "a prevalence is not identified without an assumption about how labels became known: "
            "the same known labels fit every prevalence from the share of known positives to one "
            "minus that of known negatives.",
            expected="; ".join(
                f"assumption={name!r}: {text}" for name, text in ASSUMPTIONS.items()
            ),
            remedy="name the assumption that holds, or state a prevalence from elsewhere",
        )
    check_choice("assumption", assumption, ASSUMPTIONS)
    check_choice("estimator", estimator, ("top", "mean"))


def checked_scores(scores: Any, labels: PartialLabels, *, probabilities: bool) -> NDArray[Any]:
    """(N, C) finite logits, or probabilities, that fit the labels."""
    values = as_numpy(scores, name="scores", error=ShapeError)
    if values.shape != labels.shape or values.dtype.kind not in "biuf":
        raise ShapeError(
            "scores and labels do not fit together.",
            found=f"scores {values.shape} {values.dtype}, labels {labels.shape}",
            expected="(N, C) both, and numbers",
        )
    for j, name in enumerate(labels.categories):
        column = values[:, j]
        wrong = np.isnan(column)
        if probabilities:
            wrong |= (column < 0) | (column > 1)
        if wrong.any():
            row = int(wrong.argmax())
            raise FeatureError(
                "a score cannot be used.",
                found=f"{column[row]} in row {row}, category {name!r} "
                f"(first of {int(wrong.sum()):,} in this category)",
                expected="probabilities, 0 to 1, of being a known positive"
                if probabilities
                else "numbers",
                remedy="estimator='top' takes any scores" if probabilities else None,
            )
    return values


def _top_share(scores: NDArray[Any], positive: NDArray[np.int64]) -> float:
    """The share of positives in the top scores, ties whole, cut where its bound is highest."""
    scores = np.ascontiguousarray(scores)
    order = np.argsort(scores, kind="stable")[::-1]
    marked = np.zeros(len(scores), dtype=bool)
    marked[positive] = True
    ranked = scores[order]
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    hits = np.cumsum(marked[order])[ends].astype(np.float64)
    rows = ends + 1.0
    share = hits / rows
    bound = share + TOP_Z**2 / (2 * rows)
    bound -= TOP_Z * np.sqrt(share * (1 - share) / rows + TOP_Z**2 / (4 * rows**2))
    bound /= 1 + TOP_Z**2 / rows
    bound[hits < MIN_TOP] = -1.0
    return float(share[int(bound.argmax())])


def _prevalence(labels: PartialLabels, prevalence: Any, *, complete: bool) -> NDArray[np.float64]:
    """(C,) prevalences, NaN where not given."""
    categories = labels.categories
    if isinstance(prevalence, (str, bytes, set, frozenset)):
        raise _no_share(repr(prevalence))
    if isinstance(prevalence, Mapping):
        names = set(categories)
        unknown = [str(name) for name in prevalence if name not in names]
        if unknown:
            raise CategoryError(
                "the prevalence names categories that the labels do not have.",
                found=_some(unknown) + nearest(unknown[0], categories),
                expected=f"some of {len(categories):,} names such as {_some(categories[:3])}",
            )
        listed = [prevalence.get(name) for name in categories]
    elif not hasattr(prevalence, "__len__") or getattr(prevalence, "ndim", 1) == 0:
        listed = [prevalence] * len(categories)
    else:
        listed = list(prevalence)
        if len(listed) != len(categories):
            raise ShapeError(
                "the prevalence does not fit the labels.",
                found=f"{len(listed):,} shares",
                expected=f"{len(categories):,}, one for each category",
            )
    try:
        shares = np.array([np.nan if s is None else float(s) for s in listed], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise _no_share(repr(prevalence)) from error
    wrong = np.flatnonzero(~(np.isnan(shares) | ((shares > 0) & (shares < 1))))
    if len(wrong):
        raise _no_share(_some([f"{categories[j]!r}: {shares[j]:g}" for j in wrong], quote=False))
    lacking = np.flatnonzero(np.isnan(shares))
    if complete and len(lacking):
        raise CategoryError(
            "the prevalence is not given for every category.",
            found="nothing for " + _some([categories[j] for j in lacking]),
            expected=f"a share for each of {len(categories):,} categories",
        )
    return shares


def _no_share(found: str) -> ConfigError:
    return ConfigError(
        "a prevalence is a share of positives.", found=found, expected="numbers inside (0, 1)"
    )


def _some(names: Any, *, quote: bool = True, few: int = 5) -> str:
    """The first few names, and how many there are."""
    shown = ", ".join(repr(name) if quote else name for name in list(names)[:few])
    return shown + (f", … ({len(names):,} in all)" if len(names) > few else "")
