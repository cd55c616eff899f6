"""The picture of `inspect --plot`: spectra and magnitudes of deltas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lorsmerge_cli.core.statistics import BINS, DECADES
from lorsmerge_cli.operations.inspect.report import DeltaFileReport
from lorsmerge_cli.pictures import legible, save_picture

INCHES = (11.0, 4.0)  # a delta


def plot_deltas(reports: Sequence[DeltaFileReport], output: Path, *, force: bool) -> None:
    """Draw singular values and magnitudes of each delta, one line per tensor type.

    Args:
        reports: reports with singular values and magnitudes.
        output: the picture, which `check_picture` has accepted.
        force: replace an existing picture.

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
            if not squares.sum():
                continue  # a delta of zeros
            ranks = 100 * np.arange(1, len(squares) + 1) / len(squares)
            left.plot(ranks, 100 * np.cumsum(squares) / squares.sum(), label=legible(name))
            counts = figures.magnitudes.numpy()
            right.plot(centres, 100 * counts / max(counts.sum(), 1))
        left.set(xscale="log", xlabel="rank kept, %", ylabel="energy kept, %",
                 title=legible(f"{report.path.name}: spectrum"))  # fmt: skip
        if left.lines:
            left.legend(fontsize="small", loc="upper left")
        right.set(xlabel="log10 |element|", ylabel="elements, %",
                  title=legible(f"{report.path.name}: magnitudes"))  # fmt: skip
    save_picture(figure, output, force=force)
