"""Read data sets of the Hugging Face Hub by their names: `hub:google/fleurs:ca_es:test`.

`hub/data_sets.py` brings a split into the cache as Arrow files. They are mapped into memory, and a recording
is copied out of them, as it is encoded, when it is needed: no audio is written to files of its own.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lorsmerge_cli.data.audio_source import AudioFile, AudioSource
from lorsmerge_cli.data.languages import find_language, find_task
from lorsmerge_cli.data.readers import jsonl
from lorsmerge_cli.data.readers.fields import SPLIT_NAMES, TRANSLATION, Defaults
from lorsmerge_cli.data.readers.parquet import OUTSIDE, class_labels
from lorsmerge_cli.data.utterance import MISSING, Drop, Utterance
from lorsmerge_cli.errors import (
    HubFault,
    LorsmergeError,
    UnreadableFile,
    UsageFault,
    did_you_mean,
)
from lorsmerge_cli.inputs import FileIdentity, open_regular, parse_json

if TYPE_CHECKING:
    from lorsmerge_cli.hub.data_sets import HubData, PreparedSplit

NEEDS = "hub:ORG/NAME:CONFIG:SPLIT, a data set on the Hugging Face Hub"
PREFIX = "hub:"
HOW = "Write hub:ORG/NAME[@REVISION][:CONFIG[:SPLIT]][:text=COLUMN,audio=COLUMN,...]."
FIRST = "first"  # setting: so many hours of the split's first rows alone
REPO = re.compile(
    r"(?P<repo>(?!.*(?:--|\.\.))\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[^@]+))?", re.ASCII
)
SETTINGS = ("audio", "text", "translation", "language", "speaker", "id", "gender")
AUDIO = ("audio", "clip", "wav", "speech", "sound", "recording")
# In this order; FLEURS' raw_transcription has capitals and punctuation, as Whisper's own texts
TEXT = ("text", "transcription", "sentence", "raw_transcription", "normalized_text", "transcript")
CASED = ("raw_transcription", "transcription")  # the first one is preferred where both are there
FLEURS = ("id", "raw_transcription", "lang_group_id")  # columns of FLEURS and copies of it
ENGLISH = "en_us"  # its configuration
SENTENCE = "sentence_id"  # key of a row, whatever column its id is taken from
NO_ENGLISH = "no English text of the sentence"
TAKEN = frozenset({*jsonl.TASK, "target_lang", "offset", "duration", "source_text"})
OPEN = 64  # Arrow files that stay mapped


@dataclass(frozen=True)
class HubReference:
    """What a reference says.

    Attributes:
        repo: `org/name`.
        revision: branch, tag or commit; None for the main branch.
        config: name of a configuration; None for the only or default one.
        split: one; None to take that of the command line.
        columns: of SETTINGS, those that are named -> their column.
        first: hours of the split's first rows to read, in the split's order; None for all of it.
    """

    repo: str
    revision: str | None = None
    config: str | None = None
    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    first: float | None = None

    def __str__(self) -> str:
        settings = {} if self.first is None else {FIRST: str(self.first).removesuffix(".0")}
        settings |= self.columns
        named = ",".join(f"{key}={value}" for key, value in settings.items())
        repo = f"{self.repo}@{self.revision}" if self.revision else self.repo
        parts = [repo, self.config or "", self.split or ""]
        while not parts[-1]:
            parts.pop()
        return PREFIX + ":".join([*parts, *([named] if named else [])])


def parse_reference(text: str) -> HubReference:
    """Return what a reference says.

    Raises:
        UsageFault: it is none.

    Example:
        >>> found = parse_reference("hub:org/set@v1:ca:test:text=raw,audio=clip")
        >>> found.repo, found.revision, found.config, found.split, found.columns["text"]
        ('org/set', 'v1', 'ca', 'test', 'raw')
    """
    repo, *parts = text.removeprefix(PREFIX).split(":")
    settings = parts.pop() if parts and "=" in parts[-1] else ""
    match = REPO.fullmatch(repo)
    if match is None or len(parts) > 2 or any("=" in part for part in parts):
        raise UsageFault(f"{text} names no data set on the Hub.", HOW)
    columns: dict[str, str] = {}
    known = (*SETTINGS, FIRST)
    for setting in settings.split(",") if settings else ():
        key, _, column = (part.strip() for part in setting.partition("="))
        if key not in known:
            raise UsageFault(f"{text}: there is no setting {key!r}.{did_you_mean(key, known)}", HOW)
        if not column or key in columns:
            what = "is given twice" if column else "names no column"
            raise UsageFault(f"{text}: {key}= {what}.", HOW)
        columns[key] = column
    config, split = (*parts, "", "")[:2]
    first = _hours(columns.pop(FIRST), text) if FIRST in columns else None
    return HubReference(
        match["repo"], match["revision"], config or None, split or None, columns, first
    )


def _hours(given: str, text: str) -> float:
    try:
        hours = float(given)
    except ValueError:
        hours = math.nan
    if not 0 < hours < math.inf:
        raise UsageFault(
            f"{text}: {FIRST}={given} is no number of hours.", f"Write {FIRST}=5, or {FIRST}=0.5."
        )
    return hours


def detects(path: Path) -> bool:
    """Return whether a path is a reference; a local file or folder of that name comes first."""
    return str(path).startswith(PREFIX) and not os.path.lexists(path)


def splits(path: Path) -> tuple[str, ...]:
    """Return the splits of a configuration; nothing where the reference names one."""
    from lorsmerge_cli.hub.data_sets import check_library, check_names, split_names

    reference = parse_reference(str(path))
    check_names([name for name in (reference.config, reference.split) if name])
    check_library()
    if reference.split is not None:
        return ()
    names = split_names(_find(reference), reference.config)
    ours = {name: ours for ours, names in SPLIT_NAMES.items() for name in names}
    return tuple(dict.fromkeys(ours.get(name, name) for name in names))


@dataclass(frozen=True)
class Origin:
    """Where rows of the Hub came from.

    Attributes:
        pinned: a reference with the commit and the columns that were read.
        notes: what a user should know of the choices that were made.
    """

    pinned: str
    notes: tuple[str, ...]


def origin(path: Path, split: str | None, defaults: Defaults) -> Origin:
    """Return where the rows come from that `read` returns for the same arguments."""
    table = _open(path, split)
    columns, notes = _columns(table, defaults)
    reference = table.reference
    named = {"audio": columns.audio, **({"text": columns.text} if columns.text else {})}
    named |= reference.columns
    if table.found.converted:
        notes = [
            f"{reference.repo} has a script that `datasets` runs no more: the Parquet that the Hub made "
            f"of it is read ({table.found.revision}).",
            *notes,
        ]
    if reference.first is not None:
        notes.append(
            f"{table.place} is read in the split's order until there are {reference.first:g} hours: its "
            "first rows, and no choice from all of it."
        )
    if table.prepared.partial:
        notes.append(
            f"The Hub's Parquet of {reference.repo} has only the first part of the split "
            f"{reference.split!r}: the rows are not all of it."
        )
    pinned = replace(reference, revision=table.found.commit, columns=named)
    return Origin(str(pinned), tuple(notes))


def read(path: Path, split: str | None, defaults: Defaults) -> list[Utterance | Drop]:
    """Read the rows of a split.

    Raises:
        LorsmergeError: there is no such data set, split or column, or it cannot be downloaded.
    """
    table = _open(path, split, defaults)
    columns, _ = _columns(table, defaults)
    defaults.wanted.add_columns(table.schema.names, columns.audio)
    language = _language_of_all(table, columns, defaults)
    if language is not None:
        columns = replace(columns, language=None)
    english = _english(table, columns, defaults)
    return [
        _row(
            row | ({"language": language} if language else {}),
            audio,
            table,
            number,
            defaults,
            english,
            cells,
        )
        for number, (row, cells, audio) in enumerate(_rows(table, columns, defaults.wanted.columns))
    ]


@dataclass(frozen=True)
class _Table:
    """The Arrow files of a split; `reference` names the split as the data set does.

    Of all rows the first `count` alone are read; None for all.
    """

    reference: HubReference
    found: HubData
    prepared: PreparedSplit
    schema: Any = field(compare=False)
    count: int | None = None

    @property
    def place(self) -> str:
        """The split in messages: the same whether a branch or its commit was asked for."""
        return str(replace(self.reference, revision=None, columns={}, first=None))

    def batches(self) -> Iterator[tuple[Path, int, Any]]:
        """Yield each batch of rows that are read, with its file and its number in that."""
        left = self.count
        for file in self.prepared.files:
            for index, batch in enumerate(_batches(file)[1]):
                taken = batch if left is None else batch.slice(0, left)
                left = None if left is None else left - len(taken)
                yield file, index, taken


def _find(reference: HubReference) -> HubData:
    from lorsmerge_cli.hub.data_sets import find_data_set

    try:
        return find_data_set(reference.repo, reference.revision)
    except HubFault as fault:
        if Path(reference.repo).exists():
            hint = f"{reference.repo} is here: leave out {PREFIX} to read that."
            raise HubFault(fault.what, hint) from fault
        raise


def _open(path: Path, split: str | None, counting: Defaults | None = None) -> _Table:
    """Return a split's files; of one whose first rows are asked for only with `counting` all of these."""
    from lorsmerge_cli.hub.data_sets import cached_splits, prepare_split, split_names

    reference = parse_reference(str(path))
    found = _find(reference)
    wanted = reference.split or split
    names = cached_splits(found, reference.config)
    if wanted not in names:
        names = split_names(found, reference.config)
    if wanted is None and len(names) == 1:
        wanted = names[0]
    aliases = next((known for known in SPLIT_NAMES.values() if wanted in known), (wanted,))
    name = next((name for name in (wanted, *aliases) if name in names), None)
    if name is None:
        there = ", ".join(names)
        raise UnreadableFile(
            f"{reference.repo} has no split {wanted!r}"
            + (f" in {reference.config!r}." if reference.config else "."),
            f"It has: {there}." if found.reachable else f"The cache has: {there}.",
        )
    reference = replace(reference, split=name)
    if reference.first is not None:
        return _first_rows(reference, found, name, counting)
    prepared = prepare_split(found, reference.config, name)
    return _Table(reference, found, prepared, _batches(prepared.files[0])[0])


