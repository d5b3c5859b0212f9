"""One check of what is raised at a damaged file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from catwise.errors import CatwiseError


def check_fault(read: Callable[[], Any], kind: type[CatwiseError], *words: object) -> CatwiseError:
    """Reading fails with this very class, and the message has all the words: file, place, fault."""
    with pytest.raises(CatwiseError) as caught:
        read()
    assert type(caught.value) is kind
    for word in words:
        assert str(word) in str(caught.value)
    return caught.value
