"""Every command and option that a message names exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import lorsmerge_cli
from lorsmerge_cli.app import app

PACKAGE = Path(lorsmerge_cli.__file__).parent
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OPTIONS = {
    name: {
        option
        for parameter in command.params
        for option in [*parameter.opts, *parameter.secondary_opts]
    }
    for name, command in COMMANDS.items()
}
# of `hf`, ours too, of the program, and of `comet-score`
THEIRS = {
    "--revision",
    "--config",
    "--version",
    "--help",
    "--model",
    "--quiet",
    "--repo-type",
    "--local-dir",
}


def texts() -> Iterator[tuple[str, str]]:
    """Yield file and text of each string in the package except docstrings, with placeholders as {}."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inner = {
            id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr | ast.Expr)
            for value in (node.values if isinstance(node, ast.JoinedStr) else [node.value])
        }  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
                yield path.name, "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and id(node) not in inner:
                yield path.name, str(node.value)


NAMED = sorted(
    {
        (file, found[1], found[2])
        for file, text in texts()
        for found in re.finditer(r"`(?:lorsmerge )?([a-z]+)\b([^`]*)`", text)
        if found[1] in OPTIONS or found[0].startswith("`lorsmerge ")
    }
)


def test_there_are_some() -> None:
    assert len(NAMED) > 20


@pytest.mark.parametrize(("file", "command", "rest"), NAMED)
def test_a_command_between_backticks_has_its_options(file: str, command: str, rest: str) -> None:
    assert command in OPTIONS, file
    assert set(re.findall(r"(?<!\S)--?[a-z][\w-]*", rest)) <= OPTIONS[command], file


def test_every_option_in_a_message_is_one_of_ours() -> None:
    known = set().union(*OPTIONS.values(), THEIRS)
    for file, text in texts():
        if file == "pages.py":  # a style sheet's
            continue
        for option in re.findall(r"(?<![\w`'\"-])--[a-z][a-z-]+[a-z]", text):
            assert option in known, (file, text)
