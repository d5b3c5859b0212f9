"""Packages of others: building their models, and the options that these take."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from catwise._extras import MUST_FIT
from catwise.errors import CatwiseError, ConfigError, reason_of

FAILS: Final = (
    RuntimeError, ValueError, TypeError, AttributeError, AssertionError, LookupError, ImportError,
    OSError, ArithmeticError, SyntaxError,
)  # fmt: skip
"""What a model of someone else's raises when it is built or run with wrong arguments."""


@contextlib.contextmanager
def building(what: str, *, remedy: str = "check the name and model_args") -> Iterator[None]:
    """Build a model of another package: its warnings and errors stay out, the seed as it was."""
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
            found=reason_of(cause, named=True),
            remedy=MUST_FIT if isinstance(error, ImportError) else remedy,
        ) from error


def split_options(
    model_args: Mapping[str, Any] | None, *, own: Mapping[str, Any], refused: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the options of an adapter from those of the architecture; some are refused."""
    args = dict(model_args or {})
    if found := sorted(set(refused) & set(args)):
        raise ConfigError(
            f"model_args has no {', '.join(found)}.",
            expected="options of the architecture",
            remedy="the weights are those of the checkpoint, and so many are its rows; nothing is "
            "downloaded",
        )
    mine = {key: args.pop(key, default) for key, default in own.items()}
    return mine, args
