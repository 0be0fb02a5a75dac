"""A PostgreSQL server for tests, from Debian's package, in a folder of its own and on loopback.

    python -m tests.services.postgres start /tmp/postgres     # prints the URL for --storage
    python -m tests.services.postgres restart /tmp/postgres   # as after a power cut
    python -m tests.services.postgres stop /tmp/postgres

The password contains characters that URLs and shells treat specially. The server refuses to run as root; then it runs
as the user `postgres`, who must have access to the folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

from tests.services.daemons import find, free_ports

PROGRAMS = ("initdb", "pg_ctl")
USER, PASSWORD = "study", "p@ss/w:rd%41?"
# fsync is off: no data here has to survive a power cut.
CONFIG = "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{folder}'\nfsync = off\n"


def start(folder: Path) -> str:
    """Creates the server's files if there are none, starts it, and returns its URL. Restarts keep the port."""
    data = folder / "data"
    if not data.exists():
        folder.mkdir(parents=True, exist_ok=True)
        password = folder / "password"
        password.write_text(PASSWORD)
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        _run("initdb", f"--pgdata={data}", f"--username={USER}", "--auth=scram-sha-256", f"--pwfile={password}",
             "--encoding=UTF8", "--no-locale", "--no-sync")  # fmt: skip
        with (data / "postgresql.conf").open("a") as file:
            file.write(CONFIG.format(port=free_ports(1)[0], folder=folder))
    _run("pg_ctl", "start", "--wait", f"--pgdata={data}", f"--log={folder}/postgres.log")
    return url(folder)


def stop(folder: Path, mode: str = "fast") -> None:
    """Stops the server. `immediate` is like a crash: connections break, and the next start recovers."""
    _run("pg_ctl", "stop", f"--mode={mode}", f"--pgdata={folder / 'data'}")


def url(folder: Path, database: str = "postgres", password: str = PASSWORD) -> str:
    """Returns the URL of a database, for `--storage`."""
    return f"postgresql+psycopg://{USER}:{quote(password, safe='')}@127.0.0.1:{port(folder)}/{database}"


def port(folder: Path) -> int:
    lines = (folder / "data" / "postgresql.conf").read_text().splitlines()
    return next(int(line.removeprefix("port = ")) for line in lines if line.startswith("port = "))


def _run(program: str, *arguments: str) -> None:
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    # Output is not captured: the server would inherit the pipe, and reading from it would never end.
    done = subprocess.run([*user, str(find(program)), *arguments], stdout=subprocess.DEVNULL, cwd="/")
    if done.returncode:
        raise RuntimeError(f"{program} failed with {done.returncode}")


if __name__ == "__main__":
    verb, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    if verb == "restart":
        stop(folder, "immediate")
    if verb == "stop":
        stop(folder)
    else:
        print(start(folder))
