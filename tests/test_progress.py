"""Progress of long work: a bar on a terminal with other output above it, else a line at intervals."""

from __future__ import annotations

import io
import logging
import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from lorsmerge_cli import console
from lorsmerge_cli import progress as elsewhere

Stderr = Callable[..., Any]
LINE = re.compile(
    r"search: (\d+)/(\d+) trials(, loss 0\.5)?(, [\d.]+ trials/(s|min|h))?(, \S+ left)?"
)


@pytest.fixture(autouse=True)
def loud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "INTERVAL", 0.02)
    monkeypatch.setattr(console, "PATIENCE", 0.0)
    monkeypatch.delenv("RANK", raising=False)
    console.configure(quiet=False, as_json=False, debug=False)


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class Written(io.StringIO):
    """A stream that records what stderr receives."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Stderr:
    """Return a function that replaces stderr: pytest itself replaces it between a fixture and its test."""
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")

    def install(*, terminal: bool) -> Written:
        stream = Written(terminal=terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return install


# without a terminal


def test_lines_come_without_anything_being_told(stderr: Stderr) -> None:
    """A step may take longer than an interval."""
    piped = stderr(terminal=False)
    with console.progress("search", "trials") as progress:
        wait_for(lambda: piped.getvalue().count("search: preparing\n") >= 2)
        progress(0, 9)
        wait_for(lambda: piped.getvalue().count("search: 0/9 trials\n") >= 2)
        progress(2, 9)
        progress.detail("loss 0.5")
        wait_for(lambda: "search: 2/9 trials, loss 0.5, " in piped.getvalue())
    lines = piped.getvalue().splitlines()
    assert [
        line for line in lines if line != "search: preparing" and not LINE.fullmatch(line)
    ] == []
    assert "left" in lines[-1]
    threads = threading.active_count()
    time.sleep(0.1)
    assert piped.getvalue().splitlines() == lines
    assert threads == threading.active_count()


def test_work_that_is_done_at_once_prints_nothing(
    stderr: Stderr, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped = stderr(terminal=False)
    monkeypatch.setattr(console, "INTERVAL", 60.0)
    began = time.monotonic()
    with console.progress("merge") as progress:
        progress(5, 5)
    assert piped.getvalue() == ""
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("quiet", ["--quiet", "another rank"])
def test_nobody_is_told_where_it_is_quiet(
    stderr: Stderr, monkeypatch: pytest.MonkeyPatch, quiet: str
) -> None:
    piped = stderr(terminal=False)
    if quiet == "another rank":
        monkeypatch.setenv("RANK", "1")
    console.configure(quiet=quiet == "--quiet", as_json=False, debug=False)
    with console.progress("search", "trials") as progress:
        progress(1, 9)
        progress.detail("loss 0.5")
        time.sleep(0.1)
    assert piped.getvalue() == ""
    assert elsewhere.show is None


def test_an_error_ends_the_lines(stderr: Stderr) -> None:
    piped = stderr(terminal=False)
    with pytest.raises(ZeroDivisionError), console.progress("search", "trials"):
        raise ZeroDivisionError
    seen = piped.getvalue()
    time.sleep(0.1)
    assert piped.getvalue() == seen


def test_a_reader_that_went_away_ends_nothing(stderr: Stderr) -> None:
    piped = stderr(terminal=False)
    piped.write = lambda text: (_ for _ in ()).throw(BrokenPipeError)
    with console.progress("search", "trials") as progress:
        time.sleep(0.1)
        progress(1, 9)


def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Stop the clock, except for the time that is added to it."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


def test_a_line_says_done_all_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = clock(monkeypatch)
    lines = console._Lines("eval", "utterances")
    lines(100, 1000)  # of an earlier run, and no measure of this one
    passes(50)
    lines(200, 1000)
    passes(50)
    assert lines.line() == "eval: 300/1000 utterances, 2 utterances/s, 0:05:50 left"
    passes(100)
    lines(700, 1000)
    assert lines.line() == "eval: 1000/1000 utterances, 7 utterances/s"


def test_a_rate_is_that_of_the_last_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = clock(monkeypatch)
    lines = console._Lines("eval", "utterances")
    lines(0, 10_000)
    for done in (5000, *([10] * 15)):  # known ones of a second model at first, and then slow work
        passes(1)
        lines(done, 10_000)
        line = lines.line()
    assert line == "eval: 5150/10000 utterances, 10 utterances/s, 0:08:05 left"
    for _ in range(20):  # a long wait: as far as is known, it is the mean of all
        passes(1000)
        line = lines.line()
    assert line == "eval: 5150/10000 utterances, 15.4 utterances/min, 5:14:10 left"


def test_bytes_are_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = clock(monkeypatch)
    lines = console._Lines("merge", "bytes")
    lines(0, 3 * 10**9)
    passes(10)
    lines(10**9, 3 * 10**9)
    assert lines.line() == "merge: 1.0 GB/3.0 GB, 100.0 MB/s, 0:00:20 left"


@pytest.mark.parametrize(
    ("rate", "text"),
    [(41.63, "41.6 t/s"), (1.0, "1 t/s"), (0.5, "30 t/min"), (1 / 60, "1 t/min"),
     (0.001, "3.6 t/h"), (1e-5, "0.036 t/h"), (12345.6, "12346 t/s")],
)  # fmt: skip
def test_a_pace_is_in_a_unit_that_can_be_read(rate: float, text: str) -> None:
    assert console.pace(rate, "t") == text


def test_work_elsewhere_is_shown_as_lines(stderr: Stderr) -> None:
    piped = stderr(terminal=False)
    console.configure(quiet=False, as_json=False, debug=False)
    assert elsewhere.show is not None
    with elsewhere.show("download of org/model", "bytes") as advance:
        advance(1000, 4000)
        wait_for(lambda: "download of org/model: 1.0 kB/4.0 kB" in piped.getvalue())


# on a terminal


def test_a_terminal_has_bars_and_downloads_their_own(stderr: Stderr) -> None:
    terminal = stderr(terminal=True)
    console.configure(quiet=False, as_json=False, debug=False)
    assert elsewhere.show is None
    with console.progress("search", "trials") as progress:
        progress(1, 9)
        progress(1, 9)
        progress.drawn.refresh()
        assert "2/9 trials" in screen(terminal.getvalue())[-1]
        progress.detail("loss 0.5")
        progress.drawn.refresh()
        assert re.match(r"search, loss 0\.5 .*2/9 trials", screen(terminal.getvalue())[-1])
    assert set(screen(terminal.getvalue())) == {""}


def screen(written: str) -> list[str]:
    """Return the lines that a terminal finally shows."""
    lines, row, column = [""], 0, 0
    for code, final, control, text in re.findall(
        r"\x1b\[([\d;?]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)", written
    ):
        if control == "\r":
            column = 0
        elif control == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif text:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
            column += len(text)
        elif final == "A":
            row -= int(code or 1)
        elif final == "K":
            assert code == "2"
            lines[row] = ""
        else:
            assert final in "mhl"
    return [line.rstrip() for line in lines]


def test_the_screen_of_these_tests_is_one() -> None:
    assert screen("a\nbcd\rx\x1b[31my\x1b[0m\n\r\x1b[1A\x1b[2Kz") == ["a", "z", ""]


@pytest.fixture
def library() -> Iterator[Callable[[], logging.Logger]]:
    """Make a logger with a handler of its own on stderr, as transformers has, from before the bar."""
    logger = logging.getLogger("a_library_of_the_tests")

    def make() -> logging.Logger:
        logger.addHandler(logging.StreamHandler())
        return logger

    yield make
    logger.handlers.clear()


def test_all_that_is_printed_meanwhile_stands_above_the_bar(
    stderr: Stderr, library: Callable[[], logging.Logger]
) -> None:
    terminal = stderr(terminal=True)
    logger = library()
    with console.progress("finetune", "steps") as progress:
        progress(1, 9)
        console.note("before: ca_asr WER 12.00")
        console.warning("a name with [markup] in it")
        progress(1, 9)
        logger.warning("logged by a library")
        print("printed by a library", file=sys.stderr)
        progress(1, 9)
        progress.drawn.refresh()
        shown = screen(terminal.getvalue())
    assert shown[:3] == [
        "note: before: ca_asr WER 12.00", "warning: a name with [markup] in it", "logged by a library",
    ]  # fmt: skip
    assert shown[3] == "printed by a library"
    assert "3/9 steps" in shown[-1]
    assert sum("steps" in line for line in shown) == 1
    assert sys.stderr is terminal


SCRIPT = """
import os, time, warnings
from lorsmerge_cli import console
console.PATIENCE = 0
with console.progress("finetune", "steps") as progress:
    progress(1, 9)
    warnings.warn("warned by a library")
    console.note("epoch 1")
    progress(1, 9)
    time.sleep(0.3)
    os.write(2, b"\\0")
    time.sleep(0.3)
