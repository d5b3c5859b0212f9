"""Penalised fits of all categories at once."""

from __future__ import annotations

import pytest
import torch

from catwise.errors import ShapeError
from catwise.losses import LOSSES
from catwise.tuning.fits.penalised import PenalisedFit, fit_path
from catwise.tuning.rows.known import KnownRows, LabelledRows, known_rows


def fit_penalised(sources: list[LabelledRows], penalty, **options) -> PenalisedFit:
    """A path of one penalty."""
    (fit,) = fit_path(sources, [penalty], **options)
    return fit


def labelled(x, offset, target, weight, *, intercept: bool = True) -> LabelledRows:
    """Rows that all count, with their arrays."""
    return LabelledRows(KnownRows(x), target, weight, offset, intercept)


def problem(
    n: int = 300, k: int = 6, c: int = 4, seed: int = 0, share: float = 0.6
) -> tuple[LabelledRows, torch.Tensor]:
    """A source in float64 with some labels unknown, and its codes."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, k, generator=g, dtype=torch.float64) / k**0.5
    offset = torch.randn(c, n, generator=g, dtype=torch.float64)
    positive = torch.rand(c, n, generator=g) < 0.3
    known = torch.rand(c, n, generator=g) < share
    codes = torch.where(known, positive.to(torch.int8), torch.tensor(-1, dtype=torch.int8))
    return labelled(x, offset, positive.double(), known.double()), codes


def plain_fit(sources: list[LabelledRows], penalty: float, category: int) -> torch.Tensor:
    """One category by Newton's method on (delta, intercepts), written out."""
    k = sources[0].rows.x.shape[1]
    theta = torch.zeros(k + len(sources), dtype=torch.float64)
    for _ in range(50):
        g = torch.zeros_like(theta)
        h = torch.zeros(len(theta), len(theta), dtype=torch.float64)
        for i, s in enumerate(sources):
            one = torch.zeros(len(s.rows.x), len(sources), dtype=torch.float64)
            one[:, i] = 1.0
            design = torch.cat([s.rows.x, one], 1)
            p = torch.sigmoid(s.offset[category] + design @ theta)
            g += design.T @ (s.weight[category] * (p - s.target[category]))
            h += design.T @ ((s.weight[category] * p * (1 - p))[:, None] * design)
        ridge = torch.full((len(theta),), 0.01, dtype=torch.float64)
        ridge[:k] = penalty
        theta = theta - torch.linalg.solve(h + ridge.diag(), g + ridge * theta)
    return theta


