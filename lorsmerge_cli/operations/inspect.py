"""Inspect: what is in a checkpoint or a delta, and how several deltas relate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

from lorsmerge_cli.checkpoint.delta_file import DeltaFile
from lorsmerge_cli.checkpoint.encodings import stored_size
from lorsmerge_cli.checkpoint.names import is_linear_weight, kind, room, without_layer
from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.checkpoint.references import check_hub_ids, is_hub_id
from lorsmerge_cli.checkpoint.safetensors_file import TensorSpec, dtype_name
from lorsmerge_cli.checkpoint.task_vector import base_fingerprint, open_file
from lorsmerge_cli.core.low_rank_sparse import LowRankSparse, dense
from lorsmerge_cli.core.parallel import default_threads, run_parallel
from lorsmerge_cli.core.statistics import (
    agreement,
    energy,
    magnitude_histogram,
    nonzeros,
    spectrum,
    top_energy,
)
from lorsmerge_cli.errors import LorsmergeError, Mismatch, UsageFault, raise_all
from lorsmerge_cli.operations.inspect_plot import plot_deltas
from lorsmerge_cli.operations.inspect_report import (
    TOP_RATIOS,
    CheckpointReport,
    DeltaFileReport,
    InspectReport,
    KindFigures,
    Pair,
    TensorGroup,
)
from lorsmerge_cli.operations.pictures import check_picture


def inspect_files(
    paths: Sequence[Path],
    *,
    spectra: bool = True,
    plot: Path | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> InspectReport:
    """Describe checkpoints and deltas.

    Args:
        paths: files and folders.
        spectra: take the spectra of deltas' linear weights, which costs a decomposition each.
        plot: a picture of the deltas' spectra and magnitudes to draw; None for none.
        force: replace a picture that exists.
        threads: tensors in flight; None for one per core.
        progress: told the bytes done and the bytes in all.

    Raises:
        UnreadableFile: a file that cannot be read.
        Mismatch: deltas of different models, which have no cosine.
        UsageFault, OutputFault: a picture that cannot be drawn.
    """
    opened = _open(paths)
    deltas = [item for item in opened if isinstance(item, DeltaFile)]
    _check_same_tensors(deltas)
    if plot is not None:
        inputs = [item.local for item in deltas]
        inputs += [path for item in opened if isinstance(item, Checkpoint) for path in item.sources]
        faults = check_picture(plot, inputs, force=force)
        if not deltas:
            faults.append(UsageFault("--plot draws deltas, and there is none among the files."))
        raise_all(faults)
    total = sum(spec.nbytes for file in deltas for spec in file.specs.values())
    workers = threads or default_threads()
    reports = tuple(
        _describe_delta(
            item,
            spectra or plot is not None,
            plot is not None,
            workers,
            lambda done: progress(done, total),
        )
        if isinstance(item, DeltaFile)
        else describe_checkpoint(item)
        for item in opened
    )
    if plot is not None:
        plot_deltas(
            [item for item in reports if isinstance(item, DeltaFileReport)], plot, force=force
        )
    return InspectReport(reports, tuple(_compare(deltas, workers)))


def _open(paths: Sequence[Path]) -> list[Checkpoint | DeltaFile]:
    faults = check_hub_ids(paths)
    wanted = [path for path in paths if not (faults and is_hub_id(path))]
    opened: list[Checkpoint | DeltaFile] = []
    for path in wanted:
        try:
            opened.append(open_file(path))
        except LorsmergeError as error:
            faults.append(error)
    raise_all(faults)
    return opened


def describe_checkpoint(checkpoint: Checkpoint) -> CheckpointReport:
    """A checkpoint's tensors, those of equal layers together."""
    groups: dict[tuple[str, TensorSpec], int] = defaultdict(int)
    for name, spec in checkpoint.specs.items():
        groups[without_layer(name), spec] += 1
    return CheckpointReport(
        path=checkpoint.path,
        groups=tuple(
            TensorGroup(
                name, room(name), count, spec.shape, dtype_name(spec.dtype), count * spec.nbytes
            )
            for (name, spec), count in groups.items()
        ),
        tied=checkpoint.tied,
        tensors=len(checkpoint.specs),
        parameters=sum(spec.numel for spec in checkpoint.specs.values()),
        nbytes=sum(spec.nbytes for spec in checkpoint.specs.values()),
        fingerprint=base_fingerprint(checkpoint),
        notes=checkpoint.notes,
    )


