"""Suites: test sets by name, how each is read and scored, and figures that were published for them.

A suite is a TOML file. What it says of a set comes before the options of the command line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lorsmerge_cli.data.languages import parse_language, parse_task
from lorsmerge_cli.data.readers import READERS, hub, manifest_splits
from lorsmerge_cli.data.readers.fields import SPLIT_NAMES
from lorsmerge_cli.errors import (
    LorsmergeError,
    UnreadableFile,
    UsageFault,
    did_you_mean,
    named,
    raise_all,
)
from lorsmerge_cli.inputs import read_toml
from lorsmerge_cli.metrics import METRICS
from lorsmerge_cli.metrics.metric import Scoring
from lorsmerge_cli.metrics.normalisation import CHOICES

UNKNOWN = "unknown"  # normalisation of a published figure whose source does not say
EXAMPLES = "examples/suites/ has some that work."
SET_KEYS = ("data", "language", "task", "normalise", "split", "hours", "format")
SHARED = SET_KEYS[1:]  # that the file may give for all sets
TOP_KEYS = ("about", *SHARED, "sets", "retention", "published")
PUBLISHED_KEYS = ("model", "set", "language", "metric", "score", "source", "normalise")
PUBLISHED = "(published)"  # behind the name of a model that was not scored here
METRIC_NAMES = {metric.name: metric for metric in METRICS.values()}


@dataclass(frozen=True)
class Published:
    """A figure that someone published for a set.

    Attributes:
        model: that was scored.
        set: the test set's name.
        language: Whisper's code of its rows.
        metric: name of the metric, `WER`.
        score: in the metric's unit.
        source: where it was published.
        normalise: of the texts, one of `CHOICES` or `unknown`; empty where the metric has none.
    """

    model: str
    set: str
    language: str
    metric: str
    score: float
    source: str
    normalise: str = ""

    @property
    def task(self) -> str:
        """The metric's task."""
        return METRIC_NAMES[self.metric].task

    @property
    def key(self) -> tuple[str, str, str]:
        """Data set, language and task, as of a record."""
        return self.set, self.language, self.task

    def comparable(self, scoring: Scoring) -> bool:
        """Return whether scores under a scoring may stand in one column with this."""
        if not METRIC_NAMES[self.metric].normalised:
            return True
        return self.normalise == scoring.of(self.set).normalisation


def published_for(
    figures: Iterable[Published], scored: Mapping[tuple[str, str, str], str], scoring: Scoring
) -> tuple[tuple[Published, ...], tuple[Published, ...]]:
    """Return the figures that may stand beside scores, and those of another normalisation.

    Args:
        figures: published ones.
        scored: data set, language and task -> the reported metric of what was scored.
        scoring: how it was.
    """
    of_sets = [figure for figure in figures if scored.get(figure.key) == figure.metric]
    alike = tuple(figure for figure in of_sets if figure.comparable(scoring))
    return alike, tuple(figure for figure in of_sets if figure not in alike)


def published_in_words(alike: Sequence[Published], unlike: Sequence[Published]) -> list[str]:
    """Return where published figures are from, and those that are in no column, a line for each source."""
    lines = []
    for source in dict.fromkeys(figure.source for figure in alike):
        models = dict.fromkeys(figure.model for figure in alike if figure.source == source)
        lines.append(f"{', '.join(models)} {PUBLISHED}: {source}")
    for model, how, source in dict.fromkeys((f.model, f.normalise, f.source) for f in unlike):
        own = [f for f in unlike if (f.model, f.normalise, f.source) == (model, how, source)]
        figures = ", ".join(f"{f.set} {f.language} {f.metric} {f.score}" for f in own)
        made = (
            "by a normalisation that is not known" if how == UNKNOWN else f"by normalisation {how}"
        )
        lines.append(f"{model} {PUBLISHED} {made}, so in no column: {figures} ({source})")
    return lines


