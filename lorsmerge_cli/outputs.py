"""Outputs that appear whole or not at all, and never replace a file that lorsmerge did not write.

A file or folder is built in a scratch folder beside its target, synced, and renamed into place. A
folder gets a manifest of the files written into it. `--force` replaces a folder only if its manifest
lists every file in it. The two folders are exchanged by one system call if the system has one, and
exactly the files in the old folder's manifest are removed.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from lorsmerge_cli.errors import LorsmergeError, OutputFault, UnreadableFile, named
from lorsmerge_cli.inputs import FileIdentity, changed, file_type, read_json

SPARE_BYTES = 16 << 20  # left free on the disk
SEALED_BYTES = 4 << 20  # read at a time
SUFFIX = ".partial"
NAME_SHOWN = 40  # characters of an output's name in the name of its scratch folder
NEW, OLD = "new", "old"  # folders in a scratch folder
MANIFEST = ".lorsmerge-files.json"
ELSEWHERE = "Choose another with -o."
MOVE_AWAY = "Move what you want to keep and remove the folder, or choose another with -o."
MOUNTS = Path("/proc/self/mountinfo")
OCTAL = re.compile(r"\\([0-7]{3})")  # of a blank in a mount point's name
# errors of a file system without a flag of rename, hard links, or syncing of a folder
LACKING = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}

# Files that readers find by name in an input folder: models, adapters, data sets.
READ_BY_NAME = (
    "model.safetensors", "model-*-of-*.safetensors", "pytorch_model*.bin", "*.index.json",
    "adapter_model.*", "*config.json", "tokenizer*", "vocab*", "merges.txt", "*.model", "*.spm",
    "*.tiktoken", "bpe.codes", "tekken.json", "added_tokens.json", "special_tokens_map.json", "normalizer.json", "chat_template.*",
    "lorsmerge.json", "run.json", "trainer_state.json", "README.md", "*.py", "licen[cs]e*", "notice*",
    "copying*",
    "*.tsv", "*.parquet", "metadata.csv", "metadata.jsonl", "wav.scp", "segments", "text", "utt2spk", "utt2lang",
    "*.wav", "*.flac", "*.mp3", "*.ogg", "*.opus",
)  # fmt: skip

_unfinished: set[Path] = set()  # scratch folders of this process
_placed: list[tuple[Path, FileIdentity]] = []  # every output of this process


def check_output(
    output: Path, *, inputs: Iterable[Path], size: int, force: bool, folder: bool = False
) -> list[LorsmergeError]:
    """Return all faults that would keep an output from being written, before any work is done.

    Args:
        output: the target.
        inputs: every file and folder that is read. None of them may be written, and no file in
            such a folder with a name that a reader looks for.
        size: of the output in bytes.
        force: whether an output that exists may be replaced.
        folder: whether the target is a folder.
    """
    try:
        return _output_faults(output, list(inputs), size, force, folder)
    except OSError as error:  # the name is too long, the file system is gone
        return [OutputFault(f"{output} cannot be written: {error.strerror}.", ELSEWHERE)]


def _output_faults(
    output: Path, inputs: list[Path], size: int, force: bool, folder: bool
) -> list[LorsmergeError]:
    target = output.resolve()  # `new/..` is the current folder
    # missing folders are created later
    parent = next((folder for folder in target.parents if folder.exists()), None)
    if parent is None:
        return [OutputFault(f"{output} is the root of the file system.", ELSEWHERE)]
    if not parent.is_dir():
        return [OutputFault(f"{parent} is a file, so {output} cannot be written in it.", ELSEWHERE)]
    if not os.access(parent, os.W_OK):
        return [OutputFault(f"The folder {parent} is not writable.", ELSEWHERE)]
    clash = next((path for path in inputs if _is_or_holds(output, path, folder)), None)
    if clash is not None:
        return [OutputFault(f"{output} is or holds the input {clash}.", ELSEWHERE)]
    read = next((path for path in inputs if not folder and _is_read_in(output, path)), None)
    if read is not None:
        return [
            OutputFault(
                f"{output} lies in the input {read}, where a file of that name is read.", ELSEWHERE
            )
        ]
    faults: list[LorsmergeError] = []
    if target.exists() or output.is_symlink():
        faults += _existing_faults(target, force, folder, output)
    free = shutil.disk_usage(parent).free
    if size + SPARE_BYTES > free:
        faults.append(
            OutputFault(
                f"{output} takes {size:,} bytes and {parent} has {free:,} bytes free.",
                "Free some space or choose another disk.",
            )
        )
    return faults


def check_not_inside(output: Path, folder: Path) -> list[LorsmergeError]:
    """Return a fault if one output lies in another: the folder could not be replaced later."""
    if folder.resolve() not in output.resolve().parents:
        return []
    return [
        OutputFault(
            f"{output} lies in the output folder {folder}, which must hold no other files.",
            "Write it beside the folder.",
        )
    ]


def _existing_faults(target: Path, force: bool, folder: bool, output: Path) -> list[LorsmergeError]:
    actual = file_type(target.stat().st_mode) if target.exists() else "file"
    if actual not in ("file", "folder"):
        return [OutputFault(f"{output} is a {actual}, which is never replaced.", ELSEWHERE)]
    if (actual == "folder") != folder:
        expected = "folder" if folder else "file"
        return [
            OutputFault(f"{output} is a {actual}, and a {expected} is to be written.", ELSEWHERE)
        ]
    if not folder:
        return [] if force else [OutputFault(f"{output} exists.", "Give --force to replace it.")]
    if target.samefile(Path.cwd()) or target.is_mount():
        return [
            OutputFault(
                f"{output} is the current folder or a mount point, which cannot be replaced as a "
                "whole.",
                "Name a folder inside it.",
            )
        ]
    others = strangers(target)
    if others:
        return [_holds_strangers(output, others)]
    if not force and any(target.iterdir()):
        return [OutputFault(f"{output} exists.", "Give --force to replace it.")]
    return []


def _holds_strangers(folder: Path, others: list[str]) -> OutputFault:
    lost = ""
    if not (folder / MANIFEST).exists():
        lost = f", or has lost its {MANIFEST}, which lists what lorsmerge wrote"
    return OutputFault(
        f"{folder} exists and holds files that lorsmerge did not write{lost} ({named(others)}), so it "
        "is not replaced, not even with --force.",
        MOVE_AWAY,
    )


def _is_or_holds(output: Path, path: Path, folder: bool) -> bool:
    target = output.resolve()
    # the target of a link and the link itself: the Hub's cache consists of links
    for source in (path.resolve(), path.absolute().parent.resolve() / path.name):
        if target == source or (folder and target in source.parents):
            return True
    # hard links to one file
    return output.is_file() and path.is_file() and output.samefile(path)


def _is_read_in(output: Path, source: Path) -> bool:
    """Tell whether an output would be read as a part of an input folder."""
    if not source.is_dir() or source.resolve() != output.resolve().parent:
        return False
    name = output.name.lower()
    return any(fnmatchcase(name, pattern.lower()) for pattern in READ_BY_NAME)


def strangers(folder: Path) -> list[str]:
    """List the files in a folder that its manifest lacks, or that have changed since.

    Names are relative to the folder. Of a folder with no file in the manifest only its own name is
    listed.
    """
    written = _manifest(folder)
    ours = {str(parent) for name in written for parent in Path(name).parents}
    names = [f"{mount} (a mount point)" for mount in _mounts_in(folder)]
    for where, folders, files in os.walk(folder, onerror=_raise):
        for name in sorted([*folders, *files]):
            path = Path(where, name)
            relative, status = str(path.relative_to(folder)), path.lstat()
            if stat.S_ISDIR(status.st_mode):
                if relative not in ours:
                    names.append(f"{relative}/")
                    folders.remove(name)
            elif relative != MANIFEST and not _is_as_written(path, written.get(relative)):
                names.append(relative + (" (changed since)" if relative in written else ""))
    return names


def _raise(error: OSError) -> None:
    raise error


def _is_as_written(path: Path, recorded: object) -> bool:
    return stat.S_ISREG(path.lstat().st_mode) and recorded == _seal(path, recorded)


def _seal(path: Path, recorded: object = None) -> list[int | str] | None:
    """Return size and XXH3-128 of a file, as in a manifest; None if the recorded size is another."""
    import xxhash  # needed nowhere else

    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if isinstance(recorded, list) and recorded[:1] != [size]:
            return None
        while block := file.read(SEALED_BYTES):
            digest.update(block)
    return [size, digest.hexdigest()]


def _manifest(folder: Path) -> Mapping[str, object]:
    """Return size and digest of each file in a folder's manifest; empty without a valid one."""
    try:
        written = read_json(folder / MANIFEST)["files"]
        return {name: written[name] for name in written if _stays_inside(Path(name))}
    except (OSError, ValueError, KeyError, TypeError, LorsmergeError):
        return {}


