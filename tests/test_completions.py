"""completions/ is up to date, and a real bash completes with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from generate import FOLDER, SCRIPTS, generated

PROGRAM = shutil.which("lorsmerge", path=str(Path(sys.executable).parent))
PATIENCE = 20  # seconds


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_scripts_are_fresh(shell: str) -> None:
    stored = (FOLDER / SCRIPTS[shell]).read_text()
    assert "lorsmerge" in stored
    assert stored == generated(shell), "run `make completions`"


def test_zsh_finds_the_program_in_the_first_line() -> None:
    assert (FOLDER / SCRIPTS["zsh"]).read_text().startswith("#compdef lorsmerge\n")


def typed(keys: str, wanted: str, folder: Path | None = None) -> str:
    """Return what an interactive bash shows after sourcing the script and pressing keys."""
    import pty

    main, terminal = pty.openpty()
    path = os.pathsep.join([str(Path(PROGRAM or "").parent), os.environ["PATH"]])
    with subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"], stdin=terminal, stdout=terminal, stderr=terminal,
        env={"PATH": path, "TERM": "dumb", "PS1": "$ ", "HOME": os.devnull}, start_new_session=True,
        cwd=folder,
    ) as bash:  # fmt: skip
        os.close(terminal)
        os.set_blocking(main, False)
        os.write(main, f"source '{FOLDER / SCRIPTS['bash']}'\n{keys}".encode())
        shown, deadline = "", time.monotonic() + PATIENCE
        while wanted not in shown and time.monotonic() < deadline:
            try:
                shown += os.read(main, 4096).decode()
            except BlockingIOError:
                time.sleep(0.05)
        bash.kill()
    os.close(main)
    return shown


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.skipif(PROGRAM is None, reason="needs the installed command")
@pytest.mark.parametrize(
    ("keys", "completed"),
    [
        ("lorsmerge ins\t", "lorsmerge inspect "),
        ("lorsmerge merge --sv\t", "lorsmerge merge --svp "),
        ("lorsmerge prune x.delta --incl\t", "lorsmerge prune x.delta --include "),
    ],
)
def test_a_real_bash_completes(keys: str, completed: str) -> None:
    assert completed in typed(keys, completed)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.skipif(PROGRAM is None, reason="needs the installed command")
def test_a_real_bash_completes_files(tmp_path: Path) -> None:
    (tmp_path / "catalan.delta").touch()
    wanted = "lorsmerge inspect catalan.delta "
    assert wanted in typed("lorsmerge inspect cata\t", wanted, tmp_path)
