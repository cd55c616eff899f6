"""What a search may choose, as it is written, and the recipes that come of it."""

from __future__ import annotations

import itertools

import pytest

from lorsmerge_cli.core.methods import METHODS
from lorsmerge_cli.errors import Faults, LorsmergeError, UsageFault
from lorsmerge_cli.recipe.space import Space, Values, default_scales, make_space, parse_values

DELTAS = ("ca.delta", "de.delta")
PAPER = {"svp": "0.01,0.02,0.03,0.05", "mp": "0.1,0.2,0.4,0.6", "scale": "0.05:0.5"}


def space(texts: dict[str, str], per_delta: str = "", deltas: tuple[str, ...] = DELTAS) -> Space:
    return make_space("base", deltas, texts, per_delta)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("svp", "0.01,0.05", Values((0.01, 0.05))),
        ("svp", " 0.01 , 0.05,0.01", Values((0.01, 0.05))),
        ("mp", "none,0.4", Values((None, 0.4))),
        ("mp", "1", Values((1.0,))),
        ("scale", "0.05:0.5", Values(low=0.05, high=0.5)),
        ("scale", "-0.5:0", Values(low=-0.5, high=0.0)),
        ("scale", "0.05:0.5:0.1", Values(low=0.05, high=0.45, step=0.1)),
        ("scale", "0:0.3:0.1", Values(low=0.0, high=0.3, step=0.1)),
        ("scale", "0", Values((0.0,))),
    ],
)
def test_values_as_they_are_written(kind: str, text: str, expected: Values) -> None:
    assert parse_values(kind, text) == expected


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("svp", "", "'' is not a finite number"),
        ("svp", "nan", "'nan' is not a finite number"),
        ("scale", "nan:0.5", "'nan' is not a finite number"),
        ("scale", "0.1:inf", "'inf' is not a finite number"),
        ("scale", "0.5:0.05", "is an empty range"),
        ("scale", "0.5:0.5", "is an empty range"),
        ("scale", "0.1:0.5:0", "is an empty range"),
        ("scale", "0.1:0.5:0.1:2", "is an empty range"),
        ("scale", "0.1:", "'' is not a finite number"),
        ("scale", "none,0.1", "'none' is not a finite number"),
        ("svp", "0,0.1", "0 is not above 0"),
        ("mp", "0.4,1.5", "1.5 is not above 0 and at most 1"),
        ("mp", "0:0.4", "0 is not above 0"),
        ("mp", "0.1,,0.4", "'' is not a finite number"),
    ],
)
def test_values_that_are_none(kind: str, text: str, said: str) -> None:
    with pytest.raises(UsageFault, match=f"--{kind} '{text}'.*{said}"):
        parse_values(kind, text)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(LorsmergeError) as caught:
        space({"svp": "nan", "mp": "7", "scale": "1:0"}, per_delta="scala,mp")
    text = str(caught.value)
    for part in ("--svp 'nan'", "--mp '7'", "--scale '1:0'", "--per-delta scala: no such"):
        assert part in text
    with pytest.raises(UsageFault, match="--per-delta svp: it is not searched"):
        space({"scale": "0.1,0.2"}, per_delta="svp")
    with pytest.raises(UsageFault, match="no deltas"):
        space({"scale": "0.1,0.2"}, deltas=())
    with pytest.raises(UsageFault, match="Nothing is pruned"):
        make_space("base", DELTAS, {"mp": "none", "scale": "0.1"}, "", exclude=("*fc1*",))


def test_the_grid_is_every_point_once_and_the_known_settings_first() -> None:
    found = space(PAPER | {"scale": "0.1:0.3:0.05"}).grid()
    points = [(p["svp"], p["mp"], p["scale"]) for p in found]
    ratios = (0.01, 0.02, 0.03, 0.05), (0.1, 0.2, 0.4, 0.6)
    assert set(points) == set(itertools.product(*ratios, (0.1, 0.15, 0.2, 0.25, 0.3)))
    assert len(points) == 4 * 4 * 5
    assert points[:3] == [(0.03, 0.4, 0.15), (0.03, 0.4, 0.3), (0.01, 0.2, 0.2)]
    with pytest.raises(UsageFault, match="needs a step for --scale"):
        space(PAPER).grid()
    many = ",".join(f"0.{n:03}" for n in range(1, 999))
    with pytest.raises(UsageFault, match="over 10,000 points"):
        space({"svp": many, "mp": many}).grid()


