"""What the user sees, and the only file that imports rich.

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
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
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
PATIENCE = 2.0  # seconds before a progress bar shows
INTERVAL = 60.0  # seconds between lines on progress where there is no terminal
RECENT = 10  # intervals that a rate is taken over

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # variables of the environment
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "wss_proxy", "hf_endpoint")
SHORTEST_SECRET = 8  # characters: what is shorter is no token, and would blot out innocent words
LOGIN = re.compile(r"(?<=://)[^\s/?#'\"]*@")  # of a URL
STORED = re.compile(r"=\s*(\S{16,})")  # values of the file that `hf auth login` keeps tokens in
HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9_]{20,}")

_settings = {"quiet": False, "json": False, "debug": False}
_hidden: set[str] = set()
_live: Console | None = None  # which a bar is drawn on: what it prints stands above the bar


def configure(*, quiet: bool, as_json: bool, debug: bool) -> None:
    """Set what is shown, for the command that runs; under torchrun the first process speaks."""
    _settings.update(quiet=quiet or not _first(), json=as_json, debug=debug)
    if not shows_progress():
        # huggingface_hub, which has bars of its own, reads it when it is loaded
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    elsewhere.show = None if _settings["quiet"] or sys.stderr.isatty() else progress


def _first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def debugging() -> bool:
    """Whether --debug was given."""
    return _settings["debug"]


def result(document: dict[str, Any], show: Callable[[], None]) -> None:
    """Print a result: the document with --json, else whatever `show` prints, nothing if quiet."""
    if _settings["json"]:
        text = json.dumps(document, indent=2, ensure_ascii=False, default=str)
        sys.stdout.write(json_escaped(_redacted(text)) + "\n")
    elif not _settings["quiet"]:
        show()


def lines(texts: Iterable[str]) -> None:
    """Print several lines of a result."""
    for text in texts:
        line(text)


def line(text: str = "") -> None:
    """A line of a result, which may begin or end with empty ones."""
    inner = text.strip("\n")
    block(text.replace(inner, shown(inner), 1) if inner else text)


def block(text: str) -> None:
    """Several lines of a result."""
    _out().print(
        shown(text, lines=True), markup=False, highlight=False, emoji=False, soft_wrap=True
    )


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str = "",
    left: Collection[int] = (0,),
) -> None:
    """A table of a result: columns `left` aligned to the left, the others to the right.

    Where stdout is no terminal no column is cut or folded.
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
    """Keep a secret, such as a token from the command line, out of everything that is printed."""
    if secret:
        _hidden.add(secret)


def shown(text: str, *, lines: bool = False) -> str:
    """A text of any origin as it may be printed: no secrets, nothing that steers the terminal."""
    return printable(_redacted(text), lines=lines)


def _redacted(text: str) -> str:
    """The text with tokens, and names and passwords in URLs, replaced."""
    text = LOGIN.sub("***@", text)
    for secret in sorted(_secrets(), key=len, reverse=True):
        for form in {secret, *(quote(secret)[1:-1] for quote in (repr, ascii, json.dumps))}:
            text = text.replace(form, "***")
    return HUB_TOKEN.sub("hf_***", text)


def _secrets() -> set[str]:
    """The tokens that this process may know, and names and passwords of proxies."""
    found = {*_hidden, *(os.environ.get(name, "") for name in TOKENS)}
    hub = sys.modules.get("huggingface_hub.constants")  # else no stored token was read
    for name in ("HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH") if hub else ():
        try:
            text = read_document(Path(getattr(hub, name))).decode(errors="replace")
        except (OSError, AttributeError, LorsmergeError):
            continue
        found |= set(STORED.findall(text)) if "STORED" in name else {text}
    # a token that holds a line break may be quoted in parts
    words = {word for secret in found for word in [secret.strip(), *secret.split()]}
    for name, value in os.environ.items():
        if name.lower() in PROXIES and "@" in value:
            words.add(value.rpartition("@")[0].rpartition("/")[2])
    return {word for word in words if len(word) >= SHORTEST_SECRET}


def notes(texts: Iterable[str]) -> None:
    """Print several notes."""
    for text in texts:
        note(text)


def note(text: str) -> None:
    """Something worth knowing."""
    if not _settings["quiet"]:
        _message("note", text, style="cyan")


def warning(text: str) -> None:
    """Something that may be wrong."""
    if _first():
        _message("warning", text, style="yellow")


def error(*lines: str) -> None:
    """Why the work failed."""
    _message("error", *lines, style="bold red")


def traceback() -> None:
    """The exception being handled, for --debug."""
    import traceback as standard

    sys.stderr.write(shown(standard.format_exc(), lines=True))


def shows_progress() -> bool:
    """Whether somebody is there to see a progress bar."""
    return not _settings["quiet"] and sys.stderr.isatty()


class Advance:
    """Told how far long work is, and shows it to nobody."""

    def __call__(self, done: int, total: int) -> None:
        """Count what was just done; the first call may count what was done by an earlier run."""

    def detail(self, text: str) -> None:
        """Show something beside the count, such as `loss 0.52`, until told something else."""


@contextmanager
def progress(label: str, unit: str = "bytes") -> Iterator[Advance]:
    """Show how far work is: a bar from the third second on, or without a terminal a line a minute.

    Yields:
        What is told how many bytes, or other units, were just done and how many there are in all.
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
    """A bar on a terminal, and above it all that is printed meanwhile."""

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
        """Take the bar away."""
        global _live
        if self.drawn.live.is_started:
            for handler in self._handlers:
                handler.setStream(self._before)
            self.drawn.stop()
            _live = None


def _logging_to(before: TextIO, now: TextIO) -> list[logging.StreamHandler[TextIO]]:
    """Have the handlers of all loggers that hold one stream write to another; those they are."""
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

    def tell() -> None:
        while not ended.wait(INTERVAL):
            line = shown(lines.line())
            with suppress(OSError, ValueError):  # nobody reads it any more
                sys.stderr.write(f"{line}\n")
                sys.stderr.flush()

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        ended.set()
        thread.join()


class _Lines(Advance):
    """A line for now and then: done and all, what was told beside it, the rate and the time left."""

    def __init__(self, label: str, unit: str) -> None:
        self.label, self.unit = label, unit
        self.done = self.total = 0
        self.text = ""
        self.first: tuple[float, int] | None = None  # when, and how many were done then
        self.recent: deque[tuple[float, int]] = deque(maxlen=RECENT)
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int) -> None:
        with self._lock:
            self.done, self.total = self.done + done, total
            self.first = self.first or (time.monotonic(), self.done)

    def detail(self, text: str) -> None:
        self.text = text

    def line(self) -> str:
        """Return the line as of now."""
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
    """Return a rate per second for people: `41.6 utterances/s`, `3.2 trials/h`."""
    per, name = next(
        ((seconds, name) for seconds, name in ((1, "s"), (60, "min")) if rate * seconds >= 1),
        (3600, "h"),
    )
    number = f"{rate * per:.3g}" if rate * per < 1000 else f"{rate * per:.0f}"
    return f"{number} {unit}/{name}"


def size(count: float) -> str:
    """Bytes for people: `967.0 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _message(word: str, *lines: str, style: str) -> None:
    """Print a message; what begins a line of it is ours, whatever names there are in it."""
    from rich.text import Text

    text = "\n".join(map(shown, lines))
    _err().print(Text.assemble((f"{word}: ", style), text), soft_wrap=True)


def _out() -> Console:
    from rich.console import Console

    return Console(file=sys.stdout)


def _err() -> Console:
    from rich.console import Console

    return _live or Console(file=sys.stderr)
