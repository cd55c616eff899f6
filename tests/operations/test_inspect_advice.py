"""What inspect says of several deltas together, against NumPy's and against merges of them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from operation_calls import FC1, save, small_base, tuned, write_delta

from lorsmerge_cli import delta, merge, prune
from lorsmerge_cli.core.low_rank_sparse import LowRankSparse, dense
from lorsmerge_cli.core.methods import METHODS
from lorsmerge_cli.core.statistics import rank_for_energy
from lorsmerge_cli.deltas.file import DeltaFile
from lorsmerge_cli.operations.inspect import InspectReport, inspect
from lorsmerge_cli.operations.inspect.report import MOST, Together

SHAPES = [(1, 1), (1, 17), (17, 1), (40, 24), (24, 40), (7,), (4, 3, 5)]


def tensors(seed: int, size: float = 1.0, shared: float = 0.0) -> dict[str, torch.Tensor]:
    """A delta with a tensor of each shape, of which a part is the same in every delta."""
    own, common = (torch.Generator().manual_seed(number) for number in (seed, 1000))
    return {
        f"layers.{number}.fc1.weight": size
        * (torch.randn(shape, generator=own) + shared * torch.randn(shape, generator=common))
        for number, shape in enumerate(SHAPES)
    }


def low_rank(seed: int) -> LowRankSparse:
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(shape, generator=generator) for shape in ((40, 3), (3, 24)))
    return LowRankSparse(left, right)


def deltas_of(case: str) -> list[dict[str, torch.Tensor | LowRankSparse]]:
    zero = {name: torch.zeros_like(tensor) for name, tensor in tensors(0).items()}
    partly = tensors(2) | {name: zero[name] for name in list(zero)[:4]}
    low = [{"layers.3.fc1.weight": low_rank(seed)} for seed in range(3)]
    return {
        "two": [tensors(1), tensors(2)],
        "ten": [tensors(seed, shared=0.5) for seed in range(10)],
        "alike": [tensors(seed, shared=3.0) for seed in range(4)],
        "uneven": [tensors(seed, 10.0**-seed, 0.2) for seed in range(4)],
        "equal": [tensors(1)] * 3,
        "one of zeros": [tensors(1, shared=1.0), zero, tensors(2, shared=1.0)],
        "tensors of zeros": [tensors(1, shared=1.0), partly],
        "all zero": [zero, zero],
        "low rank": low,
        "bfloat16": [
            {name: tensor.bfloat16() for name, tensor in tensors(seed, shared=0.3).items()}
            for seed in range(3)
        ],
    }[case]


CASES = ["two", "ten", "alike", "uneven", "equal", "one of zeros", "tensors of zeros", "all zero",
         "low rank", "bfloat16"]  # fmt: skip


def together(folder: Path, case: str, **settings: int) -> tuple[list[Path], InspectReport]:
    paths = [
        write_delta(folder / f"{number}.delta", item) for number, item in enumerate(deltas_of(case))
    ]
    return paths, inspect(paths, **settings)


def arrays(path: Path) -> list[np.ndarray]:
    file = DeltaFile(path)
    return [dense(file.read(name)).double().numpy() for name in file.specs]


@pytest.mark.parametrize("case", CASES)
def test_figures_of_all_deltas_are_those_of_plain_sums(tmp_path: Path, case: str) -> None:
    paths, report = together(tmp_path, case)
    found = report.together
    assert isinstance(found, Together)
    each = [arrays(path) for path in paths]
    flat = [np.concatenate([array.reshape(-1) for array in one]) for one in each]
    total = np.sum(flat, axis=0)
    length = np.linalg.norm(total)
    assert found.sum_norm == pytest.approx(length, rel=1e-9)
    for vector, cosine in zip(flat, found.along, strict=True):
        norms = np.linalg.norm(vector) * length
        assert cosine == pytest.approx(vector @ total / norms if norms else 0.0, abs=1e-9)
    if not length:
        assert (found.model_stock, found.equal_scales) == (None, None)
        return
    ones = [1.0] * len(paths)
    stock = [reference.model_stock(list(same), ones) for same in zip(*each, strict=True)]
    step = math.sqrt(sum(float((update**2).sum()) for update in stock))
    assert found.model_stock == pytest.approx(step / length, rel=1e-9)
    if case == "one of zeros":
        assert found.equal_scales is None
        return
    lengths = [
        scale * np.linalg.norm(one) for scale, one in zip(found.equal_scales, flat, strict=True)
    ]
    assert lengths == pytest.approx([lengths[0]] * len(paths))
    equal = np.sum(
        [scale * one for scale, one in zip(found.equal_scales, flat, strict=True)], axis=0
    )
    assert np.linalg.norm(equal) == pytest.approx(METHODS["ta"].scale * length, rel=1e-9)


@pytest.mark.parametrize("case", ["ten", "uneven", "low rank"])
def test_figures_do_not_depend_on_the_order_of_deltas(tmp_path: Path, case: str) -> None:
    paths, report = together(tmp_path, case)
    other = inspect(paths[::-1]).together
    found = report.together
    assert other.sum_norm == pytest.approx(found.sum_norm)
    assert other.model_stock == pytest.approx(found.model_stock)
    assert other.along[::-1] == pytest.approx(found.along)
    assert other.equal_scales[::-1] == pytest.approx(found.equal_scales)


def test_figures_do_not_depend_on_threads(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    _, report = together(tmp_path / "one", "ten", threads=1)
    paths = sorted((tmp_path / "one").iterdir())
    assert inspect(paths, threads=3).together == report.together


def test_model_stock_s_step_is_that_of_the_merge(
    models: Path, deltas: Path, tmp_path: Path
) -> None:
    both = [deltas / "ca.delta", deltas / "de.delta"]
    found = inspect(both).together
    steps = {
        method: merge(models / "base", both, tmp_path / method, method=method, scale=1.0).step
        for method in ("ta", "model_stock")
    }
    assert found.sum_norm == pytest.approx(steps["ta"], rel=1e-6)
    assert found.model_stock == pytest.approx(steps["model_stock"] / steps["ta"], rel=1e-5)


def test_the_scales_it_gives_make_such_a_merge(models: Path, deltas: Path, tmp_path: Path) -> None:
    both = [deltas / "ca.delta", deltas / "de.delta"]
    scales = inspect(both).together.equal_scales
    entries = [f"{path}:scale={scale!r}" for path, scale in zip(both, scales, strict=True)]
    plain = merge(models / "base", both, tmp_path / "plain")
    assert merge(models / "base", entries, tmp_path / "equal").step == pytest.approx(plain.step)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_rank_and_leading_part_of_the_energy(deltas: Path, count: int) -> None:
    report = inspect([deltas / "ca.delta"] * count).deltas[0]
    ranks, leading, total = [], 0.0, 0.0
    file = DeltaFile(deltas / "ca.delta")
    for name, spec in file.specs.items():
        if len(spec.shape) == 2 and "embed" not in name:
            squares = np.linalg.svd(dense(file.read(name)).double().numpy(), compute_uv=False) ** 2
            shares = np.cumsum(squares) / squares.sum()
            ranks.append((1 + int((shares < MOST).sum())) / len(squares))
            leading += squares[: max(1, len(squares) // count)].sum()
            total += squares.sum()
    assert report.total.rank == pytest.approx(np.median(ranks))
    assert report.total.leading_share == pytest.approx(leading / total, rel=1e-5)


@pytest.mark.parametrize(
    ("squares", "share", "rank"),
    [([], 0.9, 0), ([0.0, 0.0], 0.9, 0), ([5.0], 0.9, 1), ([9.0, 1.0], 0.9, 1),
     ([8.9, 1.1], 0.9, 2), ([1.0] * 10, 0.9, 9), ([1.0, 0.0], 0.999, 1)],
)  # fmt: skip
def test_the_least_rank_of_an_energy(squares: list[float], share: float, rank: int) -> None:
    assert rank_for_energy(torch.tensor(squares, dtype=torch.float64), share) == rank


def lines(report: InspectReport) -> dict[str, str]:
    """What is said, by the word that it begins with."""
    return dict(line.split(": ", 1) for line in report.advice)


def test_nearly_orthogonal_deltas_make_a_vote_a_coin_toss(tmp_path: Path) -> None:
    _, report = together(tmp_path, "two")
    said = lines(report)
    assert list(said) == ["directions", "signs", "norms", "model_stock", "spectra"]
    assert "nearly orthogonal" in said["directions"]
    assert "toss of a coin" in said["signs"]
    assert "--control" in said["signs"]
    assert "no delta dominates" in said["norms"]
    assert "So short a step forgets little by any method" in said["model_stock"]
    assert "tsv_m, which takes the leading 1/2 of each" in said["spectra"]


def test_deltas_that_agree(tmp_path: Path) -> None:
    _, report = together(tmp_path, "alike")
    said = lines(report)
    assert "much alike" in said["directions"]
    assert "has something to go by" in said["signs"]
    assert "short" not in said["model_stock"]


def test_deltas_that_point_away_from_one_another(tmp_path: Path) -> None:
    first = tensors(1)
    minus = {name: -tensor for name, tensor in first.items()}
    paths = [
        write_delta(tmp_path / f"{name}.delta", item)
        for name, item in (("plus", first), ("minus", minus))
    ]
    said = lines(inspect(paths))
    assert f"{paths[0]} and {paths[1]} point away from one another" in said["directions"]
    assert "cancel out" in said["model_stock"]


def test_a_long_delta_dominates_and_scales_even_it_out(tmp_path: Path) -> None:
    paths, report = together(tmp_path, "uneven")
    said = lines(report)["norms"]
    assert re.search(
        f"{paths[0]} is [0-9]+ times as long as {paths[3]}: a sum points along it", said
    )
    assert all(f"{path}:scale=" in said for path in paths)
    assert "goes beyond the fine-tune" in said


@pytest.mark.parametrize("case", ["one of zeros", "all zero"])
def test_a_delta_of_zeros_is_named(tmp_path: Path, case: str) -> None:
    paths, report = together(tmp_path, case)
    said = lines(report)
    assert repr(str(paths[1])) in said["norms"]
    assert "zero throughout, and `merge` refuses" in said["norms"]
    assert ("directions" in said) == (case != "all zero")


def test_one_delta_has_spectra_alone(deltas: Path) -> None:
    report = inspect([deltas / "ca.delta"])
    assert report.together is None
    (said,) = report.advice
    assert said.startswith("spectra: 90% of a matrix's energy takes ")
    assert "tsv_m" not in said
    assert inspect([deltas / "ca.delta"], spectra=False).advice == ()


def test_a_checkpoint_has_nothing_to_say(models: Path) -> None:
    assert inspect([models / "base"]).advice == ()


def test_pruned_deltas_that_share_no_element(tmp_path: Path) -> None:
    base = {FC1: torch.zeros(4, 4)}
    save(tmp_path / "base", base)
    for row in range(2):
        values = torch.zeros(4, 4)
        values[row] = 1.0
        save(tmp_path / "ft", {FC1: values})
        delta(tmp_path / "base", tmp_path / "ft", tmp_path / f"{row}.delta")
    said = lines(inspect([tmp_path / "0.delta", tmp_path / "1.delta"]))
    assert "no two deltas share an element" in said["signs"]


def test_deltas_of_different_bases_are_warned_of(tmp_path: Path) -> None:
    for seed in (1, 2):
        base = small_base(seed=seed)
        save(tmp_path / "base", base)
        save(tmp_path / "ft", tuned(base))
        delta(tmp_path / "base", tmp_path / "ft", tmp_path / f"{seed}.delta")
    paths = [tmp_path / "1.delta", tmp_path / "2.delta"]
    (warning,) = inspect(paths).warnings
    assert warning.startswith(f"{paths[0]} and {paths[1]} are deltas of different bases")
    assert inspect(paths[:1]).warnings == []


def test_what_is_said_names_methods_that_there_are(tmp_path: Path) -> None:
    _, report = together(tmp_path, "two")
    text = " ".join(report.advice)
    for name in ("ties", "wa", "model_stock", "tsv_m"):
        assert name in text
        assert name in METHODS


def test_pruned_deltas(deltas: Path, tmp_path: Path) -> None:
    for name in ("ca", "de"):
        prune(deltas / f"{name}.delta", tmp_path / f"{name}.delta", svp=0.05)
    report = inspect([tmp_path / "ca.delta", tmp_path / "de.delta"])
    assert report.deltas[0].total.rank <= 0.1
    assert "spectra" in lines(report)


def test_flat_spectra_want_a_sparse_part(tmp_path: Path) -> None:
    path = write_delta(tmp_path / "x.delta", {"layers.0.fc1.weight": torch.eye(20)})
    (said,) = inspect([path]).advice
    assert "90% of its singular values" in said
    assert "flat" in said
