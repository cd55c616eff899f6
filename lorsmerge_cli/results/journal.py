"""A journal of answers: JSON lines that grow while models transcribe, and that a run resumes from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from math import inf
from pathlib import Path
from typing import Any

from lorsmerge_cli.data.utterance import Answer, Utterance
from lorsmerge_cli.errors import LorsmergeError, OutputFault, UnreadableFile
from lorsmerge_cli.inputs import json_object
from lorsmerge_cli.outputs import lock
from lorsmerge_cli.results.hypotheses import audio_digest

Key = tuple[str, str, str, str, str]  # maker, id, language, task, audio


class Journal:
    """Answers of models, each with its maker: the weights and the settings of the search.

    An answer counts for its maker, utterance and audio alone, so that a run with other weights or
    settings makes its own, and a run that was stopped finds what it had made.
    """

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path, self._file = path, file
        self._known: dict[Key, Answer] = {}
        whole = 0
        for line in file.read().split(b"\n")[:-1]:
            self._learn(line)
            whole += len(line) + 1
        file.truncate(whole)  # of a line that a kill cut short
        file.seek(whole)

    def _learn(self, line: bytes) -> None:
        try:
            row = json_object(line)
            key = tuple(row[name] for name in ("made_by", "id", "language", "task", "heard"))
            text, cut, sure = row["text"], row["cut"], row["confidence"]
            log_probability = sure is None or (type(sure) is float and -inf < sure <= 0)
            if not (isinstance(text, str) and isinstance(cut, bool) and log_probability):
                raise TypeError
            text.encode()  # fails for a lone surrogate, which the manifest could not hold
            self._known[key] = Answer(text, cut, sure)
        except (ValueError, KeyError, TypeError):  # UnicodeEncodeError is a ValueError
            raise UnreadableFile(
                f"{self.path} has a line that is no hypothesis: {line[:40]!r}.",
                "Remove the file; its hypotheses are made anew then.",
            ) from None

    def known(self, rows: Sequence[Utterance], made_by: str) -> dict[str, Answer]:
        """Return utterance id -> answer, for the rows that one maker has answered already."""
        if not self._known:  # or all audio would be opened
            return {}
        found = {row.id: self._known.get(_key(row, made_by)) for row in rows}
        return {name: answer for name, answer in found.items() if answer is not None}

    def add(self, answers: Iterable[tuple[Utterance, Answer]], made_by: str) -> None:
        """Append answers.

        Raises:
            OutputFault: the file cannot be written.
        """
        lines = []
        for row, answer in answers:
            maker, name, language, task, heard = _key(row, made_by)
            line: dict[str, Any] = {"made_by": maker, "id": name, "language": language}
            line |= {"task": task, "heard": heard, "text": answer.text, "cut": answer.cut}
            line["confidence"] = answer.confidence
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        try:
            left = memoryview("".join(lines).encode())
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise OutputFault(
                f"{self.path} cannot be written ({error.strerror}).",
                "Free some space; the same command resumes from what is there.",
            ) from None


def _key(row: Utterance, made_by: str) -> Key:
    return made_by, row.id, row.language, row.task, audio_digest(row)


@contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """Open a journal, or begin one, and lock it until the end; one that stays empty is removed.

    Raises:
        LorsmergeError: another process writes it.
        UnreadableFile: a line of it is damaged.
        OutputFault: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # unbuffered: what a full disk refused would be written once more when the file is closed
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
    except OSError as error:
        raise OutputFault(
            f"{path} cannot be written ({error.strerror}).", "Choose another output with -o."
        ) from None
    with file:
        # or the process that had it removed the file, as empty
        if not lock(file.fileno()) or not os.fstat(file.fileno()).st_nlink:
            raise LorsmergeError(
                f"Another process is writing {path}.",
                "Wait for it, or choose another output with -o.",
            )
        try:
            yield Journal(path, file)
        finally:
            if not os.fstat(file.fileno()).st_size:
                with suppress(OSError):
                    path.unlink()
