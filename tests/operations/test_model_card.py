"""The model card of what a stranger made: their strings are text, and the recipe is the card's own."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from golden_files import golden
from hostile import NAMES, links_and_html, shape
from markdown_it import MarkdownIt
from safetensors.torch import save_file

from lorsmerge_cli.checkpoint.fingerprint import fingerprint
from lorsmerge_cli.checkpoint.safetensors_file import SafetensorsFile
from lorsmerge_cli.errors import UnreadableFile
from lorsmerge_cli.operations.push.card import base_of, hub_id, write_card
from lorsmerge_cli.operations.push.card_scores import read_results
from lorsmerge_cli.operations.push.source import WHISPERS_OWN, find_source
from lorsmerge_cli.recipe.recipe import load_recipe

REPO = "you/babel"
BASE = f"openai/whisper-small@{'0' * 40}"
EVERY_NAME = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)


def weights(path: Path, metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.ones(2, 2) for name in WHISPERS_OWN}
    save_file(tensors, path, metadata={"format": "pt"} | (metadata or {}))
    return path


def record(**changes: Any) -> dict[str, Any]:
    """A lorsmerge.json of two deltas."""
    deltas = [{"path": "ca.delta", "svp": 0.05, "scale": 0.15}, {"path": "de.delta", "scale": 0.1}]
    about = {"fingerprint": "ab" * 32, "language": "ca", "task": "asr", "pruning": {"svp": 0.1}}
    return {
        "lorsmerge": "0.1.0",
        "recipe": {"base": BASE, "deltas": deltas, "method": "svp"},
        "base": {"fingerprint": "cd" * 32},
        "deltas": [about, about | {"language": "de", "task": "st"}],
        "versions": {"torch": "2.5.1"},
    } | changes


def folder(path: Path, document: Any, run: Any = None) -> Path:
    weights(path / "model.safetensors")
    (path / "config.json").write_text('{"model_type": "whisper"}')
    for name, content in (("lorsmerge.json", document), ("run.json", run)):
        if content is not None:
            (path / name).write_text(json.dumps(content))
    return path


def card_of(path: Path, **changes: Any) -> str:
    source = find_source(path)
    subject = {"base": hub_id(base_of(source)), "license": {}, "scores": []} | changes
    return write_card(source, REPO, **subject)


def delta_file(path: Path, **metadata: str) -> Path:
    """A dense delta with a header of a stranger's."""
    name = "model.encoder.conv1.weight"
    specs = {n: torch.ones(2, 2) for n in WHISPERS_OWN}
    weights(path.with_suffix(".safetensors"))
    stored = SafetensorsFile(path.with_suffix(".safetensors"))
    entries = {
        n: {"encoding": "dense", "shape": [2, 2], "dtype": "F32", "norm": 2.0} for n in specs
    }
    header = {
        "lorsmerge.format_version": "1", "lorsmerge.base.name": BASE,
        "lorsmerge.base.fingerprint": fingerprint(stored.specs, stored.read).to_json(),
        "lorsmerge.finetuned_dtype": "F32", "lorsmerge.task": "asr", "lorsmerge.language": "ca",
        "lorsmerge.history": json.dumps(["lorsmerge delta base ca -o ca.delta"]),
        "lorsmerge.tensors": json.dumps(entries),
    }  # fmt: skip
    assert name in specs
    save_file(specs, path, metadata={"format": "pt"} | header | metadata)
    return path


def parts(card: str) -> tuple[dict[str, Any], str]:
    """The card's YAML, and what comes after it."""
    _, head, text = re.split(r"^---$", card, maxsplit=2, flags=re.MULTILINE)
    return yaml.safe_load(head), text


