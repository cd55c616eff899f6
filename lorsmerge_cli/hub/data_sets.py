"""Splits of data sets on the Hub, as Arrow files in the cache, by the library `datasets`.

The library finds out which files a configuration and a split have. They are downloaded as a model's files
are, and written once as Arrow, whose rows can be read in any order. Neither step is repeated while the
Hub's commit stays the same. A whole configuration that the library itself has prepared is used as it is.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import RevisionNotFoundError
from yaml import YAMLError

from lorsmerge_cli.errors import (
    HubFault,
    LorsmergeError,
    OutputFault,
    UnreadableFile,
    UsageFault,
    did_you_mean,
    named,
)
from lorsmerge_cli.hub.faults import hub_faults, page_of
from lorsmerge_cli.hub.files import download, find_files, list_files, partly_cached
from lorsmerge_cli.quoting import command

KIND = "dataset"
OLDEST = 4  # version of `datasets`
CONVERTED = "refs/convert/parquet"  # where the Hub keeps the Parquet that it made of a data set
PARTIAL = re.compile(r"(^|/)partial-")  # folder of a split that it made of the first 5 GB alone
STREAMED = ".first"  # end of the name of a folder with a split's first rows
INFO = "dataset_info.json"  # beside Arrow files that are complete
SAFE = re.compile(r"[\w.-]+")  # names of configurations and splits that can be folders
# what `datasets` raises, beside ValueError, of a card that it does not understand
MALFORMED = (AttributeError, ImportError, KeyError, RecursionError, TypeError, YAMLError)
INSTALL = "Install it with `pip install 'lorsmerge[hub]'`."


@dataclass(frozen=True)
class HubData:
    """A data set at one commit.

    Attributes:
        repo: `org/name`.
        revision: the one that is read; None for the main branch.
        commit: the revision's.
        names: of all files; of those in the cache if the Hub cannot be reached.
        reachable: whether the Hub answered.
    """

    repo: str
    revision: str | None
    commit: str
    names: frozenset[str]
    reachable: bool

    @property
    def converted(self) -> bool:
        """Whether it is the Hub's own conversion of a data set to Parquet."""
        return self.revision == CONVERTED

    @property
    def folders(self) -> list[str]:
        """Folders at the top that hold Parquet files."""
        held = {name.split("/")[0] for name in self.names if re.search(r"/.*\.parquet$", name)}
        return sorted(held)


@dataclass(frozen=True)
class PreparedSplit:
    """The rows of a split, in Arrow files.

    Attributes:
        files: Arrow streams, in the order of the rows.
        partial: whether the Hub's conversion has only the first part of it.
    """

    files: tuple[Path, ...]
    partial: bool = False


def check_library() -> None:
    """Check that `datasets` is installed; it is not loaded.

    Raises:
        LorsmergeError: it is not.
    """
    if find_spec("datasets") is None or find_spec("pyarrow") is None:
        raise LorsmergeError("Data sets on the Hub need the library `datasets`.", INSTALL)


def _library() -> Any:
    check_library()
    import datasets

    if int(datasets.__version__.partition(".")[0]) < OLDEST:
        raise LorsmergeError(
            f"Data sets on the Hub need `datasets` {OLDEST} or newer, and {datasets.__version__} is "
            "installed.",
            "Update it with `pip install -U datasets`.",
        )
    return datasets


@cache
def find_data_set(repo: str, revision: str | None) -> HubData:
    """Look a data set up on the Hub, or in the cache if the Hub cannot be reached.

    One that is read by a script of its own, which `datasets` runs no more, is replaced by the Parquet
    that the Hub made of it.

    Args:
        repo: `org/name`.
        revision: branch, tag or commit; None for the main branch.

    Raises:
        HubFault: no such data set or revision, no access, or no network and nothing in the cache.
        UnreadableFile: it has a script, and there is no Parquet.
    """
    try:
        commit, sizes, reachable = list_files(repo, revision, KIND)
    except HubFault:
        converted = _converted(repo) if revision is None else None
        if converted is None or converted.reachable:
            raise
        return converted
    script = f"{repo.partition('/')[2]}.py"
    if script not in sizes or revision == CONVERTED:
        return HubData(repo, revision, commit, frozenset(sizes), reachable)
    converted = _converted(repo) if revision in (None, "main") else None
    if converted is None:
        raise UnreadableFile(
            f"{repo} is a data set with a script of its own ({script}), which the library `datasets` "
            "runs no more, and "
            + (
                f"the Hub has no Parquet of it ({CONVERTED})."
                if revision in (None, "main")
                else f"the Hub's Parquet of it is not that of {revision!r}."
            ),
            f"Look for a copy in Parquet at {constants.ENDPOINT}/datasets, or fetch its files with "
            f"`{command('hf', 'download', repo, '--repo-type', KIND, '--local-dir', 'FOLDER')}` and "
            "write a manifest.",
        )
    return converted


