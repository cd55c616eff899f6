"""Hypotheses beside their references, and the scores of each language and task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from lorsmerge_cli.metrics.bleu import bleu, chrf
from lorsmerge_cli.metrics.bootstrap import (
    Comparison,
    bleu_interval,
    compare_bleu,
    compare_wer,
    wer_interval,
)
from lorsmerge_cli.metrics.language import share_not_english
from lorsmerge_cli.metrics.looping import is_looping
from lorsmerge_cli.metrics.normalisation import (
    AUTO,
    CHARACTER_LANGUAGES,
    normalisation_for,
    normalise,
)
from lorsmerge_cli.metrics.wer import ErrorCounts, count_errors, total, wer_signature
from lorsmerge_cli.speech.utterance import Utterance

STORED = ("raw", "basic", "marks")  # beside the reported one, so that others can be compared with


@dataclass(frozen=True)
class Hypothesis:
    """What one model answered to one utterance."""

    model: str
    dataset: str
    id: str
    language: str
    task: str
    reference: str
    hypothesis: str
    seconds: float
    speaker: str | None = None
    cut: bool | None = None  # at the limit of tokens, before its end; None where that is not known


@dataclass(frozen=True)
class Scoring:
    """How hypotheses are scored.

    Attributes:
        normalisation: of the reported error rates, of `CHOICES`; `auto` is by language.
        samples: of the bootstrap.
        seed: of the bootstrap.
    """

    normalisation: str = AUTO
    samples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Record:
    """Scores of one model on one language and task of one data set.

    Attributes:
        metric: `WER`, `CER` (languages without spaces) or `BLEU`.
        score: in percent, or on BLEU's scale of 0 to 100.
        low, high, standard_error: of the bootstrap, in units of the score.
        signature: of the reported score.
        details: every other score, and the counts they came from.
        rows: the hypotheses, so that a record can be scored again.
    """

    model: str
    dataset: str
    language: str
    task: str
    metric: str
    score: float
    low: float
    high: float
    standard_error: float
    signature: str
    details: dict[str, Any]
    rows: tuple[Hypothesis, ...]

    @property
    def unit(self) -> str:
        """What errors are counted in; translations are English."""
        return "word" if self.task == "st" else unit_of(self.language)

    @property
    def normalisation(self) -> str:
        """What was done to the texts whose errors are counted; a translation has no such score."""
        return str(self.details.get("normalisation", "basic"))

    @property
    def seconds(self) -> float:
        """Of audio."""
        return sum(row.seconds for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: NaN as null."""
        record = {key: value for key, value in asdict(self).items() if key != "rows"}
        rows = [
            {key: getattr(row, key)
             for key in ("id", "speaker", "seconds", "reference", "hypothesis", "cut")}
            for row in self.rows
        ]  # fmt: skip
        document = record | {"utterances": len(rows), "seconds": self.seconds, "rows": rows}
        return {key: finite(value) for key, value in document.items()}


def metric_of(language: str, task: str) -> str:
    """`BLEU` of a translation, `WER` or `CER` of a transcript."""
    if task == "st":
        return "BLEU"
    return "CER" if unit_of(language) == "char" else "WER"


def unit_of(language: str) -> str:
    """What errors are counted in: characters where a language writes no spaces."""
    return "char" if language in CHARACTER_LANGUAGES else "word"


def count_rows(rows: Sequence[Hypothesis], normalisation: str, unit: str) -> list[ErrorCounts]:
    """Errors of each hypothesis."""
    return [
        count_errors(
            normalise(row.reference, normalisation), normalise(row.hypothesis, normalisation), unit
        )
        for row in rows
    ]


def score(rows: Sequence[Hypothesis], scoring: Scoring) -> Record:
    """Score the hypotheses of one model on one language and task of one data set."""
    rows = sorted(rows, key=lambda row: row.id)  # the bootstrap draws alike whatever came first
    return _translation(rows, scoring) if rows[0].task == "st" else _transcription(rows, scoring)


