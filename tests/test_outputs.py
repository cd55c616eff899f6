"""Outputs appear whole or not at all, and never over an input."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from lorsmerge_cli import outputs
from lorsmerge_cli.checkpoint.model_files import ADAPTERS, COMPANIONS, WHOLE_MODELS
from lorsmerge_cli.errors import OutputFault, UnreadableFile
from lorsmerge_cli.inputs import FileIdentity
from lorsmerge_cli.outputs import MANIFEST, atomic_file, atomic_folder, check_output
from lorsmerge_cli.usage import TRAINING_FILES

Usage = namedtuple("Usage", "total used free")
# an interrupt between the opening of a file and its `with`
UNCLOSED = "ignore::pytest.PytestUnraisableExceptionWarning"
OLD = {"config.json": "old", "figures/a.png": "old", "model-00001-of-00002.safetensors": "old"}
NEW = {"config.json": "new", "model.safetensors": "new", "figures/b/c.png": "new"}
READ_NAMES = [  # a name for each pattern that readers look for
    pattern.replace("*", "x").replace("[CS]", "S").replace("[cs]", "c")
    for pattern in {*COMPANIONS, *(p for group in (*WHOLE_MODELS, *ADAPTERS) for p in group)}
    if "/" not in pattern
]


def write_folder(target: Path, files: dict[str, str], force: bool = False) -> None:
    """Write a folder as a command does."""
    with atomic_folder(target, force=force) as partial:
        for name, text in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_text(text)


def write_file(target: Path, force: bool = True) -> None:
    """Write a file as a command does."""
    with atomic_file(target, force=force) as partial:
        partial.write_text("new")


@pytest.fixture(autouse=True)
def nothing_written() -> None:
    outputs.forget_written()


def content(folder: Path) -> dict[str, str]:
    """Return every file of a folder except the manifest, with its text."""
    found = listing(folder) if folder.exists() else {}
    return {name: text for name, text in found.items() if name != MANIFEST}


def interrupted_at(line: int, times: int, work: Callable[[], None]) -> bool:
    """Run `work` with KeyboardInterrupt at the given line of outputs.py, and at those that follow.

    Returns:
        False where `work` ended before that line.
    """
    seen = fired = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal seen, fired
        if frame.f_code.co_filename != outputs.__file__:
            return None
        if event == "line":
            seen += 1
            if seen > line and fired < times:
                fired += 1
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            work()
    finally:
        sys.settrace(None)
    return fired > 0


class Stop(BaseException):
    """Raise what Ctrl-C raises in a block."""


def listing(folder: Path) -> dict[str, str]:
    """Return every file below a folder, including hidden ones, with its content."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def check(output: Path, *inputs: Path, force: bool = False, folder: bool = False) -> str:
    """Return the faults that `check_output` finds as one text."""
    faults = check_output(output, inputs=inputs, size=0, force=force, folder=folder)
    return " | ".join(str(fault) for fault in faults)


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "x.safetensors"
    with atomic_file(target, force=True) as partial:
        partial.write_text("new")
        assert not target.exists()
        assert tmp_path in partial.parents  # one file system, or the rename would copy
    assert listing(tmp_path) == {"x.safetensors": "new"}
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize("error", [ValueError, Stop, KeyboardInterrupt])
@pytest.mark.parametrize("old", [None, "old"], ids=["new", "replaced"])
def test_nothing_of_a_file_is_left_when_the_block_raises(
    tmp_path: Path, error: type[BaseException], old: str | None
) -> None:
    target = tmp_path / "x.safetensors"
    if old:
        target.write_text(old)

    def write() -> None:
        with atomic_file(target, force=True) as partial:
            partial.write_text("half")
            raise error("stop")

    with pytest.raises(error):
        write()
    assert listing(tmp_path) == ({"x.safetensors": old} if old else {})
    assert len(os.listdir(tmp_path)) == (1 if old else 0)


@pytest.mark.parametrize("error", [ValueError, Stop, KeyboardInterrupt])
@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
def test_nothing_of_a_folder_is_left_when_the_block_raises(
    tmp_path: Path, error: type[BaseException], old: bool
) -> None:
    target = tmp_path / "merged"
    if old:
        write_folder(target, OLD)

    def write() -> None:
        with atomic_folder(target, force=True) as partial:
            (partial / "config.json").write_text("half")
            raise error("stop")

    with pytest.raises(error):
        write()
    assert content(target) == (OLD if old else {})
    assert len(os.listdir(tmp_path)) == int(old)


