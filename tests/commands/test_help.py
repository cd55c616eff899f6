"""Help is fast, and its examples are valid commands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from lorsmerge_cli.app import app

GROUP = typer.main.get_command(app)
COMMANDS = GROUP.commands
HEAVY = {"torch", "transformers", "scipy", "numpy", "safetensors", "matplotlib", "optuna"}
COMMON = {"--quiet", "--json", "--debug", "--help"}
ALIKE = {"--svp", "--mp", "--include", "--exclude", "--device", "--threads", "--force"}


def example_of(name: str) -> str:
    text = GROUP.epilog if name == "" else COMMANDS[name].help
    found = re.search(r"^Example: (.+)$", text or "", re.MULTILINE)
    assert found, f"the help of {name or 'lorsmerge'} has no Example line"
    return found[1]


def shown(*arguments: str, columns: int = 200) -> str:
    result = CliRunner().invoke(app, [*arguments], env={"COLUMNS": str(columns), "TERM": "dumb"})
    assert result.exit_code == 0
    return result.stdout


def test_the_commands_of_the_pipeline_are_there() -> None:
    assert set(COMMANDS) >= {"delta", "prune", "merge", "inspect"}


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_help_has_an_example_that_parses(name: str) -> None:
    program, command, *arguments = shlex.split(example_of(name))
    assert program == "lorsmerge"
    assert command == name or (name == "" and command in COMMANDS)
    context = COMMANDS[command].make_context(command, arguments)
    # a positional argument that took an option's place would show here
    given = [value for value in arguments if value.startswith("-")]
    known = {spelling for item in context.command.params for spelling in item.opts}
    assert set(given) <= known


@pytest.mark.parametrize("name", ["", *COMMANDS])
@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_example_is_shown_whole(name: str, columns: int) -> None:
    text = " ".join(shown(*([name] if name else []), "--help", columns=columns).split())
    assert example_of(name) in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_does(name: str) -> None:
    silent = [item.name for item in COMMANDS[name].params if not getattr(item, "help", None)]
    assert silent == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_common_options(name: str) -> None:
    spellings = {spelling for item in COMMANDS[name].params for spelling in item.opts}
    assert COMMON - {"--help"} <= spellings
    assert "--help" in shown(name, "--help")


def test_an_option_reads_the_same_everywhere() -> None:
    texts: dict[str, set[str]] = {}
    for name, command in COMMANDS.items():
        for item in command.params:
            # search takes several values of what the others take one of
            several = {"--svp", "--mp"} if name == "search" else set()
            for spelling in (ALIKE - several) & set(item.opts):
                texts.setdefault(spelling, set()).add(item.help)
    assert {spelling: found for spelling, found in texts.items() if len(found) > 1} == {}
    assert texts.keys() == ALIKE


def test_no_arguments_show_the_help() -> None:
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert "Usage" in result.output
    assert all(name in result.output for name in COMMANDS)


def test_a_misspelt_command_is_corrected() -> None:
    result = CliRunner().invoke(app, ["merg"])
    assert result.exit_code == 2
    assert "'merge'" in result.stderr


def loaded_by(*arguments: str) -> set[str]:
    code = (
        "import sys\n"
        "from lorsmerge_cli.app import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print('\\nLOADED', *sorted({name.split('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return set(done.stdout.rpartition("LOADED")[2].split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        *([name, "--help"] for name in COMMANDS),
        ["merge", "base", "a.delta", "--svp", "7"],
        ["merge", "base", "a.delta", "--method", "lor"],
        ["merge", "base", "a.delta", "--coef", "line:beta=1"],
        ["search", "base", "a.delta", "--data", "d", "--svp", "nan", "-o", "best.toml"],
    ],
    ids=" ".join,
)
def test_help_and_wrong_usage_load_nothing_heavy(arguments: list[str]) -> None:
    loaded = loaded_by(*arguments)
    assert "lorsmerge_cli" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize(
    ("arguments", "left"), [("--version", True), ("merge none.safetensors", False)]
)
def test_a_process_of_torchrun_leaves_its_group_when_all_went_well(
    tmp_path: Path, arguments: str, left: bool
) -> None:
    """If the group's threads outlive Python, the process may abort, which torchrun reports as a failure."""
    script = (
        "import sys, torch.distributed as distributed\n"
        f"distributed.init_process_group('gloo', init_method={(tmp_path / 'store').as_uri()!r}, rank=0, world_size=1)\n"
        f"sys.argv[1:] = {arguments.split()!r}\n"
        "from lorsmerge_cli.app import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    print(distributed.is_initialized())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.split()[-1] == str(not left), done.stderr
