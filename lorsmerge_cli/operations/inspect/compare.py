"""Compare deltas: every two of them, and what a merge of all would be like."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from lorsmerge_cli.core.combining.model_stock import share_of
from lorsmerge_cli.core.low_rank_sparse import dense
from lorsmerge_cli.core.methods import METHODS, method_of
from lorsmerge_cli.core.parallel import run_parallel
from lorsmerge_cli.core.statistics import agreement, energy
from lorsmerge_cli.deltas.file import DeltaFile
from lorsmerge_cli.operations.inspect.report import Pair, Together

NOTHING_SHARED = (0.0, 0, 0)  # product, elements nonzero in both, those of opposite signs
Agreement = tuple[float, int, int]


@dataclass(frozen=True)
class Products:
    """How the deltas of one tensor, or of all, agree.

    Attributes:
        squares: the energy of each delta.
        pairs: of every two, in the order of `combinations`: their inner product, the number of
            elements that are nonzero in both, and of those with opposite signs.
    """

    squares: tuple[float, ...]
    pairs: tuple[Agreement, ...]

    def __add__(self, other: Products) -> Products:
        return Products(
            tuple(a + b for a, b in zip(self.squares, other.squares, strict=True)),
            tuple(
                (a[0] + b[0], a[1] + b[1], a[2] + b[2])
                for a, b in zip(self.pairs, other.pairs, strict=True)
            ),
        )

    def between(self) -> list[list[float]]:
        """Return the inner products of all deltas, each with itself among them (T, T)."""
        found = [[0.0] * len(self.squares) for _ in self.squares]
        for number, square in enumerate(self.squares):
            found[number][number] = square
        for (i, j), (product, _, _) in zip(
            combinations(range(len(self.squares)), 2), self.pairs, strict=True
        ):
            found[i][j] = found[j][i] = product
        return found

    def cosines(self) -> list[float]:
        """Return the cosine of every two deltas; 0 for a delta of zeros."""
        norms = [math.sqrt(square) for square in self.squares]
        return [
            product / (norms[i] * norms[j]) if norms[i] and norms[j] else 0.0
            for (i, j), (product, _, _) in zip(
                combinations(range(len(norms)), 2), self.pairs, strict=True
            )
        ]

    def sum_energy(self) -> float:
        """Return the energy of the sum of the deltas."""
        return max(0.0, math.fsum(self.squares) + 2 * math.fsum(pair[0] for pair in self.pairs))

    def stock_share(self) -> float:
        """Return Model Stock's factor of the mean."""
        cosines = self.cosines()
        return share_of(math.fsum(cosines) / len(cosines), len(self.squares))


def compare(
    deltas: Sequence[DeltaFile], bad: set[str], threads: int, progress: Callable[[int], None]
) -> tuple[list[Pair], Together | None]:
    """Compare deltas, except in the `bad` tensors.

    Args:
        deltas: of the same tensors.
        bad: tensors that hold a NaN or an infinity.
        threads: tensors in flight, of two deltas at a time each.
        progress: called with the bytes just read.

    Returns:
        Every two of them, and all together; nothing for fewer than two.
    """
    if len(deltas) < 2:
        return [], None
    nothing = Products((0.0,) * len(deltas), (NOTHING_SHARED,) * math.comb(len(deltas), 2))
    names = deltas[0].specs
    sizes = [file.specs for file in deltas]

    def measure(name: str) -> Products:
        return nothing if name in bad else _products(deltas, name)

    measured: dict[str, Products] = {}
    for name, found in run_parallel(measure, names, threads):
        measured[name] = found
        progress(sum(specs[name].nbytes for specs in sizes))
    tensors = [measured[name] for name in names]  # in an order independent of threads
    whole = sum(tensors, nothing)
    pairs = [
        Pair(first.path, second.path, cosine, opposed / shared if shared else 0.0, shared)
        for (first, second), cosine, (_, shared, opposed) in zip(
            combinations(deltas, 2), whole.cosines(), whole.pairs, strict=True
        )
    ]
    return pairs, _together(whole, tensors)


def _products(deltas: Sequence[DeltaFile], name: str) -> Products:
    zero = [file.layouts[name].is_zero for file in deltas]  # not expanded, to save memory
    squares: list[float] = []
    pairs: list[Agreement] = []
    for number, file in enumerate(deltas):
        others = range(number + 1, len(deltas))
        if zero[number]:
            squares.append(0.0)
            pairs += [NOTHING_SHARED] * len(others)
            continue
        first = dense(file.read(name))  # at most two deltas are in memory
        squares.append(energy(first))
        pairs += [
            NOTHING_SHARED if zero[i] else agreement(first, dense(deltas[i].read(name)))
            for i in others
        ]
    return Products(tuple(squares), tuple(pairs))


def _together(whole: Products, tensors: Sequence[Products]) -> Together:
    """Return what a merge of all deltas would be like, from the inner products of each tensor."""
    norms = [math.sqrt(square) for square in whole.squares]
    products, count = whole.between(), len(norms)
    total = math.sqrt(whole.sum_energy())
    along = tuple(
        math.fsum(row) / (norm * total) if norm and total else 0.0
        for row, norm in zip(products, norms, strict=True)
    )
    stock = math.fsum((each.stock_share() / count) ** 2 * each.sum_energy() for each in tensors)
    of_equal = 0.0  # norm of the sum of the deltas, each divided by its norm
    if all(norms):
        of_equal = math.sqrt(max(0.0, count + 2 * math.fsum(whole.cosines())))
    step = METHODS[method_of(())].scale * total
    return Together(
        total,
        along,
        math.sqrt(stock) / total if total else None,
        tuple(step / of_equal / norm for norm in norms) if total and of_equal else None,
    )
