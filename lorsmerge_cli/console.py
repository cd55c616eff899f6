"""All output to the terminal; the only file that imports rich.

stdout carries results: tables, or with --json one JSON document. Everything else (progress,
warnings, notes, errors) goes to stderr.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lorsmerge_cli import progress as elsewhere
from lorsmerge_cli.errors import LorsmergeError
from lorsmerge_cli.inputs import read_document
from lorsmerge_cli.quoting import json_escaped, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

WIDE = 10_000  # columns, so that nothing is folded in a file or a pipe
PATIENCE = 2.0  # seconds before a progress bar appears
INTERVAL = 60.0  # seconds between progress lines without a terminal
RECENT = 10  # intervals that a rate is averaged over

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # environment variables
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "wss_proxy", "hf_endpoint")
SHORTEST_SECRET = 8  # characters; anything shorter is no token, and replacing it would hide words
LOGIN = re.compile(r"(?<=://)[^\s/?#'\"]*@")  # of a URL
STORED = re.compile(r"=\s*(\S{16,})")  # values in the file where `hf auth login` stores tokens
HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9_]{20,}")

_settings = {"quiet": False, "json": False, "debug": False}
_hidden: set[str] = set()
_live: Console | None = None  # the one that draws a bar; what it prints appears above the bar


def configure(*, quiet: bool, as_json: bool, debug: bool) -> None:
    """Set what the running command prints; under torchrun only the first process prints.

    Args:
        quiet: print warnings and errors only.
        as_json: print the result as one JSON document.
        debug: print the traceback of an error.
    """
    _settings.update(quiet=quiet or not _first(), json=as_json, debug=debug)
    if _settings["quiet"] or not sys.stderr.isatty():
        # for the bars of huggingface_hub, which reads the variable when it is loaded
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    elsewhere.show = None if _settings["quiet"] or sys.stderr.isatty() else progress


def _first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def debugging() -> bool:
    """Tell whether --debug was given."""
    return _settings["debug"]


def result(document: dict[str, Any], show: Callable[[], None]) -> None:
    """Print a result: the document with --json, else what `show` prints, nothing if quiet."""
    if _settings["json"]:
        text = json.dumps(document, indent=2, ensure_ascii=False, default=str)
        sys.stdout.write(json_escaped(_redacted(text)) + "\n")
    elif not _settings["quiet"]:
        show()


def line(*texts: str) -> None:
    """Print lines of a result, each of which may begin or end with empty lines."""
    for text in texts:
        inner = text.strip("\n")
        block(text.replace(inner, shown(inner), 1) if inner else text)


def block(text: str) -> None:
    """Print a text of several lines in a result."""
    _out().print(
        shown(text, lines=True), markup=False, highlight=False, emoji=False, soft_wrap=True
    )


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str = "",
    left: Collection[int] = (0,),
) -> None:
    """Print a table of a result, columns `left` left-aligned, the others right-aligned.

    If stdout is not a terminal, no column is cut or folded.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    out = _out()
    shown_title = Text(shown(title)) if title else None
    drawn = Table(box=SIMPLE_HEAD, title=shown_title, title_justify="left", pad_edge=False)
    for number, header in enumerate(headers):
        drawn.add_column(
            Text(shown(header)), justify="left" if number in left else "right", overflow="fold",
            no_wrap=not out.is_terminal,
        )  # fmt: skip
    for row in rows:
        drawn.add_row(*(Text(shown(cell)) for cell in row))
    if not out.is_terminal:
        out.width = WIDE
    out.print(drawn)


def hide(secret: str | None) -> None:
    """Keep a secret, such as a token on the command line, out of everything that is printed."""
    if secret:
        _hidden.add(secret)


def shown(text: str, *, lines: bool = False) -> str:
    """Return a text of any origin without secrets and terminal control characters.

    Args:
        text: to be printed.
        lines: keep newlines.
    """
    return printable(_redacted(text), lines=lines)


