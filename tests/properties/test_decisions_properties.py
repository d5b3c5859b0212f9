"""What no calibration and no threshold may do, on any logits and labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catwise import PartialLabels, calibrate, threshold
from catwise.decisions.maps import CategoryMap, fit_isotonic, fit_venn_abers
from catwise.decisions.rules import RULES, order_statistic

VALUES = {"f_beta": 2.0, "cost": 3.0, "alert_rate": 0.2, "sensitivity": 0.7, "specificity": 0.8}
VALUES["precision"] = 0.3


@st.composite
def problems(draw, max_rows: int = 40):
    """Logits of any scale, tied or not, and labels of any density, one class alone included."""
    n, c = draw(st.integers(2, max_rows)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = rng.normal(size=(n, c)) * 10.0 ** draw(st.integers(-3, 3))
    if draw(st.booleans()):
        logits = np.round(logits)
    codes = rng.choice([-1, 0, 1], size=(n, c), p=draw(st.permutations([0.2, 0.5, 0.3])))
    codes[0, 0] = 1  # one label at least is known
    return logits, codes.astype(np.int8)


def check_never_falls(one: CategoryMap, logits: np.ndarray) -> None:
    grid = np.sort(np.concatenate([logits, np.linspace(-2e3, 2e3, 101)]))
    found = one(grid)
    assert np.isfinite(found).all()
    assert (np.diff(found) >= 0).all()


@given(problems(), st.sampled_from(["affine", "offset", "platt"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_affine_map_falls(problem, method: str, stated: bool) -> None:
    """Not even where the logits say the contrary of the labels: its scale is above 0."""
    logits, codes = problem
    found = calibrate(
        logits, PartialLabels(codes), method=method, prevalence=0.1 if stated else None
    )
    for c, one in enumerate(found.categories):
        assert one.map.scale > 0
        check_never_falls(one.map, logits[:, c])


@given(problems(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_no_map_by_knots_falls(problem, venn_abers: bool) -> None:
    """Isotonic and Venn-Abers maps rise from knot to knot and stay finite."""
    logits, codes = problem
    known = codes[:, 0] >= 0
    positive = codes[known, 0] == 1
    if positive.all() or not positive.any():
        return
    fit = fit_venn_abers if venn_abers else fit_isotonic
    check_never_falls(fit(logits[known, 0], positive), logits[:, 0])


@given(problems())
@settings(max_examples=30, deadline=None)
def test_unknown_labels_and_order_change_nothing(problem) -> None:
    """Rows without a label, the order of rows and that of categories leave every map."""
    logits, codes = problem
    rng = np.random.default_rng(0)
    plain = calibrate(logits, PartialLabels(codes))
    more = np.concatenate([logits, rng.normal(size=(5, logits.shape[1]))])
    blank = np.concatenate([codes, np.full((5, codes.shape[1]), -1, np.int8)])
    rows, columns = rng.permutation(len(more)), rng.permutation(codes.shape[1])
    other = calibrate(more[rows][:, columns], PartialLabels(blank[rows][:, columns]))
    for at, c in enumerate(columns):
        a, b = plain.categories[c].map, other.categories[at].map
        np.testing.assert_allclose((a.scale, a.offset), (b.scale, b.offset), rtol=1e-4, atol=1e-4)


@given(problems(), st.sampled_from(sorted(RULES)))
@settings(max_examples=80, deadline=None)
def test_a_threshold_is_there_or_a_reason(problem, rule: str) -> None:
    """Every rule, on anything: a finite logit, or none and a sentence; decisions follow it."""
    logits, codes = problem
    found = threshold(logits, PartialLabels(codes), rule, value=VALUES.get(rule))
    decided = found.decide(logits).numpy()
    for c, one in enumerate(found.categories):
        assert one.explanation
        if one.threshold is None:
            assert one.reason is not None
            assert (decided[:, c] == -1).all()
        else:
            assert np.isfinite(one.threshold)
            assert one.probability is not None
            assert 0.0 <= one.probability <= 1.0
            np.testing.assert_array_equal(decided[:, c], logits[:, c] >= one.threshold)


@given(st.integers(1, 80), st.floats(0.05, 0.99), st.floats(0.01, 0.99))
@settings(max_examples=80, deadline=None)
def test_a_guarantee_costs_nothing_in_sample(k: int, least: float, confidence: float) -> None:
    """The positives that choose keep at least the sensitivity; more confidence, a lower logit."""
    scores = np.random.default_rng(k).normal(size=k)
    found, rank = order_statistic(scores, least, max(confidence, 0.5), above=True)
    if found.threshold is None:
        assert rank == 0
        return
    assert (scores >= found.threshold).mean() >= least - 1.0 / k
    surer, _ = order_statistic(scores, least, 0.5 + max(confidence, 0.5) / 2, above=True)
    assert surer.threshold is None or surer.threshold <= found.threshold


def test_a_map_and_its_inverse() -> None:
    """The lowest logit that reaches a calibrated one; none above the last knot."""
    one = CategoryMap(knots=((0.0, -1.0), (1.0, -1.0), (2.0, 3.0)), offset=1.0)
    assert one.lowest_at_least(2.0) == pytest.approx(1.5)
    assert one.lowest_at_least(5.0) is None
    assert one.lowest_at_least(0.0) == 0.0
    assert one.lowest_at_least(-7.0) == -np.inf
