"""How the transcripts of a folder were made: JSON lines beside them, by which `--resume` knows its own."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import xxhash

from lorsmerge_cli.data.audio_source import AudioSource
from lorsmerge_cli.errors import LorsmergeError, OutputFault
from lorsmerge_cli.inputs import json_object
from lorsmerge_cli.outputs import check_output

NAME = "transcripts.journal"
HEARD = "audio"  # the entry of the digest of what was heard
DIGESTS = (HEARD, "weights", "config")  # which tell a person nothing
SIZE = 1 << 20  # bytes that there must be room for
CHUNK = 1 << 20  # bytes read at a time
SHOWN = 40  # characters of a setting in a message
ELSEWHERE = "Choose another folder with -o."


class Made:
    """The transcripts of a folder and what each was made of: settings, weights and audio, as texts.

    A line is written before its transcript takes its place, with a digest of the text: a run that is
    killed in between leaves no transcript whose line says something else, and one that was edited,
    or written by another program, is known to be.

    Args:
        folder: of the transcripts; it need not exist yet.

    Raises:
        OutputFault: its journal cannot be read, or is no file.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._known: dict[str, list[dict[str, str]]] = {}
        for name, row in _lines(self.path):
            self._known.setdefault(name, []).append(row)

    def faults(self, inputs: list[Path]) -> list[LorsmergeError]:
        """Return what would keep lines from being written."""
        found = check_output(self.path, inputs=inputs, size=SIZE, force=True)
        if found or not self.path.exists():
            return found
        try:
            _opened(self.path, os.O_WRONLY | os.O_APPEND, "ab").close()
        except OSError as error:
            return [self._unwritable(error)]
        return []

    def differences(self, path: Path, about: Mapping[str, str]) -> str | None:
        """Return how else a transcript was made than `about` says; None if it was made so.

        Raises:
            EditedError: its text is none that a line tells of.
        """
        rows = self._known.get(path.name)
        if not rows:
            return f"{NAME} does not say how"
        text = _digest_of(path)
        made = [row for row in rows if row["text"] == text]
        if not made:
            raise EditedError
        found = [[key for key in about if row.get(key) != about[key]] for row in made]
        if not all(found):
            return None
        names = found[-1]
        return "; ".join(
            f"of other {name}"
            if name in DIGESTS
            else f"with {name} {_short(made[-1].get(name))}, and not {_short(about[name])}"
            for name in names
        )

    def add(self, path: Path, written: Path, about: Mapping[str, str]) -> None:
        """Append a line for a transcript that is about to be placed.

        Args:
            path: of the transcript.
            written: the file that will be it.
            about: what it was made of.

        Raises:
            OutputFault: it cannot be written.
        """
        row = {"transcript": path.name, "text": _digest_of(written), **about}
        line = json.dumps(row) + "\n"  # in ASCII: names may be no UTF-8
        try:
            # one write at the end, whoever else writes there
            with _opened(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, "ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read() != b"\n":  # a kill cut the last line
                        line = f"\n{line}"
                file.write(line.encode())
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> OutputFault:
        return OutputFault(f"{self.path} cannot be written ({error.strerror}).", ELSEWHERE)


class EditedError(Exception):
    """A transcript is not as it was written."""


def audio_digest(source: AudioSource) -> str:
    """Return a digest of every byte of a recording; "" of one that cannot be read.

    That takes a second for 10 hours, which a transcript takes far longer to make.
    """
    digest = xxhash.xxh3_128()
    try:
        with source.open() as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except (OSError, LorsmergeError):
        return ""
    return digest.hexdigest()


def files_digest(folder: Path, names: tuple[str, ...]) -> str:
    """Return a digest of those files of a folder that are there."""
    digest = hashlib.sha256()
    for name in names:
        path = folder / name
        if path.is_file():
            digest.update(f"{name}\0{_digest_of(path)}".encode())
    return digest.hexdigest()[:16]


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _short(value: str | None) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _opened(path: Path, flags: int, mode: str) -> BinaryIO:
    """Open the journal itself, and nothing that it is a link to."""
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0), 0o666)
    return os.fdopen(descriptor, mode)  # type: ignore[return-value]


def _lines(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield a transcript's name and what it was made of, in order; damaged lines say nothing."""
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise OutputFault(f"{path} is no regular file.", ELSEWHERE)
        if not path.exists():
            return
        with _opened(path, os.O_RDONLY, "rb") as file:
            for line in file:
                row = _row(line)
                name = row.pop("transcript", "")
                if name and "text" in row:
                    yield name, row
    except OSError as error:
        raise OutputFault(f"{path} cannot be read ({error.strerror}).", ELSEWHERE) from None


def _row(line: bytes) -> dict[str, str]:
    try:
        row = json_object(line)
    except ValueError:
        return {}
    return row if all(isinstance(value, str) for value in row.values()) else {}
