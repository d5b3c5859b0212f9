"""Packages of others: importing them, building their models, and the options that they take."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from typing import TYPE_CHECKING, Any, Final

from catwise.errors import CatwiseError, ConfigError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["FAILS", "building", "first_line", "import_optional", "take_options"]

BROKEN: Final = (ImportError, RuntimeError, OSError, AttributeError)
"""What an absent package raises on import, and one whose parts do not fit together."""
FAILS: Final = (
    RuntimeError, ValueError, TypeError, AttributeError, AssertionError, LookupError, ImportError,
    OSError, ArithmeticError, SyntaxError,
)  # fmt: skip
"""What a model of someone else's raises when it is built or run with wrong arguments."""
_FIT: Final = "the packages must fit one another; torch and torchvision come in pairs"


def import_optional(name: str, *, extra: str) -> Any:
    """Import a package that catwise does not depend on.

    Args:
        name: the module, such as ``"timm"`` or ``"timm.data"``.
        extra: the extra of catwise that installs it.

    Raises:
        MissingExtraError: If it is absent, or one that it needs is broken.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except BROKEN as error:
        package = name.partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            raise MissingExtraError(
                f"{package} is not installed.", remedy=f"pip install 'catwise[{extra}]'"
            ) from error
        raise MissingExtraError(
            f"{package} is installed, and cannot be imported.",
            found=f"{type(error).__name__}: {first_line(error)}",
            remedy=f"pip install 'catwise[{extra}]' in a fresh environment: {_FIT}",
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return str(error).strip().partition("\n")[0]


@contextlib.contextmanager
def building(what: str, *, remedy: str = "check the name and model_args") -> Iterator[None]:
    """Build a model of another package: its warnings and errors stay out, the seed as it was.

    Raises:
        ConfigError: If the block fails.
    """
    import torch

    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except CatwiseError:
        raise
    except Exception as error:  # code of others, which may raise anything
        cause = error.__cause__ if isinstance(error, ImportError) and error.__cause__ else error
        raise ConfigError(
            f"{what} cannot be built.",
            found=f"{type(cause).__name__}: {first_line(cause)}",
            remedy=_FIT if isinstance(error, ImportError) else remedy,
        ) from error


def take_options(
    model_args: Mapping[str, Any] | None, *, own: Mapping[str, Any], refused: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part what an adapter takes from what the architecture takes.

    Args:
        model_args: as the user gave them.
        own: the adapter's options and their defaults.
        refused: what catwise decides itself.

    Returns:
        The adapter's options, and the architecture's.

    Raises:
        ConfigError: If one is refused.

    >>> take_options({"heads": "both", "img_size": 64}, own={"heads": "refuse"})
    ({'heads': 'both'}, {'img_size': 64})
    """
    args = dict(model_args or {})
    if found := sorted(set(refused) & set(args)):
        raise ConfigError(
            f"model_args has no {', '.join(found)}.",
            expected="options of the architecture",
            remedy="checkpoint=… gives the weights, n_categories=… the rows; nothing is downloaded",
        )
    mine = {key: args.pop(key, default) for key, default in own.items()}
    return mine, args
