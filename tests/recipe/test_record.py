"""How a model was made, from a fine-tune's run.json over deltas and merges to eval's results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from speech_models import make_test_set, make_tuned, make_whisper

from lorsmerge_cli import delta, merge, prune
from lorsmerge_cli.data.dataset import load_data
from lorsmerge_cli.metrics.metric import Scoring
from lorsmerge_cli.operations.eval import run_evaluation
from lorsmerge_cli.operations.report.entries import origin_of
from lorsmerge_cli.recipe.recipe import DeltaEntry
from lorsmerge_cli.recipe.record import (
    check_labels,
    made_from,
    merge_record,
    trained_on,
    training_of,
)
from lorsmerge_cli.results.document import TestSet
from lorsmerge_cli.speech.source import ModelSource, find_model

CA = [{"language": "ca", "task": "asr", "hours": 5.0}]
DE = [
    {"language": "de", "task": "asr", "hours": 4.9},
    {"language": "de", "task": "st", "hours": 4.9},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, fine-tunes ca/ and de/ with a run.json, other/ without, and a delta of each."""
    folder = tmp_path_factory.mktemp("provenance")
    make_whisper(folder / "base")
    for seed, (name, data) in enumerate((("ca", CA), ("de", DE), ("other", None))):
        make_tuned(folder / "base", folder / name, seed=seed + 1)
        if data:
            run = {"base": "0123", "trained_on": data,
                   "settings": {"learning_rate": 1e-6, "seed": seed, "clip": 1.0}}  # fmt: skip
            (folder / name / "run.json").write_text(json.dumps(run))
        delta(folder / "base", folder / name, folder / f"{name}.delta", language="", task="")
    return folder


def origin(source: ModelSource) -> dict[str, Any]:
    return made_from(source.checkpoint, source.applied, source.method)


def of(path: Path, **changes: Any) -> dict[str, Any]:
    return origin(find_model(path, **changes))


def test_a_base_is_made_from_nothing_that_is_known(folder: Path) -> None:
    assert of(folder / "base") == {}
    assert of(folder / "other") == {}
    assert origin_of({}).covers is None


def test_a_fine_tune_tells_its_data(folder: Path) -> None:
    found = of(folder / "de")
    assert found == {
        "kind": "finetune", "base": "0123", "trained_on": DE, "learning_rate": 1e-6, "seed": 1,
    }  # fmt: skip
    origin = origin_of(found)
    assert origin.covers == {("de", "asr"), ("de", "st")}
    assert (origin.languages, origin.hours) == (1, 4.9)


@pytest.mark.parametrize("damage", ["{", "[]", '{"base": 1}', '{"base": 1, "trained_on": []}'])
def test_a_damaged_run_json_tells_nothing(folder: Path, tmp_path: Path, damage: str) -> None:
    make_whisper(tmp_path / "model")
    (tmp_path / "model" / "run.json").write_text(damage)
    assert of(tmp_path / "model") == {}


@pytest.mark.parametrize("stored", [True, False])
def test_a_merge_tells_its_deltas(folder: Path, tmp_path: Path, stored: bool) -> None:
    names = [f"{name}.delta" if stored else name for name in ("ca", "de")]
    entries = [DeltaEntry(str(folder / names[0]), svp=0.1, mp=0.2, scale=0.3),
               DeltaEntry(str(folder / names[1]), mp=0.4)]  # fmt: skip
    merge(folder / "base", entries, tmp_path / "merged", scale=0.15)
    found = of(tmp_path / "merged")
    assert (found["kind"], found["method"]) == ("merge", "lors")
    first, second = found["deltas"]
    assert (first["svp"], first["mp"], first["scale"], first["seed"]) == (0.1, 0.2, 0.3, 0)
    assert (second.get("svp"), second["mp"], second["scale"], second["seed"]) == (
        None,
        0.4,
        0.15,
        1,
    )
    assert first["fingerprint"] != second["fingerprint"]
    origin = origin_of(found)
    assert origin.covers == {("ca", "asr"), ("de", "asr"), ("de", "st")}
    assert origin.languages == 2
    assert (origin.svp, origin.mp, origin.scale) == ("own", "own", "own")
    # the same from the header of a file
    merge(folder / "base", entries, tmp_path / "m.safetensors", scale=0.15)
    assert of(tmp_path / "m.safetensors", config_dir=folder / "base") == found


