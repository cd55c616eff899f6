"""`lorsmerge methods`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from lorsmerge_cli import console

if TYPE_CHECKING:
    from lorsmerge_cli.core.parameters import Parameter
    from lorsmerge_cli.operations.methods import MethodRow


def methods() -> None:
    """List the merging methods: what each adds to the base, what it takes, and whose it is.

    In the formulas, t_i is lambda_i times delta i, and T the number of deltas. "Deltas held" is how
    many deltas of a tensor are in memory at a time, "others" how tensors are combined that are not
    matrices or, where statistics are needed, have none. Any pruner can be joined to any combiner: `merge --prune lors --combine ties`.

    Example: lorsmerge methods
    """
    from lorsmerge_cli.operations.methods import methods as operation

    rows = operation()
    console.result({"methods": [asdict(row) for row in rows]}, lambda: _show(rows))


def _show(rows: list[MethodRow]) -> None:
    from lorsmerge_cli.core.parameters import shown

    console.table(
        ["method", "as a part", "added to the base", "lambda", "takes", "deltas held", "others",
         "paper (arXiv)"],
        [
            [
                row.name,
                f"--prune {row.pruner}" if row.pruner else f"--combine {row.combiner}",
                row.formula, f"{row.scale:g}", " ".join(f"--{option}" for option in row.takes),
                "all" if row.holds_all else "one", row.rest, row.paper,
            ]
            for row in rows
        ],
        left=(0, 1, 2, 4, 6, 7),
    )  # fmt: skip
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
