"""The table of methods."""

from __future__ import annotations

import pytest

from lorsmerge_cli.core.combining import COMBINERS
from lorsmerge_cli.core.methods import METHODS, method_of, method_of_pruned
from lorsmerge_cli.core.pruning import PRUNERS


@pytest.mark.parametrize("name", METHODS)
def test_methods_name_what_there_is(name: str) -> None:
    method = METHODS[name]
    assert method.pruner is None or method.pruner in PRUNERS
    assert method.combiner in COMBINERS
    assert set(method.ratios) <= {"svp", "mp"}
    assert method.spec == name
    assert method.combined.rest == "" or method.combined.rest in COMBINERS


def test_every_pruner_and_every_combiner_has_a_method() -> None:
    assert {method.pruner for method in METHODS.values()} >= set(PRUNERS)
    assert {m.combiner for m in METHODS.values() if m.pruner is None} == set(COMBINERS)


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


@pytest.mark.parametrize(
    ("ratios", "name"), [((), "ta"), (("mp",), "mp"), (("svp",), "svp"), (("mp", "svp"), "lors")]
)
def test_ratios_alone_mean_a_method(ratios: tuple[str, ...], name: str) -> None:
    assert method_of(ratios) == name


@pytest.mark.parametrize(
    ("method", "ratios", "amounts_to"),
    [
        ("ta", (), "ta"),
        ("ta", ("svp",), "svp"),
        ("ta", ("svp", "mp"), "lors"),
        ("wa", ("svp",), "wa"),
        ("mp", ("svp",), "mp"),
        ("ties:k=0.3", ("svp",), "ties:k=0.3"),
    ],
)
def test_a_merge_of_pruned_deltas_is_named_after_their_pruning(
    method: str, ratios: tuple[str, ...], amounts_to: str
) -> None:
    assert method_of_pruned(method, ratios) == amounts_to
