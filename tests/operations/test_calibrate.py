"""`merge --calibrate`: the statistics that a merge takes itself are those of `stats`."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from speech_models import make_deltas, make_test_set, make_tuned, make_whisper

from lorsmerge_cli import delta, merge, prune, stats
from lorsmerge_cli.calibration.file import StatisticsFile
from lorsmerge_cli.errors import LorsmergeError, OutputFault, UsageFault
from lorsmerge_cli.operations.merge import (
    calibrated,
    plan_calibration,
    plan_control,
    plan_merge,
    run_merge,
    statistics_folder,
)
from lorsmerge_cli.recipe.calibration import delta_names, wanted_calibration
from lorsmerge_cli.recipe.recipe import DeltaEntry, Recipe, load_recipe, wanted_recipe

DATA = "data/test.jsonl"
PAIRS = {"ca": ("ca", "asr"), "de": ("de", "st")}
DELTAS = ["ca.delta", "de.delta"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two fine-tunes and their deltas, and audio of several languages. Read only."""
    folder = tmp_path_factory.mktemp("calibrate")
    base = make_whisper(folder / "base", spells=True)
    make_test_set(folder / "data", count=10)
    about = {name: {"language": pair[0], "task": pair[1]} for name, pair in PAIRS.items()}
    make_deltas(base, about, step=0.02)
    return folder


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of that folder, as the current one."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def same(one: str, other: str) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def take_statistics(models: dict[str, str], **settings: object) -> list[str]:
    """Take statistics of each delta's model as a user does by hand, and return the files."""
    for name, model in models.items():
        language, task = PAIRS[name]
        stats(model, DATA, f"{name}.stats", language=language, task=task, **settings)
    return [f"{name}.stats" for name in models]


@pytest.mark.parametrize("method", ["regmean", "fisher", "lors+regmean:ridge=0.01"])
def test_fine_tunes_give_the_same_merge_either_way(here: Path, method: str) -> None:
    """Bit for bit: the fine-tune in a delta's place is the model that hears."""
    kind = "fisher" if method == "fisher" else "gram"
    for name, (language, task) in PAIRS.items():  # which fine-tunes of others do not record
        rows = [json.loads(line) for line in Path(DATA).read_text().splitlines()]
        kept = [row for row in rows if (row["source_lang"], row["taskname"]) == (language, task)]
        Path(f"data/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    ratios = {"svp": 0.2, "mp": 0.4} if "lors" in method else {}
    files = take_statistics({name: name for name in PAIRS}, kind=kind)
    merge("base", list(PAIRS), "by_hand.safetensors", method=method, stats=files, **ratios)
    audio = {name: f"data/{name}.jsonl" for name in PAIRS}
    merge("base", list(PAIRS), "at_once.safetensors", method=method, calibrate=audio, **ratios)
    assert same("by_hand.safetensors", "at_once.safetensors")
    for name in PAIRS:
        assert same(f"{name}.stats", f"at_once-stats/{name}.stats")
        found = StatisticsFile(Path(f"at_once-stats/{name}.stats")).origin
        by_hand = StatisticsFile(Path(f"{name}.stats")).origin
        assert replace(found, made_by="") == replace(by_hand, made_by="")
        assert found.made_by.startswith("lorsmerge_cli.merge('base', ['ca', 'de'], ")


def test_deltas_give_the_merge_of_the_models_that_they_lead_to(here: Path) -> None:
    """Base + delta has other last bits than the fine-tune, so its statistics have too."""
    for name in PAIRS:
        merge("base", f"{name}.delta", f"whole_{name}", scale=1.0)
    files = take_statistics({name: f"whole_{name}" for name in PAIRS})
    merge("base", DELTAS, "by_hand.safetensors", method="regmean", stats=files)
    merge("base", DELTAS, "at_once.safetensors", method="regmean", calibrate=DATA)
    assert same("by_hand.safetensors", "at_once.safetensors")
    for name in PAIRS:
        assert same(f"{name}.stats", f"at_once-stats/{name}.stats")
        found = StatisticsFile(Path(f"at_once-stats/{name}.stats")).origin
        assert found.languages == (PAIRS[name],)
        assert found.model == f"{name}.delta"
    exact = take_statistics({name: name for name in PAIRS}, force=True)
    merge("base", DELTAS, "tuned.safetensors", method="regmean", stats=exact)
    one, other = load_file("tuned.safetensors"), load_file("at_once.safetensors")
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4)


