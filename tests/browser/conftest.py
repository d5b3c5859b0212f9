"""A real Chromium without a window, shared by the tests of this folder.

It is found as `chromium` (Debian's package), or where CATWISE_CHROMIUM says. Without one the tests
are skipped, but not where CATWISE_NEEDS_CHROMIUM is set, as in CI.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]


def chromium() -> str | None:
    return os.environ.get("CATWISE_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A browser that loads nothing: every request but to a file fails the test that made it."""
    path = chromium()
    if path is None:
        if os.environ.get("CATWISE_NEEDS_CHROMIUM"):
            pytest.fail("no chromium was found, and CATWISE_NEEDS_CHROMIUM is set")
        pytest.skip("no chromium was found: apt-get install chromium, or set CATWISE_CHROMIUM")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield opened
        opened.close()


class Window:
    """A page in a window of its own, and what went wrong in it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.messages: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda one: self.messages.append(f"{one.type}: {one.text}"))
        page.on("pageerror", lambda one: self.messages.append(f"error: {one}"))
        page.on("request", self._note)

    def _note(self, request: Any) -> None:
        """Every request but for what stands in the page."""
        if not request.url.startswith("data:image/jpeg;base64,"):
            self.requests.append(request.url)

    def run(self, script: str, argument: object = None) -> Any:
        """The value of a script in the page."""
        return self.page.evaluate(script, argument)

    def unfold(self) -> None:
        """Open everything that is folded."""
        self.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")


@pytest.fixture
def look(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens HTML at a size; at the end no message and no request but for the page itself."""
    windows: list[tuple[Window, Any]] = []

    def show(html: str, width: int = 1280, height: int = 800, scheme: str = "light") -> Window:
        path = tmp_path / f"page{len(windows)}.html"
        path.write_text(html, encoding="utf-8")
        size = {"width": width, "height": height}
        context = browser.new_context(viewport=size, color_scheme=scheme, bypass_csp=False)
        window = Window(context.new_page())
        window.page.goto(path.as_uri())
        windows.append((window, context))
        return window

    yield show
    for window, context in windows:
        messages, requests = window.messages, window.requests
        context.close()
        assert messages == []
        assert len(requests) == 1
