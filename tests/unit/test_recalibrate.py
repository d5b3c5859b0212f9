"""Scale and offset after a search that is blind to both."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import brentq, minimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from catwise.metrics import METRICS
from catwise.tuning.fits.affine import fit_affine, fit_pooled, sampling_weights


def problem(seed: int = 0, c: int = 6, n: int = 400):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(c, n)) * 2
    codes = (rng.random((c, n)) < 1 / (1 + np.exp(-truth))).astype(np.int8)
    codes[rng.random((c, n)) < 0.3] = -1
    logits = truth * rng.uniform(0.05, 6, size=(c, 1)) + rng.normal(size=(c, 1)) * 4
    return torch.from_numpy(logits), torch.from_numpy(codes)


def standardised(logits, codes):
    """Known logits in units of their standard deviation, and their labels, by category."""
    for z, code in zip(logits.numpy(), codes.numpy(), strict=True):
        known = code >= 0
        yield (z[known] - z[known].mean()) / z[known].std(), code[known]


def test_it_is_the_minimum() -> None:
    """What a general minimiser finds for all categories and the slope that they share."""
    logits, codes = problem(c=4)
    scale, offset = fit_affine(logits, codes)
    rows = list(standardised(logits, codes))

    def loss(v: np.ndarray) -> float:
        t, o, pooled = v[:4], v[4:8], v[8]
        u = [np.exp(a) * z + b for a, b, (z, _) in zip(t, o, rows, strict=True)]
        each = sum(
            (np.logaddexp(0, one) - y * one).sum() for one, (_, y) in zip(u, rows, strict=True)
        )
        return each + 2.0 * ((t - pooled) ** 2).sum() + 0.005 * (o**2).sum() + pooled**2 / 2

    best = minimize(loss, np.zeros(9))
    for c, (z, code) in enumerate(zip(logits.numpy(), codes.numpy(), strict=True)):
        known = z[code >= 0]
        slope = np.log(float(scale[c]) * known.std())
        np.testing.assert_allclose(slope, best.x[c], atol=2e-3)
        np.testing.assert_allclose(
            float(offset[c]) + float(scale[c]) * known.mean(), best.x[4 + c], atol=2e-3
        )


def test_rule_platt_is_logistic_regression() -> None:
    """Without a prior: what scikit-learn fits to Platt's targets, as weighted rows of 1 and 0."""
    logits, codes = problem(3, c=2)
    scale, offset = fit_affine(logits, codes, rule="platt")
    for c in range(2):
        known = (codes[c] >= 0).numpy()
        z, y = logits[c].numpy()[known], codes[c].numpy()[known]
        k, n = int(y.sum()), int((1 - y).sum())
        target = np.where(y == 1, (k + 1) / (k + 2), 1 / (n + 2))
        model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
        both = np.concatenate([z, z])[:, None], np.repeat([1, 0], z.size)
        model.fit(*both, sample_weight=np.concatenate([target, 1 - target]))
        np.testing.assert_allclose(float(scale[c]), model.coef_[0, 0], rtol=2e-3)
        np.testing.assert_allclose(float(offset[c]), model.intercept_[0], rtol=2e-3, atol=2e-3)


def test_rule_offset_leaves_the_scale() -> None:
    """Only the offset moves, to where as many positives are expected as are known."""
    logits, codes = problem(4)
    scale, offset = fit_affine(logits, codes, rule="offset")
    torch.testing.assert_close(scale, torch.ones_like(scale))
    expected = torch.where(codes >= 0, torch.sigmoid(logits + offset[:, None]), 0.0).sum(1)
    torch.testing.assert_close(expected, (codes == 1).sum(1).double(), rtol=1e-3, atol=0.05)


