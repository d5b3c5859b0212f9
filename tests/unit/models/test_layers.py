"""The classification layer of a model in memory: found, read, written to, its input caught."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from catwise.errors import ConfigError, HeadError, MismatchError, ShapeError
from catwise.heads import Head
from catwise.models.layers import (
    call,
    capture,
    choose_device,
    find_layer,
    head_of,
    put_head,
    ranks_of,
    running,
    weights_digest,
)
from catwise.models.logits import check_logits, logits_gap


class GroupWise(nn.Module):
    """One vector and one number for each category, as decoders over label queries have."""

    def __init__(self, n_categories: int, n_features: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(1, n_categories, n_features))
        self.b = nn.Parameter(torch.randn(1, n_categories))

    def forward(self, x: Tensor) -> Tensor:
        return (self.W * x).sum(-1) + self.b


class TwoLayers(nn.Module):
    """Two layers with odd names, of which `last` makes the logits; both are called as asked."""

    def __init__(self, calls: int = 1) -> None:
        super().__init__()
        self.last = nn.Linear(8, 3)
        self.before = nn.Linear(4, 8)
        self.calls = calls

    def forward(self, x: Tensor) -> Tensor:
        features = self.before(x).relu()
        outputs = [self.last(features) for _ in range(self.calls)]
        return torch.stack(outputs).mean(0) if outputs else features[:, :3]


class ConvHead(nn.Module):
    """A 1×1 convolution on pooled maps."""

    def __init__(self, *, pool: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.pool = nn.AdaptiveAvgPool2d(pool)
        self.classifier = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.stem(x).relu())).flatten(1)


def images(n: int = 5, *shape: int) -> Tensor:
    return torch.randn(n, *(shape or (4,)), generator=torch.Generator().manual_seed(1))


# Finding


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.Linear(3, 2), ""),
        (nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2), nn.Dropout()), "2"),
        (nn.Sequential(nn.Conv2d(3, 5, 1), nn.Sequential(nn.Conv2d(5, 2, 1), nn.Flatten())), "1.0"),
        (nn.ModuleDict({"fc": nn.Linear(3, 2), "mix": nn.Linear(3, 3)}), "fc"),
        (nn.ModuleDict({"fc1": nn.Linear(3, 8), "fc2": nn.Linear(8, 2)}), "fc2"),
        (nn.ModuleDict({"a": nn.Conv2d(3, 3, 1), "b": nn.Linear(3, 2)}), "b"),
        (ConvHead(), "classifier"),
    ],
)
def test_layer_is_found(module: nn.Module, name: str) -> None:
    """The end of a chain, a head's name, or the only linear layer."""
    found, layer = find_layer(module)
    assert found == name
    assert layer is module.get_submodule(name)


def test_ambiguous_layers_are_listed() -> None:
    """Where names do not decide, the candidates are shown and one is asked for."""
    with pytest.raises(HeadError, match=r"(?s)2 layers.*'last' .*'before' .*layer="):
        find_layer(TwoLayers())


def test_running_decides() -> None:
    """Where names do not decide, the layer whose output the model returns is taken."""
    model = TwoLayers().train()
    assert find_layer(model, run=lambda: model(images()))[0] == "last"
    assert model.training
    assert not model.last._forward_hooks


def test_running_may_not_decide() -> None:
    """An output that no layer gave stays ambiguous."""
    model = TwoLayers()
    with pytest.raises(HeadError, match="may be"):
        find_layer(model, run=lambda: model(images()) * 2)


def test_no_layer_at_all() -> None:
    """A model without a linear layer says so; a wrong name suggests the right one."""
    with pytest.raises(HeadError, match="no linear layer"):
        find_layer(nn.Sequential(nn.ReLU()))
    with pytest.raises(HeadError, match="did you mean 'classifier'"):
        find_layer(ConvHead(), "clasifier")


def test_tied_layers_are_refused() -> None:
    """A layer that shares its numbers with another is refused; views of one buffer are not tied."""
    model = nn.ModuleDict({"words": nn.Embedding(5, 3), "fc": nn.Linear(3, 5)})
    model["fc"].weight = model["words"].weight
    with pytest.raises(HeadError, match=r"tied.*'words\.weight'"):
        find_layer(model)
    flat = torch.zeros(30)
    model["fc"].weight = nn.Parameter(flat[:15].view(5, 3))
    model["words"].weight = nn.Parameter(flat[15:].view(5, 3))
    assert find_layer(model)[0] == "fc"