def test_the_known_settings_are_tried_first() -> None:
    five = tuple(f"{n}.delta" for n in range(5))
    first = space(PAPER, deltas=five).first_points()
    assert first == {
        "paper": {"svp": 0.03, "mp": 0.4, "scale": 0.15},
        "1/T": {"svp": 0.03, "mp": 0.4, "scale": 0.2},
        "authors' script": {"svp": 0.01, "mp": 0.2, "scale": 0.2},
    }
    control = space({"svp": "none,0.02", "mp": "0.3,none", "scale": "0.1,0.15"}).first_points()
    assert control["task arithmetic"] == {"svp": None, "mp": None, "scale": 0.15}
    assert control["near paper"] == {"svp": 0.02, "mp": 0.3, "scale": 0.15}
    assert space({"scale": "0.3:0.4"}).first_points() == {
        "near paper": {"scale": 0.3}, "near 1/T": {"scale": 0.4},
    }  # fmt: skip


def test_a_point_is_a_recipe() -> None:
    point = {"svp": 0.03, "mp": 0.4, "scale": 0.1234567}
    recipe = space(PAPER).recipe(point).resolved()
    assert recipe.method == "lors"
    assert [(d.path, d.svp, d.mp, d.scale) for d in recipe.deltas] == [
        ("ca.delta", 0.03, 0.4, 0.1235), ("de.delta", 0.03, 0.4, 0.1235),
    ]  # fmt: skip


def test_each_delta_may_have_values_of_its_own() -> None:
    found = space({"svp": "0.01,0.05", "mp": "0.4,none", "scale": "0.1:0.5"}, "mp, scale")
    assert list(found.parameters) == ["svp", "mp[1]", "mp[2]", "scale[1]", "scale[2]"]
    point = {"svp": 0.05, "mp[1]": None, "mp[2]": 0.4, "scale[1]": 0.2, "scale[2]": 0.3}
    recipe = found.recipe(point).resolved()
    assert [(d.svp, d.mp, d.scale) for d in recipe.deltas] == [(0.05, None, 0.2), (0.05, 0.4, 0.3)]
    assert found.first_points()["near 1/T"]["scale[2]"] == 0.5


TENSORS = [
    *(f"model.encoder.layers.{n}.{part}" for n in range(2) for part in ("self_attn.q_proj.weight", "fc1.bias")),
    *(f"model.decoder.layers.{n}.encoder_attn.v_proj.weight" for n in range(2)),
    "model.decoder.embed_tokens.weight",
]  # fmt: skip


def by(kinds: str, texts: dict[str, str], **settings) -> Space:
    found = make_space("base", DELTAS, texts, settings.pop("per_delta", ""), by=kinds, **settings)
    return found.grouped(TENSORS, "base")


def test_each_group_of_tensors_may_have_its_lambda() -> None:
    found = by("half", {"svp": "0.03", "scale": "0.05:0.5"})
    assert list(found.parameters) == ["svp", "scale[encoder]", "scale[decoder]"]
    point = {"svp": 0.03, "scale[encoder]": 0.28, "scale[decoder]": 0.1000001}
    recipe = found.recipe(point).resolved()
    assert recipe.coef == ("encoder=0.28", "decoder=0.1")
    assert [(entry.svp, entry.scale) for entry in recipe.deltas] == [(0.03, 1.0)] * 2
    even = found.recipe(point | {"scale[encoder]": 0.1}).resolved()  # plainly written
    assert (even.coef, {entry.scale for entry in even.deltas}) == ((), {0.1})
    both = by("module,half", {"scale": "0.1,0.2"})
    assert both.by == ("half", "module")
    assert both.groups == ("encoder.self_attn", "encoder.mlp", "decoder.cross_attn", "*")
    assert len(both.grid()) == 16


def test_lambda_may_grow_with_depth() -> None:
    found = by("half,depth", {"scale": "0.1,0.2"})
    assert list(found.parameters) == ["scale[encoder]", "scale[decoder]", "beta"]
    point = {"scale[encoder]": 0.2, "scale[decoder]": 0.1, "beta": -0.25}
    assert found.recipe(point).coef == ("encoder=0.2", "decoder=0.1", "lines:beta=-0.25")
    alone = by("depth", {"scale": "0.1,0.2"})
    assert alone.recipe({"scale": 0.2, "beta": 0.0}).coef == ()
    assert alone.recipe({"scale": 0.2, "beta": 3.0}).coef == ("lines:beta=3",)
    assert len(alone.grid()) == 2 * 17


