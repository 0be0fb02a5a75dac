"""Retries storage operations while a database is unavailable: it restarts, its network is down, its file is locked."""

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

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 10.0
# Errors that a retry does not fix: wrong credentials, no such database, no rights, no space. PostgreSQL gives codes,
# but not while it connects; SQLite gives messages only.
_PERMANENT_CODES = ("28", "3D", "42501", "53100")
_PERMANENT_MESSAGES = ("authentication failed", "does not exist", "no password supplied", "pg_hba.conf", "is full",
                       "readonly", "unable to open", "disk i/o")  # fmt: skip
_SQLITE_TRANSIENT_MESSAGES = ("locked", "busy")


class StorageRetry:
    """Retries idempotent storage operations with exponential backoff.

    Idempotent, because an operation may have been committed although its reply was lost. Error messages name the
    database by `storage`. After `limit` seconds without an answer a `UserError` is raised.
    """

    def __init__(self, storage: str, print_line: Callable[[str], object], limit: float = float("inf")) -> None:
        self.storage, self.print_line, self.limit = storage, print_line, limit
        self.pause, self.next_attempt, self.unavailable_since = 0.0, 0.0, 0.0

    @property
    def is_waiting(self) -> bool:
        """Whether the latest attempt failed."""
        return self.pause > 0

    def run_until_ok(self, operation: Callable[[], T]) -> T:
        """Runs an operation, again and again while the storage is unavailable."""
        returned: list[T] = []
        while not self.try_once(lambda: returned.append(operation())):
            time.sleep(max(0.0, self.next_attempt - time.monotonic()))
        return returned[0]

    def try_once(self, operation: Callable[[], object]) -> bool:
        """Runs an operation once, or not at all during the pause after a failure. Returns whether it succeeded.

        Raises `UserError` for an error that a retry does not fix, and once the limit is over.
        """
        started = time.monotonic()
        if started < self.next_attempt:
            return False
        try:
            operation()
        except Exception as error:
            cause = _find_database_error(error)
            if cause is not None and _is_permanent(cause):
                raise UserError(f"{self.storage}: {describe_error(cause)}") from None
            if cause is None or not _is_transient(cause):
                raise
            self._back_off(cause, started)
            return False
        if self.is_waiting:
            self.print_line(f"{self.storage}: answers again")
            self.pause = self.next_attempt = 0.0
        return True

    def _back_off(self, cause: DBAPIError, started: float) -> None:
        if not self.is_waiting:
            self.unavailable_since = started
            if self.limit == float("inf"):
                self.print_line(f"{self.storage}: does not answer ({describe_error(cause)}); retrying, trials continue")
        self.pause = min(2 * self.pause or FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        self.next_attempt = time.monotonic() + self.pause
        if self.next_attempt > self.unavailable_since + self.limit:
            raise UserError(f"{self.storage}: does not answer: {describe_error(cause)}") from None


class StorageUnavailable(Exception):  # noqa: N818
    """A database error that a retry may fix; holds SQLAlchemy's error.

    Not a SQLAlchemy error: Optuna retries those and would duplicate a trial whose INSERT committed but whose reply was
    lost.
    """


def raise_if_unavailable(engine: Engine) -> None:
    """Makes the engine raise `StorageUnavailable` for errors that a retry may fix."""

    @event.listens_for(engine, "handle_error")
    def _(context: ExceptionContext) -> StorageUnavailable | None:
        error = context.sqlalchemy_exception
        retry_may_help = isinstance(error, DBAPIError) and _is_transient(error) and not context.is_pre_ping
        return StorageUnavailable(error) if retry_may_help else None


def describe_error(error: BaseException) -> str:
    """Returns the first line of a database driver's or SQLAlchemy's message, without a password."""
    message = str(getattr(error, "orig", None) or error)
    return hide_passwords(message.splitlines()[0].strip() if message else type(error).__name__)


def _find_database_error(error: BaseException | None) -> DBAPIError | None:
    """Returns the database's error beneath what Optuna made of it."""
    if isinstance(error, StorageUnavailable):
        error = error.args[0]
    return error if error is None or isinstance(error, DBAPIError) else _find_database_error(error.__cause__)


def _is_permanent(error: DBAPIError) -> bool:
    code = str(getattr(error.orig, "sqlstate", None) or "")
    message = str(error.orig).lower()
    return code.startswith(_PERMANENT_CODES) or any(part in message for part in _PERMANENT_MESSAGES)


def _is_transient(error: DBAPIError) -> bool:
    if type(error.orig).__module__ == "sqlite3":
        return any(part in str(error.orig) for part in _SQLITE_TRANSIENT_MESSAGES)
    return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
