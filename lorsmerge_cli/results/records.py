"""Hypotheses with their references, and the scores of each language and task."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lorsmerge_cli.data.leakage import Shared
from lorsmerge_cli.data.utterance import Segment, Utterance
from lorsmerge_cli.metrics import metrics_of, timestamps
from lorsmerge_cli.metrics.flaws import FLAWS
from lorsmerge_cli.metrics.mapsswe import MatchedPairs, matched_pairs, segment_errors
from lorsmerge_cli.metrics.metric import Metric, Scoring
from lorsmerge_cli.metrics.normalisation import (
    AUTO,
    leaderboard_language,
    normalisation_for,
    normalise,
)
from lorsmerge_cli.metrics.significance import (
    FEW,
    Comparison,
    Floats,
    Interval,
    block_sums,
    combination,
    interval,
)
from lorsmerge_cli.metrics.significance import compare as compare_blocks

# Fields of a hypothesis that most have not: what is known of recordings, or of a language identified
IF_HEARD = ("identified", "unheard", "segments", "heard_segments")


@dataclass(frozen=True)
class Hypothesis:
    """A model's answer to an utterance, beside the reference."""

    model: str
    dataset: str
    id: str
    language: str
    task: str
    reference: str
    hypothesis: str
    seconds: float
    speaker: str | None = None
    cut: bool | None = None  # by the limit of tokens, before its end; None where that is not known
    source_text: str | None = None  # transcript of the speech, where the reference is a translation
    gender: str | None = None  # of the speaker, as the data has it
    identified: str | None = None  # the language that the model heard, where it was not told
    unheard: tuple[int, int] | None = None  # of a recording's windows with sound: without text, all
    segments: tuple[Segment, ...] | None = None  # of the reference, where the model has times
    heard_segments: tuple[Segment, ...] | None = None  # of the hypothesis, likewise

    @classmethod
    def of(cls, row: Mapping[str, Any], **about: str) -> Hypothesis:
        """Return the hypothesis of a line or row of JSON, whose types were checked."""
        known = {key: value for key, value in row.items() if key in cls.__dataclass_fields__}
        if known.get("unheard") is not None:
            known["unheard"] = tuple(known["unheard"])
        for key in {"segments", "heard_segments"} & known.keys():
            if known[key] is not None:
                known[key] = tuple(Segment(*part) for part in known[key])
        return cls(**{**known, **about})


@dataclass(frozen=True)
class Score:
    """A score by one metric, in the metric's unit.

    Attributes:
        score: the score itself; NaN where there is none.
        low, high, standard_error: the 95 % interval over speakers.
        signature: all that the score depends on.
    """

    score: float
    low: float
    high: float
    standard_error: float
    signature: str


@dataclass(frozen=True)
class Record:
    """Scores of one model on one language and task of one data set.

    Attributes:
        scores: name of a metric -> the score by it, the reported one first.
        blocks: speakers that intervals are over, or utterances where no speaker is known.
        details: the counts behind the scores.
        rows: the hypotheses, so that a record can be scored again.
        leakage: how much of the test set the model was trained on; None where it has no digests
            of its training data.
    """

    model: str
    dataset: str
    language: str
    task: str
    scores: dict[str, Score]
    blocks: int
    details: dict[str, Any]
    rows: tuple[Hypothesis, ...]
    leakage: tuple[Shared, ...] | None = None

    @property
    def metric(self) -> str:
        """The name of the reported metric."""
        return next(iter(self.scores))

    @property
    def reported(self) -> Score:
        """The score by the reported metric."""
        return self.scores[self.metric]

    @property
    def score(self) -> float:
        """The reported score."""
        return self.reported.score

    @property
    def standard_error(self) -> float:
        """The reported score's standard error."""
        return self.reported.standard_error

    @property
    def silent(self) -> bool:
        """Whether no reference has a word, so that there is no score to average or compare."""
        how = normalisation_for(self.language)
        return not any(normalise(row.reference, how) for row in self.rows)

    @property
    def block_unit(self) -> str:
        """The unit of blocks: `speakers`, or `utterances` where no speaker is known."""
        return "speakers" if any(row.speaker for row in self.rows) else "utterances"

    @property
    def seconds(self) -> float:
        """Seconds of audio."""
        return sum(row.seconds for row in self.rows)


def metric_of(record: Record) -> Metric:
    """Return the metric of a record's reported score."""
    return metrics_of(record.language, record.task)[0]


