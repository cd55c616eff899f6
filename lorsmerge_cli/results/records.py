"""Hypotheses beside their references, and the scores of each language and task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from lorsmerge_cli.data.leakage import Shared
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.metrics.bleu import BLEU_METRIC, bleu, chrf, sentence_statistics
from lorsmerge_cli.metrics.language import share_not_english
from lorsmerge_cli.metrics.looping import is_looping
from lorsmerge_cli.metrics.normalisation import (
    AUTO,
    CHARACTER_LANGUAGES,
    normalisation_for,
    normalise,
)
from lorsmerge_cli.metrics.significance import (
    FEW,
    FLIPS,
    Comparison,
    Floats,
    Interval,
    Metric,
    block_sums,
    combination,
    interval,
)
from lorsmerge_cli.metrics.significance import compare as compare_blocks
from lorsmerge_cli.metrics.wer import (
    WER_METRIC,
    ErrorCounts,
    count_errors,
    error_statistics,
    total,
    wer_signature,
)

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
        samples: random exchanges of a paired test of more than 12 speakers.
        seed: of the exchanges.
    """

    normalisation: str = AUTO
    samples: int = FLIPS
    seed: int = 0


@dataclass(frozen=True)
class Record:
    """Scores of one model on one language and task of one data set.

    Attributes:
        metric: `WER`, `CER` (languages without spaces) or `BLEU`.
        score: in percent, or on BLEU's scale of 0 to 100.
        low, high, standard_error: the 95 % interval over speakers, in units of the score.
        blocks: speakers that it is judged from, or utterances where none is known.
        signature: of the reported score.
        details: every other score, and the counts they came from.
        rows: the hypotheses, so that a record can be scored again.
        leakage: what of the test set the model was trained on, as far as it has digests of that;
            None where it has none.
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
    blocks: int
    signature: str
    details: dict[str, Any]
    rows: tuple[Hypothesis, ...]
    leakage: tuple[Shared, ...] | None = None

    @property
    def unit(self) -> str:
        """What errors are counted in; translations are English."""
        return "word" if self.task == "st" else unit_of(self.language)

    @property
    def normalisation(self) -> str:
        """What was done to the texts whose errors are counted; a translation has no such score."""
        return str(self.details.get("normalisation", "basic"))

    @property
    def block_unit(self) -> str:
        """What a block is: `speakers`, or `utterances` where no speaker is known."""
        return "speakers" if any(row.speaker for row in self.rows) else "utterances"

    @property
    def seconds(self) -> float:
        """Of audio."""
        return sum(row.seconds for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: NaN as null."""
        record = {key: value for key, value in asdict(self).items() if key != "rows"}
        if self.leakage is None:
            del record["leakage"]
        rows = [
            {key: getattr(row, key)
             for key in ("id", "speaker", "seconds", "reference", "hypothesis", "cut")}
            for row in self.rows
        ]  # fmt: skip
        document = record | {
            "block_unit": self.block_unit, "utterances": len(rows), "seconds": self.seconds,
            "rows": rows,
        }  # fmt: skip
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


def metric_for(task: str) -> Metric:
    """Return the metric of a task, whose statistics `statistics_of` gives."""
    return BLEU_METRIC if task == "st" else WER_METRIC


def statistics_of(rows: Sequence[Hypothesis], normalisation: str) -> Floats:
    """Return what the metric of one language and task needs of each row, (rows, columns).

    Args:
        rows: of one language and task.
        normalisation: as in `Scoring`.
    """
    if rows[0].task == "st":
        return sentence_statistics(
            [row.hypothesis for row in rows], [row.reference for row in rows]
        )
    language = rows[0].language
    how = normalisation_for(language, normalisation)
    return error_statistics(count_rows(rows, how, unit_of(language)))


