"""`eval --engine ct2`: the texts of PyTorch, what is recorded, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from speech_models import make_test_set, make_tuned, make_whisper

from lorsmerge_cli import delta, evaluate, report
from lorsmerge_cli.errors import LorsmergeError, Mismatch, NonFinite, OutputFault, UsageFault
from lorsmerge_cli.metrics.metric import Scoring
from lorsmerge_cli.operations.eval import rescore
from lorsmerge_cli.results.document import EvalReport
from lorsmerge_cli.speech import ctranslate
from lorsmerge_cli.speech.engines import ct2

ctranslate2 = pytest.importorskip("ctranslate2")
STAMP = f"ct2-{ctranslate2.__version__}-float32"
CLIPS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, strict/ that never says some words, ca/, ca.delta and data/test.jsonl. Read only."""
    folder = tmp_path_factory.mktemp("engines")
    base = make_whisper(folder / "base")
    make_whisper(folder / "strict", suppress=(0, 4))
    generation = json.loads((folder / "strict" / "generation_config.json").read_text())
    generation["begin_suppress_tokens"] = [2, 3]
    (folder / "strict" / "generation_config.json").write_text(json.dumps(generation))
    make_tuned(base, folder / "ca", seed=1)
    delta(base, folder / "ca", folder / "ca.delta", language="ca")
    make_test_set(folder / "data", CLIPS)
    return folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary ones; every test must leave it so."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    assert list(place.iterdir()) == []


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models that are converted."""
    found: list[str] = []

    def record(folder: Path, output: Path, quantization: str | None, **named: Any) -> None:
        found.append(named["loaded"].name)
        ctranslate.convert(folder, output, quantization, **named)

    monkeypatch.setattr(ct2, "convert", record)
    return found


def run(models: Any, folder: Path, engine: str = "ct2", **changes: Any) -> EvalReport:
    settings: dict[str, Any] = {"beam": 1, "device": "cpu", "samples": 10, "engine": engine}
    return evaluate(models, folder / "data" / "test.jsonl", **settings | changes)


def said(report: EvalReport) -> dict[tuple[str, str], tuple[str, bool | None]]:
    rows = [row for record in report.records for row in record.rows]
    return {(row.model, row.id): (row.hypothesis, row.cut) for row in rows}


@pytest.mark.parametrize("most", [None, 1, 2, 5])
@pytest.mark.parametrize("model", ["base", "strict", "ca"])
def test_greedy_texts_are_those_of_torch(folder: Path, model: str, most: int | None) -> None:
    ours, theirs = (
        said(run({"m": folder / model}, folder, engine, max_tokens=most, batch_size=7))
        for engine in ("torch", "ct2")
    )
    assert theirs == ours
    assert len({text for text, _ in ours.values()}) > 2
    assert {cut for _, cut in ours.values()} >= ({True} if most == 1 else {False})


def test_lists_of_suppressed_tokens_are_kept(folder: Path) -> None:
    """The first model's, for both: it never says `the` and `a`, and does not begin with two more."""
    models = {"strict": folder / "strict", "base": folder / "base"}
    texts = said(run(models, folder))
    assert texts == said(run(models, folder, "torch"))
    assert {text for (name, _), text in texts.items() if name == "base"} == {
        text for (name, _), text in texts.items() if name == "strict"
    }
    assert texts != said(run({"strict": folder / "base", "base": folder / "base"}, folder))
    words = {word for text, _ in texts.values() for word in text.split()}
    assert words.isdisjoint({"the", "a"})


@pytest.mark.parametrize("beam", [2, 5])
def test_beams_find_the_texts_of_torch_but_for_few(folder: Path, beam: int) -> None:
    """The searches end by different rules: of these models, which are never sure, few texts differ."""
    models = {name: folder / name for name in ("base", "ca", "strict")}
    ours, theirs = (said(run(models, folder, engine, beam=beam)) for engine in ("torch", "ct2"))
    different = [key for key in ours if ours[key] != theirs[key]]
    assert len(different) <= len(ours) // 10, [(ours[key], theirs[key]) for key in different]
    assert len({text for text, _ in ours.values()}) > 5


def test_the_best_hypothesis_is_that_of_the_best_mean(folder: Path) -> None:
    """With the end counted: 1 of 2 tokens, -4 / 2; 3 of 4, -7.6 / 4; 4 that were cut, -7.8 / 4."""
    found = SimpleNamespace(scores=[-4.0, -7.6, -7.8], sequences_ids=[[5], [5, 6, 7], [5, 6, 7, 8]])
    assert ct2._best(found, 4) == [5, 6, 7]
    found.scores[2] = -7.5
    assert ct2._best(found, 4) == [5, 6, 7, 8]
    assert ct2._best(SimpleNamespace(scores=[-1.0], sequences_ids=[[]]), 4) == []


