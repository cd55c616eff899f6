"""Parameters of pruners and combiners: what their text may say, and that functions agree with it."""

from __future__ import annotations

import inspect
from pkgutil import resolve_name

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorsmerge_cli.core import combining, pruning
from lorsmerge_cli.core.combining import COMBINERS
from lorsmerge_cli.core.methods import METHODS, compose, find_method
from lorsmerge_cli.core.parameters import Parameter, changed, parse_settings, shown
from lorsmerge_cli.core.pruning import PRUNERS
from lorsmerge_cli.errors import Faults, UsageFault

SHARE = Parameter("share", 0.2, "share that is kept", above=True)
SEED = Parameter("seed", 0, "seed of the drawing", high=2**32 - 1, whole=True)
WORD = Parameter("around", "zero", "what is left as it is", choices=("zero", "mean"))
TABLES = [(combining, COMBINERS), (pruning, PRUNERS)]
ENTRIES = [(folder, name, entry) for folder, table in TABLES for name, entry in table.items()]


@pytest.mark.parametrize(("folder", "name", "entry"), ENTRIES, ids=lambda value: str(value)[:20])
def test_the_table_says_what_the_function_takes(folder, name: str, entry) -> None:
    function = resolve_name(f"{folder.__name__}.{entry.function}")
    _, *defaults = inspect.signature(function).parameters.values()
    found = {p.name: p.default for p in defaults if p.default is not p.empty}
    wanted = {p.name: p.default for p in entry.parameters if p is not pruning.AROUND}
    if getattr(entry, "sized", False):  # no user's business
        assert found.pop("short_side") is None
    assert found == wanted
    for parameter in entry.parameters:
        assert parameter.parse(shown(parameter.default)) == parameter.default
        assert not parameter.help.endswith(".")


@pytest.mark.parametrize("name", METHODS)
def test_no_two_parameters_of_a_method_have_one_name(name: str) -> None:
    names = [parameter.name for parameter in METHODS[name].parameters]
    assert len(set(names)) == len(names)


@given(st.floats(0, 1, exclude_min=True))
def test_a_number_is_read_as_it_was_written(value: float) -> None:
    assert SHARE.parse(shown(value)) == value
    assert find_method(find_method(f"ties:k={value!r}").spec) == find_method(f"ties:k={value!r}")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("share=0.20", {"share": 0.2}),
        ("share=.5,seed=3", {"share": 0.5, "seed": 3}),
        ("seed=4294967295", {"seed": 4294967295}),
        ("seed=1e3", {"seed": 1000}),
        ("around=mean", {"around": "mean"}),
        (" share = 1 , around = zero ", {"share": 1.0, "around": "zero"}),
    ],
)
def test_settings(text: str, values) -> None:
    assert parse_settings(text, [SHARE, SEED, WORD], "Method x") == values


def test_what_is_the_default_is_not_written() -> None:
    values = {"seed": 3, "share": 0.2, "other": 1.0}
    assert changed(values, [SHARE, SEED]) == (("seed", 3),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is not a setting. Write share=0.2, say."),
        ("share", "'share' is not a setting"),
        ("shere=0.1", "has no parameter 'shere'. Did you mean 'share'?"),
        ("zzz=0.1", "Known: share, seed, around."),
        ("share=0.1,share=0.2", "'share' is given twice"),
        ("share=", "share= is not above 0 and at most 1. It is the share that is kept."),
        ("share=0", "share=0 is not above 0 and at most 1"),
        ("share=1.01", "not above 0 and at most 1"),
        ("share=nan", "not above 0 and at most 1"),
        ("share=inf", "not above 0 and at most 1"),
        ("share=a", "not above 0 and at most 1"),
        ("seed=1.5", "seed=1.5 is not a whole number from 0 to"),
        ("seed=-1", "not a whole number from 0 to"),
        ("seed=4294967296", "not a whole number"),
        ("seed=nan", "not a whole number"),
        ("seed=1e400", "not a whole number"),
        ("around=median", "around=median is not zero or mean"),
    ],
)
def test_settings_that_are_wrong(text: str, words: str) -> None:
    with pytest.raises(UsageFault) as caught:
        parse_settings(text, [SHARE, SEED, WORD], "Method x")
    assert words in str(caught.value)
    assert str(caught.value).startswith("Method x")


def test_all_that_is_wrong_is_told() -> None:
    with pytest.raises(Faults, match=r"(?s)2 problems.*share=7.*'sead'"):
        parse_settings("share=7,sead=1", [SHARE, SEED], "Method x")


