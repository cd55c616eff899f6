"""Rules of coefficients: how they are written, what they match, and what is wrong with others."""

from __future__ import annotations

import math

import pytest

from lorsmerge_cli.errors import Faults, UsageFault
from lorsmerge_cli.recipe.coefficients import (
    Pattern,
    check_matches,
    check_rules,
    group_factors,
    groups_of,
    norm_factors,
    parse_rule,
    tensor_factors,
)
from lorsmerge_cli.recipe.recipe import DeltaEntry, Recipe

WHISPER = [
    "model.encoder.conv1.weight",
    "model.encoder.embed_positions.weight",
    *(
        f"model.encoder.layers.{n}.{part}"
        for n in range(4)
        for part in ("self_attn.q_proj.weight", "self_attn_layer_norm.bias", "fc1.weight")
    ),
    "model.decoder.embed_tokens.weight",
    *(
        f"model.decoder.layers.{n}.{part}"
        for n in range(2)
        for part in (
            "self_attn.q_proj.weight", "encoder_attn.v_proj.weight", "encoder_attn_layer_norm.weight",
            "fc2.weight",
        )
    ),
    "model.decoder.layer_norm.weight",
]  # fmt: skip
MATCHES = {  # what a pattern matches, as a plain test of names
    "encoder": lambda name: ".encoder." in name,
    "decoder": lambda name: ".decoder." in name,
    "mlp": lambda name: ".fc" in name,
    "norm": lambda name: "norm" in name,
    "embed": lambda name: "embed" in name,
    "conv": lambda name: "conv" in name,
    "self_attn": lambda name: ".self_attn." in name,
    "cross_attn": lambda name: ".encoder_attn." in name,
    "encoder_attn": lambda name: ".encoder_attn." in name,
    "decoder.encoder_attn": lambda name: ".encoder_attn." in name,
    "decoder.self_attn": lambda name: ".decoder." in name and ".self_attn." in name,
    "encoder.norm": lambda name: ".encoder." in name and "norm" in name,
    "*": lambda name: True,
    "*.fc1.*": lambda name: ".fc1." in name,
    "model.encoder.*": lambda name: ".encoder." in name,
    "encoder.*": lambda name: ".encoder." in name,
    "decoder.layers.1.*": lambda name: ".decoder.layers.1." in name,
    "*.layers.[01].*": lambda name: ".0." in name or ".1." in name,
    "model.encoder.conv1.weight": lambda name: "conv1" in name,
}


@pytest.mark.parametrize(("tensors", "wanted"), MATCHES.items(), ids=MATCHES)
def test_what_a_pattern_matches(tensors: str, wanted) -> None:
    rule = parse_rule(f"{tensors}=0.5")
    assert isinstance(rule, Pattern)
    assert [name for name in WHISPER if rule.matches(name)] == list(filter(wanted, WHISPER))


@pytest.mark.parametrize(
    ("text", "factor"), [("mlp=0", 0.0), ("mlp=-0.5", -0.5), ("mlp=1e-3", 1e-3), (" mlp =2", 2.0)]
)
def test_factors(text: str, factor: float) -> None:
    rule = parse_rule(text)
    assert (rule.tensors, rule.factor) == ("mlp", factor)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is not a rule"),
        ("0.5", "'0.5' is not a rule"),
        ("=0.5", "is not a rule"),
        ("model.encoder.*", "is not a rule"),
        ("decoder", "has no number. Write decoder=0.5"),
        ("decoder=", "'' is not a finite number"),
        ("decoder=1,mlp=2", "is more than one rule. Write --coef decoder=0.5 --coef mlp=2"),
        ("decoder=half", "'half' is not a finite number"),
        ("decoder=nan", "'nan' is not a finite number"),
        ("decoder=inf", "'inf' is not a finite number"),
        ("line:beta=0.4", "no rule 'line'. Did you mean 'lines'"),
        ("metagtp", "no rule 'metagtp'. Did you mean 'metagpt'"),
        ("zzz", "no rule 'zzz'. Known: lines, metagpt, equalise, model_stock"),
        ("lines", "needs beta. Write lines:beta=0.4"),
        ("lines=0.4", "lines is a rule, not tensors. Its parameters follow a colon"),
        ("lines:alpha=1", "needs beta"),
        ("lines:bet=1", "no parameter 'bet'. Did you mean 'beta'"),
        ("lines:beta=1,beta=2", "'beta' is given twice"),
        ("lines:beta=nan", "'nan' is not a finite number"),
        ("metagpt:x=1", "no parameter 'x'. It has none"),
    ],
)
def test_what_is_no_rule(text: str, said: str) -> None:
    with pytest.raises(UsageFault) as caught:
        parse_rule(text)
    assert f"--coef {text!r}" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (["decoder=1", "decoder=2"], "the factor of decoder is given twice"),
        (["lines:beta=1", "lines:beta=2"], "lines:beta=1 decides by depth already"),
        (["metagpt", "equalise"], "metagpt decides by norms already"),
        (["model_stock", "model_stock"], "model_stock decides by agreement already"),
    ],
)
def test_rules_that_contradict(rules: list[str], said: str) -> None:
    (fault,) = check_rules(rules)
    assert said in str(fault)
    with pytest.raises(UsageFault):
        Recipe("base", (DeltaEntry("a"),), coef=tuple(rules)).resolved()


