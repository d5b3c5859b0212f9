"""What every test runs under: a date that stands still, and settings that are put back."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

os.environ.setdefault("SOURCE_DATE_EPOCH", "1767225600")  # 2026-01-01; also for what tests start


def _settings() -> dict[str, object]:
    """Settings of the process that change what later tests compute."""
    torch: ModuleType | None = sys.modules.get("torch")
    if torch is None:
        return {}
    return {
        "threads": torch.get_num_threads(),
        "default type": torch.get_default_dtype(),
        "products in float32": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@pytest.fixture(autouse=True)
def settings_are_put_back() -> Iterator[None]:
    """No test leaves torch with another number of threads: runs of the next would differ."""
    before = _settings()
    yield
    if before:
        assert _settings() == before
