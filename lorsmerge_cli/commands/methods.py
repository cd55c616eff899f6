"""`lorsmerge methods`."""

from __future__ import annotations

from dataclasses import asdict

from lorsmerge_cli import console


def methods() -> None:
    """List the merging methods: what each adds to the base, what it takes, and whose it is.

    In the formulas, t_i is lambda_i times delta i, and T the number of deltas. "Deltas held" is how
    many deltas of a tensor are in memory at a time.

    Example: lorsmerge methods
    """
    from lorsmerge_cli.operations.methods import methods as operation

    rows = operation()
    console.result(
        {"methods": [asdict(row) for row in rows]},
        lambda: console.table(
            ["method", "added to the base", "lambda", "takes", "deltas held", "paper (arXiv)"],
            [
                [
                    row.name, row.formula, f"{row.scale:g}",
                    " ".join(f"--{ratio}" for ratio in row.ratios),
                    "all" if row.holds_all else "one", row.paper,
                ]
                for row in rows
            ],
            left=(0, 1, 3, 5),
        ),
    )  # fmt: skip
