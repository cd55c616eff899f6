"""Find the input that makes a merged tensor invalid."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lorsmerge_cli.checkpoint.names import is_variance
from lorsmerge_cli.checkpoint.safetensors_file import dtype_name
from lorsmerge_cli.core.low_rank_sparse import accumulable
from lorsmerge_cli.core.merging import is_finite
from lorsmerge_cli.errors import NonFinite, non_finite

Inputs = Iterable[tuple[object, Tensor]]  # name and values: the base's, then each delta's


def faulty_input(name: str, inputs: Inputs) -> NonFinite | None:
    """Return the error for the first input with a NaN or an infinity; None where all are finite.

    The base comes first among them, as the delta of a fine-tune inherits its NaNs.
    """
    faulty = (non_finite(where, name) for where, values in inputs if not is_finite(values))
    return next(faulty, None)


def check_merged(name: str, merged: Tensor, inputs: Inputs) -> None:
    """Check that a merged tensor is finite and, if it is a variance, not negative.

    Raises:
        NonFinite: it is not; the error blames an input where one is no better.
    """
    if not is_finite(merged):
        raise not_finite(name, merged.dtype, inputs)
    if is_variance(name) and bool((merged < 0).any()):
        raise _negative(name, float(merged.min()), inputs)


def not_finite(name: str, dtype: torch.dtype, inputs: Inputs) -> NonFinite:
    """Return the error for a tensor that is not finite in the merge, rounded to `dtype`."""
    if (fault := faulty_input(name, inputs)) is not None:
        return fault
    wider = ", or write --dtype float32 or bfloat16" if dtype == torch.float16 else ""
    return NonFinite(
        f"{name!r} overflows {dtype_name(dtype)} in the merge.", f"Lower --scale{wider}."
    )


def _negative(name: str, least: float, inputs: Inputs) -> NonFinite:
    """Return the error for a variance whose smallest value in the merge, `least`, is below zero."""
    base: Tensor | None = None
    for where, values in inputs:
        variance = accumulable(values) if base is None else base + values
        base = variance if base is None else base
        if bool((variance < 0).any()):
            return NonFinite(
                f"{where}: {name!r} is a variance, and is negative ({float(variance.min()):.4g}).",
                "The file is damaged, or is a merge of too large a scale: use another one.",
            )
    return NonFinite(
        f"{name!r} is a variance, and would be negative ({least:.4g}) in the merge: the square "
        "root that its layer takes would be NaN.",
        "Lower --scale, or give --method wa, whose mean of the fine-tunes stays positive.",
    )