def comparable_group(
    dataset: str, language: str, task: str, scoring: Scoring, heard: str = ""
) -> str:
    """Return the name of the scores that one may be averaged with.

    They are of one task and normalisation, and heard in one way.

    Args:
        dataset: of the score.
        language: of the score.
        task: of the score.
        scoring: of all scores.
        heard: as `results.document.how_heard` returns it.

    Example:
        >>> apart = Scoring(sets=(("mcv", "leaderboard"),))
        >>> [comparable_group(name, "de", "asr", apart) for name in ("fleurs", "mcv")]
        ['asr', 'asr leaderboard']
        >>> comparable_group("talks", "de", "asr", apart, "recordings")
        'asr recordings'
    """
    own = scoring.of(dataset).normalisation
    apart = own != scoring.normalisation and metrics_of(language, task)[0].normalised
    return " ".join(filter(None, (task, own if apart else "", heard)))


def score(rows: Sequence[Hypothesis], scoring: Scoring) -> Record:
    """Score the hypotheses of one model on one language and task of one data set."""
    rows = tuple(sorted(rows, key=lambda row: row.id))  # paired tests do not depend on row order
    first = rows[0]
    scoring = scoring.of(first.dataset)
    metrics = metrics_of(first.language, first.task, tuple(scoring.asked))
    return Record(
        model=first.model,
        dataset=first.dataset,
        language=first.language,
        task=first.task,
        scores={metric.name: _score(rows, metric, scoring) for metric in metrics},
        blocks=len(_blocks(rows, metrics[0], scoring)),
        details={
            **{key: flaw.count(rows) for key, flaw in FLAWS.items()},
            **_heard_as(rows),
            **timestamps.details(rows),
            **finite(metrics[0].details(rows, scoring)),
        },
        rows=rows,
    )


def _score(rows: tuple[Hypothesis, ...], metric: Metric, scoring: Scoring) -> Score:
    blocks = _blocks(rows, metric, scoring)
    around = interval(blocks, metric)
    whole = float(metric.score(blocks.sum(axis=0)))
    signature = metric.signature(rows[0].language, scoring)
    return Score(whole, around.low, around.high, around.standard_error, signature)


@lru_cache(maxsize=4096)  # a report compares one system with several
def _blocks(rows: tuple[Hypothesis, ...], metric: Metric, scoring: Scoring) -> Floats:
    return block_sums(metric.statistics(rows, scoring), [row.speaker for row in rows])


def _heard_as(rows: Sequence[Hypothesis]) -> dict[str, dict[str, int]]:
    """Count the languages that the model heard, the most frequent first; nothing if it was told."""
    heard = Counter(row.identified for row in rows if row.identified)
    return {"heard_as": dict(heard.most_common())} if heard else {}


def compare(
    pairs: Sequence[tuple[Record, Record]], scoring: Scoring, metric: Metric | None = None
) -> Comparison:
    """Return the second of two systems against the first, on average over test sets of one task.

    Args:
        pairs: both systems' records of each test set, on the same utterances.
        scoring: normalisation, and the number and seed of random exchanges.
        metric: to compare by; each record's reported one by default, which have one unit.

    Returns:
        The difference in the metric's unit.
    """
    blocks = [tuple(_of(record, scoring, metric) for record in pair) for pair in pairs]
    return compare_blocks(
        [(a, b) for a, b in blocks], metric or metric_of(pairs[0][0]),
        flips=scoring.samples, seed=scoring.seed,
    )  # fmt: skip


def matched_segments(a: Record, b: Record, scoring: Scoring, metric: Metric) -> MatchedPairs | None:
    """Return the matched-pairs test of two systems on one test set, over segments.

    None unless the metric is of words, as they stand: the leaderboard's rules join some.

    Args:
        a: the first system's record.
        b: the second's, of the same utterances.
        scoring: normalisation.
        metric: whose errors are counted.
    """
    how = normalisation_for(a.language, scoring.of(a.dataset).normalisation)
    if not metric.segments or leaderboard_language(how):
        return None
    return matched_pairs(
        segment
        for first, second in zip(a.rows, b.rows, strict=True)
        for segment in segment_errors(
            *(
                normalise(text, how).split()
                for text in (first.reference, first.hypothesis, second.hypothesis)
            )
        )
    )