def _stays_inside(name: Path) -> bool:
    return not name.is_absolute() and ".." not in name.parts


def _write_manifest(folder: Path) -> None:
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[str(path.relative_to(folder))] = _seal(path)
    write_json(folder / MANIFEST, {"written by": "lorsmerge", "files": files})


def _mounts_in(folder: Path) -> list[str]:
    """List the mount points below a folder, including bind mounts, if the system lists them."""
    try:
        lines = MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    points = [OCTAL.sub(lambda code: chr(int(code[1], 8)), line.split()[4]) for line in lines]
    root = folder.resolve()
    return [str(Path(point).relative_to(root)) for point in points if root in Path(point).parents]


def others_in(folder: Path, patterns: Sequence[str]) -> list[str]:
    """List the files below a folder whose relative paths match none of the patterns."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if (path.is_symlink() or not path.is_dir()) and not _matches(path, folder, patterns)
    ]


def remove_matching(folder: Path, patterns: Sequence[str]) -> None:
    """Remove the files that `others_in` does not list, and the folders that are left empty."""
    below = sorted(folder.rglob("*"), key=lambda path: -len(path.parts))
    for path in below:
        if _matches(path, folder, patterns):
            path.unlink()
    for path in (*below, folder):
        with suppress(OSError):
            path.rmdir()


def _matches(path: Path, folder: Path, patterns: Sequence[str]) -> bool:
    name = path.relative_to(folder).as_posix()
    regular = path.is_file() and not path.is_symlink()
    return regular and any(fnmatchcase(name, pattern) for pattern in patterns)


@contextmanager
def atomic_file(target: Path, *, force: bool, intermediate: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `target`, renamed to it if the block ends without an error.

    Args:
        target: the file; if it is a link, the file it points to.
        force: replace a file that exists; otherwise one that appeared since the check is an error.
        intermediate: whether the user has not asked for the file, so that `written` skips it.

    Raises:
        OutputFault: the disk is full or cannot be written, or the target appeared meanwhile.
    """
    target = target.resolve()
    with _scratch_folder(target) as folder:
        partial = folder / target.name
        yield partial
        _sync(partial)
        if not intermediate:
            _placed.append((target, FileIdentity.of(partial)))
        _place_file(partial, target, force)
        _sync_parent(target)


