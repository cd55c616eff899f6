"""TSV-Merge: the deltas' singular vectors made orthogonal to one another (Gargiulo et al. 2025)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lorsmerge_cli.core.spectrum import between_polars, boosted, singular_triplets


def tsv_m(
    deltas: Iterable[tuple[Tensor, float]], beta: float = 1, short_side: int | None = None
) -> Tensor:
    """Return polar(U) diag(s) polar(V)^T of all deltas' leading singular triplets.

    Of each of T deltas (d, k) the leading min(d, k) / T triplets, at least one, are taken; U, s and
    V hold those of all deltas beside one another, s times the coefficients. The polar factor is
    the nearest matrix with orthonormal columns, so that no delta's directions overlap another's
    (arXiv:2412.00081). Directions that deltas share (two equal deltas, say) are counted once, at
    the mean of their values.

    With beta below 1, s of each delta is boosted before (BoostedTSV-M, arXiv:2603.05354): those of
    its triplets that are taken which come after a share beta of their sum are raised to the value
    there.

    Args:
        deltas: pairs of a delta (d, k) (float32 or float64, not empty, finite) and its coefficient.
        beta: as in `boosted`; 1 raises nothing.
        short_side: what stands for min(d, k) in the number of triplets, where the deltas are those of
            larger matrices in bases of their columns and rows.

    Raises:
        ValueError: there are no deltas.

    Example:
        >>> a, b = torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([1.0, 2.0]))
        >>> tsv_m([(a, 1.0), (b, 1.0)])
        tensor([[3., 0.],
                [0., 2.]])
    """
    pairs = list(deltas)
    if not pairs:
        raise ValueError("no deltas to combine")
    shorter = min(pairs[0][0].shape)
    rank = min(shorter, max(1, (short_side or shorter) // len(pairs)))
    dtype = max((delta.dtype for delta, _ in pairs), key=lambda dtype: dtype.itemsize)
    triplets = [
        (left, scale * boosted(values, beta), right)
        for delta, scale in pairs
        for left, values, right in [singular_triplets(delta, rank)]
    ]
    lefts, values, rights = (torch.cat(parts, dim=-1) for parts in zip(*triplets, strict=True))
    del pairs, triplets  # their memory is wanted
    return between_polars(lefts, values, rights).to(dtype)
