"""DARE: elements dropped at random, the others enlarged in their place (Yu et al. 2024)."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from lorsmerge_cli.core.low_rank_sparse import LowRankSparse
from lorsmerge_cli.core.pruning.budget import Budget
from lorsmerge_cli.core.pruning.mp import mask_


def dare(matrix: Tensor, budget: Budget, keep: float = 0.5, seed: int = 0) -> LowRankSparse:
    """Return W with each element kept with a probability, and divided by it (arXiv:2311.03099).

    So the expected value of each element is what it was. Which elements are kept follows from the
    seed and from the signs of the matrix, and from nothing else: neither the order of the deltas,
    nor threads, nor the device or the dtype matter, and two deltas, or two tensors of one, are
    drawn apart. A delta that is only scaled keeps the same elements.

    Args:
        matrix: W (d, k), float32 or float64, finite. Overwritten.
        budget: not used.
        keep: the probability, above 0.
        seed: of the drawing.

    Example:
        >>> W = torch.ones(200, 300)
        >>> pruned = dare(W.clone(), Budget(rank=0, kept=0), keep=0.25).to_dense()
        >>> pruned.unique(), round(float(pruned.mean()), 1)
        (tensor([0., 4.]), 1.0)
    """
    mask = _drawn(matrix, keep, seed)
    return LowRankSparse(sparse=mask_(matrix, mask).div_(keep), mask=mask)


def _drawn(matrix: Tensor, keep: float, seed: int) -> Tensor:
    """Return a mask of elements that are drawn with a probability."""
    signs = np.packbits((matrix > 0).cpu().numpy())
    digest = hashlib.sha256(f"{seed} {tuple(matrix.shape)} ".encode() + signs.tobytes()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
    drawn = generator.random(tuple(matrix.shape), dtype=np.float32) < keep
    return torch.from_numpy(drawn).to(matrix.device)
