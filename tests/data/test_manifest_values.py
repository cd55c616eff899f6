"""What a row's values have to be, in every format, and what happens to rows that have others."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from lorsmerge_cli.data import languages
from lorsmerge_cli.data.dataset import check_complete, drop_warnings, load_data
from lorsmerge_cli.data.languages import parse_language
from lorsmerge_cli.data.readers import read_manifest
from lorsmerge_cli.data.report import DataReport
from lorsmerge_cli.errors import LorsmergeError

GOOD: dict[str, Any] = {"audio_filepath": "x.wav", "text": "bon dia", "source_lang": "ca"}
NAN, INFINITE = math.nan, math.inf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With x.wav, ten seconds of silence."""
    soundfile.write(tmp_path / "x.wav", np.zeros(160_000), 16_000)
    return tmp_path


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- JSON's values --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"text": None}, "empty text"),
        ({"text": NAN}, "empty text"),
        ({"text": ""}, "empty text"),
        ({"text": " \u00a0"}, "empty text"),
        ({"text": "\u200b"}, "empty text"),
        ({"text": "\ufeff\u200d \0"}, "empty text"),
        ({"text": 12}, "text is no string"),
        ({"text": 1.5}, "text is no string"),
        ({"text": True}, "text is no string"),
        ({"text": "\ud83d"}, "text is no string"),
        ({"text": {"de": "guten Tag"}}, "empty text"),
        ({"text": {"ca": None}}, "empty text"),
        ({"text": None, "translation": {"fr": "bonjour"}, "taskname": "st"}, "empty text"),
        ({"text": {"ca": NAN, "cat": None, "": "x", "klingon": "y"}}, "empty text"),
        ({"offset": NAN}, "offset is negative, NaN or infinite"),
        ({"offset": -2}, "offset is negative, NaN or infinite"),
        ({"offset": INFINITE}, "offset is negative, NaN or infinite"),
        ({"offset": 10**400}, "offset is negative, NaN or infinite"),
        ({"offset": "nan"}, "offset is negative, NaN or infinite"),
        ({"duration": NAN}, "duration is negative, NaN or infinite"),
        ({"duration": -INFINITE}, "duration is negative, NaN or infinite"),
        ({"duration": "-1"}, "duration is negative, NaN or infinite"),
        ({"duration": 0}, "empty audio"),
        ({"offset": 10.0}, "empty audio"),
        ({"speaker": {"name": "s"}}, "speaker is no string"),
        ({"speaker": ["s"]}, "speaker is no string"),
        ({"speaker": False}, "speaker is no string"),
        ({"speaker": 0.5}, "speaker is no string"),
        ({"id": {"n": 1}}, "id is no string"),
        ({"id": True}, "id is no string"),
        ({"audio_filepath": None}, "missing audio"),
        ({"audio_filepath": NAN}, "missing audio"),
        ({"audio_filepath": ""}, "missing audio"),
        ({"audio_filepath": 7}, "audio is no path"),
        ({"audio_filepath": ["x.wav"]}, "audio is no path"),
        ({"audio_filepath": {"path": None}}, "missing audio"),
        ({"audio_filepath": "x\0.wav"}, "missing audio"),
        ({"audio_filepath": "x" * 5000}, "missing audio"),
    ],
)  # fmt: skip
def test_a_bad_value_costs_its_row_alone(folder: Path, bad: dict[str, Any], reason: str) -> None:
    path = written(folder / "m.jsonl", GOOD, GOOD | bad, GOOD)
    report = load_data([path])
    assert [row.text for row in report.utterances] == ["bon dia", "bon dia"]
    assert report.reasons == {reason: 1}
    only = written(folder / "only.jsonl", GOOD | bad)
    with pytest.raises(LorsmergeError, match=f"No row of .* can be used: 1 {reason}, the first "):
        load_data([only])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"text": ["one", "two"]}, "text is a list of 2, and several references are not supported"),
        ({"text": ["one"]}, "text is a list of 1"),
        ({"text": {"ca": ["one", "two"]}}, r"text\[ca\] is a list of 2"),
        ({"offset": []}, "numbers of seconds, and offset is"),
        ({"duration": True}, "numbers of seconds, and duration is True"),
        ({"duration": "0:05"}, "numbers of seconds, and duration is '0:05'"),
        ({"source_lang": 3}, "source_lang is 3, and a string is needed"),
        ({"taskname": ["asr"]}, r"taskname is \['asr'\], and a string is needed"),
        ({"audio_filepath": {"bytes": "UklGRg=="}}, "audio_filepath holds bytes and no path"),
        ({"audio_filepath": {"array": [0.0, 0.1], "path": None}}, "holds array and no path"),
        ({"target_lang": "klingon"}, r"to be translated into 'klingon'"),
        ({"target_lang": "en", "taskname": "asr"}, "a transcript of ca by its task.*'en'"),
        ({"target_lang": "x", "taskname": "asr"}, "a transcript of ca by its task.*'x'"),
    ],
)
def test_what_no_row_can_be_meant_by_is_an_error_with_its_line(
    folder: Path, bad: dict[str, Any], message: str
) -> None:
    path = written(folder / "m.jsonl", GOOD, GOOD | bad)
    with pytest.raises(LorsmergeError, match=rf"m\.jsonl, line 2.*{message}"):
        load_data([path])


