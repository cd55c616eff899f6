"""`lorsmerge transcribe` as a user types it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
from speech_models import make_clip, make_test_set, make_tuned, make_whisper

WORK, USAGE = 1, 2  # exit codes
SETTINGS = " --language ca --device cpu --beam 2"


@pytest.fixture(scope="module")
def speech_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, ca/, bare.safetensors, clip.wav, long.wav and what is no sound."""
    folder = tmp_path_factory.mktemp("speech")
    make_whisper(folder / "base")
    make_tuned(folder / "base", folder / "ca", seed=1, step=0.5)
    shutil.copy(folder / "base" / "model.safetensors", folder / "bare.safetensors")
    make_clip(folder / "clip.wav", 1, 1.2)
    make_clip(folder / "long.wav", 2, 2.5)
    (folder / "text.wav").write_text("no sound")
    (folder / "a film.mkv").write_text("no sound")
    soundfile.write(folder / "empty.wav", [], 16_000)
    return folder


def heard(succeed: Callable, line: str) -> dict[tuple[str, str], str]:
    document = json.loads(succeed(line + " --json").out)
    return {(item["model"], item["audio"]): item["text"] for item in document["transcripts"]}


def test_two_models_are_shown_side_by_side(files: Path, succeed: Callable) -> None:
    line = "lorsmerge transcribe base ca --audio clip.wav" + SETTINGS
    texts = heard(succeed, line)
    base, tuned = texts["base", "clip.wav"], texts["ca", "clip.wav"]
    assert base
    assert base != tuned
    ended = succeed(line)
    rows = [line.split() for line in ended.out.splitlines()]
    assert ["base", *base.split()] in rows
    assert ["ca", *tuned.split()] in rows
    assert "long" not in ended.err


def test_all_of_a_clip_longer_than_the_window_is_heard(files: Path, succeed: Callable) -> None:
    line = "lorsmerge transcribe base ca -a clip.wav -a long.wav" + SETTINGS
    ended = succeed(line)
    for model in ("base", "ca"):
        assert (
            f"{model} has no timestamps in its vocabulary: long.wav, 2.5 s long, is cut every 2 s"
            in (ended.err)
        )
    assert ended.err.count(" s long") == 2
    whole = heard(succeed, line)["base", "long.wav"]
    samples, rate = soundfile.read("long.wav", dtype="float32")
    soundfile.write("long.wav", samples[: 2 * rate], rate, subtype="FLOAT")
    assert "s long" not in succeed(line).err
    start = heard(succeed, line)["base", "long.wav"]
    assert len(whole) > len(start) > 0


def test_the_language_is_identified_by_each_model(files: Path, succeed: Callable) -> None:
    line = "lorsmerge transcribe base -a clip.wav -a long.wav --device cpu --beam 2"
    (one, other) = json.loads(succeed(f"{line} --json").out)["transcripts"]
    assert {one["language"], other["language"]} <= {"en", "ca", "de", "zh"}
    again = heard(succeed, f"{line} --language {one['language']}")
    assert again["base", "clip.wav"] == one["text"]


def test_texts_are_those_of_eval(files: Path, succeed: Callable) -> None:
    make_test_set(files / "data", count=5)
    succeed(
        "lorsmerge eval base --data data/test.jsonl --device cpu --beam 2 --samples 20 -o r.json"
    )
    for record in json.loads(Path("r.json").read_text())["records"]:
        for row in record["rows"]:
            clip = f"data/{row['id'][1:]}.wav"
            texts = heard(
                succeed,
                f"lorsmerge transcribe base -a {clip} --language {record['language']} "
                f"--task {record['task']} --device cpu --beam 2",
            )
            assert texts == {("base", clip): row["hypothesis"]}


def test_texts_that_are_cut_or_that_loop_are_told_as_eval_counts_them(
    files: Path, succeed: Callable
) -> None:
    make_test_set(files / "data", count=10)
    succeed(
        "lorsmerge eval base --data data/test.jsonl --device cpu --beam 2 --samples 20 -o r.json"
    )
    told = set()
    for record in json.loads(Path("r.json").read_text())["records"]:
        line = f"--language {record['language']} --task {record['task']} --device cpu --beam 2"
        clips = " ".join(f"-a data/{row['id'][1:]}.wav" for row in record["rows"])
        ended = succeed(f"lorsmerge transcribe base {clips} {line} --json")
        found = json.loads(ended.out)["transcripts"]
        assert [item["cut"] for item in found] == [row["cut"] for row in record["rows"]]
        assert sum(item["looping"] for item in found) == record["details"]["looping"]
        for item in found:
            name = f"base's text of {item['audio']}"
            assert (f"{name} reached the limit of tokens." in ended.err) == item["cut"]
            assert (f"{name} repeats itself." in ended.err) == item["looping"]
            told |= {("cut", item["cut"]), ("looping", item["looping"])}
    assert told >= {("cut", True), ("cut", False), ("looping", False)}


def test_a_bare_file_takes_a_config(files: Path, succeed: Callable) -> None:
    line = "lorsmerge transcribe {} --config base -a clip.wav" + SETTINGS
    (bare,) = heard(succeed, line.format("bare.safetensors")).values()
    (folder,) = heard(succeed, line.format("base")).values()
    assert bare == folder != ""


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("base -a clip.wav --language klingon", USAGE, "no language 'klingon'"),
        ("base -a clip.wav --language fr", USAGE, "base has no token <|fr|>"),
        ("base -a clip.wav --language ca --task sing", USAGE, "no task 'sing'"),
        ("base -a nowhere.wav --language ca", WORK, "no audio file nowhere.wav"),
        ("base -a text.wav --language ca", WORK, "text.wav cannot be read as audio"),
        ("base -a text.wav --language ca", WORK, "It is damaged"),
        ("base -a 'a film.mkv' --language ca", WORK, "`ffmpeg -i 'a film.mkv' 'a film.flac'`"),
        ("base -a base --language ca", WORK, "base is a folder"),
        ("base -a empty.wav --language ca", WORK, "empty.wav holds no samples"),
        ("bare.safetensors -a clip.wav --language ca", WORK, "holds no config.json"),
        ("nowhere -a clip.wav --language ca", WORK, "nowhere"),
        ("base --language ca", USAGE, "--audio"),
    ],
)
def test_bad_input_is_one_clear_error(
    files: Path, shell: Callable, contents: Callable, line: str, code: int, words: str
) -> None:
    before = contents(files)
    ended = shell(f"lorsmerge transcribe {line} --device cpu")
    message = " ".join(re.sub("[│╭╮╰╯─]", " ", ended.err).split())
    assert ended.code == code, ended.err
    assert words in message
    assert ended.out == ""
    for unkind in ("Traceback", "bug in lorsmerge"):
        assert unkind not in ended.err
    assert contents(files) == before


def test_a_file_that_was_cut_short_is_told(files: Path, succeed: Callable) -> None:
    Path("cut.wav").write_bytes(
        Path("clip.wav").read_bytes()[: Path("clip.wav").stat().st_size // 2]
    )
    ended = succeed("lorsmerge transcribe base -a clip.wav -a cut.wav" + SETTINGS)
    assert "cut.wav is truncated" in ended.err
    assert "clip.wav was" not in ended.err
