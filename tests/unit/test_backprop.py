"""Back-propagation in one batch: bookkeeping, skips, layouts, history and errors."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from catwise.errors import ConfigError, ShapeError
from catwise.losses import LOSSES
from catwise.metrics import METRICS, Metric
from catwise.tuning.fits.adam import BackpropConfig, fit_backprop
from catwise.tuning.fits.loop import TuningData
from catwise.tuning.rows import known as layouts
from catwise.tuning.rows import sampled
from catwise.tuning.rows.costs import choose_layout

LAYOUTS = ("dense", "sparse", "gathered")


def separation():
    """A quick metric: mean logit of the positives minus that of the negatives."""

    def scores(logits, codes, *, weight=None):
        z, positive, negative = logits.double(), (codes == 1).double(), (codes == 0).double()
        above = (z * positive).sum(1) / positive.sum(1)
        return torch.tanh(above - (z * negative).sum(1) / negative.sum(1))

    return Metric("separation", "Separation", scores)


def scripted(*rows, **options):
    """A metric that reads its scores from a script, one row of values for each call."""
    left = iter(rows)

    def scores(logits, codes, *, weight=None):
        return torch.tensor(next(left), dtype=torch.float64)[: len(logits)]

    return Metric("scripted", "Scripted", scores, **options)


def data(*, n=60, m=40, d=6, c=4, seed=0, known=0.6, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    truth = torch.randn(c, d, generator=g, dtype=torch.float64)

    def split(rows):
        z = torch.randn(rows, d, generator=g, dtype=torch.float64)
        y = (z @ truth.T > 0).to(torch.int8)
        y[torch.rand(rows, c, generator=g) > known] = -1
        return TuningData(z.to(dtype), y)

    weight = torch.randn(c, d, generator=g, dtype=torch.float64)
    return weight, torch.zeros(c, dtype=torch.float64), split(n), split(m)


def config(**options):
    given = {"metric": separation(), "dtype": torch.float64, "lr": 1e-2, "max_steps": 30}
    return BackpropConfig(**{**given, **options})


def test_known_labels_improve_the_head():
    """Validation scores rise and the head moves."""
    weight, bias, train, valid = data()
    got = fit_backprop(weight, bias, train, valid, config())
    assert bool((got.best_score > got.base_score).all())
    assert not torch.equal(got.weight, weight)


def test_inputs_are_not_changed():
    """Head, features and codes stay as they were."""
    weight, bias, train, valid = data()
    before = [t.clone() for t in (weight, bias, train.features, train.codes, valid.features)]
    fit_backprop(weight, bias, train, valid, config())
    after = (weight, bias, train.features, train.codes, valid.features)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_call_same_bytes(layout):
    """Two runs agree in every bit."""
    weight, bias, train, valid = data(n=600, d=40, dtype=torch.float32)
    options = config(layout=layout, dtype=torch.float32)
    one, two = (fit_backprop(weight, bias, train, valid, options) for _ in range(2))
    assert torch.equal(one.weight, two.weight)
    assert one.history == two.history


def test_the_original_counts_as_the_first():
    """A score that only equals the original's never replaces it."""
    weight, bias, train, valid = data()
    flat = scripted(*[[0.5] * 4] * 4)
    got = fit_backprop(weight, bias, train, valid, config(metric=flat, patience=3))
    assert torch.equal(got.weight, weight)
    assert got.best_step.tolist() == [0] * 4
    assert got.steps.tolist() == [3] * 4
    assert got.stop_reason == ["patience"] * 4


def test_patience_counts_from_the_best_step():
    """A late improvement keeps its category alive; others stop and stay stopped."""
    weight, bias, train, valid = data(c=2)
    script = [[0.5, 0.5], [0.6, 0.5], [0.6, 0.4], [0.6, 0.9], [0.5], [0.5], [0.5]]
    got = fit_backprop(
        weight, bias, train, valid, config(metric=scripted(*script), patience=3, max_steps=6)
    )
    assert got.best_step.tolist() == [1, 3]
    assert got.steps.tolist() == [4, 6]
    assert got.stop_reason == ["patience", "patience"]
    assert got.best_score.tolist() == [0.6, 0.9]
    assert [h["active"] for h in got.history] == [2, 2, 2, 2, 1, 1]


def test_a_column_that_stopped_cannot_improve():
    """Scores after its stop are ignored while it waits in the batch for company."""
    weight, bias, train, valid = data(c=10, n=120, m=80)
    first = [0.5] * 10
    first_of = [0.5, 0.5, 0.99, 0.99, 0.99, 0.99]
    rows = [first, *([one] + [0.51 + i / 100] * 9 for i, one in enumerate(first_of))]
    got = fit_backprop(
        weight, bias, train, valid, config(metric=scripted(*rows), patience=2, max_steps=6)
    )
    assert got.best_step.tolist() == [0] + [6] * 9
    assert torch.equal(got.weight[0], weight[0])
    assert got.best_score[0] == 0.5


