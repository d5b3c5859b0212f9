"""What every test of the command line needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cli.remedies import watching
from cli.remedies_table import REMEDIES
from cli.schemas import checking

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def plain_terminal() -> Iterator[None]:
    """Tables have the width for pipes, whatever the runner says about its terminal."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True)
def remedies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What errors recommend is listed, and runs; see `cli.remedies`."""
    with watching(tmp_path_factory.getbasetemp(), REMEDIES):
        yield


@pytest.fixture(autouse=True)
def schemas() -> Iterator[None]:
    """What `--json` prints is by its schema; see `cli.schemas`."""
    with checking():
        yield