def _converted(repo: str) -> HubData | None:
    """Return the Hub's own Parquet of a data set; None if there is none."""
    try:
        commit, sizes, reachable = list_files(repo, CONVERTED, KIND)
    except HubFault as fault:
        if isinstance(fault.__cause__, RevisionNotFoundError) or constants.HF_HUB_OFFLINE:
            return None
        raise
    return HubData(repo, CONVERTED, commit, frozenset(sizes), reachable)


def split_names(found: HubData, config: str | None) -> list[str]:
    """Return the names of the splits of a configuration, of those in the cache without the Hub.

    Args:
        found: the data set.
        config: name of the configuration; None for the only or default one.

    Raises:
        LorsmergeError: there is no such configuration, or none has splits.
    """
    if found.reachable:
        return list(data_files(found, config)[1])
    here = cached_splits(found, config)
    if not here:
        raise not_cached(found, f"The configuration {config or 'default'!r}")
    return here


def cached_splits(found: HubData, config: str | None) -> list[str]:
    """Return the names of the splits of which rows are in the cache: no request, no library."""
    folders = sorted(split_folder(found, config, "*").parent.glob("*"))
    ours = [folder.name for folder in folders if _arrow_files(folder, folder.name)]
    streamed = (f.name.removesuffix(STREAMED) for f in folders if f.name.endswith(STREAMED))
    ours += [name for name in streamed if name not in ours]
    return ours + [name for name in _whole_splits(found, config) if name not in ours]


def prepare_split(found: HubData, config: str | None, split: str) -> PreparedSplit:
    """Return the Arrow files of a split, which is downloaded and converted if the cache lacks it.

    Args:
        found: the data set.
        config: name of the configuration; None for the only or default one.
        split: one of `split_names`.

    Raises:
        LorsmergeError: the network broke, the disk is full, or the files cannot be read.
    """
    folder = split_folder(found, config, split)
    if here := prepared_split(found, config, split):
        return here
    if not found.reachable:
        raise not_cached(found, f"The split {split!r}")
    builder, splits = data_files(found, config)
    _convert(found, builder, split, splits[split], folder)
    partial = any(PARTIAL.search(name) for name in splits[split])
    if partial:
        (folder / "partial").touch()
    return PreparedSplit(_arrow_files(folder, split), partial)


def prepared_split(found: HubData, config: str | None, split: str) -> PreparedSplit | None:
    """Return the Arrow files of a split if the cache has all of it."""
    folder = split_folder(found, config, split)
    files = _arrow_files(folder, split)
    if not files and split in _whole_splits(found, config):
        files = _arrow_files(_library_folder(found, config), split)
    return PreparedSplit(files, _is_partial(folder)) if files else None


def _is_partial(folder: Path) -> bool:
    return (folder / "partial").is_file()


def not_cached(found: HubData, what: str) -> HubFault:
    """Return the fault of rows that the cache lacks while the Hub cannot be reached."""
    fault = partly_cached(found.repo, found.revision, f"{what} of {found.repo} is needed.", KIND)
    return HubFault(fault.what, "Run the command once where the Hub can be reached.")


def _cache() -> Path:
    """Return the folder where `datasets` keeps what it made, without loading it."""
    given = os.environ.get("HF_DATASETS_CACHE")
    return Path(given).expanduser() if given else Path(constants.HF_HOME) / "datasets"


def split_folder(found: HubData, config: str | None, split: str) -> Path:
    """Return our folder of a split's Arrow files.

    The library has no folder for one split of a configuration, and would take it for all of them.
    """
    name = found.repo.replace("/", "___")
    return _cache() / "lorsmerge" / name / found.commit / (config or "default") / split