@pytest.mark.parametrize("penalty", [0.3, 5.0])
def test_minimum_equals_newtons_method_per_category(penalty: float) -> None:
    """All categories at once reach the minimum that a plain loop finds, with two sources."""
    sources = [problem(seed=1)[0], problem(n=200, seed=2)[0]]
    fit = fit_penalised(sources, penalty, tolerance=1e-9, max_iterations=300)
    for c in range(4):
        theta = plain_fit(sources, penalty, c)
        torch.testing.assert_close(fit.delta[c], theta[:6], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(fit.intercepts[:, c], theta[6:], rtol=1e-6, atol=1e-8)


def test_gathered_rows_equal_dense_rows() -> None:
    """Each category's own known rows give the same fit as the shared product."""
    source, codes = problem(share=0.3)
    indexed, sampled, gathered = (
        LabelledRows.from_codes(
            known_rows(source.rows.x, codes >= 0, layout=layout)[0], codes, source.offset
        )
        for layout in ("dense", "sparse", "gathered")
    )
    dense = fit_penalised([source], 1.0, tolerance=1e-9)
    assert indexed.offset.shape[1] < source.offset.shape[1]
    for other in (gathered, indexed, sampled):
        torch.testing.assert_close(fit_penalised([other], 1.0, tolerance=1e-9).delta, dense.delta)


def test_penalty_of_each_category() -> None:
    """A penalty per category is that category's alone."""
    source, _ = problem()
    penalties = torch.tensor([0.3, 1.0, 3.0, 10.0], dtype=torch.float64)
    together = fit_penalised([source], penalties, tolerance=1e-9)
    for c, penalty in enumerate(penalties.tolist()):
        alone = fit_penalised([source], penalty, tolerance=1e-9)
        torch.testing.assert_close(together.delta[c], alone.delta[c], rtol=1e-6, atol=1e-8)


def test_warm_start_changes_the_way_not_the_end() -> None:
    """A start from another penalty's fit reaches the same minimum."""
    source, _ = problem()
    strong, warm = fit_path([source], [5.0, 1.0], tolerance=1e-9)
    for fit, penalty in ((strong, 5.0), (warm, 1.0)):
        cold = fit_penalised([source], penalty, tolerance=1e-9)
        torch.testing.assert_close(fit.delta, cold.delta, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(fit.intercepts, cold.intercepts, rtol=1e-6, atol=1e-8)
    assert int(warm.iterations.sum()) < int(cold.iterations.sum())


def test_a_path_of_penalties_of_each_category() -> None:
    """Every fit of the path has its own penalties, whatever came before."""
    source, _ = problem()
    rows = torch.tensor([[8.0, 4.0, 2.0, 1.0], [0.5, 1.0, 2.0, 4.0]], dtype=torch.float64)
    for fit, penalty in zip(fit_path([source], list(rows), tolerance=1e-9), rows, strict=True):
        alone = fit_penalised([source], penalty, tolerance=1e-9)
        torch.testing.assert_close(fit.delta, alone.delta, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("penalties", [[5.0, 2.5, 1.25, 0.6], [1.0, 5.0, 1.0, 1.0, 0.1]])
def test_looking_ahead_changes_the_way_not_the_end(penalties: list[float]) -> None:
    """From the third on, fits start where the two before point to, in whatever order they come."""
    sources = [problem(seed=1)[0], problem(n=200, seed=2)[0]]
    for fit, penalty in zip(
        fit_path(sources, penalties, tolerance=1e-9, max_iterations=300), penalties, strict=True
    ):
        alone = fit_penalised(sources, penalty, tolerance=1e-9, max_iterations=300)
        torch.testing.assert_close(fit.delta, alone.delta, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(fit.intercepts, alone.intercepts, rtol=1e-6, atol=1e-8)


def test_looking_ahead_saves_iterations() -> None:
    """The last of a path takes fewer steps than the same fit from the one just before it."""
    source, _ = problem(k=40)
    path = list(fit_path([source], [4.0, 2.0, 1.0, 0.5], tolerance=1e-3))
    short = list(fit_path([source], [1.0, 0.5], tolerance=1e-3))
    assert path[-1].iterations.sum() < short[-1].iterations.sum()


def test_category_without_labels_keeps_zeros() -> None:
    """Nothing known, nothing changed, no step taken."""
    source, _ = problem()
    weight = source.weight.clone()
    weight[2] = 0
    fit = fit_penalised([labelled(source.rows.x, source.offset, source.target, weight)], 1.0)
    assert not fit.delta[2].any()
    assert int(fit.iterations[2]) == 0


def test_source_without_intercept_has_none() -> None:
    """A head without a bias is fitted without an intercept."""
    source, _ = problem()
    bare = labelled(source.rows.x, source.offset, source.target, source.weight, intercept=False)
    fit = fit_penalised([bare], 1.0)
    assert not fit.intercepts.any()


@pytest.mark.parametrize("loss", ["asl", "focal", "proper_asymmetric"])
def test_other_losses_end_where_the_gradient_vanishes(loss: str) -> None:
    """Losses that are not convex descend too."""
    source, _ = problem()
    pointwise = LOSSES[loss].slope_curvature
    fit = fit_penalised([source], 1.0, pointwise=pointwise, tolerance=1e-4, max_iterations=300)
    assert float(fit.gradient.max()) <= 1e-4


def test_one_class_gives_finite_intercepts() -> None:
    """A source that knows positives alone does not run to infinity."""
    source, _ = problem()
    only = labelled(source.rows.x, source.offset, torch.ones_like(source.target), source.weight)
    assert bool(fit_penalised([only], 1.0).intercepts.abs().max() < 20)


def test_arrays_must_fit() -> None:
    """A source whose arrays differ in shape is refused."""
    source, _ = problem()
    with pytest.raises(ShapeError, match="do not fit together"):
        labelled(source.rows.x[:5], source.offset, source.target, source.weight)


def test_a_given_start_changes_the_way_not_the_end():
    """From the end no step is needed; from a bad start the end is the same."""
    source, _ = problem()
    cold = fit_penalised([source], 0.5, tolerance=1e-9)
    end = torch.cat([cold.delta, cold.intercepts.T], 1)
    again = fit_penalised([source], 0.5, tolerance=1e-6, starts=[end])
    assert int(again.iterations.max()) == 0
    assert torch.equal(again.delta, cold.delta)
    far = fit_penalised([source], 0.5, tolerance=1e-9, starts=[end + 3.0])
    torch.testing.assert_close(far.delta, cold.delta, rtol=1e-5, atol=1e-6)