@pytest.mark.parametrize("kinds", ["half", "module", "half,module", "depth", "half,module,depth"])
def test_known_settings_are_the_same_in_all_tensors(kinds: str) -> None:
    space = by(kinds, {"scale": "0.05:0.5"})
    for title, point in space.first_points().items():
        recipe = space.recipe(point)
        assert not title.startswith("near")
        assert recipe.coef == ()
        assert recipe.scale in (0.15, 0.5, 0.2)


@pytest.mark.parametrize(
    ("kinds", "settings", "said"),
    [
        ("halves", {}, "--by halves: unknown. Name half, module, depth"),
        ("half,parts", {"per_delta": "scale"}, "--by parts: unknown"),
    ],
)
def test_what_lambda_cannot_differ_by(kinds: str, settings: dict, said: str) -> None:
    with pytest.raises(UsageFault, match=said):
        by(kinds, {"scale": "0.1,0.2"}, **settings)


@pytest.mark.parametrize(
    ("kinds", "names", "said"),
    [
        ("half", ["model.layers.0.self_attn.q.weight"], "--by half: base has no encoder and"),
        ("module", ["encoder.fc1.weight"], "--by module: base has no modules"),
        ("depth", ["encoder.layers.0.self_attn.q.weight"], "--by depth: base has no stack"),
    ],
)
def test_a_base_without_groups(kinds: str, names: list[str], said: str) -> None:
    space = make_space("base", DELTAS, {"scale": "0.1,0.2"}, "", by=kinds)
    with pytest.raises(UsageFault, match=said):
        space.grouped(names, "base")


def test_a_point_without_pruning_is_task_arithmetic_and_has_no_patterns() -> None:
    found = make_space(
        "base", DELTAS, {"svp": "none,0.05", "scale": "0.1"}, "", exclude=("*.fc1.weight",)
    )
    plain = found.recipe({"svp": None, "scale": 0.1}).resolved()
    assert (plain.method, plain.exclude) == ("ta", ())
    assert found.recipe({"svp": 0.05, "scale": 0.1}).exclude == ("*.fc1.weight",)
    assert found.largest_recipe().svp == 0.05


def test_a_method_without_ratios_is_that_of_every_point() -> None:
    space = make_space("base", DELTAS, {"scale": "0.5:1.5"}, "", method="wa")
    assert {space.recipe(point).method for point in space.first_points().values()} == {"wa"}
    assert space.first_points()["default"] == {"scale": METHODS["wa"].scale}


@pytest.mark.parametrize(
    ("method", "texts", "words"),
    [
        ("mp", {"mp": "0.1,none"}, "needs a number for --mp"),
        ("wa", {"mp": "0.1"}, "--method wa takes no --mp"),
        ("wat", {}, "Unknown method 'wat'"),
        ("ties:j=1", {}, "no parameter 'j'"),
        ("ties,wa,ties", {}, "--method names ties twice"),
        ("wa,wa", {}, "--method names wa twice"),
    ],
)
def test_ratios_that_a_method_does_not_take(method: str, texts, words: str) -> None:
    with pytest.raises((UsageFault, Faults), match=words):
        make_space("base", DELTAS, {"scale": "0.1"} | texts, "", method=method)


@pytest.mark.parametrize("method", ["lors", "wa,lors,tsv_m"])
def test_ratios_that_a_named_method_takes_have_values_by_default(method: str) -> None:
    found = make_space("base", DELTAS, {"scale": "0.1"}, "svp", method=method)
    assert found.values["svp"].choices == (0.01, 0.02, 0.05)
    assert found.values["mp"].choices == (0.1, 0.2, 0.4)
    found = make_space("base", DELTAS, {"scale": "0.1", "svp": "0.3"}, "", method=method)
    assert found.values["svp"].choices == (0.3,)
    assert found.values["mp"].choices == (0.1, 0.2, 0.4)
    assert set(make_space("base", DELTAS, {"scale": "0.1"}, "", method="wa").values) == {"scale"}