class Squared(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 2


def normed() -> nn.Module:
    return parametrizations.weight_norm(nn.Linear(3, 2))


def pruned() -> nn.Module:
    layer = nn.Linear(3, 2)
    prune.random_unstructured(layer, "weight", 1)
    return layer


def quantised() -> nn.Module:
    layer = nn.Linear(3, 2)
    layer.weight = nn.Parameter(torch.ones(2, 3, dtype=torch.int8), requires_grad=False)
    return layer


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (normed(), "weight-normed"),
        (pruned(), "pruned"),
        (quantised(), "quantised"),
        (nn.LazyLinear(3), "not initialised"),
        (nn.Linear(3, 2, device="meta"), "meta device"),
        (nn.Conv2d(3, 2, 3), "another kind"),
        (nn.Conv2d(4, 2, 1, groups=2), "another kind"),
        (nn.Conv2d(3, 2, 1, stride=2), "another kind"),
        (nn.Conv1d(3, 3, 1), "another kind"),
        (nn.LayerNorm(3), "another kind"),
        (nn.Embedding(3, 2), "another kind"),
        (Squared(3, 2), "not linear"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_layers_that_cannot_be_used(layer: nn.Module, reason: str) -> None:
    """Each has its own reason, and the layer is named; it is neither read nor written."""
    with pytest.raises(HeadError, match=f"(?s)'fc'.*{reason}"):
        head_of(layer, name="fc")
    if reason != "not linear":
        with pytest.raises(HeadError, match=reason):
            put_head(layer, Head(torch.ones(2, 3)), name="fc")


# Reading and writing


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "layer", [nn.Linear(7, 3), nn.Linear(7, 3, bias=False), nn.Conv2d(7, 3, 1), GroupWise(3, 7)]
)
def test_round_trip(layer: nn.Module, dtype: torch.dtype) -> None:
    """What is read scores as the layer does; what is written is read back, bit for bit."""
    layer = layer.to(dtype)
    head = head_of(layer)
    assert head.dtype == dtype
    assert (head.n_categories, head.n_features) == (3, 7)
    before = {name: part.clone() for name, part in layer.state_dict().items()}
    put_head(layer, head)
    assert all(torch.equal(part, before[name]) for name, part in layer.state_dict().items())
    new = head.replace(
        weight=torch.randn_like(head.weight),
        bias=None if head.bias is None else torch.randn_like(head.bias),
    )
    put_head(layer, new)
    assert torch.equal(head_of(layer).weight, new.weight)
    shape = (4, 7, 1, 1) if isinstance(layer, nn.Conv2d) else (4, 7)
    rows = images(4, 3, 7) if isinstance(layer, GroupWise) else images(*shape)
    features = rows if isinstance(layer, GroupWise) else rows.flatten(1)
    exact = new.logits(features.to(dtype)).float()
    torch.testing.assert_close(layer(rows.to(dtype)).flatten(1).float(), exact, rtol=0.05, atol=0.1)


def test_square_shapes_are_not_mixed_up() -> None:
    """A group-wise layer with as many categories as features keeps its rows."""
    layer = GroupWise(3, 3)
    assert torch.equal(head_of(layer).weight, layer.W[0])


def test_what_cannot_be_written() -> None:
    """Other shapes, a missing bias and too large numbers are refused, and nothing is changed."""
    layer = nn.Linear(2, 3).half()
    before = layer.weight.clone()
    for head, error, reason in (
        (Head(torch.ones(3, 4), torch.ones(3)), ShapeError, "does not fit"),
        (Head(torch.ones(2, 3), torch.ones(2)), ShapeError, "does not fit"),
        (Head(torch.ones(3, 2)), HeadError, "has a bias"),
        (Head(torch.ones(3, 2), torch.full((3,), 1e6)), HeadError, "too large"),
    ):
        with pytest.raises(error, match=reason):
            put_head(layer, head)
        assert torch.equal(layer.weight, before)
    bare = nn.Linear(2, 3, bias=False)
    put_head(bare, Head(torch.ones(3, 2), torch.zeros(3)))
    assert bool((bare.weight == 1).all())
    with pytest.raises(HeadError, match="cannot be written"):
        put_head(bare, Head(torch.ones(3, 2), torch.ones(3)))


# Catching


def test_features_of_a_linear_layer() -> None:
    """What goes in is caught; training flags, hooks and gradients are as before."""
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model.train()
    model[1].eval()
    model[2].train()
    flags = [part.training for part in model.modules()]
    statistics = model[1].running_mean.clone()
    with capture(model, "3") as captured:
        assert not any(part.training for part in model.modules())
        logits = model(images())
        features = captured.take()
        assert not logits.requires_grad
        assert not torch.is_grad_enabled()
    assert torch.equal(model[3](features), logits)
    assert [part.training for part in model.modules()] == flags
    assert flags.count(False) == 1
    assert torch.equal(model[1].running_mean, statistics)
    assert torch.is_grad_enabled()
    assert not model[3]._forward_pre_hooks


def test_flags_are_put_back_after_an_error() -> None:
    """An error inside changes nothing of that."""
    model = nn.Sequential(nn.Dropout(), nn.Linear(4, 3)).train()
    with pytest.raises(RuntimeError), capture(model, "1"):
        model(images(2, 5))
    assert model.training
    assert model[0].training
    assert not model[1]._forward_pre_hooks


def test_features_of_a_convolution() -> None:
    """(N, D, 1, 1) becomes (N, D); several positions are refused."""
    model = ConvHead()
    with capture(model, model.classifier) as captured:
        logits = model(images(5, 3, 6, 6))
        features = captured.take()
    assert features.shape == (5, 6)
    torch.testing.assert_close(head_of(model.classifier).logits(features), logits.detach())
    model = ConvHead(pool=2)
    with capture(model, "classifier") as captured:
        model(images(5, 3, 6, 6))
        with pytest.raises(HeadError, match=r"\(5, 6, 2, 2\)(.|\n)*pool"):
            captured.take()


def test_a_maximum_over_positions() -> None:
    """It is refused by that name; a mean over positions is read as linear."""
    model = ConvHead(pool=2)
    x = images(5, 3, 6, 6)
    for over, said in (("mean", ""), ("amax", "maximum over positions")):
        model.forward = lambda x, over=over: getattr(  # type: ignore[method-assign]
            model.classifier(model.pool(model.stem(x).relu())), over
        )((2, 3))
        with running(model, "classifier", torch.device("cpu")) as (run, _):
            if said:
                with pytest.raises(HeadError, match=said):
                    run(x, None)
            else:
                assert run(x, None)[0].shape == (5, 6)


def test_category_specific_features() -> None:
    """(N, C, D) is kept where there is one vector for each category, and scored as such."""
    layer = GroupWise(3, 4)
    model = nn.Sequential(nn.Unflatten(1, (3, 4)), nn.ReLU(), layer)
    with capture(model, "2") as captured:
        logits = model(images(5, 12))
        features = captured.take()
    assert features.shape == (5, 3, 4)
    assert check_logits(head_of(layer), features, logits, name="2") < 1e-5


def test_tokens_are_refused() -> None:
    """A linear layer that sees several vectors of an image is no head; one vector is."""
    model = nn.Sequential(nn.Linear(4, 3))
    with capture(model, "0") as captured:
        model(images(5, 1, 4))
        assert captured.take().shape == (5, 4)
        model(images(5, 2, 4))
        with pytest.raises(HeadError, match=r"\(5, 2, 4\)"):
            captured.take()


@pytest.mark.parametrize("calls", [0, 2])
def test_a_layer_must_be_called_once(calls: int) -> None:
    """A layer that is gone around, or called twice in one pass, is refused."""
    model = TwoLayers(calls)
    with capture(model, "last") as captured:
        model(images())
        with pytest.raises(HeadError, match=f"{calls} calls"):
            captured.take()


def test_keywords_are_seen() -> None:
    """An input given by keyword is caught too."""
    layer = nn.Linear(4, 3)
    with capture(layer, layer) as captured:
        layer(input=images())
        assert torch.equal(captured.take(), images())


# Running and comparing


def test_a_wrong_layer_is_caught() -> None:
    """Features of another layer with the right number of rows do not make the logits."""
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))
    with capture(model, "0") as captured:
        logits = model(images())
        features = captured.take()
    with pytest.raises(HeadError, match="'0' does not make the model's logits"):
        check_logits(head_of(model[0]), features, logits, name="0")
    with pytest.raises(HeadError, match="does not make"):
        check_logits(head_of(model[2]), features[:, :3], torch.zeros(5, 7), name="2")


