"""The matched-pairs test of two recognisers over segments of utterances, as sclite's tools have it.

L. Gillick and S. Cox, Some statistical issues in the comparison of speech recognition algorithms,
ICASSP 1989; NIST's SCTK calls it MAPSSWE, Matched Pairs Sentence-Segment Word Error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GOOD = 2  # words that both have right, by which two segments are set apart


@dataclass(frozen=True)
class MatchedPairs:
    """The result of the test, of system b less system a.

    Attributes:
        segments: with an error of either system.
        difference: mean errors of b less those of a, in a segment.
        z: the mean by its standard error; NaN under two segments.
        p_value: two-sided, of the normal distribution. It takes segments as independent, also those
            of one speaker, so with few speakers it is smaller than that of the test by speaker.
    """

    segments: int
    difference: float
    z: float
    p_value: float


def matched_pairs(segments: Iterable[tuple[int, int]]) -> MatchedPairs:
    """Test whether two systems make as many errors.

    Args:
        segments: errors of a and of b in each.

    Example:
        >>> round(matched_pairs([(2, 0), (0, 1), (1, 2), (1, 0)]).p_value, 3)
        0.739
    """
    found = [b - a for a, b in segments]
    count = len(found)
    if count < 2:
        return MatchedPairs(count, math.fsum(found), math.nan, math.nan)
    mean = math.fsum(found) / count
    variance = math.fsum((value - mean) ** 2 for value in found) / (count - 1)
    if not variance:
        z = math.copysign(math.inf, mean) if mean else 0.0
    else:
        z = mean / math.sqrt(variance / count)
    return MatchedPairs(count, mean, z, math.erfc(abs(z) / math.sqrt(2)))


def segment_errors(
    reference: Sequence[str], a: Sequence[str], b: Sequence[str]
) -> list[tuple[int, int]]:
    """Return the errors of two systems in each segment of an utterance.

    A segment begins and ends at two words that both systems have right, or at the ends of the
    utterance. Words are aligned with sclite's costs: 4 for a substitution, 3 for others.

    Args:
        reference: words; or characters.
        a: of the first system.
        b: of the second.

    Example:
        >>> reference = "it was the best of times it was the worst of times it was".split()
        >>> a = "its the best of times it is the worst of times or it was".split()
        >>> b = "it was the best times it won the test of times it was".split()
        >>> segment_errors(reference, a, b)
        [(2, 0), (0, 1), (1, 2), (1, 0)]
    """
    found: list[tuple[int, int]] = []
    good = GOOD  # as at the beginning of an utterance
    for number, errors in enumerate(zip(_errors(reference, a), _errors(reference, b), strict=True)):
        if errors == (0, 0):
            good += number % 2  # a word, and no place between two
        elif good < GOOD:
            found[-1] = (found[-1][0] + errors[0], found[-1][1] + errors[1])
            good = 0
        else:
            found.append(errors)
            good = 0
    return found


def _errors(reference: Sequence[str], hypothesis: Sequence[str]) -> list[int]:
    """Return errors at each place: before the first word, at it, before the second, ..., at the end."""
    import kaldialign

    errors = [0] * (2 * len(reference) + 1)
    place = 0
    for word, said in kaldialign.align(reference, hypothesis, "", sclite_mode=True):
        if not word:
            errors[2 * place] += 1
        else:
            errors[2 * place + 1] = int(said != word)
            place += 1
    return errors
