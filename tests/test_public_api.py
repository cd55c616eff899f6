"""The front door: the names that `from lorsmerge_cli import ...` offers, and what importing them loads."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import lorsmerge_cli
from lorsmerge_cli.recipe.search_settings import SearchSettings
from lorsmerge_cli.speech.settings import TrainingSettings

FUNCTIONS = [
    "delta", "evaluate", "export", "finetune", "inspect", "lors", "merge", "merge_state_dicts", "mp",
    "prune", "pseudo_label", "push", "report", "search", "stats", "svp", "tall_masks",
    "transcribe", "transcribe_recordings",
]  # fmt: skip
WITHOUT_DEFAULT = {
    "delta": ["base", "finetuned", "output"],
    "evaluate": ["models"],
    "export": ["model", "output", "format"],
    "finetune": ["base", "data", "output"],
    "inspect": ["files"],
    "lors": ["matrix"],
    "merge": [],  # a recipe holds base and deltas, and the output has a default
    "merge_state_dicts": ["base", "deltas"],
    "mp": ["matrix"],
    "prune": ["source", "output"],
    "pseudo_label": ["data", "teachers", "output"],
    "push": ["source", "repo"],
    "report": ["results", "output"],
    "search": ["base", "deltas", "data"],
    "stats": ["model", "data", "output"],
    "svp": ["matrix"],
    "tall_masks": ["base", "deltas", "output"],
    "transcribe": ["models", "audio"],
    "transcribe_recordings": ["model", "audio", "output"],
}

COMMANDS = {
    name: name
    for name in FUNCTIONS
    if name not in {"lors", "merge_state_dicts", "mp", "svp", "tall_masks"}
}
COMMANDS |= {
    "evaluate": "eval",
    "pseudo_label": "transcribe",
    "transcribe_recordings": "transcribe",
}
RENAMED = {"control": "controls"}
FUNCTION_OF = {  # in commands/
    "inspect": "inspect_files", "pseudo_label": "transcribe", "transcribe_recordings": "transcribe",
}  # fmt: skip
_OF_TRANSCRIBE = ("transcribe", "pseudo_label", "transcribe_recordings")
ALSO = dict.fromkeys(_OF_TRANSCRIBE, _OF_TRANSCRIBE)  # whose options are the command's too
SETTINGS = {"search": asdict(SearchSettings()), "finetune": asdict(TrainingSettings())}
OTHER_VALUES = {  # a size in words on the command line, and what a flag turns off
    "merge": {"max_shard_size"}, "prune": {"as_lora", "output"}, "evaluate": {"memory", "data"},
    "finetune": {"workers"},
}  # fmt: skip
_OTHER = {"task", "memory", "audio", "teachers", "output", "temperatures"}
OTHER_VALUES |= dict.fromkeys(_OF_TRANSCRIBE, _OTHER)
ONLY_IN_PYTHON = {"command", "progress", "told", "on_scores", "spectra", "digests", "dtype",
                  "condition", "timestamps"}  # fmt: skip
ONLY_IN_COMMANDS = {
    "verbose", "push", "dry_run", "no_spectra", "no_digests", "recipe", "worst", "score_only",
    "streaming", "datasets", "models", "base", "deltas", "masks", "no_condition", "no_timestamps",
}  # fmt: skip


def test_the_names() -> None:
    assert lorsmerge_cli.__all__ == FUNCTIONS
    assert set(FUNCTIONS) <= set(dir(lorsmerge_cli))
    assert (Path(lorsmerge_cli.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_only_inputs_have_no_default(name: str) -> None:
    function = getattr(lorsmerge_cli, name)
    assert (function.__name__, getattr(lorsmerge_cli, name)) == (name, function)
    parameters = inspect.signature(function).parameters.values()
    assert [
        p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD
    ] == WITHOUT_DEFAULT[name]
    assert inspect.getdoc(function)


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Return name -> default, with an empty tuple as None."""
    parameters = inspect.signature(function).parameters.values()
    given = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {
        RENAMED.get(name, name): None if value == () else value for name, value in given.items()
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_the_defaults_of_the_command_line(name: str) -> None:
    module = importlib.import_module(f"lorsmerge_cli.commands.{COMMANDS[name]}")
    command = _defaults(getattr(module, FUNCTION_OF.get(name, name)))
    also: dict[str, Any] = {}
    for other in ALSO.get(name, ()):
        also |= _defaults(getattr(lorsmerge_cli, other))
    wanted = SETTINGS.get(name, {}) | also | _defaults(getattr(lorsmerge_cli, name))
    shared = command.keys() & wanted.keys() - OTHER_VALUES.get(name, set())
    assert {key: wanted[key] for key in shared} == {key: command[key] for key in shared}
    assert wanted.keys() - shared <= ONLY_IN_PYTHON | OTHER_VALUES.get(name, set())
    assert command.keys() - shared <= ONLY_IN_COMMANDS | OTHER_VALUES.get(name, set())


def test_no_other_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'merges'"):
        lorsmerge_cli.merges  # noqa: B018


def test_an_import_loads_nothing_heavy() -> None:
    code = (
        "import sys, lorsmerge_cli; dir(lorsmerge_cli); before = set(sys.modules); "
        "from lorsmerge_cli import merge; "
        "print('torch' in before, 'lorsmerge_cli.errors' in before, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True"]