def _library_folder(found: HubData, config: str | None) -> Path:
    """Return the folder where `load_dataset` prepares a whole configuration."""
    org, _, name = found.repo.partition("/")
    snake = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    snake = re.sub(r"([a-z\d])([A-Z])", r"\1_\2", snake).lower()
    return _cache() / f"{org}___{snake}" / (config or "default") / "0.0.0" / found.commit


def _whole_splits(found: HubData, config: str | None) -> list[str]:
    """Return the splits that `load_dataset` has prepared."""
    folder = _library_folder(found, config)
    if not (folder / INFO).is_file():
        return []
    stems = (re.sub(r"-\d{5}-of-\d{5}$", "", file.stem) for file in sorted(folder.glob("*.arrow")))
    return list(dict.fromkeys(stem.rpartition("-")[2] for stem in stems))


def _arrow_files(folder: Path, split: str) -> tuple[Path, ...]:
    """Return the Arrow files of a split; nothing if they are not there, or not all of them."""
    if not (folder / INFO).is_file():
        return ()
    shard = re.compile(rf".*-{re.escape(split)}(-\d{{5}}-of-(?P<count>\d{{5}}))?")
    found = {file: shard.fullmatch(file.stem) for file in sorted(folder.glob("*.arrow"))}
    matches = {file: match for file, match in found.items() if match}
    counts = {int(match["count"] or 1) for match in matches.values()}
    return tuple(matches) if counts == {len(matches)} else ()


@cache
def data_files(found: HubData, config: str | None) -> tuple[Any, Mapping[str, list[str]]]:
    """Return the library's builder of a configuration, and split -> its files.

    Raises:
        LorsmergeError: there is no such configuration, or it has no files that the library reads.
    """
    datasets = _library()
    if found.converted and config is None and len(found.folders) == 1:
        config = found.folders[0]
    with _quiet(datasets), hub_faults(found.repo, found.revision, kind=KIND):
        try:
            builder = _builder(datasets, found, config)
        except ValueError as error:
            raise _no_config(datasets, found, config, error) from error
        except FileNotFoundError as error:
            raise UnreadableFile(
                f"{found.repo} has no files that the library `datasets` reads as a table "
                f"({_first_line(error)}).",
                f"{page_of(found.repo, KIND)}/tree/main lists its files.",
            ) from error
        except MALFORMED as error:
            raise _unusable(found, error) from error
    in_folders = any("folder_based" in kind.__module__ for kind in type(builder).__mro__)
    if in_folders and find_spec("torchcodec") is None:  # told before the files are fetched
        raise _other_library(found, "torchcodec")
    start = f"hf://datasets/{found.repo}@{found.commit}/"
    files = {
        str(split): [str(name).removeprefix(start) for name in names]
        for split, names in (builder.config.data_files or {}).items()
    }
    if not files:  # the connection was lost, and the library found something else in its cache
        raise HubFault(f"{found.repo}: the connection broke.", "Run the command again.")
    return builder, files


def _builder(datasets: Any, found: HubData, config: str | None) -> Any:
    """Return the library's builder: of a configuration of the card, or of a folder of that name.

    Raises:
        ValueError: there is neither.
    """
    if not found.converted:
        try:
            return datasets.load_dataset_builder(found.repo, config, revision=found.commit)
        except ValueError:
            if config not in found.folders:
                raise
    if config not in found.folders:
        raise ValueError(f"there is no folder {config}")
    return datasets.load_dataset_builder(found.repo, revision=found.commit, data_dir=config)


def _no_config(
    datasets: Any, found: HubData, config: str | None, error: Exception
) -> LorsmergeError:
    """Return the fault of a configuration that is missing, or not named where there are several."""
    if found.converted:
        configs = found.folders
    else:
        try:
            with hub_faults(found.repo, found.revision, kind=KIND):
                configs = list(datasets.get_dataset_config_names(found.repo, revision=found.commit))
        except (ValueError, *MALFORMED) as malformed:
            return _unusable(found, malformed)
    if config is None and len(configs) > 1:
        shown = ", ".join(configs)
        return UsageFault(
            f"{found.repo} has several configurations, and none is named.",
            f"Write hub:{found.repo}:CONFIG with one of: {shown}.",
        )
    if config is None or config in configs or not configs:
        return _unusable(found, error)
    hint = did_you_mean(str(config), configs).strip()
    hint += "" if hint.startswith("Known") else f" Known: {', '.join(configs)}."
    if configs == ["default"]:
        hint = f"It has one alone: write hub:{found.repo}::SPLIT, without a name."
    return UsageFault(f"{found.repo} has no configuration {config!r}.", hint)


