"""References to inputs: a path, or `org/name[@revision][:file]` on the Hugging Face Hub.

A local file or folder takes precedence. Else a name with one slash is a repository: the files needed
are downloaded to huggingface_hub's cache, and outputs made from them record the commit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lorsmerge_cli.checkpoint.model_files import INDEX_FILE, PICKLED_INDEX, Kind, files_needed
from lorsmerge_cli.errors import LorsmergeError, UnreadableFile, named
from lorsmerge_cli.inputs import json_object, read_document

if TYPE_CHECKING:
    from lorsmerge_cli.hub.files import HubFiles

REFERENCE = re.compile(
    r"(?P<repo>(?![^@:]*(?:--|\.\.))\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[^:]+))?(?::(?P<file>.+))?",
    re.ASCII,
)
COMMIT = re.compile(r"[0-9a-f]{40}")
SUFFIXES = (".delta", ".safetensors", ".bin", ".pt", ".pth", ".ckpt")  # that are no part of a name


def local_path(path: Path, kind: Kind = "any") -> Path:
    """Return the local path of an input; a Hub id is downloaded first if the cache lacks it.

    Args:
        path: a path, or a Hub id.
        kind: `delta` to accept nothing but a delta, `companions` for config, tokenizer and feature
            extractor alone.

    Raises:
        LorsmergeError: it does not exist, cannot be downloaded, or the disk is too small.
    """
    found = _on_hub(path, kind)
    if found is None:
        return path
    from lorsmerge_cli.hub.files import download

    folder = download(found)
    return folder if found.single is None else folder / found.single


def pinned(path: Path) -> str | None:
    """Return a Hub id with the commit that its revision was resolved to; None for a path.

    Raises:
        LorsmergeError: it does not exist.
    """
    found = _on_hub(path)
    if found is None:
        return None
    match = REFERENCE.fullmatch(str(path))
    file = f":{match['file']}" if match and match["file"] else ""
    return f"{found.repo}@{found.commit}{file}"


def with_commits(command: str, paths: Iterable[Path]) -> str:
    """Return a command for a file's history, with the commits of its inputs on the Hub as a comment."""
    commits = [name for path in paths if (name := pinned(path))]
    return f"{command}  # {', '.join(commits)}" if commits else command


def pinned_parts(name: str) -> tuple[str, str] | None:
    """Return repository and commit of an id that `pinned` wrote; None for any other name."""
    match = REFERENCE.fullmatch(name)
    if match is None or not COMMIT.fullmatch(match["revision"] or ""):
        return None
    return match["repo"], match["revision"]


def is_hub_id(path: Path) -> bool:
    """Tell whether an input is on the Hub: an id, with no local file or folder of that name."""
    return not os.path.lexists(path) and REFERENCE.fullmatch(str(path)) is not None


def short_name(path: str) -> str:
    """Return what an input is called: its file's or folder's name, without a suffix.

    Args:
        path: a path, or a Hub id: of one, the name of the file, or else of the repository.

    Example:
        >>> short_name("runs/ca_asr.delta"), short_name("you/whisper-ca@main"), short_name("ft/de.v2/")
        ('ca_asr', 'whisper-ca', 'de.v2')
    """
    match = REFERENCE.fullmatch(path) if is_hub_id(Path(path)) else None
    whole = (match["file"] or match["repo"]) if match else os.path.abspath(path)
    last = Path(whole)
    return last.stem if last.suffix.lower() in SUFFIXES else last.name


def no_such_path(path: Path) -> UnreadableFile:
    """Return the error of an input that is neither a local path nor an id."""
    home = "`~` is the shell's: write your home folder out. " if path.parts[:1] == ("~",) else ""
    return UnreadableFile(
        f"{path}: no such file or folder.",
        f"{home}Check the path. A model on the Hub is ORG/NAME, ORG/NAME@REVISION or ORG/NAME:FILE.",
    )


def check_hub_ids(paths: Iterable[Path]) -> list[LorsmergeError]:
    """Return a fault for each Hub id that cannot be downloaded, before any is."""
    faults: list[LorsmergeError] = []
    wanted: set[HubFiles] = set()
    for path in dict.fromkeys(paths):
        try:
            found = _on_hub(path) if is_hub_id(path) else None
        except LorsmergeError as error:
            faults.append(error)
        else:
            wanted |= {found} if found else set()
    if wanted:
        from lorsmerge_cli.hub.files import check_space

        faults += check_space(wanted)
    return faults


def explain_partial_cache(path: Path, faults: list[LorsmergeError]) -> list[LorsmergeError]:
    """Join faults of missing files to one about the cache if the Hub could not be reached.

    Args:
        path: a path, or a Hub id.
        faults: one for each missing file.
    """
    match = REFERENCE.fullmatch(str(path))
    if not faults or match is None or not is_hub_id(path):
        return faults
    from lorsmerge_cli.hub.files import list_files, partly_cached

    _, _, reachable = list_files(match["repo"], match["revision"])
    if reachable:
        return faults
    what = " ".join(fault.what for fault in faults)
    return [partly_cached(match["repo"], match["revision"], what)]


def _on_hub(path: Path, kind: Kind = "any") -> HubFiles | None:
    """Resolve a Hub id to the files needed of it; return None for a local path."""
    if os.path.lexists(path):  # a dangling link is not an id either
        return None
    match = REFERENCE.fullmatch(str(path))
    if match is None:
        raise no_such_path(path)
    # imported here because it is slow to load
    from lorsmerge_cli.hub.files import find_files, partly_cached

    choose = partial(files_needed, file=match["file"], where=match["repo"], kind=kind)
    found = find_files(match["repo"], match["revision"], choose)
    if not found.reachable and (absent := _absent_shards(found)):
        what = f"{found.repo} lacks shards of its weights: {named(absent)}."
        raise partly_cached(found.repo, found.revision, what)
    return found


def _absent_shards(found: HubFiles) -> list[str]:
    """Return the shards that an index in the cache lists and the cache lacks."""
    from lorsmerge_cli.hub.files import cached_file

    for index in (INDEX_FILE, PICKLED_INDEX):
        path = cached_file(found, index) if index in found.files else None
        if path is not None:
            try:
                listed = json_object(read_document(path))["weight_map"].values()
                return sorted({name for name in listed if name not in found.files})
            except (OSError, ValueError, KeyError, AttributeError, TypeError, LorsmergeError):
                return []  # reported by the reader of the index
    return []