def _redacted(text: str) -> str:
    """Return the text with tokens, and names and passwords in URLs, replaced."""
    text = LOGIN.sub("***@", text)
    for secret in sorted(_secrets(), key=len, reverse=True):
        for form in {secret, *(quote(secret)[1:-1] for quote in (repr, ascii, json.dumps))}:
            text = text.replace(form, "***")
    return HUB_TOKEN.sub("hf_***", text)


def _secrets() -> set[str]:
    """Return the tokens that this process may have read, and names and passwords of proxies."""
    found = {*_hidden, *(os.environ.get(name, "") for name in TOKENS)}
    hub = sys.modules.get("huggingface_hub.constants")  # if not loaded, no stored token was read
    for name in ("HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH") if hub else ():
        try:
            text = read_document(Path(getattr(hub, name))).decode(errors="replace")
        except (OSError, AttributeError, LorsmergeError):
            continue
        found |= set(STORED.findall(text)) if "STORED" in name else {text}
    # parts of a token with a line break may be quoted by themselves
    words = {word for secret in found for word in [secret.strip(), *secret.split()]}
    for name, value in os.environ.items():
        if name.lower() in PROXIES and "@" in value:
            words.add(value.rpartition("@")[0].rpartition("/")[2])
    return {word for word in words if len(word) >= SHORTEST_SECRET}


def note(*texts: str) -> None:
    """Print notes on stderr, unless quiet."""
    for text in () if _settings["quiet"] else texts:
        _message("note", text, style="cyan")


def warning(*texts: str) -> None:
    """Print warnings on stderr."""
    for text in texts if _first() else ():
        _message("warning", text, style="yellow")


def error(*lines: str) -> None:
    """Print one error of several lines on stderr."""
    _message("error", *lines, style="bold red")


def traceback() -> None:
    """Print the traceback of the exception being handled, for --debug."""
    import traceback as standard

    sys.stderr.write(shown(standard.format_exc(), lines=True))


class Advance:
    """Progress of long work; this one shows nothing."""

    def __call__(self, done: int, total: int) -> None:
        """Add `done` units of `total`; the first call may add those of an earlier run."""

    def detail(self, text: str) -> None:
        """Show a text, such as `loss 0.52`, beside the count until the next one."""


@contextmanager
def progress(label: str, unit: str = "bytes") -> Iterator[Advance]:
    """Show progress on stderr: a bar after 2 seconds on a terminal, else a line each minute.

    Args:
        label: what the work is called.
        unit: what is counted.

    Yields:
        An object to call with the number of units just done, and of all.
    """
    err = _err()
    if _settings["quiet"]:
        yield Advance()
    elif err.is_terminal:
        with _bar(label, unit, err) as bar:
            yield bar
    else:
        with _lines(label, unit) as lines:
            yield lines


@contextmanager
def _bar(label: str, unit: str, err: Console) -> Iterator[Advance]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    count = [DownloadColumn()] if unit == "bytes" else [MofNCompleteColumn(), TextColumn(unit)]
    drawn = Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), *count, TimeRemainingColumn(),
        console=err, transient=True,
    )  # fmt: skip
    bar = _Bar(label, drawn, drawn.add_task(label, total=None))
    try:
        yield bar
    finally:
        bar.stop()


class _Bar(Advance):
    """A bar on a terminal, with everything printed meanwhile above it."""

    def __init__(self, label: str, drawn: Progress, task: TaskID) -> None:
        self.label, self.drawn, self.task = label, drawn, task
        self.began = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if not self.drawn.live.is_started and time.monotonic() - self.began > PATIENCE:
            self._start()
        self.drawn.update(self.task, advance=done, total=total)

    def detail(self, text: str) -> None:
        self.drawn.update(self.task, description=f"{self.label}, {shown(text)}")

    def _start(self) -> None:
        global _live
        before = sys.stderr
        _live = self.drawn.console
        self.drawn.start()  # and from here on sys.stderr prints above the bar
        self._handlers = _logging_to(before, sys.stderr)
        self._before = before

    def stop(self) -> None:
        """Remove the bar."""
        global _live
        if self.drawn.live.is_started:
            for handler in self._handlers:
                handler.setStream(self._before)
            self.drawn.stop()
            _live = None


