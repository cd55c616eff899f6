"""Checking and saving of the pictures that commands draw with matplotlib, an optional dependency."""

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
    """Return a name of any origin so that matplotlib shows it literally, in a title or a legend."""
    import matplotlib

    text = printable(name)
    if matplotlib.rcParams["text.parse_math"]:
        text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text  # a legend skips such labels


def can_draw() -> bool:
    """Tell whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def check_picture(output: Path, inputs: Iterable[Path], *, force: bool) -> list[LorsmergeError]:
    """Return all faults that would keep `--plot` from being drawn.

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
    """Write a figure in the format that its suffix names.

    Args:
        figure: to draw.
        output: .png, .svg or .pdf.
        force: replace a picture that exists.

    Raises:
        OutputFault: the disk is full, or the picture exists and `force` is false.
    """
    with atomic_file(output, force=force) as partial:
        figure.savefig(partial, format=output.suffix[1:].lower(), dpi=120)
