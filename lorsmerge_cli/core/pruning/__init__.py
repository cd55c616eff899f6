"""Pruners of one delta matrix. A new one is a file here and a line in `PRUNERS`."""

from __future__ import annotations

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from lorsmerge_cli.core.parameters import Parameter, Value

if TYPE_CHECKING:
    from lorsmerge_cli.core.low_rank_sparse import Delta, LowRankSparse
    from lorsmerge_cli.core.pruning.budget import Budget

LORS = "Zhao 2025, 2502.17380"


@dataclass(frozen=True)
class Pruner:
    """A way to prune a matrix, and what its callers need to know of it.

    Attributes:
        function: file and name, in this folder, of what maps a matrix (d, k), float32 or float64
            and finite, and a budget that is not `whole`, to the pruned matrix. The matrix may be
            overwritten. It is loaded when it is called: the table is read by help, which loads no
            PyTorch.
        title: of a merge by it, in a sentence.
        formula: what is left of t_i.
        paper: its authors, year and arXiv number.
        ratios: that it takes, each of a name in `budget`. Without any, nothing but its parameters
            decides what is kept, and the size of the pruned matrix is not known beforehand.
        parameters: that it takes; `AROUND` is no business of the function's.
        overall: the parameter that is the share of elements kept of all pruned tensors of a delta
            together. How many those are in each, `Method.allot` counts before the merge. Empty where
            each matrix is pruned by itself.
        combiner: by which its method combines the pruned deltas.
        copies: tensors in float32 that it holds at most, beside what any pruner holds.
        turns: whether what is left of Q W R^T is Q times what is left of W times R^T, for Q and R
            with orthonormal columns. A matrix of low rank is then pruned in the space of its factors.

    Example:
        >>> PRUNERS["lors"].ratios, PRUNERS["lors"].combiner
        (('svp', 'mp'), 'sum')
    """

    function: str
    title: str
    formula: str
    paper: str
    ratios: tuple[str, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    overall: str = ""
    combiner: str = "sum"
    copies: int = 0
    turns: bool = False


# Of any pruner: `Method.prune` takes the mean off, and adds it again.
AROUND = Parameter(
    "around",
    "zero",
    "point that deltas are pruned around",
    choices=("zero", "mean"),
)

# The first of several with the same ratios is what those ratios without a method mean.
PRUNERS = {
    "mp": Pruner(
        "mp:mp", "merging with magnitude pruning", "MP(t_i)", LORS, ("mp",), (AROUND,)
    ),
    "svp": Pruner(
        "svp:svp", "merging with singular value pruning", "SVP(t_i)", LORS, ("svp",), (AROUND,)
    ),
    "lors": Pruner(
        "lors:lors", "LoRS-Merging (low-rank and sparse model merging)",
        "SVP(t_i) + MP(t_i - SVP(t_i))", LORS, ("svp", "mp"), (AROUND,),
    ),
    "dare": Pruner(
        "dare:dare", "merging with random pruning (DARE)",
        "t_i * m_i / keep, m_i 1 at random with probability keep", "Yu 2024, 2311.03099",
        parameters=(
            Parameter("keep", 0.5, "probability of an element to be kept", above=True),
            Parameter("seed", 0, "seed of what is kept", high=2**32 - 1, whole=True),
            AROUND,
        ),
    ),
    "star": Pruner(
        "star:star", "STAR (spectral truncation and rescaling)",
        "SVP(t_i) to a share eta of its sum of s, that sum restored", "Lee 2025, 2502.10339",
        parameters=(Parameter("eta", 0.4, "share of the sum of s that is kept", above=True), AROUND),
        combiner="mean", copies=4, turns=True,
    ),
    "localize": Pruner(
        "localize:localize", "Localize-and-Stitch (dataless)", "MP_s(t_i)", "He 2024, 2408.13656",
        parameters=(
            Parameter("s", 0.05, "share kept of the elements of all matrices of a delta", above=True),
            AROUND,
        ),
        overall="s", combiner="stitch",
    ),
}  # fmt: skip


def prune(delta: Delta, pruner: str, budget: Budget, **parameters: Value) -> Delta:
    """Return the pruned delta: a `LowRankSparse`, or the delta itself if the budget is all of it.

    Args:
        delta: (d, k), any float dtype, finite, or its low-rank and sparse parts; or a stack
            (E, d, k), of which every matrix is pruned by itself and which is returned as a tensor,
            unless the pruner is `overall`.
        pruner: a name in `PRUNERS`.
        budget: what to keep of each matrix, or of the tensor where the pruner is `overall`.
        parameters: the pruner's, their defaults without.

    Example:
        >>> import torch
        >>> from lorsmerge_cli.core.pruning.budget import Budget
        >>> prune(torch.tensor([[1.0, -5.0], [4.0, 2.0]]), "mp", Budget(rank=0, kept=1)).to_dense()
        tensor([[ 0., -5.],
                [ 0.,  0.]])
    """
    import torch

    from lorsmerge_cli.core.core_space import core_space
    from lorsmerge_cli.core.low_rank_sparse import LowRankSparse, accumulable, dense
    from lorsmerge_cli.core.pruning.stack import pruned_stack

    if isinstance(delta, LowRankSparse):
        space = core_space([delta]) if PRUNERS[pruner].turns else None
        if space is not None and not budget.whole:
            if not space.left.shape[1]:  # zeros, of which there is no core
                return delta
            core = resolve_name(f"{__name__}.{PRUNERS[pruner].function}")(
                space.cores[0], budget, **parameters
            )
            return space.factors_outside(core)
        delta = dense(delta)
    if budget.whole:
        return accumulable(delta)
    if delta.dim() == 3 and not PRUNERS[pruner].overall:
        return pruned_stack(delta, lambda _, matrix: prune(matrix, pruner, budget, **parameters))
    # A copy, because the pruner overwrites its input, and because BLAS's rounding depends on the
    # alignment of its operands in memory, which for a mapped file is that of the file.
    matrix = accumulable(delta).clone(memory_format=torch.contiguous_format)
    del delta  # frees its memory, if nothing else holds it
    function = resolve_name(f"{__name__}.{PRUNERS[pruner].function}")
    pruned: LowRankSparse = function(matrix, budget, **parameters)
    return pruned