def _texts(reference: HubReference) -> _Table:
    """Return all rows of a split that is named, with the columns of text at least."""
    from lorsmerge_cli.hub.first_rows import split_texts

    found = _find(reference)
    prepared = split_texts(found, reference.config, reference.split or "")
    return _Table(reference, found, prepared, _batches(prepared.files[0])[0])


def _first_rows(
    reference: HubReference, found: HubData, split: str, counting: Defaults | None
) -> _Table:
    """Return the first rows of a split: those in which there are as many hours as were asked for.

    Without `counting` it has the columns, and no more rows than are fetched at once.
    """
    from lorsmerge_cli.hub.data_sets import PreparedSplit
    from lorsmerge_cli.hub.first_rows import stream_split

    lengths: list[float] = []

    def count(file: Path) -> float:
        table = _Table(reference, found, PreparedSplit((file,)), _batches(file)[0])
        new = list(_lengths(table, counting)) if counting else []
        lengths.extend(new)
        return sum(new)

    seconds = 3600 * (reference.first or 0.0) if counting else 0.0
    prepared = stream_split(found, reference.config, split, count, seconds)
    enough = (n for n, total in enumerate(accumulate(lengths), 1) if total >= seconds)
    return _Table(
        reference, found, prepared, _batches(prepared.files[0])[0], next(enough, len(lengths))
    )