def _describe_delta(
    file: DeltaFile,
    spectra: bool,
    histograms: bool,
    threads: int,
    progress: Callable[[int], None],
) -> DeltaFileReport:
    def measure(name: str) -> KindFigures:
        return _figures(file, name, spectra, histograms)

    kinds: dict[str, KindFigures] = defaultdict(KindFigures)
    total = KindFigures()
    measured = dict(run_parallel(measure, file.specs, threads))
    for name in file.specs:  # in the file's order, so that sums do not depend on the threads
        kinds[kind(name)].add(measured[name])
        total.add(measured[name])
        progress(file.specs[name].nbytes)
    encodings: dict[str, int] = defaultdict(int)
    for layout in file.layouts.values():
        encodings[layout.encoding] += 1
    dtypes = sorted({dtype_name(layout.dtype) for layout in file.layouts.values()})
    return DeltaFileReport(
        file.path, dict(encodings), tuple(dtypes), file.provenance, dict(kinds), total
    )


def _figures(file: DeltaFile, name: str, spectra: bool, histograms: bool) -> KindFigures:
    if file.layouts[name].is_zero:  # nothing to measure, whatever its size
        return KindFigures(1, file.specs[name].numel, 0, 0.0, 0)
    delta = file.read(name)
    tensor = dense(delta)
    nbytes = stored_size(name, file.layouts[name])
    # a low-rank part has no zeros: what a pruned tensor's density tells is its sparse part's
    kept = file.layouts[name].kept if isinstance(delta, LowRankSparse) else nonzeros(tensor)
    figures = KindFigures(1, tensor.numel(), kept, file.norms[name] ** 2, nbytes)
    linear = is_linear_weight(name, file.specs[name])
    if spectra and linear:
        squares = spectrum(tensor)
        figures.spectral_energy = energy(tensor)
        figures.top = {ratio: top_energy(squares, ratio) for ratio in TOP_RATIOS}
        figures.singular_values = squares.double() if histograms else None
    if histograms and linear:
        figures.magnitudes = magnitude_histogram(tensor)
    return figures


def _check_same_tensors(deltas: Sequence[DeltaFile]) -> None:
    for file in deltas[1:]:
        shapes = {name: spec.shape for name, spec in file.specs.items()}
        if shapes != {name: spec.shape for name, spec in deltas[0].specs.items()}:
            raise Mismatch(
                f"{file.path} and {deltas[0].path} are deltas of different models.",
                "Inspect them one at a time.",
            )


def _compare(deltas: Sequence[DeltaFile], threads: int) -> list[Pair]:
    pairs = list(combinations(range(len(deltas)), 2))
    if not pairs:
        return []

    def compare(name: str) -> list[tuple[float, int, int, float, float]]:
        zero = [file.layouts[name].is_zero for file in deltas]  # and no memory is needed for it
        tensors = [dense(file.read(name)) for file in deltas]
        squares = [0.0 if none else energy(t) for t, none in zip(tensors, zero, strict=True)]
        nothing = (0.0, 0, 0)
        return [
            (
                *(nothing if zero[i] or zero[j] else agreement(tensors[i], tensors[j])),
                squares[i],
                squares[j],
            )
            for i, j in pairs
        ]

    compared = dict(run_parallel(compare, deltas[0].specs, threads))
    sums = [[0.0] * 5 for _ in pairs]
    for name in deltas[0].specs:
        for row, figures in zip(sums, compared[name], strict=True):
            for place, value in enumerate(figures):
                row[place] += value
    return [
        Pair(
            deltas[i].path,
            deltas[j].path,
            product / (first * second) ** 0.5 if first and second else 0.0,
            opposed / shared if shared else 0.0,
        )
        for (i, j), (product, shared, opposed, first, second) in zip(pairs, sums, strict=True)
    ]
