"""Word and character error rates, by jiwer's alignment, as counts that can be added up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.metrics.metric import Metric, Scored, Scoring, ratio
from lorsmerge_cli.metrics.normalisation import CHARACTER_LANGUAGES, normalisation_for, normalise

if TYPE_CHECKING:
    from lorsmerge_cli.metrics.metric import Floats

UNITS = ("word", "char")
STORED = ("raw", "basic", "marks")  # beside the reported one, so that others can be compared with


@dataclass(frozen=True)
class ErrorCounts:
    """What an alignment of hypotheses with their references found, in words or characters."""

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
        reference, hypothesis: texts after `normalise`; words are what spaces separate. Either
            may be empty: all words of the other are then deletions or insertions.
        unit: `word`, or `char` for code points without white space.

    Raises:
        UsageFault: `unit` is neither.
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
    """Return the counts of a corpus; its `rate` is the corpus-level WER, not a mean over utterances."""
    return sum(counts, ErrorCounts(0, 0, 0, 0))


def count_rows(rows: Sequence[Scored], normalisation: str, unit: str) -> list[ErrorCounts]:
    """Return the errors of each hypothesis."""
    return [
        count_errors(
            normalise(row.reference, normalisation), normalise(row.hypothesis, normalisation), unit
        )
        for row in rows
    ]


def unit_of(language: str) -> str:
    """Return what errors are counted in: characters where a language writes no spaces."""
    return "char" if language in CHARACTER_LANGUAGES else "word"


def error_statistics(counts: Sequence[ErrorCounts]) -> Floats:
    """Return what an error rate needs of each utterance, (n, 2): errors, and length of the reference."""
    import numpy as np

    rows = [(count.errors, count.reference_length) for count in counts]
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def error_rates(sums: Floats) -> Floats:
    """Return errors in percent of the reference, (...) of (..., 2); NaN where references are empty."""
    return 100 * ratio(sums)


def wer_signature(*, normalisation: str, unit: str) -> str:
    """Return all that an error rate depends on.

    Returns:
        For example `unit:word|norm:basic|jiwer:4.0.0|transformers:5.23.0`; transformers, whose
        normaliser may change, is left out for raw text.
    """
    parts = [f"unit:{unit}", f"norm:{normalisation}", f"jiwer:{version('jiwer')}"]
    if normalisation != "raw":
        parts.append(f"transformers:{version('transformers')}")
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
        score=error_rates, signature=signature, first_for=first_for, details=partial(_details, unit),
    )  # fmt: skip


def _details(unit: str, rows: Sequence[Scored], scoring: Scoring) -> dict[str, Any]:
    """Return the kinds of errors, and the rates of other normalisations."""
    chosen = normalisation_for(rows[0].language, scoring.normalisation)
    found = {how: total(count_rows(rows, how, unit)) for how in dict.fromkeys((*STORED, chosen))}
    return {
        "normalisation": chosen,
        **asdict(found[chosen]),
        "normalisations": {
            how: {
                "rate": 100 * counts.rate,
                **asdict(counts),
                "signature": wer_signature(normalisation=how, unit=unit),
            }
            for how, counts in found.items()
        },
    }


WER = _error_rate("WER", "word")
CER = _error_rate("CER", "char", CHARACTER_LANGUAGES)
