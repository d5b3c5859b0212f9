"""Conformal sets: what they hold, promise and refuse."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from scipy.stats import beta

from catwise import ConformalSets, PartialLabels, conformal
from catwise.decisions import SETS
from catwise.decisions.rules import chance_below, kept_with
from catwise.errors import ConfigError, LabelError

NAN = float("nan")


def problem(n: int = 800, c: int = 3, seed: int = 0, *, known: float = 1.0):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(n, c)) * 1.5 - 1.5
    codes = (rng.random((n, c)) < 1 / (1 + np.exp(-truth))).astype(np.int8)
    codes[rng.random((n, c)) >= known] = -1
    return 2 * truth + 1, PartialLabels(codes, categories=[f"c{i}" for i in range(c)])


def brute(scores, alpha):
    """The highest cut-off at or above which ceil((n + 1)(1 − alpha)) of n scores lie."""
    needed = int(np.ceil((scores.size + 1) * (1 - alpha) - 1e-9))
    found = [cut for cut in scores if (scores >= cut).sum() >= needed]
    return max(found, default=None)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("known", [1.0, 0.2, 0.03])
def test_cutoffs_are_the_definition(alpha: float, known: float) -> None:
    """By counting, for both classes; the known rows of a class alone decide its cut-off."""
    logits, labels = problem(known=known)
    for c, one in enumerate(conformal(logits, labels, alpha=alpha).categories):
        sides = [logits[labels.codes[:, c] == code, c] for code in (1, 0)]
        cut = brute(sides[0], alpha)
        assert one.positive.cut == cut
        assert (one.positive.n, one.negative.n) == (sides[0].size, sides[1].size)
        edge = brute(-sides[1], alpha)
        assert (one.negative.cut is None) == (edge is None)
        if one.negative.cut is not None and edge is not None:  # just above that negative
            assert (sides[1] < one.negative.cut).sum() == (-sides[1] >= edge).sum()
        for side in (one.positive, one.negative):
            short = side.n < np.ceil(1 / alpha - 1e-9) - 1
            assert (side.cut is None) == short == (side.needed is not None)
            assert side.needed is None or side.needed == round(1 / alpha) - 1


def test_codes_say_which_answers_are_in() -> None:
    """Every row's set is what the two cut-offs say, a class without a cut-off is in every one."""
    logits, labels = problem(known=0.3)
    codes = labels.codes.copy()
    codes[:, 1] = np.where(codes[:, 1] == 1, -1, codes[:, 1])  # no positive is known
    codes[:, 2] = -1
    codes[:3, 2] = 1, 0, 0
    sets = conformal(logits, PartialLabels(codes, categories=labels.categories))
    found = sets.decide(logits).numpy()
    assert found.dtype == np.int8
    for c, one in enumerate(sets.categories):
        for value, code in zip(logits[:, c], found[:, c], strict=True):
            positive = one.positive.cut is None or value >= one.positive.cut
            negative = one.negative.cut is None or value < one.negative.cut
            names = {(False, False): "none", (True, True): "both", (True, False): "positive"}
            assert SETS[code] == names.get((positive, negative), "negative")
    assert set(found[:, 1]) == {2, 3}
    assert set(found[:, 2]) == {3}
    assert sets.cuts()[0, 1:].tolist() == [-np.inf, -np.inf]
    assert sets.cuts()[1, 2] == np.inf
    as_tensor = sets.decide(torch.from_numpy(logits).float())
    assert (as_tensor.numpy() == sets.decide(logits.astype(np.float32)).numpy()).all()


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_coverage_is_as_promised(confidence: float | None) -> None:
    """Over 2,000 draws: the mean, how often it is lower, and what 90% exceed, within 4 errors."""
    rng = np.random.default_rng(2)
    n, k, alpha, draws = 90, 30, 0.1, 2000
    y = np.zeros((n, draws), np.int8)
    y[:k] = 1
    z = rng.normal(size=(n, draws)) + y
    sets = conformal(z, PartialLabels(y), alpha=alpha, confidence=confidence)
    low, high = sets.cuts()
    from scipy.stats import norm

    reached = norm.sf(low - 1.0), norm.cdf(high)
    for share, sides in zip(
        reached,
        ([one.positive for one in sets.categories], [one.negative for one in sets.categories]),
        strict=True,
    ):
        said = sides[0]
        assert said.expected is not None
        assert said.chance_lower is not None
        assert said.low is not None
        assert share.mean() == pytest.approx(said.expected, abs=4 * share.std() / draws**0.5)
        lower = (share < 1 - alpha).mean()
        error = np.sqrt(said.chance_lower * (1 - said.chance_lower) / draws)
        assert lower == pytest.approx(said.chance_lower, abs=4 * error)
        assert (share > said.low).mean() == pytest.approx(0.9, abs=4 * np.sqrt(0.09 / draws))
        assert said.expected >= 1 - alpha
        if confidence is not None:
            assert said.chance_lower <= 1 - confidence