def score(rows: Sequence[Hypothesis], scoring: Scoring) -> Record:
    """Score the hypotheses of one model on one language and task of one data set."""
    rows = tuple(sorted(rows, key=lambda row: row.id))  # tests go alike whatever came first
    return _translation(rows, scoring) if rows[0].task == "st" else _transcription(rows, scoring)


@lru_cache(maxsize=4096)  # a report compares one system with several
def _blocks(rows: tuple[Hypothesis, ...], normalisation: str) -> Floats:
    return block_sums(statistics_of(rows, normalisation), [row.speaker for row in rows])


def _interval(rows: tuple[Hypothesis, ...], scoring: Scoring) -> Interval:
    return interval(_blocks(rows, scoring.normalisation), metric_for(rows[0].task))


def _transcription(rows: tuple[Hypothesis, ...], scoring: Scoring) -> Record:
    first, unit = rows[0], unit_of(rows[0].language)
    chosen = normalisation_for(first.language, scoring.normalisation)
    stored = {}
    for how in dict.fromkeys((*STORED, chosen)):
        whole = total(count_rows(rows, how, unit))
        stored[how] = {"rate": 100 * whole.rate, **asdict(whole),
                       "signature": wer_signature(normalisation=how, unit=unit)}  # fmt: skip
    counts = count_rows(rows, chosen, unit)
    found = _interval(rows, scoring)
    other = "word" if unit == "char" else "char"
    other_rate = total(count_rows(rows, chosen, other)).rate
    return Record(
        model=first.model,
        dataset=first.dataset,
        language=first.language,
        task=first.task,
        metric=metric_of(first.language, first.task),
        score=100 * total(counts).rate,
        low=100 * found.low,
        high=100 * found.high,
        standard_error=100 * found.standard_error,
        blocks=found.blocks,
        signature=wer_signature(normalisation=chosen, unit=unit),
        details={
            **_flaws(rows),
            "normalisation": chosen,
            **asdict(total(counts)),
            "cer" if other == "char" else "wer": finite(100 * other_rate),
            "normalisations": {how: finite(entry) for how, entry in stored.items()},
        },
        rows=rows,
    )


def _translation(rows: tuple[Hypothesis, ...], scoring: Scoring) -> Record:
    first = rows[0]
    hypotheses = [row.hypothesis for row in rows]
    references = [row.reference for row in rows]
    whole, characters = bleu(hypotheses, references), chrf(hypotheses, references)
    found = _interval(rows, scoring)
    return Record(
        model=first.model,
        dataset=first.dataset,
        language=first.language,
        task=first.task,
        metric=metric_of(first.language, first.task),
        score=whole.score,
        low=found.low,
        high=found.high,
        standard_error=found.standard_error,
        blocks=found.blocks,
        signature=whole.signature,
        details={
            **_flaws(rows),
            "chrf2": characters.score,
            "chrf2_signature": characters.signature,
            "share_not_english": share_not_english(hypotheses),
        },
        rows=rows,
    )


def _flaws(rows: Sequence[Hypothesis]) -> dict[str, int | None]:
    """Count the hypotheses that were cut at the limit of tokens, and those that repeat themselves.

    None for the first where that was not recorded.
    """
    cut = None if any(row.cut is None for row in rows) else sum(bool(row.cut) for row in rows)
    return {"cut": cut, "looping": sum(is_looping(row.hypothesis) for row in rows)}


def compare(pairs: Sequence[tuple[Record, Record]], scoring: Scoring) -> Comparison:
    """Return the second of two systems against the first, on average over test sets of one task.

    Args:
        pairs: both systems' records of each test set, on the same utterances.
        scoring: how.

    Returns:
        As a rate (not in percent), or in BLEU points.
    """
    blocks = [(_of(a, scoring), _of(b, scoring)) for a, b in pairs]
    metric = metric_for(pairs[0][0].task)
    return compare_blocks(blocks, metric, flips=scoring.samples, seed=scoring.seed)


