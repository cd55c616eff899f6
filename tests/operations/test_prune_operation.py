"""Pruning keeps what the ratios say of the linear weights, and says how much that is."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from operation_calls import BIAS, CONV, EMBEDDING, FC1, FC2, SHAPES, plan, save, small_base, tuned
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorsmerge_cli import delta, prune
from lorsmerge_cli.core.low_rank_sparse import LowRankSparse, dense
from lorsmerge_cli.deltas.encodings import TensorLayout
from lorsmerge_cli.deltas.file import DeltaFile, DeltaWriter
from lorsmerge_cli.errors import LorsmergeError, NonFinite, OutputFault, UnreadableFile, UsageFault
from lorsmerge_cli.operations.merge import run_merge
from lorsmerge_cli.recipe.recipe import DeltaEntry

LINEAR = re.compile(r".*(_attn\.(q|k|v|out)_proj|fc1|fc2)\.weight")
RATIOS = [(0.05, 0.2), (0.05, None), (None, 0.2), (0.0, 0.2), (0.05, 0.0), (0.3, 0.9), (1e-9, 1e-3)]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The delta of a small model."""
    folder = tmp_path / "small"
    folder.mkdir()
    base = small_base()
    return_path = folder / "x.delta"
    delta(save(folder / "base", base), save(folder / "ca", tuned(base)), return_path)
    return return_path


def expected(matrix: torch.Tensor, svp: float | None, mp: float | None) -> torch.Tensor:
    """Eq. 5-7 in float64, by NumPy's own SVD and a sort."""
    wide = matrix.double()
    low_rank = torch.zeros_like(wide)
    if svp:
        rank = max(1, math.floor(svp * min(wide.shape)))
        u, s, v = torch.linalg.svd(wide, full_matrices=False)
        low_rank = (u[:, :rank] * s[:rank]) @ v[:rank]
    if not mp:
        return low_rank
    residual = (wide - low_rank).reshape(-1)
    kept = residual.abs().argsort(descending=True)[: math.floor(mp * wide.numel())]
    sparse = torch.zeros_like(residual)
    sparse[kept] = residual[kept]
    return low_rank + sparse.reshape(wide.shape)


@pytest.mark.parametrize(("svp", "mp"), RATIOS)
def test_what_is_kept(tmp_path: Path, deltas: Path, svp: float | None, mp: float | None) -> None:
    prune(deltas / "ca.delta", tmp_path / "p.delta", svp=svp, mp=mp)
    before, after = DeltaFile(deltas / "ca.delta"), DeltaFile(tmp_path / "p.delta")
    assert after.specs == before.specs
    for name, layout in after.layouts.items():
        if not LINEAR.fullmatch(name):
            assert layout == before.layouts[name]
            assert torch.equal(after.read(name), before.read(name))
            continue
        d, k = layout.shape
        assert layout.rank == (max(1, math.floor(svp * min(d, k))) if svp else 0)
        assert layout.kept == (math.floor(mp * d * k) if mp else 0)
        wanted = expected(before.read(name), svp, mp)
        # an entry at the threshold may be kept in one arithmetic and not in the other
        off = (dense(after.read(name)).double() - wanted).abs() > 1e-5 * wanted.abs().max()
        assert off.sum() <= 2


@pytest.mark.parametrize(("svp", "mp"), RATIOS)
def test_energy_shares(tmp_path: Path, deltas: Path, svp: float | None, mp: float | None) -> None:
    report = prune(deltas / "ca.delta", tmp_path / "p.delta", svp=svp, mp=mp)
    before, after = DeltaFile(deltas / "ca.delta"), DeltaFile(tmp_path / "p.delta")
    sums: dict[str, list[float]] = {}
    for name in before.specs:
        linear = LINEAR.fullmatch(name)
        groups = [name.split(".", 4)[-1], "pruned"] if linear else ["unpruned"]
        row = [
            1,
            before.specs[name].numel,
            float(before.read(name).double().square().sum()),
            float(dense(after.read(name)).double().square().sum()),
        ]
        for group in groups:
            sums[group] = [a + b for a, b in zip(sums.get(group, [0] * 4), row, strict=True)]
        assert after.norms[name] == pytest.approx(row[3] ** 0.5, rel=1e-6)
    found = {**report.kinds, "pruned": report.pruned, "unpruned": report.unpruned}
    assert found.keys() == sums.keys()
    for group, (tensors, entries, energy, kept) in sums.items():
        item = found[group]
        assert (item.tensors, item.entries) == (tensors, entries)
        assert item.energy == pytest.approx(energy, rel=1e-6)
        assert item.kept == pytest.approx(kept, rel=1e-6)
        assert item.share == pytest.approx(kept / energy, rel=1e-6)
    share = sums["pruned"][3] / sums["pruned"][2]
    assert after.provenance.pruning["energy_kept"] == pytest.approx(share, rel=1e-6)
    assert report.unpruned.share == pytest.approx(1.0)