def _logging_to(before: TextIO, now: TextIO) -> list[logging.StreamHandler[TextIO]]:
    """Redirect the handlers of all loggers from one stream to another, and return them."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = [
        handler
        for logger in loggers
        if isinstance(logger, logging.Logger)
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is before
    ]
    for handler in handlers:
        handler.setStream(now)
    return handlers


@contextmanager
def _lines(label: str, unit: str) -> Iterator[Advance]:
    lines, ended = _Lines(label, unit), threading.Event()

    def write_lines() -> None:
        while not ended.wait(INTERVAL):
            line = shown(lines.line())
            with suppress(OSError, ValueError):  # the stream is closed
                sys.stderr.write(f"{line}\n")
                sys.stderr.flush()

    thread = threading.Thread(target=write_lines, daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        ended.set()
        thread.join()


class _Lines(Advance):
    """Lines of progress: the count, the detail, the rate and the time left."""

    def __init__(self, label: str, unit: str) -> None:
        self.label, self.unit = label, unit
        self.done = self.total = 0
        self.text = ""
        self.first: tuple[float, int] | None = None  # time of the first call, and its count
        self.recent: deque[tuple[float, int]] = deque(maxlen=RECENT)
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int) -> None:
        with self._lock:
            self.done, self.total = self.done + done, total
            self.first = self.first or (time.monotonic(), self.done)

    def detail(self, text: str) -> None:
        self.text = text

    def line(self) -> str:
        """Return the current line."""
        with self._lock:
            if self.first is None:
                return f"{self.label}: preparing"
            now = time.monotonic(), self.done
            recent = self.recent[0] if self.recent else self.first
            rate = _rate(recent, now) or _rate(self.first, now)
            self.recent.append(now)
            done, total = self.done, self.total
        in_bytes = self.unit == "bytes"
        count = f"{size(done)}/{size(total)}" if in_bytes else f"{done}/{total} {self.unit}"
        parts = [f"{self.label}: {count}", *([self.text] if self.text else [])]
        if rate > 0:
            parts.append(f"{size(rate)}/s" if in_bytes else pace(rate, self.unit))
        if rate > 0 and done < total:
            parts.append(f"{timedelta(seconds=round((total - done) / rate))} left")
        return ", ".join(parts)


def _rate(before: tuple[float, int], now: tuple[float, int]) -> float:
    seconds = now[0] - before[0]
    return (now[1] - before[1]) / seconds if seconds > 0 else 0.0


def pace(rate: float, unit: str) -> str:
    """Return a rate per second in readable units.

    Example:
        >>> pace(41.6, "utterances"), pace(0.001, "trials")
        ('41.6 utterances/s', '3.6 trials/h')
    """
    per, name = next(
        ((seconds, name) for seconds, name in ((1, "s"), (60, "min")) if rate * seconds >= 1),
        (3600, "h"),
    )
    number = f"{rate * per:.3g}" if rate * per < 1000 else f"{rate * per:.0f}"
    return f"{number} {unit}/{name}"


def size(count: float) -> str:
    """Return a number of bytes in readable units.

    Example:
        >>> size(966_995_080)
        '967.0 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _message(word: str, *lines: str, style: str) -> None:
    """Print a message on stderr; no name in it can begin a line of its own."""
    from rich.text import Text

    text = "\n".join(map(shown, lines))
    _err().print(Text.assemble((f"{word}: ", style), text), soft_wrap=True)


def _out() -> Console:
    from rich.console import Console

    return Console(file=sys.stdout)


def _err() -> Console:
    from rich.console import Console

    return _live or Console(file=sys.stderr)
