"""`report --serve`: the report of a running study on a page of this machine alone, which keeps up with the records."""

from __future__ import annotations

import getpass
import mimetypes
import platform
import shutil
import threading
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from study.cli.background import Background
from study.record.layout import StudyFolder

HOST = "127.0.0.1"
OWN_NAMES = ("127.0.0.1", "localhost")
PORT = 8347  # a free one where another server has it; the same one again serves bookmarks and tunnels
REPORT_SHARE = 0.1  # of this machine's processor time
LOOK_SECONDS = 2.0
PAGE, VERSION, ICON = "report.html", "/version", "/favicon.ico"
# Added to the page as it is sent, and not to the file: asks for a newer one, and goes back to where the reader was.
SCRIPT = """
<script>
(() => {
  const page = "VERSION", place = "place of " + location.pathname;
  const [x, y] = JSON.parse(sessionStorage.getItem(place) || "[0, 0]");
  sessionStorage.removeItem(place);
  if (y || x) addEventListener("load", () => scrollTo(x, y));
  setInterval(async () => {
    try {
      const answer = await fetch("/version", {cache: "no-store"});
      if (!answer.ok || await answer.text() === page) return;
      sessionStorage.setItem(place, JSON.stringify([scrollX, scrollY]));
      location.reload();
    } catch {}  // the server is away: the page stays as it is
  }, 2000);
})();
</script>
"""


def serve_report(folder: StudyFolder, say: Callable[[str], None]) -> None:
    """Serves the report that there is, and has it made anew as records come, until Ctrl-C."""
    server = open_server(folder.report)
    port = server.server_address[1]
    say(
        f"\nhttp://{HOST}:{port}/ keeps up with the study; Ctrl-C ends it\nfrom another machine: "
        f"ssh -L {port}:{HOST}:{port} {getpass.getuser()}@{platform.node()}, and the same address there"
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    work, shown = Background("report", folder, share=REPORT_SHARE, first=0.0), ""
    work.stamp = fingerprint(folder)  # the report is of these records, or nearly
    wait = threading.Event()
    try:
        while True:
            if work.poll(fingerprint(folder)) and work.error != shown:
                shown = work.error
                say(f"the report cannot be made: {shown}" if shown else "the report is made again")
            wait.wait(LOOK_SECONDS)
    except KeyboardInterrupt:
        say("\nended; the report stays where it is")
    finally:
        work.close()
        server.shutdown()
        server.server_close()


def open_server(root: Path, port: int = PORT) -> ThreadingHTTPServer:
    """A server of the files below `root`, on the loopback interface alone; on a free port where `port` is taken."""
    handler = partial(_Handler, root.resolve())
    try:
        return _Server((HOST, port), handler)
    except OSError:
        return _Server((HOST, 0), handler)


def fingerprint(folder: StudyFolder) -> int:
    """A number that changes when a trial begins, ends or has another result."""
    stamps = []
    for pattern in ("study.yaml", "trials/*/r*/state.json", "trials/*/r*/result.json"):
        for path in folder.path.glob(pattern):
            try:
                stamps.append((str(path), path.stat().st_mtime_ns))
            except OSError:  # replaced at this moment
                stamps.append((str(path), 0))
    return hash(frozenset(stamps))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True


class _Handler(BaseHTTPRequestHandler):
    """Files of one folder, to GET and HEAD. Others are not implemented, which the base class says."""

    def __init__(self, root: Path, *arguments: object) -> None:
        self.root = root
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self._answer(send=True)

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: the terminal is for the study."""

    def _answer(self, *, send: bool) -> None:
        # A page of another site can have its name point here; it cannot have a browser say one of ours.
        if _host_name(self.headers.get("Host", "")) not in OWN_NAMES:
            return self.send_error(HTTPStatus.FORBIDDEN, "not a name of this machine")
        path = unquote(urlsplit(self.path).path)
        if path == VERSION:
            return self._send(_version(self.root / PAGE).encode(), "text/plain", send=send)
        if path == ICON:  # which browsers ask for, and would note as an error
            self.send_response(HTTPStatus.NO_CONTENT)
            return self.end_headers()
        file = self._find(path)
        if file is None:
            return self.send_error(HTTPStatus.NOT_FOUND)
        if file.name == PAGE:
            version = _version(file)  # before it is read: a page that is newer than it says is only loaded twice
            page = file.read_bytes() + SCRIPT.replace("VERSION", version).encode()
            return self._send(page, "text/html; charset=utf-8", send=send)
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        with open(file, "rb") as content:
            self._head(content.seek(0, 2), kind)
            content.seek(0)
            if send:
                shutil.copyfileobj(content, self.wfile)
        return None

    def _find(self, path: str) -> Path | None:
        """The file of the folder that a path names, links followed; None for whatever lies elsewhere."""
        try:
            file = (self.root / (path.lstrip("/") or PAGE)).resolve()
            return file if file.is_relative_to(self.root) and file.is_file() else None
        except (OSError, ValueError):  # no name of a file
            return None

    def _send(self, content: bytes, kind: str, *, send: bool) -> None:
        self._head(len(content), kind)
        if send:
            self.wfile.write(content)

    def _head(self, length: int, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        for name, value in {
            "Content-Type": kind, "Content-Length": str(length), "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin",
        }.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()


def _host_name(host: str) -> str | None:
    """Without the port, which is another at the near end of a tunnel."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _version(page: Path) -> str:
    try:
        return str(page.stat().st_mtime_ns)
    except OSError:  # no report yet
        return "0"
