"""Inspect: describe checkpoints and deltas, and compare deltas."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lorsmerge_cli.checkpoint.names import (
    is_linear_weight,
    module,
    tensor_type,
    without_layer,
)
from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.checkpoint.references import check_hub_ids, is_hub_id
from lorsmerge_cli.checkpoint.safetensors_file import TensorSpec, dtype_name
from lorsmerge_cli.core.low_rank_sparse import LowRankSparse, dense
from lorsmerge_cli.core.merging import is_finite
from lorsmerge_cli.core.parallel import default_threads, run_parallel
from lorsmerge_cli.core.statistics import (
    energy,
    magnitude_histogram,
    nonzeros,
    rank_for_energy,
    spectrum,
    top_energy,
)
from lorsmerge_cli.deltas.encodings import stored_size
from lorsmerge_cli.deltas.file import DeltaFile
from lorsmerge_cli.deltas.tall import TallFile, mask_specs
from lorsmerge_cli.deltas.task_vector import base_fingerprint, open_file
from lorsmerge_cli.errors import LorsmergeError, Mismatch, UsageFault, raise_all
from lorsmerge_cli.inputs import FilePath, path_of, several
from lorsmerge_cli.operations.inspect.advising import advice
from lorsmerge_cli.operations.inspect.compare import compare
from lorsmerge_cli.operations.inspect.plot import plot_deltas
from lorsmerge_cli.operations.inspect.report import (
    MOST,
    TOP_RATIOS,
    CheckpointReport,
    DeltaFileReport,
    InspectReport,
    KindFigures,
    TallReport,
    TensorGroup,
)
from lorsmerge_cli.pictures import check_picture

Opened = Checkpoint | DeltaFile | TallFile
SAFE_ENERGY = (1e-30, 1e30)  # within these a tensor's Gram matrix fits float32


def inspect(
    files: Sequence[FilePath] | FilePath,
    *,
    spectra: bool = True,
    plot: FilePath | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> InspectReport:
    """Describe checkpoints, deltas and files of TALL masks, and compare the deltas.

    Args:
        files: of any of the three sorts: files, folders or Hub ids.
        spectra: compute the spectra of deltas' linear weights, one decomposition each; on by default.
        plot: picture of the deltas' spectra and magnitudes to draw; none by default.
        force: replace an existing picture.
        threads: tensors in flight; one per core by default.
        progress: called with the bytes just read and the bytes in all.

    Raises:
        UnreadableFile: a file cannot be read.
        Mismatch: the deltas are of different models.
        UsageFault: a picture without deltas, or of an unknown format.
        OutputFault: the picture cannot be written.

    Example:
        >>> report = inspect(["ca.delta", "de.delta"])
        >>> [file.provenance.language for file in report.files], len(report.pairs)
        (['ca', 'de'], 1)
    """
    paths, plot = [Path(file) for file in several(files)], path_of(plot)
    opened = _open(paths)
    deltas = [item for item in opened if isinstance(item, DeltaFile)]
    _check_same_tensors(deltas)
    if plot is not None:
        inputs = [item.local for item in deltas]
        inputs += [item.local for item in opened if isinstance(item, TallFile)]
        inputs += [path for item in opened if isinstance(item, Checkpoint) for path in item.sources]
        faults = check_picture(plot, inputs, force=force)
        if not deltas:
            faults.append(UsageFault("--plot draws deltas, and none of the files is one."))
        raise_all(faults)
    total = sum(spec.nbytes for file in deltas for spec in file.specs.values())
    total *= min(2, len(deltas))  # each alone, then in pairs
    workers = threads or default_threads()
    parts = len(deltas) if spectra or plot is not None else 0

    def describe(item: Opened) -> CheckpointReport | DeltaFileReport | TallReport:
        if isinstance(item, DeltaFile):
            return _describe_delta(
                item, parts, plot is not None, workers, lambda done: progress(done, total)
            )
        return _describe_tall(item) if isinstance(item, TallFile) else _describe_checkpoint(item)

    reports = tuple(map(describe, opened))
    described = [item for item in reports if isinstance(item, DeltaFileReport)]
    bad = {name for item in described for name in item.total.non_finite}
    pairs, together = compare(deltas, bad, workers, lambda done: progress(done, total))
    if plot is not None:
        plot_deltas(described, plot, force=force)
    report = InspectReport(reports, tuple(pairs), together)
    return replace(report, advice=tuple(advice(report)))


def _open(paths: Sequence[Path]) -> list[Opened]:
    faults = check_hub_ids(paths)
    wanted = [path for path in paths if not (faults and is_hub_id(path))]
    opened: list[Opened] = []
    for path in wanted:
        try:
            opened.append(open_file(path))
        except LorsmergeError as error:
            faults.append(error)
    raise_all(faults)
    return opened


def _describe_checkpoint(checkpoint: Checkpoint) -> CheckpointReport:
    """List a checkpoint's tensors, grouped over layers."""
    groups: dict[tuple[str, TensorSpec], int] = defaultdict(int)
    for name, spec in checkpoint.specs.items():
        groups[without_layer(name), spec] += 1
    return CheckpointReport(
        path=checkpoint.path,
        groups=tuple(
            TensorGroup(
                name, module(name), count, spec.shape, dtype_name(spec.dtype), count * spec.nbytes
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


def _describe_tall(file: TallFile) -> TallReport:
    """Count what the masks of a file keep."""
    tasks = len(file.tasks)
    kept, nowhere = [0] * tasks, 0
    for name, spec in file.specs.items():
        masks = file.masks(name).numpy().copy()
        if spec.numel % 8:
            masks[:, -1] &= (1 << spec.numel % 8) - 1  # the bits beyond are nobody's
        for row in range(tasks):
            kept[row] += int(np.bitwise_count(masks[row]).sum(dtype=np.int64))
        together = np.bitwise_or.reduce(masks, axis=0)
        nowhere += spec.numel - int(np.bitwise_count(together).sum(dtype=np.int64))
    entries = sum(spec.numel for spec in file.specs.values())
    nbytes = sum(
        spec.nbytes for spec in (*file.specs.values(), *mask_specs(file.specs, tasks).values())
    )
    return TallReport(
        file.path, file.origin, len(file.specs), entries, nbytes,
        tuple(sorted({dtype_name(spec.dtype) for spec in file.specs.values()})),
        tuple(count / max(entries, 1) for count in kept), nowhere / max(entries, 1),
    )  # fmt: skip


def _describe_delta(
    file: DeltaFile,
    parts: int,
    histograms: bool,
    threads: int,
    progress: Callable[[int], None],
) -> DeltaFileReport:
    """Measure a delta; its spectra, with the energy of their first 1/parts, unless `parts` is 0."""
    specs = file.specs

    def measure(name: str) -> KindFigures:
        return _figures(file, name, specs[name], parts, histograms)

    kinds: dict[str, KindFigures] = defaultdict(KindFigures)
    total = KindFigures()
    measured = {}
    for name, figures in run_parallel(measure, specs, threads):
        measured[name] = figures
        progress(specs[name].nbytes)
    for name in specs:  # in an order independent of threads, as float sums depend on it
        kinds[tensor_type(name)].add(measured[name])
        total.add(measured[name])
    encodings: dict[str, int] = defaultdict(int)
    for layout in file.layouts.values():
        encodings[layout.encoding] += 1
    dtypes = sorted({dtype_name(layout.dtype) for layout in file.layouts.values()})
    return DeltaFileReport(
        file.path, dict(encodings), tuple(dtypes), file.provenance, dict(kinds), total
    )


def _figures(
    file: DeltaFile, name: str, spec: TensorSpec, parts: int, histograms: bool
) -> KindFigures:
    layout = file.layouts[name]
    if layout.is_zero:
        return KindFigures(1, spec.numel, 0, 0.0, 0)
    delta = file.read(name)
    tensor = dense(delta)
    nbytes = stored_size(name, layout)
    if not is_finite(tensor):
        return KindFigures(1, nbytes=nbytes, non_finite=[name])
    # a low-rank part has no zeros, so a pruned tensor's density is its sparse part's
    kept = layout.kept if isinstance(delta, LowRankSparse) else nonzeros(tensor)
    square = energy(tensor)
    figures = KindFigures(1, tensor.numel(), kept, square, nbytes)
    linear = is_linear_weight(name, spec)
    if parts and linear:
        in_range = SAFE_ENERGY[0] < square < SAFE_ENERGY[1]
        squares = spectrum(tensor if in_range else tensor.double())
        figures.spectral_energy = square
        figures.top = {ratio: top_energy(squares, ratio) for ratio in TOP_RATIOS}
        figures.leading = float(squares[: max(1, len(squares) // parts)].sum(dtype=torch.float64))
        if rank := rank_for_energy(squares, MOST):
            figures.ranks = [rank / len(squares)]
        figures.singular_values = squares.double() if histograms else None
    if histograms and linear:
        figures.magnitudes = magnitude_histogram(tensor)
    return figures


def _check_same_tensors(deltas: Sequence[DeltaFile]) -> None:
    shapes = [{name: item.shape for name, item in file.layouts.items()} for file in deltas[:1]]
    for file in deltas[1:]:
        if {name: item.shape for name, item in file.layouts.items()} != shapes[0]:
            raise Mismatch(
                f"{file.path} and {deltas[0].path} are deltas of different models.",
                "Inspect them one at a time.",
            )
