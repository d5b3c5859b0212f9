"""Whether head, features and columns belong together: what is seen, and what is no cause."""

from __future__ import annotations

import numpy as np
import pytest

from catwise.errors import MismatchError
from catwise.labels import PartialLabels
from catwise.metrics.mismatch import _normal_scores, _ranks, check_match, cross_auroc


def draw(seed, n, auroc_shift, *, share=0.1):
    """Independent categories whose positives score higher by that much."""
    rng = np.random.default_rng(seed)
    codes = (rng.random((n, len(auroc_shift))) < share).astype(np.int8)
    return rng, rng.normal(size=codes.shape) + np.asarray(auroc_shift) * codes, codes


def seen(logits, codes, **options):
    """What the check says, without the name of the source."""
    notes = check_match(logits, codes, force=True, **options)
    return notes[0].partition("mismatched: ")[2] if notes else ""


def test_two_exchanged_columns_are_named():
    """Both rows, both columns, and the AUROCs of the four."""
    _, logits, codes = draw(0, 600, [1.2] * 12)
    assert seen(logits, codes) == ""
    logits[:, [3, 8]] = logits[:, [8, 3]]
    said = seen(logits, codes)
    assert said.startswith("two columns look exchanged: row '8' of the head ranks column '3'")
    assert "row '3' ranks column '8'" in said
    with pytest.raises(MismatchError, match="two columns look exchanged"):
        check_match(logits, codes)


def test_an_exchange_that_is_twenty_times_as_likely_is_seen():
    """Not quite thirty times as likely as chance, with some 25 positives a category."""
    _, logits, codes = draw(353, 250, [0.75] * 12)
    assert seen(logits, codes) == ""
    logits[:, [3, 8]] = logits[:, [8, 3]]
    assert seen(logits, codes).startswith("two columns look exchanged: row '8'")


def test_an_exchange_is_seen_by_normal_scores():
    """That ranks alone do not see: 27 positives a category or so."""
    _, logits, codes = draw(141, 250, [0.75] * 12)
    assert seen(logits, codes) == ""
    logits[:, [3, 8]] = logits[:, [8, 3]]
    assert seen(logits, codes).startswith("two columns look exchanged: row '8'")


def test_a_gain_that_sound_heads_hardly_show_is_seen():
    """Among categories that go together, where it is not 20 times as likely as chance."""
    rng = np.random.default_rng(1)
    common = 2.0 * rng.normal(size=(600, 1)) + rng.normal(size=(600, 12))
    noisy = common + rng.normal(size=common.shape)
    codes = (noisy > np.quantile(common, 0.94)).astype(np.int8)
    logits = common + np.linspace(0.3, 2.5, 12) * rng.normal(size=common.shape)
    assert seen(logits, codes) == ""
    logits[:, [4, 7]] = logits[:, [7, 4]]
    assert seen(logits, codes).startswith("two columns look exchanged: row")


def test_normal_scores_have_the_variance_of_ranks():
    """In the order of the logits; equal logits share the score between."""
    rng = np.random.default_rng(0)
    ranks = _ranks(rng.normal(size=(4096, 2)))
    scores = _normal_scores(ranks)
    assert (scores.argsort(axis=0) == ranks.argsort(axis=0)).all()
    assert scores.var(axis=0) == pytest.approx(1 / 12, rel=0.01)
    tied = _normal_scores(_ranks(np.array([[1.0], [0.0], [1.0], [2.0]])))[:, 0]
    assert tied[0] == tied[2] == pytest.approx(0.0, abs=1e-6)
    assert tied[1] == pytest.approx(-tied[3])


@pytest.mark.parametrize("turn", [[0, 1], [2, 5, 9], [1, 2, 3, 4, 5], list(range(12))])
def test_columns_in_turn_are_seen(turn):
    """Two of two, three, five, and all."""
    n = 12 if len(turn) > 2 else 2
    _, logits, codes = draw(1, 800, [1.5] * n)
    logits[:, turn] = logits[:, np.roll(turn, 1)]
    assert "ranks column" in seen(logits, codes)


def test_rows_in_another_order_are_seen():
    """At chance; from one category on where its labels are many."""
    for n_categories in (1, 2, 12):
        rng, logits, codes = draw(2, 3000, [1.0] * n_categories)
        assert seen(logits, codes) == ""
        assert "no better than chance" in seen(logits[rng.permutation(3000)], codes)