def fences(text: str, language: str) -> list[str]:
    """The blocks of code in a language, by an independent reader."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    return [token.content for token in tokens if token.type == "fence" and token.info == language]


def check(card: str, like: str, *, links: int) -> None:
    """A card has the blocks of an innocent one, and no link or HTML beside those to Hub ids."""
    assert shape(parts(card)[1]) == shape(parts(like)[1])
    found = links_and_html(parts(card)[1])
    assert len(found) == links
    assert all(re.fullmatch(r"https://huggingface\.co/[\w.-]+/[\w.-]+", link) for link in found)


# the cards that were once found right


def cards(path: Path) -> dict[str, str]:
    """A card of everything that can be pushed, of plain names and of a stranger's."""
    recipe = record()["recipe"]
    ids = [{"path": f"anna/ca@{'1' * 40}", "svp": 0.05, "mp": 0.4}, {"path": "/home/anna/de.delta"}]
    hub = record(recipe=recipe | {"deltas": ids, "method": "lors", "scale": 0.15})
    unknown = record(recipe=recipe | {"base": "/home/anna/base"})
    names = list(NAMES.values())
    nasty = record(
        lorsmerge=" ".join(names), versions={"torch": " ".join(names)},
        recipe=recipe | {"include": names, "deltas": [{"path": n, "scale": 0.1} for n in names]},
        deltas=[record()["deltas"][0] | {"fingerprint": name} for name in names],
    )  # fmt: skip
    scores = [
        result
        for number, changes in enumerate(
            [{}, {"dataset": "x|y/test", "task": "st", "metric": "BLEU", "score": 38, "low": None,
                  "high": None, "signature": "nrefs:1"},
             *({"dataset": f"a{name}", "metric": name, "signature": name, "split": name}
               for name in names)]
        )
        for result in read_results(results(path / f"{number}.json", **changes), "0" * 16, path)
    ]  # fmt: skip
    run = {"base_name": BASE, "trained_on": [{"language": "ca", "task": "st", "hours": 1.0}]}
    pruned = {
        "lorsmerge.pruning": json.dumps({"svp": 0.05, "mp": 0.2, "energy_kept": 0.98765}),
        "lorsmerge.history": json.dumps(
            [f"lorsmerge delta {shlex.quote(name)} ca -o ca.delta" for name in names
             if "\udc80" not in name]
        ),
    }  # fmt: skip
    alone = {"lorsmerge": json.dumps(record())}
    return {
        "merge": card_of(folder(path / "merge", record())),
        "merge_of_ids": card_of(folder(path / "ids", hub), license={"license": "mit"}),
        "merge_of_no_id": card_of(folder(path / "no", unknown), base=None),
        "merge_based": card_of(folder(path / "based", unknown), base="_you_/whisper_small"),
        "merge_hostile": card_of(folder(path / "nasty", nasty)),
        "scores": card_of(folder(path / "scores", record()), scores=scores[:2]),
        "scores_hostile": card_of(folder(path / "scored", record()), scores=scores),
        "finetune": card_of(folder(path / "run", None, run)),
        "nothing": card_of(folder(path / "nothing", None), base=None),
        "checkpoint": card_of(weights(path / "it's.safetensors", alone)),
        "checkpoint_unknown": card_of(weights(path / "x.safetensors"), base=None),
        "delta": card_of(delta_file(path / "a.delta")),
        "delta_pruned": card_of(delta_file(path / "b.delta", **pruned), base=None),
    }


def test_cards_are_those_that_were_found_right(tmp_path: Path) -> None:
    """The YAML by its values, as its layout is huggingface_hub's; the rest byte for byte."""
    for name, card in cards(tmp_path).items():
        assert parts(card) == parts(golden(f"card_{name}.md", card)), name


# a merge


@EVERY_NAME
def test_a_records_strings_are_text_in_the_card(tmp_path: Path, name: str) -> None:
    plain = record()
    nasty = record(lorsmerge=name, versions={"torch": name})
    nasty["recipe"] = plain["recipe"] | {
        "include": [name],
        "deltas": [{"path": name, "svp": 0.05, "scale": 0.15}, {"path": f"x/{name}", "scale": 0.1}],
    }
    nasty["deltas"] = [about | {"fingerprint": name} for about in plain["deltas"]]
    card = card_of(folder(tmp_path / "nasty", nasty))
    check(card, card_of(folder(tmp_path / "plain", plain)), links=1)
    (tmp_path / "card.md").write_text(card, encoding="utf-8")
    if name.isascii() or "\udc80" not in name:  # which is no text, and which TOML has no form for
        read = load_recipe(tmp_path / "card.md")
        assert (read.base, read.include) == (BASE, (name,))
        assert len(read.deltas) == 2


