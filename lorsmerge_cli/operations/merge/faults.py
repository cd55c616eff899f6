"""Which input of a merge is to blame for a tensor that came out unsound."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lorsmerge_cli.checkpoint.safetensors_file import dtype_name
from lorsmerge_cli.core.low_rank_sparse import accumulable
from lorsmerge_cli.core.merging import is_finite
from lorsmerge_cli.errors import NonFinite, non_finite

Inputs = Iterable[tuple[object, Tensor]]  # name and values: the base's, then each delta's


def faulty_input(name: str, inputs: Inputs) -> NonFinite | None:
    """Return the error for the first input with a NaN or an infinity, None where all are sound.

    Args:
        name: of the tensor.
        inputs: what is merged, the base first: the delta of a fine-tune inherits what is wrong with
            it.
    """
    for where, values in inputs:
        if not is_finite(values):
            return non_finite(where, name)
    return None


def not_finite(name: str, dtype: torch.dtype, inputs: Inputs) -> NonFinite:
    """Return the error for a NaN or an infinity: in an input, or in the merge of sound ones.

    Args:
        name: of the tensor.
        dtype: that the merge is rounded to.
        inputs: what is merged.
    """
    if (fault := faulty_input(name, inputs)) is not None:
        return fault
    wider = ", or write --dtype float32 or bfloat16" if dtype == torch.float16 else ""
    return NonFinite(
        f"{name!r} overflows {dtype_name(dtype)} in the merge.", f"Lower --scale{wider}."
    )


def negative(name: str, least: float, inputs: Inputs) -> NonFinite:
    """Return the error for a variance below zero: in an input, or in the merge of sound ones.

    Args:
        name: of the tensor.
        least: the merge's smallest value.
        inputs: what is merged.
    """
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
