"""Reading of files of any origin: only regular files are opened, and only small documents parsed.

A FIFO blocks the process that opens it, `/dev/zero` never ends, and JSON or TOML nested a hundred
thousand levels deep exceeds Python's recursion limit: each is an error with a message.
`FileIdentity` tells whether a file changed while it was read.
"""

from __future__ import annotations

import io
import json
import os
import stat
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from lorsmerge_cli.errors import UnreadableFile

FilePath = str | Path
MAX_DOCUMENT = 256 << 20  # bytes of a JSON or TOML file: a results file of 100,000 rows has 50 MB


def several(given: object) -> tuple[Any, ...]:
    """Return a single value as a tuple of one, and a sequence of values as a tuple.

    Example:
        >>> several("ca.delta"), several(["ca.delta", "de.delta"])
        (('ca.delta',), ('ca.delta', 'de.delta'))
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        return (given,)
    return tuple(given)


def path_of(given: FilePath | None) -> Path | None:
    """Return a path as a Path, and None as None."""
    return None if given is None else Path(given)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, without blocking on anything else.

    Raises:
        UnreadableFile: a FIFO, a socket or a device.
        OSError: as `open` does: no such file, a folder, no permission.
    """
    # without O_NONBLOCK, opening a FIFO waits for a writer
    descriptor = os.open(
        path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(21, os.strerror(21), str(path))
        raise UnreadableFile(
            f"{path} is a {file_type(mode)}, not a file.", "Give the file itself, or a copy of it."
        )
    return os.fdopen(descriptor, "rb")


def open_text(path: Path, newline: str | None = None) -> TextIO:
    """Open a regular UTF-8 file as text, skipping a byte order mark.

    Args:
        path: of the file.
        newline: as for `open`; by default all line endings are read as a newline.

    Raises:
        UnreadableFile, OSError: as `open_regular`.
    """
    return io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline=newline)


def file_type(mode: int) -> str:
    """Return the file type of a mode of `stat`: `file`, `folder`, `FIFO`, `socket` or `device`."""
    for test, name in (
        (stat.S_ISREG, "file"),
        (stat.S_ISDIR, "folder"),
        (stat.S_ISFIFO, "FIFO"),
        (stat.S_ISSOCK, "socket"),
    ):
        if test(mode):
            return name
    return "device"


def read_document(path: Path) -> bytes:
    """Read a document whole.

    Raises:
        UnreadableFile: not a regular file, or larger than 256 MiB.
        OSError: as `open` does.
    """
    with open_regular(path) as file:
        content = file.read(MAX_DOCUMENT + 1)
    if len(content) > MAX_DOCUMENT:
        raise UnreadableFile(
            f"{path} is larger than {MAX_DOCUMENT >> 20} MiB, which is too large for its file type.",
            "Check that it is the file you mean.",
        )
    return content


def parse_json(text: str | bytes, *, unique: bool = False) -> Any:
    """Parse JSON of any origin.

    Args:
        text: one value.
        unique: refuse an object with a key twice; by default the last one holds.

    Raises:
        ValueError: it is not JSON, or nested too deeply, or `unique` and a key is there twice.

    Example:
        >>> parse_json("[" * 100_000)
        Traceback (most recent call last):
        ...
        ValueError: it is nested too deeply
    """
    try:
        return json.loads(text, object_pairs_hook=_unique if unique else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def read_json(path: Path) -> Any:
    """Read a JSON file of any origin.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
        UnreadableFile: as `read_document`.
        OSError: as `open` does.
    """
    return parse_json(read_document(path))


def json_object(text: str | bytes, *, unique: bool = False) -> dict[str, Any]:
    """Parse JSON that must be an object.

    Args:
        text: as in `parse_json`.
        unique: as in `parse_json`.

    Raises:
        ValueError: it is not a JSON object.
    """
    value = parse_json(text, unique=unique)
    if not isinstance(value, dict):
        raise ValueError(f"an object is needed, and it is a {type(value).__name__}")
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML of any origin.

    Raises:
        ValueError: it is not TOML, nested too deeply, or has an integer of more than 64 bits.
    """
    try:
        found = tomllib.loads(text)
        _check_integers(found, "")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return found


def _check_integers(value: Any, key: str) -> None:
    """Check that integers have 64 bits, as TOML says: larger ones are no floats, or no text either."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{key} is an integer of more than 64 bits")
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_integers(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            _check_integers(inner, key)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file of any origin.

    Raises:
        ValueError: it is not TOML, nested too deeply, or not UTF-8.
        UnreadableFile: as `read_document`.
        OSError: as `open` does.
    """
    return parse_toml(read_document(path).decode("utf-8"))


@dataclass(frozen=True)
class FileIdentity:
    """Properties of a file that change when it is written to or replaced.

    Attributes:
        device, inode: of the file.
        size: in bytes.
        modified: time of the last change of its content, in nanoseconds since 1970.
    """

    device: int
    inode: int
    size: int
    modified: int

    @staticmethod
    def of(path: Path) -> FileIdentity:
        """Identify a file, or the target of a link.

        Raises:
            OSError: it does not exist.
        """
        status = path.stat()
        return FileIdentity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def is_file_of(self, other: FileIdentity) -> bool:
        """Tell whether both are the same file, even if it was written to."""
        return (self.device, self.inode) == (other.device, other.inode)


def changed(identities: Mapping[Path, FileIdentity]) -> list[Path]:
    """List the files that were written to, replaced or removed since they were identified."""

    def is_unchanged(path: Path, identity: FileIdentity) -> bool:
        try:
            return FileIdentity.of(path) == identity
        except OSError:
            return False

    return [path for path, identity in identities.items() if not is_unchanged(path, identity)]
