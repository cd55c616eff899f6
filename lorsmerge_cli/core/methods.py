"""The merging methods, each a pair of a pruner and a combiner. A new one is a line in `METHODS`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

PAPER_SCALE = 0.15  # lambda of Tables 5 and 6
LORS = "Zhao 2025, 2502.17380"


@dataclass(frozen=True)
class Method:
    """A named way to merge.

    Attributes:
        title: the method's name in a sentence.
        formula: the update, with t_i for lambda_i times delta i, of T.
        paper: its authors, year and arXiv number.
        pruner: a name in `PRUNERS`, None to merge deltas unpruned.
        combiner: a name in `COMBINERS`.
        ratios: names of the ratios that the pruner needs.
        scale: default lambda.
    """

    title: str
    formula: str
    paper: str
    pruner: str | None
    combiner: str
    ratios: tuple[str, ...] = ()
    scale: float = PAPER_SCALE


# The first of several with the same ratios is what those ratios without a method mean.
METHODS = {
    "ta": Method("task arithmetic", "sum_i t_i", "Ilharco 2023, 2212.04089", None, "sum"),
    "mp": Method(
        "merging with magnitude pruning", "sum_i MP(t_i)", LORS, "mp", "sum", ("mp",)
    ),
    "svp": Method(
        "merging with singular value pruning", "sum_i SVP(t_i)", LORS, "svp", "sum", ("svp",)
    ),
    "lors": Method(
        "LoRS-Merging (low-rank and sparse model merging)",
        "sum_i SVP(t_i) + MP(t_i - SVP(t_i))", LORS, "lors", "sum", ("svp", "mp"),
    ),
    "wa": Method(
        "weight averaging", "mean_i t_i", "Wortsman 2022, 2203.05482", None, "mean", scale=1.0
    ),
    "ties": Method(
        "TIES-Merging", "mean of the largest 20% of each t_i that have the sign of their sum",
        "Yadav 2023, 2306.01708", None, "ties", scale=1.0,
    ),
    "tsv_m": Method(
        "TSV-Merging (task singular vectors)",
        "polar(U) diag(s) polar(V)^T of the leading 1/T of all t_i's triplets U, s, V",
        "Gargiulo 2025, 2412.00081", None, "tsv_m", scale=1.0,
    ),
    "iso_c": Method(
        "isotropic merging (Iso-C)", "mean(s) U V^T of sum_i t_i = U diag(s) V^T",
        "Marczak 2025, 2502.04959", None, "iso_c", scale=1.0,
    ),
    "model_stock": Method(
        "Model Stock", "T c / (1 + (T - 1) c) mean_i t_i, c their mean cosine",
        "Jang 2024, 2403.19522", None, "model_stock", scale=1.0,
    ),
}  # fmt: skip


def method_of(ratios: Collection[str]) -> str:
    """Return the name of the method that ratios imply: the first that takes exactly these.

    Example:
        >>> method_of(["mp", "svp"]), method_of([])
        ('lors', 'ta')
    """
    return next(name for name, method in METHODS.items() if set(method.ratios) == set(ratios))


def method_of_pruned(method: str, ratios: Collection[str]) -> str:
    """Return the method that a merge of already pruned deltas is equal to.

    Args:
        method: of the merge itself, a name in `METHODS`.
        ratios: names of the ratios that its deltas were pruned by.

    Example:
        >>> method_of_pruned("ta", ["svp"]), method_of_pruned("wa", ["svp"])
        ('svp', 'wa')
    """
    own = METHODS[method]
    if own.pruner is None:
        for name, other in METHODS.items():
            if other.combiner == own.combiner and ratios and set(other.ratios) == set(ratios):
                return name
    return method
