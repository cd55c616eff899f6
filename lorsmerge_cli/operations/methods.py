"""List the merging methods."""

from __future__ import annotations

from dataclasses import dataclass

from lorsmerge_cli.core.combining import COMBINERS
from lorsmerge_cli.core.methods import METHODS


@dataclass(frozen=True)
class MethodRow:
    """One method of the table.

    Attributes:
        name: for `--method`.
        title: its name in a sentence.
        formula: the update, with t_i for lambda_i times delta i, of T.
        scale: lambda where the user names none.
        ratios: the options it has to be given.
        holds_all: whether it holds all deltas of a tensor at once, not one.
        paper: authors, year and arXiv number.
    """

    name: str
    title: str
    formula: str
    scale: float
    ratios: tuple[str, ...]
    holds_all: bool
    paper: str


def methods() -> list[MethodRow]:
    """List the merging methods, in the order of `METHODS`.

    Example:
        >>> [row.name for row in methods() if row.holds_all]
        ['ties', 'tsv_m', 'iso_c', 'model_stock']
    """
    return [
        MethodRow(
            name, method.title, method.formula, method.scale, method.ratios,
            COMBINERS[method.combiner].needs_all, method.paper,
        )
        for name, method in METHODS.items()
    ]  # fmt: skip
