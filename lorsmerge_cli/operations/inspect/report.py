"""What `inspect` finds in files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from lorsmerge_cli.checkpoint.fingerprint import Fingerprint
from lorsmerge_cli.deltas.file import Provenance
from lorsmerge_cli.errors import named

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
    notes: tuple[str, ...] = ()


@dataclass
class KindFigures:
    """Figures of one kind of tensor in a delta, summed over the layers.

    Attributes:
        tensors: how many.
        entries: in those that are finite, as all figures but `nbytes`.
        nonzero: entries that are not zero; in a pruned tensor, those of the sparse part.
        energy: squared L2 norm.
        nbytes: stored.
        spectral_energy: squared L2 norm of those whose spectrum was taken (linear weights).
        top: SVP ratio -> energy in the triplets that it keeps.
        singular_values: mean squared singular values, by their place, for a plot.
        magnitudes: histogram of log10 |entry|, for a plot.
        non_finite: names of the tensors with a NaN or an infinity.
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
    non_finite: list[str] = field(default_factory=list)

    def add(self, other: KindFigures) -> None:
        """Sum in the figures of further tensors."""
        self.tensors += other.tensors
        self.entries += other.entries
        self.nonzero += other.nonzero
        self.energy += other.energy
        self.nbytes += other.nbytes
        self.non_finite += other.non_finite
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

    @property
    def warnings(self) -> list[str]:
        """What the user should know."""
        return [
            f"{item.path}: {len(names)} of {item.total.tensors} tensors hold a NaN or an infinity, "
            f"and no figure counts them: {named(names)}."
            for item in self.files
            if isinstance(item, DeltaFileReport) and (names := item.total.non_finite)
        ]


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b if a.shape == b.shape else a