@pytest.mark.parametrize(
    ("changed", "field", "value"),
    [
        ({"text": {"ca": "bona nit", "en": "good night"}}, "text", "bona nit"),
        ({"text": {"ca_es": "bona nit", "eng": "good night"}}, "text", "bona nit"),
        ({"text": {"ca": None, "Catalan": "bona nit"}}, "text", "bona nit"),
        ({"text": None, "sentence": "bona nit"}, "text", "bona nit"),
        ({"text": "\u200bnit\u200d"}, "text", "\u200bnit\u200d"),
        ({"target_lang": "cat", "taskname": "asr"}, "language", "ca"),
        ({"target_lang": "en", "taskname": "asr", "translation": "good day"}, "text", "bon dia"),
        ({"text": "nan"}, "text", "nan"),
        ({"speaker": 12}, "speaker", "12"),
        ({"speaker": 12.0}, "speaker", "12"),
        ({"speaker": NAN}, "speaker", None),
        ({"speaker": None, "client_id": "s"}, "speaker", "s"),
        ({"id": 0}, "id", "0"),
        ({"id": NAN}, "id", "x"),
        ({"offset": "2.5"}, "start", 2.5),
        ({"offset": -0.01}, "start", 0.0),
        ({"offset": None, "duration": None}, "duration", 10.0),
        ({"taskname": NAN}, "task", "asr"),
    ],
)
def test_values_that_are_understood(
    folder: Path, changed: dict[str, Any], field: str, value: object
) -> None:
    (row,) = load_data([written(folder / "m.jsonl", GOOD | changed)]).utterances
    assert getattr(row, field) == value


@pytest.mark.parametrize("task", [None, "st"])
@pytest.mark.parametrize(("english", "catalan"), [("en", "ca"), ("eng", "cat"), ("en-US", "ca_es")])
def test_a_translation_that_is_an_object(
    folder: Path, task: str | None, english: str, catalan: str
) -> None:
    row = {"audio_filepath": "x.wav", "source_lang": "ca",
           "translation": {english: "good day", catalan: "bon dia"}}  # fmt: skip
    (found,) = load_data([written(folder / "m.jsonl", row)], task=task).utterances
    assert (found.task, found.text) == ("st", "good day")


def test_texts_in_other_languages_are_named(folder: Path) -> None:
    path = written(folder / "m.jsonl", GOOD | {"text": {"de": "guten Tag", "fr": "bonjour"}})
    with pytest.raises(LorsmergeError, match=r"text has no text in ca \(it has 'de', 'fr'\)"):
        load_data([path])


