"""The database that the workers of a search share."""

from __future__ import annotations

import sqlite3
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial
from sqlalchemy import event
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from lorsmerge_cli.errors import LorsmergeError, UnreadableFile, raise_all
from lorsmerge_cli.recipe.search_settings import check_study, is_url, shown

HEARTBEAT, GRACE = 30, 150  # seconds between signs of life, and without one until a trial is lost
BACKOFF = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # seconds between attempts to reach the database
LOCK_PATIENCE = 60.0  # seconds that SQLite waits for another worker's lock
OPENINGS = 5  # attempts: workers that begin at once may all find the tables missing
STORAGE_ERRORS = (StorageInternalError, SQLAlchemyError)


def open_storage(
    place: str,
    stale: Callable[[Study, FrozenTrial], None],
    told: Callable[[str], None],
) -> RDBStorage:
    """Open a database, and make the one of a file that is not there.

    From then on a database that cannot be reached is waited for, a minute in all.

    Args:
        place: a file, or a database URL.
        stale: what is done with a trial whose worker gives no sign of life.
        told: told each time that the database is waited for.

    Raises:
        UsageFault: no such URL or path.
        UnreadableFile: it cannot be opened.
        LorsmergeError: no driver for it is installed.
    """
    raise_all(check_study(place))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file = None if is_url(place) else Path(place).absolute()
    arguments: dict[str, Any] = {"pool_pre_ping": True}
    if file is None:
        url = place
    else:
        with suppress(OSError):  # then it cannot be opened either, which is told below
            file.parent.mkdir(parents=True, exist_ok=True)
        # each transaction opens the file anew, and so notices that it is gone
        arguments = {"poolclass": NullPool, "connect_args": {"timeout": LOCK_PATIENCE}}
        url = URL.create("sqlite", database=str(file)).render_as_string()
        url = url.replace("{", "{{").replace("}", "}}")  # Optuna takes it for a template
    storage = _open(place, url, arguments, stale)
    if make_url(storage.url).get_backend_name() == "sqlite":
        _serialise(storage.engine)
    _wait_for(storage.engine, file, shown(place), told)
    return storage


def _open(
    place: str,
    url: str,
    arguments: dict[str, Any],
    stale: Callable[[Study, FrozenTrial], None],
) -> RDBStorage:
    problem: Exception | None = None
    for attempt in range(OPENINGS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                return RDBStorage(
                    url, dict(arguments), heartbeat_interval=HEARTBEAT, grace_period=GRACE,
                    heartbeat_stale_trial_callback=stale,
                )  # fmt: skip
        except ImportError as error:
            raise LorsmergeError(
                f"--study {shown(place)} needs a driver that is not installed "
                f"({error.__cause__ or error}).",
                "Install it: psycopg for postgresql+psycopg://, PyMySQL for mysql+pymysql://.",
            ) from None
        except (RuntimeError, *STORAGE_ERRORS) as error:
            problem = error
            time.sleep(0.2 * attempt)
    raise UnreadableFile(
        f"--study {shown(place)} cannot be opened: {reason(problem)}.",
        "Check the path or URL, that the database is running and that it is one of Optuna's.",
    )


def reason(error: BaseException | None) -> str:
    """What a database driver said, in its own words and one line."""
    while isinstance(error, StorageInternalError) and error.__cause__:
        error = error.__cause__
    said = getattr(error, "orig", None) or error
    return str(said).strip().split("\n")[0].rstrip(".") or type(error).__name__


def _serialise(engine: Engine) -> None:
    """Have SQLite lock before it reads, so that two workers never take the same trial.

    By default its driver begins a transaction with the first change: what was read before is
    old by then.
    """

    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _wait_for(engine: Engine, file: Path | None, name: str, told: Callable[[str], None]) -> None:
    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: object, arguments: Any, keywords: Any) -> Any:
        # a sign of life can be left out
        patient = threading.current_thread() is threading.main_thread()
        for pause in (*(BACKOFF if patient else ()), None):
            try:
                if file is not None and not file.exists():  # it would be made anew, and empty
                    raise sqlite3.OperationalError(f"{file} is gone")
                return dialect.connect(*arguments, **keywords)
            except dialect.loaded_dbapi.Error as error:
                if pause is None:
                    raise
                told(f"{name} cannot be reached ({reason(error)}); trying again in {pause:g} s.")
                time.sleep(pause)
        return None
