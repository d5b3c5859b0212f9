"""A run's page on this machine alone, by the standard library's server."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from catwise._limits import MAX_JSON, read_within
from catwise.errors import ConfigError, OutputError
from catwise.reporting.html import render_report
from catwise.reporting.run import read_run

HOST: Final = "127.0.0.1"
_NAMES: Final = (HOST, "localhost")
_PAGES: Final = ("/", "/report.html")
_REPORT: Final = "report.html"
_RUN: Final = ("records.json", "summary.json", "config.json")
_POLICY: Final = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)" />')
_WAIT: Final = 30.0
"""Seconds after which a browser that says nothing is no longer listened to."""


def read_page(run: Path) -> str:
    """The report of a run: its file, or made of its records where there is none.

    Args:
        run: the folder of `tune`, `select`, `extend` or `fix`, or a report's file.

    Raises:
        OutputError: If there is no such run, or its files are not as they were written.
        ConfigError: If the file is not a page that catwise made.
    """
    path = run if run.is_file() else run / _REPORT
    if path.is_file():
        try:
            text = read_within(path, MAX_JSON).decode("utf-8")
        except (OSError, ValueError) as error:
            raise OutputError(
                f"cannot read '{path}'.", found=getattr(error, "strerror", None) or str(error)
            ) from error
        if page_policy(text) is None:
            raise ConfigError(
                f"'{path}' is not a report.",
                expected="a run's folder, or a page that catwise wrote",
            )
        return text
    for folder in (run, run / "run"):
        if all((folder / name).is_file() for name in _RUN):
            return render_report(read_run(folder))
    raise OutputError(
        f"'{run}' is not a run.",
        found="a folder without report.html and records.json" if run.is_dir() else "nothing there",
        expected="a folder that catwise tune, select, extend or fix wrote",
    )


def page_policy(page: str) -> str | None:
    """The content security policy of a page that catwise made; None of any other.

    >>> page_policy(render_report({"kind": "tune", "summary": {}, "records": []}))[:19]
    "default-src 'none';"
    """
    found = _POLICY.search(page, 0, 4096)
    policy = "" if found is None else unescape(found[1])
    return policy if policy.startswith("default-src 'none'; ") and policy.isprintable() else None


class PageServer(ThreadingHTTPServer):
    """Serves one page at 127.0.0.1, and nothing else; `serve_forever` runs it.

    Args:
        read: gives the page anew for every request.
        port: 0 takes a free one.

    Raises:
        OutputError: If the port is not free.
    """

    daemon_threads = True

    def __init__(self, read: Callable[[], str], port: int = 0) -> None:
        self.read = read
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise OutputError(
                f"cannot listen on port {port}.",
                found="it is in use" if error.errno == errno.EADDRINUSE else error.strerror,
                remedy="choose another --port, or none for a free one",
            ) from error

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that went away is no news."""
        del request, client_address


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD of the page, from browsers that ask for this machine by its name."""

    server: PageServer
    timeout = _WAIT

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        # A page elsewhere whose name was made to lead here (DNS rebinding) sends its own name.
        allowed = {f"{name}:{self.server.server_port}" for name in _NAMES}
        if self.headers.get("Host") not in allowed:
            self.send_error(403, "Forbidden", "Only this machine may ask, by its own name.")
            return
        if self.path.partition("?")[0] not in _PAGES:
            self.send_error(404, "Not Found", "There is one page here: /")
            return
        try:
            page = self.server.read()
        except (ConfigError, OutputError) as error:
            self.send_error(503, "Service Unavailable", str(error))
            return
        body = page.encode()
        self.send_response(200)
        for name, value in _headers(page, len(body)).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def version_string(self) -> str:
        """The server's name, without versions."""
        return "catwise"

    def log_message(self, *args: object) -> None:
        """Nothing is logged."""
        del args


def _headers(page: str, length: int) -> dict[str, str]:
    """What the browser is told: the page's own policy, in no frame, kept by nobody."""
    closed = "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Length": str(length),
        "Content-Security-Policy": (page_policy(page) or "default-src 'none'") + closed,
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
