"""Files of a Hub repository: listed at one commit, checked, and downloaded to the cache.

If the Hub cannot be reached, huggingface_hub's cache is used.
"""

from __future__ import annotations

import glob
import io
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

from huggingface_hub import HfApi, constants, get_token, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm import tqdm

from lorsmerge_cli import progress
from lorsmerge_cli.errors import (
    HubFault,
    LorsmergeError,
    NoSuchFile,
    OutputFault,
    UnreadableFile,
    named,
    raise_all,
)
from lorsmerge_cli.hub.faults import check_token, hub_faults, page_of
from lorsmerge_cli.quoting import command

MORE_SPACE = "Free some space (`hf cache prune`), or set HF_HOME to a folder on a larger disk."
TIMEOUT = 10.0  # seconds to wait for an answer
MOST_NAMED = 12  # files of a cache in a message
UNKNOWN_TOKEN, TOO_MANY, SERVER_ERROR = 401, 429, 500  # status codes

# All names of a repository -> the names needed, and the one to open; None to open their folder. It
# raises UnreadableFile if the repository lacks them.
Choice = Callable[[Sequence[str]], tuple[list[str], str | None]]


@dataclass(frozen=True)
class HubFiles:
    """The files needed of a repository, at one commit.

    Attributes:
        repo: `org/name`.
        revision: the requested one; None for the main branch.
        commit: the revision's commit when it was looked up.
        files: names in the repository.
        single: the one file to open; None for the folder of all of them.
        missing: bytes that are not in the cache yet.
        reachable: whether the Hub answered; else the list is the cache's.
        kind: `model` or `dataset`.
    """

    repo: str
    revision: str | None
    commit: str
    files: tuple[str, ...]
    single: str | None
    missing: int = field(compare=False)
    reachable: bool
    kind: str = "model"


def find_files(repo: str, revision: str | None, choose: Choice, kind: str = "model") -> HubFiles:
    """Return the files needed of a repository.

    Args:
        repo: `org/name`.
        revision: branch, tag or commit; None for the main branch.
        choose: selects the needed ones from the names of all files.
        kind: `model` or `dataset`.

    Raises:
        UnreadableFile: the repository lacks them, or has names that lead out of its folder.
        HubFault: no such repository or revision, no access, or no network and nothing in the cache.
    """
    commit, sizes, reachable = list_files(repo, revision, kind)
    outside = [name for name in sizes if _leads_out(name)]
    if outside:
        raise UnreadableFile(
            f"{repo} has files whose names lead out of its folder ({named(outside)}).",
            "Do not use this repository.",
        )
    try:
        files, single = choose(list(sizes))
    except NoSuchFile as fault:
        if reachable:
            raise
        raise partly_cached(repo, revision, fault.what, kind) from None
    missing = sum(
        sizes[name]
        for name in files
        if not isinstance(try_to_load_from_cache(repo, name, revision=commit, repo_type=kind), str)
    )
    return HubFiles(repo, revision, commit, tuple(files), single, missing, reachable, kind)


def cached_file(found: HubFiles, name: str) -> Path | None:
    """Return a file's path in the cache, None if it is not cached."""
    path = try_to_load_from_cache(found.repo, name, revision=found.commit)
    return Path(path) if isinstance(path, str) else None


def partly_cached(repo: str, revision: str | None, what: str, kind: str = "model") -> HubFault:
    """Return the fault of a repository that is partly cached while the Hub is out of reach.

    Args:
        repo: `org/name`.
        revision: branch, tag or commit; None for the main branch.
        what: a sentence that says what is missing.
        kind: `model` or `dataset`.
    """
    names = sorted(list_files(repo, revision, kind)[1])
    offline = constants.HF_HUB_OFFLINE
    why = "HF_HUB_OFFLINE is set" if offline else f"{constants.ENDPOINT} cannot be reached"
    options = ["--revision", revision] if revision else []
    options += ["--repo-type", kind] if kind != "model" else []
    line = command("hf", "download", repo, *options)
    return HubFault(
        f"{what} {why}, and of {repo} the cache in {constants.HF_HUB_CACHE} has only "
        f"{named(names, MOST_NAMED) if names else 'no file'}.",
        f"Run the command where the Hub can be reached, or fetch the rest: `HF_HUB_OFFLINE=0 {line}`.",
    )


@cache  # so that a run uses one commit
def list_files(
    repo: str, revision: str | None, kind: str = "model"
) -> tuple[str, dict[str, int], bool]:
    """Return the commit, each file's size, and whether the Hub answered rather than the cache."""
    check_token()
    try:
        with hub_faults(repo, revision, kind=kind):
            api = HfApi()
            look_up = api.model_info if kind == "model" else api.dataset_info
            info = look_up(repo, revision=revision, files_metadata=True, timeout=TIMEOUT)
            if info.gated:  # the list of files is public, the files are not
                api.auth_check(repo, repo_type=kind)
    except HubFault as fault:
        cached = _cached(repo, revision, kind) if _may_be_there(fault.__cause__) else None
        if cached is not None:
            return *cached, False
        raise _not_here(repo, fault, kind) from fault.__cause__
    except HFValidationError:
        raise UnreadableFile(
            f"{repo}: no such file or folder, and not an id that the Hub accepts.",
            "Check the name.",
        ) from None
    if info.sha is None:
        raise HubFault(f"{repo}: the Hub names no commit.", "Try again later.")
    return info.sha, {item.rfilename: item.size or 0 for item in info.siblings or ()}, True


