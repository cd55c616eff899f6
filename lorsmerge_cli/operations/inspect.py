"""Inspect: what is in a checkpoint or a delta, and how several deltas relate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from torch import Tensor

from lorsmerge_cli.checkpoint.delta_file import DeltaFile, Provenance
from lorsmerge_cli.checkpoint.fingerprint import Fingerprint
from lorsmerge_cli.checkpoint.names import is_linear_weight, kind, room, without_layer
from lorsmerge_cli.checkpoint.reader import Checkpoint, is_delta
from lorsmerge_cli.checkpoint.references import check_hub_ids, is_hub_id
from lorsmerge_cli.checkpoint.safetensors_file import TensorSpec, dtype_name
from lorsmerge_cli.checkpoint.task_vector import base_fingerprint
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
from lorsmerge_cli.errors import LorsmergeError, Mismatch, raise_all
from lorsmerge_cli.operations.inspect_plot import check_plot, plot_deltas

TOP_RATIOS = (0.01, 0.02, 0.03, 0.05)  # the paper's choices for SVP


@dataclass(frozen=True)
class TensorGroup:
    """Tensors of a checkpoint that differ only in their layer's number.

    Attributes:
        name: with `*` for the number.
        room: encoder, decoder, ...
        count: tensors.
        shape, dtype: of each.
        nbytes: of all.
    """

    name: str
    room: str
    count: int
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True)
class CheckpointReport:
    """What a checkpoint holds."""

    path: Path
    groups: tuple[TensorGroup, ...]
    tied: Mapping[str, str]
    tensors: int
    parameters: int
    nbytes: int
    fingerprint: Fingerprint


@dataclass
class KindFigures:
    """Figures of one kind of tensor in a delta, summed over the layers.

    Attributes:
        tensors: how many.
        entries: in all of them.
        nonzero: entries that are not zero; in a pruned tensor, those of the sparse part.
        energy: squared L2 norm.
        nbytes: stored.
        spectral_energy: squared L2 norm of those whose spectrum was taken (linear weights).
        top: SVP ratio -> energy in the triplets that it keeps.
        singular_values: mean squared singular values, by their place, for a plot.
        magnitudes: histogram of log10 |entry|, for a plot.
    """

    tensors: int = 0
    entries: int = 0
    nonzero: int = 0
    energy: float = 0.0
    nbytes: int = 0
    spectral_energy: float = 0.0
    top: dict[float, float] = field(default_factory=lambda: dict.fromkeys(TOP_RATIOS, 0.0))
    singular_values: Tensor | None = None
    magnitudes: Tensor | None = None

    def add(self, other: KindFigures) -> None:
        """Sum in the figures of further tensors."""
        self.tensors += other.tensors
        self.entries += other.entries
        self.nonzero += other.nonzero
        self.energy += other.energy
        self.nbytes += other.nbytes
        self.spectral_energy += other.spectral_energy
        for ratio, value in other.top.items():
            self.top[ratio] += value
        self.singular_values = _sum(self.singular_values, other.singular_values)
        self.magnitudes = _sum(self.magnitudes, other.magnitudes)

    def top_share(self, ratio: float) -> float | None:
        """Share of the energy in the triplets that SVP keeps; None without linear weights."""
        return self.top[ratio] / self.spectral_energy if self.spectral_energy else None


@dataclass(frozen=True)
class DeltaFileReport:
    """What a delta holds."""

    path: Path
    encodings: Mapping[str, int]
    dtypes: tuple[str, ...]
    provenance: Provenance
    kinds: Mapping[str, KindFigures]
    total: KindFigures


@dataclass(frozen=True)
class Pair:
    """How two deltas relate.

    Attributes:
        first, second: their files.
        cosine: of the angle between them.
        sign_conflict: share of the entries where both are nonzero in which their signs differ.
    """

    first: Path
    second: Path
    cosine: float
    sign_conflict: float


@dataclass(frozen=True)
class InspectReport:
    """What the files hold, in the order they were given, and every pair of deltas."""

    files: tuple[CheckpointReport | DeltaFileReport, ...]
    pairs: tuple[Pair, ...]


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
        check_plot(plot, inputs, len(deltas), force=force)
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
        plot_deltas([item for item in reports if isinstance(item, DeltaFileReport)], plot)
    return InspectReport(reports, tuple(_compare(deltas, workers)))


def _open(paths: Sequence[Path]) -> list[Checkpoint | DeltaFile]:
    faults = check_hub_ids(paths)
    wanted = [path for path in paths if not (faults and is_hub_id(path))]
    opened: list[Checkpoint | DeltaFile] = []
    for path in wanted:
        try:
            opened.append(DeltaFile(path) if is_delta(path) else Checkpoint(path))
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
    delta = file.read(name)
    tensor = dense(delta)
    nbytes = sum(
        spec.nbytes for part, spec in file.stored.items() if part == name
        or (isinstance(delta, LowRankSparse) and part.startswith(f"{name}."))
    )  # fmt: skip
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


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b if a.shape == b.shape else a


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
        tensors = [dense(file.read(name)) for file in deltas]
        squares = [energy(tensor) for tensor in tensors]
        return [(*agreement(tensors[i], tensors[j]), squares[i], squares[j]) for i, j in pairs]

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
