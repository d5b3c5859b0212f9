"""Where to compute: a device by its name, refused with a reason where it cannot be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from catwise.errors import ConfigError

if TYPE_CHECKING:
    import torch


def resolve_device(device: str | torch.device) -> torch.device:
    """The device of that name; ConfigError where there is none."""
    import torch

    try:
        place = torch.device(device)
        if place.type == "meta":
            raise NotImplementedError("it holds shapes and no numbers")  # noqa: TRY301 - as torch does
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise ConfigError(
            f"the device {str(device)!r} cannot be used.",
            found=str(error).strip().split("\n")[0].split(". ")[0],
            expected="cpu" + (", cuda" if torch.cuda.is_available() else ""),
        ) from error
    return place