@dataclass(frozen=True)
class SuiteRecord:
    """What results keep of a suite.

    Attributes:
        name: of its file, without the ending.
        digest: of what the suite says of its sets.
        sets: their names.
        retention: names of those that tell what was forgotten.
        published: figures to compare with.
    """

    name: str
    digest: str
    sets: tuple[str, ...]
    retention: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as a JSON document."""
        return asdict(self)


def parse_suite_record(stored: Mapping[str, Any]) -> SuiteRecord:
    """Return what results keep of a suite, from their JSON document.

    Raises:
        ValueError: a figure is by a metric that there is not.
    """
    published = tuple(
        Published(**{key: row[key] for key in PUBLISHED_KEYS}) for row in stored["published"]
    )
    for row in published:
        if row.metric not in METRIC_NAMES:
            raise ValueError(f"there is no metric {row.metric!r:.40}")
    return SuiteRecord(
        stored["name"], stored["digest"], tuple(stored["sets"]), tuple(stored["retention"]), published
    )  # fmt: skip


@dataclass(frozen=True)
class SuiteSet:
    """A test set of a suite; None for what the file does not say.

    Attributes:
        name: for tables.
        path: file, folder or reference to the Hub.
        normalise: one of `CHOICES`.
        language, task, split, hours, format: as in `load_data`.
    """

    name: str
    path: Path
    language: str | None = None
    task: str | None = None
    normalise: str | None = None
    split: str | None = None
    hours: float | None = None
    format: str | None = None

    @property
    def reading(self) -> dict[str, Any]:
        """The arguments of `load_data` that the file gives."""
        given = {
            key: getattr(self, key) for key in ("language", "task", "split", "hours", "format")
        }
        return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True)
class Suite:
    """A suite as its file has it."""

    path: Path
    sets: tuple[SuiteSet, ...]
    record: SuiteRecord

    def scored(self, *, whole: bool) -> Suite:
        """Return the suite, without published figures unless whole sets are scored."""
        if whole:
            return self
        return replace(self, record=replace(self.record, published=()))

    def scoring(self, scoring: Scoring, names: Iterable[str]) -> Scoring:
        """Return a scoring with the normalisation of each set.

        Args:
            scoring: for sets that do not give one.
            names: of all test sets, the suite's and others.
        """
        others = set(names) - {each.name for each in self.sets}
        own = {each.name: each.normalise or scoring.normalisation for each in self.sets}
        if not others and len(set(own.values())) == 1:
            return replace(scoring, normalisation=next(iter(own.values())))
        apart = {name: how for name, how in own.items() if how != scoring.normalisation}
        return replace(scoring, sets=tuple(apart.items()))


def read_suite(path: Path) -> Suite:
    """Read a suite from a TOML file; no data set is looked at.

    Raises:
        UnreadableFile: it is no suite; all that is wrong with it is told at once.
    """
    try:
        document = read_toml(path)
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else error
        raise UnreadableFile(f"{path} is no suite ({words}).", EXAMPLES) from None
    file = _File(path)
    file.check_keys(document, TOP_KEYS, "")
    shared = {key: document[key] for key in SHARED if key in document}
    file.text(document, "about", "")
    tables = document.get("sets")
    if not isinstance(tables, dict) or not tables:
        file.fault("sets", "is missing or empty", f"Write [sets.NAME] with data = ... {EXAMPLES}")
        tables = {}
    sets = [file.set(name, table, shared) for name, table in tables.items()]
    retention = file.names(document, "retention", list(tables))
    rows = document.get("published", [])
    if not isinstance(rows, list):
        file.fault("published", "is no list of tables", "Write [[published]] before each figure.")
        rows = []
    by_name = {each.name: each for each in sets if each is not None}
    published = [
        file.published(row, f"published[{number}]", by_name) for number, row in enumerate(rows, 1)
    ]
    raise_all(file.faults)
    content = json.dumps([shared, tables], sort_keys=True, default=str).encode()
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    made = tuple(each for each in sets if each is not None)
    record = SuiteRecord(
        path.stem, digest, tuple(by_name), tuple(retention),
        tuple(row for row in published if row is not None),
    )  # fmt: skip
    return Suite(path, made, record)


class _File:
    """Reads the values of a suite's file, and gathers what is wrong with them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: list[LorsmergeError] = []

    def fault(self, key: str, what: str, remedy: str = "") -> None:
        self.faults.append(UnreadableFile(f"{self.path}: {key} {what}.", remedy))

    def check_keys(self, table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
        for key in table.keys() - set(known):
            within = f"{where} has" if where else "there is"
            hint = did_you_mean(key, known).strip()
            self.faults.append(UnreadableFile(f"{self.path}: {within} no key {key!r}.", hint))

    def text(self, table: Mapping[str, Any], key: str, where: str) -> str | None:
        value = table.get(key)
        if value is None or (isinstance(value, str) and value.strip()):
            return value
        self.fault(f"{where}{key}", f"is {value!r:.40}, and a text is needed")
        return None

    def checked(
        self, table: Mapping[str, Any], key: str, where: str, parse: Callable[[str], object]
    ) -> str | None:
        """Return a text that a function takes without an error."""
        value = self.text(table, key, where)
        if value is None:
            return None
        try:
            return str(parse(value))
        except LorsmergeError as fault:
            self.fault(f"{where}{key}", f"is {value!r:.40}: {fault.what.rstrip('.')}", fault.remedy)
            return None

    def hours(self, table: Mapping[str, Any], where: str) -> float | None:
        value = table.get("hours")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None or (number and 0 < value < float("inf")):
            return None if value is None else float(value)
        self.fault(f"{where}hours", f"is {value!r:.40}, and a number above 0 is needed")
        return None

    def names(self, table: Mapping[str, Any], key: str, known: Sequence[str]) -> list[str]:
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            example = next(iter(known), "NAME")
            self.fault(key, "is no list of names of sets", f'Write {key} = ["{example}"].')
            return []
        for name in value:
            if name not in known:
                self.fault(key, f"names no set of the file: {name!r:.40}", did_you_mean(name, known).strip())  # fmt: skip
        return list(dict.fromkeys(value))

    def set(self, name: str, table: object, shared: Mapping[str, Any]) -> SuiteSet | None:
        where = f"sets.{name}"
        if not isinstance(table, dict):
            self.fault(where, "is no table", f'Write [sets.{name}] and data = "..." below it.')
            return None
        self.check_keys(table, SET_KEYS, where)
        values, where = {**shared, **table}, f"{where}."
        if "data" not in table:
            self.fault(f"{where}data", "is missing", "Give a path, or hub:ORG/NAME:CONFIG:SPLIT.")
        data = self.text(table, "data", where) or ""
        if data.startswith(hub.PREFIX):
            self.checked(table, "data", where, hub.parse_reference)
        return SuiteSet(
            name, Path(data) if data.startswith(hub.PREFIX) else self.path.parent / data,
            self.checked(values, "language", where, parse_language),
            self.checked(values, "task", where, parse_task),
            self.checked(values, "normalise", where, _normalisation),
            self.text(values, "split", where), self.hours(values, where),
            self.checked(values, "format", where, _format),
        )  # fmt: skip

    def published(self, row: object, where: str, sets: Mapping[str, SuiteSet]) -> Published | None:
        if not isinstance(row, dict):
            self.fault(where, "is no table")
            return None
        before = len(self.faults)
        self.check_keys(row, PUBLISHED_KEYS, where)
        where = f"{where}."
        needed = {key: self.text(row, key, where) for key in ("model", "set", "metric", "source")}
        for key in (*needed, "score"):
            if key not in row:
                self.fault(f"{where}{key}", "is missing")
        name, metric, score = needed["set"], needed["metric"], row.get("score", 0.0)
        if name is not None and name not in sets:
            self.fault(f"{where}set", f"is {name!r:.40}, no set of the file", did_you_mean(name, list(sets)).strip())  # fmt: skip
        if metric is not None and metric not in METRIC_NAMES:
            self.fault(f"{where}metric", f"is {metric!r:.40}", did_you_mean(metric, list(METRIC_NAMES)).strip())  # fmt: skip
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) < 1e6:
            self.fault(f"{where}score", f"is {score!r:.40}, and a number is needed")
        own = sets[name].language if name is not None and name in sets else None
        language = self.checked(row, "language", where, parse_language) or own
        if name in sets and language is None and "language" not in row:
            self.fault(f"{where}language", "is missing, and the set does not give it either")
        how = self.checked(row, "normalise", where, _published_normalisation)
        if metric in METRIC_NAMES and METRIC_NAMES[metric].normalised and "normalise" not in row:
            self.fault(f"{where}normalise", "is missing, and error rates differ by it",
                       f"Give the one that the figure was made with, or {UNKNOWN!r}.")  # fmt: skip
        if len(self.faults) > before:
            return None
        return Published(
            str(needed["model"]), str(name), str(language), str(metric), float(score),
            str(needed["source"]), how or "",
        )  # fmt: skip


