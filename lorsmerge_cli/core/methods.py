"""The merging methods, each a pair of a pruner and a combiner. A new one is a line in `METHODS`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

PAPER_SCALE = 0.15  # lambda of Tables 5 and 6


@dataclass(frozen=True)
class Method:
    """A named way to merge.

    Attributes:
        title: the name of the method in a sentence.
        pruner: a name in `PRUNERS`, None to merge deltas as they are.
        combiner: a name in `COMBINERS`.
        ratios: what the pruner has to be told.
        scale: lambda where the user names none.
    """

    title: str
    pruner: str | None
    combiner: str
    ratios: tuple[str, ...] = ()
    scale: float = PAPER_SCALE


# Of several with the same ratios, the first is the one that ratios without a method mean.
METHODS = {
    "ta": Method("task arithmetic", None, "sum"),
    "mp": Method("merging with magnitude pruning", "mp", "sum", ("mp",)),
    "svp": Method("merging with singular value pruning", "svp", "sum", ("svp",)),
    "lors": Method(
        "LoRS-Merging (low-rank and sparse model merging)", "lors", "sum", ("svp", "mp")
    ),
    "wa": Method("weight averaging", None, "mean", scale=1.0),
    "ties": Method("TIES-Merging", None, "ties", scale=1.0),
    "tsv_m": Method("TSV-Merging (task singular vectors)", None, "tsv_m", scale=1.0),
    "iso_c": Method("isotropic merging (Iso-C)", None, "iso_c", scale=1.0),
    "model_stock": Method("Model Stock", None, "model_stock", scale=1.0),
}


def method_of(ratios: Collection[str]) -> str:
    """Return the name of the method that ratios alone mean: the first that takes just these.

    >>> method_of(["mp", "svp"]), method_of([])
    ('lors', 'ta')
    """
    return next(name for name, method in METHODS.items() if set(method.ratios) == set(ratios))


def method_of_pruned(method: str, ratios: Collection[str]) -> str:
    """Return what a merge of deltas that `prune` had pruned amounts to.

    Args:
        method: the merge's own, a name in `METHODS`.
        ratios: names of the ratios by which its deltas were pruned before.

    >>> method_of_pruned("ta", ["svp"]), method_of_pruned("wa", ["svp"])
    ('svp', 'wa')
    """
    own = METHODS[method]
    if own.pruner is None:
        for name, other in METHODS.items():
            if other.combiner == own.combiner and ratios and set(other.ratios) == set(ratios):
                return name
    return method
