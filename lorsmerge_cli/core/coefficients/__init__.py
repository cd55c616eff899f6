"""Rules that choose coefficients. A new one is a file here and a line in `RULES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lorsmerge_cli.core.coefficients.equalise import equalise
from lorsmerge_cli.core.coefficients.lines import lines
from lorsmerge_cli.core.coefficients.metagpt import metagpt
from lorsmerge_cli.core.coefficients.model_stock import model_stock

if TYPE_CHECKING:
    from torch import Tensor

    Agreement = Callable[[Sequence[tuple[Tensor, float]]], float]


@dataclass(frozen=True)
class Rule:
    """A named rule, by one of three functions, and what its callers need to know of it.

    Attributes:
        formula: the factor of lambda, in a line.
        paper: its authors, year and arXiv number; empty for one of ours.
        by_depth: maps a block's number, the number of blocks of its stack (0 and 0 for a tensor in
            none) and the parameters to the factor of its tensors.
        by_norms: maps the L2 norms of whole deltas, none of them zero, to a factor for each.
        by_deltas: maps the deltas of one tensor, each with its coefficient, to their factor. All of
            them are held at once for it.
        parameters: name -> default; None for one that has to be given.
        scale: lambda with it, where none is given; None for the method's.

    Example:
        >>> RULES["lines"].by_depth(3, 4, alpha=1.0, beta=0.5)
        1.5
    """

    formula: str
    paper: str = ""
    by_depth: Callable[..., float] | None = None
    by_norms: Callable[[Sequence[float]], list[float]] | None = None
    by_deltas: Agreement | None = None
    parameters: Mapping[str, float | None] = field(default_factory=dict)
    scale: float | None = None

    @property
    def input(self) -> str:
        """What the factor depends on; of rules with the same one, a merge takes one."""
        return "depth" if self.by_depth else "norms" if self.by_norms else "agreement"


RULES = {
    "lines": Rule(
        "alpha + beta * l / (L - 1) in block l of L", "Wang 2024, 2410.17146", by_depth=lines,
        parameters={"alpha": 1.0, "beta": None},
    ),
    "metagpt": Rule(
        "norm_i^2 / sum_j norm_j^2", "Zhou 2024, 2406.11385", by_norms=metagpt,
        scale=1.0,  # its factors are lambdas themselves
    ),
    "equalise": Rule("rms of the norms / norm_i", by_norms=equalise),
    "model_stock": Rule(
        "T c / (1 + (T - 1) c), c the tensor's mean cosine", "Jang 2024, 2403.19522",
        by_deltas=model_stock,
    ),
}  # fmt: skip