@contextmanager
def atomic_folder(target: Path, *, force: bool) -> Iterator[Path]:
    """Yield a temporary folder beside `target`, renamed to it if the block ends without an error.

    Args:
        target: the folder; if it is a link, the folder it points to.
        force: replace a folder that exists, if lorsmerge wrote every file in it.

    Raises:
        OutputFault: the disk is full or cannot be written, or the target exists, or it holds files
            that lorsmerge did not write.
    """
    target = target.resolve()
    with _scratch_folder(target) as partial:
        yield partial
        _write_manifest(partial)
        for path in [*partial.rglob("*"), partial]:
            _sync(path)
        _placed.append((target, FileIdentity.of(partial)))
        _place_folder(partial, target, force)
        _sync_parent(target)


def note_grown(path: Path) -> None:
    """Count a file that grows while a command works among what is `written`, however that ends."""
    _placed.append((path, FileIdentity.of(path)))


def written() -> list[Path]:
    """List the outputs that this process has put in place since `forget_written`."""
    paths = []
    for target, identity in _placed:
        with suppress(OSError):
            if FileIdentity.of(target).is_file_of(identity):
                paths.append(target)
    return list(dict.fromkeys(paths))


def forget_written() -> None:
    """Empty the list of `written`."""
    _placed.clear()


def lock(descriptor: int) -> bool:
    """Lock an open file or folder until it is closed, and tell whether no other process has it.

    Nothing is locked, and the answer is true, on a system or a file system without such locks.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def check_unchanged(identities: Mapping[Path, FileIdentity]) -> None:
    """Check after all inputs were read, and before the output is put in place, that none has changed.

    Args:
        identities: of the inputs when they were opened.

    Raises:
        UnreadableFile: one was written to, replaced or removed since.
    """
    others = [str(path) for path in changed(identities)]
    if others:
        raise UnreadableFile(
            f"{named(others)} changed while being read, so the result would mix two versions; no output "
            "was written.",
            "Run the command again when nothing writes to its inputs.",
        )


def write_json(path: Path, value: object) -> None:
    """Write indented JSON with non-ASCII characters as they are and a newline at the end."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    path.write_bytes(text.encode("utf-8", "backslashreplace"))  # JSON's escape of a lone surrogate


