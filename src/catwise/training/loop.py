"""The loop: steps, epochs, and a state that is saved and resumed.

Everything random in a step is drawn by seed, epoch and place, and nothing is carried from one step
to the next but the state. So what is repeated after a kill, from the last state that was saved,
ends with the same bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from catwise._configs import TrainConfig
from catwise.errors import FeatureError
from catwise.labels import PartialLabels
from catwise.metrics import METRICS
from catwise.models.layers import evaluating
from catwise.models.loading import ImageRows
from catwise.training import mixing
from catwise.training.backbones import LayerOutput
from catwise.training.data import MIX, MODEL, Plan, augmented, draw_seed, read_batches
from catwise.training.optimizing import make_optimizer, rate_at
from catwise.training.processes import Processes
from catwise.training.schemes import resolve_scheme, scheme_options
from catwise.training.steps import Batch, EpochScores, StepLoss

_MIXES: Final[dict[str, Any]] = {"mixup_pme": mixing.mixup_pme, "logic_mix": mixing.logic_mix}


class TrainCallback(Protocol):
    """What may look on: give objects with these two methods to `train`."""

    def step_ended(self, step: int, loss: float, rate: float) -> None:
        """After each step, in the first process; the step counts from 0 over all epochs."""

    def epoch_ended(self, record: Mapping[str, Any], module: nn.Module) -> None:
        """After each epoch, in the first process: the record that `history.json` gets."""


@dataclass(frozen=True, eq=False)
class TrainData:
    """Training images with targets and weights, and validation images with labels, if any."""

    images: ImageRows
    target: Tensor  # (N, C) float32 in [0, 1]
    weight: Tensor  # (N, C) float32; 0 is unknown
    valid_images: ImageRows | None = None
    valid_labels: PartialLabels | None = None

    @property
    def known(self) -> Tensor:
        """(N, C) bool."""
        return self.weight > 0


@dataclass(eq=False)
class TrainState:
    """What a checkpoint holds: all that the next epoch depends on."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: AveragedModel | None
    memory: Any  # of the scheme
    scores: Tensor | None  # (N, C) last logits of training images, where the scheme reads them
    epoch: int = 0
    step: int = 0  # of the epoch that is under way
    losses: list[float] = field(default_factory=list)  # of its steps
    best: dict[str, Any] = field(default_factory=dict)  # "epoch" and "score"
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def model(self) -> nn.Module:
        """The module that counts: the moving average, where there is one."""
        return self.module if self.average is None else self.average.module

    def document(self) -> dict[str, Any]:
        """Everything, for `torch.save`."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "memory": None if self.memory is None else self.memory._asdict(),
            "scores": self.scores,
            "epoch": self.epoch,
            "step": self.step,
            "losses": self.losses,
            "best": self.best,
            "history": self.history,
        }

    def restore(self, document: Mapping[str, Any]) -> None:
        """Take over what a document holds."""
        self.module.load_state_dict(document["module"])
        self.optimizer.load_state_dict(document["optimizer"])
        self.scaler.load_state_dict(document["scaler"])
        if self.average is not None:
            self.average.load_state_dict(document["average"])
        if self.memory is not None:
            self.memory = type(self.memory)(**document["memory"])
        self.scores = document["scores"]
        self.epoch, self.best = document["epoch"], document["best"]
        self.step, self.losses = document.get("step", 0), document.get("losses", [])
        self.history = document["history"]


class Trainer:
    """A model, its images and options, ready to train epoch by epoch."""

    def __init__(
        self,
        module: nn.Module,
        layer: str,
        argument: str | None,
        *,
        data: TrainData,
        config: TrainConfig,
        processes: Processes,
        callbacks: Sequence[TrainCallback] = (),
    ) -> None:
        self.device = torch.device(config.device or "cpu")
        if config.channels_last:
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        module = module.to(self.device)
        processes.start_alike(module)
        self.layer, self.argument = layer, argument
        self.data, self.config, self.processes = data, config, processes
        self.callbacks = callbacks
        self.scheme = resolve_scheme(config.scheme)
        self.options = scheme_options(self.scheme, config.scheme_options)
        world = processes.world
        self.plan = Plan(len(data.images), config.batch_size, config.accumulate, world)
        self.total_steps = config.epochs * self.plan.steps
        half = config.amp == "float16" and self.device.type == "cuda"
        scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self.state = TrainState(
            module,
            make_optimizer(module, config),
            scaler,
            _average_of(module, config),
            self._first_memory(),
            self._no_scores(),
        )

    def _first_memory(self) -> Any:
        if self.scheme.start is None:
            return None
        generator = torch.Generator().manual_seed(self.config.seed)
        return self.scheme.start(self.data.known, self.data.target, self.options, generator)

    def _no_scores(self) -> Tensor | None:
        if self.scheme.next_epoch is None:
            return None
        return torch.full(self.data.target.shape, torch.nan)

    # ------------------------------------------------------------------------- the state

    def document(self) -> dict[str, Any]:
        """The state, for `torch.save`; all processes must ask at the same time.

        Within an epoch each process has buffers of its own, such as those of batch norm.
        """
        found = self.state.document()
        if self.state.step and self.processes.world > 1:
            own = {name: part.reshape(1, -1) for name, part in self._buffers().items()}
            found["buffers"] = {name: self.processes.every(part) for name, part in own.items()}
        return found

    def restore(self, document: Mapping[str, Any]) -> None:
        """Take over what a document holds, and what it holds of this process."""
        self.state.restore(document)
        for name, every in document.get("buffers", {}).items():
            part = self._buffers()[name]
            part.copy_(every[self.processes.rank].reshape(part.shape))

    def _buffers(self) -> dict[str, Tensor]:
        """The buffers of the module, and of its moving average."""
        sides = {"module": self.state.module, "average": self.state.average}
        return {
            f"{side} {name}": part
            for side, module in sides.items()
            if module is not None
            for name, part in module.named_buffers()
        }

    # -------------------------------------------------------------------------- an epoch

    def run_epoch(self, tell: Any, save: Callable[[], None] | None = None) -> dict[str, Any]:
        """Train what is left of an epoch, validate, and give its record.

        `tell(images)` is called after each batch; `save()` within the epoch after every
        `save_every` steps, if that is asked for.
        """
        state, epoch = self.state, self.state.epoch
        state.module.train()
        own = self.plan.batches(self.config.seed, epoch, self.processes.rank)
        ahead = own[state.step * self.config.accumulate :]
        images = read_batches(self.data.images, ahead, self.config.workers)
        run = LayerOutput(state.module, self.layer, self.argument)
        with run.watching(), _deterministic(on=self.config.deterministic):
            for step in range(state.step, self.plan.steps):
                state.losses.append(self._step(run, step, own, images, tell))
                state.step = step + 1
                if save is not None and self._is_due(state.step):
                    save()
            self.processes.average_buffers(state.module)
            self._end_scheme()
            loss, state.losses = float(np.mean(state.losses)), []
            state.epoch, state.step = state.epoch + 1, 0
            record = {"epoch": state.epoch, "loss": loss, **self.validate()}
        state.history.append(record)
        if self.processes.is_first:
            for callback in self.callbacks:
                callback.epoch_ended(record, state.model)
        return record

    def _is_due(self, step: int) -> bool:
        """Whether the state is saved after so many steps of an epoch, and more follow."""
        every = self.config.save_every
        return every > 0 and step % every == 0 and step < self.plan.steps

    def _step(
        self,
        run: LayerOutput,
        step: int,
        own: Sequence[NDArray[np.int64]],
        images: Iterator[Tensor],
        tell: Any,
    ) -> float:
        state, config, n = self.state, self.config, self.config.accumulate
        rate = rate_at(state.epoch * self.plan.steps + step, self.total_steps, config)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for at in range(step * n, (step + 1) * n):
            place = at % n * self.processes.world + self.processes.rank
            rows = torch.from_numpy(own[at])
            total += self._batch(run, next(images), rows, (step, place))
            tell(len(rows) * self.processes.world)
        self._move()
        loss = float(self.processes.total(total))
        if not np.isfinite(loss):
            raise FeatureError(
                f"the loss is {loss} in epoch {state.epoch + 1}, step {step + 1}.",
                expected="a finite number",
                remedy="a smaller --lr (lr), or --clip-norm 1 (clip_norm=1)",
            )
        if self.processes.is_first:
            for callback in self.callbacks:
                callback.step_ended(state.epoch * self.plan.steps + step, loss, rate)
        return loss

    def _batch(
        self, run: LayerOutput, images: Tensor, rows: Tensor, place: tuple[int, int]
    ) -> Tensor:
        """Add the gradient of a batch; its part of the step's loss."""
        config, state, data = self.config, self.state, self.data
        keys = (state.epoch, *place)
        images = augmented(images, rows, seed=config.seed, epoch=state.epoch, kind=config.augment)
        known, target, weight = data.known[rows], data.target[rows], data.weight[rows]
        if config.mix != "none":
            draw = torch.Generator().manual_seed(draw_seed(MIX, config.seed, *keys))
            images, known, target = _MIXES[config.mix](images, known, target, generator=draw)
            weight = known.float()
        images, known, target = (self._moved(part) for part in (images, known, target))
        with self._drawing(*keys), self._autocast():
            logits = run(images)
        teacher = self._teacher(images) if self.scheme.teacher else None
        batch = Batch(logits, known, target, rows, state.epoch, config.epochs, teacher)
        step = self.scheme.loss(batch, state.memory, self.options)
        loss = self._weighed(step, known, weight)
        torch.autograd.backward(state.scaler.scale(loss))
        self._remember(rows, logits, step)
        return loss.detach()

    def _weighed(self, step: StepLoss, known: Tensor, weight: Tensor) -> Tensor:
        """The part of a batch in the mean over the entries of a step."""
        n = self.plan.step_images
        entries = step.entries
        if not torch.equal(weight > 0, weight == 1):  # a machine said some
            entries = entries * torch.where(known, weight.to(entries.device), 1.0)
        loss = entries.sum() / (n * entries.shape[1])
        return loss if step.extra is None else loss + step.extra * (len(entries) / n)

    def _remember(self, rows: Tensor, logits: Tensor, step: StepLoss) -> None:
        """What the scheme learns of the images of all processes."""
        state, every = self.state, self.processes.every
        absorbs = self.scheme.absorb is not None and step.update is not None
        if state.scores is None and not absorbs:
            return
        place = every(rows.to(self.device)).cpu()
        if state.scores is not None:
            state.scores[place] = every(logits.detach().float()).cpu()
        if self.scheme.absorb is not None and step.update is not None:
            update = every(step.update.detach().float()).cpu()
            state.memory = self.scheme.absorb(state.memory, place, update, self.options)

    def _move(self) -> None:
        """Step of the optimizer, and of the moving average."""
        state, config = self.state, self.config
        parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
        self.processes.sum_gradients(parameters)
        if config.clip_norm is not None:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.average is not None:
            state.average.update_parameters(state.module)

    def _end_scheme(self) -> None:
        state, data = self.state, self.data
        if self.scheme.next_epoch is None or state.scores is None:
            return
        scores = EpochScores(
            state.scores, data.known, data.target, state.epoch + 1, self.config.epochs
        )
        state.memory = self.scheme.next_epoch(state.memory, scores, self.options)

    # ------------------------------------------------------------------------ validation

    def validate(self) -> dict[str, Any]:
        """The metric of the model that counts on the known validation labels, if there are any."""
        labels = self.data.valid_labels
        if labels is None or self.data.valid_images is None:
            return {}
        logits = self.logits_of(self.data.valid_images)
        scores = METRICS[self.config.metric].per_category(logits, labels)
        scored = scores[~scores.isnan()]
        return {
            "metric": self.config.metric,
            "score": float(scored.mean()) if len(scored) else None,
            "n_categories": len(scored),
        }

    def logits_of(self, images: ImageRows) -> Tensor:
        """(N, C) float32 logits of images, shared out over the processes."""
        size, module = self.config.batch_size, self.state.model
        rows = np.arange(len(images))
        cut = [rows[at : at + size] for at in range(0, len(rows), size)]
        own = cut[self.processes.rank :: self.processes.world]
        logits = torch.zeros(len(rows), self.data.target.shape[1], device=self.device)
        run = LayerOutput(module, self.layer, self.argument)
        with evaluating(module), run.watching(), self._autocast():
            for at, batch in zip(own, read_batches(images, own, self.config.workers), strict=True):
                logits[torch.from_numpy(at)] = run(self._moved(batch)).float()
        return self.processes.total(logits).cpu()

    # ---------------------------------------------------------------------------- places

    def _moved(self, part: Tensor) -> Tensor:
        fast = part.ndim == 4 and self.config.channels_last
        memory = torch.channels_last if fast else torch.preserve_format
        return part.to(self.device, non_blocking=True, memory_format=memory)

    def _autocast(self) -> Any:
        if self.config.amp == "none":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.config.amp))

    @contextlib.contextmanager
    def _drawing(self, *keys: int) -> Iterator[None]:
        """What the model draws (dropout) is drawn for this place alone."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(draw_seed(MODEL, self.config.seed, *keys))
            yield

    def _teacher(self, images: Tensor) -> Tensor | None:
        if self.state.average is None:
            return None
        module = self.state.average.module
        run = LayerOutput(module, self.layer, self.argument)
        with evaluating(module), run.watching(), self._autocast():
            return run(images)


def _average_of(module: nn.Module, config: TrainConfig) -> AveragedModel | None:
    if config.ema is None:
        return None
    average: Any = get_ema_multi_avg_fn
    return AveragedModel(module, multi_avg_fn=average(config.ema), use_buffers=True)


@contextlib.contextmanager
def _deterministic(*, on: bool) -> Iterator[None]:
    """Only deterministic operators while the block runs, if asked for."""
    was = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    try:
        if on:
            torch.use_deterministic_algorithms(mode=True)
            torch.backends.cudnn.benchmark = False
        yield
    finally:
        torch.use_deterministic_algorithms(was[0])
        torch.backends.cudnn.benchmark = was[1]
