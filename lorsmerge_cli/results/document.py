"""The results file of `eval`, which only this module writes and reads.

Version 2 has all scores of a record under `scores`, by the metric's name. Version 1, which is still
read, had one score in the record itself, and differences of error rates as shares of 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lorsmerge_cli.data.leakage import parse_shared
from lorsmerge_cli.data.utterance import Drop, Utterance
from lorsmerge_cli.errors import UnreadableFile
from lorsmerge_cli.inputs import json_object, read_document
from lorsmerge_cli.metrics.mapsswe import MatchedPairs
from lorsmerge_cli.metrics.metric import Metric, Scoring
from lorsmerge_cli.metrics.normalisation import CHOICES
from lorsmerge_cli.metrics.significance import Comparison
from lorsmerge_cli.results.records import (
    IF_HEARD,
    Hypothesis,
    Record,
    Score,
    comparable_group,
    finite,
)
from lorsmerge_cli.results.shapes import check_types
from lorsmerge_cli.results.suite import Published, SuiteRecord, parse_suite_record, published_for
from lorsmerge_cli.version import __version__

VERSION = 2
AGAIN = "Make one with `lorsmerge eval MODEL --data DATA -o results.json`."
ROW = ("id", "speaker", "seconds", "reference", "hypothesis", "cut")  # and those below, if known
IF_KNOWN = ("source_text", "gender", *IF_HEARD)


@dataclass(frozen=True)
class TestSet:
    """Named utterances, with the path and split they were read from, and the size of the whole.

    Of a data set on the Hub, `hub` is the reference with its commit and the columns that were read.
    `selected` has the conditions that its rows had to meet, in words.
    """

    __test__ = False  # not one of pytest's

    name: str
    utterances: tuple[Utterance, ...]
    drops: tuple[Drop, ...] = ()
    path: Path | None = None
    split: str | None = None
    whole: int | None = None  # utterances, where these are a shard of it
    hub: str | None = None
    selected: tuple[str, ...] = ()

    @property
    def of(self) -> int:
        """The utterances of the whole set."""
        return len(self.utterances) if self.whole is None else self.whole


def how_heard(decoding: Mapping[str, Any] | None, decoded: Mapping[str, str]) -> str:
    """Return how utterances were heard, where it was not as clips in a language that was given.

    Args:
        decoding: settings that a results file records; None for hypotheses that were scored again.
        decoded: model -> signature of the decoding of these.

    Example:
        >>> how_heard({"beam": 5, "long": "best_of:5", "language": "auto"}, {})
        'recordings language-auto'
        >>> how_heard(None, {"base": "beam:5|float32|language:auto"}), how_heard({"beam": 5}, {})
        ('language-auto', '')
    """
    ways = [f"{key}:{value}" for key, value in decoding.items()] if decoding is not None else []
    ways = ways or [part for way in decoded.values() for part in (way or "").split("|")]
    named = {"recordings": "long:", "language-auto": "language:auto"}
    return " ".join(
        name for name, start in named.items() if any(part.startswith(start) for part in ways)
    )


@dataclass(frozen=True)
class EvalReport:
    """Scores of every model on every language and task of every test set.

    Attributes:
        records: in the order of models, then test sets.
        comparisons: of `--compare`, one for each language, task and metric: the test by speaker,
            and that over segments.
        settings: everything the scores depend on.
        speed: model -> seconds of audio per second of decoding (RTFx); empty if none was decoded.
        main: whether this process is the one that prints.
        models: name -> the identity of its weights and how they were made, as far as is known.
        scoring: how the records were scored.
        suite: that test sets are of; None for none.
    """

    records: tuple[Record, ...]
    comparisons: tuple[tuple[Record, Record, Metric, Comparison, MatchedPairs | None], ...]
    settings: dict[str, Any]
    speed: dict[str, float]
    warnings: tuple[str, ...]
    main: bool
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    scoring: Scoring = field(default_factory=Scoring)
    suite: SuiteRecord | None = None

    @property
    def published(self) -> tuple[tuple[Published, ...], tuple[Published, ...]]:
        """The suite's published figures of what was scored: those that compare, and the others."""
        scored = {(r.dataset, r.language, r.task): r.metric for r in self.records}
        return published_for(self.suite.published if self.suite else (), scored, self.scoring)

    def group_of(self, record: Record) -> str:
        """Return the name of the scores that a record's may be averaged with."""
        heard = how_heard(self.settings.get("decoding"), self.settings.get("decoded", {}))
        return comparable_group(record.dataset, record.language, record.task, self.scoring, heard)

    def to_dict(self) -> dict[str, Any]:
        """Return the results file as a JSON document."""
        return {
            "version": VERSION,
            "lorsmerge": __version__,
            "settings": self.settings,
            "models": self.models,
            "speed": self.speed,
            "records": [record_document(record) for record in self.records],
            "comparisons": [
                {"a": a.model, "b": b.model, "dataset": a.dataset, "language": a.language,
                 "task": a.task, "metric": metric.name, **finite(asdict(found)),
                 **({} if pairs is None else {"mapsswe": finite(asdict(pairs))})}
                for a, b, metric, found, pairs in self.comparisons
            ],
        }  # fmt: skip