def _may_be_there(error: BaseException | None) -> bool:
    """Tell whether the Hub failed to answer, rather than refused."""
    if not isinstance(error, HfHubHTTPError):
        return True
    return error.response.status_code == TOO_MANY or error.response.status_code >= SERVER_ERROR


def _not_here(repo: str, fault: HubFault, kind: str) -> HubFault:
    """Reword a fault for a user who may have meant a path, and who needs read access only."""
    error = fault.__cause__
    what, remedy = fault.what, fault.remedy
    refused = isinstance(error, HfHubHTTPError) and error.response.status_code == UNKNOWN_TOKEN
    if isinstance(error, GatedRepoError):
        return fault
    if isinstance(error, RevisionNotFoundError):
        remedy = f"{page_of(repo, kind)}/refs lists its branches and tags."
    elif _may_be_there(error):
        reason = what.removeprefix(f"{repo}: ")
        here = "neither a local file or folder nor" if kind == "model" else "not"
        what = f"{repo} is {here} in {constants.HF_HUB_CACHE}; {reason}"
        offline = isinstance(error, OfflineModeIsEnabled)
        first = "Unset it" if offline else "Check the network and try again later"
        remedy = (
            f"{first}, or run the command once where the Hub can be reached and with the same HF_HOME, "
            "which keeps what it fetches, or give a local path."
        )
    elif isinstance(error, RepositoryNotFoundError) or (refused and get_token() is None):
        what = f"{repo} is not a local file or folder. {what}" if kind == "model" else what
    elif refused:
        remedy = "Log in again with `hf auth login`, or set HF_TOKEN."
    return HubFault(what, remedy)


def _cached(repo: str, revision: str | None, kind: str) -> tuple[str, dict[str, int]] | None:
    """Return the commit of a cached revision and its cached files; None if there is none."""
    try:  # no file matches the pattern, so that none can be missing
        folder = Path(
            snapshot_download(
                repo,
                repo_type=kind,
                revision=revision,
                local_files_only=True,
                allow_patterns=[":"],
            )
        )
    except LocalEntryNotFoundError:
        return None
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return folder.name, dict.fromkeys(sorted(names), 0)


def _leads_out(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name


def check_space(wanted: Collection[HubFiles]) -> list[LorsmergeError]:
    """Return a fault if the files to download do not fit on the disk."""
    size = sum(found.missing for found in wanted)
    cache_folder = Path(constants.HF_HUB_CACHE)
    there = next(folder for folder in (cache_folder, *cache_folder.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if size <= free:
        return []
    return [
        OutputFault(
            f"{named([found.repo for found in wanted if found.missing])}: {size:,} bytes to download, "
            f"and {cache_folder} has {free:,} bytes free.",
            MORE_SPACE,
        )
    ]


@cache
def download(found: HubFiles) -> Path:
    """Download the files that the cache lacks, and return their folder in the cache.

    Raises:
        OutputFault: the disk is too small.
        HubFault: the network broke, or the Hub refused.
    """
    raise_all(check_space([found]))
    try:
        with hub_faults(found.repo, found.revision, kind=found.kind):
            folder = _snapshot(found, found.revision) if found.reachable else None
            if folder is None or folder.name != found.commit:  # the branch has moved
                folder = _snapshot(found, found.commit)
            return folder
    except HubFault as fault:
        if not _may_be_there(fault.__cause__):
            raise
        remedy = "Check the network and run the command again: complete files are kept."
        raise HubFault(fault.what, remedy) from fault.__cause__
    except OSError as error:
        raise OutputFault(
            f"{constants.HF_HUB_CACHE} could not be written: {error.strerror or error}.", MORE_SPACE
        ) from error


def _snapshot(found: HubFiles, revision: str | None) -> Path:
    settings: dict[str, Any] = {
        "repo_type": found.kind,
        "revision": revision,
        "allow_patterns": [glob.escape(name) for name in found.files],
        "local_files_only": not found.reachable,
    }
    if progress.show is None:
        return Path(snapshot_download(found.repo, **settings))
    with progress.show(f"download of {found.repo}", "bytes") as advance:
        bar = _silent_bar(lambda done: advance(done, found.missing))
        return Path(snapshot_download(found.repo, **settings, tqdm_class=bar))


def _silent_bar(advance: Callable[[int], None]) -> type[Any]:
    """Return a bar class for huggingface_hub that draws nothing and reports newly received bytes.

    A download has several bars: bytes received, bytes written, and files.
    """
    lock, arrived = Lock(), 0

    class SilentBar(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # no redrawing thread

        def __init__(self, *arguments: Any, **settings: Any) -> None:
            settings.pop("name", None)
            super().__init__(*arguments, **settings | {"file": io.StringIO()})

        def display(self, *arguments: Any, **settings: Any) -> None:
            pass

        def update(self, n: float | None = 1) -> None:
            nonlocal arrived
            super().update(n)
            if self.unit == "B":
                with lock:
                    newly = max(0, int(self.n) - arrived)
                    arrived += newly
                    advance(newly)

    return SilentBar