@pytest.mark.parametrize("writer", [atomic_file, atomic_folder])
def test_a_full_disk_is_a_fault_of_the_output(tmp_path: Path, writer) -> None:
    def write() -> None:
        with writer(tmp_path / "x", force=False):
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputFault, match="No space left on device") as caught:
        write()
    assert str(tmp_path / "x") in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE])
@pytest.mark.parametrize("call", ["rename", "replace", "link", "fsync", "mkdir", "open"])
def test_a_disk_that_fails_at_any_call_leaves_the_old_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    folder, file = tmp_path / "merged", tmp_path / "x.json"
    write_folder(folder, OLD)
    file.write_text("old")
    monkeypatch.setattr(outputs, "_rename_with_flag", lambda *a, **k: False)

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    for write in (lambda: write_folder(folder, NEW, force=True), lambda: write_file(file)):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with contextlib.suppress(OutputFault):
                write()
    new_folder, new_file = content(folder) == NEW, file.read_text() == "new"
    assert new_folder or content(folder) == OLD
    assert new_file or file.read_text() == "old"
    left = {name for name in os.listdir(tmp_path) if call != "open" or name[0] != "."}
    assert left == {"merged", "x.json"}  # where nothing can be opened no scratch folder is removed


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "two renames"])
class TestReplacedFolders:
    """A folder is replaced only if lorsmerge wrote every file in it."""

    @pytest.fixture(autouse=True)
    def system(self, monkeypatch: pytest.MonkeyPatch, exchanges: bool) -> None:
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
        if not exchanges:
            monkeypatch.setattr(outputs, "_rename_with_flag", lambda *a, **k: False)

    @pytest.fixture
    def target(self, tmp_path: Path) -> Path:
        write_folder(tmp_path / "merged", OLD)
        return tmp_path / "merged"

    def test_one_of_ours_is_replaced_with_all_that_it_held(self, target: Path) -> None:
        write_folder(target, NEW, force=True)
        assert content(target) == NEW
        assert os.listdir(target.parent) == ["merged"]

    def test_an_empty_one_is(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir(mode=0o750)
        write_folder(tmp_path / "empty", NEW)
        assert content(tmp_path / "empty") == NEW
        assert stat.S_IMODE((tmp_path / "empty").stat().st_mode) == 0o750

    @pytest.mark.parametrize("name", ["notes.txt", "figures/mine.png", "deep/er/x", ".hidden",
                                      "vad.safetensors", "model.safetensors.bak"])  # fmt: skip
    def test_a_file_of_somebody_else_is_named_and_kept(self, target: Path, name: str) -> None:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text("mine")
        assert name.split("/er")[0] in check(target, folder=True, force=True)
        with pytest.raises(OutputFault, match="not even with --force"):
            write_folder(target, NEW, force=True)
        assert content(target) == OLD | {name: "mine"}
        assert os.listdir(target.parent) == ["merged"]

    @pytest.mark.parametrize("kind", ["folder", "link", "link to a folder", "fifo", "dangling"])
    def test_so_is_what_is_no_file(self, target: Path, tmp_path: Path, kind: str) -> None:
        there = target / "mine"
        {
            "folder": there.mkdir,
            "link": lambda: there.symlink_to(target / "config.json"),
            "link to a folder": lambda: there.symlink_to(tmp_path),
            "fifo": lambda: os.mkfifo(there),
            "dangling": lambda: there.symlink_to("nowhere"),
        }[kind]()
        assert "'mine" in check(target, folder=True, force=True)
        with pytest.raises(OutputFault, match="mine"):
            write_folder(target, NEW, force=True)
        assert os.path.lexists(there)
        assert content(target) == OLD | ({"mine": OLD["config.json"]} if kind == "link" else {})

    @pytest.mark.parametrize("change", ["longer", "as long", "a link"])
    def test_a_file_of_ours_that_was_changed_since_is_somebody_elses(
        self, target: Path, change: str
    ) -> None:
        file = target / "config.json"
        if change == "a link":
            file.rename(target.parent / "moved")
            file.symlink_to(target.parent / "moved")
        else:
            file.write_text("edited" if change == "longer" else "edi")
        assert "'config.json (changed since)'" in check(target, folder=True, force=True)
        before = content(target)
        with pytest.raises(OutputFault, match=r"config\.json"):
            write_folder(target, NEW, force=True)
        assert content(target) == before

    def test_weights_that_took_the_place_of_ours_are_known_by_header_or_end(
        self, tmp_path: Path
    ) -> None:
        target, size = tmp_path / "merged", 3 << 20
        write_folder(target, {"model.safetensors": "0" * size})
        for changed in ("1" + "0" * (size - 1), "0" * (size - 1) + "1", "0" * size + "1"):
            (target / "model.safetensors").write_text(changed)
            assert "model.safetensors" in check(target, folder=True, force=True)
        (target / "model.safetensors").write_text("0" * size)
        shutil.copytree(target, tmp_path / "copy")  # with other times
        assert check(tmp_path / "copy", folder=True, force=True) == ""

    def test_a_folder_without_a_manifest_is_nobodys_to_replace(self, target: Path) -> None:
        (target / MANIFEST).unlink()
        assert "config.json" in check(target, folder=True, force=True)
        with pytest.raises(OutputFault, match=r"config\.json"):
            write_folder(target, NEW, force=True)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": []}', '{"files": {"a": 1}}', "[" * 9999,
                                      '{"files": {"../precious": [4, 1]}}'])  # fmt: skip
    def test_a_manifest_that_somebody_else_wrote_removes_nothing(
        self, target: Path, tmp_path: Path, text: str
    ) -> None:
        precious = tmp_path / "precious"
        precious.write_text("mine")
        (target / MANIFEST).write_text(text)
        with pytest.raises(OutputFault):
            write_folder(target, NEW, force=True)
        assert content(target) == OLD
        assert precious.read_text() == "mine"

    def test_a_manifest_cannot_reach_out_of_its_folder(self, tmp_path: Path) -> None:
        precious, target = tmp_path / "precious", tmp_path / "stranger"
        precious.write_text("mine")
        target.mkdir()
        for name in ("../precious", str(precious)):
            shutil.rmtree(target)
            target.mkdir()
            record = {"files": {name: outputs._seal(precious)}}
            (target / MANIFEST).write_text(json.dumps(record))
            write_folder(target, NEW, force=True)  # a manifest alone is an empty folder
            assert precious.read_text() == "mine"

    def test_one_that_appears_meanwhile_is_not_replaced(self, tmp_path: Path) -> None:
        target = tmp_path / "late"

        def write() -> None:
            with atomic_folder(target, force=False) as partial:
                (partial / "config.json").write_text("new")
                write_folder(target, OLD)

        with pytest.raises(OutputFault, match="appeared while the work was running"):
            write()
        assert content(target) == OLD
        assert os.listdir(tmp_path) == ["late"]

    @pytest.mark.parametrize("force", [False, True])
    def test_a_file_that_appears_in_its_place_is_not_replaced(
        self, tmp_path: Path, force: bool
    ) -> None:
        target = tmp_path / "late"

        def write() -> None:
            with atomic_folder(target, force=force) as partial:
                (partial / "config.json").write_text("new")
                target.write_text("mine")

        with pytest.raises(OutputFault):
            write()
        assert target.read_text() == "mine"

    def test_a_file_that_appears_in_one_of_ours_is_kept(self, target: Path) -> None:
        def write() -> None:
            with atomic_folder(target, force=True) as partial:
                (partial / "config.json").write_text("new")
                (target / "late.txt").write_text("mine")

        with pytest.raises(OutputFault, match=r"late\.txt"):
            write()
        assert content(target) == OLD | {"late.txt": "mine"}

    def test_a_file_that_appears_in_the_last_moment_is_kept(
        self, target: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
    ) -> None:
        """Between the check of the folder and the exchange."""
        module, name = (outputs, "_rename_with_flag") if exchanges else (os, "rename")
        real = getattr(module, name)

        def late(source: Path, *others: Any, **options: Any) -> Any:
            if target.is_dir():
                (target / "late.txt").write_text("mine")
            return real(source, *others, **options)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, late)
            with pytest.raises(OutputFault, match=r"late\.txt"):
                write_folder(target, NEW, force=True)
        assert content(target) == OLD | {"late.txt": "mine"}
        assert os.listdir(target.parent) == ["merged"]

    def test_modes_are_kept(self, target: Path) -> None:
        target.chmod(0o750)
        (target / "config.json").chmod(0o640)
        write_folder(target, NEW, force=True)
        assert stat.S_IMODE(target.stat().st_mode) == 0o750
        assert stat.S_IMODE((target / "config.json").stat().st_mode) == 0o640

    def test_a_subfolder_that_was_made_read_only_is_no_obstacle(self, target: Path) -> None:
        (target / "figures").chmod(0o555)
        write_folder(target, NEW, force=True)
        assert content(target) == NEW
        assert os.listdir(target.parent) == ["merged"]

    def test_a_link_to_a_folder_stays_one(self, target: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(target)
        write_folder(tmp_path / "link", NEW, force=True)
        assert (tmp_path / "link").is_symlink()
        assert content(target) == NEW

    @pytest.mark.filterwarnings(UNCLOSED)
    @pytest.mark.parametrize(("times", "stride"), [(1, 2), (2, 7), (3, 11)])
    def test_interrupted_at_any_line_nothing_is_lost(
        self, target: Path, times: int, stride: int
    ) -> None:
        """Ctrl-C, once or repeatedly, at the lines that replace a folder."""
        line = 0
        while interrupted_at(line, times, lambda: write_folder(target, NEW, force=True)):
            assert content(target) in (OLD, NEW), f"line {line}"
            others = [path.name for path in target.parent.iterdir() if path != target]
            assert [name for name in others if not name.startswith(".merged.")] == []
            if content(target) == NEW:
                write_folder(target, OLD, force=True)
            line += stride
        assert line > 100
        assert content(target) == NEW

    @pytest.mark.filterwarnings(UNCLOSED)
    def test_interrupted_at_any_line_a_strangers_file_stays(self, target: Path) -> None:
        (target / "thesis.txt").write_text("mine")

        def write() -> None:
            with contextlib.suppress(OutputFault):
                write_folder(target, NEW, force=True)

        line = 0
        while interrupted_at(line, 1, write):
            assert content(target) == OLD | {"thesis.txt": "mine"}
            line += 3
        assert line > 20


def test_what_a_kill_between_two_renames_left_is_told(tmp_path: Path) -> None:
    (tmp_path / ".merged.12345678.partial" / "old").mkdir(parents=True)
    assert "move it back" in outputs.leftovers(tmp_path / "merged")[0]


@pytest.mark.parametrize("links", [True, False], ids=["exclusive rename", "hard link"])
class TestNewFiles:
    """A file that appeared while the work was running is not replaced."""

    @pytest.fixture(autouse=True)
    def system(self, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
        if not links:
            monkeypatch.setattr(outputs, "_rename_with_flag", lambda *a, **k: False)

    @pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
    def test_what_appears_meanwhile_stays(self, tmp_path: Path, kind: str) -> None:
        target = tmp_path / "x.json"
        make = {
            "file": lambda: target.write_text("mine"),
            "folder": target.mkdir,
            "dangling link": lambda: target.symlink_to("nowhere"),
        }[kind]

        def write() -> None:
            with atomic_file(target, force=False) as partial:
                partial.write_text("new")
                make()

        with pytest.raises(OutputFault, match="appeared while the work was running"):
            write()
        assert os.listdir(tmp_path) == ["x.json"]
        assert target.is_symlink() == (kind == "dangling link")
        assert not target.is_file() or target.read_text() == "mine"

    def test_a_file_system_without_links(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*names: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
        write_file(tmp_path / "x.json", force=False)
        assert (tmp_path / "x.json").read_text() == "new"

    @pytest.mark.filterwarnings(UNCLOSED)
    def test_interrupted_at_every_line_it_is_there_whole_or_not_at_all(
        self, tmp_path: Path
    ) -> None:
        target, line = tmp_path / "x.json", 0
        while interrupted_at(line, 1, lambda: write_file(target, force=False)):
            if target.exists():
                assert target.read_text() == "new"
                assert outputs.written() == [target]
                target.unlink()
            else:
                assert outputs.written() == []
            outputs.forget_written()
            line += 1
        assert line > 20


def test_a_replaced_file_keeps_its_mode(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    target.write_text("old")
    target.chmod(0o640)
    write_file(target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.mkdir(path)], ids=["fifo", "folder"])
def test_what_takes_a_files_place_meanwhile_is_not_replaced(tmp_path: Path, make) -> None:
    target = tmp_path / "x.json"

    def write() -> None:
        with atomic_file(target, force=True) as partial:
            partial.write_text("new")
            make(target)

    with pytest.raises(OutputFault, match="has become a"):
        write()
    assert not target.is_file()
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_cannot_sync_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    write_file(tmp_path / "x.json")
    write_folder(tmp_path / "merged", NEW)
    assert (tmp_path / "x.json").read_text() == "new"
    assert content(tmp_path / "merged") == NEW


def test_a_disk_that_fails_after_the_rename_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, []

    def fail(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:  # the folder's
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputFault, match="is in place, but the disk failed"):
        write_file(tmp_path / "x.json")
    assert (tmp_path / "x.json").read_text() == "new"


def test_an_error_of_an_input_is_not_called_the_outputs(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_file(tmp_path / "x", force=False):
            (tmp_path / "absent").read_bytes()

    with pytest.raises(UnreadableFile, match=r"absent: No such file.*x was not written"):
        write()


def test_inputs_that_change_are_told(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).write_text("0")
    found = {tmp_path / name: FileIdentity.of(tmp_path / name) for name in "abcd"}
    outputs.check_unchanged(found)
    (tmp_path / "a").write_text("01")  # in place
    os.utime(tmp_path / "b", ns=(1, 1))
    (tmp_path / "c").unlink()
    with pytest.raises(UnreadableFile, match=r"a', '.*b', '.*c' changed while being read"):
        outputs.check_unchanged(found)


def test_only_known_files_of_a_run_are_removed(tmp_path: Path) -> None:
    for name in ("settings.json", "epochs/1.000000.safetensors", "checkpoint-2/optimizer.pt",
                 "checkpoint-2/notes.txt", "mine/settings.json"):  # fmt: skip
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("")
    others = outputs.others_in(tmp_path / "run", TRAINING_FILES)
    assert others == ["checkpoint-2/notes.txt", "mine/settings.json"]
    outputs.remove_matching(tmp_path / "run", TRAINING_FILES)
    assert sorted(listing(tmp_path / "run")) == others


def test_outputs_have_the_modes_that_files_made_here_have(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "file").write_text("")
    with atomic_folder(tmp_path / "merged", force=False) as partial:
        (partial / "file").write_text("")
    for name in ("", "file"):
        assert (tmp_path / "merged" / name).stat().st_mode == (
            tmp_path / "plain" / name
        ).stat().st_mode


class TestCheckOutput:
    """Checks before any work."""

    def test_a_new_file_and_a_new_folder(self, tmp_path: Path) -> None:
        assert check(tmp_path / "x.safetensors") == ""
        assert check(tmp_path / "merged", folder=True) == ""

    def test_an_existing_file_needs_force(self, tmp_path: Path) -> None:
        target = tmp_path / "x"
        target.write_text("")
        assert "--force" in check(target)
        assert check(target, force=True) == ""

    def test_an_existing_folder_needs_force_unless_it_is_empty(self, tmp_path: Path) -> None:
        target = tmp_path / "merged"
        target.mkdir()
        assert check(target, folder=True) == ""
        write_folder(target, OLD)
        assert "--force" in check(target, folder=True)
        assert check(target, folder=True, force=True) == ""

    @pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/null")])
    @pytest.mark.parametrize("folder", [False, True])
    def test_a_fifo_or_a_device_is_never_replaced(self, tmp_path: Path, make, folder: bool) -> None:
        make(tmp_path / "x")
        assert "which is never replaced" in check(tmp_path / "x", force=True, folder=folder)

    def test_a_mount_point_inside_is_a_strangers(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_folder(tmp_path / "merged", OLD)
        mounts = tmp_path / "mounts"
        where = str(tmp_path / "merged" / "fig ures").replace(" ", "\\040")
        mounts.write_text(f"36 35 98:0 / / rw - ext4 d rw\n37 36 98:0 /x {where} rw - ext4 d rw\n")
        monkeypatch.setattr(outputs, "MOUNTS", mounts)
        found = check(tmp_path / "merged", folder=True, force=True)
        assert "fig ures (a mount point)" in found

    def test_a_dangling_link_needs_force(self, tmp_path: Path) -> None:
        (tmp_path / "x").symlink_to(tmp_path / "absent")
        assert "--force" in check(tmp_path / "x")

    @pytest.mark.parametrize("force", [False, True])
    def test_a_file_in_place_of_a_folder_and_the_reverse(self, tmp_path: Path, force: bool) -> None:
        (tmp_path / "file").write_text("")
        (tmp_path / "folder").mkdir()
        assert "is a file" in check(tmp_path / "file", folder=True, force=force)
        assert "is a folder" in check(tmp_path / "folder", force=force)

    def test_the_root_and_the_current_folder_under_another_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert "is the root of the file system" in check(Path("/"), folder=True)
        monkeypatch.chdir(tmp_path)
        assert "is the current folder" in check(Path("new/.."), folder=True, force=True)

    def test_one_output_in_another(self, tmp_path: Path) -> None:
        (fault,) = outputs.check_not_inside(tmp_path / "out" / "x.toml", tmp_path / "out")
        assert "lies in the output folder" in str(fault)
        assert outputs.check_not_inside(tmp_path / "x.toml", tmp_path / "out") == []

    def test_a_missing_parent_is_made(self, tmp_path: Path) -> None:
        target = tmp_path / "absent" / "too" / "x"
        assert check(target) == ""
        assert not target.parent.exists()
        with atomic_file(target, force=True) as partial:
            partial.write_text("new")
        assert target.read_text() == "new"

    def test_a_parent_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        assert "is a file" in check(tmp_path / "file" / "x")
        assert "is a file" in check(tmp_path / "file" / "y" / "x")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
    def test_a_parent_that_is_not_writable(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        try:
            assert "not writable" in check(tmp_path / "x")
        finally:
            tmp_path.chmod(0o700)

    @pytest.mark.parametrize("free", [0, 999, 1000])
    def test_no_space(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - free, free))
        (fault,) = check_output(tmp_path / "x", inputs=(), size=1000, force=False)
        assert "1,000 bytes" in str(fault)
        assert f"{free:,} bytes free" in str(fault)

    def test_enough_space(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 10**9))
        assert check_output(tmp_path / "x", inputs=(), size=1000, force=False) == []

    def test_faults_are_reported_together(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, 0))
        (tmp_path / "x").write_text("")
        found = check(tmp_path / "x")
        assert "--force" in found
        assert "bytes free" in found


class TestInputs:
    """An input is never overwritten under any name, even with --force."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        (tmp_path / "base").mkdir()
        source = tmp_path / "base" / "model.safetensors"
        source.write_text("weights")
        return source

    def refused(self, output: Path, source: Path, folder: bool = False) -> bool:
        return str(source) in check(output, source, force=True, folder=folder)

    def test_by_path(self, source: Path) -> None:
        assert self.refused(source, source)
        assert self.refused(source.parent / ".." / "base" / source.name, source)

    def test_by_a_relative_path(self, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(source.parent)
        assert self.refused(Path(source.name), source)

    def test_by_symlink(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(source)
        assert self.refused(tmp_path / "link", source)
        assert self.refused(source, tmp_path / "link")

    def test_by_hard_link(self, source: Path, tmp_path: Path) -> None:
        os.link(source, tmp_path / "link")
        assert self.refused(tmp_path / "link", source)

    def test_by_a_linked_folder(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(source.parent)
        assert self.refused(tmp_path / "link" / source.name, source)

    def test_as_a_folder_that_holds_it(self, source: Path, tmp_path: Path) -> None:
        assert self.refused(source.parent, source, folder=True)
        (tmp_path / "link").symlink_to(source.parent)
        assert self.refused(tmp_path / "link", source, folder=True)

    def test_as_a_folder_that_holds_a_link_to_it(self, source: Path, tmp_path: Path) -> None:
        """The Hub's cache is a snapshot folder of links to blobs elsewhere."""
        snapshot = tmp_path / "snapshots" / "main"
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").symlink_to(source)
        assert self.refused(snapshot, snapshot / "model.safetensors", folder=True)

    @pytest.mark.parametrize("name", [
        *sorted(READ_NAMES), "config.json", "generation_config.json", "model.safetensors.index.json",
        "pytorch_model.bin", "model-00001-of-00002.safetensors", "wav.scp", "metadata.csv",
    ])  # fmt: skip
    def test_as_a_file_that_its_reader_looks_for(self, source: Path, name: str) -> None:
        """Files of an input folder, whether they exist or not."""
        found = check(source.parent / name, source.parent, force=True)
        assert "where a file of that name is read" in found

    @pytest.mark.parametrize(
        "name", ["results.json", "ca.delta", "merged.safetensors", "said.jsonl"]
    )
    def test_another_file_in_an_input_folder_is_fine(self, source: Path, name: str) -> None:
        assert check(source.parent / name, source.parent) == ""

    def test_a_file_beside_it_is_fine(self, source: Path) -> None:
        assert not self.refused(source.parent / "merged.safetensors", source)
        assert not self.refused(source.parent / "merged", source, folder=True)

    def test_a_folder_whose_name_begins_alike_is_fine(self, source: Path, tmp_path: Path) -> None:
        assert not self.refused(tmp_path / "bas", source, folder=True)