def record_document(record: Record) -> dict[str, Any]:
    """Return a record as a JSON document, NaN as null."""
    document: dict[str, Any] = {
        "model": record.model, "dataset": record.dataset, "language": record.language,
        "task": record.task, "metric": record.metric,
        "scores": {name: asdict(score) for name, score in record.scores.items()},
        "blocks": record.blocks, "block_unit": record.block_unit, "details": record.details,
    }  # fmt: skip
    if record.leakage is not None:
        document["leakage"] = [asdict(shared) for shared in record.leakage]
    rows = [
        {key: getattr(row, key) for key in ROW}
        | {key: value for key in IF_KNOWN if (value := getattr(row, key)) is not None}
        for row in record.rows
    ]
    document |= {"utterances": len(rows), "seconds": record.seconds, "rows": rows}
    return {key: finite(value) for key, value in document.items()}


@dataclass(frozen=True)
class StoredResults:
    """What a results file holds.

    Attributes:
        lorsmerge: the version that wrote it; None where that is not recorded.
        scoring: how its rows were scored, with the default number of random exchanges.
        versions: library -> version.
        decoding: settings; None where nothing was decoded.
        decoded: model -> signature of its decoding, where hypotheses were scored again.
        splits: data set -> the split it is.
        selected: data set -> conditions that its rows had to meet.
        dropped: data set -> reason -> number of rows that were not scored.
        partial: data set -> utterances scored, and those that it has.
        identities: model -> the start of the fingerprint of its weights, where that is recorded.
        made_from: model -> how it was made, as `recipe.record.made_from` returns it.
        records: scores and rows.
        suite: that the test sets are of; None for none.
    """

    lorsmerge: str | None
    scoring: Scoring
    versions: Mapping[str, Any]
    decoding: Mapping[str, Any] | None
    decoded: Mapping[str, str]
    splits: Mapping[str, str | None]
    selected: Mapping[str, Sequence[str]]
    dropped: Mapping[str, Mapping[str, int]]
    partial: Mapping[str, tuple[int, int]]
    identities: Mapping[str, str]
    made_from: Mapping[str, Mapping[str, Any]]
    records: tuple[Record, ...]
    suite: SuiteRecord | None = None

    @property
    def heard(self) -> str:
        """How the utterances were heard, as `how_heard` has it."""
        return how_heard(self.decoding, self.decoded)


def read_results(path: Path) -> StoredResults:
    """Read a results file of `eval`, of any version.

    Raises:
        UnreadableFile: the file is something else, or of a newer version.
    """
    try:
        document = json_object(read_document(path))
        version = document.get("version", 1)
        if type(version) is int and version > VERSION:
            raise UnreadableFile(
                f"{path} is a results file of version {version}, and this lorsmerge reads up to "
                f"{VERSION}.",
                "Update lorsmerge.",
            )
        return _parsed(document, version)
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror}.", "Check the path.") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnreadableFile(
            f"{path} is no results file of `lorsmerge eval`, or was damaged ({error}).", AGAIN
        ) from None


def _parsed(document: Mapping[str, Any], version: Any) -> StoredResults:
    """Check and convert a document.

    Raises:
        ValueError: `eval` did not write it.
    """
    if version not in (1, VERSION):
        raise ValueError(f"its version is {version!r:.40}")
    check_types(document, version)
    settings, models = document["settings"], document.get("models", {})
    normalisation, of_sets = (
        settings["scoring"]["normalisation"],
        settings["scoring"].get("sets", {}),
    )
    for how in (normalisation, *of_sets.values()):
        if how not in CHOICES:
            raise ValueError(f"there is no normalisation {how!r}")
    suite = settings.get("suite")
    return StoredResults(
        lorsmerge=document.get("lorsmerge"),
        scoring=Scoring(normalisation, sets=tuple(of_sets.items())),
        versions=settings.get("versions", {}),
        decoding=settings.get("decoding"),
        decoded=settings.get("decoded", {}),
        splits=settings.get("splits", {}),
        selected=settings.get("selected", {}),
        dropped=settings.get("dropped", {}),
        partial={name: (done, of) for name, (done, of) in settings.get("partial", {}).items()},
        identities={name: m["identity"] for name, m in models.items() if m.get("identity")},
        made_from={name: m.get("made_from", {}) for name, m in models.items()},
        records=tuple(_record(stored) for stored in document["records"]),
        suite=None if suite is None else parse_suite_record(suite),
    )


def _record(stored: Mapping[str, Any]) -> Record:
    metric = stored["metric"]
    scores = stored.get("scores", {metric: stored})  # version 1 has one, in the record
    about = {key: stored[key] for key in ("model", "dataset", "language", "task")}
    leakage = stored.get("leakage")  # only of models that have digests of their training data
    return Record(
        **about,
        scores={name: _score(scores[name]) for name in dict.fromkeys((metric, *scores))},
        blocks=stored.get("blocks", 0),  # older files have none, and the intervals of a bootstrap
        details=stored["details"],
        rows=tuple(Hypothesis.of(row, **about) for row in stored["rows"]),
        leakage=None if leakage is None else parse_shared(leakage),
    )


def _score(stored: Mapping[str, Any]) -> Score:
    score, low, high, error = (
        math.nan if stored[key] is None else float(stored[key])  # null is NaN
        for key in ("score", "low", "high", "standard_error")
    )
    return Score(score, low, high, error, stored["signature"])
