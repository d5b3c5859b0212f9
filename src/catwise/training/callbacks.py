"""`finetune` at the end of training with PyTorch Lightning or with transformers' Trainer."""

from __future__ import annotations

import sys
from typing import Any, Final

from catwise._extras import import_optional
from catwise.errors import ConfigError
from catwise.training.finetuning import finetune
from catwise.tuning import TuneResult

_PACKAGES: Final = ("lightning.pytorch", "pytorch_lightning")
"""The two names under which PyTorch Lightning is published."""


class AtEnd:
    """What both callbacks do: tune the module in place, once, and keep the result.

    Attributes:
        result: what `catwise.tune` told; None before the end of training.
    """

    result: TuneResult | None = None

    def __init__(self, train_loader: Any, valid_loader: Any, options: dict[str, Any]) -> None:
        super().__init__()
        if "inplace" in options:
            raise ConfigError("a callback changes the module itself: leave inplace out.")
        self.loaders = (train_loader, valid_loader)
        self.options = options

    def tune(self, module: Any, train_loader: Any, valid_loader: Any) -> None:
        """Tune with the loaders that were given, else with those of the trainer."""
        given = zip(self.loaders, (train_loader, valid_loader), strict=True)
        train, valid = (theirs if own is None else own for own, theirs in given)
        if train is None:
            raise ConfigError(
                "the trainer has no training loader.",
                remedy="give one to the callback: train_loader=…",
            )
        self.result = finetune(module, train, valid, inplace=True, **self.options).result


def lightning_callback(train_loader: Any = None, valid_loader: Any = None, **options: Any) -> Any:
    """Make a callback for PyTorch Lightning's `Trainer`: `finetune` at the end of training.

    It changes the module itself, so that what is saved after ``trainer.fit`` has the tuned head;
    the checkpoints of epochs were written before. Of several processes each does all of it.

    Args:
        train_loader: as in `finetune`; None: the trainer's own.
        valid_loader: the same; None: the trainer's validation loader, the first of several.
        **options: further ones of `finetune`.

    Returns:
        A callback of the package that is in use, ``lightning`` or ``pytorch_lightning``. Its
        ``result`` is that of `catwise.tune`.

    Raises:
        MissingExtraError: If neither is installed.
        ConfigError: If an option does not go with a callback.
    """
    used = next((name for name in _PACKAGES if name in sys.modules), _PACKAGES[-1])
    package = import_optional(used, extra="lightning", purpose="a callback of Lightning")
    base: Any = package.Callback

    class FinetuneCallback(AtEnd, base):  # type: ignore[misc]
        """`catwise.finetune` at the end of training."""

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            """Called by the trainer."""
            valid = trainer.val_dataloaders
            valid = valid[0] if isinstance(valid, (list, tuple)) and valid else valid
            self.tune(pl_module, trainer.train_dataloader, valid)

    return FinetuneCallback(train_loader, valid_loader, options)


def transformers_callback(
    train_loader: Any = None, valid_loader: Any = None, **options: Any
) -> Any:
    """Make a callback for transformers' `Trainer`: `finetune` at the end of training.

    It changes the model itself, after the best weights were loaded where the trainer is to do so;
    ``trainer.save_model`` writes the tuned head.

    Args:
        train_loader: as in `finetune`; None: the trainer's own.
        valid_loader: the same; None: the trainer's evaluation loader, which is there if it has
            evaluated.
        **options: further ones of `finetune`; such as ``encoding="minus_one_unknown"``.

    Returns:
        A callback; its ``result`` is that of `catwise.tune`.

    Raises:
        MissingExtraError: If transformers is not installed.
        ConfigError: If an option does not go with a callback.
    """
    package = import_optional(
        "transformers", extra="trainer", purpose="a callback of transformers' Trainer"
    )
    base: Any = package.TrainerCallback

    class FinetuneCallback(AtEnd, base):  # type: ignore[misc]
        """`catwise.finetune` at the end of training."""

        def on_train_end(self, _args: Any, _state: Any, _control: Any, **found: Any) -> None:
            """Called by the trainer."""
            loaders = found.get("train_dataloader"), found.get("eval_dataloader")
            self.tune(found["model"], *loaders)

    return FinetuneCallback(train_loader, valid_loader, options)