@EVERY_NAME
def test_rules_of_coefficients_are_code_in_the_card(tmp_path: Path, name: str) -> None:
    plain = record(recipe=record()["recipe"] | {"coef": ["decoder=0.5", "lines:beta=0.4"]})
    nasty = record(recipe=record()["recipe"] | {"coef": [name, "x"]})
    like = card_of(folder(tmp_path / "plain", plain))
    assert "\nLambda is multiplied by `decoder=0.5`, `lines:beta=0.4`.\n" in like
    check(card_of(folder(tmp_path / "nasty", nasty)), like, links=1)


@EVERY_NAME
def test_the_task_of_tall_masks_is_text_in_the_card(tmp_path: Path, name: str) -> None:
    def of(task: str) -> dict[str, Any]:
        deltas = [{"path": "tall.delta", "for_task": task, "scale": 1.0}]
        recipe = {"base": BASE, "deltas": deltas, "method": "ta"}
        return record(recipe=recipe, deltas=record()["deltas"][:1])

    like = card_of(folder(tmp_path / "plain", of("ca_asr")))
    assert "| tall.delta for ca\\_asr | ca | asr |" in like
    assert "merged with one task's part of the sum of several deltas (TALL masks), without" in like
    assert 'for_task = "ca_asr"' in like
    check(card_of(folder(tmp_path / "nasty", of(name))), like, links=1)


@EVERY_NAME
def test_the_recipe_of_a_card_is_the_merges_own(tmp_path: Path, name: str) -> None:
    """Whatever a stranger's delta says of its making: nothing in the card is read before the recipe."""
    card = card_of(folder(tmp_path / "m", record(lorsmerge=f"{name}\n```toml lorsmerge-recipe\nx")))
    (tmp_path / "card.md").write_text(card, encoding="utf-8")
    assert [entry.path for entry in load_recipe(tmp_path / "card.md").deltas] == [
        "ca.delta",
        "de.delta",
    ]


WRONG = {
    "language": ["en\"; import os", "<b>", "ca\n", "CA", "../x", "x" * 40, "e", 3, None, ["ca"], {}],
    "task": ["transcribe", "asr\n", "<b>", 3, None, ["asr"], {}],
    "fingerprint": [3, None, [], {}, True],
    "pruning": [3, "x", [], [["svp", 1]], {"svp": "0.1"}, {"svp": []}, {"mp": True}, {"mp": 10**400}],
    "training": [3, "x", [], {"trained_on": 3}, {"trained_on": [3]}, {"trained_on": {"a": 1}},
                 {"trained_on": [{"language": "<b>", "task": "asr"}]}, {"seed": "x"}, {"seed": 0.5},
                 {"trained_on": [{"language": "ca", "task": "rm"}]},
                 {"trained_on": [{"language": "ca", "task": "asr", "hours": "x"}]}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG.items() for value in values], ids=repr
)
def test_a_field_of_a_delta_that_no_merge_writes(tmp_path: Path, key: str, value: Any) -> None:
    document = record()
    document["deltas"][0] = document["deltas"][0] | {key: value}
    with pytest.raises(UnreadableFile, match=r"record of how it was made is damaged.*README\.md"):
        find_source(folder(tmp_path / "m", document))


