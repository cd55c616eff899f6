"""List the merging methods, with their pruners and combiners, and the rules of coefficients."""

from __future__ import annotations

from dataclasses import dataclass

from lorsmerge_cli.core.coefficients import RULES
from lorsmerge_cli.core.methods import METHODS
from lorsmerge_cli.core.parameters import Parameter


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
        pruner: for `--prune`, empty where it merges deltas whole.
        combiner: for `--combine`.
        rest: the combiner of tensors that are not matrices.
        parameters: that may follow its name.
        statistics: kind that `stats` has to write of each fine-tune, empty for none.
    """

    name: str
    title: str
    formula: str
    scale: float
    ratios: tuple[str, ...]
    holds_all: bool
    paper: str
    pruner: str
    combiner: str
    rest: str
    parameters: tuple[Parameter, ...]
    statistics: str

    @property
    def takes(self) -> tuple[str, ...]:
        """The options it has to be given."""
        return (*self.ratios, *(("stats",) if self.statistics else ()))


def methods() -> list[MethodRow]:
    """List the merging methods, in the order of `METHODS`.

    A pruner and a combiner of any two of them make a method too.

    Example:
        >>> [(row.name, row.combiner) for row in methods() if row.name in ("ta", "lors")]
        [('ta', 'sum'), ('lors', 'sum')]
    """
    return [
        MethodRow(
            name, method.title, method.formula, method.scale, method.ratios, method.needs_all,
            method.paper, method.pruner or "", method.combiner,
            method.combined.rest or method.combiner, method.parameters, method.statistics,
        )
        for name, method in METHODS.items()
    ]  # fmt: skip


@dataclass(frozen=True)
class RuleRow:
    """One rule of the table.

    Attributes:
        name: for `--coef`.
        formula: what lambda is multiplied by.
        parameters: that follow its name after a colon, with defaults; None for one without.
        paper: authors, year and arXiv number; empty for a rule of lorsmerge's own.
    """

    name: str
    formula: str
    parameters: dict[str, float | None]
    paper: str


def rules() -> list[RuleRow]:
    """List the rules of coefficients that have a name, in the order of `RULES`.

    Example:
        >>> [row.name for row in rules()]
        ['lines', 'metagpt', 'equalise', 'model_stock']
    """
    return [
        RuleRow(name, rule.formula, dict(rule.parameters), rule.paper)
        for name, rule in RULES.items()
    ]