def test_all_faults_at_once() -> None:
    with pytest.raises(Faults) as caught:
        Recipe("base", (DeltaEntry("a"),), scale=math.nan, coef=("x", "mlp=y")).resolved()
    assert len(caught.value.errors) == 3


def test_the_first_pattern_counts_and_other_rules_multiply() -> None:
    rules = ["decoder.cross_attn=0", "decoder=0.5", "mlp=3", "lines:alpha=2,beta=1", "metagpt"]
    found = tensor_factors(rules, WHISPER).factors
    assert list(found) == WHISPER
    assert found["model.encoder.conv1.weight"] == 2  # outside of blocks: alpha
    assert found["model.encoder.layers.0.fc1.weight"] == 3 * 2
    assert found["model.encoder.layers.3.fc1.weight"] == 3 * 3
    assert found["model.encoder.layers.1.self_attn.q_proj.weight"] == pytest.approx(2 + 1 / 3)
    assert found["model.decoder.layers.1.fc2.weight"] == 0.5 * 3
    assert found["model.decoder.layers.1.encoder_attn.v_proj.weight"] == 0
    assert tensor_factors(rules[::-1], WHISPER).factors["model.decoder.layers.1.fc2.weight"] == 9


def test_without_rules_all_is_one() -> None:
    found = tensor_factors([], WHISPER)
    assert (found.factors, found.agreement) == ({}, None)
    assert {found.of(name) for name in WHISPER} == {1.0}
    assert tensor_factors(["equalise"], WHISPER).factors == {}
    assert tensor_factors(["model_stock"], WHISPER).agreement is not None


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("deocder=0.5", "Did you mean decoder=0.5?"),
        ("decoder.cross_atn=0.5", "Did you mean decoder.cross_attn=0.5?"),
        ("encoder.cross_attn=0.5", "There are encoder.self_attn, encoder.mlp, encoder.norm"),
        ("*.fc3.*=1", "`lorsmerge inspect BASE` lists"),
        ("zzz=1", "matches no float tensor of base/."),
    ],
)
def test_a_pattern_that_matches_nothing(rule: str, said: str) -> None:
    (fault,) = check_matches([rule], WHISPER, "base/", [])
    assert said in str(fault)
    assert f"--coef {rule!r}" in str(fault)


def test_a_model_without_blocks() -> None:
    (fault,) = check_matches(["lines:beta=1"], ["fc1.weight", "lm_head.weight"], "base/", [])
    assert "base/ has no numbered blocks with attention" in str(fault)


def test_a_pattern_behind_all_of_its_tensors() -> None:
    warnings: list[str] = []
    rules = ["decoder=0.5", "decoder.mlp=1", "cross_attn=1", "mlp=2"]
    assert check_matches(rules, WHISPER, "base/", warnings) == []
    assert [text.split("'")[1] for text in warnings] == ["decoder.mlp=1", "cross_attn=1"]


def test_the_table_of_factors() -> None:
    rows = group_factors(tensor_factors(["decoder=0.5", "lines:beta=1"], WHISPER), WHISPER)
    found = {(row.half, row.module): (row.tensors, row.low, row.high) for row in rows}
    assert found["encoder", "mlp"] == (4, 1.0, 2.0)
    assert found["decoder", "cross_attn"] == (2, 0.5, 1.0)
    assert found["decoder", "embed"] == (1, 0.5, 0.5)
    assert sum(row.tensors for row in rows) == len(WHISPER)


def test_the_groups_of_a_model_hold_every_tensor_once() -> None:
    assert groups_of(["half"], WHISPER) == ["encoder", "decoder"]
    assert groups_of(["module"], WHISPER) == ["self_attn", "cross_attn", "mlp", "*"]
    both = groups_of(["half", "module"], WHISPER)
    assert both == ["encoder.self_attn", "encoder.mlp", "decoder.self_attn", "decoder.cross_attn",
                    "decoder.mlp", "*"]  # fmt: skip
    assert groups_of(["half"], [*WHISPER, "model.shared.weight"]) == ["encoder", "decoder", "*"]
    assert groups_of(["half"], ["model.layers.0.mlp.weight"]) == ["*"]
    for by in (["half"], ["module"], ["half", "module"]):
        rules = [f"{group}={n}" for n, group in enumerate(groups_of(by, WHISPER), 1)]
        assert check_matches(rules, WHISPER, "base", warnings := []) == warnings == []
        factors = tensor_factors(rules, WHISPER).factors
        assert set(factors.values()) == set(range(1, len(rules) + 1))


def test_rules_by_norms_become_lambdas() -> None:
    entries = (DeltaEntry("a", scale=0.5), DeltaEntry("b", scale=-1.0))
    recipe = Recipe("base", entries, "ta", coef=("mlp=2", "equalise", "lines:beta=1"))
    found = recipe.weighed([1.0, 7.0])
    assert [entry.scale for entry in found.deltas] == pytest.approx([2.5, -5 / 7])
    assert found.coef == ("mlp=2", "lines:beta=1")
    assert norm_factors(["mlp=2"], [1.0, 7.0]) == ([1.0, 1.0], ["mlp=2"])


def test_the_last_bits_of_a_norm_do_not_matter() -> None:
    norms = [0.123456789, 2.71828182, 3.14159265]
    nudged = [math.nextafter(norm, math.inf) for norm in norms]
    for rule in ("metagpt", "equalise"):
        assert norm_factors([rule], norms) == norm_factors([rule], nudged)