def test_bare_files_and_deltas_are_converted_as_they_are_applied(
    folder: Path, tmp_path: Path, converted: list[str]
) -> None:
    bare = tmp_path / "bare.safetensors"
    shutil.copy(folder / "ca" / "model.safetensors", bare)
    options = {"config_dir": folder / "base"}
    texts = [
        list(said(run(model, folder, engine, **more)).values())
        for model, more in (
            ({"m": bare}, options),
            ({"m": folder / "base"}, {"apply": folder / "ca.delta", "scale": 1.0}),
        )
        for engine in ("torch", "ct2")
    ]
    assert texts[0] == texts[1] == texts[2] == texts[3]
    assert converted == ["m", "m+ca@1"]


def test_a_model_is_converted_once_and_not_at_all_when_all_is_known(
    folder: Path, tmp_path: Path, converted: list[str]
) -> None:
    data = dict.fromkeys(("one", "two"), folder / "data" / "test.jsonl")
    known = {"beam": 1, "device": "cpu", "engine": "ct2", "hypotheses": tmp_path / "h.jsonl"}
    first = evaluate({"m": folder / "base"}, data, **known)
    assert converted == ["m"]
    lines = (tmp_path / "h.jsonl").read_bytes()
    again = evaluate({"m": folder / "base"}, data, **known)
    assert converted == ["m"]
    assert (said(again), (tmp_path / "h.jsonl").read_bytes()) == (said(first), lines)
    cut = b"".join(lines.splitlines(keepends=True)[:-3])
    (tmp_path / "h.jsonl").write_bytes(cut)
    assert said(evaluate({"m": folder / "base"}, data, **known)) == said(first)
    assert converted == ["m", "m"]


@pytest.mark.parametrize(("before", "now"), [("torch", "ct2"), ("ct2", "torch")])
def test_another_engine_does_not_resume(
    folder: Path, tmp_path: Path, before: str, now: str, converted: list[str]
) -> None:
    known = {"hypotheses": tmp_path / "h.jsonl"}
    run({"m": folder / "base"}, folder, before, **known)
    converted.clear()
    with pytest.raises(Mismatch, match=f"made differently: .*engine:{STAMP}"):
        run({"m": folder / "base"}, folder, now, **known)
    assert converted == []


def test_the_engine_is_in_signature_and_results(folder: Path, tmp_path: Path) -> None:
    output, lines = tmp_path / "r.json", tmp_path / "h.jsonl"
    found = run({"m": folder / "base"}, folder, output=output, hypotheses=lines)
    settings = json.loads(output.read_text())["settings"]
    assert settings["signature"].startswith(f"beam:1|engine:{STAMP}|max:None|suppress:")
    assert (settings["decoding"]["engine"], settings["decoding"]["dtype"]) == (STAMP, "float32")
    assert found.models["m"]["decoded_on"]["engine"] == STAMP
    (way,) = rescore(lines, scoring=Scoring(samples=10)).settings["decoded"].values()
    assert way.startswith(f"beam:1|engine:{STAMP}|")
    usual = run({"m": folder / "base"}, folder, "torch").settings
    assert usual["signature"].startswith("beam:1|dtype:float32|")
    assert "engine" not in usual["decoding"]


def test_a_report_says_that_engines_are_mixed(folder: Path, tmp_path: Path) -> None:
    paths = []
    for engine in ("torch", "ct2"):
        paths.append(tmp_path / f"{engine}.json")
        run({engine: folder / "base"}, folder, engine, output=paths[-1])
    report(paths, tmp_path / "page")
    page = (tmp_path / "page" / "report.md").read_text().replace("\\_", "_")
    assert f"Mixed settings: engine is torch in {paths[0]}; {STAMP} in {paths[1]}." in page


def test_int8_is_recorded_by_its_whole_name(folder: Path) -> None:
    found = run({"m": folder / "base"}, folder, dtype="int8")
    name = STAMP.replace("float32", "int8_float32")
    assert f"|engine:{name}|" in found.settings["signature"]
    assert len(said(found)) == CLIPS


