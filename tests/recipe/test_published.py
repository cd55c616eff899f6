"""Names in place of this machine's paths: in what is pushed, and in the headers that are written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lorsmerge_cli.recipe.published import (
    published_command,
    published_name,
    recorded,
    recorded_call,
)

COMMIT = "0" * 40
COMMANDS = {
    "lorsmerge delta base ca -o ca.delta": "lorsmerge delta base ca -o ca.delta",
    "lorsmerge delta /home/anna/base runs/ca -o '/tmp/my x/ca.delta'": "lorsmerge delta base ca -o ca.delta",
    "lorsmerge prune ca.delta --svp 0.03 -o ../anna/x.delta": "lorsmerge prune ca.delta --svp 0.03 -o x.delta",
    "lorsmerge finetune b --train cv=/home/anna/cv": "lorsmerge finetune b --train cv=cv",
    f"lorsmerge delta org/b x/y  # org/b@{COMMIT}": f"lorsmerge delta org/b y  # org/b@{COMMIT}",
    f"lorsmerge delta a b  # org/b@{COMMIT}, rm": "lorsmerge delta a b",
    "lorsmerge delta a b # ; rm -rf /": "lorsmerge delta a b",
    "lorsmerge delta 'a; touch x' `b`": "lorsmerge delta 'a; touch x' '`b`'",
    "lorsmerge delta $(touch x)": "lorsmerge delta '$(touch' 'x)'",
    "lorsmerge_cli.delta('/home/anna/base', 'runs/ca', task='asr')": "lorsmerge_cli.delta('base', 'ca', task='asr')",
    f"lorsmerge_cli.prune('x/y.delta', svp=0.03, exclude=['*/a'])  # org/b@{COMMIT}": f"lorsmerge_cli.prune('y.delta', svp=0.03, exclude=['a'])  # org/b@{COMMIT}",
    "lorsmerge_cli.delta('a',\n  'b') # c": "lorsmerge_cli.delta('a', 'b')",
    "lorsmerge_cli.delta('\\d')": "lorsmerge_cli.delta('d')",
    "lorsmerge_cli.delta(open('/home/anna/x'))": None,
    "lorsmerge_cli.delta({'a': '/home/anna'})": None,
    "lorsmerge_cli.delta([['/home/anna']])": None,
    "lorsmerge_cli.delta(*a, **b)": None,
    "lorsmerge_cli.delta('a').b('c')": None,
    "lorsmerge_cli.delta('unclosed": None,
    "lorsmerge_cli.delta(" + "-" * 9999 + "1)": None,
    "lorsmerge_cli.a.b('c')": None,
    "os.system('rm -rf x')": None,
    "rm -rf x": None,
    "lorsmerge-evil delta": None,
    "'lorsmerge' delta 'unclosed": None,
    "": None,
    "\n": None,
}


@pytest.mark.parametrize(("line", "wanted"), COMMANDS.items(), ids=[name[:60] for name in COMMANDS])
def test_a_command_of_a_history(line: str, wanted: str | None) -> None:
    assert published_command(line) == wanted


@pytest.mark.parametrize(
    ("path", "wanted"),
    [("", ""), ("ca.delta", "ca.delta"), ("./a/b/", "b"), ("~", "folder"), ("~anna", "folder"),
     ("C:\\a\\b.delta", "b.delta"), (f"org/x@{COMMIT}:sub/y.delta", f"org/x@{COMMIT}:sub/y.delta"),
     ("org/x@main", "x@main"), ("org/x", "x")],
)  # fmt: skip
def test_the_name_of_a_path(path: str, wanted: str) -> None:
    assert published_name(path) == wanted


def test_a_header_keeps_relative_paths_and_ids() -> None:
    words = [
        "/home/anna/a",
        "runs/a",
        f"org/a@{COMMIT}",
        "../../anna/b",
        "x=/home/anna/c",
        "*.fc1.weight",
    ]
    assert recorded({"a": [words], "b": 3, "c": None}) == {
        "a": [["a", "runs/a", f"org/a@{COMMIT}", "b", "x=c", "*.fc1.weight"]], "b": 3, "c": None,
    }  # fmt: skip


def test_a_call_is_python_that_makes_the_same_call() -> None:
    given: list[object] = []
    line = recorded_call(
        "prune", Path("/home/anna/it's a.delta"), "b.delta", svp=0.03, mp=0.0, method=None, include=("*/x", "y"),
        exclude=(), force=False, dtype="",
    )  # fmt: skip
    function = SimpleNamespace(prune=lambda *inputs, **settings: given.extend([inputs, settings]))
    eval(line, {"lorsmerge_cli": function})
    assert given == [("it's a.delta", "b.delta"), {"svp": 0.03, "mp": 0.0, "include": ["*/x", "y"]}]
    assert published_command(line) is not None
