"""Opens Optuna storages: the study's own SQLite file, or the database that `--storage` names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import optuna
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from study.config.errors import UserError
from study.config.schema import StudyConfig
from study.record.environment import hide_passwords
from study.record.io import quarantine
from study.record.layout import StudyFolder
from study.sweep.optuna.base import TrialSource
from study.sweep.optuna.grid import GridStudy
from study.sweep.optuna.retry import StorageRetry, describe_error, raise_if_unavailable
from study.sweep.optuna.search import SearchStudy

CHECK_SECONDS = 5.0  # how long `check_storage` waits for a server, which may be starting
# Short timeouts, so that the driver is not blocked while trials run.
# `tcp_user_timeout` (ms) covers a network that drops packets.
_CONNECT_OPTIONS = {"sqlite": {"timeout": 1}, "postgresql": {"connect_timeout": 5, "tcp_user_timeout": 10_000}}
_STORAGE_ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, RuntimeError, ValueError)


def open_trial_source(
    study: StudyConfig, folder: StudyFolder, url: str | None, print_line: Callable[[str], object] = print
) -> TrialSource:
    """Opens the study's grid or search, in the storage at `url` or else in the study's own SQLite file."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    if url is None:
        return _open_own_storage(study, folder, print_line)
    retry = StorageRetry(f"--storage {hide_passwords(url)}", print_line)
    storage = retry.run_until_ok(lambda: _connect(url))
    retry.run_until_ok(lambda: _check_owner(study.name, storage, folder))
    return retry.run_until_ok(lambda: _build_trial_source(study, folder, storage, retry))


def check_storage(url: str) -> None:
    """Raises `UserError`, without the password, for a storage that does not open within a few seconds."""
    name = f"--storage {hide_passwords(url)}"
    try:
        StorageRetry(name, print, limit=CHECK_SECONDS).run_until_ok(lambda: _connect(url))
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{name}: a Python package is missing: {error.__cause__ or error}; for PostgreSQL: "
                        "pip install 'psycopg[binary]'") from None  # fmt: skip
    except _STORAGE_ERRORS as error:
        raise UserError(f"{name}: cannot be opened: {describe_error(error)}") from None


def _open_own_storage(study: StudyConfig, folder: StudyFolder, print_line: Callable[[str], object]) -> TrialSource:
    """Opens `study.db`. A damaged file is moved aside, and a new one is written from the records."""
    url, retry = URL.create("sqlite", database=str(folder.storage)), StorageRetry(str(folder.storage), print_line)
    try:
        return retry.run_until_ok(lambda: _build_trial_source(study, folder, _connect(url), retry))
    except UserError:
        raise
    except _STORAGE_ERRORS:
        moved = quarantine(folder.storage)
        print_line(f"{folder.storage}: damaged, moved to {moved.name}; a new one is written from the records")
        return _build_trial_source(study, folder, _connect(url), retry)


def _build_trial_source(
    study: StudyConfig, folder: StudyFolder, storage: optuna.storages.RDBStorage, retry: StorageRetry
) -> TrialSource:
    build = GridStudy if study.search is None else SearchStudy
    return build(study, folder, storage, retry)


def _connect(url: str | URL) -> optuna.storages.RDBStorage:
    parsed = make_url(url)
    if isinstance(url, str) and re.match(r"[^:]+://[^:/@]*:[^@]*[/@][^?]*@", url):
        # It would be parsed wrongly, and an error message could then show a part of the password.
        raise ValueError("in a password, @ is written as %40, / as %2F, : as %3A and % as %25")
    if parsed.get_backend_name() == "sqlite" and parsed.query:
        raise ValueError("for SQLite, nothing may follow the file's name; remove ? and what comes after it")
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    connect_options = dict(_CONNECT_OPTIONS.get(parsed.get_backend_name(), {}))
    storage = optuna.storages.RDBStorage(
        parsed.render_as_string(hide_password=False),
        engine_kwargs={"pool_pre_ping": True, "connect_args": connect_options},
    )
    raise_if_unavailable(storage.engine)
    return storage


def _check_owner(name: str, storage: optuna.storages.BaseStorage, folder: StudyFolder) -> None:
    """Raises `UserError` if a shared storage holds another folder's study of this name."""
    if name not in optuna.get_all_study_names(storage):
        return
    owner = optuna.load_study(study_name=name, storage=storage).user_attrs.get("folder")
    if owner != str(folder.path.resolve()):
        raise UserError(
            f"--storage: the study {name} in it belongs to {owner}; choose another storage or set --set name=NAME"
        )
