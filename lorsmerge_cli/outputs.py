"""Outputs that appear whole or not at all, and never at the cost of a file that is not ours.

A file or folder is built in a scratch folder beside its target, synced, and renamed into place. A
folder gets a manifest of what was written into it. `--force` replaces a folder only where its manifest
accounts for every file in it; the two are exchanged in one system call where there is one, and of the
old folder exactly the files of its manifest are removed.
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

from lorsmerge_cli.errors import LorsmergeError, OutputFault, UnreadableFile, named
from lorsmerge_cli.inputs import FileIdentity, changed, file_type, read_json

SPARE_BYTES = 16 << 20  # left free on the disk
SEALED_BYTES = 4 << 20  # read at a time
SUFFIX = ".partial"
NAME_SHOWN = 40  # characters of an output's name in its scratch folder's
NEW, OLD = "new", "old"  # in a scratch folder
MANIFEST = ".lorsmerge-files.json"
ELSEWHERE = "Choose another with -o."
KEPT_AWAY = "Move what you want to keep and remove the folder, or choose another with -o."
MOUNTS = Path("/proc/self/mountinfo")
OCTAL = re.compile(r"\\([0-7]{3})")  # a blank in a mount point's name
# errors of a file system that lacks a flag of rename, hard links, or the syncing of a folder
LACKING = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}

# What readers look for by its name in a folder that is an input: models, adapters, data sets.
READ_BY_NAME = (
    "model.safetensors", "model-*-of-*.safetensors", "pytorch_model*.bin", "*.index.json",
    "adapter_model.*", "*config.json", "tokenizer*", "vocab*", "merges.txt", "*.model", "*.spm",
    "*.tiktoken", "bpe.codes", "tekken.json", "added_tokens.json", "special_tokens_map.json", "normalizer.json", "chat_template.*",
    "lorsmerge.json", "run.json", "trainer_state.json", "README.md", "*.py", "licen[cs]e*", "notice*",
    "copying*",
    "*.tsv", "metadata.csv", "metadata.jsonl", "wav.scp", "segments", "text", "utt2spk", "utt2lang",
    "*.wav", "*.flac", "*.mp3", "*.ogg", "*.opus",
)  # fmt: skip

_unfinished: set[Path] = set()  # scratch folders of this process
_placed: list[tuple[Path, FileIdentity]] = []  # every output of this process


def check_output(
    output: Path, *, inputs: Iterable[Path], size: int, force: bool, folder: bool = False
) -> list[LorsmergeError]:
    """Find everything that would keep an output from being written, before any work is done.

    Args:
        output: the target.
        inputs: every file and folder that is read; none of them may be written, nor may a file in
            such a folder that a reader looks for by its name.
        size: bytes the output will take.
        force: whether an output that exists may be replaced.
        folder: whether the target is a folder.
    """
    try:
        return _output_faults(output, list(inputs), size, force, folder)
    except OSError as error:  # a name that is too long, a file system that is gone
        return [OutputFault(f"{output} cannot be written: {error.strerror}.", ELSEWHERE)]


def _output_faults(
    output: Path, inputs: list[Path], size: int, force: bool, folder: bool
) -> list[LorsmergeError]:
    target = output.resolve()  # `new/..` is the current folder
    # folders that are missing are made on the way
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
    """Find whether one output lies in another: the folder could not be replaced then."""
    if folder.resolve() not in output.resolve().parents:
        return []
    return [
        OutputFault(
            f"{output} lies in the output folder {folder}, which holds what belongs to it alone.",
            "Write it beside the folder.",
        )
    ]


def _existing_faults(target: Path, force: bool, folder: bool, output: Path) -> list[LorsmergeError]:
    found = file_type(target.stat().st_mode) if target.exists() else "file"
    if found not in ("file", "folder"):
        return [OutputFault(f"{output} is a {found}, which is never replaced.", ELSEWHERE)]
    if (found == "folder") != folder:
        wanted = "folder" if folder else "file"
        return [OutputFault(f"{output} is a {found}, and a {wanted} is to be written.", ELSEWHERE)]
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
    known_by = ""
    if not (folder / MANIFEST).exists():
        known_by = f", or it has lost the {MANIFEST} by which that is known"
    return OutputFault(
        f"{folder} exists and holds what lorsmerge did not write{known_by} ({named(others)}), so it is "
        "not replaced, not even with --force.",
        KEPT_AWAY,
    )


def _is_or_holds(output: Path, path: Path, folder: bool) -> bool:
    target = output.resolve()
    # both where a link stands and where it leads: the Hub's cache is made of links
    for source in (path.resolve(), path.absolute().parent.resolve() / path.name):
        if target == source or (folder and target in source.parents):
            return True
    # a hard link is the same file under another name
    return output.is_file() and path.is_file() and output.samefile(path)


def _is_read_in(output: Path, source: Path) -> bool:
    """Whether an output lies where a reader of an input folder would take it for a part of that."""
    if not source.is_dir() or source.resolve() != output.resolve().parent:
        return False
    name = output.name.lower()
    return any(fnmatchcase(name, pattern.lower()) for pattern in READ_BY_NAME)


def strangers(folder: Path) -> list[str]:
    """List what in a folder lorsmerge did not write, by the folder's manifest, or what has changed.

    Names are relative to the folder; of a folder that is not ours only its own name is listed.
    """
    written = _manifest(folder)
    ours = {str(parent) for name in written for parent in Path(name).parents}
    found = [f"{mount} (a mount point)" for mount in _mounts_in(folder)]
    for where, folders, files in os.walk(folder, onerror=_raise):
        for name in sorted([*folders, *files]):
            path = Path(where, name)
            relative, status = str(path.relative_to(folder)), path.lstat()
            if stat.S_ISDIR(status.st_mode):
                if relative not in ours:
                    found.append(f"{relative}/")
                    folders.remove(name)
            elif relative != MANIFEST and not _is_as_written(path, written.get(relative)):
                found.append(relative + (" (changed since)" if relative in written else ""))
    return found


def _raise(error: OSError) -> None:
    raise error


def _is_as_written(path: Path, recorded: object) -> bool:
    return stat.S_ISREG(path.lstat().st_mode) and recorded == _seal(path, recorded)


def _seal(path: Path, recorded: object = None) -> list[int | str] | None:
    """Return size and XXH3-128 of a file, by which a manifest knows it; None at another size."""
    import xxhash  # for this alone

    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if isinstance(recorded, list) and recorded[:1] != [size]:
            return None
        while block := file.read(SEALED_BYTES):
            digest.update(block)
    return [size, digest.hexdigest()]


def _manifest(folder: Path) -> Mapping[str, object]:
    """Size and digest of each file that was written; empty where that is not known."""
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
    """Mount points below a folder, bind mounts too, where the system lists them."""
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
    """Remove the files that `others_in` does not list, and the folders that are empty then."""
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
    """Give a temporary path beside `target` that becomes it when the block ends without an error.

    Args:
        target: the file. Where it is a link, what that leads to is replaced.
        force: replace a file that exists; else one that appeared since the check is an error.
        intermediate: whether the file is one that a user has not asked for.

    Raises:
        OutputFault: the disk filled up or would not be written, or the target appeared meanwhile.
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
    """Give a temporary folder beside `target` that becomes it when the block ends without an error.

    Args:
        target: the folder. Where it is a link, what that leads to is replaced.
        force: replace a folder that exists, if all that it holds was written by lorsmerge.

    Raises:
        OutputFault: the disk filled up or would not be written, or the target is there already, or
            holds files of somebody else.
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


def written() -> list[Path]:
    """List the outputs that this process has put in place, since `forget_written`."""
    found = []
    for target, identity in _placed:
        with suppress(OSError):
            if FileIdentity.of(target).is_file_of(identity):
                found.append(target)
    return list(dict.fromkeys(found))


def forget_written() -> None:
    """Begin the list of `written` anew."""
    _placed.clear()


def check_unchanged(identities: Mapping[Path, FileIdentity]) -> None:
    """Check inputs once more, when all of them have been read and before the output is put in place.

    Raises:
        UnreadableFile: one was written, replaced or removed since it was opened.
    """
    others = [str(path) for path in changed(identities)]
    if others:
        raise UnreadableFile(
            f"{named(others)} changed while being read, so the result would be neither the old nor the "
            "new; no output was written.",
            "Run the command again when nothing writes to its inputs.",
        )


def write_json(path: Path, value: object) -> None:
    """Write readable JSON, unescaped, with a newline at its end."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    path.write_bytes(text.encode("utf-8", "backslashreplace"))  # a lone surrogate as JSON's escape