def _lengths(table: _Table, defaults: Defaults) -> Iterator[float]:
    """Yield each row's seconds by the header of its audio; 0 for one that was not asked for."""
    columns, _ = _columns(table, defaults)
    for row, _, audio in _rows(table, columns, ()):
        task = next((row[key] for key in jsonl.TASK if row.get(key)), None)
        named = find_language(row.get("language")), find_task(task)
        asked = defaults.language, defaults.task
        other = any(a and b and a != b for a, b in zip(named, asked, strict=True))
        yield 0.0 if other else _seconds(audio)


def _seconds(audio: AudioSource | str | None) -> float:
    from lorsmerge_cli.data.audio import audio_seconds

    source = audio if isinstance(audio, AudioSource) else _cached_file(audio)
    try:
        return audio_seconds(source) if source else 0.0
    except LorsmergeError:  # the row will be dropped for it
        return 0.0


# --- columns --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Columns:
    """The columns that are read; None for what there is no column of."""

    audio: str
    text: str | None
    translation: str | None
    language: str | None
    speaker: str | None
    id: str | None
    gender: str | None


def _columns(table: _Table, defaults: Defaults) -> tuple[_Columns, list[str]]:
    """Choose the columns, and tell of a choice between several.

    Raises:
        UsageFault: there is no column for audio or text, or a named one is not there.
    """
    reference, names = table.reference, table.schema.names
    for key, column in reference.columns.items():
        if column not in names:
            raise UsageFault(
                f"{table.place} has no column {column!r} for {key}=.{did_you_mean(column, names)}"
            )
    given = reference.columns.get
    audio = _audio_column(table)
    texts = [name for name in TEXT if name in names and name != audio]
    if texts[:1] and set(CASED) <= set(texts) and texts[0] in CASED:
        texts = [CASED[0], *(name for name in texts if name != CASED[0])]
    text = given("text") or next(iter(texts), None)
    translation = given("translation") or (TRANSLATION if TRANSLATION in names else None)
    if text is None and translation is None and defaults.labelled:
        raise UsageFault(
            f"{table.place} has no column for the text that is known ({', '.join(TEXT)}).",
            f"Name it: {replace(reference, columns={**reference.columns, 'text': 'COLUMN'})}, one of "
            f"{', '.join(name for name in names if name != audio)}.",
        )
    notes = []
    if len(texts) > 1 and not given("text") and defaults.labelled:
        others = " or ".join(f"text={name}" for name in texts[1:])
        notes.append(
            f"The texts of {reference.repo} are those of its column {text}; {others} behind the split "
            "takes others."
        )

    def first(key: str, known: Sequence[str]) -> str | None:
        return given(key) or next((name for name in known if name in names), None)

    return _Columns(
        audio, text, translation, first("language", jsonl.LANGUAGE),
        first("speaker", jsonl.SPEAKER), first("id", ("id",)),
        first("gender", jsonl.GENDER),
    ), notes  # fmt: skip


