"""`stats`, and merges that weigh deltas by what it wrote."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from hub_server import Hub
from safetensors.torch import load_file, save_file
from speech_models import make_deltas, make_test_set, make_tuned, make_whisper
from typer.testing import CliRunner

from lorsmerge_cli import delta, evaluate, merge, merge_state_dicts, prune, search, stats
from lorsmerge_cli.app import app
from lorsmerge_cli.calibration.file import StatisticsFile
from lorsmerge_cli.data.dataset import load_data
from lorsmerge_cli.errors import LorsmergeError, Mismatch, UnreadableFile, UsageFault
from lorsmerge_cli.operations.merge import plan_merge
from lorsmerge_cli.operations.stats import layout_of
from lorsmerge_cli.recipe.published import published_recipe, published_record
from lorsmerge_cli.recipe.recipe import load_recipe, wanted_recipe
from lorsmerge_cli.speech.decoding.clips import DecodingSettings, decode
from lorsmerge_cli.speech.source import find_model

LANGUAGES = ("ca", "de", "zh")
FC1 = "model.encoder.layers.0.fc1.weight"
EMBEDDING = "model.decoder.embed_tokens.weight"


@pytest.fixture(scope="session")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base, fine-tunes, deltas, a data set, and statistics of both kinds. Read only."""
    folder = tmp_path_factory.mktemp("heard")
    base = make_whisper(folder / "base", spells=True)
    manifest = make_test_set(folder / "data", count=6)
    made = {name: {"task": "asr", "language": name} for name in LANGUAGES}
    make_deltas(base, made, step=0.02)
    for name in LANGUAGES:
        stats(folder / name, manifest, folder / f"{name}.stats", kind="both")
    return folder


