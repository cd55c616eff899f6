"""Pictures that commands draw with matplotlib, which is an extra."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lorsmerge_cli.errors import LorsmergeError, UsageFault
from lorsmerge_cli.outputs import atomic_file, check_output
from lorsmerge_cli.quoting import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")


def legible(name: str) -> str:
    """Return a name of any origin as matplotlib shows it letter by letter, in a title or a legend."""
    import matplotlib

    text = printable(name)
    if matplotlib.rcParams["text.parse_math"]:
        text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text  # which a legend would leave out


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def check_picture(output: Path, inputs: Iterable[Path], *, force: bool) -> list[LorsmergeError]:
    """Everything that would keep `--plot` from being drawn.

    Args:
        output: the picture.
        inputs: files and folders that must not be written.
        force: replace a picture that exists.
    """
    faults: list[LorsmergeError] = []
    if output.suffix.lower() not in FORMATS:
        faults.append(
            UsageFault(f"--plot {output}: not one of {', '.join(FORMATS)}.", "Write x.png, say.")
        )
    if not can_draw():
        faults.append(
            LorsmergeError(
                "--plot needs matplotlib.", "Install it with `pip install 'lorsmerge[plot]'`."
            )
        )
    return faults + check_output(output, inputs=inputs, size=0, force=force)


def save_picture(figure: Figure, output: Path, *, force: bool) -> None:
    """Write a figure in the format that its name asks for, over another only with `force`.

    Raises:
        OutputFault: the disk filled up.
    """
    with atomic_file(output, force=force) as partial:
        figure.savefig(partial, format=output.suffix[1:].lower(), dpi=120)
