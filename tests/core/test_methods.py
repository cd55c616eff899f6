"""The table of methods."""

from __future__ import annotations

import pytest

from lorsmerge_cli.core.combining import COMBINERS
from lorsmerge_cli.core.methods import METHODS
from lorsmerge_cli.core.pruning import PRUNERS


@pytest.mark.parametrize("name", METHODS)
def test_methods_name_what_there_is(name: str) -> None:
    method = METHODS[name]
    assert method.pruner is None or method.pruner in PRUNERS
    assert method.combiner in COMBINERS
    assert set(method.ratios) <= {"svp", "mp"}
    assert bool(method.ratios) == (method.pruner is not None)


def test_every_pruner_has_a_method() -> None:
    assert {method.pruner for method in METHODS.values()} >= set(PRUNERS)


@pytest.mark.parametrize(
    ("name", "pruner", "combiner", "scale"),
    [
        ("wa", None, "mean", 1.0),
        ("ta", None, "sum", 0.15),
        ("mp", "mp", "sum", 0.15),
        ("svp", "svp", "sum", 0.15),
        ("lors", "lors", "sum", 0.15),
    ],
)
def test_the_methods_of_the_paper(name: str, pruner, combiner: str, scale: float) -> None:
    method = METHODS[name]
    assert (method.pruner, method.combiner, method.scale) == (pruner, combiner, scale)
