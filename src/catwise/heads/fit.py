"""Whether a head fits where it is to be written: its bias, its numbers, the file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from catwise.errors import HeadError, OutputError
from catwise.heads.core import Head


def fitting_bias(
    head: Head, bias: str | None, *, what: str, found: str | None = None, remedy: str | None = None
) -> torch.Tensor | None:
    """The bias to write where one called `bias` is, or none; neither side's is invented.

    Errors name the place as `what`, and tell `found` and `remedy` where it has no bias.
    """
    if head.bias is None and bias is not None:
        raise HeadError(
            f"{what} has a bias and the new one has none.",
            found=f"bias {bias!r}",
            remedy="head.replace(bias=torch.zeros(…)) says that the bias shall be zero",
        )
    if head.bias is None or bias is not None:
        return head.bias
    if bool((head.bias != 0).any()):
        raise HeadError(
            f"the new head has a bias and {what} has none: it cannot be written.",
            found=found,
            expected="a head without a bias",
            remedy=remedy or "tune without a bias",
        )
    return None


def fitting_numbers(
    values: torch.Tensor, dtype: torch.dtype, *, what: str, remedy: str | None = None
) -> torch.Tensor:
    """Numbers cast to the dtype of `what`; HeadError where one becomes infinite."""
    cast = values.detach().to(dtype)
    if not bool(cast.isfinite().all()):
        raise HeadError(
            f"the head does not fit into {what}: a number is too large for its dtype.",
            found=f"up to {float(values.double().abs().max()):.4g}",
            expected=f"at most {torch.finfo(dtype).max:.4g} ({str(dtype).removeprefix('torch.')})",
            remedy=remedy,
        )
    return cast


def check_destination(
    destination: Path, sources: Iterable[Path], *, what: str, overwrite: bool
) -> None:
    """Refuse a file that is one of the sources, or that is there and is not to be replaced."""
    if not destination.exists():
        return
    if any(destination.samefile(source) for source in sources):
        raise OutputError(
            f"'{destination}' is {what} itself.",
            expected="a new file: an input is never changed",
            remedy="choose another name",
        )
    if not overwrite:
        raise OutputError(
            f"'{destination}' exists.",
            remedy="choose another name, or replace it with overwrite=True",
        )


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are of one dtype, shape and bytes."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    first, second = (part.contiguous().flatten().view(torch.uint8) for part in (a, b))
    return torch.equal(first, second)