def leftovers(output: Path) -> list[str]:
    """Describe every scratch folder beside an output: a killed run cannot remove its own."""
    target = output.resolve()
    pattern = glob.escape(_scratch_prefix(target)) + "*" + SUFFIX
    found = []
    for scratch in sorted(target.parent.glob(pattern)):
        if (scratch / OLD).exists():  # killed between two renames
            found.append(
                f"{scratch / OLD} is what {output} held when a run was killed: move it back."
            )
        else:
            found.append(
                f"{scratch} is left over from a run that was killed, or belongs to one that is "
                "running: remove it if none is."
            )
    return found


def _scratch_prefix(target: Path) -> str:
    return f".{target.name[:NAME_SHOWN]}."


@contextmanager
def _scratch_folder(target: Path) -> Iterator[Path]:
    """Make a folder to write into, on the target's own file system, or the rename would be a copy."""
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
        for folder in absent:  # innermost first; those that hold the output stay
            with suppress(OSError):
                folder.rmdir()


def discard_unfinished() -> None:
    """Remove what was being written when the process has to end at once."""
    for scratch in _unfinished:
        shutil.rmtree(scratch / NEW, ignore_errors=True)
        with suppress(OSError):
            scratch.rmdir()


def _fault_of(error: OSError, target: Path, scratch: Path) -> LorsmergeError:
    """Tell which file failed, and what there is now."""
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
    """Remove a scratch folder with what is ours in it; anything else stays.

    Args:
        scratch: the folder.
        ours: identity of the new folder in it; after an exchange the old one has its name.
        target: what the old one is moved back to where nothing took its place.
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
    """Remove the files of a folder's manifest, as they were written, and the folder if that is all."""
    recorded = _manifest(folder)
    parents = {folder / parent for name in recorded for parent in Path(name).parents}
    with suppress(OSError):
        for parent in parents:
            parent.chmod(0o700)  # a user may have made ours read-only
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
        there = target.lstat()
    except FileNotFoundError:
        _rename_to_free_name(new, target)
        return
    new.chmod(stat.S_IMODE(there.st_mode) & 0o777)
    if not force:  # an empty folder is replaced, a folder with anything in it is not
        with _told_if_taken(target):
            os.rename(new, target)
        return
    if not stat.S_ISDIR(there.st_mode):
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
    """Swap two folders, and swap them back if somebody put a file into the old one meanwhile."""
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
        f"{target} was not there when the work began and is there now; it was left as it is.",
        "Choose another with -o, or give --force.",
    )


def _rename_to_free_name(source: Path, target: Path) -> None:
    """Rename to a name that nothing has.

    Raises:
        OutputFault: something has it.
    """
    with _told_if_taken(target):
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
def _told_if_taken(target: Path) -> Iterator[None]:
    """Raise OutputFault where a rename finds that something has the name."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.ENOTEMPTY) or isinstance(
            error, FileExistsError
        ):
            raise _appeared(target) from error
        raise


def _rename_with_flag(source: Path, target: Path, *, exchange: bool) -> bool:
    """Rename in one step: exchanging the two, or only to a name that is free.

    Returns:
        False where the system or the file system has no such call; nothing was done then.
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
    if descriptor is not None:  # elsewhere a folder cannot be opened
        try:
            sync_descriptor(descriptor)
        finally:
            os.close(descriptor)


def _sync_parent(target: Path) -> None:
    with suppress(PermissionError):  # a folder may be writable and not readable
        _sync(target.parent)


def sync_descriptor(descriptor: int) -> None:
    """Have the disk hold what was written; some network file systems cannot be told to.

    Raises:
        OSError: the disk failed.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in LACKING:
            raise
