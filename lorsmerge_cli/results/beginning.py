"""The beginning of files that grow, checked before anything heavy is loaded."""

from __future__ import annotations

from pathlib import Path

from lorsmerge_cli.errors import LorsmergeError, OutputFault, UnreadableFile
from lorsmerge_cli.inputs import open_regular

FIRST_BYTES = b'{"model": "'  # of every line of a file of hypotheses
JOURNAL_BYTES = b'{"made_by": "'  # of every line of a journal of `transcribe`


def check_hypotheses_begin(path: Path) -> list[LorsmergeError]:
    """Return a fault where a file that is not empty does not begin as one of hypotheses."""
    with open_regular(path) as file:
        start = file.read(len(FIRST_BYTES))
    if FIRST_BYTES.startswith(start):
        return []
    return [
        OutputFault(
            f"{path} is no file that `eval --hypotheses` wrote, so nothing is added to it.",
            "Give another --hypotheses file.",
        )
    ]


def check_journal(path: Path) -> list[LorsmergeError]:
    """Return a fault where a file that is to be a journal holds anything else."""
    if not path.exists():
        return []
    try:
        with open_regular(path) as file:
            start = file.read(len(JOURNAL_BYTES))
    except UnreadableFile as fault:
        return [fault]
    except OSError as error:
        return [OutputFault(f"{path} cannot be read ({error.strerror}).", "Move it away.")]
    if JOURNAL_BYTES.startswith(start):
        return []
    return [
        OutputFault(
            f"{path} is where hypotheses are kept while they are made, and it is no such file.",
            "Move it away, or choose another output with -o.",
        )
    ]
