"""The house of the design: who may import whom, and how long a function gets."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lorsmerge_cli

PACKAGE = Path(lorsmerge_cli.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
EVERYWHERE = {"errors", "inputs", "outputs", "quoting"}
MAY_IMPORT = {  # room -> the rooms it may import beside itself and those
    "__main__": {"app"},
    "__init__": set(),
    "app": {"commands", "console", "options"},
    "commands": {"operations", "core", "console", "options"},
    "operations": {"core", "checkpoint", "speech", "metrics"},
    "checkpoint": {"core"},
    "speech": set(),
    "metrics": set(),
    "core": set(),
    "console": set(),
    "options": {"core"},
    "errors": set(),
    "inputs": set(),
    "outputs": set(),
    "quoting": set(),
}
HEAVY = {"torch", "transformers", "scipy", "numpy", "safetensors", "matplotlib", "accelerate",
         "soundfile", "soxr", "jiwer", "sacrebleu", "optuna", "sqlalchemy"}  # fmt: skip
LIGHT_ROOMS = {
    "app",
    "commands",
    "options",
    "console",
    "errors",
    "inputs",
    "outputs",
    "quoting",
    "__main__",
    "__init__",
}
LONGEST_FUNCTION = 70  # lines


def path_of(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def statements(node: ast.AST, *, everywhere: bool) -> Iterator[ast.stmt]:
    """Import statements; without `everywhere` only those that run on import."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            if everywhere:
                yield from statements(child, everywhere=True)
        elif everywhere or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from statements(child, everywhere=everywhere)


def imports(file: Path, *, everywhere: bool = True) -> set[str]:
    """Dotted names of modules (and of names taken from them) that a file imports."""
    found: set[str] = set()
    for statement in statements(ast.parse(file.read_text(encoding="utf-8")), everywhere=everywhere):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{path_of(file)} imports by a relative path"
            found |= {f"{statement.module}.{alias.name}" for alias in statement.names}
    return found


def top(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("file", FILES, ids=path_of)
def test_imports_point_downwards(file: Path) -> None:
    room = room_of(file)
    parts = [name.split(".") for name in imports(file) if name.startswith("lorsmerge_cli")]
    imported = {part[1] for part in parts if len(part) > 1} - {"__version__"}
    assert imported <= MAY_IMPORT[room] | {room} | EVERYWHERE


@pytest.mark.parametrize("file", FILES, ids=path_of)
def test_only_the_console_imports_rich_and_nothing_click(file: Path) -> None:
    found = top(imports(file))
    assert "click" not in found
    assert "rich" not in found or path_of(file) == "console.py"


@pytest.mark.parametrize("file", [f for f in FILES if room_of(f) in LIGHT_ROOMS], ids=path_of)
def test_the_command_line_loads_nothing_heavy(file: Path) -> None:
    names = imports(file, everywhere=False)
    assert top(names) & HEAVY == set()
    assert {name for name in names if name.startswith("lorsmerge_cli.operations")} == set()


@pytest.mark.parametrize("file", [f for f in FILES if room_of(f) == "core"], ids=path_of)
def test_the_core_touches_no_file_no_terminal_and_no_transformers(file: Path) -> None:
    assert top(imports(file)) & {"transformers", "safetensors", "typer", "pathlib", "json"} == set()
    called = {
        node.func.id
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert called & {"print", "open", "input"} == set()


@pytest.mark.parametrize("file", [f for f in FILES if path_of(f) != "console.py"], ids=path_of)
def test_only_the_console_prints(file: Path) -> None:
    calls = [
        node.lineno
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    # --version, and nothing else
    assert len(calls) <= (path_of(file) == "app.py")


@pytest.mark.parametrize("file", FILES, ids=path_of)
def test_no_function_is_too_long(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    lines = {  # of bodies: a command's parameters are its table of options
        node.name: node.end_lineno - node.body[0].lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: count for name, count in lines.items() if count > LONGEST_FUNCTION} == {}


@pytest.mark.parametrize("file", FILES, ids=path_of)
def test_every_module_says_what_it_is(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))


def test_every_subcommand_has_an_operation_of_its_name() -> None:
    names = {
        room: {f.stem for f in (PACKAGE / room).glob("*.py")} for room in ("commands", "operations")
    }
    assert names["commands"] <= names["operations"]
