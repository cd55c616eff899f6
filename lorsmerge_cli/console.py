"""What the user sees, and the only file that imports rich.

stdout carries results: tables, or with --json one JSON document. Everything else (progress,
warnings, notes, errors) goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 10_000  # columns, so that nothing is folded in a file or a pipe
PATIENCE = 2.0  # seconds before a progress bar shows

_settings = {"quiet": False, "json": False, "debug": False}


def configure(*, quiet: bool, as_json: bool, debug: bool) -> None:
    """Set what is shown, for the command that runs; under torchrun the first process speaks."""
    _settings.update(quiet=quiet or not _first(), json=as_json, debug=debug)
    if not shows_progress():
        # huggingface_hub, which has bars of its own, reads it when it is loaded
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def debugging() -> bool:
    """Whether --debug was given."""
    return _settings["debug"]


def result(document: dict[str, Any], show: Callable[[], None]) -> None:
    """Print a result: the document with --json, else whatever `show` prints, nothing if quiet."""
    if _settings["json"]:
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n")
    elif not _settings["quiet"]:
        show()


def line(text: str = "") -> None:
    """A line of a result."""
    _out().print(printable(text), markup=False, highlight=False, emoji=False, soft_wrap=True)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table of a result: the first column to the left, the others to the right.

    Where stdout is no terminal no column is cut or folded.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    out = _out()
    drawn = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for number, header in enumerate(headers):
        drawn.add_column(
            header, justify="left" if number == 0 else "right", overflow="fold",
            no_wrap=not out.is_terminal,
        )  # fmt: skip
    for row in rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    if not out.is_terminal:
        out.width = WIDE
    out.print(drawn)


def printable(text: str) -> str:
    """The text with control characters spelled out, so that no file steers the terminal."""
    return "".join(
        ch if ch == "\n" or unicodedata.category(ch) != "Cc" else f"\\x{ord(ch):02x}" for ch in text
    )


def note(text: str) -> None:
    """Something worth knowing."""
    if not _settings["quiet"]:
        _message("note", text, "cyan")


def warning(text: str) -> None:
    """Something that may be wrong."""
    if _first():
        _message("warning", text, "yellow")


def error(text: str) -> None:
    """Why the work failed."""
    _message("error", text, "bold red")


def traceback() -> None:
    """The exception being handled, for --debug."""
    import traceback as standard

    standard.print_exc()


def shows_progress() -> bool:
    """Whether somebody is there to see a progress bar."""
    return not _settings["quiet"] and sys.stderr.isatty()


@contextmanager
def progress(label: str, unit: str = "bytes") -> Iterator[Callable[[int, int], None]]:
    """A bar over bytes or other units, shown from the third second on where stderr is a terminal.

    Yields:
        A function that is told how many were just done and how many there are in all.
    """
    err = _err()
    if _settings["quiet"] or not err.is_terminal:
        yield lambda done, total: None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    count = [DownloadColumn()] if unit == "bytes" else [MofNCompleteColumn(), TextColumn(unit)]
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), *count, TimeRemainingColumn(),
        console=err, transient=True,
    )  # fmt: skip
    task = bar.add_task(label, total=None)
    began = time.monotonic()

    def advance(done: int, total: int) -> None:
        if not bar.live.is_started and time.monotonic() - began > PATIENCE:
            bar.start()
        bar.update(task, advance=done, total=total)

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()


def size(count: float) -> str:
    """Bytes for people: `967.0 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _message(word: str, text: str, style: str) -> None:
    from rich.text import Text

    _err().print(Text.assemble((f"{word}: ", style), printable(text)), soft_wrap=True)


def _out() -> Console:
    from rich.console import Console

    return Console(file=sys.stdout)


def _err() -> Console:
    from rich.console import Console

    return Console(file=sys.stderr)
