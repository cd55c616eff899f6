"""Outputs that appear whole or not at all: built beside the target, synced, then renamed."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lorsmerge_cli.errors import LorsmergeError, OutputFault

SPARE_BYTES = 16 << 20  # left free on the disk
SUFFIX = ".partial"
NAME_SHOWN = 40  # characters of an output's name in its temporary folder's
ELSEWHERE = "Choose another with -o."


def check_output(
    output: Path, *, inputs: Iterable[Path], size: int, force: bool, folder: bool = False
) -> list[LorsmergeError]:
    """Everything that would keep an output from being written, before any work is done.

    Args:
        output: the target.
        inputs: every file and folder that is read, none of which may be written.
        size: bytes the output will take.
        force: whether an output that exists may be replaced.
        folder: whether the target is a folder.
    """
    try:
        return _output_faults(output, inputs, size, force, folder)
    except OSError as error:  # a name that is too long, a file system that is gone
        return [OutputFault(f"{output} cannot be written: {error.strerror}.", ELSEWHERE)]


def _output_faults(
    output: Path, inputs: Iterable[Path], size: int, force: bool, folder: bool
) -> list[LorsmergeError]:
    faults: list[LorsmergeError] = []
    # folders that are missing are made on the way
    parent = next(folder for folder in output.resolve().parents if folder.exists())
    if not parent.is_dir():
        return [OutputFault(f"{parent} is a file, so {output} cannot be written in it.", ELSEWHERE)]
    if not os.access(parent, os.W_OK):
        return [OutputFault(f"The folder {parent} is not writable.", ELSEWHERE)]
    clash = next((path for path in inputs if _is_or_holds(output, path, folder)), None)
    if clash is not None:
        return [OutputFault(f"{output} is or holds the input {clash}.", ELSEWHERE)]
    if output.exists() or output.is_symlink():
        if output.is_dir() != folder:
            is_, wanted = ("folder", "file") if output.is_dir() else ("file", "folder")
            faults.append(OutputFault(f"{output} is a {is_}, and a {wanted} is to be written.",
                                      ELSEWHERE))  # fmt: skip
        elif folder and (output.samefile(Path.cwd()) or output.is_mount()):
            faults.append(OutputFault(f"{output} is the current folder or a mount point, which cannot "
                                      "be replaced as a whole.", "Name a folder inside it."))  # fmt: skip
        elif not force and not (folder and not any(output.iterdir())):
            faults.append(OutputFault(f"{output} exists.", "Give --force to replace it."))
    free = shutil.disk_usage(parent).free
    if size + SPARE_BYTES > free:
        faults.append(
            OutputFault(
                f"{output} takes {size:,} bytes and {parent} has {free:,} bytes free.",
                "Free some space or choose another disk.",
            )
        )
    return faults


def _is_or_holds(output: Path, path: Path, folder: bool) -> bool:
    target = output.resolve()
    # both where a link stands and where it leads: the Hub's cache is made of links
    for source in (path.resolve(), path.absolute().parent.resolve() / path.name):
        if target == source or (folder and target in source.parents):
            return True
    # a hard link is the same file under another name
    return output.is_file() and path.is_file() and output.samefile(path)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` that becomes it when the block ends without an error.

    Raises:
        OutputFault: the disk filled up, or would not be written.
    """
    target = target.resolve()  # a link stays one, and what it leads to is replaced
    with _temporary_folder(target) as scratch:
        partial = scratch / target.name
        yield partial
        os.replace(partial, target)
        _sync_folder(target.parent)


@contextmanager
def atomic_folder(target: Path, stale: str = "*.safetensors*") -> Iterator[Path]:
    """A temporary folder beside `target` that becomes it when the block ends without an error.

    What an older folder of that name held and the new one has no file for is kept, except
    files that match `stale`.

    Raises:
        OutputFault: the disk filled up, or would not be written.
    """
    target = target.resolve()
    with _temporary_folder(target) as scratch:
        partial, previous = scratch / "new", scratch / "old"
        partial.mkdir()
        yield partial
        for file in partial.rglob("*"):
            _sync(file)
        _sync_folder(partial)
        if target.exists():
            os.replace(target, previous)
        try:
            os.replace(partial, target)
        except BaseException:
            if previous.exists():
                os.replace(previous, target)
            raise
        if previous.exists():
            for old in previous.iterdir():
                if not (target / old.name).exists() and not old.match(stale):
                    os.replace(old, target / old.name)
        _sync_folder(target.parent)


def _scratch_prefix(target: Path) -> str:
    return f".{target.name[:NAME_SHOWN]}."


def leftovers(output: Path) -> list[str]:
    """A warning for every temporary folder beside an output: a killed run cannot remove its own."""
    target = output.resolve()
    pattern = glob.escape(_scratch_prefix(target)) + "*" + SUFFIX
    return [
        f"{folder} is left over from a run that was killed, or belongs to one that is running: "
        "remove it if none is."
        for folder in sorted(target.parent.glob(pattern))
    ]


@contextmanager
def _temporary_folder(target: Path) -> Iterator[Path]:
    scratch = None
    try:
        # on the target's own file system, or the rename would be a copy
        prefix = _scratch_prefix(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=prefix, suffix=SUFFIX, dir=target.parent))
        yield scratch
    except OSError as error:
        raise OutputFault(
            f"{target} could not be written: {error.strerror or error}.",
            "Nothing was left behind; free some space or choose another output.",
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _sync(path: Path) -> None:
    if path.is_file():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