def test_a_delta_of_unknown_data_leaves_open_what_a_merge_was_made_for(
    folder: Path, tmp_path: Path
) -> None:
    merge(folder / "base", [folder / "ca.delta", folder / "other.delta"], tmp_path / "merged")
    assert origin_of(of(tmp_path / "merged")).covers is None
    delta(folder / "base", folder / "other", tmp_path / "named.delta", language="it", task="st")
    merge(folder / "base", [folder / "ca.delta", tmp_path / "named.delta"], tmp_path / "again")
    assert origin_of(of(tmp_path / "again")).covers == {("ca", "asr"), ("it", "st")}


def test_a_delta_pruned_before_counts_as_pruned(folder: Path, tmp_path: Path) -> None:
    prune(folder / "ca.delta", tmp_path / "ca.delta", svp=0.2, mp=0.1)
    merge(folder / "base", [tmp_path / "ca.delta"], tmp_path / "merged")
    found = of(tmp_path / "merged")
    assert found["method"] == "lors"
    assert (found["deltas"][0]["svp"], found["deltas"][0]["mp"]) == (0.2, 0.1)
    assert found["deltas"][0]["trained_on"] == CA


@pytest.mark.parametrize("method", ["ta", "wa"])
def test_an_unpruned_merge_has_no_ratios(folder: Path, tmp_path: Path, method: str) -> None:
    merge(folder / "base", [folder / "ca.delta"], tmp_path / "merged", method=method)
    found = of(tmp_path / "merged")
    assert found["method"] == method
    assert (origin_of(found).svp, origin_of(found).mp) == (None, None)


def test_rules_of_coefficients_are_told(folder: Path, tmp_path: Path) -> None:
    rules = ["decoder=0.5", "equalise", "lines:beta=0.4"]
    merge(folder / "base", [folder / "ca.delta", folder / "de"], tmp_path / "merged", coef=rules)
    found = of(tmp_path / "merged")
    assert found["coef"] == ["decoder=0.5", "lines:beta=0.4"]
    origin = origin_of(found)
    assert (origin.coef, origin.scale) == (("decoder=0.5", "lines:beta=0.4"), "own")
    merge(folder / "base", [folder / "ca.delta"], tmp_path / "plain")
    assert "coef" not in of(tmp_path / "plain")


def test_applied_deltas_are_a_merge(folder: Path) -> None:
    found = of(folder / "base", deltas=[folder / "ca.delta"], scale=0.4)
    assert (found["kind"], found["method"]) == ("merge", "ta")
    assert found["deltas"][0]["trained_on"] == CA
    assert found["deltas"][0]["scale"] == 0.4


def test_a_merge_recorded_before_there_were_origins_is_read(folder: Path, tmp_path: Path) -> None:
    merge(folder / "base", [folder / "ca.delta"], tmp_path / "merged")
    path = tmp_path / "merged" / "lorsmerge.json"
    stored = json.loads(path.read_text())
    stored["deltas"] = [{"fingerprint": "ab" * 32, "task": "asr", "language": "ca"}]
    path.write_text(json.dumps(stored))
    assert origin_of(of(tmp_path / "merged")).covers == {("ca", "asr")}
    path.write_text('{"recipe": 3}')
    assert of(tmp_path / "merged") == {}


def test_eval_records_every_model(folder: Path, tmp_path: Path) -> None:
    make_test_set(tmp_path / "data")
    rows = load_data([tmp_path / "data" / "test.jsonl"], max_seconds=2.0)
    models = [find_model(folder / name, name=name) for name in ("base", "ca")]
    output = tmp_path / "results.json"
    run_evaluation(models, [TestSet("test", rows.utterances[:2])], scoring=Scoring(samples=10), beam=1,
             device="cpu", output=output)  # fmt: skip
    found = json.loads(output.read_text())["models"]
    assert all(entry.pop("decoded_on")["dtype"] == "float32" for entry in found.values())
    assert found == {
        name: {"identity": model.identity(), "made_from": origin(model)}
        for name, model in zip(("base", "ca"), models, strict=True)
    }
    assert found["ca"]["made_from"]["trained_on"] == CA
    assert trained_on(rows)[0] == {"language": "ca", "task": "asr", "hours": pytest.approx(0.0005, abs=0.001)}  # fmt: skip


