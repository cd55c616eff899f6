"""`lorsmerge methods`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from lorsmerge_cli import console

if TYPE_CHECKING:
    from lorsmerge_cli.core.parameters import Parameter
    from lorsmerge_cli.operations.methods import MethodRow, RuleRow


def methods() -> None:
    """List the merging methods: what each adds to the base, what it takes, and whose it is.

    In the formulas, t_i is lambda_i times delta i, and T the number of deltas. "Deltas held" is how
    many deltas of a tensor are in memory at a time, "others" how tensors are combined that are not
    matrices or, where statistics are needed, have none. Any pruner can be joined to any combiner:
    `merge --prune lors --combine ties`. The rules multiply lambda, beside those that name tensors:
    `merge --coef decoder=0.5 --coef lines:beta=0.4`.

    Example: lorsmerge methods
    """
    from lorsmerge_cli.operations.methods import methods as operation
    from lorsmerge_cli.operations.methods import rules

    rows, coefficients = operation(), rules()
    console.result(
        {
            "methods": [asdict(row) for row in rows],
            "rules": [asdict(row) for row in coefficients],
        },
        lambda: _show(rows, coefficients),
    )


def _show(rows: list[MethodRow], coefficients: list[RuleRow]) -> None:
    from lorsmerge_cli.core.parameters import shown

    console.table(  # two tables, as no terminal is wide enough for both side by side
        ["method", "added to the base", "paper (arXiv)"],
        [[row.name, row.formula, row.paper] for row in rows],
        left=(0, 1, 2),
    )
    console.line(
        "t_i: lambda_i times delta i of one tensor; T: the number of deltas; U, s, V: singular vectors "
        "and values.\n"
    )
    console.table(
        ["method", "as a part", "lambda", "takes", "deltas held", "others"],
        [
            [
                row.name,
                f"--prune {row.pruner}" if row.pruner else f"--combine {row.combiner}",
                f"{row.scale:g}", " ".join(f"--{option}" for option in row.takes),
                "all" if row.holds_all else "one", row.rest,
            ]
            for row in rows
        ],
        left=(0, 1, 3, 5),
    )  # fmt: skip
    console.line(
        "--stats: or --calibrate AUDIO, which makes the statistics. deltas held: in memory at a time, of "
        "one tensor. others: how tensors are combined that are no matrices, or have no statistics.\n"
    )
    owners: dict[Parameter, list[str]] = {}
    for row in rows:
        for parameter in row.parameters:
            owners.setdefault(parameter, []).append(row.name)
    console.table(
        ["parameter", "of", "default", "what it is", "values"],
        [
            [key.name, ", ".join(names), shown(key.default), key.help, key.range]
            for key, names in owners.items()
        ],
        left=(0, 1, 3, 4),
    )
    console.table(
        ["--coef", "lambda times", "takes", "paper (arXiv)"],
        [
            [
                row.name,
                row.formula,
                ", ".join(
                    key if value is None else f"{key} ({value:g})"
                    for key, value in row.parameters.items()
                ),
                row.paper,
            ]
            for row in coefficients
        ],
        left=(0, 1, 2, 3),
    )