def test_few_positives_take_the_pooled_slope() -> None:
    """Slopes of categories with 3 positives lie nearer the true one than without the others."""
    rng = np.random.default_rng(5)
    truth = rng.normal(size=(40, 2000))
    codes = (rng.random((40, 2000)) < 1 / (1 + np.exp(-truth + 2))).astype(np.int8)
    for code in codes[10:]:
        code[np.flatnonzero(code == 1)[3:]] = -1
        code[np.flatnonzero(code == 0)[60:]] = -1
    logits, given = torch.from_numpy(3 * truth), torch.from_numpy(codes)
    shrunk, _ = fit_affine(logits, given)
    alone, _ = fit_affine(logits, given, rule="platt")
    far = [float((3 * scale[10:]).log().abs().mean()) for scale in (shrunk, alone)]
    assert far[0] < far[1] / 2


def few_known(seed: int = 0, c: int = 30, n: int = 60, shift: float = 2.0, spread: float = 0.2):
    """Logits, few labels of rare categories, the true offsets, and levels that are near them."""
    rng = np.random.default_rng(seed)
    z, offset = rng.normal(size=(c, n)), rng.normal(size=(c, 1)) - 2.5
    codes = (rng.random((c, n)) < 1 / (1 + np.exp(-z - offset))).astype(np.int8)
    codes[:, :2] = [0, 1]
    level = z + offset - shift + spread * rng.normal(size=(c, 1))
    return tuple(torch.from_numpy(one) for one in (z, codes, offset[:, 0], level))


def test_few_positives_take_the_level() -> None:
    """Offsets are nearer the true ones, though the level is 2 lower in all categories."""
    z, codes, truth, level = few_known()
    scale, alone = fit_affine(z, codes)
    same, shrunk = fit_affine(z, codes, level=level)
    assert bool((same == scale).all())
    far = [float((offset - truth).square().mean()) for offset in (shrunk, alone)]
    assert far[0] < 0.7 * far[1]


def test_the_level_moves_by_the_formula() -> None:
    """The offset of each category against scipy: its own distance, the mean and the variance."""
    z, codes, _, level = few_known(1, spread=1.0)
    scale, alone = fit_affine(z, codes)
    _, shrunk = fit_affine(z, codes, level=level)
    above, variance = [], []
    for c in range(len(z)):
        u, other = (z[c] * scale[c] + alone[c]).numpy(), expit(level[c].numpy()).mean()
        above.append(brentq(lambda x, u=u, other=other: expit(u - x).mean() - other, -30, 30))
        variance.append(1 / (expit(u) * expit(-u)).sum())
    s, v = np.array(above), np.array(variance)

    def spread(t: float) -> float:
        mean = np.average(s, weights=1 / (v + t))
        return float(((s - mean) ** 2 / (v + t)).sum()) - len(s) + 1

    between = brentq(spread, 0, 100)
    mean = np.average(s, weights=1 / (v + between))
    expected = alone.numpy() - s + mean + between / (v + between) * (s - mean)
    assert between > 0.1
    np.testing.assert_allclose(shrunk.numpy(), expected, atol=1e-6)


def test_a_second_fit_changes_nothing() -> None:
    """What was shrunk to a level is the level of a second fit."""
    z, codes, _, level = few_known(2, spread=1.0)
    scale, offset = fit_affine(z, codes, level=level)
    once = scale[:, None] * z + offset[:, None]
    again, moved = fit_affine(once, codes, level=once)
    torch.testing.assert_close(again, torch.ones_like(again), rtol=0, atol=1e-5)
    torch.testing.assert_close(moved, torch.zeros_like(moved), rtol=0, atol=1e-5)


def test_levels_that_mean_nothing_shrink_nothing() -> None:
    """Nor those of fewer than 10 categories; a level of all or none is no error."""
    z, codes, _, _ = few_known(3)
    _, alone = fit_affine(z, codes)
    wild = z + 30 * torch.randn(len(z), 1, generator=torch.Generator().manual_seed(0)).double()
    _, shrunk = fit_affine(z, codes, level=wild)
    assert float((shrunk - alone).abs().max()) < 0.1
    _, few = fit_affine(z[:9], codes[:9], level=z[:9] - 2)
    torch.testing.assert_close(few, fit_affine(z[:9], codes[:9])[1], rtol=0, atol=0)
    _, extreme = fit_affine(z, codes, level=torch.where(z > 0, 1e3, -1e3) * codes.sign())
    assert bool(torch.isfinite(extreme).all())


