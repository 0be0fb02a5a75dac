"""`report --serve`: serves the report of a running study on this machine, and rewrites it when records change."""

from __future__ import annotations

import getpass
import io
import platform
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from study.cli.background import BackgroundTask
from study.cli.study_observer import StudyObserver

HOST = "127.0.0.1"
ALLOWED_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d+)?", re.IGNORECASE)  # a tunnel may have another port
PORT = 8347  # fixed, so that bookmarks and tunnels keep working; a free one if it is taken
REPORT_SHARE = 0.1  # of this machine's processor time
MAX_CONNECTIONS = 32  # at once; a browser opens six
IDLE_SECONDS = 10.0  # that a client may take to send, or to receive, the next bytes
PAGE, VERSION, ICON = "report.html", "/version", "/favicon.ico"
# What the report consists of, in its folder; this holds W&B runs, too.
SERVED = re.compile(r"(report|compare)\.html|answers\.json|\w+\.parquet|(figures|tables)/[^/]+")
# Appended to the page when it is sent, not to the file: reloads the page when there is a newer one, and keeps the
# scroll position.
SCRIPT = """
<script>
(() => {
  const page = "VERSION", key = "scroll position of " + location.pathname;
  const [x, y] = JSON.parse(sessionStorage.getItem(key) || "[0, 0]");
  sessionStorage.removeItem(key);
  if (y || x) addEventListener("load", () => scrollTo(x, y));
  setInterval(async () => {
    try {
      const answer = await fetch("/version", {cache: "no-store"});
      if (!answer.ok || await answer.text() === page) return;
      sessionStorage.setItem(key, JSON.stringify([scrollX, scrollY]));
      location.reload();
    } catch {}  // the server has ended: the page stays as it is
  }, 2000);
})();
</script>
"""


def serve_report(observer: StudyObserver, print_line: Callable[[str], None]) -> None:
    """Serves the report of a study and rewrites it in the background when records change, until Ctrl-C.

    observer: has read the records before the report was written, so that no change since then is missed.
    """
    server = open_server(observer.folder.report)
    port = server.server_address[1]
    print_line(
        f"\nhttp://{HOST}:{port}/ shows the report and follows the study. Press Ctrl-C to end.\nFrom another machine: "
        f"ssh -L {port}:{HOST}:{port} {getpass.getuser()}@{platform.node()}, then open the same address there."
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    task, shown_error = BackgroundTask("report", observer.folder, share=REPORT_SHARE, first=0.0), ""
    task.version = observer.version
    try:
        while True:
            time.sleep(observer.pause)
            observer.read_records()
            if task.poll(observer.version) and task.error != shown_error:
                shown_error = task.error
                print_line(f"The report cannot be written: {task.error}" if task.error else "The report is up to date.")
    except KeyboardInterrupt:
        print_line("\nStopped serving. The report stays on disk.")
    finally:
        task.close()
        server.shutdown()
        server.server_close()


def open_server(root: Path, port: int = PORT) -> ThreadingHTTPServer:
    """Opens a server of the report in `root`, on the loopback interface only; on a free port if `port` is taken."""
    handler = partial(_Handler, directory=str(root.resolve()))
    try:
        return _Server((HOST, port), handler)
    except OSError:
        return _Server((HOST, 0), handler)


class _Server(ThreadingHTTPServer):
    """One thread per connection, and a limited number of connections: a new one ends the oldest."""

    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        self.connections: dict[socket.socket, None] = {}  # in the order in which they were opened
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections[request] = None
        for oldest in list(self.connections)[:-MAX_CONNECTIONS]:
            self.connections.pop(oldest, None)
            with suppress(OSError):  # it has ended by itself
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints errors of this program only: a client may leave, or be too slow."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(SimpleHTTPRequestHandler):
    """Answers GET and HEAD for the files of a report; the base class answers other methods with an error."""

    timeout = IDLE_SECONDS

    def send_head(self) -> io.BytesIO | BinaryIO | None:
        """Sends the headers; returns the content, or None after an error."""
        path, page = urlsplit(self.path).path, Path(self.directory, PAGE)
        # Read before the page: if it is replaced in between, it is only loaded twice.
        version = str(page.stat().st_mtime_ns) if page.is_file() else "0"
        # Protects from DNS rebinding: another site may have its name resolve to this machine, but a browser then sends
        # that name as the host.
        if not ALLOWED_HOST.fullmatch(self.headers.get("Host", "")):
            self.send_error(HTTPStatus.FORBIDDEN, "not a name of this machine")
        elif path == VERSION:
            return self._send_content(version.encode(), "text/plain")
        elif path == ICON:  # browsers ask for one, and would log an error
            return self._send_content(b"", "image/x-icon")
        elif path in ("/", f"/{PAGE}") and page.is_file():
            content = page.read_bytes() + SCRIPT.replace("VERSION", version).encode()
            return self._send_content(content, "text/html; charset=utf-8")
        elif self._is_served():
            return super().send_head()
        else:
            self.send_error(HTTPStatus.NOT_FOUND)
        return None

    def end_headers(self) -> None:
        """Adds headers to every answer: nothing is cached, and no other site may embed it."""
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        super().end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Prints nothing: the terminal is for the study."""

    def _is_served(self) -> bool:
        """Whether the URL is that of a file of the report, with links resolved."""
        try:
            file = Path(self.translate_path(self.path)).resolve()
            name = file.relative_to(self.directory).as_posix()
            return SERVED.fullmatch(name) is not None and file.is_file()
        except (OSError, ValueError):  # outside of the folder, or not a valid file name
            return False

    def _send_content(self, content: bytes, kind: str) -> io.BytesIO:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return io.BytesIO(content)