def test_the_beta_law() -> None:
    """Of an order statistic, as scipy has it."""
    for n, rank, least in ((10, 1, 0.9), (200, 14, 0.9), (45, 1, 0.95)):
        assert chance_below(n, rank, least) == pytest.approx(beta.cdf(least, n - rank + 1, rank))
        assert kept_with(n, rank, 0.9) == pytest.approx(beta.ppf(0.1, n - rank + 1, rank))


def test_what_is_said_of_few_rows() -> None:
    """Of 10 positives the lowest, of 20 negatives the second highest: by hand."""
    z = np.concatenate([np.arange(10.0) + 100, np.arange(20.0)])[:, None]
    labels = PartialLabels(np.array([1] * 10 + [0] * 20, np.int8)[:, None])
    sets = conformal(z, labels)
    one = sets.categories[0]
    assert (one.positive.cut, one.positive.expected) == (100.0, pytest.approx(10 / 11))
    assert one.positive.chance_lower == pytest.approx(0.9**10)
    assert one.positive.low == pytest.approx(0.1**0.1)
    assert one.negative.expected == pytest.approx(19 / 21)
    assert one.negative.cut == np.nextafter(np.float32(18.0), np.float32(np.inf))
    ends = np.array([[18.0], [one.negative.cut], [99.9], [100.0]])
    assert [SETS[code] for code in sets.decide(ends)[:, 0]] == [
        "negative", "none", "none", "positive",
    ]  # fmt: skip


def test_no_prevalence_moves_it() -> None:
    """Ten times the negatives, repeated, leave the cut-off of the positives; nothing is random."""
    logits, labels = problem(c=1)
    rows = np.concatenate([np.arange(800), np.repeat(np.flatnonzero(labels.codes[:, 0] == 0), 9)])
    once = conformal(logits, labels).categories[0]
    more = conformal(logits[rows], labels.take_rows(rows)).categories[0]
    assert more.positive == once.positive
    assert conformal(logits, labels).categories[0] == once


def test_what_is_covered_is_counted_on_test_rows() -> None:
    """Coverage of either class with an interval around it, and the sets of all rows."""
    logits, labels = problem()
    other, test = problem(seed=1, known=0.7)
    sets = conformal(logits, labels, test=(other, test))
    codes = sets.decide(other).numpy()
    for c, one in enumerate(sets.categories):
        y = test.codes[:, c]
        assert one.covered is not None
        assert (one.covered.n_positive, one.covered.n_negative) == ((y == 1).sum(), (y == 0).sum())
        sides = (one.covered.positive, 1, {2, 3}), (one.covered.negative, 0, {1, 3})
        for rate, code, holding in sides:
            share = np.isin(codes[y == code, c], list(holding)).mean()
            assert rate.value == pytest.approx(share)
            assert rate.low < share < rate.high
        per = 1000 * np.bincount(codes[:, c], minlength=4) / 800
        np.testing.assert_allclose(one.covered.per_1000, per)
        row = one.to_dict()
        assert row["both_per_1000"] == pytest.approx(per[3])
        assert row["positive_covered"] == one.covered.positive.value


