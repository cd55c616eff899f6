"""The report of `inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from torch import Tensor

from lorsmerge_cli.checkpoint.fingerprint import Fingerprint
from lorsmerge_cli.deltas.file import Provenance
from lorsmerge_cli.deltas.tall import TallOrigin
from lorsmerge_cli.errors import named

TOP_RATIOS = (0.01, 0.02, 0.03, 0.05)  # the paper's choices for SVP
MOST = 0.9  # of a matrix's energy


@dataclass(frozen=True)
class TensorGroup:
    """Tensors of a checkpoint whose names differ only in the layer number.

    Attributes:
        name: with `*` for the layer number.
        module: encoder, decoder, ...
        count: number of tensors.
        shape: of each tensor.
        dtype: of each tensor, such as `float32`.
        nbytes: size of all of them.
    """

    name: str
    module: str
    count: int
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True)
class CheckpointReport:
    """The content of a checkpoint."""

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
    """Figures of one tensor type in a delta, summed over the layers.

    Tensors with a NaN or an infinity count in `tensors`, `nbytes` and `non_finite` only.

    Attributes:
        tensors: number of tensors.
        entries: number of elements.
        nonzero: number of nonzero elements; in a pruned tensor, of the sparse part.
        energy: squared L2 norm.
        nbytes: stored size.
        spectral_energy: squared L2 norm of the linear weights, whose spectrum was computed.
        top: SVP ratio -> energy of the singular triplets that it keeps.
        leading: energy of the leading 1/T of each weight's singular triplets, for T deltas.
        ranks: of each of those weights that is not zero, the share of its singular values that hold
            `MOST` of its energy.
        singular_values: sums of squared singular values by rank, for a plot.
        magnitudes: histogram of log10 |element|, for a plot.
        non_finite: names of the tensors with a NaN or an infinity.
    """

    tensors: int = 0
    entries: int = 0
    nonzero: int = 0
    energy: float = 0.0
    nbytes: int = 0
    spectral_energy: float = 0.0
    top: dict[float, float] = field(default_factory=lambda: dict.fromkeys(TOP_RATIOS, 0.0))
    leading: float = 0.0
    ranks: list[float] = field(default_factory=list)
    singular_values: Tensor | None = None
    magnitudes: Tensor | None = None
    non_finite: list[str] = field(default_factory=list)

    def add(self, other: KindFigures) -> None:
        """Add the figures of further tensors."""
        self.tensors += other.tensors
        self.entries += other.entries
        self.nonzero += other.nonzero
        self.energy += other.energy
        self.nbytes += other.nbytes
        self.non_finite += other.non_finite
        self.spectral_energy += other.spectral_energy
        self.leading += other.leading
        self.ranks += other.ranks
        for ratio, value in other.top.items():
            self.top[ratio] += value
        self.singular_values = _sum(self.singular_values, other.singular_values)
        self.magnitudes = _sum(self.magnitudes, other.magnitudes)

    def top_share(self, ratio: float) -> float | None:
        """Return the share of the energy that SVP keeps; None without linear weights."""
        return self.top[ratio] / self.spectral_energy if self.spectral_energy else None

    @property
    def leading_share(self) -> float | None:
        """The share of the energy in the leading 1/T of the triplets; None without linear weights."""
        return self.leading / self.spectral_energy if self.spectral_energy else None

    @property
    def rank(self) -> float | None:
        """The median of `ranks`; None without linear weights."""
        return median(self.ranks) if self.ranks else None


@dataclass(frozen=True)
class DeltaFileReport:
    """The content of a delta."""

    path: Path
    encodings: Mapping[str, int]
    dtypes: tuple[str, ...]
    provenance: Provenance
    kinds: Mapping[str, KindFigures]
    total: KindFigures


@dataclass(frozen=True)
class TallReport:
    """The content of a file of TALL masks.

    Attributes:
        path: the file.
        origin: what it says of itself.
        tensors, entries: of the sum.
        nbytes: of sum and masks.
        dtypes: of the sum.
        kept: of each task, the share of all elements that its mask keeps.
        unkept: share of the elements that no mask keeps.
    """

    path: Path
    origin: TallOrigin
    tensors: int
    entries: int
    nbytes: int
    dtypes: tuple[str, ...]
    kept: tuple[float, ...]
    unkept: float


@dataclass(frozen=True)
class Pair:
    """A comparison of two deltas.

    Attributes:
        first: file of one delta.
        second: file of the other.
        cosine: cosine of the angle between them.
        sign_conflict: share of opposite signs among the elements that are nonzero in both.
        shared: number of elements that are nonzero in both.
    """

    first: Path
    second: Path
    cosine: float
    sign_conflict: float
    shared: int


@dataclass(frozen=True)
class Together:
    """What a merge of several deltas would be like.

    Attributes:
        sum_norm: L2 norm of the sum of the deltas.
        along: of each delta, the cosine of the angle between it and the sum; 0 for a delta of zeros.
        model_stock: lambda with which the sum is as long as Model Stock's update; None where the sum
            is zero.
        equal_scales: of each delta, the lambda with which all have the same norm, and their sum the
            norm that task arithmetic's has at its default; None where a delta or a sum is zero.
    """

    sum_norm: float
    along: tuple[float, ...]
    model_stock: float | None
    equal_scales: tuple[float, ...] | None


@dataclass(frozen=True)
class InspectReport:
    """The content of the files, in the given order, and a comparison of the deltas.

    Attributes:
        files: one report each.
        pairs: every two deltas.
        together: all deltas; None for fewer than two.
        advice: a line for each thing that matters to the choice of a method.
    """

    files: tuple[CheckpointReport | DeltaFileReport | TallReport, ...]
    pairs: tuple[Pair, ...]
    together: Together | None = None
    advice: tuple[str, ...] = ()

    @property
    def deltas(self) -> list[DeltaFileReport]:
        """The reports of deltas."""
        return [item for item in self.files if isinstance(item, DeltaFileReport)]

    @property
    def warnings(self) -> list[str]:
        """Warnings of a NaN or an infinity in a delta, and of deltas of different bases."""
        found = [
            f"{item.path}: {len(names)} of {item.total.tensors} tensors hold a NaN or an infinity, "
            f"and the figures skip them: {named(names)}."
            for item in self.deltas
            if (names := item.total.non_finite)
        ]
        bases: dict[str, DeltaFileReport] = {}
        for item in self.deltas:
            bases.setdefault(item.provenance.base.digest, item)
        if len(bases) > 1:
            one, other, *_ = bases.values()
            found.append(
                f"{one.path} and {other.path} are deltas of different bases "
                f"({one.provenance.base.digest[:12]} and {other.provenance.base.digest[:12]}). `merge` "
                "refuses one of them, and comparing them says little."
            )
        return found


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b if a.shape == b.shape else a
