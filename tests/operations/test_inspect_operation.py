"""Inspect's figures against NumPy's."""

from __future__ import annotations

import math
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from operation_calls import (
    EMBEDDING,
    FC1,
    FC2,
    SHAPES,
    load,
    save,
    small_base,
    tuned,
    write_delta,
)
from safetensors.torch import load_file

from lorsmerge_cli import delta, prune
from lorsmerge_cli.core.low_rank_sparse import LowRankSparse, dense
from lorsmerge_cli.deltas.encodings import TensorLayout
from lorsmerge_cli.deltas.file import DeltaFile, DeltaWriter
from lorsmerge_cli.errors import Faults, Mismatch, UnreadableFile
from lorsmerge_cli.operations.inspect import compare
from lorsmerge_cli.operations.inspect.report import TOP_RATIOS
from lorsmerge_cli.operations.inspect.run import inspect as inspect_files


def arrays(path: Path) -> dict[str, np.ndarray]:
    file = DeltaFile(path)
    return {name: dense(file.read(name)).double().numpy() for name in file.specs}


def flat(path: Path) -> np.ndarray:
    return np.concatenate([array.reshape(-1) for array in arrays(path).values()])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Deltas of a small model: two, the first negated, and pruned copies."""
    folder = tmp_path_factory.mktemp("small")
    base = small_base()
    save(folder / "base", base)
    tunes = {"a": tuned(base, 1), "b": tuned(base, 2)}
    tunes["minus"] = {
        name: 2 * base[name] - t if t.is_floating_point() else t for name, t in tunes["a"].items()
    }
    for name, tensors in tunes.items():
        delta(folder / "base", save(folder / name, tensors), folder / f"{name}.delta")
    prune(folder / "a.delta", folder / "pa.delta", svp=0.1, mp=0.2)
    prune(folder / "b.delta", folder / "pb.delta", mp=0.1)
    return folder


PAIRS = [("a", "b"), ("a", "minus"), ("a", "pa"), ("pa", "pb"), ("a", "a")]


@pytest.mark.parametrize(("first", "second"), PAIRS)
@pytest.mark.parametrize("threads", [1, 3])
def test_cosine_and_sign_conflict(small: Path, first: str, second: str, threads: int) -> None:
    paths = [small / f"{first}.delta", small / f"{second}.delta"]
    (pair,) = inspect_files(paths, spectra=False, threads=threads).pairs
    x, y = (flat(path) for path in paths)
    both = (x != 0) & (y != 0)
    assert (pair.first, pair.second) == tuple(paths)
    assert pair.cosine == pytest.approx(x @ y / math.sqrt((x @ x) * (y @ y)), abs=1e-9)
    assert pair.sign_conflict == pytest.approx((np.sign(x) != np.sign(y))[both].mean(), abs=1e-12)


def test_the_ends_of_the_scales(small: Path) -> None:
    report = inspect_files([small / f"{name}.delta" for name in ("a", "a", "minus")], spectra=False)
    same, opposite, _ = report.pairs
    assert (same.cosine, same.sign_conflict) == (pytest.approx(1.0), 0.0)
    assert opposite.cosine == pytest.approx(-1.0, abs=1e-3)
    assert opposite.sign_conflict > 0.99


def test_every_pair_once(small: Path) -> None:
    paths = [small / f"{name}.delta" for name in ("a", "b", "minus", "pa")]
    pairs = inspect_files(paths, spectra=False).pairs
    assert len({(pair.first, pair.second) for pair in pairs}) == 6


def test_top_energies(deltas: Path) -> None:
    (report,) = inspect_files([deltas / "ca.delta"]).files
    top = dict.fromkeys(TOP_RATIOS, 0.0)
    total = 0.0
    for name, array in arrays(deltas / "ca.delta").items():
        if array.ndim != 2 or "embed" in name:
            continue
        squares = np.linalg.svd(array, compute_uv=False) ** 2
        total += squares.sum()
        for ratio in TOP_RATIOS:
            top[ratio] += squares[: max(1, math.floor(ratio * len(squares)))].sum()
    assert report.total.spectral_energy == pytest.approx(total, rel=1e-6)
    for ratio in TOP_RATIOS:
        assert report.total.top_share(ratio) == pytest.approx(top[ratio] / total, rel=1e-4)


def test_top_energies_of_a_pruned_delta_are_one_at_its_own_ratio(
    tmp_path: Path, deltas: Path
) -> None:
    prune(deltas / "ca.delta", tmp_path / "p.delta", svp=0.05)
    (report,) = inspect_files([tmp_path / "p.delta"]).files
    assert report.total.top_share(0.05) == pytest.approx(1.0, abs=1e-5)
    assert report.total.top_share(0.01) < 1.0


@pytest.mark.parametrize("name", ["a", "pa", "pb"])
def test_figures_of_a_delta(small: Path, name: str) -> None:
    path = small / f"{name}.delta"
    (report,) = inspect_files([path]).files
    values = flat(path)
    assert report.total.tensors == len(SHAPES)
    assert report.total.entries == len(values)
    layouts = DeltaFile(path).layouts
    sparse = sum(item.kept for item in layouts.values())
    whole = [name for name, item in layouts.items() if item.encoding == "dense"]
    nonzero = sum(np.count_nonzero(arrays(path)[name]) for name in whole)
    assert report.total.nonzero == sparse + nonzero
    assert report.total.energy == pytest.approx(values @ values, rel=1e-6)
    assert report.total.nbytes == sum(t.nbytes for t in load_file(path).values())
    assert report.provenance == DeltaFile(path).provenance
    pruned = name != "a"
    assert report.encodings == ({"lors": 2, "dense": 3} if pruned else {"dense": 5})
    assert report.dtypes == ("float32",)


def test_kinds_add_up_to_the_total(deltas: Path) -> None:
    (report,) = inspect_files([deltas / "ca.delta"]).files
    for figure in ("tensors", "entries", "nonzero", "nbytes"):
        assert sum(getattr(item, figure) for item in report.kinds.values()) == getattr(
            report.total, figure
        )
    assert report.kinds["self_attn.q_proj.weight"].tensors == 4
    assert report.kinds["fc1.bias"].top_share(0.01) is None
    assert report.kinds["model.decoder.embed_tokens.weight"].top_share(0.01) is None


def test_without_spectra(small: Path) -> None:
    (report,) = inspect_files([small / "a.delta"], spectra=False).files
    assert report.total.top_share(0.01) is None


def test_histograms(small: Path) -> None:
    (report,) = inspect_files([small / "a.delta"], plot=small / "a.png").files
    assert (small / "a.png").read_bytes().startswith(b"\x89PNG")
    values = np.concatenate([arrays(small / "a.delta")[name].reshape(-1) for name in (FC1, FC2)])
    assert float(report.total.magnitudes.sum()) == np.count_nonzero(values)
    squares = np.linalg.svd(arrays(small / "a.delta")[FC1], compute_uv=False) ** 2
    np.testing.assert_allclose(
        report.kinds["fc1.weight"].singular_values.numpy(), squares, rtol=1e-3, atol=1e-9
    )


def test_figures_do_not_depend_on_threads(deltas: Path) -> None:
    paths = [deltas / "ca.delta", deltas / "de.delta"]
    one, many = (inspect_files(paths, threads=threads) for threads in (1, 4))
    assert one == many


def test_a_checkpoint(models: Path) -> None:
    (report,) = inspect_files([models / "base"]).files
    tensors = load(models / "base")
    assert report.tensors == len(tensors) == sum(group.count for group in report.groups)
    assert report.parameters == sum(t.numel() for t in tensors.values())
    assert report.nbytes == sum(t.nbytes for t in tensors.values())
    assert sum(group.nbytes for group in report.groups) == report.nbytes
    q_proj = "model.encoder.layers.*.self_attn.q_proj.weight"
    (group,) = [group for group in report.groups if group.name == q_proj]
    assert (group.module, group.count, group.shape, group.dtype) == (
        "encoder", 2, (64, 64), "float32",
    )  # fmt: skip


def test_a_tied_copy_is_listed(tmp_path: Path) -> None:
    tensors = small_base()
    tensors["proj_out.weight"] = tensors[EMBEDDING].clone()
    (report,) = inspect_files([save(tmp_path / "x", tensors)]).files
    assert report.tied == {"proj_out.weight": EMBEDDING}
    assert report.tensors == len(tensors) - 1


def test_checkpoints_and_deltas_together_in_the_order_given(models: Path, deltas: Path) -> None:
    paths = [deltas / "ca.delta", models / "base", deltas / "de.delta"]
    report = inspect_files(paths, spectra=False)
    assert [item.path for item in report.files] == paths
    assert len(report.pairs) == 1


def test_deltas_of_different_models_have_no_cosine(small: Path, deltas: Path) -> None:
    with pytest.raises(Mismatch) as caught:
        inspect_files([small / "a.delta", deltas / "ca.delta"])
    assert str(deltas / "ca.delta") in str(caught.value)


def test_all_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    (tmp_path / "empty.delta").write_bytes(b"")
    with pytest.raises(Faults) as caught:
        inspect_files([tmp_path / "absent", tmp_path / "empty.delta"])
    assert "absent" in str(caught.value)
    assert "empty.delta" in str(caught.value)
    with pytest.raises(UnreadableFile):
        inspect_files([tmp_path / "absent"])


def test_progress_reaches_the_total(small: Path) -> None:
    told: list[tuple[int, int]] = []
    inspect_files(
        [small / "a.delta", small / "pa.delta"],
        progress=lambda done, total: told.append((done, total)),
    )
    assert {sum(done for done, _ in told)} == {total for _, total in told}


def test_a_delta_of_zeros_and_ones(tmp_path: Path) -> None:
    """Orthogonal deltas: no common entry, so neither angle nor conflict."""
    base = {name: torch.zeros(4, 4) for name in (FC1, FC2)}
    save(tmp_path / "base", base)
    for name in (FC1, FC2):
        save(tmp_path / "ft", base | {name: torch.ones(4, 4)})
        delta(tmp_path / "base", tmp_path / "ft", tmp_path / f"{name}.delta")
    (pair,) = inspect_files([tmp_path / f"{name}.delta" for name in (FC1, FC2)]).pairs
    assert (pair.cosine, pair.sign_conflict) == (0.0, 0.0)


def test_tensors_of_zeros_take_no_memory(tmp_path: Path) -> None:
    """16 GB of them in float32, in files of a few kB: measured and compared as what they are."""
    base = save(tmp_path / "base", small_base())
    source = delta(base, save(tmp_path / "ca", tuned(small_base())), tmp_path / "x.delta")
    provenance = DeltaFile(source.output).provenance
    layouts = {
        "zero.weight": TensorLayout("lors", (2**16, 2**16), torch.float32),
        "fc1.weight": TensorLayout("lors", (4, 3), torch.float32, 1),
    }
    for number in (1, 2):
        with DeltaWriter(tmp_path / f"{number}.delta", layouts, provenance) as writer:
            writer.write("fc1.weight", LowRankSparse(torch.ones(4, 1), torch.ones(1, 3) * number))
            writer.finish({"zero.weight": 0.0, "fc1.weight": 12**0.5 * number})
    report = inspect_files([tmp_path / "1.delta", tmp_path / "2.delta"], threads=1)
    assert report.pairs[0].cosine == pytest.approx(1.0)
    assert report.pairs[0].sign_conflict == 0
    for item, norm in zip(report.files, (12**0.5, 2 * 12**0.5), strict=True):
        zero, all_ = item.kinds["zero.weight"], item.total
        assert (zero.entries, zero.nonzero, zero.nbytes) == (2**32, 0, 0)
        assert all_.energy**0.5 == pytest.approx(norm)


def odd_tensors() -> dict[str, torch.Tensor | LowRankSparse]:
    generator = torch.Generator().manual_seed(0)
    empty = torch.zeros(6, 8)
    return {
        "layers.0.zero.weight": torch.zeros(6, 8),
        "layers.0.one.weight": torch.full((1, 1), 0.5),
        "layers.0.row.weight": torch.randn(1, 9, generator=generator),
        "layers.0.empty.weight": torch.zeros(0, 5),
        "layers.0.narrow.weight": torch.zeros(5, 0),
        "layers.0.none.bias": torch.zeros(0),
        "scalar": torch.tensor(-2.0),
        "layers.0.tiny.weight": torch.randn(6, 8, generator=generator) * 1e-30,
        "layers.0.huge.weight": torch.randn(6, 8, generator=generator) * 1e25,
        "layers.0.pruned.weight": LowRankSparse(sparse=empty, mask=empty.bool()),
        "layers.0.rank.weight": LowRankSparse(
            torch.randn(6, 2, generator=generator), torch.randn(2, 8, generator=generator)
        ),
    }


@pytest.mark.parametrize("name", odd_tensors())
@pytest.mark.parametrize("plot", [True, False])
def test_a_delta_of_one_odd_tensor(tmp_path: Path, name: str, plot: bool) -> None:
    item = odd_tensors()[name]
    paths = [write_delta(tmp_path / f"{n}.delta", {name: item}) for n in range(2)]
    report = inspect_files(paths, plot=tmp_path / "x.png" if plot else None)
    values = dense(item).double().numpy()
    (pair,) = report.pairs
    for file in report.files:
        assert file.total.tensors == 1
        assert file.total.entries == values.size
        assert file.total.energy == pytest.approx(float((values**2).sum()), rel=1e-5)
        share = file.total.top_share(0.05)
        if values.ndim == 2 and values.any():
            squares = np.linalg.svd(values, compute_uv=False) ** 2
            assert share == pytest.approx(squares[0] / squares.sum(), rel=1e-4)
        else:
            assert share is None
    assert pair.cosine == pytest.approx(float(values.any()), abs=1e-6)
    assert pair.sign_conflict == 0
    assert report.warnings == []


def test_odd_tensors_beside_each_other(tmp_path: Path) -> None:
    path = write_delta(tmp_path / "x.delta", odd_tensors())
    (report,) = inspect_files([path], plot=tmp_path / "x.png").files
    assert report.total.tensors == len(odd_tensors())
    assert report.kinds["zero.weight"].top_share(0.01) is None


def test_a_delta_of_no_tensors(tmp_path: Path) -> None:
    path = write_delta(tmp_path / "x.delta", {})
    report = inspect_files([path, path], plot=tmp_path / "x.png")
    assert [file.total.tensors for file in report.files] == [0, 0]
    assert (report.pairs[0].cosine, report.pairs[0].sign_conflict) == (0.0, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bad", [[FC1], [FC2, EMBEDDING], list(SHAPES)])
@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_not_finite_is_named_and_left_out(
    tmp_path: Path, small: Path, value: float, bad: list[str], threads: int
) -> None:
    tensors = {name: torch.from_numpy(t).float() for name, t in arrays(small / "a.delta").items()}
    broken = {name: t.clone() for name, t in tensors.items()}
    for name in bad:
        broken[name].view(-1)[3] = value
    sound = {name: t for name, t in tensors.items() if name not in bad}
    path = write_delta(tmp_path / "broken.delta", broken)
    report = inspect_files(
        [small / "b.delta", path], plot=tmp_path / "x.png", threads=threads, force=True
    )
    first, second = report.files
    assert first.total.non_finite == []
    assert sorted(second.total.non_finite) == sorted(bad)
    assert (second.total.tensors, second.total.nbytes) == (5, first.total.nbytes)
    assert second.total.entries == sum(t.numel() for t in sound.values())
    wanted = sum(float(t.double().square().sum()) for t in sound.values())
    assert second.total.energy == pytest.approx(wanted, rel=1e-9)
    text = report.warnings[0]
    assert text.startswith(f"{path}: {len(bad)} of 5 tensors")
    assert all(repr(name) in text for name in second.total.non_finite[:3])
    b = arrays(small / "b.delta")
    x = np.concatenate([np.zeros(1), *(b[name].reshape(-1) for name in sound)])
    y = np.concatenate([np.zeros(1), *(t.double().numpy().reshape(-1) for t in sound.values())])
    norms = np.linalg.norm(x) * np.linalg.norm(y)
    assert report.pairs[0].cosine == pytest.approx(x @ y / norms if norms else 0.0, abs=1e-9)
    figures = [getattr(report.pairs[0], name) for name in ("cosine", "sign_conflict")]
    figures += list(second.total.top.values())
    assert all(math.isfinite(figure) for figure in figures)


def test_two_tensors_are_held_at_a_time(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many deltas there are: what is compared is let go before the next is read."""
    alive: set[int] = set()
    most = 0

    class Held(torch.Tensor):
        """A tensor that tells when it goes."""

    def held(delta: torch.Tensor | LowRankSparse) -> torch.Tensor:
        nonlocal most
        tensor = dense(delta).clone().as_subclass(Held)
        number = id(tensor)
        alive.add(number)
        most = max(most, len(alive))
        weakref.finalize(tensor, alive.discard, number)
        return tensor

    monkeypatch.setattr(compare, "dense", held)
    paths = [small / f"{name}.delta" for name in ("a", "b", "minus", "pa", "pb", "a", "b")]
    report = inspect_files(paths, spectra=False, threads=1)
    assert len(report.pairs) == 21
    assert 2 <= most <= 3  # two, and one that is being made
