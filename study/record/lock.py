"""The lock of a study or a trial: one process at a time, also where the locks of a file system end at each machine."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, SoftFileLease, Timeout
from filelock import LeaseCompromise as Loss

LEASE_SECONDS = 30.0  # without a heartbeat, after which another machine may take a lease; the same in every version
LEASE_POLL_SECONDS = 0.5
SILENT_SECONDS = 3 * LEASE_SECONDS  # without a heartbeat, after which a process is described as silent
ABANDONED_SECONDS = 10 * LEASE_SECONDS  # without a heartbeat, after which a lease is void; clocks may differ by minutes


class OwnedLock:
    """A file lock, and a lease: an exclusive file whose modification time its owner renews every 10 s.

    The kernel releases the file lock when the process dies, at once. On some network file systems (Lustre with
    `localflock`, NFS with `local_lock`) other machines do not see file locks. They see the lease. A process that dies
    leaves it behind: on the same machine it is taken over at once, on others after `LEASE_SECONDS`.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.owner = path, Path(f"{path}-owner")
        self._lock = FileLock(path)
        self._lease = SoftFileLease(self.owner, lease_duration=LEASE_SECONDS, on_compromise=_stop)

    def acquire(
        self, timeout: float = -1, *, blocking: bool = True, poll_interval: float = 0.05
    ) -> AbstractContextManager[None]:
        """Returns a context that releases the lock. Raises `Timeout` if another process holds it.

        Where only a lease is left, it waits for a heartbeat, or for `LEASE_SECONDS` to pass without one.
        """
        self._lock.acquire(timeout, poll_interval, blocking=blocking)
        try:
            if (self.seconds_silent() or 0) > ABANDONED_SECONDS:
                self.owner.unlink(missing_ok=True)
            self._acquire_lease(blocking=blocking, forever=timeout < 0)
        except BaseException:
            self._lock.release()
            raise
        return self._held()

    def release(self) -> None:
        """Releases the lock and the lease."""
        self._lease.release()
        self._lock.release()

    def is_held(self) -> bool:
        """Whether a process holds the lock, or has renewed its lease within `LEASE_SECONDS`."""
        if not self.path.exists():  # acquiring the lock would create the file, and the folder of a planned trial
            return False
        silent = self.seconds_silent()
        lives = silent is not None and silent < LEASE_SECONDS
        try:
            with self._lock.acquire(blocking=False):
                if lives:
                    self._lease.acquire(blocking=False)  # succeeds if its owner has died on this machine
                    self._lease.release()
        except Timeout:
            return True
        except OSError:  # another user's folder, or a read-only file system
            return lives
        return False

    def seconds_silent(self) -> float | None:
        """Seconds since the owner's last heartbeat; None if there is no lease, as in older versions."""
        beat = self._read_beat()
        return None if beat is None else time.time() - beat

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _acquire_lease(self, *, blocking: bool, forever: bool) -> None:
        before = self._read_beat()
        while True:
            try:
                self._lease.acquire(blocking=False)
                return
            except Timeout:
                if not blocking or (self._read_beat() != before and not forever):
                    raise
            time.sleep(LEASE_POLL_SECONDS)

    def _read_beat(self) -> float | None:
        """The time of the last heartbeat by the clock of the file server; None if there is no lease."""
        try:
            with open(self.owner, "rb") as file:  # NFS asks the server for a file that is opened
                return os.fstat(file.fileno()).st_mtime
        except OSError:
            return None

    @contextmanager
    def _held(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.release()


def _stop(loss: Loss) -> None:
    """Called by the thread of the heartbeat: ends this process if another one has taken the lease."""
    if loss.reason in ("owner-changed", "marker-missing"):
        print(f"{loss.lock_file}: taken by another process; this one ends", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