@pytest.mark.parametrize("line", ['{"text": "a", "text": "b"}', '{"x": {"y": 1, "y": 1}}'])
def test_a_key_that_is_there_twice_is_an_error_with_its_line(folder: Path, line: str) -> None:
    path = folder / "m.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(LorsmergeError, match=r"m\.jsonl, line 2 .*'(text|y)' is there twice"):
        load_data([path])


@pytest.mark.parametrize(
    "audio",
    [
        {"audio": {"path": "x.wav"}},
        {"audio": {"path": "x.wav", "bytes": "UklGRg=="}},
        {"audio": {"path": "x.wav", "array": [0.0], "sampling_rate": 16_000}},
        {"audio": {"path": None, "bytes": "UklGRg=="}, "path": "x.wav"},
    ],
)
def test_audio_that_is_an_object(folder: Path, audio: dict[str, Any]) -> None:
    row = {"sentence": "bon dia", "language": "Catalan"} | audio
    (found,) = load_data([written(folder / "m.jsonl", row)]).utterances
    assert found.audio.path == folder / "x.wav"


def test_a_missing_reference_is_no_empty_one(folder: Path) -> None:
    """An empty reference counts insertions; one that is missing says nothing of what was said."""
    path = written(folder / "m.jsonl", GOOD, GOOD | {"text": ""}, GOOD | {"text": None})
    report = load_data([path], empty_text=True)
    assert [row.text for row in report.utterances] == ["bon dia", ""]
    assert report.reasons == {"empty text": 1}


def test_json_nested_too_deeply_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(GOOD) + '\n{"text": ' + "[" * 100_000 + "\n")
    with pytest.raises(LorsmergeError, match=r"line 2 is no JSON object \(it is nested too deeply"):
        read_manifest(path)


# --- other formats --------------------------------------------------------------------------------


def test_hugging_faces_json_lines_are_read_as_others(folder: Path) -> None:
    rows = [{"file_name": "x.wav", "text": text} for text in ("bon dia", None, NAN, 3)]
    written(folder / "metadata.jsonl", *rows)
    report = load_data([folder], language="ca")
    assert len(report.utterances) == 1
    assert report.reasons == {"empty text": 2, "text is no string": 1}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("training", "train"), ("val", "dev"), ("valid", "dev"), ("dev", "dev"),
        ("validation", "dev"), ("test", "test"), ("testing", "test"), ("eval", "test"),
        ("evaluation", "test"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("root", ["", "data"])
@pytest.mark.parametrize("common", [True, False], ids=["one table", "a table each"])
def test_folders_of_splits(tmp_path: Path, name: str, split: str, root: str, common: bool) -> None:
    top = tmp_path / root
    (top / name).mkdir(parents=True)
    table, file = (top, f"{name}/a.wav") if common else (top / name, "a.wav")
    (table / "metadata.csv").write_text(f"file_name,text\n{file},bon dia\n")
    for asked in (split, name):
        rows, drops = read_manifest(tmp_path, split=asked, language="ca")
        assert [row.audio.path for row in rows] == [top / name / "a.wav"]
        assert drops == []
    with pytest.raises(
        LorsmergeError, match=f"no split 'other'. Give --split with one of: {split}"
    ):
        read_manifest(tmp_path, split="other", language="ca")


@pytest.mark.parametrize(
    ("one", "other"),
    [("val/metadata.csv", "validation/metadata.jsonl"), ("dev/metadata.csv", "data/dev/metadata.csv"),
     ("dev/metadata.csv", "dev/metadata.jsonl"), ("metadata.csv", "metadata.jsonl"),
     ("metadata.csv", "data/metadata.csv")],
)  # fmt: skip
def test_two_tables_of_one_split_are_not_one(tmp_path: Path, one: str, other: str) -> None:
    for name in (one, other):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("file_name,text\na.wav,bon dia\n")
    with pytest.raises(
        LorsmergeError, match=r"Both .* and .* are there, for the same rows"
    ) as said:
        read_manifest(tmp_path, language="ca")
    assert str(tmp_path / one) in str(said.value)
    assert str(tmp_path / other) in str(said.value)


# --- tables with commas and tabs ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("file_name,text\nx.wav,bon dia, amics\n", "line 2: 3 columns.*header has 2.*comma"),
        ("file_name,text\nx.wav\n", "line 2: 1 columns"),
        ('file_name,text\nx.wav,"bon dia\ny.wav,bona nit\n', "line 3 is no row of a table"),
        ('file_name,text\nx.wav,"bon" dia\n', "line 2 is no row of a table.*doubled"),
        ("file_name,text,text\nx.wav,bon dia,bona nit\n", "several columns 'text'"),
        ("text\nbon dia\n", "has no file_name"),
    ],
)
def test_a_table_that_would_lose_some_of_its_cells(folder: Path, lines: str, message: str) -> None:
    (folder / "metadata.csv").write_text(lines)
    with pytest.raises(LorsmergeError, match=rf"metadata\.csv.*{message}"):
        read_manifest(folder, language="ca")


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ('file_name,text\nx.wav,"bon dia, amics"\n', "bon dia, amics"),
        ('file_name,text\nx.wav,"diu ""bon dia"""\n', 'diu "bon dia"'),
        ("file_name,text\nx.wav,bon dia,,\n", "bon dia"),
        (",,file_name,text\n0,0,x.wav,bon dia\n", "bon dia"),
        ("file_name,text\r\nx.wav,bon dia\r\n\r\n", "bon dia"),
    ],
)
def test_tables_as_they_are_written(folder: Path, lines: str, text: str) -> None:
    (folder / "metadata.csv").write_bytes(lines.encode())
    rows, drops = read_manifest(folder, language="ca")
    assert ([row.text for row in rows], drops) == ([text], [])


