"""Eq. 1-8 of the paper in plain float64, and a plain float32 version to hold errors against.

Shares no code with the package. The matrices that hurt are here too.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]


# --- Eq. 1-8 ---------------------------------------------------------------------------------


def share(ratio: float, whole: int) -> int:
    """floor(ratio * whole) of the decimal that was typed: 0.29 of 100 is 29."""
    return math.floor(Fraction(repr(float(ratio))) * whole)


def rank_of(ratio: float, shape: Sequence[int]) -> int:
    return max(1, share(ratio, min(shape)))


def kept_of(ratio: float, shape: Sequence[int]) -> int:
    return share(ratio, math.prod(shape))


def svp(w: Array, rank: int) -> Array:
    """Eq. 3-4, 6."""
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def mp_mask(w: Array, kept: int) -> npt.NDArray[np.bool_]:
    """Eq. 2; a stable sort leaves the earliest of equals in row-major order first."""
    mask = np.zeros(w.size, bool)
    mask[np.argsort(-np.abs(w), axis=None, kind="stable")[:kept]] = True
    return mask.reshape(w.shape)


def mp(w: Array, kept: int) -> Array:
    """Eq. 1."""
    return np.where(mp_mask(w, kept), w, 0.0)


def lors(w: Array, rank: int, kept: int) -> Array:
    """Eq. 5-7."""
    low_rank = svp(w, rank)
    return low_rank + mp(w - low_rank, kept)


def prune(pruner: str, w: Array, svp_ratio: float | None, mp_ratio: float | None) -> Array:
    rank = rank_of(svp_ratio, w.shape) if svp_ratio else 0
    kept = kept_of(mp_ratio, w.shape) if mp_ratio else 0
    if pruner == "svp":
        return svp(w, rank)
    if pruner == "mp":
        return mp(w, kept)
    if pruner in ("dare", "star"):
        return dare(w) if pruner == "dare" else star(w)
    if pruner == "localize":
        return localize({"": w})[""]
    return lors(w, rank, kept)


def merge(base: Array, deltas: Sequence[Array], scales: Sequence[float]) -> Array:
    """Eq. 8, of pruned deltas."""
    total = base.copy()
    for delta, scale in zip(deltas, scales, strict=True):
        total += scale * delta
    return total


# --- what a plain script gives ---------------------------------------------------------------


def plain_svp(w: Tensor, rank: int) -> Tensor:
    u, s, vt = torch.linalg.svd(w, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def plain_mp(w: Tensor, kept: int) -> Tensor:
    flat = w.reshape(-1)
    places = torch.topk(flat.abs(), kept).indices
    return torch.zeros_like(flat).index_copy(0, places, flat[places]).reshape(w.shape)


def plain_lors(w: Tensor, rank: int, kept: int) -> Tensor:
    low_rank = plain_svp(w, rank) if rank else torch.zeros_like(w)
    return low_rank + plain_mp(w - low_rank, kept)


# --- errors ----------------------------------------------------------------------------------


def lors_error(got: Array, w: Array, rank: int, kept: int, slack: float) -> float:
    """L2 distance from Eq. 5-7 as a share of W's norm.

    An entry whose residual is within `slack` of the MP threshold may have been kept or not:
    which of two nearly equal ones is kept is rounding.
    """
    low_rank = svp(w, rank) if rank else np.zeros_like(w)
    residual = np.abs(w - low_rank)
    kept_here = mp_mask(w - low_rank, kept)
    difference = np.abs(got - np.where(kept_here, w, low_rank))
    if 0 < kept < w.size:
        near = np.abs(residual - residual[kept_here].min()) <= slack
        other = np.abs(got - np.where(kept_here, low_rank, w))
        difference = np.where(near, np.minimum(difference, other), difference)
    return float(np.linalg.norm(difference)) / (float(np.linalg.norm(w)) or 1.0)


def separated(w: Array, rank: int) -> bool:
    """Whether the rank-r part is determined well enough for two computations to agree on it."""
    s = np.linalg.svd(w, compute_uv=False)
    return rank >= len(s) or s[rank - 1] - s[rank] > 0.01 * s[rank - 1] > 1e-6 * s[0]


def best_distance(w: Array, rank: int) -> float:
    """||W - L|| of the best L of a rank (Eckart and Young)."""
    return float(np.linalg.norm(np.linalg.svd(w, compute_uv=False)[rank:]))


# --- matrices that hurt ----------------------------------------------------------------------


@dataclass(frozen=True)
class Matrix:
    """A named way to make a matrix, so that test ids read well."""

    name: str
    make: Callable[[], Tensor]


def gaussian(d: int, k: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((d, k)))


def with_spectrum(d: int, k: int, singular_values: Sequence[float], seed: int = 0) -> Tensor:
    """U diag(s) V^T with random orthonormal U and V."""
    rng, n = np.random.default_rng(seed), len(singular_values)
    u = np.linalg.qr(rng.standard_normal((d, n)))[0]
    v = np.linalg.qr(rng.standard_normal((k, n)))[0]
    return torch.from_numpy((u * np.asarray(singular_values)) @ v.T)


def spiked(d: int, k: int, factor: float, spikes: int = 3) -> Tensor:
    """A few directions `factor` times above a flat tail, as a large fine-tune's delta has them."""
    n = min(d, k)
    return with_spectrum(
        d, k, [factor * (1 - 0.1 * i) if i < spikes else 1 - 0.3 * i / n for i in range(n)]
    )


