"""Waiting for a storage that is away: a server that restarts, a network that is down, a file that another holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from study.config.errors import UserError
from study.record.environment import hide_passwords

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0  # seconds
# What waiting does not mend: wrong credentials, no such database, no rights, no space. PostgreSQL gives codes, but none
# while a connection is being made; SQLite gives only words.
_PERMANENT_CODES = ("28", "3D", "42501", "53100")
_PERMANENT_WORDS = ("authentication failed", "does not exist", "no password supplied", "pg_hba.conf", "is full",
                   "readonly", "unable to open", "disk i/o")  # fmt: skip
_SQLITE_BUSY = ("locked", "busy")


class StorageUnavailable(Exception):  # noqa: N818
    """Holds what the database said.

    None of SQLAlchemy's errors: after those Optuna itself asks for a trial again, one too many where the first had come
    through and only the answer was lost.
    """


def raise_if_unavailable(engine: Engine) -> None:
    """Has the engine raise `StorageUnavailable` where waiting may help."""

    @event.listens_for(engine, "handle_error")
    def _(context: ExceptionContext) -> StorageUnavailable | None:
        error = context.sqlalchemy_exception
        may_help = isinstance(error, DBAPIError) and _is_transient(error) and not context.is_pre_ping
        return StorageUnavailable(error) if may_help else None


class StorageRetry:
    """Does things with a storage again until it answers. Whatever is done must bear to be done twice."""

    def __init__(self, storage: str, say: Callable[[str], object], limit: float = float("inf")) -> None:
        """For at most `limit` seconds. `storage` is its name in messages, `say` takes them."""
        self.storage, self.say, self.limit = storage, say, limit
        self.pause, self.again_at, self.away_since = 0.0, 0.0, 0.0

    def run_until_ok(self, act: Callable[[], T]) -> T:
        """Acts until the storage answers."""
        done: list[T] = []
        while not self.try_once(lambda: done.append(act())):
            time.sleep(max(0.0, self.again_at - time.monotonic()))
        return done[0]

    def try_once(self, act: Callable[[], object]) -> bool:
        """Acts once, or not at all in the pause after a failure; whether it was done.

        Raises `UserError` for what waiting does not mend, and after `limit` seconds.
        """
        started = time.monotonic()
        if started < self.again_at:
            return False
        try:
            act()
        except Exception as error:
            cause = _database_error(error)
            if cause is not None and _is_permanent(cause):
                raise UserError(f"{self.storage}: {reason(cause)}") from None
            if cause is None or not _is_transient(cause):
                raise
            self._wait_longer(cause, started)
            return False
        if self.pause:
            self.say(f"{self.storage}: answers again")
            self.pause = self.again_at = 0.0
        return True

    def _wait_longer(self, cause: DBAPIError, started: float) -> None:
        if not self.pause:
            self.away_since = started
            if self.limit == float("inf"):
                self.say(f"{self.storage}: does not answer ({reason(cause)}); trials go on, it is tried again")
        self.pause = min(2 * self.pause or FIRST_PAUSE, LONGEST_PAUSE)
        self.again_at = time.monotonic() + self.pause
        if self.again_at > self.away_since + self.limit:
            raise UserError(f"{self.storage}: does not answer: {reason(cause)}") from None


def reason(error: BaseException) -> str:
    """One line, without a password, of what a database's driver or SQLAlchemy said."""
    said = str(getattr(error, "orig", None) or error)
    return hide_passwords(said.splitlines()[0].strip() if said else type(error).__name__)


def _database_error(error: BaseException | None) -> DBAPIError | None:
    """What a database said, beneath what Optuna made of it."""
    if isinstance(error, StorageUnavailable):
        error = error.args[0]
    return error if error is None or isinstance(error, DBAPIError) else _database_error(error.__cause__)


def _is_permanent(error: DBAPIError) -> bool:
    code = str(getattr(error.orig, "sqlstate", None) or "")
    said = str(error.orig).lower()
    return code.startswith(_PERMANENT_CODES) or any(word in said for word in _PERMANENT_WORDS)


def _is_transient(error: DBAPIError) -> bool:
    if type(error.orig).__module__ == "sqlite3":
        return any(word in str(error.orig) for word in _SQLITE_BUSY)
    return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
