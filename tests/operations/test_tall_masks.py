"""A file of TALL masks: its numbers, the models made from it, its refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from operation_calls import BIAS, CONV, FC1, Tensors, load, same_bits, save, small_base, tuned
from safetensors.torch import save_file

from lorsmerge_cli import delta, inspect, merge, prune, tall_masks
from lorsmerge_cli.core.sketch import Sketch, parse_sketches, sketches_document
from lorsmerge_cli.deltas.file import DeltaFile
from lorsmerge_cli.deltas.tall import TallFile
from lorsmerge_cli.errors import (
    LorsmergeError,
    Mismatch,
    NonFinite,
    OutputFault,
    UnreadableFile,
    UsageFault,
)
from lorsmerge_cli.operations.inspect import TallReport
from lorsmerge_cli.recipe.recipe import DeltaEntry, load_recipe

NAMES = ("ca", "de", "es")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model `base`, fine-tunes `ca`, `de`, `es` and their deltas."""
    monkeypatch.chdir(tmp_path)
    base = small_base()
    save(tmp_path / "base", base)
    for seed, name in enumerate(NAMES, 1):
        save(tmp_path / name, tuned(base, seed))
        delta("base", name, f"{name}.delta", task="asr", language=name)
    return tmp_path


DELTAS = [f"{name}.delta" for name in NAMES]


def wanted(
    base: Tensors, finetunes: list[Tensors], scales: list[float], threshold: float, task: int
) -> dict[str, np.ndarray]:
    """The model of a task in float64, from what is stored of base and fine-tunes."""
    found = {}
    for name, tensor in base.items():
        if tensor.is_floating_point():
            deltas = [(ft[name].float() - tensor.float()).double().numpy() for ft in finetunes]
            kept = reference.tall(deltas, scales, threshold)[task]
            found[name] = tensor.double().numpy() + kept
    return found


@pytest.mark.parametrize("threshold", [0.0, 0.4, 1.0])
def test_the_model_of_each_task(small: Path, threshold: float) -> None:
    entries = [
        DeltaEntry(path, scale=scale) for path, scale in zip(DELTAS, (1, 0.5, -2), strict=True)
    ]
    report = tall_masks("base", entries, "tall.delta", threshold)
    assert report.tasks == NAMES
    finetunes = [load(Path(name)) for name in NAMES]
    for number, name in enumerate(NAMES):
        done = merge("base", output=f"{name}.safetensors", from_masks="tall.delta", for_task=name)
        made = load(done.output)
        exact = wanted(load(Path("base")), finetunes, [1, 0.5, -2], threshold, number)
        for tensor, values in exact.items():
            np.testing.assert_allclose(made[tensor].double(), values, rtol=0, atol=2e-8)
        assert torch.equal(made["positions"], load(Path("base"))["positions"])


def test_scale_dtype_and_rules_are_those_of_other_merges(small: Path) -> None:
    tall_masks("base", DELTAS, "tall.delta")
    whole = merge("base", output="a.safetensors", from_masks="tall.delta", for_task="de")
    half = merge(
        "base", output="b.safetensors", from_masks="tall.delta", for_task="de", scale=0.5,
        dtype="bfloat16",
    )  # fmt: skip
    assert half.step == pytest.approx(whole.step / 2)
    assert load(half.output)[FC1].dtype == torch.bfloat16
    none = merge(
        "base", output="c.safetensors", from_masks="tall.delta", for_task="de", coef="encoder=0"
    )
    assert torch.equal(load(none.output)[FC1], load(Path("base"))[FC1])
    fixed = merge(
        "base", output="d.safetensors", from_masks="tall.delta", for_task="de", step_norm=0.01
    )
    assert fixed.step == pytest.approx(0.01)


def test_one_delta_gives_its_fine_tune(small: Path) -> None:
    tall_masks("base", "ca.delta", "tall.delta", 0.4)
    merge("base", output="t.safetensors", from_masks="tall.delta", for_task="ca")
    merge("base", "ca.delta", "m.safetensors", scale=1)
    assert same_bits(load(Path("t.safetensors")), load(Path("m.safetensors")))


