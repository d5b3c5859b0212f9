"""`catwise view`: one page, to this machine alone, until Ctrl-C."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import catwise
from catwise.cli import main
from catwise.errors import OutputError
from catwise.reporting.run import write_run
from catwise.reporting.serving import PageServer, read_page
from catwise.testing import make_task


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    task = make_task(seed=0)
    result = catwise.tune(task.head, task.train.pair, task.valid.pair, test=task.test.pair)
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_run(result, folder)
    return folder


@pytest.fixture
def server(run_folder: Path) -> Iterator[PageServer]:
    with PageServer(lambda: read_page(run_folder)) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(
    server: PageServer, path: str = "/", method: str = "GET", host: str | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    headers = {} if host is None else {"Host": host}
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer, answer.read()


def test_the_page_is_served_with_its_policy(server: PageServer, run_folder: Path) -> None:
    """The report's bytes; its own policy as a header, in no frame; no version is told."""
    answer, body = ask(server)
    page = (run_folder / "report.html").read_bytes()
    assert (answer.status, body) == (200, page)
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert policy.endswith("frame-ancestors 'none'")
    assert "unsafe" not in policy
    assert answer.headers["Server"] == "catwise"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    answer, body = ask(server, method="HEAD")
    assert (answer.status, body) == (200, b"")
    assert answer.headers["Content-Length"] == str(len(page))


@pytest.mark.parametrize(
    "path",
    ["/records.json", "/head.safetensors", "/../run/records.json", "/%2e%2e/",
     "/report.html/x", "/favicon.ico"],
)  # fmt: skip
def test_nothing_else_is_served(server: PageServer, path: str) -> None:
    """Neither a file of the run, nor anything by a path that leads elsewhere."""
    answer, body = ask(server, path)
    assert answer.status == 404
    assert b"average_precision" not in body


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1:1"])
def test_other_names_of_this_machine_are_refused(server: PageServer, host: str) -> None:
    """A name that was made to lead here (DNS rebinding) reads nothing."""
    answer, body = ask(server, host=host)
    assert answer.status == 403
    assert b"average precision" not in body
    assert ask(server, host=f"localhost:{server.server_port}")[0].status == 200


def test_only_this_machine_is_listened_to(server: PageServer) -> None:
    """The address is the loopback's, and other methods are refused."""
    assert server.server_address[0] == "127.0.0.1"
    assert server.address == f"http://127.0.0.1:{server.server_port}/"
    assert ask(server, method="POST")[0].status == 501


def test_a_page_is_made_of_the_records(run_folder: Path, tmp_path: Path) -> None:
    """The same page where the report is gone, also in the folder of fix; nothing is written."""
    folder = tmp_path / "fixed" / "run"
    folder.mkdir(parents=True)
    for path in run_folder.iterdir():
        if path.name != "report.html":
            (folder / path.name).write_bytes(path.read_bytes())
    page = (run_folder / "report.html").read_text("utf-8")
    before = sorted(folder.iterdir())
    assert read_page(folder) == read_page(folder.parent) == page
    assert sorted(folder.iterdir()) == before
    assert read_page(run_folder / "report.html") == page


def test_a_run_that_vanished_is_told(server: PageServer) -> None:
    """The server stays, and says what is wrong."""

    def gone() -> str:
        raise OutputError("'run' is not a run.")

    server.read = gone
    answer, body = ask(server)
    assert answer.status == 503
    assert b"is not a run" in body


def test_wrong_use(tmp_path: Path, run_folder: Path) -> None:
    """One error each: no run, another page, two runs, a port in use."""
    other = tmp_path / "other.html"
    page = (run_folder / "report.html").read_text("utf-8")
    other.write_text(page.replace("default-src 'none'".replace("'", "&#39;"), "default-src *", 1))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, code, text in (
            ([tmp_path], 13, "is not a run"),
            ([tmp_path / "absent"], 13, "nothing there"),
            ([other], 12, "is not a report"),
            ([run_folder, run_folder], 2, "give one run"),
            ([run_folder, "--no-browser", "--port", port], 13, "it is in use"),
        ):
            found = CliRunner().invoke(main, ["view", *map(str, arguments)])
            assert found.exit_code == code, found.output
            assert text in found.stderr


def test_ctrl_c_ends_it(run_folder: Path) -> None:
    """It says where the page is, serves it, and ends with 0 and no traceback."""
    command = [sys.executable, "-m", "catwise", "view", str(run_folder), "--no-browser"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), line
        port = int(line.split()[0].rstrip("/").rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/")
        assert connection.getresponse().read(15) == b"<!DOCTYPE html>"
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=30)
    assert (process.returncode, out, error) == (0, "", "")