def _audio_column(table: _Table) -> str:
    """Return the column with the audio, by its feature or its type.

    Raises:
        UsageFault: there is none, or there are several and none is called so.
    """
    schema, names = table.schema, table.schema.names
    column = table.reference.columns.get("audio")
    features = _features(schema)
    of_type = [name for name in names if features.get(name) == "Audio"]
    held = [name for name in names if _holds_bytes(schema.field(name).type)]
    if column is not None:
        if column not in held:
            known = f" The audio is in {' or '.join(of_type or held)}." if of_type or held else ""
            raise UsageFault(
                f"{table.place}: the column {column!r} is no audio: it is of the type "
                f"{schema.field(column).type}.",
                known.strip(),
            )
        return column
    found = [name for name in of_type if name in held]
    found = found or [name for name in AUDIO if name in held]
    named = [name for name in AUDIO if name in found]
    if len(found) > 1 and not named:
        raise UsageFault(
            f"{table.place} has several columns of audio: {', '.join(found)}.",
            f"Name one: {replace(table.reference, columns={'audio': found[0]})}.",
        )
    if not found:
        raise UsageFault(
            f"{table.place} has no column of audio. Its columns are {', '.join(names)}.",
            f"Name one that holds encoded audio: "
            f"{replace(table.reference, columns={'audio': 'COLUMN'})}."
            if held
            else "Choose another data set or configuration.",
        )
    return named[0] if named else found[0]


