"""What deltas are like, and what follows for the choice of a method: a line each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from lorsmerge_cli.core.methods import METHODS, method_of
from lorsmerge_cli.errors import named
from lorsmerge_cli.operations.inspect.report import (
    MOST,
    TOP_RATIOS,
    DeltaFileReport,
    InspectReport,
    Together,
)
from lorsmerge_cli.quoting import command

ALIKE, ORTHOGONAL, OPPOSED = 0.7, 0.3, -0.1  # cosines
COIN = 0.4  # share of opposite signs from which an election of signs is close to chance
UNEVEN = 3.0  # between the largest and the smallest norm
SHORT = 0.6  # a step, as a share of task arithmetic's at its default lambda
FLAT = 0.3  # share of the singular values that hold most of the energy
LARGEST_SVP = max(TOP_RATIOS)


def advice(report: InspectReport) -> list[str]:
    """Return a line for each thing that matters to the choice of a method, in words.

    Args:
        report: of an inspection. Lines on angles, norms and steps need two deltas, those on spectra
            need the spectra.
    """
    lines = []
    if report.together is not None:
        lines += [*_angles(report), *_norms(report.deltas, report.together)]
        lines += _stock(report.together)
    return lines + list(_spectra(report.deltas))


def _angles(report: InspectReport) -> Iterator[str]:
    """Yield how far deltas agree in direction and in sign."""
    lengths = {item.path: item.total.energy for item in report.deltas}
    pairs = [pair for pair in report.pairs if lengths[pair.first] and lengths[pair.second]]
    if not pairs:
        return
    cosines = [pair.cosine for pair in pairs]
    least = min(pairs, key=lambda pair: pair.cosine)
    text = f"directions: {_range(cosines, '{:+.2f}')} between deltas, as a cosine: "
    if least.cosine < OPPOSED:
        text += (
            f"{least.first} and {least.second} point away from one another, and a sum cancels part of "
            "what they do; leave one out, or give it a smaller scale"
        )
    elif fmean(cosines) < ORTHOGONAL:
        text += (
            f"nearly orthogonal. A sum keeps all that each does, times lambda; a mean (wa) keeps 1/"
            f"{len(report.deltas)} of it"
        )
    elif fmean(cosines) < ALIKE:
        text += "they share a part of their direction, which a sum counts as often as it occurs"
    else:
        text += (
            "much alike. Their mean (wa) keeps most of what each does, and their sum goes up to "
            f"{len(report.deltas)} times as far"
        )
    yield f"{text}."
    conflicts = [pair.sign_conflict for pair in pairs if pair.shared]
    if not conflicts:
        yield "signs: no two deltas share an element that is not zero, so an election has one vote."
        return
    text = (
        f"signs: {_range(conflicts, '{:.0%}')} of the elements that two deltas share are opposite: "
    )
    if fmean(conflicts) >= COIN:
        text += (
            "an election of signs (ties) is close to the toss of a coin. Before you take its merge, "
            "compare it with its control (merge --control)"
        )
    else:
        text += "an election of signs (ties) has something to go by"
    yield f"{text}."


def _norms(deltas: Sequence[DeltaFileReport], together: Together) -> Iterator[str]:
    """Yield whether a delta dominates a merge, and lambdas with which none does."""
    norms = [item.total.energy**0.5 for item in deltas]
    if zero := [str(item.path) for item, norm in zip(deltas, norms, strict=True) if not norm]:
        yield f"norms: {named(zero)} is zero throughout, and `merge` refuses it."
        return
    largest, smallest = norms.index(max(norms)), norms.index(min(norms))
    ratio = norms[largest] / norms[smallest]
    spread = f"norms: {_range(norms, '{:.3g}')}: "
    if ratio < UNEVEN:
        yield f"{spread}within a factor of {UNEVEN:g}, so no delta dominates a merge."
        return
    times = f"{ratio:.{0 if ratio >= 10 else 1}f}"
    text = (
        f"{spread}{deltas[largest].path} is {times} times as long as {deltas[smallest].path}: a sum "
        f"points along it (cosine {together.along[largest]:.2f}), and ties takes its sign wherever it "
        "keeps it."
    )
    if together.equal_scales is not None:
        scales = command(
            *(
                f"{item.path}:scale={scale:.3g}"
                for item, scale in zip(deltas, together.equal_scales, strict=True)
            )
        )
        text += (
            f" Equal parts, in a sum as long as at lambda {_default()} each: {scales}"
            f"{_beyond(together.equal_scales)}."
        )
    yield text


def _beyond(scales: Sequence[float]) -> str:
    return " (above 1 goes beyond the fine-tune)" if max(scales) > 1 else ""


def _stock(together: Together) -> Iterator[str]:
    """Yield how long a step Model Stock takes."""
    if together.model_stock is None:
        yield (
            "model_stock: the deltas cancel out, so there is no sum to compare it with, and a sum "
            "leaves the base as it is."
        )
        return
    count, scale = len(together.along), together.model_stock
    text = (
        f"model_stock: takes {count * scale:.2f} of the mean, as long a step as lambda {scale:.3f} on "
        f"the sum, whose default is {_default()}"
    )
    if scale < SHORT * METHODS[method_of(())].scale:
        text += (
            ". So short a step forgets little by any method: compare it with its control (merge "
            "--control)"
        )
    yield f"{text}."


def _spectra(deltas: Sequence[DeltaFileReport]) -> Iterator[str]:
    """Yield how much of a matrix its leading singular triplets hold."""
    measured = [item for item in deltas if item.total.rank is not None]
    ranks = [item.total.rank or 0.0 for item in measured]
    if not ranks:
        return
    tops = [item.total.top_share(LARGEST_SVP) or 0.0 for item in measured]
    text = (
        f"spectra: {MOST:.0%} of a matrix's energy takes {_range(ranks, '{:.0%}')} of its singular "
        f"values (median); --svp {LARGEST_SVP:g} keeps {_range(tops, '{:.0%}')} of the energy"
    )
    if len(deltas) > 1:
        leading = [item.total.leading_share or 0.0 for item in measured]
        text += f", and tsv_m, which takes the leading 1/{len(deltas)} of each, {_range(leading, '{:.0%}')}"
    if fmean(ranks) > FLAT:
        text += ". The spectra are flat: give SVP a sparse part beside it (--mp)"
    yield f"{text}."


def _range(values: Sequence[float], form: str) -> str:
    """Return the smallest and the largest value in words, or one where both read alike."""
    ends = dict.fromkeys(form.format(value) for value in (min(values), max(values)))
    return " to ".join(ends)


def _default() -> str:
    return f"{METHODS[method_of(())].scale:g}"
