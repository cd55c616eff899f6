"""What may be published of paths: the names of files, and Hub ids.

A path tells a user's name and what else lies on the machine, and is of no use elsewhere. Cards and
records that are pushed have names alone; the history in a delta's header has relative paths as well.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from warnings import catch_warnings

from lorsmerge_cli.checkpoint.references import REFERENCE, pinned_parts
from lorsmerge_cli.recipe.recipe import Recipe

OPTION = re.compile(r"[\w.-]+=")  # before the path in `--data clips=/home/anna/clips`
# a root, a home, a drive, or a folder above the current one
OF_THIS_MACHINE = re.compile(r"[/\\~]|[A-Za-z]:[/\\]|file:|(?:.*[/\\])?\.\.(?:[/\\]|$)", re.DOTALL)
PARAMETER = re.compile(r"[a-z_]+")
CALL = re.compile(r"lorsmerge_cli\.(?P<function>[a-z_]+)\(")
COMMITS = "  # "  # between a command of a history and the Hub ids that it took


def published_name(path: str) -> str:
    """Return a pinned Hub id unchanged, and the last part of any other path.

    Example:
        >>> published_name("/home/anna/secret/ca.delta")
        'ca.delta'
    """
    if pinned_parts(path):
        return path
    parts = [part for part in re.split(r"[/\\]", path) if part.strip(".") and part[0] != "~"]
    return parts[-1] if parts else "folder" if path else ""


def published_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe with a name for each path, and different names for different paths."""
    paths = [recipe.base, *(entry.path for entry in recipe.deltas), *recipe.stats]
    names = published_names(paths)
    deltas = tuple(replace(entry, path=names[entry.path]) for entry in recipe.deltas)
    stats = tuple(names[path] for path in recipe.stats)
    return replace(recipe, base=names[recipe.base], deltas=deltas, stats=stats)


def published_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checked `lorsmerge.json` or `run.json` with names in place of paths."""
    found: dict[str, Any] = recorded(record)
    if "base_name" in record:
        found["base_name"] = published_name(record["base_name"])
    if "recipe" in record:
        entries, stats = record["recipe"]["deltas"], record["recipe"].get("stats", [])
        paths = [record["recipe"]["base"], *(entry["path"] for entry in entries), *stats]
        names = published_names(paths)
        found["recipe"]["base"] = names[record["recipe"]["base"]]
        for entry, before in zip(found["recipe"]["deltas"], entries, strict=True):
            entry["path"] = names[before["path"]]
        if stats:
            found["recipe"]["stats"] = [names[path] for path in stats]
    return found


def published_names(paths: Sequence[str]) -> dict[str, str]:
    """Return a name for each path, and different names for different paths."""
    names: dict[str, str] = {}
    for path in dict.fromkeys(paths):
        name = published_name(path)
        stem, dot, suffix = name.partition(".")
        number = 1
        while name in names.values():
            number += 1
            name = f"{stem}-{number}{dot}{suffix}"
        names[path] = name
    return names


def recorded(value: Any) -> Any:
    """Return plain values with names in place of the paths of this machine."""
    if isinstance(value, dict):
        return {key: recorded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [recorded(item) for item in value]
    return recorded_word(value) if isinstance(value, str) else value


def recorded_word(word: str) -> str:
    """Return a word of a command for a history: relative paths stay as they are."""
    return _behind_option(lambda path: published_name(path) if is_local(path) else path, word)


def recorded_command(words: Sequence[str]) -> str:
    """Return a command for a delta's history, with names in place of absolute paths.

    Example:
        >>> recorded_command(["delta", "/home/anna/base", "ca", "-o", "ca.delta"])
        'lorsmerge delta base ca -o ca.delta'
    """
    return shlex.join(["lorsmerge", *map(recorded_word, words)])


def recorded_call(function: str, *inputs: object, **settings: object) -> str:
    """Return a Python call for a delta's history, its paths as in `recorded_command`.

    Args:
        function: of `lorsmerge_cli`.
        *inputs: paths and other values.
        **settings: by name; None, False and empty values are not recorded.

    Example:
        >>> print(recorded_call("delta", Path("/home/anna/base"), "ca", "ca.delta", task="asr", language=""))
        lorsmerge_cli.delta('base', 'ca', 'ca.delta', task='asr')
    """
    given = [
        (key, value)
        for key, value in settings.items()
        if value or (value == 0 and value is not False)  # a ratio of 0 is a setting
    ]
    return _call(function, inputs, given, recorded_word)


def _call(
    function: str,
    inputs: Iterable[object],
    settings: Iterable[tuple[str, object]],
    change: Callable[[str], str],
) -> str:
    def shown(value: object) -> str:
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(shown, value))}]"
        return repr(change(str(value)) if isinstance(value, str | Path) else value)

    words = [*map(shown, inputs), *(f"{key}={shown(value)}" for key, value in settings)]
    return f"lorsmerge_cli.{function}({', '.join(words)})"


def is_local(path: str) -> bool:
    """Return whether a path begins at this machine's root, at a home or in a folder above."""
    return OF_THIS_MACHINE.match(path) is not None


def published_command(line: str) -> str | None:
    """Return a command or a Python call of a history with names in place of paths.

    None for anything but a `lorsmerge` command or call.

    Example:
        >>> published_command("lorsmerge delta /home/anna/base runs/ca -o /tmp/ca.delta")
        'lorsmerge delta base ca -o ca.delta'
    """
    command, mark, comment = line.rpartition(COMMITS)
    ids = comment.split(", ")
    if not mark or not all(map(pinned_parts, ids)):
        command, ids = line, []
    repos = {parts[0] for name in ids if (parts := pinned_parts(name))}

    def name_of(path: str) -> str:
        match = REFERENCE.fullmatch(path)
        return path if match and match["repo"] in repos else published_name(path)

    change = partial(_behind_option, name_of)
    shown = _changed_call(command, change) if CALL.match(command) else _changed(command, change)
    return shown and shown + (COMMITS + ", ".join(ids) if ids else "")


def _changed(command: str, change: Callable[[str], str]) -> str | None:
    """Return a shell command with every word changed; None for any but `lorsmerge`'s."""
    try:
        words = shlex.split(command, comments=True)
    except ValueError:
        return None
    return shlex.join(map(change, words)) if words[:1] == ["lorsmerge"] else None


def _changed_call(line: str, change: Callable[[str], str]) -> str | None:
    """Return a Python call with every string changed; None unless all its values are plain."""
    try:
        with catch_warnings(action="ignore"):  # of a backslash too many
            tree = ast.parse(line, mode="eval").body
        match tree:
            case ast.Call(ast.Attribute(ast.Name("lorsmerge_cli"), function), inputs, keywords):
                settings = [(item.arg or "", ast.literal_eval(item.value)) for item in keywords]
                values = [ast.literal_eval(value) for value in inputs]
                plain = all(map(_is_plain, [*values, *(value for _, value in settings)]))
                if plain and all(PARAMETER.fullmatch(key) for key, _ in settings):
                    return _call(function, values, settings, change)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        pass
    return None


def _is_plain(value: object) -> bool:
    """Return whether a value is a string, a number, a flag, None, or a list of the first two."""
    if isinstance(value, list | tuple):
        return all(isinstance(item, str | int | float) for item in value)
    return value is None or isinstance(value, str | int | float)


def _behind_option(change: Callable[[str], str], word: str) -> str:
    """Change what follows `name=` in a word, or all of it."""
    option = OPTION.match(word)
    start = option.end() if option else 0
    return word[:start] + change(word[start:])