def test_a_tab_in_a_sentence_of_common_voice(tmp_path: Path) -> None:
    (tmp_path / "ca" / "clips").mkdir(parents=True)
    (tmp_path / "ca" / "train.tsv").write_text("path\tsentence\na.mp3\tbon\tdia\n")
    with pytest.raises(LorsmergeError, match=r"train\.tsv, line 2: 3 columns.*no tab"):
        read_manifest(tmp_path / "ca", split="train")


def test_translations_of_clips_that_are_not_validated_are_missing(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "validated.tsv").write_text("client_id\tpath\tsentence\ns\ta.mp3\tbon dia\n")
    (tmp_path / "covost_v2.ca_en.test.tsv").write_text(
        "path\ttranslation\tsplit\na.mp3\tgood day\ttest\nb.mp3\tgood night\ttest\n"
    )
    rows, drops = read_manifest(tmp_path, split="test")
    assert [row.id for row in rows] == ["a"]
    assert [(drop.id, drop.reason) for drop in drops] == [("b", "missing audio")]
    assert "b.mp3 is not in" in drops[0].detail


def test_rows_in_no_splits_folder_are_counted(tmp_path: Path) -> None:
    rows = [{"file_name": name, "text": "a"} for name in ("train/a.wav", "extra/b.wav", "c.wav")]
    written(tmp_path / "metadata.jsonl", *rows)
    used, drops = read_manifest(tmp_path, split="train", language="ca")
    assert [row.id for row in used] == ["a"]
    assert [(drop.id, drop.reason) for drop in drops] == [
        ("line 2", "in no split's folder"), ("line 3", "in no split's folder"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "language"),
    [("my-voices", None), ("my_cv", None), ("is-20", None), ("my", "my"), ("zh-HK", "yue"),
     ("pa-IN", "pa"), ("sv-SE", "sv"), ("to-do", None)],
)  # fmt: skip
def test_a_common_voice_folder_named_by_a_person(
    tmp_path: Path, name: str, language: str | None
) -> None:
    (tmp_path / name / "clips").mkdir(parents=True)
    (tmp_path / name / "train.tsv").write_text("path\tsentence\na.mp3\thi\n")
    if language is None:
        with pytest.raises(LorsmergeError, match="does not say which language is spoken"):
            read_manifest(tmp_path / name, split="train")
    else:
        rows, _ = read_manifest(tmp_path / name, split="train")
        assert [row.language for row in rows] == [language]