def test_max_steps_is_said():
    """A category still improving at the end says so."""
    weight, bias, train, valid = data()
    got = fit_backprop(weight, bias, train, valid, config(max_steps=5))
    assert set(got.stop_reason) == {"max_steps"}
    assert got.passes == (10, 6)


def test_lower_is_better_metrics_descend():
    """A metric to be lowered picks its lowest score and reports it with its sign."""
    weight, bias, train, valid = data(c=2)
    metric = scripted([0.5, 0.5], [0.4, 0.6], [0.6, 0.3], higher_is_better=False)
    got = fit_backprop(weight, bias, train, valid, config(metric=metric, max_steps=2))
    assert got.best_step.tolist() == [1, 2]
    assert got.best_score.tolist() == [0.4, 0.3]
    assert got.base_score.tolist() == [0.5, 0.5]
    assert got.history[0]["score"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("split", "value", "reason"),
    [
        ("train", 0, "no_known_positive_in_train"),
        ("train", 1, "no_known_negative_in_train"),
        ("valid", 0, "no_known_positive_in_valid"),
        ("valid", 1, "no_known_negative_in_valid"),
    ],
)
def test_one_class_categories_are_skipped_with_a_reason(split, value, reason):
    """The original head stays, and the record says why."""
    weight, bias, train, valid = data()
    codes = (train if split == "train" else valid).codes
    codes[:, 1] = value
    got = fit_backprop(weight, bias, train, valid, config())
    assert got.skipped == [None, reason, None, None]
    assert got.stop_reason[1] == "skipped"
    assert torch.equal(got.weight[1], weight[1])
    assert bool(got.best_score[1].isnan())
    assert int(got.steps[1]) == 0


def test_uncertain_labels_are_unknown():
    """Uncertain entries change nothing."""
    weight, bias, train, valid = data()
    other = TuningData(train.features, torch.where(train.codes == -1, -2, train.codes).char())
    one = fit_backprop(weight, bias, train, valid, config())
    two = fit_backprop(weight, bias, other, valid, config())
    assert torch.equal(one.weight, two.weight)


def test_nothing_to_tune_gives_the_head_back():
    """Without any known label every category is skipped and no pass is made."""
    weight, bias, train, valid = data()
    train.codes.fill_(-1)
    got = fit_backprop(weight, bias, train, valid, config())
    assert torch.equal(got.weight, weight)
    assert got.history == []
    assert got.passes == (0, 0)


def test_a_missing_bias_stays_missing():
    """Only the weights are tuned."""
    weight, _, train, valid = data()
    got = fit_backprop(weight, None, train, valid, config())
    assert got.bias is None
    assert not torch.equal(got.weight, weight)


@pytest.mark.parametrize("known", [0.2, 0.9], ids=["sparse", "dense"])
@pytest.mark.parametrize("loss", list(LOSSES))
def test_layouts_agree(loss, known):
    """Shared products, known entries and gathered rows find the same heads."""
    weight, bias, train, valid = data(n=300, m=200, known=known)
    one, *others = (
        fit_backprop(weight, bias, train, valid, config(layout=layout, loss=loss))
        for layout in LAYOUTS
    )
    for name, other in zip(LAYOUTS[1:], others, strict=True):
        assert other.layout.name == name
        torch.testing.assert_close(one.weight, other.weight, rtol=1e-9, atol=1e-12)
        assert torch.equal(one.best_step, other.best_step)


