"""The beginning of a file of hypotheses, checked before anything heavy is loaded."""

from __future__ import annotations

from pathlib import Path

from lorsmerge_cli.errors import LorsmergeError, OutputFault
from lorsmerge_cli.inputs import open_regular

FIRST_BYTES = b'{"model": "'  # of every line of a file of hypotheses


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