def share_interval(
    triples: Sequence[Sequence[Record]], share: float, gain: float, scoring: Scoring
) -> Interval:
    """Return the interval of a share of a gain, on average over test sets of one task.

    Linearised: to first order, (system - base) / (fine-tuned - base) is a weighted sum of the three
    scores.

    Args:
        triples: of each test set, the records of the base, the fine-tune and the system.
        share: the share itself.
        gain: of the fine-tunes over the base, in the metric's unit.
        scoring: normalisation.
    """
    blocks = [[_of(record, scoring) for record in triple] for triple in triples]
    weights = ((share - 1) / gain, -share / gain, 1 / gain)
    around = combination(blocks, metric_of(triples[0][0]), weights)
    reach = (around.high - around.low) / 2
    return Interval(share - reach, share + reach, around.standard_error, around.blocks)


def _of(record: Record, scoring: Scoring, metric: Metric | None = None) -> Floats:
    return _blocks(record.rows, metric or metric_of(record), scoring.of(record.dataset))


def blocks_in_words(records: Sequence[Record]) -> str:
    """Return the number of speakers or utterances: `6 speakers`, or `ca 6, de 8 speakers`."""
    blocks = {(r.dataset, r.language, r.task): (r.blocks, r.block_unit) for r in records}
    parts = []
    for unit in dict.fromkeys(unit for _, unit in blocks.values()):
        counts = {key: count for key, (count, other) in blocks.items() if other == unit}
        if len(counts) == len(blocks) and len(set(counts.values())) == 1:
            return f"{next(iter(counts.values()))} {unit}{' a set' if len(blocks) > 1 else ''}"
        names = set_names([key[:2] for key in counts])
        listed = zip(names, counts.values(), strict=True)
        parts.append(", ".join(f"{name} {count}" for name, count in listed) + f" {unit}")
    return "; ".join(parts)


def set_names(sets: Sequence[tuple[str, str]]) -> list[str]:
    """Return how test sets are called: by the language, and the data set where it has several.

    Example:
        >>> set_names([("fleurs", "ca"), ("mcv", "ca"), ("mcv", "de")])
        ['ca fleurs', 'ca mcv', 'de']
    """
    languages = [language for _, language in dict.fromkeys(sets)]
    return [
        language if languages.count(language) == 1 else f"{language} {dataset}"
        for dataset, language in sets
    ]


def few_blocks(records: Sequence[Record]) -> str | None:
    """Return a warning of scores of few speakers; None where there are enough."""
    few = [record for record in records if record.blocks < FEW]
    if not few:
        return None
    least = min(record.blocks for record in few)
    return (
        f"{blocks_in_words(few)}: intervals from under {FEW} are wide, and a paired test of "
        f"{least} has no p below {2.0 ** (1 - least):.2g}. Test on more speakers."
    )


def average(records: Sequence[Record]) -> tuple[float, float]:
    """Return the plain mean over languages, as in the paper's tables, and its standard error.

    The test sets are independent, so their squared errors add up. Both are NaN for no record.
    """
    if not records:
        return math.nan, math.nan
    mean = sum(record.score for record in records) / len(records)
    squares = sum(record.standard_error**2 for record in records)
    return mean, math.sqrt(squares) / len(records)


def dev_statistics(
    rows: Sequence[Utterance], texts: dict[str, str], normalisation: str = AUTO
) -> dict[str, Floats]:
    """Return the statistics of the rows of each language and task, by its reported metric.

    Args:
        rows: with their references.
        texts: utterance id -> hypothesis.
        normalisation: as in `Scoring`.

    Returns:
        `ca_asr`, say -> statistics (rows, columns).
    """
    groups: dict[str, list[Hypothesis]] = {}
    for row in rows:
        groups.setdefault(f"{row.language}_{row.task}", []).append(
            Hypothesis("", "", row.id, row.language, row.task, row.text, texts[row.id], 0.0)
        )
    return {
        name: metrics_of(*name.split("_"))[0].statistics(group, Scoring(normalisation))
        for name, group in groups.items()
    }


def dev_scores(
    rows: Sequence[Utterance], texts: dict[str, str], normalisation: str = AUTO
) -> dict[str, float]:
    """Return the reported score of each language and task, `ca_asr` say, and their mean as `score`.

    The mean is oriented so that higher is better: an error rate counts as 100 less the rate.

    Args:
        rows: with their references.
        texts: utterance id -> hypothesis.
        normalisation: as in `Scoring`.
    """
    scores, oriented = {}, []
    for name, table in dev_statistics(rows, texts, normalisation).items():
        metric = metrics_of(*name.split("_"))[0]
        scores[name] = float(metric.score(table.sum(axis=0)))
        oriented.append(scores[name] if metric.higher_is_better else 100 - scores[name])
    return {"score": sum(oriented) / len(oriented), **scores}


def finite(value: Any) -> Any:
    """Return a value with NaN and infinities as None, which JSON writes as null."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