# --- Kaldi ----------------------------------------------------------------------------------------


def kaldi(
    folder: Path, segments: str | None = None, *, audio: str = "", channels: str = ""
) -> Path:
    """Write a data folder of one utterance `utt` of the recording `rec`."""
    data = folder / "kaldi"
    data.mkdir()
    name = "rec" if segments else "utt"
    (data / "wav.scp").write_text(f"{name} {audio or folder / 'x.wav'}\n")
    (data / "text").write_text("utt bon dia\n")
    if segments:
        (data / "segments").write_text(f"utt rec {segments}\n")
    if channels:
        (data / "reco2file_and_channel").write_text(f"{name} x {channels}\n")
    return data


def test_a_segment_to_the_end_of_its_file(folder: Path) -> None:
    (row,) = load_data([kaldi(folder, "2.0 -1")], language="ca").utterances
    assert (row.start, row.duration) == (2.0, 8.0)


@pytest.mark.parametrize(
    ("segments", "reason"),
    [
        ("4.0 2.0", "empty audio"),
        ("2.0 2.0", "empty audio"),
        ("nan 2.0", "start is negative, NaN or infinite"),
        ("-3 2.0", "start is negative, NaN or infinite"),
        ("1.0 inf", "end is negative, NaN or infinite"),
        ("1.0 -2", "end is negative, NaN or infinite"),
        ("1.0 2.0 1", "channel is not in its file"),
    ],
)
def test_a_segment_that_is_none(folder: Path, segments: str, reason: str) -> None:
    data = kaldi(folder, segments)
    rows, drops = read_manifest(data, language="ca")
    assert rows == []
    assert [(drop.id, drop.reason) for drop in drops] == [("utt", reason)]
    with pytest.raises(LorsmergeError, match=f"1 {reason}, the first .*'utt'"):
        load_data([data], language="ca")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: kaldi(folder, "soon later"), "'soon' to 'later', which are no times"),
        (
            lambda folder: kaldi(folder, audio="/a/w.ark:17"),
            r"in an archive .*wav-copy /a/w.ark:17",
        ),
        (lambda folder: kaldi(folder, audio="/a/w.ark"), "in an archive"),
        (lambda folder: kaldi(folder, audio="/a/w.ark:17[0:9]"), "in an archive"),
        (lambda folder: kaldi(folder, "0 1", audio="/a/raw:900"), "in an archive"),
        (lambda folder: kaldi(folder, audio="sph2pipe -c 1 a.sph |"), "commands are not run"),
    ],
)
def test_audio_that_kaldi_alone_can_read(
    folder: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(LorsmergeError, match=message):
        read_manifest(make(folder), language="ca")


@pytest.mark.parametrize(
    ("segments", "channels"), [("2.0 4.0 0", ""), ("2.0 4.0 1", ""), (None, "A"), ("2.0 4.0", "B")]
)
def test_a_channel_of_several_is_an_error(
    tmp_path: Path, segments: str | None, channels: str
) -> None:
    soundfile.write(tmp_path / "x.wav", np.zeros((160_000, 2)), 16_000)
    with pytest.raises(LorsmergeError, match=r"'utt' is channel .*x.wav, which has 2"):
        read_manifest(kaldi(tmp_path, segments, channels=channels), language="ca")


@pytest.mark.parametrize(
    ("segments", "channels"), [("2.0 4.0 0", ""), ("2.0 4.0 -1", ""), (None, "A"), ("2.0 4.0", "B")]
)
def test_a_channel_of_one(folder: Path, segments: str | None, channels: str) -> None:
    data = kaldi(folder, segments, channels=channels)
    assert len(load_data([data], language="ca").utterances) == 1


def test_utterances_without_a_text_are_counted(folder: Path) -> None:
    data = kaldi(folder, "0 4")
    with (data / "segments").open("a") as file:
        file.write("more rec 4 8\n")
    report = load_data([data], language="ca")
    assert [row.id for row in report.utterances] == ["utt"]
    assert [(drop.id, drop.reason) for drop in report.drops] == [("more", "empty text")]
    assert "text has no line for 'more'" in report.drops[0].detail


@pytest.mark.parametrize("name", ["text", "segments", "wav.scp"])
def test_a_name_with_two_lines_is_an_error(folder: Path, name: str) -> None:
    data = kaldi(folder, "0 4")
    lines = (data / name).read_text()
    (data / name).write_text(lines + lines)
    with pytest.raises(LorsmergeError, match=rf"{name}, line 2: '(utt|rec)' has a line already"):
        load_data([data], language="ca")


# --- languages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("no", "nb nob nb_no nb-NO nor no-NO"), ("nn", "nn nno nn-NO"), ("he", "he iw heb he_il"),
        ("zh", "zh cmn zho chi cmn_hans_cn zh-CN zh-TW zh-Hant zh-Hans-CN zh_SG mandarin"),
        ("yue", "yue zh-HK zh_hk zh-Hant-HK zh-yue yue_hant_hk yue-HK zh-MO cantonese"),
        ("tl", "tl fil tgl fil_ph filipino tagalog"), ("jw", "jw jv jav jv_id javanese"),
        ("de", "deu ger de-DE de_de German de-1996 de_DE.UTF-8"), ("ca", "cat ca_es ca-ES-valencia"),
        ("es", "spa es-419 es_419 castilian"), ("sr", "srp sr_rs sr-Latn-RS"), ("fa", "pes fas farsi"),
        ("sw", "swh swa sw_ke"), ("ms", "zsm msa ms_my"), ("et", "ekk est"), ("lv", "lvs lav"),
        ("ar", "arb ara ar_eg"), ("pa", "pan pa_in pa-Guru-IN"), ("mn", "khk mon"), ("haw", "haw"),
        ("de", "Deutsch"), ("es", "Español castellano"), ("fr", "français"), ("ca", "Català"),
        ("zh", "中文"), ("el", "Ελληνικά"),
        ("id", "in ind id_id"), ("yi", "ji ydd"), ("en", "eng en_us en-GB-oxendict English"),
    ],
)  # fmt: skip
def test_codes_of_languages(code: str, names: str) -> None:
    assert {name: parse_language(name) for name in names.split()} == dict.fromkeys(
        names.split(), code
    )