def test_bytes_reported_are_bytes_stored(tmp_path: Path, deltas: Path) -> None:
    report = prune(deltas / "ca.delta", tmp_path / "p.delta", svp=0.05, mp=0.1)
    stored = sum(t.nbytes for t in load_file(tmp_path / "p.delta").values())
    assert report.pruned.nbytes + report.unpruned.nbytes == stored
    assert report.pruned.nbytes < 0.3 * 4 * report.pruned.entries


def test_provenance_grows(tmp_path: Path, deltas: Path) -> None:
    prune(deltas / "ca.delta", tmp_path / "p.delta", svp=0.05, mp=0.1, command="the line")
    old = DeltaFile(deltas / "ca.delta").provenance
    new = DeltaFile(tmp_path / "p.delta").provenance
    assert new.history == (*old.history, "the line")
    assert {key: new.pruning[key] for key in ("method", "svp", "mp")} == {
        "method": "lors", "svp": 0.05, "mp": 0.1,
    }  # fmt: skip
    assert (new.base, new.task, new.language) == (old.base, old.task, old.language)


@pytest.mark.parametrize(("svp", "mp"), [(1.0, None), (None, 1.0), (1.0, 0.1), (0.1, 1.0)])
def test_a_budget_of_everything_keeps_the_delta_as_it_is(small: Path, svp, mp) -> None:
    report = prune(small, small.with_name("p.delta"), svp=svp, mp=mp)
    before, after = load_file(small), load_file(small.with_name("p.delta"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert report.pruned.share == pytest.approx(1.0)


PATTERNS = {
    "rule": ({}, {FC1, FC2}),
    "include": ({"include": ("*embed*",)}, {FC1, FC2, EMBEDDING}),
    "exclude": ({"exclude": ("*fc1*",)}, {FC2}),
    "both": ({"include": ("*embed*",), "exclude": ("*.fc?.weight",)}, {EMBEDDING}),
}


@pytest.mark.parametrize(("patterns", "wanted"), PATTERNS.values(), ids=PATTERNS)
def test_patterns(small: Path, patterns: dict[str, Any], wanted: set[str]) -> None:
    output = small.with_name("p.delta")
    report = prune(small, output, mp=0.2, **patterns)
    layouts = DeltaFile(output).layouts
    assert {name for name in layouts if layouts[name].encoding == "lors"} == wanted
    assert report.pruned.tensors == len(wanted)
    assert report.pruned.tensors + report.unpruned.tensors == len(SHAPES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_narrower_dtype_rounds_what_float32_would_store(small: Path, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    prune(small, small.with_name("a.delta"), svp=0.1, mp=0.2)
    prune(small, small.with_name("b.delta"), svp=0.1, mp=0.2, dtype=name)
    wide, narrow = load_file(small.with_name("a.delta")), load_file(small.with_name("b.delta"))
    assert wide.keys() == narrow.keys()
    for part, tensor in wide.items():
        rounded = tensor.to(dtype) if tensor.is_floating_point() else tensor
        assert torch.equal(narrow[part], rounded)


def small_deltas(folder: Path, size: float, dtype: torch.dtype = torch.float32) -> Path:
    """The delta of a model whose tensors moved by about `size`."""
    base = {n: t.to(dtype) for n, t in small_base().items() if t.is_floating_point()}
    zeros = {n: torch.zeros_like(t) for n, t in base.items()}  # so that no update is rounded
    moved = tuned(zeros, step=size)
    delta(save(folder / "b", zeros), save(folder / "f", moved), folder / "s.delta", force=True)
    return folder / "s.delta"


def numbers(path: Path) -> np.ndarray:
    file = DeltaFile(path)
    return np.concatenate([dense(file.read(n)).double().reshape(-1).numpy() for n in file.layouts])


@pytest.mark.parametrize("ratios", [{"svp": 0.1, "mp": 0.2}, {"svp": 0.3}, {"mp": 0.3}])
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("size", [1e-3, 1e-5, 1e-6])
def test_the_error_of_rounding_is_reported_beside_the_energy(
    tmp_path: Path, ratios: dict[str, float], name: str, size: float
) -> None:
    source = small_deltas(tmp_path, size)
    exact = prune(source, tmp_path / "exact", **ratios)
    rounded = prune(source, tmp_path / "rounded", dtype=name, **ratios)
    a, b = numbers(tmp_path / "exact"), numbers(tmp_path / "rounded")
    whole = rounded.pruned + rounded.unpruned
    wanted = np.linalg.norm(b - a) / np.linalg.norm(a)
    assert whole.rounding_error == pytest.approx(wanted, rel=1e-3)
    assert whole.stored == pytest.approx(b @ b, rel=1e-5)
    assert rounded.pruned.share == pytest.approx(exact.pruned.share, rel=1e-6)
    assert (exact.pruned + exact.unpruned).rounding_error == 0
    assert all(f"{wanted:.1%}" in text for text in rounded.warnings)
    assert bool(rounded.warnings) == (wanted >= 0.01)
    assert exact.warnings == ()
    norms = DeltaFile(tmp_path / "rounded").norms
    assert sum(norm**2 for norm in norms.values()) == pytest.approx(b @ b, rel=1e-5)


@pytest.mark.parametrize("size", [1e-7, 2e-8, 1e-9])
@pytest.mark.parametrize("ratios", [{"svp": 0.1, "mp": 0.2}, {"mp": 0.3}])
def test_what_rounding_ruins_is_not_written(
    tmp_path: Path, size: float, ratios: dict[str, float]
) -> None:
    source, output = small_deltas(tmp_path, size), tmp_path / "out" / "p.delta"
    output.parent.mkdir()
    with pytest.raises(LorsmergeError, match=r"float16 changes \d+\.\d%") as caught:
        prune(source, output, dtype="float16", **ratios)
    assert "--dtype bfloat16" in caught.value.remedy
    assert list(output.parent.iterdir()) == []
    output.write_text("mine")
    with pytest.raises(LorsmergeError, match="float16"):
        prune(source, output, dtype="float16", force=True, **ratios)
    assert output.read_text() == "mine"
    report = prune(source, output, dtype="bfloat16", force=True, **ratios)
    assert (report.pruned + report.unpruned).rounding_error < 0.005
    assert report.warnings == ()


def test_a_delta_kept_in_half_precision_is_rounded_when_it_is_pruned_again(tmp_path: Path) -> None:
    """Without --dtype the delta's own is stored, which costs what asking for it costs."""
    source = small_deltas(tmp_path, 1e-3)
    prune(source, tmp_path / "half.delta", mp=0.5, dtype="float16")
    again = prune(tmp_path / "half.delta", tmp_path / "again.delta", svp=0.2)
    wide = prune(tmp_path / "half.delta", tmp_path / "wide.delta", svp=0.2, dtype="float32")
    a, b = numbers(tmp_path / "wide.delta"), numbers(tmp_path / "again.delta")
    assert again.pruned.rounding_error > 0
    assert (again.pruned + again.unpruned).rounding_error == pytest.approx(
        np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-2
    )
    assert (wide.pruned + wide.unpruned).rounding_error == 0


def test_float64_in_float32(tmp_path: Path) -> None:
    source = small_deltas(tmp_path, 1e-3, torch.float64)
    report = prune(source, tmp_path / "p.delta", mp=0.5, dtype="float32")
    assert 0 < (report.pruned + report.unpruned).rounding_error < 1e-7
    assert report.warnings == ()
    tiny = small_deltas(tmp_path, 1e-46, torch.float64)
    with pytest.raises(LorsmergeError, match="float32") as caught:
        prune(tiny, tmp_path / "q.delta", mp=0.5, dtype="float32")
    assert "float64" in caught.value.remedy
    assert not (tmp_path / "q.delta").exists()


def test_a_tensor_that_rounding_ruins_is_named_though_the_rest_is_sound(tmp_path: Path) -> None:
    base = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    moved = tuned(base) | {BIAS: torch.full(SHAPES[BIAS], 1e-9)}
    delta(save(tmp_path / "b", base), save(tmp_path / "f", moved), tmp_path / "x.delta")
    report = prune(tmp_path / "x.delta", tmp_path / "p.delta", mp=0.5, dtype="float16")
    (text,) = report.warnings
    assert BIAS in text
    assert FC1 not in text
    assert (report.pruned + report.unpruned).rounding_error < 0.01


@pytest.mark.parametrize(
    ("patterns", "idle"),
    [
        ({"include": ("*fc1*",)}, ["--include '*fc1*'"]),
        ({"include": ("*embed*",), "exclude": ("*embed*",)}, ["--include '*embed*'"]),
        ({"exclude": ("*embed*",)}, ["--exclude '*embed*'"]),
        ({"exclude": ("*fc1*", "*layers.0.fc1*")}, ["--exclude '*fc1*'", "--exclude '*layers"]),
        ({"exclude": ("*fc1*", "*fc1*")}, []),
        ({"include": ("*embed*",)}, []),
        ({"exclude": ("*fc1*",)}, []),
        ({}, []),
    ],
)
def test_a_pattern_that_changes_nothing_is_told(
    small: Path, patterns: dict[str, Any], idle: list[str]
) -> None:
    report = prune(small, small.parent / "p.delta", mp=0.2, **patterns)
    told = [text for text in report.warnings if "no effect" in text]
    assert len(told) == len(idle)
    assert all(text.startswith(words) for text, words in zip(told, idle, strict=True))


@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
def test_pruning_again_warns_and_leaves_excluded_tensors_as_they_are(
    small: Path, dtype: str | None
) -> None:
    once, twice = small.with_name("once.delta"), small.with_name("twice.delta")
    assert prune(small, once, svp=0.1, mp=0.3, dtype=dtype).warnings == ()
    report = prune(once, twice, mp=0.1, exclude=("*fc1*",))
    assert "svp 0.1, mp 0.3" in report.warnings[0]
    before, after = load_file(once), load_file(twice)
    kept = [part for part in before if not part.startswith(FC2)]
    assert all(torch.equal(before[part], after[part]) for part in kept)
    assert DeltaFile(twice).layouts[FC2].rank == 0


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_bytes_do_not_depend_on_threads(tmp_path: Path, deltas: Path, threads: int) -> None:
    for name, count in (("a", 1), ("b", threads)):
        prune(deltas / "ca.delta", tmp_path / name, svp=0.05, mp=0.2, threads=count, command="x")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


USAGE = {
    "no ratio": ({}, "--svp"),
    "task arithmetic": ({"method": "ta"}, "how much"),
    "weight averaging": ({"method": "wa", "svp": 0.1}, "wa takes no"),
    "svp with an mp": ({"method": "svp", "svp": 0.1, "mp": 0.1}, "--mp"),
    "lors without mp": ({"method": "lors", "svp": 0.1}, "mp"),
    "both zero": ({"svp": 0.0, "mp": 0.0}, "nothing of the delta"),
    "too much": ({"svp": 1.5}, "between 0 and 1"),
    "negative": ({"mp": -0.1}, "between 0 and 1"),
    "no number": ({"mp": math.nan}, "between 0 and 1"),
    "a method misspelt": ({"method": "lros", "svp": 0.1, "mp": 0.1}, "lors"),
    "a pattern that matches nothing": ({"mp": 0.1, "exclude": ("*fc9*",)}, "fc9"),
    "nothing left to prune": ({"mp": 0.1, "exclude": ("*",)}, "no tensor to prune"),
}


@pytest.mark.parametrize(("changes", "words"), USAGE.values(), ids=USAGE)
def test_wrong_usage(small: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageFault, match=words):
        prune(small, small.with_name("p.delta"), **changes)
    assert not small.with_name("p.delta").exists()


def test_an_unknown_dtype(small: Path) -> None:
    with pytest.raises(LorsmergeError, match="float8"):
        prune(small, small.with_name("p.delta"), mp=0.1, dtype="float8")


def edited(source: Path, target: Path, name: str, value: float) -> Path:
    """A copy of a dense delta with one entry changed by the plain library."""
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(source)
    tensors[name].view(-1)[0] = value
    save_file(tensors, target, metadata=metadata)
    return target


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [FC1, BIAS, CONV])
def test_what_is_not_finite_is_named(small: Path, value: float, name: str) -> None:
    source = edited(small, small.with_name("bad.delta"), name, value)
    with pytest.raises(NonFinite) as caught:
        prune(source, small.with_name("p.delta"), svp=0.1, mp=0.1)
    assert str(source) in str(caught.value)
    assert name in str(caught.value)
    assert not small.with_name("p.delta").exists()


@pytest.mark.parametrize("name", [FC1, BIAS])
def test_what_overflows_the_dtype_is_named(small: Path, name: str) -> None:
    source = edited(small, small.with_name("large.delta"), name, 1e6)
    with pytest.raises(NonFinite) as caught:
        prune(source, small.with_name("p.delta"), svp=0.1, mp=0.1, dtype="float16")
    assert name in str(caught.value)
    assert not small.with_name("p.delta").exists()


def test_inputs_that_are_no_delta(tmp_path: Path, models: Path) -> None:
    weights = models / "ca" / "model.safetensors"
    for path in (weights, models / "ca", tmp_path / "absent.delta"):
        with pytest.raises(UnreadableFile) as caught:
            prune(path, tmp_path / "p.delta", mp=0.1)
        assert str(path) in str(caught.value)


def test_an_input_is_never_the_output(small: Path) -> None:
    before = small.read_bytes()
    os.link(small, small.with_name("link.delta"))
    for output in (small, small.with_name("link.delta")):
        with pytest.raises(OutputFault, match="input"):
            prune(small, output, mp=0.1, force=True)
    assert small.read_bytes() == before


def test_an_interrupt_leaves_nothing(tmp_path: Path, deltas: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(deltas / "ca.delta", tmp_path / "p", mp=0.1, progress=interrupt)
    assert os.listdir(tmp_path) == []


def test_progress_reaches_the_total(tmp_path: Path, deltas: Path) -> None:
    told: list[tuple[int, int]] = []
    prune(deltas / "ca.delta", tmp_path / "p", mp=0.1, progress=lambda a, b: told.append((a, b)))
    assert {sum(done for done, _ in told)} == {total for _, total in told}


@pytest.mark.parametrize(("svp", "mp"), [(0.0, 1e-4), (None, 1e-4), (0.5, 1e-4), (0.05, 0.2)])
def test_nothing_kept_and_little_kept(small: Path, svp: float | None, mp: float) -> None:
    """floor(mp * numel) is 0: the file is sound, and merges as what is left."""
    prune(small, small.with_name("p.delta"), svp=svp, mp=mp)
    before, after = DeltaFile(small), DeltaFile(small.with_name("p.delta"))
    for name in (FC1, FC2):
        wanted = expected(before.read(name), svp, mp)
        torch.testing.assert_close(dense(after.read(name)).double(), wanted, rtol=1e-4, atol=1e-8)
        assert after.layouts[name].is_zero == (not svp and mp < 1e-3)


def adapters_delta(folder: Path) -> Path:
    """Factors for one matrix, and nothing for all other tensors."""
    path = folder / "adapter.delta"
    base = small_base()
    source = DeltaFile(take_delta_of(folder))
    layouts = {
        name: TensorLayout("lors", tuple(base[name].shape), torch.float32, 2 if name == FC1 else 0)
        for name in source.specs
    }
    generator = torch.Generator().manual_seed(3)
    left, right = (torch.randn(s, generator=generator) for s in ((48, 2), (2, 32)))
    norms = dict.fromkeys(layouts, 0.0) | {FC1: float((left @ right).norm())}
    with DeltaWriter(path, layouts, source.provenance) as writer:
        writer.write(FC1, LowRankSparse(left, right))
        writer.finish(norms)
    return path


def take_delta_of(folder: Path) -> Path:
    base = small_base()
    delta(save(folder / "b", base), save(folder / "f", tuned(base)), folder / "d.delta")
    return folder / "d.delta"


@pytest.mark.parametrize("scale", [0.7, -0.7])
def test_what_an_adapter_leaves_alone_stays_nothing(tmp_path: Path, scale: float) -> None:
    """It takes no bytes, no piece of its own in a merge, and changes no bit of it, nor a zero's sign."""
    delta = adapters_delta(tmp_path)
    base = small_base()
    for value in base.values():
        value.view(-1)[0] = -0.0
    save(tmp_path / "base", base)
    prune(delta, tmp_path / "p.delta", svp=0.05, mp=0.2)
    layouts = DeltaFile(tmp_path / "p.delta").layouts
    assert {name for name, layout in layouts.items() if not layout.is_zero} == {FC1}
    found = {}
    for source, settings in (("adapter.delta", {"svp": 0.05, "mp": 0.2}), ("p.delta", {})):
        made = plan(tmp_path / "base", [DeltaEntry(str(tmp_path / source), scale=scale, **settings)],
                    tmp_path / f"{source}.safetensors", allow_other_base=True)  # fmt: skip
        assert {unit.name for unit in made.units() if unit.whole} == (
            {FC1, FC2} if settings else {FC1}
        )
        run_merge(made)
        found[source] = load_file(tmp_path / f"{source}.safetensors")
    for name, value in found["p.delta"].items():
        assert torch.equal(value.view(torch.uint8), found["adapter.delta"][name].view(torch.uint8))
        if name not in (FC1, "positions", "mask"):
            wanted = base[name] + scale * torch.zeros_like(base[name])
            assert torch.equal(value.view(torch.uint8), wanted.view(torch.uint8))
