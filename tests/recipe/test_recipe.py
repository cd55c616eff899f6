"""Recipes: from the command line, TOML and lorsmerge.json; what is wrong in them is said."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorsmerge_cli.core.methods import METHODS, find_method, method_faults
from lorsmerge_cli.errors import Faults, LorsmergeError, UnreadableFile, UsageFault
from lorsmerge_cli.recipe.recipe import (
    DeltaEntry,
    Recipe,
    load_recipe,
    parse_delta,
    pruning_method,
    save,
    wanted_recipe,
)

PARSED = {
    "ca.delta": DeltaEntry("ca.delta"),
    "ca.delta:scale=0.2": DeltaEntry("ca.delta", scale=0.2),
    "ca.delta:svp=0.05,mp=0.4,scale=0.2": DeltaEntry("ca.delta", 0.05, 0.4, 0.2),
    "ca.delta:scale=-1": DeltaEntry("ca.delta", scale=-1.0),
    "ca.delta:scale=0": DeltaEntry("ca.delta", scale=0.0),
    "ca.delta:mp=1e-3": DeltaEntry("ca.delta", mp=1e-3),
    "a:b.delta": DeltaEntry("a:b.delta"),
    "a:b.delta:mp=0.4": DeltaEntry("a:b.delta", mp=0.4),
    "C:/models/ca.delta": DeltaEntry("C:/models/ca.delta"),
    "C:/models/ca.delta:mp=0.4": DeltaEntry("C:/models/ca.delta", mp=0.4),
    "C:\\models\\ca.delta:mp=0.4": DeltaEntry("C:\\models\\ca.delta", mp=0.4),
    "runs:lr=1e-5/ca.delta": DeltaEntry("runs:lr=1e-5/ca.delta"),
    "runs:lr=1e-5/ca.delta:svp=0.1": DeltaEntry("runs:lr=1e-5/ca.delta", svp=0.1),
    "org/model": DeltaEntry("org/model"),
    "a=b.delta": DeltaEntry("a=b.delta"),
    "12:30.delta": DeltaEntry("12:30.delta"),
}


@pytest.mark.parametrize(("text", "wanted"), PARSED.items(), ids=PARSED)
def test_a_delta_on_the_command_line(text: str, wanted: DeltaEntry) -> None:
    assert parse_delta(text) == wanted


def test_a_file_of_that_very_name_is_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ca.delta:mp=0.4").write_text("")
    assert parse_delta("ca.delta:mp=0.4") == DeltaEntry("ca.delta:mp=0.4")


MISPARSED = {
    "ca.delta:spv=0.1": "Did you mean 'svp'",
    "ca.delta:sclae=0.1": "Did you mean 'scale'",
    "ca.delta:rank=3": "rank",
    "ca.delta:path=3": "path",
    "ca.delta:svp=0.1,svp=0.2": "twice",
    "ca.delta:svp=": "not a number",
    "ca.delta:svp=a few": "not a number",
    "ca.delta:svp=0,1": "'1'",
    "ca.delta:svp=0.1,": "not a setting",
}


@pytest.mark.parametrize(("text", "words"), MISPARSED.items(), ids=MISPARSED)
def test_a_wrong_setting_of_a_delta(text: str, words: str) -> None:
    with pytest.raises(UsageFault) as caught:
        parse_delta(text)
    assert text in str(caught.value)
    assert words in str(caught.value)


TOML = """
base = "base"
scale = 0.2
svp = 0.03
mp = 0.4
include = ["*embed*"]
exclude = ["*fc1*"]
dtype = "float32"
coef = ["decoder=0.5", "lines:beta=0.4"]

[[deltas]]
path = "ca.delta"

