"""Several processes that train one model, as torchrun starts them; one is the usual case."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from catwise.models.layers import ranks_of


class Processes(NamedTuple):
    """The number of this process, and how many there are."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.barrier()

    def total(self, values: Tensor) -> Tensor:
        """The sum over processes."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def every(self, values: Tensor) -> Tensor:
        """Rows of all processes, in their order; each has as many."""
        if self.world == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def start_alike(self, module: nn.Module) -> None:
        """Give all processes the first one's numbers."""
        if self.world > 1:
            for part in module.state_dict().values():
                dist.broadcast(part, 0)

    def sum_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Add gradients up; what has none in any process keeps none."""
        if self.world == 1:
            return
        device = parameters[0].device
        some = torch.tensor([p.grad is not None for p in parameters], device=device).int()
        dist.all_reduce(some, dist.ReduceOp.MAX)
        held = [p for p, used in zip(parameters, some.tolist(), strict=True) if used]
        for part in held:
            if part.grad is None:
                part.grad = torch.zeros_like(part)
        gradients = [p.grad for p in held if p.grad is not None]
        flat = torch.cat([one.flatten().float() for one in gradients])
        dist.all_reduce(flat)
        sizes = [one.numel() for one in gradients]
        for one, summed in zip(gradients, torch.split(flat, sizes), strict=True):
            one.copy_(summed.view_as(one))

    def average_buffers(self, module: nn.Module) -> None:
        """The mean of running statistics, of which each process has its own."""
        if self.world > 1:
            for part in module.buffers():
                if part.is_floating_point():
                    dist.all_reduce(part)
                    part.div_(self.world)


@contextlib.contextmanager
def joined_processes(device: torch.device) -> Iterator[Processes]:
    """The processes that torchrun started, joined while the block runs."""
    rank, world = ranks_of()
    own = world > 1 and not dist.is_initialized()
    if own:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(rank, world)
    finally:
        if own:
            dist.destroy_process_group()
