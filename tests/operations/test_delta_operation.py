"""A delta is the fine-tune less its base, in float32, of every float tensor."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from operation_calls import (
    BIAS,
    CONV,
    EMBEDDING,
    FC1,
    SHAPES,
    load,
    same_bits,
    save,
    small_base,
    tuned,
)
from safetensors.torch import load_file

from lorsmerge_cli import delta
from lorsmerge_cli.checkpoint import content
from lorsmerge_cli.checkpoint.content import ContentHash
from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.deltas.file import DeltaFile
from lorsmerge_cli.deltas.task_vector import base_fingerprint
from lorsmerge_cli.errors import (
    Faults,
    LorsmergeError,
    Mismatch,
    NonFinite,
    OutputFault,
    UnreadableFile,
    UsageFault,
)
from lorsmerge_cli.operations import delta as delta_module

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def test_of_whisper(models: Path, deltas: Path) -> None:
    base, finetuned = load(models / "base"), load(models / "ca")
    file = DeltaFile(deltas / "ca.delta")
    assert file.specs.keys() == base.keys()
    for name in base:
        assert torch.equal(file.read(name), finetuned[name] - base[name])
    provenance = file.provenance
    assert (provenance.task, provenance.language) == ("asr", "ca")
    assert (provenance.base_name, provenance.finetuned_dtype) == ("base", "F32")
    assert replace(provenance.base, content="") == base_fingerprint(Checkpoint(models / "base"))
    hashed = ContentHash(Checkpoint(models / "base").specs)
    for name, tensor in base.items():
        hashed.add(name, tensor)
    assert provenance.base.content == hashed.hexdigest()
    assert provenance.history == (
        "lorsmerge_cli.delta('base', 'ca', 'ca.delta', task='asr', language='ca')",
    )
    assert provenance.pruning == {}


@pytest.mark.parametrize("base_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tuned_dtype", DTYPES, ids=str)
def test_of_every_pair_of_dtypes(
    tmp_path: Path, base_dtype: torch.dtype, tuned_dtype: torch.dtype
) -> None:
    base = small_base(base_dtype)
    finetuned = {
        name: t.to(tuned_dtype) if t.is_floating_point() else t
        for name, t in tuned(small_base(torch.float32)).items()
    }
    paths = save(tmp_path / "base", base), save(tmp_path / "ca", finetuned)
    report = delta(*paths, tmp_path / "x.delta")
    wide = torch.float64 if torch.float64 in (base_dtype, tuned_dtype) else torch.float32
    stored = load_file(tmp_path / "x.delta")
    assert stored.keys() == SHAPES.keys()
    for name, values in stored.items():
        assert torch.equal(values, finetuned[name].to(wide) - base[name].to(wide))
    half = tuned_dtype in (torch.float16, torch.bfloat16)
    rounded = [text for text in report.warnings if "half of its rounding step" in text]
    assert len(rounded) == half
    if half:
        assert str(tmp_path / "ca") in rounded[0]


def test_the_reports_figures(tmp_path: Path) -> None:
    base, finetuned = small_base(), tuned(small_base())
    report = delta(
        save(tmp_path / "base", base), save(tmp_path / "ca", finetuned), tmp_path / "x.delta"
    )
    differences = {name: (finetuned[name] - base[name]).double() for name in SHAPES}
    norm = math.sqrt(sum(float(t.square().sum()) for t in differences.values()))
    base_norm = math.sqrt(sum(float(base[name].double().square().sum()) for name in SHAPES))
    entries = sum(math.prod(shape) for shape in SHAPES.values())
    assert report.norm == pytest.approx(norm, rel=1e-12)
    assert report.base_norm == pytest.approx(base_norm, rel=1e-12)
    assert (report.tensors, report.nbytes) == (len(SHAPES), 4 * entries)
    norms = DeltaFile(tmp_path / "x.delta").norms
    assert norms == {
        name: pytest.approx(float(differences[name].norm()), rel=1e-12) for name in SHAPES
    }


@pytest.mark.parametrize("block", [7, 1000, 1 << 20])
def test_bytes_do_not_depend_on_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    base = small_base()
    paths = save(tmp_path / "base", base), save(tmp_path / "ca", tuned(base))
    monkeypatch.setattr(delta_module, "BLOCK", block)
    monkeypatch.setattr(content, "BLOCK", block)
    delta(*paths, tmp_path / "a.delta", threads=1, command="x")
    for threads in (2, 3, 8):
        delta(*paths, tmp_path / "b.delta", threads=threads, force=True, command="x")
        assert (tmp_path / "a.delta").read_bytes() == (tmp_path / "b.delta").read_bytes()


def test_numbers_do_not_depend_on_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = small_base()
    paths = save(tmp_path / "base", base), save(tmp_path / "ca", tuned(base))
    delta(*paths, tmp_path / "a.delta")
    monkeypatch.setattr(delta_module, "BLOCK", 7)
    monkeypatch.setattr(content, "BLOCK", 7)
    delta(*paths, tmp_path / "b.delta")
    assert same_bits(load_file(tmp_path / "a.delta"), load_file(tmp_path / "b.delta"))


@pytest.mark.parametrize("tied", ["base", "finetuned", "both"])
def test_a_tied_copy_on_either_side(tmp_path: Path, tied: str) -> None:
    """transformers drops it on saving, other tools keep it."""
    base, finetuned = small_base(), tuned(small_base())
    for name, model in (("base", base), ("finetuned", finetuned)):
        if tied in (name, "both"):
            model["proj_out.weight"] = model[EMBEDDING].clone()
    delta(save(tmp_path / "base", base), save(tmp_path / "ca", finetuned), tmp_path / "x")
    assert load_file(tmp_path / "x").keys() == SHAPES.keys()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["base", "ca"])
@pytest.mark.parametrize("name", [FC1, BIAS, CONV])
def test_what_is_not_finite_is_named(tmp_path: Path, value: float, which: str, name: str) -> None:
    models = {"base": small_base(), "ca": tuned(small_base())}
    models[which][name].view(-1)[-1] = value
    base, finetuned = (save(tmp_path / key, model) for key, model in models.items())
    with pytest.raises(NonFinite) as caught:
        delta(base, finetuned, tmp_path / "x.delta")
    assert str(tmp_path / which) in str(caught.value)
    assert name in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["base", "ca"]


def test_a_fine_tune_that_equals_its_base(tmp_path: Path) -> None:
    base = small_base()
    with pytest.raises(Mismatch, match="zero"):
        delta(save(tmp_path / "a", base), save(tmp_path / "b", base), tmp_path / "x.delta")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_all_faults_at_once(tmp_path: Path) -> None:
    base, finetuned = small_base(), tuned(small_base())
    del finetuned[BIAS]
    finetuned["model.extra.weight"] = torch.ones(2, 2)
    finetuned[FC1] = finetuned[FC1].T.contiguous()
    (tmp_path / "x.delta").write_text("mine")
    with pytest.raises(Faults) as caught:
        delta(
            save(tmp_path / "base", base), save(tmp_path / "ca", finetuned), tmp_path / "x.delta",
            task="asrr",
        )  # fmt: skip
    text = str(caught.value)
    for word in (BIAS, "model.extra.weight", FC1, "[32, 48]", "[48, 32]", "asrr", "--force"):
        assert word in text
    assert len(caught.value.errors) == 5
    assert caught.value.exit_code == 2
    assert (tmp_path / "x.delta").read_text() == "mine"


def test_both_inputs_are_missing(tmp_path: Path) -> None:
    with pytest.raises(Faults) as caught:
        delta(tmp_path / "no base", tmp_path / "no tune", tmp_path / "x.delta")
    assert "no base" in str(caught.value)
    assert "no tune" in str(caught.value)


def test_a_delta_is_no_fine_tune(models: Path, deltas: Path, tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="is a delta"):
        delta(models / "base", deltas / "ca.delta", tmp_path / "x.delta")


def test_another_architecture(models: Path, tmp_path: Path) -> None:
    with pytest.raises(LorsmergeError) as caught:
        delta(models / "base", save(tmp_path / "other", small_base()), tmp_path / "x.delta")
    assert "lacks" in str(caught.value)
    assert str(tmp_path / "other") in str(caught.value)


@pytest.mark.parametrize("task", ["", "asr", "st"])
def test_tasks(tmp_path: Path, task: str) -> None:
    base = small_base()
    paths = save(tmp_path / "base", base), save(tmp_path / "ca", tuned(base))
    delta(*paths, tmp_path / "x.delta", task=task, language="")
    assert DeltaFile(tmp_path / "x.delta").provenance.task == task


def test_an_unknown_task(models: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match="sing"):
        delta(models / "base", models / "ca", tmp_path / "x.delta", task="sing")


@pytest.mark.parametrize(("given", "code"), [("ca", "ca"), ("Catalan", "ca"), ("ca-ES", "ca")])
def test_languages(models: Path, tmp_path: Path, given: str, code: str) -> None:
    delta(models / "base", models / "ca", tmp_path / "x.delta", language=given)
    assert DeltaFile(tmp_path / "x.delta").provenance.language == code


def test_an_unknown_language(models: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match="no language 'Klingon'"):
        delta(models / "base", models / "ca", tmp_path / "x.delta", language="Klingon")
    assert not (tmp_path / "x.delta").exists()


def test_base_and_fine_tune_the_wrong_way_round(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "ca", tmp_path / "ca")
    paths = models / "base", tmp_path / "ca"
    digest = base_fingerprint(Checkpoint(paths[0])).digest
    (paths[1] / "run.json").write_text(json.dumps({"base": digest[:16]}))
    delta(*paths, tmp_path / "right.delta")
    with pytest.raises(UsageFault, match="Give the base first"):
        delta(paths[1], paths[0], tmp_path / "x.delta")
    assert not (tmp_path / "x.delta").exists()
    delta(paths[1], models / "de", tmp_path / "of_a_fine_tune.delta")


@pytest.mark.parametrize("which", ["base", "ca"])
def test_an_input_is_never_the_output(models: Path, which: str) -> None:
    weights = models / which / "model.safetensors"
    before = weights.read_bytes()
    with pytest.raises(OutputFault, match="input"):
        delta(models / "base", models / "ca", weights, force=True)
    assert weights.read_bytes() == before


def test_an_existing_output_needs_force(models: Path, tmp_path: Path) -> None:
    (tmp_path / "x.delta").write_text("old")
    with pytest.raises(OutputFault, match="--force"):
        delta(models / "base", models / "ca", tmp_path / "x.delta")
    delta(models / "base", models / "ca", tmp_path / "x.delta", force=True)
    assert DeltaFile(tmp_path / "x.delta").layouts


def test_progress_reaches_the_total(models: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    report = delta(
        models / "base",
        models / "ca",
        tmp_path / "x",
        progress=lambda done, total: told.append((done, total)),
    )
    assert sum(done for done, _ in told) == report.nbytes
    assert {total for _, total in told} == {report.nbytes}


def test_an_interrupt_leaves_nothing(models: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        delta(models / "base", models / "ca", tmp_path / "x", progress=interrupt)
    assert os.listdir(tmp_path) == []