def test_what_takes_no_parameters() -> None:
    with pytest.raises(UsageFault, match="Method wa takes no parameters, and 'k=1' is given"):
        find_method("wa:k=1")


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("ties", "ties"),
        ("ties:k=0.2", "ties"),
        ("ties:k=0.30", "ties:k=0.3"),
        ("lors+sum", "lors"),
        ("svp+mean", "svp+mean"),
        ("lors+iso_c", "lors+iso_c"),
        ("mp+ties:k=2e-1", "mp+ties"),
        (" mp + ties : k = 0.5 ", "mp+ties:k=0.5"),
        ("mp+ties:k=1e-05", "mp+ties:k=1e-05"),
    ],
)
def test_a_method_has_one_text(text: str, spec: str) -> None:
    assert find_method(text).spec == spec
    assert find_method(spec) == find_method(text)


@pytest.mark.parametrize("pruner", [None, *PRUNERS])
@pytest.mark.parametrize("combiner", COMBINERS)
def test_any_pruner_goes_with_any_combiner(pruner: str | None, combiner: str) -> None:
    method = find_method(compose(pruner, combiner)[0])
    assert (method.pruner, method.combiner) == (pruner, combiner)
    assert find_method(method.spec) == method
    assert method.title
    assert method.formula


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Unknown method ''"),
        ("tie", "Unknown method 'tie'. Did you mean 'ties'?"),
        ("sum", "Unknown method 'sum'"),
        ("lors+ties+sum", "more than two parts"),
        ("lor+ties", "Unknown pruner 'lor'. Did you mean 'lors'?"),
        ("lors+tie", "Unknown combiner 'tie'. Did you mean 'ties'?"),
        ("ties+lors", "Unknown pruner 'ties'"),
        ("lors+", "Unknown combiner ''"),
        ("+ties", "Unknown pruner ''"),
        ("ties:", "'' is not a setting"),
        ("ties:j=1", "Method ties has no parameter 'j'"),
        ("mp+ties:j=1", "Combiner ties has no parameter 'j'"),
        ("lors:svp=0.1", "svp is a ratio, and no parameter of a method. Give it as --svp"),
        ("lors:k=0.1", "Method lors has no parameter 'k'. Known: around."),
        ("mp+ties:svp=0.1", "Combiner ties has no parameter 'svp'"),
        ("TIES", "Unknown method 'TIES'"),
        ("ties:" + "k=0.1," * 10**5, "'ties:k=0.1,k=0.1,k=0.1,k=0.1,k=0.1,k=0.1'... of 600,005"),
    ],
)
def test_texts_of_no_method(text: str, words: str) -> None:
    with pytest.raises(UsageFault) as caught:
        find_method(text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("pruner", "combiner", "spec", "ratios"),
    [
        ("lors:svp=0.05,mp=0.2", None, "lors", {"svp": 0.05, "mp": 0.2}),
        ("lors", "sum", "lors", {}),
        ("svp:svp=.1", "ties:k=0.5", "svp+ties:k=0.5", {"svp": 0.1}),
        (None, "mean", "wa", {}),
        (None, "ties:k=0.5", "ties:k=0.5", {}),
    ],
)
def test_a_pruner_and_a_combiner(pruner, combiner, spec: str, ratios) -> None:
    assert compose(pruner, combiner) == (spec, ratios)


@pytest.mark.parametrize(
    ("pruner", "combiner", "words"),
    [
        ("lros", None, "Did you mean 'lors'?"),
        ("mp:svp=0.1", None, "Pruner mp has no parameter 'svp'"),
        ("lors:svp=2", None, "svp=2 is not from 0 to 1. It is the share of the singular triplets"),
        ("lors:svp=0.1,svp=0.2", None, "'svp' is given twice"),
        ("", None, "Unknown pruner ''"),
        (None, "", "Unknown combiner ''"),
        (None, "ta", "Unknown combiner 'ta'. Known: sum, mean"),
        ("lors", "wa", "Unknown combiner 'wa'"),
        (None, "ties:svp=0.1", "Combiner ties has no parameter 'svp'"),
    ],
)
def test_a_pruner_and_a_combiner_that_are_none(pruner, combiner, words: str) -> None:
    with pytest.raises(UsageFault) as caught:
        compose(pruner, combiner)
    assert words in str(caught.value)
