"""The server of `report --serve`, over HTTP on the loopback interface."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from study.analysis.report.report import Report
from study.bench.synthetic_records import Truth, write_study
from study.cli import report_server
from study.cli.report_server import MAX_CONNECTIONS, open_server
from study.config.schema import StudyConfig
from study.plan.trials import plan_trials
from study.record.layout import StudyFolder
from tests.cli.conftest import STUDY, write_failed
from tests.conftest import ROOT, Command

SECRET = "not for others"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "report"
    (root / "figures").mkdir(parents=True)
    (root / "report.html").write_text("<html><p>the report</p></html>")
    (root / "answers.json").write_text("{}")
    (root / "figures" / "one.svg").write_text("<svg/>")
    (tmp_path / "secret").write_text(SECRET)
    (root / "link").symlink_to(tmp_path / "secret")
    return root


@pytest.fixture
def server(root: Path) -> Iterator[ThreadingHTTPServer]:
    server = open_server(root, port=0)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(
    server: ThreadingHTTPServer, path: str, method: str = "GET", host: str = "localhost"
) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request(method, path, headers={"Host": host})
    return connection.getresponse()


def test_the_page_is_the_file_with_a_script_appended(server: ThreadingHTTPServer, root: Path) -> None:
    answer = ask(server, "/")
    page = answer.read().decode()
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert page.startswith("<html><p>the report</p></html>")
    assert f'"{ask(server, "/version").read().decode()}"' in page
    assert "script" not in (root / "report.html").read_text()


def test_a_newer_page_has_another_version(server: ThreadingHTTPServer, root: Path) -> None:
    before = ask(server, "/version").read()
    assert ask(server, "/version").read() == before
    os.utime(root / "report.html", ns=(1, 1))
    assert ask(server, "/version").read() != before


@pytest.mark.parametrize(
    ("path", "kind"), [("/answers.json", "application/json"), ("/figures/one.svg", "image/svg+xml")]
)
def test_files_of_the_report_are_served(server: ThreadingHTTPServer, root: Path, path: str, kind: str) -> None:
    answer = ask(server, path)
    assert (answer.status, answer.headers["Content-Type"]) == (200, kind)
    assert answer.read() == (root / path[1:]).read_bytes()


ELSEWHERE = ["/../secret", "/%2e%2e/secret", "/figures/../../secret", "//etc/passwd", "/link", "/..%2fsecret"]
NO_FILES = ["/%00", "/figures", "/nothing", "/" + "x" * 5000]


@pytest.mark.parametrize("path", [*ELSEWHERE, *NO_FILES], ids=lambda path: path[:20])
def test_other_paths_are_not_found(server: ThreadingHTTPServer, path: str) -> None:
    answer = ask(server, path)
    assert answer.status == 404
    assert SECRET not in answer.read().decode()


def test_head_sends_no_body_and_other_methods_are_not_implemented(server: ThreadingHTTPServer) -> None:
    head = ask(server, "/answers.json", "HEAD")
    assert (head.status, head.headers["Content-Length"], head.read()) == (200, "2", b"")
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(server, "/", method).status == 501


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost@evil.example:80", "[::1"])
def test_other_host_names_are_refused(server: ThreadingHTTPServer, host: str) -> None:
    assert ask(server, "/", host=host).status == 403


@pytest.mark.parametrize("host", ["127.0.0.1:8347", "localhost:9000", "LOCALHOST"])  # 9000: the near end of a tunnel
def test_names_of_this_machine_are_answered(server: ThreadingHTTPServer, host: str) -> None:
    assert ask(server, "/", host=host).status == 200


def test_only_the_loopback_interface_is_used_and_a_free_port_if_the_usual_one_is_taken(
    server: ThreadingHTTPServer, root: Path
) -> None:
    address, port = server.server_address[:2]
    other = open_server(root, port=int(port))
    assert (address, other.server_address[0]) == ("127.0.0.1", "127.0.0.1")
    assert other.server_address[1] not in (0, port)
    other.server_close()


@pytest.mark.slow
def test_the_command_serves_rewrites_the_report_and_ends_on_ctrl_c(study: StudyConfig, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / study.name)
    write_study(folder, study, Truth(), only=lambda trial: trial.config.norm == "sn")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run_study.py"), "report", "--serve", *STUDY, "--out", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    url = next(filter(None, (re.search(r"http://127\.0\.0\.1:(\d+)/", line) for line in process.stdout)))
    assert f"ssh -L {url[1]}:127.0.0.1:{url[1]} " in process.stdout.readline()
    page = folder.report / "report.html"
    written = page.stat().st_mtime_ns
    connection = http.client.HTTPConnection("127.0.0.1", int(url[1]), timeout=10)
    connection.request("GET", "/")
    assert b"location.reload()" in connection.getresponse().read()
    planned = next(trial for trial in plan_trials(study) if trial.config.norm == "bn")
    write_failed(folder.trial(planned.trial_id, planned.replicate), "MemoryError: 3 MiB")
    deadline = time.monotonic() + 120
    while page.stat().st_mtime_ns == written and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "MemoryError: 3 MiB" in page.read_text()
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Stopped serving" in printed
    assert "Traceback" not in printed


def test_serving_writes_no_figures_as_files(
    study: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    """They take a minute or more, in which there would be no address."""
    write_study(StudyFolder(tmp_path / study.name), study, Truth(), only=lambda trial: trial.config.norm == "sn")
    served, exported = [], []
    monkeypatch.setattr(report_server, "serve_report", lambda observer, print_line: served.append(observer))
    monkeypatch.setattr(Report, "export", lambda self: exported.append(self.folder) or [])
    assert command("report", "--serve", *STUDY, "--out", str(tmp_path)).code == 0
    assert (len(served), exported) == (1, [])
    assert command("report", *STUDY, "--out", str(tmp_path)).code == 0
    assert (len(served), len(exported)) == (1, 1)


def test_a_trial_that_ends_while_the_report_is_written_is_a_change(
    study: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    """A report takes many seconds; one that was written without the trial has to be written again."""
    folder = StudyFolder(tmp_path / study.name)
    write_study(folder, study, Truth(), only=lambda trial: trial.config.norm == "sn")
    planned = next(trial for trial in plan_trials(study) if trial.config.norm == "bn")
    write, served = Report.write, []

    def write_slowly(report: Report) -> Path:
        path = write(report)
        write_failed(folder.trial(planned.trial_id, planned.replicate), "MemoryError: 3 MiB")
        return path

    monkeypatch.setattr(Report, "write", write_slowly)
    monkeypatch.setattr(report_server, "serve_report", lambda observer, print_line: served.append(observer))
    assert command("report", "--serve", *STUDY, "--out", str(tmp_path)).code == 0
    written = served[0].version
    served[0].read_records()
    assert served[0].version != written


def test_other_files_in_the_folder_are_not_served(server: ThreadingHTTPServer, root: Path) -> None:
    for name in (
        "wandb/run-1/files/config.yaml",
        "dashboard/report.json",
        "notes.txt",
        ".hidden",
        "figures/deep/x.svg",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(SECRET)
        assert ask(server, f"/{name}").status == 404
    (root / "figures" / "link.svg").symlink_to(root / "notes.txt")
    assert ask(server, "/figures/link.svg").status == 404


def test_clients_that_leave_print_nothing(
    server: ThreadingHTTPServer, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "report.html").write_bytes(b"x" * 2**24)
    for request in (b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /version HTTP/1.1\r\nHost: loc"):
        with socket.create_connection(server.server_address[:2]) as client:
            client.sendall(request)
            # Ends the connection by a reset, as a killed client does.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert ask(server, "/version").status == 200
    wait_until(lambda: not server.connections)
    assert capsys.readouterr().err == ""


def test_many_idle_clients_hold_few_threads_and_keep_nobody_out(server: ThreadingHTTPServer) -> None:
    before = threading.active_count()
    clients = [socket.create_connection(server.server_address[:2]) for _ in range(4 * MAX_CONNECTIONS)]
    assert ask(server, "/").status == 200
    wait_until(lambda: threading.active_count() <= before + MAX_CONNECTIONS)
    for client in clients:
        client.close()


def test_a_client_that_sends_nothing_is_disconnected(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 1 < report_server.IDLE_SECONDS <= 30
    monkeypatch.setattr(report_server._Handler, "timeout", 0.1)
    with socket.create_connection(server.server_address[:2], timeout=10) as client:
        assert client.recv(1) == b""


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
