"""A callback that writes what TensorBoard shows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catwise._extras import import_optional


class TensorboardCallback:
    """Loss and step size of each step, loss and metric of each epoch, as TensorBoard's files.

    A run that is resumed repeats the steps of its unfinished epoch, with the same numbers.

    Args:
        folder: where to write; made when the first step has ended.

    Raises:
        MissingExtraError: If tensorboard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        import_optional("tensorboard", extra="tensorboard", purpose="TensorBoard's files")
        self.folder = Path(folder)
        self._writer: Any = None

    def _add(self, numbers: Mapping[str, float], at: int) -> None:
        if self._writer is None:
            module = import_optional(
                "torch.utils.tensorboard", extra="tensorboard", purpose="TensorBoard's files"
            )
            self._writer = module.SummaryWriter(str(self.folder))
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, at)

    def step_ended(self, step: int, loss: float, rate: float) -> None:
        """After each step."""
        self._add({"step/loss": loss, "step/rate": rate}, step)

    def epoch_ended(self, record: Mapping[str, Any], _module: Any) -> None:
        """After each epoch."""
        numbers = {"epoch/loss": record["loss"]}
        if record.get("score") is not None:
            numbers[f"epoch/{record['metric']}"] = record["score"]
        self._add(numbers, record["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """End the files."""
        if self._writer is not None:
            self._writer.close()
