"""Combiners of the deltas of one tensor. A new one is a file here and a line in `COMBINERS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, cast

from lorsmerge_cli.core.parameters import Parameter, Value

if TYPE_CHECKING:
    from torch import Tensor

    from lorsmerge_cli.core.low_rank_sparse import Delta

PAPER_SCALE = 0.15  # lambda of Tables 5 and 6


@dataclass(frozen=True)
class Combiner:
    """A way to combine deltas, and what its callers need to know of it.

    Attributes:
        function: file and name, in this folder, of what maps pairs of a delta and its coefficient
            to the update, float32 or float64, of the deltas' shape. Pairs are made one by one as it
            iterates. It is loaded when it is called: the table is read by help, which loads no
            PyTorch.
        title: of a merge by it, in a sentence.
        formula: the update, with t_i for lambda_i times delta i, of T.
        paper: its authors, year and arXiv number.
        alone: the method of this combiner and no pruner; its own name if empty.
        scale: default lambda.
        parameters: that the function takes beside the deltas.
        needs_all: whether it holds all deltas of a whole tensor at once. Others keep one running
            sum, and take a tensor in blocks.
        linear: whether the update is the same linear function of the deltas in every tensor, a sum
            or a mean, so that a coefficient common to all may be applied after combining.
        averages: whether the update has the size of one delta, not of their sum.
        copies: tensors in float32 that decompositions hold at most, beside the deltas.
        rest: the combiner of tensors that are not matrices; empty if `function` takes any tensor.
        statistics: kind of a fine-tune's statistics over audio that deltas are weighed by, `gram`
            or `fisher`; empty for none. `function` then takes triples of a delta, its coefficient
            and a statistic, and `rest` is the combiner of tensors that there are none of.
        squares: matrices (k, k) in float64 that `function` holds at most of a tensor (d, k).
        turns: whether the update of Q t_i R^T is Q times that of t_i times R^T, for Q and R with
            orthonormal columns. Deltas of low rank are then combined in bases of these, `core_space`.
        sized: whether the update depends on min(d, k) too. `function` then takes that of the deltas
            as `short_side`.

    Example:
        >>> import torch
        >>> COMBINERS["sum"].combine([(torch.ones(2), 0.5), (torch.ones(2), 0.25)])
        tensor([0.7500, 0.7500])
    """

    function: str
    title: str
    formula: str
    paper: str
    alone: str = ""
    scale: float = 1.0
    parameters: tuple[Parameter, ...] = ()
    needs_all: bool = False
    linear: bool = True
    averages: bool = False
    copies: int = 0
    rest: str = ""
    statistics: str = ""
    squares: int = 0
    turns: bool = False
    sized: bool = False

    def combine(
        self,
        deltas: Iterable[tuple[Delta, float]],
        statistics: Sequence[Callable[[], Tensor]] = (),
        **parameters: Value,
    ) -> Tensor:
        """Return the update of one tensor.

        Args:
            deltas: pairs of a delta (float32 or float64, one shape for all) and its coefficient. A
                combiner that `turns` takes low-rank and sparse parts too, of any float dtype.
            statistics: read the statistic of each delta's fine-tune, in the deltas' order; empty
                for a tensor that there are none of.
            parameters: the function's, their defaults without.

        Raises:
            ValueError: there are no deltas.

        Example:
            >>> import torch
            >>> COMBINERS["iso_c"].combine([(torch.tensor([2.0, 4.0]), 1.0)] * 2)  # no matrix
            tensor([2., 4.])
        """
        if self.turns:
            held = list(deltas)
            update = self._in_core_space(held, parameters)
            if update is not None:
                return update
            deltas = _tensors(held)
        return self._combine(cast("Iterable[tuple[Tensor, float]]", deltas), statistics, parameters)

    def _in_core_space(
        self, held: Sequence[tuple[Delta, float]], parameters: Mapping[str, Value]
    ) -> Tensor | None:
        """Return the update of deltas of low rank, made of small matrices; None of others."""
        from lorsmerge_cli.core.core_space import core_space

        space = core_space([delta for delta, _ in held]) if held else None
        if space is None:
            return None
        cores = zip(space.cores, (scale for _, scale in held), strict=True)
        if not space.left.shape[1]:  # zeros, of which there is no core
            return space.outside(COMBINERS["sum"].combine(cores))
        sizes = {"short_side": min(held[0][0].shape)} if self.sized else {}
        function = resolve_name(f"{__name__}.{self.function}")
        return space.outside(function(cores, **parameters, **sizes))

    def _combine(
        self,
        deltas: Iterable[tuple[Tensor, float]],
        statistics: Sequence[Callable[[], Tensor]],
        parameters: Mapping[str, Value],
    ) -> Tensor:
        """Return the update of tensors."""
        function = resolve_name(f"{__name__}.{self.function}")
        if self.needs_all or self.statistics:
            deltas = ((_with_float64(delta), scale) for delta, scale in deltas)
        if self.statistics:
            if not statistics:
                return COMBINERS[self.rest].combine(deltas)
            pairs = zip(deltas, statistics, strict=True)
            weighed: Tensor = function(
                ((delta, scale, _with_float64(read())) for (delta, scale), read in pairs),
                **parameters,
            )
            return weighed
        if self.rest:
            held = list(deltas)
            if not held or held[0][0].dim() != 2 or not held[0][0].numel():
                return COMBINERS[self.rest].combine(held)
            # handed over one by one, so that the function can free them
            deltas = (held.pop(0) for _ in range(len(held)))
        update: Tensor = function(deltas, **parameters)
        return update


def _tensors(held: list[tuple[Delta, float]]) -> Iterator[tuple[Tensor, float]]:
    """Yield deltas as tensors, one by one, so that they can be freed."""
    from lorsmerge_cli.core.low_rank_sparse import dense

    while held:
        delta, scale = held.pop(0)
        yield dense(delta), scale
        del delta


def _with_float64(tensor: Tensor) -> Tensor:
    """Return a tensor on a device that has float64, which Metal lacks."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor


