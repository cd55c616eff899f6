"""What `eval` is given to hear, and what it found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lorsmerge_cli import __version__
from lorsmerge_cli.data.utterance import Drop, Utterance
from lorsmerge_cli.metrics.significance import Comparison
from lorsmerge_cli.results.records import Record, finite


@dataclass(frozen=True)
class TestSet:
    """Utterances under a name, where they were read from, and which split of it they are."""

    __test__ = False  # not one of pytest's

    name: str
    utterances: tuple[Utterance, ...]
    drops: tuple[Drop, ...] = ()
    path: Path | None = None
    split: str | None = None


@dataclass(frozen=True)
class EvalReport:
    """Scores of every model on every language and task of every test set.

    Attributes:
        records: in the order of models, then test sets.
        comparisons: of `--compare`, one per language and task.
        settings: all that the scores depend on.
        speed: model -> seconds of audio per second of decoding (RTFx); empty if none was decoded.
        main: whether this process is the one that prints.
        models: name -> the identity of its weights and how they were made, as far as is known.
    """

    records: tuple[Record, ...]
    comparisons: tuple[tuple[Record, Record, Comparison], ...]
    settings: dict[str, Any]
    speed: dict[str, float]
    warnings: tuple[str, ...]
    main: bool
    models: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The results file."""
        return {
            "lorsmerge": __version__,
            "settings": self.settings,
            "models": self.models,
            "speed": self.speed,
            "records": [record.to_dict() for record in self.records],
            "comparisons": [
                {"a": a.model, "b": b.model, "dataset": a.dataset, "language": a.language,
                 "task": a.task, "metric": a.metric, **finite(asdict(found))}
                for a, b, found in self.comparisons
            ],
        }  # fmt: skip
