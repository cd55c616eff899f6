"""Where an input lies: a path, or `org/name[@revision][:file]` on the Hugging Face Hub.

What exists on this machine under a name is taken first. Else a name with one slash is a repository:
what of it is needed comes into huggingface_hub's cache, and what is made from it records the commit.
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


def local_path(path: Path, kind: Kind = "any") -> Path:
    """Where on this machine an input lies; what a Hub id stands for is downloaded if need be.

    Args:
        path: a path, or a Hub id.
        kind: `delta` where nothing else will do, `companions` for config, tokenizer and feature
            extractor alone.

    Raises:
        LorsmergeError: there is no such thing, it cannot be had, or the disk is too small.
    """
    found = _on_hub(path, kind)
    if found is None:
        return path
    from lorsmerge_cli.hub.files import download

    folder = download(found)
    return folder if found.single is None else folder / found.single


def pinned(path: Path) -> str | None:
    """A Hub id with the commit that its revision was resolved to; None for a path.

    Raises:
        LorsmergeError: there is no such thing.
    """
    found = _on_hub(path)
    if found is None:
        return None
    match = REFERENCE.fullmatch(str(path))
    file = f":{match['file']}" if match and match["file"] else ""
    return f"{found.repo}@{found.commit}{file}"


def with_commits(command: str, paths: Iterable[Path]) -> str:
    """A command for a file's history, and in a comment the commits of what it took from the Hub."""
    commits = [name for path in paths if (name := pinned(path))]
    return f"{command}  # {', '.join(commits)}" if commits else command


def pinned_parts(name: str) -> tuple[str, str] | None:
    """Repository and commit of an id as `pinned` writes it; None for any other name."""
    match = REFERENCE.fullmatch(name)
    if match is None or not COMMIT.fullmatch(match["revision"] or ""):
        return None
    return match["repo"], match["revision"]


def is_hub_id(path: Path) -> bool:
    """Whether an input is looked for on the Hub: an id, and nothing on this machine."""
    return not os.path.lexists(path) and REFERENCE.fullmatch(str(path)) is not None


def no_such_path(path: Path) -> UnreadableFile:
    """Return the error of an input that is neither on this machine nor an id."""
    home = "`~` is the shell's: write your home folder out. " if path.parts[:1] == ("~",) else ""
    return UnreadableFile(
        f"{path}: no such file or folder.",
        f"{home}Check the path. A model on the Hub is ORG/NAME, ORG/NAME@REVISION or ORG/NAME:FILE.",
    )


def check_hub_ids(paths: Iterable[Path]) -> list[LorsmergeError]:
    """Everything on the Hub that is not there or cannot be had, before any of it is downloaded."""
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


def told_of_cache(path: Path, faults: list[LorsmergeError]) -> list[LorsmergeError]:
    """Return faults of files that are missing, as one where only a Hub's cache could be looked into.

    Args:
        path: a path, or a Hub id.
        faults: what its folder lacks.
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
    """What a Hub id stands for; None for a path on this machine."""
    if os.path.lexists(path):  # a link that leads nowhere is no id either
        return None
    match = REFERENCE.fullmatch(str(path))
    if match is None:
        raise no_such_path(path)
    # which takes a while to load
    from lorsmerge_cli.hub.files import find_files, partly_cached

    choose = partial(files_needed, file=match["file"], where=match["repo"], kind=kind)
    found = find_files(match["repo"], match["revision"], choose)
    if not found.reachable and (absent := _absent_shards(found)):
        what = f"{found.repo} lacks shards of its weights: {named(absent)}."
        raise partly_cached(found.repo, found.revision, what)
    return found


def _absent_shards(found: HubFiles) -> list[str]:
    """The shards that an index in the cache lists and that are not there."""
    from lorsmerge_cli.hub.files import cached_file

    for index in (INDEX_FILE, PICKLED_INDEX):
        path = cached_file(found, index) if index in found.files else None
        if path is not None:
            try:
                listed = json_object(read_document(path))["weight_map"].values()
                return sorted({name for name in listed if name not in found.files})
            except (OSError, ValueError, KeyError, AttributeError, TypeError, LorsmergeError):
                return []  # which the reader of the index tells
    return []
