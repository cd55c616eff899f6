"""Rules of the package's structure: which modules may import which, and how long a function may be."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lorsmerge_cli

PACKAGE = Path(lorsmerge_cli.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
EVERYWHERE = {"errors", "inputs", "outputs", "progress", "quoting", "version"}
NOUNS = {  # what each may import beside itself and those
    "core": set(),
    "metrics": set(),
    "hub": set(),
    "pictures": set(),
    "checkpoint": {"core", "hub"},
    "data": {"core", "hub", "metrics"},
    "deltas": {"checkpoint", "core"},
    "calibration": {"deltas", "checkpoint", "core"},
    "results": {"metrics", "data"},
    "recipe": {"deltas", "checkpoint", "core", "data", "metrics", "pictures"},
    "speech": {"deltas", "checkpoint", "data", "core", "metrics"},
    "usage": {"speech", "results", "checkpoint", "data", "metrics", "core"},
}
MAY_IMPORT = NOUNS | {
    "__main__": {"app"},
    "__init__": {"operations", "core"},  # the front door, which loads neither before it is asked
    "app": {"commands", "console", "options"},
    "commands": {"operations", "console", "options", *NOUNS},
    "operations": {*NOUNS},
    "console": set(),
    "options": {"core"},
    "errors": set(),
    "inputs": set(),
    "outputs": set(),
    "progress": set(),
    "quoting": set(),
    "version": set(),
}
VERBS_OF_VERBS = {("search", "merge"), ("finetune", "delta"), ("merge", "stats")}
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
    "progress",
    "quoting",
    "version",
    "__main__",
    "__init__",
}
LONGEST_FUNCTION = 70  # lines


def path_of(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def verb_of(file: Path) -> str:
    return file.relative_to(PACKAGE / "operations").parts[0].removesuffix(".py")


def statements(node: ast.AST, *, everywhere: bool) -> Iterator[ast.stmt]:
    """Yield import statements; without `everywhere` only those that run on import."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            if everywhere:
                yield from statements(child, everywhere=True)
        elif everywhere or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from statements(child, everywhere=everywhere)


def imports(file: Path, *, everywhere: bool = True) -> set[str]:
    """Return the dotted names of modules, and of names in them, that a file imports."""
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


def own_imports(file: Path) -> set[tuple[str, ...]]:
    """Return the modules of the package that a file imports, as parts below the package."""
    found = set()
    for name in imports(file):
        parts = name.split(".")
        if parts[0] != PACKAGE.name:
            continue
        path = PACKAGE.joinpath(*parts[1:])
        is_module = path.is_dir() or path.with_suffix(".py").is_file()
        found.add(tuple(parts[1:] if is_module else parts[1:-1]))
    return found - {()}


@pytest.mark.parametrize("file", FILES, ids=path_of)
def test_imports_point_downwards(file: Path) -> None:
    room = room_of(file)
    within = {"commands": set(), "operations": {"operations"}}.get(room, {room})
    imported = {parts[0] for parts in own_imports(file)}
    assert imported <= MAY_IMPORT[room] | within | EVERYWHERE


@pytest.mark.parametrize(
    "file", [f for f in FILES if room_of(f) in ("commands", "operations")], ids=path_of
)
def test_verbs_are_called_by_their_front(file: Path) -> None:
    """A command or another verb imports a verb, never a file in a verb's folder."""
    own = verb_of(file) if room_of(file) == "operations" else None
    for parts in own_imports(file):
        if parts[0] == "operations" and parts[1] != own:
            assert len(parts) == 2, parts
            assert own is None or (own, parts[1]) in VERBS_OF_VERBS


@pytest.mark.parametrize("folder", sorted({f.parent for f in FILES}), ids=path_of)
def test_the_files_of_a_folder_import_each_other_in_one_direction(folder: Path) -> None:
    place = folder.relative_to(PACKAGE).parts
    graph = {}
    for file in (*folder.glob("*.py"), *folder.glob("*/*.py")):
        name = file.relative_to(folder).parts[0].removesuffix(".py")
        below = {p[len(place)] for p in own_imports(file) if p[: len(place)] == place != p}
        if name not in ("__init__", "__main__"):
            graph.setdefault(name, set()).update(below - {name})
    assert tuple(TopologicalSorter(graph).static_order()) is not None  # CycleError names a circle


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


def test_every_subcommand_is_a_verb_and_every_verb_a_subcommand() -> None:
    verbs = {verb_of(file) for file in FILES if room_of(file) == "operations"} - {"__init__"}
    assert verbs == {file.stem for file in (PACKAGE / "commands").glob("*.py")} - {"__init__"}


def test_the_page_draws_what_may_be_imported() -> None:
    page = (PACKAGE.parent / "docs" / "contributing.md").read_text(encoding="utf-8")
    arrows = re.findall(r"^    (\w+) --> (\w+)$", page, re.MULTILINE)
    below: dict[str, set[str]] = {}
    for upper, lower in arrows:
        below.setdefault(upper, set()).add(lower)
        assert lower in MAY_IMPORT[upper]
    for name in TopologicalSorter(below).static_order():  # what is further down as well
        below[name] = set().union(below.get(name, ()), *(below[low] for low in below.get(name, ())))
    for name in (*NOUNS, "operations", "commands"):
        assert MAY_IMPORT[name] & {*NOUNS, "operations"} <= below[name], name
