"""The five formats that people's data comes in, and which rows of it are used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lorsmerge_cli.data.audio import audio_seconds, load_audio
from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.dataset import drop_warnings, load_data
from lorsmerge_cli.data.languages import parse_language, parse_task
from lorsmerge_cli.data.readers import read_manifest
from lorsmerge_cli.data.selection import select
from lorsmerge_cli.data.utterance import Utterance, with_unique_ids
from lorsmerge_cli.errors import LorsmergeError
from lorsmerge_cli.operations.data import data


def tone(seconds: float, rate: int = 16_000, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def write_clip(path: Path, seconds: float = 1.0, rate: int = 16_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(seconds, rate), rate)
    return path


def write_rows(path: Path, *rows: dict[str, object] | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_table(path: Path, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(row.replace(" | ", "\t") for row in rows) + "\n", encoding="utf-8")
    return path


def said(rows: list[Utterance]) -> list[tuple[str, str, str, str]]:
    return [(row.id, row.text, row.language, row.task) for row in rows]


def rows_of(path: Path, **options: str | None) -> list[Utterance]:
    utterances, _ = read_manifest(path, **options)
    return utterances


# --- formats --------------------------------------------------------------------------------------


def test_json_lines_with_nemos_keys(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "m.jsonl",
        {"audio_filepath": "a/x.wav", "text": "hola", "source_lang": "ca", "target_lang": "ca"},
        {"audio_filepath": "/b/y.wav", "text": "bye", "source_lang": "de", "target_lang": "en",
         "offset": 1.5, "duration": 2, "speaker": "s"},
        {"id": "z", "audio_filepath": "y.wav", "text": "hm", "source_lang": "de", "taskname": "ast"},
    )  # fmt: skip
    rows = rows_of(path)
    assert said(rows) == [
        ("x", "hola", "ca", "asr"), ("y", "bye", "de", "st"), ("z", "hm", "de", "st"),
    ]  # fmt: skip
    assert [row.audio.path for row in rows] == [
        tmp_path / "a/x.wav", Path("/b/y.wav"), tmp_path / "y.wav",
    ]  # fmt: skip
    assert (rows[1].start, rows[1].duration, rows[1].speaker) == (1.5, 2.0, "s")


@pytest.mark.parametrize(
    "header",
    [
        "client_id | path | sentence | up_votes | accent",
        "client_id | path | sentence_id | sentence | locale | segment",
    ],
)
def test_common_voice_of_any_year(tmp_path: Path, header: str) -> None:
    cells = {"client_id": "s1", "path": "c_1.mp3", "sentence": 'Ell va dir "no', "locale": "ca"}
    names = header.split(" | ")
    folder = tmp_path / "ca"
    (folder / "clips").mkdir(parents=True)
    for split in ("train", "dev"):
        write_table(folder / f"{split}.tsv", header, " | ".join(cells.get(n, "0") for n in names))
    rows = rows_of(folder, split="train")
    assert said(rows) == [("c_1", 'Ell va dir "no', "ca", "asr")]
    assert rows[0].audio.path == folder / "clips/c_1.mp3"
    assert rows[0].speaker == "s1"
    with pytest.raises(LorsmergeError, match=r"no split 'test'.*train, dev"):
        rows_of(folder, split="test")


def test_covost_joined_with_common_voice(tmp_path: Path) -> None:
    folder = tmp_path / "de"
    (folder / "clips").mkdir(parents=True)
    write_table(
        folder / "validated.tsv",
        "client_id | path | sentence",
        "s1 | a.mp3 | eins",
        "s2 | b.mp3 | zwei",
    )
    write_table(
        folder / "covost_v2.de_en.tsv",
        "path | translation | split",
        r"a.mp3 | He said \"one\" and NA | train",
        "b.mp3 | two | test",
        "gone.mp3 | three | train",
    )
    rows = rows_of(folder, split="train", task="st")
    assert said(rows) == [("a", 'He said "one" and NA', "de", "st")]
    assert rows[0].speaker == "s1"
    assert rows[0].audio.path == folder / "clips/a.mp3"
    assert rows[0].source_text == "eins"


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_hugging_faces_audio_folder(tmp_path: Path, name: str) -> None:
    for folder in ("train", "validation"):
        path = tmp_path / folder / name
        if name.endswith("csv"):
            write_table(path, "file_name,text,language", f'x.wav,"one, {folder}",fr')
        else:
            write_rows(path, {"file_name": "x.wav", "text": f"one, {folder}", "language": "fr"})
    rows = rows_of(tmp_path, split="dev")
    assert said(rows) == [("x", "one, validation", "fr", "asr")]
    assert rows[0].audio.path == tmp_path / "validation/x.wav"


def test_kaldis_folder_with_segments(tmp_path: Path) -> None:
    write_rows(tmp_path / "wav.scp", "r1 /a/r1.wav")
    write_rows(tmp_path / "text", "u1 one two", "u2 three")
    write_rows(tmp_path / "segments", "u1 r1 0.5 2.0", "u2 r1 2.0 2.5")
    write_rows(tmp_path / "utt2spk", "u1 s1", "u2 s2")
    rows = rows_of(tmp_path, language="Catalan")
    assert said(rows) == [("u1", "one two", "ca", "asr"), ("u2", "three", "ca", "asr")]
    assert [(row.start, row.duration, row.speaker) for row in rows] == [
        (0.5, 1.5, "s1"), (2.0, 0.5, "s2"),
    ]  # fmt: skip


# --- bad manifests --------------------------------------------------------------------------------

GOOD = {"audio_filepath": "x.wav", "text": "a", "source_lang": "ca"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", r"m.jsonl, line 2 is no JSON object"),
        ("[1, 2]", r"line 2 is no JSON object"),
        ({"audio_filepath": "x.wav", "txt": "a"}, r"line 2.*no text.*It has: audio_filepath, txt"),
        (GOOD | {"source_lang": "catalann"}, r"line 2.*no language 'catalann'.*Did you mean catalan"),
        (GOOD | {"taskname": "tts"}, r"line 2.*no task 'tts'.*asr"),
        (GOOD | {"target_lang": "de", "taskname": "st"}, r"line 2.*into 'de'.*English only"),
        (GOOD | {"offset": "soon"}, r"line 2.*numbers of seconds"),
        ({"audio_filepath": "x.wav", "text": "a"}, r"line 2 does not say which language.*--language"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_with_its_line(
    tmp_path: Path, row: dict[str, object] | str, message: str
) -> None:
    path = write_rows(tmp_path / "m.jsonl", GOOD, row)
    with pytest.raises(LorsmergeError, match=message):
        rows_of(path)


def test_a_row_that_contradicts_the_command_line(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "m.jsonl", GOOD)
    with pytest.raises(LorsmergeError, match=r"has the language ca, and --language de was given"):
        rows_of(path, language="de")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "is no data set that is known.*jsonl: .*kaldi: "),
        (
            lambda folder: (
                (folder / "clips").mkdir(),
                write_table(folder / "train.tsv", "path | words", "a.mp3 | x"),
            ),
            "no sentence.*It has: path, words",
        ),
        (
            lambda folder: (
                write_rows(folder / "wav.scp", "u1 sox a.wav |"),
                write_rows(folder / "text", "u1 one"),
            ),
            "is a command, and commands are not run",
        ),
        (
            lambda folder: [write_rows(folder / f"{name}.jsonl", GOOD) for name in ("ca", "de")],
            r"holds 2 JSON-lines manifests. Give those you mean: ca.jsonl, de.jsonl\.",
        ),
    ],
)
def test_a_folder_that_is_not_what_it_seems(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path)
    with pytest.raises(LorsmergeError, match=message):
        rows_of(tmp_path, split="train", language="ca")


BOTH = {"audio_filepath": "a.wav", "source_lang": "ca", "sentence": "hola", "translation": "hello"}


@pytest.mark.parametrize(
    ("row", "task", "expected"),
    [
        (BOTH, "st", ("st", "hello")),
        (BOTH, "asr", ("asr", "hola")),
        (BOTH | {"target_lang": "en"}, None, ("st", "hello")),
        (BOTH | {"taskname": "asr"}, None, ("asr", "hola")),
        ({key: BOTH[key] for key in BOTH if key != "sentence"}, None, ("st", "hello")),
    ],
)
def test_each_task_has_its_own_text(
    tmp_path: Path, row: dict[str, str], task: str | None, expected: tuple[str, str]
) -> None:
    found = [rows_of(write_rows(tmp_path / "m.jsonl", row), task=task)[0]]
    csv = {"file_name" if key == "audio_filepath" else key: value for key, value in row.items()}
    write_rows(tmp_path / "metadata.csv", ",".join(csv), ",".join(csv.values()))
    if "target_lang" not in row:  # a key of NeMo's
        found += rows_of(tmp_path / "metadata.csv", task=task)
    assert [(utterance.task, utterance.text) for utterance in found] == [expected] * len(found)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "hello", "taskname": "st", "source_text": "hola"}, "hola"),
        ({"text": "hello", "taskname": "st", "transcript": "hola"}, "hola"),
        ({"text": "hello", "taskname": "st", "source_text": None, "transcript": "hola"}, "hola"),
        ({"text": "hola", "translation": "hello", "taskname": "st"}, "hola"),
        ({"sentence": {"ca": "hola", "en": "x"}, "translation": "hello", "taskname": "st"}, "hola"),
        ({"text": "hello", "taskname": "st"}, None),
        ({"text": "hello", "taskname": "st", "source_text": 3}, None),
        ({"text": "hello", "taskname": "st", "source_text": "\ud800"}, None),
        ({"text": "hola", "taskname": "asr", "source_text": "hola"}, None),
    ],
)
def test_a_translation_may_have_its_transcript_beside_it(
    tmp_path: Path, row: dict[str, object], expected: str | None
) -> None:
    rows = rows_of(
        write_rows(tmp_path / "m.jsonl", {"audio_filepath": "x.wav", "source_lang": "ca"} | row)
    )
    assert [utterance.source_text for utterance in rows] == [expected]


def test_a_transcript_and_a_translation_without_a_task(tmp_path: Path) -> None:
    with pytest.raises(LorsmergeError, match=r"a sentence and a translation. Give --task"):
        rows_of(write_rows(tmp_path / "m.jsonl", BOTH))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_one_table_of_all_splits(tmp_path: Path, suffix: str) -> None:
    names = ("train/a.wav", "validation/b.wav", "test/c.wav", "test/d.wav")
    if suffix == "csv":
        lines = ["file_name,text", *(f"{name},x" for name in names)]
        write_rows(tmp_path / "metadata.csv", *lines)
    else:
        rows = [{"file_name": name, "text": "x"} for name in names]
        write_rows(tmp_path / "metadata.jsonl", *rows)
    found = {
        split: [row.id for row in rows_of(tmp_path, split=split, language="ca")]
        for split in ("train", "dev", "test")
    }
    assert found == {"train": ["a"], "dev": ["b"], "test": ["c", "d"]}
    with pytest.raises(
        LorsmergeError, match=r"has several splits. Give --split with one of: train"
    ):
        rows_of(tmp_path, language="ca")


def test_a_file_outside_of_the_tables_folder_is_of_no_split(tmp_path: Path) -> None:
    rows = [
        {"audio": name, "text": "x"} for name in ("train/a.wav", "test/b.wav", "/far/train/c.wav")
    ]
    write_rows(tmp_path / "metadata.jsonl", *rows)
    assert [row.id for row in rows_of(tmp_path, split="train", language="ca")] == ["a"]


def test_ids_stay_unique_when_sets_are_put_together() -> None:
    rows = [Utterance("0", AudioFile(Path("x")), "t", "ca", "asr") for _ in range(3)]
    one = with_unique_ids(rows)
    both = with_unique_ids([*one, *one])
    assert [row.id for row in one] == ["0", "0#2", "0#3"]
    assert len({row.id for row in both}) == 6


def test_a_name_where_sets_have_none(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "ca.jsonl", GOOD)
    with pytest.raises(LorsmergeError, match=rf"Only eval's sets have names: write {path} without"):
        rows_of(Path(f"ca={path}"))


@pytest.mark.parametrize(("name", "code"), [("ca", "ca"), ("Catalan", "ca"), ("zh-CN", "zh"),
                                            ("sv_SE", "sv"), ("castilian", "es")])  # fmt: skip
def test_names_of_languages(name: str, code: str) -> None:
    assert parse_language(name) == code


@pytest.mark.parametrize(("name", "task"), [("ASR", "asr"), ("translate", "st"), ("ast", "st")])
def test_names_of_tasks(name: str, task: str) -> None:
    assert parse_task(name) == task


# --- audio ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "rate"),
    [("wav", 16_000), ("wav", 44_100), ("flac", 8_000), ("mp3", 22_050), ("ogg", 48_000)],
)
def test_any_file_becomes_mono_at_16_khz(tmp_path: Path, suffix: str, rate: int) -> None:
    path = tmp_path / f"x.{suffix}"
    left = tone(1.0, rate)
    soundfile.write(path, np.stack([left, np.zeros_like(left)], axis=1), rate)
    wave = load_audio(AudioFile(path))
    assert wave.dtype == np.float32
    assert abs(len(wave) / 16_000 - 1) < 0.08  # mp3 pads
    spectrum = np.abs(np.fft.rfft(wave[2000:14000]))
    assert spectrum.argmax() * 16_000 / 12_000 == pytest.approx(440, abs=2)
    assert np.abs(wave[4000:12000]).max() == pytest.approx(0.25, rel=0.05)
    assert audio_seconds(AudioFile(path)) == pytest.approx(1.0, abs=0.08)


def test_a_piece_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    samples = np.arange(16_000) / 32_000
    soundfile.write(path, samples, 16_000, subtype="FLOAT")
    piece = load_audio(AudioFile(path), start=0.25, duration=0.5)
    np.testing.assert_allclose(piece, samples[4000:12000], atol=1e-6)


# --- selection ------------------------------------------------------------------------------------


def make_rows(folder: Path, count: int, seconds: float = 1.0) -> list[Utterance]:
    clip = write_clip(folder / "x.wav", seconds)
    return [Utterance(f"u{n}", AudioFile(clip), "a", "ca", "asr") for n in range(count)]


def test_a_subset_is_the_same_in_any_order_and_of_its_duration(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 100)
    taken = select(rows, max_seconds=30, hours=20 / 3600).utterances
    assert len(taken) == 20
    turned = select(rows[::-1], max_seconds=30, hours=20 / 3600).utterances
    assert {row.id for row in turned} == {row.id for row in taken}
    more = select(rows, max_seconds=30, hours=40 / 3600).utterances
    assert {row.id for row in taken} <= {row.id for row in more}
    other = select(rows, max_seconds=30, hours=20 / 3600, seed=1).utterances
    assert {row.id for row in other} != {row.id for row in taken}


def test_rows_that_cannot_be_used_are_dropped_by_reason(tmp_path: Path) -> None:
    good = make_rows(tmp_path, 10)
    (tmp_path / "broken.wav").write_bytes(b"RIFF, or not")
    write_clip(tmp_path / "long.wav", 3.0)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    lines = [{"audio_filepath": "x.wav", "id": row.id, "text": "a"} for row in good]
    lines += [{"audio_filepath": f"{name}.wav", "text": "a"}
              for name in ("broken", "long", "empty", "nowhere")]  # fmt: skip
    lines.append({"audio_filepath": "x.wav", "id": "silent", "text": " "})
    path = write_rows(tmp_path / "m.jsonl", *lines)
    report = load_data([path], language="ca", max_seconds=2.0)
    assert len(report.utterances) == 10
    assert report.reasons == {
        "unreadable audio": 1, "longer than the window": 1, "empty audio": 1,
        "missing audio": 1, "empty text": 1,
    }  # fmt: skip
    assert "5 of 15 rows are dropped" in drop_warnings(report)[0]


def test_a_few_drops_are_no_warning_and_all_are_an_error(tmp_path: Path) -> None:
    rows = [{"audio_filepath": "x.wav", "id": str(n), "text": "a"} for n in range(40)]
    rows.append({"audio_filepath": "nowhere.wav", "text": "a"})
    write_clip(tmp_path / "x.wav")
    few = write_rows(tmp_path / "few.jsonl", *rows)
    assert drop_warnings(load_data([few], language="ca")) == []
    nothing = write_rows(tmp_path / "none.jsonl", rows[-1])
    with pytest.raises(
        LorsmergeError, match=r"No row of .*none.jsonl can be used: 1 missing audio"
    ):
        load_data([nothing], language="ca")


def test_what_data_writes_reads_the_same(tmp_path: Path) -> None:
    write_clip(tmp_path / "in/x.wav", 1.0)
    path = write_rows(
        tmp_path / "in/m.jsonl",
        {"audio_filepath": "x.wav", "id": "a", "text": "één", "source_lang": "de", "speaker": "s"},
        {"audio_filepath": "x.wav", "id": "b", "text": "b", "source_lang": "de", "taskname": "st",
         "offset": 0.25, "duration": 0.5, "source_text": "ß"},
    )  # fmt: skip
    output = tmp_path / "out.jsonl"

    def write(force: bool) -> None:
        data(
            [path], output=output, force=force,
        )  # fmt: skip

    write(force=False)
    first, again = load_data([path]), load_data([output])
    assert [row.audio.file.resolve() for row in first.utterances] == [
        row.audio.file.resolve() for row in again.utterances
    ]
    for field in ("id", "text", "language", "task", "duration", "start", "speaker", "source_text"):
        assert [getattr(row, field) for row in first.utterances] == [
            getattr(row, field) for row in again.utterances
        ]
    with pytest.raises(LorsmergeError, match="exists"):
        write(force=False)
    write(force=True)