def other_config(source: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(source, target)
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return target


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation_function": "relu"}, ["can compute: activation_function = relu"]),
        ({"scale_embedding": True}, ["can compute: scale_embedding = true"]),
        ({"eos_token_id": 1, "pad_token_id": 1}, ["ends a text at <|endoftext|>", "token 1"]),
    ],
)
def test_a_model_that_it_would_compute_otherwise_is_refused_before_any_work(
    folder: Path, tmp_path: Path, changes: dict, words: list[str], converted: list[str]
) -> None:
    odd = other_config(folder / "base", tmp_path / "odd", **changes)
    with pytest.raises(Mismatch) as raised:
        run({"base": folder / "base", "odd": odd}, folder)
    assert all(word in str(raised.value) for word in [*words, "odd", "--engine torch"])
    assert converted == []
    run({"odd": odd}, folder, "torch")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "ct"}, ["There is no engine 'ct'. Did you mean 'ct2'?"]),
        ({"dtype": "float16"}, ["does not compute in float16 on this cpu", "float32 or int8"]),
        ({"dtype": "bf16"}, ["does not compute in bf16 on this cpu"]),
        ({"dtype": "int3"}, ["no dtype 'int3'", "int8"]),
        ({"device": "mps"}, ["--engine ct2 has no --device mps", "--engine torch"]),
        ({"engine": "torch", "dtype": "int8"}, ["no dtype 'int8'"]),
    ],
)
def test_wrong_settings(
    folder: Path, options: dict, words: list[str], converted: list[str]
) -> None:
    with pytest.raises(UsageFault) as raised:
        run({"m": folder / "base"}, folder, **options)
    assert all(word in str(raised.value) for word in words), raised.value
    assert converted == []


def test_without_ctranslate2_it_is_told_how_to_get_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(UsageFault, match=r"--engine ct2 needs CTranslate2.*pip install"):
        run({"m": folder / "base"}, folder)
    run({"m": folder / "base"}, folder, "torch")


def test_a_full_disk_is_told_before_the_conversion(
    folder: Path, monkeypatch: pytest.MonkeyPatch, converted: list[str]
) -> None:
    monkeypatch.setattr(ct2.shutil, "disk_usage", lambda path: SimpleNamespace(free=20 << 20))
    run({"m": folder / "base"}, folder)
    monkeypatch.setattr(ct2.shutil, "disk_usage", lambda path: SimpleNamespace(free=16 << 20))
    with pytest.raises(OutputFault, match=r"bytes for CTranslate2, and .* TMPDIR to another"):
        run({"m": folder / "base"}, folder)
    assert converted == ["m"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("a shape")])
def test_an_interruption_leaves_no_folder(
    folder: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    def interrupted(folder: Path, output: Path, *rest: Any, **named: Any) -> None:
        (output / "model.bin").write_text("half")
        raise error

    monkeypatch.setattr(ct2, "convert", interrupted)
    with pytest.raises((KeyboardInterrupt, LorsmergeError)) as raised:
        run({"m": folder / "base"}, folder)
    if error is not KeyboardInterrupt:
        assert "m cannot be converted for CTranslate2 (ValueError: a shape)" in str(raised.value)


def test_the_folder_is_gone_while_it_decodes(folder: Path, temporary: Path) -> None:
    seen: list[list[Path]] = []
    run({"m": folder / "base"}, folder, progress=lambda *_: seen.append([*temporary.iterdir()]))
    assert seen
    assert not any(seen)


def test_a_nan_in_the_weights_is_told(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "base", tmp_path / "nan")
    tensors = load_file(tmp_path / "nan" / "model.safetensors")
    tensors["model.encoder.conv1.bias"][0] = float("nan")
    save_file(tensors, tmp_path / "nan" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFinite, match=r"conv1\.bias"):
        run({"m": tmp_path / "nan"}, folder)


def test_memory_that_ends_halves_the_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real = ctranslate2.models.Whisper.generate

    class Small:
        def __init__(self, *arguments: Any, **named: Any) -> None:
            self.model = real_class(*arguments, **named)

        def generate(self, features: Any, *arguments: Any, **named: Any) -> Any:
            sizes.append(features.shape[0])
            if features.shape[0] > 3:
                raise RuntimeError("CUDA failed with error out of memory")
            return real(self.model, features, *arguments, **named)

    real_class = ctranslate2.models.Whisper
    wanted = said(run({"m": folder / "base"}, folder))
    monkeypatch.setattr(ctranslate2.models, "Whisper", Small)
    assert said(run({"m": folder / "base"}, folder, batch_size=8)) == wanted
    assert sizes[:3] == [8, 4, 2]


def test_the_demo_says_the_same(tmp_path: Path) -> None:
    """A trained model, in words: greedily all texts are the same, and here by beams, too."""
    demo = Path(__file__).parents[2] / "examples" / "demo" / "bundle"
    rows = (demo / "ca_asr.test.jsonl").read_text().splitlines(keepends=True)[:12]
    (tmp_path / "few.jsonl").write_text(
        "".join(
            json.dumps(row | {"audio_filepath": str(demo / row["audio_filepath"])}) + "\n"
            for row in map(json.loads, rows)
        )
    )
    for beam in (1, 5):
        ours, theirs = (
            said(
                evaluate(
                    {"m": demo / "base"},
                    tmp_path / "few.jsonl",
                    beam=beam,
                    engine=engine,
                    device="cpu",
                    samples=10,
                )
            )
            for engine in ("torch", "ct2")
        )
        assert theirs == ours