COMBINERS = {
    "sum": Combiner(
        "sum:sum_", "task arithmetic", "sum_i t_i", "Ilharco 2023, 2212.04089", alone="ta",
        scale=PAPER_SCALE,
    ),
    "mean": Combiner(
        "mean:mean", "weight averaging", "mean_i t_i", "Wortsman 2022, 2203.05482", alone="wa",
        averages=True,
    ),
    "ties": Combiner(
        "ties:ties", "TIES-Merging",
        "mean of the largest k of each t_i that have the sign of their sum",
        "Yadav 2023, 2306.01708", needs_all=True, linear=False, averages=True, copies=1,
        parameters=(Parameter("k", 0.2, "share of each tensor's elements kept", above=True),),
    ),
    "tsv_m": Combiner(
        "tsv_m:tsv_m", "TSV-Merging (task singular vectors)",
        "polar(U) diag(s) polar(V)^T of the leading 1/T of all t_i's triplets U, s, V",
        "Gargiulo 2025, 2412.00081", needs_all=True, linear=False, copies=6, rest="mean",
        turns=True, sized=True,
        parameters=(
            Parameter("beta", 1, "share of each delta's sum of s behind which s is raised"),
        ),
    ),
    "iso_c": Combiner(
        "iso_c:iso_c", "isotropic merging (Iso-C)",
        "mean(s) U V^T of sum_i t_i = U diag(s) V^T",
        "Marczak 2025, 2502.04959", needs_all=True, linear=False, copies=6, rest="mean", turns=True,
    ),
    "boost": Combiner(
        "boost:boost", "task arithmetic with subspace boosting",
        "U max(s, s_c) V^T of sum_i t_i = U diag(s) V^T, s_c where s sums up to beta",
        "Skorobogat 2025, 2506.16506", scale=PAPER_SCALE, needs_all=True, linear=False, copies=6, rest="sum",
        turns=True,
        parameters=(Parameter("beta", 0.01, "share of the sum of s behind which s is raised"),),
    ),
    "consensus": Combiner(
        "consensus:consensus", "Consensus Task Arithmetic",
        "sum_i t_i where |t_j| > threshold * |sum_i t_i - t_j| for two or more j",
        "Wang 2024, 2405.07813", scale=PAPER_SCALE, needs_all=True, linear=False, copies=6,
        parameters=(
            Parameter("threshold", 0.4, "size, beside all others, at which a delta counts", high=100),
        ),
    ),
    "stitch": Combiner(
        "stitch:stitch", "stitching (mean of the deltas that are not zero)",
        "sum_i t_i / the number of t_i that are not 0",
        "He 2024, 2408.13656", linear=False, averages=True, copies=1,
    ),
    "model_stock": Combiner(
        "model_stock:model_stock", "Model Stock",
        "T c / (1 + (T - 1) c) mean_i t_i, c their mean cosine",
        "Jang 2024, 2403.19522", needs_all=True, linear=False, averages=True,
    ),
    "regmean": Combiner(
        "regmean:regmean", "RegMean",
        "(sum_i t_i (G_i + r)) (sum_i G_i + r)^-1, G_i the Gram matrix of a layer's inputs",
        "Jin 2023, 2212.09849", linear=False, averages=True, copies=8, rest="mean", statistics="gram", squares=5,
        parameters=(
            Parameter("off_diagonal", 1.0, "factor of Gram matrices off their diagonal"),
            Parameter("ridge", 1e-3, "share of the mean diagonal element that is r", low=1e-6, high=1e3),
        ),
    ),
    "fisher": Combiner(
        "fisher:fisher", "Fisher merging", "sum_i F_i t_i / sum_i F_i, F_i the squared gradients",
        "Matena 2022, 2111.09832", linear=False, averages=True, copies=4, rest="mean", statistics="fisher",
    ),
}  # fmt: skip
