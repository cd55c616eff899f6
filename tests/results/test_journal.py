"""The journal of answers: what a kill, a full disk or a second process leave of it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.utterance import Answer, Utterance
from lorsmerge_cli.errors import LorsmergeError, OutputFault, UnreadableFile
from lorsmerge_cli.results.beginning import check_journal
from lorsmerge_cli.results.journal import open_journal

fcntl = pytest.importorskip("fcntl")

ANSWERS = [
    Answer("el nen\u2028veu 世界", False, -0.25),
    Answer("", True, None),
    Answer('quote " and\nline', False, -0.0),
]


@pytest.fixture
def rows(tmp_path: Path) -> list[Utterance]:
    """Three utterances, the audio of which differs."""
    found = []
    for number in range(3):
        clip = tmp_path / f"{number}.wav"
        clip.write_bytes(b"sound %d" % number)
        found.append(Utterance(f"u{number}", AudioFile(clip), "", "ca", "asr", 1.0))
    return found


@pytest.fixture
def whole(rows: list[Utterance], tmp_path: Path) -> Path:
    path = tmp_path / "x.journal"
    with open_journal(path) as journal:
        journal.add(zip(rows, ANSWERS, strict=True), "maker|beam:1")
    return path


def known(path: Path, rows: list[Utterance], maker: str = "maker|beam:1") -> dict[str, Answer]:
    with open_journal(path) as journal:
        return journal.known(rows, maker)


def test_answers_come_back_as_they_were(whole: Path, rows: list[Utterance]) -> None:
    assert known(whole, rows) == dict(zip(("u0", "u1", "u2"), ANSWERS, strict=True))
    assert check_journal(whole) == []


@pytest.mark.parametrize("what", ["maker", "id", "language", "task", "start", "duration", "audio"])
def test_an_answer_is_of_its_maker_and_utterance_alone(
    whole: Path, rows: list[Utterance], what: str
) -> None:
    row = rows[0]
    changed: dict[str, Any] = {
        "id": "other", "language": "de", "task": "st", "start": 0.5, "duration": 0.9
    }  # fmt: skip
    if what == "audio":
        row.audio.file.write_bytes(b"noise 0")
    elif what != "maker":
        row = Utterance(**{**vars(row), what: changed[what]})
    maker = "maker|beam:2" if what == "maker" else "maker|beam:1"
    assert known(whole, [row], maker) == {}


def test_cut_anywhere_it_has_the_whole_lines(whole: Path, rows: list[Utterance]) -> None:
    content = whole.read_bytes()
    answers = dict(zip(("u0", "u1", "u2"), ANSWERS, strict=True))
    for size in range(len(content) + 1):
        whole.write_bytes(content[:size])
        lines = content[:size].count(b"\n")
        assert check_journal(whole) == []
        with open_journal(whole) as journal:
            assert journal.known(rows, "maker|beam:1") == dict(list(answers.items())[:lines])
            journal.add(list(zip(rows, ANSWERS, strict=True))[lines:], "maker|beam:1")
        assert whole.read_bytes() == content


def test_one_that_stays_empty_is_removed(tmp_path: Path) -> None:
    with open_journal(tmp_path / "new" / "x.journal"):
        assert (tmp_path / "new" / "x.journal").exists()
    assert list((tmp_path / "new").iterdir()) == []


def test_a_second_process_is_refused(whole: Path) -> None:
    content = whole.read_bytes()
    with (
        open_journal(whole),
        pytest.raises(LorsmergeError, match=r"Another process is writing"),
        open_journal(whole),
    ):
        pass
    assert whole.read_bytes() == content


def test_one_that_was_removed_before_it_was_locked_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.journal"
    real = fcntl.flock

    def late(file: Any, how: int) -> None:
        path.unlink()  # the process that had it ends just now
        real(file, how)

    monkeypatch.setattr("lorsmerge_cli.outputs.fcntl.flock", late)
    with pytest.raises(LorsmergeError, match=r"Another process is writing"), open_journal(path):
        pass


class Reluctant:
    """A file that takes a few bytes at a time, and then none."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: memoryview) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = min(5, self.room, len(data))
        self.room -= count
        return self.file.write(data[:count])


@pytest.mark.parametrize("room", [0, 1, 150, 200])
def test_a_full_disk_is_an_error_and_costs_one_line(
    tmp_path: Path, rows: list[Utterance], room: int
) -> None:
    path = tmp_path / "x.journal"
    added = []

    def fill() -> None:
        with open_journal(path) as journal:
            journal._file = Reluctant(journal._file, room)  # type: ignore[assignment]
            for row, answer in zip(rows, ANSWERS, strict=True):
                journal.add([(row, answer)], "m")
                added.append(row)

    with pytest.raises(OutputFault, match=r"No space left on device.*resumes from what is there"):
        fill()
    assert len(known(path, rows, "m")) == len(added)


def test_a_line_of_anything_else_is_an_error(whole: Path) -> None:
    line = whole.read_bytes().splitlines()[0]
    for wrong in (b"", b"[]", b'{"made_by": 1}', line.replace(b"-0.25", b'"high"'),
                  *(line.replace(b"-0.25", number) for number in (b"NaN", b"0.5", b"-Infinity", b"-1" + 400 * b"0")),
                  line.replace(b'"text": "', b'"text": "\\ud800'),
                  line.replace(b'"u0"', b"[]"), line.replace(b"false", b"null")):  # fmt: skip
        whole.write_bytes(line + b"\n" + wrong + b"\n")
        with pytest.raises(UnreadableFile, match=r"no hypothesis"), open_journal(whole):
            pass


def test_a_file_of_the_user_s_is_never_taken_for_one(tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    path.write_text("dear diary")
    assert "is no such file" in str(check_journal(path)[0])
