"""The file or database that the workers of a search share."""

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
    """Return what a disk or a database driver said, in its own words and one line."""
    while isinstance(error, StorageInternalError) and error.__cause__:
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    said = getattr(error, "orig", None) or error
    return str(said).strip().split("\n")[0].rstrip(".") or type(error).__name__


def open_storage(place: str) -> BaseStorage:
    """Open a journal or a database; create the journal of a file that does not exist.

    A file that SQLite wrote, as earlier versions' studies are, is opened as a database.

    Args:
        place: a file, or a database URL.

    Raises:
        UsageFault: no such URL or path.
        UnreadableFile: it cannot be opened.
        LorsmergeError: no driver for it is installed.
    """
    raise_all(check_study(place))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if is_url(place):
        return _open_database(place, place, {"pool_pre_ping": True})
    path = Path(place).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        head = _head(path)
        if head == SQLITE:
            if "?" in str(path):
                raise UsageFault(f"--study {place} holds a question mark.", "Rename the file.")
            url = URL.create("sqlite", database=str(path)).render_as_string()
            url = url.replace("{", "{{").replace("}", "}}")  # Optuna takes it for a template
            return _open_database(place, url, {"connect_args": {"timeout": LOCK_PATIENCE}})
        if not head.startswith(JOURNAL[: len(head)]):
            raise ValueError("it is neither a journal nor a database of Optuna's")
        _check_lines(path)
        return JournalStorage(JournalFileBackend(str(path), _MendingLock(str(path))))
    except LorsmergeError:
        raise
    except Exception as error:  # Optuna checks nothing of a journal, which is a stranger's file
        raise _unopened(place, error) from None


def _head(path: Path) -> bytes:
    """Return the first bytes of a file; none of one that does not exist."""
    if not path.exists():
        return b""
    with open_regular(path) as file:
        return file.read(len(SQLITE))


def _check_lines(path: Path) -> None:
    """Check that every whole line of a journal can be read: Optuna lets the last one pass.

    Raises:
        ValueError: one is damaged; whatever is written behind it could not be read either.
    """
    if not path.exists():
        return
    with open_regular(path) as file:
        for number, line in enumerate(file, 1):
            try:
                if line.endswith(b"\n"):
                    json_object(line)
            except ValueError:
                raise ValueError(f"its line {number} is damaged") from None


def _unopened(place: str, error: BaseException | None) -> UnreadableFile:
    return UnreadableFile(
        f"--study {shown(place)} cannot be opened: {reason(error)}.",
        "Check the path or URL, that the database is running and that it is one of Optuna's.",
    )


def _open_database(place: str, url: str, arguments: dict[str, Any]) -> RDBStorage:
    problem: Exception | None = None
    for attempt in range(OPENINGS):
        try:
            return RDBStorage(url, dict(arguments))
        except ImportError as error:
            raise LorsmergeError(
                f"--study {shown(place)} needs a driver that is not installed "
                f"({error.__cause__ or error}).",
                "Install it: psycopg for postgresql+psycopg://, PyMySQL for mysql+pymysql://.",
            ) from None
        except (RuntimeError, *STORAGE_ERRORS) as error:
            problem = error
            time.sleep(0.2 * attempt)
    raise _unopened(place, problem)


class _MendingLock(JournalFileSymlinkLock):
    """The lock of a journal, under which a line that a killed writer left unfinished is cut off.

    Without that the next line would continue it, and Optuna could read neither.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._path = path

    def acquire(self) -> bool:
        """Wait for the lock, and cut off what follows the last newline.

        Raises:
            OSError: the journal is gone, or cannot be written to.
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
