"""A part of a split, fetched as far as it is needed: its first rows, or all rows' texts without audio.

Parquet is read by row groups: a request for the end of a file, which lists them, and one for each. Each is
kept as an Arrow file of its own, that appears in the cache when it is complete. So what was fetched
is there for the next command, whether or not it asks for more, and whatever ended the one before.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfFileSystem, constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils.tqdm import are_progress_bars_disabled
from tqdm import tqdm

from lorsmerge_cli import progress
from lorsmerge_cli.errors import HubFault, OutputFault, UnreadableFile
from lorsmerge_cli.hub.data_sets import (
    KIND,
    STREAMED,
    HubData,
    PreparedSplit,
    data_files,
    not_cached,
    preparation_fault,
    prepare_split,
    prepared_split,
    split_folder,
)
from lorsmerge_cli.hub.faults import RETRY_LATER, hub_faults

MORE, NEXT, END = (
    "more",
    "next",
    "end",
)  # what comes after a row group: its file, another one, nothing
TEXTS = ".texts"  # end of the name of a folder with a split's columns but the audio
PIECE = re.compile(rf"(\d+)-(\d+)\.({MORE}|{NEXT}|{END})\.arrow")  # file and row group, from 0 on
Place = tuple[int, int]


class NoParquet(UnreadableFile):
    """The files of a split are no Parquet, so that no part of them can be fetched."""


def stream_split(
    found: HubData,
    config: str | None,
    split: str,
    count: Callable[[Path], float],
    seconds: float,
) -> PreparedSplit:
    """Return Arrow files with the first rows of a split; no more are fetched than are needed.

    A connection that breaks is tried again some times, from the row group on that it broke in.

    Args:
        found: the data set.
        config: name of the configuration; None for the only or default one.
        split: one of `split_names`.
        count: returns the seconds of a file's rows that count.
        seconds: after which no more files follow; 0 for the first file alone.

    Raises:
        LorsmergeError: the network broke for long, the disk is full, or the files are not Parquet.
    """
    whole = prepared_split(found, config, split)
    files, total = [], 0.0
    with _shown(found, seconds) as tell:
        for file in whole.files if whole else _pieces(found, config, split):
            files.append(file)
            new = count(file)
            total += new
            tell(new)
            if total >= seconds:
                break
    return PreparedSplit(tuple(files), whole is not None and whole.partial)


def split_texts(found: HubData, config: str | None, split: str) -> PreparedSplit:
    """Return all rows of a split as Arrow files, without its audio unless all of it is here already.

    Raises:
        LorsmergeError: as `stream_split`, or `prepare_split` for files that are no Parquet.
    """
    if whole := prepared_split(found, config, split):
        return whole
    try:
        return PreparedSplit(tuple(_pieces(found, config, split, TEXTS)))
    except NoParquet:
        return prepare_split(found, config, split)


@contextmanager
def _shown(found: HubData, seconds: float) -> Iterator[Callable[[float], None]]:
    """Show how much of the hours is there: in lines by the console's hook, or as the Hub's bars."""
    if progress.show is not None:
        with progress.show(f"streaming of {found.repo}", "seconds of audio") as advance:
            done = 0.0

            def tell(new: float) -> None:
                nonlocal done
                before, done = round(done), done + new
                advance(round(done) - before, round(seconds))

            yield tell
        return
    with tqdm(
        total=seconds / 3600, desc=f"streaming of {found.repo}", delay=2, leave=False,
        disable=are_progress_bars_disabled(),
        bar_format="{desc}: {n:.2f} of {total:.2f} hours |{bar}| {elapsed}",
    ) as bar:  # fmt: skip

        def move(new: float) -> None:
            bar.update(new / 3600)

        yield move


def _pieces(found: HubData, config: str | None, split: str, part: str = STREAMED) -> Iterator[Path]:
    """Yield a file for each row group in turn: those in the cache, and then those that are fetched.

    Args:
        found: the data set.
        config: name of the configuration.
        split: of it.
        part: STREAMED for all columns, TEXTS for those without audio.
    """
    folder = split_folder(found, config, split + part)
    place: Place | None = (0, 0)
    here = _cached(folder)
    source: _Source | None = None
    while place is not None:
        if place not in here:
            if not found.reachable:
                raise not_cached(found, f"More of the split {split!r} than is here")
            if source is None:
                source = _Source(found, config, split, texts=part == TEXTS)
                _remember(found)
            with _alone(folder):  # of several processes one fetches, and the others find it there
                here = _cached(folder)
                if place not in here:
                    here[place] = source.fetch(place, folder)
        file = here[place]
        yield file
        place = _following(place, file)


def _remember(found: HubData) -> None:
    """Record the revision's commit in huggingface_hub's cache, as a download would: it is asked offline."""
    name = "--".join((f"{KIND}s", *found.repo.split("/")))
    folder = Path(constants.HF_HUB_CACHE) / name
    ref = folder / "refs" / (found.revision or constants.DEFAULT_REVISION)
    try:
        (folder / "snapshots" / found.commit).mkdir(parents=True, exist_ok=True)
        if found.revision != found.commit:
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(found.commit)
    except OSError as error:
        raise OutputFault(
            f"{folder} could not be written: {error.strerror}.", "Set HF_HOME to another folder."
        ) from error


def _cached(folder: Path) -> dict[Place, Path]:
    """Return the row groups that are there, by the numbers of file and group."""
    matches = [(file, PIECE.fullmatch(file.name)) for file in folder.glob("*.arrow")]
    return {(int(match[1]), int(match[2])): file for file, match in matches if match}


def _following(place: Place, file: Path) -> Place | None:
    after = file.name.split(".")[1]
    follows = {MORE: (place[0], place[1] + 1), NEXT: (place[0] + 1, 0), END: None}
    return follows[after]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process fetches rows into a folder, and clear what a killed one left."""
    from filelock import FileLock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            for file in folder.glob("*.part"):
                file.unlink()
            yield
    except OSError as error:
        raise OutputFault(
            f"{folder} could not be written: {error.strerror or error}.",
            "Free some space, or set HF_DATASETS_CACHE to another folder.",
        ) from error