def test_pruned_deltas_lead_to_pruned_models(here: Path) -> None:
    for name in PAIRS:
        prune(f"{name}.delta", f"{name}.small.delta", svp=0.2, mp=0.3)
        merge("base", f"{name}.small.delta", f"whole_{name}", scale=1.0)
    small = [f"{name}.small.delta" for name in PAIRS]
    files = take_statistics({name: f"whole_{name}" for name in PAIRS})
    merge("base", small, "by_hand.safetensors", method="regmean", stats=files)
    merge("base", small, "at_once.safetensors", method="regmean", calibrate=DATA)
    assert same("by_hand.safetensors", "at_once.safetensors")


def test_two_prunings_of_one_fine_tune(here: Path) -> None:
    """Either file fits both by the tensors that are not pruned; a repeated merge tells them apart."""
    prune("ca.delta", "ca.svp.delta", svp=0.2)
    prune("ca.delta", "ca.mp.delta", mp=0.3)
    merge("base", ["ca.svp.delta", "ca.mp.delta"], "m", method="regmean", calibrate=DATA)
    merge(recipe="m/lorsmerge.json", output="again.safetensors")
    assert same("m/model.safetensors", "again.safetensors")


def test_a_recipe_and_a_record_make_it_again(here: Path) -> None:
    report = merge(
        "base", DELTAS, "m", method="regmean", calibrate=DATA, half="encoder", save_recipe="r.toml"
    )
    kept = ("m-stats/ca.stats", "m-stats/de.stats")
    assert load_recipe(Path("r.toml")).stats == load_recipe(Path("m/lorsmerge.json")).stats == kept
    for number, recipe in enumerate(("r.toml", "m/lorsmerge.json")):
        again = merge(recipe=recipe, output=f"{number}.safetensors")
        assert again.step == report.step
        assert same("m/model.safetensors", f"{number}.safetensors")
    Path("bare.toml").write_text(
        'base = "base"\nmethod = "regmean"\n[[deltas]]\npath = "ca.delta"\n[[deltas]]\npath = "de.delta"\n'
    )
    merge(recipe="bare.toml", output="n.safetensors", calibrate=DATA, half="encoder")
    assert same("m/model.safetensors", "n.safetensors")
    with pytest.raises(UsageFault, match=r"Statistics are given, m-stats/ca.stats, and audio"):
        merge(recipe="r.toml", output="o", calibrate=DATA)