"""


def test_a_terminal_itself_shows_warnings_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a separate process, because pytest captures warnings."""
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=theirs, stderr=theirs)
    os.close(theirs)
    written = b""
    while chunk := read(ours):
        written += chunk
    os.close(ours)
    assert process.wait(timeout=60) == 0
    meanwhile = written.decode().partition("\0")[0].replace("\r\n", "\n\r")
    lines = [line for line in screen(meanwhile) if line]
    assert lines[0].endswith("UserWarning: warned by a library")
    assert "note: epoch 1" in lines
    assert "2/9 steps" in lines[-1]
    assert sum("steps" in line for line in lines) == 1


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the process has ended
        return b""


def test_after_the_bar_all_is_as_before(
    stderr: Stderr, library: Callable[[], logging.Logger]
) -> None:
    terminal = stderr(terminal=True)
    logger = library()
    with suppress(ZeroDivisionError), console.progress("merge") as progress:
        progress(1, 9)
        raise ZeroDivisionError
    assert sys.stderr is terminal
    assert logger.handlers[0].stream is terminal
    assert console._live is None
    terminal.truncate(0)
    terminal.seek(0)
    console.note("a note")
    logger.warning("a record")
    assert [line for line in screen(terminal.getvalue()) if line] == ["note: a note", "a record"]
