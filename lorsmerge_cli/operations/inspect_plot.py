"""The picture of `inspect --plot`: spectra and magnitudes of deltas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lorsmerge_cli.checkpoint.atomic import atomic_file, check_output
from lorsmerge_cli.core.statistics import BINS, DECADES
from lorsmerge_cli.errors import LorsmergeError, UsageFault, raise_all

if TYPE_CHECKING:
    from lorsmerge_cli.operations.inspect import DeltaFileReport

INCHES = (11.0, 4.0)  # a delta
FORMATS = (".png", ".svg", ".pdf")


def check_plot(output: Path, inputs: Iterable[Path], deltas: int, *, force: bool) -> None:
    """Everything that would keep a picture from being drawn, before any work is done.

    Args:
        output: the picture.
        inputs: files and folders that must not be written.
        deltas: how many there are to draw.
        force: replace an output that exists.

    Raises:
        UsageFault: there is no delta to draw, or no such kind of picture.
        LorsmergeError: matplotlib is not installed.
        OutputFault: the file exists, is an input, or cannot be written.
    """
    faults: list[LorsmergeError] = []
    if output.suffix.lower() not in FORMATS:
        faults.append(
            UsageFault(f"--plot {output}: not one of {', '.join(FORMATS)}.", "Write x.png, say.")
        )
    if not deltas:
        faults.append(UsageFault("--plot draws deltas, and there is none among the files."))
    if find_spec("matplotlib") is None:
        faults.append(
            LorsmergeError(
                "--plot needs matplotlib.", "Install it with `pip install 'lorsmerge[plot]'`."
            )
        )
    raise_all(faults + check_output(output, inputs=inputs, size=0, force=force))


def plot_deltas(reports: Sequence[DeltaFileReport], output: Path) -> None:
    """Draw, for each delta, its singular values and its magnitudes by kind of tensor.

    Args:
        reports: with singular values and magnitudes.
        output: a picture that `check_plot` found nothing against.

    Raises:
        OutputFault: the disk filled up.
    """
    from matplotlib.figure import Figure

    figure = Figure((INCHES[0], INCHES[1] * len(reports)), layout="constrained")
    axes = figure.subplots(len(reports), 2, squeeze=False)
    edges = np.linspace(*DECADES, BINS + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    for report, (left, right) in zip(reports, axes, strict=True):
        for name, figures in sorted(report.kinds.items()):
            if figures.singular_values is None or figures.magnitudes is None:
                continue
            squares = figures.singular_values.numpy()
            places = 100 * np.arange(1, len(squares) + 1) / len(squares)
            left.plot(places, 100 * np.cumsum(squares) / squares.sum(), label=name)
            counts = figures.magnitudes.numpy()
            right.plot(centres, 100 * counts / max(counts.sum(), 1))
        left.set(xscale="log", xlabel="singular triplets kept, %", ylabel="energy kept, %",
                 title=f"{report.path.name}: spectrum")  # fmt: skip
        left.legend(fontsize="small", loc="upper left")
        right.set(xlabel="log10 |entry|", ylabel="entries, %",
                  title=f"{report.path.name}: magnitudes")  # fmt: skip
    with atomic_file(output) as partial:
        figure.savefig(partial, format=output.suffix[1:].lower(), dpi=120)
