"""`lorsmerge data`, as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from lorsmerge_cli import console

RATE, WORK = 16_000, 1
Command = Callable[..., Any]


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: good clips, and one for each thing that can be wrong; `all.jsonl`."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)

    def write(name: str, seconds: float = 2.0, **how: str) -> Path:
        soundfile.write(name, random.standard_normal(round(seconds * RATE)) / 10, RATE, **how)
        return Path(name)

    for number in range(4):
        write(f"good{number}.flac")
    cut, damaged = write("cut.wav"), write("damaged.flac")
    cut.write_bytes(cut.read_bytes()[:20_000])
    raw = damaged.read_bytes()
    damaged.write_bytes(raw[:30_000] + bytes(2000) + raw[32_000:])
    samples = random.standard_normal(RATE) / 10
    samples[5] = np.nan
    soundfile.write("nan.wav", samples, RATE, subtype="FLOAT")
    soundfile.write("silent.wav", np.zeros(RATE), RATE)
    Path("text.mp3").write_text("no audio")
    names = [f"good{n}.flac" for n in range(4)]
    names += ["cut.wav", "damaged.flac", "nan.wav", "silent.wav", "text.mp3", "gone.wav"]
    rows = [{"audio_filepath": name} for name in names]
    rows += [{"audio_filepath": "good0.flac", "id": "past", "duration": 3.0}]
    rows += [{"audio_filepath": "good1.flac", "id": "part", "duration": 1.0}]
    common = {"text": "a", "source_lang": "ca", "taskname": "asr"}
    lines = [json.dumps(common | row) + "\n" for row in rows]
    Path("all.jsonl").write_text("".join(lines))
    Path("good.jsonl").write_text("".join(lines[:4]))
    return tmp_path


BAD = {
    "cut": "audio file is cut short",
    "damaged": "unreadable audio",
    "nan": "audio with samples that are no numbers",
    "silent": "silent audio",
    "text": "unreadable audio",
    "gone": "missing audio",
    "past": "audio ends before the row does",
    "part": "audio is longer than its row",
}


def test_a_check_lists_what_is_bad_and_ends_in_an_error(clips: Path, shell: Command) -> None:
    ended = shell("lorsmerge data all.jsonl --check-audio -o out.jsonl")
    assert ended.code == WORK
    for name, reason in BAD.items():
        assert f"{name}: {reason} (" in ended.out
    assert "dropped, unreadable audio: 2" in ended.out
    assert "The audio of 8 rows is not as it should be" in ended.err
    written = [json.loads(line)["id"] for line in Path("out.jsonl").read_text().splitlines()]
    assert written == [f"good{n}" for n in range(4)]


def test_a_check_as_json(clips: Path, shell: Command) -> None:
    ended = shell("lorsmerge data all.jsonl --check-audio --json")
    assert ended.code == WORK
    document = json.loads(ended.out)
    assert {row["id"]: row["reason"] for row in document["bad"]} == BAD
    assert document["utterances"] == 4
    assert sum(document["dropped"].values()) == 8
    (past,) = (row for row in document["bad"] if row["id"] == "past")
    assert past["audio"].endswith("good0.flac")
    assert "has 2.00 s, and the row goes to 3.00 s" in past["detail"]


def test_a_check_of_good_data_ends_well(clips: Path, succeed: Command) -> None:
    assert "dropped" not in succeed("lorsmerge data good.jsonl --check-audio").out
    document = json.loads(succeed("lorsmerge data good.jsonl --check-audio --json").out)
    assert document["bad"] == []
    succeed("lorsmerge data good.jsonl --check-audio -o out.jsonl")
    assert len(Path("out.jsonl").read_text().splitlines()) == 4


def test_without_a_check_headers_are_read_alone(clips: Path, succeed: Command) -> None:
    ended = succeed("lorsmerge data all.jsonl --json")
    document = json.loads(ended.out)
    assert "bad" not in document
    assert document["utterances"] == 4 + len({"damaged", "nan", "silent", "part"})


def test_data_of_which_nothing_is_good_is_listed_and_not_written(
    clips: Path, shell: Command
) -> None:
    lines = Path("all.jsonl").read_text().splitlines(keepends=True)
    Path("bad.jsonl").write_text("".join(lines[4:]))
    ended = shell("lorsmerge data bad.jsonl --check-audio -o out.jsonl")
    assert ended.code == WORK
    assert "damaged: unreadable audio" in ended.out
    assert not Path("out.jsonl").exists()


def test_a_check_tells_how_far_it_is(
    clips: Path, succeed: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []

    class Bar:
        def __init__(self, *labels: str) -> None:
            assert labels == ("check", "utterances")

        def __enter__(self) -> Callable[[int, int], None]:
            return lambda done, total: told.append((done, total))

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(console, "progress", Bar)
    succeed("lorsmerge data good.jsonl --check-audio")
    assert told == 4 * [(1, 4)]


def test_parts_are_an_error_unless_they_are_allowed(
    clips: Path, shell: Command, succeed: Command
) -> None:
    lines = Path("good.jsonl").read_text().splitlines()
    rows = [json.loads(line) | {"duration": 2 / 60} for line in lines]
    Path("minutes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = shell("lorsmerge data minutes.jsonl")
    assert ended.code == WORK
    assert "4 of 4 rows use a part of their file, 2% of the audio" in ended.err
    assert "--allow-parts" in ended.err
    ended = succeed("lorsmerge data minutes.jsonl --allow-parts -o out.jsonl")
    assert "4 of 4 rows use a part of their file" in ended.err
    assert "part of their file" not in succeed("lorsmerge data out.jsonl").err


# --- texts and pictures ---------------------------------------------------------------------------


def test_texts_in_another_script_are_told(clips: Path, shell: Command) -> None:
    rows = [json.loads(line) for line in Path("good.jsonl").read_text().splitlines()]
    rows[1] |= {"id": "odd", "text": "привет"}
    rows[2] |= {"source_lang": "ru", "text": "привет"}
    Path("mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = shell("lorsmerge data mixed.jsonl --verbose")
    assert (
        "texts in another script than their language's: 1, the first odd (ca, in Cyrillic)"
        in ended.out
    )
    assert "odd: ca, in Cyrillic" in ended.err
    assert json.loads(shell("lorsmerge data mixed.jsonl --json").out)["other_scripts"] == 1
    assert "another script" not in shell("lorsmerge data good.jsonl").out


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_picture_of_the_data(clips: Path, shell: Command, suffix: str) -> None:
    ended = shell(f"lorsmerge data good.jsonl --plot data.{suffix} -o out.jsonl")
    assert (ended.code, f"wrote data.{suffix}" in ended.err) == (0, True)
    heads = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert Path(f"data.{suffix}").read_bytes().startswith(heads[suffix])
    ended = shell(f"lorsmerge data good.jsonl --plot data.{suffix}")
    assert (ended.code, "exists" in ended.err) == (WORK, True)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--plot data.txt", 2, "not one of .png, .svg, .pdf"),
        ("--tokenizer base", 2, "--tokenizer is for --plot"),
        ("--plot x.png -o x.png", 2, "--plot and --output are one file"),
        ("--plot good.jsonl", WORK, "is or holds the input"),
        ("--plot x.png --tokenizer gone/", WORK, "gone"),
    ],
)
def test_pictures_that_cannot_be_drawn(
    clips: Path, shell: Command, options: str, code: int, message: str
) -> None:
    ended = shell(f"lorsmerge data good.jsonl {options}")
    assert (ended.code, message in ended.err) == (code, True), ended.err