@pytest.mark.parametrize("error", [2e-3, float("nan")])
def test_the_gap_counts(error: float) -> None:
    """A gap beyond rounding is refused, and so is NaN; one within is told."""
    head = Head([[1.0, 0.0], [0.0, 1.0]])
    features = images(4, 2)
    assert logits_gap(head, features, features) == 0
    wrong = features.clone()
    wrong[0, 0] += error * features.abs().max()
    with pytest.raises(HeadError, match="does not make"):
        check_logits(head, features, wrong, name="fc")


def test_what_fails_in_a_model() -> None:
    """A model's own failure is one error with its reason and the images' shape."""
    with pytest.raises(MismatchError, match=r"\(5, 4\) torch.float32: mat1 and mat2"):
        call(nn.Linear(3, 2), images())
    assert call(nn.Linear(4, 2).double(), images()).dtype == torch.float64


def test_running_gives_features_output_and_head() -> None:
    """Autocast is used as asked, and everything is put back."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)).train()
    with running(model, "1", torch.device("cpu")) as (forward, head):
        features, output = forward(images(), None)
        half, _ = forward(images(), torch.bfloat16)
        assert check_logits(head, features, output, name="1") < 1e-5
        assert (features.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    assert model.training


def test_places() -> None:
    """No device is where the model is; what is not there is an error."""
    model = nn.Linear(2, 2)
    assert choose_device(model, None) == torch.device("cpu")
    with pytest.raises(ConfigError, match="'gpu'"):
        choose_device(model, "gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="'cuda'"):
            choose_device(model, "cuda")


def test_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's place is read from where torchrun writes it."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert ranks_of() == (0, 1)
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ConfigError, match="RANK"):
        ranks_of()
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert ranks_of() == (2, 3)


def test_digest_sees_every_number() -> None:
    """Parameters, buffers and options change it; a copy has the same."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.ReLU())
    copy = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.ReLU())
    copy.load_state_dict(model.state_dict())
    first = weights_digest(model)
    assert weights_digest(copy) == first
    copy[1].running_mean[0] += 1
    assert weights_digest(copy) != first
    copy.load_state_dict(model.state_dict())
    copy[2] = nn.ReLU6()
    assert weights_digest(copy) != first