def test_the_encoder_alone_needs_no_transcripts(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorsmerge_cli.operations.stats.decode_answers", None)
    merge("base", DELTAS, "m", method="regmean", calibrate=DATA, half="encoder")
    names = StatisticsFile(Path("m-stats/ca.stats")).names("gram")
    assert all(name.startswith("model.encoder.") for name in names)


def test_hours_are_of_each_fine_tune(here: Path) -> None:
    language, task = PAIRS["ca"]
    stats("ca", DATA, "less.stats", language=language, task=task, hours=0.0003)
    merge("base", ["ca", "de.delta"], "m", method="regmean", calibrate=DATA, hours=0.0003)
    merge("base", DELTAS, "n", method="regmean", calibrate=DATA, hours=0.0003)
    less = StatisticsFile(Path("less.stats")).origin
    assert less.data == StatisticsFile(Path("n-stats/ca.stats")).origin.data


# --- who hears what -------------------------------------------------------------------------------


def languages_of(output: str, name: str) -> set[tuple[str, str]]:
    return set(StatisticsFile(Path(f"{output}-stats/{name}.stats")).origin.languages)


def test_a_delta_hears_its_own_language_and_task(here: Path) -> None:
    merge("base", DELTAS, "m", method="regmean", calibrate=[DATA, DATA])
    assert languages_of("m", "ca") == {("ca", "asr")}
    assert languages_of("m", "de") == {("de", "st")}


def test_one_that_records_none_hears_everything(here: Path) -> None:
    delta("base", "ca", "x.delta")
    merge("base", ["x.delta", "de.delta"], "m", method="regmean", calibrate=DATA)
    assert len(languages_of("m", "x")) == 5


def test_data_by_name_is_for_that_delta_alone(here: Path) -> None:
    rows = [json.loads(line) for line in Path(DATA).read_text().splitlines()]
    bare = [{"id": row["id"], "audio_filepath": row["audio_filepath"], "text": ""} for row in rows]
    Path("data/bare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    merge("base", DELTAS, "m", method="regmean", calibrate=["ca=data/bare.jsonl", DATA])
    found = StatisticsFile(Path("m-stats/ca.stats")).origin
    assert (found.languages, found.utterances) == ((("ca", "asr"),), 10)  # rows that name none
    assert StatisticsFile(Path("m-stats/de.stats")).origin.utterances == 2


def test_a_delta_given_twice_hears_once(here: Path) -> None:
    told = []
    merge(
        "base", ["ca.delta", "ca.delta", "de.delta"], "m", method="regmean", calibrate=DATA,
        progress=lambda done, total: told.append(total),
    )  # fmt: skip
    assert sorted(path.name for path in Path("m-stats").iterdir()) == ["ca.stats", "de.stats"]
    assert told[:8] == [8] * 8  # two utterances each, decoded and heard
    merge(recipe="m/lorsmerge.json", output="again.safetensors")
    assert same("m/model.safetensors", "again.safetensors")


def test_names_of_deltas() -> None:
    paths = ["a/ca.delta", "ft/de/", "you/ft-fr@main", "b/ca.delta", "a/ca.delta", "it.safetensors"]
    assert delta_names(paths) == ("ca", "de", "ft-fr", "ca-2", "ca", "it")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["cat=x.jsonl", "y.jsonl"], r"cat=x.jsonl names no delta. Did you mean 'ca'\?"),
        (["ca=x.jsonl"], r"no audio for the delta de. Give de=DATA, or DATA"),
        (["ca=x", "de=y", "z"], r"z is not used: each delta has data of its own"),
        (["ca=", "y.jsonl"], r"ca= names no data"),
        ({"ca": []}, r"ca= names no data"),
    ],
    ids=str,
)
def test_data_that_does_not_fit(given, words: str) -> None:
    recipe = Recipe("base", (DeltaEntry("ca.delta"), DeltaEntry("de.delta")), "regmean")
    with pytest.raises(LorsmergeError, match=words):
        wanted_calibration(recipe, given)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "ties"}, "Method ties needs no audio, and --calibrate is given. Omit"),
        ({"method": None}, "Method ta needs no audio"),
        ({"method": None, "svp": 0.1}, "Method svp needs no audio"),
        ({"stats": ["x.stats"]}, "Statistics are given, x.stats, and audio"),
        ({"half": "top"}, "--half 'top' is unknown. Use all, encoder, decoder"),
        ({"calibrate": (), "half": "encoder"}, "--half needs --calibrate"),
        ({"calibrate": (), "hours": 1.0}, "--hours needs --calibrate"),
        ({"calibrate": ()}, "give each with --stats; or let `merge` make them: --calibrate AUDIO"),
        ({"calibrate": "nowhere.jsonl"}, "There is no data set nowhere.jsonl"),
        ({"calibrate": "ca=data/zh.jsonl", "deltas": ["ca.delta"]},
         "for the delta ca: .* has the language zh, and the delta's is ca. Give audio of its language "
         "by --calibrate ca=DATA"),
        ({"output": "data"}, "data"),
        ({"scale": 1e39}, "scale"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_input_is_refused_before_any_work(here: Path, settings, words: str) -> None:
    rows = [json.loads(line) for line in Path(DATA).read_text().splitlines()]
    kept = [row for row in rows if row["source_lang"] == "zh"]
    Path("data/zh.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    before = sorted(Path().rglob("*"))
    given = {"deltas": DELTAS, "output": "m", "method": "regmean", "calibrate": DATA} | settings
    with pytest.raises(LorsmergeError, match=words):
        merge("base", **given)
    assert sorted(Path().rglob("*")) == before


# --- files that are kept --------------------------------------------------------------------------


def test_they_lie_beside_the_output() -> None:
    assert statistics_folder(Path("a/m.safetensors")) == Path("a/m-stats")
    assert statistics_folder(Path("a/m")) == Path("a/m-stats")


def test_what_is_there_already_is_used(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge("base", DELTAS, "m", method="regmean", calibrate=DATA)
    before = {path: path.stat().st_mtime_ns for path in Path("m-stats").iterdir()}
    shutil.rmtree("m")
    monkeypatch.setattr("lorsmerge_cli.operations.stats.decode_answers", None)
    merge("base", DELTAS, "m", method="regmean:ridge=0.1", calibrate=DATA)
    assert {path: path.stat().st_mtime_ns for path in Path("m-stats").iterdir()} == before
    merge("base", DELTAS, "n", method="regmean:ridge=0.1", stats=sorted(map(str, before)))
    assert same("m/model.safetensors", "n/model.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"half": "decoder"},
        {"method": "fisher"},
        {"hours": 0.0003},
        {"deltas": ["de.delta", "other/ca.delta"]},
    ],
    ids=str,
)
def test_other_statistics_are_not_used_nor_lost(here: Path, change) -> None:
    Path("other").mkdir()
    make_tuned(here / "base", here / "other" / "tuned", seed=9, step=0.02)
    delta("base", "other/tuned", "other/ca.delta", task="asr", language="ca")
    settings = {"deltas": DELTAS, "method": "regmean", "calibrate": DATA}
    merge("base", output="m", **settings)
    before = Path("m-stats/ca.stats").read_bytes()
    shutil.rmtree("m")
    with pytest.raises(LorsmergeError, match=r"m-stats/ca.stats exists. Give --force"):
        merge("base", output="m", **settings | change)
    assert Path("m-stats/ca.stats").read_bytes() == before
    merge("base", output="m", force=True, **settings | change)
    assert Path("m-stats/ca.stats").read_bytes() != before


def test_a_damaged_file_is_not_used(here: Path) -> None:
    merge("base", DELTAS, "m", method="regmean", calibrate=DATA)
    shutil.rmtree("m")
    Path("m-stats/ca.stats").write_bytes(Path("m-stats/ca.stats").read_bytes()[:-8])
    with pytest.raises(OutputFault, match=r"m-stats/ca.stats exists"):
        merge("base", DELTAS, "m", method="regmean", calibrate=DATA)


def test_an_interruption_keeps_whole_files_alone_and_is_resumed(here: Path) -> None:
    count = 0

    def stop(done: int, total: int) -> None:
        nonlocal count
        count += 1
        if count == 6:  # of eight: while the second fine-tune hears
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge("base", DELTAS, "m", method="regmean", calibrate=DATA, progress=stop)
    assert [path.name for path in Path("m-stats").iterdir()] == ["ca.stats"]
    assert not Path("m").exists()
    first = Path("m-stats/ca.stats").stat().st_mtime_ns
    told = []
    merge(
        "base", DELTAS, "m", method="regmean", calibrate=DATA,
        progress=lambda done, total: told.append(total),
    )  # fmt: skip
    assert told[:4] == [4] * 4
    assert Path("m-stats/ca.stats").stat().st_mtime_ns == first


def test_an_interruption_of_the_first_leaves_no_folder(here: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge("base", DELTAS, "m", method="regmean", calibrate=DATA, progress=stop)
    assert not Path("m-stats").exists()


# --- plans ----------------------------------------------------------------------------------------


def test_the_plan_counts_what_will_be_made(here: Path) -> None:
    recipe = wanted_recipe("base", DELTAS, method="regmean")
    audio = wanted_calibration(recipe, DATA)
    plan = plan_merge(recipe, Path("m"), threads=1, calibrated=True)
    planned = plan_calibration(plan, audio)
    assert [each.output.as_posix() for each in planned.calibration] == [
        "m-stats/ca.stats", "m-stats/de.stats",
    ]  # fmt: skip
    ready = calibrated(planned, "a test")
    assert (planned.memory, planned.weighed) == (ready.memory, ready.weighed)
    assert planned.memory > plan.memory
    assert plan_control(planned).calibration == ()
    for early in (plan, planned):
        with pytest.raises(ValueError, match="have not been made"):
            run_merge(early)
    assert run_merge(ready).step > 0


def test_a_control_and_a_step_norm(here: Path) -> None:
    report = merge(
        "base", DELTAS, "m", method="regmean", calibrate=DATA, control=True, step_norm=1.0
    )
    assert report.step == pytest.approx(1.0, rel=1e-6)
    assert report.control.step == pytest.approx(1.0, rel=1e-6)


def test_a_base_in_half_precision(here: Path) -> None:
    """The fine-tune that hears is not rounded to it."""
    tensors = load_file("base/model.safetensors")
    halves = {name: value.bfloat16() for name, value in tensors.items()}
    save_file(halves, "base/model.safetensors", metadata={"format": "pt"})
    for name, (language, task) in PAIRS.items():
        delta("base", name, f"{name}.delta", task=task, language=language, force=True)
    merge("base", DELTAS, "m", method="regmean", calibrate=DATA, dtype="float32")
    merge("base", DELTAS, "n", method="regmean", dtype="float32", stats=["m-stats/ca.stats", "m-stats/de.stats"])  # fmt: skip
    assert same("m/model.safetensors", "n/model.safetensors")
    files = take_statistics({name: name for name in PAIRS})
    for name in PAIRS:
        one, other = load_file(f"{name}.stats"), load_file(f"m-stats/{name}.stats")
        for key, value in one.items():
            torch.testing.assert_close(other[key], value, rtol=1e-3, atol=1e-4)
    merge("base", DELTAS, "o", method="regmean", dtype="float32", stats=files)


def test_a_bare_base_takes_its_config_from_a_folder(here: Path) -> None:
    shutil.copy("base/model.safetensors", "base.safetensors")
    with pytest.raises(LorsmergeError, match=r"config.json"):
        merge("base.safetensors", DELTAS, "m.safetensors", method="regmean", calibrate=DATA)
    merge("base.safetensors", DELTAS, "m.safetensors", method="regmean", calibrate=DATA, config_dir="base")  # fmt: skip
    merge("base", DELTAS, "n.safetensors", method="regmean", calibrate=DATA)
    assert same("m.safetensors", "n.safetensors")