def test_names_join_and_each_category_may_have_its_own_share() -> None:
    """Shares by name, in the order of the labels; a tuning's logits are out of fold, by name."""
    logits, labels = problem()
    from catwise.tuning import FoldArtifacts

    folds = FoldArtifacts(
        np.zeros(800, np.int8),
        logits[:, ::-1].astype(np.float32),
        np.zeros((1, 3, 2), np.float32),
        None,
        tuple(reversed(labels.categories)),
    )
    shares = {"c2": 0.3, "c0": 0.1, "c1": 0.2}
    sets = conformal(folds, labels, alpha=shares)
    assert [one.alpha for one in sets.categories] == [0.1, 0.2, 0.3]
    for c, one in enumerate(sets.categories):
        own = conformal(logits.astype(np.float32), labels, alpha=one.alpha).categories[c]
        assert (one.positive, one.negative) == (own.positive, own.negative)


def test_explanations() -> None:
    """What is promised and how sure, or how many labels it would take."""
    logits, labels = problem(known=0.05, n=400)
    one = conformal(logits, labels).categories[0]
    assert one.positive.n == 7
    assert one.explanation.startswith('A set without "positive" needs 9 known positives; 7 are kn')
    assert '"negative" is in the set of ' in one.explanation
    assert "of fewer than 90% with probability 0." in one.explanation


def test_groups_are_told() -> None:
    """Rows of one group are alike."""
    logits, labels = problem(n=100)
    grouped = PartialLabels(labels.codes, groups=[f"p{i // 2}" for i in range(100)])
    assert any("Rows of one group are alike" in note for note in conformal(logits, grouped).notes)
    assert conformal(logits, labels).notes == ()


def test_it_is_saved_and_read(tmp_path) -> None:
    """Cut-offs come back equal; what is covered is in the files."""
    logits, labels = problem(known=0.1, n=300)
    sets = conformal(logits, labels, alpha=[0.05, 0.1, 0.2], test=problem(seed=1))
    sets.save(tmp_path / "s.json")
    again = ConformalSets.load(tmp_path / "s.json")
    assert (again.cuts() == sets.cuts()).all()
    assert [one.explanation for one in again.categories] == [
        one.explanation for one in sets.categories
    ]
    assert [one.positive for one in again.categories] == [one.positive for one in sets.categories]
    sets.write_csv(tmp_path / "s.csv")
    with (tmp_path / "s.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["category"] for row in rows] == ["c0", "c1", "c2"]
    assert 0.5 < float(rows[2]["negative_covered"]) < 1
    table = json.loads((tmp_path / "s.json").read_text("utf-8"))
    for wrong in ({"catwise_conformal": "0"}, {"categories": [{}]}):
        (tmp_path / "w.json").write_text(json.dumps(table | wrong), encoding="utf-8")
        with pytest.raises(ConfigError, match="cannot read conformal sets"):
            ConformalSets.load(tmp_path / "w.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "alpha is a share"),
        ({"alpha": 1.0}, "alpha is a share"),
        ({"alpha": None}, "alpha is a share"),
        ({"alpha": NAN}, "alpha is a share"),
        ({"alpha": {"c0": 0.1}}, "'c1' has no number"),
        ({"confidence": 1.0}, "confidence is a share"),
        ({"level": 0.0}, "level is a share"),
    ],
)
def test_what_cannot_be(options, message: str) -> None:
    """One clear error."""
    with pytest.raises(ConfigError, match=message):
        conformal(*problem(), **options)


def test_raw_labels_are_refused() -> None:
    """Nobody has said what their values mean."""
    with pytest.raises(LabelError, match="raw values"):
        conformal(np.zeros((3, 1)), np.array([[0], [1], [1]]))  # type: ignore[arg-type]
