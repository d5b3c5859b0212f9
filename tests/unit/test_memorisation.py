"""The memorisation gap: values, intervals, reasons, advice."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from catwise.errors import ConfigError, FeatureError, ShapeError
from catwise.labels import PartialLabels
from catwise.metrics import METRICS, bootstrap_replicates
from catwise.tuning.account.memorisation import memorisation_gap


def draw(rng, rows, shift, *, share=0.2, categories=6, known=0.8):
    codes = (rng.random((rows, categories)) < share).astype(np.int8)
    logits = rng.normal(size=codes.shape) + shift * codes
    codes[rng.random(codes.shape) > known] = -1
    return logits, codes


def case(seed=0, *, training=2.0, fresh=1.0, **options):
    rng = np.random.default_rng(seed)
    return (*draw(rng, 500, training, share=0.4, **options), *draw(rng, 300, fresh, **options))


def test_both_sides_are_the_metrics():
    """AUROC as it is; AP of both at the share of positives among the fresh known labels."""
    seen, seen_codes, new, new_codes = case()
    found = memorisation_gap(seen, seen_codes, new, new_codes)
    share = (new_codes == 1).sum(0) / (new_codes >= 0).sum(0)
    np.testing.assert_allclose(found.prevalence, share)
    for side, logits, codes in (("training", seen, seen_codes), ("fresh", new, new_codes)):
        auroc = METRICS["auroc"].per_category(logits, codes)
        precision = METRICS["average_precision"].per_category(logits, codes, prevalence=share)
        np.testing.assert_allclose(getattr(found.auroc, side), auroc, atol=1e-12)
        np.testing.assert_allclose(getattr(found.average_precision, side), precision, atol=1e-12)
    np.testing.assert_allclose(found.auroc.gap, found.auroc.training - found.auroc.fresh)
    assert found.pooled["auroc"].gap == pytest.approx(found.auroc.gap.mean())


def test_the_share_of_positives_alone_makes_no_gap():
    """The same head on twice as many positives: AP differs, the gap does not."""
    rng = np.random.default_rng(1)
    seen = draw(rng, 8000, 1.0, share=0.4)
    new = draw(rng, 8000, 1.0, share=0.1)
    found = memorisation_gap(*seen, *new)
    raw = [METRICS["average_precision"].per_category(*side).mean() for side in (seen, new)]
    assert raw[0] - raw[1] > 0.2
    assert abs(found.pooled["average_precision"].gap) < 0.02


@pytest.mark.parametrize("metric", ["auroc", "average_precision"])
def test_intervals_are_those_of_the_bootstrap(metric):
    """Per category and pooled, to what resampling can tell."""
    seen, seen_codes, new, new_codes = case()
    found = memorisation_gap(seen, seen_codes, new, new_codes)
    kept = METRICS[metric]
    share = found.prevalence
    sides = []
    for logits, codes, seed in ((seen, seen_codes, 0), (new, new_codes, 1)):
        columns = []
        for c in range(6):
            options = {"prevalence": share[c]} if metric == "average_precision" else {}
            one = _fixed(kept, options)
            columns.append(
                bootstrap_replicates(
                    (logits[:, [c]],), codes[:, [c]], one, n_resamples=400, seed=seed
                )[0][:, 0]
            )
        sides.append(np.stack(columns, axis=1))
    gaps = sides[0] - sides[1]
    width = np.subtract(*np.quantile(gaps, [0.975, 0.025], axis=0))
    mine = getattr(found, metric)
    np.testing.assert_allclose(mine.high - mine.low, width, rtol=0.3)
    pooled = found.pooled[metric]
    spread = np.subtract(*np.quantile(gaps.mean(axis=1), [0.975, 0.025]))
    assert pooled.high - pooled.low == pytest.approx(spread, rel=0.25)


def _fixed(metric, options):
    from dataclasses import replace
    from functools import partial

    return replace(metric, name=f"{metric.name} fixed", columns=partial(metric.columns, **options))


@pytest.mark.parametrize("n_positive", [6, 40])
def test_intervals_cover_the_truth(n_positive):
    """Few positives widen them by Student's t."""
    rng = np.random.default_rng(2)
    truth = 0.5 * (1.0 + torch.erf(torch.tensor([2.0, 1.0], dtype=torch.float64) / 2.0))
    wanted, covered, pooled = float(truth[0] - truth[1]), [], []
    for _ in range(40):
        sides = []
        for rows, shift in ((200, 2.0), (160, 1.0)):
            codes = np.zeros((rows, 10), dtype=np.int8)
            codes[:n_positive] = 1
            sides += [rng.normal(size=codes.shape) + shift * codes, codes]
        found = memorisation_gap(*sides)
        covered.append((found.auroc.low <= wanted) & (found.auroc.high >= wanted))
        pooled.append(found.pooled["auroc"].low <= wanted <= found.pooled["auroc"].high)
    assert 0.88 <= np.mean(covered) <= 0.995
    assert np.mean(pooled) >= 0.8


def test_errors_that_categories_share_count_as_shared():
    """Ten copies of one category are no surer than the one."""
    seen, seen_codes, new, new_codes = case(categories=1)
    one = memorisation_gap(seen, seen_codes, new, new_codes).pooled["auroc"]
    copies = [np.repeat(x, 10, axis=1) for x in (seen, seen_codes, new, new_codes)]
    ten = memorisation_gap(*copies).pooled["auroc"]
    assert ten.high - ten.low == pytest.approx(one.high - one.low, rel=0.1)
    independent = memorisation_gap(*case(categories=10)).pooled["auroc"]
    assert independent.high - independent.low < 0.5 * (one.high - one.low)