[[deltas]]
path = "de.delta"
svp = 0
mp = 0.6
scale = -1
"""
RECIPE = Recipe(
    base="base",
    deltas=(DeltaEntry("ca.delta"), DeltaEntry("de.delta", 0.0, 0.6, -1.0)),
    svp=0.03,
    mp=0.4,
    scale=0.2,
    include=("*embed*",),
    exclude=("*fc1*",),
    dtype="float32",
    coef=("decoder=0.5", "lines:beta=0.4"),
)


def test_toml(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(TOML)
    assert load_recipe(tmp_path / "r.toml") == RECIPE


def document(recipe: Recipe) -> dict[str, object]:
    records = [{"fingerprint": f"d{i}"} for i in range(len(recipe.deltas))]
    return {"recipe": recipe.to_dict(), "base": {"fingerprint": "b"}, "deltas": records}


def test_lorsmerge_json(tmp_path: Path) -> None:
    (tmp_path / "lorsmerge.json").write_text(json.dumps(document(RECIPE)))
    read = load_recipe(tmp_path / "lorsmerge.json")
    assert read.expected == ("b", "d0", "d1")
    assert read.to_dict() == RECIPE.to_dict()


MINIMAL = 'base = "b"\ndeltas = [{path = "a"}]\n'
WRONG_KEYS = {
    "unknown key": (MINIMAL + "sclae = 1", ("`sclae`", "Did you mean 'scale'")),
    "unknown key, nothing near": (MINIMAL + "zzz = 1", ("`zzz`", "Known:", "exclude")),
    "unknown key of a delta": (
        'base = "b"\n[[deltas]]\npath = "a"\nspv = 0.1',
        ("delta 1", "'svp'"),
    ),
    "a key of the recipe in a delta": (
        'base = "b"\n[[deltas]]\npath = "a"\nmethod = "mp"',
        ("delta 1", "`method`"),
    ),
    "path of a recipe": (MINIMAL + 'path = "x"', ("`path`",)),
    "no base": ('deltas = [{path = "a"}]', ("`base` is missing",)),
    "no deltas": ('base = "b"', ("`deltas` is missing",)),
    "no path": ('base = "b"\n[[deltas]]\nsvp = 0.1', ("delta 1", "`path` is missing")),
    "base is a number": ('base = 3\ndeltas = [{path = "a"}]', ("`base` = 3", "str")),
    "deltas are a word": ('base = "b"\ndeltas = "a"', ("`deltas`", "list")),
    "deltas are words": ('base = "b"\ndeltas = ["a"]', ("delta 1", "table")),
    "a path is a number": ('base = "b"\ndeltas = [{path = 3}]', ("`path` = 3",)),
    "scale is a word": (MINIMAL + 'scale = "large"', ("`scale`", "float or int")),
    "scale is a flag": (MINIMAL + "scale = true", ("`scale`",)),
    "svp is a list": (MINIMAL + "svp = [0.1]", ("`svp`",)),
    "svp of a delta is a word": (
        'base = "b"\n[[deltas]]\npath = "a"\nsvp = "x"',
        ("delta 1", "`svp`"),
    ),
    "include is a word": (MINIMAL + 'include = "*fc1*"', ("`include`", "list")),
    "include is of numbers": (MINIMAL + "include = [1]", ("`include`",)),
    "exclude is of lists": (MINIMAL + 'exclude = [["*fc1*"]]', ("`exclude`",)),
    "coef is a word": (MINIMAL + 'coef = "decoder=0.5"', ("`coef`", "list")),
    "coef is of numbers": (MINIMAL + "coef = [0.5]", ("`coef`", "list of rules", "decoder=0.5")),
    "method is a number": (MINIMAL + "method = 3", ("`method`",)),
    "dtype is a flag": (MINIMAL + "dtype = false", ("`dtype`",)),
}


@pytest.mark.parametrize(("text", "words"), WRONG_KEYS.values(), ids=WRONG_KEYS)
def test_wrong_keys_and_types(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(UsageFault) as caught:
        load_recipe(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_all_wrong_keys_at_once(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(
        'sclae = 1\nsvp = "x"\n[[deltas]]\nmp = "y"\n[[deltas]]\nz = 1'
    )
    with pytest.raises(Faults) as caught:
        load_recipe(tmp_path / "r.toml")
    assert len(caught.value.errors) == 7
    assert caught.value.exit_code == 2


UNREADABLE = {
    "absent.toml": None,
    "broken.toml": "base = ",
    "empty.json": "",
    "broken.json": "{",
    "list.json": "[]",
    "other.json": '{"model_type": "whisper"}',
    "recipe is a list.json": '{"recipe": [], "base": {"fingerprint": "a"}, "deltas": []}',
    "no fingerprint.json": '{"recipe": {}, "base": {}, "deltas": []}',
    "number.json": "3",
}


@pytest.mark.parametrize(("name", "text"), UNREADABLE.items(), ids=UNREADABLE)
def test_a_file_that_is_no_recipe(tmp_path: Path, name: str, text: str | None) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(UnreadableFile) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)


def test_bytes_and_a_folder_are_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "x.toml", tmp_path):
        with pytest.raises(UnreadableFile):
            load_recipe(path)


def recipe(*deltas: DeltaEntry, **fields: object) -> Recipe:
    return Recipe("base", deltas or (DeltaEntry("a"),), **fields)


VALUES = {
    "svp above one": (recipe(svp=1.01), "svp = 1.01"),
    "svp below zero": (recipe(svp=-0.01), "svp = -0.01"),
    "mp not a number": (recipe(mp=math.nan), "mp = nan"),
    "mp infinite": (recipe(mp=math.inf), "mp = inf"),
    "scale not a number": (recipe(scale=math.nan), "scale = nan"),
    "scale infinite": (recipe(scale=-math.inf), "scale = -inf"),
    "svp of a delta": (recipe(DeltaEntry("x.delta", svp=3.0)), "x.delta: svp = 3.0"),
    "scale of a delta": (recipe(DeltaEntry("x.delta", scale=math.nan)), "x.delta: scale = nan"),
    "per cent": (recipe(mp=40.0), "0.03 keeps 3%"),
    "no deltas": (Recipe("base", ()), "no deltas"),
    "a method misspelt": (recipe(method="lros"), "Did you mean 'lors'"),
    "an unknown method": (recipe(method="slerp"), "Unknown method 'slerp'"),
    "a parameter misspelt": (recipe(method="ties:kk=1"), "no parameter 'kk'. Did you mean 'k'"),
    "a parameter out of range": (recipe(method="ties:k=0"), "k=0 is not above 0 and at most 1"),
    "a pair with a ratio too many": (
        recipe(method="svp+ties", svp=0.1, mp=0.1),
        "svp+ties takes no --mp",
    ),
    "a pair without its ratios": (
        recipe(method="lors+iso_c"),
        "Method lors+iso_c needs svp and mp",
    ),
    "a method in capitals": (recipe(method="LoRS"), "Unknown method 'LoRS'"),
    "wa with a ratio": (recipe(method="wa", svp=0.1), "wa takes no --svp"),
    "ta with a ratio": (recipe(method="ta", mp=0.1), "ta takes no --mp"),
    "mp with svp": (recipe(method="mp", svp=0.1, mp=0.1), "mp takes no --svp"),
    "svp with mp of a delta": (
        recipe(DeltaEntry("x", mp=0.1), method="svp", svp=0.1),
        "x: method svp takes no --mp",
    ),
    "lors without ratios": (recipe(method="lors"), "needs svp and mp"),
    "lors without mp": (recipe(method="lors", svp=0.1), "needs mp"),
    "svp without svp": (recipe(method="svp"), "needs svp"),
    "nothing kept": (recipe(svp=0.0, mp=0.0), "nothing of the delta"),
    "nothing kept of one": (recipe(DeltaEntry("x", mp=0.0), mp=0.3), "x: mp 0"),
}


@pytest.mark.parametrize(("wrong", "words"), VALUES.values(), ids=VALUES)
def test_wrong_values(wrong: Recipe, words: str) -> None:
    with pytest.raises(UsageFault) as caught:
        wrong.resolved()
    assert words in str(caught.value)


def test_all_wrong_values_at_once() -> None:
    with pytest.raises(Faults) as caught:
        recipe(DeltaEntry("a", svp=2.0), DeltaEntry("b", scale=math.nan), mp=-1.0).resolved()
    assert len(caught.value.errors) == 3


RESOLVED = [
    # recipe, method, (svp, mp, scale) of each delta
    (recipe(), "ta", [(None, None, 0.15)]),
    (recipe(svp=0.1), "svp", [(0.1, None, 0.15)]),
    (recipe(mp=0.1), "mp", [(None, 0.1, 0.15)]),
    (recipe(svp=0.1, mp=0.2), "lors", [(0.1, 0.2, 0.15)]),
    (recipe(method="wa"), "wa", [(None, None, 1.0)]),
    (recipe(method="wa", scale=0.5), "wa", [(None, None, 0.5)]),
    (recipe(method="ties:k=0.30"), "ties:k=0.3", [(None, None, 1.0)]),
    (recipe(method="lors+sum", svp=0.1, mp=0.2), "lors", [(0.1, 0.2, 0.15)]),
    (recipe(method="svp+ties:k=0.2", svp=0.1), "svp+ties", [(0.1, None, 1.0)]),
    (recipe(scale=0.0), "ta", [(None, None, 0.0)]),
    (
        recipe(DeltaEntry("a"), DeltaEntry("b", svp=0.0, scale=0.0), svp=0.1, mp=0.2, scale=3.0),
        "lors",
        [(0.1, 0.2, 3.0), (0.0, 0.2, 0.0)],
    ),
    (recipe(DeltaEntry("a", svp=0.1), DeltaEntry("b", mp=0.2)), "lors",
     [(0.1, None, 0.15), (None, 0.2, 0.15)]),
    (recipe(DeltaEntry("a", mp=0.1), DeltaEntry("b")), "mp",
     [(None, 0.1, 0.15), (None, None, 0.15)]),
]  # fmt: skip


@pytest.mark.parametrize(("given_recipe", "method", "wanted"), RESOLVED)
def test_everything_is_written_out(given_recipe: Recipe, method: str, wanted: object) -> None:
    resolved = given_recipe.resolved()
    assert resolved.method == method
    assert [(delta.svp, delta.mp, delta.scale) for delta in resolved.deltas] == wanted
    assert (resolved.svp, resolved.mp, resolved.scale) == (None, None, None)
    assert resolved.resolved() == resolved


@pytest.mark.parametrize("method", METHODS)
def test_a_resolved_recipe_depends_on_no_default(method: str) -> None:
    ratios = dict.fromkeys(METHODS[method].ratios, 0.1)
    stats = ("a.stats", "b.stats") if METHODS[method].statistics else ()
    entries = DeltaEntry("a"), DeltaEntry("b")
    resolved = recipe(*entries, method=method, stats=stats, **ratios).resolved()
    for delta in resolved.deltas:
        assert delta.scale == METHODS[method].scale
        assert {key for key in ("svp", "mp") if getattr(delta, key) is not None} == ratios.keys()


NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12) | (
    st.sampled_from(['a "quoted" name', "back\\slash", "tab\t", "ca.delta:svp=0.1", "größe 😀"])
)
NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, 1.0])
ENTRIES = st.builds(DeltaEntry, path=NAMES, svp=NUMBERS, mp=NUMBERS, scale=NUMBERS)
RECIPES = st.builds(
    Recipe,
    base=NAMES,
    deltas=st.lists(ENTRIES, min_size=1, max_size=3).map(tuple),
    method=st.none() | st.sampled_from(sorted(METHODS)),
    svp=NUMBERS,
    mp=NUMBERS,
    scale=NUMBERS,
    include=st.lists(NAMES, max_size=2).map(tuple),
    exclude=st.lists(NAMES, max_size=2).map(tuple),
    dtype=st.none() | st.just("bfloat16"),
    coef=st.lists(NAMES, max_size=2).map(tuple),
    stats=st.lists(NAMES, max_size=2).map(tuple),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(wanted=RECIPES)
def test_toml_round_trip(tmp_path_factory: pytest.TempPathFactory, wanted: Recipe) -> None:
    path = tmp_path_factory.getbasetemp() / "round trip.toml"
    path.write_text(wanted.to_toml(), encoding="utf-8")
    read = load_recipe(path)  # whose method has its parameters written out
    assert replace(read, method=wanted.method) == wanted
    assert method_of_text(read.method) == method_of_text(wanted.method)


def method_of_text(spec: str | None) -> object:
    return spec if method_faults(spec) or spec is None else find_method(spec)


@pytest.mark.parametrize(
    ("method", "written"),
    [
        ("ties", "ties:k=0.2"),
        ("ties:k=0.3", "ties:k=0.3"),
        ("lors", "lors"),
        ("dare+tsv_m", "dare:keep=0.5,seed=0+tsv_m:beta=1"),
        ("lors:around=mean", "lors:around=mean"),
        ("ta", "ta"),
        ("nonsense", "nonsense"),
    ],
)
def test_a_written_recipe_has_its_methods_numbers(method: str, written: str) -> None:
    """Another default later does not change it, and the method is the same."""
    text = Recipe("base", (DeltaEntry("ca.delta"),), method).to_toml()
    assert f'method = "{written}"' in text
    assert method_of_text(written) == method_of_text(method)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(wanted=RECIPES)
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, wanted: Recipe) -> None:
    path = tmp_path_factory.getbasetemp() / "round trip.json"
    path.write_text(json.dumps(document(wanted)))
    read = load_recipe(path)
    assert read.to_dict() == wanted.to_dict()


def test_an_empty_list_of_deltas_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('base = "b"\ndeltas = []')
    with pytest.raises(UsageFault, match="no deltas"):
        load_recipe(tmp_path / "r.toml").resolved()


def test_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    save(RECIPE, path, force=False)
    assert load_recipe(path) == RECIPE
    assert load_recipe(path).source == path
    save(RECIPE.resolved(), path, force=True)
    assert load_recipe(path) == RECIPE.resolved()
    assert [file.name for file in tmp_path.iterdir()] == ["r.toml"]


# the recipe in a model card

MARK = "```toml lorsmerge-recipe\n"
CARD = f"---\nlicense: mit\n---\n\n# A model\n\n```sh\nls\n```\n\n{MARK}{MINIMAL}```\n"
PLAIN_CARD = CARD.replace(" lorsmerge-recipe", "")
OTHER = 'base = "evil"\ndeltas = [{path = "evil"}]\n'
CARDS = {
    "marked": CARD,
    "old, without a mark": PLAIN_CARD,
    "with other TOML before it": f"```toml\n{OTHER}```\n\n{CARD}",
    "with other TOML after it": f"{CARD}\n```toml\n{OTHER}```\n",
    "inside a longer fence there is another": f"`````sh\n{MARK}{OTHER}```\n`````\n{CARD}",
    "inside tildes there is another": f"~~~\n{MARK}{OTHER}```\n~~~\n{CARD}",
    "quoted there is another": f"> {MARK}> {OTHER}> ```\n\n{CARD}",
    "indented there is another": f"    {MARK}    {OTHER}\n\n{CARD}",
    "in the YAML there is another": f"---\nx: |\n\n{MARK}{OTHER}\n---\n{CARD[20:]}",
    "the mark in inline code": f"`{MARK.strip('`').strip()}` marks it.\n{CARD}",
    "line ends of Windows": CARD.replace("\n", "\r\n"),
    "a longer fence": CARD.replace(MARK, "`" + MARK).replace(f"{MINIMAL}```", f"{MINIMAL}````"),
    "to the end of the card": CARD.removesuffix("```\n"),
    "another info string": CARD + f"```toml lorsmerge-recipes\n{OTHER}```\n",
}


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_the_recipe_in_a_card(tmp_path: Path, card: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(card, newline="")
    assert load_recipe(path).to_dict() == {"base": "b", "deltas": [{"path": "a"}]}


NO_CARDS = {
    "no block": ("# A model\n", "holds no block of TOML"),
    "two marked": (CARD + f"\n{MARK}{OTHER}```\n", "2 blocks marked `toml lorsmerge-recipe`"),
    "a marked one in a comment": (f"<!--\n{MARK}{OTHER}```\n-->\n{CARD}", "2 blocks marked"),
    "two without a mark": (PLAIN_CARD + f"\n```toml\n{OTHER}```\n", "2 blocks of TOML"),
    "an empty one": (f"{MARK}```\n", "`base` is missing"),
    "no TOML": (f"{MARK}base = \n```\n", "is not a recipe"),
    "deep TOML": (f"{MARK}x = {'[' * 100_000}\n```\n", "nested too deeply"),
    "a path to write to": (f'{MARK}output = "/etc/x"\n{MINIMAL}```\n', "unknown key `output`"),
    "a file to write": (f'{MARK}save_recipe = "x"\n{MINIMAL}```\n', "unknown key `save_recipe`"),
}


@pytest.mark.parametrize(("card", "said"), NO_CARDS.values(), ids=NO_CARDS)
def test_a_card_whose_recipe_cannot_be_told(tmp_path: Path, card: str, said: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(card)
    with pytest.raises(LorsmergeError, match=re.escape(said)):
        load_recipe(path)


HUGE = {
    "an integer beyond any float": "1" + "0" * 400,
    "an integer that Python does not write": "0x1" + "0" * 5000,
    "a boolean": "true",
    "a date": "2024-01-01",
}


@pytest.mark.parametrize("value", HUGE.values(), ids=HUGE)
@pytest.mark.parametrize("key", ["svp", "mp", "scale", "base", "method", "include", "dtype"])
def test_a_value_of_another_type_is_told(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "r.toml"
    other = MINIMAL.replace('base = "b"\n', "") if key == "base" else MINIMAL
    path.write_text(f"{key} = {value}\n{other}")
    said = f"`{key}` = |{key} is an integer of more than 64 bits"
    with pytest.raises((UsageFault, UnreadableFile), match=said) as caught:
        load_recipe(path).resolved()
    assert len(str(caught.value)) < 400 + len(str(path))


WRONG_RECORDS = {
    "recipe": [None, 3, "x", [], {"deltas": [3]}, {"base": 3, "deltas": []}],
    "base": [None, 3, "x", [], {}, {"fingerprint": 3}, {"fingerprint": None}],
    "deltas": [None, 3, "x", {}, [3], [None], [{}], [{"fingerprint": []}, {"fingerprint": "x"}]],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG_RECORDS.items() for value in values]
)
def test_a_record_of_other_types_is_told(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "lorsmerge.json"
    path.write_text(json.dumps(document(RECIPE) | {key: value}))
    with pytest.raises((UnreadableFile, UsageFault, Faults)) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"recipe": ' * 100_000])
@pytest.mark.parametrize("suffix", [".json", ".toml", ".md"])
def test_a_deep_document_is_told(tmp_path: Path, text: str, suffix: str) -> None:
    path = tmp_path / f"r{suffix}"
    path.write_text(text)
    with pytest.raises((UnreadableFile, UsageFault)):
        load_recipe(path)


@pytest.mark.parametrize("suffix", [".json", ".toml", ".md"])
def test_a_fifo_is_no_recipe(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"r{suffix}")
    with pytest.raises(UnreadableFile, match="FIFO"):
        load_recipe(tmp_path / f"r{suffix}")


COMPOSED = [  # what is given, and the recipe's method, svp and mp
    ({"prune": "lors:svp=0.1,mp=0.2", "combine": "iso_c"}, ("lors+iso_c", 0.1, 0.2)),
    ({"prune": "lors", "combine": "iso_c", "svp": 0.1, "mp": 0.2}, ("lors+iso_c", 0.1, 0.2)),
    ({"prune": "lors:svp=0.1", "mp": 0.2}, ("lors", 0.1, 0.2)),
    ({"combine": "iso_c", "svp": 0.1, "mp": 0.2}, ("lors+iso_c", 0.1, 0.2)),
    ({"combine": "ties:k=0.5", "mp": 0.2}, ("mp+ties:k=0.5", None, 0.2)),
    ({"combine": "mean"}, ("wa", None, None)),
]


@pytest.mark.parametrize(("given", "wanted"), COMPOSED, ids=str)
def test_a_pruner_and_a_combiner_make_a_method(given: dict, wanted: tuple) -> None:
    found = wanted_recipe("b", ["a.delta"], **given)
    assert (found.method, found.svp, found.mp) == wanted


def test_ratios_of_a_delta_say_how_to_prune() -> None:
    found = wanted_recipe("b", ["a.delta:svp=0.1"], combine="ties").resolved()
    assert (found.method, found.deltas[0].svp) == ("svp+ties", 0.1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "ties", "combine": "ties"}, "--method ties is a pruner and a combiner already"),
        ({"method": "lors", "prune": "lors"}, "Give --method, or --prune and --combine"),
        ({"prune": "lors:svp=0.1,mp=0.1", "svp": 0.2}, "svp is given twice"),
        ({"prune": "mp:mp=0.1", "svp": 0.2}, "mp takes no --svp"),
        ({"prune": "lors"}, "Method lors needs svp and mp"),
        ({"prune": "lors:svp=0.1,mp=0.1", "combine": "tie"}, "Unknown combiner 'tie'"),
    ],
    ids=str,
)
def test_a_pruner_and_a_combiner_that_contradict(given: dict, words: str) -> None:
    with pytest.raises(UsageFault, match=re.escape(words)):
        wanted_recipe("b", ["a.delta"], **given).resolved()


def test_a_recipe_takes_no_pruner_beside_it(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(MINIMAL)
    for extra in ({"prune": "lors"}, {"combine": "ties"}):
        with pytest.raises(UsageFault, match="already holds"):
            wanted_recipe(None, [], file=tmp_path / "r.toml", **extra)


def test_a_method_with_parameters_is_saved_as_it_is(tmp_path: Path) -> None:
    resolved = recipe(DeltaEntry("a"), method="mp+ties:k=0.125", mp=0.1).resolved()
    save(resolved, tmp_path / "r.toml", force=False)
    assert load_recipe(tmp_path / "r.toml") == resolved
    assert 'method = "mp+ties:k=0.125"' in (tmp_path / "r.toml").read_text()


@pytest.mark.parametrize(
    ("method", "ratios", "words"),
    [
        ("lors+ties", (0.1, 0.1), "cannot be stored as --method lors+ties prunes it"),
        ("ta", (None, None), "Nothing says how much to keep"),
        (None, (None, None), "Nothing says how much to keep"),
        ("ties:k=0.1", (None, None), "Nothing says how much to keep"),
    ],
)
def test_what_prunes_no_delta_by_itself(method, ratios, words: str) -> None:
    with pytest.raises(UsageFault, match=re.escape(words)):
        pruning_method(Path("a.delta"), *ratios, method)