def _normalisation(name: str) -> str:
    return _one_of(name, CHOICES)


def _published_normalisation(name: str) -> str:
    return _one_of(name, (*CHOICES, UNKNOWN))


def _format(name: str) -> str:
    return _one_of(name, tuple(READERS))


def _one_of(name: str, known: Sequence[str]) -> str:
    if name not in known:
        raise UsageFault("it is none that is known.", did_you_mean(name, known).strip())
    return name


def check_suite_data(suite: Suite | None, split: str | None = None) -> list[LorsmergeError]:
    """Return the faults of the sets of a suite: paths, configurations and splits that are not there.

    Of a data set on the Hub its list of files is read, and nothing else.

    Args:
        suite: the suite; None has no faults.
        split: of sets that do not give one.
    """
    faults: list[LorsmergeError] = []
    if suite is None:
        return faults
    for each in suite.sets:
        where = f"{suite.path}: sets.{each.name}.data"
        try:
            wanted, path = each.split or split, each.path
            if hub.detects(path):
                reference = hub.parse_reference(str(path))
                wanted = reference.split or wanted
                path = Path(str(replace(reference, split=None, columns={})))
            there = manifest_splits(path, each.format)
        except LorsmergeError as fault:
            faults.append(UnreadableFile(f"{where}: {fault.what}", fault.remedy))
            continue
        known = {ours: names for ours, names in SPLIT_NAMES.items() if ours in there}
        there_too = {name for names in known.values() for name in names}
        if there and wanted is not None and wanted not in {*there, *there_too}:
            faults.append(
                UnreadableFile(f"{where}: {each.path} has no split {wanted!r}.", f"It has: {named(there)}.")
            )  # fmt: skip
    return faults
