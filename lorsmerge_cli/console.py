"""What the user sees, and the only file that imports rich.

stdout carries results: tables, or with --json one JSON document. Everything else (progress,
warnings, notes, errors) goes to stderr.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorsmerge_cli.errors import LorsmergeError
from lorsmerge_cli.inputs import read_document
from lorsmerge_cli.quoting import json_escaped, printable

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 10_000  # columns, so that nothing is folded in a file or a pipe
PATIENCE = 2.0  # seconds before a progress bar shows

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # variables of the environment
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "wss_proxy", "hf_endpoint")
SHORTEST_SECRET = 8  # characters: what is shorter is no token, and would blot out innocent words
LOGIN = re.compile(r"(?<=://)[^\s/?#'\"]*@")  # of a URL
STORED = re.compile(r"=\s*(\S{16,})")  # values of the file that `hf auth login` keeps tokens in
HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9_]{20,}")

_settings = {"quiet": False, "json": False, "debug": False}
_hidden: set[str] = set()


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


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table of a result: the first column to the left, the others to the right.

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
            Text(shown(header)), justify="left" if number == 0 else "right", overflow="fold",
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
        TextColumn("{task.description}", markup=False), BarColumn(), *count, TimeRemainingColumn(),
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

    return Console(file=sys.stderr)