def one_huge(d: int, k: int) -> Tensor:
    w = gaussian(d, k, 3)
    w[d // 2, k // 3] = 1e4
    return w


SHAPES = [
    Matrix(f"{d}x{k}", lambda d=d, k=k: gaussian(d, k, d + k))
    for d, k in [(1, 1), (1, 17), (17, 1), (2, 2), (64, 9), (9, 64), (33, 33), (40, 56)]
]
DEGENERATE = [
    Matrix("rank-5", lambda: gaussian(30, 5, 1) @ gaussian(5, 44, 2)),
    Matrix("rank-1", lambda: gaussian(30, 1, 1) @ gaussian(1, 20, 2)),
    Matrix("zero", lambda: torch.zeros(12, 20, dtype=torch.float64)),
    Matrix("all-equal", lambda: torch.full((12, 20), 0.5, dtype=torch.float64)),
    Matrix("signs", lambda: gaussian(20, 12, 4).sign()),
    Matrix("one-huge", lambda: one_huge(24, 36)),
    Matrix("identity", lambda: torch.eye(16, dtype=torch.float64)),
    Matrix(
        "zero-rows", lambda: torch.cat([gaussian(6, 30, 5), torch.zeros(10, 30).double()], dim=0)
    ),
]
SPECTRA = [
    Matrix("flat", lambda: with_spectrum(48, 72, [1.0 - 0.3 * i / 48 for i in range(48)])),
    Matrix("power-1", lambda: with_spectrum(72, 48, [1 / (i + 1) for i in range(48)])),
    Matrix("power-2", lambda: with_spectrum(48, 72, [1 / (i + 1) ** 2 for i in range(48)])),
    Matrix("spiked-30x", lambda: spiked(72, 48, 30)),
    Matrix("spiked-300x", lambda: spiked(48, 72, 300)),
    Matrix("spiked-3000x", lambda: spiked(48, 72, 3000)),
]
SCALES = [
    Matrix(f"1e{exponent:+}", lambda e=exponent: gaussian(24, 40, 6) * 10.0**e)
    for exponent in (-20, -12, 12)
]
ALL = [*SHAPES, *DEGENERATE, *SPECTRA, *SCALES]


def ties(deltas, scales, kept: float = 0.2) -> np.ndarray:
    """The update of TIES (Yadav et al. 2023, Algorithm 1), entry by entry in float64."""
    trimmed = []
    for delta, scale in zip(deltas, scales, strict=True):
        entries = np.asarray(delta, dtype=np.float64).reshape(-1)
        count = max(1, math.floor(Fraction(repr(kept)) * entries.size))
        order = sorted(range(entries.size), key=lambda i: (-abs(entries[i]), i))
        top = set(order[:count])
        trimmed.append([scale * e if i in top else 0.0 for i, e in enumerate(entries)])
    update = []
    for column in zip(*trimmed, strict=True):
        sign = np.sign(math.fsum(column))
        agreeing = [value for value in column if sign and np.sign(value) == sign]
        update.append(math.fsum(agreeing) / len(agreeing) if agreeing else 0.0)
    return np.array(update).reshape(np.shape(deltas[0]))


def real_svd(w: Array, smallest: float) -> tuple[Array, Array, Array]:
    """The singular triplets whose value is above a bound: U, s, V^T."""
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    real = s > smallest
    return u[:, real], s[real], vt[real]


def iso_c(deltas, scales, eps: float = 2**-23) -> np.ndarray:
    """The update of Iso-C (Marczak et al. 2025, Algorithm 1), null directions left zero."""
    total = sum(scale * delta for delta, scale in zip(deltas, scales, strict=True))
    if total.ndim != 2:
        return total / len(deltas)
    u, s, vt = real_svd(total, 4 * eps * np.linalg.norm(total))
    return s.mean() * (u @ vt) if s.size else np.zeros_like(total)


def raised(s: Array, beta: float) -> Array:
    """max(s_j, s_c), with c the first index at which the sum so far is a share of the whole."""
    for c in range(s.size if beta < 1 else 0):
        if math.fsum(s[: c + 1]) >= beta * math.fsum(s):
            return np.maximum(s, s[c])
    return s


def boost(deltas, scales, eps: float = 2**-23, beta: float = 0.01) -> np.ndarray:
    """The update of subspace boosting (Skorobogat et al. 2025), null directions left zero."""
    total = sum(scale * delta for delta, scale in zip(deltas, scales, strict=True))
    if total.ndim != 2:
        return total
    u, s, vt = real_svd(total, 4 * eps * np.linalg.norm(total))
    return (u * raised(s, beta)) @ vt


def consensus(deltas, scales, threshold: float = 0.4) -> np.ndarray:
    """The update of Consensus TA (Wang et al. 2024, Eq. 5 and 8), element by element."""
    scaled = [scale * delta for delta, scale in zip(deltas, scales, strict=True)]
    update = np.zeros_like(scaled[0])
    for index in np.ndindex(update.shape):
        column = [float(delta[index]) for delta in scaled]
        total = math.fsum(column)
        masks = [abs(value) > threshold * abs(total - value) for value in column]
        if sum(masks) >= min(2, len(column)):
            update[index] = total
    return update


def localize(delta: dict[str, Array], s: float = 0.05) -> dict[str, Array]:
    """The dataless mask of Localize-and-Stitch (He et al. 2024, Algorithm 1), element by element.

    Of equals the earliest are kept: by the tensor's name, then by row.
    """
    places = [(name, index) for name in sorted(delta) for index in np.ndindex(delta[name].shape)]
    places.sort(key=lambda place: -abs(delta[place[0]][place[1]]))  # equals stay in order
    kept = {name: np.zeros(values.shape) for name, values in delta.items()}
    for name, index in places[: max(1, share(s, len(places)))]:
        kept[name][index] = delta[name][index]
    return kept


def stitch(deltas, scales) -> np.ndarray:
    """The mean of the deltas whose mask has an element (He et al. 2024, Algorithm 1)."""
    update = np.zeros(np.shape(deltas[0]))
    for place in np.ndindex(update.shape):
        there = [float(delta[place]) != 0 for delta in deltas]
        terms = [s * float(d[place]) for s, d in zip(scales, deltas, strict=True)]
        update[place] = math.fsum(terms) / max(1, sum(there))
    return update


def tall(deltas, scales, threshold: float) -> list[np.ndarray]:
    """What each TALL mask keeps of the sum (Wang et al. 2024, Eq. 5 and 6), element by element."""
    scaled = [scale * delta for delta, scale in zip(deltas, scales, strict=True)]
    kept = [np.zeros_like(scaled[0]) for _ in scaled]
    for index in np.ndindex(kept[0].shape):
        column = [float(delta[index]) for delta in scaled]
        total = math.fsum(column)
        for own, value in zip(kept, column, strict=True):
            if abs(value) > threshold * abs(total - value):
                own[index] = total
    return kept


def star(w: Array, eta: float = 0.4) -> Array:
    """STAR (Lee et al. 2025, Algorithm 1), triplet by triplet."""
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    whole, rank = math.fsum(s), 1
    while rank < s.size and math.fsum(s[:rank]) < eta * whole:
        rank += 1
    grown = s[:rank] * (whole / math.fsum(s[:rank])) if whole else s[:rank]
    return (u[:, :rank] * grown) @ vt[:rank]


def dare(w: Array, keep: float = 0.5, seed: int = 0) -> Array:
    """DARE (Yu et al. 2024), drawn as docs/methods.md says."""
    bits = "".join("1" if value > 0 else "0" for value in w.reshape(-1))
    bits += "0" * (-len(bits) % 8)
    signs = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    text = f"{seed} ({w.shape[0]}, {w.shape[1]}) ".encode()
    start = int.from_bytes(hashlib.sha256(text + signs).digest(), "little")
    drawn = np.random.Generator(np.random.PCG64(start)).random(w.size, dtype=np.float32)
    return np.where(drawn.reshape(w.shape) < keep, w / keep, 0.0)


def tsv_m(deltas, scales, eps: float = 2**-23, beta: float = 1.0) -> np.ndarray:
    """The update of TSV-M (Gargiulo et al. 2025, Algorithm 1), by SVDs throughout."""
    if deltas[0].ndim != 2:
        return sum(scale * delta for delta, scale in zip(deltas, scales, strict=True)) / len(deltas)
    rank = max(1, min(deltas[0].shape) // len(deltas))
    lefts, values, rights = [], [], []
    for delta, scale in zip(deltas, scales, strict=True):
        u, s, vt = real_svd(delta, 4 * eps * np.linalg.norm(delta))
        lefts.append(u[:, :rank])
        values.append(scale * raised(s[:rank], beta))
        rights.append(vt[:rank].T)
    u, s, v = np.hstack(lefts), np.concatenate(values), np.hstack(rights)
    if not s.size:
        return np.zeros_like(deltas[0])
    p, _, q = real_svd(u, 1e-5 * np.linalg.norm(u, 2))
    r, _, t = real_svd(v, 1e-5 * np.linalg.norm(v, 2))
    return (p @ q * s) @ (r @ t).T


def model_stock(deltas, scales) -> np.ndarray:
    """The update of Model Stock (Jang et al. 2024, Eq. 5), cosine by cosine."""
    scaled = [scale * delta.reshape(-1) for delta, scale in zip(deltas, scales, strict=True)]
    cosines = []
    for i, a in enumerate(scaled):
        for b in scaled[:i]:
            norms = float(np.linalg.norm(a) * np.linalg.norm(b))
            cosines.append(float(a @ b) / norms if norms else 0.0)
    c, n = np.mean(cosines) if cosines else 1.0, len(scaled)
    share = 0.0 if c <= 0 else n * c / (1 + (n - 1) * c)
    return share * (sum(scaled) / n).reshape(deltas[0].shape)


# --- coefficients ----------------------------------------------------------------------------


def lines(block: int | None, blocks: int, alpha: float, beta: float) -> float:
    """LiNeS (Wang et al. 2024, Eq. 2) as a factor; a tensor outside of blocks has none."""
    return alpha if block is None or blocks == 1 else alpha + beta * (block / (blocks - 1))


def metagpt(deltas: Sequence[dict[str, Array]]) -> list[float]:
    """MetaGPT's lambdas (Zhou et al. 2024, Eq. 12) from all elements of the deltas."""
    energies = [sum(float((t**2).sum()) for t in delta.values()) for delta in deltas]
    return [energy / sum(energies) for energy in energies]


def equalise(deltas: Sequence[dict[str, Array]]) -> list[float]:
    """Factors that bring all deltas to the root mean square of their norms."""
    energies = [sum(float((t**2).sum()) for t in delta.values()) for delta in deltas]
    return [math.sqrt(sum(energies) / len(energies) / energy) for energy in energies]


def agreement(deltas: Sequence[Array], scales: Sequence[float]) -> float:
    """Model Stock's factor of one tensor (Jang et al. 2024, Eq. 5), cosine by cosine."""
    cosines = []
    for i, a in enumerate(deltas):
        for j, b in enumerate(deltas[:i]):
            norms = float(np.linalg.norm(a) * np.linalg.norm(b))
            sign = np.sign(scales[i]) * np.sign(scales[j])
            cosines.append(sign * float((a * b).sum()) / norms if norms else 0.0)
    if not cosines:
        return 1.0
    c, n = float(np.mean(cosines)), len(deltas)
    return 0.0 if c <= 0 else n * c / (1 + (n - 1) * c)


def regmean(deltas, scales, inputs, off_diagonal: float = 1.0, ridge: float = 1e-3) -> np.ndarray:
    """The update of RegMean (Jin et al. 2023), row by row as a least-squares problem.

    `inputs` are each fine-tune's X^T X / rows. A row w of the update has the least sum of
    (w - t_i) (G_i + r) (w - t_i)^T.
    """
    k = deltas[0].shape[1]
    grams = [
        off_diagonal * np.asarray(g) + (1 - off_diagonal) * np.diag(np.diag(g)) for g in inputs
    ]
    r = ridge * np.mean([np.diag(gram).mean() for gram in grams])
    if not r:
        return sum(s * d for s, d in zip(scales, deltas, strict=True)) / len(deltas)
    roots, wanted = [], []
    for delta, scale, gram in zip(deltas, scales, grams, strict=True):
        values, vectors = np.linalg.eigh(gram)
        root = (vectors * np.sqrt(np.maximum(values, 0) + r)) @ vectors.T
        roots.append(root)
        wanted.append(root @ (scale * np.asarray(delta, np.float64)).T)
    solution = np.linalg.lstsq(np.vstack(roots), np.vstack(wanted), rcond=None)[0]
    assert solution.shape[0] == k
    return solution.T


def fisher(deltas, scales, information, floor: float = 1e-6) -> np.ndarray:
    """The update of Fisher merging (Matena and Raffel 2022, Eq. 4), element by element."""
    update = np.empty(deltas[0].shape)
    for place in np.ndindex(update.shape):
        weights = [float(f[place]) + floor for f in information]
        terms = [s * float(d[place]) for s, d in zip(scales, deltas, strict=True)]
        update[place] = math.fsum(w * t for w, t in zip(weights, terms, strict=True))
        update[place] /= math.fsum(weights)
    return update