def leftovers(output: Path) -> list[str]:
    """Describe every scratch folder beside an output: a killed run cannot remove its own."""
    target = output.resolve()
    pattern = glob.escape(_scratch_prefix(target)) + "*" + SUFFIX
    return [
        f"{scratch / OLD} is what {output} held when a run was killed: move it back."
        if (scratch / OLD).exists()  # killed between two renames
        else f"{scratch} is left over from a run that was killed, or belongs to one that is running: "
        "remove it if none is."
        for scratch in sorted(target.parent.glob(pattern))
    ]


def _scratch_prefix(target: Path) -> str:
    return f".{target.name[:NAME_SHOWN]}."


@contextmanager
def _scratch_folder(target: Path) -> Iterator[Path]:
    """Create a folder to write into on the target's file system, where a rename does not copy."""
    name = f"{_scratch_prefix(target)}{secrets.token_hex(4)}{SUFFIX}"
    scratch = target.parent / name
    absent = [folder for folder in target.parents if not folder.exists()]
    ours = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.mkdir(mode=0o700)
        _unfinished.add(scratch)
        (scratch / NEW).mkdir()
        ours = FileIdentity.of(scratch / NEW)
        yield scratch / NEW
    except OSError as error:
        raise _fault_of(error, target, scratch) from error
    finally:
        _discard(scratch, ours, target)
        _unfinished.discard(scratch)
        for folder in absent:  # innermost first; rmdir fails for those that hold the output
            with suppress(OSError):
                folder.rmdir()


def discard_unfinished() -> None:
    """Remove unfinished outputs, for a process that must end at once."""
    for scratch in _unfinished:
        shutil.rmtree(scratch / NEW, ignore_errors=True)
        with suppress(OSError):
            scratch.rmdir()


def _fault_of(error: OSError, target: Path, scratch: Path) -> LorsmergeError:
    """Return the error for a failed write: which file failed, and what exists now."""
    reason = error.strerror or str(error)
    if error.errno == errno.EMFILE:
        return OutputFault(
            f"{target} could not be written: {reason}. Nothing was written.",
            "Raise the limit with `ulimit -n 4096`.",
        )
    other = Path(os.fsdecode(error.filename)) if error.filename else scratch
    if scratch not in (other, *other.parents) and target not in (other, *other.parents):
        return UnreadableFile(f"{other}: {reason}.", f"{target} was not written.")
    if target in written():
        return OutputFault(
            f"{target} is in place, but the disk failed when it was synced: {reason}.",
            "Check the disk, and run the command again with --force.",
        )
    return OutputFault(
        f"{target} could not be written: {reason}.",
        "Nothing was left behind; free some space or choose another output.",
    )


def _discard(scratch: Path, ours: FileIdentity | None, target: Path) -> None:
    """Remove a scratch folder with the files that lorsmerge wrote into it; others stay.

    Args:
        scratch: the folder.
        ours: identity of the new folder in it; after an exchange the old one has its name.
        target: the path that the old one is moved back to if nothing has replaced it.
    """
    new, old = scratch / NEW, scratch / OLD
    with suppress(OSError):
        if ours is not None and FileIdentity.of(new).is_file_of(ours):
            shutil.rmtree(new, ignore_errors=True)
    if old.exists() and not os.path.lexists(target):
        os.rename(old, target)
    for replaced in (new, old):
        if replaced.exists():
            _remove_written(replaced)
    with suppress(OSError):
        scratch.rmdir()


def _remove_written(folder: Path) -> None:
    """Remove the unchanged files of a folder's manifest, and the folder if it is then empty."""
    recorded = _manifest(folder)
    parents = {folder / parent for name in recorded for parent in Path(name).parents}
    with suppress(OSError):
        for parent in parents:
            parent.chmod(0o700)  # a user may have made it read-only
        for name, identity in recorded.items():
            with suppress(FileNotFoundError):
                if _is_as_written(folder / name, identity):
                    (folder / name).unlink()
        for parent in sorted(parents - {folder}, key=lambda path: -len(path.parts)):
            parent.rmdir()
        if os.listdir(folder) == [MANIFEST]:
            (folder / MANIFEST).unlink()
        folder.rmdir()