def test_no_code_stands_for_two_languages_of_whisper() -> None:
    assert {code: parse_language(code) for code in LANGUAGES} == {code: code for code in LANGUAGES}


def test_languages_and_their_names_are_whispers() -> None:
    assert languages.LANGUAGES == LANGUAGES
    assert {name: parse_language(name) for name in TO_LANGUAGE_CODE} == TO_LANGUAGE_CODE


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("arz", "nearest that it has is ar"), ("nan-tw", "nearest that it has is zh"),
        ("ast_es", "nearest that it has is es"), ("ckb_iq", "nearest that it has is fa"),
        ("catalann", "Did you mean catalan"), ("norwegan", "Did you mean norwegian"),
        ("my-voices", r"Did you mean my\?"), ("qqq", "Use a code such as ca"), ("", "Use a code"),
        ("que", "Use a code such as ca"), ("mai_in", "nearest that it has is hi"),
    ],
)  # fmt: skip
def test_a_language_that_whisper_lacks_has_a_hint(name: str, hint: str) -> None:
    with pytest.raises(LorsmergeError, match=rf"no language '{name}'\. .*{hint}"):
        parse_language(name)


# --- a mixed manifest -----------------------------------------------------------------------------

MIXED = [
    GOOD,
    GOOD | {"source_lang": "de"},
    GOOD | {"source_lang": "de", "taskname": "st"},
    GOOD | {"source_lang": "ca", "target_lang": "en"},
    GOOD | {"source_lang": "ast"},  # which Whisper does not have
]