def test_labels_turned_round_are_seen():
    """Clearly under 0.5."""
    _, logits, codes = draw(3, 2000, [1.0])
    assert "worse than chance" in seen(-logits, codes)
    assert "the AUROC is 0.2" in seen(-logits, codes)


def test_few_rows_in_another_order_say_nothing():
    """A usable head could look like that by chance."""
    rng, logits, codes = draw(4, 120, [1.0] * 2, share=0.15)
    assert seen(logits[rng.permutation(120)], codes) == ""


def related(seed, *, n=1500, n_things=12, share_noise=0.6):
    """Three categories of each thing; the strong row of a thing ranks all three best."""
    rng = np.random.default_rng(seed)
    thing = rng.normal(size=(n, n_things))
    label = np.repeat(thing, 3, axis=1) + share_noise * rng.normal(size=(n, 3 * n_things))
    codes = (label > 1.2).astype(np.int8)
    quality = np.tile([0.3, 1.5, 4.0], n_things)
    logits = np.repeat(thing, 3, axis=1) + quality * rng.normal(size=codes.shape)
    return logits, np.where(rng.random(codes.shape) < 0.36, codes, -1).astype(np.int8)


def test_related_categories_are_no_cause():
    """In two columns of three another row ranks better, by 0.1 and more."""
    for seed in range(5):
        logits, codes = related(seed)
        table = cross_auroc(logits, codes)
        own = np.diag(table)
        assert (table.max(axis=0) > own + 0.1).mean() > 1 / 3
        assert seen(logits, codes) == ""


def test_exchanged_columns_among_related_ones_are_seen():
    """Of different things."""
    logits, codes = related(7)
    logits[:, [0, 9]] = logits[:, [9, 0]]
    assert "row '0' ranks column '9'" in seen(logits, codes) or "row '9'" in seen(logits, codes)


def test_useless_rows_are_no_cause():
    """A third of the categories at chance."""
    for seed in range(5):
        _, logits, codes = draw(seed, 400, [0.0, 1.2, 1.2] * 5)
        assert seen(logits, codes) == ""


def test_groups_count_once():
    """Twenty copies of 80 rows tell no more than 80: too few to be sure."""
    rng, logits, codes = draw(5, 80, [1.0] * 2, share=0.2)
    logits = logits[rng.permutation(80)]
    many = np.repeat(logits, 20, axis=0), np.repeat(codes, 20, axis=0)
    assert seen(many[0], PartialLabels(many[1])) != ""
    labels = PartialLabels(many[1], groups=np.repeat(np.arange(80), 20))
    assert seen(many[0], labels) == ""


def test_equal_logits_say_nothing_of_order():
    """Ties count half, whatever the order of the rows."""
    codes = np.repeat(np.array([[1], [0]], dtype=np.int8), 500, axis=0)
    assert cross_auroc(np.zeros((1000, 1)), codes)[0, 0] == pytest.approx(0.5)
    assert seen(np.zeros((1000, 1)), codes) == ""


def test_rows_that_rank_nothing_do_not_count():
    """A head of zeros fits any features; beside it the others are looked at as without it."""
    _, logits, codes = draw(0, 600, [1.2] * 12)
    constant = np.full_like(logits, -1.5)
    assert seen(constant, codes) == ""
    both, twice = np.concatenate([constant, logits], axis=1), np.concatenate([codes, codes], axis=1)
    assert seen(both, twice) == ""
    both[:, [15, 20]] = both[:, [20, 15]]
    assert seen(both, twice).startswith("two columns look exchanged: row '20'")


def test_only_ranks_count():
    """Any increasing map of a category's logits gives the same."""
    _, logits, codes = draw(6, 600, [1.2] * 8)
    logits[:, [3, 5]] = logits[:, [5, 3]]
    assert seen(logits, codes) == seen(np.exp(2.0 * logits), codes) != ""


def test_exchanged_columns_beyond_those_crossed_are_seen():
    """Of 400 categories the 256 that rank worst are crossed."""
    _, logits, codes = draw(8, 1500, [1.5] * 400)
    logits[:, [17, 390]] = logits[:, [390, 17]]
    assert "two columns look exchanged: row '17'" in seen(logits, codes).replace("390", "17")


def test_columns_storage_is_the_same():
    """Storage is not content."""
    _, logits, codes = draw(9, 600, [1.2] * 6)
    logits[:, [3, 5]] = logits[:, [5, 3]]
    labels = PartialLabels(codes)
    assert seen(logits, labels) == seen(logits, labels.with_storage("columns"))
