"""The merging methods of the paper, each a pair of a pruner and a combiner."""

from __future__ import annotations

from dataclasses import dataclass

PAPER_SCALE = 0.15  # lambda of Tables 5 and 6


@dataclass(frozen=True)
class Method:
    """A named way to merge.

    Attributes:
        pruner: a name in `PRUNERS`, None to merge deltas as they are.
        combiner: a name in `COMBINERS`.
        ratios: what the pruner has to be told.
        scale: lambda where the user names none.
    """

    pruner: str | None
    combiner: str
    ratios: tuple[str, ...] = ()
    scale: float = PAPER_SCALE


METHODS = {
    "wa": Method(None, "mean", scale=1.0),  # weight averaging
    "ta": Method(None, "sum"),  # task arithmetic
    "mp": Method("mp", "sum", ("mp",)),
    "svp": Method("svp", "sum", ("svp",)),
    "lors": Method("lors", "sum", ("svp", "mp")),
}