@pytest.mark.parametrize(
    ("options", "kept", "reasons"),
    [
        ({"language": "ca"}, [0, 3], {"of another language": 3}),
        ({"language": "Catalan", "task": "st"}, [0, 3], {"of another language": 3}),
        ({"language": "de", "task": "asr"}, [1], {"of another language": 3, "of another task": 1}),
    ],
)  # fmt: skip
def test_a_mixed_manifest_is_narrowed(
    folder: Path, options: dict[str, str], kept: list[int], reasons: dict[str, int]
) -> None:
    rows = [row | {"id": number} for number, row in enumerate(MIXED)]
    report = load_data([written(folder / "m.jsonl", *rows)], **options)
    assert [row.id for row in report.utterances] == [str(number) for number in kept]
    assert report.reasons == reasons
    (told,) = drop_warnings(report)
    assert told.startswith(f"{len(MIXED) - len(kept)} of {len(MIXED)} rows are skipped (")


def test_rows_not_asked_for_are_no_fault(folder: Path) -> None:
    path = written(folder / "m.jsonl", GOOD, *[GOOD | {"source_lang": "de"}] * 30)
    check_complete(load_data([path], language="ca"), path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "fr"}, "line 1 has the language ca, and --language fr was given. Leave out"),
        ({"language": "ca", "task": "st"}, "line 1 has the task asr, and --task st was given"),
    ],
)
def test_a_manifest_with_nothing_asked_for(
    tmp_path: Path, options: dict[str, str], message: str
) -> None:
    path = written(tmp_path / "m.jsonl", GOOD | {"taskname": "asr"})
    with pytest.raises(LorsmergeError, match=message):
        read_manifest(path, **options)


# --- test sets that lack audio --------------------------------------------------------------------


def lacking(folder: Path, whole: int, bad: list[dict[str, Any]]) -> DataReport:
    return load_data([written(folder / "m.jsonl", *[GOOD] * whole, *bad)], empty_text=True)


GONE = {"audio_filepath": "gone.wav"}


def test_a_test_set_that_lacks_audio_is_no_test_set(folder: Path) -> None:
    (folder / "noise.wav").write_bytes(b"RIFF, or not")
    bad = [GOOD | GONE, GOOD | {"audio_filepath": "noise.wav"}]
    with pytest.raises(
        LorsmergeError,
        match=r"2 of 22 rows cannot be scored \(1 missing audio, 1 unreadable audio\), the first "
        r".*gone\.wav\. .*--allow-missing",
    ):
        check_complete(lacking(folder, 20, bad), Path("m.jsonl"))


@pytest.mark.parametrize("bad", [{"text": None}, {"text": 3}, {"duration": NAN}, {"id": True}])
def test_a_test_set_most_of_which_is_lost_is_none(folder: Path, bad: dict[str, Any]) -> None:
    check_complete(lacking(folder, 10, 10 * [GOOD | bad]), Path("m.jsonl"))
    with pytest.raises(LorsmergeError, match=r"11 of 21 rows cannot be scored \(11 .*--allow-miss"):
        check_complete(lacking(folder, 10, 11 * [GOOD | bad]), Path("m.jsonl"))


def test_rows_that_were_not_asked_for_are_not_lost(folder: Path) -> None:
    path = written(folder / "m.jsonl", GOOD, *(9 * [GOOD | {"source_lang": "de"}]))
    check_complete(load_data([path], language="ca"), path)


def test_a_few_missing_files_or_long_ones_are_told_alone(folder: Path) -> None:
    soundfile.write(folder / "long.wav", np.zeros(31 * 16_000), 16_000)
    bad = [GOOD | GONE] + 5 * [GOOD | {"audio_filepath": "long.wav"}]
    report = lacking(folder, 20, bad)
    check_complete(report, Path("m.jsonl"))
    assert drop_warnings(report, 0.0)[0].startswith(
        "6 of 26 rows are dropped (1 missing audio, 5 longer than the window)"
    )