def _unusable(found: HubData, error: Exception) -> LorsmergeError:
    """Return the fault of a data set whose card or files `datasets` does not understand."""
    return UnreadableFile(
        f"{found.repo} cannot be used by `datasets`: {_first_line(error)}.",
        f"Ask those who made it, at {page_of(found.repo, KIND)}/discussions.",
    )


def _convert(found: HubData, builder: Any, split: str, names: Sequence[str], folder: Path) -> None:
    """Download a split's files and write them as Arrow, in a folder that appears when it is complete."""
    datasets = _library()
    inside = [name for name in names if "://" not in name]
    files = find_files(found.repo, found.revision, lambda _: (inside, None), KIND)
    if files.commit != found.commit:
        raise HubFault(f"{found.repo} was changed meanwhile.", "Run the command again.")
    snapshot = download(files)
    paths = [str(snapshot / name) if name in inside else name for name in names]
    _check_space(found, [Path(path) for path in paths if Path(path).exists()], folder)
    kinds = datasets.data_files
    listed = kinds.DataFilesList(paths, [(found.commit,)] * len(paths))
    builder.config.data_files = kinds.DataFilesDict({split: listed})
    info = builder.info  # of all splits, as the card has it
    info.splits = info.download_size = info.dataset_size = info.size_in_bytes = None
    (folder / INFO).unlink(missing_ok=True)  # of files that are not all there: they are made again
    with _quiet(datasets), hub_faults(found.repo, found.revision, kind=KIND):
        try:
            builder.download_and_prepare(str(folder), verification_mode="no_checks")
        except Exception as error:
            fault = preparation_fault(found, split, error)
            if fault is None:
                raise
            raise fault from error


def _check_space(found: HubData, files: Sequence[Path], folder: Path) -> None:
    """Check that there is space for Arrow files, which are about as large as those in Parquet."""
    size = sum(file.stat().st_size for file in files)
    there = next(parent for parent in folder.parents if parent.is_dir())
    free = shutil.disk_usage(there).free
    if size > free:
        raise OutputFault(
            f"{found.repo}: {size:,} bytes of Arrow files to write, and {_cache()} has {free:,} bytes "
            "free.",
            "Free some space, or set HF_DATASETS_CACHE to a folder on a larger disk.",
        )


def preparation_fault(found: HubData, split: str, error: Exception) -> LorsmergeError | None:
    """Return why a split could not be written as Arrow, in words; None if that is not known."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
            return OutputFault(
                f"{_cache()} could not be written: {cause.strerror}.",
                "Free some space, or set HF_DATASETS_CACHE to another folder.",
            )
        if isinstance(cause, ImportError):
            return _other_library(found, _first_line(cause))
    if isinstance(error, ConnectionError | TimeoutError):
        return None
    return UnreadableFile(
        f"{found.repo}: the files of {split!r} cannot be read as a table ({_first_line(chain[-1])}).",
        f"Ask those who made it, at {page_of(found.repo, KIND)}/discussions.",
    )


def _other_library(found: HubData, reason: str) -> LorsmergeError:
    """Return the fault of a layout that `datasets` does not read alone, and that we read from files."""
    line = command("hf", "download", found.repo, "--repo-type", KIND, "--local-dir", "FOLDER")
    return LorsmergeError(
        f"{found.repo}: to read this layout of files, `datasets` needs another library ({reason}).",
        f"Fetch the files with `{line}`, and give FOLDER as --data.",
    )


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Keep the library from printing: what matters is said here."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    level, shown = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    hidden = are_progress_bars_disabled()
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            datasets.disable_progress_bars()
            disable_progress_bars()
            yield
    finally:
        datasets.logging.set_verbosity(level)
        if not shown:
            datasets.enable_progress_bars()
        if not hidden:
            enable_progress_bars()


def check_names(names: Sequence[str]) -> None:
    """Check names of a configuration and a split, which become folders of the cache.

    Raises:
        UsageFault: one has other characters than letters, digits, `.`, `_` and `-`.
    """
    odd = [name for name in names if not SAFE.fullmatch(name) or not name.strip(".")]
    if odd:
        raise UsageFault(f"{named(odd)} is no name of a configuration or split.", "Check it.")