def _transcription(rows: Sequence[Hypothesis], scoring: Scoring) -> Record:
    first, unit = rows[0], unit_of(rows[0].language)
    chosen = normalisation_for(first.language, scoring.normalisation)
    stored = {}
    for how in dict.fromkeys((*STORED, chosen)):
        whole = total(count_rows(rows, how, unit))
        stored[how] = {"rate": 100 * whole.rate, **asdict(whole),
                       "signature": wer_signature(normalisation=how, unit=unit)}  # fmt: skip
    counts = count_rows(rows, chosen, unit)
    interval = wer_interval(
        counts, [row.speaker for row in rows], samples=scoring.samples, seed=scoring.seed
    )
    other = "word" if unit == "char" else "char"
    other_rate = total(count_rows(rows, chosen, other)).rate
    return Record(
        model=first.model,
        dataset=first.dataset,
        language=first.language,
        task=first.task,
        metric=metric_of(first.language, first.task),
        score=100 * total(counts).rate,
        low=100 * interval.low,
        high=100 * interval.high,
        standard_error=100 * interval.standard_error,
        signature=wer_signature(normalisation=chosen, unit=unit),
        details={
            **_flaws(rows),
            "normalisation": chosen,
            **asdict(total(counts)),
            "cer" if other == "char" else "wer": finite(100 * other_rate),
            "normalisations": {how: finite(entry) for how, entry in stored.items()},
        },
        rows=tuple(rows),
    )


def _translation(rows: Sequence[Hypothesis], scoring: Scoring) -> Record:
    first = rows[0]
    hypotheses = [row.hypothesis for row in rows]
    references = [row.reference for row in rows]
    found, characters = bleu(hypotheses, references), chrf(hypotheses, references)
    interval = bleu_interval(hypotheses, references, samples=scoring.samples, seed=scoring.seed)
    return Record(
        model=first.model,
        dataset=first.dataset,
        language=first.language,
        task=first.task,
        metric=metric_of(first.language, first.task),
        score=found.score,
        low=interval.low,
        high=interval.high,
        standard_error=interval.standard_error,
        signature=found.signature,
        details={
            **_flaws(rows),
            "chrf2": characters.score,
            "chrf2_signature": characters.signature,
            "share_not_english": share_not_english(hypotheses),
        },
        rows=tuple(rows),
    )


def _flaws(rows: Sequence[Hypothesis]) -> dict[str, int | None]:
    """Count the hypotheses that were cut at the limit of tokens, and those that repeat themselves.

    None for the first where that was not recorded.
    """
    cut = None if any(row.cut is None for row in rows) else sum(bool(row.cut) for row in rows)
    return {"cut": cut, "looping": sum(is_looping(row.hypothesis) for row in rows)}


def compare(a: Record, b: Record, scoring: Scoring) -> Comparison:
    """b against a on the same utterances, in percent or BLEU points."""
    if a.task == "st":
        return compare_bleu(
            [row.hypothesis for row in a.rows],
            [row.hypothesis for row in b.rows],
            [row.reference for row in a.rows],
            samples=scoring.samples,
            seed=scoring.seed,
        )
    how = normalisation_for(a.language, scoring.normalisation)
    return compare_wer(
        _counts(a.rows, how, a.unit),
        _counts(b.rows, how, a.unit),
        [row.speaker for row in a.rows],
        samples=scoring.samples,
        seed=scoring.seed,
    )


@lru_cache(maxsize=4096)  # a report compares one system with several
def _counts(rows: tuple[Hypothesis, ...], normalisation: str, unit: str) -> list[ErrorCounts]:
    return count_rows(rows, normalisation, unit)


def average(records: Sequence[Record]) -> tuple[float, float]:
    """Plain mean over languages as in the paper's tables, and its standard error.

    The languages' test sets being independent, the errors add up in squares.
    """
    if not records:
        return math.nan, math.nan
    mean = sum(record.score for record in records) / len(records)
    squares = sum(record.standard_error**2 for record in records)
    return mean, math.sqrt(squares) / len(records)


def dev_scores(
    rows: Sequence[Utterance], texts: dict[str, str], normalisation: str = AUTO
) -> dict[str, float]:
    """Scores of each language and task, and as `score` the mean of what is the better the more.

    Args:
        rows: with their references.
        texts: utterance id -> what was said.
        normalisation: as in `Scoring`.
    """
    groups: dict[str, list[Hypothesis]] = {}
    for row in rows:
        groups.setdefault(f"{row.language}_{row.task}", []).append(
            Hypothesis("", "", row.id, row.language, row.task, row.text, texts[row.id], 0.0)
        )
    scores, goodness = {}, []
    for name, group in groups.items():
        if group[0].task == "st":
            found = bleu([row.hypothesis for row in group], [row.reference for row in group])
            scores[name] = found.score
            goodness.append(found.score)
        else:
            language = group[0].language
            how = normalisation_for(language, normalisation)
            counts = count_rows(group, how, unit_of(language))
            scores[name] = 100 * total(counts).rate
            goodness.append(100 - scores[name])
    return {"score": sum(goodness) / len(goodness), **scores}


def finite(value: Any) -> Any:
    """NaN and infinities as None, which JSON has a word for."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
