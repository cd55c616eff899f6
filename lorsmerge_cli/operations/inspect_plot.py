"""The picture of `inspect --plot`: spectra and magnitudes of deltas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lorsmerge_cli.checkpoint.atomic import atomic_file, check_output
from lorsmerge_cli.errors import LorsmergeError, UsageFault, raise_all
from lorsmerge_cli.operations.inspect import MAGNITUDE_BINS, DeltaFileReport

INCHES = (11.0, 4.0)  # a delta


def plot_deltas(reports: Sequence[DeltaFileReport], output: Path, *, force: bool) -> None:
    """Draw, for each delta, its singular values and its magnitudes by kind of tensor.

    Args:
        reports: with singular values and magnitudes.
        output: .png, .svg or .pdf.
        force: replace an output that exists.

    Raises:
        UsageFault: there is no delta to draw.
        LorsmergeError: matplotlib is not installed.
        OutputFault: the file exists, or cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise LorsmergeError(
            "--plot needs matplotlib.", "Install it with `pip install 'lorsmerge[plot]'`."
        ) from None
    if not reports:
        raise UsageFault("--plot draws deltas, and there is none among the files.")
    raise_all(check_output(output, inputs=[item.path for item in reports], size=0, force=force))
    figure = Figure((INCHES[0], INCHES[1] * len(reports)), layout="constrained")
    axes = figure.subplots(len(reports), 2, squeeze=False)
    centres = np.linspace(-10, 0, MAGNITUDE_BINS, endpoint=False) + 5 / MAGNITUDE_BINS
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
        left.legend(fontsize="small")
        right.set(xlabel="log10 |entry|", ylabel="entries, %",
                  title=f"{report.path.name}: magnitudes")  # fmt: skip
    with atomic_file(output) as partial:
        figure.savefig(partial, format=output.suffix.lstrip(".") or "png", dpi=120)