@pytest.fixture
def here(heard: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of that folder, as the current one."""
    shutil.copytree(heard, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


DELTAS = [f"{name}.delta" for name in LANGUAGES]
FILES = [f"{name}.stats" for name in LANGUAGES]


# --- stats ----------------------------------------------------------------------------------------


def test_the_report_and_the_record(here: Path) -> None:
    told = []
    report = stats(
        "ca", "data/test.jsonl", "x.stats", progress=lambda done, total: told.append((done, total))
    )
    rows = load_data([Path("data/test.jsonl")], max_seconds=2.0).utterances
    assert told == [(1, 12)] * 12  # decoded once, heard once
    assert (report.output, report.kinds, report.layers) == (Path("x.stats"), ("gram",), 26)
    assert report.utterances == 6
    assert report.seconds == pytest.approx(sum(row.duration or 0 for row in rows))
    file = StatisticsFile(Path("x.stats"))
    assert file.origin.labels == "own"
    assert file.origin.languages == tuple(dict.fromkeys((r.language, r.task) for r in rows))
    assert file.origin.fingerprint.digest.startswith(find_model(Path("ca")).identity())
    assert "stats('ca', ['data/test.jsonl'], 'x.stats'" in file.origin.made_by
    assert report.nbytes == file.layout.nbytes < Path("x.stats").stat().st_size


def test_own_labels_are_greedy_transcripts(here: Path) -> None:
    """A data set with those transcripts as texts gives the same numbers."""
    rows = load_data([Path("data/test.jsonl")], max_seconds=2.0).utterances
    speech = find_model(Path("ca")).open(torch.float32, "cpu")
    said = decode(speech, rows, DecodingSettings(beam=1))
    lines = [json.loads(line) for line in Path("data/test.jsonl").read_text().splitlines()]
    texts = [line | {"text": said[line["id"]]} for line in lines if said[line["id"]]]
    assert len(texts) > 2  # a row without a text is none to learn from, and is dropped
    Path("data/said.jsonl").write_text("".join(json.dumps(line) + "\n" for line in texts))
    for labels in ("own", "data"):
        stats("ca", "data/said.jsonl", f"{labels}.stats", kind="both", labels=labels)
    own, told = load_file("own.stats"), load_file("data.stats")
    assert own.keys() == told.keys()
    for name in own:
        torch.testing.assert_close(own[name], told[name])
    stats("ca", "data/test.jsonl", "other.stats", kind="both", labels="data")
    assert not torch.allclose(
        load_file("other.stats")[f"{EMBEDDING}.fisher"], own[f"{EMBEDDING}.fisher"]
    )


def test_texts_are_not_needed(here: Path) -> None:
    lines = [
        json.loads(line) | {"text": ""} for line in Path("data/test.jsonl").read_text().splitlines()
    ]
    Path("data/silent.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stats("ca", "data/silent.jsonl", "x.stats", kind="both")
    one, other = load_file("ca.stats"), load_file("x.stats")
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(LorsmergeError, match="empty text"):
        stats("ca", "data/silent.jsonl", "y.stats", labels="data")


def test_numbers_do_not_depend_on_the_batch_of_decoding(here: Path) -> None:
    for size in (1, 4):
        stats("ca", "data/test.jsonl", f"{size}.stats", batch_size=size)
    one, four = load_file("1.stats"), load_file("4.stats")
    assert all(torch.equal(one[name], four[name]) for name in one)


def test_the_data_is_recorded_by_its_content(here: Path) -> None:
    shutil.copytree("data", "copied")
    stats("ca", "copied/test.jsonl", "copied.stats")
    stats("ca", "copied/test.jsonl", "less.stats", hours=0.001)
    found = [
        StatisticsFile(Path(name)).origin for name in ("ca.stats", "copied.stats", "less.stats")
    ]
    assert found[0].data == found[1].data != found[2].data
    assert found[2].utterances < found[0].utterances


@pytest.mark.parametrize(("kind", "grams"), [("gram", 26), ("fisher", 0), ("both", 26)])
def test_the_plan_says_what_will_be_written(here: Path, kind: str, grams: int) -> None:
    source = find_model(Path("ca"))
    layout = layout_of(source.checkpoint, kind)
    assert len(layout.inputs) == grams
    stats("ca", "data/test.jsonl", "x.stats", kind=kind)
    stored = load_file("x.stats")
    assert {n: tuple(t.shape) for n, t in stored.items()} == {
        n: s.shape for n, s in layout.specs.items()
    }


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"kind": "grams"}, UsageFault, "'grams' is unknown. Use gram"),
        ({"labels": "none"}, UsageFault, "'none' is unknown. Use own, data"),
        ({"dtype": "int8"}, UsageFault, "int8"),
        ({"device": "tpu"}, UsageFault, "tpu"),
        ({"data": "nowhere.jsonl"}, LorsmergeError, "nowhere.jsonl"),
        ({"model": "nowhere"}, LorsmergeError, "nowhere"),
        ({"model": "ca.delta"}, LorsmergeError, "is a delta"),
        ({"output": "data/test.jsonl"}, LorsmergeError, "data/test.jsonl"),
        ({"output": "ca.stats"}, LorsmergeError, "--force"),
        ({"data": ()}, LorsmergeError, "data"),
    ],
    ids=str,
)
def test_bad_input(here: Path, settings, error: type, words: str) -> None:
    before = sorted(Path().rglob("*"))
    given = {"model": "ca", "data": "data/test.jsonl", "output": "x.stats"} | settings
    with pytest.raises(error, match=words):
        stats(**given)
    assert sorted(Path().rglob("*")) == before


def test_an_interruption_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    count = 0

    def stop(done: int, total: int) -> None:
        nonlocal count
        count += 1
        if count == 9:  # while it listens
            raise KeyboardInterrupt

    for force in (False, True):
        count = 0
        with pytest.raises(KeyboardInterrupt):
            stats(
                "ca",
                "data/test.jsonl",
                "ca.stats" if force else "x.stats",
                force=force,
                progress=stop,
            )
        assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


def test_overflow_names_the_layer(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = load_file("ca/model.safetensors")
    tensors["model.encoder.layers.0.fc1.bias"] *= 0
    tensors["model.encoder.layers.0.fc1.bias"] += 1e30
    save_file(tensors, "ca/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LorsmergeError, match=r"overflows|not finite|NaN"):
        stats("ca", "data/test.jsonl", "x.stats", labels="data")
    assert not Path("x.stats").exists()


# --- merge ----------------------------------------------------------------------------------------


def weights(path: str) -> dict[str, np.ndarray]:
    return {name: value.double().numpy() for name, value in load_file(path).items()}


@pytest.mark.parametrize("method", ["regmean", "fisher"])
def test_merges_against_the_formulas(here: Path, method: str) -> None:
    merge("base", DELTAS, "m.safetensors", method=method, stats=FILES, scale=0.7)
    base, got = weights("base/model.safetensors"), weights("m.safetensors")
    changes = [
        {n: v - base[n] for n, v in weights(f"{name}/model.safetensors").items()}
        for name in LANGUAGES
    ]
    kind = {"regmean": "gram", "fisher": "fisher"}[method]
    files = [StatisticsFile(Path(name)) for name in FILES]
    covered = files[0].names(kind)
    for name, before in base.items():
        deltas = [change[name] for change in changes]
        if name not in covered:
            update = 0.7 * sum(deltas) / 3
        else:
            numbers = [file.read(kind, name).double().numpy() for file in files]
            update = getattr(reference, method)(deltas, [0.7] * 3, numbers)
        size = max(np.abs(delta).max() for delta in deltas)
        assert (
            np.abs(got[name] - before - update).max() <= 1e-3 * size + 1e-6 * np.abs(before).max()
        )
    assert FC1 in covered
    assert (EMBEDDING in covered) == (method == "fisher")


def test_order_of_files_and_form_of_deltas_do_not_matter(here: Path) -> None:
    """Fine-tunes in place of deltas, pruned deltas: each finds its statistics."""
    merge("base", DELTAS, "a.safetensors", method="regmean", stats=FILES)
    merge("base", DELTAS, "b.safetensors", method="regmean", stats=FILES[::-1])
    merge("base", list(LANGUAGES), "c.safetensors", method="regmean", stats=FILES[1:] + FILES[:1])
    one = load_file("a.safetensors")
    for other in ("b", "c"):
        found = load_file(f"{other}.safetensors")
        assert all(torch.equal(found[name], one[name]) for name in one)
    prune("ca.delta", "small.delta", mp=0.3)
    merge("base", ["small.delta", *DELTAS[1:]], "d.safetensors", method="regmean", stats=FILES)


def test_threads_do_not_matter(here: Path) -> None:
    for threads in (1, 3):
        merge(
            "base", DELTAS, f"{threads}.safetensors", method="regmean", stats=FILES, threads=threads
        )
    one, three = load_file("1.safetensors"), load_file("3.safetensors")
    assert all(torch.equal(one[name], three[name]) for name in one)


@pytest.mark.parametrize("method", ["regmean", "fisher"])
def test_one_delta_is_the_fine_tune(here: Path, method: str) -> None:
    merge("base", "ca.delta", "m.safetensors", method=method, stats="ca.stats")
    tuned, got = load_file("ca/model.safetensors"), load_file("m.safetensors")
    for name, value in tuned.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6)


def test_a_recipe_and_a_record_make_it_again(here: Path) -> None:
    report = merge("base", DELTAS, "m", method="regmean", stats=FILES, save_recipe="r.toml")
    assert 'stats = ["ca.stats", "de.stats", "zh.stats"]' in Path("r.toml").read_text()
    for recipe in ("r.toml", "m/lorsmerge.json"):
        again = merge(recipe=recipe, output=f"{recipe[0]}.safetensors")
        assert again.step == report.step
        one, two = load_file("m/model.safetensors"), load_file(f"{recipe[0]}.safetensors")
        assert all(torch.equal(one[name], two[name]) for name in one)
    whole = Path("ca.stats").read_bytes()
    mean = re.search(rb"mean[^0-9]*([1-9])", whole).start(1)  # in the header
    for place, digit in (
        (mean, b"7" if whole[mean : mean + 1] != b"7" else b"8"),
        (-3001, b"\x01"),
    ):
        changed = bytearray(whole)
        changed[place] = digit[0]
        Path("ca.stats").write_bytes(changed)
        with pytest.raises(Mismatch, match=r"ca\.stats is not the file that the recipe"):
            merge(recipe="m/lorsmerge.json", output="n.safetensors")
    Path("ca.stats").write_bytes(whole)
    stats("ca", "data/test.jsonl", "ca.stats", hours=0.001, kind="both", force=True)
    with pytest.raises(Mismatch, match=r"ca.stats is not the file that the recipe was made with"):
        merge(recipe="m/lorsmerge.json", output="n.safetensors")


def test_a_control_of_the_same_step(here: Path) -> None:
    report = merge("base", DELTAS, "m", method="regmean", stats=FILES, control=True)
    control = merge("base", DELTAS, "c", step_norm_of="m")
    beside = json.loads(Path("m-control/lorsmerge.json").read_text())["recipe"]
    assert "stats" not in beside
    assert (
        load_file("m-control/model.safetensors").keys() == load_file("m/model.safetensors").keys()
    )
    assert report.control.step == pytest.approx(report.step, rel=1e-6)
    shorter = merge("base", DELTAS, "s", method="regmean", stats=FILES, step_norm=report.step / 2)
    assert control.step == pytest.approx(report.step, rel=1e-6)
    assert shorter.step == pytest.approx(report.step / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({}, UsageFault, "there are none. Make them with `lorsmerge stats"),
        ({"method": "fisher"}, UsageFault, "--kind fisher"),
        ({"method": "ties", "stats": FILES}, UsageFault, "takes no statistics.*regmean or fisher"),
        ({"method": None, "stats": FILES}, UsageFault, "ta takes no statistics"),
        ({"method": None, "svp": 0.1, "stats": FILES}, UsageFault, "svp takes no statistics"),
        ({"stats": [*FILES, "ca.stats"]}, UsageFault, "ca.stats is given twice"),
        ({"stats": FILES[:2]}, Mismatch, "fine-tune that zh.delta was taken from"),
        ({"stats": ["ca.stats", "nowhere.stats"]}, UnreadableFile, "nowhere.stats"),
        ({"stats": ["ca.stats", "de.delta", "zh.stats"]}, UnreadableFile, "de.delta is a delta"),
        (
            {"stats": ["ca.stats", "de/model.safetensors"]},
            UnreadableFile,
            "not a file of statistics",
        ),
        ({"deltas": DELTAS[:2], "stats": FILES}, Mismatch, "'zh', which none of the deltas"),
        ({"deltas": ["base"], "stats": ["ca.stats"]}, LorsmergeError, "base"),
        ({"svp": 0.1, "stats": FILES}, LorsmergeError, "takes no --svp"),
    ],
    ids=str,
)
def test_statistics_that_do_not_belong(here: Path, settings, error: type, words: str) -> None:
    given = {"deltas": DELTAS, "output": "m", "method": "regmean"} | settings
    with pytest.raises(error, match=words):
        merge("base", **given)
    assert not Path("m").exists()


def test_two_files_of_one_fine_tune(here: Path) -> None:
    stats("ca", "data/test.jsonl", "more.stats", hours=0.001)
    with pytest.raises(UsageFault, match=r"both statistics of the fine-tune of ca.delta"):
        merge("base", DELTAS, "m", method="regmean", stats=[*FILES, "more.stats"])


def test_a_kind_that_a_file_has_not(here: Path) -> None:
    stats("ca", "data/test.jsonl", "ca.stats", kind="fisher", force=True)
    with pytest.raises(Mismatch, match=r"ca.stats has the kind fisher, and gram is needed"):
        merge("base", DELTAS, "m", method="regmean", stats=FILES)


def test_statistics_of_another_base(here: Path) -> None:
    other = make_whisper(here / "other", seed=9, spells=True)
    make_tuned(other, here / "other_ca", seed=1, step=0.02)
    stats("other_ca", "data/test.jsonl", "other.stats")
    with pytest.raises(LorsmergeError, match=r"other.stats has statistics of 'other_ca'"):
        merge("base", DELTAS, "m", method="regmean", stats=["other.stats", *FILES[1:]])
    stats("base", "data/test.jsonl", "base.stats")
    with pytest.raises(LorsmergeError, match=r"base.stats has statistics of 'base'"):
        merge("base", DELTAS, "m", method="regmean", stats=["base.stats", *FILES[1:]])


def test_statistics_that_change_while_they_are_used(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = StatisticsFile.read

    def touched(self: StatisticsFile, kind: str, name: str) -> torch.Tensor:
        found = read(self, kind, name).clone()
        Path("ca.stats").touch()
        return found

    monkeypatch.setattr(StatisticsFile, "read", touched)
    with pytest.raises(LorsmergeError, match=r"ca.stats"):
        merge("base", DELTAS, "m", method="regmean", stats=FILES)
    assert not Path("m").exists()


def test_the_plan_counts_the_matrices(here: Path) -> None:
    plans = [
        plan_merge(wanted_recipe("base", DELTAS, method=method, stats=files), Path("m"), threads=1)
        for method, files in (("wa", ()), ("regmean", FILES))
    ]
    assert plans[1].memory > plans[0].memory
    assert plans[1].is_whole(FC1)
    assert not plans[1].is_whole(EMBEDDING)  # averaged in blocks


@pytest.mark.parametrize("method", ["regmean", "fisher"])
def test_where_there_are_no_statistics_the_methods_are_refused(here: Path, method: str) -> None:
    words = f"Method {method} needs statistics over audio, which `merge` alone takes"
    base = load_file("base/model.safetensors")
    change = {name: torch.ones_like(value) for name, value in base.items()}
    with pytest.raises(UsageFault, match=words):
        merge_state_dicts(base, [change], method=method)
    with pytest.raises(UsageFault, match=words):
        evaluate("base", "data/test.jsonl", apply=DELTAS, method=method, split=None)
    with pytest.raises(UsageFault, match=words):
        search("base", DELTAS, "data/test.jsonl", output="best.toml", method=method)


# --- one half -------------------------------------------------------------------------------------


def test_the_encoder_needs_no_texts(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is decoded, and its matrices are those of the whole model's statistics."""
    monkeypatch.setattr("lorsmerge_cli.operations.stats.decode_answers", None)
    told = []
    report = stats(
        "ca", "data/test.jsonl", "e.stats", half="encoder",
        progress=lambda done, total: told.append(total),
    )  # fmt: skip
    assert (report.layers, told) == (6, [6] * 6)
    half, whole = StatisticsFile(Path("e.stats")), StatisticsFile(Path("ca.stats"))
    assert half.origin.labels == "none"
    assert half.names("gram") == {n for n in whole.names("gram") if n.startswith("model.encoder.")}
    for name in half.names("gram"):
        torch.testing.assert_close(half.read("gram", name), whole.read("gram", name))


def test_the_other_half_is_averaged(here: Path) -> None:
    for name in LANGUAGES:
        stats(name, "data/test.jsonl", f"{name}.half", half="encoder")
    merge("base", DELTAS, "m.safetensors", method="regmean", stats=[f"{n}.half" for n in LANGUAGES])
    merge("base", DELTAS, "all.safetensors", method="regmean", stats=FILES)
    merge("base", DELTAS, "wa.safetensors", method="wa")
    got, whole, mean = (load_file(f"{name}.safetensors") for name in ("m", "all", "wa"))
    weighed = StatisticsFile(Path("ca.half")).names("gram")
    for name, value in got.items():
        torch.testing.assert_close(value, (whole if name in weighed else mean)[name])
        assert not (name in weighed and torch.equal(value, mean[name]))


def test_halves_do_not_mix(here: Path) -> None:
    stats("ca", "data/test.jsonl", "ca.half", half="encoder")
    stats("de", "data/test.jsonl", "de.half", half="decoder", kind="both")
    assert all(".decoder." in name for name in load_file("de.half"))
    with pytest.raises(Mismatch, match=r"one alone has statistics of .* same --half"):
        merge("base", DELTAS[:2], "m", method="regmean", stats=["ca.half", "de.half"])


def test_models_in_half_precision(here: Path) -> None:
    for name in ("base", *LANGUAGES):
        tensors = load_file(f"{name}/model.safetensors")
        half = {key: value.bfloat16() for key, value in tensors.items()}
        save_file(half, f"{name}/model.safetensors", metadata={"format": "pt"})
    for name in LANGUAGES:
        delta("base", name, f"{name}.delta", force=True)
        stats(name, "data/test.jsonl", f"{name}.stats", force=True)
    report = merge("base", DELTAS, "m", method="regmean", stats=FILES[::-1], dtype="float32")
    assert report.step > 0
    for name, other in (("ca", "de"), ("de", "ca")):
        with pytest.raises(Mismatch, match=f"fine-tune that {name} was taken from"):
            merge("base", [name, other], "n", method="regmean", stats=[f"{other}.stats"])


def test_statistics_on_the_hub(here: Path, hub: Hub) -> None:
    hub.add_repo("you/stats", {name: Path(name).read_bytes() for name in FILES})
    merge("base", DELTAS, "a.safetensors", method="regmean", stats=FILES)
    ids = [f"you/stats:{name}" for name in FILES]
    merge("base", DELTAS, "b", method="regmean", stats=ids)
    one, other = load_file("a.safetensors"), load_file("b/model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)
    recorded = json.loads(Path("b/lorsmerge.json").read_text())["recipe"]["stats"]
    assert all(re.fullmatch(r"you/stats@[0-9a-f]{40}:\w+\.stats", name) for name in recorded)


def test_a_published_record_has_names_in_place_of_paths(here: Path) -> None:
    merge("base", DELTAS, "m", method="regmean", stats=[here / name for name in FILES])
    recorded = json.loads(Path("m/lorsmerge.json").read_text())
    assert published_record(recorded)["recipe"]["stats"] == FILES
    recipe = load_recipe(Path("m/lorsmerge.json"))
    assert recipe.stats == tuple(str(here / name) for name in FILES)
    assert published_recipe(recipe).stats == tuple(FILES)


def test_a_control_beside_it(here: Path) -> None:
    """Task arithmetic needs no statistics."""
    report = merge("base", DELTAS, "m", method="regmean", stats=FILES, control=True)
    recorded = json.loads(Path("m-control/lorsmerge.json").read_text())
    assert recorded["step_norm"] == pytest.approx(report.step, rel=1e-6)
    assert "stats" not in recorded["recipe"]
    assert "statistics" not in recorded


def test_pruned_deltas_are_weighed_too(here: Path) -> None:
    settings = {"prune": "lors:svp=0.2,mp=0.4", "combine": "regmean:ridge=0.01", "stats": FILES}
    merge("base", DELTAS, "m", **settings)
    recipe = load_recipe(Path("m/lorsmerge.json"))
    assert (recipe.method, recipe.stats) == ("lors+regmean:ridge=0.01", tuple(FILES))
    for name in LANGUAGES:
        prune(f"{name}.delta", f"{name}.small.delta", svp=0.2, mp=0.4)
    small = [f"{name}.small.delta" for name in LANGUAGES]
    merge("base", small, "n", method="regmean:ridge=0.01", stats=FILES)
    one, other = load_file("m/model.safetensors"), load_file("n/model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_coefficients_by_rule(here: Path) -> None:
    """A factor of all lambdas of a tensor is one of its update."""
    merge("base", DELTAS, "a.safetensors", method="regmean", stats=FILES)
    merge("base", DELTAS, "b.safetensors", method="regmean", stats=FILES, coef=["decoder=0.5"])
    base, one, other = (
        load_file(name) for name in ("base/model.safetensors", "a.safetensors", "b.safetensors")
    )
    for name, before in base.items():
        factor = 0.5 if ".decoder." in name else 1.0
        expected = before + factor * (one[name] - before)
        torch.testing.assert_close(other[name], expected, rtol=1e-4, atol=1e-5)


def test_a_lora_adapter_finds_the_statistics_of_its_model(here: Path) -> None:
    line = "prune ca.delta --svp 0.2 -o low.delta --as-lora adapter"
    assert CliRunner().invoke(app, line.split()).exit_code == 0
    merge("base", "adapter", "lora", scale=1.0)
    stats("lora", "data/test.jsonl", "lora.stats")
    merge("base", ["adapter", "de.delta"], "m", method="regmean", stats=["de.stats", "lora.stats"])
    delta("base", "adapter", "adapter.delta")
    merge("base", ["adapter.delta"], "n", method="regmean", stats="lora.stats")
    with pytest.raises(
        LorsmergeError, match=r"None of the statistics are .* adapter was taken from"
    ):
        merge("base", ["adapter"], "o", method="regmean", stats="ca.stats")
