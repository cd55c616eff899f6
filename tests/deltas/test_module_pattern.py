"""Patterns of module names match as PEFT's do, and none takes long."""

from __future__ import annotations

import random
import re
import time

import pytest

from lorsmerge_cli.deltas.module_pattern import ModulePattern

ATOMS = ["a", "b", ".", r"\.", r"\d", r"\w", "[ab]", "[^a]", "[a-b1]", "1", "_", "-"]
REPEATS = ["", "", "", "*", "+", "?", "*?", "{2}", "{1,2}", "{2,}"]


def of_peft(pattern: str, module: str) -> bool:
    """As peft.utils.other.get_pattern_key has it."""
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def a_pattern(chance: random.Random, depth: int = 0) -> str:
    parts = []
    for _ in range(chance.randint(1, 4)):
        which = chance.random()
        if which < 0.6 or depth == 3:
            parts.append(chance.choice(ATOMS) + chance.choice(REPEATS))
        elif which < 0.75:
            inner = "|".join(a_pattern(chance, depth + 1) for _ in range(chance.randint(1, 2)))
            parts.append(chance.choice(["(", "(?:"]) + inner + ")")
        else:
            parts.append(chance.choice(["^", "$", "a", "ab", "a.b", "1"]))
    return "".join(parts)


def test_any_pattern_matches_what_peft_matches() -> None:
    chance = random.Random(0)
    matched = 0
    for _ in range(1500):
        pattern = a_pattern(chance)
        found = ModulePattern(pattern)
        for _ in range(10):
            module = "".join(chance.choice("ab.1_-") for _ in range(chance.randint(0, 8)))
            expected = of_peft(pattern, module)
            assert found.matches(module) is expected, (pattern, module)
            matched += expected
    assert matched > 500


SEEN = [  # in configs, and a module
    ("q_proj", "model.encoder.layers.0.self_attn.q_proj", True),
    ("q_proj", "model.encoder.layers.0.self_attn.aq_proj", False),
    ("encoder.*q_proj", "model.encoder.layers.0.self_attn.q_proj", True),
    ("encoder.*q_proj", "model.decoder.layers.0.self_attn.q_proj", False),
    ("^layers.0.fc1", "layers.0.fc1", True),
    ("^layers.0.fc1", "decoder.layers.0.fc1", False),
    (r".*\.(q|k|v)_proj", "model.layers.31.self_attn.v_proj", True),
    (r"layers\.(1[0-9]|2[0-3])\..*_proj", "model.layers.17.mlp.up_proj", True),
    (r"layers\.(1[0-9]|2[0-3])\..*_proj", "model.layers.27.mlp.up_proj", False),
    (r"h\.\d{1,2}\.attn\.c_attn", "transformer.h.11.attn.c_attn", True),
]


@pytest.mark.parametrize(("pattern", "module", "expected"), SEEN)
def test_patterns_as_configs_have_them(pattern: str, module: str, expected: bool) -> None:
    assert of_peft(pattern, module) is expected
    assert ModulePattern(pattern).matches(module) is expected


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a|aa)*", "(a", "a)", "[b-a]", "[", "*a", "a**", r"(a)\1", "(?=a)", "(?P<n>a)", r"\S",
     "(" * 300 + ")" * 300, "a" * 1001, "a{,3}", "a{1000}"],
)  # fmt: skip
def test_other_forms_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        ModulePattern(pattern)


@pytest.mark.parametrize("pattern", [".*" * 300 + "x", "(a|a)" * 150 + "$", "a?" * 300 + "a" * 300])
def test_no_pattern_takes_long(pattern: str) -> None:
    began = time.process_time()
    assert not ModulePattern(pattern).matches("a" * 299)
    assert time.process_time() - began < 5