def _place_file(partial: Path, target: Path, force: bool) -> None:
    if not force:
        _rename_to_free_name(partial, target)
        return
    with suppress(FileNotFoundError):
        status = target.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise OutputFault(
                f"{target} has become a {file_type(status.st_mode)}. Nothing was written.",
                ELSEWHERE,
            )
        partial.chmod(stat.S_IMODE(status.st_mode) & 0o777)
    os.replace(partial, target)


def _place_folder(new: Path, target: Path, force: bool) -> None:
    try:
        status = target.lstat()
    except FileNotFoundError:
        _rename_to_free_name(new, target)
        return
    new.chmod(stat.S_IMODE(status.st_mode) & 0o777)
    if not force:  # rename replaces an empty folder and no other
        with _raise_if_taken(target):
            os.rename(new, target)
        return
    if not stat.S_ISDIR(status.st_mode):
        raise _appeared(target)
    others = strangers(target)
    if others:
        raise _holds_strangers(target, others)
    _keep_modes(target, new)
    _exchange(new, target)


def _keep_modes(old: Path, new: Path) -> None:
    for path in new.rglob("*"):
        with suppress(FileNotFoundError):
            mode = stat.S_IMODE((old / path.relative_to(new)).lstat().st_mode) & 0o777
            path.chmod(mode | stat.S_IRWXU if path.is_dir() else mode)


def _exchange(new: Path, target: Path) -> None:
    """Swap two folders, and swap them back if a file was added to the old one meanwhile."""
    if _rename_with_flag(new, target, exchange=True):
        others = strangers(new)
        if others:
            _rename_with_flag(new, target, exchange=True)
            raise _holds_strangers(target, others)
        return
    old = new.with_name(OLD)
    try:
        os.rename(target, old)
        others = strangers(old)
        if others:
            raise _holds_strangers(target, others)
        os.rename(new, target)
    except BaseException:
        if old.exists() and not os.path.lexists(target):
            os.rename(old, target)
        raise


def _appeared(target: Path) -> OutputFault:
    return OutputFault(
        f"{target} appeared while the work was running; it was not replaced.",
        "Choose another with -o, or give --force.",
    )


def _rename_to_free_name(source: Path, target: Path) -> None:
    """Rename to a free name.

    Raises:
        OutputFault: the name is taken.
    """
    with _raise_if_taken(target):
        if _rename_with_flag(source, target, exchange=False):
            return
        if source.is_dir():
            os.rename(source, target)  # fails on anything but an empty folder
            return
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in LACKING:
                raise
            if os.path.lexists(target):
                raise FileExistsError from error
            os.rename(source, target)


@contextmanager
def _raise_if_taken(target: Path) -> Iterator[None]:
    """Raise OutputFault if a rename finds that the name is taken."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.ENOTEMPTY) or isinstance(
            error, FileExistsError
        ):
            raise _appeared(target) from error
        raise


def _rename_with_flag(source: Path, target: Path, *, exchange: bool) -> bool:
    """Exchange two names in one system call, or rename only if the target's name is free.

    Returns:
        False if the system or the file system has no such call; then nothing was done.
    """
    libc = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    paths = os.fsencode(source), os.fsencode(target)
    if sys.platform == "darwin":
        rename = getattr(libc, "renamex_np", None)
        arguments = (*paths, 2 if exchange else 4)  # RENAME_SWAP, RENAME_EXCL
    else:
        rename = getattr(libc, "renameat2", None)
        here = -100  # AT_FDCWD: relative to the current folder
        arguments = (here, paths[0], here, paths[1], 2 if exchange else 1)  # EXCHANGE, NOREPLACE
    if rename is None:
        return False
    if rename(*arguments) == 0:
        return True
    code = ctypes.get_errno()
    if code in LACKING:
        return False
    raise OSError(code, os.strerror(code), str(target))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY) if path.is_file() or os.name == "posix" else None
    if descriptor is not None:  # other systems cannot open a folder
        try:
            sync_descriptor(descriptor)
        finally:
            os.close(descriptor)


def _sync_parent(target: Path) -> None:
    with suppress(PermissionError):  # a folder may be writable but not readable
        _sync(target.parent)


def sync_descriptor(descriptor: int) -> None:
    """Sync a file to the disk, except on network file systems that do not support it.

    Raises:
        OSError: the disk failed.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in LACKING:
            raise
