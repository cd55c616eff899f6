"""`lorsmerge transcribe --data --teacher`, and what is learnt from its texts."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import soundfile
from hub_server import Hub
from pyarrow import parquet
from safetensors import safe_open
from speech_models import make_test_set, make_tuned, make_whisper

from lorsmerge_cli.operations.transcribe import plan, run
from lorsmerge_cli.speech.decoding.clips import decode_answers
from lorsmerge_cli.speech.source import ModelSource

fcntl = pytest.importorskip("fcntl")

WORK, USAGE, INTERRUPTED = 1, 2, 130
COUNT = 15
LINE = (
    "lorsmerge transcribe --data unlabelled.jsonl --teacher ca=ca --teacher de=de --teacher base "
    "--device cpu --beam 2 -o pseudo.jsonl"
)
KEEP = f"{LINE} --keep-flawed"
Row = dict[str, Any]


@pytest.fixture(scope="module")
def speech_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, ca/, de/, labelled.jsonl, and unlabelled.jsonl of the same audio."""
    folder = tmp_path_factory.mktemp("speech")
    make_whisper(folder / "base", spells=True, spelt=36)
    for seed, name in ((2, "ca"), (1, "de")):  # de says much that no model should learn
        make_tuned(folder / "base", folder / name, seed=seed, step=0.3)
    lines = make_test_set(folder / "audio", count=COUNT).read_text().splitlines()
    (folder / "audio" / "test.jsonl").unlink()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row["audio_filepath"] = f"audio/{row['audio_filepath']}"
        row["text"] = f"SECRET {row['text']}"
    write_rows(folder / "labelled.jsonl", rows)
    write_rows(
        folder / "unlabelled.jsonl", [{k: v for k, v in r.items() if k != "text"} for r in rows]
    )
    return folder