def test_lambdas_are_learned_at_ratios_that_are_given() -> None:
    with pytest.raises((UsageFault, Faults), match="--method lors needs --svp"):
        make_space("base", DELTAS, {"scale": "0.1"}, "", method="lors", sampler="gradient")


def test_patterns_are_for_methods_that_prune_without_ratios_too() -> None:
    space = make_space("base", DELTAS, {"scale": "0.1"}, "", exclude=["*fc1*"], method="dare")
    assert space.recipe({"scale": 0.1}).exclude == ("*fc1*",)
    with pytest.raises(UsageFault, match="Nothing is pruned"):
        make_space("base", DELTAS, {"scale": "0.1"}, "", exclude=["*fc1*"], method="ties")


def test_a_method_with_ratios_is_that_of_every_point() -> None:
    texts = {"svp": "0.1,0.2", "mp": "0.2", "scale": "0.5:1.5"}
    space = make_space("base", DELTAS, texts, "", method="lors+ties:k=0.30")
    points = space.first_points()
    assert list(points.values()) == [{"svp": 0.1, "mp": 0.2, "scale": 1.0}]
    recipe = space.recipe(next(iter(points.values())))
    assert (recipe.method, recipe.svp) == ("lors+ties:k=0.3", 0.1)
    assert recipe.resolved().method == "lors+ties:k=0.3"


# --- lambdas by delta and group, and by part --------------------------------------------------------


def test_lambdas_by_delta_and_group_are_rules_of_single_deltas() -> None:
    space = by("half", {"scale": "0.1:0.9"}, per_delta="scale")
    assert space.names("scale") == [
        "scale[1,encoder]", "scale[1,decoder]", "scale[2,encoder]", "scale[2,decoder]",
    ]  # fmt: skip
    recipe = space.recipe(dict(zip(space.names("scale"), (0.1, 0.2, 0.3, 0.3), strict=True)))
    first, second = recipe.deltas
    assert (first.scale, first.coef) == (1.0, ("encoder=0.1", "decoder=0.2"))
    assert (second.scale, second.coef) == (0.3, ())
    assert (recipe.coef, recipe.scale) == ((), None)
    assert recipe.resolved().method == "ta"


def test_lambdas_of_parts() -> None:
    space = make_space(
        "base", DELTAS, {"scale": "0.1:0.9", "svp": "0.1", "mp": "0.2"}, "", by="part,module"
    )
    names = ["model.decoder.layers.0.self_attn.q_proj.weight", "model.decoder.layers.0.fc1.weight",
             "model.decoder.layer_norm.weight"]  # fmt: skip
    space = space.grouped(names, "base", names[:1])
    assert space.labels("scale") == [
        "self_attn,whole", "self_attn,low_rank", "self_attn,sparse", "mlp", "*",
    ]  # fmt: skip
    values = dict(zip(space.names("scale"), (0.1, 0.2, 0.3, 0.4, 0.5), strict=True))
    recipe = space.recipe({"svp": 0.1, "mp": 0.2} | values)
    for entry in recipe.deltas:
        assert entry.scale == 1.0
        assert entry.coef == ("self_attn=0.1", "mlp=0.4", "*=0.5")
        assert (entry.low_rank, entry.sparse) == (("self_attn=0.2",), ("self_attn=0.3",))
    level = space.recipe({"svp": 0.1, "mp": 0.2} | dict.fromkeys(values, 0.4))
    assert (level.scale, level.rules) == (0.4, ())


def test_where_learning_begins() -> None:
    def learned(method: str | None, scale: str | None) -> tuple[float | None, float, float]:
        texts = {"scale": scale or default_scales(method, "gradient")}
        space = make_space("base", DELTAS, texts, "", method=method, sampler="gradient")
        assert list(space.first_points()) == ["start"]
        assert space.first_points()["start"]["scale"] == space.start
        return space.start, space.values["scale"].low, space.values["scale"].high

    assert learned(None, None) == (0.15, -1.5, 1.5)
    assert learned("wa", None) == (1.0, -10.0, 10.0)
    assert learned("wa", "0.2") == (0.2, -2.0, 2.0)
    assert learned(None, "0.2:0.9") == (0.2, 0.2, 0.9)
    assert learned(None, "0") == (0.0, -1.5, 1.5)
