"""Outputs appear whole or not at all, and never over an input."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from lorsmerge_cli.checkpoint.atomic import atomic_file, atomic_folder, check_output
from lorsmerge_cli.errors import OutputFault

Usage = namedtuple("Usage", "total used free")


class Stop(BaseException):
    """What Ctrl-C is to a block."""


def listing(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, with its content."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def check(output: Path, *inputs: Path, force: bool = False, folder: bool = False) -> str:
    """What `check_output` finds, as one text."""
    faults = check_output(output, inputs=inputs, size=0, force=force, folder=folder)
    return " | ".join(str(fault) for fault in faults)


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "x.safetensors"
    with atomic_file(target) as partial:
        partial.write_text("new")
        assert not target.exists()
        assert partial.parent.parent == tmp_path  # one file system, or the rename would copy
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
        with atomic_file(target) as partial:
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
        target.mkdir()
        (target / "config.json").write_text("old")

    def write() -> None:
        with atomic_folder(target) as partial:
            (partial / "config.json").write_text("half")
            raise error("stop")

    with pytest.raises(error):
        write()
    assert listing(tmp_path) == ({"merged/config.json": "old"} if old else {})
    assert len(os.listdir(tmp_path)) == int(old)


@pytest.mark.parametrize("writer", [atomic_file, atomic_folder])
def test_a_full_disk_is_a_fault_of_the_output(tmp_path: Path, writer) -> None:
    def write() -> None:
        with writer(tmp_path / "x"):
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputFault, match="No space left on device") as caught:
        write()
    assert str(tmp_path / "x") in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "merged"
    target.mkdir()
    (target / "config.json").write_text("old")
    real = os.replace

    def replace(source: Path, destination: Path) -> None:
        if Path(destination) == target and Path(source).name == "new":
            raise OSError(5, "Input/output error")
        real(source, destination)

    def write() -> None:
        with atomic_folder(target) as partial:
            (partial / "config.json").write_text("new")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OutputFault):
        write()
    assert listing(tmp_path) == {"merged/config.json": "old"}


def test_an_older_folder_keeps_its_own_files_and_loses_stale_weights(tmp_path: Path) -> None:
    target = tmp_path / "merged"
    (target / "notes").mkdir(parents=True)
    for name in ("config.json", "notes/mine.txt", "eval.json", ".gitattributes",
                 "model-00001-of-00002.safetensors", "model.safetensors.index.json"):  # fmt: skip
        (target / name).write_text("old")
    with atomic_folder(target) as partial:
        (partial / "config.json").write_text("new")
        (partial / "model.safetensors").write_text("new")
    assert listing(tmp_path) == {
        "merged/config.json": "new",
        "merged/model.safetensors": "new",
        "merged/notes/mine.txt": "old",
        "merged/eval.json": "old",
        "merged/.gitattributes": "old",
    }
    assert os.listdir(tmp_path) == ["merged"]


def test_outputs_have_the_modes_that_files_made_here_have(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "file").write_text("")
    with atomic_folder(tmp_path / "merged") as partial:
        (partial / "file").write_text("")
    for name in ("", "file"):
        assert (tmp_path / "merged" / name).stat().st_mode == (
            tmp_path / "plain" / name
        ).stat().st_mode


class TestCheckOutput:
    """What is known before any work."""

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
        (target / "config.json").write_text("")
        assert "--force" in check(target, folder=True)
        assert check(target, folder=True, force=True) == ""

    def test_a_dangling_link_needs_force(self, tmp_path: Path) -> None:
        (tmp_path / "x").symlink_to(tmp_path / "absent")
        assert "--force" in check(tmp_path / "x")

    @pytest.mark.parametrize("force", [False, True])
    def test_a_file_in_place_of_a_folder_and_the_reverse(self, tmp_path: Path, force: bool) -> None:
        (tmp_path / "file").write_text("")
        (tmp_path / "folder").mkdir()
        assert "is a file" in check(tmp_path / "file", folder=True, force=force)
        assert "is a folder" in check(tmp_path / "folder", force=force)

    def test_a_missing_parent_is_made(self, tmp_path: Path) -> None:
        target = tmp_path / "absent" / "too" / "x"
        assert check(target) == ""
        assert not target.parent.exists()
        with atomic_file(target) as partial:
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
    """An input is never the output, by whatever name; --force does not change that."""

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
        """The Hub's cache: a snapshot folder of links to blobs elsewhere."""
        snapshot = tmp_path / "snapshots" / "main"
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").symlink_to(source)
        assert self.refused(snapshot, snapshot / "model.safetensors", folder=True)

    def test_a_file_beside_it_is_fine(self, source: Path) -> None:
        assert not self.refused(source.parent / "merged.safetensors", source)
        assert not self.refused(source.parent / "merged", source, folder=True)

    def test_a_folder_whose_name_begins_alike_is_fine(self, source: Path, tmp_path: Path) -> None:
        assert not self.refused(tmp_path / "bas", source, folder=True)