def record(**changes: Any) -> dict[str, Any]:
    """What a merge of one delta records of itself."""
    about = {"fingerprint": "ab" * 32, "language": "ca", "task": "asr", "pruning": {"svp": 0.1}}
    return {
        "recipe": {"base": "b", "deltas": [{"path": "ca.delta", "scale": 0.15}], "method": "ta"},
        "base": {"fingerprint": "cd" * 32},
        "deltas": [about | changes],
    }


def test_a_record_is_read_as_objects() -> None:
    found = merge_record(record(training={"trained_on": DE, "seed": 3}))
    assert (found.base, found.recipe.base, found.lorsmerge, found.torch) == ("cd" * 32, "b", "", "")
    (delta,) = found.deltas
    assert (delta.pruning, delta.seed) == ({"svp": 0.1}, 3)
    assert delta.trained_on == tuple(DE)
    assert delta.pairs == [("ca", "asr"), ("de", "asr"), ("de", "st")]
    assert merge_record(record()).deltas[0].trained_on == ({"language": "ca", "task": "asr"},)


@pytest.mark.parametrize(
    "changes",
    [{"language": "<b>"}, {"language": 3}, {"task": "rm"}, {"fingerprint": 3}, {"pruning": [1]},
     {"pruning": {"svp": "x"}}, {"training": {"seed": 1.5}}, {"training": {"trained_on": "x"}}],
    ids=repr,
)  # fmt: skip
def test_a_record_that_no_merge_writes_tells_nothing(
    folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=next(iter(changes)) + "|code|task|svp|seed|trained_on"):
        merge_record(record(**changes))
    make_whisper(tmp_path / "model")
    (tmp_path / "model" / "lorsmerge.json").write_text(json.dumps(record(**changes)))
    assert of(tmp_path / "model") == {}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"recipe":' * 100_000, "\x00", "3"])
@pytest.mark.parametrize("name", ["lorsmerge.json", "run.json"])
def test_a_record_that_is_no_json_tells_nothing(tmp_path: Path, name: str, text: str) -> None:
    make_whisper(tmp_path / "model")
    (tmp_path / "model" / name).write_text(text)
    assert of(tmp_path / "model") == {}


@pytest.mark.parametrize(
    ("language", "task"),
    [("ca", "asr"), ("yue", "st"), ("haw", ""), ("", "asr"), ("", ""), ("zh-TW", ""), ("sr-Latn-RS", "")],
)  # fmt: skip
def test_labels_of_languages_and_tasks(language: str, task: str) -> None:
    check_labels(language, task)


@pytest.mark.parametrize(
    "language", ["c", "CA", "ca ", "ca\n", "catalan", "ca_ES", "ca-", "<b>", "'", "ка"]
)
def test_what_is_no_code_of_a_language(language: str) -> None:
    with pytest.raises(ValueError, match="no code of a language"):
        check_labels(language, "")


@pytest.mark.parametrize(
    ("run", "wanted"),
    [({"base": "0", "trained_on": [{"language": "<b>", "task": "asr"}], "settings": {}}, {}),
     ({"base": 3, "trained_on": [], "settings": {}}, {}),
     ({"base": "0", "trained_on": [], "settings": {"seed": "x"}}, {}),
     ({"base": "0", "trained_on": CA, "settings": {}},
      {"base": "0", "trained_on": CA, "learning_rate": None, "seed": None})],
)  # fmt: skip
def test_only_what_finetune_writes_gets_into_a_deltas_header(
    tmp_path: Path, run: dict[str, Any], wanted: dict[str, Any]
) -> None:
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert training_of(tmp_path) == wanted
