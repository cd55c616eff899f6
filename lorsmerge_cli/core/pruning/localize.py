"""Localize: the largest elements of a whole delta, by one threshold for all matrices (He et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from lorsmerge_cli.core.low_rank_sparse import LowRankSparse
from lorsmerge_cli.core.parallel import run_parallel
from lorsmerge_cli.core.pruning.budget import Budget, budget
from lorsmerge_cli.core.pruning.mp import mp

BLOCK = 1 << 19  # elements: 4 MB of float64
# Shift and width of the digits that the bits of a float64 without its sign are read in, the leading
# one first. Those of a float32 end with the second digit (11 bits of exponent and 23 of 52).
DIGITS = ((46, 17), (29, 17), (12, 17), (0, 12))
FLOAT32_DIGITS = 2
READS = FLOAT32_DIGITS + 1  # of each tensor, told by `on_read`

Values = Callable[[str], Iterable[Tensor]]  # a tensor's name -> its values in each delta


def localize(matrix: Tensor, budget: Budget, s: float = 0.05) -> LowRankSparse:
    """Return the elements that are among the share s of largest magnitude of the whole delta.

    Args:
        matrix: W (d, k), or a stack (E, d, k); float32 or float64, finite. Overwritten.
        budget: how many elements of this tensor those are, as `allot` counts them.
        s: not used: it decides the budget.

    Example:
        >>> localize(torch.tensor([[1.0, -5.0], [4.0, 2.0]]), Budget(rank=0, kept=1)).sparse
        tensor([[ 0., -5.],
                [ 0.,  0.]])
    """
    return mp(matrix, budget)


def allot(
    names: Collection[str],
    values: Values,
    deltas: int,
    share: float,
    threads: int,
    on_read: Callable[[str], None] = lambda name: None,
) -> dict[tuple[int, str], Budget]:
    """Count how many of the largest elements of each delta lie in each of its tensors.

    Exactly `floor(share * N)` of a delta's N elements are kept, and at least one. Of equal ones it is
    the earliest: tensors in the order of their names, and in a tensor by row. The threshold is found
    digit by digit, in histograms of the bits of magnitudes, so that no delta is ever held: all of
    them are read three times (five times if there are float64 among them), a tensor at a time.

    Args:
        names: of the tensors that are pruned.
        values: reads a tensor of each delta (float32 or float64, finite); called in threads.
        deltas: their number.
        share: of each delta's elements in these tensors, above 0.
        threads: tensors in flight; the result does not depend on it.
        on_read: called with a tensor's name, `READS` times for each.

    Returns:
        The budget of each delta, by its index, in each tensor.

    Example:
        >>> held = {"a": torch.tensor([5.0, 1.0]), "b": torch.tensor([2.0, -7.0])}
        >>> found = allot(held, lambda name: [held[name]], deltas=1, share=0.5, threads=1)
        >>> [found[0, name].kept for name in held]
        [1, 1]
    """
    names = sorted(names)
    cuts = [_Cut() for _ in range(deltas)]
    for number, (shift, width) in enumerate(DIGITS):
        told = number < FLOAT32_DIGITS
        count = _Histograms(values, cuts, shift, width)
        for name, _ in run_parallel(count, names, threads):
            if told:
                on_read(name)
        for cut, histogram in zip(cuts, count.histograms, strict=True):
            if number == 0:
                total = int(histogram.sum())
                cut.left = min(total, max(1, budget((1, total), None, share).kept))
            cut.descend(histogram, width)
        if number + 1 == FLOAT32_DIGITS and not count.wide:
            break
    smallest = [cut.prefix << shift for cut in cuts]
    counts: dict[str, list[tuple[int, int, int]]] = {}
    for name, found in run_parallel(
        lambda name: list(_counts(values(name), smallest)), names, threads
    ):
        counts[name] = found
        on_read(name)
    allotted = {}
    for number, cut in enumerate(cuts):
        for name in names:
            size, above, equal = counts[name][number]
            kept = above + min(equal, cut.left)
            cut.left -= kept - above
            allotted[number, name] = Budget(rank=0, kept=kept, whole=kept == size)
    return allotted


@dataclass
class _Cut:
    """Where a delta is cut: the smallest magnitude that is kept of it, as far as it is known.

    Attributes:
        prefix: its leading bits.
        left: elements still to be taken from those whose magnitudes begin with these.
    """

    prefix: int = 0
    left: int = 0

    def descend(self, histogram: Tensor, width: int) -> None:
        """Find the next digit, of `width` bits, in the histogram of those with the prefix."""
        reached = histogram.flip(0).cumsum(0)  # by this digit and larger ones
        index = int(torch.searchsorted(reached, self.left))
        digit = len(histogram) - 1 - index
        self.left -= int(reached[index] - histogram[digit])
        self.prefix = self.prefix << width | digit


class _Histograms:
    """Counts the next digit of each delta's magnitudes that have its prefix, tensor by tensor."""

    def __init__(self, values: Values, cuts: list[_Cut], shift: int, width: int) -> None:
        self._values, self._cuts, self._shift, self._width = values, cuts, shift, width
        self._lock = Lock()
        self.histograms = [torch.zeros(1 << width, dtype=torch.int64) for _ in cuts]
        self.wide = False  # whether there was a float64

    def __call__(self, name: str) -> None:
        deltas = iter(self._values(name))
        for cut, histogram in zip(self._cuts, self.histograms, strict=True):
            delta = next(deltas)
            self.wide = self.wide or delta.dtype == torch.float64
            for bits in _magnitudes(delta):
                inside = bits[bits >> (self._shift + self._width) == cut.prefix] >> self._shift
                inside -= cut.prefix << self._width
                found = torch.bincount(inside, minlength=1 << self._width)
                with self._lock:
                    histogram += found
            del delta  # before the next one is made


def _counts(deltas: Iterable[Tensor], smallest: list[int]) -> Iterator[tuple[int, int, int]]:
    """Yield of each delta its elements, those above the smallest that is kept, and its equals."""
    read = iter(deltas)
    for least in smallest:
        delta, above, equal = next(read), 0, 0
        for bits in _magnitudes(delta):
            above += int(torch.count_nonzero(bits > least))
            equal += int(torch.count_nonzero(bits == least))
        yield delta.numel(), above, equal
        del delta  # before the next one is made


def _magnitudes(delta: Tensor) -> Iterator[Tensor]:
    """Yield the bits of magnitudes in float64, block by block: integers of the same order."""
    for block in delta.reshape(-1).split(BLOCK):
        yield block.cpu().abs().double().view(torch.int64)
