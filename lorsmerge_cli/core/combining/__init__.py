"""Combiners: many deltas of one tensor into one. A new one is a file here and a line in `COMBINERS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from lorsmerge_cli.core.combining.mean import mean
from lorsmerge_cli.core.combining.sum import sum_

# Pairs of (delta, coefficient) -> the update, float32 or float64, of the deltas' shape. Pairs
# are made as they are asked for: a combiner that keeps none holds one delta at a time.
Combiner = Callable[[Iterable[tuple[Tensor, float]]], Tensor]

COMBINERS: dict[str, Combiner] = {"sum": sum_, "mean": mean}
