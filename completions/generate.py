"""Write the completion scripts anew, from the app as it is: `make completions`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
SCRIPTS = {"bash": "lorsmerge.bash", "zsh": "_lorsmerge", "fish": "lorsmerge.fish"}


def generated(shell: str) -> str:
    """The script that Typer makes of the app; zsh wants its first line to be the first."""
    environment = os.environ | {"_LORSMERGE_COMPLETE": f"source_{shell}"}
    command = [sys.executable, "-m", "lorsmerge_cli"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return done.stdout.strip() + "\n"


if __name__ == "__main__":
    for shell, name in SCRIPTS.items():
        (FOLDER / name).write_text(generated(shell))
