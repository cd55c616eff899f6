"""LiNeS: coefficients that grow linearly with depth (Wang et al. 2024)."""

from __future__ import annotations


def lines(block: int, blocks: int, *, alpha: float, beta: float) -> float:
    """Return alpha + beta * l / (L - 1) for block l of L (arXiv:2410.17146).

    The paper's alpha and beta are lambdas; here they are factors of lambda.

    Args:
        block: l, from 0.
        blocks: L; with one block, or none, the factor is alpha.
        alpha: factor of the first block, and of tensors outside of blocks.
        beta: what the last block's factor is larger by.

    Example:
        >>> [lines(block, 3, alpha=1.0, beta=0.5) for block in range(3)]
        [1.0, 1.25, 1.5]
    """
    return alpha + beta * block / (blocks - 1) if blocks > 1 else alpha