@pytest.mark.parametrize("tile", [1, 60, 1_000])
def test_the_size_of_the_tiles_changes_nothing(tile, monkeypatch):
    """Tiles of a row and a category, or of some, find what one tile finds."""
    weight, bias, train, valid = data(n=300, m=200, known=0.1)
    one = fit_backprop(weight, bias, train, valid, config(layout="sparse"))
    monkeypatch.setattr(sampled, "_TILE_BYTES", tile)
    monkeypatch.setattr(layouts, "_HEAD_BYTES", tile)
    two = fit_backprop(weight, bias, train, valid, config(layout="sparse"))
    torch.testing.assert_close(one.weight, two.weight, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_permuted_categories_give_permuted_results(layout):
    """The order of the categories does not matter."""
    weight, bias, train, valid = data(c=7)
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    one = fit_backprop(weight, bias, train, valid, config(layout=layout))
    moved = (TuningData(t.features, t.codes[:, order]) for t in (train, valid))
    two = fit_backprop(weight[order], bias[order], *moved, config(layout=layout))
    torch.testing.assert_close(one.weight[order], two.weight, rtol=1e-9, atol=1e-12)


def test_half_features_are_computed_in_single():
    """fp16 features and heads are read as stored; the arithmetic is the config's."""
    weight, bias, train, valid = data(dtype=torch.float16)
    options = config(dtype=torch.float32)
    got = fit_backprop(weight.half(), bias.half(), train, valid, options)
    wide = (TuningData(t.features.float(), t.codes) for t in (train, valid))
    same = fit_backprop(weight.half().float(), bias, *wide, options)
    assert got.weight.dtype == torch.float32
    assert torch.equal(got.weight, same.weight)


def test_progress_is_told():
    """The callback sees steps rise to the last one."""
    weight, bias, train, valid = data()
    seen = []
    fit_backprop(weight, bias, train, valid, config(max_steps=45), progress=seen.append)
    assert [p.done for p in seen] == [20, 40, 45]
    assert all(p.stage == "backprop" and p.total == 45 for p in seen)


def test_layout_follows_density_and_memory():
    """Few known labels call for the known entries alone; on a GPU for copies, if they fit."""
    few = torch.full((80,), 200)
    assert choose_layout(20_000, few, 2_048).name == "sparse"
    assert choose_layout(20_000, few * 40, 2_048).name == "dense"
    on_gpu = partial(choose_layout, 20_000, device="cuda")
    assert on_gpu(few, 2_048).name == "gathered"
    assert on_gpu(few, 2_048, gather_bytes=1_000).name == "dense"
    assert on_gpu(few, 2_048).gathered_bytes == 80 * 200 * 2_048 * 4


def test_compiled_products_make_more_labels_sparse(monkeypatch):
    """With 20% known, the known entries alone are worth it only if their products are fast."""
    for library, name in ((object(), "sparse"), (None, "dense")):
        monkeypatch.setattr(sampled, "_compiled", lambda library=library: library)
        assert choose_layout(20_000, torch.full((80,), 4_000), 2_048).name == name
        assert choose_layout(20_000, torch.full((80,), 4_000), 2_048, itemsize=8).name == "dense"


def test_longest_columns_do_not_pad_the_others():
    """Lengths apart by more than a fifth fall into groups of their own."""
    got = choose_layout(1_000, torch.tensor([100, 10, 90, 9]), 1, itemsize=1)
    assert got.gathered_bytes == 2 * 100 + 2 * 10


def test_shapes_that_do_not_fit_are_reported_at_once():
    """One error names head, features, codes and bias."""
    weight, _, train, valid = data()
    with pytest.raises(ShapeError, match=r"(?s)training.*validation.*bias \(9,\)"):
        fit_backprop(weight[:, :3], torch.zeros(9), train, valid, config())
    with pytest.raises(ShapeError, match="do not fit"):
        TuningData(train.features, train.codes[:5])


def test_options_out_of_range_are_reported_at_once():
    """Every bad option is in the one message."""
    with pytest.raises(ConfigError, match=r"(?s)patience=0.*lr=0"):
        BackpropConfig(lr=0.0, patience=0)
    with pytest.raises(ConfigError, match="did you mean 'gathered'"):
        BackpropConfig(layout="gatherd")
    with pytest.raises(ConfigError, match="did you mean 'bce'"):
        BackpropConfig(loss="bcee")


@pytest.mark.parametrize("metric", list(METRICS))
def test_every_registered_metric_can_choose_the_step(metric):
    """By name; the scores reported are the metric's on validation."""
    weight, bias, train, valid = data(m=80)
    got = fit_backprop(weight, bias, train, valid, config(metric=metric))
    for w, b, scores in ((weight, bias, got.base_score), (got.weight, got.bias, got.best_score)):
        wanted = METRICS[metric].per_category(valid.features @ w.T + b, valid.codes)
        torch.testing.assert_close(scores, wanted, rtol=1e-9, atol=1e-12)
    gain = got.best_score - got.base_score
    assert bool((gain >= 0).all() if METRICS[metric].higher_is_better else (gain <= 0).all())


def test_unknown_metric_names_the_nearest():
    """A misspelt metric is refused before anything is computed."""
    weight, bias, train, valid = data()
    with pytest.raises(ConfigError, match="did you mean 'auroc'"):
        fit_backprop(weight, bias, train, valid, config(metric="aurok"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gpu_agrees_with_cpu(layout):
    """The same data on a GPU gives the same heads."""
    weight, bias, train, valid = data(n=300, m=200)
    one = fit_backprop(weight, bias, train, valid, config(layout=layout))
    moved = (TuningData(t.features.cuda(), t.codes.cuda()) for t in (train, valid))
    two = fit_backprop(weight.cuda(), bias.cuda(), *moved, config(layout=layout))
    assert two.weight.is_cuda
    torch.testing.assert_close(one.weight, two.weight.cpu(), rtol=1e-7, atol=1e-9)