def _features(schema: Any) -> dict[str, str]:
    """Return the name of each column's feature, as `datasets` records it in the file."""
    try:
        features = parse_json(schema.metadata[b"huggingface"])["info"]["features"]
        return {name: feature["_type"] for name, feature in features.items() if "_type" in feature}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _language_of_all(table: _Table, columns: _Columns, defaults: Defaults) -> str | None:
    """Return the language of all rows where no column names one that Whisper has; else None.

    It is that of the configuration's name (`ca_es`), or else that of the command line. Of rows without a
    column, which say nothing, the command line knows better.
    """
    named = find_language(table.reference.config)
    if columns.language is None:
        return defaults.language or named
    said: set[Any] = set()
    for _, _, batch in table.batches():
        said |= set(batch.column(columns.language).unique().to_pylist())
    names = class_labels(table.schema).get(columns.language)
    told = [_label(value, names) for value in said if value not in (None, "")]
    if any(find_language(value) for value in told):
        return None
    return named or defaults.language


# --- rows -----------------------------------------------------------------------------------------


@lru_cache(OPEN)
def _mapped(file: Path, identity: FileIdentity) -> tuple[Any, list[Any]]:
    """Map an Arrow file into memory: its schema and its batches, of which nothing is read yet."""
    import pyarrow

    try:
        open_regular(file).close()  # pyarrow would wait for a FIFO
        with pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))) as stream:
            return stream.schema, list(stream)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UnreadableFile(
            f"{file} is damaged ({str(error).partition(chr(10))[0]}).",
            "Delete it and those beside it: they are made again.",
        ) from None


def _batches(file: Path) -> tuple[Any, list[Any]]:
    try:
        return _mapped(file, FileIdentity.of(file))
    except OSError as error:
        raise UnreadableFile(
            f"{file} cannot be read ({error.strerror}).", "Run it again."
        ) from None


def _bytes_of(batch: Any, column: str) -> tuple[Any, Any]:
    """Return the bytes of a batch's recordings, and their paths; None where no paths are stored."""
    values = batch.column(column)
    if not values.type.num_fields:
        return values, None
    held = dict(zip((values.type.field(n).name for n in range(values.type.num_fields)),
                    values.flatten(), strict=True))  # fmt: skip
    return held["bytes"], held.get("path")


def _rows(
    table: _Table, columns: _Columns, asked: Sequence[str]
) -> Iterator[tuple[dict[str, Any], dict[str, Any], AudioSource | str | None]]:
    """Yield each row by the names of JSON lines, its `asked` columns, and its recording, or its path."""
    asked = [name for name in asked if name in table.schema.names]
    taken = {key: getattr(columns, key) for key in SETTINGS[1:] if getattr(columns, key)}
    taken |= {name: name for name in table.schema.names if name in TAKEN and name not in taken}
    taken |= {SENTENCE: "id"} if "id" in table.schema.names else {}
    labels = class_labels(table.schema)
    number = 0
    for file, index, batch in table.batches():
        kept = batch.select(list(dict.fromkeys([*taken.values(), *asked]))).to_pylist()
        held, paths = _bytes_of(batch, columns.audio)
        there = held.is_valid().to_pylist()
        named = paths.to_pylist() if paths is not None else [None] * len(there)
        for place, (cells, has_bytes, path) in enumerate(zip(kept, there, named, strict=True)):
            row = {key: _label(cells[name], labels.get(name)) for key, name in taken.items()}
            if isinstance(path, str) and (stem := Path(path).stem):
                row["stem"] = stem
            audio = ArrowAudio(file, index, place, columns.audio, table.place, number)
            of_row = {name: _label(cells[name], labels.get(name)) for name in asked}
            yield row, of_row, audio if has_bytes else path
            number += 1


def _label(value: Any, names: Sequence[str] | None) -> Any:
    known = names is not None and type(value) is int and 0 <= value < len(names)
    return names[value] if known and names is not None else value