class _Source:
    """The Parquet files of a split on the Hub, of which one is open."""

    def __init__(self, found: HubData, config: str | None, split: str, *, texts: bool) -> None:
        self.found, self.split, self.texts = found, split, texts
        self.builder, splits = data_files(found, config)
        if split not in splits:
            raise UnreadableFile(
                f"{found.repo} has no split {split!r} in {config!r}.",
                f"It has: {', '.join(splits)}.",
            )
        self.names: Sequence[str] = splits[split]
        if not self.names:
            raise UnreadableFile(
                f"{found.repo} has no files of the split {split!r} in {config!r}.",
                "Choose another split, or tell the data set's owner.",
            )
        kinds = [kind.__module__ for kind in type(self.builder).__mro__]
        in_parquet = any(kind.endswith(".parquet") for kind in kinds)
        if not in_parquet or any("://" in name for name in self.names):
            raise NoParquet(
                f"{found.repo} cannot be streamed: its files of {split!r} are no Parquet.",
                "Leave out --streaming (or first=): then all of the split is fetched.",
            )
        self._files = HfFileSystem(endpoint=constants.ENDPOINT, skip_instance_cache=True)
        self._open: tuple[int, Any] | None = None

    def fetch(self, place: Place, folder: Path) -> Path:
        """Fetch a row group, and write it as an Arrow file that appears when it is complete.

        Raises:
            LorsmergeError: the network broke, the disk is full, or it is no Parquet.
        """
        import pyarrow

        try:
            with hub_faults(self.found.repo, self.found.revision, kind=KIND):
                try:
                    return self._written(place, folder)
                except HfHubHTTPError:
                    raise
                except (OSError, ValueError, pyarrow.ArrowException) as error:
                    fault = preparation_fault(self.found, self.split, error)
                    if fault is None:
                        raise
                    raise fault from error
        except HubFault as fault:
            if not fault.remedy.endswith(RETRY_LATER):
                raise
            remedy = "Run the command again later: it goes on after the rows that are here."
            raise HubFault(fault.what, remedy) from fault.__cause__

    def _written(self, place: Place, folder: Path) -> Path:
        import pyarrow

        number, group = place
        parquet = self._parquet(number)
        if parquet.num_row_groups:
            rows = parquet.read_row_group(group, self._columns(parquet.schema_arrow))
        else:  # a file without rows, which has the columns
            rows = parquet.schema_arrow.empty_table()
            rows = rows.select(self._columns(rows.schema) or rows.column_names)
        rows = self._with_features(rows)
        last = group + 1 >= parquet.num_row_groups
        after = MORE if not last else NEXT if number + 1 < len(self.names) else END
        file = folder / f"{number:05d}-{group:05d}.{after}.arrow"
        part = file.with_suffix(".part")
        with part.open("wb") as out:
            with pyarrow.ipc.new_stream(out, rows.schema) as stream:
                stream.write_table(rows)
            out.flush()
            os.fsync(out.fileno())
        part.replace(file)
        return file

    def _columns(self, schema: Any) -> list[str] | None:
        """Return the columns to fetch; None for all."""
        from pyarrow import types

        if not self.texts:
            return None
        audio = (types.is_nested, types.is_binary, types.is_large_binary)
        return [column.name for column in schema if not any(kind(column.type) for kind in audio)]

    def _parquet(self, number: int) -> Any:
        from pyarrow.parquet import ParquetFile

        if self._open is None or self._open[0] != number:
            name = f"datasets/{self.found.repo}/{self.names[number]}"
            file = self._files.open(name, "rb", revision=self.found.commit, cache_type="none")
            self._open = number, ParquetFile(file, pre_buffer=True)
        return self._open[1]

    def _with_features(self, rows: Any) -> Any:
        """Return rows with the types that the data set's card, or else the file, gives its columns."""
        from datasets import Features
        from datasets.table import table_cast

        features = self.builder.info.features or Features.from_arrow_schema(rows.schema)
        if self.texts:
            taken = {name: kind for name, kind in features.items() if name in rows.column_names}
            features = Features(taken)
        return table_cast(rows, features.arrow_schema)
