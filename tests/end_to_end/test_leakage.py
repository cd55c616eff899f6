"""Test data that was trained on, found by what models and deltas record of their training data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands_ended import Shell
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from speech_models import make_clip, make_whisper
from typer.testing import CliRunner

from lorsmerge_cli.app import app
from lorsmerge_cli.core.sketch import parse_sketches
from lorsmerge_cli.deltas.file import DeltaFile
from lorsmerge_cli.operations.push.source import find_source
from lorsmerge_cli.recipe.published import published_record

FINETUNE = "finetune base --data train.jsonl --dev dev.jsonl --steps 1 --lr 1e-3 --device cpu"
TEXTS = ["the red boy", "red birds", "the house", "birds the house", "ocells red", "boy the birds"]

Row = dict[str, Any]
Command = Callable[[str], Any]


def write(path: Path, *rows: Row) -> None:
    about = {"source_lang": "ca", "taskname": "asr"}
    path.write_text("".join(json.dumps(about | row) + "\n" for row in rows))


def clip(folder: Path, seed: int) -> str:
    path = folder / f"{seed}.wav"
    if not path.exists():
        make_clip(path, seed, 0.6)
    return path.name


def row(folder: Path, seed: int, text: str, speaker: str) -> Row:
    return {"audio_filepath": clip(folder, seed), "text": text, "speaker": speaker}


@pytest.fixture(scope="module")
def speech_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tune and all that is made of it, and a test set of 8 rows.

    In the test set 2 rows have audio of the training under another name, 3 have sentences of it, and
    2 of its 5 speakers are among those of the training.
    """
    folder = tmp_path_factory.mktemp("leakage")
    make_whisper(folder / "base", spells=True)
    train = [row(folder, n, text, f"s{n % 3}") for n, text in enumerate(TEXTS)]
    write(folder / "train.jsonl", *train)
    write(folder / "dev.jsonl", *(row(folder, n, f"boy {n}", f"d{n}") for n in (20, 21)))
    for copied in (0, 1):
        shutil.copy(folder / f"{copied}.wav", folder / f"renamed-{copied}.wav")
    heard = [f"renamed-{n}.wav" for n in (0, 1)] + [clip(folder, n) for n in range(30, 36)]
    said = ["birds", "birds", "The red, BOY!", "Red birds", "red birds.", "house", "boy", "red"]
    speakers = ["t0", "t1", "s0", "s1", "t0", "t1", "t2", None]
    write(
        folder / "test.jsonl",
        *(
            {"audio_filepath": audio, "text": text} | ({"speaker": name} if name else {})
            for audio, text, name in zip(heard, said, speakers, strict=True)
        ),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in (
            f"{FINETUNE} -o out --delta ca_asr.delta",
            "prune ca_asr.delta --mp 0.5 -o pruned.delta",
            "merge base pruned.delta --scale 0.3 -o merged",
            "merge base ca_asr.delta --svp 0.5 -o merged.safetensors",
        ):
            done = CliRunner().invoke(app, line.split())
            assert done.exit_code == 0, done.output
    return folder


EVAL = (
    "lorsmerge eval {} --data test.jsonl --beam 1 --device cpu --samples 2 --force -o results.json"
)
OF_THE_TEST_SET = {
    "audio": "2 of the 8 utterances of test.jsonl (25%) are in {}: a score on them says nothing about "
    "new data.",
    "sentences": "3 of the 8 sentences of test.jsonl (38%) are in {}: scores may be too good.",
    "speakers": "2 of the 5 speakers of test.jsonl (40%) are in {}: scores may be too good.",
}
COUNTS = {"audio": (2, 8), "sentences": (3, 8), "speakers": (2, 5)}


def recorded() -> list[Any]:
    """What each record of the results says."""
    records = json.loads(Path("results.json").read_text())["records"]
    return [record.get("leakage") for record in records]


@pytest.mark.parametrize(
    ("models", "trained"),
    [
        ("out", "out"),
        ("merged", "pruned.delta"),
        ("merged.safetensors --config base", "ca_asr.delta"),
        ("base --apply ca_asr.delta", "ca_asr.delta"),
        ("renamed=merged again=merged", "pruned.delta"),
    ],
)
def test_eval_tells_what_a_model_was_trained_on(
    files: Path, succeed: Command, models: str, trained: str
) -> None:
    ended = succeed(EVAL.format(models))
    for words in OF_THE_TEST_SET.values():
        told = f"warning: {words.format(f'the training data of {trained}')}\n"
        assert ended.err.count(told) == 1
    for found in recorded():
        assert {entry["kind"]: (entry["count"], entry["of"]) for entry in found} == COUNTS
        assert all(entry["sources"] == [trained] and entry["complete"] for entry in found)


def test_a_test_set_of_new_data_is_told_of_none(files: Path, succeed: Command) -> None:
    write(Path("test.jsonl"), *(row(files, n, f"house {n}", f"t{n}") for n in (40, 41)))
    assert "training data" not in succeed(EVAL.format("out base")).err
    assert recorded() == [[], None]  # nothing is known of the base


def test_records_tell_of_their_language_and_task(files: Path, succeed: Command) -> None:
    rows = [json.loads(line) for line in Path("test.jsonl").read_text().splitlines()]
    write(Path("test.jsonl"), *rows, *({**r, "taskname": "st"} for r in rows[:3]))
    ended = succeed(EVAL.format("out"))
    assert "4 of the 11 utterances of test.jsonl (36%) are in the training data of out" in ended.err
    asr, st = recorded()
    assert {entry["kind"]: (entry["count"], entry["of"]) for entry in asr} == COUNTS
    # a translation is another sentence than a transcript
    assert {entry["kind"]: (entry["count"], entry["of"]) for entry in st} == {
        "audio": (2, 3), "speakers": (1, 3),
    }  # fmt: skip


def test_a_report_tells_it_too_and_reads_results_without(files: Path, succeed: Command) -> None:
    succeed(EVAL.format("out"))
    told = succeed("lorsmerge report results.json -o with.md").err
    assert "out: 2 of the 8 utterances of 1 of its test sets (25%) are in the training data" in told
    assert "out: 3 of the 8 sentences of 1 of its test sets (38%) are in the training data" in told
    document = json.loads(Path("results.json").read_text())
    (record,) = document["records"]
    document["records"].append({**record, "model": "merged"})  # another system that rests on `out`
    Path("two.json").write_text(json.dumps(document))
    told = succeed("lorsmerge report two.json -o two.md").err
    assert "out, merged: 2 of the 8 utterances" in told
    document = json.loads(Path("results.json").read_text())
    for record in document["records"]:
        assert record.pop("leakage")
    Path("results.json").write_text(json.dumps(document))
    assert "training data" not in succeed("lorsmerge report results.json -o without.md").err


@pytest.mark.parametrize(
    "leakage",
    [3, {}, [3], [{}], [{"kind": "x"}], {"kind": "audio", "count": "1"}, {"count": 9}, {"count": 0},
     {"of": True}, {"complete": None}, {"sources": "x"}],
)  # fmt: skip
def test_a_report_refuses_what_no_eval_records(
    files: Path, succeed: Command, shell: Shell, leakage: object
) -> None:
    succeed(EVAL.format("out"))
    document = json.loads(Path("results.json").read_text())
    good = document["records"][0]["leakage"][0]
    damaged = [good | leakage] if isinstance(leakage, dict) and leakage else leakage
    document["records"][0]["leakage"] = damaged
    Path("results.json").write_text(json.dumps(document))
    ended = shell("lorsmerge report results.json -o report.md")
    assert (ended.code, "is no results file of `lorsmerge eval`" in ended.err) == (1, True)


def test_a_fine_tune_of_a_fine_tune_knows_the_data_of_both(files: Path, succeed: Command) -> None:
    write(Path("more.jsonl"), row(files, 30, "more of it", "t9"))
    line = f"lorsmerge {FINETUNE}".replace("train.jsonl", "more.jsonl")
    for base, name in (("out", "second"), ("merged", "third")):
        ended = succeed(f"{line.replace('base', base, 1)} -o {name}")
        assert "training data" not in ended.err
        told = succeed(EVAL.format(name)).err
        assert (
            f"3 of the 8 utterances of test.jsonl (38%) are in the training data of {name}" in told
        )
        assert (
            f"3 of the 8 sentences of test.jsonl (38%) are in the training data of {name}" in told
        )
    # and so does what is merged into it, or taken from it
    succeed("lorsmerge merge out second --scale 0.5 -o of-two")
    told = succeed(EVAL.format("of-two")).err
    assert (
        "3 of the 8 utterances of test.jsonl (38%) are in the training data of out, second" in told
    )
    succeed("lorsmerge delta base merged -o of-merged.delta")
    told = succeed(EVAL.format("base --apply of-merged.delta")).err
    assert OF_THE_TEST_SET["audio"].format("the training data of of-merged.delta") in told


def test_finetune_tells_what_dev_and_training_share(files: Path, succeed: Command) -> None:
    line = f"lorsmerge {FINETUNE} -o new --dry-run".replace("dev.jsonl", "test.jsonl")
    told = succeed(line).err
    for words in OF_THE_TEST_SET.values():
        assert (
            words.format("the training data too")
            .replace(" of test.jsonl", "")
            .replace(" utterances", " dev utterances")
            .replace(" sentences", " dev sentences")
            .replace(" speakers", " dev speakers")
            in told
        )
    assert not Path("new").exists()


def test_data_tells_what_sets_share(files: Path, succeed: Command) -> None:
    told = succeed("lorsmerge data train.jsonl dev.jsonl test.jsonl").err
    lines = [
        words.partition(":")[0].format("train.jsonl too") + ".\n"
        for words in OF_THE_TEST_SET.values()
    ]
    assert told == "".join(f"warning: {line}" for line in lines)
    assert succeed("lorsmerge data train.jsonl dev.jsonl").err == ""
    told = succeed("lorsmerge data train.jsonl train.jsonl").err
    assert "6 of the 6 utterances of train.jsonl are in train.jsonl too." in told


def test_data_tells_what_splits_share(files: Path, succeed: Command) -> None:
    folder = files / "set"
    for split, seeds in (("train", (0, 1, 2)), ("dev", (3, 4)), ("test", (2, 5))):
        (folder / split).mkdir(parents=True)
        for seed in seeds:
            shutil.copy(files / f"{seed}.wav", folder / split / f"{seed}.wav")
        lines = [f"{split}/{seed}.wav,{split} {seed}" for seed in seeds]
        (folder / split / "metadata.csv").write_text(
            "\n".join(
                ["file_name,transcription", *(line.removeprefix(f"{split}/") for line in lines)]
            )
        )
    line = f"lorsmerge data {folder} --language ca --task asr"
    assert succeed(f"{line} --split train").err == ""
    ended = succeed(f"{line} --split train --split dev --split test -o all.jsonl")
    assert ended.err == (
        f"warning: 1 of the 2 utterances of {folder} (test) (50%) is in {folder} (train) too.\n"
    )
    assert len(Path("all.jsonl").read_text().splitlines()) == 7


def test_data_tells_what_is_in_a_set_twice(files: Path, succeed: Command) -> None:
    rows = [json.loads(line) for line in Path("train.jsonl").read_text().splitlines()]
    same = {**rows[0], "audio_filepath": "renamed-0.wav"}
    write(Path("train.jsonl"), *rows, same, {**same, "text": "another"})
    words = (
        "2 of the 8 {}utterances{} repeat the audio of another one, 1 of them with another text: it "
        "counts more than once."
    )
    assert words.format("", " of train.jsonl") in succeed("lorsmerge data train.jsonl").err
    assert words.format("training ", "") in succeed(f"lorsmerge {FINETUNE} -o new --dry-run").err
    ended = succeed(EVAL.format("base").replace("test.jsonl", "train.jsonl"))
    assert words.format("", " of train.jsonl") in ended.err


def test_search_tells_what_its_sets_share_with_the_training(files: Path, succeed: Command) -> None:
    line = (
        "lorsmerge search base ca_asr.delta --scale 0.1,0.2 --trials 1 --finalists 1 --beam 1 "
        "--pruner none --device cpu -o best.toml --data {} --test {}"
    )
    told = succeed(line.format("test.jsonl", "dev.jsonl")).err
    of_dev = {
        kind: words.format("the training data of ca_asr.delta").replace(
            f"{'utterances' if kind == 'audio' else kind} of test.jsonl",
            f"dev {'utterances' if kind == 'audio' else kind}",
        )
        for kind, words in OF_THE_TEST_SET.items()
    }
    for words in of_dev.values():
        assert f"warning: {words}\n" in told
    assert "test utterances" not in told
    shutil.copy("35.wav", "renamed-35.wav")
    write(Path("dev.jsonl"), {"audio_filepath": "renamed-35.wav", "text": "house", "speaker": "t2"})
    told = succeed(line.format("dev.jsonl", "test.jsonl") + " --force --study new.db").err
    for words in of_dev.values():
        assert words.replace("dev ", "test ") in told
    assert "1 of the 8 test utterances (12%) is in the dev set too: a score on them says" in told
    assert "1 of the 8 test sentences (12%) is in the dev set too: scores may be too good." in told
    assert "1 of the 5 test speakers (20%) is in the dev set too: scores may be too good." in told


# --- what is recorded -----------------------------------------------------------------------------


def test_digests_are_in_the_run_the_delta_and_the_merge(files: Path) -> None:
    run = json.loads(Path("out/run.json").read_text())["digests"]
    sizes = {kind: len(sketch.hashes) for kind, sketch in parse_sketches(run).items()}
    assert sizes == {"audio": 6, "sentences": 6, "speakers": 3}
    for name in ("ca_asr.delta", "pruned.delta"):
        assert DeltaFile(Path(name)).provenance.training["digests"] == run
    merge = json.loads(Path("merged/lorsmerge.json").read_text())
    assert merge["deltas"][0]["training"]["digests"] == run
    with safe_open("merged.safetensors", "pt") as file:
        assert json.loads(file.metadata()["lorsmerge"])["deltas"][0]["training"]["digests"] == run


def test_the_texts_and_names_themselves_are_not_recorded(files: Path) -> None:
    for path in ("ca_asr.delta", "merged/model.safetensors"):
        with safe_open(path, "pt") as file:
            header = json.dumps(file.metadata())
        assert not [text for text in (*TEXTS, "0.wav") if text in header]


def test_none_are_recorded_where_none_are_wanted(files: Path, succeed: Command) -> None:
    ended = succeed(
        f"lorsmerge {FINETUNE} -o silent --delta silent.delta --no-digests".replace(
            "dev.jsonl", "test.jsonl"
        )
    )
    assert "2 of the 8 dev utterances (25%) are in the training data too" in ended.err
    assert "digests" not in json.loads(Path("silent/run.json").read_text())
    assert "digests" not in DeltaFile(Path("silent.delta")).provenance.training
    assert "training data" not in succeed(EVAL.format("silent")).err
    assert recorded() == [None]
    weights = [load_file(f"{name}/model.safetensors") for name in ("silent", "out")]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_what_is_pushed_has_the_digests(files: Path) -> None:
    for name in ("lorsmerge.json", "run.json"):
        path = Path("merged" if name == "lorsmerge.json" else "out", name)
        record = json.loads(path.read_text())
        published = published_record(record)
        assert json.dumps(published).count('"digests"') == 1
        part = published["deltas"][0]["training"] if "deltas" in published else published
        source = record["deltas"][0]["training"] if "deltas" in record else record
        assert part["digests"] == source["digests"]
        assert not [note for note in find_source(path.parent).notes if "local paths" in note]


def damage(path: Path, digests: object) -> None:
    """Put other digests into a delta's header."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    training = json.loads(metadata["lorsmerge.training"]) | {"digests": digests}
    save_file(load_file(path), path, metadata | {"lorsmerge.training": json.dumps(training)})


def test_damaged_digests_of_a_delta_are_an_error(files: Path, shell: Shell) -> None:
    damage(Path("ca_asr.delta"), {"version": 1, "audio": {"complete": True, "hashes": "x"}})
    ended = shell("lorsmerge inspect ca_asr.delta")
    assert (ended.code, "invalid hashes" in ended.err) == (1, True)


def test_digests_of_a_later_version_are_left_alone(files: Path, succeed: Command) -> None:
    damage(Path("ca_asr.delta"), {"version": 2, "audio": "of another form"})
    assert "training data" not in succeed(EVAL.format("base --apply ca_asr.delta")).err
    assert recorded() == [None]


def test_a_damaged_record_of_a_model_keeps_nobody_from_scoring(
    files: Path, succeed: Command
) -> None:
    for path in (Path("out/run.json"), Path("merged/lorsmerge.json")):
        path.write_text(path.read_text().replace('"complete": true', '"complete": 3'))
    succeed(EVAL.format("out merged"))
    assert recorded() == [None, None]


def test_two_test_sets_with_the_same_audio_are_told(
    speech_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(speech_files)
    for name in ("renamed-0.wav", "30.wav", "31.wav"):
        shutil.copy(speech_files / name, tmp_path / f"copy-{name}")
    rows = [{"audio_filepath": f"copy-{n}", "text": "a", "source_lang": "ca", "taskname": "asr"}
            for n in ("renamed-0.wav", "30.wav", "31.wav")]  # fmt: skip
    (tmp_path / "again.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = f"eval base --data test.jsonl --data {tmp_path / 'again.jsonl'} --beam 1 --device cpu"
    ended = CliRunner().invoke(app, line.split())
    assert ended.exit_code == 0, ended.output
    words = " ".join(ended.stderr.split())
    assert "3 of the 3 utterances of again.jsonl" in words
    assert "test.jsonl too: an average counts them twice." in words
