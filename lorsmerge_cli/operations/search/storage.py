"""Open the file or database that the workers of a search share."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from lorsmerge_cli.errors import LorsmergeError, UnreadableFile, UsageFault, raise_all
from lorsmerge_cli.inputs import json_object, open_regular
from lorsmerge_cli.recipe.search_settings import check_study, is_url, shown

SQLITE = b"SQLite format 3\0"  # how such a file begins
JOURNAL = b'{"op_code":'  # and each line of a journal
LOCK_PATIENCE = 60  # seconds that SQLite waits for another worker's lock
OPENINGS = 5  # attempts: workers that begin at once may all find a database's tables missing
STORAGE_ERRORS = (StorageInternalError, SQLAlchemyError, OSError)


def reason(error: BaseException | None) -> str:
    """Return the message of a disk or a database driver as one line."""
    while isinstance(error, StorageInternalError) and error.__cause__:
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    cause = getattr(error, "orig", None) or error
    return str(cause).strip().split("\n")[0].rstrip(".") or type(error).__name__


def open_storage(study: str) -> BaseStorage:
    """Open a journal or a database; create the journal of a file that does not exist.

    A file that SQLite wrote, as earlier versions' studies are, is opened as a database.

    Args:
        study: a file, or a database URL.

    Raises:
        UsageFault: no such URL or path.
        UnreadableFile: it cannot be opened.
        LorsmergeError: no driver for it is installed.
    """
    raise_all(check_study(study))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if is_url(study):
        return _open_database(study, study, {"pool_pre_ping": True})
    path = Path(study).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _is_sqlite(path):
            return JournalStorage(JournalFileBackend(str(path), _MendingLock(str(path))))
        if "?" in str(path):
            raise UsageFault(f"--study {study} holds a question mark.", "Rename the file.")
        url = URL.create("sqlite", database=str(path)).render_as_string()
        url = url.replace("{", "{{").replace("}", "}}")  # Optuna takes it for a template
        return _open_database(study, url, {"connect_args": {"timeout": LOCK_PATIENCE}})
    except LorsmergeError:
        raise
    except Exception as error:  # Optuna does not check a journal, which anyone may have written
        raise _unopened(study, error) from None


def _is_sqlite(path: Path) -> bool:
    """Return whether SQLite wrote a file; check the lines of any other, as Optuna checks few.

    Raises:
        ValueError: a file is not a journal, or a line of it is damaged, so that Optuna could not read
            what it appends.
    """
    if not path.exists():
        return False
    with open_regular(path) as file:
        head = file.read(len(SQLITE))
        if head == SQLITE:
            return True
        if not head.startswith(JOURNAL[: len(head)]):
            raise ValueError("it is neither a journal nor a database of Optuna's")
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                if line.endswith(b"\n"):
                    json_object(line)
            except ValueError:
                raise ValueError(f"its line {number} is damaged") from None
    return False


def _unopened(study: str, error: BaseException | None) -> UnreadableFile:
    return UnreadableFile(
        f"--study {shown(study)} cannot be opened: {reason(error)}.",
        "Check the path or URL, that the database is running and that it is one of Optuna's.",
    )


def _open_database(study: str, url: str, arguments: dict[str, Any]) -> RDBStorage:
    problem: Exception | None = None
    for attempt in range(OPENINGS):
        try:
            return RDBStorage(url, dict(arguments))
        except ImportError as error:
            raise LorsmergeError(
                f"--study {shown(study)} needs a driver that is not installed "
                f"({error.__cause__ or error}).",
                "Install it: psycopg for postgresql+psycopg://, PyMySQL for mysql+pymysql://.",
            ) from None
        except (RuntimeError, *STORAGE_ERRORS) as error:
            problem = error
            time.sleep(0.2 * attempt)
    raise _unopened(study, problem)


class _MendingLock(JournalFileSymlinkLock):
    """A journal's lock that first cuts off a line which a killed writer left unfinished.

    Otherwise the next line would continue it, and Optuna could read neither.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._path = path

    def acquire(self) -> bool:
        """Wait for the lock, and cut off what follows the last newline.

        Raises:
            OSError: the journal is gone, or cannot be written.
        """
        super().acquire()
        try:
            with open(self._path, "rb+") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 1))
                if file.read(1) not in (b"", b"\n"):
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
        except BaseException:
            with suppress(RuntimeError):
                self.release()
            raise
        return True