TOP = {
    "recipe": [3, "x", [], {}, {"base": 3, "deltas": []}, {"base": "b", "deltas": [{"path": 3}]},
               {"base": "b", "deltas": [{"path": "a", "svp": "x"}]}, {"base": "b", "deltas": []},
               record()["recipe"] | {"scale": 10**400}, record()["recipe"] | {"method": ["svp"]}],
    "base": [3, "x", [], {"fingerprint": 3}], "deltas": [3, "x", {}, [], [3], [None, None]],
    "versions": [3, "x", [], {"torch": 3}], "lorsmerge": [3, None, [], {}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in TOP.items() for value in values], ids=repr
)
def test_a_field_of_a_record_that_no_merge_writes(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(UnreadableFile, match="record of how it was made is damaged"):
        find_source(folder(tmp_path / "m", record(**{key: value})))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", "\x00", "[" * 100_000, '{"a":' * 9999]
)
@pytest.mark.parametrize("name", ["lorsmerge.json", "run.json"])
def test_a_record_that_is_none(tmp_path: Path, name: str, text: str) -> None:
    folder(tmp_path / "m", None)
    (tmp_path / "m" / name).write_text(text)
    with pytest.raises(UnreadableFile, match="record of how it was made is damaged"):
        find_source(tmp_path / "m")


def test_a_deep_field_that_nobody_asked_for_is_no_crash(tmp_path: Path) -> None:
    folder(tmp_path / "m", None)
    deep = "[" * 900 + "]" * 900
    text = json.dumps(record())[:-1] + f', "more": {deep}}}'
    (tmp_path / "m" / "lorsmerge.json").write_text(text)
    try:
        card_of(tmp_path / "m")
    except UnreadableFile as error:
        assert "nested too deeply" in str(error)  # noqa: PT017


RUNS = {
    "base_name": [3, None, []],
    "base": [3, []],
    "settings": [3, "x", {"learning_rate": "x"}, {"seed": "x"}],
    "trained_on": [3, {}, [3], [{"language": "'); os.system('x", "task": "asr"}]],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in RUNS.items() for value in values], ids=repr
)
def test_a_field_of_a_run_that_no_fine_tune_writes(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(UnreadableFile, match="record of how it was made is damaged"):
        find_source(folder(tmp_path / "m", None, {key: value}))


def test_the_code_on_the_card_is_what_it_should_be(tmp_path: Path) -> None:
    run = {"base_name": BASE, "trained_on": [{"language": "ca", "task": "st", "hours": 1.0}]}
    card = card_of(folder(tmp_path / "m", None, run))
    (snippet,) = fences(parts(card)[1], "python")
    calls = [
        ast.unparse(node.func)
        for node in ast.walk(ast.parse(snippet))
        if isinstance(node, ast.Call)
    ]
    assert sorted(calls) == ["pipeline", "print", "recognizer", "soundfile.read"]
    assert "\"language\": 'ca', \"task\": 'translate'" in snippet


@EVERY_NAME
def test_a_file_name_in_code_is_a_string(tmp_path: Path, name: str) -> None:
    called = re.sub(r"[/\0\ud800\udc80]", "_", name)[:40] + ".safetensors"
    document = {"lorsmerge": json.dumps(record())}
    path = weights(tmp_path / called, document)
    card = card_of(path, base="openai/whisper-small")
    (snippet,) = fences(parts(card)[1], "python")
    tree = ast.parse(snippet)
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert sorted(calls) == [
        "WhisperForConditionalGeneration.from_pretrained", "hf_hub_download", "load_file",
        "model.load_state_dict",
    ]  # fmt: skip
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert called in strings
    check(
        card,
        card_of(weights(tmp_path / "x.safetensors", document), base="openai/whisper-small"),
        links=1,
    )


# local paths


PATHS = {
    "/home/anna/secret/ca.delta": "ca.delta",
    "C:\\Users\\anna\\ca.delta": "ca.delta",
    "\\\\server\\anna\\ca.delta": "ca.delta",
    "../../anna/ca.delta": "ca.delta",
    "~anna/ca.delta": "ca.delta",
    "anna/runs/ca.delta": "ca.delta",
    "/home/anna/": "anna",
    "/": "folder",
    "..": "folder",
    f"anna/ca@{'1' * 40}": f"anna/ca@{'1' * 40}",  # a Hub id
}


@pytest.mark.parametrize(("path", "shown"), PATHS.items(), ids=PATHS)
def test_local_paths_stay_at_home(tmp_path: Path, path: str, shown: str) -> None:
    document = record()
    document["recipe"] |= {"base": "/home/anna/whisper", "deltas": [{"path": path, "scale": 1.0}]}
    document["deltas"] = document["deltas"][:1]
    run = {"base_name": "/home/anna/whisper", "settings": {"seed": 1}, "data": "x=/home/anna/d"}
    source = find_source(folder(tmp_path / "m", document, run))
    card = card_of(tmp_path / "m", base="openai/whisper-small")
    (tmp_path / "card.md").write_text(card)
    assert load_recipe(tmp_path / "card.md").deltas[0].path == shown
    uploaded = [card, *(text.decode() for text in source.published.values())]
    assert set(source.published) == {"lorsmerge.json", "run.json"}
    assert all("secret" not in text and "/home" not in text for text in uploaded)
    (tmp_path / "lorsmerge.json").write_bytes(source.published["lorsmerge.json"])
    again = load_recipe(tmp_path / "lorsmerge.json")
    assert (again.base, again.deltas[0].path) == ("whisper", shown)
    assert again.expected == ("cd" * 32, "ab" * 32)
    assert json.loads(source.published["run.json"])["data"] == "x=d"


def test_two_files_of_one_name_stay_two(tmp_path: Path) -> None:
    document = record()
    document["recipe"]["deltas"] = [{"path": "/a/x.delta"}, {"path": "/b/x.delta"}]
    source = find_source(folder(tmp_path / "m", document))
    (tmp_path / "card.md").write_text(card_of(tmp_path / "m"))
    (tmp_path / "lorsmerge.json").write_bytes(source.published["lorsmerge.json"])
    for name in ("card.md", "lorsmerge.json"):
        paths = [entry.path for entry in load_recipe(tmp_path / name).deltas]
        assert paths == ["x.delta", "x-2.delta"]


def test_a_record_without_paths_is_pushed_as_it_is(tmp_path: Path) -> None:
    source = find_source(folder(tmp_path / "m", record(), {"base_name": BASE}))
    assert source.published == {}
    assert source.notes == ()


def test_paths_in_a_header_are_told(tmp_path: Path) -> None:
    document = record()
    document["recipe"]["base"] = "/home/anna/whisper"
    path = weights(tmp_path / "m.safetensors", {"lorsmerge": json.dumps(document)})
    (note,) = find_source(path).notes
    assert "m.safetensors contains local paths" in note
    assert "/home/anna/whisper" in note
    history = json.dumps(["lorsmerge delta /home/anna/base x -o /tmp/anna/x.delta"])
    (note,) = find_source(delta_file(tmp_path / "x.delta", **{"lorsmerge.history": history})).notes
    assert "/home/anna/base" in note
    (folder(tmp_path / "m", record()) / "config.json").write_text(
        '{"_name_or_path": "/home/anna/w"}'
    )
    (note,) = find_source(tmp_path / "m").notes
    assert "config.json" in note


# a delta


@EVERY_NAME
def test_a_deltas_history_is_shown_or_left_out(tmp_path: Path, name: str) -> None:
    lines = [
        name,
        f"lorsmerge delta {name}",
        f"lorsmerge delta {shlex.quote(name)} x",
        f"lorsmerge delta a b  # {name}",
        f"lorsmerge delta a b  # org/x@{'0' * 40}, {name}",
    ]
    nasty = delta_file(tmp_path / "a.delta", **{"lorsmerge.history": json.dumps(lines)})
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        with pytest.raises(UnreadableFile, match="no Unicode"):
            card_of(nasty)
        return
    card = card_of(nasty)
    check(card, card_of(delta_file(tmp_path / "b.delta")), links=1)
    shown, _ = fences(parts(card)[1], "sh")
    for line in shown.splitlines():
        words = shlex.split(line, comments=True)
        assert words[:2] == ["lorsmerge", "delta"]
        # all else is an argument: quoted, or of what a shell reads as a word
        assert shlex.join(words) == line.partition("  # ")[0]


@pytest.mark.parametrize(
    "value", ['en"); import os; ("', "<script>", "ca\n", "ca|de", "[x](y)", "`"]
)
@pytest.mark.parametrize("key", ["language", "task"])
def test_a_deltas_labels_are_checked(tmp_path: Path, key: str, value: str) -> None:
    path = delta_file(tmp_path / "a.delta", **{f"lorsmerge.{key}": value})
    with pytest.raises(UnreadableFile, match=r"a\.delta"):
        find_source(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("pruning", '{"svp": "x"}'), ("pruning", '{"mp": [1]}'), ("history", "[3]"),
     ("training", '{"trained_on": [{"language": "<b>"}]}')],
)  # fmt: skip
def test_a_deltas_figures_are_checked(tmp_path: Path, key: str, value: str) -> None:
    path = delta_file(tmp_path / "a.delta", **{f"lorsmerge.{key}": value})
    with pytest.raises(UnreadableFile, match=r"a\.delta"):
        find_source(path)


