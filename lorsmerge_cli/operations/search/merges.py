"""Merge the same deltas many times, in memory."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from threading import Lock

import torch
from torch import Tensor

from lorsmerge_cli.core.combining.mean import mean
from lorsmerge_cli.core.low_rank_sparse import (
    Delta,
    LowRankSparse,
    accumulable,
    add_scaled,
    dense,
    is_low_rank,
)
from lorsmerge_cli.core.merging import Merged, Term, is_finite, merge_tensor
from lorsmerge_cli.core.methods import Method, around
from lorsmerge_cli.core.parallel import run_parallel
from lorsmerge_cli.core.pruning.budget import Budget, budget
from lorsmerge_cli.core.pruning.repeated import RepeatedPruning
from lorsmerge_cli.core.statistics import energy
from lorsmerge_cli.errors import NonFinite, non_finite
from lorsmerge_cli.operations.merge import MergeInputs, faulty_input
from lorsmerge_cli.recipe.coefficients import PARTS, TensorFactors, tensor_factors
from lorsmerge_cli.recipe.recipe import DeltaEntry, Recipe

CPU = torch.device("cpu")
LEFT, RIGHT = "left", "right"  # attributes of a delta of two parts
MATRIX = 2  # dimensions; of a stack, pruning leaves no parts


class RepeatedMerge:
    """Merges of one base and its deltas by many recipes.

    A matrix of a delta is decomposed once, at the largest rank, and its largest elements are
    selected once for each pair of ratios, as far as the cache goes. Where all deltas share their
    scale and are combined linearly, the cache keeps their sum or mean, so that another lambda costs
    one addition to the base.

    The weights are those of `merge` but for the order of the sum and the rank of the
    decomposition: a few roundings of float32 of the update. An element whose magnitude equals the
    threshold of MP to within such a rounding can fall on its other side.

    Attributes:
        cache: pruned deltas, with `size`, the most bytes of them.

    Args:
        inputs: base and deltas, checked; `inputs.pruned` names the tensors that are pruned.
        largest_svp: of any recipe to come.
        device: where matrices are pruned.
        threads: tensors in flight.
        cache: bytes of pruned deltas kept.
    """

    def __init__(
        self,
        inputs: MergeInputs,
        largest_svp: float | None,
        device: torch.device,
        threads: int,
        cache: int,
    ) -> None:
        self.inputs, self.device, self.threads = inputs, device, threads
        specs = inputs.base.specs
        self._prunings = {
            (name, number, centred): RepeatedPruning(
                budget(specs[name].shape, largest_svp, None).rank
            )
            for name in inputs.pruned
            for number in range(len(inputs.vectors))
            for centred in (False, True)
        }
        self.cache = _Cache(cache)

    def weights(self, recipe: Recipe) -> Iterator[tuple[str, Tensor]]:
        """Yield name and merged value of every tensor of the base, in the base's dtype.

        Args:
            recipe: with deltas in the order of the inputs.

        Raises:
            NonFinite: an input, or the merge, is not finite.
        """
        recipe, factors = self._prepared(recipe)
        yield from run_parallel(
            lambda name: self._weight(name, recipe, factors), self.inputs.base.specs, self.threads
        )

    def step_norm(self, recipe: Recipe) -> float:
        """Return the L2 norm of the step from the base, as `merge` reports it."""
        recipe, factors = self._prepared(recipe)
        squares = dict(
            run_parallel(
                lambda name: energy(self._merged(name, recipe, factors).update),
                self.inputs.base.float_specs, self.threads,
            )
        )  # fmt: skip
        return math.sqrt(math.fsum(squares.values()))

    def _prepared(self, recipe: Recipe) -> tuple[Recipe, TensorFactors]:
        recipe = recipe.resolved()
        self.inputs.allot(recipe.chosen_method, self.threads)  # which later calls look up
        names = list(self.inputs.base.float_specs)
        return recipe, tensor_factors(recipe.coef, names, recipe.own_rules)

    def _weight(self, name: str, recipe: Recipe, factors: TensorFactors) -> Tensor:
        if not self.inputs.base.specs[name].is_float:
            return self.inputs.base.read(name)
        merged = self._merged(name, recipe, factors).tensor
        if not is_finite(merged):
            raise self._non_finite(name)
        return merged

    def _merged(self, name: str, recipe: Recipe, factors: TensorFactors) -> Merged:
        base, method = self.inputs.base.read(name), recipe.chosen_method
        terms = self._terms(name, recipe.deltas, method, factors)
        return merge_tensor(base, terms, method, base.dtype, factors.agreement)

    def _terms(
        self, name: str, deltas: tuple[DeltaEntry, ...], method: Method, factors: TensorFactors
    ) -> Iterator[Term]:
        """Yield the pruned deltas; as one term if all share a scale and combine linearly."""
        keeps = self._keeps(name, deltas, method)
        scales = [
            (entry.scale or 0.0) * factors.of_delta(name, n) for n, entry in enumerate(deltas)
        ]
        of_parts = [factors.of_parts(name, n) for n in range(len(deltas))]
        combiner, alike = method.combined, len(set(scales)) == 1 and not any(of_parts)
        if combiner.linear and factors.agreement is None and alike:
            key = (name, method.spec, keeps)
            pairs = ((self._pruned(name, n, keep, method), 1.0) for n, keep in enumerate(keeps))
            yield Term(self.cache.get(key, lambda: method.combine(pairs)), scales[0])
            return
        takes_factors = method.takes_factors and factors.agreement is None
        for number, (keep, scale) in enumerate(zip(keeps, scales, strict=True)):
            parts = of_parts[number]
            if parts is not None and self._has_parts(name, number, keep):
                low_rank, sparse = self._parts(name, number, keep, method)
                lambda_ = deltas[number].scale or 0.0
                both = dense(sparse) * (lambda_ * parts[1])
                add_scaled(both, low_rank, lambda_ * parts[0])
                yield Term(both, 1.0)
                continue
            delta = self._factors_of(name, number) if keep is None and takes_factors else None
            delta = self._whole(name, number, keep, method) if delta is None else delta
            if not combiner.linear and not is_finite(delta):
                raise self._non_finite(name)
            yield Term(delta, scale)

    def pieces(self, name: str, recipe: Recipe, *, parts: bool) -> list[tuple[Delta, ...]]:
        """Return what of each delta can have a coefficient of its own; callers must not change it.

        Args:
            name: of a float tensor.
            recipe: resolved, with deltas in the order of the inputs.
            parts: take a pruned delta apart.

        Returns:
            Of each delta the whole, or its low-rank and its sparse part.
        """
        method = recipe.chosen_method
        keeps = self._keeps(name, recipe.deltas, method)
        return [
            self._parts(name, number, keep, method)
            if parts and self._has_parts(name, number, keep)
            else (self._whole(name, number, keep, method),)
            for number, keep in enumerate(keeps)
        ]

    def _keeps(
        self, name: str, deltas: tuple[DeltaEntry, ...], method: Method
    ) -> tuple[Budget | None, ...]:
        """Return what pruning keeps of each delta of a tensor; None where it is not pruned."""
        shape, prunes = self.inputs.base.specs[name].shape, name in self.inputs.pruned
        allotted = self.inputs.allot(method, self.threads)
        return tuple(
            allotted.get((number, name)) or budget(shape, entry.svp, entry.mp)
            if prunes and method.prunes(entry.svp or None, entry.mp or None)
            else None
            for number, entry in enumerate(deltas)
        )

    def _has_parts(self, name: str, number: int, keep: Budget | None) -> bool:
        if keep is not None:
            return not keep.whole and len(self.inputs.base.specs[name].shape) == MATRIX
        return self.inputs.vectors[number].is_pruned(name)

    def _whole(self, name: str, number: int, keep: Budget | None, method: Method) -> Tensor:
        own = method.pruner_spec if keep is not None else ""
        pruned = partial(self._pruned, name, number, keep, method)
        return self.cache.get((name, number, keep, own), pruned)

    def _parts(
        self, name: str, number: int, keep: Budget | None, method: Method
    ) -> tuple[LowRankSparse, Tensor]:
        """Return a delta's low-rank and its sparse part."""
        own, made = method.pruner_spec if keep is not None else "", list[Delta]()
        rows, columns = self.inputs.base.specs[name].shape
        nothing = {
            LEFT: torch.zeros(rows, 0), RIGHT: torch.zeros(0, columns),
            PARTS[1]: torch.zeros(()).expand(rows, columns),
        }  # fmt: skip

        def part(which: str) -> Tensor:
            if not made:
                made.append(self._pruned_delta(name, number, keep, method))
            found: Tensor | None = getattr(made[0], which)
            return nothing[which] if found is None else accumulable(found)

        left, right, sparse = (
            self.cache.get((name, number, keep, own, which), partial(part, which))
            for which in (LEFT, RIGHT, PARTS[1])
        )
        return LowRankSparse(left, right), sparse

    def _factors_of(self, name: str, number: int) -> Delta | None:
        """Return a delta that is nothing but low-rank factors, which are not worth caching."""
        delta = self.inputs.vectors[number].read(name)
        return delta if is_low_rank(delta) else None

    def _pruned(self, name: str, number: int, keep: Budget | None, method: Method) -> Tensor:
        return dense(self._pruned_delta(name, number, keep, method))

    def _pruned_delta(self, name: str, number: int, keep: Budget | None, method: Method) -> Delta:
        vector = self.inputs.vectors[number]
        stored = vector.read(name)
        if keep is None:
            return stored
        delta = dense(stored)
        if not is_finite(delta):
            raise non_finite(vector.path, name)
        delta, center = delta.to(self.device), None
        if method.centred:
            center = self.cache.get((name, "mean"), partial(self._mean, name)).to(self.device)
        if not method.ratios:  # nothing that a search varies
            return method.prune(delta, keep, center).to(CPU)
        pruning = self._prunings[name, number, method.centred]
        if center is None:
            return pruning.prune(delta, keep).to(CPU)
        return around(delta, center, lambda rest: pruning.prune(rest, keep)).cpu()

    def _mean(self, name: str) -> Tensor:
        found = mean((dense(vector.read(name)), 1.0) for vector in self.inputs.vectors)
        if not is_finite(found):
            raise self._non_finite(name)
        return found

    def _non_finite(self, name: str) -> NonFinite:
        fault = faulty_input(name, self.inputs.tensors(name))
        return fault or NonFinite(
            f"{name!r} overflows {self.inputs.base.specs[name].dtype} in a merge of the search.",
            "Lower the upper end of --scale.",
        )


class _Cache:
    """Tensors by key, at most `size` bytes of them; the least recently used one goes first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._held: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._used = 0
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Return the tensor of a key, made if it is not kept; callers must not change it."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        value = make()
        nbytes = value.numel() * value.element_size()
        if nbytes <= self.size:
            with self._lock:
                if key not in self._held:  # another thread may have made it meanwhile
                    self._held[key] = value
                    self._used += nbytes
                    self._shrink()
        return value

    def resize(self, size: int) -> None:
        """Keep at most `size` bytes from now on."""
        with self._lock:
            self.size = size
            self._shrink()

    def _shrink(self) -> None:
        while self._used > self.size:
            _, old = self._held.popitem(last=False)
            self._used -= old.numel() * old.element_size()