def test_at_threshold_zero_whole_deltas_are_kept(small: Path) -> None:
    report = tall_masks("base", DELTAS, "tall.delta", 0)
    for name, share in zip(NAMES, report.kept, strict=True):
        file = DeltaFile(Path(f"{name}.delta"), has_base=True)
        nonzero = sum(int(torch.count_nonzero(file.read(n))) for n in file.specs)
        assert share == nonzero / sum(spec.numel for spec in file.specs.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(small: Path, dtype: torch.dtype) -> None:
    base = small_base(dtype)
    save(Path("b"), base)
    finetunes = [tuned(base, seed, step=1e-2) for seed in (1, 2)]
    for name, tensors in zip(("x", "y"), finetunes, strict=True):
        save(Path(name), tensors)
    tall_masks("b", ["x", "y"], "tall.delta", 0.4)
    assert {s.dtype for s in TallFile(Path("tall.delta")).specs.values()} == {
        torch.float64 if dtype == torch.float64 else torch.float32
    }
    merge("b", output="m.safetensors", from_masks="tall.delta", for_task="y", dtype="float32")
    made, exact = load(Path("m.safetensors")), wanted(base, finetunes, [1, 1], 0.4, 1)
    for name, values in exact.items():
        if dtype != torch.float64:  # whose deltas `wanted` rounds
            np.testing.assert_allclose(made[name].double(), values, rtol=0, atol=1e-7)


def test_pruned_deltas_adapters_of_experts_and_blocks(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes as low-rank and sparse parts is masked as the dense delta that it stands for."""
    for name in NAMES:
        prune(f"{name}.delta", f"{name}.lors.delta", svp=0.1, mp=0.2)
    pruned = [f"{name}.lors.delta" for name in NAMES]
    tall_masks("base", pruned, "whole.delta", 0.4)
    merged = {}
    for name, path in zip(NAMES, pruned, strict=True):
        merge("base", path, f"{name}-p.safetensors", scale=1, dtype="float32")
        merged[name] = load(Path(f"{name}-p.safetensors"))
    tall_masks("base", [f"{name}-p.safetensors" for name in NAMES], "dense.delta", 0.4)
    for name in NAMES:
        one = TallFile(Path("whole.delta")).vector(f"{name}.lors")
        other = TallFile(Path("dense.delta")).vector(f"{name}-p")
        for tensor in (FC1, BIAS, CONV):
            assert torch.allclose(one.read(tensor), other.read(tensor), atol=1e-7)
        assert one.provenance.pruning == {}  # of one delta: the sum has the others' elements too


def test_stacked_experts_and_empty_tensors(small: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"up": (4, 5, 7), "scalar": (), "none": (0, 3), "row": (1, 13)}
    models = [{n: torch.randn(s, generator=generator) for n, s in shapes.items()} for _ in range(3)]
    for name, tensors in zip(("b", "x", "y"), models, strict=True):
        save_file(tensors, name)
    tall_masks("b", ["x", "y"], "tall.delta", 0.4)
    merge("b", output="m.safetensors", from_masks="tall.delta", for_task="x")
    for name, values in wanted(models[0], models[1:], [1, 1], 0.4, 0).items():
        np.testing.assert_allclose(load(Path("m.safetensors"))[name].double(), values, atol=1e-6)


def test_blocks_and_threads_do_not_change_a_byte(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(name: str, threads: int) -> tuple[bytes, bytes]:
        # fine-tunes: a delta's record of its base depends on the size of a block
        tall_masks("base", NAMES, f"{name}.delta", threads=threads, command="x")
        done = merge(
            "base", output=f"{name}.safetensors", from_masks=f"{name}.delta", for_task="es",
            threads=threads,
        )  # fmt: skip
        return Path(f"{name}.delta").read_bytes(), load(done.output)[FC1].numpy().tobytes()

    whole = made("one", 1)
    for module in ("operations.merge.masks", "operations.merge.plan", "checkpoint.content"):
        monkeypatch.setattr(f"lorsmerge_cli.{module}.BLOCK", 64)
    blocks = made("two", 4)
    again = made("three", 1)
    assert blocks == again
    assert whole[1] == blocks[1]
    head = [len(raw) - int.from_bytes(raw[:8], "little") for raw in (whole[0], blocks[0])]
    assert whole[0][-head[0] + 8 :] == blocks[0][-head[1] + 8 :]  # all but hashes of blocks


def test_rules_by_norm_and_by_agreement(small: Path) -> None:
    tall_masks("base", DELTAS, "a.delta", coef="metagpt")
    scales = [task.scale for task in TallFile(Path("a.delta")).origin.tasks]
    assert sum(scales) == pytest.approx(1)
    tall_masks("base", DELTAS, "b.delta", coef=["decoder=0.5", "model_stock"])
    origin = TallFile(Path("b.delta")).origin
    assert origin.coef == ("decoder=0.5", "model_stock")
    tall_masks("base", DELTAS, "c.delta")
    assert TallFile(Path("b.delta")).read(FC1).norm() < TallFile(Path("c.delta")).read(FC1).norm()


def test_what_is_recorded(small: Path) -> None:
    report = tall_masks("base", DELTAS, "tall.delta", 0.6, scale=0.5)
    (shown,) = inspect("tall.delta").files
    assert isinstance(shown, TallReport)
    assert shown.kept == pytest.approx(report.kept)
    assert shown.origin.threshold == 0.6
    assert [task.provenance.language for task in shown.origin.tasks] == [*NAMES]
    assert [task.scale for task in shown.origin.tasks] == [0.5] * 3
    line = "lorsmerge_cli.tall_masks('base', ['ca.delta', 'de.delta', 'es.delta'], 'tall.delta'"
    assert shown.origin.provenance.history[0].startswith(line)
    assert shown.nbytes == report.nbytes
    done = merge("base", output="m.safetensors", from_masks="tall.delta", for_task="de")
    assert done.norms == (pytest.approx(done.step),)


def test_a_record_makes_the_model_again(small: Path) -> None:
    tall_masks("base", DELTAS, "tall.delta")
    merge(
        "base", output="a.safetensors", from_masks="tall.delta", for_task="de",
        save_recipe="r.toml",
    )  # fmt: skip
    recipe = load_recipe(Path("r.toml"))
    assert recipe.deltas == (DeltaEntry("tall.delta", scale=1.0, for_task="de"),)
    merge(recipe="r.toml", output="b.safetensors")
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()


def test_training_data_of_all_tasks_is_known(small: Path) -> None:
    from safetensors import safe_open

    for number, name in enumerate(NAMES):
        with safe_open(f"{name}.delta", "pt") as file:
            metadata = dict(file.metadata())
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        digests = sketches_document({"audio": Sketch.of([number])})
        metadata["lorsmerge.training"] = json.dumps({"digests": digests, "seed": number})
        save_file(tensors, f"{name}.delta", metadata)
    tall_masks("base", DELTAS, "tall.delta")
    training = TallFile(Path("tall.delta")).vector("de").provenance.training
    assert training["seed"] == 1
    assert parse_sketches(training["digests"])["audio"].hashes.tolist() == [0, 1, 2]


# --- refusals -----------------------------------------------------------------------------------


def no_delta(call: Callable[[], Any]) -> str:
    with pytest.raises(LorsmergeError) as caught:
        call()
    return str(caught.value)


def test_no_task_and_another_task(small: Path) -> None:
    tall_masks("base", [*DELTAS], "tall.delta")
    with pytest.raises(UsageFault, match=r"no --for says which.* ca, de, es\.$"):
        merge("base", from_masks="tall.delta")
    with pytest.raises(
        UsageFault, match=r"has no task 'es_asr'\. Did you mean 'es'\? Its tasks: ca"
    ):
        merge("base", from_masks="tall.delta", for_task="es_asr")
    with pytest.raises(UsageFault, match=r"has no task 'zzzz'\. Its tasks: ca, de, es"):
        merge("base", from_masks="tall.delta", for_task="zzzz")
    with pytest.raises(UsageFault, match=r"none is given\. Give it with --from"):
        merge("base", "ca.delta", for_task="ca")
    with pytest.raises(UsageFault, match="not a file of TALL masks"):
        merge("base", from_masks="ca.delta", for_task="ca")
    with pytest.raises(UnreadableFile, match="not a file of TALL masks"):
        merge("base", from_masks="ca.delta")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"deltas": "ca.delta"}, "deltas"), ({"method": "ties"}, "--method"),
        ({"svp": 0.1, "mp": 0.0}, "--svp, --mp"), ({"prune": "dare"}, "--prune"),
        ({"combine": "ties"}, "--combine"), ({"include": "*"}, "--include"),
        ({"exclude": "*"}, "--exclude"), ({"stats": "x.stats"}, "--stats"),
    ],
)  # fmt: skip
def test_settings_beside_it(small: Path, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageFault, match=f"and {named} ha(s|ve) no use beside it"):
        merge("base", from_masks="tall.delta", for_task="ca", **settings)


def test_audio_beside_it(small: Path) -> None:
    tall_masks("base", DELTAS, "tall.delta")
    with pytest.raises(UsageFault, match=r"--calibrate is given\. Omit --calibrate\.$"):
        merge("base", from_masks="tall.delta", for_task="ca", calibrate="x.jsonl")


def test_it_is_no_delta_and_no_checkpoint(small: Path) -> None:
    tall_masks("base", DELTAS, "tall.delta")
    for call in (
        lambda: merge("base", "tall.delta", "x.safetensors"),
        lambda: merge("base", ["ca.delta", "tall.delta"], "x.safetensors"),
        lambda: merge("tall.delta", "ca.delta", "x.safetensors"),
        lambda: prune("tall.delta", "x.delta", mp=0.1),
        lambda: delta("base", "tall.delta", "x.delta"),
        lambda: tall_masks("base", ["tall.delta", "ca.delta"], "x.delta"),
    ):
        said = no_delta(call)
        assert "tall.delta is a file of TALL masks" in said
        assert "lorsmerge merge BASE --from tall.delta --for TASK" in said


def test_another_base(small: Path) -> None:
    tall_masks("base", DELTAS, "tall.delta")
    save(Path("other"), small_base(seed=9))
    with pytest.raises(Mismatch, match=r"tall\.delta was taken from another model"):
        merge("other", output="x.safetensors", from_masks="tall.delta", for_task="ca")
    done = merge(
        "other", output="x.safetensors", from_masks="tall.delta", for_task="ca",
        allow_other_base=True,
    )  # fmt: skip
    assert "another model" in done.warnings[0]
    with pytest.raises(Mismatch, match="was taken from another model"):
        tall_masks("other", "ca.delta", "y.delta")
    forced = tall_masks("other", "ca.delta", "y.delta", allow_other_base=True)
    assert "another model" in forced.warnings[0]


def test_a_base_that_differs_where_the_fingerprint_does_not_look(small: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(300, 300, generator=generator)}
    save_file(base, "b")
    save_file({"w": base["w"] + 0.1 * torch.randn(300, 300, generator=generator)}, "x")
    delta("b", "x", "x.delta")
    tall_masks("b", "x.delta", "tall.delta")
    base["w"].reshape(-1)[2000] += 1  # between two windows
    save_file(base, "b2")
    with pytest.raises(Mismatch, match="fingerprints agree, but other elements differ"):
        merge("b2", output="y.safetensors", from_masks="tall.delta", for_task="x")
    with pytest.raises(Mismatch, match="fingerprints agree, but other elements differ"):
        tall_masks("b2", "x.delta", "again.delta")
    assert not Path("again.delta").exists()


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf")])
def test_no_threshold(small: Path, threshold: float) -> None:
    with pytest.raises(UsageFault, match="not a threshold of at least 0"):
        tall_masks("base", DELTAS, "tall.delta", threshold)


def test_names_and_outputs_that_cannot_be(small: Path) -> None:
    with pytest.raises(UsageFault, match=r"x\.safetensors does not end in \.delta.*-o x\.delta"):
        tall_masks("base", DELTAS, "x.safetensors")
    with pytest.raises(OutputFault, match=r"ca\.delta is or holds the input"):
        tall_masks("base", DELTAS, "ca.delta", force=True)
    Path("mine.delta").write_text("mine")
    with pytest.raises(OutputFault, match="exists"):
        tall_masks("base", DELTAS, "mine.delta")
    Path("more").mkdir()
    Path("more/ca.delta").write_bytes(Path("de.delta").read_bytes())
    with pytest.raises(UsageFault, match=r"would both be called 'ca' by --for"):
        tall_masks("base", ["ca.delta", "more/ca.delta"], "tall.delta")
    Path("c\x1ba.delta").write_bytes(Path("ca.delta").read_bytes())
    with pytest.raises(UsageFault, match="no name of a task"):
        tall_masks("base", ["c\x1ba.delta"], "tall.delta")
    with pytest.raises(UsageFault, match="Prune them before"):
        tall_masks("base", ["ca.delta:mp=0.5"], "tall.delta")
    with pytest.raises(UsageFault, match="no deltas"):
        tall_masks("base", [], "tall.delta")


def test_numbers_that_cannot_be(small: Path) -> None:
    with pytest.raises(
        LorsmergeError, match="mask of 'ca' keeps nothing at a threshold of 1e\\+30"
    ):
        tall_masks("base", DELTAS, "tall.delta", 1e30)
    save(Path("same"), small_base())
    with pytest.raises(Mismatch, match="zero throughout"):
        tall_masks("base", ["ca.delta", "same"], "tall.delta")
    broken = tuned(small_base(), 7)
    broken[FC1][0, 0] = float("nan")
    save(Path("nan"), broken)
    with pytest.raises(NonFinite, match=r"nan: '.*fc1\.weight' holds a NaN"):
        tall_masks("base", ["ca.delta", "nan"], "tall.delta")
    base = {n: t for n, t in small_base().items() if t.is_floating_point()}
    for name in ("huge", "large"):
        save(Path(name), base | {FC1: torch.full_like(base[FC1], 3e38)})
    save(Path("floats"), base)
    with pytest.raises(NonFinite, match="overflows float32 in the sum"):
        tall_masks("floats", ["huge", "large"], "tall.delta")
    assert not Path("tall.delta").exists()
    assert not list(Path().glob(".*partial*"))


def test_a_nan_in_the_file_is_found(small: Path) -> None:
    from safetensors import safe_open

    tall_masks("base", DELTAS, "tall.delta")
    with safe_open("tall.delta", "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors[FC1][0, 0] = float("nan")
    save_file(tensors, "tall.delta", metadata)
    with pytest.raises(NonFinite, match=r"tall\.delta: '.*fc1\.weight' holds a NaN"):
        merge("base", output="x.safetensors", from_masks="tall.delta", for_task="ca")


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_step_that_is_mostly_of_other_deltas_is_told(small: Path, threshold: float) -> None:
    large = DeltaEntry("de.delta", scale=5.0)
    done = tall_masks("base", ["ca.delta", large], "tall.delta", threshold)
    base, ca, de = (load(small / name) for name in ("base", "ca", "de"))
    steps = [0.0, 0.0]
    for name, tensor in base.items():
        if tensor.is_floating_point():
            own = [(ft[name].float() - tensor.float()).double().numpy() for ft in (ca, de)]
            steps[0] += float((reference.tall(own, [1.0, 5.0], threshold)[0] ** 2).sum())
            steps[1] += float((own[0] ** 2).sum())
    ratio = (steps[0] / steps[1]) ** 0.5
    told = f"ca: with its mask the step from the base is {ratio:.1f} times as long"
    assert any(text.startswith(told) for text in done.warnings) == (ratio > 2)
    assert (ratio > 2) == (threshold == 0)
    assert not any(text.startswith("de: with its mask") for text in done.warnings)
