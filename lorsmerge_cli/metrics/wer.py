"""Word and character error rates, by jiwer's alignment, as counts that can be added up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import jiwer
import numpy as np

from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.metrics.significance import Floats, Metric

UNITS = ("word", "char")


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
    if unit == "word":
        words = jiwer.process_words(reference, hypothesis)
        return ErrorCounts(words.hits, words.substitutions, words.deletions, words.insertions)
    if unit == "char":
        chars = jiwer.process_characters("".join(reference.split()), "".join(hypothesis.split()))
        return ErrorCounts(chars.hits, chars.substitutions, chars.deletions, chars.insertions)
    raise UsageFault(f"There is no unit {unit!r} to count.", f"Use one of: {', '.join(UNITS)}.")


def total(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    """The counts of a corpus; its `rate` is the corpus-level WER, not a mean over utterances."""
    return sum(counts, ErrorCounts(0, 0, 0, 0))


def error_statistics(counts: Sequence[ErrorCounts]) -> Floats:
    """Return what an error rate needs of each utterance, (n, 2): errors, and length of the reference."""
    rows = [(count.errors, count.reference_length) for count in counts]
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def error_rates(sums: Floats) -> Floats:
    """Return errors per unit of reference, (...) of (..., 2); NaN where references are empty."""
    errors, lengths = sums[..., 0], sums[..., 1]
    return np.divide(errors, lengths, out=np.full_like(errors, np.nan), where=lengths > 0)


WER_METRIC = Metric(error_rates, columns=2, size=1)


def wer_signature(*, normalisation: str, unit: str) -> str:
    """All that an error rate depends on, in the manner of sacreBLEU (Post 2018).

    Returns:
        For example `unit:word|norm:basic|jiwer:4.0.0|transformers:5.23.0`; transformers, whose
        normaliser may change, is left out for raw text.
    """
    parts = [f"unit:{unit}", f"norm:{normalisation}", f"jiwer:{version('jiwer')}"]
    if normalisation != "raw":
        parts.append(f"transformers:{version('transformers')}")
    return "|".join(parts)