def write_rows(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(path: str | Path) -> list[Row]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def said(text: str) -> str:
    """A message without the frame and the line breaks of the terminal."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


def no_decoding(*arguments: object, **settings: object) -> None:
    raise AssertionError("nothing was to be decoded")


def test_each_row_has_the_text_of_its_teacher(files: Path, succeed: Callable) -> None:
    document = json.loads(succeed(f"{KEEP} --json").out)
    found = rows_of("pseudo.jsonl")
    assert [row["id"] for row in found] == [row["id"] for row in rows_of("unlabelled.jsonl")]
    teachers = {"ca": "ca", "de": "de", "zh": "base"}
    for language, teacher in teachers.items():
        succeed(
            f"lorsmerge eval {teacher} --data labelled.jsonl --language {language} --device cpu "
            f"--beam 2 --hypotheses {language}.jsonl -o {language}.json"
        )
        wanted = {row["id"]: row for row in rows_of(f"{language}.jsonl")}
        mine = [row for row in found if row["source_lang"] == language]
        assert len(mine) == len(wanted) > 0
        for row in mine:
            answer = wanted[row["id"]]
            assert row["text"] == answer["hypothesis"]
            assert ("cut" in row.get("flaws", [])) == answer["cut"]
            assert row["teacher"] == teacher
            assert answer["made_by"].startswith(f"{row['teacher_id']}|beam:2|float32|max:None|")
            assert row["taskname"] == answer["task"]
            assert row["speaker"] == answer["speaker"]
            assert row["confidence"] <= 0
    flaws = [flaw for row in found for flaw in row.get("flaws", [])]
    assert {"cut", "empty"} <= set(flaws)
    groups = {(g["teacher"], g["language"], g["task"]): g for g in document["groups"]}
    assert sum(group["kept"] for group in groups.values()) == document["rows"] == COUNT
    assert set(groups) == {
        ("ca", "ca", "asr"), ("ca", "ca", "st"), ("de", "de", "st"), ("de", "de", "asr"),
        ("base", "zh", "asr"),
    }  # fmt: skip
    record = json.loads(Path("pseudo.jsonl.run.json").read_text())
    assert record["rows"] == COUNT
    assert record["teachers"] == document["groups"]
    assert {settings["beam"] for settings in record["decoding"].values()} == {2}
    assert len(record["decoding"]) == 3


def test_one_task_of_a_language_can_have_a_teacher_of_its_own(
    files: Path, succeed: Callable
) -> None:
    succeed(f"{KEEP} --teacher ca_st=base")
    teachers = {
        (row["source_lang"], row["taskname"]): row["teacher"] for row in rows_of("pseudo.jsonl")
    }
    assert teachers[("ca", "asr")] == "ca"
    assert teachers[("ca", "st")] == "base"


@pytest.mark.parametrize("kept", ["", "--keep-flawed"])
def test_no_text_of_the_data_is_written_anywhere(files: Path, succeed: Callable, kept: str) -> None:
    rows = rows_of("labelled.jsonl")
    for row in rows:
        row |= {"source_text": "SECRET", "transcript": "SECRET"}
        if row["taskname"] == "st":
            row["translation"] = "SECRET"
    write_rows(files / "labelled.jsonl", rows)
    succeed(LINE.replace("unlabelled", "labelled") + f" {kept}")
    written = list(files.glob("pseudo.jsonl*"))
    assert len(written) == 3
    assert not [path for path in written if "SECRET" in path.read_text()]
    texts = [row["text"] for row in rows_of("pseudo.jsonl")]
    for path in written:
        path.unlink()
    succeed(f"{LINE} {kept}")  # as without texts
    assert [row["text"] for row in rows_of("pseudo.jsonl")] == texts


def test_flawed_texts_are_skipped_and_counted(files: Path, succeed: Callable) -> None:
    succeed(KEEP)
    everything = {row["id"]: row for row in rows_of("pseudo.jsonl")}
    document = json.loads(succeed(f"{LINE} --force --json").out)
    clean = {row["id"]: row for row in rows_of("pseudo.jsonl")}
    assert clean == {name: row for name, row in everything.items() if "flaws" not in row}
    assert 0 < len(clean) < COUNT
    skipped = sum(sum(group["skipped"].values()) for group in document["groups"])
    assert skipped == COUNT - len(clean)
    assert all("text" in row and row["text"] for row in clean.values())
    ended = succeed(f"{LINE} --force")
    assert "cut: a text that reached the limit of tokens" in ended.out
    assert f"pseudo.jsonl: {len(clean)} rows" in ended.out


def test_another_threshold_takes_no_decoding(
    files: Path, succeed: Callable, shell: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeed(KEEP)
    before = rows_of("pseudo.jsonl")
    limit = sorted(row["confidence"] for row in before)[COUNT // 2]
    monkeypatch.setattr(run, "decode_answers", no_decoding)
    monkeypatch.setattr(ModelSource, "open", no_decoding)
    ended = succeed(f"{KEEP} --force --min-confidence {limit}")
    assert rows_of("pseudo.jsonl") == [row for row in before if row["confidence"] >= limit]
    assert "unsure: a text below --min-confidence" in ended.out
    assert f"{COUNT} texts were in pseudo.jsonl.journal already" in ended.out
    nothing = shell(f"{KEEP} --force --min-confidence -0.00001")
    assert nothing.code == WORK
    assert f"No text can be learnt from: {COUNT} unsure" in said(nothing.err)
    assert "--min-confidence keep more" in said(nothing.err)
    assert len(rows_of("pseudo.jsonl")) < COUNT  # as it was


def stopping_after(count: int) -> Callable:
    """Return a decoder that is interrupted when it has told of so many utterances."""

    def decode(*arguments: Any, **settings: Any) -> Any:
        *first, keep = arguments
        left = [count]

        def keep_some(row: Any, answer: Any) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            keep(row, answer)

        return decode_answers(*first, keep_some, **settings)

    return decode


@pytest.mark.parametrize("count", [0, 1, 4])
def test_an_interrupted_run_is_resumed(
    files: Path, succeed: Callable, shell: Callable, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    succeed(KEEP.replace("-o pseudo.jsonl", "-o whole.jsonl"))
    with monkeypatch.context() as patch:
        patch.setattr(run, "decode_answers", stopping_after(count))
        ended = shell(KEEP)
    assert ended.code == INTERRUPTED
    assert f"Interrupted after {count} of {COUNT} utterances" in said(ended.err)
    assert "The same command resumes" in said(ended.err)
    left = {path.name for path in files.glob("pseudo.jsonl*")}
    assert left == ({"pseudo.jsonl.journal"} if count else set())
    report = json.loads(succeed(f"{KEEP} --json").out)
    assert report["resumed"] == count
    texts = [
        [(row["id"], row["text"]) for row in rows_of(n)] for n in ("whole.jsonl", "pseudo.jsonl")
    ]
    assert texts[0] == texts[1]
    assert len(rows_of("pseudo.jsonl.journal")) == COUNT


def test_other_settings_are_never_mixed(
    files: Path, succeed: Callable, shell: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = KEEP.replace("--beam 2", "--beam 1")
    succeed(other.replace("-o pseudo.jsonl", "-o whole.jsonl"))
    with monkeypatch.context() as patch:
        patch.setattr(run, "decode_answers", stopping_after(3))
        assert shell(KEEP).code == INTERRUPTED
    assert json.loads(succeed(f"{other} --json").out)["resumed"] == 0
    assert rows_of("pseudo.jsonl") == rows_of("whole.jsonl")
    shutil.rmtree("ca")
    make_tuned(files / "base", files / "ca", seed=7, step=0.3)
    report = json.loads(succeed(f"{other} --force --json").out)
    assert report["resumed"] == sum(row["source_lang"] != "ca" for row in rows_of("whole.jsonl"))


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_or_killed_is_resumed(
    files: Path, succeed: Callable, number: signal.Signals
) -> None:
    succeed(KEEP.replace("-o pseudo.jsonl", "-o whole.jsonl"))
    words = f"{KEEP} --batch-size 1".split()
    running = subprocess.Popen(
        [sys.executable, "-m", "lorsmerge_cli", *words[1:]], stderr=subprocess.PIPE
    )
    end = time.monotonic() + 60
    journal = Path("pseudo.jsonl.journal")
    while not (journal.exists() and journal.stat().st_size):
        assert time.monotonic() < end
        time.sleep(0.002)
    running.send_signal(number)
    _, err = running.communicate(timeout=60)
    if running.returncode:  # not ended by itself
        assert b"Traceback" not in err
        assert not Path("pseudo.jsonl").exists()
        succeed(KEEP)
    texts = [
        [(row["id"], row["text"]) for row in rows_of(n)] for n in ("whole.jsonl", "pseudo.jsonl")
    ]
    assert texts[0] == texts[1]


def test_two_runs_at_once_are_refused(files: Path, succeed: Callable, shell: Callable) -> None:
    with Path("pseudo.jsonl.journal").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        ended = shell(KEEP)
        assert ended.code == WORK
        assert "Another process is writing pseudo.jsonl.journal" in said(ended.err)
    succeed(KEEP)


def test_outputs_are_replaced_by_force_alone(
    files: Path, succeed: Callable, shell: Callable
) -> None:
    succeed(KEEP)
    before = Path("pseudo.jsonl").read_bytes()
    refused = shell(KEEP)
    assert refused.code == WORK
    assert "pseudo.jsonl exists" in said(refused.err)
    assert "pseudo.jsonl.run.json exists" in said(refused.err)
    succeed(f"{KEEP} --force")
    assert Path("pseudo.jsonl").read_bytes() == before
    Path("pseudo.jsonl.journal").write_text("my diary")
    refused = shell(f"{KEEP} --force")
    assert refused.code == WORK
    assert "pseudo.jsonl.journal is where hypotheses are kept" in said(refused.err)
    assert Path("pseudo.jsonl.journal").read_text() == "my diary"


def test_a_damaged_journal_is_an_error_and_a_cut_line_is_not(
    files: Path, succeed: Callable, shell: Callable
) -> None:
    succeed(KEEP)
    journal = Path("pseudo.jsonl.journal")
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-20])
    assert json.loads(succeed(f"{KEEP} --force --json").out)["resumed"] == COUNT - 1
    lines = whole.splitlines(keepends=True)
    for wrong in (b'{"made_by": "x"}\n', b"{\n", b'{"made_by": ["x"], "id": {}}\n'):
        journal.write_bytes(lines[0] + wrong + lines[1])
        ended = shell(f"{KEEP} --force")
        assert ended.code == WORK
        assert "has a line that is no hypothesis" in said(ended.err)


def test_paths_of_audio_are_valid_from_the_manifest(files: Path, succeed: Callable) -> None:
    succeed(KEEP.replace("pseudo.jsonl", "labels/of/pseudo.jsonl"))
    for row in rows_of("labels/of/pseudo.jsonl"):
        assert Path("labels/of", row["audio_filepath"]).is_file()
    ended = succeed("lorsmerge data labels/of/pseudo.jsonl")
    assert "st" in ended.out


def test_a_model_learns_from_them_and_says_so(files: Path, succeed: Callable) -> None:
    succeed(KEEP)
    succeed("lorsmerge data pseudo.jsonl --language ca --task asr -o ca_asr.jsonl")
    ours = [
        row
        for row in rows_of("pseudo.jsonl")
        if (row["source_lang"], row["taskname"]) == ("ca", "asr")
    ]
    for row in ours:
        row.pop("flaws", None)
    assert rows_of("ca_asr.jsonl") == [row for row in ours if row["text"]]
    succeed(
        "lorsmerge finetune base --data ca_asr.jsonl --steps 1 --effective-batch 2 --device cpu "
        "--delta out.delta -o out"
    )
    (part,) = json.loads(Path("out/run.json").read_text())["trained_on"]
    (teacher,) = part["teachers"]
    assert teacher["model"] == "ca"
    assert teacher["identity"] == ours[0]["teacher_id"]
    assert teacher["utterances"] == len(rows_of("ca_asr.jsonl"))
    with safe_open("out.delta", "pt") as file:
        training = json.loads(file.metadata()["lorsmerge.training"])
    assert training["trained_on"] == [part]
    succeed("lorsmerge merge base out.delta -o merged")
    merge = json.loads(Path("merged/lorsmerge.json").read_text())
    assert merge["deltas"][0]["training"]["trained_on"] == [part]
    ended = succeed("lorsmerge eval merged out --data pseudo.jsonl --device cpu --beam 1 -o r.json")
    assert "references were made by models" in said(ended.err)
    models = json.loads(Path("r.json").read_text())["models"]
    assert models["out"]["made_from"]["trained_on"] == [part]
    assert models["merged"]["made_from"]["deltas"][0]["trained_on"] == [part]
    succeed("lorsmerge report r.json -o report")
    warned = succeed(LINE.replace("--teacher ca=ca", "--teacher ca=out") + " --force --keep-flawed")
    assert "out was fine-tuned on ca asr, and transcribes ca st here" in said(warned.err)


def test_labels_of_people_are_recorded_as_before(files: Path, succeed: Callable) -> None:
    succeed(
        "lorsmerge finetune base --data labelled.jsonl --steps 1 --effective-batch 2 --device cpu "
        "-o out"
    )
    parts = json.loads(Path("out/run.json").read_text())["trained_on"]
    assert all(part.keys() == {"language", "task", "hours"} for part in parts)


def test_teachers_are_read_once_and_one_after_the_other(
    files: Path, succeed: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, models = [], []
    real = ModelSource.open

    def record(source: ModelSource, *arguments: Any) -> Any:
        assert [model() for model in models] == [None] * len(models)
        speech = real(source, *arguments)
        opened.append(source.name)
        models.append(weakref.ref(speech.model))
        return speech

    monkeypatch.setattr(ModelSource, "open", record)
    succeed(f"{KEEP} --teacher de_st=ca")
    assert sorted(opened) == ["base", "ca", "de"]


def test_a_teacher_on_the_hub_is_recorded_with_its_commit(
    files: Path, succeed: Callable, hub: Hub
) -> None:
    hub.add_repo("you/ca", {path.name: path.read_bytes() for path in Path("ca").iterdir()})
    succeed(f"{KEEP} --teacher ca_asr=you/ca")
    (teacher,) = {
        row["teacher"]
        for row in rows_of("pseudo.jsonl")
        if (row["source_lang"], row["taskname"]) == ("ca", "asr")
    }
    assert re.fullmatch(r"you/ca@[0-9a-f]{40}", teacher)
    succeed(
        "lorsmerge finetune base --data pseudo.jsonl --steps 1 --effective-batch 2 --device cpu -o out"
    )
    parts = json.loads(Path("out/run.json").read_text())["trained_on"]
    assert parts[0]["teachers"][0]["model"] == teacher


def test_a_school_s_own_teachers_are_no_pseudo_labels(files: Path, succeed: Callable) -> None:
    rows = rows_of("labelled.jsonl")
    for row in rows:
        row |= {"teacher": "Anna", "confidence": "high", "teacher_id": 7}
    write_rows(files / "labelled.jsonl", rows)
    succeed("lorsmerge data labelled.jsonl -o out.jsonl")
    assert all("teacher" not in row for row in rows_of("out.jsonl"))


def test_rows_without_a_teacher_are_an_error_or_skipped(
    files: Path, succeed: Callable, shell: Callable
) -> None:
    line = KEEP.replace(" --teacher base", "").replace(" --teacher de=de", "")
    ended = shell(line)
    assert ended.code == USAGE
    assert "No teacher is given for 3 utterances of de st, 3 of de asr, 3 of zh asr" in said(
        ended.err
    )
    assert "--teacher de=MODEL" in said(ended.err)
    skipped = succeed(f"{line} --skip-others")
    assert "9 rows without a teacher are skipped: 3 utterances of de st" in said(skipped.err)
    assert {row["source_lang"] for row in rows_of("pseudo.jsonl")} == {"ca"}
    record = json.loads(Path("pseudo.jsonl.run.json").read_text())
    assert record["without_teacher"] == {"de st": 3, "de asr": 3, "zh asr": 3}


def test_damaged_and_silent_audio_is_skipped_and_told(files: Path, succeed: Callable) -> None:
    Path("audio/0.wav").write_bytes(b"RIFF of nothing")
    Path("audio/1.wav").unlink()
    soundfile.write("audio/2.wav", np.zeros(16_000), 16_000)
    ended = succeed(f"{KEEP} --verbose")
    words = said(ended.err)
    assert "3 of 15 rows are dropped" in words
    for reason in ("1 unreadable audio", "1 missing audio", "1 silent audio"):
        assert reason in words
    assert {row["id"] for row in rows_of("pseudo.jsonl")}.isdisjoint({"u0", "u1", "u2"})
    dropped = json.loads(Path("pseudo.jsonl.run.json").read_text())["dropped"]
    assert sum(dropped.values()) == 3


def test_audio_that_goes_away_midway_costs_no_more_than_its_batch(
    files: Path, shell: Callable, succeed: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Path("audio/7.wav")  # of the second teacher

    def decode(speech: Any, rows: Any, *arguments: Any, **settings: Any) -> Any:
        if any(row.audio.file.name == gone.name for row in rows):
            gone.unlink()
        return decode_answers(speech, rows, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(run, "decode_answers", decode)
        ended = shell(KEEP)
    assert ended.code == WORK
    assert "audio/7.wav" in said(ended.err)
    assert "bug in lorsmerge" not in ended.err
    assert Path("pseudo.jsonl.journal").stat().st_size
    report = json.loads(succeed(f"{KEEP} --json").out)
    assert report["resumed"] >= 6
    assert report["rows"] == COUNT - 1


def test_a_dry_run_writes_nothing(files: Path, succeed: Callable, contents: Callable) -> None:
    before = contents(files)
    ended = succeed(f"{LINE} --dry-run")
    assert "would write pseudo.jsonl, pseudo.jsonl.journal and pseudo.jsonl.run.json" in ended.out
    assert "ca asr, ca st" in ended.out
    assert contents(files) == before
    document = json.loads(succeed(f"{LINE} --dry-run --json").out)
    assert [(t["teacher"], t["utterances"]) for t in document["teachers"]] == [
        ("ca", 6), ("de", 6), ("base", 3),
    ]  # fmt: skip
    assert contents(files) == before


def test_audio_within_parquet_is_written_as_files(files: Path, succeed: Callable) -> None:
    rows = [row for row in rows_of("unlabelled.jsonl") if row["source_lang"] == "ca"]
    table = [
        {"audio": {"bytes": Path(row.pop("audio_filepath")).read_bytes(), "path": None}} | row
        for row in rows
    ]
    parquet.write_table(pyarrow.Table.from_pylist(table), "train.parquet")
    succeed(
        "lorsmerge transcribe --data train.parquet --teacher ca --device cpu --beam 2 --keep-flawed "
        "-o pseudo.jsonl"
    )
    found = rows_of("pseudo.jsonl")
    assert len(found) == len(rows)
    assert all(row["audio_filepath"].startswith("pseudo.jsonl.audio/") for row in found)
    assert all(Path(row["audio_filepath"]).is_file() for row in found)


def english() -> None:
    shutil.copytree("base", "english")
    path = Path("english/generation_config.json")
    own = json.loads(path.read_text()) | {"is_multilingual": False}
    for key in ("lang_to_id", "task_to_id"):
        own.pop(key)
    path.write_text(json.dumps(own))


BAD = {
    "--teacher ca=ca --teacher ca=de": (USAGE, "ca has two teachers, ca and de"),
    "--teacher ca --teacher de": (USAGE, "all others have two teachers, ca and de"),
    "--teacher ca_asr=ca --teacher Catalan_transcribe=de": (USAGE, "ca asr has two teachers"),
    "--teacher klingon=ca": (USAGE, "--teacher klingon=ca: Whisper has no language 'klingon'"),
    "--teacher catalonian=ca": (USAGE, "Did you mean catalan"),
    "--teacher ca_sing=ca": (USAGE, "Whisper has no language 'ca_sing'"),
    "--teacher ca=": (USAGE, "--teacher ca= names no model"),
    "--teacher ca=nowhere": (WORK, "nowhere: no such file or folder"),
    "--teacher fr=ca --teacher base": (USAGE, "--teacher fr=ca has nothing to transcribe"),
    "--teacher ca.delta": (WORK, "ca.delta is a delta, and a checkpoint is needed"),
    "--teacher labelled.jsonl": (WORK, "labelled.jsonl"),
    "--teacher other": (WORK, "other"),
    "--teacher english": (USAGE, "english is an English-only model and cannot be asked for ca asr"),
    "--teacher base --language fr": (USAGE, "is what was asked for"),
    "--teacher base --min-confidence 0.5": (USAGE, "Give -0.69 for a probability of 0.5"),
    "--teacher base --min-confidence nan": (USAGE, "--min-confidence nan is not at most 0"),
    "--teacher base --beam 0": (USAGE, "--beam"),
    "--teacher base --memory much": (USAGE, "--memory much is not a size"),
    "--teacher base --hours nan": (USAGE, "--hours"),
    "--teacher base --data nowhere.jsonl": (WORK, "There is no data set nowhere.jsonl"),
    "--teacher base -o unlabelled.jsonl --force": (WORK, "is or holds the input unlabelled.jsonl"),
    "--teacher base -o pseudo": (USAGE, "Write -o pseudo.jsonl"),
    "--teacher base -o base/config.json --force": (WORK, "lies in the input base"),
    "--teacher base --audio audio/0.wav": (USAGE, "MODEL and --audio transcribe files"),
    "base --teacher base": (USAGE, "MODEL and --audio transcribe files"),
    "": (USAGE, "Give --teacher as well"),
}  # fmt: skip


@pytest.mark.parametrize("options", BAD)
def test_bad_input_is_one_clear_error_and_nothing_is_decoded(
    files: Path, succeed: Callable, shell: Callable, contents: Callable, options: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    succeed("lorsmerge delta base ca -o ca.delta")
    english()
    Path("other").mkdir()
    Path("other/config.json").write_text('{"model_type": "bert"}')
    code, words = BAD[options]
    monkeypatch.setattr(run, "decode_answers", no_decoding)
    before = contents(files)
    output = "" if "-o " in options else "-o pseudo.jsonl"
    ended = shell(f"lorsmerge transcribe --data unlabelled.jsonl --device cpu {output} {options}")
    assert ended.code == code, ended.err
    assert words in said(ended.err)
    assert ended.out == ""
    for unkind in ("Traceback", "bug in lorsmerge"):
        assert unkind not in ended.err
    assert contents(files) == before


@pytest.mark.parametrize(
    "option", ["--min-confidence -1", "--keep-flawed", "--skip-others", "--dry-run", "--split dev"]
)
def test_options_of_data_sets_are_refused_for_files(
    files: Path, shell: Callable, option: str
) -> None:
    ended = shell(f"lorsmerge transcribe base -a audio/0.wav --language ca {option}")
    assert ended.code == USAGE
    assert f"{option.split()[0]} needs --data, --teacher and -o" in said(ended.err)


def test_several_processes_are_refused(
    files: Path, shell: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = shell(KEEP)
    assert ended.code == USAGE
    assert "A data set is transcribed by one process. Start it without torchrun" in said(ended.err)


def test_a_plan_reads_no_weights(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelSource, "open", no_decoding)
    found = plan.plan_labels([files / "unlabelled.jsonl"], files / "base", files / "x.jsonl")
    assert len(found.lessons) == 1
    assert len(found.lessons[0].rows) == COUNT