def share_interval(
    triples: Sequence[Sequence[Record]], share: float, gain: float, scoring: Scoring
) -> Interval:
    """Return the interval of a share of a gain, on average over test sets of one task.

    Linearised: (system - base) / (fine-tuned - base) moves as a weighted sum of the three scores.

    Args:
        triples: of each test set, the records of the base, the fine-tune and the system.
        share: the share itself.
        gain: of the fine-tunes over the base, as a rate or in BLEU points.
        scoring: how.
    """
    blocks = [[_of(record, scoring) for record in triple] for triple in triples]
    weights = ((share - 1) / gain, -share / gain, 1 / gain)
    around = combination(blocks, metric_for(triples[0][0].task), weights)
    reach = (around.high - around.low) / 2
    return Interval(share - reach, share + reach, around.standard_error, around.blocks)


def _of(record: Record, scoring: Scoring) -> Floats:
    return _blocks(record.rows, scoring.normalisation)


def blocks_in_words(records: Sequence[Record]) -> str:
    """Return what intervals and tests are judged from: `6 speakers`, or `ca 6, de 8 speakers`."""
    found = {(r.dataset, r.language, r.task): (r.blocks, r.block_unit) for r in records}
    parts = []
    for unit in dict.fromkeys(unit for _, unit in found.values()):
        counts = {key: count for key, (count, its) in found.items() if its == unit}
        if len(counts) == len(found) and len(set(counts.values())) == 1:
            return f"{next(iter(counts.values()))} {unit}{' a set' if len(found) > 1 else ''}"
        parts.append(", ".join(f"{key[1]} {n}" for key, n in counts.items()) + f" {unit}")
    return "; ".join(parts)


def few_blocks(records: Sequence[Record]) -> str | None:
    """Return what a reader has to know of scores of few speakers; None where there are enough."""
    few = [record for record in records if record.blocks < FEW]
    if not few:
        return None
    least = min(record.blocks for record in few)
    return (
        f"{blocks_in_words(few)}: intervals from under {FEW} are wide, and a paired test of "
        f"{least} has no p below {2.0 ** (1 - least):.2g}. Test on more speakers."
    )


def average(records: Sequence[Record]) -> tuple[float, float]:
    """Plain mean over languages as in the paper's tables, and its standard error.

    The languages' test sets being independent, the errors add up in squares.
    """
    if not records:
        return math.nan, math.nan
    mean = sum(record.score for record in records) / len(records)
    squares = sum(record.standard_error**2 for record in records)
    return mean, math.sqrt(squares) / len(records)


def dev_groups(rows: Sequence[Utterance], texts: dict[str, str]) -> dict[str, list[Hypothesis]]:
    """Return the hypotheses of each language and task, `ca_asr` say, in the order of the rows."""
    groups: dict[str, list[Hypothesis]] = {}
    for row in rows:
        groups.setdefault(f"{row.language}_{row.task}", []).append(
            Hypothesis("", "", row.id, row.language, row.task, row.text, texts[row.id], 0.0)
        )
    return groups


def dev_statistics(
    rows: Sequence[Utterance], texts: dict[str, str], normalisation: str = AUTO
) -> dict[str, Floats]:
    """Return what the metric of each language and task needs of each of its rows, in their order.

    Args:
        rows: with their references.
        texts: utterance id -> what was said.
        normalisation: as in `Scoring`.
    """
    return {
        name: statistics_of(group, normalisation) for name, group in dev_groups(rows, texts).items()
    }


def dev_scores(
    rows: Sequence[Utterance], texts: dict[str, str], normalisation: str = AUTO
) -> dict[str, float]:
    """Scores of each language and task, and as `score` the mean of what is the better the more.

    Args:
        rows: with their references.
        texts: utterance id -> what was said.
        normalisation: as in `Scoring`.
    """
    scores, goodness = {}, []
    for name, group in dev_groups(rows, texts).items():
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
