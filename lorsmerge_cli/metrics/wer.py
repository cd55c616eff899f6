"""Word and character error rates, by jiwer's alignment, as counts that can be added up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.metrics.leaderboard import word_errors
from lorsmerge_cli.metrics.metric import Metric, Scored, Scoring, ratio
from lorsmerge_cli.metrics.normalisation import (
    CHARACTER_LANGUAGES,
    leaderboard_language,
    normalisation_for,
    normalise,
)

if TYPE_CHECKING:
    from lorsmerge_cli.metrics.metric import Floats

UNITS = ("word", "char")
STORED = ("raw", "basic", "marks")  # beside the reported one, so that others can be compared with


@dataclass(frozen=True)
class ErrorCounts:
    """Counts of an alignment of hypotheses with their references, in words or characters."""

    hits: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions: the Levenshtein distance."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def reference_length(self) -> int:
        """Words or characters in the references."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Errors per unit of the references: 0.25 is 25 %, and insertions can pass 1.

        NaN where the references are empty, whatever was inserted.
        """
        return self.errors / self.reference_length if self.reference_length else math.nan

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )


def count_errors(reference: str, hypothesis: str, unit: str = "word") -> ErrorCounts:
    """Align one hypothesis with its reference (Levenshtein, as `jiwer` does it).

    Args:
        reference: text after `normalise`; words are separated by spaces. Where it is empty, all
            words of the hypothesis are insertions.
        hypothesis: likewise; where it is empty, all words of the reference are deletions.
        unit: `word`, or `char` for code points without white space.

    Raises:
        UsageFault: `unit` is something else.
    """
    import jiwer

    if unit == "word":
        words = jiwer.process_words(reference, hypothesis)
        return ErrorCounts(words.hits, words.substitutions, words.deletions, words.insertions)
    if unit == "char":
        chars = jiwer.process_characters("".join(reference.split()), "".join(hypothesis.split()))
        return ErrorCounts(chars.hits, chars.substitutions, chars.deletions, chars.insertions)
    raise UsageFault(f"There is no unit {unit!r} to count.", f"Use one of: {', '.join(UNITS)}.")


def total(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    """Return the counts of a corpus, whose `rate` is not a mean over utterances."""
    return sum(counts, ErrorCounts(0, 0, 0, 0))


def count_rows(rows: Sequence[Scored], normalisation: str, unit: str) -> list[ErrorCounts]:
    """Return the errors of each hypothesis."""
    language = leaderboard_language(normalisation) if unit == "word" else ""
    pairs = [
        (normalise(row.reference, normalisation), normalise(row.hypothesis, normalisation))
        for row in rows
    ]
    if not language:
        return [count_errors(*pair, unit) for pair in pairs]
    # The reference keeps its length, whatever a hypothesis joins: paired tests need one for both.
    return [
        ErrorCounts(len(pair[0].split()) - subs - dels, subs, dels, ins)
        for pair in pairs
        for subs, dels, ins in [word_errors(*pair, language)]
    ]


def unit_of(language: str) -> str:
    """Return the unit of errors: `char` for languages that are written without spaces, or `word`."""
    return "char" if language in CHARACTER_LANGUAGES else "word"


def error_statistics(counts: Sequence[ErrorCounts]) -> Floats:
    """Return the errors and the length of the reference of each utterance, (n, 2)."""
    import numpy as np

    rows = [(count.errors, count.reference_length) for count in counts]
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def wer_signature(*, normalisation: str, unit: str) -> str:
    """Return everything an error rate depends on.

    Returns:
        For example `unit:word|norm:basic|jiwer:4.0.0|transformers:5.23.0`, without transformers
        for raw text, which its normaliser does not change.
    """
    joins = unit == "word" and leaderboard_language(normalisation)
    counter = "kaldialign" if joins else "jiwer"
    parts = [f"unit:{unit}", f"norm:{normalisation}", f"{counter}:{version(counter)}"]
    if normalisation != "raw":
        parts.append(f"transformers:{version('transformers')}")
    if leaderboard_language(normalisation) not in ("", "en"):
        parts.append(f"num2words:{version('num2words')}")
    return "|".join(parts)


def _error_rate(name: str, unit: str, first_for: frozenset[str] = frozenset()) -> Metric:
    def statistics(rows: Sequence[Scored], scoring: Scoring) -> Floats:
        how = normalisation_for(rows[0].language, scoring.normalisation)
        return error_statistics(count_rows(rows, how, unit))

    def signature(language: str, scoring: Scoring) -> str:
        how = normalisation_for(language, scoring.normalisation)
        return wer_signature(normalisation=how, unit=unit)

    return Metric(
        name=name, task="asr", unit="%", higher_is_better=False, statistics=statistics,
        score=lambda sums: 100 * ratio(sums), signature=signature, normalised=True,
        segments=unit == "word", first_for=first_for, details=partial(_details, unit),
    )  # fmt: skip


def _details(unit: str, rows: Sequence[Scored], scoring: Scoring) -> dict[str, Any]:
    """Return the counts of each kind of error, and the rates under other normalisations."""
    chosen = normalisation_for(rows[0].language, scoring.normalisation)
    counted = {how: total(count_rows(rows, how, unit)) for how in dict.fromkeys((*STORED, chosen))}
    return {
        "normalisation": chosen,
        **asdict(counted[chosen]),
        "normalisations": {
            how: {
                "rate": 100 * counts.rate,
                **asdict(counts),
                "signature": wer_signature(normalisation=how, unit=unit),
            }
            for how, counts in counted.items()
        },
    }


def _match_errors(rows: Sequence[Scored], scoring: Scoring) -> Floats:
    """Return errors, hits and errors, and the length of the reference of each utterance, (n, 3)."""
    import numpy as np

    how = normalisation_for(rows[0].language, scoring.normalisation)
    counts = count_rows(rows, how, "word")
    found = [(c.errors, c.hits + c.errors, c.reference_length) for c in counts]
    return np.array(found, dtype=np.float64).reshape(-1, 3)


WER = _error_rate("WER", "word")
CER = _error_rate("CER", "char", CHARACTER_LANGUAGES)
# Match error rate (Morris, Maier & Green 2004): what share of the aligned places is wrong, at most 100 %.
MER = replace(
    WER, name="MER", statistics=_match_errors, columns=3, size=2, highest=100.0, segments=False,
    details=lambda rows, scoring: {}, only_asked=True,
)  # fmt: skip