def _row(
    row: dict[str, Any],
    audio: AudioSource | str | None,
    table: _Table,
    number: int,
    defaults: Defaults,
    english: Mapping[str, str] | None,
    cells: Mapping[str, Any],
) -> Utterance | Drop:
    where, name = f"{table.place}, row {number}", str(row.pop("stem", f"row {number}"))
    path = Path(table.place)
    if row.get("offset") is None:
        row.pop("duration", None)  # of the whole recording, whose header knows better
    if not isinstance(audio, AudioSource):
        found = _cached_file(audio)
        if found is None:
            reason = OUTSIDE if audio else MISSING
            return Drop(name, path, reason, f"{where} has no audio in it")
        audio = found
    if english is not None:
        key = str(row.get(SENTENCE))  # never None, which no text has for a key
        if key not in english:
            return Drop(name, audio, NO_ENGLISH, f"{where} has the sentence {key}")
        row |= {TRANSLATION: english[key], "source_text": row.pop("text", None)}
    return jsonl.read_values(row, audio, name, path, where, defaults, cells)


def _cached_file(path: str | None) -> AudioFile | None:
    """Return a recording that `datasets` left in a file of the cache; None for one elsewhere."""
    from huggingface_hub import constants

    file = Path(path or "")
    inside = file.is_absolute() and ".." not in file.parts
    roots = (Path(constants.HF_HUB_CACHE), Path(constants.HF_HOME))
    return AudioFile(file) if inside and any(map(file.is_relative_to, roots)) else None


# --- FLEURS ---------------------------------------------------------------------------------------


def _english(table: _Table, columns: _Columns, defaults: Defaults) -> dict[str, str] | None:
    """Return the English text of each sentence of FLEURS, if it is to be translated; else None."""
    if defaults.task != "st" or not defaults.labelled or columns.translation is not None:
        return None
    if not set(FLEURS) <= set(table.schema.names):
        return None
    if table.reference.config == ENGLISH:
        raise UsageFault(
            "English is not translated into English.", "Give the spoken language's set."
        )
    english = _texts(replace(table.reference, config=ENGLISH, columns={}, first=None))
    names = english.schema.names
    column = next((name for name in (columns.text, *CASED) if name in names), None)
    if column is None or "id" not in names:
        raise UnreadableFile(
            f"{english.place} has no text by the id of its sentence, which --task st needs: its columns "
            f"are {', '.join(names)}.",
            "Choose another data set, or --task asr.",
        )
    texts: dict[str, str] = {}
    twice = set[str]()
    for file in english.prepared.files:
        for batch in _batches(file)[1]:
            for row in batch.select(["id", column]).to_pylist():
                key, text = str(row["id"]), row[column]
                if row["id"] is None or not isinstance(text, str) or not text.strip():
                    continue
                if " ".join(texts.setdefault(key, text).split()) != " ".join(text.split()):
                    twice.add(key)  # which one is meant is not known
    return {key: text for key, text in texts.items() if key not in twice}


@dataclass(frozen=True)
class ArrowAudio(AudioSource):
    """A recording in a row of an Arrow file.

    Attributes:
        batch: number of the batch in the file.
        index: of the row within the batch.
        column: of the audio.
        place: the data set's split, for messages.
        row: of the split, from 0 on, for messages.
    """

    batch: int
    index: int
    column: str
    place: str
    row: int

    def __str__(self) -> str:
        return f"{self.place}, row {self.row}"

    def open(self) -> BinaryIO:
        """Copy the recording out of the file.

        Raises:
            OSError: the file cannot be read.
            UnreadableFile: it is damaged, or has changed.
        """
        batches = _batches(self.file)[1]
        if self.batch < len(batches) and self.index < batches[self.batch].num_rows:
            value = _bytes_of(batches[self.batch], self.column)[0][self.index].as_py()
            if value is not None:
                return BytesIO(value)
        raise UnreadableFile(f"{self} has no audio.", "The cache has changed: run it again.")