def test_groups_count_once():
    """The same patient's images four times are no more evidence."""
    seen, seen_codes, new, new_codes = case()
    plain = memorisation_gap(seen, seen_codes, new, new_codes)
    repeated = [np.repeat(x, 4, axis=0) for x in (seen, seen_codes, new, new_codes)]
    groups = [[f"p{i // 4}" for i in range(len(repeated[k]))] for k in (0, 2)]
    grouped = memorisation_gap(
        repeated[0],
        PartialLabels(repeated[1], groups=groups[0]),
        repeated[2],
        PartialLabels(repeated[3], groups=groups[1]),
    )
    for wide in ("auroc", "average_precision"):
        mine, theirs = grouped.pooled[wide], plain.pooled[wide]
        assert mine.high - mine.low == pytest.approx(theirs.high - theirs.low, rel=0.05)


def test_few_labels_have_no_gap_but_a_reason():
    """Under 5 positives or negatives in either source."""
    seen, seen_codes, new, new_codes = case()
    seen_codes[:, 0] = np.where(np.cumsum(seen_codes[:, 0] == 1) > 4, 0, seen_codes[:, 0])
    new_codes[:, 1] = np.where(new_codes[:, 1] == 1, -1, new_codes[:, 1])
    new_codes[:, 2] = -2
    new_codes[:, 3] = np.where(new_codes[:, 3] == 0, -1, new_codes[:, 3])
    new_codes[0, 3] = 0
    found = memorisation_gap(seen, seen_codes, new, new_codes)
    assert found.reasons == (
        "few_positives",
        "no_known_positive",
        "no_known_label",
        "few_negatives",
        None,
        None,
    )
    assert np.isnan(found.auroc.gap[:4]).all()
    assert np.isnan(found.average_precision.low[:4]).all()
    assert found.pooled["auroc"].n_categories == 2
    assert found.pooled["auroc"].gap == pytest.approx(found.auroc.gap[4:].mean())


@pytest.mark.parametrize(
    ("training", "fresh", "start"),
    [(1.0, 1.0, "Little"), (1.2, 1.0, "Some"), (3.0, 1.0, "Much")],
)
def test_advice_follows_the_size_of_the_gap(training, fresh, start):
    """One sentence, with the gap and its interval."""
    rng = np.random.default_rng(4)
    sides = (*draw(rng, 6000, training, share=0.4), *draw(rng, 6000, fresh))
    found = memorisation_gap(*sides)
    assert found.advice.startswith(f"{start} was memorised (AUROC gap ")
    assert found.advice.endswith(".")
    assert ". " not in found.advice


def test_no_category_at_all_gives_advice_too():
    """Nothing is known of the gap, and that is said."""
    codes = np.zeros((4, 2), dtype=np.int8)
    found = memorisation_gap(np.zeros((4, 2)), codes, np.zeros((4, 2)), codes)
    assert found.advice.startswith("No category has 5")
    assert found.to_dict()["auroc"]["gap"] is None


def test_records_and_dict_are_json_ready():
    """Keys as in the records of a run."""
    seen, seen_codes, new, new_codes = case()
    new_codes[:, 0] = -1
    labels = PartialLabels(seen_codes, categories=list("abcdef"))
    found = memorisation_gap(seen, labels, new, PartialLabels(new_codes))
    records = json.loads(json.dumps(found.records(), allow_nan=False))
    assert records[0]["category"] == "a"
    assert records[0]["gap_auroc"] is None
    assert records[0]["reason"] == "no_known_label"
    assert records[1]["gap_auroc_low"] < records[1]["gap_auroc"] < records[1]["gap_auroc_high"]
    assert records[1]["gap_average_precision"] == pytest.approx(found.average_precision.gap[1])
    total = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert set(total) == {"auroc", "average_precision", "level", "advice"}
    assert total["auroc"]["n_categories"] == 5


def test_columns_storage_and_half_precision_change_nothing():
    """Storage is not content; half precision widens exactly."""
    seen, seen_codes, new, new_codes = case()
    seen, new = (torch.from_numpy(x).half() for x in (seen, new))
    labels = [PartialLabels(x) for x in (seen_codes, new_codes)]
    a = memorisation_gap(seen, labels[0], new, labels[1])
    b = memorisation_gap(
        seen.double(),
        labels[0].with_storage("columns"),
        new.double(),
        labels[1].with_storage("columns"),
    )
    np.testing.assert_allclose(a.auroc.low, b.auroc.low, rtol=1e-12)
    np.testing.assert_allclose(a.average_precision.gap, b.average_precision.gap, rtol=1e-12)


def test_bad_input_is_refused():
    """Shapes, NaN, level."""
    seen, seen_codes, new, new_codes = case()
    with pytest.raises(ShapeError, match="number of categories"):
        memorisation_gap(seen, seen_codes, new[:, :2], new_codes[:, :2])
    with pytest.raises(ShapeError):
        memorisation_gap(seen[:3], seen_codes, new, new_codes)
    with pytest.raises(ConfigError):
        memorisation_gap(seen, seen_codes, new, new_codes, level=95.0)
    new[0, 0] = np.nan
    with pytest.raises(FeatureError, match="NaN"):
        memorisation_gap(seen, seen_codes, new, new_codes)
