"""What catwise is measured against: a plain loop over categories, and mlcpl 0.1.7.

Both gather a category's known rows once; an epoch is one full-batch Adam step and the
average precision of the validation rows. Times are per epoch, setting up left out, category
after category as both really run, so that a category's rows stay in the processor's cache
from one epoch to the next.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import sys
import time
import types
from importlib.machinery import ModuleSpec
from typing import NamedTuple

import torch
from torch import Tensor

HOW_TO_GET_MLCPL = (
    "pip install --no-deps --target <folder> mlcpl==0.1.7 torchmetrics lightning-utilities, "
    "then PYTHONPATH=<folder>"
)
# What mlcpl imports for its data loaders and loggers, which fine-tuning never touches.
_UNUSED = (
    "pandas",
    "PIL",
    "torchvision",
    "torchvision.models",
    "xmltodict",
    "torch.utils.tensorboard",
    "lvis",
    "pycocotools",
)


class PeerTimes(NamedTuple):
    """Seconds per epoch of each category, and the heads after the epochs run."""

    seconds: Tensor  # (C,), 0 where skipped
    weight: Tensor
    bias: Tensor
    scores: Tensor  # (C,) validation AP after the last epoch; NaN where skipped


def sort_average_precision(logits: Tensor, positive: Tensor) -> Tensor:
    """Average precision of one category by one sort; ties share a threshold."""
    ordered, order = torch.sort(logits, descending=True)
    hits = positive[order].cumsum(0)
    last = torch.ones_like(positive)
    last[:-1] = ordered[:-1] != ordered[1:]
    ends = last.nonzero().flatten()
    hits = hits[ends].double()
    gain = torch.diff(hits, prepend=hits.new_zeros(1))
    return (gain * hits / (ends + 1)).sum() / hits[-1]


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that a clock means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def plain_loop(task: types.SimpleNamespace, *, epochs: int, loss: str = "bce") -> PeerTimes:
    """Tune category after category with closed-form slopes and a hand-written Adam."""
    from catwise.losses import LOSSES

    slope_of = LOSSES[loss].slope
    weight, bias = task.weight.clone(), task.bias.clone()
    seconds = torch.zeros(len(weight), dtype=torch.float64)
    scores = torch.full((len(weight),), torch.nan, dtype=torch.float64)
    for c in range(len(weight)):
        rows = (task.codes[:, c] >= 0).nonzero().flatten()
        rows_valid = (task.codes_valid[:, c] >= 0).nonzero().flatten()
        z, y = task.features[rows], task.codes[rows, c].to(weight.dtype)
        zv, yv = task.features_valid[rows_valid], task.codes_valid[rows_valid, c] == 1
        if not (y.any() and (y == 0).any() and yv.any() and (~yv).any()):
            continue
        p = torch.cat([weight[c], bias[c : c + 1]])
        first, second, gradient = torch.zeros_like(p), torch.zeros_like(p), torch.empty_like(p)
        laps = []
        for step in range(1, epochs + 1):
            synchronise(z.device)
            start = time.perf_counter()
            slope = slope_of(z @ p[:-1] + p[-1], y)
            torch.mv(z.T, slope, out=gradient[:-1])
            gradient[-1] = slope.sum()
            first.lerp_(gradient, 0.1)
            second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            size = 1e-4 / (1 - 0.9**step)
            root = (second.sqrt() / (1 - 0.999**step) ** 0.5).add_(1e-8)
            p.addcdiv_(first, root, value=-size)
            scores[c] = sort_average_precision(zv @ p[:-1] + p[-1], yv)
            synchronise(z.device)
            laps.append(time.perf_counter() - start)
        weight[c], bias[c], seconds[c] = p[:-1], p[-1], min(laps)
    return PeerTimes(seconds, weight, bias, scores)


def import_mlcpl() -> types.ModuleType | str:
    """Import mlcpl's fine-tuning, with empty stand-ins for what it never uses; or say why not."""
    stubs = [name for name in _UNUSED if not _imports(name)]
    sys.modules.update({name: _Stub(name) for name in stubs})
    try:
        importlib.import_module("torchmetrics.functional.classification")
        return importlib.import_module("mlcpl")
    except ImportError as error:
        return f"{error}; {HOW_TO_GET_MLCPL}"
    finally:
        for name in stubs:
            del sys.modules[name]


def _imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:  # noqa: BLE001 -- absent or broken: all the same here
        return False
    return True


class _Nothing(type):
    """A class whose attributes are functions that do nothing."""

    def __getattr__(cls, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


class _Stub(types.ModuleType):
    """A module in which every name is a class that does nothing."""

    __path__: list[str] = []  # noqa: RUF012 -- marks it as a package

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, loader=None)  # others ask whether it is installed

    def __getattr__(self, name: str) -> _Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing(name, (), {})


def mlcpl_loop(
    mlcpl: types.ModuleType, task: types.SimpleNamespace, *, epochs: int, loss: str = "bce"
) -> PeerTimes:
    """Run mlcpl's own `finetune_head`; an epoch lasts from one validation score to the next."""
    losses, functional = mlcpl.losses, importlib.import_module("mlcpl.metrics.functional")
    optimization = importlib.import_module("mlcpl.cft.optimization_method")
    core = importlib.import_module("mlcpl.cft.core")
    loss_fn = {
        "bce": lambda: losses.PartialBCEWithLogitLoss(reduction="sum"),
        "asl_published": lambda: losses.PartialAsymmetricWithLogitLoss(
            clip=0.05, gamma_pos=0, gamma_neg=4, reduction="sum"
        ),
    }[loss]()
    device = task.features.device
    weight, bias = task.weight.clone(), task.bias.clone()
    seconds = torch.zeros(len(weight), dtype=torch.float64)
    scores = torch.full((len(weight),), torch.nan, dtype=torch.float64)
    for c in range(len(weight)):
        head = torch.nn.Linear(weight.shape[1], 1).to(device, weight.dtype)
        head.load_state_dict({"weight": task.weight[c : c + 1], "bias": task.bias[c : c + 1]})
        method = optimization.BP(
            device=device,
            loss_fn=loss_fn,
            optimizer_class=torch.optim.Adam,
            optimizer_kwargs={"lr": 1e-4},
        )
        watch = _Watch(functional.partial_multilabel_average_precision, method, device)
        with contextlib.redirect_stdout(io.StringIO()):
            core.finetune_head(
                head,
                training_data=(task.features, task.codes[:, c : c + 1]),
                validation_data=(task.features_valid, task.codes_valid[:, c : c + 1]),
                optimizer=method,
                epochs=epochs,
                validation_metric=watch,
                device=device,
            )
        if watch.times:
            laps = [b - a for a, b in itertools.pairwise(watch.times)]
            seconds[c], scores[c] = min(laps), watch.score
            weight[c], bias[c] = watch.weight, watch.bias
    return PeerTimes(seconds, weight, bias, scores)


class _Watch:
    """mlcpl's metric, noting when it was done and what the head was then."""

    def __init__(self, metric, method, device: torch.device) -> None:
        self._metric, self._method, self._device = metric, method, device
        self.times: list[float] = []
        self.score, self.weight, self.bias = 0.0, torch.empty(0), torch.empty(0)

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        score = self._metric(logits, target)
        head = self._method.head
        self.weight, self.bias = head.weight.detach().clone()[0], head.bias.detach().clone()[0]
        self.score = float(score)
        synchronise(self._device)
        self.times.append(time.perf_counter())
        return score