def test_a_deltas_commands_are_split_by_a_shell(tmp_path: Path) -> None:
    card = card_of(delta_file(tmp_path / "a.delta"))
    _, usage = fences(parts(card)[1], "sh")
    for line in usage.splitlines():
        words = shlex.split(line, comments=True)
        assert words[:4] == ["lorsmerge", "merge", "openai/whisper-small", REPO]


# scores


def results(path: Path, split: str | None = None, **changes: Any) -> Path:
    row = {"model": "m", "dataset": "fleurs", "language": "ca", "task": "asr", "metric": "WER",
           "score": 12.3456, "low": 11.0, "high": 13.5, "signature": "beam:20",
           "standard_error": 0.5, "details": {},
           "rows": [{"id": "u", "seconds": 1.0, "reference": "a", "hypothesis": "b"}]}  # fmt: skip
    settings = {"splits": {str(changes.get("dataset", "fleurs")): split},
                "scoring": {"normalisation": "auto"}}  # fmt: skip
    document = {"settings": settings, "models": {"m": {"identity": "0" * 16}},
                "records": [row | changes]}  # fmt: skip
    path.write_text(json.dumps(document))
    return path


@EVERY_NAME
@pytest.mark.parametrize("key", ["dataset", "metric", "signature", "split"])
def test_a_results_strings_are_text_in_the_card(tmp_path: Path, name: str, key: str) -> None:
    source = folder(tmp_path / "m", record())
    rows = read_results(results(tmp_path / "r.json", **{key: name}), "0" * 16, source)
    like = read_results(results(tmp_path / "s.json"), "0" * 16, source)
    card = card_of(source, scores=rows)
    check(card, card_of(source, scores=like), links=1)
    head = parts(card)[0]
    assert head.keys() == parts(card_of(source, scores=like))[0].keys()
    assert len(head["model-index"][0]["results"]) == 1
    assert "\n" not in str(head["model-index"][0]["results"][0]["metrics"][0]["name"])


def test_a_data_sets_path_stays_at_home(tmp_path: Path) -> None:
    source = folder(tmp_path / "m", record())
    rows = read_results(results(tmp_path / "r.json", dataset="/home/anna/test"), "0" * 16, source)
    assert rows[0].dataset == "test"
    assert "anna" not in card_of(source, scores=rows)


@pytest.mark.parametrize(
    "changes",
    [{"score": "x"}, {"score": True}, {"score": None}, {"score": 10**400}, {"score": float("nan")},
     {"score": float("inf")}, {"low": "x"}, {"high": []}, {"dataset": 3}, {"dataset": ["x"]},
     {"language": "<b>"}, {"language": 3}, {"task": "rm"}, {"task": []}, {"metric": 3},
     {"metric": None}, {"signature": {}}],
    ids=repr,
)  # fmt: skip
def test_a_results_field_of_another_type_is_told(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = results(tmp_path / "r.json", **changes)
    with pytest.raises(UnreadableFile, match=r"results file of `lorsmerge eval`|cannot be shown"):
        read_results(path, "0" * 16, tmp_path)