def test_no_scale_of_the_logits_matters() -> None:
    """Neither of all categories nor of one: the same probabilities."""
    logits, codes = problem(6)
    scale, offset = fit_affine(logits, codes)
    factor = torch.tensor([1e-3, 1e3, 1.0, 5.0, 0.2, 30.0])[:, None].double()
    other, moved = fit_affine(logits * factor - 2.0, codes)
    before = scale[:, None] * logits + offset[:, None]
    after = other[:, None] * (logits * factor - 2.0) + moved[:, None]
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)


def test_ranks_stay_and_calibration_improves() -> None:
    """AUROC is what it was; log-loss falls."""
    logits, codes = problem(1)
    scale, offset = fit_affine(logits, codes)
    moved = scale[:, None] * logits + offset[:, None]
    auroc, loss = METRICS["auroc"].columns, METRICS["log_loss"].columns
    torch.testing.assert_close(auroc(moved, codes), auroc(logits, codes), rtol=0, atol=1e-12)
    assert bool((loss(moved, codes) < loss(logits, codes)).all())


def test_extreme_categories_stay_finite() -> None:
    """Separable, reversed, one-class and unknown ones."""
    z = torch.linspace(-3, 3, 50).repeat(4, 1)
    codes = torch.stack(
        [z[0] > 0, z[0] < 0, torch.ones(50, dtype=torch.bool), torch.zeros(50, dtype=torch.bool)]
    ).to(torch.int8)
    codes[3] = -1
    scale, offset = fit_affine(z * 100, codes)
    assert bool((scale > 0).all())
    assert bool(torch.isfinite(scale).all())
    assert bool(torch.isfinite(offset).all())
    for one in (2, 3):  # one class, and none
        assert (float(scale[one]), float(offset[one])) == (1.0, 0.0)


def test_without_a_bias_the_offset_stays_zero() -> None:
    """A head without a bias has nowhere to put it."""
    logits, codes = problem(2)
    _, offset = fit_affine(logits, codes, free_offset=False)
    assert bool((offset == 0).all())


def test_weights_stand_for_all_cells() -> None:
    """Where the cells near zero are known more often, weights give the line of all cells."""
    generator = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(6, 40000, generator=generator, dtype=torch.float64)
    # Near zero positives are rarer than a line says: known more often, they pull it down.
    p = torch.sigmoid(z - 2.0 * (z.abs() < 0.5))
    codes = (torch.rand(z.shape, generator=generator, dtype=torch.float64) < p).to(torch.int8)
    random = torch.rand(z.shape, generator=generator, dtype=torch.float64) < 0.1
    seen = torch.where(random | (z.abs() < 0.5), codes, -1)
    plain = fit_affine(z, seen)
    fit = fit_pooled(z, seen, weight=sampling_weights(z, seen))
    off = [
        float((torch.sigmoid(z * scale[:, None] + offset[:, None]) - p).mean(1).abs().mean())
        for scale, offset in ((fit.scale, fit.offset), plain)
    ]
    assert off[0] < 0.2 * off[1]
    ones = torch.ones_like(z)
    same = fit_pooled(z, seen, weight=ones)
    assert torch.equal(same.scale, plain[0])
    assert torch.equal(same.offset, plain[1])


def test_weights_of_a_complete_or_empty_category() -> None:
    """All known: all weigh 1; none known: none."""
    z = torch.arange(40.0).reshape(2, 20)
    codes = torch.stack([torch.ones(20), -torch.ones(20)]).to(torch.int8)
    weight = sampling_weights(z, codes)
    assert weight[0].tolist() == [1.0] * 20
    assert weight[1].tolist() == [0.0] * 20
